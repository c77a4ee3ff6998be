"""Training of the built-in family's small frozen neighbours: VAE, face parser, CLIP pair.

They are the same diffusers and transformers classes that the full-size components have, at a
small size, so that everything which works on them works on the real ones.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from jaxtyping import Float, Int
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
    SegformerConfig,
    SegformerImageProcessorPil,
)
from transformers import SegformerForSemanticSegmentation as SegformerModel

from mmface.conditions import LABELS
from mmface.core.command_line import check_number, check_whole
from mmface.core.sources import load_network, opened
from mmface.data.keyed import keyed_generator
from mmface.data.store import Store
from mmface.encoders.vae import image_pixels
from mmface.objectives.losses import summed
from mmface.objectives.pictures import PictureTerm
from mmface.training.task import TrainingTask, cast_copy, export_dtype_named

_LATENT_ENDS = ("encoder.conv_out", "decoder.conv_in")  # of an AutoencoderKL


def _edges(pictures: Float[Tensor, "batch channels height width"]) -> tuple[Tensor, Tensor]:
    return pictures.diff(dim=-2), pictures.diff(dim=-1)


def reconstruction_errors(
    decoded: Float[Tensor, "batch channels height width"],
    pixels: Float[Tensor, "batch channels height width"],
    weights: Float[Tensor, "batch 1 height width"],
    edge_weight: float,
) -> dict[str, Float[Tensor, " batch"]]:
    """Errors of reconstructed pictures, each pixel by its weight: `pixels`, and `edges`.

    L1 plus half the square, and L1 of the differences of neighbouring pixels.
    """
    error = decoded - pixels
    down, across = _edges(error)
    down, across = down.abs() * weights[..., 1:, :], across.abs() * weights[..., 1:]
    return {
        "pixels": (weights * (error.abs() + 0.5 * error.square())).mean((1, 2, 3)),
        "edges": edge_weight * (down.mean((1, 2, 3)) + across.mean((1, 2, 3))),
    }


def autoencoder_with_channels(folder: str | Path, latent_channels: int) -> AutoencoderKL:
    """Load an AutoencoderKL without quant convolutions and change its latent channels.

    The two convolutions at the latents are new, and their normalisation is dropped; a ValueError
    says if anything else would be new.
    """
    with opened("VAE", folder) as source:
        saved = load_network(AutoencoderKL, source)
    own = {"latent_channels": latent_channels, "latents_mean": None, "latents_std": None}
    vae: AutoencoderKL = AutoencoderKL.from_config({**saved.config, **own})
    shapes = {name: weight.shape for name, weight in vae.state_dict().items()}
    weights = {n: w for n, w in saved.state_dict().items() if w.shape == shapes.get(n)}
    new = set(vae.load_state_dict(weights, strict=False).missing_keys)
    if lost := new - {f"{part}.{kind}" for part in _LATENT_ENDS for kind in ("weight", "bias")}:
        raise ValueError(f"{folder} would lose {', '.join(sorted(lost))}, too.")
    return vae


class Autoencoding(TrainingTask):
    """An AutoencoderKL that keeps edges and small parts: L1 + squared + gradient error + KL.

    Further terms may be added to the loss, see `mmface.objectives.pictures`.
    """

    trained: Any

    def __init__(
        self,
        vae: AutoencoderKL,
        pictures: str | Path,
        kl_weight: float = 1e-4,
        edge_weight: float = 1.0,
        export_dtype: str = "float32",
        terms: Mapping[str, PictureTerm] | None = None,
    ) -> None:
        """Set up the autoencoder and its loss.

        Args:
            vae: the model to train.
            pictures: store whose first faces give the exported config the latents' mean and std.
            kl_weight: weight of the KL divergence per latent value.
            edge_weight: weight of the L1 error of neighbouring pixels' differences.
            export_dtype: torch dtype name that exported weights are stored in.
            terms: further terms of the loss by name.
        """
        super().__init__()
        self.terms = nn.ModuleDict(terms or {})
        check_number("kl_weight", kl_weight, 0)
        check_number("edge_weight", edge_weight, 0)
        self.trained = vae
        self.pictures = pictures
        self.kl_weight = kl_weight
        self.edge_weight = edge_weight
        self.export_dtype = export_dtype_named(export_dtype)

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Float[Tensor, " batch"]]:
        """Reconstruct `pixels`, errors weighted by `weights` [B, H, W]."""
        pixels, weights = batch["pixels"], batch["weights"][:, None]
        posterior = self.product.encode(pixels).latent_dist
        shape = posterior.mean.shape[1:]
        noise = torch.stack(
            [torch.randn(shape, generator=keyed_generator(int(s))) for s in batch["noise_seed"]]
        ).to(pixels.device)
        decoded = self.product.decode(posterior.mean + posterior.std * noise).sample
        kl = posterior.kl() / posterior.mean[0].numel()
        terms = {
            **reconstruction_errors(decoded, pixels, weights, self.edge_weight),
            "kl": self.kl_weight * kl,
            **{name: term(decoded, pixels) for name, term in self.terms.items()},
        }
        losses = self.losses(batch, decoded, terms)
        return losses | {"l1": (decoded - pixels).abs().mean((1, 2, 3)).detach()}

    def losses(
        self, batch: Mapping[str, Any], decoded: Tensor, terms: dict[str, Tensor]
    ) -> dict[str, Float[Tensor, " batch"]]:
        """Add up the terms."""
        return summed(terms)

    def export(self, product: AutoencoderKL, folder: Path) -> None:
        """Save a diffusers AutoencoderKL folder whose config normalises the latents."""
        mean, std = self._latent_statistics(product)
        side, _, _ = Store(self.pictures).spec.arrays["image"].shape
        product.register_to_config(
            latents_mean=mean.tolist(),
            latents_std=std.tolist(),
            scaling_factor=1.0,
            sample_size=side,  # tiles are no smaller
        )
        cast_copy(product, self.export_dtype).save_pretrained(folder)

    @torch.no_grad()
    def _latent_statistics(self, vae: AutoencoderKL, num_faces: int = 256) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each latent channel over photographs, float32 [C]."""
        store, device = Store(self.pictures), next(vae.parameters()).device
        means = []
        for item in range(min(num_faces, len(store))):
            pixels = image_pixels(store.row(item, ("image",))["image"])[None].to(device)
            means.append(vae.encode(pixels).latent_dist.mean.cpu())
        latents = torch.cat(means)
        return latents.mean((0, 2, 3)), latents.std((0, 2, 3))


