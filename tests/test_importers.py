"""Importers: a manifest's records are the faces that were written, and what lacks is said."""

import subprocess
import sys
from pathlib import Path

import layouts
import numpy as np
import pytest

from mmface.conditions import load_mask, load_sketch
from mmface.data.importers import LAYOUTS, import_faces, importer_of, parse_split
from mmface.data.importers.celeba import CelebAMaskHQ
from mmface.data.manifest import Manifest

SCRIPT = Path(__file__).parent.parent / "scripts" / "dataset.py"
SIZE = (layouts.SIZE, layouts.SIZE)


def check(manifest, numbers, captions=True, masks=True, sketches=True):
    """The records' files are those faces, whatever they are called."""
    assert Manifest.read(manifest.path) == manifest
    assert len(manifest.records) == len(numbers)
    for record, number in zip(manifest.records, numbers, strict=True):
        face = layouts.face(number)
        assert (record.width, record.height) == SIZE
        assert manifest.resolve(record, "image").is_file()
        assert record.captions == (face.captions if captions else ())
        assert (record.mask is not None) == masks
        assert (record.sketch is not None) == sketches
        if masks:
            loaded = load_mask(manifest.resolve(record, "mask"), SIZE, record.label_format)
            assert np.array_equal(loaded.labels, face.labels)
        if sketches:
            path = manifest.resolve(record, "sketch")
            assert np.array_equal(load_sketch(path, SIZE, record.sketch_polarity), face.sketch)


def test_celebamask_hq_is_composed_and_resumed(tmp_path):
    numbers = [0, 1, 2, 2001]
    layouts.celebamask_hq(tmp_path / "hq", numbers)
    importer = importer_of("celebamask-hq", tmp_path / "hq")
    manifest = import_faces(importer, tmp_path / "out/hq.jsonl")
    check(manifest, numbers, captions=False, sketches=False)
    assert [r.id for r in manifest.records] == [f"celebahq/{n:05d}" for n in numbers]
    assert [r.split for r in manifest.records] == ["train", "val", "test", "train"]
    assert len(importer.report.without_captions) == 4
    masks = sorted((tmp_path / "out/hq_pictures/masks").iterdir())
    assert [m.name for m in masks] == [f"{n:05d}.png" for n in numbers]
    kept = masks[0].stat().st_mtime_ns
    masks[1].unlink()
    again = import_faces(importer_of("celebamask-hq", tmp_path / "hq"), tmp_path / "out/hq.jsonl")
    assert again == manifest
    assert masks[1].exists()
    assert masks[0].stat().st_mtime_ns == kept


def test_later_classes_overwrite_and_broken_ones_are_reported(tmp_path, monkeypatch):
    monkeypatch.setattr("mmface.data.importers.celeba._FEW", 1)
    layouts.celebamask_hq(tmp_path / "hq", [0, 1, 2])
    anno = tmp_path / "hq/CelebAMask-HQ-mask-anno/0"
    layouts.save(anno / "00000_skin.png", np.full(SIZE, 255, dtype=np.uint8))
    (anno / "00001_nose.png").write_bytes(b"no picture")
    (anno / "notes.txt").write_text("x")
    for path in anno.glob("00002_*"):
        path.unlink()
    (tmp_path / "hq/CelebA-HQ-img/2.jpg").rename(tmp_path / "hq/CelebA-HQ-img/7.jpg")
    importer = CelebAMaskHQ(tmp_path / "hq", parse_split(["train"]), num_workers=2)
    manifest = import_faces(importer, tmp_path / "hq.jsonl")
    labels = layouts.face(0).labels
    expected = np.where(labels == 0, 1, labels)
    mask = manifest.resolve(manifest.records[0], "mask")
    assert mask
    assert np.array_equal(load_mask(mask, SIZE).labels, expected)
    assert [r.mask is None for r in manifest.records] == [False, True, True]
    assert "00001_nose.png" in importer.report.unreadable[0]
    assert importer.report.without_condition["mask"] == ["celebahq/00001", "celebahq/00007"]
    assert importer.report.ignored == ["CelebAMask-HQ-mask-anno/0/notes.txt"]
    assert "without mask: 2 (celebahq/00001, celebahq/00007)" in str(importer.report)


