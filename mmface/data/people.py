"""Pictures of people, several of each: rendered, and as training samples with their references."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmface.conditions import LABEL_INDEX
from mmface.conditions.reference import NO_SPAN, person_span, word_span
from mmface.core.command_line import check_number, check_whole
from mmface.data.latents import COVER
from mmface.data.pictures import IDENTITY, RenderedPictures
from mmface.data.samples import LatentSamples
from mmface.data.store import StoreSpec
from mmface.rendered.people import HELD_OUT_IDENTITY, identity, pair_caption, render_person

REFERENCE = "reference"
"""Name of the encoder whose columns hold what is kept of references."""
WORD_PARTS: dict[str, tuple[str, ...]] = {
    "hair": ("hair",),
    "eyes": ("l_eye", "r_eye"),
    "glasses": ("eye_g",),
    "hat": ("hat",),
    "necklace": ("neck_l",),
    "earrings": ("ear_r",),
    "beard": ("skin",),
    "skin": ("skin", "nose"),
    "shirt": ("cloth",),
    "dress": ("cloth",),
    "sweater": ("cloth",),
    "suit": ("cloth",),
    "background": ("background",),
}
"""A word of a caption -> the classes of the mask where it is seen."""


@dataclass(frozen=True)
class RenderedPeople(RenderedPictures):
    """Draws `pictures_each` pictures of identities `first_seed`, `first_seed + 1`, ...

    `num_faces` counts pictures.
    """

    pictures_each: int = 4

    def write(self, folder: Any, process_index: int = 0, num_processes: int = 1) -> None:
        """Write this process's shards; ValueError if they would reach held-out identities."""
        last = self.first_seed + self.num_faces // self.pictures_each - 1
        if self.first_seed < HELD_OUT_IDENTITY <= last:
            raise ValueError(
                f"identities {self.first_seed}..{last} run into the held-out ones, which start at "
                f"{HELD_OUT_IDENTITY}; take fewer"
            )
        super().write(folder, process_index, num_processes)

    def _spec(self) -> StoreSpec:
        plain = super()._spec()
        made_by = {
            "kind": "rendered people",
            "first_identity": self.first_seed,
            "pictures_each": self.pictures_each,
        }
        texts = ("captions", IDENTITY)
        return StoreSpec(plain.num_items, plain.arrays, texts, made_by, plain.shard_size)

    def _row(self, seed: int) -> dict[str, Any]:
        number, picture = divmod(seed - self.first_seed, self.pictures_each)
        person = identity(self.first_seed + number)
        face = render_person(person, picture, self.size_px)
        return {
            "id": f"person/{person.number}/{picture}",
            "image": face.image,
            "labels": face.labels,
            "sketch": face.sketch,
            "captions": face.captions,
            IDENTITY: (f"rendered/{person.number}",),
        }


