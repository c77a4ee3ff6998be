"""A pipeline on conditions that somebody brings: masks and sketches in a folder, with prompts.

There are no true pictures, so each face is compared with the condition that it was made from: masks
by the face parser, the eyes apart from the rest, and sketches by their lines. A sheet shows all.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from mmface.conditions import LABELS, condition_kind, condition_kinds
from mmface.core.command_line import check_number, check_whole
from mmface.core.files import PICTURE_SUFFIXES, locked, write_text
from mmface.core.published import markdown_table
from mmface.encoders.face_parser import FaceParser
from mmface.generation.adherence import measure_adherence
from mmface.generation.grid import GridRow, labelled_grid
from mmface.metrics.statistics import bootstrap_mean
from mmface.rendered.examples import Example
from mmface.sampling.pipeline import MMFacePipeline

LISTS = ("cases.jsonl", "examples.jsonl")
"""Files that list conditions: one object a line with `modality`, `condition` and `prompt`."""

ANY_PROMPT = "A portrait of a person"
"""The prompt of a condition that brings none."""

EYES = ("l_eye", "r_eye")
COLUMNS = {"mean_iou": "mIoU", "eyes": "eyes", "no_eye": "an eye is missing", "edges": "edges"}
"""What is measured, and its heading; `no_eye` is a share of pictures, `eyes` an IoU."""


def read_cases(folder: str | Path) -> list[Example]:
    """Read the conditions of a folder, and their prompts.

    A list is one of `LISTS`. Without one, the pictures are taken whose names hold the name of a
    kind, such as `anna_mask.png`; the prompt is in the text file beside it, `anna_mask.txt`.
    ValueError or FileNotFoundError says what cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; give one with conditions=DIR")
    for path in (folder / name for name in LISTS):
        if path.is_file():
            return _listed(path)
    found = []
    for path in sorted(folder.iterdir()):
        kinds = [kind.name for kind in condition_kinds() if kind.name in path.stem.lower()]
        if path.suffix.lower() in PICTURE_SUFFIXES and len(kinds) == 1:
            words = path.with_suffix(".txt")
            prompt = words.read_text(encoding="utf-8").strip() if words.is_file() else ANY_PROMPT
            found.append(Example(prompt, kinds[0], path))
    if not found:
        kinds = [f"*{kind.name}*.png" for kind in condition_kinds()]
        raise FileNotFoundError(
            f"{folder} has neither {' nor '.join(LISTS)} nor pictures called {' or '.join(kinds)}"
        )
    return found


def _listed(path: Path) -> list[Example]:
    cases = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            case = Example(
                row["prompt"],
                condition_kind(row["modality"]).name,
                path.parent / row["condition"],
            )
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(
                f"{path}, line {number}: {error}; a line is an object with modality, condition "
                "and prompt"
            ) from None
        if not case.path.is_file():
            raise FileNotFoundError(f"{path}, line {number}: {case.path} does not exist")
        cases.append(case)
    if not cases:
        raise ValueError(f"{path} is empty; a line is a case")
    return cases


