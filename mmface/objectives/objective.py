"""The two training objectives of MMFace-DiT: which noise, what to predict, and the loss.

`solvers` has the table of their times and signs. An objective receives a uniform draw for each
sample, which its time sampling turns into a noise level in [0, 1].
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from jaxtyping import Float, Float32
from torch import Tensor

from mmface.objectives.losses import Corrupted, LossTerm, MinSnr, SquaredError, summed
from mmface.objectives.solvers import (
    MIN_SNR_DIFFUSION,
    NUM_TRAIN_TIMESTEPS,
    RECTIFIED_FLOW,
    translation_named,
)
from mmface.objectives.times import TimeSampling, UniformTime

OBJECTIVES: dict[str, type["Objective"]] = {}
"""Every class of objective by the name that a model's config carries."""

UNIFORM = UniformTime()


class Objective(ABC):
    """What a training minimises; a subclass registers itself by its `name`.

    The name is stored in a trained model's config, where samplers find it; model cards show the
    `title`. `noise_sign` is the sign of the noise in the model's output; `default_terms` are the
    paper's.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    noise_sign: ClassVar[int]
    default_terms: ClassVar[Mapping[str, LossTerm]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Register the class by its name."""
        super().__init_subclass__(**kwargs)
        OBJECTIVES[cls.name] = cls

    def __init__(
        self,
        name: str | None = None,
        time: TimeSampling = UNIFORM,
        terms: Mapping[str, LossTerm] | None = None,
    ) -> None:
        """Choose noise levels and named loss terms; None takes the paper's.

        A config may repeat the class's name; another name raises ValueError.
        """
        if name not in (None, self.name):
            raise ValueError(
                f"{type(self).__name__} is the objective {self.name!r}, not {name!r}; "
                "take the objective's own config group."
            )
        if not isinstance(time, TimeSampling):
            raise ValueError(f"objective.time must be a time sampling, got {time!r}.")
        self.time = time
        self.terms = dict(self.default_terms if terms is None else terms)
        if not self.terms:
            raise ValueError(f"objective {self.name!r} has no loss term; give one in its `terms`.")

    @abstractmethod
    def signal_share(self, timestep: Float32[Tensor, " batch"]) -> Float32[Tensor, " batch"]:
        """Return signal / (signal + noise), as amplitudes, at timesteps fed to the model."""

    @abstractmethod
    def corrupt(
        self,
        latents: Float[Tensor, " batch *shape"],
        noise: Float[Tensor, " batch *shape"],
        uniform: Float32[Tensor, " batch"],
    ) -> Corrupted:
        """Mix standard normal noise into clean latents at the time drawn by `uniform` in [0, 1)."""

    def losses(
        self, prediction: Float[Tensor, " batch *shape"], corrupted: Corrupted
    ) -> dict[str, Float32[Tensor, " batch"]]:
        """Return `loss` of each sample, and each weighted term as `loss/<name>` for the log."""
        return summed(self.weighted_terms(prediction, corrupted))

    def weighted_terms(
        self, prediction: Float[Tensor, " batch *shape"], corrupted: Corrupted
    ) -> dict[str, Float32[Tensor, " batch"]]:
        """Return each weighted term of each sample by its name."""
        return {n: term(prediction, corrupted) for n, term in self.terms.items()}


def _per_sample(
    values: Float32[Tensor, " batch"], like: Float[Tensor, " batch *shape"]
) -> Float32[Tensor, " batch *ones"]:
    """Append dimensions of size one, so that one value a sample multiplies all of it."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


class RectifiedFlow(Objective):
    """Rectified flow matching (arXiv 2209.03003): predict the velocity `data - noise`."""

    name = RECTIFIED_FLOW
    title = "rectified flow, Euler sampling"
    noise_sign = -1
    default_terms: ClassVar[Mapping[str, LossTerm]] = {"velocity": SquaredError()}

    def signal_share(self, timestep: Float32[Tensor, " batch"]) -> Float32[Tensor, " batch"]:
        """Return t itself."""
        return timestep / (NUM_TRAIN_TIMESTEPS - 1)

    def corrupt(
        self,
        latents: Float[Tensor, " batch *shape"],
        noise: Float[Tensor, " batch *shape"],
        uniform: Float32[Tensor, " batch"],
    ) -> Corrupted:
        """Interpolate linearly: z_t = (1 - t) noise + t data, where 1 - t is the noise level."""
        # Both subtractions are exact for draws of torch.rand, which are multiples of 2^-24.
        level = self.time(1 - uniform)
        t = 1 - level
        data, noise, time = latents.float(), noise.float(), _per_sample(t, latents)
        return Corrupted(
            noisy_latents=(1 - time) * noise + time * data,
            target=data - noise,
            timestep=t * (NUM_TRAIN_TIMESTEPS - 1),
            signal_to_noise=(t / level).square(),
        )


class MinSnrDiffusion(Objective):
    """DDPM noise prediction on SD 2.1's noise schedule, with Min-SNR weights (2303.09556)."""

    name = MIN_SNR_DIFFUSION
    title = "DDPM noise prediction, DPM-Solver++ sampling"
    noise_sign = 1
    default_terms: ClassVar[Mapping[str, LossTerm]] = {"noise": SquaredError(weighting=MinSnr())}

    def __init__(
        self,
        name: str | None = None,
        time: TimeSampling = UNIFORM,
        terms: Mapping[str, LossTerm] | None = None,
    ) -> None:
        super().__init__(name, time, terms)
        scheduler = translation_named(self.name).scheduler()
        self._alphas_cumprod: Float32[Tensor, " steps"] = scheduler.alphas_cumprod

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

        The step is n = floor(1000 x the noise level).
        """
        # A level of 1 would be step 1000, which is none.
        step = (self.time(uniform) * NUM_TRAIN_TIMESTEPS).long().clamp(max=NUM_TRAIN_TIMESTEPS - 1)
        alpha = self._alphas_cumprod.to(latents.device)[step]
        alpha_each = _per_sample(alpha, latents)
        noise = noise.float()
        return Corrupted(
            noisy_latents=alpha_each.sqrt() * latents.float() + (1 - alpha_each).sqrt() * noise,
            target=noise,
            timestep=step.float(),
            signal_to_noise=alpha / (1 - alpha),
        )


def objective_named(name: str) -> Objective:
    """Build the objective of this name with its default settings."""
    if name not in OBJECTIVES:
        raise ValueError(f"No objective is named {name!r}; choose one of {', '.join(OBJECTIVES)}.")
    return OBJECTIVES[name]()
