"""What code written for diffusers' pipelines does with any of them, it does with ours."""

import inspect
import io
import json
import logging
import shutil
import warnings
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from conftest import IMAGE_SIZE, MAX_TOKENS, TEXT_DIM, latents_of
from diffusers import DiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback, SD3CFGCutoffCallback
from diffusers.pipelines import pipeline_utils
from diffusers.utils import dynamic_modules_utils
from PIL import Image

from mmface.conditions import colorize
from mmface.core import sources
from mmface.sampling.guidance import Guidance
from mmface.sampling.pipeline import MMFacePipeline

FAST: dict[str, Any] = {"num_inference_steps": 3, "output_type": "latent", "seed": 0}
NAMES = "callback_on_step_end_tensor_inputs"
TENSORS = [
    "latents",
    "prompt_embeds",
    "negative_prompt_embeds",
    "pooled_prompt_embeds",
    "negative_pooled_prompt_embeds",
]


@pytest.fixture(scope="module")
def plain(tiny_pipeline, face_mask_once) -> torch.Tensor:
    return latents_of(tiny_pipeline("a", mask=face_mask_once, **FAST))


@pytest.fixture(scope="module")
def face_mask_once() -> np.ndarray:
    return colorize(np.random.default_rng(0).integers(0, 3, (64, 64)).astype(np.uint8))


# Loading and saving


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_a_dtype_is_asked_for_by_both_names_without_a_warning(tiny_pipeline_folder, name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = MMFacePipeline.from_pretrained(tiny_pipeline_folder, **{name: torch.bfloat16})
    assert {loaded.vae.dtype, loaded.text_encoder.dtype, loaded.transformer.dtype} == {
        torch.bfloat16
    }


def test_each_component_can_have_a_dtype_of_its_own(tiny_pipeline_folder):
    dtypes = {"transformer": torch.bfloat16, "default": torch.float16}
    loaded = MMFacePipeline.from_pretrained(tiny_pipeline_folder, dtype=dtypes)
    assert loaded.transformer.dtype == torch.bfloat16
    assert {loaded.vae.dtype, loaded.text_encoder.dtype} == {torch.float16}
    loaded = MMFacePipeline.from_pretrained(tiny_pipeline_folder, dtype={"vae": torch.float16})
    assert (loaded.vae.dtype, loaded.transformer.dtype) == (torch.float16, torch.float32)


def test_two_dtypes_and_options_that_are_not_followed_are_refused(tiny_pipeline_folder):
    with pytest.raises(ValueError, match="dtype and torch_dtype"):
        MMFacePipeline.from_pretrained(
            tiny_pipeline_folder, dtype=torch.float16, torch_dtype=torch.float16
        )
    with pytest.raises(ValueError, match="device_map"):
        MMFacePipeline.from_pretrained(tiny_pipeline_folder, device_map="balanced")


def test_the_base_class_loads_an_export(tiny_pipeline, tiny_pipeline_folder, plain, face_mask_once):
    loaded = DiffusionPipeline.from_pretrained(tiny_pipeline_folder, trust_remote_code=True)
    assert type(loaded) is MMFacePipeline
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(latents_of(loaded("a", mask=face_mask_once, **FAST)), plain)
    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained(tiny_pipeline_folder)


def test_an_export_says_what_it_needs_and_our_class_runs_nothing_of_it(
    tiny_pipeline, tmp_path, monkeypatch
):
    tiny_pipeline.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline", "MMFacePipeline"]
    code = (tmp_path / "pipeline.py").read_text()
    assert "pip install" in code
    (tmp_path / "pipeline.py").write_text("raise RuntimeError('was run')")
    (tmp_path / "transformer" / "mmface.transformer.py").write_text("raise RuntimeError('run')")
    MMFacePipeline.from_pretrained(tmp_path)
    (tmp_path / "pipeline.py").unlink()
    (tmp_path / "transformer" / "mmface.transformer.py").unlink()
    index["_class_name"] = "MMFacePipeline"  # as saved before
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    again = MMFacePipeline.from_pretrained(tmp_path)
    again.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "pipeline.py").read_text() == code


