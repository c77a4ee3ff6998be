"""Metrics of single pictures: LPIPS, SSIM, agreement with masks and sketches, CLIP, the judge."""

import importlib.resources
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import MAX_TOKENS
from test_metrics_backbones import tiny_clip
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

import mmface
from mmface.metrics.backbones import ClipBackbone
from mmface.metrics.caption_agreement import (
    VisionLanguageJudge,
    clip_distance,
    clip_scores,
    digit_expectation,
    yes_probability,
)
from mmface.metrics.picture_similarity import (
    PerceptualNetwork,
    multiscale_structural_similarity,
    structural_similarity,
)
from mmface.rendered import render_face

ASSETS = Path(mmface.__file__).parent / "assets"


def noise_pictures(count, size=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module")
def faces():
    return [render_face(1_000_000 + index, 64) for index in range(4)]


@pytest.fixture(scope="module")
def face_pictures(faces):
    return torch.stack([torch.from_numpy(face.image).permute(2, 0, 1) for face in faces])


# LPIPS


TRUNKS = {"alex": "alexnet", "vgg": "vgg16"}
TAPS = {"alex": (1, 4, 7, 9, 11), "vgg": (3, 8, 15, 22, 29)}
"""The layers that LPIPS reads, by torchvision's numbers."""


@pytest.fixture(scope="module", params=["alex", "vgg"])
def trunk(request, tmp_path_factory):
    """A random classifier of torchvision, and the file that holds it."""
    from torchvision import models

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = getattr(models, TRUNKS[request.param])().eval()
    path = tmp_path_factory.mktemp("trunk") / f"{request.param}.pth"
    torch.save(network.state_dict(), path)
    return request.param, network.features, path


def formula(name, features, heads, one, other):
    """LPIPS as arXiv 1801.03924 writes it, eq. 1, on torchvision's own layers."""
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1)
    x, y = ((pixels / 127.5 - 1 - shift) / scale for pixels in (one, other))
    distance = torch.zeros(len(one))
    for index, layer in enumerate(features):
        x, y = layer(x), layer(y)
        if index in TAPS[name]:
            unit_x, unit_y = (z / (z.square().sum(1, keepdim=True).sqrt() + 1e-10) for z in (x, y))
            weights = heads[f"lin{TAPS[name].index(index)}.model.1.weight"]
            distance += torch.conv2d((unit_x - unit_y).square(), weights).mean((1, 2, 3))
        if index == TAPS[name][-1]:
            return distance
    raise AssertionError("a layer is missing")


