"""SSIM and MS-SSIM between pictures and their references.

Both are computed by torchmetrics in [0, 1] with a fixed range of values: a range taken from the
pictures would make a picture's value depend on its batch. The paper's column is headed SSIM and
its text says multi-scale, so both are measured.
"""

from jaxtyping import UInt8
from torch import Tensor
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    structural_similarity_index_measure,
)

from mmface.evaluation.per_picture import PerPictureMetric
from mmface.evaluation.preprocessing import unit_interval

MIN_MULTISCALE_PX = 176
"""Shortest side that five scales of an 11-pixel window need: 16 x 11."""


class StructuralSimilarity(PerPictureMetric):
    """SSIM (Wang et al., 2004), Gaussian window of width 1.5; 1 for equal pictures."""

    higher_is_better = True

    def update(
        self,
        images: UInt8[Tensor, "batch 3 height width"],
        references: UInt8[Tensor, "batch 3 height width"],
    ) -> None:
        """Compare pictures with their references."""
        measured = structural_similarity_index_measure(
            unit_interval(images), unit_interval(references), reduction="none", data_range=1.0
        )
        assert isinstance(measured, Tensor)  # a tuple only where full images are asked for
        self.add_values(measured.reshape(len(images)))


class MultiScaleStructuralSimilarity(PerPictureMetric):
    """MS-SSIM (Wang et al., 2003), five scales; 1 for equal pictures."""

    higher_is_better = True

    def update(
        self,
        images: UInt8[Tensor, "batch 3 height width"],
        references: UInt8[Tensor, "batch 3 height width"],
    ) -> None:
        """Compare pictures with their references.

        Args:
            images: uint8 pictures.
            references: what they should be.

        Raises:
            ValueError: if a side is shorter than `MIN_MULTISCALE_PX`.
        """
        height, width = images.shape[-2:]
        if min(height, width) < MIN_MULTISCALE_PX:
            raise ValueError(
                f"MS-SSIM needs sides of {MIN_MULTISCALE_PX} pixels for its five scales, not "
                f"{width}x{height}; report SSIM at this size"
            )
        self.add_values(
            multiscale_structural_similarity_index_measure(
                unit_interval(images), unit_interval(references), reduction="none", data_range=1.0
            ).reshape(len(images))
        )
