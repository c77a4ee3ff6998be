"""The solvers that a model can be sampled with, by name: diffusers' schedulers, set up to fit.

All of them are deterministic: a picture is a function of its noise alone. `num_inference_steps`
counts intervals of time; Heun calls the model twice in each but the last.
"""

import math
from collections.abc import Callable, Mapping

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from jaxtyping import Float32
from torch import Tensor

from mmface.objectives import NUM_TRAIN_TIMESTEPS, MinSnrDiffusion, Objective, RectifiedFlow

_FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}


def _diffusion(scheduler: type[SchedulerMixin], **options: str | int) -> SchedulerMixin:
    """Build a scheduler of another kind on the noise schedule of the objective's own one."""
    own = MinSnrDiffusion().scheduler().config
    names = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type")
    return scheduler(**{name: own[name] for name in names}, **options)


SOLVERS: Mapping[str, Mapping[str, Callable[[], SchedulerMixin]]] = {
    RectifiedFlow.name: {
        "euler": lambda: RectifiedFlow().scheduler(),
        "heun": lambda: FlowMatchHeunDiscreteScheduler(num_train_timesteps=NUM_TRAIN_TIMESTEPS),
        "dpm++": lambda: DPMSolverMultistepScheduler(**_FLOW),
        "unipc": lambda: UniPCMultistepScheduler(**_FLOW),
    },
    MinSnrDiffusion.name: {
        "dpm++": lambda: MinSnrDiffusion().scheduler(),
        # With "leading", these two start from noise of the very scale that the others start from.
        "euler": lambda: _diffusion(EulerDiscreteScheduler, timestep_spacing="leading"),
        "heun": lambda: _diffusion(HeunDiscreteScheduler, timestep_spacing="leading"),
        "unipc": lambda: _diffusion(UniPCMultistepScheduler),
        # DDIM is DPM-Solver++ of order 1 (arXiv 2211.01095, section 4). diffusers' class of that
        # name steps by floor(1000 / steps) and loses its place where that is not whole.
        "ddim": lambda: _diffusion(DPMSolverMultistepScheduler, solver_order=1),
    },
}
"""The solvers of each objective by name, the default first."""


def solver_named(objective: Objective, name: str) -> SchedulerMixin:
    """Build the solver of this name for an objective.

    Args:
        objective: What the model was trained with.
        name: A key of `SOLVERS[objective.name]`.

    Returns:
        A new scheduler.

    Raises:
        ValueError: If the objective has no solver of this name.
    """
    solvers = SOLVERS[objective.name]
    if name not in solvers:
        raise ValueError(
            f"solver {name!r} does not fit a model trained with {objective.name}; choose one of "
            f"{', '.join(solvers)}."
        )
    return solvers[name]()


def fitting_scheduler(
    objective: Objective, name: str | None, own: SchedulerMixin
) -> SchedulerMixin:
    """Give the solver of this name, or without one a pipeline's own scheduler, if it fits."""
    if name is not None:
        return solver_named(objective, name)
    check_scheduler(objective, own)
    return own


def check_scheduler(objective: Objective, scheduler: SchedulerMixin) -> None:
    """Check that a scheduler somebody brings can sample an objective.

    Args:
        objective: What the model was trained with.
        scheduler: A diffusers scheduler.

    Raises:
        ValueError: If its class, its kind of prediction or its noise schedule does not fit, or if
            it draws noise of its own; the message lists the classes that fit.
    """
    fitting = {type(build()) for build in SOLVERS[objective.name].values()}
    if objective.name == MinSnrDiffusion.name:
        fitting.add(DDIMScheduler)
    misfit = _misfit(objective, scheduler, fitting)
    if misfit:
        names = ", ".join(sorted(each.__name__ for each in fitting))
        raise ValueError(
            f"{type(scheduler).__name__} does not fit a model trained with {objective.name}: "
            f"{misfit}. These classes fit: {names}; or name a solver: "
            f"{', '.join(SOLVERS[objective.name])}."
        )


