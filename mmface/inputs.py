"""What the pipeline is given, checked and sorted: a call's arguments, the authors' repository."""

import math
import re
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float32
from torch import Tensor

from mmface.conditions import (
    Modality,
    Picture,
    load_mask,
    load_sketch,
    mask_pixels,
    sketch_pixels,
)
from mmface.objectives import NUM_TRAIN_TIMESTEPS, MinSnrDiffusion, RectifiedFlow
from mmface.released import WEIGHTS_NAME

RELEASED_TEXT = "stable-diffusion-2-1-base"
"""Where the authors' repository has its text encoder and tokenizer."""


class Request(NamedTuple):
    """One prompt of a call, with its negative prompt and its condition."""

    prompt: str
    negative_prompt: str
    modality: Modality
    source: Picture

    @classmethod
    def sorted(
        cls, prompt: str, negative_prompt: str, mask: Picture | None, sketch: Picture | None
    ) -> "Request":
        """Make a request of whichever of mask and sketch is given; ValueError unless one is."""
        if mask is not None and sketch is None:
            return cls(prompt, negative_prompt, Modality.MASK, mask)
        if sketch is not None and mask is None:
            return cls(prompt, negative_prompt, Modality.SKETCH, sketch)
        found = "neither a mask nor a sketch" if mask is None else "both a mask and a sketch"
        raise ValueError(f"The prompt {prompt!r} has {found}; give each prompt exactly one.")


def distinct_pixels(
    requests: Sequence[Request], size: tuple[int, int]
) -> tuple[Float32[Tensor, "distinct 3 height width"], list[int]]:
    """Load the conditions of requests, each distinct one once.

    Args:
        requests: The requests whose conditions are wanted.
        size: Height and width in pixels.

    Returns:
        The distinct conditions in [-1, 1], and which of them each request has.
    """
    keys, pixels = [], {}
    for request in requests:
        source = request.source
        name = str(source) if isinstance(source, str | Path) else id(source)
        keys.append((request.modality, name))
        if keys[-1] not in pixels:
            pixels[keys[-1]] = (
                mask_pixels(load_mask(source, size).labels)
                if request.modality == Modality.MASK
                else sketch_pixels(load_sketch(source, size))
            )
    return torch.stack(list(pixels.values())), [list(pixels).index(key) for key in keys]


def check_whole(name: str, value: Any, lowest: int, highest: int) -> None:
    """Raise ValueError unless `value` is a whole number in this range."""
    if not isinstance(value, Integral) or not lowest <= int(value) <= highest:
        raise ValueError(f"{name} must be a whole number in {lowest}..{highest}, got {value!r}.")


def check_numbers(
    num_inference_steps: int, guidance_scale: float, num_images_per_prompt: int
) -> None:
    """Raise ValueError unless the numbers of a call are ones that can be sampled with."""
    check_whole("num_inference_steps", num_inference_steps, 1, NUM_TRAIN_TIMESTEPS)
    check_whole("num_images_per_prompt", num_images_per_prompt, 1, 10_000)
    if not 0 <= guidance_scale < math.inf:
        raise ValueError(f"guidance_scale must be 0 or more, got {guidance_scale}.")


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
) -> tuple[list[torch.Generator], list[int] | None]:
    """Give each picture its generator, and its seed where it has one.

    Args:
        seed: The first picture's seed, or one a picture; None draws one at random.
        generator: Instead of a seed: one generator for all pictures, or one a picture.
        count: Number of pictures.

    Returns:
        The generators, and the seeds or None where generators were given.

    Raises:
        ValueError: If both are given, their number is not `count`, or a seed is out of range.
    """
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


class ReleasedCheckpoint(NamedTuple):
    """One of the authors' checkpoints.

    Attributes:
        weights: The file of its weights.
        objective: Name of the objective that it was trained with.
        image_size: Side in pixels of the square pictures that it was trained on.
    """

    weights: Path
    objective: str
    image_size: int


def released_checkpoint(folder: Path, checkpoint: str | None) -> ReleasedCheckpoint:
    """Find a checkpoint's weights in a copy of the authors' repository.

    Args:
        folder: The copy.
        checkpoint: The checkpoint's folder inside it, or the one above; None if there is one only.

    Returns:
        Where the weights are, and what the folder's name says of them.

    Raises:
        ValueError: If the folder does not have this layout or the checkpoint is ambiguous.
    """
    missing = [name for name in ("VAE", RELEASED_TEXT) if not (folder / name).is_dir()]
    if missing:
        raise ValueError(
            f"{folder} has no folder {' and no '.join(missing)}; copy the whole repository: "
            "hf download BharathK333/MMFace-DiT-Models --local-dir FOLDER."
        )
    found = sorted(folder.glob(f"{checkpoint or '**'}/{WEIGHTS_NAME}"))
    found += sorted(folder.glob(f"{checkpoint}/*/{WEIGHTS_NAME}")) if checkpoint else []
    if len(found) != 1:
        every = [path.parent.relative_to(folder) for path in folder.glob(f"**/{WEIGHTS_NAME}")]
        listed = ", ".join(sorted(map(str, every))) or "none"
        raise ValueError(
            f"{len(found)} checkpoints in {folder} fit {checkpoint!r}; give one of: {listed}."
        )
    name = found[0].parent.relative_to(folder).as_posix()
    size = re.search(r"-(\d{3,4})\b", name.split("/")[0])
    objective = RectifiedFlow.name if "-rfm" in name else MinSnrDiffusion.name
    return ReleasedCheckpoint(found[0], objective, int(size[1]) if size else 256)
