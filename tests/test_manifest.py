"""Manifests: what is written is read, moved and merged alike, and every fault has its line."""

import json
from dataclasses import replace
from typing import Any

import pytest

from mmface.data.manifest import Manifest, Record, merge

RECORDS = [
    Record(
        "a/00001", "img/1.jpg", ("a face", "ein Gesicht, schön"), "train", 8, 9, mask="masks/1.png"
    ),
    Record(
        *("a/00002", "../photos/2.jpg", (), "test", 8, 9, "0" * 64),
        sketch="s/2.png",
        label_format="bisenet",
    ),
]
HEADER = {
    "manifest": "mmface",
    "version": 1,
    "label_format": "celebamask_hq",
    "sketch_polarity": "dark_on_white",
    "made_by": {"layout": "ffhq"},
}
ROW = {
    "id": "a/1",
    "image": "1.jpg",
    "mask": None,
    "sketch": None,
    "captions": ["a face"],
    "split": "train",
    "width": 8,
    "height": 8,
}


@pytest.fixture
def manifest(tmp_path):
    return Manifest(tmp_path / "sets/a.jsonl", RECORDS, made_by={"layout": "ffhq"}).write(
        tmp_path / "sets/a.jsonl"
    )


def written(tmp_path, *lines):
    path = tmp_path / "m.jsonl"
    encoded = [each if isinstance(each, bytes) else json.dumps(each).encode() for each in lines]
    path.write_bytes(b"\n".join(encoded) + b"\n")
    return path


def test_written_is_read(manifest):
    back = Manifest.read(manifest.path)
    assert back == manifest
    assert list(back.records) == RECORDS
    lines = manifest.path.read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[0]) == HEADER
    assert "label_format" not in json.loads(lines[1])  # the header's
    assert json.loads(lines[2])["label_format"] == "bisenet"
    assert [each.name for each in manifest.path.parent.iterdir()] == ["a.jsonl"]


def test_paths_lead_to_the_same_pictures_from_another_folder(manifest, tmp_path):
    moved = Manifest.read(manifest.write(tmp_path / "x/y/b.jsonl").path)
    assert moved.records[0].image == "../../sets/img/1.jpg"
    assert moved.records[1].image == "../../photos/2.jpg"
    for before, after in zip(manifest.records, moved.records, strict=True):
        for name in ("image", "mask", "sketch"):
            old, new = manifest.resolve(before, name), moved.resolve(after, name)
            assert (old and old.resolve()) == (new and new.resolve())
    assert list(moved.at(manifest.path).records) == RECORDS


def test_subset(manifest):
    assert [each.id for each in manifest.subset("test").records] == ["a/00002"]
    assert not manifest.subset("val").records
    with pytest.raises(ValueError, match="no split 'dev'; known are train, val, test"):
        manifest.subset("dev")


def test_merged_records_keep_their_own_format(manifest, tmp_path):
    readings: dict[str, Any] = {"label_format": "facer", "sketch_polarity": "white_on_dark"}
    light = [
        replace(each, id=f"b/{n}", **readings) for n, each in enumerate([*RECORDS, RECORDS[0]])
    ]
    styles = {"label_format": "facer", "sketch_polarity": "white_on_dark"}
    other = Manifest(tmp_path / "other/b.jsonl", light, styles, {"layout": "x"})
    merged = merge([manifest, other], tmp_path / "all.jsonl")
    assert (merged.label_format, merged.sketch_polarity) == ("facer", "white_on_dark")
    back = Manifest.read(merged.write(tmp_path / "all.jsonl").path)
    formats = [each.label_format for each in back.records]
    assert formats == ["celebamask_hq", "bisenet", "facer", "facer", "facer"]
    assert back.records[0].image == "sets/img/1.jpg"
    assert back.records[2].image == "other/img/1.jpg"
    assert back.made_by == {"merged": [{"layout": "ffhq"}, {"layout": "x"}]}
    with pytest.raises(ValueError, match=r"'a/00001' is in .*a.jsonl and in .*--prefix"):
        merge([manifest, manifest], tmp_path / "all.jsonl")
    with pytest.raises(ValueError, match="no manifests"):
        merge([], tmp_path / "all.jsonl")


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (b"{not json", "is not JSON"),
        (b"", "is not JSON"),
        (b'{"id": "\xff"}', r"is not UTF-8 \(byte 9 of the line\)"),
        (b"[1]", "is not a JSON object"),
        (ROW | {"caption": "x", "note": 1}, "has unknown keys: caption, note"),
        ({k: v for k, v in ROW.items() if k not in ("mask", "id")}, "lacks the keys: id, mask"),
        (ROW | {"id": 5}, '"id" is not a text'),
        (ROW | {"image": None}, '"image" is not a path relative'),
        (ROW | {"image": "/root/1.jpg"}, '"image" is not a path relative'),
        (ROW | {"mask": "a\\b.png"}, '"mask" is not a path relative'),
        (ROW | {"sketch": "C:/b.png"}, '"sketch" is not a path relative'),
        (ROW | {"captions": "a face"}, '"captions" is not a list of texts'),
        (ROW | {"captions": [""]}, '"captions" is not a list of texts'),
        (ROW | {"split": "dev"}, '"split" is not one of train, val, test'),
        (ROW | {"split": ["train"]}, '"split" is not one of train, val, test'),
        (ROW | {"width": 8.0, "height": True}, '"width" is not a .*; "height" is not a number'),
        (ROW | {"sha256": "abc"}, '"sha256" is not 64 hexadecimal digits'),
        (ROW | {"label_format": "pascal"}, "\"label_format\" is 'pascal', not one of celeba"),
        (ROW | {"sketch_polarity": 1}, '"sketch_polarity" is 1, not one of dark_on_white'),
        (ROW | {"id": "a/0"}, "has the id 'a/0' of line 2"),
    ],
)
def test_faults_of_a_record_have_their_line(tmp_path, row, fault):
    path = written(tmp_path, HEADER, ROW | {"id": "a/0"}, row, ROW | {"id": "a/2"})
    with pytest.raises(ValueError, match=rf"m.jsonl:3: {fault}") as raised:
        Manifest.read(path)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("header", "fault"),
    [
        (ROW, 'is no header of a manifest: it lacks "manifest": "mmface"'),
        (HEADER | {"version": 2}, "has version 2; this mmface reads 1"),
        (HEADER | {"extra": 2}, "has unknown keys: extra"),
        ({k: v for k, v in HEADER.items() if k != "made_by"}, "lacks the keys: made_by"),
        (HEADER | {"label_format": None}, '"label_format" is None'),
        (HEADER | {"made_by": 1}, '"made_by" is not an object'),
    ],
)
def test_faults_of_the_header(tmp_path, header, fault):
    with pytest.raises(ValueError, match=f"m.jsonl:1: {fault}"):
        Manifest.read(written(tmp_path, header, ROW))


def test_the_first_ten_faults_are_named_at_once(tmp_path):
    path = written(tmp_path, HEADER, *[b"{"] * 30)
    with pytest.raises(ValueError, match="is not JSON") as raised:
        Manifest.read(path)
    lines = str(raised.value).splitlines()
    assert [line.split(":")[-3 if "(" not in line else 1] for line in lines] == [
        str(number) for number in range(2, 12)
    ]


def test_no_file_and_an_empty_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Manifest.read(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ValueError, match=r"empty.jsonl:1: the file is empty"):
        Manifest.read(tmp_path / "empty.jsonl")
