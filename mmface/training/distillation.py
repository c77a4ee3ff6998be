"""Students of few steps: a guided teacher's rectified flow, learnt for one to eight evaluations.

Each variant is a task: `Reflow` on stored pairs, `WindowedReflow` on real data, and
`DistributionMatching` as a second stage. Their product is a pipeline like any other, whose default
is few steps without guidance.
"""

import copy
from abc import ABC
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor, nn

from mmface.core.command_line import check_number, check_whole
from mmface.core.sources import dtype_name, dtype_named, load_network, opened
from mmface.data.keyed import Samples, keyed_generator
from mmface.data.mixed import MixedSamples
from mmface.data.samples import LatentSamples, PairSamples
from mmface.encoders import TextFeatures
from mmface.model.adapters import add_lora
from mmface.model.initial_weights import load_initial_weights
from mmface.model.transformer import MMFaceDiT
from mmface.objectives.losses import Corrupted, summed
from mmface.objectives.solvers import NUM_TRAIN_TIMESTEPS, RECTIFIED_FLOW
from mmface.sampling.pipeline import MMFacePipeline
from mmface.training.face_diffusion import FaceDiffusion, prepare_blocks
from mmface.training.task import Companions

Latents = Float32[Tensor, "batch channels height width"]
Time = Float32[Tensor, " batch"]
TIME_MARGIN = 0.02
"""How far from pure noise and from data scores are compared, where one of them says nothing."""


class Distillation(FaceDiffusion, ABC):
    """A student that begins as its teacher; what it trains on is a subclass's."""

    samples_class: type
    wanted: str
    """The class of samples that the variant is for, and how they are made."""

    def __init__(
        self,
        transformer: MMFaceDiT,
        teacher: str | Path,
        num_inference_steps: int = 4,
        guidance_scale: float = 1.0,
        lora: Mapping[str, float] | None = None,
        init_from: str | Path | None = None,
        **options: Any,
    ) -> None:
        """Set up the student.

        Args:
            transformer: the student, of the teacher's sizes.
            teacher: folder of the teacher's pipeline.
            num_inference_steps: steps that the student is for, the exported pipeline's default.
            guidance_scale: the exported pipeline's default; a student has guidance built in.
            lora: `rank` and `alpha` of a LoRA on the blocks' linear layers, which is trained alone
                and added to the weights at the export; None trains all weights.
            init_from: the student's first weights; None takes the teacher's.
            **options: further arguments of `FaceDiffusion`.

        Raises:
            ValueError: if the model is no rectified flow.
        """
        if transformer.config.objective != RECTIFIED_FLOW:
            raise ValueError(
                f"distillation is for rectified flow, not {transformer.config.objective}; train a "
                "flow from its weights first: task.init_from with objective=rectified_flow."
            )
        start = network_folder(teacher) if init_from is None else init_from
        self.lora: dict[str, Any] | None = None if lora is None else dict(lora)
        if self.lora is not None:  # the weights below it are not trained: read at every start
            load_initial_weights(transformer, start)
            add_lora(transformer, **self.lora)
        super().__init__(
            transformer,
            init_from=None if lora else start,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            **options,
        )

    @classmethod
    def planned(cls, network: Any, settings: Mapping[str, Any]) -> Companions:
        """Add the LoRA to the network, if there is one."""
        if settings.get("lora"):
            add_lora(network, **settings["lora"])
        return Companions()

    def check_samples(self, samples: Samples) -> None:
        """Refuse samples of another form than the variant's."""
        parts = samples.streams.values() if isinstance(samples, MixedSamples) else [samples]
        name = self.samples_class.__name__
        others = {type(part).__name__ for part in parts} - {name}
        if not all(isinstance(part, self.samples_class) for part in parts):
            raise ValueError(
                f"{type(self).__name__} trains on {name}, got {', '.join(sorted(others))}; "
                f"{self.wanted}."
            )
        super().check_samples(samples)

    def _pipeline(self, transformer: MMFaceDiT) -> MMFacePipeline:
        return super()._pipeline(merged(transformer))


