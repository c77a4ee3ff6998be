"""The built-in example masks and sketches with their prompts, drawn from faces never trained on."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from mmface.conditions import colorize, condition_kind
from mmface.rendered import render_face

EXAMPLES = Path(__file__).parent.parent / "assets" / "examples"
MASK_SEEDS = (1_000_003, 1_000_006, 1_000_013)
SKETCH_SEEDS = (1_000_010, 1_000_014, 1_000_011)


@dataclass(frozen=True)
class Example:
    """A condition on disk with its prompt.

    Attributes:
        prompt: What the face should look like.
        kind: The name of the condition's kind.
        path: The condition's picture.
    """

    prompt: str
    kind: str
    path: Path


def read_examples(folder: str | Path = EXAMPLES) -> list[Example]:
    """Read `examples.jsonl`: one object a line with `modality`, `condition` and `prompt`.

    Args:
        folder: The folder that holds it; paths of conditions are relative to it.

    Returns:
        The examples in the order of the file.

    Raises:
        ValueError: If the kind of a condition is unknown.
    """
    rows = map(json.loads, (Path(folder) / "examples.jsonl").read_text().splitlines())
    return [
        Example(
            row["prompt"], condition_kind(row["modality"]).name, Path(folder) / row["condition"]
        )
        for row in rows
    ]


def write_examples(
    folder: str | Path = EXAMPLES,
    mask_seeds: Sequence[int] = MASK_SEEDS,
    sketch_seeds: Sequence[int] = SKETCH_SEEDS,
    size_px: int = 256,
) -> None:
    """Draw the examples anew, with the first caption of each face as its prompt.

    Args:
        folder: Where `examples.jsonl` and the PNG files go.
        mask_seeds: Rendered faces to take masks of.
        sketch_seeds: Rendered faces to take sketches of.
        size_px: Side of the pictures.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for modality, seeds in (("mask", mask_seeds), ("sketch", sketch_seeds)):
        for index, seed in enumerate(seeds):
            face = render_face(seed, size_px)
            name = f"{modality}_{index}"
            picture = colorize(face.labels) if modality == "mask" else face.sketch
            Image.fromarray(picture).save(folder / f"{name}.png", optimize=True)
            rows.append(
                {
                    "id": name,
                    "modality": modality,
                    "condition": f"{name}.png",
                    "prompt": face.captions[0],
                }
            )
    lines = [json.dumps(row) for row in rows]
    (folder / "examples.jsonl").write_text("\n".join(lines) + "\n")
