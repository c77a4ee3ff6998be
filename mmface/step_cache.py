"""Sampling with fewer blocks: diffusers' caches, set up for this network.

From one step to the next, much of what the blocks add to the image tokens stays nearly the same. A
cache remembers it, and leaves blocks out of some steps. One decision is made for all rows that are
computed together, so that with a cache a picture depends, a little, on the batch that it is in;
without one it depends on its seed alone. A call therefore has a cache only if it asks for it.
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

from mmface.inputs import check_number, check_whole
from mmface.model.ablations import CrossAttentionBlock
from mmface.model.transformer import Block, FinalBlock, MMFaceDiT

for _kind in (Block, FinalBlock, CrossAttentionBlock):
    TransformerBlockRegistry.register(
        _kind,
        TransformerBlockMetadata(
            return_hidden_states_index=0,
            return_encoder_hidden_states_index=1,
            # The hooks ask for arguments by diffusers' names, which the blocks do not have.
            _cached_parameter_indices={"hidden_states": 0, "encoder_hidden_states": 1},
        ),
    )


class ComputedBlocks:
    """Counts what the blocks of a network compute; a block that is left out counts nothing."""

    def __init__(self, transformer: MMFaceDiT) -> None:
        """Start counting.

        Args:
            transformer: The network.
        """
        blocks = transformer.blocks
        self._rows, self._depth = 0, len(blocks)
        # Not on the block itself, which is called even where a cache answers for it.
        linears = [block.get_submodule("image.qkv") for block in blocks]
        self._handles = [linear.register_forward_pre_hook(self._add) for linear in linears]

    def _add(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._rows += len(inputs[0])

    @property
    def evaluations(self) -> float:
        """Rows that went through all blocks; one through half of them is half a row."""
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
            "A cache decides at each step anew which blocks run, which a compiled network cannot; "
            "take the compiled form back, or leave the cache out."
        )


@dataclass(frozen=True)
class StepCache(ABC):
    """What one step of a call remembers for the next ones."""

    @abstractmethod
    def config(self, depth: int, shares: Sequence[float]) -> Any:
        """Give diffusers' configuration.

        Args:
            depth: Number of the network's blocks.
            shares: Of each call to come, the share of the way's steps before it, in [0, 1).

        Returns:
            What `enable_cache` takes.
        """

    def made_by(self) -> dict[str, Any]:
        """Give the class and its settings in plain values."""
        return {"class": type(self).__name__, **asdict(self)}

    @contextmanager
    def enabled(self, transformer: MMFaceDiT) -> Iterator[ComputedBlocks]:
        """Let blocks be left out inside, from the first `restart` on; nothing stays after it.

        Args:
            transformer: The network.

        Yields:
            The count of what is computed.

        Raises:
            ValueError: If the network has one block only, a cache of its own, or compiled parts.
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
        """Remember nothing, and begin anew.

        Each call from now on must lie in a `transformer.cache_context`, whose name says for which
        part of the rows it is.

        Args:
            transformer: The network.
            shares: As for `config`.
        """
        if transformer.is_cache_enabled:
            transformer.disable_cache()
        transformer.enable_cache(self.config(len(transformer.blocks), shares))


@dataclass(frozen=True)
class FirstBlockCache(StepCache):
    """Computes the first block, and the others only if it says something new.

    What the other blocks added at the last step that computed them is added again as long as the
    first block's own part has changed by less than the threshold since then.

    Attributes:
        threshold: Mean change over mean size, 0 or more; 0 leaves no block out.
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

    What the last block gives is extrapolated in the step's number by a Taylor series of divided
    differences; the blocks before it are left out. The final layer hears the true time.

    Attributes:
        interval: One step in so many is computed; 1 leaves no block out.
        warmup: So many first steps are all computed.
        order: Order of the series: 0 repeats, 1 goes straight on.
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
    """Leaves blocks out while a curve says that their part keeps its size (arXiv 2506.09045).

    The curve belongs to a model, its solver, number of steps and guidance. To measure one, call
    `pipe.transformer.enable_cache(MagCacheConfig(calibrate=True, num_inference_steps=50))` with
    diffusers' class, sample with 50 Euler steps, and take what is printed.

    Attributes:
        ratios: Size of what the blocks add at a call over its size at the call before, at even
            places of the way.
        threshold: How far the product of ratios may lead away from 1, summed over the calls that
            are left out in a row; 0 or more.
        max_skips: The most calls that are left out in a row.
        retention: Share of the way, from its start, in which no block is left out.
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
"""The caches that need nothing but a name."""


def cache_named(name: str) -> StepCache:
    """Build the cache of this name.

    Args:
        name: A key of `CACHES`.

    Returns:
        A cache with its default settings.

    Raises:
        ValueError: If there is no cache of this name.
    """
    if name not in CACHES:
        raise ValueError(f"there is no cache {name!r}; choose one of {', '.join(CACHES)}.")
    return CACHES[name]()
