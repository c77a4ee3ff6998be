"""Metrics of two sets of pictures by their features: what FID's relatives have in common."""

from abc import ABC

import torch
from jaxtyping import Float, Float64, UInt8
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from mmface.evaluation.backbones import Backbone


class FeatureSetMetric(Metric, ABC):
    """Keeps the features of real and of generated pictures until they are compared.

    6,000 pictures of each kind at 2048 features are 200 MB.
    """

    full_state_update = False
    feature_network = "backbone"
    real_features: list[Tensor]
    generated_features: list[Tensor]

    def __init__(self, backbone: Backbone) -> None:
        """Begin with two empty sets.

        Args:
            backbone: reads the pictures.
        """
        super().__init__()
        self.backbone = backbone
        self.add_state("real_features", default=[], dist_reduce_fx="cat")
        self.add_state("generated_features", default=[], dist_reduce_fx="cat")

    def update(self, images: UInt8[Tensor, "batch 3 height width"], real: bool) -> None:
        """Add pictures.

        Args:
            images: uint8 pictures.
            real: whether they are real or generated.
        """
        kept = self.real_features if real else self.generated_features
        kept.append(self.backbone(images))

    def feature_sets(self) -> tuple[Float64[Tensor, "n features"], Float64[Tensor, "m features"]]:
        """Give the features of all real and of all generated pictures.

        Returns:
            The two sets.

        Raises:
            ValueError: if a set is empty.
        """
        for name, kept in (("real", self.real_features), ("generated", self.generated_features)):
            if not len(kept):
                raise ValueError(f"there are no {name} pictures; update with some first")
        real, generated = dim_zero_cat(self.real_features), dim_zero_cat(self.generated_features)
        return real.double(), generated.double()


def require_width(real: Float[Tensor, "n features"], generated: Float[Tensor, "m other"]) -> None:
    """Refuse features of two different networks.

    Args:
        real: features of one set.
        generated: features of the other.

    Raises:
        ValueError: if their widths differ.
    """
    if real.shape[1] != generated.shape[1]:
        raise ValueError(
            f"the features are {real.shape[1]} and {generated.shape[1]} wide; read both sets "
            "with the same backbone"
        )


def chunks(features: Float[Tensor, "n features"], rows: int = 1024) -> tuple[Tensor, ...]:
    """Split features, so that a table of all pairs need not be held at once."""
    return torch.split(features, rows)
