"""Whole pictures: latency of one, throughput of a batch, and what fewer predictions save."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mmface.benchmarks.measuring import in_turn, relative_error
from mmface.benchmarks.network import ways_of_running
from mmface.benchmarks.subjects import Bench, twin
from mmface.conditions import LABELS, MASK, colorize
from mmface.encoders import TextFeatures
from mmface.encoders.vae import image_pixels
from mmface.model.transformer import MMFaceDiT
from mmface.sampling.acceleration import accelerate_pipeline
from mmface.sampling.guidance import Guidance
from mmface.sampling.pipeline import MMFacePipeline

GUIDANCE_SCALE = 7.5
PROMPT = "a smiling woman with long red hair"
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
    """The same latents by the pipeline and by the reference: prompts, masks, guidance, Euler."""

    def __init__(self, bench: Bench, pipeline: MMFacePipeline, num: int) -> None:
        """Draw the masks of `num` pictures."""
        self.bench, self.pipeline, self.num = bench, pipeline, num
        side = pipeline.config.image_size
        draws = np.random.default_rng(0)
        self.masks = [
            draws.integers(len(LABELS), size=(side // 8, side // 8), dtype=np.uint8).repeat(8, 0)
            for _ in range(num)
        ]
        self.masks = [np.ascontiguousarray(mask.repeat(8, 1)) for mask in self.masks]
        self.prompts = [PROMPT] * num

    def own(self, course: Course) -> Float[Tensor, "pictures channels height width"]:
        """All pictures in one call."""
        start, end = course.guided
        latents = self.pipeline(
            self.prompts,
            mask=self.masks,
            num_inference_steps=course.steps,
            seed=list(range(self.num)),
            solver=course.solver,
            guidance=Guidance(GUIDANCE_SCALE, start=start, end=end),
            output_type="latent",
        ).images
        assert isinstance(latents, Tensor)
        return latents

    @torch.no_grad()
    def conditions(self) -> Float[Tensor, "pictures channels height width"]:
        """Latents of the masks, one after the other."""
        bench = self.bench
        pixels = [image_pixels(colorize(mask)).to(bench.device, bench.dtype) for mask in self.masks]
        return bench.reference.encode_one_by_one(self.pipeline.vae, pixels)

    @torch.no_grad()
    def plain(
        self,
        model: torch.nn.Module,
        conditions: Float[Tensor, "pictures channels height width"] | None = None,
        features: Callable[[str], TextFeatures] | None = None,
    ) -> Float[Tensor, "pictures channels height width"]:
        """One picture after the other; what is not given is encoded here."""
        bench = self.bench
        conditions = self.conditions() if conditions is None else conditions
        noise = [
            torch.randn(conditions.shape[1:], generator=torch.Generator().manual_seed(seed))
            for seed in range(self.num)
        ]
        with bench.autocast():
            return bench.reference.sample(
                model,
                [each.to(bench.device) for each in noise],
                list(conditions),
                features or (lambda prompt: self.pipeline.text([prompt])),
                self.prompts,
                [MASK.index] * self.num,
                bench.size.sampling_steps,
                GUIDANCE_SCALE,
            )

    @torch.no_grad()
    def plain_steps(self, model: torch.nn.Module) -> Callable[[], Tensor]:
        """Encode everything, and give what takes the steps, one picture after the other."""
        known = {prompt: self.pipeline.text([prompt]) for prompt in (PROMPT, "")}
        return partial(self.plain, model, self.conditions(), known.__getitem__)


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
    course = Course("euler", bench.size.sampling_steps)
    error = relative_error(pictures.own(course), pictures.plain(plain))
    values = bench.compare(
        f"sample {case}", lambda: pictures.plain(plain), lambda: pictures.own(course)
    )
    rate = 1e3 * num / values["own_ms"]
    return {**values, "pictures_per_s": rate, "relative_error": error}


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
    """Time all of ours, and a few steps of one picture of the reference.

    The reference takes one step and one picture after the other, so its time grows with both.
    Encoding is counted for ours alone.
    """
    one, pictures = GuidedPictures(bench, pipeline, 1), GuidedPictures(bench, pipeline, num)
    steps = one.plain_steps(bench.models[1])
    values = in_turn(steps, lambda: pictures.own(course), bench.device)
    scale = num * REFERENCE_STEPS / bench.size.sampling_steps
    for name in ("reference_ms", "ratio", "ratio_low", "ratio_high"):
        values[name] *= scale
    return {**values, "pictures_per_s": 1e3 * num / values["own_ms"]}