class Parsing(TrainingTask):
    """A SegFormer that reads the 19 classes off a picture."""

    trained: SegformerModel

    def __init__(
        self, config: Mapping[str, Any], size_px: int = 128, export_dtype: str = "float32"
    ) -> None:
        """Build the parser from arguments of SegformerConfig; it resizes pictures to `size_px`."""
        super().__init__()
        check_whole("size_px", size_px, 1)
        self.size_px = size_px
        names = dict(enumerate(LABELS))
        labels = {"id2label": names, "label2id": {name: i for i, name in names.items()}}
        self.trained = SegformerModel(SegformerConfig(num_labels=len(LABELS), **config, **labels))
        self.export_dtype = export_dtype_named(export_dtype)

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Float[Tensor, " batch"]]:
        """Cross-entropy per pixel plus a soft Dice term per class that is there.

        The Dice term makes an earring weigh as much as the background, as mIoU does.
        """
        labels: Int[Tensor, "batch height width"] = batch["labels"]
        logits = self.trained(pixel_values=batch["pixels"]).logits
        logits = F.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False)
        entropy = F.cross_entropy(logits, labels, reduction="none").mean((1, 2))
        truth = F.one_hot(labels, len(LABELS)).movedim(-1, 1).to(logits)
        overlap = (logits.softmax(1) * truth).sum((2, 3))
        total = (logits.softmax(1) + truth).sum((2, 3))
        present = truth.sum((2, 3)) > 0
        dice = ((1 - 2 * overlap / total) * present).sum(1) / present.sum(1)
        correct = (logits.argmax(1) == labels).float().mean((1, 2))
        terms = {"entropy": entropy, "dice": 0.5 * dice}
        return summed(terms) | {"pixel_accuracy": correct.detach()}

    def export(self, product: SegformerModel, folder: Path) -> None:
        """Save a transformers SegFormer folder, with how it wants its pictures."""
        cast_copy(product, self.export_dtype).save_pretrained(folder)
        half = [0.5] * 3  # its pixels are in [-1, 1]
        SegformerImageProcessorPil(
            size={"height": self.size_px, "width": self.size_px}, image_mean=half, image_std=half
        ).save_pretrained(folder)


