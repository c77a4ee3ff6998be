"""What a run logs: exact means over parts, counted FLOPs, and a readable curve."""

import json
import math

import numpy as np
import pytest
import torch
from conftest import build_transformer
from PIL import Image
from training_runs import FaceSamples, face_task

from mmface.data.keyed import keyed_generator
from mmface.model.transformer import MMFaceDiT
from mmface.training.metering import (
    LossMeter,
    MetricsFile,
    Throughput,
    draw_loss_curve,
    gradient_norms,
    means,
    save_loss_curve,
    smoothed,
    time_buckets,
    training_flops,
)


def test_time_buckets_part_a_batch():
    uniform = torch.tensor([0.0, 0.05, 0.1, 0.95, 0.9999999])
    buckets = time_buckets(uniform)
    assert list(buckets) == [f"time_{i}" for i in range(10)]
    assert torch.stack(list(buckets.values())).sum(0).tolist() == [1] * 5
    assert buckets["time_0"].tolist() == [True, True, False, False, False]
    assert buckets["time_9"].tolist() == [False, False, False, True, True]


def test_meter_gives_means_over_all_samples_and_passes_over_empty_parts():
    meter = LossMeter()
    meter.add("loss", torch.tensor([1.0, 2.0]), torch.tensor([True, True]))
    meter.add("loss", torch.tensor([6.0]))
    meter.add("part", torch.tensor([5.0, float("nan")]), torch.tensor([True, False]))
    meter.add("empty", torch.tensor([5.0]), torch.tensor([False]))
    state = meter.state(lambda pairs: [pairs, {}, pairs])  # two processes that saw the same
    assert means(state) == {"loss": 3.0, "part": 5.0}
    other = LossMeter()
    other.load(json.loads(json.dumps(meter.state(lambda pairs: [pairs]))), torch.device("cpu"))
    other.merge(meter)
    assert means(other.state(lambda pairs: [pairs])) == {"loss": 3.0, "part": 5.0}


def test_flops_are_three_forward_passes_and_match_the_closed_form():
    """24 D^2 S + 4 S^2 D a block, 24 D^2 for its modulation, without the last text update."""
    with torch.device("meta"):
        model = MMFaceDiT(hidden_size=64, depth=3, num_heads=4, text_dim=32)
        latents, text = torch.empty(1, 16, 8, 8), torch.empty(1, 5, 32)
        inputs = (latents, latents, torch.empty(1), text, text[:, 0], torch.zeros(1).long())
    width, depth, num_image, num_text = 64, 3, 16, 5
    total = num_image + num_text
    linears = depth * 24 * width**2 * total - num_text * width**2 * (2 + 16)
    attention = depth * 4 * total**2 * width - 4 * num_text * total * width
    modulation = depth * 24 * width**2 + 4 * width**2
    embedders = 2 * width * (32 * 4 * num_image + 32 * num_text + 256 + width + 32)
    final = 2 * width * 64 * num_image
    expected = 3 * (linears + attention + modulation + embedders + final)
    assert training_flops(model, inputs) == expected


@pytest.mark.slow
def test_the_papers_model_takes_0_94_tflop_a_sample_at_256_pixels():
    with torch.device("meta"):
        model = MMFaceDiT()
        latents, text = torch.empty(1, 16, 32, 32), torch.empty(1, 77, 1024)
        inputs = (latents, latents, torch.empty(1), text, text[:, 0], torch.zeros(1).long())
    assert training_flops(model, inputs) == pytest.approx(0.93e12, rel=0.02)


