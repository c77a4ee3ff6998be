"""From words on a command line to picture files: what `scripts/sample.py` does."""

import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch
import transformers
from PIL import Image

import mmface
from mmface.conditions import (
    COLOR_TOLERANCE,
    Modality,
    colorize,
    load_mask,
    load_sketch,
)
from mmface.data.examples import Example, read_examples
from mmface.grid import GridRow, labelled_grid
from mmface.inputs import check_whole
from mmface.pipeline import MMFacePipeline

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")

STEPS = 50
DEMO_STEPS = 25
DEMO_NUM = 3


@dataclass(frozen=True)
class Settings:
    """What a command line asks for besides prompt and condition; None leaves it to the model.

    Attributes:
        seed: Seed of the first picture; the next ones follow it.
        num: Number of pictures.
        steps: Sampling steps.
        guidance: Guidance scale.
        negative: What the face should not look like.
        height: Height in pixels.
        width: Width in pixels.
    """

    seed: int = 0
    num: int | None = None
    steps: int | None = None
    guidance: float | None = None
    negative: str = ""
    height: int | None = None
    width: int | None = None


def say(note: str) -> None:
    """Tell the person at the terminal something that does not stop the work."""
    print(f"note: {note}", file=sys.stderr)


def quiet() -> None:
    """Leave the terminal to sampling: no progress of loading, no warnings of libraries."""
    warnings.filterwarnings("ignore")
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def example_of(prompt: str | None, mask: Path | None, sketch: Path | None) -> Example | None:
    """Put together what a person asks for.

    Args:
        prompt: What the face should look like, or None.
        mask: A mask's path, or None.
        sketch: A sketch's path, or None.

    Returns:
        The condition with its prompt; None if nothing is asked for, which is the demo.

    Raises:
        ValueError: If the prompt is missing, or not exactly one of mask and sketch is given.
    """
    if prompt is None and mask is None and sketch is None:
        return None
    if prompt is None or not prompt.strip():
        raise ValueError("The prompt is empty; say what the face should look like (--prompt).")
    if mask is not None and sketch is None:
        return Example(prompt, Modality.MASK, mask)
    if sketch is not None and mask is None:
        return Example(prompt, Modality.SKETCH, sketch)
    found = "Neither mask nor sketch is" if mask is None else "Both mask and sketch are"
    raise ValueError(f"{found} given; give exactly one (--mask FILE or --sketch FILE).")


def open_pipeline(name: str) -> MMFacePipeline:
    """Load a pipeline, on the GPU if there is one.

    Args:
        name: A built-in pipeline's name, a folder that `save_pretrained` wrote, or a hub id.

    Returns:
        The pipeline.

    Raises:
        ValueError: If there is no such pipeline, or it cannot be loaded.
    """
    folder = Path(name)
    if not folder.exists() and "/" not in name:
        folder = mmface.builtin(name)
    if folder.exists() and not (folder / "model_index.json").is_file():
        raise ValueError(
            f"{name} is not a saved pipeline: it has no model_index.json. Give a folder that "
            "save_pretrained wrote; the authors' weights load with MMFacePipeline.from_released."
        )
    try:
        pipeline = MMFacePipeline.from_pretrained(folder if folder.exists() else name)
    except (OSError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"The pipeline {name} cannot be loaded: {reason}") from error
    return pipeline.to("cuda" if torch.cuda.is_available() else "cpu")


def check_output(out: str | Path) -> Path:
    """Check where pictures are to go, before time is spent on making them.

    Args:
        out: A picture file, or a folder.

    Returns:
        The same as a path.

    Raises:
        ValueError: If the suffix is not one of a picture, or something is in the way.
    """
    out = Path(out)
    if out.suffix and not out.is_dir() and out.suffix.lower() not in PICTURE_SUFFIXES:
        raise ValueError(f"{out} ends in no picture suffix: {', '.join(PICTURE_SUFFIXES)}.")
    if (out.suffix and out.is_dir()) or (not out.suffix and out.is_file()):
        raise ValueError(f"{out} is in the way: a picture needs a suffix, a folder has none.")
    for parent in out.absolute().parents:
        if parent.exists():
            if not (parent.is_dir() and os.access(parent, os.W_OK)):
                raise ValueError(f"{out} cannot be written: {parent} is no writable folder.")
            break
    return out


