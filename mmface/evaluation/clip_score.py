"""The CLIP score of pictures and their captions, and the distance that is the same fact.

The paper's two columns are one: distance = 1 - score / 100 in every row. The score is
100 * cos of the two embeddings, not clamped (Hessel et al., arXiv 2104.08718, without their 2.5).
"""

from collections.abc import Sequence

import torch
from jaxtyping import UInt8
from torch import Tensor

from mmface.evaluation.backbones import ClipBackbone
from mmface.evaluation.per_picture import PerPictureMetric


def clip_distance(score: float) -> float:
    """Turn a CLIP score into the paper's CLIP distance, 1 - cos."""
    return 1 - score / 100


class ClipScore(PerPictureMetric):
    """Mean of 100 * cos between each picture and its caption."""

    higher_is_better = True
    num_cut: Tensor

    def __init__(self, backbone: ClipBackbone) -> None:
        """Begin without pictures.

        Args:
            backbone: embeds pictures and captions.
        """
        super().__init__()
        self.backbone = backbone
        self.add_state("num_cut", torch.tensor(0), dist_reduce_fx="sum")

    def update(
        self, images: UInt8[Tensor, "batch 3 height width"], captions: Sequence[str]
    ) -> None:
        """Compare pictures with their captions.

        Args:
            images: uint8 pictures.
            captions: one a picture; those longer than the text tower reads are counted in
                `num_cut`.

        Raises:
            ValueError: if there is not one caption a picture.
        """
        if len(captions) != len(images):
            raise ValueError(f"{len(images)} pictures have {len(captions)} captions; give one each")
        self.num_cut += sum(self.backbone.is_cut(caption) for caption in captions)
        pictures = self.backbone(images).double()
        texts = self.backbone.embed_captions(captions).double().to(pictures.device)
        self.add_values(100 * (pictures * texts).sum(1))
