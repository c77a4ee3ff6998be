"""Solvers: they land on a point, converge to the exact flow of a Gaussian, and must fit."""

import numpy as np
import pytest
import torch
from conftest import build_pipeline, latents_of
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from mmface.objectives.solvers import (
    RECTIFIED_FLOW,
    TRANSLATIONS,
    MinSnrDiffusionTranslation,
    RectifiedFlowTranslation,
    Trajectory,
    Translation,
    translation_named,
)

EVERY = [(name, solver) for name, kind in TRANSLATIONS.items() for solver in kind.solvers]
CPU = torch.device("cpu")
MEAN = 0.7
FLOW, DIFFUSION = RectifiedFlowTranslation(), MinSnrDiffusionTranslation()
ALPHAS = MinSnrDiffusionTranslation().scheduler().alphas_cumprod


def gaussian_model(translation: Translation, std: float):
    """The best prediction for data from N(MEAN, std^2), in closed form; std 0 is one point."""

    def flow(latents, timestep):
        time = timestep / 999
        variance = (1 - time) ** 2 + (time * std) ** 2
        offset = latents - time * MEAN
        return MEAN + time * std**2 / variance * offset - (1 - time) / variance * offset

    def diffusion(latents, timestep):
        alpha = ALPHAS[timestep.long()]
        variance = alpha * std**2 + 1 - alpha
        return (1 - alpha).sqrt() / variance * (latents - alpha.sqrt() * MEAN)

    return flow if translation.objective == RECTIFIED_FLOW else diffusion


def exact(translation: Translation, noise: torch.Tensor, std: float) -> torch.Tensor:
    """Where the probability flow takes this noise: it keeps every quantile."""
    if translation.objective == RECTIFIED_FLOW:
        return MEAN + std * noise
    alpha = ALPHAS[999]
    return MEAN + std * (noise - alpha.sqrt() * MEAN) / (alpha * std**2 + 1 - alpha).sqrt()


def follow(translation, scheduler, noise, std, steps, original=None, strength=1.0):
    way = Trajectory(translation, scheduler, steps, strength, CPU)
    model, latents = gaussian_model(translation, std), way.start(noise, original)
    for call, model_time in enumerate(way.model_timesteps):
        prediction = model(way.model_input(latents, call), model_time)
        latents = way.step(prediction, latents, call)
    return latents


@pytest.fixture
def noise() -> torch.Tensor:
    return torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("name", "solver"), EVERY)
@pytest.mark.parametrize("steps", [1, 2, 7, 25, 61])
def test_every_solver_lands_on_a_single_point(name, solver, steps, noise):
    translation = translation_named(name)
    landed = follow(translation, translation.solver(solver), noise, 0.0, steps)
    torch.testing.assert_close(landed, torch.full_like(noise, MEAN), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("name", "solver"), EVERY)
def test_every_solver_converges_to_the_exact_flow_of_a_gaussian(name, solver, noise):
    translation, std = translation_named(name), 0.5
    target = exact(translation, noise, std)
    coarse, fine = (
        follow(translation, translation.solver(solver), noise, std, steps) - target
        for steps in (20, 80)
    )
    assert 0 < fine.abs().mean() < coarse.abs().mean() / 2.5
    assert fine.abs().mean() < (0.01 if name == RECTIFIED_FLOW else 0.02)
    if (name, solver) in [(RECTIFIED_FLOW, "heun"), (RECTIFIED_FLOW, "unipc")]:
        assert fine.abs().mean() < 5e-4  # order 2: Euler is at 7e-3 there


@pytest.mark.parametrize(("name", "solver"), EVERY)
def test_steps_and_times_of_every_solver(name, solver):
    translation = translation_named(name)
    for steps in (1, 2, 3, 10, 61, 200):
        way = Trajectory(translation, translation.solver(solver), steps, 1.0, CPU)
        assert len(way.timesteps) == (2 * steps - 1 if solver == "heun" else steps)
        times = way.model_timesteps
        assert times.dtype == torch.float32
        direction = 1 if name == RECTIFIED_FLOW else -1
        assert (direction * times.diff() >= 0).all()
        first = 0 if name == RECTIFIED_FLOW else 999
        assert abs(float(times[0]) - first) <= 1
        assert way.shares[0] == 0
        assert way.shares[-1] == (steps - 1) / steps


