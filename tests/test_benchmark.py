"""The benchmark: its arithmetic, its report, its families at the tiny size, its command line."""

import json
import math
import time
from pathlib import Path

import pytest
import torch
from script_runs import load_script

from mmface.benchmarks.attention import measure_attention
from mmface.benchmarks.counting import measure_counts
from mmface.benchmarks.measuring import (
    PAIRS,
    WARM_UPS,
    Report,
    flops,
    in_turn,
    line_of,
    relative_error,
    seconds,
    write_trace,
)
from mmface.benchmarks.network import fitted_exponent, measure_forward, share_of_peak
from mmface.benchmarks.reading import measure_encoding, measure_loading
from mmface.benchmarks.sampling import FEWER, Course, measure_fewer, measure_sampling
from mmface.benchmarks.subjects import SIZES, Bench, forward_flops, load_reference
from mmface.benchmarks.suite import FAMILIES, REFERENCE, cpu_kind, run_suite
from mmface.model.transformer import MMFaceDiT

CPU = torch.device("cpu")
SCRIPT = Path(__file__).parent.parent / "scripts" / "benchmark.py"


def spin(duration: float) -> None:
    end = time.process_time() + duration
    while time.process_time() < end:
        pass


def test_pairs_are_measured_in_turn_after_warm_ups():
    calls = []

    def work(name, duration):
        calls.append(name)
        spin(duration)

    values = in_turn(lambda: work("reference", 0.004), lambda: work("own", 0.001), CPU)
    assert values["pairs"] >= PAIRS
    assert calls == ["reference", "own"] * (WARM_UPS + int(values["pairs"]))
    assert values["reference_ms"] == pytest.approx(4, rel=0.5)
    assert values["ratio_low"] <= values["ratio"] <= values["ratio_high"]
    assert 2 < values["ratio"] < 8


def test_a_long_measurement_ends_after_three_pairs():
    assert in_turn(lambda: None, lambda: spin(0.002), CPU, limit_s=0.001)["pairs"] == 3


def test_process_time_leaves_out_waiting():
    assert seconds(lambda: time.sleep(0.05), CPU) < 0.02


def test_flops_and_shares():
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    assert flops(lambda: a @ b) == 2 * 3 * 5 * 7
    bench = Bench(SIZES["tiny"], CPU, load_reference(REFERENCE), Report(None, {}))
    times = {"own_ms": 1.0, "reference_ms": 2.0}
    assert share_of_peak(bench, 1e6, times) == {"tflops": 1e-3}
    bench.peak_flops = {torch.float32: 4e9, torch.bfloat16: 8e9}
    assert share_of_peak(bench, 1e6, times) == {
        "tflops": 1e-3,
        "of_float32_peak": 0.25,
        "of_bfloat16_peak": 0.125,
        "reference_of_float32_peak": 0.125,
    }


def test_fitted_exponent_and_relative_error():
    assert fitted_exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2)
    assert relative_error(torch.tensor([1.0, 4.5]), torch.tensor([1.0, -4.0])) == 8.5 / 4
    assert math.isnan(relative_error(torch.tensor([1.0, torch.nan]), torch.ones(2)))


@pytest.mark.slow
def test_a_failed_measurement_is_recorded_with_its_reason_and_the_rest_goes_on(tmp_path):
    path = tmp_path / "deep" / "report.json"
    report = Report(path, {"device": "cpu"})

    def fail():
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    report.measure("forward", "large", fail)
    on_disk = json.loads(path.read_text())
    assert on_disk["device"] == "cpu"
    assert on_disk["measurements"][0]["failed"] == (
        "OutOfMemoryError: CUDA out of memory. Tried to allocate"
    )
    report.measure("forward", "small", lambda: {"own_ms": 1.5})
    assert [r["case"] for r in json.loads(path.read_text())["measurements"]] == ["large", "small"]
    report.attempt("train", fail)
    assert report.records[-1]["case"] == "setting up"
    assert list(path.parent.iterdir()) == [path]
    assert "own_ms 1.5" in report.table()
    assert "Tried to allocate" in report.table()


