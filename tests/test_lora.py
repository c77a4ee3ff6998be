"""LoRA: a zero one is the identity, a real one adds scale * alpha / r * B A, and it goes again."""

import json
import pickle
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import build_transformer
from PIL import Image
from safetensors.torch import save_file
from script_runs import load_script

from mmface.model.lora import load_lora, load_loras, read_lora

pytestmark = pytest.mark.skipif(find_spec("peft") is None, reason="needs the extra lora")
LAYERS = ("blocks.0.image.qkv", "blocks.1.text.mlp.2", "text_embedder")


def write_lora(
    path, model, layers=LAYERS, rank=2, zero=False, prefix="transformer.", dora=False, **metadata
):
    generator, modules, state = torch.Generator().manual_seed(3), dict(model.named_modules()), {}
    for name in layers:
        up = torch.randn(modules[name].out_features, rank, generator=generator)
        state[f"{prefix}{name}.lora_B.weight"] = up * 0 if zero else up
        down = torch.randn(rank, modules[name].in_features, generator=generator)
        state[f"{prefix}{name}.lora_A.weight"] = down
        if dora:
            norms = torch.rand(len(up), generator=generator) + 0.5
            state[f"{prefix}{name}.lora_magnitude_vector"] = norms
    save_file(state, path, metadata)
    return path


def inputs():
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 2, 16, 4, 4, generator=generator)
    text = torch.randn(2, 5, 12, generator=generator)
    return *latents, torch.tensor([3.0, 700.0]), text, text[:, 0], torch.tensor([0, 1])


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_transformer()


@torch.no_grad()
def test_zero_is_the_identity_and_unloading_restores_the_bits(model, tmp_path):
    plain, state = model(*inputs()), {k: v.clone() for k, v in model.state_dict().items()}
    assert load_lora(model, write_lora(tmp_path / "zero", model, zero=True)) == 3
    assert torch.equal(model(*inputs()), plain)
    with pytest.raises(ValueError, match="has a LoRA already"):
        load_lora(model, tmp_path / "zero")
    model.unload_lora()
    load_lora(model, write_lora(tmp_path / "real", model))
    assert (model(*inputs()) - plain).abs().max() > 0.01
    model.unload_lora()
    assert torch.equal(model(*inputs()), plain)
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(model.state_dict()[name], state[name]) for name in state)


@torch.no_grad()
@pytest.mark.parametrize(
    ("scale", "alpha", "prefix"), [(1.0, None, ""), (0.5, 6.0, "transformer.")]
)
def test_it_adds_what_the_formula_says(model, tmp_path, scale, alpha, prefix):
    config = {} if alpha is None else {"transformer.lora_alpha": alpha, "transformer.r": 2}
    metadata = {"lora_adapter_metadata": json.dumps(config)} if config else {}
    path = write_lora(tmp_path / "lora", model, prefix=prefix, **metadata)
    pairs = read_lora(path)
    load_lora(model, path, scale)
    found = model(*inputs())
    model.unload_lora()
    for name, pair in pairs.items():
        assert pair.alpha == (2 if alpha is None else alpha)
        weight = model.get_submodule(name).weight
        weight += scale * pair.alpha / 2 * pair.up @ pair.down
    torch.testing.assert_close(found, model(*inputs()))


@torch.no_grad()
def test_diffusers_scales_fuses_and_switches_it(model, tmp_path):
    plain = model(*inputs())
    load_lora(model, write_lora(tmp_path / "lora", model))
    found = model(*inputs())
    model.fuse_lora()
    torch.testing.assert_close(model(*inputs()), found)
    model.unfuse_lora()
    torch.testing.assert_close(model(*inputs()), found)
    model.disable_lora()
    torch.testing.assert_close(model(*inputs()), plain)
    model.enable_lora()
    model.set_adapters("default", 0.0)
    torch.testing.assert_close(model(*inputs()), plain)


@torch.no_grad()
def test_what_diffusers_saves_loads(model, tmp_path):
    load_lora(model, write_lora(tmp_path / "lora", model))
    found = model(*inputs())
    model.save_lora_adapter(tmp_path / "saved")
    (saved,) = (tmp_path / "saved").iterdir()
    model.unload_lora()
    assert load_lora(model, saved) == 3
    assert torch.equal(model(*inputs()), found)


