"""Latents of a manifest: every layout, any number of writers, bad pictures, kills."""

import hashlib
import itertools
import time
from dataclasses import replace
from functools import partial
from typing import Any

import layouts
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import build_vae
from dead_writers import killed_at_random
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from training_runs import face_task
from transformers import get_constant_schedule

from mmface import doctor
from mmface.conditions import MASK, SKETCH, colorize, load_mask, open_picture
from mmface.data.importers import LAYOUTS, import_faces, importer_of, parse_split
from mmface.data.keyed import keyed_generator
from mmface.data.latents import LatentEncoding, check_store, posterior_noise
from mmface.data.manifest import Manifest, Record
from mmface.data.pictures import (
    ManifestPictures,
    PictureSource,
    ReleasedManifestPictures,
    RenderedPictures,
    StoredPictures,
)
from mmface.data.samples import LatentSamples
from mmface.data.store import Store, close_store
from mmface.encoders import LatentCodec, meta_vae
from mmface.encoders.encoder import peak_bytes
from mmface.encoders.vae import image_pixels
from mmface.planning import encoding as encoding_cost
from mmface.planning.encoding import plan_encoding
from mmface.training.recipe import Recipe
from mmface.training.trainer import Trainer

PX = 32
NUMBERS = range(6)


def written_manifest(folder, numbers=NUMBERS):
    """Rendered faces as files, with a manifest of them."""
    records = []
    for number in numbers:
        face = layouts.face(number)
        colors = layouts.drawn_mask(face.labels, "celebamask_hq", color=True)
        layouts.save(folder / f"images/{number}.png", face.image)
        layouts.save(folder / f"masks/{number}.png", colors)
        layouts.save(folder / f"sketches/{number}.png", face.sketch)
        image = f"images/{number}.png"
        paths: dict[str, Any] = {"mask": f"masks/{number}.png", "sketch": f"sketches/{number}.png"}
        split = "test" if number == 3 else "train"
        size = (layouts.SIZE, layouts.SIZE)
        records.append(Record(f"faces/{number}", image, face.captions, split, *size, **paths))
    return Manifest(folder / "faces.jsonl", records).write(folder / "faces.jsonl")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return written_manifest(tmp_path_factory.mktemp("faces"))


@pytest.fixture(scope="module")
def vae(tiny_pipeline_folder):
    return tiny_pipeline_folder / "vae"


@pytest.fixture(scope="module")
def pictures(manifest):
    return ManifestPictures(manifest.path, PX)


def encoding(pictures, vae, **arguments):
    return LatentEncoding(pictures, vae, **{"batch_size": 2, "shard_size": 2} | arguments)


def shard_bytes(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("shard-*"))}


def columns(folder, column="image"):
    store = Store(folder)
    rows = [store.row(i, ("id", column)) for i in range(len(store))]
    return {row["id"]: row[column] for row in rows}


def test_a_manifest_gives_its_pictures_at_the_size_asked_for(manifest):
    pictures = ManifestPictures(manifest.path, layouts.SIZE, split="train")
    assert isinstance(pictures, PictureSource)
    assert [pictures.id(i) for i in range(5)] == [f"faces/{n}" for n in (0, 1, 2, 4, 5)]
    for item, number in enumerate((0, 1, 2, 4, 5)):
        face, drawn = pictures.face(item), layouts.face(number)
        np.testing.assert_array_equal(face.image, drawn.image)
        np.testing.assert_array_equal(
            load_mask(face.rgb(MASK), face.rgb(MASK).shape[:2]).labels, drawn.labels
        )
        np.testing.assert_array_equal(face.conditions["sketch"], drawn.sketch)
        assert face.captions == drawn.captions


def test_polarity_and_label_format_are_the_records_own(manifest, tmp_path):
    drawn = layouts.face(1)
    layouts.save(tmp_path / "mask.png", layouts.drawn_mask(drawn.labels, "bisenet"))
    layouts.save(tmp_path / "sketch.png", 255 - drawn.sketch)
    record = replace(
        manifest.at(tmp_path / "m.jsonl").records[1],
        mask="mask.png",
        sketch="sketch.png",
        label_format="bisenet",
        sketch_polarity="white_on_dark",
    )
    other = Manifest(tmp_path / "m.jsonl", [record]).write(tmp_path / "m.jsonl")
    one = ManifestPictures(manifest.path, PX).face(1)
    two = ManifestPictures(other.path, PX).face(0)
    np.testing.assert_array_equal(one.image, two.image)
    np.testing.assert_array_equal(one.conditions["mask"], two.conditions["mask"])
    first, second = (each.conditions["sketch"].astype(int) for each in (one, two))
    np.testing.assert_allclose(first, second, atol=1)  # rounding


