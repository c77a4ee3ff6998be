"""Solvers: sampling each objective's model with diffusers' schedulers.

A saved model names its objective, which selects a `Translation`; no training code is imported. Some
schedulers count time in whole numbers or scale latents differently: a `Translation` converts both.
All solvers are deterministic: a picture is a function of its noise alone. `num_inference_steps`
counts intervals of time; Heun calls the model twice in each but the last.

                     rectified flow (F)                    DDPM with Min-SNR (D)
    time             t in [0, 1]: 0 is noise, 1 is data    step n in {0, ..., 999}: 999 is noise
    noisy latents    z_t = (1 - t) noise + t data          z_n = sqrt(a_n) data + sqrt(1 - a_n)
    noise
    model predicts   velocity, data - noise                the noise
    model receives   999 t                                 n
    sampled by       Euler, uniform steps                  DPM-Solver++, order 2

Time is float32 whatever the precision of the latents: bf16 keeps 8 bits of mantissa, on which 50
Euler steps land unevenly.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import diffusers
import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from jaxtyping import Float, Float32, Shaped
from torch import Tensor

from mmface.core.sources import BrokenModelError, read_object

NUM_TRAIN_TIMESTEPS = 1000
RECTIFIED_FLOW = "rectified_flow"
MIN_SNR_DIFFUSION = "min_snr_diffusion"
"""Names of the two objectives of the paper, as a model's config carries them."""

SD21_NOISE: Mapping[str, Any] = {
    "num_train_timesteps": NUM_TRAIN_TIMESTEPS,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
}
"""The noise schedule of Stable Diffusion 2.1."""
_FLOW: Mapping[str, Any] = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}

Build = Callable[[], SchedulerMixin]
TRANSLATIONS: dict[str, type["Translation"]] = {}
"""Every class of translation by its objective's name."""


