"""Backbones: preprocessing and features against the networks' own implementations."""

import numpy as np
import pytest
import torch
from conftest import MAX_TOKENS, build_tokenizer
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
)

from mmface.encoders.reference import CLIP_STATISTICS
from mmface.metrics.backbones import (
    ClipBackbone,
    Dinov2Backbone,
    InceptionBackbone,
    Skipped,
    or_skipped,
)
from mmface.metrics.inception import FidInception
from mmface.metrics.preprocessing import (
    CleanBicubic,
    PillowBicubic,
    TorchBilinear,
    check_pictures,
)


def fill(network):
    """Give every tensor values drawn from its own name."""
    for name, tensor in sorted(network.state_dict().items()):
        if not tensor.is_floating_point():
            continue
        generator = torch.Generator().manual_seed(sum(map(ord, name)))
        if name.endswith(("running_var", "bn.weight")):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        elif tensor.ndim == 4:
            spread = (2 / tensor[0].numel()) ** 0.5
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * spread)
        else:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)


@pytest.fixture(scope="module")
def inception():
    network = FidInception()
    with torch.no_grad():
        fill(network)
    return network


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, 64, 80), generator=generator, dtype=torch.uint8)


@pytest.mark.slow
def test_inception_gives_the_features_of_pytorch_fid(inception, images):
    features = InceptionBackbone(inception)(images)
    # pytorch-fid 0.3.0 with the same weights.
    expected = [[4.0452, 24.3721, 0.0569, 1.3882], [4.1558, 24.8488, 0.0520, 1.4115]]
    np.testing.assert_allclose(features[:, :4], expected, atol=2e-4)
    assert float(features.double().mean()) == pytest.approx(3.3418, abs=1e-4)
    assert float(features.double().square().mean()) == pytest.approx(32.2411, abs=2e-3)
    assert sum(p.numel() for p in inception.parameters()) == 21_785_568


@pytest.mark.slow
def test_inception_is_read_from_its_file_and_other_networks_are_refused(inception, tmp_path):
    path = tmp_path / "pt_inception.pth"
    weights = dict(inception.state_dict())
    torch.save(weights | {"fc.weight": torch.zeros(1008, 2048)}, path)
    loaded = InceptionBackbone.from_file(path, CleanBicubic())
    assert loaded.weights_sha256 == InceptionBackbone(inception).weights_sha256
    assert loaded.protocol.startswith("inception-2015-12-05/clean-bicubic-clipped-299/sha256:")
    torch.save(weights | {"fc.weight": torch.zeros(1000, 2048)}, path)
    with pytest.raises(ValueError, match="1000 classes"):
        InceptionBackbone.from_file(path)
    weights.pop("Mixed_7c.branch1x1.conv.weight")
    torch.save(weights | {"fc.weight": torch.zeros(1008, 2048)}, path)
    with pytest.raises(ValueError, match="1 tensors are missing"):
        InceptionBackbone.from_file(path)


def test_what_is_not_there_is_skipped_with_a_remedy(tmp_path):
    remedy = "download it"
    for load in (
        lambda: InceptionBackbone.from_file(tmp_path / "none.pth"),
        lambda: Dinov2Backbone.from_pretrained(tmp_path / "none"),
    ):
        skipped = or_skipped(load, remedy)
        assert isinstance(skipped, Skipped)
        assert str(skipped).startswith("skipped: ")
        assert str(skipped).endswith(remedy)
    assert or_skipped(lambda: 3, remedy) == 3


def test_pictures_that_are_not_uint8_are_refused():
    for wrong in (torch.rand(1, 3, 8, 8), torch.zeros(1, 8, 8, 3, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="uint8"):
            check_pictures(wrong)


def test_resizing_filters_are_what_their_names_say(images):
    clean = CleanBicubic(40)(images)
    red = Image.fromarray(images[1, 0].numpy().astype(np.float32))
    expected = (np.asarray(red.resize((40, 40), Image.Resampling.BICUBIC)) - 128) / 128
    np.testing.assert_allclose(clean[1, 0], expected, atol=1e-6)
    # Without antialiasing a reduction picks up what lies between its samples; with it, it does not.
    stripes = torch.zeros(1, 3, 120, 120, dtype=torch.uint8)
    stripes[..., ::2] = 255
    assert float(TorchBilinear(40)(stripes).std()) > 0.9
    assert float(CleanBicubic(40)(stripes).std()) < 0.1


def test_clip_preprocessing_is_that_of_transformers(images):
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}
    )
    pillow = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    expected = processor(images=pillow, return_tensors="pt").pixel_values
    ours = PillowBicubic(48, *CLIP_STATISTICS)(images)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


def tiny_clip():
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    shared = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    text = {
        **shared,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": MAX_TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {**shared, "image_size": 32, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval(), tokenizer


def test_clip_embeddings_are_those_of_the_whole_model(images, tmp_path):
    model, tokenizer = tiny_clip()
    captions = ["a face", "a long caption of a face with many words in it"]
    backbone = ClipBackbone(model, tokenizer, "untrained:clip")
    tokens = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
    output = model(pixel_values=backbone.preprocessing(images), **tokens)
    torch.testing.assert_close(backbone(images), output.image_embeds)
    torch.testing.assert_close(backbone.embed_captions(captions), output.text_embeds)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = ClipBackbone.from_pretrained(tmp_path)
    assert loaded.weights_sha256 == backbone.weights_sha256
    torch.testing.assert_close(loaded(images), backbone(images))


def test_dinov2_gives_the_class_token(images, tmp_path):
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    network = Dinov2Model(config).eval()
    backbone = Dinov2Backbone(network, "untrained:dinov2", size_px=28)
    pixels = backbone.preprocessing(images)
    expected = network(pixel_values=pixels).last_hidden_state[:, 0]
    torch.testing.assert_close(backbone(images), expected)
    assert backbone.num_features == 16
    network.save_pretrained(tmp_path / "dinov2-tiny")
    loaded = Dinov2Backbone.from_pretrained(tmp_path / "dinov2-tiny")
    assert loaded.protocol.startswith("dinov2-tiny/pillow-bicubic-224/sha256:")
    assert loaded.weights_sha256 == backbone.weights_sha256
