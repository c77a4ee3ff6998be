"""A pipeline as a method that is measured: its settings reach the pictures and their key."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import IMAGE_SIZE
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate

from mmface.core.files import folder_sha256
from mmface.evaluation.methods import PipelineMethod, ReleasedMethod
from mmface.evaluation.references import HeldOutPictures, References
from mmface.sampling.guidance import Guidance
from mmface.sampling.pipeline import MMFacePipeline
from mmface.sampling.step_cache import FirstBlockCache, TaylorSeer

CONFIGS = Path(__file__).parent.parent / "configs"
OPTIONS: dict[str, Any] = {
    "solver": "unipc",
    "guidance_interval": [0.0, 0.5],
    "cache": TaylorSeer(2, 1, 1),
}


@pytest.fixture(scope="module")
def orders():
    references = References(HeldOutPictures(2, IMAGE_SIZE), "mask")
    return [references.order(item, seed=0) for item in range(2)]


def test_a_key_without_options_is_what_it_was_before_there_were_any(tiny_pipeline_folder):
    method = PipelineMethod("tiny", tiny_pipeline_folder, 25, 3.0)
    assert method.made_by() == {
        "method": "PipelineMethod",
        "weights": folder_sha256(tiny_pipeline_folder),
        "num_inference_steps": 25,
        "guidance_scale": 3.0,
    }
    whole = PipelineMethod("tiny", tiny_pipeline_folder, 25, 3.0, guidance_interval=[0, 1])
    assert whole.made_by() == method.made_by()


@pytest.mark.parametrize("option", OPTIONS)
def test_each_option_changes_the_key(tiny_pipeline_folder, option):
    plain = PipelineMethod("tiny", tiny_pipeline_folder)
    changed = PipelineMethod("tiny", tiny_pipeline_folder, **{option: OPTIONS[option]})
    key = json.loads(json.dumps(changed.made_by()))
    assert key != json.loads(json.dumps(plain.made_by()))
    assert {name: key[name] for name in plain.made_by()} == plain.made_by()
    assert list(key.keys() - plain.made_by().keys()) == [option]


def test_settings_of_a_cache_are_in_the_key(tiny_pipeline_folder):
    keys = [
        PipelineMethod("tiny", tiny_pipeline_folder, cache=cache).made_by()["cache"]
        for cache in (FirstBlockCache(0.1), FirstBlockCache(0.2), TaylorSeer())
    ]
    assert keys[0] == {"class": "FirstBlockCache", "threshold": 0.1}
    assert keys[1] == {"class": "FirstBlockCache", "threshold": 0.2}
    assert keys[2] == {"class": "TaylorSeer", "interval": 3, "warmup": 3, "order": 2}


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, OPTIONS], ids=["plain", "options"])
def test_pictures_are_those_of_the_pipelines_call(tiny_pipeline_folder, orders, options):
    method = PipelineMethod("tiny", tiny_pipeline_folder, 6, 3.0, **options)
    assert method.evaluations is None
    made = method.generate(orders, torch.device("cpu"))
    pipeline = MMFacePipeline.from_pretrained(tiny_pipeline_folder)
    pipeline.set_progress_bar_config(disable=True)
    output = pipeline(
        [order.prompt for order in orders],
        mask=[order.condition for order in orders],
        num_inference_steps=6,
        seed=[order.seed for order in orders],
        guidance=Guidance(3.0, end=0.5 if options else 1.0),
        solver=options.get("solver"),
        cache=options.get("cache"),
    )
    for picture, expected in zip(made, output.images, strict=True):
        assert np.array_equal(picture, np.array(expected))
    assert method.evaluations == output.evaluations
    if not options:
        assert method.evaluations == 12
    else:
        assert method.evaluations < 9


def test_another_scale_keeps_the_options(tiny_pipeline_folder):
    method = PipelineMethod("tiny", tiny_pipeline_folder, 6, 3.0, "train it", **OPTIONS)
    other = method.with_guidance(5.0)
    assert other.name == "tiny, guidance 5"
    assert (other.how, method.name) == ("train it", "tiny")
    assert other.made_by() == method.made_by() | {"guidance_scale": 5.0}
    released = ReleasedMethod("F", tiny_pipeline_folder, "transformer", 6, 3.0, **OPTIONS)
    scaled = released.with_guidance(5.0)
    assert isinstance(scaled, ReleasedMethod)
    assert (type(scaled), scaled.checkpoint) == (ReleasedMethod, "transformer")
    assert scaled.made_by() == released.made_by() | {"guidance_scale": 5.0}
    assert scaled.made_by().keys() >= OPTIONS.keys()


@pytest.mark.parametrize("interval", [[0.5], [0.6, 0.4], [0.0, 1.5], [0.0, float("nan")]])
def test_an_interval_that_is_none_is_refused_before_anything_is_loaded(interval):
    with pytest.raises(ValueError, match="guidance"):
        PipelineMethod("tiny", "no/such", guidance_interval=interval)


@pytest.mark.slow
def test_the_rows_of_faster_differ_in_the_sampler_alone():
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        overrides = ["protocol=tiny", "method=faster"]
        config = compose("evaluate", overrides, return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        methods = instantiate(config.methods, _convert_="all")
    keys = {method.name: method.made_by() for method in methods.values()}
    assert len({json.dumps(key, sort_keys=True) for key in keys.values()}) == len(methods)
    assert keys["tiny-flow, Euler 50"]["solver"] == "euler"
    for key in keys.values():
        assert key["weights"] == keys["tiny-flow, Euler 50"]["weights"]
        assert key["guidance_scale"] == 3.0
    assert {type(m.cache).__name__ for m in methods.values()} == {
        "NoneType",
        "FirstBlockCache",
        "TaylorSeer",
        "MagCache",
    }
