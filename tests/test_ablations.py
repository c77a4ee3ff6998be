"""Table 3's variants: each is what its row says, and stands wherever MMFaceDiT stands."""

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TEXT_DIM, build_text_model, build_tokenizer, build_vae
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from training_runs import face_trainer

import mmface
from mmface.model.ablations import (
    CrossAttentionBlock,
    SinCosMMFaceDiT,
    SingleStreamDiT,
    UnimodalDiT,
    sincos_table,
)
from mmface.model.transformer import MMFaceDiT
from mmface.sampling.pipeline import MMFacePipeline
from mmface.training.face_diffusion import FaceDiffusion

VARIANTS = [UnimodalDiT, SingleStreamDiT, SinCosMMFaceDiT]
TINY = {"hidden_size": 32, "depth": 2, "num_heads": 2, "text_dim": 8}

variants = pytest.mark.parametrize("variant", VARIANTS)


def randomized(model):
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.2, generator=generator)
    return model


def tiny_inputs(height=8, width=8, batch=2):
    generator = torch.Generator().manual_seed(1)
    return {
        "noisy_latents": torch.randn(batch, 4, height, width, generator=generator),
        "condition_latents": torch.randn(batch, 4, height, width, generator=generator),
        "timestep": torch.rand(batch, generator=generator) * 999,
        "text_tokens": torch.randn(batch, 5, 8, generator=generator),
        "pooled_text": torch.randn(batch, 8, generator=generator),
        "modality": torch.arange(batch) % 2,
    }


def block_parameters(width: int) -> int:
    """One-stream block by hand: self-attention, cross-attention, MLP of ratio 4, modulation."""
    attention, cross = 4 * width**2, 4 * width**2
    mlp = 8 * width**2 + 5 * width
    return attention + cross + mlp + 6 * width**2 + 6 * width


def test_full_sizes():
    with torch.device("meta"):
        sizes = {v: sum(p.numel() for p in v().parameters()) for v in VARIANTS}
        fourth = MMFaceDiT(latent_channels=4)
        full = sum(p.numel() for p in fourth.parameters())
    assert sizes[SinCosMMFaceDiT] == full == 1_345_298_624 - 2 * 12 * 1152 * 4 - 12 * 4 * (1152 + 1)
    parts = (fourth.blocks, fourth.block_modulations)
    dual = sum(p.numel() for part in parts for p in part.parameters())
    assert sizes[SingleStreamDiT] == full - dual + 28 * block_parameters(1152)
    assert sizes[UnimodalDiT] == sizes[SingleStreamDiT] - 2 * 1152


def test_each_row_lacks_what_it_lacks():
    models = {variant: variant(**TINY) for variant in VARIANTS}
    names = {variant: set(dict(model.named_parameters())) for variant, model in models.items()}
    assert names[SingleStreamDiT] - names[UnimodalDiT] == {"modality_embedder.weight"}
    assert names[SinCosMMFaceDiT] == set(dict(MMFaceDiT(**TINY).named_parameters()))
    assert not any("blocks.0.text" in name for name in names[SingleStreamDiT])
    assert "text_rope" not in models[SinCosMMFaceDiT].config
    assert "num_modalities" not in models[UnimodalDiT].config
    assert "num_modalities" in models[SingleStreamDiT].config


@variants
@torch.no_grad()
def test_untrained_blocks_are_the_identity_and_the_output_is_zero(variant):
    torch.manual_seed(0)
    model = variant(**TINY)
    image, text = torch.randn(2, 16, 32), torch.randn(2, 5, 32)
    _, rotation = model.place(image, (4, 4), 5)
    modulations = model.modulations(torch.randn(2, 32))
    for block, modulation in zip(model.blocks, modulations[:-1], strict=True):
        new_image, new_text = block(image, text, modulation, rotation)
        assert torch.equal(new_image, image)
        assert torch.equal(new_text, text)
    assert not model(**tiny_inputs()).any()


