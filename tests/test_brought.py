"""Conditions that somebody brings: how they are found, and what is measured of them."""

import json

import numpy as np
import pytest
from PIL import Image

from mmface import builtin
from mmface.conditions import colorize
from mmface.evaluation import publishing
from mmface.evaluation.brought import ANY_PROMPT, BroughtEvaluation, _columns, read_cases
from mmface.rendered import render_face


@pytest.fixture(scope="module")
def conditions(tmp_path_factory):
    folder, face = tmp_path_factory.mktemp("conditions"), render_face(1_000_004, 64)
    Image.fromarray(colorize(face.labels)).save(folder / "anna_mask.png")
    (folder / "anna_mask.txt").write_text("a woman\n")
    Image.fromarray(face.sketch).save(folder / "anna_sketch.png")
    Image.fromarray(face.image).save(folder / "anna.png")
    return folder


def test_conditions_are_found_by_their_names_or_in_a_list(conditions, tmp_path):
    found = {case.kind: case for case in read_cases(conditions)}
    assert {kind: case.prompt for kind, case in found.items()} == {
        "mask": "a woman",
        "sketch": ANY_PROMPT,
    }
    assert read_cases(builtin("tiny-flow").parent / "examples")[0].kind == "mask"
    for lines, words in (
        ('{"modality": "mask", "prompt": "a", "condition": "no.png"}', "no.png does not exist"),
        ('{"modality": "smell", "prompt": "a", "condition": "no.png"}', "line 1: .*smell"),
        ("[]", "line 1"),
        ("", "is empty"),
    ):
        (tmp_path / "cases.jsonl").write_text(lines)
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            read_cases(tmp_path)
    (tmp_path / "cases.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match="nor pictures called"):
        read_cases(tmp_path)


def test_a_missing_eye_is_told_from_a_badly_placed_one():
    mask = np.zeros((8, 8), np.uint8)
    mask[2, 2], mask[2, 5] = 4, 5
    found = _columns({"mean_iou": 0.5, "iou/l_eye": 0.4, "iou/r_eye": 0.0}, mask)
    assert found == {"mean_iou": 0.5, "eyes": 0.2, "no_eye": 1.0}
    assert _columns({"mean_iou": 0.5}, np.zeros((8, 8), np.uint8)) == {"mean_iou": 0.5}


@pytest.mark.slow
def test_a_folder_is_measured_and_drawn(conditions, tmp_path):
    job = BroughtEvaluation(
        builtin("tiny-flow"),
        builtin("tiny-flow").parent / "tiny-parser",
        conditions,
        tmp_path,
        num_seeds=2,
        num_inference_steps=2,
    )
    report = job.report()
    assert "| anna_mask | 0." in report
    assert "**all 1 of a sketch**" in report
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 800
    results = json.loads((tmp_path / "results.json").read_text())
    assert publishing.render(results) in report
    eyes = results["cases"][0]["pictures"][0]
    assert 0 < eyes["mean_iou"] < 1
    with pytest.raises(ValueError, match="give conditions=DIR"):
        BroughtEvaluation("a", "b", None, tmp_path)
