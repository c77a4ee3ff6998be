"""Examines a data set: a look at a sample, then face by face in processes, then the whole."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from mmface.conditions import (
    LABEL_FORMATS,
    LABELS,
    LabelFormatGuess,
    class_indices,
    guess_label_format,
    open_picture,
)
from mmface.data.manifest import Manifest, Record
from mmface.data.perceptual_hash import lowest_frequencies
from mmface.doctor import face_checks, set_checks  # noqa: F401  they register their checks
from mmface.doctor.alignment import MAX_REFERENCES, OUTLINES, reference_of
from mmface.doctor.face import Examination, Face, working_size
from mmface.doctor.face_checks import is_mirrored, swaps
from mmface.doctor.findings import CHECKS, Finding, checks_of
from mmface.doctor.lines import LenientReading, read_leniently
from mmface.doctor.patient import ExaminedFace, Patient

MIN_MASKS_FOR_ORDER = 4
"""Masks of a label format from which the set's order is judged."""

_FEW = 64  # faces that are examined sooner than processes start


@dataclass(frozen=True)
class Diagnosis:
    """The manifest as far as it could be read, what its faces left behind, and all findings."""

    reading: LenientReading
    patient: Patient
    findings: Sequence[Finding]

    @property
    def has_errors(self) -> bool:
        """Whether training would fail or learn wrong."""
        return any(each.severity == "error" for each in self.findings)


def examine(
    manifest: str | Path,
    size_px: int | None = None,
    tokenizer: str | Path | None = None,
    store: str | Path | None = None,
    num_workers: int | None = None,
) -> Diagnosis:
    """Examine a data set; no file of it is changed.

    `size_px` is the edge that pictures are wanted for, smaller ones are reported; `tokenizer` is
    the text encoder's folder, to count captions in tokens; `store` holds latents of the manifest,
    which may be stale. One process a processor if `num_workers` is None.
    """
    reading = read_leniently(manifest)
    examination = Examination(reading.manifest.path.parent, size_px, load_tokenizer(tokenizer))
    sample = _sample(reading.manifest)
    guesses = _label_guesses(sample, reading.manifest.path.parent)
    judged = [_with_guess(each, guesses) for each in reading.manifest.records]
    shown = [Face(_with_guess(each, guesses), examination) for each in sample]
    found = {name: reference_of(shown, name) for name in OUTLINES}
    references = {name: each for name, each in found.items() if each is not None}
    examination = replace(examination, references=references)
    with _mapped(judged, examination, num_workers) as examined:
        bar = tqdm(examined, desc="faces", total=len(judged), unit="face")
        faces = list(bar)
    typical = {name: each.typical_excess for name, each in references.items()}
    latents = None if store is None else Path(store)
    patient = Patient(reading.manifest, faces, guesses, typical, latents)
    return Diagnosis(reading, patient, _gathered(reading, patient))


def load_tokenizer(folder: str | Path | None) -> object:
    """Load a tokenizer from a folder; None gives None, and ValueError if it has none."""
    if folder is None:
        return None
    from transformers import AutoTokenizer  # takes seconds, and most examinations do without

    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"There is no tokenizer in {folder} ({error}).") from None


def _sample(manifest: Manifest) -> list[Record]:
    count = min(MAX_REFERENCES, len(manifest.records))
    places = np.linspace(0, len(manifest.records) - 1, count).round().astype(int)
    return [manifest.records[place] for place in places.tolist()]


def _label_guesses(sample: Sequence[Record], folder: Path) -> Mapping[str, LabelFormatGuess]:
    pictures: dict[str, list[Image.Image]] = {}
    for record in sample:
        if record.mask is not None:
            with suppress(ValueError, OSError):  # what cannot be read is said face by face
                mask = open_picture(folder / record.mask)
                mask = mask.resize(working_size(mask), Image.Resampling.NEAREST)
                pictures.setdefault(record.label_format, []).append(mask)
    guesses = {}
    for said, masks in pictures.items():
        own = LABEL_FORMATS[said]
        by_index = [each for each in masks if class_indices(each) is not None]
        in_color = [each for each in masks if all(each is not other for other in by_index)]
        alike = max(by_index, in_color, key=len)
        if len(alike) < MIN_MASKS_FOR_ORDER:
            continue
        guess = guess_label_format(alike)
        if guess.format is None:
            continue
        differs = guess.format.classes != own.classes
        if differs or (alike is in_color and guess.format.palette != own.palette):
            guesses[said] = guess
    return guesses


def _with_guess(record: Record, guesses: Mapping[str, LabelFormatGuess]) -> Record:
    """Read a mask as what it looks like, so that one wrong word is one finding."""
    guess = guesses.get(record.label_format)
    if guess is None or guess.format is None:
        return record
    return record.having(label_format=guess.format.name)


def examine_face(record: Record, examination: Examination) -> ExaminedFace:
    """Examine one face for itself, and keep what the checks of the whole set need of it."""
    face = Face(record, examination)
    findings = [finding for each in checks_of("face") for finding in each.findings(face, record.id)]
    labels = face.labels
    counts = None if labels is None else np.bincount(labels.ravel(), minlength=len(LABELS))
    return ExaminedFace(
        findings=tuple(findings),
        sha256=face.sha256,
        thumb=face.thumb,
        frequencies=None if face.thumb is None else lowest_frequencies(face.thumb),
        class_shares=None if counts is None else counts / counts.sum(),
        off_palette_fraction=getattr(face.mask, "off_palette_fraction", None),
        mirrored=is_mirrored(face) if len(swaps(face)) >= 2 else None,
    )


_worker: list[Examination] = []


def _start_worker(examination: Examination) -> None:
    _worker.append(examination)


def _examine_in_worker(record: Record) -> ExaminedFace:
    return examine_face(record, _worker[0])


@contextmanager
def _mapped(
    records: Sequence[Record], examination: Examination, num_workers: int | None
) -> Iterator[Iterable[ExaminedFace]]:
    num_workers = num_workers or os.cpu_count() or 1
    if len(records) <= _FEW or num_workers == 1:
        yield map(partial(examine_face, examination=examination), records)
        return
    context = get_context("spawn")
    with ProcessPoolExecutor(num_workers, context, _start_worker, (examination,)) as processes:
        yield processes.map(_examine_in_worker, records, chunksize=16)


def _gathered(reading: LenientReading, patient: Patient) -> list[Finding]:
    """Put all findings in the order of the checks; a mirrored set is reported once."""
    found = list(reading.findings)
    for face in patient.faces:
        found += [
            each
            for each in face.findings
            if not (patient.is_mirrored and each.kind == face_checks.mirrored_mask.__name__)
        ]
    found += [finding for each in checks_of("set") for finding in each.findings(patient)]
    order = {kind: place for place, kind in enumerate(CHECKS)}
    return sorted(found, key=lambda each: order[each.kind])
