"""`scripts/annotate.py`: shards, resume, unreadable pictures, and the manifest it leaves."""

import runpy
import shutil
import time
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from dead_writers import held_by_another, killed_at_random
from PIL import Image, ImageFile
from transformers import CLIPTokenizer
from transformers import SegformerImageProcessorPil as SegformerProcessor

from mmface import builtin
from mmface.annotation import jobs
from mmface.annotation.caption_engines import Answer
from mmface.annotation.caption_prompts import PROMPTS
from mmface.annotation.captions import PictureCaptioner
from mmface.annotation.outputs import Item, write_captions
from mmface.data.manifest import Manifest, Record
from mmface.encoders.face_parser import TINY_PARSER
from mmface.rendered import render_face

annotate = runpy.run_path(str(Path(__file__).parent.parent / "scripts" / "annotate.py"))["run"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("annotate") / "photos"
    (folder / "more").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.png", "more/c.png", "more/d.png", "more/e.png")):
        Image.fromarray(render_face(1_000_030 + number, 64).image).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def parser(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parser") / "tiny"
    shutil.copytree(TINY_PARSER, folder)
    half, size = [0.5, 0.5, 0.5], {"height": 128, "width": 128}
    SegformerProcessor(size=size, image_mean=half, image_std=half).save_pretrained(folder)
    return str(folder)


def contents(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


@pytest.mark.slow
def test_masks_then_sketches_end_in_one_manifest(photos, parser, tmp_path, capsys):
    masks, sketches = tmp_path / "masks", tmp_path / "sketches"
    assert annotate(["masks", str(photos), "--out", str(masks), "--model", parser]) == 0
    assert annotate(["sketches", str(masks / "manifest.jsonl"), "--out", str(sketches)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(sketches / "manifest.jsonl")
    manifest = Manifest.read(sketches / "manifest.jsonl")
    assert [record.id for record in manifest.records] == ["a", "b", "more/c", "more/d", "more/e"]
    for record in manifest.records:
        paths = [manifest.resolve(record, name) for name in ("mask", "sketch", "image")]
        mask, sketch = (Image.open(path) for path in paths[:2] if path)
        mask.load(), sketch.load()  # which closes the files
        assert (mask.mode, sketch.mode, mask.size, sketch.size) == ("L", "L", (64, 64), (64, 64))
        assert (record.width, record.sketch_polarity) == (64, "dark_on_white")
        assert np.array(mask).max() < 19
        assert paths[2]
        assert paths[2].samefile(photos / f"{record.id}.png")


@pytest.mark.slow
def test_shards_together_do_what_one_process_does(photos, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert annotate(["sketches", str(photos), "--out", str(whole)]) == 0
    for shard in ("0/2", "1/2"):
        assert annotate(["sketches", str(photos), "--out", str(parts), "--shard", shard]) == 0
    left, right = contents(whole), contents(parts)
    assert left.keys() == right.keys()
    assert all(left[name] == right[name] for name in left)


def test_a_stopped_run_makes_only_what_is_missing(photos, tmp_path, capsys):
    out = tmp_path / "out"
    annotate(["sketches", str(photos), "--out", str(out)])
    before = contents(out)
    (out / "more" / "d.png").unlink()
    (out / "a.png").write_bytes(b"not made again")
    assert annotate(["sketches", str(photos), "--out", str(out)]) == 0
    assert "1 made, 4 were there already" in capsys.readouterr().err
    assert contents(out) == before | {"a.png": b"not made again"}


def test_unreadable_pictures_are_listed_and_left_out(photos, tmp_path, capsys):
    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "photos" / "broken.jpg").write_text("no picture")
    assert annotate(["sketches", str(tmp_path / "photos"), "--out", str(tmp_path / "out")]) == 1
    assert "not read: broken: " in capsys.readouterr().err
    assert len(Manifest.read(tmp_path / "out" / "manifest.jsonl").records) == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--shard", "2/2"], "--shard 2/2"),
        (["--shard", "half"], "--shard half"),
        (["--out", "{photos}/out"], "another --out"),
        (["--model", "weights.pth"], "does not exist"),
        (["--batch-size", "0"], "batch-size"),
    ],
)
def test_mistakes_are_one_line_and_status_two(photos, tmp_path, capsys, change, message):
    change = [word.format(photos=photos) for word in change]
    assert annotate(["sketches", str(photos), "--out", str(tmp_path / "out"), *change]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert errors[-1].startswith("error: ")
    assert message in errors[-1]


def test_another_maker_does_not_mix_its_work_in(photos, tmp_path, capsys, parser):
    out = str(tmp_path / "out")
    assert annotate(["sketches", str(photos), "--out", out]) == 0
    assert annotate(["masks", str(photos), "--out", out, "--model", parser]) == 2
    assert "made otherwise" in capsys.readouterr().err


def test_a_second_annotation_of_a_shard_ends_with_who_holds_it(photos, tmp_path, capsys):
    arguments = ["sketches", str(photos), "--out", str(tmp_path / "out")]
    with held_by_another(tmp_path / "out", "shard-0-of-2") as pid:
        assert annotate([*arguments, "--shard", "0/2"]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith(f"error: {tmp_path}/out is in use by process {pid} on ")
        assert annotate([*arguments, "--shard", "1/2"]) == 0
    assert annotate([*arguments, "--shard", "0/2"]) == 0  # a killed holder holds nothing
    assert not list((tmp_path / "out").glob(".*"))


def test_an_output_folder_that_is_a_file_is_one_line(photos, tmp_path, capsys):
    (tmp_path / "out").write_text("a file")
    assert annotate(["sketches", str(photos), "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"error: {tmp_path}/out cannot be a folder: ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--tokenizer", "./no/tokenizer"], "The tokenizer ./no/tokenizer does not exist"),
        (["--rewriter", "./no/rewriter"], "The rewriter ./no/rewriter does not exist"),
        (["--rewriter", "none", "--model", "./no/model"], "The captioner ./no/model does not"),
        (["--tokenizer", "someone/something"], "hf download someone/something"),
    ],
)
def test_models_that_are_not_there_are_named(
    photos, tmp_path, capsys, monkeypatch, change, message
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    words = ["captions", str(photos), "--out", str(tmp_path / "out")]
    assert annotate([*words, "--tokenizer", str(builtin("tiny-flow") / "tokenizer"), *change]) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("error", [RuntimeError, IndexError, TypeError, SyntaxError])
def test_a_picture_that_pillow_breaks_on_is_one_line(tmp_path, capsys, monkeypatch, error):
    Image.fromarray(render_face(1_000_030, 64).image).save(tmp_path / "a.png")
    monkeypatch.setattr(ImageFile.ImageFile, "load", Mock(side_effect=error("odd decoder")))
    assert annotate(["sketches", str(tmp_path), "--out", f"{tmp_path}_out"]) == 1
    assert "not read: a: " in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sketches", "captions"])
def test_kills_lose_nothing_and_write_nothing_twice(photos, tmp_path, tokenizer, kind):
    def work(out):
        if kind == "captions":
            return caption(photos, out, tokenizer, num_answers=10**6)
        return annotate(["sketches", str(photos), "--out", str(out), "--batch-size", "1"])

    start = time.monotonic()
    assert work(tmp_path / "whole") == 0
    duration = time.monotonic() - start
    assert killed_at_random(partial(work, tmp_path / "killed"), duration, 3, seed=0) > 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_sources_that_cannot_be_annotated_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        jobs.read_source(tmp_path / "missing")
    with pytest.raises(ValueError, match="no pictures"):
        jobs.read_source(tmp_path)
    for name in ("x.png", "x.jpg"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    with pytest.raises(ValueError, match="two pictures"):
        jobs.read_source(tmp_path)
    climbing = Record("../x", "x.png", (), "train", 4, 4)
    Manifest(tmp_path / "m.jsonl", [climbing]).write(tmp_path / "m.jsonl")
    with pytest.raises(ValueError, match="cannot be a file's name"):
        jobs.read_source(tmp_path / "m.jsonl")


class Telling:
    """A captioner that tells the picture's mean colour, and may stop after some answers."""

    made_by = {"model": "telling", "revision": "1"}  # noqa: RUF012

    def __init__(self, num_answers=1000):
        self.left = num_answers

    def answer(self, requests, temperature=0.0):
        self.left -= len(requests)
        if self.left < 0:
            raise KeyboardInterrupt
        tones = [" ".join(map(str, one.picture.mean((0, 1)).astype(int))) for one in requests]
        return [
            Answer(f"A person of the tones {tone} who answers {one.prompt.split()[-20]}.", True)
            for one, tone in zip(requests, tones, strict=True)
        ]


@pytest.fixture(scope="module")
def tokenizer():
    return CLIPTokenizer.from_pretrained(builtin("tiny-flow") / "tokenizer")


def caption(photos, out, tokenizer, shard="0/1", num_answers=1000):
    maker = PictureCaptioner(Telling(num_answers), tokenizer, prompts=PROMPTS[:1], batch_size=1)
    return jobs.Work(photos, out, shard, batch_size=1, device="cpu").captions(maker)


def test_captions_resume_after_a_torn_line_and_across_shards(photos, tmp_path, tokenizer):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert caption(photos, whole, tokenizer) == 0
    with pytest.raises(KeyboardInterrupt):
        caption(photos, parts, tokenizer, "0/2", num_answers=2)
    lines = parts / "captions-00000-of-00002.jsonl"
    assert len(lines.read_text().splitlines()) == 2
    lines.write_text(lines.read_text() + '{"id": "more/')
    for shard in ("0/2", "1/2"):
        assert caption(photos, parts, tokenizer, shard) == 0
    assert (whole / "manifest.jsonl").read_text() == (parts / "manifest.jsonl").read_text()
    assert all(len(r.captions) == 1 for r in Manifest.read(parts / "manifest.jsonl").records)
    before = contents(parts)
    assert caption(photos, parts, tokenizer, "0/1", num_answers=0) == 0
    assert contents(parts).items() >= before.items()


def test_a_broken_line_is_named(tmp_path, tokenizer, photos):
    maker = PictureCaptioner(Telling(), tokenizer, prompts=PROMPTS[:1])
    (tmp_path / "captions-00000-of-00001.jsonl").write_text('{"id": "a"}\n')
    with pytest.raises(ValueError, match="line 1"):
        write_captions([Item("a", photos / "a.png")], maker, tmp_path)


def test_models_carry_their_revision():
    assert jobs._named("maker/model@abc123") == ("maker/model", "abc123")
    assert jobs._named("maker/model") == ("maker/model", None)
