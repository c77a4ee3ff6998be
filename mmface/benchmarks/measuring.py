"""How things are measured: pairs in turn, medians of ratios, and a report that is always on disk.

A figure is a ratio: the plain reference's time over ours, both measured in turn in one process, so
that other load falls on both. On a CPU the process's own time counts, which other programs do not
lengthen; on a GPU the time between two CUDA events. A measurement is given by the median over its
pairs and the two quartiles of the ratio.
"""

import gc
import json
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from mmface.core.files import write_text

Work = Callable[[], Any]

WARM_UPS = 2
PAIRS = 7
MOST_PAIRS = 41
FEWEST_PAIRS = 3
NARROW = 0.05
"""Quartiles of a ratio so near to each other, as a share of it, end a measurement."""


def relative_error(actual: Shaped[Tensor, "*shape"], expected: Shaped[Tensor, "*shape"]) -> float:
    """Largest difference over the largest expected number; NaN if anything is NaN."""
    actual, expected = actual.detach().double(), expected.detach().double()
    return float((actual - expected).abs().max() / expected.abs().max())


def seconds(work: Work, device: torch.device) -> float:
    """Time one call: process CPU time, or the time between two events of the GPU's stream."""
    if device.type != "cuda":
        started = time.process_time()
        work()
        return time.process_time() - started
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record()
    work()
    after.record()
    after.synchronize()
    return before.elapsed_time(after) / 1e3


def peak_gigabytes(work: Work) -> float:
    """Largest memory, in 1e9 bytes, that tensors took on the GPU during one call."""
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 1e9


def in_turn(
    reference: Work, own: Work, device: torch.device, limit_s: float = 12.0
) -> dict[str, float]:
    """Time two pieces of work in turn, after two warm-ups, or one if it takes long.

    Gives medians `reference_ms` and `own_ms`; `ratio`, the median of the pairs' ratios, with its
    quartiles; `pairs`, their number; on a GPU the peak memory of each. Pairs go on until the
    quartiles are within 5 %, seven at least. No new pair is begun after `limit_s`, unless there are
    fewer than three yet.
    """
    memory = {}
    for _ in range(WARM_UPS):
        if seconds(reference, device) + seconds(own, device) > limit_s / 5:
            break
    if device.type == "cuda":
        memory = {"reference_gb": peak_gigabytes(reference), "own_gb": peak_gigabytes(own)}
    pairs: list[tuple[float, float]] = []
    low = ratio = high = 0.0
    while len(pairs) < PAIRS or (len(pairs) < MOST_PAIRS and high - low > NARROW * ratio):
        if len(pairs) >= FEWEST_PAIRS and sum(map(sum, pairs)) > limit_s:
            break
        pairs.append((seconds(reference, device), seconds(own, device)))
        if len(pairs) > 1:
            ratios = (a / b for a, b in pairs)
            low, ratio, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return {
        "reference_ms": 1e3 * statistics.median(a for a, _ in pairs),
        "own_ms": 1e3 * statistics.median(b for _, b in pairs),
        "ratio": ratio,
        "ratio_low": low,
        "ratio_high": high,
        "pairs": len(pairs),
        **memory,
    }


def flops(work: Work) -> int:
    """Count the FLOPs of one call, 2 a multiply-add."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def write_trace(work: Work, path: Path, device: torch.device) -> None:
    """Write what the profiler sees of one call, for chrome://tracing or Perfetto."""
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    path.parent.mkdir(parents=True, exist_ok=True)
    with profile(activities=activities) as profiler:
        work()
    profiler.export_chrome_trace(str(path))


@dataclass
class Report:
    """Measurements, written to `path` (None for memory alone) after each of them.

    `facts` are of the whole run: versions, device, sizes. After `limit_s` seconds, measurements are
    left out and recorded as such; so that some can be had at once, those whose case `only` does not
    match are left out silently. A record has `family`, `case`, and its values or the reason why
    it `failed`.
    """

    path: Path | None
    facts: Mapping[str, Any]
    limit_s: float = float("inf")
    only: str = ""
    records: list[dict[str, Any]] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def measure(self, family: str, case: str, make: Callable[[], Mapping[str, Any]]) -> None:
        """Run one measurement; whatever `make` raises is its record, and the rest goes on."""
        if family != "ceiling" and not re.search(self.only, case):
            return
        began = time.monotonic()
        if began - self.started > self.limit_s:
            values: Mapping[str, Any] = {"failed": f"left out, {self.limit_s:.0f} s were over"}
        else:
            try:
                values = make()
            except Exception as error:  # out of memory, no compiler, an unfit driver, ...
                line = " ".join(str(error).split())[:300]
                values = {"failed": f"{type(error).__name__}: {line}"}
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        took = time.monotonic() - began
        self.records.append({"family": family, "case": case, **values, "took_s": round(took, 2)})
        print(line_of(self.records[-1]), file=sys.stderr, flush=True)
        self.write()

    def attempt(self, family: str, run: Callable[[], None]) -> None:
        """Run a whole family; if it cannot even be set up, that is its only record."""
        try:
            run()
        except Exception as error:
            reason = error  # the name ends with its clause

            def tell() -> Mapping[str, Any]:
                raise reason

            self.measure(family, "setting up", tell)

    def write(self) -> None:
        """Write the JSON file, complete or not at all."""
        if self.path is not None:
            whole = {**self.facts, "measurements": self.records}
            write_text(self.path, json.dumps(whole, indent=1) + "\n")

    def table(self) -> str:
        """All measurements, one a line."""
        return "\n".join(line_of(record) for record in self.records)


def line_of(record: Mapping[str, Any]) -> str:
    """One measurement as a line of a table."""
    head = f"{record['family']:<9} {record['case']:<42}"
    if "failed" in record:
        return f"{head} {record['failed']}"
    values = {k: v for k, v in record.items() if k not in ("family", "case", "took_s")}
    parts = []
    if "ratio" in values:
        low, high = values.pop("ratio_low"), values.pop("ratio_high")
        parts.append(f"{values.pop('ratio'):6.2f}x ({low:.2f} to {high:.2f})")
    for name, value in values.items():
        parts.append(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}")
    return f"{head} {'  '.join(parts)}"
