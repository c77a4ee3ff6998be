"""Metrics of single pictures: LPIPS, SSIM, agreement with masks and sketches, CLIP, the judge."""

import numpy as np
import pytest
import torch
import torchmetrics.functional.image.lpips as reference_lpips
from conftest import MAX_TOKENS
from test_metrics_backbones import tiny_clip
from tokenizers import Tokenizer, models, pre_tokenizers
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from mmface.conditions import LABELS, flip_labels
from mmface.data.rendered import render_face
from mmface.evaluation.agreement import edge_agreement
from mmface.evaluation.backbones import ClipBackbone
from mmface.evaluation.clip_score import ClipScore, clip_distance
from mmface.evaluation.condition_agreement import (
    EdgeAgreement,
    MaskAgreement,
    pooled_accuracy,
    pooled_mean_iou,
)
from mmface.evaluation.judge import (
    DigitExpectation,
    VisionLanguageJudge,
    YesProbability,
)
from mmface.evaluation.perceptual import PerceptualDistance, PerceptualNetwork
from mmface.evaluation.structural import MultiScaleStructuralSimilarity, StructuralSimilarity


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


# Masks and sketches


def as_batch(*maps):
    return torch.from_numpy(np.stack(maps))


def test_mask_agreement_in_four_averagings_by_hand():
    truth = np.array([[0, 0, 1], [1, 2, 2]], np.uint8)
    parsed = np.array([[0, 1, 1], [1, 2, 0]], np.uint8)
    metric = MaskAgreement()
    metric.update(as_batch(parsed, truth), as_batch(truth, truth))
    result = metric.compute()
    first = np.array([1 / 3, 2 / 3, 1 / 2])
    assert result.accuracy == pytest.approx(100 * 10 / 12)
    assert result.mean_iou == pytest.approx(100 * (3 / 5 + 4 / 5 + 3 / 4) / 3)
    assert result.mean_iou_of_pictures == pytest.approx(100 * (first.mean() + 1) / 2)
    assert result.mean_iou_absent_zero == pytest.approx(100 * (first.sum() + 3) / 19 / 2)
    np.testing.assert_allclose(metric.of_classes()[:3], [3 / 5, 4 / 5, 3 / 4])
    assert metric.of_classes()[3:].isnan().all()


def test_a_perfect_mask_reaches_all_but_the_nineteen_class_mean(faces):
    masks = as_batch(*(face.labels for face in faces))
    metric = MaskAgreement()
    metric.update(masks, masks)
    result = metric.compute()
    assert result[:3] == pytest.approx((100, 100, 100))
    present = np.mean([len(np.unique(face.labels)) for face in faces])
    assert result.mean_iou_absent_zero == pytest.approx(100 * present / len(LABELS))


def test_a_mirrored_mask_agrees_only_with_swapped_sides(faces):
    labels = faces[0].labels
    mirrored, renamed = MaskAgreement(), MaskAgreement()
    mirrored.update(as_batch(labels[:, ::-1].copy()), as_batch(flip_labels(labels)))
    renamed.update(as_batch(flip_labels(flip_labels(labels))), as_batch(labels))
    assert renamed.compute().mean_iou == pytest.approx(100)
    assert mirrored.compute().mean_iou < 90


def test_mask_agreement_agrees_with_torchmetrics(faces):
    truth = as_batch(*(face.labels for face in faces))
    parsed = truth.roll(3, dims=2)
    metric = MaskAgreement()
    metric.update(parsed, truth)
    result = metric.compute()
    arguments = {"num_classes": len(LABELS), "validate_args": False}
    accuracy = MulticlassAccuracy(average="micro", **arguments)(parsed.long(), truth.long())
    iou = MulticlassJaccardIndex(average="macro", **arguments)(parsed.long(), truth.long())
    assert result.accuracy == pytest.approx(100 * float(accuracy), rel=1e-5)
    assert result.mean_iou == pytest.approx(100 * float(iou), rel=1e-5)
    tables = metric.per_picture().flatten(1).numpy().astype(np.float64).sum(0, keepdims=True)
    assert pooled_accuracy(tables)[0] == pytest.approx(result.accuracy)
    assert pooled_mean_iou(tables)[0] == pytest.approx(result.mean_iou)


def test_edge_agreement_is_that_of_single_pictures(faces, face_pictures):
    metric = EdgeAgreement(tolerance_px=2)
    metric.update(face_pictures, as_batch(*(face.sketch for face in faces)))
    expected = [edge_agreement(face.image, face.sketch, 2) for face in faces]
    np.testing.assert_allclose(metric.per_picture(), expected)


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


def test_a_judge_that_splits_its_answers_is_refused():
    judge = tiny_judge(["Yes", "No"])
    YesProbability(judge)
    with pytest.raises(ValueError, match="no single token for the answer '0'"):
        DigitExpectation(judge)
