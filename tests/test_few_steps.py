"""The comparison of students of few steps with their teacher."""

import json

import numpy as np
import pytest

from mmface.evaluation import publishing
from mmface.evaluation.few_steps import (
    COLOURS,
    STATISTICS,
    FewStepsEvaluation,
    as_table,
    compared,
    terms_of,
)
from mmface.evaluation.methods import PipelineMethod
from mmface.metrics.statistics import bootstrap


def row(shift=0.0, spread=1.0, faces=60):
    generator = np.random.default_rng(0)
    confusion = np.zeros((faces, 19 * 19))
    confusion[:, 0], confusion[:, 20], confusion[:, 1] = 50, 40, 10
    return {
        "confusion": confusion,
        "skin": 120 + spread * 40 * generator.standard_normal(faces),
        **{f"{name}_right": np.full(faces, 1) for name in COLOURS},
        **{f"{name}_asked": np.full(faces, 2) for name in COLOURS},
        "latents": generator.standard_normal((faces, 4, 2, 2)) + shift,
        "seeds": spread * (10 + generator.random(8)),
    }


def test_a_row_against_itself_differs_by_nothing():
    terms = terms_of(row(), row())
    assert terms.keys() == STATISTICS.keys()
    for column, values in terms.items():
        if column == "rmse":
            assert bootstrap(values, STATISTICS[column]).high == 0
            continue
        interval = compared(values, values, column)
        wanted = 1.0 if column in ("skin", "seeds") else 0.0
        assert interval.low == interval.estimate == interval.high == pytest.approx(wanted)


def test_an_average_picture_shows_where_masks_and_colours_do_not():
    own, reference = terms_of(row(0.3, 0.4), row()), terms_of(row(), row())
    for column in ("mean_iou", *COLOURS):
        assert compared(own[column], reference[column], column).estimate == pytest.approx(0)
    for column in ("skin", "seeds"):
        interval = compared(own[column], reference[column], column)
        assert interval.estimate == pytest.approx(0.4)
        assert interval.high < 0.5
    assert bootstrap(own["rmse"], STATISTICS["rmse"]).estimate == pytest.approx(0.3)
    skin = row()["skin"]
    assert bootstrap(own["skin"], STATISTICS["skin"]).estimate == pytest.approx(0.4 * skin.std())


@pytest.mark.slow
def test_rows_are_measured_once(tmp_path, monkeypatch):
    steps = {"teacher": (2, 3.0), "unguided": (1, 1.0)}
    methods = {
        name: PipelineMethod(name, "mmface/assets/tiny-flow", number, scale, solver="euler")
        for name, (number, scale) in steps.items()
    }
    job = FewStepsEvaluation(
        methods,
        "teacher",
        "mmface/assets/tiny-parser",
        "mmface/assets/tiny-clip",
        tmp_path,
        num_faces=3,
        num_seeds=2,
        num_seed_faces=2,
        modalities=("mask",),
    )
    report = job.report()
    stored = json.loads((tmp_path / "results.json").read_text())
    assert "| unguided | 1 |" in publishing.render(stored)
    assert "| unguided | 1 |" in report
    assert "| teacher | 4 |" in report
    monkeypatch.setattr(FewStepsEvaluation, "_sampled", None)
    assert job.report() == report
    with pytest.raises(ValueError, match="reference is one of teacher, unguided"):
        FewStepsEvaluation(methods, "x", "mmface/assets", "mmface/assets", tmp_path)
    assert "| - |" in as_table({"mask": {"nothing": {}}})
