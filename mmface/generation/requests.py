"""Requests with their files read, sampled as one batch, and the recipes of what came out."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps
from torch import Tensor

import mmface
from mmface.annotation.rewriting import cap_to_tokens
from mmface.annotation.sketches import PencilSketch
from mmface.conditions import (
    CONTROL_SUFFIX,
    condition_kinds,
    doubts_of,
    flat_rgb,
    load_mask,
    load_sketch,
    open_picture,
)
from mmface.core.command_line import check_whole
from mmface.core.files import file_sha256
from mmface.encoders.face_parser import FaceParser
from mmface.generation.settings import ALL_STEPS, MAX_PICTURES, Settings
from mmface.sampling.blending import load_image, load_region
from mmface.sampling.guidance import ConditionControl, Guidance
from mmface.sampling.pipeline import MMFacePipeline
from mmface.sampling.step_cache import cache_named

BUILTIN_PREFIX = "mmface:"
"""What a path begins with that leads into the package's own assets."""

PHOTO_SIDE_PX = 512
"""Shorter side at which photos are annotated, the size that the paper's sketches are drawn at."""

Locate = Callable[[str, str], Path]
"""Gives the file of an option's name and the path as given."""


def say(note: str) -> None:
    """Tell the person at the terminal something that does not stop the work."""
    print(f"note: {note}", file=sys.stderr)


def located(path: str, folder: Path) -> Path:
    """Give the file that a path means; a relative one lies in this folder."""
    if path.startswith(BUILTIN_PREFIX):
        assets = Path(mmface.__file__).parent / "assets"
        return assets / path.removeprefix(BUILTIN_PREFIX)
    return folder / path


@dataclass(frozen=True, eq=False)
class RequestFiles:
    """What a request's files hold, at the size of the face.

    Attributes:
        conditions: Values of the conditions by their kind, as `ConditionKind.load` gives them.
        image: File of the picture to start from, or None.
        region: File of the part of it that is made anew, or None.
        condition_region: File of the part in which the conditions bind, or None.
        sha256: Of each file, by its path as given.
    """

    conditions: Mapping[str, np.ndarray]
    image: Path | None = None
    region: Path | None = None
    condition_region: Path | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)


def check_asked(settings: Settings) -> None:
    """Check that a request says a face and gives a condition for it.

    Args:
        settings: What was asked for.

    Raises:
        ValueError: If the prompt is missing, there is no condition, or a photo and another one.
    """
    if settings.prompt is None or not settings.prompt.strip():
        raise ValueError("The prompt is empty; say what the face should look like (--prompt).")
    if settings.photo is not None and settings.conditions:
        given = " and ".join(settings.conditions)
        raise ValueError(
            f"A photo is given beside a {given}: the photo's own are taken from it; give either."
        )
    if not (settings.photo or settings.conditions):
        names = [kind.name for kind in condition_kinds()]
        options = ", ".join(f"--{name}" for name in names)
        raise ValueError(f"Neither {' nor '.join(names)} is given ({options}, or --photo).")


def load_files(settings: Settings, size: tuple[int, int], locate: Locate) -> RequestFiles:
    """Read all files that a request names, and say what of them had to be guessed.

    Args:
        settings: What was asked for.
        size: Height and width of the face in pixels.
        locate: Where the files lie.

    Returns:
        What they hold.

    Raises:
        FileNotFoundError: If a file is not there.
        ValueError: If a file is not what its option needs.
    """
    files = {name: locate(name, path) for name, path in settings.paths.items()}
    conditions: dict[str, np.ndarray] = {}
    for kind in condition_kinds():
        if kind.name in settings.conditions:
            loaded = kind.load(files[kind.name], size)
            conditions[kind.name] = loaded.values
            if loaded.remark is not None:
                say(f"{files[kind.name]}: {loaded.remark}")
    for name, doubt in doubts_of(conditions, settings.prompt or ""):
        say(f"{files[name]}: {doubt}")
    if "photo" in files:
        photo = files["photo"]
        conditions |= photo_conditions(photo, size, settings.parser, settings.from_photo)
    if "image" in files:
        load_image(files["image"], size)
    for name in ("region", "condition_region"):
        if name in files:
            load_region(files[name], size, name)
    used = {name: files.get(name) for name in ("image", "region", "condition_region")}
    sha256 = {path: file_sha256(files[name]) for name, path in settings.paths.items()}
    return RequestFiles(conditions, sha256=sha256, **used)


