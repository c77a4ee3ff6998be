"""Whole pictures: how long one takes, and how many come of a batch."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mmface.benchmarks.measuring import relative_error
from mmface.benchmarks.network import ways_of_running
from mmface.benchmarks.subjects import Bench
from mmface.conditions import LABELS, Modality, mask_pixels
from mmface.pipeline import MMFacePipeline
from mmface.transformer import MMFaceDiT

GUIDANCE_SCALE = 7.5
PROMPT = "a smiling woman with long red hair"


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

    def own(self) -> Float[Tensor, "pictures channels height width"]:
        """All pictures in one call."""
        latents = self.pipeline(
            self.prompts,
            mask=self.masks,
            num_inference_steps=self.bench.size.sampling_steps,
            guidance_scale=GUIDANCE_SCALE,
            seed=list(range(self.num)),
            output_type="latent",
        ).images
        assert isinstance(latents, Tensor)
        return latents

    @torch.no_grad()
    def plain(self, model: torch.nn.Module) -> Float[Tensor, "pictures channels height width"]:
        """One picture after the other."""
        bench, pipeline = self.bench, self.pipeline
        dtype, device = bench.dtype, bench.device
        pixels = [mask_pixels(mask).to(device, dtype) for mask in self.masks]
        conditions = bench.reference.encode_one_by_one(pipeline.vae, pixels)
        noise = [
            torch.randn(conditions.shape[1:], generator=torch.Generator().manual_seed(seed))
            for seed in range(self.num)
        ]
        with bench.autocast():
            return bench.reference.sample(
                model,
                [each.to(device) for each in noise],
                list(conditions),
                lambda prompt: pipeline.text([prompt]),
                self.prompts,
                [int(Modality.MASK)] * self.num,
                bench.size.sampling_steps,
                GUIDANCE_SCALE,
            )


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
    error = relative_error(pictures.own(), pictures.plain(plain))
    values = bench.compare(f"sample {case}", lambda: pictures.plain(plain), pictures.own)
    rate = 1e3 * num / values["own_ms"]
    return {**values, "pictures_per_s": rate, "relative_error": error}
