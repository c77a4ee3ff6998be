"""Metrics of single pictures: LPIPS, SSIM, agreement with masks and sketches, CLIP, the judge."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torchmetrics.functional.image.lpips as reference_lpips
from conftest import MAX_TOKENS
from test_metrics_backbones import tiny_clip
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

import mmface
from mmface.data.rendered import render_face
from mmface.evaluation.backbones import ClipBackbone
from mmface.evaluation.clip_score import ClipScore, clip_distance
from mmface.evaluation.judge import (
    DigitExpectation,
    VisionLanguageJudge,
    YesProbability,
)
from mmface.evaluation.perceptual import PerceptualDistance, PerceptualNetwork
from mmface.evaluation.structural import MultiScaleStructuralSimilarity, StructuralSimilarity

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


@pytest.mark.parametrize("trunk", ["alex", "vgg"])
def test_lpips_agrees_with_torchmetrics_on_the_same_random_trunk(trunk, face_pictures, monkeypatch):
    torch.manual_seed(0)
    network = PerceptualNetwork(trunk)
    monkeypatch.setattr(
        reference_lpips, "_get_tv_model_features", lambda *args, **kwargs: network.features
    )
    reference = reference_lpips._LPIPS(net=trunk, pnet_rand=True).eval()
    one, other = face_pictures[:2], noise_pictures(2)
    expected = reference(one / 127.5 - 1, other / 127.5 - 1).flatten().double()
    metric = PerceptualDistance(network)
    metric.update(one, other)
    torch.testing.assert_close(metric.per_picture(), expected, rtol=1e-3, atol=1e-7)
    swapped = PerceptualDistance(network)
    swapped.update(other, one)
    torch.testing.assert_close(metric.per_picture(), swapped.per_picture())
    same = PerceptualDistance(network)
    same.update(one, one)
    assert float(same.compute()) == 0


@pytest.mark.parametrize("trunk", ["alex", "vgg"])
def test_lpips_agrees_with_its_own_package_where_that_can_be_imported(trunk, face_pictures):
    package = pytest.importorskip("lpips", exc_type=ImportError)
    torch.manual_seed(0)
    network = PerceptualNetwork(trunk)
    reference = package.LPIPS(net=trunk, pnet_rand=True, verbose=False).eval()
    own = {f"{index}": layer for index, layer in enumerate(network.features)}
    for slice_ in reference.net.children():
        for index, layer in slice_.named_children():
            if layer.state_dict():
                layer.load_state_dict(own[index].state_dict())
    ours, theirs = PerceptualDistance(network), PerceptualDistance(reference)
    for metric in (ours, theirs):
        metric.update(face_pictures[:2], noise_pictures(2))
    torch.testing.assert_close(ours.per_picture(), theirs.per_picture(), rtol=1e-3, atol=1e-7)


def test_lpips_trunk_is_read_from_torchvisions_file(tmp_path):
    network = PerceptualNetwork("alex")
    assert network.protocol.startswith("untrained:lpips-0.1-alex/")
    weights = {f"features.{k}": v for k, v in network.features.state_dict().items()}
    torch.save(weights | {"classifier.1.weight": torch.zeros(2, 2)}, tmp_path / "alex.pth")
    loaded = PerceptualNetwork.from_weights("alex", tmp_path / "alex.pth")
    assert loaded.protocol == network.protocol.removeprefix("untrained:")
    with pytest.raises(ValueError, match="does not hold the vgg trunk"):
        PerceptualNetwork.from_weights("vgg", tmp_path / "alex.pth")
    with pytest.raises(ValueError, match="no trunk 'squeeze'"):
        PerceptualNetwork("squeeze")


# SSIM


def test_ssim_of_a_picture_is_one_and_does_not_depend_on_its_batch(face_pictures):
    metric = StructuralSimilarity()
    dark = (face_pictures // 3).to(torch.uint8)
    metric.update(face_pictures, face_pictures)
    assert float(metric.compute()) == pytest.approx(1, abs=1e-6)
    together, alone = StructuralSimilarity(), StructuralSimilarity()
    together.update(face_pictures, dark)
    for one, other in zip(face_pictures, dark, strict=True):
        alone.update(one[None], other[None])
    torch.testing.assert_close(together.per_picture(), alone.per_picture())
    assert together.per_picture().std() > 1e-3


def test_ssim_against_its_formula_on_flat_pictures():
    one = torch.full((1, 3, 32, 32), 51, dtype=torch.uint8)
    other = torch.full((1, 3, 32, 32), 102, dtype=torch.uint8)
    metric = StructuralSimilarity()
    metric.update(one, other)
    expected = (2 * 0.2 * 0.4 + 0.01**2) / (0.2**2 + 0.4**2 + 0.01**2)
    assert float(metric.compute()) == pytest.approx(expected, abs=1e-4)


def test_multiscale_ssim_does_not_depend_on_its_batch():
    pictures = torch.stack([noise_pictures(1, 176, seed)[0] // (seed + 1) for seed in range(3)])
    others = (pictures // 2 + 40).to(torch.uint8)
    together, alone = MultiScaleStructuralSimilarity(), MultiScaleStructuralSimilarity()
    together.update(pictures, others)
    for one, other in zip(pictures, others, strict=True):
        alone.update(one[None], other[None])
    torch.testing.assert_close(together.per_picture(), alone.per_picture())
    assert together.per_picture().std() > 1e-3


def test_multiscale_ssim_needs_176_pixels():
    metric = MultiScaleStructuralSimilarity()
    small = noise_pictures(1, size=175)
    with pytest.raises(ValueError, match=r"sides of 176 pixels.*175x175"):
        metric.update(small, small)
    picture = noise_pictures(1, size=176)
    metric.update(picture, picture)
    assert float(metric.compute()) == pytest.approx(1, abs=1e-6)
    grey = torch.full((1, 3, 176, 176), 128, dtype=torch.uint8)
    metric.update(grey, grey)
    assert torch.isfinite(metric.per_picture()).all()


# CLIP


def test_clip_score_is_the_cosine_unclamped_and_its_distance_the_rest():
    model, tokenizer = tiny_clip()
    backbone = ClipBackbone(model, tokenizer, "untrained:clip")
    images, captions = noise_pictures(6, size=32), [f"face {i}" for i in range(6)]
    tokens = tokenizer(captions, padding="max_length", return_tensors="pt")
    output = model(pixel_values=backbone.preprocessing(images), **tokens)
    cosines = torch.cosine_similarity(output.image_embeds, output.text_embeds).double()
    metric = ClipScore(backbone)
    metric.update(images[:4], captions[:4])
    metric.update(images[4:], captions[4:])
    torch.testing.assert_close(metric.per_picture(), 100 * cosines.detach(), atol=1e-4, rtol=1e-5)
    assert clip_distance(float(metric.compute())) == pytest.approx(float(1 - cosines.mean()))
    opposite = ClipScore(backbone)
    with torch.no_grad():
        model.text_projection.weight.neg_()
    opposite.update(images, captions)
    torch.testing.assert_close(opposite.per_picture(), -metric.per_picture())
    with pytest.raises(ValueError, match="1 captions"):
        metric.update(images, captions[:1])


def test_a_long_caption_keeps_its_end_of_text():
    model, tokenizer = tiny_clip()
    backbone = ClipBackbone(model, tokenizer, "untrained:clip")
    fits = " ".join("a" * (MAX_TOKENS - 2))
    metric = ClipScore(backbone)
    metric.update(noise_pictures(2, size=32), [fits, fits + " b c d"])
    assert int(metric.num_cut) == 1
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
    images, captions = noise_pictures(2, size=16), ["a man", "a {strange} caption"]
    for judge, digit, yes in ((uniform, 0.5, 0.5), (certain, 1.0, 0.75)):
        for metric, expected in ((DigitExpectation(judge), digit), (YesProbability(judge), yes)):
            metric.update(images, captions)
            assert metric.per_picture().tolist() == pytest.approx([expected] * 2)
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
        CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
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


def test_a_vision_language_model_judges_without_sampling(face_pictures):
    judge = tiny_judge(["Yes", "No", "a", "man", *"0123456789"])
    metric = YesProbability(judge)
    captions = ["a man", "a", "man", "man a"]
    metric.update(face_pictures, captions)
    ratings = metric.per_picture()
    assert ((ratings > 0) & (ratings < 1)).all()
    assert ratings.unique().numel() > 1
    alone = YesProbability(judge)
    for image, caption in zip(face_pictures, captions, strict=True):
        alone.update(image[None], [caption])
    torch.testing.assert_close(alone.per_picture(), ratings)
    darker = YesProbability(judge)
    darker.update((face_pictures // 4).to(torch.uint8), captions)
    assert not torch.allclose(darker.per_picture(), ratings)


def test_the_side_of_the_padding_does_not_move_a_rating(face_pictures):
    judge = tiny_judge(["Yes", "No", "a", "man", *"0123456789"])
    captions = ["a man", "a", "man man man man man", "man a"]
    ratings = {}
    for side in ("left", "right"):
        judge.processor.tokenizer.padding_side = side
        metric = DigitExpectation(judge)
        metric.update(face_pictures, captions)
        ratings[side] = metric.per_picture()
    assert torch.equal(ratings["left"], ratings["right"])
    assert ratings["left"].unique().numel() > 1


def test_a_judge_that_splits_its_answers_is_refused():
    judge = tiny_judge(["Yes", "No"])
    YesProbability(judge)
    with pytest.raises(ValueError, match="no single token for the answer '0'"):
        DigitExpectation(judge)
