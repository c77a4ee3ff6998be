"""The neighbours' training: losses fall on a handful of faces, and the product loads again."""

import pytest
import torch
from diffusers import AutoencoderKL
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from mmface.data.keyed import keyed_generator
from mmface.data.pictures import RenderedPictures
from mmface.data.samples import AutoencoderSamples, CaptionedPictures, ParsingSamples
from mmface.encoders import LatentCodec
from mmface.encoders.face_parser import FaceParser
from mmface.objectives.pictures import FeatureError
from mmface.training.adversarial import AdversarialAutoencoding
from mmface.training.components import (
    Autoencoding,
    Contrasting,
    Parsing,
    tokenizer_from_store,
    train_tokenizer,
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    RenderedPictures(num_faces=6, size_px=32).write(folder)
    return folder


def losses_of(task, samples, steps=30, lr=3e-3):
    """Train on one fixed batch and give the losses."""
    drawn = [samples.sample(i, keyed_generator(0, i)) for i in range(6)]
    batch = torch.utils.data.default_collate(drawn)
    optimizer = torch.optim.Adam(task.trained.parameters(), lr=lr)
    losses = []
    for _ in range(steps):
        result = task(batch)
        assert result["loss"].shape == (6,)
        terms = [term for name, term in result.items() if name.startswith("loss/")]
        assert len(terms) > 1
        torch.testing.assert_close(torch.stack(terms).sum(0), result["loss"].detach())
        result["loss"].mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(result["loss"].mean().item())
    return losses


@pytest.mark.slow
def test_autoencoder(pictures, tmp_path):
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=4,
        norm_num_groups=2,
    )
    task = Autoencoding(vae, pictures, export_dtype="float16")
    losses = losses_of(task, AutoencoderSamples(pictures))
    assert losses[-1] < 0.7 * losses[0]
    task.export(vae, tmp_path)
    assert AutoencoderKL.load_config(tmp_path)["sample_size"] == 32  # the pictures' side
    codec = LatentCodec.from_pretrained(str(tmp_path))
    pixels = torch.stack(
        [
            AutoencoderSamples(pictures, image_share=1.0).sample(i, keyed_generator(i))["pixels"]
            for i in range(6)
        ]
    )
    with torch.no_grad():
        latents = codec.encode(pixels)
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), atol=0.3, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), atol=0.3, rtol=0)


@pytest.mark.slow
def test_autoencoder_with_features_and_a_discriminator(pictures, tmp_path):
    torch.manual_seed(0)
    vae = AutoencoderKL(norm_num_groups=2, block_out_channels=(8,), latent_channels=4)
    sizes = {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "decoder_hidden_size": 8}
    terms = {"features": FeatureError(Parsing(sizes).trained, weight=0.5)}
    task = AdversarialAutoencoding(vae, pictures, terms=terms)
    before = [weight.clone() for weight in terms["features"].parameters()]
    losses_of(task, AutoencoderSamples(pictures), steps=3)
    for first, second in zip(before, terms["features"].parameters(), strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert task.product is vae
    task.export(task.product, tmp_path)
    assert LatentCodec.from_pretrained(str(tmp_path)).encode(torch.zeros(1, 3, 32, 32)).ndim == 4
    pixels = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(terms["features"](pixels, pixels), torch.zeros(2))


@pytest.mark.slow
def test_the_verdict_leaves_the_discriminator_alone(pictures):
    vae = AutoencoderKL(norm_num_groups=2, block_out_channels=(8,), latent_channels=4)
    task = AdversarialAutoencoding(vae, pictures)
    pixels = torch.rand(2, 3, 32, 32)
    decoded = pixels.clone().requires_grad_()
    found = task.losses({"pixels": pixels}, decoded, {"pixels": torch.zeros(2)})
    (found["loss"].sum() - found["loss/discriminator"].sum()).backward()
    assert decoded.grad is not None
    assert decoded.grad.abs().sum() > 0
    judge = task.trained["discriminator"]
    gradients = [weight.grad.clone() for weight in judge.parameters()]
    judge.zero_grad()
    (torch.relu(1 - judge(pixels)) + torch.relu(1 + judge(pixels))).mean((1, 2, 3)).sum().backward()
    for found_gradient, weight in zip(gradients, judge.parameters(), strict=True):
        torch.testing.assert_close(found_gradient, weight.grad)


@pytest.mark.slow
def test_parser(pictures, tmp_path):
    torch.manual_seed(0)
    sizes = {
        "depths": [1, 1, 1, 1],
        "hidden_sizes": [8, 16, 16, 16],
        "strides": [2, 2, 2, 2],
        "num_attention_heads": [1, 1, 1, 1],
        "decoder_hidden_size": 16,
    }
    task = Parsing(sizes, export_dtype="float16")
    losses = losses_of(task, ParsingSamples(pictures))
    assert losses[-1] < 0.7 * losses[0]
    task.export(task.trained, tmp_path)
    assert FaceParser.from_pretrained(tmp_path).of_pixels(torch.zeros(1, 3, 32, 32)).shape == (
        1,
        32,
        32,
    )


def test_contrastive_pair(pictures, tmp_path):
    torch.manual_seed(0)
    tower = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "projection_dim": 8,
    }
    task = Contrasting(
        tokenizer_from_store(pictures, 600, 60),
        tower,
        {**tower, "image_size": 32, "patch_size": 8},
        projection_dim=8,
    )
    losses = losses_of(task, CaptionedPictures(pictures))
    assert losses[-1] < 0.7 * losses[0]
    task.export(task.trained, tmp_path)
    pair = CLIPModel.from_pretrained(tmp_path / "clip")
    text = CLIPTextModel.from_pretrained(tmp_path / "text_encoder")
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")
    tokens = tokenizer(["a man"], padding="max_length", return_tensors="pt").input_ids
    assert tokens.shape == (1, 60)
    torch.testing.assert_close(
        text(tokens).pooler_output, pair.text_model(tokens).pooler_output, rtol=0, atol=0
    )


def test_no_prompt_has_unknown_tokens():
    tokenizer = train_tokenizer(["a woman with red hair", "a man with red hair"] * 5, 600, 40)
    plain = tokenizer("a woman with red hair").input_ids
    assert len(plain) == 5 + 2
    strange = tokenizer("Größe, naïve zebra 🙂 42 %").input_ids
    assert tokenizer.eos_token_id not in strange[1:-1]
    assert tokenizer.decode(strange, skip_special_tokens=True).startswith("größe")


def test_a_vocabulary_without_room_for_bytes_is_refused():
    with pytest.raises(ValueError, match="basic tokens"):
        train_tokenizer(["a"], 100, 20)