class Contrasting(TrainingTask):
    """A CLIP pair of text and vision towers, trained against each other on captioned pictures."""

    trained: CLIPModel

    def __init__(
        self,
        tokenizer: CLIPTokenizer,
        text_config: Mapping[str, Any],
        vision_config: Mapping[str, Any],
        projection_dim: int,
        export_dtype: str = "float32",
    ) -> None:
        """Build both towers; vocabulary and length of the text tower are the tokenizer's."""
        super().__init__()
        self.tokenizer = tokenizer
        text_config = {
            **text_config,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": tokenizer.model_max_length,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        config = CLIPConfig(
            text_config=text_config,
            vision_config=dict(vision_config),
            projection_dim=projection_dim,
        )
        self.trained = CLIPModel(config)
        self.export_dtype = export_dtype_named(export_dtype)

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Float[Tensor, " batch"]]:
        """Symmetric cross-entropy over the batch (CLIP, arXiv 2103.00020, figure 3)."""
        tokens = self.tokenizer(
            list(batch["caption"]), padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids.to(batch["pixels"].device)
        logits = self.trained(input_ids=tokens, pixel_values=batch["pixels"]).logits_per_text
        # Several captions of a batch may be equal; they are all right answers.
        same = (tokens[:, None] == tokens[None]).all(-1).to(logits)
        target = same / same.sum(1, keepdim=True)
        by_text = F.cross_entropy(logits, target, reduction="none")
        by_image = F.cross_entropy(logits.T, target, reduction="none")
        correct = target.gather(1, logits.argmax(1, keepdim=True))[:, 0] > 0
        terms = {"by_text": by_text / 2, "by_image": by_image / 2}
        return summed(terms) | {"accuracy": correct.float()}

    def export(self, product: CLIPModel, folder: Path) -> None:
        """Save the pair in `clip/`, and what a pipeline needs in `text_encoder/`, `tokenizer/`."""
        pair = cast_copy(product, self.export_dtype)
        pair.save_pretrained(folder / "clip")
        pair.text_model.save_pretrained(folder / "text_encoder")
        for name in ("clip", "tokenizer"):
            self.tokenizer.save_pretrained(folder / name)


def train_tokenizer(captions: Iterable[str], vocab_size: int, max_length: int) -> CLIPTokenizer:
    """Learn a byte-pair vocabulary of CLIP's form from captions, padded by its end token.

    `vocab_size` is at least 514, else ValueError: two special tokens, then every byte in both its
    forms (inside and at the end of a word), so that no prompt has unknown parts.
    """
    tokenizer = CLIPTokenizer()
    alphabet = sorted(ByteLevel.alphabet())
    base = [tokenizer.bos_token, tokenizer.eos_token, *alphabet, *(f"{c}</w>" for c in alphabet)]
    if vocab_size < len(base):
        raise ValueError(f"vocab_size {vocab_size} is smaller than the {len(base)} basic tokens")
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        end_of_word_suffix="</w>",
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.backend_tokenizer.train_from_iterator(captions, trainer)
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    merges = [tuple(pair) for pair in merges][: vocab_size - len(base)]
    tokens = dict.fromkeys([*base, *("".join(pair) for pair in merges)])
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=max_length)


def tokenizer_from_store(
    store: str | Path, vocab_size: int, max_length: int, num_faces: int = 4000
) -> CLIPTokenizer:
    """Train a tokenizer on the captions of a store's first faces."""
    faces = Store(store)
    texts = (
        faces.row(item, ("captions",))["captions"] for item in range(min(num_faces, len(faces)))
    )
    return train_tokenizer((text for group in texts for text in group), vocab_size, max_length)
