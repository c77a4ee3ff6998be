"""The examples sampled as rows of a labelled grid: what a training run's previews show."""

from collections.abc import Sequence

from PIL import Image

from mmface.conditions import Modality, colorize, load_mask, load_sketch
from mmface.data.examples import Example
from mmface.grid import GridRow
from mmface.pipeline import MMFacePipeline
from mmface.sampling_settings import Settings

STEPS = 25


def sample_examples(
    pipeline: MMFacePipeline, examples: Sequence[Example], seeds: Sequence[int], settings: Settings
) -> list[GridRow]:
    """Sample each example with each seed, all in one batch.

    Args:
        pipeline: What samples.
        examples: Conditions with their prompts.
        seeds: The seeds of each example's pictures.
        settings: Steps and guidance; None leaves them to the default.

    Returns:
        A row an example, with a face a seed.

    Raises:
        ValueError: If a condition or a setting does not fit.
    """
    masks, sketches = (
        [one.path if one.modality == kind else None for one in examples]
        for kind in (Modality.MASK, Modality.SKETCH)
    )
    output = pipeline(
        [example.prompt for example in examples],
        mask=masks,
        sketch=sketches,
        num_inference_steps=STEPS if settings.steps is None else settings.steps,
        guidance_scale=settings.guidance,
        num_images_per_prompt=len(seeds),
        seed=list(seeds) * len(examples),
    )
    faces, each = list(output.images), len(seeds)
    side = pipeline.config.image_size
    return [
        GridRow(_drawn(example, side), example.prompt, faces[index * each : (index + 1) * each])
        for index, example in enumerate(examples)
    ]


def _drawn(example: Example, side: int) -> Image.Image:
    """Draw a condition as the model sees it."""
    if example.modality == Modality.SKETCH:
        return Image.fromarray(load_sketch(example.path, (side, side)))
    return Image.fromarray(colorize(load_mask(example.path, (side, side)).labels))
