"""What a run logs: losses by part and as a curve, throughput, and model FLOPs utilisation.

Model FLOPs utilisation is (FLOPs of a sample x samples per second) / (peak FLOP/s x processes). A
sample's FLOPs are 3 times those of the network's forward pass: a matrix product in it comes back
as two of the same size. What is recomputed under gradient checkpointing is work that the model
does not ask for, and is not counted; neither are the frozen encoders and the optimizer.
"""

import contextlib
import json
import math
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.tracking import get_available_trackers
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mmface.conditions import condition_kinds
from mmface.core.files import write_text
from mmface.training.task import TrainingTask

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_TIME_BUCKETS = 10


def time_buckets(uniform: Float[Tensor, " batch"]) -> dict[str, Bool[Tensor, " batch"]]:
    """Cut a batch into ten equal parts of [0, 1) by the draw that makes its times."""
    bucket = (uniform * NUM_TIME_BUCKETS).long().clamp(0, NUM_TIME_BUCKETS - 1)
    return {f"time_{i}": bucket == i for i in range(NUM_TIME_BUCKETS)}


def training_flops(network: nn.Module, inputs: Sequence[Tensor]) -> float:
    """FLOPs of a batch's forward and backward pass: three times the forward pass.

    On the meta device nothing is computed, and attention is counted, which a CPU's counter omits.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*inputs)
    return 3.0 * counter.get_total_flops()


def gradient_norms(task: TrainingTask, batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """Gradient norm of the mean loss of each subset in a micro-batch; a backward pass each.

    The parameters' own gradients are left alone.
    """
    trained = [p for p in task.trained.parameters() if p.requires_grad]
    losses = task(batch)["loss"]
    norms = {}
    for name, part in task.subsets(batch).items():
        if part.any():
            gradients = torch.autograd.grad(losses[part].mean(), trained, retain_graph=True)
            norms[name] = torch.nn.utils.get_total_norm(gradients)
    return norms


class LossMeter:
    """Means since the last log line, summed on the device without waiting for it."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}  # each (sum, count), float64

    def add(self, name: str, values: Tensor, part: Tensor | None = None) -> None:
        """Add values, or those of them that a boolean tensor picks."""
        values = values.detach().double().flatten()
        if part is None:
            part = torch.ones_like(values, dtype=torch.bool)
        picked = torch.where(part, values, 0.0)
        pair = torch.stack((picked.sum(), part.sum().double()))
        self.sums[name] = self.sums[name] + pair if name in self.sums else pair

    def merge(self, other: "LossMeter") -> None:
        """Add what another meter has seen."""
        for name, pair in other.sums.items():
            self.sums[name] = self.sums[name] + pair if name in self.sums else pair

    def state(self, gathered: Callable[[Any], Sequence[Any]]) -> dict[str, list[float]]:
        """Sum and count by name over all processes; `gathered` gives every process's object."""
        pairs = torch.stack(list(self.sums.values())).tolist() if self.sums else []
        totals: dict[str, list[float]] = {}
        for own in gathered(dict(zip(self.sums, pairs, strict=True))):
            for name, (total, count) in own.items():
                before = totals.get(name, [0.0, 0.0])
                totals[name] = [before[0] + total, before[1] + count]
        return totals

    def load(self, state: Mapping[str, Sequence[float]], device: torch.device) -> None:
        """Go on from what `state` gave; on one process alone, or it would count more than once."""
        self.sums = {
            name: torch.tensor(list(pair), dtype=torch.float64, device=device)
            for name, pair in state.items()
        }


