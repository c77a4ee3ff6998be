"""A data set of the `datasets` library: a folder that it saved, or a name on the hub."""

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image
from tqdm import tqdm

from mmface.conditions import condition_kinds
from mmface.core.files import write_bytes
from mmface.data.importers.base import FaceFiles, Importer
from mmface.data.importers.splits import SplitRule, face_key

_SPLIT_NAMES = {"train": "train", "validation": "val", "valid": "val", "val": "val", "test": "test"}
_SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp", "BMP": ".bmp", "TIFF": ".tif"}


def picture_columns() -> tuple[str, ...]:
    """Name the columns that hold pictures: the photo and the kinds of condition."""
    return ("image", *(kind.name for kind in condition_kinds()))


def all_columns() -> tuple[str, ...]:
    """Name all columns that an import looks for."""
    return ("id", *picture_columns(), "captions")


class HuggingFaceDataset(Importer):
    """A data set of the `datasets` library with named columns.

    Its pictures are written out beside the manifest, byte by byte as they were stored. A picture
    is complete or absent, and one that is there is not written again.
    """

    default_prefix: ClassVar[str] = ""

    def __init__(
        self,
        folder: str | Path,
        split: SplitRule | None = None,
        prefix: str | None = None,
        columns: Mapping[str, str] | None = None,
    ) -> None:
        """Choose a folder that `save_to_disk` wrote, or what `load_dataset` takes.

        `columns` renames those of `all_columns`, of which only `image` must be there; faces without
        an `id` are numbered.
        """
        super().__init__(folder, split, Path(folder).name if prefix is None else prefix)
        unknown = set(columns or ()) - set(all_columns())
        if unknown:
            raise ValueError(f"{', '.join(unknown)} is none of {', '.join(all_columns())}.")
        self.columns = dict(columns or {})

    def check_folder(self) -> None:
        """Leave it to the library, which also takes names on the hub."""

    def faces(self, beside: Path) -> list[FaceFiles]:
        """Write the pictures and find the faces."""
        parts = self._parts()
        found: dict[str, FaceFiles] = {}
        total = sum(len(part) for part in parts.values())
        with tqdm(desc="pictures", total=total, unit="face") as bar:
            for name, part in parts.items():
                columns = self._columns(part)
                for row in self._rows(part, columns):
                    key = face_key(str(row["id"])) if "id" in columns else f"{len(found):05d}"
                    if key in found:
                        self.report.ignored.append(f"{name}/{key}, a second one of this id")
                    elif face := self._face(key, row, beside, _SPLIT_NAMES.get(name)):
                        found[key] = face
                    bar.update()
        own = "its own" if self.split is None else self.split.says
        self.report.notes.append(f"split: {own}" if self.split is None else own)
        return list(found.values())

    def _parts(self) -> Mapping[str, Any]:
        """Open the data set; its parts by name."""
        import datasets

        try:
            if (self.folder / "dataset_dict.json").exists() or (
                self.folder / "state.json"
            ).exists():
                opened = datasets.load_from_disk(str(self.folder))
            else:
                opened = datasets.load_dataset(self.folder.as_posix())
        except (OSError, ValueError, ConnectionError) as error:
            raise ValueError(f"{self.folder} cannot be opened as a data set ({error}).") from error
        parts = dict(opened) if isinstance(opened, dict) else {"all": opened}
        foreign = [name for name in parts if name not in _SPLIT_NAMES]
        if foreign and self.split is None:
            raise ValueError(
                f"{self.folder} does not say which faces are for training (its parts are "
                f"{', '.join(parts)}); give --split."
            )
        return parts

    def _columns(self, part: Any) -> dict[str, str]:
        named = {name: self.columns.get(name, name) for name in all_columns()}
        wanted = {*self.columns, "image"}
        missing = [
            named[name] for name in all_columns() if name in wanted - self._there(part, named)
        ]
        if missing:
            raise ValueError(
                f"{self.folder} has no column {', '.join(missing)}; it has "
                f"{', '.join(part.column_names)}. Name them with --column, as image=photo."
            )
        return {name: named[name] for name in all_columns() if name in self._there(part, named)}

    @staticmethod
    def _there(part: Any, named: Mapping[str, str]) -> set[str]:
        return {name for name, column in named.items() if column in part.column_names}

    def _rows(self, part: Any, columns: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        import datasets

        for name in picture_columns():
            if name in columns:
                if not isinstance(part.features[columns[name]], datasets.Image):
                    raise ValueError(
                        f"The column {columns[name]} of {self.folder} has no pictures."
                    )
                part = part.cast_column(columns[name], datasets.Image(decode=False))
        for row in part.select_columns(list(columns.values())):
            yield {name: row[column] for name, column in columns.items()}

    def _face(
        self, key: str, row: Mapping[str, Any], beside: Path, own_split: str | None
    ) -> FaceFiles | None:
        """Write one face's pictures; None if its photo is none."""
        paths: dict[str, Path | None] = {}
        for name in picture_columns():
            try:
                paths[name] = _written(row[name], beside / name / key) if row.get(name) else None
            except (OSError, SyntaxError) as error:
                self.report.unreadable.append(f"{name} of {self.prefix}/{key} ({error})")
                paths[name] = None
        image = paths["image"]
        if image is None:
            self.report.without_image.append(f"{self.prefix}/{key}")
            return None
        words = row.get("captions") or ()
        words = words.splitlines() if isinstance(words, str) else words
        captions = tuple(each.strip() for each in words if each.strip())
        split = own_split if self.split is None else self.split.of(key)
        conditions = {name: path for name, path in paths.items() if path and name != "image"}
        return FaceFiles(key, self.prefix, image, conditions, captions, split)


def _written(stored: Mapping[str, Any], stem: Path) -> Path:
    """Write a stored picture under a name with the suffix of its format, unless it is there."""
    content = stored["bytes"] or Path(stored["path"]).read_bytes()
    with Image.open(io.BytesIO(content)) as picture:
        suffix = _SUFFIXES.get(picture.format or "", f".{(picture.format or 'bin').lower()}")
    path = stem.with_name(stem.name + suffix)
    if not path.exists():
        write_bytes(path, content)
    return path
