"""SSIM and MS-SSIM between pictures and their references.

Both are computed by torchmetrics in [0, 1] with a fixed range of values: a range taken from the
pictures would make a picture's value depend on its batch. The paper's column is headed SSIM and
its text says multi-scale, so both are measured.

torchmetrics' means take in the windows that hang over the border, on mirrored pixels. SSIM as it
was published, and as scikit-image and pytorch-msssim compute it, has none of them: with a plain
background that is up to 0.024 of a face's SSIM at 192 px, and the mean here leaves them out, too.
Of MS-SSIM, where torchmetrics gives no maps, it is at most 0.001.
"""

from jaxtyping import UInt8
from torch import Tensor
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    structural_similarity_index_measure,
)

from mmface.evaluation.per_picture import PerPictureMetric

BORDER_PX = 5
"""Half of the 11-pixel window: from here on it lies inside the picture."""
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
        _, maps = structural_similarity_index_measure(
            images.double() / 255,  # variances are small differences of large sums
            references.double() / 255,
            reduction="none",
            data_range=1.0,
            return_full_image=True,
        )
        inside = slice(BORDER_PX, -BORDER_PX)
        self.add_values(maps[..., inside, inside].mean((1, 2, 3)))


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
                images.double() / 255,
                references.double() / 255,
                reduction="none",
                data_range=1.0,
            ).reshape(len(images))
        )
