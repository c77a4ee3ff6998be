"""The modulations of all blocks: a layer a block in training, and one for all of them in inference.

A third of the paper's weights turn the global condition into shifts, scales and gates. As one layer
they take one matrix product where there were 28. Its state dict is that of the layers, under their
names, so that whoever saves or loads weights sees no difference.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmface.model.linear import Linear
from mmface.model.transformer import BlockModulations

Vector = Float[Tensor, "batch dim"]


class PackedModulations(Linear):
    """All layers of `BlockModulations` as the rows of one."""

    def __init__(
        self,
        in_features: int,
        size: int,
        depth: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Set up one layer of `depth * size` rows."""
        super().__init__(in_features, depth * size, device=device, dtype=dtype)
        self.size, self.depth = size, depth

    def forward(self, activated: Vector) -> list[Tensor]:  # type: ignore[override]
        """Give each block's modulation, in order; they are parts of one tensor."""
        return list(super().forward(activated).split(self.size, dim=-1))

    def layers(self) -> BlockModulations:
        """Give a layer for each block, whose weights are rows of this one's, in the same memory."""
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
        """Save the rows as the layers that they are, each under its own name."""
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
        """Load the layers into the rows, and report what does not fit as they do."""
        layers = self.layers()
        faults = (strict, missing_keys, unexpected_keys, error_msgs)
        for index, layer in enumerate(layers):
            layer._load_from_state_dict(state_dict, f"{prefix}{index}.", local_metadata, *faults)
        known = {f"{prefix}{index}" for index in range(self.depth)}
        if strict:
            named = (name for name in state_dict if name.startswith(prefix))
            unexpected_keys += [name for name in named if name.rpartition(".")[0] not in known]
        if local_metadata.get("assign_to_params_buffers"):
            # The layers hold the tensors that came, and are rows of this one's no more.
            for name, own in list(self.named_parameters()):
                rows = torch.cat([getattr(layer, name).detach() for layer in layers])
                setattr(self, name, nn.Parameter(rows, own.requires_grad))


def fuse_modulations(model: nn.Module) -> bool:
    """Make the modulations of a model's blocks one layer, for inference.

    The weights are moved, not copied: while that goes on there is room for them twice, afterwards
    once. An optimizer that was made before knows the old ones only.

    Args:
        model: An `MMFaceDiT` or a variant of it, changed in place.

    Returns:
        Whether they are one layer now. They are not, and nothing has changed, if an adapter or a
        quantizer has put other layers in their place, or they differ in dtype, device or in
        whether they are trained.
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
        layer = layers.pop()  # and with it goes its memory
        rows.load_state_dict(layer.state_dict())
    return True


def unfuse_modulations(model: nn.Module) -> None:
    """Take back `fuse_modulations`: a layer a block, with memory of its own, ready to be trained.

    Args:
        model: The model, changed in place; one that is not fused stays as it is.
    """
    packed = model.block_modulations
    if isinstance(packed, PackedModulations):
        layers = packed.layers()
        for parameter in layers.parameters():
            parameter.data = parameter.data.clone()
        model.block_modulations = layers
