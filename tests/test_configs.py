"""Every experiment composes, and what it describes can be built."""

from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf

from mmface.model.ablations import SinCosMMFaceDiT, SingleStreamDiT, UnimodalDiT
from mmface.model.recomputation import num_recomputed
from mmface.model.transformer import MMFaceDiT
from mmface.objectives.objective import objective_named
from mmface.planning.training import TRAINING_IMAGES

CONFIGS = Path(__file__).parent.parent / "configs"
EXPERIMENTS = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))
PRECOMPUTED = {
    "tiny_pictures": "runs/tiny_pictures",
    "tiny_latents": "runs/tiny_latents",
    "tiny_latents_4_channels": "runs/tiny_latents_4_channels",
    "tiny_pairs": "runs/tiny_pairs",
    "pairs_256": "runs/pairs_256",
    "latents_256": "runs/latents_256_flux",
    "latents_256_reference": "runs/latents_256_reference",
    "tiny_people": "runs/tiny_people",
    "tiny_people_latents": "runs/tiny_people_latents",
    "latents_512": "runs/latents_512_flux",
}
DIFFUSION = ("tiny_flow", "tiny_ddpm")
SIZES = {"stage1_256_flow": 1_345_298_624, "stage1_256_ddpm": 1_345_298_624}
SIZES |= {"stage2_512_flow": 1_345_298_624, "stage2_512_ddpm": 1_345_298_624}
ABLATIONS = {
    "ablation_1": (UnimodalDiT, 4),
    "ablation_2": (SingleStreamDiT, 4),
    "ablation_3": (SinCosMMFaceDiT, 4),
    "ablation_4": (MMFaceDiT, 4),
    "ablation_5": (MMFaceDiT, 16),
}
PAPER = (*SIZES, *ABLATIONS)
PRESETS = {"4gb": 1, "24gb": 1, "32gb_x2": 2, "16gb_x2": 2, "80gb": 1, "gpu": 1, "cpu": 1}
LAUNCHES = {"one_gpu": 1, "two_gpus": 2, "eight_gpus": 8, "fsdp2": 2, "two_machines": 16}


def composed(config_name: str, *overrides: str):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose(config_name, list(overrides), return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        return config


@pytest.mark.slow
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
    assert config.trainer.hardware.mixed_precision == "bf16"


@pytest.mark.parametrize(("name", "folder"), PRECOMPUTED.items())
def test_precompute_experiments_compose(name, folder):
    config = composed("precompute", f"experiment={name}")
    get_class(config.job._target_)
    assert config.output_dir == folder


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


@pytest.mark.parametrize("name", ["rectified_flow", "min_snr_diffusion"])
@pytest.mark.parametrize("experiment", ["tiny_flow", "tiny_ddpm", "ablation_2", "stage2_512_ddpm"])
def test_the_objective_on_the_command_line_decides(experiment, name):
    config = composed("train", f"experiment={experiment}", f"objective={name}")
    objective = instantiate(config.trainer.task.objective, _convert_="all")
    assert objective.name == name
    assert network_of(config).config.objective == name
    default = objective_named(name)
    assert (objective.time, objective.terms) == (default.time, default.terms)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*DIFFUSION, *PAPER, *(f"{n}_tiny" for n in ABLATIONS)])
def test_the_model_names_the_objective_that_is_trained(name):
    config = composed("train", f"experiment={name}")
    assert network_of(config).config.objective == config.trainer.task.objective.name


def network_of(config, **sizes):
    with torch.device("meta"):
        return instantiate(config.trainer.task.transformer, _convert_="all", **sizes)


@pytest.mark.slow
@pytest.mark.parametrize("name", PAPER)
def test_paper_experiments_follow_the_recipe(name):
    config = composed("train", f"experiment={name}")
    recipe, second = config.trainer.recipe, name.startswith("stage2")
    epochs, batch, lr, warmup = (50, 16, 5e-6, 100) if second else (300, 32, 1e-4, 200)
    assert recipe.total_steps * batch == epochs * TRAINING_IMAGES
    assert (recipe.global_batch_size, recipe.gradient_clip, recipe.ema_decay) == (
        batch,
        0.5,
        0.9999,
    )
    assert (config.optimizer.lr, config.schedule.num_warmup_steps) == (lr, warmup)
    assert list(config.optimizer.betas) == [0.9, 0.999]
    assert "8bit" in config.optimizer._target_
    assert (config.optimizer.weight_decay, config.optimizer.eps) == (0.01, 1e-8)
    data = config.data
    assert (data.text_dropout, data.mask_dropout, data.sketch_dropout) == (0.05, 0.05, 0.05)
    assert config.task.image_size == (512 if second else 256)
    # The paper's machine, and its memory-saving.
    assert config.hardware.num_devices == 2
    assert config.hardware.gradient_checkpointing is True
    assert config.trainer.hardware.mixed_precision == "bf16"


@pytest.mark.slow
@pytest.mark.parametrize("name", PAPER)
def test_paper_models_build_at_full_size(name):
    config = composed("train", f"experiment={name}")
    network = network_of(config)
    expected = "rectified_flow" if name.endswith("flow") else "min_snr_diffusion"
    assert network.config.objective == expected
    assert len(network.blocks) == 28
    if name in SIZES:
        assert sum(p.numel() for p in network.parameters()) == SIZES[name]
    else:
        variant, channels = ABLATIONS[name]
        assert type(network) is variant
        assert network.config.latent_channels == channels
        assert config.task.vae == {4: "sd2", 16: "flux"}[channels]


