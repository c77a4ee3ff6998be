"""What a call of the pipeline is given, checked and sorted."""

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float32
from torch import Tensor

from mmface.conditions import SKETCH, Modality, Picture, colorize, load_mask, load_sketch
from mmface.conditions.pixels import image_pixels
from mmface.objectives import NUM_TRAIN_TIMESTEPS


class Request(NamedTuple):
    """One prompt of a call, with its negative prompt and its one or two conditions.

    Attributes:
        prompt: What the face should look like.
        negative_prompt: What guidance on the text leads away from.
        sources: The mask, the sketch, or both, in this order.
    """

    prompt: str
    negative_prompt: str
    sources: Mapping[Modality, Picture]

    @property
    def kinds(self) -> tuple[Modality, ...]:
        """Which conditions there are."""
        return tuple(self.sources)

    @classmethod
    def each_of(
        cls,
        prompts: Sequence[str],
        negative_prompt: str | Sequence[str],
        mask: Picture | Sequence[Picture | None] | None,
        sketch: Picture | Sequence[Picture | None] | None,
    ) -> "list[Request]":
        """Make a request of each prompt.

        Args:
            prompts: The prompts.
            negative_prompt: One for all prompts or one a prompt.
            mask: The same, or None; in lists, None marks the prompts without.
            sketch: The same as for masks.

        Returns:
            The requests.

        Raises:
            ValueError: If a list has another length, or a prompt neither mask nor sketch.
        """
        requests = []
        negatives = one_each("negative_prompt", negative_prompt, len(prompts))
        masks = one_each("mask", mask, len(prompts))
        sketches = one_each("sketch", sketch, len(prompts))
        for prompt, negative, *given in zip(prompts, negatives, masks, sketches, strict=True):
            pairs = zip((Modality.MASK, Modality.SKETCH), given, strict=True)
            sources = {kind: source for kind, source in pairs if source is not None}
            if not sources:
                raise ValueError(
                    f"The prompt {prompt!r} has neither a mask nor a sketch; give each prompt one "
                    "or both."
                )
            requests.append(cls(prompt, negative, sources))
        return requests


def distinct_pixels(
    requests: Sequence[Request], size: tuple[int, int]
) -> tuple[Float32[Tensor, "distinct 3 height width"], list[list[int]]]:
    """Load the conditions of requests, each distinct one once.

    Args:
        requests: The requests whose conditions are wanted.
        size: Height and width in pixels.

    Returns:
        The distinct conditions in [-1, 1], and which of them each request has.
    """
    pixels: dict[tuple[Modality, str | int], Tensor] = {}
    keys: list[list[tuple[Modality, str | int]]] = []
    for request in requests:
        keys.append([])
        for kind, source in request.sources.items():
            name = str(source) if isinstance(source, str | Path) else id(source)
            keys[-1].append((kind, name))
            if (kind, name) not in pixels:
                pixels[kind, name] = (
                    image_pixels(colorize(load_mask(source, size).labels))
                    if kind == Modality.MASK
                    else image_pixels(SKETCH.rgb(load_sketch(source, size)))
                )
    order = list(pixels)
    return torch.stack(list(pixels.values())), [[order.index(key) for key in own] for own in keys]


def check_whole(name: str, value: Any, lowest: int, highest: int) -> None:
    """Raise ValueError unless `value` is a whole number in this range."""
    if not isinstance(value, Integral) or not lowest <= int(value) <= highest:
        raise ValueError(f"{name} must be a whole number in {lowest}..{highest}, got {value!r}.")


def check_number(name: str, value: Any, lowest: float, highest: float = math.inf) -> None:
    """Raise ValueError unless `value` is a finite number in this range."""
    number = float(value) if isinstance(value, Real) else math.nan
    if isinstance(value, bool) or not (math.isfinite(number) and lowest <= number <= highest):
        wanted = f"in {lowest}..{highest}" if highest < math.inf else f"{lowest} or more"
        raise ValueError(f"{name} must be {wanted}, got {value!r}.")


def check_interval(name: str, start: float, end: float) -> None:
    """Raise ValueError unless `start` and `end` are shares of the steps, in this order."""
    check_number(f"{name} start", start, 0, 1)
    check_number(f"{name} end", end, 0, 1)
    if start >= end:
        raise ValueError(f"{name} start must be below its end, got {start} and {end}.")


def check_numbers(
    num_inference_steps: int, num_images_per_prompt: int, max_batch: int | None
) -> None:
    """Raise ValueError unless the whole numbers of a call are ones that can be sampled with."""
    check_whole("num_inference_steps", num_inference_steps, 1, NUM_TRAIN_TIMESTEPS)
    check_whole("num_images_per_prompt", num_images_per_prompt, 1, 10_000)
    if max_batch is not None:
        check_whole("max_batch", max_batch, 1, 1_000_000)


def check_latents(
    latents: Tensor, shape: tuple[int, ...]
) -> Float32[Tensor, "batch channels height width"]:
    """Give the latents that stand in for a call's noise, in float32.

    Args:
        latents: Any float dtype.
        shape: The shape that the call needs.

    Returns:
        The latents.

    Raises:
        ValueError: If the shape is another one, or a value is not finite.
    """
    if tuple(latents.shape) != shape:
        raise ValueError(f"latents must be {list(shape)}, got {list(latents.shape)}.")
    if not torch.isfinite(latents).all():
        raise ValueError("latents hold values that are not finite.")
    return latents.float()


def one_each(name: str, value: Any, count: int) -> list[Any]:
    """Give each of `count` prompts its own of a list, or all of them the same value."""
    if not isinstance(value, list | tuple):
        return [value] * count
    if len(value) != count:
        raise ValueError(
            f"{name} is a list of {len(value)} for {count} prompts; give one for all, or one each."
        )
    return list(value)


def picture_generators(
    seed: int | Sequence[int] | None,
    generator: torch.Generator | Sequence[torch.Generator] | None,
    count: int,
    latents: Tensor | None = None,
) -> tuple[list[torch.Generator], list[int] | None]:
    """Give each picture its generator, and its seed where it has one.

    Args:
        seed: The first picture's seed, or one a picture; None draws one at random.
        generator: Instead of a seed: one generator for all pictures, or one a picture.
        count: Number of pictures.
        latents: Instead of both: the noise itself; the generators are then of no consequence.

    Returns:
        The generators, and the seeds or None where there are none.

    Raises:
        ValueError: If more than one of the three is given, their number is not `count`, or a
            seed is out of range.
    """
    if latents is not None:
        if seed is not None or generator is not None:
            raise ValueError("latents are the noise itself: drop them, or the seed or generator.")
        return [torch.Generator() for _ in range(count)], None
    if generator is not None:
        if seed is not None:
            raise ValueError("Both seed and generator are given; give one of them.")
        one_each = [generator] * count if isinstance(generator, torch.Generator) else generator
        if len(one_each) != count:
            raise ValueError(f"{len(one_each)} generators are given for {count} pictures.")
        return list(one_each), None
    if seed is None:
        seed = torch.Generator().seed() % 2**32
    seeds = list(seed) if isinstance(seed, Sequence) else [seed + k for k in range(count)]
    if len(seeds) != count:
        raise ValueError(
            f"{len(seeds)} seeds are given for {count} pictures; give one a picture, or the first."
        )
    for each in seeds:
        check_whole("seed", each, 0, 2**63 - 1)
    return [torch.Generator().manual_seed(each) for each in seeds], seeds
