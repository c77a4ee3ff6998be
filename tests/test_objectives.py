"""Objectives: closed forms, and agreement with diffusers' schedulers and SNR."""

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from mmface.objectives.losses import MinSnr, SquaredError
from mmface.objectives.objective import (
    OBJECTIVES,
    MinSnrDiffusion,
    RectifiedFlow,
    objective_named,
)
from mmface.objectives.solvers import translation_named
from mmface.objectives.times import LogitNormalTime, ShiftedTime

SHAPE = (4, 3, 5, 2)


@pytest.fixture
def latents_noise():
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(SHAPE, generator=generator),
        torch.randn(SHAPE, generator=generator),
    )


def sample(objective, noise, model, steps):
    """Run the scheduler as the pipeline does; `model(latents, timestep)` is what it asks."""
    translation = translation_named(objective.name)
    scheduler = translation.scheduler()
    timesteps = translation.set_timesteps(scheduler, steps, "cpu")
    latents = noise
    for timestep, model_time in zip(timesteps, translation.model_timesteps(scheduler), strict=True):
        output = model(latents, model_time)
        latents = scheduler.step(
            translation.scheduler_output(output), timestep, latents, return_dict=False
        )[0]
    return latents


def test_flow_at_its_ends_is_noise_and_data(latents_noise):
    latents, noise = latents_noise
    flow = RectifiedFlow()
    torch.testing.assert_close(flow.corrupt(latents, noise, torch.zeros(4)).noisy_latents, noise)
    almost_one = torch.full((4,), 1 - 2**-24)
    torch.testing.assert_close(flow.corrupt(latents, noise, almost_one).noisy_latents, latents)


