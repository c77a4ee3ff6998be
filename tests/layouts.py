"""Writes rendered faces in the folder layouts of the real data sets, for tests of the importers."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from mmface.conditions import LABEL_FORMATS, LABELS
from mmface.rendered import render_face
from mmface.rendered.face import RenderedFace

SIZE = 64


@lru_cache(maxsize=128)
def face(seed: int) -> RenderedFace:
    return render_face(seed, SIZE)


def drawn_mask(labels: np.ndarray, label_format: str, color: bool = False) -> np.ndarray:
    """Write a label map as a format does: its own indices, or its own colours."""
    own = LABEL_FORMATS[label_format]
    indices = np.argsort(own.to_labels).astype(np.uint8)[labels]
    return np.array(own.palette, dtype=np.uint8)[indices] if color else indices


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def celebamask_hq(folder: Path, numbers: Sequence[int]) -> None:
    """Photos in JPEG, a grey picture of each class that occurs, and the mapping to CelebA."""
    rows = ["idx orig_idx orig_file"]
    for number in numbers:
        save(folder / "CelebA-HQ-img" / f"{number}.jpg", face(number).image)
        anno = folder / "CelebAMask-HQ-mask-anno" / str(number // 2000)
        for index in np.unique(face(number).labels)[1:].tolist():
            area = np.where(face(number).labels == index, 255, 0).astype(np.uint8)
            save(anno / f"{number:05d}_{LABELS[index]}.png", area)
        original = 100_000 + 60_000 * (number % 3)
        original += 5_000 if original == 160_000 else 0
        rows.append(f"{number} {original} {original:06d}.jpg")
    write(folder / "CelebA-HQ-to-CelebA-mapping.txt", "\n".join(rows) + "\n")


def multi_modal_celeba_hq(folder: Path, numbers: Sequence[int], num_test: int) -> None:
    """Photos in JPEG, captions one a line, index maps, and text lists of the split."""
    for number in numbers:
        save(folder / "images" / f"{number}.jpg", face(number).image)
        save(folder / "mask" / f"{number}.png", drawn_mask(face(number).labels, "celebamask_hq"))
        write(folder / "celeba-caption" / f"{number}.txt", "\n".join(face(number).captions) + "\n")
    train, test = numbers[:-num_test], numbers[-num_test:]
    write(folder / "train" / "filenames.txt", "\n".join(map(str, train)))
    write(folder / "test" / "filenames.txt", "\n".join(f"{k}.jpg" for k in test))


def ffhq(folder: Path, numbers: Sequence[int], label_format: str, nested: bool = True) -> None:
    """Photos in PNG, nested by thousands or flat, index maps, sketches in white on dark."""
    for number in numbers:
        thousand = f"{number // 1000 * 1000:05d}" if nested else "."
        save(folder / "images1024x1024" / thousand / f"{number:05d}.png", face(number).image)
        save(folder / "masks" / f"{number:05d}.png", drawn_mask(face(number).labels, label_format))
        save(folder / "sketches" / f"{number:05d}.png", 255 - face(number).sketch)
        write(folder / "captions" / f"{number:05d}.txt", "\n".join(face(number).captions))


def authors(folder: Path, train: Sequence[int], test: Sequence[int], ffhq: Sequence[int]) -> None:
    """The authors' folders: unpadded numbers of CelebA-HQ, padded ones of FFHQ."""
    for split, numbers in (("train", train), ("test", test)):
        for number in numbers:
            part = folder / "Celeb_Final" / split
            _authors_face(part / "images", part / "masks", part / "sketches", str(number), number)
            text = "\n".join(face(number).captions)
            write(folder / "Celeb_Captions_Final" / f"{number}.txt", text)
    for number in ffhq:
        part, name = folder / "FFHQ", f"{number:05d}"
        _authors_face(part / "images", part / "Masks_Colored_1024", part / "sketches", name, number)
        write(folder / "FFHQ_Captions_Final" / f"{name}.txt", "\n".join(face(number).captions))


def _authors_face(images: Path, masks: Path, sketches: Path, name: str, number: int) -> None:
    save(images / f"{name}.jpg", face(number).image)
    save(masks / f"{name}.png", drawn_mask(face(number).labels, "celebamask_hq", color=True))
    save(sketches / f"{name}.png", face(number).sketch)


def photos(folder: Path, numbers: Sequence[int]) -> None:
    """Photos in folders of two, with captions in text beside the first and JSON beside the rest."""
    for place, number in enumerate(numbers):
        path = folder / f"album {place // 2}" / f"photo {number}.jpg"
        save(path, face(number).image)
        words = list(face(number).captions)
        if place == 0:
            write(path.with_suffix(".txt"), "\n".join(words))
        else:
            write(path.with_suffix(".json"), str(words).replace("'", '"'))


def hugging_face(
    folder: Path, train: Sequence[int], test: Sequence[int], label_format: str
) -> None:
    """A saved `DatasetDict` of pictures in PNG, under other names of columns."""
    from datasets import Dataset, DatasetDict, Features, List, Value
    from datasets import Image as ImageFeature

    features = Features(
        {
            "number": Value("int64"),
            "photo": ImageFeature(),
            "mask": ImageFeature(),
            "text": List(Value("string")),
        }
    )

    def part(numbers: Sequence[int]) -> "Dataset":
        rows = [
            {
                "number": number,
                "photo": Image.fromarray(face(number).image),
                "mask": Image.fromarray(drawn_mask(face(number).labels, label_format)),
                "text": list(face(number).captions),
            }
            for number in numbers
        ]
        return Dataset.from_list(rows, features=features)

    DatasetDict({"train": part(train), "validation": part(test)}).save_to_disk(str(folder))
