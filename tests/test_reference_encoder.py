"""Vision towers for reference faces."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
)

from mmface.encoders import Encoder
from mmface.encoders.reference import (
    CLIP_STATISTICS,
    ReferenceEncoder,
    ReferencePixels,
    load_reference,
)

SMALL = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2}
SMALL |= {"num_attention_heads": 2, "image_size": 32, "patch_size": 16}


def clip_tower():
    torch.manual_seed(0)
    config = CLIPVisionConfig(**SMALL, projection_dim=6)
    return CLIPVisionModelWithProjection(config).eval()


def dino_tower():
    torch.manual_seed(0)
    return Dinov2Model(Dinov2Config(**SMALL | {"image_size": 28, "patch_size": 14})).eval()


@pytest.mark.parametrize("tower", [clip_tower, dino_tower])
def test_a_tower_gives_what_it_says(tower):
    encoder = ReferenceEncoder(tower())
    assert isinstance(encoder, Encoder)
    features = encoder.features(torch.rand(2, 3, 40, 40) * 2 - 1)
    assert {n: f.shape for n, f in encoder.gives().items()} == {
        name: tuple(values.shape[1:]) for name, values in features.items()
    }
    assert features["cls"].shape[1] == encoder.cls_dim
    assert features["patches"].shape[2] == encoder.patch_dim
    assert encoder.flops() > 0
    assert encoder.activation_bytes((0, 0), torch.float32) > 0


def test_clip_reads_what_its_own_preprocessing_gives():
    tower = clip_tower()
    encoder, pixels = ReferenceEncoder(tower), torch.rand(1, 3, 32, 32)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in CLIP_STATISTICS)
    expected = tower((pixels - mean) / std, output_hidden_states=True)
    cls, patches = encoder(pixels * 2 - 1)
    assert torch.allclose(cls, expected.image_embeds, atol=1e-6)
    assert torch.allclose(patches, expected.hidden_states[-2], atol=1e-6)


def test_a_tower_trained_along_comes_back_from_an_adapters_file():
    encoder = ReferenceEncoder(clip_tower(), "tiny-clip")
    weights = encoder.tower.state_dict()
    again = ReferenceEncoder.from_description(encoder.describe(), weights)
    pixels = torch.rand(1, 3, 32, 32)
    assert torch.equal(again(pixels).cls, encoder(pixels).cls)
    with pytest.raises(ValueError, match="cannot be built"):
        ReferenceEncoder.from_description(encoder.describe(), {"x": torch.zeros(1)})


def test_the_built_in_tower_is_found_and_another_one_refused():
    encoder = ReferenceEncoder.from_pretrained("tiny-clip")
    assert encoder.cls_dim == 96
    assert ReferenceEncoder.from_description(encoder.describe(), {}).source == "tiny-clip"
    other = encoder.describe() | {"identity": {}}
    with pytest.raises(ValueError, match="not the one that the adapter was trained with"):
        ReferenceEncoder.from_description(other, {})
    with pytest.raises(FileNotFoundError, match="reference encoder"):
        ReferenceEncoder.from_pretrained("nothing-of-this-name")


def test_pixels_are_kept_as_they_are():
    keeper, picture = ReferencePixels(32), torch.randint(0, 256, (2, 3, 32, 32))
    assert isinstance(keeper, Encoder)
    kept = keeper.features(picture / 127.5 - 1)["pixels"]
    assert torch.equal(kept, picture.to(torch.uint8))
    assert keeper.features(torch.zeros(1, 3, 64, 64))["pixels"].shape == (1, 3, 32, 32)


def test_a_reference_picture_is_its_middle_square(tmp_path):
    picture = np.zeros((100, 160, 3), np.uint8)
    picture[:, 30:130] = 200
    loaded = load_reference(picture, 32)
    assert loaded.shape == (32, 32, 3)
    assert (loaded == 200).all()
    path = tmp_path / "small.png"
    Image.new("RGB", (90, 40)).save(path)
    with pytest.raises(ValueError, match=r"small.png is 90 x 40 pixels"):
        load_reference(path, 32)
    with pytest.raises(FileNotFoundError):
        load_reference(tmp_path / "absent.png", 32)
