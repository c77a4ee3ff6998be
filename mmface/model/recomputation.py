"""Gradient checkpointing of a network's blocks: memory against time.

Either a share of the blocks is recomputed whole, or every block selectively: matrix products and
attention are kept, and what is cheap to redo (norms, rotations, gates, GELU) is not.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

SELECTIVE = "selective"
"""The setting for selective recomputation of every block."""


def _kept_operators() -> list[Any]:
    names = [
        "aten.mm",
        "aten.addmm",
        "aten._scaled_dot_product_flash_attention",
        "aten._scaled_dot_product_efficient_attention",
        "aten._scaled_dot_product_cudnn_attention",
        "aten._scaled_dot_product_flash_attention_for_cpu",
        # `linear.Linear` on a CPU, as it runs and as the compiler sees it.
        "mkldnn._linear_pointwise",
        "mmface.product",
    ]
    spaces = [(getattr(torch.ops, space), name) for space, name in (x.split(".") for x in names)]
    return [getattr(space, name).default for space, name in spaces if hasattr(space, name)]


KEPT = _kept_operators()
"""What selective recomputation keeps: matrix products and attention, all that is dear to redo."""


def checkpoint_whole(block: nn.Module, *arguments: Any) -> Any:
    """Run a block so that the backward pass recomputes all of it from its inputs.

    Args:
        block: The block.
        *arguments: What its forward takes.

    Returns:
        What its forward returns.
    """
    return checkpoint(block, *arguments, use_reentrant=False)


def selective_checkpoint(block: nn.Module, *arguments: Any) -> Any:
    """Run a block so that the backward pass recomputes norms, rotations, gates and GELU alone.

    Of about 27 vectors of width D that a token leaves in each block, about 10 stay. For
    `MMFaceDiT.enable_gradient_checkpointing(selective_checkpoint)`.

    Args:
        block: The block.
        *arguments: What its forward takes.

    Returns:
        What its forward returns.
    """
    contexts = partial(create_selective_checkpoint_contexts, KEPT)
    return checkpoint(block, *arguments, use_reentrant=False, context_fn=contexts)


def num_recomputed(depth: int, setting: float | str) -> int:
    """How many of `depth` blocks a setting recomputes, whole or selectively.

    Args:
        depth: number of blocks.
        setting: true for all, false for none, a share of them in [0, 1], or "selective", which is
            all; anything else raises ValueError.

    Returns:
        The number, a share's rounded up.
    """
    if setting == SELECTIVE:
        return depth
    if isinstance(setting, str) or not 0 <= setting <= 1:
        raise ValueError(
            f"gradient_checkpointing must be true, false, a share of the blocks in [0, 1], or "
            f"{SELECTIVE!r}, got {setting!r}."
        )
    return -int(-depth * setting // 1)


def recompute_blocks(network: Any, setting: float | str, compiled: bool = False) -> None:
    """Have blocks recomputed in the backward pass instead of kept from the forward.

    A share's blocks are the first ones: when the backward pass reaches them, what the later blocks
    had kept is free, so that a block's recomputation does not add to the peak. No value changes.

    Args:
        network: a diffusers model with `blocks`, such as MMFaceDiT.
        setting: see `num_recomputed`.
        compiled: whether the blocks run through torch.compile.
    """
    recomputed = set(network.blocks[: num_recomputed(len(network.blocks), setting)])
    run_recomputed: Callable[..., Any] = checkpoint_whole
    if setting == SELECTIVE:
        # The compiler must see what is to be kept: no operator shows from outside its code.
        run_recomputed = torch.compile(selective_checkpoint) if compiled else selective_checkpoint

    def run(block: nn.Module, *args: Any) -> Any:
        if block in recomputed:
            return run_recomputed(block, *args)
        return block(*args)

    if recomputed:
        network.enable_gradient_checkpointing(run)


class KeptResults(TorchDispatchMode):
    """Remembers where the results of `KEPT` operators lie, without holding them.

    What selective recomputation holds is not autograd's, whose hooks do not show it.
    """

    def __init__(self) -> None:
        """Begin with none."""
        super().__init__()
        self.results: list[tuple[StorageWeakRef, int, int]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run one operator."""
        output = func(*args, **(kwargs or {}))
        if func in KEPT:
            tensors = [x for x in tree_leaves(output) if isinstance(x, Tensor)]
            storages = [x.untyped_storage() for x in tensors]
            self.results += [(StorageWeakRef(s), s._cdata, s.nbytes()) for s in storages]
        return output

    @property
    def alive(self) -> dict[int, int]:
        """Bytes of each result that something still holds, by the number of its storage."""
        return {number: size for held, number, size in self.results if not held.expired()}
