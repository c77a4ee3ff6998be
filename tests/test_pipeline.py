"""Pipeline: a seed is a picture, batches change nothing, guidance, saving, the authors' layout."""

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from conftest import (
    IMAGE_SIZE,
    build_pipeline,
    build_text_model,
    build_tokenizer,
    build_vae,
    latents_of,
)
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from PIL import Image
from safetensors.torch import save_file

import mmface
from mmface.conditions import MASK, colorize, load_mask
from mmface.encoders import LatentCodec
from mmface.encoders.vae import image_pixels
from mmface.objectives.objective import OBJECTIVES
from mmface.sampling.guidance import Guidance
from mmface.sampling.pipeline import MMFacePipeline

FAST: dict[str, Any] = {"num_inference_steps": 3, "output_type": "latent"}


@pytest.fixture(scope="module", params=OBJECTIVES)
def pipeline(request) -> MMFacePipeline:
    return build_pipeline(request.param)


def test_output_types(tiny_pipeline, face_mask):
    def sample(output_type):
        return tiny_pipeline(
            "a", mask=face_mask, seed=0, num_inference_steps=2, output_type=output_type
        ).images

    [picture] = sample("pil")
    array, tensor, latents = sample("np"), sample("pt"), sample("latent")
    assert picture.size == (IMAGE_SIZE, IMAGE_SIZE)
    assert array.shape == (1, IMAGE_SIZE, IMAGE_SIZE, 3)
    assert 0 <= array.min() <= array.max() <= 1
    assert np.array_equal(tensor[0].permute(1, 2, 0).numpy(), array[0])
    assert np.abs(np.array(picture) / 255 - array[0]).max() <= 0.5 / 255 + 1e-6
    assert latents.shape == (1, 16, IMAGE_SIZE // 8, IMAGE_SIZE // 8)


@pytest.mark.slow
def test_seed_is_the_picture_whatever_the_batch(pipeline, face_mask, face_sketch):
    prompts = ["a", "a long one", "b"]
    batch = pipeline(
        prompts,
        mask=[face_mask, None, face_mask],
        sketch=[None, face_sketch, None],
        num_images_per_prompt=2,
        seed=5,
        **FAST,
    )
    assert batch.seeds == [5, 6, 7, 8, 9, 10]
    torch.manual_seed(123)
    conditions = [{"mask": face_mask}, {"sketch": face_sketch}, {"mask": face_mask}]
    for index, seed in enumerate(batch.seeds):
        alone = pipeline(prompts[index // 2], **conditions[index // 2], seed=seed, **FAST)
        torch.testing.assert_close(alone.images[0], batch.images[index], atol=1e-4, rtol=1e-4)
    assert (batch.images[0] - batch.images[1]).abs().max() > 0.1


@pytest.mark.slow
def test_same_call_same_bits_and_same_picture_in_any_company(pipeline, face_mask, face_sketch):
    def sample(seeds, **changed):
        count = {"num_images_per_prompt": len(seeds), "num_inference_steps": 3}
        both = {"mask": face_mask, "sketch": face_sketch}
        return pipeline("a", **both, seed=seeds, output_type="np", **count | changed).images

    seeds = [4, 11, 2, 8, 5]
    together = sample(seeds)
    assert np.array_equal(sample(seeds), together)
    backwards = sample(seeds[::-1])[::-1]
    alone = np.concatenate([sample([seed]) for seed in seeds])
    for other in (backwards, alone, sample(seeds, max_batch=3)):
        assert np.abs(other - together).max() <= 1 / 255


@pytest.mark.slow
def test_seed_prompt_condition_and_negative_prompt_all_matter(
    tiny_pipeline, face_mask, face_sketch
):
    def sample(prompt="a", labels=face_mask, **changed):
        return tiny_pipeline(prompt, mask=labels, **{"seed": 0} | FAST | changed).images

    base = sample()
    assert torch.equal(sample(), base)
    for other in (
        sample("b"),
        sample(seed=1),
        sample(labels=np.flip(face_mask, 0)),
        sample(negative_prompt="b"),
        sample(guidance_scale=2.0),
        sample(num_inference_steps=4),
    ):
        assert not torch.allclose(other, base, atol=1e-3)
    sketch = tiny_pipeline("a", sketch=face_sketch, seed=0, **FAST)
    assert not torch.allclose(sketch.images, base, atol=1e-3)


def test_flow_is_the_papers_euler_with_guidance(tiny_pipeline, face_mask):
    """z <- z + v / N, v = v_uncond + s (v_cond - v_uncond), both with the condition's latents."""
    pipe, steps, scale = tiny_pipeline, 4, 3.0
    result = pipe(
        "a",
        mask=face_mask,
        negative_prompt="c",
        seed=7,
        guidance_scale=scale,
        num_inference_steps=steps,
        output_type="latent",
    ).images
    with torch.no_grad():
        labels = load_mask(face_mask, (IMAGE_SIZE, IMAGE_SIZE)).labels
        pixels = image_pixels(colorize(labels))
        condition = LatentCodec(pipe.vae).encode(pixels[None]).repeat(2, 1, 1, 1)
        text = pipe.text(["a", "c"])
        latents = torch.randn(result.shape, generator=torch.Generator().manual_seed(7))
        for step in range(steps):
            wanted, unwanted = pipe.transformer(
                latents.repeat(2, 1, 1, 1),
                condition,
                torch.full((2,), 999 * step / steps),
                text.tokens,
                text.pooled,
                torch.full((2,), MASK.index),
            ).chunk(2)
            latents = latents + (unwanted + scale * (wanted - unwanted)) / steps
    torch.testing.assert_close(result, latents, atol=1e-4, rtol=1e-4)


def test_guidance_of_one_is_the_conditional_model_alone(tiny_pipeline, face_mask):
    one = tiny_pipeline("a", mask=face_mask, seed=0, guidance_scale=1.0, **FAST).images
    other = tiny_pipeline(
        "a", mask=face_mask, seed=0, guidance_scale=1.0, negative_prompt="x", **FAST
    ).images
    assert not torch.allclose(one, tiny_pipeline("a", mask=face_mask, seed=0, **FAST).images)
    nearly = tiny_pipeline("a", mask=face_mask, seed=0, guidance_scale=1 + 1e-6, **FAST).images
    assert torch.equal(one, other)
    torch.testing.assert_close(one, nearly, atol=1e-4, rtol=1e-4)


def test_a_call_says_how_often_the_network_was_evaluated(tiny_pipeline, face_mask, face_sketch):
    def evaluations(**changed):
        return tiny_pipeline("a", mask=face_mask, seed=0, **FAST | changed).evaluations

    assert evaluations() == 6  # three steps, with and without the prompt
    assert evaluations(guidance_scale=1.0) == 3
    assert evaluations(num_images_per_prompt=4, max_batch=3) == 6
    assert evaluations(guidance=Guidance(2.0, end=0.5)) == 5
    assert evaluations(solver="heun") == 10  # two calls a step, and one in the last
    mixed = tiny_pipeline(["a", "b"], face_mask, [None, face_sketch], seed=0, **FAST)
    assert mixed.evaluations == 3 * (2 + 6) / 2


def test_generators_and_seeds_agree(tiny_pipeline, face_mask):
    seeded = tiny_pipeline("a", mask=face_mask, seed=[3, 9], num_images_per_prompt=2, **FAST)
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 9)]
    drawn = tiny_pipeline(
        "a", mask=face_mask, generator=generators, num_images_per_prompt=2, **FAST
    )
    assert torch.equal(seeded.images, drawn.images)
    assert drawn.seeds is None
    random = tiny_pipeline("a", mask=face_mask, **FAST)
    again = tiny_pipeline("a", mask=face_mask, seed=random.seeds, **FAST)
    assert torch.equal(random.images, again.images)


def test_each_distinct_input_is_encoded_once(tiny_pipeline, face_mask, tmp_path, monkeypatch):
    path = tmp_path / "mask.png"
    Image.fromarray(face_mask).save(path)
    encoded = []

    def counted(codec, pixels, generator=None, encode=LatentCodec.encode):
        encoded.append(len(pixels))
        assert generator is None
        return encode(codec, pixels, generator)

    monkeypatch.setattr(LatentCodec, "encode", counted)
    tiny_pipeline(["a", "b", "c"], mask=[path, str(path), face_mask], seed=0, **FAST)
    assert encoded == [2]


def test_rectangles(tiny_pipeline, face_mask):
    [picture] = tiny_pipeline(
        "a", mask=face_mask, height=32, width=64, num_inference_steps=1, seed=0
    ).images
    assert picture.size == (64, 32)


def test_callback_sees_and_replaces_latents(tiny_pipeline, face_mask):
    seen = []

    def callback(pipe, index, timestep, tensors):
        seen.append((index, float(timestep), tensors["latents"].shape))
        return {"latents": torch.zeros_like(tensors["latents"])}

    result = tiny_pipeline("a", mask=face_mask, seed=0, callback_on_step_end=callback, **FAST)
    assert [index for index, _, _ in seen] == [0, 1, 2]
    assert seen[0][1] == 1000
    assert not result.images.any()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prompt": []}, "non-empty"),
        ({"mask": None}, "neither a mask nor a sketch"),
        ({"prompt": ["a", "b"], "mask": ["mask.png"]}, "list of 1 for 2 prompts"),
        ({"prompt": ["a", "b"], "mask": ["m.png", None]}, "'b' has neither"),
        ({"negative_prompt": ["a", "b"]}, "negative_prompt is a list of 2"),
        ({"num_inference_steps": 0}, "num_inference_steps must be"),
        ({"num_inference_steps": 1001}, r"in 1\.\.1000"),
        ({"guidance_scale": -1.0}, "guidance_scale must be"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt must be"),
        ({"height": 40}, "multiples of 16"),
        ({"seed": -1}, "seed must be"),
        ({"seed": [1, 2]}, "2 seeds are given for 1 pictures"),
        ({"seed": 1, "generator": torch.Generator()}, "one of them"),
        ({"generator": [torch.Generator()] * 2}, "2 generators"),
        ({"output_type": "jpg"}, "output_type must be in"),
    ],
)
def test_wrong_inputs_are_named(tiny_pipeline, face_mask, changed, message):
    arguments = {"prompt": "a", "mask": face_mask, "num_inference_steps": 1} | changed
    with pytest.raises(ValueError, match=message):
        tiny_pipeline(**arguments)


