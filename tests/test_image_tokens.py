"""Image tokenizers: codes are signs, and pictures of codes come back; a VQModel serves as well."""

import json
import math

import pytest
import torch
from diffusers import AutoencoderKL, VQModel

from mmface.core.sources import UnusableModelError
from mmface.data.keyed import keyed_generator
from mmface.data.pictures import RenderedPictures
from mmface.data.samples import AutoencoderSamples
from mmface.encoders import Encoder
from mmface.encoders.image_tokens import (
    ImageTokenizer,
    LookupFreeTokenizer,
    code_bits,
    quantise,
)
from mmface.training.unified import ImageTokenizing


def tiny_tokenizer(num_bits=5):
    torch.manual_seed(0)
    return LookupFreeTokenizer(num_bits, (8, 16), 1, patch_px=4, norm_num_groups=4).eval()


def tiny_vq():
    torch.manual_seed(0)
    blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
    }
    return VQModel(
        block_out_channels=(4, 4, 8),
        num_vq_embeddings=11,
        norm_num_groups=2,
        latent_channels=3,
        **blocks,
    ).eval()


@pytest.fixture(scope="module")
def pixels():
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_quantisation_is_by_sign_and_lets_gradients_through():
    values = torch.randn(2, 3, 4, 4, requires_grad=True)
    found = quantise(values)
    assert set(found.signs.detach().unique().tolist()) == {-1.0, 1.0}
    (found.signs * 3).sum().backward()
    torch.testing.assert_close(values.grad, torch.full_like(values, 3))


def test_entropies_are_those_of_the_softmax_over_all_codes():
    values = torch.randn(2, 3, 4, 4)
    found = quantise(values)
    codes = code_bits(torch.arange(8), 3)
    tokens = values.movedim(1, -1)[..., None, :]
    chances = (-(tokens - codes).square().sum(-1)).softmax(-1)
    entropy = -(chances * chances.log()).sum(-1)
    torch.testing.assert_close(found.token_entropy, entropy.mean((1, 2)))
    mean = chances.flatten(0, 2).mean(0)
    torch.testing.assert_close(found.codebook_entropy, -(mean * mean.log()).sum())
    assert found.codebook_entropy <= math.log(8) + 1e-5


@pytest.mark.parametrize("make", [tiny_tokenizer, tiny_vq])
def test_a_tokenizer_is_an_encoder_of_codes_and_loads_again(make, pixels, tmp_path):
    make().save_pretrained(tmp_path)
    tokenizer = ImageTokenizer.from_pretrained(tmp_path)
    assert isinstance(tokenizer, Encoder)
    side = 32 // tokenizer.downscale_factor
    codes = tokenizer.encode(pixels)
    assert codes.shape == (2, side, side) == (2, *tokenizer.gives((32, 32))["codes"].shape)
    assert codes.min() >= 0
    assert codes.max() < tokenizer.num_codes
    decoded = tokenizer.decode(codes)
    assert decoded.shape == pixels.shape
    assert torch.equal(decoded, tokenizer.decode(tokenizer.features(pixels)["codes"]))
    assert tokenizer.flops((32, 32)) > 0
    assert tokenizer.activation_bytes((32, 32), torch.float32) > 0
    assert tokenizer.identity() == ImageTokenizer(make()).identity()
    with pytest.raises(ValueError, match="30x32 pixels has no whole tokens"):
        tokenizer.encode(pixels[..., :30])


def test_codes_are_what_the_network_quantises(pixels):
    network = tiny_tokenizer()
    tokenizer = ImageTokenizer(network)
    decoded, quantised = network(pixels)
    codes = tokenizer.encode(pixels)
    assert torch.equal(code_bits(codes, 5).movedim(-1, 1), quantised.signs)
    torch.testing.assert_close(tokenizer.decode(codes), decoded.clamp(-1, 1))
    bits = tokenizer.bits()
    assert bits is not None
    assert torch.equal(bits[codes].movedim(-1, 1), quantised.signs)


def test_a_vq_model_decodes_as_diffusers_does(pixels):
    network = tiny_vq()
    tokenizer = ImageTokenizer(network)
    by_diffusers = network(pixels).sample.clamp(-1, 1)
    torch.testing.assert_close(tokenizer.decode(tokenizer.encode(pixels)), by_diffusers)
    assert tokenizer.bits() is None


def test_another_network_is_refused_in_one_line(tmp_path):
    AutoencoderKL(norm_num_groups=2, block_out_channels=(4,)).save_pretrained(tmp_path)
    with pytest.raises(UnusableModelError, match="not a LookupFreeTokenizer or VQModel"):
        ImageTokenizer.from_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"_class_name": "VQModel"}))
    with pytest.raises(UnusableModelError) as refused:
        ImageTokenizer.from_pretrained(tmp_path)
    assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match="num_bits"):
        LookupFreeTokenizer(num_bits=0)


@pytest.mark.slow
def test_its_training_learns_and_exports(tmp_path):
    RenderedPictures(num_faces=2, size_px=32, distribution="candid").write(tmp_path / "store")
    samples = AutoencoderSamples(tmp_path / "store", image_share=1.0)
    drawn = [samples.sample(item, keyed_generator(item)) for item in range(2)]
    batch = torch.utils.data.default_collate(drawn)
    task = ImageTokenizing(tiny_tokenizer(), export_dtype="float16")
    optimizer = torch.optim.Adam(task.trained.parameters(), lr=5e-3)
    losses = []
    for _ in range(30):
        result = task(batch)
        terms = [result[name] for name in result if name.startswith("loss/")]
        torch.testing.assert_close(torch.stack(terms).sum(0), result["loss"].detach())
        result["loss"].mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(result["l1"].mean().item())
    assert losses[-1] < 0.7 * losses[0]
    task.export(task.trained, tmp_path / "export")
    assert ImageTokenizer.from_pretrained(tmp_path / "export").num_codes == 32