def test_gradient_norms_of_parts_are_those_of_their_mean_losses(tiny_pipeline_folder):
    task = face_task(tiny_pipeline_folder)
    samples = FaceSamples()
    drawn = [samples.sample(i, keyed_generator(0, i)) for i in range(6)]
    batch = torch.utils.data.default_collate(drawn)
    norms = gradient_norms(task, batch)
    trained = [p for p in task.trained.parameters() if p.requires_grad]
    assert all(p.grad is None for p in trained)
    for name, kind in (("mask", 0), ("sketch", 1)):
        part = batch["modality"] == kind
        chosen = {
            key: value[part]
            if isinstance(value, torch.Tensor)
            else [text for text, taken in zip(value, part, strict=True) if taken]
            for key, value in batch.items()
        }
        task.zero_grad()
        task(chosen)["loss"].mean().backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in trained])
        torch.testing.assert_close(norms[name], norm, rtol=1e-4, atol=0)


def test_flops_of_a_task_are_those_of_its_network(tiny_pipeline_folder):
    task = face_task(tiny_pipeline_folder)
    batch = torch.utils.data.default_collate([FaceSamples().sample(0, keyed_generator(0))])
    tokens = torch.zeros(1, task.text.max_length, 12)
    inputs = (batch["latents"], batch["condition"], batch["uniform"], tokens, tokens[:, 0])
    counted = training_flops(build_transformer(), (*inputs, batch["modality"]))
    # torch's counter passes over the CPU's own fused attention: 4 S^2 D, the last block's without
    # the text's queries.
    attention = 4 * 20 * 20 * 16 + 4 * 4 * 20 * 16
    assert task.flops_per_sample(batch) == counted + 3 * attention


def test_utilisation_is_flops_per_second_over_the_peak(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    throughput = Throughput()
    with throughput.waiting():
        now[0] += 1
    now[0] += 3
    with throughput.paused():
        now[0] += 100
    throughput.add(8)
    values = throughput.values(num_processes=2, flops=10.0, peak_flops=20.0)
    assert values == {"samples_per_second": 2.0, "data_wait_share": 0.25, "mfu": 0.5}
    assert "mfu" not in throughput.values(1, None, 20.0)


def test_metrics_file_forgets_what_was_not_saved(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    assert metrics.read() == []
    for step in (1, 2, 3):
        metrics.append(step, {"loss": 1 / step})
    with metrics.path.open("a") as file:
        file.write('{"step": 4, "lo')
    metrics.forget_after(2)
    assert [line["step"] for line in metrics.read()] == [1, 2]


def curve_lines(steps=300):
    return [
        {"step": s, "loss": 1 + math.exp(-s / 60) + 0.1 * math.sin(s), "loss/mask": 1.2}
        for s in range(1, steps)
    ]


def test_loss_curve_falls_from_left_to_right(tmp_path):
    figure = draw_loss_curve(curve_lines(), "a run")
    assert figure
    (axes,), (legend,) = figure.axes, figure.legends
    raw, smooth, mask = axes.get_lines()
    np.testing.assert_allclose(
        np.asarray(raw.get_xydata()), [(x["step"], x["loss"]) for x in curve_lines()]
    )
    falling = np.asarray(smooth.get_ydata())
    low, high = axes.get_ylim()
    assert falling[5] - falling[-1] > 0.4 * (high - low)
    assert low < falling.min() < falling[5] < high
    assert mask.get_ydata() == pytest.approx(1.2)
    assert [text.get_text().split()[0] for text in legend.get_texts()] == ["loss", "loss/mask"]
    assert legend.get_title().get_text() == "a run"
    save_loss_curve(curve_lines(), tmp_path / "loss.png")
    grey = np.asarray(Image.open(tmp_path / "loss.png").convert("L"))
    assert (grey < 60).sum(0)[100:-20].min() > 0  # the smoothed curve goes all the way
    assert draw_loss_curve(curve_lines(2), "one line") is None
    save_loss_curve([{"step": 1, "loss": 2.0}, {"step": 2, "loss": 2.0}], tmp_path / "flat.png")
    assert (tmp_path / "flat.png").exists()


def test_smoothing_is_not_pulled_to_the_first_value():
    assert smoothed([2.0, 2.0, 2.0], 0.9) == pytest.approx([2.0, 2.0, 2.0])
    assert smoothed([0.0, 1.0], 0.5) == pytest.approx([0.0, 2 / 3])
