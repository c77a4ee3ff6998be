"""Another encoder, such as a reference tower, becomes a column of a store by its protocol alone."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from conftest import build_text_model, build_tokenizer, build_vae
from torch import nn

from mmface.core.files import values_sha256
from mmface.data.latents import LatentEncoding
from mmface.data.pictures import RenderedPictures, StoredPictures
from mmface.data.store import close_store
from mmface.encoders import VAES, Encoder, Feature, LatentCodec, TextEncoder, meta_vae
from mmface.encoders.encoder import count_flops, num_parameters, peak_bytes
from mmface.encoders.face_parser import TINY_PARSER, FaceParser
from mmface.encoders.vae import image_pixels
from mmface.planning.encoding import plan_encoding

PX = 32


class Tokenizer:
    """A dummy image tokenizer: the largest of eight channels, one token for 16x16 pixels."""

    source = "dummy"

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.module = nn.Conv2d(3, 8, 16, stride=16)

    def gives(self, size: tuple[int, int]) -> dict[str, Feature]:
        return {"tokens": Feature((size[0] // 16, size[1] // 16), torch.int64)}

    def identity(self) -> dict[str, Any]:
        return {"weights": values_sha256(self.module.state_dict())[:16]}

    def flops(self, size: tuple[int, int]) -> int:
        return count_flops(lambda: self.module(torch.empty(1, 3, *size)))

    def activation_bytes(self, size: tuple[int, int], dtype: torch.dtype) -> int:
        return 8 * (size[0] // 16) * (size[1] // 16) * dtype.itemsize

    def features(self, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"tokens": self.module(inputs).argmax(1)}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    RenderedPictures(num_faces=5, size_px=PX).write(folder)
    return StoredPictures(folder)


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vae")
    build_vae().save_pretrained(folder)
    return folder


def encoding(pictures, vae, encoders: Mapping[str, Encoder]) -> LatentEncoding:
    return LatentEncoding(pictures, vae, batch_size=2, encoders=encoders)


@pytest.mark.slow
def test_a_dummy_encoder_becomes_a_column(pictures, vae, tmp_path):
    tokenizer = Tokenizer()
    job = encoding(pictures, vae, {"tokens": tokenizer})
    job.write(tmp_path / "with")
    encoding(pictures, vae, {}).write(tmp_path / "without")
    with_tokens, without = close_store(tmp_path / "with"), close_store(tmp_path / "without")
    made_by = dict(with_tokens.spec.made_by)
    assert made_by.pop("encoders") == {"tokens": {"source": "dummy"} | tokenizer.identity()}
    assert made_by == without.spec.made_by
    for item in range(5):
        row = with_tokens.row(item, ("image", "sketch", "tokens"))
        pixels = image_pixels(pictures.face(item).image)[None]
        np.testing.assert_array_equal(row["tokens"], tokenizer.features(pixels)["tokens"][0])
        for name in ("image", "sketch"):
            np.testing.assert_array_equal(row[name], without.row(item, (name,))[name])


def test_the_plan_counts_it(pictures, vae, tmp_path):
    tokenizer = Tokenizer()
    plans = [
        plan_encoding(encoding(pictures, vae, each), tmp_path)
        for each in ({}, {"tokens": tokenizer})
    ]
    assert plans[1].flops - plans[0].flops == 5 * tokenizer.flops((PX, PX))
    assert plans[1].disk_bytes - plans[0].disk_bytes == 5 * 2 * 2 * 8
    assert plans[1].memory_bytes - plans[0].memory_bytes == 4 * num_parameters(tokenizer)


def test_a_store_of_another_encoder_is_not_continued(pictures, vae, tmp_path):
    tokenizer = Tokenizer()
    encoding(pictures, vae, {"tokens": tokenizer}).write(tmp_path)
    nn.init.zeros_(tokenizer.module.weight)
    with pytest.raises(ValueError, match=r"encoders\.tokens\.weights"):
        encoding(pictures, vae, {"tokens": tokenizer}).write(tmp_path)


def test_two_columns_of_one_name_are_refused(pictures, vae, tmp_path):
    with pytest.raises(ValueError, match="the column 'mask'"):
        encoding(pictures, vae, {"mask": Tokenizer()}).write(tmp_path)


def built_in_encoders() -> dict[str, tuple[Encoder, Any]]:
    pixels, tokenizer = torch.rand(2, 3, PX, PX) * 2 - 1, build_tokenizer()
    return {
        "VAE": (LatentCodec(build_vae()), pixels),
        "text": (TextEncoder(build_text_model(tokenizer), tokenizer), ["a man", ""]),
        "parser": (FaceParser.from_pretrained(TINY_PARSER), pixels),
    }


@torch.no_grad()
@pytest.mark.parametrize("name", ["VAE", "text", "parser"])
def test_encoders_give_what_they_say(name):
    encoder, inputs = built_in_encoders()[name]
    given, features = encoder.gives((PX, PX)), encoder.features(inputs)
    assert {n: Feature(tuple(f.shape[1:]), f.dtype) for n, f in features.items()} == given
    assert encoder.flops((PX, PX)) > 0
    float32, half = (peak_bytes(encoder, 2, (PX, PX), t) for t in (torch.float32, torch.float16))
    assert float32 == 2 * half > 4 * num_parameters(encoder)
    identity = encoder.identity()
    next(encoder.module.parameters()).data += 1
    assert encoder.identity() != identity


@pytest.mark.parametrize("name", VAES)
def test_a_vae_on_meta_has_the_layers_around_its_latents_that_it_has(name):
    vae = meta_vae(name)
    names = {key.split(".")[0] for key in vae.state_dict()}
    # Of the KL family, those of four channels have 1x1 convolutions around the latents.
    around = VAES[name].channels == 4 or name == "qwen"
    assert names == {"encoder", "decoder"} | (
        {"quant_conv", "post_quant_conv"} if around else set()
    )


def test_a_folder_on_meta_is_counted_by_its_config(vae, tmp_path):
    real = LatentCodec.from_pretrained(str(vae))
    assert num_parameters(LatentCodec(meta_vae(str(vae)))) == num_parameters(real)
    assert meta_vae(str(tmp_path), 16).config.latent_channels == 16
    with pytest.raises(FileNotFoundError, match="no folder of a VAE"):
        meta_vae(str(tmp_path))
