"""FFHQ, the layout of the paper's authors, and any folder of photos."""

from pathlib import Path
from typing import ClassVar

from mmface.data.importers.base import (
    PICTURE_SUFFIXES,
    FaceFiles,
    Importer,
    files_below,
    first_there,
    read_captions,
)
from mmface.data.importers.splits import SplitRule, all_in, face_key

_IMAGES = ("images1024x1024", "images", "Images")
_CAPTIONS = ("captions", "text", "captions.json", "FFHQ_Captions_Final")


class FFHQ(Importer):
    """FFHQ: `images1024x1024/00000/00000.png`, in folders of a thousand or flat.

    Conditions and captions are taken from folders beside, where there are any. The paper
    trains on all 70,000, and so does the default split.
    """

    default_prefix: ClassVar[str] = "ffhq"

    def faces(self, beside: Path) -> list[FaceFiles]:
        """Find the faces."""
        rule = self.split or all_in("train")
        self.report.notes.append(rule.says)
        images = first_there(self.folder, _IMAGES)
        return list(
            self.joined(
                self.pictures_in(images or self.folder),
                self.conditions_in(self.folder if images else None),
                self.captions_in(first_there(self.folder, _CAPTIONS) if images else None),
                self.prefix,
                rule,
            )
        )


class AuthorsLayout(Importer):
    """The data set that the authors published with MMFace-DiT, joined with the photos.

    `Celeb_Final/{train,test}/{images,masks,sketches}`, `Celeb_Captions_Final`, `FFHQ` with
    `Masks_Colored_1024` and `sketches`, and `FFHQ_Captions_Final`. The photos are not part of it:
    they belong into `Celeb_Final/{train,test}/images` and `FFHQ/images`. CelebA-HQ's faces are
    split by their folder, and FFHQ's are for training.
    """

    default_prefix: ClassVar[str] = ""

    def __init__(
        self, folder: str | Path, split: SplitRule | None = None, prefix: str | None = None
    ) -> None:
        """Choose a folder, which brings its split and two prefixes, `celebahq` and `ffhq`."""
        if split is not None or prefix is not None:
            raise ValueError(
                "The authors' layout says itself which face is for training and which data set it "
                "is of; leave out --split and --prefix."
            )
        super().__init__(folder, split, prefix)

    def faces(self, beside: Path) -> list[FaceFiles]:
        """Find the faces of both data sets."""
        self.report.notes.append("split: celebahq by its folders train and test, ffhq for train")
        parts = [
            ("celebahq", "train", self.folder / "Celeb_Final" / "train", "Celeb_Captions_Final"),
            ("celebahq", "test", self.folder / "Celeb_Final" / "test", "Celeb_Captions_Final"),
            ("ffhq", "train", self.folder / "FFHQ", "FFHQ_Captions_Final"),
        ]
        captions = {
            name: self.captions_in(first_there(self.folder, (name, f"FFHQ/{name}")))
            for name in dict.fromkeys(name for *_, name in parts)
        }
        found: list[FaceFiles] = []
        used: set[tuple[str, str]] = set()
        for prefix, split, folder, name in parts:
            images = self.pictures_in(first_there(folder, _IMAGES))
            conditions = self.conditions_in(folder)
            mine = images.keys() | {key for each in conditions.values() for key in each}
            words = {key: captions[name][key] for key in mine & captions[name].keys()}
            used |= {(name, key) for key in words}
            found += self.joined(images, conditions, words, prefix, all_in(split))
        for name, by_key in captions.items():
            unused = sorted(key for key in by_key if (name, key) not in used)
            self.report.ignored += [f"{name}/{key}" for key in unused]
        return found


class PhotoFolder(Importer):
    """Any folder of photos, and the folders in it, with captions in files of the same name.

    `anna.jpg` has its captions in `anna.txt`, one a line, or in `anna.json`. Conditions are
    to be made.
    """

    default_prefix: ClassVar[str] = "photos"

    def faces(self, beside: Path) -> list[FaceFiles]:
        """Find the faces."""
        rule = self.split or all_in("train")
        self.report.notes.append(rule.says)
        found: dict[str, FaceFiles] = {}
        words = set()
        paths = files_below(self.folder)
        for path in paths:
            key = path.relative_to(self.folder).with_suffix("").as_posix()
            if path.suffix.lower() not in PICTURE_SUFFIXES:
                continue
            if key in found:
                self.ignore(path)
                continue
            captions: tuple[str, ...] = ()
            file = next(
                (f for s in (".txt", ".json") if (f := path.with_suffix(s)).is_file()), None
            )
            if file is not None:
                words.add(file)
                captions = self._captions(file)
            split = rule.of(face_key(path.stem))
            found[key] = FaceFiles(key, self.prefix, path, {}, captions, split)
        for path in paths:
            if path.suffix.lower() not in PICTURE_SUFFIXES and path not in words:
                self.ignore(path)
        return list(found.values())

    def _captions(self, file: Path) -> tuple[str, ...]:
        try:
            by_key = read_captions(file, "")
        except ValueError as error:
            self.report.unreadable.append(str(error))
            return ()
        return next(iter(by_key.values()), ())