def write_pictures(pictures: Mapping[Path, Image.Image]) -> None:
    """Write pictures: all of them aside first, then each to its place, so that none is half there.

    Args:
        pictures: Each picture by its path, whose suffix tells the format.
    """
    aside: dict[Path, Path] = {}
    try:
        for path, picture in pictures.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            aside[path] = path.with_name(f".{os.getpid()}_{path.name}")
            picture.save(aside[path])
        for path, written in aside.items():
            written.replace(path)
    finally:
        for written in aside.values():
            written.unlink(missing_ok=True)


def open_condition(example: Example, size: tuple[int, int]) -> Image.Image:
    """Read a mask or a sketch as the model will see it, and say so if a mask had soft edges.

    Args:
        example: The condition with its prompt.
        size: Height and width in pixels.

    Returns:
        An RGB or grey picture.
    """
    if example.modality == Modality.SKETCH:
        return Image.fromarray(load_sketch(example.path, size))
    mask = load_mask(example.path, size)
    if mask.off_palette_fraction:
        say(
            f"{example.path}: {mask.off_palette_fraction:.1%} of the pixels were farther than "
            f"{COLOR_TOLERANCE:g} from every palette colour and took a neighbour's class; "
            f"the mask has {', '.join(mask.classes)}"
        )
    return Image.fromarray(colorize(mask.labels))


def sample_rows(
    pipeline: MMFacePipeline, examples: Sequence[Example], seeds: Sequence[int], settings: Settings
) -> list[GridRow]:
    """Sample each example with each seed, all in one batch, and say what of prompts is cut.

    Args:
        pipeline: What samples.
        examples: Conditions with their prompts.
        seeds: The seeds of each example's pictures.
        settings: What was asked for.

    Returns:
        A row an example, with a face a seed.

    Raises:
        ValueError: If a condition, a prompt or a setting does not fit.
    """
    side = pipeline.config.image_size
    height = side if settings.height is None else settings.height
    size = (height, side if settings.width is None else settings.width)
    if min(size) < 1:
        raise ValueError(f"height and width must be above 0, got {size}.")
    pairs = [(example, open_condition(example, size)) for example in examples]
    for prompt in [*(example.prompt for example in examples), settings.negative]:
        if cut := pipeline.text.truncated(prompt):
            limit = pipeline.text.max_length
            say(f"a prompt is longer than the {limit} tokens that are read; this was cut: {cut!r}")
    steps = DEMO_STEPS if len(examples) > 1 else STEPS
    output = pipeline(
        [example.prompt for example in examples],
        mask=[each if one.modality == Modality.MASK else None for one, each in pairs],
        sketch=[each if one.modality == Modality.SKETCH else None for one, each in pairs],
        negative_prompt=settings.negative,
        num_inference_steps=steps if settings.steps is None else settings.steps,
        guidance_scale=settings.guidance,
        num_images_per_prompt=len(seeds),
        height=size[0],
        width=size[1],
        seed=list(seeds) * len(examples),
    )
    faces, each = list(output.images), len(seeds)
    return [
        GridRow(condition, example.prompt, faces[index * each : (index + 1) * each])
        for index, (example, condition) in enumerate(pairs)
    ]


def sample_to(
    out: str | Path | None, pipeline: str, example: Example | None, settings: Settings
) -> list[Path]:
    """Sample one example, or all built-in ones, and write the faces.

    Args:
        out: A file, for one face as it is or a labelled grid of several; or a folder, for a file
            `seed_<seed>.png` of each, or the built-in examples' `mmface_demo.png`.
        pipeline: As for `open_pipeline`.
        example: The condition with its prompt; None for the built-in examples.
        settings: What else was asked for.

    Returns:
        What was written.
    """
    num = (DEMO_NUM if example is None else 1) if settings.num is None else settings.num
    check_whole("The number of pictures", num, 1, 1000)
    seeds = range(settings.seed, settings.seed + num)
    default = "mmface_demo.png" if example is None else "faces.png"
    path = check_output(default if out is None else out)
    examples = read_examples() if example is None else [example]
    rows = sample_rows(open_pipeline(pipeline), examples, seeds, settings)
    is_folder = not path.suffix or path.is_dir()
    if example is not None and is_folder:
        named = zip(seeds, rows[0].faces, strict=True)
        files = {path / f"seed_{seed}.png": face for seed, face in named}
    elif example is not None and num == 1:
        files = {path: rows[0].faces[0]}
    else:
        path = path / default if is_folder else path
        files = {path: labelled_grid(rows, [f"seed {seed}" for seed in seeds])}
    write_pictures(files)
    return list(files)