def test_pickles_are_not_written_even_if_asked(tiny_pipeline, tmp_path):
    tiny_pipeline.save_pretrained(tmp_path, safe_serialization=False, variant="fp16")
    names = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert ".safetensors" in names
    assert not names & {".bin", ".pt", ".pth"}
    MMFacePipeline.from_pretrained(tmp_path, variant="fp16")
    with pytest.raises(ValueError, match="fp8"):
        MMFacePipeline.from_pretrained(tmp_path, variant="fp8")


def test_it_is_pushed_with_a_card_and_loads_from_the_hub(tiny_pipeline, tmp_path, monkeypatch, hub):
    tiny_pipeline.push_to_hub("anna/faces", private=True)
    pushed = hub.folder
    card = (pushed / "README.md").read_text()
    assert "library_name: diffusers" in card
    assert "pipeline_tag: image-to-image" in card or "text-to-image" in card
    assert 'MMFacePipeline.from_pretrained("anna/faces")' in card
    assert "trust_remote_code=True" in card
    for loader, trust in ((MMFacePipeline, {}), (DiffusionPipeline, {"trust_remote_code": True})):
        assert type(loader.from_pretrained("anna/faces", **trust)) is MMFacePipeline
    assert hub.calls["create_repo"] == {"private": True}


def test_saving_can_push_and_keeps_a_card_that_is_there(tiny_pipeline, tmp_path, hub):
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\nAnna's faces")
    tiny_pipeline.save_pretrained(tmp_path, push_to_hub=True, repo_id="anna/faces")
    assert "Anna's faces" in (hub.folder / "README.md").read_text()


@pytest.fixture
def hub(monkeypatch, tmp_path_factory):
    """Stand in for the hub: what is pushed lies in a folder, and is loaded from there."""
    folder = tmp_path_factory.mktemp("hub")
    fake = SimpleNamespace(folder=folder, calls={})

    def create_repo(repo_id, exist_ok, token, **options):
        fake.calls["create_repo"] = options
        return SimpleNamespace(repo_id=repo_id)

    def upload(self, working_dir, repo_id, **_):
        shutil.copytree(working_dir, folder, dirs_exist_ok=True)
        return "commit"

    def names():
        return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]

    def model_info(name, **_):
        siblings = [SimpleNamespace(rfilename=each) for each in names()]
        return SimpleNamespace(siblings=siblings, sha="0" * 40)

    monkeypatch.setattr(huggingface_hub, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub, "file_exists", lambda _, name, **__: name in names())
    monkeypatch.setattr(MMFacePipeline, "_upload_folder", upload)
    monkeypatch.setattr(pipeline_utils, "snapshot_download", lambda *_, **__: str(folder))
    monkeypatch.setattr(pipeline_utils, "_resolve_revision", lambda *_, **__: None)
    monkeypatch.setattr(sources, "_is_offline", lambda: False)
    for module in (pipeline_utils, dynamic_modules_utils):
        monkeypatch.setattr(module, "model_info", model_info)
        monkeypatch.setattr(module, "hf_hub_download", lambda _, name, **__: str(folder / name))
    return fake


def test_a_pipeline_is_made_of_another(tiny_pipeline, plain, face_mask_once):
    made = MMFacePipeline.from_pipe(tiny_pipeline, num_inference_steps=3)
    made.set_progress_bar_config(disable=True)
    assert made.transformer is tiny_pipeline.transformer
    assert made.config.image_size == IMAGE_SIZE
    assert made.config.num_inference_steps == 3
    assert torch.equal(latents_of(made("a", mask=face_mask_once, **FAST)), plain)


