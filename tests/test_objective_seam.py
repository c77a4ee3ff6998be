"""A loss term, a weighting and a time sampling of one's own, without touching the package."""

import json
from dataclasses import dataclass

import pytest
import torch
from hydra.utils import instantiate
from test_configs import composed
from training_runs import face_task, face_trainer

from mmface.objectives.losses import LossTerm


@dataclass(frozen=True)
class AbsoluteError(LossTerm):
    def error(self, prediction, corrupted):
        return (prediction.float() - corrupted.target).abs().flatten(1).mean(1)


@dataclass(frozen=True)
class EarlyTime:
    share: float = 0.25

    def __call__(self, uniform):
        return self.share * uniform


class BySignal:
    def __call__(self, corrupted):
        return corrupted.signal_to_noise.clamp(max=1)


PLUGGED = [
    "+objective.terms.sharpness={_target_: test_objective_seam.AbsoluteError, weight: 0.3}",
    "objective.time._target_=test_objective_seam.EarlyTime",
]


def test_a_term_and_a_time_sampling_of_ones_own_train_a_step(tmp_path, tiny_pipeline_folder):
    config = composed("train", "experiment=tiny_flow", *PLUGGED)
    objective = instantiate(config.trainer.task.objective, _convert_="all")
    task = face_task(tiny_pipeline_folder, objective_to_train=objective)
    before = task.trained.final_linear.bias.clone()
    face_trainer(tmp_path, task, steps=1).train()
    (line,) = (json.loads(each) for each in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert line["loss"] == pytest.approx(line["loss/velocity"] + line["loss/sharpness"])
    assert not torch.equal(task.trained.final_linear.bias, before)
    wanted, zeros = torch.tensor([0.75, 1.0]), torch.zeros(2, 1)
    corrupted = objective.corrupt(zeros, zeros, torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(corrupted.timestep, 999 * wanted)  # a quarter of the noise at most
    prediction = corrupted.target + torch.tensor([[1.0], [-2.0]])
    sharpness = objective.losses(prediction, corrupted)["loss/sharpness"]
    torch.testing.assert_close(sharpness, torch.tensor([0.3, 0.6]))


def test_another_weighting_is_one_line_of_yaml():
    line = "objective.terms.noise.weighting._target_=test_objective_seam.BySignal"
    config = composed("train", "experiment=tiny_ddpm", line)
    objective = instantiate(config.trainer.task.objective, _convert_="all")
    ones = torch.ones(2, 1)
    corrupted = objective.corrupt(ones, ones, torch.tensor([0.0, 0.999]))
    losses = objective.losses(corrupted.target + 1, corrupted)
    torch.testing.assert_close(losses["loss"], corrupted.signal_to_noise.clamp(max=1))


def test_the_model_cannot_name_another_objective_than_is_trained(tiny_pipeline_folder):
    config = composed("train", "experiment=tiny_flow", "model.objective=min_snr_diffusion")
    objective = instantiate(config.trainer.task.objective, _convert_="all")
    with pytest.raises(ValueError, match="choose it by objective=min_snr_diffusion"):
        face_task(tiny_pipeline_folder, config.model.objective, objective_to_train=objective)
