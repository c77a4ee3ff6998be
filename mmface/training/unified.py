"""Training of the second family: the image tokenizer, and the model that asks and draws."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from mmface.core.command_line import check_number
from mmface.encoders.image_tokens import LookupFreeTokenizer
from mmface.objectives.losses import summed
from mmface.objectives.pictures import PictureTerm
from mmface.training.components import reconstruction_errors
from mmface.training.task import TrainingTask, cast_copy, export_dtype_named


class ImageTokenizing(TrainingTask):
    """A look-up-free tokenizer: reconstruction, commitment, and sure tokens of many codes."""

    trained: LookupFreeTokenizer

    def __init__(
        self,
        network: LookupFreeTokenizer,
        edge_weight: float = 1.0,
        commitment_weight: float = 0.025,
        entropy_weight: float = 0.1,
        export_dtype: str = "float32",
        terms: Mapping[str, PictureTerm] | None = None,
    ) -> None:
        """Set up the network and its loss.

        Args:
            network: the model to train.
            edge_weight: weight of the L1 error of neighbouring pixels' differences.
            commitment_weight: weight of the squared distance of values from their signs.
            entropy_weight: weight of the tokens' mean entropy minus the codebook's, in nats a bit.
            export_dtype: torch dtype name that exported weights are stored in.
            terms: further terms of the loss by name.
        """
        super().__init__()
        weights = {"edge_weight": edge_weight, "commitment_weight": commitment_weight}
        for name, weight in (weights | {"entropy_weight": entropy_weight}).items():
            check_number(name, weight, 0)
        self.trained = network
        self.terms = nn.ModuleDict(terms or {})
        self.edge_weight, self.commitment_weight = edge_weight, commitment_weight
        self.entropy_weight = entropy_weight
        self.export_dtype = export_dtype_named(export_dtype)

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Float[Tensor, " batch"]]:
        """Reconstruct `pixels`, errors weighted by `weights` [B, H, W]."""
        pixels: Tensor = batch["pixels"]
        decoded, quantised = self.trained(pixels)
        num_bits = quantised.signs.shape[1]
        unsure = quantised.token_entropy - quantised.codebook_entropy
        terms = {
            **reconstruction_errors(decoded, pixels, batch["weights"][:, None], self.edge_weight),
            "commitment": self.commitment_weight * quantised.commitment,
            "entropy": self.entropy_weight / num_bits * unsure,
            **{name: term(decoded, pixels) for name, term in self.terms.items()},
        }
        used = quantised.codebook_entropy.detach().expand(len(pixels))
        error = (decoded - pixels).abs().mean((1, 2, 3)).detach()
        return summed(terms) | {"l1": error, "codebook_entropy": used}

    def export(self, product: LookupFreeTokenizer, folder: Path) -> None:
        """Save a folder that `ImageTokenizer.from_pretrained` loads."""
        cast_copy(product, self.export_dtype).save_pretrained(folder)