def photo_conditions(
    photo: str | Path, size: tuple[int, int], parser: str, wanted: str = "both"
) -> dict[str, UInt8[np.ndarray, "_ _"]]:
    """Take `mask`, `sketch` or `both` from a photo: by a face parser, and in pencil.

    The photo's middle is cropped to the aspect ratio of `size`, height and width. ValueError if it
    shows nothing to draw.
    """
    picture = Image.fromarray(flat_rgb(open_picture(photo), "white"))
    enlarge = max(1, PHOTO_SIDE_PX / min(size))
    work = (round(size[1] * enlarge), round(size[0] * enlarge))
    pixels = np.array(ImageOps.fit(picture, work, Image.Resampling.LANCZOS))
    found: dict[str, np.ndarray] = {}
    if wanted != "sketch":
        found["mask"] = load_mask(open_parser(parser)([pixels])[0], size).labels
    if wanted != "mask":
        try:
            found["sketch"] = load_sketch(PencilSketch()([pixels])[0], size)
        except ValueError:
            raise ValueError(f"{photo} shows nothing that could be drawn as a sketch.") from None
    return found


@lru_cache(maxsize=1)
def open_parser(name: str) -> FaceParser:
    """Load a face parser; ValueError if there is none of this name."""
    try:
        return FaceParser.from_pretrained(name)
    except OSError as error:
        raise ValueError(str(error)) from None
    except ValueError as error:
        raise ValueError(f"The face parser {name} cannot be loaded: {error}") from None


MAX_SIDE_PX = 8192

OnStepEnd: TypeAlias = Callable[[int, Tensor], None]
"""Told the number of each step that is done, from 1, and the latents of all pictures after it. What
it raises ends the sampling."""


@dataclass(frozen=True, eq=False)
class PreparedRequest:
    """A request that is ready to be sampled.

    Attributes:
        settings: What was asked for, with the model's defaults filled in.
        files: Its files, read.
        prompt: What of its prompt is heard.
        negative: What of its negative prompt is heard.
    """

    settings: Settings
    files: RequestFiles
    prompt: str
    negative: str


def seeds_from(seed: int, num: int) -> tuple[int, ...]:
    """Give so many seeds that follow each other; ValueError if there are none or too many."""
    check_whole("The number of pictures", num, 1, MAX_PICTURES)
    check_whole("seed", seed, 0, 2**63 - num)
    return tuple(range(seed, seed + num))


def prepare_request(
    settings: Settings, pipeline: MMFacePipeline, locate: Locate, steps: int | None = None
) -> PreparedRequest:
    """Fill in what a request leaves open, read its files, and check all that can be checked.

    Args:
        settings: What was asked for.
        pipeline: What will sample.
        locate: Where the files lie.
        steps: Sampling steps where the request says none, if the model's own are not fewer.

    Returns:
        The request, ready to be sampled.

    Raises:
        FileNotFoundError: If a file is not there.
        ValueError: If a file or a number does not fit.
    """
    side, scale = pipeline.config.image_size, pipeline.config.guidance_scale
    own = pipeline.config.num_inference_steps
    steps = own if steps is None else min(steps, own)
    filled = replace(
        settings,
        steps=steps if settings.steps is None else settings.steps,
        guidance=scale if settings.guidance is None else settings.guidance,
        height=side if settings.height is None else settings.height,
        width=side if settings.width is None else settings.width,
    )
    for name in ("height", "width"):
        check_whole(name, getattr(filled, name), 1, MAX_SIDE_PX)
    _guidance(filled)
    _control(filled, None)
    size = (filled.height or side, filled.width or side)
    files = load_files(filled, size, locate)
    heard = [_heard(text or "", pipeline) for text in (filled.prompt, filled.negative)]
    return PreparedRequest(filled, files, *heard)