class Translation(ABC):
    """Converts between a model of one objective and diffusers' schedulers.

    A subclass registers itself by its `objective`. The first of its `solvers` is the default. A
    scheduler fits if its class is that of a solver or in `also_fit`, and its config contradicts no
    entry of `requirements`.
    """

    objective: ClassVar[str]
    solvers: ClassVar[Mapping[str, Build]]
    requirements: ClassVar[Mapping[str, object]]
    also_fit: ClassVar[tuple[type[SchedulerMixin], ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Register the class by its objective's name."""
        super().__init_subclass__(**kwargs)
        TRANSLATIONS[cls.objective] = cls

    def scheduler(self) -> SchedulerMixin:
        """Return a new scheduler of the default solver."""
        return next(iter(self.solvers.values()))()

    def solver(self, name: str) -> SchedulerMixin:
        """Return a new scheduler for a name in `solvers`; ValueError for another."""
        if name not in self.solvers:
            raise ValueError(
                f"solver {name!r} does not fit a model trained with {self.objective}; choose one "
                f"of {', '.join(self.solvers)}."
            )
        return self.solvers[name]()

    def check(self, scheduler: SchedulerMixin) -> None:
        """Raise ValueError unless a scheduler samples this objective, without drawing noise."""
        fitting = {type(build()) for build in self.solvers.values()} | {*self.also_fit}
        misfit = "it solves another equation"
        if type(scheduler) in fitting:
            misfit = self._misfit(scheduler)
        if misfit:
            names = ", ".join(sorted(each.__name__ for each in fitting))
            raise ValueError(
                f"{type(scheduler).__name__} does not fit a model trained with {self.objective}: "
                f"{misfit}. These classes fit: {names}; or name a solver: "
                f"{', '.join(self.solvers)}."
            )

    def _misfit(self, scheduler: SchedulerMixin) -> str:
        """Describe a setting of a scheduler that does not fit; empty if all fit."""
        config = scheduler.config
        wanted = {**self.requirements, "num_train_timesteps": NUM_TRAIN_TIMESTEPS}
        for name, value in wanted.items():
            if config.get(name, value) != value:
                return f"{name} must be {value!r}"
        if config.get("algorithm_type", "").startswith("sde") or config.get("stochastic_sampling"):
            return "it draws noise of its own, so that a seed would not be a picture"
        own = getattr(self.scheduler(), "alphas_cumprod", None)
        if own is not None and not torch.allclose(scheduler.alphas_cumprod, own, rtol=1e-4):
            return "its noise schedule (beta_start, beta_end, beta_schedule) is another one"
        return ""

    def fitting(self, name: str | None, own: SchedulerMixin) -> SchedulerMixin:
        """Return the solver of this name; None stands for the pipeline's own scheduler."""
        if name is not None:
            return self.solver(name)
        self.check(own)
        return own

    @abstractmethod
    def set_timesteps(
        self, scheduler: SchedulerMixin, num_inference_steps: int, device: torch.device | str
    ) -> Shaped[Tensor, " calls"]:
        """Set the scheduler to this number of steps and return the timestep of each model call."""

    @abstractmethod
    def model_timesteps(self, scheduler: SchedulerMixin) -> Float32[Tensor, " calls"]:
        """Return the model's time at each of the scheduler's calls, in [0, 1000)."""

    @abstractmethod
    def first_latents(
        self, scheduler: SchedulerMixin, noise: Float32[Tensor, "*shape"]
    ) -> Float32[Tensor, "*shape"]:
        """Scale standard normal noise to what the scheduler starts from."""

    @abstractmethod
    def noisy_latents(
        self,
        scheduler: SchedulerMixin,
        latents: Float32[Tensor, "*shape"],
        noise: Float32[Tensor, "*shape"],
        call: int,
    ) -> Float32[Tensor, "*shape"]:
        """Return clean latents with as much noise as the scheduler expects before this call."""

    @abstractmethod
    def model_input(
        self,
        scheduler: SchedulerMixin,
        latents: Float32[Tensor, "*shape"],
        timestep: Shaped[Tensor, ""],
    ) -> Float32[Tensor, "*shape"]:
        """Return the scheduler's latents at the scale that the model was trained on."""

    @abstractmethod
    def scheduler_output(self, model_output: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Translate the model's output into what the scheduler's `step` expects."""


class RectifiedFlowTranslation(Translation):
    """Velocities of a rectified flow; diffusers' sigma is the share of noise, 1 - t."""

    objective = RECTIFIED_FLOW
    solvers: ClassVar[Mapping[str, Build]] = {
        # shift=1.0: unshifted steps.
        "euler": lambda: FlowMatchEulerDiscreteScheduler(NUM_TRAIN_TIMESTEPS, shift=1.0),
        "heun": lambda: FlowMatchHeunDiscreteScheduler(NUM_TRAIN_TIMESTEPS),
        "dpm++": lambda: DPMSolverMultistepScheduler(**_FLOW),
        "unipc": lambda: UniPCMultistepScheduler(**_FLOW),
    }
    requirements = _FLOW

    def set_timesteps(
        self, scheduler: SchedulerMixin, num_inference_steps: int, device: torch.device | str
    ) -> Shaped[Tensor, " calls"]:
        """Set uniform steps from noise to data; Euler's own default spacing differs."""
        if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
            sigmas = torch.linspace(1, 1 / num_inference_steps, num_inference_steps).tolist()
            scheduler.set_timesteps(sigmas=sigmas, device=device)
        else:
            scheduler.set_timesteps(num_inference_steps, device=device)
        return scheduler.timesteps

    def model_timesteps(self, scheduler: SchedulerMixin) -> Float32[Tensor, " calls"]:
        """Return 999 t of each call."""
        # Not from its timesteps, which the multistep solvers cut to whole thousandths.
        time = 1 - scheduler.sigmas[:-1].float()
        return (time * (NUM_TRAIN_TIMESTEPS - 1)).to(scheduler.timesteps.device)

    def first_latents(
        self, scheduler: SchedulerMixin, noise: Float32[Tensor, "*shape"]
    ) -> Float32[Tensor, "*shape"]:
        """Return the noise as it is."""
        return noise

    def noisy_latents(
        self,
        scheduler: SchedulerMixin,
        latents: Float32[Tensor, "*shape"],
        noise: Float32[Tensor, "*shape"],
        call: int,
    ) -> Float32[Tensor, "*shape"]:
        """Return z_t = (1 - t) noise + t data at the call's t; past the last call, the data."""
        sigma = float(scheduler.sigmas[call])
        return (1 - sigma) * latents + sigma * noise

    def model_input(
        self,
        scheduler: SchedulerMixin,
        latents: Float32[Tensor, "*shape"],
        timestep: Shaped[Tensor, ""],
    ) -> Float32[Tensor, "*shape"]:
        """Return the latents as they are."""
        return latents

    def scheduler_output(self, model_output: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the velocity towards noise, which the scheduler integrates."""
        return -model_output


class MinSnrDiffusionTranslation(Translation):
    """Noise predictions on Stable Diffusion 2.1's noise schedule."""

    objective = MIN_SNR_DIFFUSION
    solvers: ClassVar[Mapping[str, Build]] = {
        "dpm++": lambda: DPMSolverMultistepScheduler(
            **SD21_NOISE, algorithm_type="dpmsolver++", solver_order=2, steps_offset=1
        ),
        # With "leading", these two start from noise of the very scale that the others start from.
        "euler": lambda: EulerDiscreteScheduler(**SD21_NOISE, timestep_spacing="leading"),
        "heun": lambda: HeunDiscreteScheduler(**SD21_NOISE, timestep_spacing="leading"),
        "unipc": lambda: UniPCMultistepScheduler(**SD21_NOISE),
        # DDIM is DPM-Solver++ of order 1 (arXiv 2211.01095, section 4). diffusers' class of that
        # name steps by floor(1000 / steps) and loses its place where that is not whole.
        "ddim": lambda: DPMSolverMultistepScheduler(**SD21_NOISE, solver_order=1),
    }
    requirements: ClassVar[Mapping[str, object]] = {
        "use_flow_sigmas": False,
        "prediction_type": SD21_NOISE["prediction_type"],
    }
    also_fit = (DDIMScheduler,)

    def set_timesteps(
        self, scheduler: SchedulerMixin, num_inference_steps: int, device: torch.device | str
    ) -> Shaped[Tensor, " calls"]:
        """Set steps from 999 downwards, spaced as DPM-Solver++ spaces them."""
        if isinstance(scheduler, EulerDiscreteScheduler | HeunDiscreteScheduler) and not any(
            scheduler.config.get(f"use_{kind}_sigmas") for kind in ("karras", "exponential", "beta")
        ):
            # Of their own spacings, each misses step 999 or the number of steps for some numbers.
            last = NUM_TRAIN_TIMESTEPS - 1
            uniform = np.linspace(0, last, num_inference_steps + 1).round()[:0:-1]
            scheduler.set_timesteps(timesteps=uniform.tolist(), device=device)
        else:
            scheduler.set_timesteps(num_inference_steps, device=device)
        return scheduler.timesteps

    def model_timesteps(self, scheduler: SchedulerMixin) -> Float32[Tensor, " calls"]:
        """Return the step of each call."""
        return scheduler.timesteps.float()

    def first_latents(
        self, scheduler: SchedulerMixin, noise: Float32[Tensor, "*shape"]
    ) -> Float32[Tensor, "*shape"]:
        """Return the noise at the scheduler's scale: some keep data + sigma noise."""
        return noise * float(scheduler.init_noise_sigma)

    def noisy_latents(
        self,
        scheduler: SchedulerMixin,
        latents: Float32[Tensor, "*shape"],
        noise: Float32[Tensor, "*shape"],
        call: int,
    ) -> Float32[Tensor, "*shape"]:
        """Return the scheduler's own mixture at the call's step; past the last call, the data."""
        if call == len(scheduler.timesteps):
            return latents
        return scheduler.add_noise(latents, noise, scheduler.timesteps[call : call + 1])

    def model_input(
        self,
        scheduler: SchedulerMixin,
        latents: Float32[Tensor, "*shape"],
        timestep: Shaped[Tensor, ""],
    ) -> Float32[Tensor, "*shape"]:
        """Return the latents at unit variance."""
        return scheduler.scale_model_input(latents, timestep)

    def scheduler_output(self, model_output: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the noise as it is."""
        return model_output


def translation_named(objective: str) -> Translation:
    """Build the translation for models trained with the objective of this name."""
    if objective not in TRANSLATIONS:
        raise ValueError(
            f"No objective is named {objective!r}; choose one of {', '.join(TRANSLATIONS)}."
        )
    return TRANSLATIONS[objective]()


def load_scheduler(name: str, folder: Path) -> SchedulerMixin:
    """Load the scheduler of a pipeline's folder, a class of diffusers; BrokenModelError if unfit.

    Unfit are names that diffusers does not have, and steps that are no numbers or lie outside of
    the scheduler's own time.
    """
    found = getattr(diffusers, str(name), None)
    if not (isinstance(found, type) and issubclass(found, SchedulerMixin)):
        raise BrokenModelError(
            f"{folder}/model_index.json names {name!r:.60} as scheduler, which diffusers does not "
            "have; copy it again"
        )
    read_object(folder / "scheduler" / "scheduler_config.json")
    kind: Any = found
    scheduler = kind.from_pretrained(folder, subfolder="scheduler")
    try:
        scheduler.set_timesteps(4)
        steps = torch.as_tensor(scheduler.timesteps).float()
        sigmas = torch.as_tensor(getattr(scheduler, "sigmas", [0.0])).float()
        last = scheduler.config["num_train_timesteps"]
        is_sound = bool(sigmas.isfinite().all() and ((steps >= 0) & (steps <= last)).all())
    except Exception as error:
        raise BrokenModelError(
            f"{folder}/scheduler cannot make steps ({type(error).__name__}: {error}); copy its "
            "config again"
        ) from error
    if not is_sound:
        raise BrokenModelError(
            f"{folder}/scheduler makes steps beyond its time; copy its config again"
        )
    return scheduler


class Trajectory:
    """A scheduler set to its steps, from noise or a noisy picture to a picture."""

    def __init__(
        self,
        translation: Translation,
        scheduler: SchedulerMixin,
        num_inference_steps: int,
        strength: float,
        device: torch.device,
    ) -> None:
        """Set a scheduler to its steps; nobody else may use it meanwhile.

        Only the last `strength` of the steps, in (0, 1] and rounded up, are taken.
        """
        self.translation = translation
        self.scheduler = scheduler
        timesteps = translation.set_timesteps(scheduler, num_inference_steps, device)
        order = scheduler.order  # calls of the model in a step
        taken = math.ceil(strength * num_inference_steps - 1e-9)
        self.first_call = (num_inference_steps - taken) * order
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(self.first_call)
        self.timesteps = timesteps[self.first_call :]
        """The scheduler's timestep of each call of the model."""
        self.model_timesteps = translation.model_timesteps(scheduler)[self.first_call :]
        """The model's time at each call, in [0, 1000)."""
        calls = range(self.first_call, len(timesteps))
        self.shares = [call // order / num_inference_steps for call in calls]
        """Fraction of the schedule completed before each call, in [0, 1)."""

    def start(
        self, noise: Float32[Tensor, "*shape"], original: Float32[Tensor, "*shape"] | None
    ) -> Float32[Tensor, "*shape"]:
        """Return the first latents; at strength 1 the original is not used."""
        if original is None or self.first_call == 0:
            return self.translation.first_latents(self.scheduler, noise)
        return self.noisy(original, noise, 0)

    def noisy(
        self, original: Float32[Tensor, "*shape"], noise: Float32[Tensor, "*shape"], call: int
    ) -> Float32[Tensor, "*shape"]:
        """Add the noise that latents have before a call; none after the last call."""
        return self.translation.noisy_latents(
            self.scheduler, original, noise, self.first_call + call
        )

    def model_input(
        self, latents: Float32[Tensor, "*shape"], call: int
    ) -> Float32[Tensor, "*shape"]:
        """Scale latents as the model was trained on."""
        return self.translation.model_input(self.scheduler, latents, self.timesteps[call])

    def step(
        self, prediction: Float32[Tensor, "*shape"], latents: Float32[Tensor, "*shape"], call: int
    ) -> Float32[Tensor, "*shape"]:
        """Advance by one call of the model; calls must be made in order."""
        output = self.translation.scheduler_output(prediction)
        return self.scheduler.step(output, self.timesteps[call], latents, return_dict=False)[0]