class Reflow(Distillation):
    """Straightens the way from noise to a teacher's picture (arXiv 2209.03003, 2209.14577).

    The plain objective on stored pairs; `objective.time` says at which times.
    """

    samples_class = PairSamples
    wanted = "make pairs: scripts/precompute.py experiment=tiny_pairs, or the like"


class TaughtDistillation(Distillation, ABC):
    """A variant that asks the teacher in every step."""

    def __init__(
        self,
        transformer: MMFaceDiT,
        teacher: str | Path,
        teacher_guidance_scale: float = 3.0,
        teacher_dtype: str = "float32",
        compile_blocks: bool = False,
        **options: Any,
    ) -> None:
        """Load the teacher, too.

        Args:
            transformer: the student.
            teacher: folder of the teacher's pipeline.
            teacher_guidance_scale: the guidance that the student learns.
            teacher_dtype: of the teacher's weights; see `core.sources.dtype_name`.
            compile_blocks: as in `FaceDiffusion`, the teacher's as well.
            **options: further arguments of `Distillation`.

        Raises:
            ValueError: if the dtype is unknown.
        """
        dtype = dtype_named(teacher_dtype)
        super().__init__(transformer, teacher, compile_blocks=compile_blocks, **options)
        folder = str(network_folder(teacher))
        with opened("teacher", folder) as source:
            network = load_network(type(transformer), source, dtype=dtype)
        if compile_blocks:
            network.compile_repeated_blocks()
        check_number("teacher_guidance_scale", teacher_guidance_scale, 0)
        self.teacher = network.requires_grad_(False).eval()
        self.teacher_guidance_scale = teacher_guidance_scale

    @classmethod
    def planned(cls, network: Any, settings: Mapping[str, Any]) -> Companions:
        """Add the frozen teacher, and one velocity of it a step."""
        super().planned(network, settings)
        name = dtype_name(settings.get("teacher_dtype", "float32"))
        width = dtype_named(name).itemsize
        forwards = 1 if settings.get("teacher_guidance_scale", 3.0) == 1 else 2
        return Companions(frozen={f"teacher, {name}": width}, forwards=forwards)

    @torch.no_grad()
    def taught(
        self, latents: Latents, time: Time, text: TextFeatures, batch: Mapping[str, Any]
    ) -> Latents:
        """The teacher's guided velocity; time is 0 at noise and 1 at data."""
        network, scale = self.teacher, self.teacher_guidance_scale
        timestep, dtype = time * (NUM_TRAIN_TIMESTEPS - 1), network.dtype
        count = len(latents)
        if scale != 1:
            empty = self.text([""])
            text = TextFeatures(
                *(
                    torch.cat((own, none.expand_as(own)))
                    for own, none in zip(text, empty, strict=True)
                )
            )
            batch = {name: torch.cat([batch[name]] * 2) for name in ("condition", "modality")}
            latents, timestep = torch.cat([latents] * 2), torch.cat([timestep] * 2)
        text = TextFeatures(*(each.to(dtype) for each in text))
        batch = {**batch, "condition": batch["condition"].to(dtype)}
        velocity = network(
            latents.to(dtype), batch["condition"], timestep, text.tokens, text.pooled,
            batch["modality"],
        ).float()  # fmt: skip
        if scale == 1:
            return velocity
        with_text, without = velocity.split(count)
        return without + scale * (with_text - without)


