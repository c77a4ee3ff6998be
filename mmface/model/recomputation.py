"""Gradient checkpointing of a network's blocks, which saves memory and costs time.

Either a fraction of the blocks is recomputed whole, or every block selectively: results of matrix
products and attention are kept; norms, rotations, gates and GELU are recomputed.
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
"""The setting that recomputes every block selectively."""


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
"""Operators whose results selective recomputation keeps: matrix products and attention."""


def checkpoint_whole(block: nn.Module, *arguments: Any) -> Any:
    """Run a block so that the backward pass recomputes all of it from its inputs."""
    return checkpoint(block, *arguments, use_reentrant=False)


def selective_checkpoint(block: nn.Module, *arguments: Any) -> Any:
    """Run a block selectively: about 10 vectors of width D are kept per token instead of 27."""
    contexts = partial(create_selective_checkpoint_contexts, KEPT)
    return checkpoint(block, *arguments, use_reentrant=False, context_fn=contexts)


def num_recomputed(depth: int, setting: float | str) -> int:
    """Return how many of `depth` blocks a setting recomputes.

    The setting is true or "selective" (all), false (none), or a fraction in [0, 1], rounded up.
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
    """Recompute blocks in the backward pass instead of keeping their activations. No value changes.

    A fraction (see `num_recomputed`) takes the first blocks: when the backward pass reaches them,
    the later blocks' activations are freed already, so recomputing one does not raise the peak.
    `compiled` says whether the blocks run through torch.compile.
    """
    recomputed = set(network.blocks[: num_recomputed(len(network.blocks), setting)])
    run_recomputed: Callable[..., Any] = checkpoint_whole
    if setting == SELECTIVE:
        # Compiled together with the block: selection by operator does not see into compiled code.
        run_recomputed = torch.compile(selective_checkpoint) if compiled else selective_checkpoint

    def run(block: nn.Module, *args: Any) -> Any:
        if block in recomputed:
            return run_recomputed(block, *args)
        return block(*args)

    if recomputed:
        network.enable_gradient_checkpointing(run)


class KeptResults(TorchDispatchMode):
    """Observes the results of `KEPT` operators without keeping them alive.

    Autograd's saved-tensor hooks do not show what selective recomputation keeps.
    """

    def __init__(self) -> None:
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
        """Bytes of each result that is still alive, by its storage's id."""
        return {number: size for held, number, size in self.results if not held.expired()}
