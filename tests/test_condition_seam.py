"""A third kind of condition goes all the way without a change to any file of the package."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import build_pipeline, build_transformer
from depth_plugin import DepthKind
from PIL import Image
from script_runs import load_script
from training_runs import FaceSamples, face_task, face_trainer

from mmface.conditions import condition_kinds, draw_conditions, load_mask, registered
from mmface.generation.adherence import measure_adherence
from mmface.generation.jobs import read_jobs
from mmface.generation.settings import read_provenance
from mmface.sampling.guidance import ConditionControl
from mmface.sampling.pipeline import MMFacePipeline

run = load_script("sample")
FAST = {"num_inference_steps": 2, "seed": 3, "output_type": "np"}


@pytest.fixture
def depth():
    """A registered kind, until the test ends."""
    with registered(DepthKind()) as kind:
        yield kind


@pytest.fixture
def depth_map() -> np.ndarray:
    """A face in the middle, near: uint8 [64, 64]."""
    rows, columns = np.mgrid[:64, :64]
    return (255 * np.exp(-((rows - 32) ** 2 + (columns - 32) ** 2) / 300)).astype(np.uint8)


@pytest.fixture
def three(depth) -> MMFacePipeline:
    """A pipeline whose model has a row for depth."""
    pipeline = build_pipeline()
    torch.manual_seed(0)
    pipeline.register_modules(transformer=build_transformer(num_modalities=3))
    return pipeline


@pytest.fixture
def folder(three, tmp_path, monkeypatch, depth_map, face_mask) -> Path:
    """The pipeline in a folder that has mask.png and depth.png."""
    monkeypatch.chdir(tmp_path)
    three.save_pretrained("pipeline")
    Image.fromarray(face_mask).save("mask.png")
    Image.fromarray(depth_map).save("depth.png")
    return tmp_path


def test_the_pipeline_samples_with_it(three, depth_map, face_mask):
    plain = three("a", depth=depth_map, **FAST).images
    assert not np.array_equal(three("a", depth=255 - depth_map, **FAST).images, plain)
    weak = three("a", depth=depth_map, depth_control=ConditionControl(strength=0.2), **FAST)
    assert not np.array_equal(weak.images, plain)
    both = three(["a", "a"], mask=[None, face_mask], depth=[depth_map, depth_map], **FAST).images
    assert both[0] == pytest.approx(plain[0], abs=1e-5)
    assert not np.allclose(both[1], three("a", depth=depth_map, **FAST | {"seed": 4}).images[0])


def test_what_nobody_knows_is_refused_in_a_line(tiny_pipeline, depth_map):
    with pytest.raises(TypeError, match=r"no argument 'depth'; the conditions are mask, sketch,"):
        tiny_pipeline("a", depth=depth_map, **FAST)
    with registered(DepthKind()):
        with pytest.raises(TypeError, match=r"'dept'; the conditions are mask, sketch, depth,"):
            tiny_pipeline("a", dept=depth_map, **FAST)
        with pytest.raises(ValueError, match=r"not trained with a depth.* has 2 rows"):
            tiny_pipeline("a", depth=depth_map, **FAST)
        with pytest.raises(ValueError, match="neither a mask nor a sketch nor a depth"):
            tiny_pipeline("a", **FAST)
    assert [kind.name for kind in condition_kinds()] == ["mask", "sketch"]


class DepthSamples(FaceSamples):
    """Samples whose condition is depth, all of them."""

    def sample(self, item, generator):
        return super().sample(item, generator) | {"modality": torch.tensor(2)}


def test_a_step_of_training_is_taken_on_it(depth, tiny_pipeline_folder, tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)
    task = face_task(tiny_pipeline_folder, num_modalities=3)
    before = task.trained.modality_embedder.weight.detach().clone()
    trainer = face_trainer(tmp_path / "run", task, steps=1, samples=DepthSamples())
    trainer.train()
    learned = (task.trained.modality_embedder.weight - before).abs().amax(dim=1)
    assert learned[2] > 10 * learned[:2].max()
    line = json.loads((tmp_path / "run/metrics.jsonl").read_text())
    assert line["loss/depth"] == pytest.approx(line["loss"])
    assert "loss/mask" not in line


@pytest.mark.slow
def test_the_command_line_has_it(folder, capsys):
    common = ["--pipeline", "pipeline", "--prompt", "a", "--steps", "2"]
    assert run([*common, "--depth", "depth.png", "--mask", "mask.png", "--out", "a.png"]) == 0
    (row,) = read_provenance("a.png")[0].rows
    assert row.conditions == {"mask": "mask.png", "depth": "depth.png"}
    capsys.readouterr()
    assert run(["--rerun", "a.png", "--out", "again.png"]) == 0
    assert "bit-equal" in capsys.readouterr().err
    assert (
        run([*common, "--depth", "depth.png", "--best-of", "2", "--report", "--out", "b.png"]) == 0
    )
    assert "depth" in capsys.readouterr().err
    (told,) = json.loads(Path("b_report.json").read_text())["pictures"]
    assert told["adherence"]["depth"] == told["adherence"]["score"]
    jobs = Path("jobs.jsonl")
    jobs.write_text('{"id": "x", "prompt": "a", "depth": "depth.png"}\n{"id": "y", "dept": 1}\n')
    ((job,), (failure,)) = read_jobs(jobs)
    assert job.settings.conditions == {"depth": "depth.png"}
    assert "mask, sketch, depth" in failure.error


def test_adherence_is_the_kinds_own(depth, depth_map, face_labels):
    picture = np.repeat(depth_map[..., None], 3, axis=2)
    assert measure_adherence(picture, {"depth": depth_map}, None).score == 1
    assert measure_adherence(255 - picture, {"depth": depth_map}, None).score < 0.5
    found = measure_adherence(
        picture, {"mask": face_labels, "depth": depth_map}, lambda pictures: [face_labels]
    )
    assert found.score == 1
    assert found.numbers["depth"] == 1
    drawn = draw_conditions({"mask": load_mask(face_labels, (64, 64)).labels, "depth": depth_map})
    assert drawn.size == (64, 64)


def test_its_outlines_are_drawn_on_a_face():
    near = np.zeros((8, 8), dtype=np.uint8)
    near[:, 4:] = 200
    lines = DepthKind().outlines(near, (16, 32))
    assert lines.shape == (32, 16)
    assert (lines == (np.arange(16) == 8)).all()


def test_an_installed_package_adds_its_option(tmp_path):
    facts = tmp_path / "depth_plugin-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: depth-plugin\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[mmface.conditions]\ndepth = depth_plugin:DepthKind\n")
    here = Path(__file__).parent
    paths = [str(tmp_path), str(here), str(here.parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "100"}
    command = [sys.executable, str(here.parent / "scripts" / "sample.py"), "--help"]
    told = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert "--depth" in told.stdout
    assert "Depth map, near in white." in told.stdout