@variants
def test_every_trainable_parameter_gets_a_gradient(variant):
    model = randomized(variant(**TINY))
    model(**tiny_inputs()).square().mean().backward()
    without = {name for name, p in model.named_parameters() if p.grad is None}
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert without == frozen
    assert all(p.grad.any() for p in model.parameters() if p.requires_grad)
    if variant is not SinCosMMFaceDiT:
        assert frozen == {"null_pooled"}


@variants
def test_checkpointing_changes_no_value_and_no_gradient(variant):
    def run(model):
        output = model(**tiny_inputs())
        output.square().mean().backward()
        return output, {name: p.grad for name, p in model.named_parameters()}

    plain = randomized(variant(**TINY)).train()
    checkpointed = copy.deepcopy(plain)
    checkpointed.enable_gradient_checkpointing()
    torch.testing.assert_close(run(plain), run(checkpointed), rtol=0, atol=0)


@variants
@torch.no_grad()
def test_save_and_load(variant, tmp_path):
    model = randomized(variant(**TINY, objective="rectified_flow"))
    model.save_pretrained(tmp_path)
    loaded = variant.from_pretrained(tmp_path)
    assert torch.equal(loaded(**tiny_inputs()), model(**tiny_inputs()))
    public = [{k: v for k, v in m.config.items() if k[0] != "_"} for m in (loaded, model)]
    assert public[0] == public[1]
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["_class_name"] == variant.__name__


@variants
@torch.no_grad()
def test_rectangular_latents_and_places(variant):
    model = randomized(variant(**TINY))
    inputs = tiny_inputs(4, 12)
    output = model(**inputs)
    assert output.shape == (2, 4, 4, 12)
    for axis in (2, 3):  # without positions, patches that move would take their output along
        moved = {k: x.roll(2, axis) if x.ndim == 4 else x for k, x in inputs.items()}
        assert (model(**moved).roll(-2, axis) - output).abs().max() > 1e-2


@variants
@torch.no_grad()
def test_order_of_text_tokens_is_not_read(variant):
    model, inputs = randomized(variant(**TINY)), tiny_inputs()
    output = model(**inputs)
    inputs["text_tokens"] = inputs["text_tokens"].flip(1)
    torch.testing.assert_close(model(**inputs), output, rtol=1e-4, atol=1e-4)


@variants
@torch.no_grad()
def test_what_steers_the_output(variant):
    model, inputs = randomized(variant(**TINY)), tiny_inputs()
    expected = model(**inputs)
    changed = {
        "timestep": inputs["timestep"] / 2,
        "pooled_text": inputs["pooled_text"] + 1,
        "text_tokens": inputs["text_tokens"] + torch.randn(2, 5, 8),
        "condition_latents": torch.zeros_like(inputs["condition_latents"]),
        "modality": 1 - inputs["modality"],
    }
    for name, value in changed.items():
        same = torch.allclose(model(**{**inputs, name: value}), expected, atol=1e-3)
        assert same == (variant is UnimodalDiT and name == "modality"), name


def test_sincos_table_is_dit_s():
    device = torch.device("cpu")
    table = sincos_table(2, 3, 16, device)
    frequencies = 10000.0 ** (-torch.arange(4) / 4)
    for row in range(2):
        for column in range(3):
            parts = [x * frequencies for x in (column, row)]  # the column first, as in DiT
            expected = torch.cat([f(part) for part in parts for f in (torch.sin, torch.cos)])
            torch.testing.assert_close(table[3 * row + column], expected)
    whole = get_2d_sincos_pos_embed(32, 4, base_size=4, output_type="pt").float()
    torch.testing.assert_close(sincos_table(4, 4, 32, device), whole)


@torch.no_grad()
def test_rotation_of_the_third_model_turns_nothing():
    model, reference = randomized(SinCosMMFaceDiT(**TINY)), MMFaceDiT(**TINY, latent_channels=4)
    reference.load_state_dict(model.state_dict())
    table = sincos_table(4, 4, 32, torch.device("cpu"))
    identity = torch.stack((torch.ones(21, 1, 8), torch.zeros(21, 1, 8)))
    reference.place = lambda image, grid, num_text: (image + table, identity)
    assert torch.equal(model(**tiny_inputs()), reference(**tiny_inputs()))


