"""Whether pictures follow their condition: parsed masks against masks, edges against sketches.

The paper does not say how its ACC and mIoU average, and the ways differ by tens of per cent:
classes that occur nowhere may be left out or count as 0, and the mean may be taken over the
pictures or over the whole set. All are given; the whole set without absent classes comes first.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int64, UInt8
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from mmface.conditions import confusion_matrix, edge_agreement
from mmface.evaluation.per_picture import PerPictureMetric
from mmface.evaluation.preprocessing import check_pictures


class MaskAgreementResult(NamedTuple):
    """Agreement of label maps in per cent, as the paper gives it.

    Attributes:
        accuracy: share of pixels with the right class, over the whole set.
        mean_iou: mean over classes of the whole set's intersection over union, classes aside that
            neither masks nor pictures have.
        mean_iou_of_pictures: each picture's mean over its own classes, then the mean over pictures.
        mean_iou_absent_zero: the same over all 19 classes, a picture's absent ones counted as 0: a
            perfect picture does not reach 100.
    """

    accuracy: float
    mean_iou: float
    mean_iou_of_pictures: float
    mean_iou_absent_zero: float


def class_ious(
    confusions: Int64[Tensor, "*sets classes classes"] | Float64[Tensor, "*sets classes classes"],
) -> Float64[Tensor, "*sets classes"]:
    """Intersection over union of each class, in [0, 1]; NaN where neither side has the class."""
    counts = confusions.double()
    hits = counts.diagonal(dim1=-2, dim2=-1)
    union = counts.sum(-1) + counts.sum(-2) - hits
    return torch.where(union > 0, hits / union.clamp(min=1e-12), torch.nan)


class MaskAgreement(Metric):
    """Pixel accuracy and mIoU of parsed pictures against the masks they were made from."""

    full_state_update = False
    higher_is_better = True
    confusions: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("confusions", default=[], dist_reduce_fx="cat")

    def update(
        self,
        parsed: UInt8[Tensor, "batch height width"],
        masks: UInt8[Tensor, "batch height width"],
    ) -> None:
        """Compare label maps in the order of `mmface.conditions.LABELS`.

        Args:
            parsed: what a parser saw in the pictures.
            masks: what they were made from; brought to one size by nearest neighbour alone.
        """
        for one, truth in zip(parsed.cpu().numpy(), masks.cpu().numpy(), strict=True):
            self.confusions.append(torch.from_numpy(confusion_matrix(truth, one))[None])

    def per_picture(self) -> Int64[Tensor, "n classes classes"]:
        """Give each picture's pixels by (true class, parsed class), in the order of the updates.

        Returns:
            The tables; `statistics.bootstrap` takes them, flattened.

        Raises:
            ValueError: if there was no picture.
        """
        if not len(self.confusions):
            raise ValueError("MaskAgreement has seen no picture; update it first")
        return dim_zero_cat(self.confusions)

    def of_classes(self) -> Float64[Tensor, " classes"]:
        """Give each class's intersection over union over the whole set, in [0, 1] or NaN."""
        return class_ious(self.per_picture().sum(0))

    def compute(self) -> MaskAgreementResult:
        """Give accuracy and mIoU in the four averagings."""
        confusions = self.per_picture()
        whole = confusions.sum(0)
        pictures = class_ious(confusions)
        shares = (
            whole.trace() / whole.sum(),
            class_ious(whole).nanmean(),
            pictures.nanmean(1).mean(),
            pictures.nan_to_num(0.0).mean(),
        )
        return MaskAgreementResult(*(100 * float(share) for share in shares))


def pooled_accuracy(confusions: np.ndarray) -> np.ndarray:
    """Pixel accuracy in per cent of summed, flattened tables: float64 [B, 361] -> [B]."""
    classes = int(confusions.shape[1] ** 0.5)
    hits = confusions[:, :: classes + 1].sum(1)
    return 100 * hits / confusions.sum(1)


def pooled_mean_iou(confusions: np.ndarray) -> np.ndarray:
    """The whole set's mIoU in per cent of summed, flattened tables: float64 [B, 361] -> [B]."""
    classes = int(confusions.shape[1] ** 0.5)
    tables = torch.from_numpy(np.ascontiguousarray(confusions, np.float64))
    ious = class_ious(tables.reshape(-1, classes, classes))
    return (100 * ious.nanmean(1)).numpy()


class EdgeAgreement(PerPictureMetric):
    """F-score of pictures' strongest edges against their sketches' lines, in [0, 1]."""

    higher_is_better = True

    def __init__(self, tolerance_px: int = 1) -> None:
        """Begin without pictures.

        Args:
            tolerance_px: how far apart an edge and a line may be.
        """
        super().__init__()
        self.tolerance_px = tolerance_px

    def update(
        self,
        images: UInt8[Tensor, "batch 3 height width"],
        sketches: UInt8[Tensor, "batch height width"],
    ) -> None:
        """Compare pictures with the sketches they were made from.

        Args:
            images: uint8 pictures.
            sketches: dark lines on white.

        Raises:
            ValueError: if a sketch has no line darker than mid-grey.
        """
        check_pictures(images)
        pairs = zip(images.permute(0, 2, 3, 1).cpu().numpy(), sketches.cpu().numpy(), strict=True)
        scores = [
            edge_agreement(np.ascontiguousarray(image), sketch, self.tolerance_px)
            for image, sketch in pairs
        ]
        self.add_values(torch.tensor(scores, dtype=torch.float64))