def test_half_precision_files_load_in_one_precision(tmp_path):
    build_pipeline().to(torch.float16).save_pretrained(tmp_path)
    loaded = MMFacePipeline.from_pretrained(tmp_path)
    parts = (loaded.vae, loaded.text_encoder, loaded.transformer)
    assert {part.dtype for part in parts} == {torch.float32}


def test_saved_pipeline_samples_the_same(pipeline, face_mask, tmp_path):
    pipeline.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["transformer"] == ["mmface.transformer", "MMFaceDiT"]
    assert index["image_size"] == IMAGE_SIZE
    loaded = MMFacePipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    expected = {
        "rectified_flow": FlowMatchEulerDiscreteScheduler,
        "min_snr_diffusion": DPMSolverMultistepScheduler,
    }[loaded.transformer.config.objective]
    assert isinstance(loaded.scheduler, expected)
    arguments = {"prompt": "a", "mask": face_mask, "seed": 0} | FAST
    assert torch.equal(latents_of(loaded(**arguments)), latents_of(pipeline(**arguments)))


def test_half_precision_stays_near(face_mask):
    pipe = build_pipeline()
    arguments = {"prompt": "a", "mask": face_mask, "seed": 0, "guidance_scale": 1.0} | FAST
    full = latents_of(pipe(**arguments))
    half = latents_of(pipe.to(torch.bfloat16)(**arguments))
    assert half.dtype == torch.float32
    assert 0 < (half - full).abs().mean() < 0.05 * full.abs().mean()


