"""What a call of the pipeline is given, checked and sorted."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float32
from torch import Tensor

from mmface.conditions import Picture, condition_kind, condition_kinds, kinds_in_words
from mmface.core.command_line import check_whole
from mmface.encoders.vae import image_pixels
from mmface.objectives.solvers import NUM_TRAIN_TIMESTEPS

CONTROL_SUFFIX = "_control"
"""What follows a kind's name in the keyword for its control."""


class ConditionedPrompt(NamedTuple):
    """One prompt of a call, with its negative prompt and its conditions.

    Attributes:
        prompt: What the face should look like.
        negative_prompt: What guidance on the text leads away from.
        conditions: The conditions by the name of their kind, in the order of the registry.
    """

    prompt: str
    negative_prompt: str
    conditions: Mapping[str, Picture]

    @classmethod
    def each_of(
        cls,
        prompts: Sequence[str],
        negative_prompt: str | Sequence[str],
        conditions: Mapping[str, Picture | Sequence[Picture | None] | None],
    ) -> "list[ConditionedPrompt]":
        """Give each prompt of a call its own negative prompt and conditions.

        Args:
            prompts: The prompts.
            negative_prompt: One for all prompts or one a prompt.
            conditions: By kind, the same, or None; in lists, None marks the prompts without.

        Returns:
            The prompts.

        Raises:
            ValueError: If a list has another length, or a prompt has no condition.
        """
        count = len(prompts)
        negatives = one_each("negative_prompt", negative_prompt, count)
        columns = {name: one_each(name, each, count) for name, each in conditions.items()}
        found = []
        for place, (prompt, negative) in enumerate(zip(prompts, negatives, strict=True)):
            own = {
                kind.name: columns[kind.name][place]
                for kind in condition_kinds()
                if kind.name in columns and columns[kind.name][place] is not None
            }
            if not own:
                raise ValueError(
                    f"The prompt {prompt!r} has neither {kinds_in_words(' nor ')}; give each "
                    "prompt one at least."
                )
            found.append(cls(prompt, negative, own))
        return found


def split_keywords(keywords: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sort the keywords of a call into conditions and their controls.

    Args:
        keywords: By the names of kinds, and these followed by `CONTROL_SUFFIX`.

    Returns:
        The conditions and the controls that are not None, both by the name of their kind.

    Raises:
        TypeError: If a keyword is neither.
    """
    names = [kind.name for kind in condition_kinds()]
    given = {key: value for key, value in keywords.items() if value is not None}
    for key in keywords:
        if key.removesuffix(CONTROL_SUFFIX) not in names:
            raise TypeError(
                f"The pipeline has no argument {key!r}; the conditions are {', '.join(names)}, and "
                f"what says how one binds is called as in {names[0]}{CONTROL_SUFFIX}."
            )
    controls = {name: given.pop(key) for name in names if (key := name + CONTROL_SUFFIX) in given}
    return given, controls


def distinct_pixels(
    prompts: Sequence[ConditionedPrompt], size: tuple[int, int]
) -> tuple[Float32[Tensor, "distinct 3 height width"], list[list[int]]]:
    """Load the conditions of prompts, each distinct one once.

    Args:
        prompts: The prompts whose conditions are wanted.
        size: Height and width in pixels.

    Returns:
        The distinct conditions in [-1, 1], and which of them each prompt has.
    """
    pixels: dict[tuple[str, str | int], Tensor] = {}
    keys: list[list[tuple[str, str | int]]] = []
    for prompt in prompts:
        keys.append([])
        for name, source in prompt.conditions.items():
            key = (name, str(source) if isinstance(source, str | Path) else id(source))
            keys[-1].append(key)
            if key not in pixels:
                kind = condition_kind(name)
                pixels[key] = image_pixels(kind.rgb(kind.load(source, size).values))
    order = list(pixels)
    return torch.stack(list(pixels.values())), [[order.index(key) for key in own] for own in keys]


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