@dataclass(frozen=True)
class BroughtEvaluation:
    """Measures a pipeline on a folder of conditions.

    Attributes:
        pipeline: folder of the pipeline.
        parser: folder of the face parser that reads pictures of masks.
        conditions: folder of the conditions, see `read_cases`.
        output_dir: gets `results.json`, `table.md` and `sheet.png`.
        num_seeds: pictures of each condition, from the seeds 0, 1, ...
        num_inference_steps: sampling steps.
        guidance_scale: of the prompt; None takes the model's.
    """

    pipeline: str | Path
    parser: str | Path
    conditions: str | Path | None
    output_dir: str | Path
    num_seeds: int = 4
    num_inference_steps: int = 25
    guidance_scale: float | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be run, before the first picture is made."""
        check_whole("num_seeds", self.num_seeds, 1)
        check_whole("num_inference_steps", self.num_inference_steps, 1)
        if self.guidance_scale is not None:
            check_number("guidance_scale", self.guidance_scale, 0)
        if self.conditions is None:
            raise ValueError("there are no conditions to measure with; give conditions=DIR")
        for name in ("pipeline", "parser"):
            if not Path(getattr(self, name)).is_dir():
                raise FileNotFoundError(f"{getattr(self, name)} does not exist; give {name}=DIR")

    def report(self) -> str:
        """Make and measure all pictures, and give the table."""
        assert self.conditions is not None
        cases, folder = read_cases(self.conditions), Path(self.output_dir)
        with locked(folder):
            pipeline = MMFacePipeline.from_pretrained(self.pipeline)
            pipeline.set_progress_bar_config(disable=True)
            parser = FaceParser.from_pretrained(self.parser)
            rows, measured = [], []
            for case in tqdm(cases, desc="conditions", unit="case"):
                row, found = self._of_case(pipeline, parser, case)
                rows.append(row)
                measured.append({"id": case.path.stem, "kind": case.kind, "pictures": found})
            results = {
                "brought": {
                    "pipeline": str(self.pipeline),
                    "num_seeds": self.num_seeds,
                    "num_inference_steps": self.num_inference_steps,
                    "guidance_scale": self.guidance_scale or pipeline.config.guidance_scale,
                },
                "cases": measured,
            }
            titles = [f"seed {seed}" for seed in range(self.num_seeds)]
            labelled_grid(rows, titles).save(folder / "sheet.png")
            write_text(folder / "results.json", json.dumps(results, indent=1) + "\n")
            write_text(folder / "table.md", as_markdown(results) + "\n")
        return f"{as_markdown(results)}\nsheet: {folder / 'sheet.png'}"

    def _of_case(
        self, pipeline: MMFacePipeline, parser: FaceParser, case: Example
    ) -> tuple[GridRow, list[dict[str, float]]]:
        kind, side = condition_kind(case.kind), pipeline.config.image_size
        values = kind.load(case.path, (side, side)).values
        kind.check_measurable(values)
        given: dict[str, Any] = {case.kind: values}
        output = pipeline(
            case.prompt,
            **given,
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
            num_images_per_prompt=self.num_seeds,
            seed=list(range(self.num_seeds)),
        )
        faces: list[Image.Image] = list(output.images)
        found = []
        for face in faces:
            numbers = measure_adherence(np.array(face), {case.kind: values}, parser).numbers
            found.append(_columns(numbers, values if case.kind == "mask" else None))
        return GridRow(kind.draw(values), case.prompt, faces), found


def _columns(numbers: Mapping[str, float], mask: np.ndarray | None) -> dict[str, float]:
    """Choose what the table shows of one picture's agreement."""
    found = {name: value for name, value in numbers.items() if name in COLUMNS}
    if mask is None:
        return {"edges": next(iter(numbers.values())), **found}
    asked = [name for name in EYES if (mask == LABELS.index(name)).any()]
    ious = [numbers.get(f"iou/{name}", 0.0) for name in asked]
    if ious:
        found |= {"eyes": float(np.mean(ious)), "no_eye": float(min(ious) == 0)}
    return found


def as_markdown(results: Mapping[str, Any]) -> str:
    """Lay results out: a row a condition, and for each kind the mean over its conditions.

    The interval is of 95 %, over the conditions.
    """
    cases: Sequence[Mapping[str, Any]] = results["cases"]
    rows = []
    for kind in dict.fromkeys(case["kind"] for case in cases):
        own = [case for case in cases if case["kind"] == kind]
        means = {case["id"]: _means(case["pictures"]) for case in own}
        rows += [[name, *(_cell(each, key) for key in COLUMNS)] for name, each in means.items()]
        cells = [_mean([each[key] for each in means.values() if key in each]) for key in COLUMNS]
        rows.append([f"**all {len(own)} of a {kind}**", *cells])
    settings = ", ".join(f"{name}: {value}" for name, value in results["brought"].items())
    return f"{markdown_table(['condition', *COLUMNS.values()], rows)}\n\n- {settings}"


def _means(pictures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for picture in pictures for name in picture)
    return {name: float(np.mean([p[name] for p in pictures if name in p])) for name in names}


def _mean(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"**{values[0]:.3f}**" if values else ""
    interval = bootstrap_mean(np.array(values))
    return f"**{interval.estimate:.3f}** [{interval.low:.3f}, {interval.high:.3f}]"


def _cell(means: Mapping[str, float], key: str) -> str:
    return f"{means[key]:.3f}" if key in means else ""
