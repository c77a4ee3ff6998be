"""The interface of frozen encoders, by which all are precomputed, planned and checked."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Feature:
    """Shape and dtype of a feature of one picture or prompt."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@runtime_checkable
class Encoder(Protocol):
    """A frozen network that turns pictures (or prompts) into features.

    `size` is the height and width of the pictures in pixels; encoders of prompts ignore it. All but
    `features` and `identity` also work with weights on the meta device. `source` is the name,
    folder or hub id that it was loaded from.
    """

    source: str

    @property
    def module(self) -> nn.Module:
        """The frozen network."""
        ...

    def gives(self, size: tuple[int, int]) -> Mapping[str, Feature]:
        """Describe the features of one picture or prompt, by name."""
        ...

    def identity(self) -> dict[str, Any]:
        """What decides the features, in plain values: the weights' hash and parts of the config."""
        ...

    def flops(self, size: tuple[int, int]) -> int:
        """FLOPs of encoding one picture or prompt; a multiply-add is two."""
        ...

    def activation_bytes(self, size: tuple[int, int], dtype: torch.dtype) -> int:
        """Memory of one picture or prompt at the peak of encoding, without the weights."""
        ...

    def features(self, inputs: Any) -> Mapping[str, Tensor]:
        """Encode pictures, float [batch, 3, height, width] in [-1, 1], or a list of prompts.

        Gives the features that `gives` names, each [batch, *shape].
        """
        ...


def num_parameters(encoder: Encoder) -> int:
    """Count the parameters of an encoder's network."""
    return sum(parameter.numel() for parameter in encoder.module.parameters())


def peak_bytes(encoder: Encoder, num_items: int, size: tuple[int, int], dtype: torch.dtype) -> int:
    """Bytes of an encoder's weights and activations in `dtype`, while it encodes a batch."""
    activations = num_items * encoder.activation_bytes(size, dtype)
    return num_parameters(encoder) * dtype.itemsize + activations


def count_flops(call: Callable[[], object]) -> int:
    """Count the FLOPs of a call; on the meta device nothing is computed."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    return counter.get_total_flops()
