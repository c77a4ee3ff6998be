"""What the examination of all faces leaves for the checks that look at the whole set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from mmface.conditions import LABELS, LabelFormatGuess
from mmface.data.manifest import Manifest, Record
from mmface.data.perceptual_hash import hashes_of, near_pairs
from mmface.doctor.findings import Finding


@dataclass(frozen=True)
class ExaminedFace:
    """What one face leaves behind for the checks of the whole set; None where it has none.

    `thumb` is the photo, uint8 [16, 16, 3]; `frequencies`, float32 [64], are `perceptual_hash`'s
    lowest; `class_shares`, float64 [19], and `off_palette_fraction` are fractions of the mask's
    pixels; `mirrored` tells whether the mask's left and right are swapped, None if it cannot be
    told.
    """

    findings: tuple[Finding, ...]
    sha256: str | None
    thumb: np.ndarray | None
    frequencies: np.ndarray | None
    class_shares: np.ndarray | None
    off_palette_fraction: float | None
    mirrored: bool | None

    @property
    def is_readable(self) -> bool:
        """Whether training could read all its files."""
        return not any(each.kind in UNREADABLE for each in self.findings)


UNREADABLE = frozenset(
    {
        "missing_file",
        "unreadable_file",
        "truncated_file",
        "unusable_condition",
        "off_palette",
        "blank_sketch",
        "inverted_sketch",
        "no_sketch",
    }
)
"""Kinds of findings of a face that training would leave out."""

_KEPT_FIRST = ("test", "val", "train")


@dataclass(frozen=True)
class Duplicate:
    """A photo that is in the set more than once; `record` could go and `kept` stays.

    Kept is one of the test split if there is one, and of these the one with fewest findings.
    `same_file` tells equal files from pictures that look alike.
    """

    record: Record
    kept: Record
    same_file: bool


@dataclass(frozen=True)
class Patient:
    """A data set, examined face by face in the manifest's order.

    `label_guesses` maps a label format of the manifest to what its masks look like;
    `typical_excess` is by `mask` and `sketch` (see `face.Reference`); `store` is the folder of its
    latents.
    """

    manifest: Manifest
    faces: Sequence[ExaminedFace]
    label_guesses: Mapping[str, LabelFormatGuess] = field(default_factory=dict)
    typical_excess: Mapping[str, float] = field(default_factory=dict)
    store: Path | None = None

    @property
    def class_histogram(self) -> dict[str, dict[str, float]]:
        """By class, the masks that have it and its mean share of a mask's pixels."""
        shares = [each.class_shares for each in self.faces if each.class_shares is not None]
        stacked = np.array(shares).reshape(-1, len(LABELS))
        return {
            name: {
                "masks": int((stacked[:, index] > 0).sum()),
                "share_of_pixels": float(stacked[:, index].mean()) if len(stacked) else 0.0,
            }
            for index, name in enumerate(LABELS)
        }

    @property
    def is_mirrored(self) -> bool:
        """Whether the set as a whole has left and right swapped."""
        told = [each.mirrored for each in self.faces if each.mirrored is not None]
        return len(told) >= 2 and sum(told) >= 0.8 * len(told)

    @cached_property
    def duplicates(self) -> Sequence[Duplicate]:
        """Photos that look like another of the set, in the manifest's order."""
        places = [n for n, each in enumerate(self.faces) if each.thumb is not None]
        if len(places) < 2:
            return []
        thumbs = np.array([self.faces[n].thumb for n in places])
        frequencies = np.array([self.faces[n].frequencies for n in places])
        pairs = near_pairs(hashes_of(frequencies), thumbs).tolist()
        records, found = self.manifest.records, {}
        for group in _groups(pairs):
            numbers = [places[each] for each in group]
            kept, *others = sorted(
                numbers,
                key=lambda n: (
                    _KEPT_FIRST.index(records[n].split),
                    len(self.faces[n].findings),
                    n,
                ),
            )
            for n in others:
                same = self.faces[n].sha256 == self.faces[kept].sha256
                found[n] = Duplicate(records[n], records[kept], same)
        return [found[n] for n in sorted(found)]


def _groups(pairs: Sequence[Sequence[int]]) -> list[list[int]]:
    """Join pairs that share a member."""
    group_of: dict[int, list[int]] = {}
    for one, other in pairs:
        first, second = group_of.setdefault(one, [one]), group_of.setdefault(other, [other])
        if first is not second:
            small, large = sorted((first, second), key=len)
            large += small
            group_of |= dict.fromkeys(small, large)
    return list({id(group): group for group in group_of.values()}.values())
