"""Importers: from a data set's own folders to a manifest, without copying pictures.

`LAYOUTS` has a class for each layout. What a face lacks is reported and never hides the face; a
face without a photo or a split is reported and left out. The masks' label format and the
sketches' polarity are guessed from a sample where the layout does not fix them, and asked for
where the guess is undecided.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmface.conditions import (
    SKETCH_POLARITIES,
    condition_kinds,
    flat_rgb,
    guess_label_format,
    open_picture,
)
from mmface.data.importers.base import Importer, ImportReport
from mmface.data.importers.celeba import CelebAMaskHQ, MultiModalCelebAHQ
from mmface.data.importers.folders import FFHQ, AuthorsLayout, PhotoFolder
from mmface.data.importers.hub import HuggingFaceDataset
from mmface.data.importers.splits import SplitRule, parse_split
from mmface.data.manifest import Manifest, Record, reading_defaults

__all__ = [
    "LAYOUTS",
    "ImportReport",
    "Importer",
    "SplitRule",
    "import_faces",
    "importer_of",
    "parse_split",
]

LAYOUTS: Mapping[str, type[Importer]] = {
    "celebamask-hq": CelebAMaskHQ,
    "multi-modal-celeba-hq": MultiModalCelebAHQ,
    "ffhq": FFHQ,
    "authors": AuthorsLayout,
    "photos": PhotoFolder,
    "hugging-face": HuggingFaceDataset,
}
"""The importers by the name of their layout."""

SAMPLE = 16
"""Masks and sketches that are looked at for a guess."""


def importer_of(
    layout: str,
    folder: str | Path,
    split: SplitRule | None = None,
    prefix: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> Importer:
    """Make the importer of a layout in `LAYOUTS`; `columns` is for `hugging-face` alone.

    None takes the data set's own split, or its name as the ids' prefix.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"There is no layout {layout!r}; known are {', '.join(LAYOUTS)}.")
    options: dict[str, Any] = {"columns": columns} if columns else {}
    if columns and LAYOUTS[layout] is not HuggingFaceDataset:
        raise ValueError(f"The layout {layout} has no columns; leave out --column.")
    return LAYOUTS[layout](folder, split, prefix, **options)


def import_faces(
    importer: Importer, out: str | Path, readings: Mapping[str, str | None] | None = None
) -> Manifest:
    """Import a data set and write its manifest; `importer.report` is complete afterwards.

    `readings` says how conditions are written, by their kinds' fields, such as `label_format`; else
    the layout decides, a guess, or the kind's default. ValueError, with nothing written, if the
    layout holds no face, or a guess is undecided.
    """
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    records = importer.records(out)
    draft = Manifest(out, records)
    said = dict(readings or {})
    decided = {}
    for kind in condition_kinds():
        reading = kind.reading
        if reading is None:
            continue
        guess = _GUESSES.get(reading.field)
        decided[reading.field] = said.pop(reading.field, None) or (
            guess(draft, importer) if guess else reading.default
        )
        if decided[reading.field] not in reading.choices:
            raise ValueError(
                f"There is no {reading.field.replace('_', ' ')} {decided[reading.field]!r}; known "
                f"are {', '.join(reading.choices)}."
            )
    if said:
        known = ", ".join(reading_defaults())
        raise ValueError(f"No condition has a {', '.join(said)}; known are {known}.")
    layout = next(name for name, kind in LAYOUTS.items() if type(importer) is kind)
    made_by = {"layout": layout, "folder": str(importer.folder), "notes": importer.report.notes}
    styled = [each.having(readings=decided) for each in records]
    return Manifest(out, styled, decided, made_by).write(out)


def _sample(manifest: Manifest, name: str) -> list[Path]:
    """Take files spread evenly over those that the faces have."""
    records: Sequence[Record] = [each for each in manifest.records if name in each.conditions]
    chosen = np.linspace(0, len(records) - 1, min(SAMPLE, len(records))).round().astype(int)
    paths = [manifest.resolve(records[index], name) for index in chosen.tolist()]
    return [path for path in paths if path is not None]


def _label_format_of(manifest: Manifest, importer: Importer) -> str:
    masks = _sample(manifest, "mask")
    if importer.label_format is not None or not masks:
        return importer.label_format or reading_defaults()["label_format"]
    guess = guess_label_format(masks)
    if guess.format is None:
        raise ValueError(
            f"The label format of the masks is undecided: {guess.evidence}. Give --label-format "
            f"({', '.join(guess.alternatives)})."
            if guess.alternatives
            else f"The label format of the masks is undecided: {guess.evidence}. "
            "Give --label-format."
        )
    importer.report.notes.append(f"label format, a guess: {guess.format.name} ({guess.evidence})")
    return guess.format.name


def _polarity_of(manifest: Manifest, importer: Importer) -> str:
    """Guess the sketches' polarity by the middle of the picture, which is paper mostly."""
    sketches = _sample(manifest, "sketch")
    if not sketches:
        return SKETCH_POLARITIES[0]
    dark = 0
    for path in sketches:
        grey = flat_rgb(open_picture(path), "white").mean(axis=2)
        height, width = grey.shape
        middle = grey[height // 4 : -(height // 4) or None, width // 4 : -(width // 4) or None]
        dark += bool(np.median(middle) < 128)
    if 0.1 < dark / len(sketches) < 0.9:
        raise ValueError(
            f"{dark} of {len(sketches)} sketches are dark in the middle, the others are not; give "
            f"--sketch-polarity ({', '.join(SKETCH_POLARITIES)})."
        )
    polarity = SKETCH_POLARITIES[int(dark > len(sketches) / 2)]
    importer.report.notes.append(
        f"sketch polarity, a guess: {polarity} ({dark} of {len(sketches)} are dark in the middle)"
    )
    return polarity


_GUESSES: Mapping[str, Callable[[Manifest, Importer], str]] = {
    "label_format": _label_format_of,
    "sketch_polarity": _polarity_of,
}
"""How the reading of a kind is guessed, by its field, where it is not said."""
