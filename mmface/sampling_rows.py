"""Requests with their files read, sampled as one batch, and the recipes of what came out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from PIL import Image
from torch import Tensor

from mmface.annotation.rewriting import cap_to_tokens
from mmface.conditions import condition_kinds
from mmface.core.digests import file_sha256
from mmface.core.mistakes import check_whole
from mmface.guidance import ConditionControl, Guidance
from mmface.inputs import CONTROL_SUFFIX
from mmface.model_loading import OpenedModel
from mmface.pipeline import MMFacePipeline
from mmface.sampling_conditions import Locate, RequestFiles, load_files, say
from mmface.sampling_recipe import MAX_PICTURES, SamplingRecipe, current_versions
from mmface.sampling_settings import ALL_STEPS, Settings
from mmface.step_cache import cache_named

DEFAULT_STEPS = 50
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
    settings: Settings, pipeline: MMFacePipeline, locate: Locate, steps: int = DEFAULT_STEPS
) -> PreparedRequest:
    """Fill in what a request leaves open, read its files, and check all that can be checked.

    Args:
        settings: What was asked for.
        pipeline: What will sample.
        locate: Where the files lie.
        steps: Sampling steps where the request says none.

    Returns:
        The request, ready to be sampled.

    Raises:
        FileNotFoundError: If a file is not there.
        ValueError: If a file or a number does not fit.
    """
    side, scale = pipeline.config.image_size, pipeline.config.guidance_scale
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
    except torch.OutOfMemoryError:
        raise ValueError(
            "The GPU's memory is not enough: lower --max-batch, or use --dtype bfloat16, "
            "--vae-tiling or --offload."
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
        "num_inference_steps": DEFAULT_STEPS if first.steps is None else first.steps,
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


def recipe_of(
    model: OpenedModel, requests: Sequence[PreparedRequest], seeds: Sequence[int]
) -> SamplingRecipe:
    """Write down what the faces of requests are made from.

    Args:
        model: What sampled.
        requests: The requests.
        seeds: The seeds that each of them has.

    Returns:
        The recipe of all of them as a grid; `of_picture` gives that of one.
    """
    files: dict[str, str] = {}
    for one in requests:
        files |= one.files.sha256
    if (lora := model.choice.lora) is not None:
        files[lora] = file_sha256(lora)
    asked = tuple(one.settings for one in requests)
    return SamplingRecipe(
        model.choice, model.weights, asked, tuple(seeds), None, files, current_versions()
    )


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