@pytest.mark.slow
def test_auto_pipelines_know_it_once_it_is_registered(tiny_pipeline):
    from diffusers import AutoPipelineForImage2Image, AutoPipelineForText2Image

    from mmface.sampling.auto_pipelines import register_auto_pipelines

    register_auto_pipelines()
    for auto in (AutoPipelineForText2Image, AutoPipelineForImage2Image):
        assert type(auto.from_pipe(tiny_pipeline)) is MMFacePipeline


# Calling


def test_a_tuple_comes_instead_of_an_output(tiny_pipeline, plain, face_mask_once):
    images, seeds, evaluations = tiny_pipeline("a", mask=face_mask_once, return_dict=False, **FAST)
    assert torch.equal(images, plain)
    assert (seeds, evaluations) == ([0], 6)
    output = tiny_pipeline("a", mask=face_mask_once, **FAST)
    assert torch.equal(output[0], plain)
    assert torch.equal(output["images"], plain)


def test_no_negative_prompt_is_the_empty_one(tiny_pipeline, plain, face_mask_once):
    def sample(negative):
        return latents_of(tiny_pipeline("a", mask=face_mask_once, negative_prompt=negative, **FAST))

    assert torch.equal(sample(None), plain)
    two = tiny_pipeline(["a", "b"], face_mask_once, negative_prompt=[None, "c"], **FAST)
    torch.testing.assert_close(two.images[:1], plain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_numbers_of_numpy_are_numbers(tiny_pipeline, plain, face_mask_once, kind):
    numbers = {"seed": kind(0), "num_inference_steps": kind(3), "num_images_per_prompt": kind(1)}
    found = tiny_pipeline("a", mask=face_mask_once, **FAST | numbers)
    assert torch.equal(latents_of(found), plain)
    assert found.seeds == [0]
    assert type(found.seeds[0]) is int
    seeds = np.array([0, 5], dtype=kind)
    two = tiny_pipeline("a", face_mask_once, num_images_per_prompt=2, **FAST | {"seed": seeds})
    assert two.seeds == [0, 5]


def test_a_tensor_seed_is_a_seed(tiny_pipeline, plain, face_mask_once):
    found = tiny_pipeline("a", mask=face_mask_once, **FAST | {"seed": torch.tensor(0)})
    assert torch.equal(latents_of(found), plain)


def forms_of(rgb: np.ndarray) -> dict[str, Any]:
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "png")
    tensor = torch.from_numpy(rgb).movedim(-1, 0)
    return {
        "pil": Image.fromarray(rgb),
        "bytes": file.getvalue(),
        "bytearray": bytearray(file.getvalue()),
        "file": io.BytesIO(file.getvalue()),
        "uint8 tensor": tensor,
        "float tensor": tensor / 255,
        "half tensor": (tensor / 255).half(),
        "tensor of one": tensor[None] / 255,
        "float array": rgb.astype(np.float32) / 255,
        "array of one": rgb[None],
    }


@pytest.mark.parametrize("form", forms_of(np.zeros((8, 8, 3), np.uint8)))
def test_pictures_come_in_all_forms(tiny_pipeline, plain, face_mask_once, form):
    picture = forms_of(face_mask_once)[form]
    assert torch.equal(latents_of(tiny_pipeline("a", mask=picture, **FAST)), plain)


def test_a_batch_of_pictures_is_one_a_prompt(tiny_pipeline, face_mask_once):
    both = np.stack([face_mask_once, face_mask_once[::-1]])
    wanted = tiny_pipeline(["a", "b"], mask=list(both), **FAST)
    for batch in (both, torch.from_numpy(both.copy()).movedim(-1, 1) / 255):
        found = tiny_pipeline(["a", "b"], mask=batch, **FAST)
        assert torch.equal(latents_of(found), latents_of(wanted))
    with pytest.raises(ValueError, match="list of 2 for 1 prompts"):
        tiny_pipeline("a", mask=both, **FAST)


