"""Weights that somebody brings: the right picture, or one line that says what is wrong."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mutated_pipelines import copy_of, ending_of, replace, right_picture, sampled
from safetensors.torch import load_file, save_file

from mmface.core.sources import ASSETS, UnusableModelError, read_object, read_weights
from mmface.encoders import LatentCodec, TextEncoder
from mmface.encoders.face_parser import TINY_PARSER, FaceParser
from mmface.metrics.backbones import ClipBackbone
from mmface.model.initial_weights import load_initial_weights
from mmface.model.transformer import MMFaceDiT

TINY_FLOW = ASSETS / "tiny-flow"


@pytest.fixture(scope="module")
def right(tmp_path_factory):
    return right_picture(TINY_FLOW, tmp_path_factory.mktemp("right"))


@pytest.mark.parametrize("seed", range(24))
def test_a_broken_pipeline_is_refused_in_a_line_or_gives_the_right_picture(seed, tmp_path, right):
    ending, line = ending_of(TINY_FLOW, seed, tmp_path, right)
    assert ending in ("refused", "right picture"), line


def drop(tensors):
    tensors.pop(sorted(tensors)[-1])
    return "missing"


def add(tensors):
    tensors["odd.weight"] = torch.zeros(2)
    return "odd.weight is unexpected"


def spoil(tensors):
    next(value for value in tensors.values() if value.is_floating_point()).view(-1)[0] = torch.nan
    return "not finite"


def count(tensors):
    name = sorted(tensors)[-1]
    tensors[name] = tensors[name].to(torch.int32)
    return "dtype I32"


def stretch(tensors):
    name = sorted(tensors)[-1]
    tensors[name] = torch.cat([tensors[name]] * 2)
    return "shape"


LOADS: dict[str, tuple[Path, str, Callable[..., Any]]] = {
    "vae": (TINY_FLOW, "vae", lambda folder: LatentCodec.from_pretrained(str(folder), "vae")),
    "text": (TINY_FLOW, "text_encoder", TextEncoder.from_pretrained),
    "parser": (TINY_PARSER, "", FaceParser.from_pretrained),
    "clip": (ASSETS / "tiny-clip", "", ClipBackbone.from_pretrained),
    "init_from": (
        TINY_FLOW,
        "transformer",
        lambda folder: load_initial_weights(
            MMFaceDiT.from_config(MMFaceDiT.load_config(TINY_FLOW, subfolder="transformer")),
            folder / "transformer",
        ),
    ),
}


@pytest.mark.parametrize("fault", [drop, add, spoil, count, stretch])
@pytest.mark.parametrize("name", LOADS)
def test_every_network_is_loaded_whole_and_finite_or_refused(name, fault, tmp_path):
    source, subfolder, load = LOADS[name]
    folder = copy_of(source, tmp_path / "brought")
    load(folder)
    (path,) = (folder / subfolder).glob("*.safetensors")
    tensors = load_file(path)
    words = fault(tensors)
    path.unlink()
    save_file(tensors, path, {"format": "pt"})
    wanted = rf"^The .*{folder}.* cannot be loaded: .*{words}"
    with pytest.raises(UnusableModelError, match=wanted) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


class Evil:
    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


def test_nothing_is_unpickled_and_no_code_beside_the_weights_is_run(tmp_path):
    folder = copy_of(TINY_FLOW, tmp_path / "brought")
    index = read_object(folder / "model_index.json")
    (folder / "evil.py").write_text("raise SystemExit('run')")
    for part in ("transformer", "vae", "_class_name"):
        (folder / "vae" / "evil.py").write_text("raise SystemExit('run')")
        replace(folder / "model_index.json", json.dumps(index | {part: ["evil", "Evil"]}).encode())
        ending, line = sampled(folder, tmp_path / "a.png")
        assert ending == "refused", line
    replace(folder / "model_index.json", json.dumps(index).encode())
    for path in sorted(folder.rglob("*.safetensors")):
        path.rename(path.with_suffix(".bin"))
        replace(path.with_suffix(".bin"), pickle.dumps(Evil()))
    ending, line = sampled(folder, tmp_path / "a.png")
    assert ending == "refused", line
    for name in ("a.pth", "a.safetensors"):
        (tmp_path / name).write_bytes(pickle.dumps(Evil()))
        with pytest.raises(ValueError, match="cannot be read as weights"):
            read_weights(tmp_path / name)


def test_weights_that_are_no_state_dict_or_not_finite_are_refused(tmp_path):
    path = tmp_path / "a.pth"
    torch.save([torch.zeros(2)], path)
    with pytest.raises(ValueError, match="no state dict"):
        read_weights(path)
    torch.save({"a": torch.full((2,), torch.inf)}, path)
    with pytest.raises(ValueError, match="a is not finite"):
        read_weights(path)
    with pytest.raises(FileNotFoundError, match=r"b\.pth does not exist"):
        read_weights(tmp_path / "b.pth")
