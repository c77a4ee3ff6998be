"""Gather and restore a run's tensors by name, whether they are sharded or not."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from mmface.checkpoints import read_moments, read_state, read_weights
from mmface.optimization import ExponentialAverage

TO_CPU = StateDictOptions(full_state_dict=True, cpu_offload=True)
WHOLE = StateDictOptions(full_state_dict=True)


def gather_weights(
    trained: nn.Module, product: nn.Module, average: ExponentialAverage
) -> dict[str, dict[str, Tensor]]:
    """Give `model` and `ema`: raw and averaged weights on the CPU; every process takes part.

    Args:
        trained: the module under training, whose raw weights are given.
        product: the module that is averaged: the same, or a part of it.
        average: the product's average.

    Returns:
        Both by name; on other processes than the main one they may be incomplete.
    """
    model: dict[str, Any] = get_model_state_dict(trained, options=TO_CPU)
    if product is trained:  # gathered once
        return {"model": model, "ema": model | average.state()}
    return {"model": model, "ema": gather_average(product, average)}


def gather_average(product: nn.Module, average: ExponentialAverage) -> dict[str, Any]:
    """Give the product's averaged weights, and what of it is not trained, as `gather_weights`."""
    whole: dict[str, Any] = get_model_state_dict(product, options=TO_CPU)
    return whole | average.state()


def gather_moments(trained: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Give the optimizer's state by the parameters' names; every process takes part."""
    return get_optimizer_state_dict(trained, optimizer, options=TO_CPU)


def restore(
    checkpoint: Path, trained: nn.Module, optimizer: Optimizer, average: ExponentialAverage
) -> Mapping[str, Any]:
    """Load a checkpoint's tensors; every process takes part.

    The optimizer keeps its own hyper-parameters: a change that was allowed must count.

    Args:
        checkpoint: the checkpoint's folder.
        trained: the module under training.
        optimizer: its optimizer.
        average: the product's average.

    Returns:
        What the checkpoint's `state.json` holds.
    """
    trainable = [name for name, p in trained.named_parameters() if p.requires_grad]
    own = get_optimizer_state_dict(trained, optimizer, options=WHOLE)
    moments = {
        "state": read_moments(checkpoint, trainable),
        "param_groups": own["param_groups"],
    }
    # Before the weights: torch fills an optimizer by a step without a gradient.
    set_optimizer_state_dict(trained, optimizer, optim_state_dict=moments, options=WHOLE)
    weights: dict[str, Any] = {**read_weights(checkpoint, "model")}
    set_model_state_dict(trained, weights, options=WHOLE)
    state = read_state(checkpoint)
    average.load(read_weights(checkpoint, "ema"), state["num_averaged"])
    return state