class WindowedReflow(TaughtDistillation):
    """PeRFlow (arXiv 2405.07510): reflow inside windows of time, on real data and without pairs.

    Time is cut into `num_inference_steps` windows. A real picture with noise at a window's start is
    brought to its end by the guided teacher, in `solver_steps` Euler steps; the student learns the
    straight way. `objective.time` says where inside the window: noise level 1 is its start.
    """

    samples_class = LatentSamples
    wanted = "encode the pictures: scripts/precompute.py experiment=latents_256, or the like"

    def __init__(self, *arguments: Any, solver_steps: int = 4, **options: Any) -> None:
        """Choose the teacher's steps inside a window.

        Args:
            *arguments: of `TaughtDistillation`.
            solver_steps: Euler steps of the teacher inside a window.
            **options: further arguments of `TaughtDistillation`.
        """
        super().__init__(*arguments, **options)
        check_whole("solver_steps", solver_steps, 1)
        self.solver_steps = solver_steps

    @classmethod
    def planned(cls, network: Any, settings: Mapping[str, Any]) -> Companions:
        """As many velocities of the teacher as it has steps in a window."""
        one = super().planned(network, settings)
        return Companions(one.frozen, forwards=one.forwards * settings.get("solver_steps", 4))

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Float32[Tensor, " batch"]]:
        """Solve the teacher inside a window, and compare with its straight way."""
        text, windows = self.text(list(batch["caption"])), self.num_inference_steps
        data, noise = batch["latents"].float(), batch["noise"].float()
        place = batch["uniform"] * windows
        window = place.floor().clamp(max=windows - 1)
        level = self.objective.time(1 - (place - window))
        start = window / windows
        first = torch.lerp(noise, data, per_sample(start))
        last = first
        for step in range(self.solver_steps):
            time = start + step / (windows * self.solver_steps)
            velocity = self.taught(last, time, text, batch)
            last = last + velocity / (windows * self.solver_steps)
        inside = 1 - level
        time = start + inside / windows
        corrupted = Corrupted(
            noisy_latents=torch.lerp(first, last, per_sample(inside)),
            target=(last - first) * windows,
            timestep=time * (NUM_TRAIN_TIMESTEPS - 1),
            signal_to_noise=(time / (1 - time).clamp(min=1e-6)).square(),
        )
        prediction = self.predict(
            self.product, corrupted.noisy_latents, corrupted.timestep, text, batch
        )
        return self.objective.losses(prediction, corrupted)


