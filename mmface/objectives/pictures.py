"""Loss terms that compare decoded pictures with true ones, one value per sample.

A new term is a subclass of `PictureTerm`; a training of an autoencoder takes it by its `_target_`
under `task.terms`. Its networks are frozen.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mmface.core.command_line import check_number

Pictures = Float[Tensor, "batch channels height width"]


class PictureTerm(nn.Module, ABC):
    """One term of an autoencoder's loss, with its weight."""

    def __init__(self, weight: float = 1.0) -> None:
        """Raise ValueError unless the weight is a number."""
        super().__init__()
        check_number("weight", weight, 0)
        self.weight = weight

    @abstractmethod
    def error(self, decoded: Pictures, pixels: Pictures) -> Float[Tensor, " batch"]:
        """Return the error of each decoded picture, before the weight; values are in [-1, 1]."""

    def forward(self, decoded: Pictures, pixels: Pictures) -> Float[Tensor, " batch"]:
        """Return the weighted error of each decoded picture."""
        return self.weight * self.error(decoded, pixels)


class FeatureError(PictureTerm):
    """Squared distance of a SegFormer's features, each of unit length, averaged over its stages.

    A face parser's features tell strands, lids and lips apart where pixels hardly differ.
    """

    def __init__(self, network: Any, weight: float = 1.0) -> None:
        """Take a SegformerForSemanticSegmentation whose pictures are in [-1, 1]."""
        super().__init__(weight)
        self.encoder = network.segformer.float().requires_grad_(False)

    def error(self, decoded: Pictures, pixels: Pictures) -> Float[Tensor, " batch"]:
        """Return the mean over the stages."""
        total = decoded.new_zeros(len(decoded))
        found, wanted = (self._features(each) for each in (decoded, pixels))
        for first, second in zip(found, wanted, strict=True):
            distance = F.normalize(first, dim=1) - F.normalize(second, dim=1)
            total = total + distance.square().sum(1).mean((1, 2)) / len(found)
        return total

    def _features(self, pictures: Tensor) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = self.encoder(pictures, output_hidden_states=True).hidden_states
        return found