@pytest.mark.slow
def test_what_the_time_does_not_allow_is_left_out_and_said_to_be():
    report = Report(None, {}, limit_s=-1)
    report.measure("train", "case", lambda: pytest.fail("must not run"))
    assert "left out" in report.records[0]["failed"]


def test_line_of_a_ratio_shows_its_spread():
    record = {"family": "f", "case": "c", "ratio": 2.0, "ratio_low": 1.5, "ratio_high": 2.5}
    assert "2.00x (1.50 to 2.50)" in line_of(record)


def test_trace_is_written(tmp_path):
    write_trace(lambda: torch.ones(4) @ torch.ones(4), tmp_path / "a" / "dot.json", CPU)
    events = json.loads((tmp_path / "a" / "dot.json").read_text())["traceEvents"]
    assert any("aten::dot" in event.get("name", "") for event in events)


def test_sizes_fit_the_model_and_paper_is_the_published_one():
    for size in SIZES.values():
        with torch.device("meta"):
            model = MMFaceDiT(**size.model)
        assert all(side % model.config.patch_size == 0 for side in size.sides)
    assert sum(p.numel() for p in model.parameters()) == 1_345_298_624


@pytest.mark.slow
@pytest.mark.parametrize(
    ("measure", "limit"),
    [
        (measure_loading, 0.0),
        (measure_encoding, 1e-5),
        (measure_sampling, 1e-4),
        (measure_attention, 1e-5),
    ],
    ids=["data", "encode", "sample", "attention"],
)
def test_families_agree_with_the_reference(measure, limit, monkeypatch):
    # The compiled ways need a process without this suite's type-checking hook.
    monkeypatch.setattr(
        "mmface.benchmarks.sampling.ways_of_running", lambda bench: {"eager": lambda model: model}
    )
    monkeypatch.setattr("mmface.benchmarks.measuring.PAIRS", 2)
    monkeypatch.setattr("mmface.benchmarks.measuring.MOST_PAIRS", 2)
    monkeypatch.setattr("mmface.benchmarks.measuring.WARM_UPS", 0)
    report = Report(None, {})
    measure(Bench(SIZES["tiny"], CPU, load_reference(REFERENCE), report))
    assert report.records
    for record in report.records:
        assert "failed" not in record, record
        assert record["relative_error"] <= limit
        assert record["ratio"] > 0


@pytest.mark.slow
def test_fewer_predictions_stand_beside_fifty_steps_of_the_reference(monkeypatch):
    courses = (Course("euler", 4), Course("euler", 4, (0.0, 0.5)))
    monkeypatch.setattr("mmface.benchmarks.sampling.FEWER", courses)
    monkeypatch.setattr("mmface.benchmarks.measuring.PAIRS", 3)
    monkeypatch.setattr("mmface.benchmarks.measuring.MOST_PAIRS", 3)
    monkeypatch.setattr("mmface.benchmarks.measuring.WARM_UPS", 0)

    def slowed(reference, own, device):
        def slow():
            reference()
            spin(0.02)

        return in_turn(slow, own, device)

    monkeypatch.setattr("mmface.benchmarks.sampling.in_turn", slowed)
    report = Report(None, {})
    bench = Bench(SIZES["tiny"], CPU, load_reference(REFERENCE), report)
    measure_fewer(bench)
    assert [record["case"] for record in report.records] == [
        "1 picture, euler 4, guided 0-1",
        "1 picture, euler 4, guided 0-0.5",
        "2 pictures, euler 4, guided 0-1",
        "2 pictures, euler 4, guided 0-0.5",
    ]
    for record in report.records:
        assert "failed" not in record, record
        assert "relative_error" not in record
        # 20 ms and more for 2 steps of a picture are 500 ms and more for 50 of it.
        num = int(record["case"][0])
        assert record["reference_ms"] > num * 500
        assert record["ratio"] == pytest.approx(record["reference_ms"] / record["own_ms"], rel=0.5)
    assert FEWER[0].steps == 50


