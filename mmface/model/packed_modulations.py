"""All blocks' modulations as one linear layer, for faster inference.

A third of the paper's weights compute shifts, scales and gates from the global condition: packed,
they are one matrix product instead of 28. State dicts keep the names of separate layers, so saved
files are the same.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmface.model.transformer import BlockModulations, Linear

Vector = Float[Tensor, "batch dim"]


class PackedModulations(Linear):
    """All layers of `BlockModulations`, stacked into one."""

    def __init__(
        self,
        in_features: int,
        size: int,
        depth: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, depth * size, device=device, dtype=dtype)
        self.size, self.depth = size, depth

    def forward(self, activated: Vector) -> list[Tensor]:  # type: ignore[override]
        """Return each block's modulation, in order, as views of one tensor."""
        return list(super().forward(activated).split(self.size, dim=-1))

    def layers(self) -> BlockModulations:
        """One layer for each block; their weights are views of this one's rows."""
        with torch.device("meta"):
            layers = BlockModulations(
                Linear(self.in_features, self.size) for _ in range(self.depth)
            )
        for name, own in self.named_parameters():
            for layer, rows in zip(layers, own.detach().split(self.size), strict=True):
                setattr(layer, name, nn.Parameter(rows, own.requires_grad))
        return layers.train(self.training)

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        for index, layer in enumerate(self.layers()):
            layer._save_to_state_dict(destination, f"{prefix}{index}.", keep_vars)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Load separate layers into the rows, with the error messages of separate layers."""
        layers = self.layers()
        faults = (strict, missing_keys, unexpected_keys, error_msgs)
        for index, layer in enumerate(layers):
            layer._load_from_state_dict(state_dict, f"{prefix}{index}.", local_metadata, *faults)
        known = {f"{prefix}{index}" for index in range(self.depth)}
        if strict:
            named = (name for name in state_dict if name.startswith(prefix))
            unexpected_keys += [name for name in named if name.rpartition(".")[0] not in known]
        if local_metadata.get("assign_to_params_buffers"):
            # The layers now hold the loaded tensors, which are no views of this one's rows.
            for name, own in list(self.named_parameters()):
                rows = torch.cat([getattr(layer, name).detach() for layer in layers])
                setattr(self, name, nn.Parameter(rows, own.requires_grad))


def fuse_modulations(model: nn.Module) -> bool:
    """Pack the modulations of a model's blocks into one layer, in place, for inference.

    Memory holds these weights twice meanwhile; an optimizer made before still refers to the old
    parameters. Gives False, and changes nothing, if an adapter or a quantizer has replaced them, or
    if they differ in dtype, device or `requires_grad`.
    """
    if isinstance(model.block_modulations, PackedModulations):
        return True
    assert isinstance(model.block_modulations, BlockModulations)
    layers: list[Any] = list(model.block_modulations)
    parameters = [p for layer in layers for p in layer.parameters()]
    kinds = {(type(p), p.dtype, p.device, p.requires_grad) for p in parameters}
    if len(kinds) > 1 or any(type(layer) is not Linear for layer in layers):
        return False
    (size, width), first, depth = layers[0].weight.shape, parameters[0], len(layers)
    options = {"device": first.device, "dtype": first.dtype}
    packed = nn.utils.skip_init(PackedModulations, width, size, depth, **options)
    packed.requires_grad_(first.requires_grad).train(model.training)
    model.block_modulations = packed
    del parameters, first
    layers.reverse()
    for rows in packed.layers():
        layer = layers.pop()  # frees its memory after this turn
        rows.load_state_dict(layer.state_dict())
    return True


def unfuse_modulations(model: nn.Module) -> None:
    """Undo `fuse_modulations`: one trainable layer for each block again."""
    packed = model.block_modulations
    if isinstance(packed, PackedModulations):
        layers = packed.layers()
        for parameter in layers.parameters():
            parameter.data = parameter.data.clone()
        model.block_modulations = layers
