"""Encoders: the five VAE normalisations, posterior mean and samples, and CLIP's outputs."""

import pytest
import torch
from conftest import MAX_TOKENS, TEXT_DIM, build_text_model, build_tokenizer, build_vae
from diffusers import AutoencoderKLQwenImage

from mmface.encoders import VAES, LatentCodec, TextEncoder


def build_qwen() -> AutoencoderKLQwenImage:
    return AutoencoderKLQwenImage(base_dim=4, z_dim=16, num_res_blocks=1).eval()


@pytest.fixture(scope="module")
def codecs() -> dict[str, LatentCodec]:
    """Each VAE of the table, at a tiny size with random weights."""
    torch.manual_seed(0)
    codecs = {}
    for name, spec in VAES.items():
        is_qwen = spec.class_name == "AutoencoderKLQwenImage"
        quantised = {"use_quant_conv": name in ("sd2", "sdxl")}
        quantised["use_post_quant_conv"] = quantised["use_quant_conv"]
        vae = build_qwen() if is_qwen else build_vae(spec.channels, **quantised)
        codecs[name] = LatentCodec(spec.configure(vae))
    return codecs


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("name", VAES)
def test_shapes_and_ranges(codecs, pixels, name):
    codec = codecs[name]
    assert (codec.channels, codec.downscale_factor) == (VAES[name].channels, 8)
    with torch.no_grad():
        latents = codec.encode(pixels)
        decoded = codec.decode(latents)
    assert latents.shape == (2, VAES[name].channels, 4, 6)
    assert decoded.shape == pixels.shape
    assert decoded.abs().max() <= 1


@pytest.mark.parametrize("name", VAES)
def test_normalisation_is_the_published_formula(codecs, pixels, name):
    codec, spec = codecs[name], VAES[name]
    frames = pixels.unsqueeze(2) if name == "qwen" else pixels
    with torch.no_grad():
        raw = codec.vae.encode(frames).latent_dist.mean
        latents = codec.encode(pixels)
        decoded = codec.decode(latents)
        expected_decoded = codec.vae.decode(raw).sample.clamp(-1, 1)
    if name == "qwen":
        raw, expected_decoded = raw[:, :, 0], expected_decoded[:, :, 0]
        mean = torch.tensor(spec.latents_mean).reshape(1, -1, 1, 1)
        std = torch.tensor(spec.latents_std).reshape(1, -1, 1, 1)
        expected = (raw - mean) / std
    else:
        expected = (raw - (spec.shift_factor or 0)) * spec.scaling_factor
    torch.testing.assert_close(latents, expected)
    torch.testing.assert_close(decoded, expected_decoded, atol=1e-5, rtol=1e-4)


def test_released_flavour_has_no_shift(codecs):
    assert codecs["flux"].vae.config.shift_factor == 0.1159
    assert codecs["flux_released"].vae.config.shift_factor is None
    assert VAES["flux_released"].scaling_factor == VAES["flux"].scaling_factor == 0.3611


def test_mean_without_generator_and_sample_with(codecs, pixels):
    codec = codecs["flux"]
    with torch.no_grad():
        assert torch.equal(codec.encode(pixels), codec.encode(pixels))
        sample = codec.encode(pixels, torch.Generator().manual_seed(0))
        again = codec.encode(pixels, torch.Generator().manual_seed(0))
        assert torch.equal(sample, again)
        assert not torch.equal(sample, codec.encode(pixels))
        each = codec.encode(pixels, [torch.Generator().manual_seed(seed) for seed in (5, 6)])
        alone = codec.encode(pixels[1:], [torch.Generator().manual_seed(6)])
    torch.testing.assert_close(each[1:], alone)


@pytest.mark.parametrize("name", ["flux_released", "qwen"])
def test_saved_vae_keeps_its_normalisation(codecs, pixels, name, tmp_path):
    codecs[name].vae.save_pretrained(tmp_path)
    loaded = LatentCodec.from_pretrained(str(tmp_path))
    with torch.no_grad():
        torch.testing.assert_close(loaded.encode(pixels), codecs[name].encode(pixels))
    assert not any(parameter.requires_grad for parameter in loaded.vae.parameters())


def test_half_precision_vae_gives_float32_latents(pixels):
    codec = LatentCodec(build_vae().bfloat16())
    with torch.no_grad():
        latents = codec.encode(pixels)
        assert latents.dtype == torch.float32
        assert codec.decode(latents).dtype == torch.float32


def test_wrong_sizes_and_folders_are_named(codecs, tmp_path):
    with pytest.raises(ValueError, match=r"50x32.*multiples of 8"):
        codecs["sd2"].encode(torch.zeros(1, 3, 32, 50))
    build_text_model(build_tokenizer()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="flux_released"):
        LatentCodec.from_pretrained(str(tmp_path))


@pytest.fixture(scope="module")
def text() -> TextEncoder:
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    return TextEncoder(build_text_model(tokenizer), tokenizer)


@torch.no_grad()
def test_features_are_the_pooled_end_and_the_last_but_one_states(text):
    features = text(["a b", "some longer prompt that is cut", ""])
    assert features.pooled.shape == (3, TEXT_DIM)
    assert features.tokens.shape == (3, MAX_TOKENS, TEXT_DIM)

    tower = text.text_model
    ids = text.tokenizer("a b", padding="max_length", max_length=MAX_TOKENS, return_tensors="pt")
    ids = ids.input_ids
    states = tower.embeddings(ids)
    # Padding takes part, as in Stable Diffusion: the only mask is the causal one.
    causal = torch.full((MAX_TOKENS, MAX_TOKENS), -torch.inf).triu(1)[None, None]
    before_last = tower.encoder.layers[0](states, causal)
    torch.testing.assert_close(features.tokens[:1], before_last)
    last = tower.final_layer_norm(tower.encoder.layers[1](before_last, causal))
    end = (ids[0] == tower.config.eos_token_id).nonzero()[0, 0]
    torch.testing.assert_close(features.pooled[0], last[0, end])


@torch.no_grad()
def test_mask_is_used_where_the_config_asks(text):
    plain = text(["a"]).tokens
    text.text_model.config.use_attention_mask = True
    masked = text(["a"]).tokens
    del text.text_model.config.use_attention_mask
    torch.testing.assert_close(masked[0, :3], plain[0, :3])
    assert not torch.allclose(masked, plain)


def test_what_is_cut_is_said(text):
    assert text.truncated("Abc, De") == ""
    assert text.truncated("") == ""
    room = MAX_TOKENS - text.tokenizer.num_special_tokens_to_add()
    prompt = "x " * room + "Then  the Rest"
    assert text.truncated(prompt) == "Then  the Rest"
    with torch.no_grad():
        torch.testing.assert_close(text([prompt]).tokens, text(["x " * room]).tokens)


def test_limit_is_the_towers_if_the_tokenizer_has_none():
    tokenizer = build_tokenizer()
    tower = build_text_model(tokenizer)
    tokenizer.model_max_length = int(1e30)
    assert TextEncoder(tower, tokenizer).max_length == MAX_TOKENS


def test_from_a_saved_pipeline(tiny_pipeline, tiny_pipeline_folder):
    loaded = TextEncoder.from_pretrained(tiny_pipeline_folder)
    with torch.no_grad():
        torch.testing.assert_close(loaded(["a"]).pooled, tiny_pipeline.text(["a"]).pooled)
