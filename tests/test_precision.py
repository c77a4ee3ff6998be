"""`auto` is decided in one place, by what the device can do, and recorded as what was decided."""

import json
from typing import Any

import pytest
import torch
from PIL import Image

from mmface.core import sources as precision
from mmface.core.sources import dtype_name, dtype_named, has_bfloat16, tf32_allowed
from mmface.data.latents import LatentEncoding
from mmface.data.pictures import RenderedPictures, StoredPictures
from mmface.encoders import LatentCodec
from mmface.evaluation.methods import PipelineMethod
from mmface.generation import sample
from mmface.generation.requests import prepare_request
from mmface.generation.settings import DTYPES, ModelChoice, Settings
from mmface.sampling.pipeline import MMFacePipeline

GPU, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture(params=[True, False], ids=["bfloat16", "no bfloat16"])
def gpu(request, monkeypatch) -> str:
    """Stand in for a GPU, with bfloat16 or without; gives the dtype that `auto` is on it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: request.param)
    return "bfloat16" if request.param else "float16"


def test_auto_is_half_precision_on_a_gpu_and_float32_on_a_cpu(gpu):
    assert [dtype_name("auto", GPU), dtype_name("auto")] == [gpu, gpu]
    assert dtype_name("auto", CPU) == "float32"
    assert dtype_named("auto", GPU) == getattr(torch, gpu)


@pytest.mark.parametrize("name", precision.FLOATS)
def test_what_is_asked_for_is_taken_on_any_device(gpu, name):
    assert dtype_name(name, GPU) == dtype_name(name, CPU) == name


@pytest.mark.parametrize("name", ["half", "int8", "float64", ""])
def test_another_name_is_refused(name):
    with pytest.raises(ValueError, match="is not one of auto, float32, bfloat16, float16"):
        dtype_name(name)


def test_the_options_of_a_command_are_the_ones_that_are_decided():
    assert (precision.AUTO, *precision.FLOATS) == DTYPES
    assert ModelChoice().dtype == precision.AUTO


@pytest.mark.parametrize("units", ["_is_avx512_bf16_supported", "_is_amx_tile_supported"])
def test_a_cpu_has_bfloat16_by_either_of_its_units(monkeypatch, units):
    for probe in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, probe, lambda: False)
    assert not has_bfloat16(CPU)
    monkeypatch.setattr(torch.cpu, units, lambda: True)
    assert has_bfloat16(CPU)
    assert not has_bfloat16(torch.device("meta"))


def test_tf32_is_allowed_inside_alone():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    for allowed in (True, False):
        with tf32_allowed(allowed):
            inside = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
            assert inside == (allowed, allowed)
        assert before == (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)


def test_an_evaluation_takes_it_and_has_it_in_its_key(gpu, tiny_pipeline_folder):
    plain = PipelineMethod("tiny", tiny_pipeline_folder, dtype="float32")
    auto = PipelineMethod("tiny", tiny_pipeline_folder)
    assert "dtype" not in plain.made_by()
    assert auto.made_by() == plain.made_by() | {"dtype": gpu}
    assert auto.pipeline.transformer.dtype == auto.pipeline.vae.dtype == getattr(torch, gpu)


def test_a_precomputation_records_what_was_decided(gpu, tiny_pipeline_folder, tmp_path):
    codec = LatentCodec.from_pretrained(str(tiny_pipeline_folder), "vae")
    RenderedPictures(1, 32).write(tmp_path)
    source = StoredPictures(tmp_path)
    made = [LatentEncoding(source, "vae", vae_dtype=name) for name in ("auto", "float32")]
    decided = [each._spec(codec).made_by["vae_dtype"] for each in made]
    assert decided == [gpu, "float32"]
    with pytest.raises(ValueError, match="is not one of auto"):
        LatentEncoding(source, "vae", vae_dtype="double")


@pytest.mark.slow
def test_a_picture_says_which_precision_was_decided(
    tiny_pipeline_folder, tmp_path, monkeypatch, capsys
):
    choice = ModelChoice(pipeline=str(tiny_pipeline_folder))
    assert sample.open_model(choice).choice.dtype == "float32"
    monkeypatch.setattr(sample, "dtype_name", lambda name, device: "bfloat16")
    monkeypatch.setattr(sample, "has_bfloat16", lambda device: False)
    model = sample.open_model(choice)
    assert model.pipeline.transformer.dtype == torch.bfloat16
    assert "emulates it" in capsys.readouterr().err
    Image.new("L", (32, 32), 1).save(tmp_path / "mask.png")
    asked = Settings(prompt="a face", conditions={"mask": str(tmp_path / "mask.png")})
    prepared = prepare_request(asked, model.pipeline, sample.locate_here, 1)
    recipe = sample.provenance_of(model, [prepared], [0])
    assert json.loads(recipe.json)["model"]["dtype"] == "bfloat16"


@pytest.mark.slow
def test_bfloat16_changes_a_picture_by_little(tiny_pipeline_folder):
    made: list[Any] = []
    options: Any = {"num_inference_steps": 4, "seed": 0, "output_type": "latent"}
    for dtype in (torch.float32, torch.bfloat16):
        pipeline = MMFacePipeline.from_pretrained(tiny_pipeline_folder, dtype=dtype)
        pipeline.set_progress_bar_config(disable=True)
        size = pipeline.config.image_size
        mask = torch.zeros(size, size, dtype=torch.uint8)
        mask[size // 4 :, size // 4 :] = 1
        made.append(pipeline("a face", mask=mask.numpy(), **options).images)
    error = (made[1] - made[0]).norm() / made[0].norm()
    assert 1e-5 < error < 0.02