def test_multi_modal_celeba_hq(tmp_path):
    numbers = list(range(3, 11))
    layouts.multi_modal_celeba_hq(tmp_path / "mm", numbers, num_test=2)
    importer = importer_of("multi-modal-celeba-hq", tmp_path / "mm")
    manifest = import_faces(importer, tmp_path / "mm.jsonl")
    check(manifest, numbers, sketches=False)
    assert [r.split for r in manifest.records] == ["train"] * 6 + ["test"] * 2
    assert any("label format, a guess: celebamask_hq" in note for note in importer.report.notes)


def test_pickled_split_lists_are_never_read(tmp_path):
    layouts.multi_modal_celeba_hq(tmp_path / "mm", [1, 2], num_test=1)
    for split in ("train", "test"):
        path = tmp_path / "mm" / split / "filenames.txt"
        path.rename(path.with_suffix(".pickle"))
    with pytest.raises(ValueError, match=r"is a pickle, which may run code.*filenames.txt"):
        import_faces(importer_of("multi-modal-celeba-hq", tmp_path / "mm"), tmp_path / "m.jsonl")
    assert not (tmp_path / "m.jsonl").exists()


@pytest.mark.parametrize(("label_format", "nested"), [("bisenet", True), ("facer", False)])
def test_ffhq(tmp_path, label_format, nested):
    numbers = [5, 999, 1000]
    layouts.ffhq(tmp_path / "ffhq", numbers, label_format, nested)
    importer = importer_of("ffhq", tmp_path / "ffhq", prefix="flickr")
    manifest = import_faces(importer, tmp_path / "m/ffhq.jsonl")
    check(manifest, numbers)
    assert manifest.records[0].id == "flickr/00005"
    assert manifest.records[2].image.startswith("../ffhq/images1024x1024/")
    assert (manifest.label_format, manifest.sketch_polarity) == (label_format, "white_on_dark")


def test_missing_counterparts_are_listed(tmp_path):
    folder = tmp_path / "ffhq"
    layouts.ffhq(folder, [1, 2, 3, 4], "bisenet")
    (folder / "masks/00001.png").unlink()
    (folder / "sketches/00002.png").unlink()
    (folder / "captions/00003.txt").write_bytes(b"\xff\xfe\xfa")
    (folder / "images1024x1024/00000/00004.png").unlink()
    layouts.save(folder / "masks/2.png", np.zeros(SIZE, dtype=np.uint8))
    importer = importer_of("ffhq", folder)
    manifest = import_faces(importer, tmp_path / "ffhq.jsonl")
    report = importer.report
    assert [r.id for r in manifest.records] == ["ffhq/00001", "ffhq/00002", "ffhq/00003"]
    assert report.without_condition["mask"] == ["ffhq/00001"]
    assert report.without_condition["sketch"] == ["ffhq/00002"]
    assert report.without_captions == ["ffhq/00003"]
    assert report.without_image == ["ffhq/00004"]
    assert report.ignored == ["masks/2.png"]
    assert "00003.txt is not UTF-8" in report.unreadable[0]


def test_authors_layout(tmp_path):
    layouts.authors(tmp_path / "a", train=[5, 12], test=[7], ffhq=[5, 70])
    importer = importer_of("authors", tmp_path / "a")
    manifest = import_faces(importer, tmp_path / "a.jsonl")
    check(manifest, [5, 12, 7, 5, 70])
    ids = ["celebahq/00005", "celebahq/00012", "celebahq/00007", "ffhq/00005", "ffhq/00070"]
    assert [r.id for r in manifest.records] == ids
    assert [r.split for r in manifest.records] == ["train", "train", "test", "train", "train"]
    assert not importer.report.without_image
    assert not importer.report.ignored
    with pytest.raises(ValueError, match="leave out --split and --prefix"):
        importer_of("authors", tmp_path / "a", prefix="x")


def test_photo_folder(tmp_path):
    layouts.photos(tmp_path / "p", [1, 2, 3])
    (tmp_path / "p/readme.md").write_text("x")
    (tmp_path / "p/broken.jpg").write_bytes(b"x")
    importer = importer_of("photos", tmp_path / "p", prefix="me")
    manifest = import_faces(importer, tmp_path / "p.jsonl")
    check(manifest, [1, 2, 3], masks=False, sketches=False)
    assert manifest.records[0].id == "me/album 0/photo 1"
    assert importer.report.ignored == ["readme.md"]
    assert "broken.jpg" in importer.report.unreadable[0]


