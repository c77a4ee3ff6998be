"""CelebAMask-HQ as it is published, and Multi-Modal-CelebA-HQ."""

import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image
from tqdm import tqdm

from mmface.conditions import LABELS, MASK
from mmface.core.files import written_aside
from mmface.data.importers.base import FaceFiles, Importer, files_below, first_there
from mmface.data.importers.splits import SplitRule, celeba_split, face_key

_FEW = 64  # masks that are composed sooner than processes start


class CelebAMaskHQ(Importer):
    """The raw data set: `CelebA-HQ-img/0.jpg` and a picture of each class of each face.

    The classes, `CelebAMask-HQ-mask-anno/0/00000_skin.png`, are composed into index maps beside
    the manifest, later ones over earlier ones in the order of `LABELS`, as `g_mask.py` does. A map
    is complete or absent, and one that is there is not made again.
    """

    default_prefix: ClassVar[str] = "celebahq"
    label_format: ClassVar[str | None] = "celebamask_hq"

    def __init__(
        self,
        folder: str | Path,
        split: SplitRule | None = None,
        prefix: str | None = None,
        num_workers: int | None = None,
    ) -> None:
        super().__init__(folder, split, prefix)
        self.num_workers = num_workers or os.cpu_count() or 1

    def faces(self, beside: Path) -> list[FaceFiles]:
        """Find the faces and compose their masks."""
        rule = self.split or celeba_split(self.folder)
        self.report.notes.append(rule.says)
        images = self.pictures_in(first_there(self.folder, ("CelebA-HQ-img",)))
        parts = self._parts()
        masks = self._composed({k: v for k, v in parts.items() if k in images}, beside / "masks")
        # A face without a photo is reported by any of its class pictures; none is composed.
        masks |= {k: next(iter(v.values())) for k, v in parts.items() if k not in images}
        captions = self.captions_in(first_there(self.folder, ("captions", "captions.json")))
        conditions = {MASK.name: masks} | self.conditions_in(self.folder, but=[MASK])
        return list(self.joined(images, conditions, captions, self.prefix, rule))

    def _parts(self) -> dict[str, dict[str, Path]]:
        folder = self.folder / "CelebAMask-HQ-mask-anno"
        found: dict[str, dict[str, Path]] = {}
        for path in files_below(folder) if folder.is_dir() else ():
            number, _, label = path.stem.partition("_")
            if path.suffix == ".png" and number.isdigit() and label in LABELS[1:]:
                found.setdefault(face_key(number), {})[label] = path
            else:
                self.ignore(path)
        return found

    def _composed(self, parts: dict[str, dict[str, Path]], folder: Path) -> dict[str, Path]:
        masks = {key: folder / f"{key}.png" for key in parts}
        missing = [key for key, path in masks.items() if not path.exists()]
        if missing:
            folder.mkdir(parents=True, exist_ok=True)
        todo = [(parts[key], masks[key]) for key in missing]
        bar = partial(tqdm, desc="masks", total=len(todo), unit="mask", disable=not todo)
        if self.num_workers == 1 or len(todo) < _FEW:
            faults = list(bar(map(_compose, todo)))
        else:
            with ProcessPoolExecutor(self.num_workers, get_context("spawn")) as processes:
                faults = list(bar(processes.map(_compose, todo, chunksize=8)))
        for key, fault in zip(missing, faults, strict=True):
            if fault:
                self.report.unreadable.append(fault)
                del masks[key]
        return masks


def _compose(job: tuple[dict[str, Path], Path]) -> str:
    """Write one index map; give what is wrong with its class pictures, if something is."""
    parts, path = job
    labels = np.zeros((0, 0), np.uint8)
    for index, name in enumerate(LABELS):
        if name not in parts:
            continue
        try:
            with Image.open(parts[name]) as picture:
                area = np.array(picture.convert("L")) > 0
        except (OSError, SyntaxError, ValueError) as error:
            return f"{parts[name]} ({error})"
        if not labels.size:
            labels = np.zeros(area.shape, np.uint8)
        if area.shape != labels.shape:
            return f"{parts[name]} ({area.shape}, the other classes {labels.shape})"
        labels[area] = index
    with written_aside(path) as aside:
        Image.fromarray(labels).save(aside, "PNG")
    return ""


class MultiModalCelebAHQ(Importer):
    """Multi-Modal-CelebA-HQ: `images`, ten captions a face in `text` or `celeba-caption`.

    Conditions are taken where folders hold them. The lists of its split are pickles, which are
    never read: text lists take their place, see `celeba_split`.
    """

    default_prefix: ClassVar[str] = "celebahq"

    def faces(self, beside: Path) -> list[FaceFiles]:
        """Find the faces."""
        rule = self.split or celeba_split(self.folder)
        self.report.notes.append(rule.says)
        there = partial(first_there, self.folder)
        return list(
            self.joined(
                self.pictures_in(there(("images", "image"))),
                self.conditions_in(self.folder),
                self.captions_in(there(("text", "celeba-caption", "captions.json"))),
                self.prefix,
                rule,
            )
        )