class ReferenceSamples(LatentSamples):
    """Latents with other pictures of the same person as references.

    Beside `LatentSamples`, which draws the target: `reference_*`, what is stored of the references,
    [E, R, ...], `reference_valid` [E, R], `spans` [E, 2] of the people's words in the caption,
    `cover` [E, classes, side, side], and `word_spans` [W, 2] with `word_cover` [W, side, side] of
    words that name a part of the face.
    """

    num_people = 1
    num_words = 3

    def __init__(
        self,
        store: Any,
        max_references: int = 2,
        reference_dropout: float = 0.05,
        both_dropout: float = 0.05,
        **options: Any,
    ) -> None:
        """Read from a latent store with identities and references.

        Args:
            store: its folder.
            max_references: at most so many references of a person, R.
            reference_dropout: probability of a sample without references.
            both_dropout: that of one without references and without a prompt.
            **options: of `LatentSamples`.

        Raises:
            ValueError: if the store does not know who its faces are, or nothing is stored of them.
        """
        super().__init__(store, **options)
        check_whole("max_references", max_references, 1, 100)
        check_number("reference_dropout", reference_dropout, 0, 1)
        check_number("both_dropout", both_dropout, 0, 1)
        self.max_references = max_references
        self.reference_dropout, self.both_dropout = reference_dropout, both_dropout
        spec = self.store.spec
        self.kept = tuple(name for name in spec.arrays if name.split("_")[0] == REFERENCE)
        if IDENTITY not in spec.texts or not self.kept:
            lacks = "identities" if IDENTITY not in spec.texts else f"{REFERENCE} features"
            raise ValueError(
                f"{self.store.folder} has no {lacks}; make the store of pictures of known people "
                f"with job.encoders.{REFERENCE}, as configs/experiment/tiny_people_latents.yaml "
                "does."
            )
        self.people: dict[str, list[int]] = {}
        for item in self.items:
            for name in self.store.rows[IDENTITY][item]:
                self.people.setdefault(name, []).append(item)
        self.owner = {i: name for name, own in self.people.items() for i in own if len(own) > 1}
        self.items = [item for item in self.items if item in self.owner]
        if not self.items:
            raise ValueError(f"{self.store.folder} has no person with two pictures or more.")

    def sample(self, item: int, generator: torch.Generator) -> dict[str, Any]:
        """Draw the target as `LatentSamples` does, and its references."""
        drawn = super().sample(item, generator)
        if _coin(generator, self.both_dropout):
            drawn["caption"] = ""
            kept = 0.0
        else:
            kept = 1 - self.reference_dropout
        target = self.items[item]
        drawn |= self._references([target], _coin(generator, kept), generator)
        caption = drawn["caption"]
        words = [(each, word_span(caption, each)) for each in WORD_PARTS]
        there = [(each, span) for each, span in words if span is not None][: self.num_words]
        cover = drawn["cover"][0].float() / 255
        spans = torch.full((self.num_words, 2), NO_SPAN[0])
        parts = torch.zeros(self.num_words, *cover.shape[1:])
        for place, (word, span) in enumerate(there):
            spans[place] = torch.tensor(span)
            parts[place] = cover[[LABEL_INDEX[name] for name in WORD_PARTS[word]]].sum(0)
        return drawn | {
            "spans": torch.tensor([person_span(caption) or NO_SPAN]),
            "word_spans": spans,
            "word_cover": parts,
        }

    def _references(
        self, targets: Sequence[int], kept: bool, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Draw references for the person of each target, and read how their masks cover it."""
        found: dict[str, list[np.ndarray]] = {name: [] for name in self.kept}
        valid = torch.zeros(len(targets), self.max_references, dtype=torch.bool)
        for place, target in enumerate(targets):
            others = [each for each in self.people[self.owner[target]] if each != target]
            order = torch.randperm(len(others), generator=generator).tolist()
            count = 1 + int(torch.randint(self.max_references, (), generator=generator))
            chosen = [others[k] for k in order[:count]]
            valid[place, : len(chosen)] = kept
            chosen += [chosen[0]] * (self.max_references - len(chosen))
            rows = [self.store.row(each, self.kept) for each in chosen]
            for name in self.kept:
                found[name].append(np.stack([row[name] for row in rows]))
        drawn = {name: torch.from_numpy(np.stack(own)) for name, own in found.items()}
        if COVER in self.store.spec.arrays:
            covers = [self.store.row(each, (COVER,))[COVER] for each in targets]
            drawn["cover"] = torch.from_numpy(np.stack(covers))
        else:
            drawn["cover"] = torch.zeros(len(targets), len(LABEL_INDEX), 1, 1, dtype=torch.uint8)
        return drawn | {"reference_valid": valid}


class PairedReferenceSamples(ReferenceSamples):
    """Two people side by side, each with references, made of two targets of the store.

    The latents of both, and those of their conditions, are laid beside each other. The caption
    names both, in either order; E is 2, and people are in the caption's order. For stores of
    `RenderedPeople`, whose last captions can be joined.
    """

    num_people = 2

    def sample(self, item: int, generator: torch.Generator) -> dict[str, Any]:
        """Draw both targets and their references."""
        target = self.items[item]
        while True:
            other = int(torch.randint(len(self.items), (), generator=generator))
            if self.owner[self.items[other]] != self.owner[target]:
                break
        first = LatentSamples.sample(self, item, generator)
        kind = next(kind for kind in self.kinds if kind.index == int(first["modality"]))
        targets = [target, self.items[other]]
        rows = [self.store.row(each, ("image", kind.name, "captions")) for each in targets]
        drawn = dict(first)
        for name, column in (("latents", "image"), ("condition", kind.name)):
            drawn[name] = torch.cat([torch.from_numpy(row[column]) for row in rows], dim=-1)
        if not first["condition"].any():
            drawn["condition"] = torch.zeros_like(drawn["condition"])
        drawn["noise"] = torch.randn(drawn["latents"].shape, generator=generator)
        order = torch.randperm(2, generator=generator).tolist()
        # The last caption of a rendered person is the word for them and a few more.
        said = [row["captions"][-1].partition(" ") for row in rows]
        genders, _, details = zip(*said, strict=True)
        caption, spans = pair_caption(genders, details, order)
        kept = not _coin(generator, self.reference_dropout)
        if not first["caption"] or _coin(generator, self.both_dropout):
            caption, spans = "", (NO_SPAN, NO_SPAN)
            kept = kept and bool(first["caption"] == "")
        drawn |= self._references([targets[side] for side in order], kept, generator)
        cover = torch.zeros(*drawn["cover"].shape[:-1], 2 * drawn["cover"].shape[-1]).byte()
        for place, side in enumerate(order):
            halves = cover[place].chunk(2, dim=-1)
            halves[side].copy_(drawn["cover"][place])
        return drawn | {
            "caption": caption,
            "cover": cover,
            "spans": torch.tensor(spans),
            "word_spans": torch.full((self.num_words, 2), NO_SPAN[0]),
            "word_cover": torch.zeros(self.num_words, *cover.shape[-2:]),
        }


def _coin(generator: torch.Generator, probability: float) -> bool:
    return torch.rand((), generator=generator).item() < probability