@torch.no_grad()
def test_cross_attention_against_torch():
    torch.manual_seed(0)
    cross = randomized(CrossAttentionBlock(32, 2, 4.0)).cross
    image, text = torch.randn(2, 16, 32), torch.randn(2, 5, 32)
    reference = torch.nn.MultiheadAttention(32, 2, bias=False, batch_first=True)
    reference.in_proj_weight.copy_(torch.cat((cross.query.weight, cross.key_value.weight)))
    reference.out_proj.weight.copy_(cross.out.weight)
    normed = torch.nn.functional.layer_norm(image, (32,), eps=1e-6)
    expected, _ = reference(normed, text, text)
    torch.testing.assert_close(cross(image, text), expected, rtol=1e-5, atol=1e-5)


def pipeline_of(variant):
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    sizes = {"hidden_size": 16, "depth": 2, "num_heads": 2, "text_dim": TEXT_DIM}
    return MMFacePipeline(
        vae=build_vae(latent_channels=4),
        text_encoder=build_text_model(tokenizer),
        tokenizer=tokenizer,
        transformer=randomized(variant(**sizes)).eval(),
        scheduler=None,
        image_size=32,
    )


@pytest.mark.slow
@variants
def test_it_samples_through_the_pipeline_and_loads_again(variant, tmp_path, face_mask):
    pipeline = pipeline_of(variant)
    pipeline.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["transformer"] == ["mmface.ablations", variant.__name__]
    loaded = MMFacePipeline.from_pretrained(tmp_path)
    assert type(loaded.transformer) is variant

    def sample(pipe):
        pipe.set_progress_bar_config(disable=True)
        arguments = {"num_inference_steps": 2, "seed": 0, "output_type": "latent"}
        return pipe("a face", mask=face_mask, guidance_scale=2.0, **arguments).images

    assert torch.equal(sample(loaded), sample(pipeline))


LOAD_AND_SAVE = """
import sys
from mmface import MMFacePipeline

for folder in sys.argv[1:]:
    pipeline = MMFacePipeline.from_pretrained(folder)
    pipeline.save_pretrained(folder + "-again")
    print(type(pipeline.transformer).__name__)
"""


@pytest.mark.slow
def test_saved_folders_load_in_a_fresh_process_and_keep_the_names_of_their_classes(tmp_path):
    shutil.copytree(mmface.builtin("tiny-flow"), tmp_path / "MMFaceDiT")
    for variant in VARIANTS:
        pipeline_of(variant).save_pretrained(tmp_path / variant.__name__)
    folders = sorted(tmp_path.iterdir())
    command = [sys.executable, "-c", LOAD_AND_SAVE, *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [folder.name for folder in folders]
    for folder in folders:
        names = [
            json.loads(Path(f"{folder}{suffix}", "model_index.json").read_text())["transformer"]
            for suffix in ("", "-again")
        ]
        module = "transformer" if folder.name == "MMFaceDiT" else "ablations"
        assert names == [[f"mmface.{module}", folder.name]] * 2


@pytest.mark.slow
@variants
def test_a_run_of_it_ends_with_a_pipeline_and_its_card(variant, tmp_path, tiny_pipeline_folder):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "depth": 2, "num_heads": 2, "text_dim": TEXT_DIM}
    network = randomized(variant(**sizes, latent_channels=16))
    folder = tiny_pipeline_folder
    task = FaceDiffusion(network, vae=folder / "vae", text=folder, image_size=32)
    face_trainer(tmp_path / "run", task, steps=1).train()
    export = tmp_path / "run" / "export"
    assert "2 blocks of width 16" in (export / "README.md").read_text()
    assert type(MMFacePipeline.from_pretrained(export).transformer) is variant


@variants
def test_blocks_compile_by_name(variant):
    model = variant(**TINY)
    assert {type(block).__name__ for block in model.blocks} == set(model._repeated_blocks)
