"""The doctor: clean data is called clean, every fault is named, and what is fixed is clean."""

import itertools
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import layouts
import numpy as np
import pytest
from PIL import Image

from mmface import builtin, doctor
from mmface.conditions import LABELS, colorize
from mmface.data.importers import import_faces, importer_of
from mmface.data.keyed import keyed_generator
from mmface.data.latents import LatentEncoding
from mmface.data.manifest import Manifest, Record
from mmface.data.perceptual_hash import hashes_of, lowest_frequencies, near_pairs
from mmface.data.pictures import ManifestPictures
from mmface.data.samples import LatentSamples
from mmface.data.store import StoreSpec, close_store, write_store
from mmface.doctor.face_checks import is_no_text
from mmface.doctor.patient import _groups

SCRIPT = Path(__file__).parent.parent / "scripts" / "dataset.py"
NUMBERS = [*range(23), *range(40, 60)]


def data_set(folder, numbers=NUMBERS, label_format="celebamask_hq"):
    """Write faces with masks, sketches and captions, and their manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for number in numbers:
        face = layouts.face(number)
        layouts.save(folder / f"{number}.png", face.image)
        layouts.save(folder / f"{number}_mask.png", layouts.drawn_mask(face.labels, label_format))
        layouts.save(folder / f"{number}_sketch.png", face.sketch)
        paths: dict[str, Any] = {kind: f"{number}_{kind}.png" for kind in ("mask", "sketch")}
        size = (layouts.SIZE, layouts.SIZE)
        words = face.captions[:2]
        records.append(Record(f"f/{number}", f"{number}.png", words, "train", *size, **paths))
    return Manifest(folder / "m.jsonl", records).write(folder / "m.jsonl")


def found(diagnosis):
    return {(each.id, each.kind) for each in diagnosis.findings}


def write_layout(layout, folder):
    if layout == "celebamask-hq":
        layouts.celebamask_hq(folder, [0, 1, 2, 2001])
    elif layout == "multi-modal-celeba-hq":
        layouts.multi_modal_celeba_hq(folder, range(16), num_test=2)
    elif layout == "ffhq":
        layouts.ffhq(folder, range(16), "bisenet")
    elif layout == "authors":
        layouts.authors(folder, train=[5, 12], test=[7], ffhq=[6, 70])
    elif layout == "photos":
        layouts.photos(folder, [1, 2, 3])
    else:
        layouts.hugging_face(folder, [4, 5], [9], "v_xchen_v")


COLUMNS = {"id": "number", "image": "photo", "captions": "text"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout",
    ["celebamask-hq", "multi-modal-celeba-hq", "ffhq", "authors", "photos", "hugging-face"],
)
def test_nothing_is_wrong_with_clean_layouts(tmp_path, layout):
    write_layout(layout, tmp_path / "set")
    columns = COLUMNS if layout == "hugging-face" else None
    importer = importer_of(layout, tmp_path / "set", columns=columns)
    manifest = import_faces(importer, tmp_path / "m.jsonl")
    diagnosis = doctor.examine(manifest.path, num_workers=1)
    assert doctor.sheet(diagnosis) is None
    if layout in ("celebamask-hq", "photos"):  # clean, but nothing to train on yet
        assert found(diagnosis) == {(None, "nothing_to_train_on")}
        return
    assert diagnosis.findings == []
    assert not diagnosis.has_errors
    assert "nothing is wrong" in doctor.summary(diagnosis)


def status_of_training(manifest, vae, folder):
    """0 if precompute makes a store of the training faces that samples can be drawn from."""
    try:
        LatentEncoding(ManifestPictures(manifest, 64, "train"), vae).write(folder)
        LatentSamples(close_store(folder).folder).sample(0, keyed_generator(0))
    except (ValueError, IndexError):
        return 1
    return 0


def only(*names):
    return lambda record: replace(
        record, conditions={k: v for k, v in record.conditions.items() if k in names}
    )


@pytest.mark.parametrize(
    ("change", "status"),
    [
        (only("mask"), 0),
        (only("sketch"), 0),
        (lambda r: only("mask" if r.id == "f/1" else "sketch")(r), 0),
        (only(), 1),
        (lambda r: r if r.id == "f/1" else only()(r), 0),
        (lambda r: replace(r, captions=()), 1),
        (lambda r: r if r.id == "f/1" else replace(r, captions=()), 0),
        (lambda r: replace(r, sketch=r.image), 1),
        (lambda r: replace(r, split="test"), 1),
    ],
)
def test_the_status_is_the_one_that_training_has(tmp_path, tiny_pipeline_folder, change, status):
    manifest = data_set(tmp_path, range(3))
    records = [change(each) for each in manifest.records]
    path = replace(manifest, records=records).write(tmp_path / "changed.jsonl").path
    diagnosis = doctor.examine(path, num_workers=1)
    assert int(diagnosis.has_errors) == status
    assert status_of_training(path, tiny_pipeline_folder / "vae", tmp_path / "store") == status


LONG = ", ".join(["a man with short brown hair and a green shirt"] * 12)


def break_files(folder, records):
    """Give faces a fault each; their new records, and the kinds by id."""
    by_number = {int(each.id[2:]): each for each in records}
    kinds = {}

    def spoil(number, kind, **changes):
        by_number[number] = replace(by_number[number], **changes)
        kinds[f"f/{number}"] = kind

    def mask(number, labels):
        layouts.save(folder / f"{number}_mask.png", labels)

    def sketch(number, grey):
        layouts.save(folder / f"{number}_sketch.png", grey)

    (folder / "0.png").unlink()
    spoil(0, "missing_file")
    (folder / "1_sketch.png").write_bytes(b"no picture")
    spoil(1, "unreadable_file")
    whole = (folder / "2.png").read_bytes()
    (folder / "2.png").write_bytes(whole[: len(whole) // 2])
    spoil(2, "truncated_file")
    spoil(3, "changed_file", sha256="0" * 64)
    mask(4, layouts.face(4).labels[8:-8])
    spoil(4, "wrong_aspect")
    spoil(5, "wrong_size_in_manifest", width=65)
    mask(6, np.full((64, 64), 200, dtype=np.uint8))
    spoil(6, "off_palette")
    mask(7, np.full((64, 64), LABELS.index("hair"), dtype=np.uint8))
    spoil(7, "one_class_mask")
    mask(8, layouts.drawn_mask(layouts.face(8).labels, "facer"))
    spoil(8, "foreign_label_order")
    mask(9, layouts.face(9).labels[:, ::-1])
    spoil(9, "mirrored_mask")
    mask(10, layouts.face(31).labels)
    spoil(10, "misaligned_mask")
    sketch(11, np.full((64, 64), 255, dtype=np.uint8))
    spoil(11, "blank_sketch")
    sketch(12, 255 - layouts.face(12).sketch)
    spoil(12, "inverted_sketch")
    sketch(13, colorize(layouts.face(13).labels))
    spoil(13, "no_sketch")
    sketch(14, layouts.face(32).sketch)
    spoil(14, "misaligned_sketch")
    spoil(15, "no_text_caption", captions=("0412_a.jpg", "a man"))
    spoil(16, "long_caption", captions=(LONG,))
    (folder / "17.png").write_bytes((folder / "18.png").read_bytes())
    for name in ("mask", "sketch"):
        (folder / f"17_{name}.png").write_bytes((folder / f"18_{name}.png").read_bytes())
    by_number[17] = replace(by_number[17], split="test")
    kinds["f/18"] = "leak"
    (folder / "19.png").write_bytes((folder / "21.png").read_bytes())
    Image.fromarray(layouts.face(22).image).resize((80, 80)).save(folder / "20.png", "JPEG")
    by_number[20] = replace(by_number[20], width=80, height=80)
    for copy, source in ((19, 21), (20, 22)):
        for name in ("mask", "sketch"):
            content = (folder / f"{source}_{name}.png").read_bytes()
            (folder / f"{copy}_{name}.png").write_bytes(content)
    kinds |= {"f/21": "exact_duplicate", "f/22": "near_duplicate"}
    return list(by_number.values()), kinds


def spoil_lines(path):
    """Append lines that are wrong; their kinds by id."""
    good = json.loads(path.read_text().splitlines()[-1])
    rows = [
        {**good, "captions": ["a woman", " "]},
        {**good, "id": "f/a", "split": "dev"},
        {**good, "id": "f/b", "image": "/absolute.png"},
    ]
    with path.open("a") as file:
        file.writelines(json.dumps(each) + "\n" for each in rows)
        file.write("{no json\n")
    return {
        (good["id"], "clashing_id"),
        (good["id"], "empty_caption"),
        ("f/a", "unknown_split"),
        ("f/b", "bad_line"),
        (None, "bad_line"),
    }


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """Give a manifest in which most faces have a fault, and what is to be found."""
    folder = tmp_path_factory.mktemp("broken")
    manifest = data_set(folder)
    records, kinds = break_files(folder, manifest.records)
    replace(manifest, records=records).write(manifest.path)
    return manifest.path, set(kinds.items()) | spoil_lines(manifest.path)


@pytest.fixture(scope="module")
def diagnosis(broken):
    tokenizer = Path(builtin("tiny-flow")) / "tokenizer"
    return doctor.examine(broken[0], tokenizer=tokenizer, num_workers=1)


@pytest.mark.slow
def test_every_fault_is_named_and_nothing_else(broken, diagnosis):
    assert found(diagnosis) == broken[1]
    assert diagnosis.has_errors
    for each in diagnosis.findings:
        assert each.problem
        assert each.remedy
        assert each.file


@pytest.mark.slow
def test_the_summary_and_the_report_say_it(diagnosis, tmp_path):
    text = doctor.summary(diagnosis)
    assert "43 faces (42 train, 1 test)" in text
    assert "warning: misaligned mask, 1 times" in text
    assert "f/9: the subject's left eye, brow and ear" in text
    report = json.loads(doctor.write_report(diagnosis, tmp_path / "r.json").read_text())
    assert len(report["findings"]) == sum(report["counts"].values()) == len(diagnosis.findings)
    assert report["class_histogram"]["skin"]["masks"] >= 38
    assert set(report["kinds"]) == set(doctor.CHECKS)
    assert {path.name for path in tmp_path.iterdir()} == {"r.json"}


@pytest.mark.slow
def test_the_sheet_shows_each_kind(diagnosis, tmp_path):
    sheet = doctor.sheet(diagnosis)
    assert sheet is not None
    assert sheet.width > 1000
    pixels = np.asarray(sheet)
    assert (pixels != 255).any(axis=(1, 2)).mean() > 0.7
    assert (pixels[:10] == 255).all()


@pytest.mark.slow
def test_a_fixed_manifest_is_clean(broken, diagnosis, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in broken[0].parent.iterdir()}
    cured = doctor.cure(diagnosis, tmp_path / "fixed.jsonl")
    again = doctor.examine(
        cured.manifest.path, tokenizer=Path(builtin("tiny-flow")) / "tokenizer", num_workers=1
    )
    assert again.findings == []
    assert not cured.left
    by_id = {each.id: each for each in Manifest.read(cured.manifest.path).records}
    assert by_id["f/5"].width == 64
    assert by_id["f/8"].label_format == "facer"
    assert by_id["f/12"].sketch_polarity == "white_on_dark"
    assert by_id["f/15"].captions == ("a man",)
    assert LONG.startswith(by_id["f/16"].captions[0].rstrip("."))
    assert by_id["f/17"].split == "test"
    gone = {"f/0", "f/1", "f/2", "f/4", "f/6", "f/7", "f/9", "f/10", "f/11", "f/13", "f/14"}
    assert not gone & by_id.keys()
    assert not {"f/18", "f/21", "f/22"} & by_id.keys()
    assert "misaligned mask: 1 left out" in str(cured)
    assert before == {path: path.stat().st_mtime_ns for path in broken[0].parent.iterdir()}
    with pytest.raises(ValueError, match="is the examined manifest"):
        doctor.cure(diagnosis, broken[0])


@pytest.mark.slow
def test_a_wrong_label_format_is_one_finding_and_is_mended(tmp_path):
    manifest = data_set(tmp_path / "a", range(12), "bisenet")
    diagnosis = doctor.examine(manifest.path, num_workers=1)
    assert found(diagnosis) == {(None, "label_order")}
    assert "look like bisenet" in diagnosis.findings[0].problem
    cured = doctor.cure(diagnosis, tmp_path / "b.jsonl").manifest
    assert cured.label_format == "bisenet"
    assert not doctor.examine(cured.path, num_workers=1).findings


def test_a_mirrored_set_and_one_without_training_faces(tmp_path):
    manifest = data_set(tmp_path, range(6))
    for each in manifest.records:
        labels = np.asarray(Image.open(tmp_path / each.mask))
        layouts.save(tmp_path / each.image, layouts.face(int(each.id[2:])).image[:, ::-1])
        layouts.save(tmp_path / each.mask, labels[:, ::-1])
    records = [replace(each, split="test", sketch=None) for each in manifest.records]
    replace(manifest, records=records).write(manifest.path)
    diagnosis = doctor.examine(manifest.path, num_workers=1)
    assert found(diagnosis) == {(None, "mirrored_set"), (None, "empty_split")}


@pytest.mark.slow
def test_masks_that_fit_no_photo_are_said_of_the_set(tmp_path):
    manifest = data_set(tmp_path, range(16))
    for number in range(16):
        layouts.save(tmp_path / f"{number}_mask.png", layouts.face((number + 5) % 16).labels)
    diagnosis = doctor.examine(manifest.path, num_workers=1)
    assert found(diagnosis) == {(None, "misaligned_set")}
    assert not diagnosis.has_errors


@pytest.mark.slow
def test_other_faces_masks_and_sketches_are_told_apart(tmp_path):
    manifest = data_set(tmp_path, NUMBERS)
    records = list(manifest.records)
    for place in range(14):  # a third of the set has the next face's
        other = NUMBERS[(place + 1) % 14]
        change = {"mask": f"{other}_mask.png", "sketch": f"{other}_sketch.png"}
        records[place] = replace(records[place], **change)
    replace(manifest, records=records).write(manifest.path)
    told = found(doctor.examine(manifest.path, num_workers=1))
    wrong = {each.id for each in records[:14]}
    assert {face for face, _ in told} <= wrong
    for kind in ("misaligned_mask", "misaligned_sketch"):
        assert sum(each == kind for _, each in told) >= 11


def test_small_pictures(tmp_path):
    manifest = data_set(tmp_path, [1])
    diagnosis = doctor.examine(manifest.path, size_px=128, num_workers=1)
    assert [each.file for each in diagnosis.findings] == ["1.png", "1_mask.png", "1_sketch.png"]
    assert {each.kind for each in diagnosis.findings} == {"low_resolution"}


@pytest.mark.slow
def test_stale_latents(tmp_path):
    manifest = data_set(tmp_path / "set", range(3))
    made_by = {"pictures": ManifestPictures(manifest.path, 64, "train").made_by()}
    spec = StoreSpec(3, {}, ("captions",), made_by)
    rows = [{"id": each.id, "captions": each.captions} for each in manifest.records]
    write_store(tmp_path / "store", spec, lambda shards: [rows])
    close_store(tmp_path / "store")

    def problems(records):
        replace(manifest, records=records).write(manifest.path)
        diagnosis = doctor.examine(manifest.path, store=tmp_path / "store", num_workers=1)
        return [each.problem for each in diagnosis.findings if each.kind == "stale_latents"]

    first, second, third = manifest.records
    assert problems(manifest.records) == []
    (told,) = problems([first, replace(second, captions=("a woman",))])
    assert "1 faces are not in the manifest" in told
    assert "1 faces have other captions" in told
    (told,) = problems([first, second, replace(third, sha256="0" * 64)])
    assert "changed since" in told
    (tmp_path / "store/shard-00000.arrow").unlink()
    (told,) = problems(manifest.records)
    assert "not complete" in told


def test_what_is_no_text():
    for text in (
        "nan",
        "N/A",
        "img/0001.png",
        "https://a.b/c",
        "12 : 34 | 56",
        "caf\ufffd",
        "x.jpg",
    ):
        assert is_no_text(text), text
    for text in ("a man", "A woman, 30, in a T-shirt.", "Une femme à la robe bleue", "一个男人"):
        assert not is_no_text(text), text


@pytest.mark.slow
def test_near_duplicates_are_found_among_many_without_comparing_all():
    generator = np.random.default_rng(0)
    count, copied = 4_000, 40
    noise = generator.normal(0, 30, (count, 16, 16, 3))
    smooth = np.cumsum(np.cumsum(noise, axis=1), axis=2) / 8 + 128
    thumbs = smooth.clip(0, 255).astype(np.uint8)
    grain = generator.normal(0, 0.7, (copied, 16, 16, 3))  # as JPEG leaves it
    thumbs[-copied:] = (thumbs[:copied] + grain).clip(0, 255).astype(np.uint8)
    frequencies = np.array([lowest_frequencies(each) for each in thumbs])
    start = time.process_time()
    pairs = near_pairs(hashes_of(frequencies), thumbs)
    assert time.process_time() - start < 1
    expected = {(place, count - copied + place) for place in range(copied)}
    found_pairs = {(one, other) for one, other in pairs.tolist()}
    assert found_pairs <= expected
    assert len(found_pairs) >= 0.8 * copied


def components(count, pairs):
    """Groups of places that pairs connect, by the plainest means."""
    group = list(range(count))
    for one, other in pairs:
        group = [group[one] if each == group[other] else each for each in group]
    return {frozenset(n for n in range(count) if group[n] == g) for g in set(group)}


@pytest.mark.parametrize("seed", range(8))
def test_pictures_that_look_the_same_are_connected_as_all_pairs_connect_them(seed):
    generator = np.random.default_rng(seed)
    # Hashes and brightnesses that drift, so that groups are chains and grow together late.
    bits = generator.integers(0, 2, (3, 64)).repeat(40, axis=0)
    bits ^= generator.random(bits.shape) < 0.03
    hashes = np.packbits(bits, axis=1).view(">u8").astype(np.uint64).ravel()
    thumbs = generator.integers(0, 60, (120, 1, 1, 1)).astype(np.uint8).repeat(3, axis=3)
    near = [
        (one, other)
        for one, other in itertools.combinations(range(120), 2)
        if int(hashes[one] ^ hashes[other]).bit_count() <= 3
        and abs(int(thumbs[one, 0, 0, 0]) - int(thumbs[other, 0, 0, 0])) <= 5
    ]
    found = [tuple(pair) for pair in near_pairs(hashes, thumbs).tolist()]
    assert set(found) <= set(near)
    assert components(120, found) == components(120, near)
    assert 3 < len(components(120, near)) < 120


@pytest.mark.slow
@pytest.mark.parametrize("grain", [0, 0.7])
def test_ten_thousand_pictures_alike_take_seconds(grain):
    generator = np.random.default_rng(0)
    thumbs = np.full((10_000, 16, 16, 3), 128.0) + np.linspace(0, 90, 16)[:, None]
    thumbs += generator.normal(0, grain, thumbs.shape)
    frequencies = np.array([lowest_frequencies(each) for each in thumbs.astype(np.uint8)])
    hashes = np.uint64(0) * hashes_of(frequencies)
    start = time.process_time()
    pairs = near_pairs(hashes, thumbs.astype(np.uint8))
    (group,) = _groups(pairs.tolist())
    assert time.process_time() - start < 5
    assert len(pairs) == len(group) - 1 == 9_999


@pytest.mark.slow
def test_processes_find_the_same(broken, diagnosis, monkeypatch):
    monkeypatch.setattr("mmface.doctor.examination._FEW", 1)
    again = doctor.examine(broken[0], num_workers=2)
    assert found(again) == found(diagnosis)


@pytest.mark.slow
def test_script(broken, tmp_path):
    outs = [tmp_path / name for name in ("fixed.jsonl", "report.json", "worst.png")]
    options = ("--fix", outs[0], "--report", outs[1], "--sheet", outs[2], "--workers", "1")
    command = [sys.executable, SCRIPT, "doctor", broken[0], *options]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert all(path.is_file() for path in outs)
    assert done.stdout.splitlines()[-1] == str(outs[1])
