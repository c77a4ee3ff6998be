"""Gradient checkpointing of some of a network's blocks: memory against time, a block at a time."""

from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


def num_recomputed(depth: int, share: float) -> int:
    """How many of `depth` blocks a share in [0, 1] stands for; True is all, False none.

    Args:
        depth: number of blocks.
        share: share of them; anything else raises ValueError.

    Returns:
        The number, rounded up.
    """
    if not 0 <= share <= 1:
        raise ValueError(
            f"gradient_checkpointing must be true, false or a share of the blocks in [0, 1], "
            f"got {share}."
        )
    return -int(-depth * share // 1)


def recompute_blocks(network: Any, share: float) -> None:
    """Have a share of the blocks recomputed in the backward pass instead of kept from the forward.

    They are the first ones: when the backward pass reaches them, what the later blocks had kept is
    free, so that a block's recomputation does not add to the peak. No value changes.

    Args:
        network: a diffusers model with `blocks`, such as MMFaceDiT.
        share: share of the blocks in [0, 1].
    """
    recomputed = set(network.blocks[: num_recomputed(len(network.blocks), share)])

    def run(block: nn.Module, *args: Any) -> Any:
        if block in recomputed:
            return checkpoint(block, *args, use_reentrant=False)
        return block(*args)

    if recomputed:
        network.enable_gradient_checkpointing(run)
