"""Every experiment composes, and what it describes can be built."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_class, instantiate

CONFIGS = Path(__file__).parent.parent / "configs"
EXPERIMENTS = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))
PRECOMPUTED = ("tiny_pictures", "tiny_latents")
DIFFUSION = ("tiny_flow", "tiny_ddpm")


def composed(config_name: str, *overrides: str):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose(config_name, list(overrides), return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        return config


@pytest.mark.parametrize("name", [n for n in EXPERIMENTS if n not in PRECOMPUTED])
def test_training_experiments_compose(name):
    config = composed("train", f"experiment={name}")
    assert config.trainer.output_dir == f"runs/{name}"
    recipe = instantiate(config.trainer.recipe, _convert_="all")
    assert recipe.total_steps > 0
    get_class(config.trainer.task._target_)
    get_class(config.trainer.samples._target_)
    parameter = torch.nn.Parameter(torch.zeros(4))
    optimizer = instantiate(config.trainer.optimizer, _convert_="all")([parameter])
    schedule = instantiate(config.trainer.schedule, _convert_="all")(optimizer)
    assert schedule.get_last_lr() == [0.0]  # the first step of a warm-up


def test_optimizer_and_hardware_can_be_changed_on_the_command_line():
    config = composed("train", "experiment=tiny_flow", "optimizer=adamw_8bit", "hardware=gpu")
    optimizer = instantiate(config.optimizer, _convert_="all")([torch.nn.Parameter(torch.zeros(4))])
    assert type(optimizer).__name__ == "AdamW8bit"
    assert optimizer.param_groups[0]["lr"] == config.optimizer.lr == 8e-4
    assert config.trainer.mixed_precision == "bf16"


@pytest.mark.parametrize("name", PRECOMPUTED)
def test_precompute_experiments_compose(name):
    config = composed("precompute", f"experiment={name}")
    get_class(config.job._target_)
    assert config.output_dir == f"runs/{name}"


@pytest.mark.parametrize("name", DIFFUSION)
def test_models_build_without_memory(name):
    config = composed("train", f"experiment={name}")
    with torch.device("meta"):
        model = instantiate(config.trainer.task.transformer, _convert_="all")
    expected = "rectified_flow" if name == "tiny_flow" else "min_snr_diffusion"
    assert model.config.objective == expected


def test_the_default_model_is_the_papers():
    config = composed("train")
    with torch.device("meta"):
        model = instantiate(config.model, _convert_="all")
    assert sum(p.numel() for p in model.parameters()) == 1_345_298_624


def test_a_misspelt_key_is_named():
    with pytest.raises(Exception, match="stepz"):
        composed("train", "experiment=tiny_flow", "trainer.recipe.stepz=3")