@torch.no_grad()
def test_dora_sets_the_norms_of_the_rows(model, tmp_path):
    path = write_lora(tmp_path / "dora", model, dora=True)
    pairs = read_lora(path)
    load_lora(model, path)
    found = model(*inputs())
    model.unload_lora()
    for name, pair in pairs.items():
        weight = model.get_submodule(name).weight
        moved = weight + pair.up @ pair.down
        weight.copy_(moved * (pair.magnitude / moved.norm(dim=1))[:, None])
    torch.testing.assert_close(found, model(*inputs()), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_two_are_added_with_their_weights_or_none(model, tmp_path):
    paths = [write_lora(tmp_path / "a", model), write_lora(tmp_path / "b", model, LAYERS[:1], 3)]
    bad = tmp_path / "bad"
    save_file({"a.lora_A.weight": torch.ones(2, 3), "a.lora_B.weight": torch.ones(3, 2)}, bad)
    with pytest.raises(ValueError, match="layer 'a', which"):
        load_loras(model, [(paths[0], 1.0), (bad, 1.0)])
    assert not hasattr(model, "peft_config")
    assert load_loras(model, [(paths[0], 0.5), (paths[1], -0.25)]) == 3
    found = model(*inputs())
    model.unload_lora()
    for path, scale in zip(paths, (0.5, -0.25), strict=True):
        for name, pair in read_lora(path).items():
            model.get_submodule(name).weight.add_(scale * pair.up @ pair.down)
    torch.testing.assert_close(found, model(*inputs()), rtol=1e-4, atol=1e-4)


def test_misfits_are_named(model, tmp_path):
    path = tmp_path / "lora"
    pair = {"a.lora_A.weight": torch.ones(2, 3), "a.lora_B.weight": torch.ones(3, 2)}
    nan = pair | {"a.lora_A.weight": torch.full((2, 3), torch.nan)}
    layer = "blocks.0.image.qkv"
    wide = {f"{layer}.lora_A.weight": torch.ones(2, 3), f"{layer}.lora_B.weight": torch.ones(3, 2)}
    conv = {name.replace(layer, "patch_embedder"): tensor for name, tensor in wide.items()}
    for state, metadata, message in (
        (pair, {}, "layer 'a', which is no linear layer"),
        (conv, {}, "'patch_embedder', which is no linear layer"),
        (wide, {}, r"is \[3, 3\] for 'blocks.0.image.qkv', which is \[48, 16\]"),
        (nan, {}, "not finite"),
        ({"a.lora_A.weight": torch.ones(2, 3)}, {}, "no matching pair for 'a'"),
        (pair | {"a.lora_B.weight": torch.ones(3, 4)}, {}, "no matching pair"),
        ({"a.weight": torch.ones(2)}, {}, "not lora_A or lora_B"),
        ({}, {}, "is empty"),
        (pair, {"lora_adapter_metadata": "{"}, "config that cannot be read"),
        (pair, {"lora_adapter_metadata": '{"lora_alpha": 2, "use_dora": true}'}, "is DoRA, but"),
        (pair, {"lora_adapter_metadata": '{"lora_alpha": 2, "use_rslora": true}'}, "not plain"),
        (pair | {"a.lora_magnitude_vector": torch.ones(2)}, {}, "no matching pair"),
        (pair, {"mmface_base": '{"objective": "min_snr_diffusion"}'}, "a model of min_snr"),
    ):
        save_file(state, path, metadata or None)
        with pytest.raises(ValueError, match=message):
            load_lora(model, path)
        assert not hasattr(model, "peft_config")
    with pytest.raises(ValueError, match="must be finite"):
        load_lora(model, path, float("nan"))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_lora(model, "nowhere")


def test_pickles_are_not_opened(model, tmp_path):
    path = tmp_path / "lora.pt"
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match="can run code"):
        load_lora(model, path)


@pytest.mark.slow
def test_the_command_line_adds_it(
    tiny_pipeline, tiny_pipeline_folder, tmp_path, face_mask, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    run = load_script("sample")
    Image.fromarray(face_mask).save("mask.png")
    write_lora("a.safetensors", tiny_pipeline.transformer)
    base = ["--pipeline", str(tiny_pipeline_folder), "--steps", "2", "--prompt", "a"]
    base += ["--mask", "mask.png"]
    pictures = []
    for extra in (
        [],
        ["--lora", "a.safetensors"],
        ["--lora", "a.safetensors", "--lora-scale", "0"],
        ["--lora", "a.safetensors:0.75", "--lora", "a.safetensors:0.25"],
    ):
        assert run([*base, *extra, "--out", "faces.png", "--overwrite"]) == 0
        pictures.append(np.array(Image.open("faces.png")).astype(int))
    assert np.abs(pictures[0] - pictures[1]).mean() > 0.05
    assert np.abs(pictures[0] - pictures[2]).max() <= 1
    assert np.abs(pictures[1] - pictures[3]).max() <= 1
    assert run(["--rerun", "faces.png", "--out", "again.png"]) == 0
    assert np.array_equal(np.array(Image.open("again.png")), pictures[3])
    assert Path("faces.png").exists()
