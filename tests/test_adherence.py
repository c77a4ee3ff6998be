"""Adherence: perfect pictures, wrong ones, and the seed that follows its conditions best."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from script_runs import load_script

from mmface.conditions import colorize
from mmface.encoders.face_parser import TINY_PARSER, FaceParser
from mmface.generation.adherence import measure_adherence
from mmface.rendered import render_face


@pytest.fixture(scope="module")
def parser():
    return FaceParser.from_pretrained(TINY_PARSER)


@pytest.fixture(scope="module")
def face():
    return render_face(1_000_021, 128)


def test_numbers_are_those_of_a_count_by_hand():
    labels = np.zeros((4, 4), np.uint8)
    labels[2:] = 1
    seen = labels.copy()
    seen[2, :2] = 0  # 2 of the 8 skin pixels are taken for background
    picture = np.zeros((4, 4, 3), np.uint8)
    found = measure_adherence(picture, {"mask": labels}, lambda pictures: [seen])
    numbers = found.by_kind["mask"]
    assert numbers == pytest.approx(
        {
            "mean_iou": (0.8 + 0.75) / 2,
            "pixel_accuracy": 14 / 16,
            "iou/background": 8 / 10,
            "iou/skin": 6 / 8,
        }
    )
    assert list(found.by_kind) == ["mask"]
    assert found.score == numbers["mean_iou"]
    table = r"mean IoU +0\.775\n +pixel accuracy +0\.875\n +background +0\.800"
    assert re.search(table, found.table())


def test_a_true_picture_follows_and_another_face_does_not(face, parser):
    other = render_face(1_000_050, 128)
    good, bad = (
        measure_adherence(image, {"mask": face.labels, "sketch": face.sketch}, parser)
        for image in (face.image, other.image)
    )
    good_iou, bad_iou = (each.numbers["mean_iou"] for each in (good, bad))
    good_edges, bad_edges = (each.numbers["edges"] for each in (good, bad))
    assert good_iou > 0.8
    assert good_edges > 0.6
    assert good.score == (good_iou + good_edges) / 2
    assert bad_iou < good_iou - 0.2
    assert bad_edges < good_edges - 0.1
    assert json.loads(json.dumps(good.to_json()))["score"] == good.score


def test_what_cannot_be_measured_is_named(face, parser):
    for conditions, reader, message in (
        ({}, parser, "neither a mask nor a sketch"),
        ({"mask": face.labels}, None, "face parser is needed"),
        ({"sketch": np.full((128, 128), 200, np.uint8)}, None, "no line darker"),
    ):
        with pytest.raises(ValueError, match=message):
            measure_adherence(face.image, conditions, reader)


@pytest.fixture
def here(tmp_path, monkeypatch, face):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(colorize(face.labels)).save("mask.png")
    Image.fromarray(face.sketch).save("sketch.png")
    return tmp_path


@pytest.mark.slow
def test_a_report_lies_beside_and_best_of_keeps_the_best(
    here, tiny_pipeline_folder, capsys, parser, face
):
    run = load_script("sample")
    base = ["--pipeline", str(tiny_pipeline_folder), "--steps", "2", "--prompt", "a"]
    base += ["--mask", "mask.png", "--sketch", "sketch.png", "--height", "128", "--width", "128"]
    assert run([*base, "--num", "3", "--seed", "5", "--out", "all", "--report"]) == 0
    every = json.loads(Path("all/report.json").read_text())["pictures"]
    scores = {each["seed"]: each["adherence"]["score"] for each in every}
    assert list(scores) == [5, 6, 7]
    for seed, score in scores.items():
        picture = np.array(Image.open(f"all/seed_{seed}.png"))
        again = measure_adherence(picture, {"mask": face.labels, "sketch": face.sketch}, parser)
        assert score == pytest.approx(again.score)
    capsys.readouterr()
    assert run([*base, "--best-of", "3", "--seed", "5", "--out", "best.png", "--report"]) == 0
    out, err = capsys.readouterr()
    assert out.split() == ["best.png", "best_report.json"]
    best = max(scores, key=scores.__getitem__)
    assert f"seed {best} is kept" in err
    assert "pixel accuracy" in err
    assert np.array_equal(
        np.array(Image.open("best.png")), np.array(Image.open(f"all/seed_{best}.png"))
    )
    (kept,) = json.loads(Path("best_report.json").read_text())["pictures"]
    assert (kept["seed"], kept["adherence"]["score"]) == (best, scores[best])