@pytest.mark.slow
def test_lpips_is_its_formula_on_torchvisions_file(trunk, face_pictures):
    name, features, path = trunk
    network = PerceptualNetwork.from_weights(name, path)
    one, other = face_pictures[:2], noise_pictures(2)
    folder = importlib.resources.files("torchmetrics.functional.image") / "lpips_models"
    heads = torch.load(str(folder / f"{name}.pth"), map_location="cpu", weights_only=True)
    with torch.no_grad():
        expected = formula(name, features, heads, one, other)
    assert expected.min() > 0.01
    torch.testing.assert_close(network(one, other), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(network(one, other), network(other, one))
    assert network(one, one).tolist() == [0, 0]


@pytest.mark.slow
def test_lpips_takes_no_file_but_that_of_its_trunk(trunk, tmp_path):
    name, _, path = trunk
    loaded = PerceptualNetwork.from_weights(name, path)
    assert loaded.protocol.startswith(f"lpips-0.1-{name}/sha256:")
    assert PerceptualNetwork(name).protocol.startswith(f"untrained:lpips-0.1-{name}/")
    assert loaded.protocol == PerceptualNetwork.from_weights(name, path).protocol
    other = {"alex": "vgg", "vgg": "alex"}[name]
    with pytest.raises(ValueError, match=f"does not hold the {other} trunk"):
        PerceptualNetwork.from_weights(other, path)
    with pytest.raises(ValueError, match="no trunk 'squeeze'"):
        PerceptualNetwork("squeeze")
    torch.save({"features.0.weight": Path("a")}, tmp_path / "code.pth")
    with pytest.raises(ValueError, match="Weights only load failed"):
        PerceptualNetwork.from_weights(name, tmp_path / "code.pth")


# SSIM


def in_turn(measure, images, others):
    return torch.cat([measure(a[None], b[None]) for a, b in zip(images, others, strict=True)])


@pytest.mark.slow
def test_ssim_of_a_picture_is_one_and_does_not_depend_on_its_batch(face_pictures):
    same = structural_similarity(face_pictures, face_pictures)
    assert same.tolist() == pytest.approx([1] * 4, abs=1e-6)
    dark = (face_pictures // 3).to(torch.uint8)
    together = structural_similarity(face_pictures, dark)
    torch.testing.assert_close(together, in_turn(structural_similarity, face_pictures, dark))
    assert together.dtype == torch.float64
    assert together.std() > 1e-3


def test_ssim_against_its_formula_on_flat_pictures():
    one = torch.full((1, 3, 32, 32), 51, dtype=torch.uint8)
    other = torch.full((1, 3, 32, 32), 102, dtype=torch.uint8)
    expected = (2 * 0.2 * 0.4 + 0.01**2) / (0.2**2 + 0.4**2 + 0.01**2)
    assert float(structural_similarity(one, other)) == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
def test_multiscale_ssim_does_not_depend_on_its_batch():
    pictures = torch.stack([noise_pictures(1, 176, seed)[0] // (seed + 1) for seed in range(3)])
    others = (pictures // 2 + 40).to(torch.uint8)
    together = multiscale_structural_similarity(pictures, others)
    alone = in_turn(multiscale_structural_similarity, pictures, others)
    torch.testing.assert_close(together, alone)
    assert together.std() > 1e-3


@pytest.mark.slow
def test_multiscale_ssim_needs_161_pixels():
    small = noise_pictures(1, size=160)
    with pytest.raises(ValueError, match=r"sides of 161 pixels.*160x160"):
        multiscale_structural_similarity(small, small)
    picture = noise_pictures(1, size=161)
    same = multiscale_structural_similarity(picture, picture)
    assert float(same) == pytest.approx(1, abs=1e-6)
    grey = torch.full((1, 3, 161, 161), 128, dtype=torch.uint8)
    assert torch.isfinite(multiscale_structural_similarity(grey, grey)).all()


# CLIP


def test_clip_score_is_the_cosine_unclamped_and_its_distance_the_rest():
    model, tokenizer = tiny_clip()
    backbone = ClipBackbone(model, tokenizer, "untrained:clip")
    images, captions = noise_pictures(6, size=32), [f"face {i}" for i in range(6)]
    tokens = tokenizer(captions, padding="max_length", return_tensors="pt")
    output = model(pixel_values=backbone.preprocessing(images), **tokens)
    cosines = torch.cosine_similarity(output.image_embeds, output.text_embeds).double()
    batches = (slice(4), slice(4, 6))
    scores = torch.cat([clip_scores(backbone, images[b], captions[b]) for b in batches])
    torch.testing.assert_close(scores, 100 * cosines.detach(), atol=1e-4, rtol=1e-5)
    assert clip_distance(float(scores.mean())) == pytest.approx(float(1 - cosines.mean()))
    with torch.no_grad():
        model.text_projection.weight.neg_()
    torch.testing.assert_close(clip_scores(backbone, images, captions), -scores)
    with pytest.raises(ValueError, match="1 captions"):
        clip_scores(backbone, images, captions[:1])


def test_a_long_caption_keeps_its_end_of_text():
    model, tokenizer = tiny_clip()
    backbone = ClipBackbone(model, tokenizer, "untrained:clip")
    fits = " ".join("a" * (MAX_TOKENS - 2))
    assert [backbone.is_cut(caption) for caption in (fits, fits + " b c d")] == [False, True]
    # What is cut away does not count, and what is kept ends as a caption that just fits.
    embedded = backbone.embed_captions([fits, fits + " b c d", "b" + fits[1:]])
    torch.testing.assert_close(embedded[0], embedded[1])
    assert not torch.allclose(embedded[0], embedded[2])


def test_a_caption_beyond_the_trained_towers_length_is_read_up_to_its_end_of_text():
    backbone = ClipBackbone.from_pretrained(ASSETS / "tiny-clip")
    tokenizer, limit = backbone.tokenizer, backbone.max_length
    caption = " ".join(f"a man with hair number {index}" for index in range(40))
    tokens = tokenizer(caption, truncation=False, verbose=False).input_ids
    assert len(tokens) > limit
    kept = torch.tensor([[*tokens[: limit - 1], tokenizer.eos_token_id]])
    with torch.no_grad():
        states = backbone.network.text_model(input_ids=kept).pooler_output
        expected = torch.nn.functional.normalize(backbone.network.text_projection(states))
    torch.testing.assert_close(backbone.embed_captions([caption]), expected)


# The judge


class FixedJudge:
    """Answers with given logits."""

    def __init__(self, logits):
        self.logits = torch.as_tensor(logits, dtype=torch.float32)
        self.questions = []

    def next_token_logits(self, image, question):
        self.questions.append(question)
        return self.logits

    def answer_token(self, answer):
        return int(answer) if answer.isdigit() else {"Yes": 10, "No": 11}[answer]


def test_ratings_are_expectations_over_the_answers():
    uniform = FixedJudge(np.zeros(12))
    certain = FixedJudge([0] * 9 + [100, np.log(3), 0])
    (image,) = noise_pictures(1, size=16)
    for judge, digit, yes in ((uniform, 0.5, 0.5), (certain, 1.0, 0.75)):
        for caption in ("a man", "a {strange} caption"):
            assert digit_expectation(judge, image, caption) == pytest.approx(digit)
            assert yes_probability(judge, image, caption) == pytest.approx(yes)
    assert any('"a {strange} caption"' in question for question in uniform.questions)


def tiny_judge(words):
    vocabulary = {"<unk>": 0, "<pad>": 1, "<image>": 2}
    vocabulary |= {word: index + 3 for index, word in enumerate(words)}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        unk_token="<unk>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
    )
    template = (
        "{% for part in messages[0]['content'] %}"
        "{{ '<image> ' if part['type'] == 'image' else part['text'] }}"
        "{% endfor %}"
    )
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )
    shared = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(image_size=16, patch_size=8, **shared),
        text_config=LlamaConfig(vocab_size=len(vocabulary), **shared),
        image_token_index=2,
    )
    model = LlavaForConditionalGeneration(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return VisionLanguageJudge(model, processor, "untrained:llava")


def rated(rate, judge, images, captions):
    return [rate(judge, image, text) for image, text in zip(images, captions, strict=True)]


def test_a_vision_language_model_judges_without_sampling(face_pictures):
    judge = tiny_judge(["Yes", "No", "a", "man", *"0123456789"])
    captions = ["a man", "a", "man", "man a"]
    ratings = rated(yes_probability, judge, face_pictures, captions)
    assert all(0 < rating < 1 for rating in ratings)
    assert len(set(ratings)) > 1
    assert rated(yes_probability, judge, face_pictures, captions) == ratings
    darker = (face_pictures // 4).to(torch.uint8)
    assert rated(yes_probability, judge, darker, captions) != pytest.approx(ratings)


def test_the_side_of_the_padding_does_not_move_a_rating(face_pictures):
    judge = tiny_judge(["Yes", "No", "a", "man", *"0123456789"])
    captions = ["a man", "a", "man man man man man", "man a"]
    ratings = {}
    for side in ("left", "right"):
        judge.processor.tokenizer.padding_side = side
        ratings[side] = rated(digit_expectation, judge, face_pictures, captions)
    assert ratings["left"] == ratings["right"]
    assert len(set(ratings["left"])) > 1


def test_a_judge_that_splits_its_answers_is_refused():
    judge = tiny_judge(["Yes", "No"])
    (image,) = noise_pictures(1, size=16)
    yes_probability(judge, image, "a man")
    with pytest.raises(ValueError, match="no single token for the answer '0'"):
        digit_expectation(judge, image, "a man")