def _misfit(
    objective: Objective, scheduler: SchedulerMixin, fitting: set[type[SchedulerMixin]]
) -> str:
    """Say what of a scheduler does not fit; empty if all does."""
    if type(scheduler) not in fitting:
        return "it solves another equation"
    config, is_flow = scheduler.config, objective.name == RectifiedFlow.name
    if is_flow != config.get("use_flow_sigmas", is_flow):
        return f"use_flow_sigmas must be {is_flow}"
    prediction = _FLOW["prediction_type"] if is_flow else "epsilon"
    if config.get("prediction_type", prediction) != prediction:
        return f"prediction_type must be {prediction!r}"
    if config.get("algorithm_type", "").startswith("sde") or config.get("stochastic_sampling"):
        return "it draws noise of its own, so that a seed would not be a picture"
    if config.num_train_timesteps != NUM_TRAIN_TIMESTEPS:
        return f"num_train_timesteps must be {NUM_TRAIN_TIMESTEPS}"
    own = None if is_flow else objective.scheduler().alphas_cumprod
    if own is not None and not torch.allclose(scheduler.alphas_cumprod, own, rtol=1e-4):
        return "its noise schedule (beta_start, beta_end, beta_schedule) is another one"
    return ""


class Trajectory:
    """The way from noise, or from a picture with noise, to a picture: a scheduler that is set."""

    def __init__(
        self,
        objective: Objective,
        scheduler: SchedulerMixin,
        num_inference_steps: int,
        strength: float,
        device: torch.device,
    ) -> None:
        """Set the scheduler to its steps.

        Args:
            objective: What the model was trained with.
            scheduler: A scheduler that fits; nobody else may use it meanwhile.
            num_inference_steps: Steps of the whole way, at least 1.
            strength: Share of the steps that are taken, rounded up, the last ones; in (0, 1].
            device: Where the model computes.
        """
        self.objective = objective
        self.scheduler = scheduler
        timesteps = objective.set_timesteps(scheduler, num_inference_steps, device)
        order = scheduler.order  # calls of the model in a step
        taken = math.ceil(strength * num_inference_steps - 1e-9)
        self.first_call = (num_inference_steps - taken) * order
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(self.first_call)
        self.timesteps = timesteps[self.first_call :]
        """The scheduler's timestep of each call of the model."""
        self.model_timesteps = objective.model_timesteps(scheduler)[self.first_call :]
        """What the model hears as time at each call, in [0, 1000)."""
        calls = range(self.first_call, len(timesteps))
        self.shares = [call // order / num_inference_steps for call in calls]
        """Share of the whole way's steps that lie before each call, in [0, 1)."""

    def start(
        self, noise: Float32[Tensor, "*shape"], original: Float32[Tensor, "*shape"] | None
    ) -> Float32[Tensor, "*shape"]:
        """Give what the way starts from; the original has no part in it at strength 1."""
        if original is None or self.first_call == 0:
            return self.objective.first_latents(self.scheduler, noise)
        return self.noisy(original, noise, 0)

    def noisy(
        self, original: Float32[Tensor, "*shape"], noise: Float32[Tensor, "*shape"], call: int
    ) -> Float32[Tensor, "*shape"]:
        """Give clean latents as noisy as they are before a call; past the last one, as they are."""
        return self.objective.noisy_latents(self.scheduler, original, noise, self.first_call + call)

    def model_input(
        self, latents: Float32[Tensor, "*shape"], call: int
    ) -> Float32[Tensor, "*shape"]:
        """Give latents at the scale that the model was trained on."""
        return self.objective.model_input(self.scheduler, latents, self.timesteps[call])

    def step(
        self, prediction: Float32[Tensor, "*shape"], latents: Float32[Tensor, "*shape"], call: int
    ) -> Float32[Tensor, "*shape"]:
        """Go one call on; calls are made once each, in order."""
        output = self.objective.scheduler_output(prediction)
        return self.scheduler.step(output, self.timesteps[call], latents, return_dict=False)[0]
