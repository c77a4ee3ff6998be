"""The tables in the READMEs of rooms are those that their stored results give."""

import json
import re
from typing import Any

import pytest

from mmface.benchmarks import publishing as benchmarks
from mmface.core.published import filled, markdown_table, publish
from mmface.evaluation import publishing as evaluation

SECTION = "before\n<!-- results: a -->\nold\n<!-- end -->\nafter\n"


@pytest.mark.parametrize("module", [benchmarks, evaluation], ids=["benchmarks", "evaluation"])
def test_a_readme_holds_what_its_stored_results_give(module):
    assert module.readme() == (module.ROOM / "README.md").read_text(encoding="utf-8")


def test_publishing_writes_a_section_and_nothing_else(tmp_path):
    (tmp_path / "README.md").write_text(SECTION)
    path = publish(tmp_path, {"a": {"x": 1}}, lambda content: f"x is {content['x']}")
    assert path.read_text() == SECTION.replace("old", "x is 1")
    assert json.loads((tmp_path / "results/a.json").read_text()) == {"x": 1}
    assert filled(tmp_path, str) == SECTION.replace("old", "{'x': 1}")


def test_a_result_without_a_section_is_refused_by_its_name(tmp_path):
    (tmp_path / "README.md").write_text(SECTION)
    with pytest.raises(ValueError, match=r"has not both a section and a result of b$"):
        publish(tmp_path, {"a": {}, "b": {}}, str)
    (tmp_path / "results/a.json").unlink()
    (tmp_path / "results/b.json").unlink()
    with pytest.raises(ValueError, match=r"a section and a result of a$"):
        filled(tmp_path, str)


def measured(value, **more):
    return {"value": value, "low": None, "high": None, "spread": None} | more


def test_a_table_shows_measured_rows_controls_and_notes(tmp_path):
    fid, iou = {"fid": {"measured": measured(1.234)}}, measured(78.1, low=77.0, high=79.5)
    rows = [
        {"method": "ours", "cells": fid | {"mean_iou": {"measured": iou}}},
        {"method": "CD", "cells": {"fid": {"published": 49.0, "measured": None}}},
    ]
    (tmp_path / "table.json").write_text(json.dumps({"rows": rows, "footer": ["N = 2", "LLM: -"]}))
    controls = {"rows": [{"method": "real", "cells": fid}], "footer": ["N = 2", "half"]}
    (tmp_path / "controls.json").write_text(json.dumps(controls))
    assert evaluation.render(evaluation.read_run(tmp_path)) == "\n".join(
        [
            "|  | FID ↓ | mIoU ↑ |",
            "| --- | --- | --- |",
            "| ours | 1.23 | 78.10 ± 1.25 |",
            "| real | 1.23 |  |",
            "",
            "- N = 2",
            "- half",
        ]
    )


def test_a_report_shows_ratios_with_their_quartiles_and_what_failed():
    timed = {"ratio": 1.5, "ratio_low": 1.4, "ratio_high": 1.6, "reference_ms": 3.0, "own_ms": 2.0}
    report: dict[str, Any] = {
        "torch": "2.14",
        "notes": ["in turn"],
        "measurements": [
            {"family": "forward", "case": "1 sample", "pairs": 7, "of_float32_peak": 0.253} | timed,
            {"family": "forward", "case": "2 samples", "failed": "out of memory"},
        ],
    }
    table, others, notes = benchmarks.render(report).split("\n\n")
    assert table.splitlines()[0].endswith("| ms | share of float32 products |")
    assert table.splitlines()[2:] == [
        "| forward, 1 sample | 1.50× (1.40 to 1.60) | 3 to 2, 7 pairs | 25 % |",
    ]
    assert others.splitlines()[2:] == ["| forward | 2 samples | out of memory |"]
    assert notes == "- in turn\n- torch 2.14"
    del report["measurements"][0]
    assert "in turn" not in benchmarks.render(report)
    assert markdown_table(["a"], [["b"]]) == "| a |\n| --- |\n| b |"


def test_every_table_of_results_lies_in_a_section():
    text = (evaluation.ROOM / "README.md").read_text(encoding="utf-8")
    outside = re.sub(r"<!-- results: \S+ -->.*?<!-- end -->", "", text, flags=re.DOTALL)
    assert not [line for line in outside.splitlines() if line.startswith("|")]


def test_a_recorded_table_is_shown_as_it_was_written_down():
    content = {"recorded": "by hand", "headings": ["a"], "rows": [["1.50"]], "notes": ["N = 2"]}
    assert evaluation.render(content) == "| a |\n| --- |\n| 1.50 |\n\n- by hand\n- N = 2"


def test_a_drift_is_read_from_its_folder(tmp_path):
    (tmp_path / "drift.json").write_text(json.dumps({"tables": {}, "notes": ["N"], "versions": {}}))
    assert evaluation.render(evaluation.read_run(tmp_path)).startswith("- N")
