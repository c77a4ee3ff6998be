"""Features for a distance between sets from a CLIP's picture tower, before its projection."""

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from mmface.evaluation.backbones import ClipBackbone


class ClipStatesBackbone(ClipBackbone):
    """The picture tower's pooled states.

    The projected embeddings are of unit length, so that distances between their sets vanish in a
    table's two digits; these are not. The built-in CLIP reads rendered faces with them.
    """

    def __init__(self, network: CLIPModel, tokenizer: CLIPTokenizer, name: str) -> None:
        """Wrap a CLIP pair.

        Args:
            network: both towers.
            tokenizer: the tokenizer of its text tower.
            name: which one.
        """
        super().__init__(network, tokenizer, f"{name}-states")
        self.num_features: int = network.config.vision_config.hidden_size

    def features(
        self, pixels: Float[Tensor, "batch 3 size size"]
    ) -> Float[Tensor, "batch features"]:
        """Give the pooled states of preprocessed pictures."""
        states: torch.Tensor = self.network.vision_model(pixel_values=pixels).pooler_output
        return states
