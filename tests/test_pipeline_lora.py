"""LoRAs on the pipeline by diffusers' own loader: two with weights, fused, and gone again."""

from typing import Any

import numpy as np
import pytest
import torch
from conftest import build_pipeline, latents_of

from mmface.conditions import colorize
from mmface.model.packed_modulations import fuse_modulations
from mmface.sampling.pipeline import MMFacePipeline

peft = pytest.importorskip("peft")
TARGETS = ["qkv", "mlp.0", "text_embedder"]


@pytest.fixture(autouse=True)
def loader_knows_peft(monkeypatch):
    from diffusers.loaders import lora_base
    from peft.tuners.tuners_utils import BaseTunerLayer

    # Where diffusers was imported without its optional libraries.
    monkeypatch.setattr(lora_base, "BaseTunerLayer", BaseTunerLayer, raising=False)


@pytest.fixture
def pipe() -> MMFacePipeline:
    return build_pipeline()


def sample(pipe: MMFacePipeline, **options) -> torch.Tensor:
    labels = np.random.default_rng(0).integers(0, 3, (32, 32)).astype(np.uint8)
    given: dict[str, Any] = {"seed": 0, "num_inference_steps": 2, "output_type": "latent"}
    return latents_of(pipe("a", mask=colorize(labels), **given | options))


def write_lora(folder, seed, **config):
    """Save a LoRA as diffusers' training scripts do."""
    from peft.utils import get_peft_model_state_dict

    model = build_pipeline().transformer
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapter = peft.LoraConfig(
            **{"r": 2, "lora_alpha": 4, "target_modules": TARGETS, "init_lora_weights": False}
            | config
        )
        model.add_adapter(adapter)
    MMFacePipeline.save_lora_weights(
        folder,
        transformer_lora_layers=get_peft_model_state_dict(model),
        transformer_lora_adapter_metadata=model.peft_config["default"].to_dict(),
    )
    assert (folder / "pytorch_lora_weights.safetensors").exists()
    return folder


@pytest.fixture(scope="module")
def loras(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loras")
    return [write_lora(folder / str(seed), seed, lora_dropout=0.5) for seed in (1, 2)]


def updates(pipe, folder):
    """Each layer's update by its formula, alpha / rank * B A."""
    state = pipe.lora_state_dict(folder)
    for name in {key.rpartition(".lora_")[0] for key in state}:
        up, down = (state[f"{name}.lora_{half}.weight"] for half in "BA")
        yield name.removeprefix("transformer."), 4 / 2 * up @ down


def test_two_add_up_with_their_weights_and_unloading_gives_the_base_back(pipe, loras):
    base = sample(pipe)
    before = {name: value.clone() for name, value in pipe.transformer.state_dict().items()}
    for folder, name in zip(loras, "ab", strict=True):
        pipe.load_lora_weights(folder, adapter_name=name)
    assert pipe.get_list_adapters() == {"transformer": ["a", "b"]}
    pipe.set_adapters(["a", "b"], [0.7, 0.3])
    both = sample(pipe)
    assert (both - base).abs().max() > 0.01
    assert torch.equal(sample(pipe), both)  # no dropout
    pipe.set_adapters("a", 0.7)
    assert (sample(pipe) - both).abs().max() > 1e-3

    # The sum by its formula, on the base's own weights.
    pipe.unload_lora_weights()
    assert torch.equal(sample(pipe), base)
    after = pipe.transformer.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    for folder, weight in zip(loras, (0.7, 0.3), strict=True):
        for name, update in updates(pipe, folder):
            with torch.no_grad():
                pipe.transformer.get_submodule(name).weight += weight * update
    torch.testing.assert_close(sample(pipe), both, atol=1e-4, rtol=1e-4)


def test_fusing_changes_by_rounding_only_and_is_taken_back(pipe, loras):
    before = {name: value.clone() for name, value in pipe.transformer.state_dict().items()}
    base = sample(pipe)
    for folder, name in zip(loras, "ab", strict=True):
        pipe.load_lora_weights(folder, adapter_name=name)
    pipe.set_adapters(["a", "b"], [0.7, 0.3])
    both = sample(pipe)
    pipe.fuse_lora(adapter_names=["a", "b"])
    assert pipe.num_fused_loras == 2
    torch.testing.assert_close(sample(pipe), both, atol=1e-4, rtol=1e-4)
    room = {name: value.abs() for name, value in before.items()}
    for folder, weight in zip(loras, (0.7, 0.3), strict=True):
        for name, update in updates(pipe, folder):
            room[f"{name}.weight"] += (weight * update).abs()
    pipe.unload_lora_weights()
    assert pipe.num_fused_loras == 0
    for name, value in pipe.transformer.state_dict().items():
        # A rounding for each LoRA that is added, and one for each that is taken back.
        bound = 2 * torch.finfo(value.dtype).eps * room[name]
        assert ((value - before[name]).abs() <= bound).all()
    torch.testing.assert_close(sample(pipe), base, atol=1e-4, rtol=1e-4)


def test_a_call_scales_it(pipe, loras):
    base = sample(pipe)
    pipe.load_lora_weights(loras[0], adapter_name="a")
    whole = sample(pipe)
    half = sample(pipe, joint_attention_kwargs={"scale": 0.5})
    assert torch.equal(sample(pipe), whole)
    pipe.set_adapters("a", 0.5)
    torch.testing.assert_close(sample(pipe), half)
    torch.testing.assert_close(sample(pipe, joint_attention_kwargs={"scale": 0.0}), base)
    with pytest.raises(ValueError, match=r"has size; it may have a scale"):
        sample(pipe, joint_attention_kwargs={"size": 2})


@pytest.mark.parametrize("prefix", ["", "base_model.model.", "transformer."])
def test_other_names_of_its_tensors_are_understood(pipe, loras, prefix):
    fuse_modulations(pipe.transformer)
    state = pipe.lora_state_dict(loras[0])
    named = {prefix + key.removeprefix("transformer."): value for key, value in state.items()}
    base = sample(pipe)
    pipe.load_lora_weights(named)
    assert (sample(pipe) - base).abs().max() > 0.01


def test_dora_loads(pipe, tmp_path):
    folder = write_lora(tmp_path, 3, use_dora=True)
    base = sample(pipe)
    pipe.load_lora_weights(folder)
    assert (sample(pipe) - base).abs().max() > 0.01
    pipe.unload_lora_weights()
    assert torch.equal(sample(pipe), base)


def test_a_pickled_file_is_not_opened(pipe, tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "pytorch_lora_weights.bin")
    named = {"weight_name": "pytorch_lora_weights.bin"}
    for source, options in ((tmp_path / named["weight_name"], {}), (tmp_path, named)):
        with pytest.raises(ValueError, match="is a pickle"):
            pipe.load_lora_weights(source, **options)
    with pytest.raises(OSError, match="safetensors"):
        pipe.load_lora_weights(tmp_path)
