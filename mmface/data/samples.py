"""Training samples from stores: one class for each thing that is trained."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmface.conditions import (
    LABELS,
    ConditionKind,
    condition_kind,
    condition_kinds,
    flip_labels,
)
from mmface.core.command_line import check_names, check_number
from mmface.data.latents import (
    CONDITION,
    CONDITIONS,
    IMAGE,
    MODALITY,
    NOISE,
    PAIRS,
    POSTERIOR_STD,
)
from mmface.data.pictures import LABELS_COLUMN, picture_columns
from mmface.data.store import Store
from mmface.encoders.vae import image_pixels


def _coin(generator: torch.Generator, probability: float) -> bool:
    return torch.rand((), generator=generator).item() < probability


def _choice(options: Sequence[Any], generator: torch.Generator) -> Any:
    return options[int(torch.randint(len(options), (), generator=generator))]


class LatentSamples:
    """Latents with one of their conditions and one of their captions (paper, data section)."""

    def __init__(
        self,
        store: str | Path,
        text_dropout: float = 0.05,
        modalities: Sequence[str] | None = None,
        condition_dropout: float = 0.05,
        **dropouts: float,
    ) -> None:
        """Read from a latent store; one of a face's conditions is drawn with equal probability.

        Faces that have none of the `modalities` are left out; None takes all conditions.
        `text_dropout` is the probability of the empty prompt, `condition_dropout` that of all-zero
        condition latents, `mask_dropout` and the like the same for one kind.
        """
        for name, share in {
            "text_dropout": text_dropout,
            "condition_dropout": condition_dropout,
            **dropouts,
        }.items():
            check_number(name, share, 0, 1)
        self.store = Store(store)
        self.text_dropout = text_dropout
        there = [k for k in condition_kinds() if k.name in self.store.spec.arrays]
        if modalities is not None:
            check_names("modalities", modalities)
        self.kinds = tuple(there if modalities is None else map(condition_kind, modalities))
        if len(set(self.kinds)) < len(self.kinds):
            raise ValueError(f"modalities must be different ones, got {modalities}.")
        if lacking := [kind.name for kind in self.kinds if kind not in there] or not self.kinds:
            names = ", ".join(kind.name for kind in there) or "none"
            raise ValueError(
                f"{self.store.folder} lacks latents of {lacking if self.kinds else 'conditions'}; "
                f"it has {names}. Encode them: scripts/precompute.py."
            )
        self.items: Sequence[int] = range(len(self.store))
        if CONDITIONS in self.store.spec.texts:
            wanted = {kind.name for kind in self.kinds}
            of_each = self.store.rows[CONDITIONS]
            self.items = [item for item, names in enumerate(of_each) if wanted & set(names)]
        known = {f"{kind.name}_dropout": kind.name for kind in condition_kinds()}
        if unknown := dropouts.keys() - known:
            raise TypeError(f"LatentSamples has no argument {', '.join(sorted(unknown))}")
        self.condition_dropout = dict.fromkeys(known.values(), condition_dropout)
        self.condition_dropout |= {known[name]: value for name, value in dropouts.items()}

    def __len__(self) -> int:
        """Number of faces that have one of the conditions."""
        return len(self.items)

    def _kinds_of(self, item: int) -> Sequence[ConditionKind]:
        if CONDITIONS not in self.store.spec.texts:
            return self.kinds
        names = self.store.row(item, (CONDITIONS,))[CONDITIONS]
        return [kind for kind in self.kinds if kind.name in names]

    def sample(self, item: int, generator: torch.Generator) -> dict[str, Any]:
        """Draw the kind of condition, caption, dropout, noise and time for one face.

        `latents` and `condition` [C, h, w] have the store's dtype, since half the bytes reach the
        device sooner (those of bfloat16 are float32), `noise` is float32 [C, h, w], `uniform` a
        float32 scalar in [0, 1) from which the objective makes the time, `modality` a long scalar.
        Where the store holds mean and deviation, the latents are a new sample, float32.
        """
        item = self.items[item]
        kind = _choice(self._kinds_of(item), generator)
        column = kind.name
        row = self.store.row(item, ("image", column, "captions"))
        latents, condition = (torch.from_numpy(row[name]) for name in ("image", column))
        caption = _choice(row["captions"], generator)
        if _coin(generator, self.text_dropout):
            caption = ""
        if _coin(generator, self.condition_dropout[column]):
            condition = torch.zeros_like(condition)
        drawn = {
            "latents": latents,
            "condition": condition,
            "noise": torch.randn(latents.shape, generator=generator),
            "uniform": torch.rand((), generator=generator),
            "modality": torch.tensor(kind.index),
            "caption": caption,
        }
        if POSTERIOR_STD in self.store.spec.arrays:  # last, so that the other draws stay
            std = torch.from_numpy(self.store.row(item, (POSTERIOR_STD,))[POSTERIOR_STD]).float()
            drawn["latents"] = latents.float() + std * torch.randn(
                latents.shape, generator=generator
            )
        return drawn


class PairSamples:
    """Noise with the latents that a guided teacher makes of it, condition and caption."""

    def __init__(self, store: str | Path) -> None:
        """Read from a store of pairs, which `training.pairs` makes; ValueError for another."""
        self.store = Store(store)
        if self.store.spec.made_by.get("kind") != PAIRS:
            raise ValueError(
                f"{store} holds no pairs of noise and a teacher's pictures; make them: "
                "scripts/precompute.py experiment=tiny_pairs, or the like."
            )

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.store)

    def sample(self, item: int, generator: torch.Generator) -> dict[str, Any]:
        """What `LatentSamples` gives, but nothing is drawn save `uniform` and `noise_seed`.

        `latents` are the teacher's; `noise_seed`, a long, is for losses that draw more.
        """
        row = self.store.row(item, (IMAGE, NOISE, CONDITION, MODALITY, "captions"))
        return {
            "latents": torch.from_numpy(row[IMAGE]),
            "condition": torch.from_numpy(row[CONDITION]),
            "noise": torch.from_numpy(row[NOISE]).float(),
            "uniform": torch.rand((), generator=generator),
            "modality": torch.tensor(int(row[MODALITY])),
            "caption": row["captions"][0],
            "noise_seed": torch.randint(2**62, (), generator=generator),
        }


def small_part_weights(labels: np.ndarray, power: float) -> np.ndarray:
    """Weights of mean 1, (area of the pixel's class) ** -power: uint8 -> float32 [H, W].

    Without them a face's eyes, brows and lips, a few per cent of the pixels that carry most of its
    likeness, are the last thing an autoencoder learns.
    """
    areas = np.bincount(labels.ravel(), minlength=len(LABELS)).clip(min=32)
    weights = (areas.astype(np.float64) ** -power)[labels]
    return (weights / weights.mean()).astype(np.float32)


class AutoencoderSamples:
    """Photos and drawn conditions: all that the VAE must carry."""

    def __init__(
        self, store: str | Path, image_share: float = 0.6, weight_power: float = 0.5
    ) -> None:
        """Choose the fraction of photographs; the kinds of condition share the rest equally."""
        check_number("image_share", image_share, 0, 1)
        check_number("weight_power", weight_power, 0, 1)
        self.store = Store(store)
        self.columns = picture_columns(self.store.spec.arrays)
        self.image_share = image_share
        self.weight_power = weight_power

    def __len__(self) -> int:
        """Number of faces."""
        return len(self.store)

    def sample(self, item: int, generator: torch.Generator) -> dict[str, Tensor]:
        """`pixels` float32 [3, H, W] in [-1, 1], `weights` float32 [H, W], `noise_seed` long."""
        row = self.store.row(item, tuple({"image", LABELS_COLUMN, *self.columns.values()}))
        if _coin(generator, 0.5):
            row = {name: np.ascontiguousarray(row[name][:, ::-1]) for name in row}
        drawn = float(torch.rand((), generator=generator))
        rgb, num = row["image"], len(self.columns)
        for place, (kind, column) in enumerate(self.columns.items()):
            # Each takes (1 - image_share) / num of [image_share, 1).
            if drawn >= (place + (num - place) * self.image_share) / num:
                rgb = kind.rgb(row[column])
        return {
            "pixels": image_pixels(rgb),
            "weights": torch.from_numpy(small_part_weights(row["labels"], self.weight_power)),
            "noise_seed": torch.randint(2**62, (), generator=generator),
        }


class ParsingSamples:
    """Pictures with their label maps, mildly disturbed, for the face parser."""

    def __init__(self, store: str | Path, noise: float = 0.06) -> None:
        """Choose the pixel noise's largest standard deviation, in units of [-1, 1]."""
        check_number("noise", noise, 0)
        self.store = Store(store)
        self.noise = noise

    def __len__(self) -> int:
        """Number of faces."""
        return len(self.store)

    def sample(self, item: int, generator: torch.Generator) -> dict[str, Tensor]:
        """`pixels` float32 [3, H, W] in [-1, 1] and `labels` long [H, W]."""
        row = self.store.row(item, ("image", "labels"))
        image, labels = row["image"], row["labels"]
        if _coin(generator, 0.5):
            image, labels = np.ascontiguousarray(image[:, ::-1]), flip_labels(labels)
        pixels = image_pixels(image)
        gain = 1 + 0.2 * (torch.rand(3, 1, 1, generator=generator) - 0.5)
        sigma = self.noise * torch.rand((), generator=generator)
        pixels = pixels * gain + sigma * torch.randn(pixels.shape, generator=generator)
        return {
            "pixels": pixels.clamp(-1, 1),
            "labels": torch.from_numpy(np.ascontiguousarray(labels)).long(),
        }


class CaptionedPictures:
    """Pictures with one of their captions, for the contrastive pair."""

    def __init__(self, store: str | Path) -> None:
        self.store = Store(store)

    def __len__(self) -> int:
        """Number of faces."""
        return len(self.store)

    def sample(self, item: int, generator: torch.Generator) -> dict[str, Any]:
        """`pixels` float32 [3, H, W] in [-1, 1] and `caption` str."""
        row = self.store.row(item, ("image", "captions"))
        return {
            "pixels": image_pixels(row["image"]),
            "caption": _choice(row["captions"], generator),
        }