def sample_requests(
    pipeline: MMFacePipeline,
    requests: Sequence[PreparedRequest],
    seeds: Sequence[Sequence[int]],
    max_batch: int | None = None,
    on_step_end: OnStepEnd | None = None,
) -> list[list[Image.Image]]:
    """Sample requests that share their settings as one batch; with a cache, each face alone.

    With a cache a face depends on its batch, and could not be made again by its recipe.

    Args:
        pipeline: What samples.
        requests: Requests whose settings are equal in `Settings.shared`.
        seeds: Each request's seeds, of one number.
        max_batch: The most predictions that are computed at once; None for no limit.
        on_step_end: Called after each step; None for nothing.

    Returns:
        The faces of each request, one a seed.

    Raises:
        ValueError: If a setting does not fit the model, or the memory is not enough.
    """
    if requests[0].settings.cache is not None and len(requests) * len(seeds[0]) > 1:
        return [
            [
                sample_requests(pipeline, [one], [[seed]], max_batch, on_step_end)[0][0]
                for seed in own
            ]
            for one, own in zip(requests, seeds, strict=True)
        ]

    def after_step(
        _: object, index: int, timestep: object, values: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        if on_step_end is not None:
            on_step_end(index + 1, values["latents"])
        return {}

    try:
        output = pipeline(
            **call_arguments(requests, seeds), max_batch=max_batch, callback_on_step_end=after_step
        )
    except RuntimeError as error:
        on_cpu = "can't allocate memory" in str(error) or "not enough memory" in str(error)
        if not (on_cpu or isinstance(error, torch.OutOfMemoryError)):
            raise
        raise ValueError(
            "The memory is not enough: lower --max-batch, or use --dtype bfloat16, --vae-tiling "
            "or, on a GPU, --offload."
        ) from None
    faces, each = list(output.images), len(seeds[0])
    return [faces[place * each : (place + 1) * each] for place in range(len(requests))]


def call_arguments(
    requests: Sequence[PreparedRequest], seeds: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """Give what the pipeline is called with for requests that share their settings.

    Args:
        requests: The requests.
        seeds: Each request's seeds, of one number.

    Returns:
        The call's arguments by name.

    Raises:
        ValueError: If a setting is not one that can be sampled with.
    """
    first, files = requests[0].settings, [one.files for one in requests]
    control, conditions = _control(first, files[0].condition_region), dict[str, Any]()
    for kind in condition_kinds():
        if any(kind.name in each.conditions for each in files):
            conditions[kind.name] = [each.conditions.get(kind.name) for each in files]
            conditions[kind.name + CONTROL_SUFFIX] = control
    return {
        "prompt": [one.prompt for one in requests],
        **conditions,
        "negative_prompt": [one.negative for one in requests],
        "num_inference_steps": first.steps,
        "num_images_per_prompt": len(seeds[0]),
        "height": first.height,
        "width": first.width,
        "seed": [seed for own in seeds for seed in own],
        "guidance": _guidance(first),
        "image": None if first.image is None else [each.image for each in files],
        "strength": first.strength,
        "region": None if first.region is None else [each.region for each in files],
        "solver": first.solver,
        "cache": None if first.cache is None else cache_named(first.cache),
    }


def _guidance(settings: Settings) -> Guidance:
    start, end = settings.guidance_interval
    return Guidance(
        scale=settings.guidance,
        condition_scale=settings.condition_guidance,
        start=start,
        end=end,
        rescale=settings.guidance_rescale,
    )


def _control(settings: Settings, region: Path | None) -> ConditionControl | None:
    """Give how conditions bind; None if that is as trained."""
    asked = (settings.condition_strength, tuple(settings.condition_window), region)
    if asked == (1.0, ALL_STEPS, None):
        return None
    start, end = settings.condition_window
    return ConditionControl(settings.condition_strength, start, end, region)


def _heard(prompt: str, pipeline: MMFacePipeline) -> str:
    """Cut a prompt that is too long at the end of a clause, and say what was cut."""
    if not pipeline.text.truncated(prompt):
        return prompt
    limit = pipeline.text.max_length
    words = " ".join(prompt.split())
    try:
        kept = cap_to_tokens(words, pipeline.tokenizer, limit).removesuffix(".")
    except ValueError:  # one endless word, which is cut in its middle
        kept = words.removesuffix(pipeline.text.truncated(words))
    cut = words.removeprefix(kept).lstrip(" ,;:.!?-")
    say(f"a prompt is longer than the {limit} tokens that are read; this was cut: {cut!r}")
    return kept