def test_a_starting_picture_and_a_region_may_be_tensors(tiny_pipeline, face_mask_once):
    picture = np.random.default_rng(1).integers(0, 255, (32, 32, 3)).astype(np.uint8)
    region = np.zeros((32, 32), np.uint8)
    region[:16] = 255
    wanted = tiny_pipeline("a", face_mask_once, image=picture, region=region, **FAST)
    as_tensor = torch.from_numpy(picture).movedim(-1, 0) / 255
    for form in (torch.from_numpy(region) / 255, torch.from_numpy(region)[None, None] / 255):
        found = tiny_pipeline("a", face_mask_once, image=as_tensor, region=form, **FAST)
        assert torch.equal(latents_of(found), latents_of(wanted))


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (torch.rand(3, 8, 8) * 2 - 1, r"0\.\.1"),
        (torch.rand(5, 8, 8), r"\[5, 8, 8\]"),
        (np.full((8, 8, 3), np.nan, np.float32), r"0\.\.1"),
        (b"no picture", "cannot be read as a picture"),
        (io.BytesIO(b""), "cannot be read as a picture"),
    ],
)
def test_what_is_no_picture_is_said(tiny_pipeline, picture, message):
    with pytest.raises(ValueError, match=message):
        tiny_pipeline("a", mask=picture, **FAST)


# Callbacks


def test_a_callback_may_return_nothing(tiny_pipeline, plain, face_mask_once):
    seen = []

    def callback(pipe, index, timestep, tensors):
        seen.append((index, list(tensors), pipe.num_timesteps, pipe.guidance_scale))

    found = tiny_pipeline("a", mask=face_mask_once, callback_on_step_end=callback, **FAST)
    assert torch.equal(latents_of(found), plain)
    assert seen == [(index, ["latents"], 3, 7.5) for index in range(3)]


def test_a_callback_asks_for_tensors(tiny_pipeline, face_mask_once):
    shapes = {}

    def callback(pipe, index, timestep, tensors):
        shapes.update({name: tuple(tensor.shape) for name, tensor in tensors.items()})
        return {}

    assert set(TENSORS) <= set(MMFacePipeline._callback_tensor_inputs)
    options = {"callback_on_step_end": callback, NAMES: TENSORS}
    tiny_pipeline(
        ["a", "b"], face_mask_once, guidance_scale=2.0, num_images_per_prompt=2, **options, **FAST
    )
    side = IMAGE_SIZE // 8
    # As Stable Diffusion 3 has it: the negative ones stand before the others.
    assert shapes == {
        "latents": (4, 16, side, side),
        "prompt_embeds": (8, MAX_TOKENS, TEXT_DIM),
        "negative_prompt_embeds": (4, MAX_TOKENS, TEXT_DIM),
        "pooled_prompt_embeds": (8, TEXT_DIM),
        "negative_pooled_prompt_embeds": (4, TEXT_DIM),
    }
    tiny_pipeline("a", face_mask_once, guidance_scale=1.0, **options, **FAST)
    assert shapes["prompt_embeds"] == (1, MAX_TOKENS, TEXT_DIM)
    with pytest.raises(ValueError, match=r"'noise_pred'.*latents, prompt_embeds"):
        tiny_pipeline("a", face_mask_once, **options | {NAMES: ["noise_pred"]}, **FAST)


def test_a_callback_changes_the_text_on_the_way(tiny_pipeline, face_mask_once):
    """From step 2 on another prompt: as two calls, of which the second takes over the latents."""
    embedded: Any = tiny_pipeline.encode_prompt("b", negative_prompt="")
    new = [torch.cat((embedded[place + 1], embedded[place])) for place in (0, 2)]

    def callback(pipe, index, timestep, tensors):
        if index == 0:
            return {"prompt_embeds": new[0], "pooled_prompt_embeds": new[1]}
        return None

    names = ["latents", "prompt_embeds", "pooled_prompt_embeds"]
    found = tiny_pipeline(
        "a",
        face_mask_once,
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=names,
        **FAST,
    )
    after_one = []

    def keep(pipe, index, timestep, tensors):
        after_one.append(tensors["latents"])

    tiny_pipeline("a", face_mask_once, callback_on_step_end=keep, **FAST)

    def replace(pipe, index, timestep, tensors):
        return {"latents": after_one[0]} if index == 0 else {}

    wanted = tiny_pipeline("b", face_mask_once, callback_on_step_end=replace, **FAST)
    torch.testing.assert_close(latents_of(found), latents_of(wanted), atol=1e-5, rtol=1e-5)


