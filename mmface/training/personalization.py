"""Training of an adapter for reference faces on a frozen network (MM-Diff, arXiv 2403.15059).

Its product is the adapter's file alone, which `load_reference_adapter` adds to the pipeline that it
was trained on. Where an encoder is named, it is trained along and lies in the file; otherwise the
store holds the features of a frozen one.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mmface.core.command_line import check_number
from mmface.data.keyed import Samples
from mmface.data.mixed import MixedSamples
from mmface.data.people import REFERENCE, ReferenceSamples
from mmface.encoders.reference import ReferenceEncoder
from mmface.model.initial_weights import load_initial_weights
from mmface.model.reference_adapter import (
    add_reference_adapter,
    save_reference_adapter,
    train_adapter_alone,
    use_reference_lora,
)
from mmface.model.subjects import Faces, SubjectSettings
from mmface.model.transformer import MMFaceDiT
from mmface.objectives.attention_map import NAME, AttentionMapLoss, own_share
from mmface.objectives.losses import Corrupted, summed
from mmface.training.distillation import network_folder
from mmface.training.face_diffusion import FaceDiffusion
from mmface.training.metering import time_buckets
from mmface.training.task import Companions, RunFacts

ADAPTER_FILE = "adapter.safetensors"
MAP_LOSS = AttentionMapLoss()


class Personalized(nn.Module):
    """A network with its adapter, and the encoder if it is trained along."""

    def __init__(self, transformer: MMFaceDiT, encoder: nn.Module | None) -> None:
        super().__init__()
        self.transformer = transformer
        self.encoder = encoder
        self.config = transformer.config


class Personalization(FaceDiffusion):
    """An adapter under training; the network below it is frozen."""

    def __init__(
        self,
        transformer: MMFaceDiT,
        base: str | Path,
        subjects: SubjectSettings,
        encoder: str | None = None,
        map_loss: AttentionMapLoss = MAP_LOSS,
        masked_share: float = 0.5,
        **options: Any,
    ) -> None:
        """Set up the adapter.

        Args:
            transformer: the network, of the base's sizes.
            base: folder of the pipeline whose network is frozen.
            subjects: the adapter's sizes.
            encoder: vision tower that is trained along, on pictures in the store; None for features
                of a frozen one.
            map_loss: the term on attention maps.
            masked_share: share of the samples whose denoising loss counts inside the people alone.
            **options: further arguments of `FaceDiffusion`, without `init_from`.

        Raises:
            ValueError: if the encoder is of other sizes than the adapter.
        """
        check_number("masked_share", masked_share, 0, 1)
        # What lies below the adapter is not trained: it is read at every start.
        load_initial_weights(transformer, network_folder(base))
        add_reference_adapter(transformer, subjects)
        train_adapter_alone(transformer)
        use_reference_lora(transformer, True)
        super().__init__(transformer, init_from=None, **options)
        self.map_loss, self.masked_share = map_loss, masked_share
        self.reader: ReferenceEncoder | None = None
        self.description: dict[str, Any] = {}
        if encoder is not None:
            self.reader = ReferenceEncoder.from_pretrained(encoder)
            sizes = (self.reader.cls_dim, self.reader.patch_dim)
            if sizes != (subjects.cls_dim, subjects.patch_dim):
                raise ValueError(
                    f"The encoder {encoder} gives features of widths {sizes}; set "
                    "task.subjects.cls_dim and patch_dim to them."
                )
            self.reader.tower.requires_grad_(True)
            train_what_counts(self.reader.tower)
        tower = None if self.reader is None else self.reader.tower
        self.trained = Personalized(transformer, tower)

    @classmethod
    def planned(cls, network: Any, settings: Mapping[str, Any]) -> Companions:
        """Add the adapter to the network."""
        sizes = {k: v for k, v in settings["subjects"].items() if not k.startswith("_")}
        add_reference_adapter(network, SubjectSettings(**sizes))
        train_adapter_alone(network)
        return Companions()

    @property
    def product(self) -> Any:
        """The adapter with its network and encoder."""
        return self.trained

    def check_samples(self, samples: Samples) -> None:
        """Refuse samples without references, and learn from their store which encoder made them."""
        parts = samples.streams.values() if isinstance(samples, MixedSamples) else [samples]
        for part in parts:
            if not isinstance(part, ReferenceSamples):
                raise ValueError(
                    f"{type(self).__name__} trains on ReferenceSamples, got "
                    f"{type(part).__name__}; take data=references."
                )
            has_pixels = REFERENCE in part.kept
            if has_pixels != (self.reader is not None):
                wanted = "pictures" if self.reader is not None else "features"
                raise ValueError(
                    f"{part.store.folder} does not hold {wanted} of the references: task.encoder "
                    "is for pictures, null for features."
                )
            made_by = part.store.spec.made_by.get("encoders", {}).get(REFERENCE, {})
            identity = {k: v for k, v in made_by.items() if k != "source"}
            self.description = {"source": made_by.get("source", ""), "identity": identity}
        super().check_samples(samples)

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Float[Tensor, " batch"]]:
        """Corrupt the latents, predict with the references heard, and compare."""
        parts = [self._losses(each) for each in _streams(batch).values()]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _losses(self, batch: Mapping[str, Any]) -> dict[str, Float[Tensor, " batch"]]:
        latents = batch["latents"].float()
        corrupted = self.objective.corrupt(latents, batch["noise"], batch["uniform"])
        captions, network = list(batch["caption"]), self.trained.transformer
        faces = self.faces(batch, captions)
        fusion, is_before = network.reference.fusion, network.reference.settings.fusion == "pre"
        with fusion.before(self.text_model, faces) if is_before else nullcontext():
            text = self.text(captions)
        wanted = self.map_loss.blocks(len(network.blocks))
        maps: dict[int, Any] | None = dict.fromkeys(wanted) or None
        prediction = network(
            corrupted.noisy_latents,
            batch["condition"].float(),
            corrupted.timestep,
            text.tokens,
            text.pooled,
            batch["modality"],
            faces,
            maps,
        )
        people = person_cover(batch["cover"])
        prediction, corrupted = self._inside(prediction, corrupted, people, batch["uniform"])
        terms = self.objective.weighted_terms(prediction, corrupted)
        if maps:
            rows, columns = (side // network.patch_size for side in latents.shape[2:])
            covers = torch.cat((people, batch["word_cover"].to(people.dtype)), dim=1)
            masks = F.adaptive_avg_pool2d(covers, (rows, columns)).flatten(2).clamp(0, 1)
            assert faces.words is not None, "the words of the batch's parts are collated with it"
            spots = torch.cat((faces.positions, faces.words), dim=1)
            valid = (spots >= 0) & (masks.sum(-1) > 0)
            heard = faces.valid.any(-1)
            valid[:, : heard.shape[1]] &= heard
            terms[NAME] = self.map_loss(maps.values(), masks, valid, heard.shape[1])
        losses = summed(terms)
        if maps:
            own = masks[:, : heard.shape[1]]
            shares = torch.stack([own_share(each.detach(), own) for _, each in maps.values()])
            losses["own_share"] = shares.mean((0, 2))
        return losses

    def faces(self, batch: Mapping[str, Any], captions: list[str]) -> Faces:
        """Read the references of a batch, and find the places of their words."""
        valid = batch["reference_valid"]
        if self.reader is not None:
            pixels = batch[REFERENCE].float() / 127.5 - 1
            cls, patches = self.reader(pixels.flatten(0, 2))
            shape = valid.shape
            cls, patches = cls.unflatten(0, shape), patches.unflatten(0, shape)
        else:
            cls, patches = (batch[f"{REFERENCE}_{name}"].float() for name in ("cls", "patches"))
        positions, words = (
            torch.tensor(
                [
                    self.text.word_positions(caption, [(int(a), int(b)) for a, b in own])
                    for caption, own in zip(captions, batch[name].tolist(), strict=True)
                ],
                device=valid.device,
            )
            for name in ("spans", "word_spans")
        )
        ones = torch.ones(len(valid), device=valid.device)
        return Faces(cls, patches, valid, positions, ones, None, words)

    def _inside(
        self, prediction: Tensor, corrupted: Corrupted, people: Tensor, uniform: Tensor
    ) -> tuple[Tensor, Corrupted]:
        """Let the loss of some samples count inside the people alone, by weights of mean 1.

        Which samples, is decided by the digits of the draw for the time that the time is not.
        """
        union = people.amax(1, keepdim=True)
        mask = F.interpolate(union, prediction.shape[2:], mode="area").clamp(0, 1)
        chosen = (uniform * 4096) % 1 < self.masked_share
        chosen &= mask.flatten(1).sum(1) > 0
        weights = torch.where(chosen[:, None, None, None], mask, torch.ones_like(mask))
        weights = (weights / weights.mean((1, 2, 3), keepdim=True)).sqrt()
        return prediction * weights, replace(corrupted, target=corrupted.target * weights)

    def subsets(self, batch: Mapping[str, Any]) -> dict[str, Bool[Tensor, " batch"]]:
        """Ten equal parts of the time's draw, and the number of people."""
        streams = list(_streams(batch).values())
        people = torch.cat([each["uniform"] * 0 + each["spans"].shape[1] for each in streams])
        found = time_buckets(torch.cat([each["uniform"] for each in streams]))
        return found | {"one_person": people == 1, "two_people": people == 2}

    def flops_per_sample(self, batch: Mapping[str, Any]) -> None:
        """Not counted: a frozen network with trained parts has a cost of its own."""

    def preview(self, product: Any, folder: Path, step: int) -> None:
        """Show nothing; `scripts/evaluate.py` samples with an adapter."""

    def check_export(self, product: Any) -> None:
        """Find nothing: the file's description is written at once."""

    def export(self, product: Any, folder: Path) -> None:
        """Write the adapter's file."""
        folder.mkdir(parents=True, exist_ok=True)
        description, weights = self.description, {}
        if self.reader is not None:
            description = self.reader.describe()
            weights = product.encoder.state_dict()
        save_reference_adapter(
            product.transformer, folder / ADAPTER_FILE, description, weights, self.export_dtype
        )

    def describe(self, folder: Path, facts: RunFacts) -> None:
        """Write what the adapter is for."""
        base = facts.settings.get("task.base", "its base")
        text = (
            "# Reference adapter\n\nFor the pipeline "
            f'`{base}`: `pipe.load_reference_adapter("{ADAPTER_FILE}")`. Trained for '
            f"{facts.steps:,} steps of {facts.global_batch_size} samples with mmface, after "
            "MM-Diff (arXiv 2403.15059). Show faces of people who agree to it.\n"
        )
        (folder / "README.md").write_text(text, encoding="utf-8")


def _streams(batch: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """A batch of each stream; a batch of one form is its own."""
    return {"": batch} if "latents" in batch else batch


def person_cover(
    cover: Tensor,
) -> Float[Tensor, "batch people rows columns"]:
    """How much of each cell a person covers: all classes but the background, the first."""
    return (cover[:, :, 1:].float().sum(2) / 255).clamp(0, 1)


def train_what_counts(tower: nn.Module) -> None:
    """Freeze what a tower's features do not depend on, as processes that share gradients ask."""
    config: Any = tower.config
    if config.model_type == "dinov2":
        tower.get_parameter("embeddings.mask_token").requires_grad_(False)