class DistributionMatching(TaughtDistillation):
    """A second stage after `Reflow`: match distributions (DMD2, arXiv 2405.14867) and keep pairs.

    A fake network, which begins as the teacher, learns the flow of the student's pictures; what the
    guided teacher and it say of a noisy picture of the student's moves the student. The student's
    inputs are its own: it begins at noise and goes up to `num_inference_steps` - 1 steps without
    gradient. Beside DMD2, the error from the teacher's picture of the pair is kept, there is no
    discriminator, and in place of more steps the fake network has `fake_rate` times the learning
    rate.
    """

    samples_class = PairSamples
    wanted = Reflow.wanted

    def __init__(
        self,
        *arguments: Any,
        matching_weight: float = 1.0,
        regression_weight: float = 0.5,
        fake_rate: float = 1.0,
        gradient_checkpointing: float | str = False,
        compile_blocks: bool = False,
        **options: Any,
    ) -> None:
        """Add the fake network.

        Args:
            *arguments: of `TaughtDistillation`.
            matching_weight: weight of the distributions' part.
            regression_weight: weight of the squared error from the pair's picture.
            fake_rate: factor of the fake network's learning rate.
            gradient_checkpointing: as in `FaceDiffusion`, of both networks under training.
            compile_blocks: as in `FaceDiffusion`, of all networks.
            **options: further arguments of `TaughtDistillation`.
        """
        blocks: dict[str, Any] = {
            "gradient_checkpointing": gradient_checkpointing,
            "compile_blocks": compile_blocks,
        }
        super().__init__(*arguments, **{**blocks, **options})
        check_number("matching_weight", matching_weight, 0)
        check_number("regression_weight", regression_weight, 0)
        check_number("fake_rate", fake_rate, 0)
        self.matching_weight, self.regression_weight = matching_weight, regression_weight
        student = self.trained
        fake = type(student).from_config(student.config)
        fake.load_state_dict(self.teacher.state_dict())
        fake = fake.float()
        if self.lora is not None:
            add_lora(fake, **self.lora)
        prepare_blocks(fake, **blocks)
        self.trained = nn.ModuleDict({"student": student, "fake": fake})
        self.rates = {"fake": fake_rate}

    @classmethod
    def planned(cls, network: Any, settings: Mapping[str, Any]) -> Companions:
        """The fake network, the teacher's velocity, and the student's own way to its input."""
        one = super().planned(network, settings)
        forwards = one.forwards + settings.get("num_inference_steps", 4) - 1
        return Companions(one.frozen, trained=1, forwards=forwards)

    @property
    def product(self) -> Any:
        """The student."""
        both = self.trained
        return both["student"] if isinstance(both, nn.ModuleDict) else both

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Float32[Tensor, " batch"]]:
        """Make a picture, compare what both networks say of it, and teach the fake one."""
        text = self.text(list(batch["caption"]))
        latents, start = self._student_inputs(batch, text)
        velocity = self._velocity(self.product, latents, start, text, batch)
        made = latents + per_sample(1 - start) * velocity
        time, noise = (each.to(made.device) for each in drawn(batch["noise_seed"], made.shape[1:]))
        noisy = torch.lerp(noise, made.detach(), per_sample(time))
        left = per_sample(1 - time)
        learnt = self._velocity(self.trained["fake"], noisy, time, text, batch)
        real = noisy + left * self.taught(noisy, time, text, batch)
        fake = noisy + left * learnt.detach()
        scale = (made.detach() - real).abs().mean((1, 2, 3), keepdim=True).clamp(min=1e-6)
        aim = made.detach() - (fake - real) / scale
        return summed(
            {
                "matching": self.matching_weight * 0.5 * squared(made - aim),
                "regression": self.regression_weight * squared(made - batch["latents"].float()),
                "fake": squared(learnt - (made.detach() - noise)),
            }
        )

    def _velocity(
        self, network: nn.Module, latents: Latents, time: Time, text: TextFeatures, batch: Any
    ) -> Latents:
        timestep = time * (NUM_TRAIN_TIMESTEPS - 1)
        return self.predict(network, latents, timestep, text, batch).float()

    @torch.no_grad()
    def _student_inputs(self, batch: Mapping[str, Any], text: TextFeatures) -> tuple[Latents, Time]:
        """Go as many of the student's steps from noise as each sample's draw says."""
        steps, latents = self.num_inference_steps, batch["noise"].float()
        wanted = (batch["uniform"] * steps).floor().clamp(max=steps - 1)
        for step in range(steps - 1):
            time = torch.full_like(wanted, step / steps)
            moved = latents + self._velocity(self.product, latents, time, text, batch) / steps
            latents = torch.where(per_sample(wanted > step), moved, latents)
        return latents, wanted / steps


def drawn(seeds: Tensor, shape: torch.Size) -> tuple[Time, Latents]:
    """A time inside the margins, and noise, of each sample's seed; on the CPU."""
    generators = [keyed_generator(int(seed)) for seed in seeds]
    uniform = torch.stack([torch.rand((), generator=each) for each in generators])
    noise = torch.stack([torch.randn(shape, generator=each) for each in generators])
    return TIME_MARGIN + (1 - 2 * TIME_MARGIN) * uniform, noise


def squared(error: Latents) -> Float32[Tensor, " batch"]:
    """Mean square of each sample."""
    return error.square().mean((1, 2, 3))


def per_sample(values: Tensor) -> Tensor:
    """One value a sample, [batch] to [batch, 1, 1, 1]."""
    return values[:, None, None, None]


def network_folder(pipeline: str | Path) -> Path:
    """The network inside a pipeline's folder; FileNotFoundError if it is not there."""
    folder = Path(pipeline) / "transformer"
    if not folder.is_dir():
        raise FileNotFoundError(
            f"teacher: there is no {folder}; give the folder of a saved pipeline, such as "
            "mmface/assets/tiny-flow, or train it first."
        )
    return folder


def merged(network: MMFaceDiT) -> MMFaceDiT:
    """A copy with its LoRA added to the weights; a network without one as it is."""
    if not getattr(network, "peft_config", None):
        return network
    whole = copy.deepcopy(network)
    whole.fuse_lora()
    whole.unload_lora()
    return whole