def test_a_callback_changes_the_guidance_on_the_way(tiny_pipeline, face_mask_once):
    def callback(pipe, index, timestep, tensors):
        pipe._guidance_scale += 1.0
        return tensors

    tiny_pipeline("a", face_mask_once, guidance_scale=2.0, callback_on_step_end=callback, **FAST)
    assert tiny_pipeline.guidance_scale == 2.0 + tiny_pipeline.num_timesteps

    def stop(pipe, index, timestep, tensors):
        if index == 0:
            pipe._guidance_scale = 1.0

    found = tiny_pipeline("a", face_mask_once, callback_on_step_end=stop, **FAST)
    wanted = tiny_pipeline("a", face_mask_once, guidance=Guidance(end=1 / 3), **FAST)
    torch.testing.assert_close(latents_of(found), latents_of(wanted), atol=1e-5, rtol=1e-5)
    assert found.evaluations == wanted.evaluations == 4


@pytest.mark.parametrize("many", [False, True])
def test_official_callbacks_work(tiny_pipeline, face_mask_once, many):
    cutoff: Any = SD3CFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=0)
    if many:
        cutoff = MultiPipelineCallbacks([cutoff])
    found = tiny_pipeline("a", face_mask_once, callback_on_step_end=cutoff, **FAST)
    wanted = tiny_pipeline("a", face_mask_once, guidance=Guidance(end=1 / 3), **FAST)
    torch.testing.assert_close(latents_of(found), latents_of(wanted), atol=1e-5, rtol=1e-5)
    assert found.evaluations == 4


def test_own_callbacks_of_diffusers_form_work(tiny_pipeline, plain, face_mask_once):
    class Halve(PipelineCallback):
        tensor_inputs = ["latents"]  # noqa: RUF012

        def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
            return {"latents": callback_kwargs["latents"] / 2}

    found = tiny_pipeline("a", face_mask_once, callback_on_step_end=Halve(), **FAST)
    assert not torch.allclose(latents_of(found), plain, atol=1e-3)


def test_a_call_is_interrupted(tiny_pipeline, plain, face_mask_once):
    steps = []

    def callback(pipe, index, timestep, tensors):
        steps.append(index)
        pipe._interrupt = index == 1
        return tensors

    found = tiny_pipeline("a", face_mask_once, callback_on_step_end=callback, **FAST)
    assert steps == [0, 1]
    assert tiny_pipeline.interrupt
    assert not torch.allclose(latents_of(found), plain, atol=1e-3)
    again = tiny_pipeline("a", face_mask_once, **FAST)
    assert torch.equal(latents_of(again), plain)
    assert not tiny_pipeline.interrupt


# Text


def test_prompts_may_be_given_encoded(tiny_pipeline, plain, face_mask_once):
    values = tiny_pipeline.encode_prompt("a", negative_prompt="")
    embedded: dict[str, Any] = dict(zip(TENSORS[1:], values, strict=True))
    found = tiny_pipeline(mask=face_mask_once, **embedded, **FAST)
    assert torch.equal(latents_of(found), plain)
    positive = {name: each for name, each in embedded.items() if "negative" not in name}
    assert torch.equal(latents_of(tiny_pipeline(mask=face_mask_once, **positive, **FAST)), plain)


