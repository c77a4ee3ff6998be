"""A training's first weights: ours, a released file's, another objective's."""

import copy

import pytest
import torch
from conftest import build_transformer
from safetensors.torch import save_file

from mmface import builtin
from mmface.model.initial_weights import load_initial_weights, time_embedding, translate_objective
from mmface.model.transformer import MMFaceDiT
from mmface.objectives.objective import objective_named

STEPS = torch.arange(1000.0)


@pytest.fixture
def trained():
    torch.manual_seed(0)
    return build_transformer(objective="rectified_flow")


@pytest.fixture(scope="module")
def built_in():
    """A flow whose embedding of time was learnt."""
    return MMFaceDiT.from_pretrained(builtin("tiny-flow") / "transformer", dtype=torch.float32)


def test_own_weights_of_the_same_objective_come_unchanged(trained, tmp_path):
    trained.save_pretrained(tmp_path)
    model = build_transformer(objective="rectified_flow")
    load_initial_weights(model, tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, trained.state_dict()[name]), name


def test_a_released_file_is_taken_for_the_models_own_objective(trained, tmp_path):
    save_file(trained.to_released(), tmp_path / "weights.safetensors")
    model = build_transformer(objective="min_snr_diffusion")
    load_initial_weights(model, tmp_path / "weights.safetensors")
    assert torch.equal(model.final_linear.weight, trained.final_linear.weight)
    assert torch.equal(
        model.state_dict()["time_mlp.2.weight"], trained.state_dict()["time_mlp.2.weight"]
    )


def test_time_is_translated_by_the_signal_to_noise_ratio(built_in):
    flow, diffusion = map(objective_named, ("rectified_flow", "min_snr_diffusion"))
    translated = copy.deepcopy(built_in)
    translate_objective(translated, diffusion.name)
    nearest = (diffusion.signal_share(STEPS)[:, None] - flow.signal_share(STEPS)[None]).abs()
    with torch.no_grad():
        wanted = time_embedding(built_in, STEPS)[nearest.argmin(1)]
        spread = (wanted - wanted.mean(0)).norm()
        assert (time_embedding(translated, STEPS) - wanted).norm() < 0.1 * spread
        # Untranslated, the embedding is wrong by more than it varies.
        assert (time_embedding(built_in, STEPS) - wanted).norm() > spread


def test_time_is_translated_there_and_back(built_in):
    diffusion = copy.deepcopy(built_in)
    translate_objective(diffusion, "min_snr_diffusion")
    diffusion.register_to_config(objective="min_snr_diffusion")
    translate_objective(diffusion, "rectified_flow")
    assert torch.equal(diffusion.final_linear.weight, built_in.final_linear.weight)
    # DDPM's schedule has neither pure noise nor pure data, so the very ends have no way back.
    with torch.no_grad():
        before, after = (time_embedding(m, STEPS[70:970]) for m in (built_in, diffusion))
    assert (after - before).norm() < 0.15 * (before - before.mean(0)).norm()


def test_a_flow_that_knows_the_velocity_starts_as_noise_of_the_right_sign(trained):
    translated = copy.deepcopy(trained)
    translate_objective(translated, "min_snr_diffusion")
    assert torch.equal(translated.final_linear.weight, -trained.final_linear.weight)
    assert torch.equal(translated.final_linear.bias, -trained.final_linear.bias)
    changed = ("time_mlp.2", "final_linear")
    untouched = [name for name in trained.state_dict() if not name.startswith(changed)]
    for name in untouched:
        assert torch.equal(translated.state_dict()[name], trained.state_dict()[name]), name


@pytest.mark.parametrize("name", ["rectified_flow", "min_snr_diffusion"])
def test_signal_share_is_the_share_in_corrupted_latents(name):
    objective = objective_named(name)
    ones, zeros = torch.ones(7, 1), torch.zeros(7, 1)
    uniform = torch.linspace(0.01, 0.99, 7)
    signal = objective.corrupt(ones, zeros, uniform)
    noise = objective.corrupt(zeros, ones, uniform)
    share = signal.noisy_latents / (signal.noisy_latents + noise.noisy_latents)
    torch.testing.assert_close(objective.signal_share(signal.timestep), share[:, 0])
    # The sign of the noise in what the model is asked for.
    assert torch.equal(noise.target.sign()[:, 0], torch.full((7,), float(objective.noise_sign)))


def test_what_does_not_fit_is_named(trained, tmp_path):
    trained.save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_initial_weights(trained, tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"(?s)do not fit the model.*final_linear"):
        load_initial_weights(build_transformer(latent_channels=4), tmp_path)
