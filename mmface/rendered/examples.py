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
    """A condition's picture on disk, the name of its kind, and a prompt."""

    prompt: str
    kind: str
    path: Path


def read_examples(folder: str | Path = EXAMPLES) -> list[Example]:
    """Read `examples.jsonl`: one object a line with `modality`, `condition` and `prompt`.

    Paths of conditions are relative to the folder.
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
    """Draw the examples anew, with the first caption of each face as its prompt."""
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