@pytest.mark.slow
def test_counts_are_of_no_device(monkeypatch):
    report = Report(None, {})
    bench = Bench(SIZES["tiny"], CPU, load_reference(REFERENCE), report)
    monkeypatch.setattr("mmface.benchmarks.counting.count_compilation", lambda *_: {})
    monkeypatch.setattr(bench, "compare", lambda *_: {})
    measure_counts(bench)
    counts = {record["case"]: record for record in report.records}
    operators = counts["28 blocks, operators"]
    assert (operators["own_operators"], operators["fused_operators"]) == (2521, 2468)
    model = bench.models[0]
    assert forward_flops(model, 8, 2) == 2 * forward_flops(model, 8, 1)
    tokens, width = 4 * 4, SIZES["tiny"].model["hidden_size"]
    assert forward_flops(model, 8, 1) > 3 * 24 * width**2 * tokens  # the image's linears alone


@pytest.mark.slow
def test_forward_of_what_cannot_be_compiled_is_reported_beside_what_can_run(monkeypatch):
    def no_compiler(model):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(
        "mmface.benchmarks.network.ways_of_running",
        lambda bench: {"eager": lambda model: model, "compiled": no_compiler},
    )
    monkeypatch.setattr("mmface.benchmarks.measuring.PAIRS", 2)
    monkeypatch.setattr("mmface.benchmarks.measuring.MOST_PAIRS", 2)
    report = Report(None, {})
    measure_forward(Bench(SIZES["tiny"], CPU, load_reference(REFERENCE), report))
    assert [record.get("failed") for record in report.records] == [
        None,
        "RuntimeError: no C++ compiler",
        None,  # diffusers' transformer
    ] * len(SIZES["tiny"].batches)
    assert report.records[0]["relative_error"] < 1e-5


def test_only_some_cases_are_measured():
    report = Report(None, {}, only="eager|SD3")
    for case in ("batch 1 eager", "batch 1 fused", "batch 1, SD3"):
        report.measure("forward", case, dict)
    report.measure("ceiling", "product", dict)
    assert [one["case"] for one in report.records] == ["batch 1 eager", "batch 1, SD3", "product"]


def test_a_processor_is_named_by_family_and_model(tmp_path):
    told = tmp_path / "cpuinfo"
    told.write_text("cpu family\t: 26\nmodel\t\t: 2\nmodel name\t: AMD EPYC\n\ncpu family\t: 1\n")
    assert cpu_kind(told) == "AMD EPYC, family 26, model 2"
    told.write_text("Hardware : board\n")
    assert cpu_kind(told)
    assert cpu_kind(tmp_path / "none")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"families": ["speed"]}, "no family 'speed'; choose one of phases"),
        ({"size": "huge"}, "no size 'huge'"),
        ({"device": "tpu"}, "no device 'tpu'"),
    ],
)
def test_unknown_names_are_refused(change, message):
    settings = {"families": ["count"], "size": "tiny", "device": "cpu", "out": None} | change
    with pytest.raises(ValueError, match=message):
        run_suite(**settings)


def test_missing_reference_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="plain reference that lies in tests/"):
        load_reference(tmp_path / "plain_reference.py")


@pytest.mark.slow
def test_command_line(tmp_path, capsys):
    run_script = load_script("benchmark")
    out = tmp_path / "data.json"
    assert run_script(["data", "--size", "tiny", "--only", "loading,", "--out", str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(out)
    families = [record["family"] for record in json.loads(out.read_text())["measurements"]]
    assert families == ["ceiling"] * 4 + ["data"]
    assert set(families[4:]) <= set(FAMILIES)
    assert run_script(["nothing"]) == 2
    assert "error: There is no family 'nothing'" in capsys.readouterr().err
