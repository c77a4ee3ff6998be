"""The examples sampled as rows of a labelled grid: what a training run's previews show."""

from collections.abc import Sequence
from typing import Any

from mmface.conditions import condition_kind, condition_kinds
from mmface.data.examples import Example
from mmface.grid import GridRow
from mmface.pipeline import MMFacePipeline


def sample_examples(
    pipeline: MMFacePipeline, examples: Sequence[Example], seeds: Sequence[int], steps: int
) -> list[GridRow]:
    """Sample each example with each seed, all in one batch.

    Args:
        pipeline: What samples.
        examples: Conditions with their prompts.
        seeds: The seeds of each example's pictures.
        steps: Sampling steps.

    Returns:
        A row an example, with a face a seed.

    Raises:
        ValueError: If a condition does not fit.
    """
    names = [kind.name for kind in condition_kinds() if any(e.kind == kind.name for e in examples)]
    conditions: dict[str, Any] = {
        name: [e.path if e.kind == name else None for e in examples] for name in names
    }
    output = pipeline(
        [example.prompt for example in examples],
        **conditions,
        num_inference_steps=steps,
        num_images_per_prompt=len(seeds),
        seed=list(seeds) * len(examples),
    )
    faces, each = list(output.images), len(seeds)
    size = (pipeline.config.image_size, pipeline.config.image_size)
    rows = []
    for index, example in enumerate(examples):
        kind = condition_kind(example.kind)
        drawn = kind.draw(kind.load(example.path, size).values)
        rows.append(GridRow(drawn, example.prompt, faces[index * each : (index + 1) * each]))
    return rows
