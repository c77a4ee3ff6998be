"""Drift of what a prompt does not name: attributes by hand, and the table of a drifting method."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate

from mmface.conditions import LABEL_INDEX
from mmface.evaluation.drift import (
    OTHER_SEED,
    DriftEvaluation,
    NamingPrompt,
    as_markdown,
    bars,
    changed,
    faults,
)
from mmface.evaluation.methods import FolderMethod, GeneratingMethod
from mmface.evaluation.references import HeldOutPictures, References
from mmface.evaluation.table_evaluation import Protocol
from mmface.metrics.attributes import QUESTIONS, JudgedAttributes, read_attributes, skin_regions
from mmface.metrics.metric import Values, build_metrics
from mmface.rendered import SKIN_TONES, render_face

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def fresh_state():
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def faces():
    return [render_face(1_000_000 + item, 128) for item in range(40)]


def readings(faces, column, attribute):
    """The values of a column by what the faces are."""
    found: dict = {}
    for face in faces:
        value = read_attributes(face.image, face.labels, face.labels)[column]
        if value is not None:
            found.setdefault(getattr(face.attributes, attribute), []).append(value)
    return found


@pytest.mark.slow
def test_skin_is_as_bright_as_its_tone_and_lines_come_with_age(faces):
    tones = readings(faces, "skin_luma", "skin_tone")
    order = sorted(tones, key=lambda tone: np.mean(tones[tone]))
    assert order == sorted(SKIN_TONES, key=lambda tone: sum(SKIN_TONES[tone]))
    lines = {age: np.mean(values) for age, values in readings(faces, "age_lines", "age").items()}
    assert lines["young"] < lines["middle-aged"] < lines["elderly"]


@pytest.mark.slow
@pytest.mark.parametrize("attribute", ["beard", "glasses"])
def test_what_is_worn_is_read(faces, attribute):
    found = readings(faces, attribute, attribute)
    assert min(found[True]) > max(np.median(found[False]), 1.0)


def test_a_region_that_is_not_there_has_no_value():
    labels = np.full((64, 64), LABEL_INDEX["skin"], np.uint8)
    upper, lower = skin_regions(labels)
    assert upper[:32].all()
    assert lower[32:].all()
    image = np.full((64, 64, 3), (200, 100, 50), np.uint8)
    values = read_attributes(image, labels, labels)
    assert values["skin_luma"] == pytest.approx(0.299 * 200 + 0.587 * 100 + 0.114 * 50)
    assert values["skin_warmth"] == 150
    assert values["age_lines"] == pytest.approx(0, abs=1)
    assert values["beard"] == values["glasses"] == 0
    assert values["hair_luma"] is values["background_warmth"] is None


def test_drift_keeps_the_sign_and_change_does_not():
    plain: list[Values] = [{"a": 1.0, "b": None}, {"a": 5.0, "b": 1.0}, {"a": 2.0, "b": 4.0}]
    named: list[Values] = [{"a": 3.0, "b": 1.0}, {"a": 3.0, "b": 2.0}, {"a": 2.0, "b": None}]
    found = changed(plain, named)
    assert found.keys() == {"a"}  # one pair of b is too few
    assert found["a"]["drift"]["estimate"] == 0
    assert found["a"]["change"]["estimate"] == pytest.approx(4 / 3)
    assert found["a"]["drift"]["clusters"] == 3


def row(name, low, estimate, high, control=False, names=()):
    cell = {"low": low, "estimate": estimate, "high": high}
    cells = {"skin_luma": {"drift": cell, "change": cell}}
    return {"name": name, "control": control, "names": list(names), "cells": cells}


def test_what_is_outside_all_controls_is_a_fault_unless_it_is_named():
    rows = [row("seed", -2.0, 0.0, 2.0, True), row("words", 1.0, 2.0, 3.0, True)]
    assert bars(rows, "drift") == {"skin_luma": (-2.0, 3.0)}
    assert bars(rows, "change") == {"skin_luma": (0.0, 3.0)}
    rows += [row("inside", 0, 2.9, 4), row("below", -9, -3, 0)]
    rows += [row("named", 9, 9, 9, False, ["skin_luma"])]
    assert list(faults(rows)) == [("below", "skin_luma")]
    text = as_markdown({"tables": {"mine": rows}, "notes": ["N"], "versions": {}})
    assert "| below | **-3.0 ± 4.5** |" in text
    assert "| named | (+9.0 ± 0.0) |" in text
    assert "1 of 2 attributes" in text


class Painter(GeneratingMethod):
    """Gives the true picture, darker all over if the prompt says "dark"; counts its work."""

    def __init__(self):
        super().__init__("painter")
        self.made = 0

    def unavailable(self):
        return None

    def made_by(self):
        return {"method": "painter"}

    def generate(self, orders, device):
        self.made += len(orders)
        shade = [0.5 if "dark" in order.prompt else 1 - 0.01 * (order.seed % 3) for order in orders]
        return [
            (order.truth * factor).astype(np.uint8)
            for order, factor in zip(orders, shade, strict=True)
        ]


def drift_evaluation(folder, method):
    metrics = build_metrics(["attributes"], settings={"attributes": {"parser": "tiny-parser"}})
    naming = {"dark hair": NamingPrompt("A dark face.", ["hair_luma", "hair_warmth"])}
    source = Protocol(HeldOutPictures(3, 64), metrics)
    return DriftEvaluation(source, {"a": method}, "A face.", ["Some face."], naming, folder)


@pytest.mark.slow
def test_a_method_whose_hair_darkens_all_is_found_and_a_second_run_makes_nothing(tmp_path):
    method = Painter()
    content = drift_evaluation(tmp_path, method).run()
    assert json.loads((tmp_path / "drift.json").read_text()) == content
    rows = {one["name"]: one for one in content["tables"]["painter"]}
    assert list(rows) == [OTHER_SEED, '"Some face."', "dark hair"]
    assert rows['"Some face."']["cells"]["skin_luma"]["change"]["estimate"] == 0
    assert ("dark hair", "skin_luma") in set(faults(content["tables"]["painter"]))
    assert ("dark hair", "hair_luma") not in set(faults(content["tables"]["painter"]))
    made = method.made
    assert made == 4 * 3
    again = Painter()
    assert drift_evaluation(tmp_path, again).run() == content
    assert again.made == 0


def test_what_cannot_drift_is_refused(tmp_path):
    with pytest.raises(ValueError, match="CD is a folder of pictures, which cannot be asked"):
        drift_evaluation(tmp_path, FolderMethod("CD", tmp_path))
    with pytest.raises(ValueError, match="there is no method"):
        DriftEvaluation(Protocol(HeldOutPictures(3, 64), {}), {}, "a", [], {}, tmp_path)
    wrong = {"x": NamingPrompt("x", ["hair_lumen"])}
    with pytest.raises(ValueError, match=r"\['hair_lumen'\], which are no columns"):
        DriftEvaluation(
            Protocol(HeldOutPictures(3, 64), {}), {"a": Painter()}, "a", [], wrong, tmp_path
        )


class Agreeable:
    """A judge that is sure of what has more letters."""

    def next_token_logits(self, image, question):
        return torch.tensor([len(question) / 100, 0.0])

    def answer_token(self, answer):
        return ["Yes", "No"].index(answer)


def test_a_judge_is_asked_every_question_of_every_picture():
    metric: Any = JudgedAttributes()
    metric._judge = Agreeable()
    order = References(HeldOutPictures(2, 32), "mask").order(0, seed=0)
    read = metric.read(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), [order, order])
    assert len(read) == 2
    assert list(read[0]) == list(QUESTIONS) == list(metric.columns)
    length = len("Is this person elderly? Please answer Yes or No.") / 100
    assert read[0]["judged_elderly"] == pytest.approx(1 / (1 + np.exp(-length)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["drift", "drift_judged"])
def test_protocols_of_drift_compose_and_ask_of_every_attribute_once(name):
    more = [] if name == "drift" else ["manifest=faces.jsonl"]
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config = compose("evaluate", [f"protocol={name}", *more], return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        job = instantiate(config.job, _convert_="all")
    read = {column for metric in job.protocol.metrics.values() for column in metric.columns}
    assert {column for one in job.naming.values() for column in one.names} & read
    for one in job.naming.values():
        assert one.prompt.startswith(job.plain[:10])
