"""The numbers of a training run: what is learnt, how often what is done, and on what machine."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmface.core.command_line import check_flag, check_number, check_whole, typed

CONFIG_KEYS = {
    "trainer.task": "task",
    "trainer.task.transformer": "model",
    "trainer.task.objective": "objective",
    "task.transformer": "model",
    "task.objective": "objective",
    "trainer.samples": "data",
    "trainer.optimizer": "optimizer",
    "trainer.schedule": "schedule",
}
"""Where configs/train.yaml has each part of a trainer typed."""


@dataclass(frozen=True)
class Recipe:
    """The numbers of a run.

    Attributes:
        total_steps: optimizer steps.
        global_batch_size: samples in one optimizer step, over all processes and micro-batches.
        micro_batch_size: samples in one forward pass of one process.
        gradient_clip: largest global gradient norm.
        ema_decay: decay of the averaged weights in one step, in [0, 1); early steps use
            (1 + n) / (10 + n) where that is smaller.
        ema_every: average every so many steps, with the decay of all of them.
        seed: seed of every draw.
        max_skipped_steps: non-finite steps in a row after which the run stops.
    """

    total_steps: int
    global_batch_size: int
    micro_batch_size: int
    gradient_clip: float = 0.5
    ema_decay: float = 0.9999
    ema_every: int = 1
    seed: int = 0
    max_skipped_steps: int = 20

    def __post_init__(self) -> None:
        """Raise ValueError for numbers that no run can have."""
        for name in ("total_steps", "global_batch_size", "micro_batch_size", "ema_every"):
            check_whole(name, getattr(self, name), 1)
        for name in ("seed", "max_skipped_steps"):
            check_whole(name, getattr(self, name), 0)
        for name in ("ema_decay", "gradient_clip"):
            check_number(name, getattr(self, name), 0)
        if not self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie in [0, 1), got {self.ema_decay}.")
        if not self.gradient_clip > 0:
            raise ValueError(f"gradient_clip must be above 0, got {self.gradient_clip}.")


@dataclass(frozen=True)
class Cadence:
    """How often the loop does what, in optimizer steps; 0 means never.

    Attributes:
        log_every: write the means since the last time to `metrics.jsonl` and the trackers.
        preview_every: draw preview pictures with the averaged weights, before the first step too.
        checkpoint_every: save a checkpoint (one is saved at the end and on a signal in any case).
        checkpoint_limit: how many checkpoints are kept.
        gradients_every: log the gradient norm of each part of a micro-batch (`subsets` of the
            task); a backward pass for each of them.
    """

    log_every: int = 20
    preview_every: int = 0
    checkpoint_every: int = 500
    checkpoint_limit: int = 2
    gradients_every: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError for what is no number of steps."""
        for name in ("log_every", "preview_every", "checkpoint_every", "gradients_every"):
            check_whole(name, getattr(self, name), 0)
        check_whole("checkpoint_limit", self.checkpoint_limit, 1)


@dataclass(frozen=True)
class Hardware:
    """How the run uses the machine; it changes the weights by rounding at most.

    Attributes:
        mixed_precision: `no`, or `bf16` arithmetic over float32 weights.
        num_workers: loader processes.
        peak_flops: peak dense FLOP/s of one device in that precision, for the utilisation's log.
        average_on_cpu: keep the averaged weights in the CPU's memory.
        timeout_s: seconds that the processes wait for one that does not answer, then they end.
            Longer than anything that one does alone: a preview, a checkpoint, the export.
    """

    mixed_precision: str = "no"
    num_workers: int = 0
    peak_flops: float | None = None
    average_on_cpu: bool = False
    timeout_s: float = 1800.0

    def __post_init__(self) -> None:
        """Refuse numbers out of range, and fp16, whose loss scaling would hide non-finite steps."""
        check_whole("num_workers", self.num_workers, 0)
        check_flag("average_on_cpu", self.average_on_cpu)
        check_number("timeout_s", self.timeout_s, 1, 1e8)
        if self.peak_flops is not None:
            check_number("peak_flops", self.peak_flops, 1)
        if self.mixed_precision not in ("no", "bf16"):
            raise ValueError(f"mixed_precision must be no or bf16, got {self.mixed_precision!r}.")


def flattened(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level of dotted names; lists stay whole."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        flat |= flattened(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat


def typed_name(setting: str) -> str:
    """A setting as it is typed on the command line."""
    return typed(f"trainer.{setting}", CONFIG_KEYS)


def check_numbers(settings: Mapping[str, Any]) -> None:
    """Refuse non-finite numbers, and negative ones of optimizer and schedule; libraries do not."""
    numbers = ("lr", "eps", "weight_decay")
    for name, value in settings.items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int | float) and not math.isfinite(number):
                raise ValueError(f"{typed_name(name)} must be finite, got {value}.")
        part, key, *inner = f"{name}.".split(".")
        if part in ("optimizer", "schedule") and (key in numbers or key.startswith("num_")):
            check_number(typed_name(f"{part}.{key}"), {inner[0]: value} if inner[0] else value, 0)