def means(state: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The means of what a `LossMeter` summed, without those that saw nothing."""
    return {name: total / count for name, (total, count) in state.items() if count}


class Throughput:
    """Seconds and samples since the last log line."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Reset the counts and start the clock."""
        self._started = time.perf_counter()
        self._waited = 0.0
        self._samples = 0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as a wait for data."""
        started = time.perf_counter()
        yield
        self._waited += time.perf_counter() - started

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time inside, such as that of previews and checkpoints."""
        started = time.perf_counter()
        yield
        self._started += time.perf_counter() - started

    def add(self, num_samples: int) -> None:
        """Count the samples of a step, over all processes."""
        self._samples += num_samples

    def values(
        self, num_processes: int, flops: float | None, peak_flops: float | None
    ) -> dict[str, float]:
        """Samples a second, share of the time spent waiting for data, and `mfu`.

        `mfu` needs a sample's FLOPs and the peak FLOP/s of one process's device.
        """
        seconds = max(time.perf_counter() - self._started, 1e-9)
        rate = self._samples / seconds
        values = {"samples_per_second": rate, "data_wait_share": self._waited / seconds}
        if flops and peak_flops:
            values["mfu"] = flops * rate / (peak_flops * num_processes)
        return values


def peak_memory_gb(device: torch.device) -> float:
    """Most memory that was in use so far: the device's, or the process's own on a CPU, in GB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def installed_trackers(trackers: Sequence[str]) -> list[str] | None:
    """Refuse trackers that are not installed, which accelerate would silently leave out."""
    available = [str(tracker) for tracker in get_available_trackers()]
    missing = [name for name in trackers if name not in available]
    if missing:
        raise ValueError(
            f"trackers: {', '.join(missing)} is not installed (pip install {' '.join(missing)}); "
            f"there is {', '.join(available) or 'none'}. metrics.jsonl is written in any case."
        )
    return list(trackers) or None


class MetricsFile:
    """`metrics.jsonl`: one JSON object a line, each with its `step`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, step: int, values: Mapping[str, float]) -> None:
        """Add a line."""
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")

    def read(self) -> list[dict[str, float]]:
        """All complete lines; a kill may have torn the last."""
        if not self.path.exists():
            return []
        lines = self.path.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def forget_after(self, step: int) -> None:
        """Drop the lines after a step: a resumed run writes them again."""
        if self.path.exists():
            kept = [line for line in self.read() if line["step"] <= step]
            write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))


def smoothed(values: Sequence[float], weight: float) -> list[float]:
    """Exponential mean of the values so far, without a pull towards the first of them."""
    total, share, result = 0.0, 0.0, []
    for value in values:
        total = weight * total + (1 - weight) * value
        share = weight * share + (1 - weight)
        result.append(total / share)
    return result


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """The range of the values without the outermost outliers, so that a curve is not flattened."""
    ordered = sorted(values)
    high, low = ordered[int(0.995 * (len(ordered) - 1))], ordered[0]
    margin = 0.05 * (high - low) or max(abs(high), 1.0) * 0.05
    return low - margin, high + margin


def draw_loss_curve(lines: Sequence[Mapping[str, float]], title: str) -> "Figure | None":
    """Draw the losses in lines of `metrics.jsonl`, raw (the total) and smoothed.

    None if fewer than two lines hold a loss.
    """
    names = ["loss", *(f"loss/{kind.name}" for kind in condition_kinds())]
    curves = {
        name: [
            (line["step"], line[name]) for line in lines if math.isfinite(line.get(name, math.nan))
        ]
        for name in names
    }
    curves = {name: points for name, points in curves.items() if len(points) > 1}
    if "loss" not in curves:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5.4), layout="constrained")
    axes = figure.add_subplot(xlabel="step")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9")
    axes.plot(*zip(*curves["loss"], strict=True), color="0.8", linewidth=0.8)
    weight = 1 - 1 / max(1.0, len(curves["loss"]) / 40)
    for name, points in curves.items():
        steps, losses = zip(*points, strict=True)
        path = smoothed(losses, weight)
        colour = "0.15" if name == "loss" else f"C{names.index(name) - 1}"
        axes.plot(steps, path, color=colour, linewidth=2, label=f"{name} {path[-1]:.4g}")
    axes.set_xlim(curves["loss"][0][0], curves["loss"][-1][0])
    axes.set_ylim(*_limits([loss for _, loss in curves["loss"]]))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    figure.legend(
        loc="outside upper left",
        ncols=4,
        frameon=False,
        title=title,
        title_fontsize=13,
        alignment="left",
    )
    return figure


def save_loss_curve(lines: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draw the losses of a run into a PNG file, if there are enough of them."""
    figure = draw_loss_curve(lines, path.resolve().parent.name)
    if figure is not None:
        figure.savefig(path, dpi=120)
