"""Metrics that give every picture a value of its own: what they have in common."""

from abc import ABC

import torch
from jaxtyping import Float64, Shaped
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class PerPictureMetric(Metric, ABC):
    """Keeps one float64 value a picture, in the order of the updates; its result is their mean."""

    full_state_update = False
    values: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("values", default=[], dist_reduce_fx="cat")

    def add_values(self, values: Shaped[Tensor, " batch"]) -> None:
        """Keep the values of a batch."""
        self.values.append(values.detach().double().cpu())

    def per_picture(self) -> Float64[Tensor, " n"]:
        """Give the value of each picture.

        Returns:
            The values, in the order of the updates.

        Raises:
            ValueError: if there was no picture.
        """
        if not len(self.values):
            raise ValueError(f"{type(self).__name__} has seen no picture; update it first")
        return dim_zero_cat(self.values).to(torch.float64)

    def compute(self) -> Float64[Tensor, ""]:
        """Give the mean over the pictures."""
        return self.per_picture().mean()
