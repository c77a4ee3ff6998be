"""A third kind of condition, from its files to a training step: nothing of the package names it."""

import json
from dataclasses import replace
from functools import partial
from typing import Any

import layouts
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import build_transformer
from depth_plugin import DepthKind
from diffusers.optimization import get_constant_schedule
from PIL import Image

from mmface import doctor
from mmface.conditions import registered
from mmface.data.importers import import_faces, importer_of
from mmface.data.keyed import keyed_generator
from mmface.data.latents import LatentEncoding
from mmface.data.manifest import Manifest, merge
from mmface.data.pictures import ManifestPictures
from mmface.data.samples import LatentSamples
from mmface.data.store import close_store
from mmface.training.face_diffusion import FaceDiffusion
from mmface.training.recipe import Recipe
from mmface.training.trainer import Trainer

PX = 32


@pytest.fixture(autouse=True)
def depth():
    with registered(DepthKind()) as kind:
        yield kind


@pytest.fixture
def manifest(tmp_path):
    """Faces of FFHQ's layout with a folder of depths beside masks and sketches."""
    source = tmp_path / "source"
    layouts.ffhq(source, range(4), "bisenet")
    for number in range(4):
        layouts.save(source / f"depths/{number:05d}.png", layouts.face(number).image[..., 1])
    importer = importer_of("ffhq", source)
    made = import_faces(importer, tmp_path / "faces.jsonl", {"depth_order": "near_is_black"})
    assert importer.report.without_condition == {"mask": [], "sketch": [], "depth": []}
    return made


def test_a_manifest_keeps_it(manifest, tmp_path):
    header = json.loads(manifest.path.read_text().splitlines()[0])
    assert header["depth_order"] == "near_is_black"
    back = Manifest.read(manifest.path)
    assert back == manifest
    record = back.records[1]
    assert (record.depth, record.depth_order) == ("source/depths/00001.png", "near_is_black")
    changes: dict[str, Any] = {"id": "x", "depth_order": "near_is_white", "depth": None}
    usual = replace(record, **changes)
    mixed = replace(manifest, records=[*manifest.records, usual]).write(tmp_path / "m/mixed.jsonl")
    last = json.loads(mixed.path.read_text().splitlines()[-1])
    assert last["depth_order"] == "near_is_white"
    assert "depth" not in last
    merged = merge([Manifest.read(mixed.path)], tmp_path / "all.jsonl")
    assert [each.depth_order for each in merged.records] == ["near_is_black"] * 4 + [
        "near_is_white"
    ]
    row = json.loads(manifest.path.read_text().splitlines()[1]) | {"depth": "/root/x.png"}
    lines = [json.dumps(header), json.dumps(row)]
    (tmp_path / "bad.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError, match='"depth" is not a path relative'):
        Manifest.read(tmp_path / "bad.jsonl")


@pytest.mark.slow
def test_it_trains_a_step(manifest, tiny_pipeline_folder, tmp_path):
    pictures = ManifestPictures(manifest.path, PX)
    face = pictures.face(0)
    grey = Image.open(tmp_path / "source/depths/00000.png").resize((PX, PX))
    np.testing.assert_array_equal(face.conditions["depth"], 255 - np.array(grey))
    LatentEncoding(pictures, tiny_pipeline_folder / "vae").write(tmp_path / "store")
    store = close_store(tmp_path / "store")
    assert list(store.spec.arrays) == ["image", "mask", "sketch", "depth"]
    torch.manual_seed(0)
    network = build_transformer(num_modalities=3)
    samples = LatentSamples(tmp_path / "store", modalities=["depth"], depth_dropout=0.0)
    drawn = samples.sample(0, keyed_generator(0))
    assert int(drawn["modality"]) == 2
    assert drawn["condition"].any()
    both = LatentSamples(tmp_path / "store")
    kinds = {int(both.sample(0, keyed_generator(s))["modality"]) for s in range(40)}
    assert kinds == {0, 1, 2}
    none_left = LatentSamples(tmp_path / "store", modalities=["depth"], depth_dropout=1.0)
    assert not none_left.sample(0, keyed_generator(0))["condition"].any()
    AcceleratorState._reset_state(reset_partial_state=True)
    trainer = Trainer(
        task=FaceDiffusion(
            network, tiny_pipeline_folder / "vae", tiny_pipeline_folder, image_size=PX
        ),
        samples=samples,
        recipe=Recipe(1, 4, 4, ema_decay=0.9),
        optimizer=partial(torch.optim.AdamW, lr=1e-3),
        schedule=get_constant_schedule,
        output_dir=tmp_path / "run",
    )
    before = network.modality_embedder.weight.detach().clone()
    trainer.train_step(iter(trainer._loader()))
    moved = (network.modality_embedder.weight != before).any(1)
    assert trainer.skipped == 0
    assert moved[2]


def test_sets_without_it_are_what_they_were(manifest, tiny_pipeline_folder, tmp_path):
    plain = replace(manifest, records=[replace(each, depth=None) for each in manifest.records])
    path = plain.write(tmp_path / "plain.jsonl").path
    LatentEncoding(ManifestPictures(path, PX), tiny_pipeline_folder / "vae").write(tmp_path / "s")
    assert list(close_store(tmp_path / "s").spec.arrays) == ["image", "mask", "sketch"]
    with pytest.raises(ValueError, match=r"lacks latents of \['depth'\]; it has mask, sketch"):
        LatentSamples(tmp_path / "s", modalities=["depth"])
    with pytest.raises(TypeError, match="no argument dept_dropout"):
        LatentSamples(tmp_path / "s", dept_dropout=0.5)
    chosen = ManifestPictures(manifest.path, PX, conditions=["depth"])
    assert list(chosen.face(0).conditions) == ["depth"]
    asked = ManifestPictures(path, PX, conditions=["depth"])
    with pytest.raises(ValueError, match="ffhq/00000 has no depth"):
        asked.face(0)


def test_the_doctor_looks_at_it(manifest, tmp_path):
    layouts.save(tmp_path / "source/depths/00001.png", np.zeros((64, 64), np.uint8))
    (tmp_path / "source/depths/00002.png").unlink()
    layouts.save(tmp_path / "source/depths/00003.png", layouts.face(3).image[:32, :, 1])
    diagnosis = doctor.examine(manifest.path, num_workers=1)
    told = {(each.id, each.kind) for each in diagnosis.findings if "depths" in each.file}
    assert told == {
        ("ffhq/00001", "unusable_condition"),
        ("ffhq/00002", "missing_file"),
        ("ffhq/00003", "wrong_aspect"),
    }
