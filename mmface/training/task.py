"""The interface between the trainer and what it trains: losses, previews, a product."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mmface.data.keyed import Samples
from mmface.training.optimization import num_bytes


@dataclass(frozen=True)
class RunFacts:
    """What a model card says of a finished run.

    Attributes:
        steps: optimizer steps made.
        global_batch_size: samples in one step.
        num_items: items in the training set.
        settings: every setting of the run by its dotted name, as far as they were given.
        versions: versions of Python and of the libraries by name.
        final: the last values of `metrics.jsonl`.
    """

    steps: int
    global_batch_size: int
    num_items: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    final: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Companions:
    """Networks like the trained one that a task has beside it, for plans and counts of FLOPs.

    Attributes:
        frozen: bytes a weight of each frozen network by its name.
        trained: further networks under training.
        forwards: passes of a sample through a network without a gradient.
        is_adapter: whether the network is frozen but for an adapter, which alone is saved.
        base_bits: bits of a weight in that network's linear layers; None as they are.
    """

    frozen: Mapping[str, int] = field(default_factory=dict)
    trained: int = 0
    forwards: float = 0.0
    is_adapter: bool = False
    base_bits: int | None = None

    @property
    def passes(self) -> float:
        """The work of a step, as a multiple of the trained network's forward and backward pass."""
        own = 2 / 3 if self.is_adapter else 1  # no gradient of the weights
        return own + self.trained + self.forwards / 3


class TrainingTask(nn.Module, ABC):
    """A module under training: `forward(batch)` gives named per-sample losses.

    The trainer wraps and calls the task itself.

    Attributes:
        trained: the nn.Module whose weights are trained and checkpointed. Everything else in the
            task is frozen and stays in eval mode; it may have `trained` inside, as a frozen
            network has its adapter.
    """

    trained: Any

    rates: Mapping[str, float] = {}
    """Factors of the learning rate by the name of a child of `trained`."""

    @classmethod
    def planned(cls, network: Any, settings: Mapping[str, Any]) -> Companions:
        """What a plan adds to a network on the meta device; the task's settings are plain values.

        It may change which weights of the network are trained.
        """
        return Companions()

    @property
    def product(self) -> Any:
        """The nn.Module that is averaged, shown and exported: `trained`, or a part of it."""
        return self.trained

    def check_samples(self, samples: Samples) -> None:
        """Refuse samples that the task is not for, with a ValueError; the default takes all."""

    def initialize(self) -> None:
        """Give a new run its first weights; a resumed run does not call it."""

    @abstractmethod
    def forward(self, batch: Mapping[str, Any]) -> dict[str, Float[Tensor, " batch"]]:
        """Per-sample losses, float32 and unreduced; the one named `loss` is minimised.

        Its terms go along as `loss/<name>`, see `objectives.losses.summed`. Under
        `SeparateStreams`, the batch holds one of each stream, and `loss` all their samples.
        """

    def subsets(self, batch: Mapping[str, Any]) -> dict[str, Bool[Tensor, " batch"]]:
        """Named parts of a batch whose mean loss is logged; the same names for every batch."""
        return {}

    def flops_per_sample(self, batch: Mapping[str, Any]) -> float | None:
        """FLOPs of one sample's forward and backward pass, or None if they are not counted."""
        return None

    def preview(self, product: Any, folder: Path, step: int) -> None:
        """Write pictures of what a copy of the product does; the default has nothing to show."""

    def check_export(self, product: Any) -> None:
        """Raise now what `export` would raise after the last step; the default finds nothing."""

    @abstractmethod
    def export(self, product: Any, folder: Path) -> None:
        """Write a copy of the product, with its averaged weights, into a folder."""

    @property
    def exported_bytes(self) -> int:
        """About how much `export` writes."""
        return num_bytes(self)

    def usage(self, folder: Path) -> str | None:
        """A command that uses the product in a folder; the default knows none."""
        return None

    def describe(self, folder: Path, facts: RunFacts) -> None:
        """Add a model card to the product in a folder; the default adds none."""

    def publish(self, folder: Path) -> None:
        """Hand the complete product on, once it lies in its folder; the default does not."""

    def train(self, mode: bool = True) -> "TrainingTask":
        """Put the trained module into training mode, and everything else into eval mode."""
        super().train(False)
        self.trained.train(mode)
        self.training = mode
        return self


def export_dtype_named(name: str) -> torch.dtype:
    """The floating-point dtype of torch with this name; ValueError if there is none."""
    return _dtype_named("export_dtype", name)


def frozen_dtype_named(name: str) -> torch.dtype:
    """The same for what is not trained."""
    return _dtype_named("frozen_dtype", name)


def _dtype_named(setting: str, name: str) -> torch.dtype:
    dtype = getattr(torch, str(name), None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"{setting} must be float32, float16 or bfloat16, got {name!r}.")
    return dtype


def cast_copy(module: Any, dtype: torch.dtype) -> Any:
    """A copy of an nn.Module in another dtype; the run's own weights keep their precision."""
    # torch's own `to`, because diffusers' warns of modules to keep in float32 even without any.
    return nn.Module.to(copy.deepcopy(module), dtype)