@pytest.mark.slow
@pytest.mark.parametrize("name", PAPER)
def test_a_step_of_paper_experiments_has_the_right_shapes(name):
    config = composed("train", f"experiment={name}")
    network = network_of(config, depth=2)
    batch, side = config.trainer.recipe.micro_batch_size, config.task.image_size // 8
    objective = objective_named(network.config.objective)
    with torch.device("meta"):
        latents = torch.empty(batch, network.config.latent_channels, side, side)
        corrupted = objective.corrupt(latents, latents, torch.empty(batch))
        text, modality = torch.empty(batch, 77, 1024), torch.zeros(batch, dtype=torch.long)
        inputs = (corrupted.noisy_latents, latents, corrupted.timestep, text, text[:, 0], modality)
        prediction = network(*inputs)
        loss = objective.losses(prediction, corrupted)["loss"]
        loss.mean().backward()
    assert prediction.shape == latents.shape
    assert loss.shape == (batch,)
    trainable = [p for p in network.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.shape == p.shape for p in trainable)


@pytest.mark.slow
@pytest.mark.parametrize("name", ABLATIONS)
def test_tiny_ablations_differ_from_each_other_as_the_papers_do(name):
    config = composed("train", f"experiment={name}_tiny")
    network = network_of(config)
    variant, channels = ABLATIONS[name]
    assert type(network) is variant
    assert network.config.latent_channels == channels
    assert network.config.objective == "min_snr_diffusion"
    assert (
        config.data.store == {4: "runs/tiny_latents_4_channels", 16: "runs/tiny_latents"}[channels]
    )
    last = composed("train", "experiment=ablation_5_tiny")
    for same in ("trainer.recipe", "optimizer", "schedule", "task.image_size", "task.init_from"):
        assert OmegaConf.select(config, same) == OmegaConf.select(last, same)
    modalities = ["mask"] if name == "ablation_1" else None
    assert OmegaConf.select(config, "data.modalities") == modalities


@pytest.mark.slow
def test_second_stages_start_from_what_first_stages_export():
    for objective in ("flow", "ddpm"):
        first = composed("train", f"experiment=stage1_256_{objective}")
        model, folder = first.model, first.trainer.output_dir  # now: Hydra knows one config alone
        second = composed("train", f"experiment=stage2_512_{objective}")
        assert second.task.init_from == f"{folder}/export/transformer"
        assert second.model == model


def test_the_first_ablation_is_one_run_for_each_modality():
    assert composed("train", "experiment=ablation_1").data.modalities == ["mask"]
    arguments = ["data.modalities=[sketch]", "run_name=ablation_1_sketch"]
    config = composed("train", "experiment=ablation_1", *arguments)
    assert config.data.modalities == ["sketch"]
    assert config.trainer.output_dir == "runs/ablation_1_sketch"


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "devices"), PRESETS.items())
@pytest.mark.parametrize("name", ["stage1_256_flow", "stage2_512_ddpm"])
def test_presets_keep_the_papers_batch(preset, devices, name):
    config = composed("train", f"experiment={name}", f"hardware={preset}")
    recipe = instantiate(config.trainer.recipe, _convert_="all")
    assert recipe.global_batch_size == (32 if name.startswith("stage1") else 16)
    assert recipe.global_batch_size % (recipe.micro_batch_size * devices) == 0
    assert config.hardware.get("num_devices", 1) == devices
    assert OmegaConf.to_container(config.trainer.hardware, resolve=True)
    assert 0 <= num_recomputed(28, config.hardware.gradient_checkpointing) <= 28


def test_every_preset_and_launch_file_is_tested():
    assert {path.stem for path in (CONFIGS / "hardware").glob("*.yaml")} == set(PRESETS)
    assert {path.stem for path in (CONFIGS / "accelerate").glob("*.yaml")} == set(LAUNCHES)


@pytest.mark.parametrize(("name", "processes"), LAUNCHES.items())
def test_launch_files_are_accelerates(name, processes):
    config = load_config_from_file(str(CONFIGS / "accelerate" / f"{name}.yaml"))
    assert config.num_processes == processes
    kinds = {"one_gpu": "NO", "fsdp2": "FSDP"}
    assert config.distributed_type.value == kinds.get(name, "MULTI_GPU")
    assert config.num_machines == (2 if name == "two_machines" else 1)
    if name == "fsdp2":
        wrapped = config.fsdp_config["fsdp_transformer_layer_cls_to_wrap"].split(",")
        assert wrapped == MMFaceDiT._no_split_modules
        assert config.fsdp_config["fsdp_version"] == 2


@pytest.mark.slow
def test_paper_experiments_read_the_stores_that_are_written():
    for name in PAPER:
        config = composed("train", f"experiment={name}")
        store, vae, size = config.data.store, config.task.vae, config.task.image_size
        writing = composed("precompute", f"experiment=latents_{size}", f"job.vae={vae}")
        assert store == writing.output_dir
