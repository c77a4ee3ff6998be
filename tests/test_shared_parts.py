"""A pipeline that shares its VAE and text encoder with one beside it, on disk."""

import json
import shutil

import pytest
import torch

from mmface.core.files import folder_sha256, model_sha256, shared_parts
from mmface.generation.settings import ModelChoice
from mmface.planning.sampling import meta_pipeline
from mmface.sampling.pipeline import MMFacePipeline

SHARED = ("vae", "text_encoder", "tokenizer")


@pytest.fixture
def pair(tiny_pipeline_folder, tmp_path):
    """A whole pipeline, and one beside it that lacks what it shares with the first."""
    whole, lean = tmp_path / "whole", tmp_path / "lean"
    shutil.copytree(tiny_pipeline_folder, whole)
    shutil.copytree(tiny_pipeline_folder, lean)
    for name in SHARED:
        shutil.rmtree(lean / name)
    (lean / "shared.json").write_text(json.dumps(dict.fromkeys(SHARED, "whole")))
    return whole, lean


def test_a_shared_component_is_loaded_from_beside_and_saved_whole(pair, tmp_path):
    whole, lean = pair
    first, second = (MMFacePipeline.from_pretrained(folder) for folder in pair)
    for name in ("vae", "text_encoder"):
        own, other = (getattr(each, name).state_dict() for each in (first, second))
        assert all(torch.equal(own[key], other[key]) for key in own)
    assert second.tokenizer.get_vocab() == first.tokenizer.get_vocab()
    second.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved/vae/config.json").is_file()
    assert not (tmp_path / "saved/shared.json").exists()
    planned = meta_pipeline(ModelChoice(pipeline=str(lean)))
    assert planned.vae.config.latent_channels == first.vae.config.latent_channels
    assert whole.is_dir()


@pytest.mark.parametrize("digest", [model_sha256, folder_sha256])
def test_the_digest_counts_what_is_shared(pair, digest):
    whole, lean = pair
    before = digest(lean)
    assert digest(lean) == before
    config = whole / "vae" / "config.json"
    config.write_text(config.read_text() + " ")
    assert digest(lean) != before


@pytest.mark.parametrize("other", ["../whole", "nothing", "", ".", 3, ["whole"]])
def test_nothing_is_shared_with_a_folder_that_is_not_beside(pair, other):
    _, lean = pair
    (lean / "shared.json").write_text(json.dumps({"vae": other}))
    with pytest.raises(ValueError, match="says that vae lies in"):
        shared_parts(lean)
    with pytest.raises(ValueError, match="says that vae lies in"):
        MMFacePipeline.from_pretrained(lean)