def test_encoded_prompts_repeat_and_need_no_text_encoder(tiny_pipeline, face_mask_once):
    words = tiny_pipeline(
        ["a", "b"], face_mask_once, negative_prompt="c", num_images_per_prompt=2, **FAST
    )
    embedded: Any = tiny_pipeline.encode_prompt(["a", "b"], negative_prompt="c")
    assert [len(each) for each in embedded] == [2, 2, 2, 2]
    repeated = tiny_pipeline.encode_prompt(["a", "b"], num_images_per_prompt=2)
    assert [len(each) for each in repeated] == [4, 4, 4, 4]
    parts = tiny_pipeline.components | {"text_encoder": None, "tokenizer": None}
    textless = MMFacePipeline(**parts, image_size=IMAGE_SIZE)
    textless.set_progress_bar_config(disable=True)
    named: dict[str, Any] = dict(zip(TENSORS[1:], embedded, strict=True))
    found = textless(mask=face_mask_once, num_images_per_prompt=2, **named, **FAST)
    assert torch.equal(latents_of(found), latents_of(words))
    with pytest.raises(ValueError, match="text_encoder"):
        textless("a", mask=face_mask_once, **FAST)
    only_text = MMFacePipeline(
        **dict.fromkeys(parts)
        | {k: tiny_pipeline.components[k] for k in ("text_encoder", "tokenizer")}
    )
    alone: Any = only_text.encode_prompt(["a", "b"], negative_prompt="c")
    assert all(torch.equal(x, y) for x, y in zip(alone, embedded, strict=True))


def test_without_guidance_no_negative_prompt_is_encoded(tiny_pipeline):
    tokens, negative, pooled, negative_pooled = tiny_pipeline.encode_prompt(
        "a", do_classifier_free_guidance=False
    )
    assert negative is None
    assert negative_pooled is None
    assert tokens.shape == (1, MAX_TOKENS, TEXT_DIM)
    assert pooled.shape == (1, TEXT_DIM)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prompt": "a"}, "prompt or prompt_embeds"),
        ({"pooled_prompt_embeds": None}, "pooled_prompt_embeds"),
        ({"prompt_embeds": torch.zeros(1, 16, 7)}, r"\[1, 16, 7\]"),
        ({"pooled_prompt_embeds": torch.zeros(2, 12)}, "pooled_prompt_embeds"),
        ({"negative_prompt_embeds": torch.zeros(1, 16, 12)}, "negative_pooled_prompt_embeds"),
        ({"negative_prompt": "b", "negative_prompt_embeds": torch.zeros(1, 16, 12)}, "negative_"),
        ({"prompt_embeds": None, "pooled_prompt_embeds": None}, "prompt"),
    ],
)
def test_unfit_encoded_prompts_are_named(tiny_pipeline, face_mask_once, changed, message):
    given = {
        "prompt_embeds": torch.zeros(1, MAX_TOKENS, TEXT_DIM),
        "pooled_prompt_embeds": torch.zeros(1, TEXT_DIM),
    }
    with pytest.raises(ValueError, match=message):
        tiny_pipeline(mask=face_mask_once, **given | changed, **FAST)


def test_what_a_prompt_loses_is_said_once_in_python(tiny_pipeline, face_mask_once, caplog):
    words = "abcdefghijklmnopqrstuvwxyz"
    with caplog.at_level(logging.WARNING):
        tiny_pipeline([words, words], face_mask_once, num_inference_steps=1, seed=0)
    [said] = [each.getMessage() for each in caplog.records]
    assert "opqrstuvwxyz" in said
    assert f"{MAX_TOKENS} tokens" in said
    caplog.clear()
    tiny_pipeline("a", face_mask_once, num_inference_steps=1, seed=0)
    assert not caplog.records


def test_its_signature_has_diffusers_names():
    names = inspect.signature(MMFacePipeline.__call__).parameters
    wanted = {*TENSORS, "return_dict", "generator", "output_type", "joint_attention_kwargs"}
    wanted |= {"callback_on_step_end", "callback_on_step_end_tensor_inputs", "negative_prompt"}
    assert wanted <= set(names)