def test_flow_time_is_999_t_and_follows_the_straight_line(latents_noise):
    latents, noise = latents_noise
    uniform = torch.tensor([0.0, 0.25, 0.5, 0.75])
    corrupted = RectifiedFlow().corrupt(latents, noise, uniform)
    torch.testing.assert_close(corrupted.timestep, 999 * uniform)
    torch.testing.assert_close(corrupted.signal_to_noise, (uniform / (1 - uniform)).square())
    torch.testing.assert_close(corrupted.target, latents - noise)
    remaining = (1 - uniform).reshape(-1, 1, 1, 1)
    torch.testing.assert_close(
        corrupted.noisy_latents + remaining * corrupted.target, latents, atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize("steps", [1, 4, 50])
def test_true_velocity_samples_the_data(latents_noise, steps):
    latents, noise = latents_noise
    result = sample(RectifiedFlow(), noise, lambda z, t: latents - noise, steps)
    torch.testing.assert_close(result, latents, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("steps", [2, 10, 50])
def test_true_noise_samples_the_data(latents_noise, steps):
    latents, noise = latents_noise
    diffusion = MinSnrDiffusion()
    start = diffusion.corrupt(latents, noise, torch.full((4,), 0.9999)).noisy_latents
    result = sample(diffusion, start, lambda z, t: noise, steps)
    torch.testing.assert_close(result, latents, atol=1e-3, rtol=1e-3)


def test_plain_euler_equals_the_scheduler(latents_noise):
    noise = latents_noise[1]
    heard = []

    def model(latents, timestep):
        heard.append(timestep)
        return torch.sin(latents) * (1 + timestep / 999)

    steps = 50
    result = sample(RectifiedFlow(), noise, model, steps)
    times = torch.stack(heard) / 999
    torch.testing.assert_close(times, torch.arange(steps) / steps, atol=1e-6, rtol=0)

    latents = noise
    for index in range(steps):
        time = torch.tensor(index / steps)
        latents = latents + torch.sin(latents) * (1 + time) / steps
    torch.testing.assert_close(result, latents, atol=1e-5, rtol=1e-5)


def test_diffusion_hears_the_schedulers_steps():
    diffusion = translation_named("min_snr_diffusion")
    scheduler = diffusion.scheduler()
    timesteps = diffusion.set_timesteps(scheduler, 50, "cpu")
    fed = diffusion.model_timesteps(scheduler)
    assert fed.dtype == torch.float32
    assert fed[0] == 999
    assert len(fed) == 50
    assert torch.equal(fed.long(), timesteps)


def test_snr_weights_agree_with_diffusers(latents_noise):
    latents, noise = latents_noise
    diffusion = MinSnrDiffusion()
    scheduler = translation_named(diffusion.name).scheduler()
    steps = torch.tensor([0, 120, 500, 999])
    corrupted = diffusion.corrupt(latents, noise, (steps + 0.5) / 1000)
    torch.testing.assert_close(corrupted.timestep, steps.float())
    snr = compute_snr(scheduler, steps)
    torch.testing.assert_close(corrupted.signal_to_noise, snr)
    (term,) = diffusion.terms.values()
    assert term.weighting
    torch.testing.assert_close(term.weighting(corrupted), snr.clamp(max=5.0) / snr)
    ddpm = DDPMScheduler.from_config(scheduler.config)
    torch.testing.assert_close(corrupted.noisy_latents, ddpm.add_noise(latents, noise, steps))
    torch.testing.assert_close(MinSnr(float("inf"))(corrupted), torch.ones(4))


def test_sd21_schedule_matches_its_definition():
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    expected = (1 - betas).cumprod(0).float()
    scheduler = translation_named("min_snr_diffusion").scheduler()
    torch.testing.assert_close(scheduler.alphas_cumprod, expected, atol=1e-6, rtol=1e-4)
    assert scheduler.config.solver_order == 2
    assert scheduler.config.prediction_type == "epsilon"


@pytest.mark.parametrize("name", OBJECTIVES)
def test_bf16_latents_keep_float32_time(name):
    objective = objective_named(name)
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(SHAPE, generator=generator).bfloat16()
    noise = torch.randn(SHAPE, generator=generator)
    corrupted = objective.corrupt(latents, noise, torch.rand(4, generator=generator))
    for field in ("noisy_latents", "target", "timestep", "signal_to_noise"):
        assert getattr(corrupted, field).dtype == torch.float32
    loss = objective.losses(corrupted.target.bfloat16(), corrupted)["loss"]
    assert loss.dtype == torch.float32


@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_is_per_sample_and_weighted(name, latents_noise):
    latents, noise = latents_noise
    objective = objective_named(name)
    corrupted = objective.corrupt(latents, noise, torch.tensor([0.01, 0.2, 0.5, 0.999]))
    error = torch.tensor([0.0, 1.0, 2.0, 3.0])
    weight = MinSnr()(corrupted) if name == MinSnrDiffusion.name else 1.0
    prediction = corrupted.target + error.reshape(-1, 1, 1, 1)
    losses = objective.losses(prediction, corrupted)
    torch.testing.assert_close(losses["loss"], error**2 * weight)
    (term,) = objective.terms
    assert torch.equal(losses[f"loss/{term}"], losses["loss"])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_largest_draw_stays_below_1000(name, latents_noise):
    latents, noise = latents_noise
    corrupted = objective_named(name).corrupt(latents, noise, torch.full((4,), 1 - 2**-24))
    assert corrupted.timestep.max() <= 999


@pytest.mark.parametrize("name", OBJECTIVES)
def test_uniform_time_leaves_every_draw_as_it_is(name, latents_noise):
    uniform = torch.rand(4, generator=torch.Generator().manual_seed(3))
    latents, noise = latents_noise
    heard = objective_named(name).corrupt(latents, noise, uniform).timestep
    wanted = 999 * uniform if name == RectifiedFlow.name else (1000 * uniform).floor()
    assert torch.equal(heard, wanted)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize(
    "time",
    [LogitNormalTime(0.0, 1.0), LogitNormalTime(0.5, 0.8), ShiftedTime(512), ShiftedTime(128)],
)
def test_time_samplings_have_the_quantiles_of_their_noise_levels(name, time, latents_noise):
    """Of SD3: n = sigmoid(m + s z) for normal z, and n' = s n / (1 + (s - 1) n); 1 is noise."""
    quantiles = torch.tensor([0.1, 0.5, 0.7, 0.999])
    if isinstance(time, LogitNormalTime):
        normal = torch.distributions.Normal(time.mean, time.std).icdf(quantiles)
        level = 1 / (1 + (-normal).exp())
    else:
        shift = {512: 2.0, 128: 0.5}[time.image_size]
        level = shift * quantiles / (1 + (shift - 1) * quantiles)
    objective = OBJECTIVES[name](time=time)
    is_flow = name == RectifiedFlow.name
    latents, noise = latents_noise
    heard = objective.corrupt(latents, noise, 1 - quantiles if is_flow else quantiles).timestep
    wanted = 999 * (1 - level) if is_flow else (1000 * level).floor()
    torch.testing.assert_close(heard, wanted, atol=1e-3 if is_flow else 1.0, rtol=1e-5)
    ends = torch.tensor([0.0, 2**-24, 0.5, 1 - 2**-24])
    corrupted = objective.corrupt(latents, noise, ends)
    assert 0 <= corrupted.timestep.min() <= corrupted.timestep.max() <= 999
    assert corrupted.noisy_latents.isfinite().all()


def test_terms_add_up_with_their_weights(latents_noise):
    terms = {"first": SquaredError(0.5), "second": SquaredError(2.0, weighting=MinSnr())}
    objective = MinSnrDiffusion(terms=terms)
    latents, noise = latents_noise
    corrupted = objective.corrupt(latents, noise, torch.tensor([0.1, 0.2, 0.5, 0.9]))
    losses = objective.losses(corrupted.target + 1, corrupted)
    torch.testing.assert_close(losses["loss/first"], torch.full((4,), 0.5))
    torch.testing.assert_close(losses["loss/second"], 2 * MinSnr()(corrupted))
    torch.testing.assert_close(losses["loss"], losses["loss/first"] + losses["loss/second"])


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match="no loss term"):
        RectifiedFlow(terms={})
    with pytest.raises(ValueError, match="is the objective 'rectified_flow', not 'other'"):
        RectifiedFlow(name="other")
    with pytest.raises(ValueError, match="rectified_flow, min_snr_diffusion"):
        objective_named("ddpm")
    with pytest.raises(ValueError, match="above 0"):
        MinSnr(gamma=0)