def test_hugging_face_dataset_is_written_out_and_resumed(tmp_path):
    layouts.hugging_face(tmp_path / "hf", [4, 5], [9], "v_xchen_v")
    columns = {"id": "number", "image": "photo", "captions": "text"}

    def run():
        importer = importer_of("hugging-face", tmp_path / "hf", columns=columns)
        return import_faces(importer, tmp_path / "hf.jsonl")

    manifest = run()
    check(manifest, [4, 5, 9], sketches=False)
    assert [r.split for r in manifest.records] == ["train", "train", "val"]
    assert manifest.label_format == "v_xchen_v"
    path = manifest.resolve(manifest.records[0], "image")
    kept = path.stat().st_mtime_ns
    manifest.resolve(manifest.records[1], "mask").unlink()
    assert run() == manifest
    assert path.stat().st_mtime_ns == kept
    check(manifest, [4, 5, 9], sketches=False)
    with pytest.raises(ValueError, match="has no column image; it has number, photo"):
        import_faces(importer_of("hugging-face", tmp_path / "hf"), tmp_path / "x.jsonl")


def test_undecided_label_formats_are_asked_for(tmp_path):
    layouts.ffhq(tmp_path / "f", [1], "bisenet")
    layouts.save(tmp_path / "f/masks/00001.png", np.ones(SIZE, dtype=np.uint8))
    with pytest.raises(ValueError, match=r"undecided: .*Give --label-format"):
        import_faces(importer_of("ffhq", tmp_path / "f"), tmp_path / "f.jsonl")
    assert not (tmp_path / "f.jsonl").exists()
    manifest = import_faces(
        importer_of("ffhq", tmp_path / "f"), tmp_path / "f.jsonl", {"label_format": "facer"}
    )
    assert manifest.records[0].label_format == "facer"


def test_split_lists(tmp_path):
    layouts.photos(tmp_path / "p", [1, 2, 3])
    names = tmp_path / "names.txt"
    names.write_text("albums/photo 2.jpg\n\n")
    for values, splits in [
        ([], ["train"] * 3),
        (["test"], ["test"] * 3),
        ([f"test={names}"], ["train", "test", "train"]),
        ([f"train={names}"], ["train"]),
        ([f"train={names}", "val"], ["val", "train", "val"]),
    ]:
        importer = importer_of("photos", tmp_path / "p", parse_split(values))
        manifest = import_faces(importer, tmp_path / "p.jsonl")
        assert [r.split for r in manifest.records] == splits
        assert len(importer.report.without_split) == 3 - len(splits)
    with pytest.raises(ValueError, match="give one of train, val, test"):
        parse_split(["dev"])
    with pytest.raises(ValueError, match=r"names.txt:1: photo 2 is in the list of train as well"):
        parse_split([f"train={names}", f"test={names}"])


def test_wrong_layouts_and_folders(tmp_path):
    with pytest.raises(ValueError, match=f"no layout 'x'; known are {', '.join(LAYOUTS)}"):
        importer_of("x", tmp_path)
    with pytest.raises(FileNotFoundError, match="none is no folder"):
        importer_of("ffhq", tmp_path / "none")
    with pytest.raises(ValueError, match="holds no face in this layout"):
        import_faces(importer_of("ffhq", tmp_path), tmp_path / "m.jsonl")


@pytest.mark.slow
def test_script(tmp_path):
    layouts.photos(tmp_path / "p", [1, 2])
    layouts.ffhq(tmp_path / "f", [1, 2], "bisenet")

    def run(*arguments):
        command = [sys.executable, str(SCRIPT), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True)

    for layout, name in (("photos", "p"), ("ffhq", "f")):
        done = run("import", layout, tmp_path / name, "--out", tmp_path / f"{name}.jsonl")
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[0] == "2 faces"
        assert done.stdout.splitlines()[-1] == str(tmp_path / f"{name}.jsonl")
    done = run("merge", tmp_path / "p.jsonl", tmp_path / "f.jsonl", "--out", tmp_path / "all.jsonl")
    assert done.stdout == f"4 faces\n{tmp_path / 'all.jsonl'}\n"
    assert len(Manifest.read(tmp_path / "all.jsonl").records) == 4
    done = run("import", "fhq", tmp_path / "f", "--out", tmp_path / "x.jsonl")
    assert done.returncode == 2
    assert done.stderr.startswith("error: There is no layout 'fhq'; known are celebamask-hq, ")
