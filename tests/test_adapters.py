"""LoRA and DoRA in training: alone trained, saved and exported, while the base stays as it is."""

import copy
import json
from importlib.util import find_spec

import pytest
import torch
from conftest import TEXT_DIM, build_pipeline
from safetensors import safe_open
from safetensors.torch import load_file
from test_planner import on_meta, settings
from torch import nn
from training_runs import assert_equal, face_trainer, moments, weights

from mmface.model.adapters import add_lora, quantize
from mmface.model.lora import load_lora, load_loras
from mmface.model.transformer import MMFaceDiT
from mmface.planning.training import plan
from mmface.training.adapters import DoraTraining, LoraTraining
from mmface.training.recipe import Cadence
from mmface.training.starting_points import setting_of, started_network, starting_point

pytestmark = pytest.mark.skipif(find_spec("peft") is None, reason="needs the extra lora")
VARIANTS = [(LoraTraining, "rectified_flow"), (DoraTraining, "min_snr_diffusion")]


@pytest.fixture(scope="module", params=VARIANTS, ids=lambda each: each[1])
def base(request, tmp_path_factory):
    variant, objective = request.param
    folder = tmp_path_factory.mktemp(objective)
    build_pipeline(objective).save_pretrained(folder)
    return variant, objective, folder


def adapter_task(base, **options):
    variant, objective, folder = base
    torch.manual_seed(5)
    network = started_network(folder, objective)
    neighbours = {"vae": setting_of(folder, "vae"), "text": folder, "image_size": 32}
    return variant(network, init_from=folder, rank=2, dropout=0.1, **neighbours, **options)


def train(base, folder, steps, **options):
    task = adapter_task(base, **options)
    return task, face_trainer(folder, task, steps).train()


def inputs():
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 1, 16, 4, 4, generator=generator)
    text = torch.randn(1, 5, TEXT_DIM, generator=generator)
    return *latents, torch.tensor([300.0]), text, text[:, 0], torch.tensor([1])


@pytest.mark.slow
def test_the_adapter_alone_is_trained_saved_and_exported_and_resumes(base, tmp_path):
    variant, _, folder = base
    plain = MMFaceDiT.from_pretrained(folder / "transformer")
    task, export = train(base, tmp_path / "whole", 4)
    train(base, tmp_path / "parts", 2)
    train(base, tmp_path / "parts", 4)
    saved = weights(tmp_path / "whole", 4)
    assert_equal(weights(tmp_path / "parts", 4), saved)
    assert_equal(moments(tmp_path / "parts", 4), moments(tmp_path / "whole", 4))
    assert all(".lora_" in name for name in saved)
    assert any("lora_magnitude" in name for name in saved) == (variant is DoraTraining)
    with torch.no_grad():
        check_product(task, export, plain, saved, folder)


def check_product(task, export, plain, saved, folder):
    objective = plain.config.objective
    # The base is as it was, and with the LoRA switched off predicts the same bits.
    task.base.disable_lora()
    task.base.eval()
    assert torch.equal(task.base(*inputs()), plain(*inputs()))
    # The file is diffusers': its own loader and ours take it, and it is the averaged LoRA.
    file = export / "pytorch_lora_weights.safetensors"
    exported = load_file(file)
    own = {name.removeprefix("ema."): t for name, t in saved.items() if name.startswith("ema.")}
    assert_equal(exported, {f"transformer.{name}": t for name, t in own.items()})
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    assert json.loads(metadata["lora_adapter_metadata"])["transformer.r"] == 2
    theirs = copy.deepcopy(plain)
    load_lora(plain, export)
    theirs.load_lora_adapter(file, prefix="transformer")
    torch.testing.assert_close(theirs.eval()(*inputs()), plain(*inputs()))
    plain.disable_lora()
    assert (theirs(*inputs()) - plain(*inputs())).abs().max() > 1e-4
    assert str(folder) in (export / "README.md").read_text()
    other = "rectified_flow" if objective != "rectified_flow" else "min_snr_diffusion"
    with pytest.raises(ValueError, match=f"was trained on a model of {objective}"):
        load_loras(MMFaceDiT.from_config(theirs.config, objective=other), [(export, 1.0)])


@pytest.mark.slow
def test_recomputed_blocks_and_previews_change_nothing(tiny_pipeline_folder, tmp_path):
    base = (LoraTraining, "rectified_flow", tiny_pipeline_folder)
    train(base, tmp_path / "plain", 2)
    task = adapter_task(base, gradient_checkpointing=True, num_inference_steps=1)
    cadence = Cadence(log_every=1, preview_every=2, checkpoint_every=0)
    face_trainer(tmp_path / "other", task, 2, cadence=cadence).train()
    assert_equal(weights(tmp_path / "plain", 2), weights(tmp_path / "other", 2), rtol=1e-6)
    assert len(list((tmp_path / "other" / "previews").iterdir())) == 2


@pytest.mark.parametrize("bits", [8, 4])
def test_a_base_in_few_bits_passes_the_gradient_on(bits):
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    network = MMFaceDiT(hidden_size=64, depth=2, num_heads=2, text_dim=64)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.05)
    latents, condition, time, _, _, modality = inputs()
    text = torch.randn(1, 5, 64)
    called = (latents, condition, time, text, text[:, 0], modality)
    plain = network(*called)
    quantize(network, bits, torch.float32)
    add_lora(network, rank=2)
    rounded = network(*called)
    assert 0 < (rounded - plain).abs().max() < 0.5 * plain.abs().max()
    rounded.square().mean().backward()
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    assert all("lora_" in name and p.grad is not None for name, p in trained.items())
    assert any(p.grad.abs().max() > 0 for p in trained.values())


def test_what_does_not_fit_is_one_line(tiny_pipeline_folder, tmp_path):
    network = started_network(tiny_pipeline_folder, "min_snr_diffusion")
    neighbours = {"vae": tiny_pipeline_folder / "vae", "text": tiny_pipeline_folder}
    with pytest.raises(ValueError, match="objective=rectified_flow"):
        LoraTraining(network, tiny_pipeline_folder, image_size=32, **neighbours)
    with pytest.raises(ValueError, match="no linear layer's name has 'conv' in it"):
        add_lora(network, 2, targets=["conv"])
    with pytest.raises(FileNotFoundError, match="init_from: nowhere does not exist"):
        starting_point("nowhere")
    with pytest.raises(ValueError, match=r"no config\.json"):
        starting_point(tmp_path)
    with pytest.raises(ValueError, match="frozen_dtype must be"):
        LoraTraining(network, tiny_pipeline_folder, frozen_dtype="int8", **neighbours)
    assert starting_point("tiny-flow").part("image_size") == 128
    assert setting_of(None, "image_size", 256) == 256


@pytest.mark.slow
def test_a_plan_counts_the_adapter_and_the_packed_base():
    asked = settings()
    full = plan(on_meta(), asked)
    asked["task"] |= {"rank": 4, "base_bits": 4, "frozen_dtype": "bfloat16"}
    small = plan(on_meta(), asked, LoraTraining)
    assert small.memory["weights"] < full.memory["weights"] / 5
    assert small.memory["gradients"] < full.memory["gradients"] / 10
    assert small.memory["text encoder"] == full.memory["text encoder"] / 2
    assert small.checkpoint < full.checkpoint / 10
    assert small.step_flops < full.step_flops