@pytest.mark.parametrize(("name", "solver"), EVERY)
@pytest.mark.parametrize("strength", [0.1, 0.55, 1.0])
def test_strength_starts_at_its_own_noise(name, solver, strength, noise):
    """From the exact point of the flow at that noise, the rest of the way leads to its end."""
    translation, steps = translation_named(name), 20
    way = Trajectory(translation, translation.solver(solver), steps, strength, CPU)
    taken = int(np.ceil(round(strength * steps, 6)))
    assert len(way.timesteps) == (2 * taken - 1 if solver == "heun" else taken)
    original = torch.full_like(noise, MEAN)
    start = way.model_input(way.start(noise, original), 0)
    if strength == 1:
        torch.testing.assert_close(start, noise, atol=1e-3, rtol=1e-3)
    elif name == RECTIFIED_FLOW:
        time = way.model_timesteps[0] / 999
        torch.testing.assert_close(start, time * original + (1 - time) * noise)
        assert abs(float(1 - time) - strength) < 0.06
    else:
        alpha = ALPHAS[way.model_timesteps[0].long()]
        torch.testing.assert_close(start, alpha.sqrt() * original + (1 - alpha).sqrt() * noise)
    landed = follow(translation, translation.solver(solver), noise, 0.0, steps, original, strength)
    torch.testing.assert_close(landed, original, atol=1e-4, rtol=0)
    torch.testing.assert_close(way.noisy(original, noise, len(way.timesteps)), original)


@pytest.mark.parametrize("steps", [10, 25, 50])
def test_ddim_is_the_one_of_diffusers(steps, noise):
    translation = MinSnrDiffusionTranslation()
    own = translation.scheduler().config
    betas = {key: own[key] for key in ("beta_start", "beta_end", "beta_schedule")}
    theirs = DDIMScheduler(**betas, timestep_spacing="trailing", clip_sample=False)
    translation.check(theirs)
    ours = follow(translation, translation.solver("ddim"), noise, 0.5, steps)
    assert (follow(translation, theirs, noise, 0.5, steps) - ours).abs().max() < 0.02


def test_a_fitting_scheduler_of_ones_own_keeps_working(face_mask):
    pipe = build_pipeline()

    def latents(**options) -> torch.Tensor:
        return latents_of(
            pipe("a", face_mask, seed=0, num_inference_steps=4, output_type="latent", **options)
        )

    default = latents()
    assert torch.equal(latents(solver="euler"), default)
    by_name = latents(solver="unipc")
    pipe.scheduler = pipe.translation.solver("unipc")
    assert torch.equal(latents(), by_name)
    assert not torch.allclose(by_name, default, atol=1e-3)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    assert not torch.allclose(latents(), default, atol=1e-3)
    pipe.scheduler = DPMSolverMultistepScheduler()
    with pytest.raises(ValueError, match="use_flow_sigmas must be True"):
        latents()


@pytest.mark.parametrize(
    ("translation", "scheduler", "message"),
    [
        (FLOW, DDIMScheduler(), "another equation.*FlowMatchHeun.*euler, heun"),
        (DIFFUSION, FlowMatchEulerDiscreteScheduler(), "DDIMScheduler.*dpm"),
        (DIFFUSION, EulerAncestralDiscreteScheduler(), "another equation"),
        (DIFFUSION, PNDMScheduler(), "another equation"),
        (DIFFUSION, DPMSolverMultistepScheduler(), "noise schedule"),
        (DIFFUSION, UniPCMultistepScheduler(use_flow_sigmas=True), "must be False"),
        (DIFFUSION, DDIMScheduler(prediction_type="v_prediction"), "'epsilon'"),
        (
            DIFFUSION,
            DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"),
            "noise of its own",
        ),
        (FLOW, FlowMatchEulerDiscreteScheduler(num_train_timesteps=500), "1000"),
        (FLOW, FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), "its own"),
    ],
)
def test_schedulers_that_do_not_fit_are_named(translation, scheduler, message):
    with pytest.raises(ValueError, match=message):
        translation.check(scheduler)


def test_unknown_solvers_are_named():
    with pytest.raises(ValueError, match=r"'ddim' does not fit .*rectified_flow.*euler, heun"):
        FLOW.solver("ddim")
