"""The two training objectives of MMFace-DiT; the only file that knows their times and signs.

                 rectified flow (F)                    DDPM with Min-SNR (D)
time             t in [0, 1]: 0 is noise, 1 is data    step n in {0, ..., 999}: 999 is noise
noisy latents    z_t = (1 - t) noise + t data          z_n = sqrt(a_n) data + sqrt(1 - a_n) noise
the model says   velocity, data - noise                the noise
the model hears  999 t                                 n
loss weight      1                                     min(SNR_n, gamma) / SNR_n
sampled by       Euler, uniform steps                  DPM-Solver++, order 2

Both are sampled with diffusers' own schedulers, several of them each (`mmface.solvers`). Some of
those count time in whole numbers or keep latents at another scale; only the methods here know. Time
is float32 here whatever the precision of the latents: bf16 keeps 8 bits of mantissa, on which 50
Euler steps land unevenly.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
)
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from jaxtyping import Float, Float32, Shaped
from torch import Tensor

NUM_TRAIN_TIMESTEPS = 1000


@dataclass(frozen=True)
class Corrupted:
    """What `Objective.corrupt` makes of clean latents; every tensor is float32.

    Attributes:
        noisy_latents: What the model sees.
        target: What the model should say.
        timestep: What the model is fed as time, in [0, 1000).
        weight: The factor of each sample's loss, above 0 and at most 1.
    """

    noisy_latents: Float32[Tensor, " batch *shape"]
    target: Float32[Tensor, " batch *shape"]
    timestep: Float32[Tensor, " batch"]
    weight: Float32[Tensor, " batch"]


@runtime_checkable
class Objective(Protocol):
    """What training and sampling need to know of an objective."""

    name: ClassVar[str]
    noise_sign: ClassVar[int]
    """The sign with which noise stands in the model's output."""

    def signal_share(self, timestep: Float32[Tensor, " batch"]) -> Float32[Tensor, " batch"]:
        """Return signal / (signal + noise), both as amplitudes, at times that the model hears."""
        ...

    def corrupt(
        self,
        latents: Float[Tensor, " batch *shape"],
        noise: Float[Tensor, " batch *shape"],
        uniform: Float32[Tensor, " batch"],
    ) -> Corrupted:
        """Mix noise into clean latents at the time that `uniform`, in [0, 1), draws."""
        ...

    def loss(
        self, prediction: Float[Tensor, " batch *shape"], corrupted: Corrupted
    ) -> Float32[Tensor, " batch"]:
        """Return the weighted mean squared error of each sample, not reduced over the batch."""
        ...

    def scheduler(self) -> SchedulerMixin:
        """Return a new diffusers scheduler that samples this objective."""
        ...

    def set_timesteps(
        self, scheduler: SchedulerMixin, num_inference_steps: int, device: torch.device | str
    ) -> Shaped[Tensor, " calls"]:
        """Set the scheduler to this number of steps and return the timestep of each model call."""
        ...

    def model_timesteps(self, scheduler: SchedulerMixin) -> Float32[Tensor, " calls"]:
        """Return what the model is fed at each of the scheduler's calls, in [0, 1000)."""
        ...

    def first_latents(
        self, scheduler: SchedulerMixin, noise: Float32[Tensor, "*shape"]
    ) -> Float32[Tensor, "*shape"]:
        """Return what the scheduler starts from, made of standard normal noise."""
        ...

    def noisy_latents(
        self,
        scheduler: SchedulerMixin,
        latents: Float32[Tensor, "*shape"],
        noise: Float32[Tensor, "*shape"],
        call: int,
    ) -> Float32[Tensor, "*shape"]:
        """Return clean latents with as much noise as the scheduler expects before this call."""
        ...

    def model_input(
        self,
        scheduler: SchedulerMixin,
        latents: Float32[Tensor, "*shape"],
        timestep: Shaped[Tensor, ""],
    ) -> Float32[Tensor, "*shape"]:
        """Return the scheduler's latents at the scale that the model was trained on."""
        ...

    def scheduler_output(self, model_output: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Translate the model's output into what the scheduler's `step` expects."""
        ...


def _weighted_error(
    prediction: Float[Tensor, " batch *shape"], corrupted: Corrupted
) -> Float32[Tensor, " batch"]:
    """Mean squared error of each sample in float32, times its weight."""
    squared_error = (prediction.float() - corrupted.target).square()
    return corrupted.weight * squared_error.flatten(1).mean(1)


def _per_sample(
    values: Float32[Tensor, " batch"], like: Float[Tensor, " batch *shape"]
) -> Float32[Tensor, " batch *ones"]:
    """Append dimensions of size one, so that one value a sample multiplies all of it."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


class RectifiedFlow:
    """Rectified flow matching (arXiv 2209.03003): predict the velocity `data - noise`."""

    name: ClassVar[str] = "rectified_flow"
    noise_sign: ClassVar[int] = -1

    def signal_share(self, timestep: Float32[Tensor, " batch"]) -> Float32[Tensor, " batch"]:
        """Return t itself."""
        return timestep / (NUM_TRAIN_TIMESTEPS - 1)

    def corrupt(
        self,
        latents: Float[Tensor, " batch *shape"],
        noise: Float[Tensor, " batch *shape"],
        uniform: Float32[Tensor, " batch"],
    ) -> Corrupted:
        """Interpolate linearly between noise and data: z_t = (1 - t) noise + t data.

        Args:
            latents: Clean latents, any float dtype.
            noise: Standard normal noise.
            uniform: The time t itself, in [0, 1).

        Returns:
            The noisy latents with their velocities.
        """
        data, noise, time = latents.float(), noise.float(), _per_sample(uniform, latents)
        return Corrupted(
            noisy_latents=(1 - time) * noise + time * data,
            target=data - noise,
            timestep=uniform * (NUM_TRAIN_TIMESTEPS - 1),
            weight=torch.ones_like(uniform),
        )

    def loss(
        self, prediction: Float[Tensor, " batch *shape"], corrupted: Corrupted
    ) -> Float32[Tensor, " batch"]:
        """Return the mean squared error of each sample's velocity."""
        return _weighted_error(prediction, corrupted)

    def scheduler(self) -> FlowMatchEulerDiscreteScheduler:
        """Return the Euler scheduler with unshifted steps."""
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=NUM_TRAIN_TIMESTEPS, shift=1.0)

    def set_timesteps(
        self, scheduler: SchedulerMixin, num_inference_steps: int, device: torch.device | str
    ) -> Shaped[Tensor, " calls"]:
        """Set uniform steps from noise to data; Euler's own default spacing differs."""
        if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
            # The scheduler's sigma is the share of noise, 1 - t.
            sigmas = torch.linspace(1, 1 / num_inference_steps, num_inference_steps).tolist()
            scheduler.set_timesteps(sigmas=sigmas, device=device)
        else:
            scheduler.set_timesteps(num_inference_steps, device=device)
        return scheduler.timesteps

    def model_timesteps(self, scheduler: SchedulerMixin) -> Float32[Tensor, " calls"]:
        """Return 999 t of each call: the scheduler's sigma is 1 - t."""
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
        """Return the velocity towards noise, which is the one the scheduler integrates."""
        return -model_output


