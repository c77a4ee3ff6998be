"""A store of pairs: noise, and the latents that a guided teacher makes of it.

A student that learns to go straight from one to the other (reflow, arXiv 2209.03003) needs one to
four evaluations and no guidance.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmface.conditions import condition_kinds
from mmface.core.command_line import check_interval, check_number, check_whole
from mmface.core.files import folder_sha256
from mmface.core.processes import joined_processes
from mmface.core.sources import dtype_name, dtype_named
from mmface.data.keyed import keyed_generator
from mmface.data.latents import (
    CONDITION,
    IMAGE,
    LATENT_DTYPES,
    MODALITY,
    NOISE,
    PAIRS,
    check_store,
)
from mmface.data.samples import LatentSamples
from mmface.data.store import ArraySpec, Entry, StoreSpec, write_store
from mmface.objectives.solvers import Trajectory
from mmface.sampling.guidance import Composition, ConditionedPrompt, Guidance
from mmface.sampling.pipeline import MMFacePipeline
from mmface.training.metering import training_flops

ALWAYS = (0.0, 1.0)


@dataclass(frozen=True)
class GuidedPairs:
    """Solves a teacher's equation for conditions and captions of a latent store.

    `samples` draws pair k's noise, condition, caption and dropout from (`seed`, k) alone, so that
    neither the number of processes nor a stop changes a pair; faces come in turn. `teacher` is
    the folder of a pipeline; `solver`, `num_inference_steps`, `guidance_scale` and
    `guidance_interval` are those of its call, None for its own. A stopped run loses at most
    `shard_size` pairs.
    """

    teacher: str | Path
    samples: LatentSamples
    num_pairs: int
    solver: str | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    guidance_interval: Sequence[float] = ALWAYS
    batch_size: int = 16
    seed: int = 0
    dtype: str = "float16"
    teacher_dtype: str = "float32"
    shard_size: int = 256

    def __post_init__(self) -> None:
        """Refuse what cannot be made, before the work begins."""
        for name in ("num_pairs", "batch_size", "shard_size"):
            check_whole(name, getattr(self, name), 1)
        check_whole("seed", self.seed, 0)
        if self.guidance_scale is not None:
            check_number("guidance_scale", self.guidance_scale, 0)
        if len(self.guidance_interval) != 2:
            raise ValueError(f"guidance_interval is two numbers, got {self.guidance_interval}")
        check_interval("guidance", *self.guidance_interval)
        if self.dtype not in LATENT_DTYPES:
            raise ValueError(f"{self.dtype!r} is not one of {', '.join(LATENT_DTYPES)}")
        dtype_name(self.teacher_dtype)

    def write(self, folder: str | Path, process_index: int = 0, num_processes: int = 1) -> None:
        """Write this process's shards of the store (see `write_store`).

        ValueError if the folder holds a store that was made otherwise, or the latents are not those
        of the teacher's VAE and size.
        """
        dtype = dtype_named(self.teacher_dtype)
        pipeline = MMFacePipeline.from_pretrained(self.teacher, dtype=dtype)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.to(joined_processes().device)
        check_store(self.samples.store, pipeline.vae, pipeline.config.image_size)
        spec = self._spec(pipeline)

        def entries(shards: Sequence[range]) -> Iterator[list[Entry]]:
            for items in shards:
                batches = range(items.start, items.stop, self.batch_size)
                yield [
                    pair
                    for first in batches
                    for pair in self._solved(
                        pipeline, range(first, min(first + self.batch_size, items.stop))
                    )
                ]

        write_store(folder, spec, entries, process_index, num_processes)

    def plan(self, folder: str | Path, num_processes: int = 1) -> str:
        """Say what the pairs take in evaluations, FLOPs and disk."""
        pipeline = MMFacePipeline.from_pretrained(self.teacher)
        spec, steps, guidance = (
            self._spec(pipeline),
            self._steps(pipeline),
            self._guidance(pipeline),
        )
        way = Trajectory(
            pipeline.translation,
            pipeline.translation.fitting(self.solver, pipeline.scheduler),
            steps,
            1.0,
            torch.device("cpu"),
        )
        start, end = self.guidance_interval
        guided = [guidance.scale != 1 and start <= share < end for share in way.shares]
        evaluations = len(guided) + sum(guided)
        sample = self.samples.sample(0, keyed_generator(self.seed, 0))
        with torch.device("meta"):
            network = type(pipeline.transformer).from_config(pipeline.transformer.config)
            latents = torch.empty(1, *sample["latents"].shape)
            text = torch.empty(1, pipeline.text.max_length, network.config.text_dim)
            time, modality = torch.empty(1), torch.zeros(1).long()
        inputs = (latents, latents, time, text, text[:, 0], modality)
        flops = training_flops(network, inputs) / 3 * evaluations * self.num_pairs
        rows = [
            ("pairs", f"{self.num_pairs:,} in {spec.num_shards:,} shards"),
            ("evaluations a pair", f"{evaluations}"),
            ("FLOPs", f"{flops:.3e}, over {num_processes} process(es)"),
            ("disk", f"{spec.array_bytes / 1e9:.2f} GB"),
        ]
        return "\n".join(f"{name:<20} {value}" for name, value in rows)

    def _steps(self, pipeline: MMFacePipeline) -> int:
        own = pipeline.config.num_inference_steps
        return own if self.num_inference_steps is None else self.num_inference_steps

    def _guidance(self, pipeline: MMFacePipeline) -> Guidance:
        start, end = self.guidance_interval
        guidance = Guidance(self.guidance_scale, start=start, end=end)
        return Guidance.merged(None, guidance, pipeline.config.guidance_scale)

    def _spec(self, pipeline: MMFacePipeline) -> StoreSpec:
        samples, guidance = self.samples, self._guidance(pipeline)
        of_latents: Mapping[str, Any] = samples.store.spec.made_by
        shape = samples.store.spec.arrays[IMAGE].shape
        made_by = {
            **pipeline.codec.identity(),
            "kind": PAIRS,
            "vae": of_latents.get("vae"),
            "resolution": of_latents.get("resolution"),
            "latents": dict(of_latents),
            "teacher": folder_sha256(Path(self.teacher) / "transformer"),
            "teacher_dtype": dtype_name(self.teacher_dtype),
            "solver": self.solver,
            "num_inference_steps": self._steps(pipeline),
            "guidance": [guidance.scale, guidance.start, guidance.end],
            "conditions": [kind.name for kind in samples.kinds],
            "text_dropout": samples.text_dropout,
            "condition_dropout": samples.condition_dropout,
            "seed": self.seed,
        }
        latents = ArraySpec(shape, self.dtype)
        arrays = {NOISE: latents, CONDITION: latents, IMAGE: latents, MODALITY: ArraySpec((), "i8")}
        return StoreSpec(self.num_pairs, arrays, ("captions",), made_by, self.shard_size)

    def _solved(self, pipeline: MMFacePipeline, items: range) -> list[Entry]:
        drawn = [
            self.samples.sample(item % len(self.samples), keyed_generator(self.seed, item))
            for item in items
        ]
        names = {kind.index: kind.name for kind in condition_kinds()}
        asked = [
            ConditionedPrompt(each["caption"], "", {names[int(each["modality"])]: ""})
            for each in drawn
        ]
        device = pipeline._execution_device
        # As it is stored, so that the pair holds exactly.
        stored = getattr(torch, self.dtype)
        noise = torch.stack([each["noise"] for each in drawn]).to(stored).float()
        conditions = torch.stack([each["condition"] for each in drawn]).float()
        table = torch.cat((torch.zeros_like(conditions[:1]), conditions)).to(device)
        composition = Composition(
            asked,
            1,
            self._guidance(pipeline),
            {},
            [[place + 1] for place in range(len(drawn))],
            (pipeline.config.image_size,) * 2,
            pipeline.codec.downscale_factor,
        )
        way = Trajectory(
            pipeline.translation,
            pipeline.translation.fitting(self.solver, pipeline.scheduler),
            self._steps(pipeline),
            1.0,
            device,
        )
        ends, _ = pipeline.follow(way, way.start(noise.to(device), None), composition, table)
        ends = ends.float().cpu()
        if not ends.to(stored).isfinite().all():
            raise ValueError(f"the teacher's latents are not finite in {self.dtype}; set job.dtype")
        return [
            {
                "id": f"pair/{item}",
                NOISE: noise[place].numpy(),
                CONDITION: conditions[place].numpy(),
                IMAGE: ends[place].numpy(),
                MODALITY: np.array(int(each["modality"])),
                "captions": [each["caption"]],
            }
            for place, (item, each) in enumerate(zip(items, drawn, strict=True))
        ]
