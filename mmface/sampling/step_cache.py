"""Step caches: diffusers' ways to skip blocks at some steps, set up for this network.

What the blocks add to the image tokens changes little from step to step, so a cache can reuse it.
It decides for a whole batch: with a cache a picture depends slightly on its batch, without one on
its seed alone. Caches are therefore off by default.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from diffusers import FirstBlockCacheConfig, MagCacheConfig, TaylorSeerCacheConfig
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from torch import Tensor, nn

from mmface.core.command_line import check_number, check_whole
from mmface.model.ablations import CrossAttentionBlock
from mmface.model.transformer import Block, FinalBlock, MMFaceDiT

for _kind in (Block, FinalBlock, CrossAttentionBlock):
    TransformerBlockRegistry.register(
        _kind,
        TransformerBlockMetadata(
            return_hidden_states_index=0,
            return_encoder_hidden_states_index=1,
            # The hooks look up arguments by diffusers' names; our blocks have other names.
            _cached_parameter_indices={"hidden_states": 0, "encoder_hidden_states": 1},
        ),
    )


class ComputedBlocks:
    """Counts the rows that a network's blocks compute; skipped blocks do not count."""

    def __init__(self, transformer: MMFaceDiT) -> None:
        blocks = transformer.blocks
        self._rows, self._depth = 0, len(blocks)
        # Not on the block itself, which is called even if a cache skips its computation.
        linears = [block.get_submodule("image.qkv") for block in blocks]
        self._handles = [linear.register_forward_pre_hook(self._add) for linear in linears]

    def _add(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._rows += len(inputs[0])

    @property
    def evaluations(self) -> float:
        """Rows that went through all blocks; a row through half of the blocks counts half."""
        return self._rows / self._depth

    def close(self) -> None:
        """Stop counting."""
        for handle in self._handles:
            handle.remove()


def _check_fits(transformer: MMFaceDiT) -> None:
    if len(transformer.blocks) < 2:
        raise ValueError("A cache needs a model of two blocks or more, and this one has one.")
    if transformer.is_cache_enabled:
        raise ValueError("The transformer has a cache of its own; call its disable_cache() first.")
    compiled = any(module._compiled_call_impl is not None for module in transformer.modules())
    if compiled or "denoise" in vars(transformer):
        raise ValueError(
            "A cache chooses at each step which blocks run, which a compiled network cannot; call "
            "restore_pipeline first, or leave the cache out."
        )


@dataclass(frozen=True)
class StepCache(ABC):
    """A way to reuse results of one step in the next ones."""

    @abstractmethod
    def config(self, depth: int, shares: Sequence[float]) -> Any:
        """Return diffusers' config; `shares` are the fractions of the schedule before each call."""

    def made_by(self) -> dict[str, Any]:
        """Return the class's name and its settings in plain values."""
        return {"class": type(self).__name__, **asdict(self)}

    @contextmanager
    def enabled(self, transformer: MMFaceDiT) -> Iterator[ComputedBlocks]:
        """Skip blocks inside, from the first `restart` on, and count the computed rows.

        ValueError if the network has one block only, a cache of its own, or compiled parts.
        """
        _check_fits(transformer)
        before = [set(vars(block)) for block in transformer.blocks]
        computed = ComputedBlocks(transformer)
        try:
            yield computed
        finally:
            computed.close()
            if transformer.is_cache_enabled:
                transformer.disable_cache()
            # diffusers leaves an empty registry and a bound forward, which looks like a hook.
            for block, names in zip(transformer.blocks, before, strict=True):
                for name in set(vars(block)) - names:
                    delattr(block, name)

    def restart(self, transformer: MMFaceDiT, shares: Sequence[float]) -> None:
        """Forget all results; each later call must be inside a named `cache_context`."""
        if transformer.is_cache_enabled:
            transformer.disable_cache()
        transformer.enable_cache(self.config(len(transformer.blocks), shares))


@dataclass(frozen=True)
class FirstBlockCache(StepCache):
    """Computes the first block, and the others only if its output has changed enough.

    Otherwise it adds the other blocks' residual from the last full step again. `threshold` is
    relative (mean change over mean size); 0 skips nothing.
    """

    threshold: float = 0.05

    def __post_init__(self) -> None:
        """Raise ValueError unless the threshold is a number that can be compared with."""
        check_number("cache threshold", self.threshold, 0)

    def config(self, depth: int, shares: Sequence[float]) -> FirstBlockCacheConfig:
        """Give diffusers' configuration."""
        return FirstBlockCacheConfig(threshold=self.threshold)


@dataclass(frozen=True)
class TaylorSeer(StepCache):
    """Computes the blocks at some steps, and extrapolates between them (arXiv 2503.06923).

    The last block's output is extrapolated over the step number by a Taylor series of divided
    differences, of `order` 0 (repeat) or more; the final layer still gets the true time. After
    `warmup` steps one in `interval` is computed; 1 skips nothing.
    """

    interval: int = 3
    warmup: int = 3
    order: int = 2

    def __post_init__(self) -> None:
        """Raise ValueError unless these are whole numbers that make a series."""
        check_whole("cache interval", self.interval, 1, 1000)
        check_whole("cache warmup", self.warmup, 1, 1000)
        check_whole("cache order", self.order, 0, 4)

    def config(self, depth: int, shares: Sequence[float]) -> TaylorSeerCacheConfig:
        """Give diffusers' configuration."""
        names = [re.escape(f"blocks.{number}") for number in range(depth)]
        return TaylorSeerCacheConfig(
            cache_interval=self.interval,
            disable_cache_before_step=self.warmup,
            max_order=self.order,
            taylor_factors_dtype=torch.float32,
            skip_predict_identifiers=names[:-1],
            cache_identifiers=names[-1:],
        )


@dataclass(frozen=True)
class MagCache(StepCache):
    """Skips blocks while a measured curve says that their residual keeps its size (2506.09045).

    The curve belongs to a model, solver, number of steps and guidance. To measure one, call
    `pipe.transformer.enable_cache(MagCacheConfig(calibrate=True, num_inference_steps=50))` with
    diffusers' class, sample with 50 Euler steps, and take the printed numbers as `ratios`: the
    residual's size over its size one call before, at even intervals of the schedule. The product of
    ratios may deviate from 1 by `threshold` over at most `max_skips` skipped calls in a row;
    nothing is skipped in the first fraction `retention` of the schedule.
    """

    ratios: Sequence[float]
    threshold: float = 0.12
    max_skips: int = 3
    retention: float = 0.2

    def __post_init__(self) -> None:
        """Raise ValueError unless these are numbers that can be sampled with."""
        if not self.ratios:
            raise ValueError("ratios of a MagCache are missing; its docstring says how to measure.")
        for ratio in self.ratios:
            check_number("cache ratio", ratio, 0)
        check_number("cache threshold", self.threshold, 0)
        check_whole("cache max_skips", self.max_skips, 0, 1000)
        check_number("cache retention", self.retention, 0, 1)

    def config(self, depth: int, shares: Sequence[float]) -> MagCacheConfig:
        """Give diffusers' configuration."""
        retained = sum(share < self.retention for share in shares)
        return MagCacheConfig(
            threshold=self.threshold,
            max_skip_steps=self.max_skips,
            retention_ratio=retained / len(shares),
            num_inference_steps=len(shares),
            mag_ratios=[self.ratios[int(share * len(self.ratios))] for share in shares],
        )


CACHES: Mapping[str, Callable[[], StepCache]] = {
    "first-block": FirstBlockCache,
    "taylor-seer": TaylorSeer,
}
"""The caches that work with default settings, by name."""


def cache_named(name: str) -> StepCache:
    """Build the cache of this name in `CACHES`, or raise ValueError."""
    if name not in CACHES:
        raise ValueError(f"there is no cache {name!r}; choose one of {', '.join(CACHES)}.")
    return CACHES[name]()