def test_components_that_do_not_fit_are_refused(tiny_pipeline):
    components = tiny_pipeline.components | {"vae": build_vae(latent_channels=4)}
    with pytest.raises(ValueError, match=r"16 latent channels .* the VAE has 4"):
        MMFacePipeline(**components)


@pytest.fixture
def released_folder(tiny_pipeline, tmp_path):
    """Lay a tiny model out as the authors' hub repository."""
    build_vae().save_pretrained(tmp_path / "VAE")
    text = tmp_path / "stable-diffusion-2-1-base"
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(text / "tokenizer")
    build_text_model(tokenizer).save_pretrained(text / "text_encoder")
    for name in (
        "dit-unified-flux-vae-256/checkpoint-7",
        "dit-unified-flux-vae-512-rfm/checkpoint-9",
    ):
        (tmp_path / name).mkdir(parents=True)
        state = tiny_pipeline.transformer.to_released()
        save_file(state, tmp_path / name / "dit_model_weights_ema.safetensors")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("checkpoint", "objective", "size"),
    [
        ("dit-unified-flux-vae-256/checkpoint-7", "min_snr_diffusion", 256),
        ("dit-unified-flux-vae-512-rfm", "rectified_flow", 512),
    ],
)
def test_released_layout(released_folder, face_mask, checkpoint, objective, size):
    pipe = MMFacePipeline.from_released(released_folder, checkpoint, num_heads=2)
    assert pipe.transformer.config.objective == objective
    assert pipe.transformer.config.text_rope == "none"
    assert pipe.config.image_size == size
    assert pipe.vae.config.shift_factor is None
    assert pipe.vae.config.scaling_factor == 0.3611
    pipe.set_progress_bar_config(disable=True)
    pipe("a", mask=face_mask, seed=0, height=32, width=32, **FAST)


def test_unclear_released_folders_are_named(released_folder, tmp_path):
    with pytest.raises(
        ValueError, match=r"2 checkpoints .*256/checkpoint-7, .*512-rfm/checkpoint-9"
    ):
        MMFacePipeline.from_released(released_folder)
    with pytest.raises(ValueError, match=r"0 checkpoints .* fit 'nothing'"):
        MMFacePipeline.from_released(released_folder, "nothing")
    with pytest.raises(ValueError, match=r"no folder VAE and no stable-diffusion.*hf download"):
        MMFacePipeline.from_released(released_folder / "VAE")


def test_import_is_cheap_and_names_are_public():
    assert mmface.MMFacePipeline is MMFacePipeline
    assert set(mmface.__all__) <= {*dir(mmface), "MMFaceDiT", "MMFacePipeline"}
    code = "import sys, mmface; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(ValueError, match="No built-in pipeline is named 'nothing'"):
        mmface.builtin("nothing")