class MinSnrDiffusion:
    """DDPM noise prediction with Min-SNR weights (arXiv 2303.09556), on SD 2.1's noise schedule."""

    name: ClassVar[str] = "min_snr_diffusion"
    noise_sign: ClassVar[int] = 1

    def __init__(self, gamma: float = 5.0) -> None:
        """Fix the ceiling of the signal-to-noise ratio.

        Args:
            gamma: Samples with a ratio above this are weighted down to it. Above 0;
                `float("inf")` weights every step alike.

        Raises:
            ValueError: If gamma is not above 0.
        """
        if not gamma > 0:
            raise ValueError(f"gamma must be above 0, got {gamma}; the paper uses 5.0.")
        self.gamma = gamma
        self._alphas_cumprod: Float32[Tensor, " steps"] = self.scheduler().alphas_cumprod

    def signal_share(self, timestep: Float32[Tensor, " batch"]) -> Float32[Tensor, " batch"]:
        """Return sqrt(a_n) / (sqrt(a_n) + sqrt(1 - a_n))."""
        alpha = self._alphas_cumprod[timestep.long()]
        return alpha.sqrt() / (alpha.sqrt() + (1 - alpha).sqrt())

    def corrupt(
        self,
        latents: Float[Tensor, " batch *shape"],
        noise: Float[Tensor, " batch *shape"],
        uniform: Float32[Tensor, " batch"],
    ) -> Corrupted:
        """Mix by the cumulative product a_n: z_n = sqrt(a_n) data + sqrt(1 - a_n) noise.

        Args:
            latents: Clean latents, any float dtype.
            noise: Standard normal noise.
            uniform: In [0, 1); the step is n = floor(1000 uniform).

        Returns:
            The noisy latents with their noise.
        """
        # float32 rounding can lift a draw just below 1 to 1000, which is no step.
        step = (uniform * NUM_TRAIN_TIMESTEPS).long().clamp(max=NUM_TRAIN_TIMESTEPS - 1)
        alpha = self._alphas_cumprod.to(latents.device)[step]
        snr = alpha / (1 - alpha)
        alpha_each = _per_sample(alpha, latents)
        noise = noise.float()
        return Corrupted(
            noisy_latents=alpha_each.sqrt() * latents.float() + (1 - alpha_each).sqrt() * noise,
            target=noise,
            timestep=step.float(),
            weight=snr.clamp(max=self.gamma) / snr,
        )

    def loss(
        self, prediction: Float[Tensor, " batch *shape"], corrupted: Corrupted
    ) -> Float32[Tensor, " batch"]:
        """Return the mean squared error of each sample's noise, times min(SNR, gamma) / SNR."""
        return _weighted_error(prediction, corrupted)

    def scheduler(self) -> DPMSolverMultistepScheduler:
        """Return DPM-Solver++ of order 2 with the settings of SD 2.1 base."""
        return DPMSolverMultistepScheduler(
            num_train_timesteps=NUM_TRAIN_TIMESTEPS,
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type="epsilon",
            algorithm_type="dpmsolver++",
            solver_order=2,
            steps_offset=1,
        )

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


OBJECTIVES: dict[str, type[RectifiedFlow] | type[MinSnrDiffusion]] = {
    objective.name: objective for objective in (RectifiedFlow, MinSnrDiffusion)
}
"""The objectives by the name that a model's config carries."""


def objective_named(name: str) -> Objective:
    """Build the objective of this name with its default settings.

    Args:
        name: A key of `OBJECTIVES`.

    Returns:
        The objective.

    Raises:
        ValueError: If there is no objective of this name.
    """
    if name not in OBJECTIVES:
        raise ValueError(f"No objective is named {name!r}; choose one of {', '.join(OBJECTIVES)}.")
    return OBJECTIVES[name]()
