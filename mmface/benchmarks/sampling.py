"""Whole pictures: latency of one, throughput of a batch, and what fewer predictions save."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mmface.benchmarks.measuring import in_turn, relative_error
from mmface.benchmarks.network import share_of_peak, ways_of_running
from mmface.benchmarks.subjects import Bench, forward_flops, twin
from mmface.conditions import LABELS, MASK, colorize
from mmface.encoders.vae import image_pixels
from mmface.model.transformer import MMFaceDiT
from mmface.sampling.acceleration import accelerate_pipeline
from mmface.sampling.guidance import Guidance
from mmface.sampling.pipeline import MMFacePipeline

GUIDANCE_SCALE = 7.5
PROMPT = "a smiling woman with long red hair"
SCRIPT = "sample_flow"
REFERENCE_STEPS = 50
"""Euler steps of a picture by the released code."""


class Course(NamedTuple):
    """How a picture is sampled; guidance covers a range of fractions of the steps."""

    solver: str
    steps: int
    guided: tuple[float, float] = (0.0, 1.0)


FEWER = (
    Course("euler", REFERENCE_STEPS),
    Course("unipc", 20),
    Course("unipc", 20, (0.0, 0.6)),
    Course("unipc", 10, (0.0, 0.6)),
)
"""What may stand for 50 guided Euler steps; how good the pictures are is not measured here."""


class GuidedPictures:
    """The same latents by the pipeline and by a command: a prompt, a mask, seeds, guidance."""

    def __init__(self, bench: Bench, pipeline: MMFacePipeline, num: int) -> None:
        """Draw the mask of `num` pictures."""
        self.bench, self.pipeline, self.num = bench, pipeline, num
        side = pipeline.config.image_size
        draws = np.random.default_rng(0)
        mask = draws.integers(len(LABELS), size=(side // 8, side // 8), dtype=np.uint8)
        self.mask = np.ascontiguousarray(mask.repeat(8, 0).repeat(8, 1))

    def own(self, course: Course, output_type: str = "latent") -> Tensor:
        """All pictures in one call, [pictures, channels, height, width]."""
        start, end = course.guided
        pictures = self.pipeline(
            PROMPT,
            mask=self.mask,
            num_images_per_prompt=self.num,
            num_inference_steps=course.steps,
            seed=list(range(self.num)),
            solver=course.solver,
            guidance=Guidance(GUIDANCE_SCALE, start=start, end=end),
            output_type=output_type,
        ).images
        assert isinstance(pictures, Tensor)
        return pictures

    def plain(self, command: Any, num_steps: int) -> Float[Tensor, "pictures c height width"]:
        """The latents of a published command: encoding once, then one picture after the other."""
        return self.plain_steps(command, num_steps)()

    @torch.no_grad()
    def plain_steps(self, command: Any, num_steps: int) -> Callable[[], Tensor]:
        """Encode what a published command encodes, and give what makes its pictures' latents."""
        bench, side = self.bench, self.pipeline.config.image_size // 8
        pixels = image_pixels(colorize(self.mask)).to(bench.device, bench.dtype)
        encoded = command.encode(PROMPT, pixels.unsqueeze(0), MASK.index)
        shape = (1, self.pipeline.transformer.config.latent_channels, side, side)
        noises = [
            torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(bench.device)
            for seed in range(self.num)
        ]

        def steps() -> Tensor:
            with bench.autocast():
                latents: Tensor = command.latents(noises, encoded, num_steps, GUIDANCE_SCALE)
            return latents

        return steps


def measure_sampling(bench: Bench) -> None:
    """Sampling of one picture and of a batch, in each way of running; decoding is left out."""
    for num in (1, bench.size.pictures):
        for name, way in ways_of_running(bench).items():
            pictures = "picture" if num == 1 else "pictures"
            case = f"{num} {pictures}, {bench.size.sampling_steps} steps, {name}"
            bench.report.measure("sample", case, partial(_sampling, bench, case, num, way))


def _sampling(
    bench: Bench, case: str, num: int, way: Callable[[MMFaceDiT], MMFaceDiT]
) -> dict[str, float]:
    model, plain = bench.models
    pictures = GuidedPictures(bench, bench.pipeline(way(model)), num)
    command = bench.sampling_script(SCRIPT, plain, pictures.pipeline)
    steps = bench.size.sampling_steps
    reference, own = partial(pictures.plain, command, steps), Course("euler", steps)
    error = relative_error(pictures.own(own), reference())
    values = bench.compare(f"sample {case}", reference, lambda: pictures.own(own))
    rate = 1e3 * num / values["own_ms"]
    work = 2 * num * steps * forward_flops(model, bench.size.sides[0], 1)
    shares = share_of_peak(bench, work, values)
    return {**values, **shares, "pictures_per_s": rate, "relative_error": error}


def measure_fewer(bench: Bench) -> None:
    """Pictures of fewer predictions by the fast form, beside 50 Euler steps of the reference."""
    pipeline = bench.pipeline(twin(bench.models[0]))
    accelerate_pipeline(pipeline, compile_blocks=bench.on_gpu)
    for num in (1, bench.size.pictures):
        for course in FEWER:
            pictures = "picture" if num == 1 else "pictures"
            start, end = course.guided
            case = f"{num} {pictures}, {course.solver} {course.steps}, guided {start:g}-{end:g}"
            bench.report.measure("fewer", case, partial(_fewer, bench, pipeline, num, course))


def _fewer(bench: Bench, pipeline: MMFacePipeline, num: int, course: Course) -> dict[str, float]:
    """Time all of ours, and a command of one picture and fewer steps.

    The reference takes one step and one picture after the other, so its time grows with both.
    Encoding is counted for ours alone.
    """
    one, pictures = GuidedPictures(bench, pipeline, 1), GuidedPictures(bench, pipeline, num)
    command = bench.sampling_script(SCRIPT, bench.models[1], pipeline)
    steps = one.plain_steps(command, bench.size.sampling_steps)
    values = in_turn(steps, lambda: pictures.own(course), bench.device)
    scale = num * REFERENCE_STEPS / bench.size.sampling_steps
    for name in ("reference_ms", "ratio", "ratio_low", "ratio_high"):
        values[name] *= scale
    return {**values, "pictures_per_s": 1e3 * num / values["own_ms"]}
