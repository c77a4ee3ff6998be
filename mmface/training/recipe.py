"""The numbers of a training run: what is learnt, how often what is done, and on what machine."""

from dataclasses import dataclass

from mmface.core.command_line import check_whole


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
        if not 0 <= self.ema_decay < 1:
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


@dataclass(frozen=True)
class Hardware:
    """How the run uses the machine; it changes the weights by rounding at most.

    Attributes:
        mixed_precision: `no`, or `bf16` arithmetic over float32 weights.
        num_workers: loader processes.
        peak_flops: peak dense FLOP/s of one device in that precision, for the utilisation's log.
        average_on_cpu: keep the averaged weights in the CPU's memory.
    """

    mixed_precision: str = "no"
    num_workers: int = 0
    peak_flops: float | None = None
    average_on_cpu: bool = False

    def __post_init__(self) -> None:
        """Refuse fp16, whose loss scaling would hide what is not finite."""
        if self.mixed_precision not in ("no", "bf16"):
            raise ValueError(f"mixed_precision must be no or bf16, got {self.mixed_precision!r}.")