def test_a_wide_photo_loses_its_sides_and_the_condition_with_it(manifest, tmp_path):
    drawn = layouts.face(0)
    wide = {"image": drawn.image, "sketch": drawn.sketch}
    wide["mask"] = layouts.drawn_mask(drawn.labels, "celebamask_hq")
    for name, pixels in wide.items():
        edges = ((0, 0), (16, 16)) + ((0, 0),) * (pixels.ndim - 2)
        layouts.save(tmp_path / f"{name}.png", np.pad(pixels, edges, mode="edge"))
    paths: dict[str, Any] = {"mask": "mask.png", "sketch": "sketch.png"}
    record = Record("wide", "image.png", ("a",), "train", 96, 64, **paths)
    path = Manifest(tmp_path / "m.jsonl", [record]).write(tmp_path / "m.jsonl").path
    wide_face, face = (
        ManifestPictures(path, PX).face(0),
        ManifestPictures(manifest.path, PX).face(0),
    )
    np.testing.assert_array_equal(wide_face.image, face.image)
    for name in ("mask", "sketch"):
        np.testing.assert_array_equal(wide_face.conditions[name], face.conditions[name])


def test_the_released_way_mixes_colors_and_is_another_store(manifest, vae, tmp_path):
    released = ReleasedManifestPictures(manifest.path, PX)
    source = open_picture(manifest.path.parent / "masks/2.png")
    expected = np.array(source.resize((PX, PX), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(released.face(2).rgb(MASK), expected)
    plain = ManifestPictures(manifest.path, PX).face(2)
    assert not np.array_equal(released.face(2).rgb(MASK), plain.rgb(MASK))
    np.testing.assert_array_equal(released.face(2).image, plain.image)
    encoding(ManifestPictures(manifest.path, PX), vae).write(tmp_path)
    with pytest.raises(ValueError, match=r"made otherwise.*mask_resizing.*classes.*colours"):
        encoding(released, vae).write(tmp_path)


def test_latents_are_the_codecs_own(pictures, vae, tmp_path):
    encoding(pictures, vae, dtype="float32").write(tmp_path)
    codec, store = LatentCodec.from_pretrained(str(vae)), Store(tmp_path)
    for item in NUMBERS:
        face = pictures.face(item)
        row = store.row(item, ("id", "image", "mask", "sketch"))
        labels = load_mask(face.rgb(MASK), (PX, PX)).labels
        mean = codec.encode(image_pixels(face.image)[None])[0]
        mask = codec.encode(image_pixels(colorize(labels))[None])[0]
        sketch = codec.encode(image_pixels(face.rgb(SKETCH))[None])[0]
        torch.testing.assert_close(torch.from_numpy(row["mask"]), mask, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(torch.from_numpy(row["sketch"]), sketch, rtol=1e-4, atol=1e-5)
        # A generator that gives the same noise as the face's own.
        name = int.from_bytes(hashlib.sha256(row["id"].encode()).digest()[:8], "big")
        sample = codec.encode(image_pixels(face.image)[None], [keyed_generator(0, name)])[0]
        torch.testing.assert_close(torch.from_numpy(row["image"]), sample, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(sample, mean, atol=1e-2)


@pytest.mark.slow
def test_a_faces_sample_depends_on_its_id_and_the_seed_alone(manifest, pictures, vae, tmp_path):
    subset = ManifestPictures(manifest.path, PX, split="test")
    encoding(pictures, vae).write(tmp_path / "all")
    encoding(subset, vae).write(tmp_path / "subset")
    encoding(pictures, vae, seed=1).write(tmp_path / "other seed")
    one, other = columns(tmp_path / "all"), columns(tmp_path / "other seed")
    np.testing.assert_allclose(
        columns(tmp_path / "subset")["faces/3"], one["faces/3"], rtol=2e-3, atol=1e-3
    )
    assert not np.allclose(one["faces/3"], other["faces/3"], atol=1e-2)
    assert not posterior_noise(0, "a", (4, 2)).equal(posterior_noise(0, "b", (4, 2)))
    np.testing.assert_array_equal(
        columns(tmp_path / "all", "mask")["faces/3"],
        columns(tmp_path / "other seed", "mask")["faces/3"],
    )


@pytest.mark.slow
def test_moments_give_a_new_sample_each_time(pictures, vae, tmp_path):
    encoding(pictures, vae, posterior="moments", dtype="float32").write(tmp_path / "moments")
    encoding(pictures, vae, posterior="sample", dtype="float32").write(tmp_path / "sample")
    encoding(pictures, vae, posterior="mean", dtype="float32").write(tmp_path / "mean")
    mean, std = columns(tmp_path / "moments"), columns(tmp_path / "moments", "image_std")
    sample = columns(tmp_path / "sample")
    for name, exact in columns(tmp_path / "mean").items():
        np.testing.assert_array_equal(mean[name], exact)
        noise = posterior_noise(0, name, exact.shape).numpy()
        np.testing.assert_allclose(exact + std[name] * noise, sample[name], rtol=1e-6, atol=1e-6)
    samples = LatentSamples(tmp_path / "moments", mask_dropout=0, sketch_dropout=0)
    drawn = [samples.sample(0, keyed_generator(0, i))["latents"] for i in range(400)]
    spread = (torch.stack(drawn) - torch.from_numpy(mean["faces/0"])).square().mean(0).sqrt()
    torch.testing.assert_close(spread, torch.from_numpy(std["faces/0"]), rtol=0.2, atol=1e-6)
    plain = LatentSamples(tmp_path / "mean", mask_dropout=0, sketch_dropout=0)
    one, two = (s.sample(1, keyed_generator(5)) for s in (samples, plain))
    assert all(torch.equal(one[k], two[k]) for k in ("condition", "noise", "uniform", "modality"))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_halves_are_the_rounded_latents(pictures, vae, tmp_path, dtype):
    encoding(pictures, vae, dtype=dtype).write(tmp_path / dtype)
    encoding(pictures, vae, dtype="float32").write(tmp_path / "float32")
    exact = columns(tmp_path / "float32")
    half = getattr(torch, dtype)
    for name, values in columns(tmp_path / dtype).items():
        rounded = torch.from_numpy(exact[name]).to(half).float()
        assert torch.equal(torch.from_numpy(values).float(), rounded)
    sample = LatentSamples(tmp_path / dtype).sample(0, keyed_generator(0))
    given = {"float16": torch.float16, "bfloat16": torch.float32}[dtype]  # numpy has no bfloat16
    assert sample["latents"].dtype == sample["condition"].dtype == given


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
def test_shards_are_the_same_whoever_writes_them(manifest, vae, tmp_path, num_workers):
    broken = broken_set(tmp_path / "broken")
    job = encoding(ManifestPictures(broken, PX), vae)
    job.write(tmp_path / "one")
    for process in (1, 0):
        replace(job, num_workers=num_workers).write(tmp_path / "two", process, 2)
    assert shard_bytes(tmp_path / "one") == shard_bytes(tmp_path / "two")
    assert len(shard_bytes(tmp_path / "one")) == 10  # five shards, each with a list


def broken_set(folder):
    """Ten faces, of which half are bad, each in its own way."""
    manifest = written_manifest(folder, range(10))
    whole = (folder / "images/1.png").read_bytes()
    (folder / "images/1.png").write_bytes(whole[: len(whole) // 2])
    (folder / "images/3.png").write_text("no picture")
    layouts.save(folder / "masks/5.png", np.full((64, 64, 3), 120, np.uint8))
    (folder / "sketches/7.png").unlink()
    records = [replace(r, conditions={}) if r.id == "faces/9" else r for r in manifest.records]
    return replace(manifest, records=records).write(manifest.path).path


def test_bad_pictures_are_listed_and_the_rest_encoded(vae, tmp_path):
    broken = broken_set(tmp_path / "broken")
    job = encoding(ManifestPictures(broken, PX), vae, shard_size=4)
    job.write(tmp_path / "store")
    store = close_store(tmp_path / "store")
    assert list(columns(store.folder)) == [f"faces/{n}" for n in (0, 2, 4, 6, 8)]
    reasons = {each.id: each.reason for each in store.skipped}
    expected = {
        "faces/1": ("images/1.png", "cannot be read as a picture"),
        "faces/3": ("images/3.png", "cannot be read as a picture"),
        "faces/5": ("masks/5.png", "not a mask"),
        "faces/7": ("sketches/7.png", "does not exist"),
        "faces/9": ("no mask and no sketch in", "scripts/annotate.py"),
    }
    assert reasons.keys() == expected.keys()
    for name, words in expected.items():
        assert all(word in reasons[name] for word in words), reasons[name]
    samples = LatentSamples(store.folder)
    assert len(samples) == 5
    samples.sample(4, keyed_generator(0))
    with pytest.raises(ValueError, match=r"faces/1: .*images/1.png"):
        replace(job, strict=True).write(tmp_path / "strict")


def uneven_set(folder):
    """Six faces, of which some have a mask only, some a sketch only, and one neither."""
    whole = written_manifest(folder)
    lacks = {0: ("sketch",), 1: ("mask",), 4: ("mask", "sketch"), 5: ("sketch",)}
    records = [
        replace(r, conditions={k: v for k, v in r.conditions.items() if k not in lacks.get(n, ())})
        for n, r in enumerate(whole.records)
    ]
    return whole, replace(whole, records=records).write(folder / "uneven.jsonl")


@pytest.mark.slow
def test_a_store_holds_what_exists_and_draws_come_from_that(vae, tmp_path):
    whole, uneven = uneven_set(tmp_path / "set")
    encoding(ManifestPictures(whole.path, PX), vae).write(tmp_path / "whole")
    job = encoding(ManifestPictures(uneven.path, PX), vae)
    job.write(tmp_path / "uneven")
    replace(job, batch_size=3).write(tmp_path / "other")
    assert shard_bytes(tmp_path / "uneven") == shard_bytes(tmp_path / "other")
    assert [each.id for each in close_store(tmp_path / "uneven").skipped] == ["faces/4"]
    for column in ("image", "mask", "sketch"):
        complete = columns(tmp_path / "whole", column)
        for name, latents in columns(tmp_path / "uneven", column).items():
            there = column in ("image", *uneven.records[int(name[-1])].conditions)
            np.testing.assert_array_equal(latents, complete[name] if there else 0 * latents)
    samples = LatentSamples(tmp_path / "uneven", mask_dropout=0, sketch_dropout=0)
    drawn = {
        (item, int(samples.sample(item, keyed_generator(seed))["modality"]))
        for item, seed in itertools.product(range(len(samples)), range(12))
    }
    assert drawn == {(0, 0), (1, 1), (2, 0), (2, 1), (3, 0), (3, 1), (4, 0)}
    masks = LatentSamples(tmp_path / "uneven", modalities=["mask"])
    assert len(masks) == 4
    assert {int(masks.sample(n, keyed_generator(n))["modality"]) for n in range(4)} == {0}


@pytest.mark.parametrize("kind", ["mask", "sketch"])
def test_a_set_of_one_kind_is_a_store_of_it(vae, tmp_path, kind):
    whole = written_manifest(tmp_path / "set", range(3))
    records = [replace(r, conditions={kind: r.conditions[kind]}) for r in whole.records]
    path = replace(whole, records=records).write(tmp_path / "set/one.jsonl").path
    encoding(ManifestPictures(path, PX), vae).write(tmp_path / "store")
    assert list(close_store(tmp_path / "store").spec.arrays) == ["image", kind]
    assert doctor.examine(path, num_workers=1).findings == []
    samples = LatentSamples(tmp_path / "store", mask_dropout=0.0, sketch_dropout=0.0)
    assert len(samples) == 3
    assert samples.sample(0, keyed_generator(0))["condition"].any()


def test_latents_that_do_not_fit_are_an_error(pictures, tmp_path):
    vae = build_vae(scaling_factor=1e6)
    vae.save_pretrained(tmp_path / "vae")
    with pytest.raises(ValueError, match=r"faces/0 .* not finite in float16.*dtype=bfloat16"):
        encoding(pictures, tmp_path / "vae").write(tmp_path / "store")
    encoding(pictures, tmp_path / "vae", dtype="bfloat16").write(tmp_path / "store16")


def test_a_changed_manifest_is_another_store(pictures, manifest, vae, tmp_path):
    encoding(pictures, vae).write(tmp_path / "store")
    changed = written_manifest(tmp_path / "set", range(5)).write(tmp_path / "set/faces.jsonl")
    with pytest.raises(ValueError, match=r"made otherwise.*pictures\.sha256"):
        encoding(ManifestPictures(changed.path, PX), vae).write(tmp_path / "store")


def test_a_store_of_another_vae_or_size_is_refused(pictures, vae, tmp_path):
    encoding(pictures, vae).write(tmp_path)
    store, own = Store(tmp_path), LatentCodec.from_pretrained(str(vae)).vae
    check_store(store, own, PX)
    with pytest.raises(ValueError, match=r"resolution: \[32, 32\] in the store, \[64, 64\] here"):
        check_store(store, own, 64)
    with pytest.raises(ValueError, match=r"vae_weights: \w+ in the store, \w+ here"):
        check_store(store, build_vae(), PX)
    own.register_to_config(shift_factor=None)
    with pytest.raises(ValueError, match=r"shift_factor: 0\.1159 in the store, None here"):
        check_store(store, own, PX)


def test_pictures_are_no_latents(tmp_path, vae):
    RenderedPictures(num_faces=2, size_px=PX).write(tmp_path / "pictures")
    own = LatentCodec.from_pretrained(str(vae)).vae
    with pytest.raises(ValueError, match="kind: rendered pictures in the store, latents here"):
        check_store(Store(tmp_path / "pictures"), own, PX)


@pytest.mark.slow
def test_kills_lose_nothing_and_write_nothing_twice(vae, tmp_path):
    """SIGKILL at random moments, then start again until it ends by itself."""
    path = written_manifest(tmp_path / "set", range(24)).path
    job = encoding(ManifestPictures(path, PX), vae)
    start = time.monotonic()
    job.write(tmp_path / "whole")
    duration = time.monotonic() - start
    kills = kill_at_random(job, tmp_path / "killed", duration, num_kills=3, seed=0)
    assert kills == 3
    close_store(tmp_path / "killed")
    assert shard_bytes(tmp_path / "whole") == shard_bytes(tmp_path / "killed")
    assert not list((tmp_path / "killed").glob(".*.aside-*"))


def kill_at_random(job, folder, duration, num_kills, seed):
    """Kill a writing process that often, then let one end; returns how many were alive then."""
    return killed_at_random(partial(job.write, folder), duration, num_kills, seed)


def imported(layout, folder):
    """The manifest of a layout, completed with what the layout lacks, as annotation would."""
    source, splits = folder / "source", {"ffhq": ["train"], "photos": ["train"]}
    write = {
        "celebamask-hq": lambda: layouts.celebamask_hq(source, [0, 1, 2]),
        "multi-modal-celeba-hq": lambda: layouts.multi_modal_celeba_hq(source, [0, 1, 2], 1),
        "ffhq": lambda: layouts.ffhq(source, [0, 1, 2], "bisenet"),
        "authors": lambda: layouts.authors(source, [0], [1], [2]),
        "photos": lambda: layouts.photos(source, [0, 1, 2]),
        "hugging-face": lambda: layouts.hugging_face(source, [0, 1], [2], "bisenet"),
    }
    write[layout]()
    rule = parse_split(splits.get(layout, []))
    named = {"image": "photo", "mask": "mask", "captions": "text", "id": "number"}
    columns = named if layout == "hugging-face" else {}
    importer = importer_of(layout, source, rule, None, columns)
    formats = {"ffhq": "bisenet", "hugging-face": "bisenet"}
    manifest = import_faces(importer, folder / "faces.jsonl", {"label_format": formats.get(layout)})
    records = []
    for number, record in enumerate(manifest.records):
        drawn = layouts.face(number)
        if record.sketch is None:
            layouts.save(folder / f"made/{number}_sketch.png", drawn.sketch)
            made: dict[str, Any] = {"sketch": f"made/{number}_sketch.png"}
            record = replace(record, **made)
        if record.mask is None:
            layouts.save(folder / f"made/{number}_mask.png", drawn.labels)
            made = {"mask": f"made/{number}_mask.png", "label_format": "celebamask_hq"}
            record = replace(record, **made)
        records.append(replace(record, captions=record.captions or drawn.captions))
    return replace(manifest, records=records).write(manifest.path)


@pytest.mark.slow
@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_every_layout_trains_a_step(layout, tiny_pipeline_folder, tmp_path):
    manifest = imported(layout, tmp_path)
    job = encoding(ManifestPictures(manifest.path, PX), tiny_pipeline_folder / "vae")
    job.write(tmp_path / "store")
    store = close_store(tmp_path / "store")
    assert store.skipped == []
    assert list(columns(store.folder)) == [record.id for record in manifest.records]
    task = face_task(tiny_pipeline_folder)
    check_store(store, task.vae, task.image_size)
    before = {name: tensor.clone() for name, tensor in task.trained.state_dict().items()}
    AcceleratorState._reset_state(reset_partial_state=True)
    trainer = Trainer(
        task=task,
        samples=LatentSamples(store.folder, mask_dropout=0, sketch_dropout=0),
        recipe=Recipe(1, 3, 3, ema_decay=0.9),
        optimizer=partial(torch.optim.AdamW, lr=1e-3),
        schedule=get_constant_schedule,
        output_dir=tmp_path / "run",
    )
    trainer.train_step(iter(trainer._loader()))
    after = trainer.task.trained.state_dict()
    assert trainer.skipped == 0
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_flops_of_the_flux_encoder_are_the_published_count():
    codec = LatentCodec(meta_vae("flux"))
    assert codec.flops((256, 256)) == pytest.approx(0.273e12, rel=2e-3)
    assert codec.flops((512, 512)) == pytest.approx(1.118e12, rel=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flux", "qwen"])
def test_predicted_memory_is_the_tracked_peak(name):
    counted = meta_vae(name)
    with FakeTensorMode(), torch.no_grad():
        vae = type(counted).from_config(counted.config)
        frame = (1,) if name == "qwen" else ()
        pixels = torch.empty(3, 3, *frame, 256, 256)
        tracker = MemTracker()
        with tracker:
            vae.encode(pixels)
        peak = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]
    sizes = {getattr(kind, "value", kind): size for kind, size in peak.items()}
    activations = sizes["Total"] - sizes["Parameter"]
    weights = sum(parameter.numel() for parameter in counted.parameters()) * 4
    predicted = peak_bytes(LatentCodec(counted), 3, (256, 256), torch.float32)
    assert predicted - weights == pytest.approx(activations, rel=0.1)


@pytest.mark.slow
def test_the_plan_is_the_stores_size_and_says_what_it_assumes(pictures, vae, tmp_path):
    job = encoding(pictures, vae)
    plan = plan_encoding(job, tmp_path / "not/there")
    job.write(tmp_path / "store")
    arrays = Store(tmp_path / "store").spec.array_bytes
    captions = sum(len(c) for n in NUMBERS for c in layouts.face(n).captions)
    assert plan.num_faces == len(NUMBERS)
    assert plan.disk_bytes == pytest.approx(arrays + captions, rel=0.02)
    assert plan.seconds > 0
    assert "measured on this cpu" in str(plan)
    assert not (tmp_path / "not").exists()
    missing = LatentEncoding(ManifestPictures(tmp_path / "train.jsonl", 256, "train"), "flux")
    plan = plan_encoding(missing, tmp_path, num_processes=2)
    assert plan.num_faces == 94_000
    assert plan.flops == pytest.approx(94_000 * 3 * 0.273e12, rel=2e-3)
    assert plan.seconds == pytest.approx(plan.flops / encoding_cost.ASSUMED_FLOPS / 2)
    assert "Assumed: the paper's 94,000 faces" in str(plan)
    assert "assumed to pass at 40 TFLOP/s" in str(plan)


def test_unknown_names_are_refused(pictures, vae):
    with pytest.raises(ValueError, match="'median' is not one of sample, mean, moments"):
        LatentEncoding(pictures, vae, posterior="median")
    with pytest.raises(ValueError, match="'int8' is not one of float16"):
        LatentEncoding(pictures, vae, dtype="int8")


def test_a_stored_source_gives_what_was_rendered(tmp_path):
    RenderedPictures(num_faces=2, size_px=64, first_seed=5).write(tmp_path)
    source = StoredPictures(tmp_path)
    assert isinstance(source, PictureSource)
    assert source.id(1) == "rendered/6"
    np.testing.assert_array_equal(source.face(1).image, layouts.face(6).image)
