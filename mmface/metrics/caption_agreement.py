"""Whether pictures show their captions: the CLIP score, and a vision-language model as a judge.

The CLIP score is 100 * cos of the two embeddings, not clamped (Hessel et al., arXiv 2104.08718,
without their factor of 2.5); the paper's distance is 1 - score / 100.

The paper's LLM score (LLMScore, arXiv 2305.11116, with GPT-4) uses closed models that have changed
since. Two values from a local model's logits replace it: the probability of "Yes" (VQAScore,
arXiv 2404.01291), and the expected digit of a rating 0..9. Pictures are judged one at a time, so
that padding cannot change an answer.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, UInt8
from PIL import Image as PillowImage
from torch import Tensor

from mmface.core.sources import opened
from mmface.metrics.backbones import CLIP_SCORE_ID, BackboneSource, ClipBackbone
from mmface.metrics.metric import Column, PictureOrder, SampleMetric, Skipped, Values, register
from mmface.metrics.preprocessing import check_pictures
from mmface.metrics.statistics import Interval, bootstrap_mean

Images = UInt8[Tensor, "batch 3 height width"]
Image = UInt8[Tensor, "3 height width"]

JUDGE_ID = "Qwen/Qwen2.5-VL-7B-Instruct"
"""The default judge; of another family than the model that wrote the captions."""

YES_NO_QUESTION = 'Does this figure show "{caption}"? Please answer Yes or No.'
DIGIT_QUESTION = (
    'How well does this picture match the description "{caption}"? '
    "Answer with one digit from 0 (not at all) to 9 (in every detail), and nothing else."
)


@runtime_checkable
class Judge(Protocol):
    """A model that answers a question about a picture."""

    def next_token_logits(self, image: Image, question: str) -> Float32[Tensor, " vocabulary"]:
        """Give the logits of the answer's first token."""

    def answer_token(self, answer: str) -> int:
        """Give the one token that an answer is."""


class VisionLanguageJudge:
    """A chat model of transformers' image-text-to-text family."""

    def __init__(self, model: Any, processor: Any, name: str) -> None:
        """The processor has a chat template and a tokenizer."""
        self.model = model.eval()
        self.processor = processor
        self.name = name

    @classmethod
    def from_pretrained(
        cls, path: str | Path = JUDGE_ID, dtype: torch.dtype = torch.bfloat16
    ) -> "VisionLanguageJudge":
        """Load a judge from a folder or hub id; bfloat16 moves its scores by about 1e-3."""
        from transformers import AutoModelForImageTextToText, AutoProcessor

        with opened("judge", path) as source:
            model = AutoModelForImageTextToText.from_pretrained(
                source, dtype=dtype, use_safetensors=True
            )
            return cls(model, AutoProcessor.from_pretrained(source), Path(path).name)

    @property
    def protocol(self) -> str:
        """Model and dtype."""
        return f"{self.name}/{str(self.model.dtype).removeprefix('torch.')}"

    @torch.no_grad()
    def next_token_logits(self, image: Image, question: str) -> Float32[Tensor, " vocabulary"]:
        """Ask one question about one picture."""
        content = [{"type": "image"}, {"type": "text", "text": question}]
        prompt = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        picture = PillowImage.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
        inputs = self.processor(images=[picture], text=[prompt], return_tensors="pt")
        return self.model(**inputs.to(self.model.device)).logits[0, -1].float().cpu()

    def answer_token(self, answer: str) -> int:
        """Give the token of an answer such as "Yes"; ValueError unless it is a single one."""
        tokenizer = self.processor.tokenizer
        tokens = tokenizer(answer, add_special_tokens=False).input_ids
        if len(tokens) != 1 or tokens[0] == tokenizer.unk_token_id:
            raise ValueError(
                f"{self.name} has no single token for the answer {answer!r} (it gives {tokens}), "
                "so its probability cannot be read off one step; take another judge"
            )
        return tokens[0]


def choice_probabilities(
    logits: Float[Tensor, " vocabulary"], tokens: Sequence[int]
) -> Float64[Tensor, " choices"]:
    """Probabilities of some answers among themselves, in float64."""
    return logits.double()[list(tokens)].softmax(0)


def yes_probability(judge: Judge, image: Image, caption: str) -> float:
    """The probability of "Yes" against "No", in [0, 1] (VQAScore, arXiv 2404.01291)."""
    return float(_ask(judge, image, YES_NO_QUESTION, caption, ("Yes", "No"))[0])


def digit_expectation(judge: Judge, image: Image, caption: str) -> float:
    """The expected digit of a rating 0..9, over 9: in [0, 1]."""
    probabilities = _ask(judge, image, DIGIT_QUESTION, caption, "0123456789")
    return float((probabilities * torch.arange(10, dtype=torch.float64)).sum() / 9)


def _ask(
    judge: Judge, image: Image, question: str, caption: str, answers: Sequence[str]
) -> Float64[Tensor, " choices"]:
    tokens = [judge.answer_token(answer) for answer in answers]
    logits = judge.next_token_logits(image, question.format(caption=caption))
    return choice_probabilities(logits, tokens)


def clip_scores(
    backbone: ClipBackbone, images: Images, captions: Sequence[str]
) -> Float64[Tensor, " batch"]:
    """100 * cos between each picture and its caption."""
    if len(captions) != len(images):
        raise ValueError(f"{len(images)} pictures have {len(captions)} captions; give one each")
    pictures = backbone(images).double()
    texts = backbone.embed_captions(captions).double().to(pictures.device)
    return 100 * (pictures * texts).sum(1).cpu()


def clip_distance(score: float) -> float:
    """Turn a CLIP score into the paper's CLIP distance, 1 - cos."""
    return 1 - score / 100


@register
class ClipScore(SampleMetric):
    """The CLIP score, and the paper's distance computed from it."""

    name = "clip"
    columns: ClassVar = {
        "clip": Column("CLIP", "higher", 2, charted=True),
        "clip_distance": Column("Dist", "lower", 3),
    }
    needs = frozenset({"picture", "caption", "backbone"})
    controls = frozenset({"reconstruction", "others", "shuffled_prompts"})
    default_backbone: ClassVar[str] = "clip"

    def __init__(self, backbone: BackboneSource, backbone_name: str = "clip") -> None:
        self.source = backbone
        self.remedy = f"hf download {CLIP_SCORE_ID}"
        self._backbone: ClipBackbone | None = None

    def load(self, device: torch.device) -> Skipped | None:
        """Load the pair."""
        backbone = self.source.open(device)
        if isinstance(backbone, Skipped):
            return backbone
        assert isinstance(backbone, ClipBackbone)
        self._backbone = backbone
        return None

    @property
    def protocol(self) -> str:
        """The pair by its weights."""
        return "" if self._backbone is None else self._backbone.protocol

    def read(self, products: Images, orders: Sequence[PictureOrder]) -> list[Values]:
        """Compare with the prompts, and mark those that are cut."""
        assert self._backbone is not None
        prompts = [order.prompt for order in orders]
        scores = clip_scores(self._backbone, products, prompts).tolist()
        cut = [self._backbone.is_cut(prompt) for prompt in prompts]
        return [{"clip": s, "cut": c} for s, c in zip(scores, cut, strict=True)]

    def intervals(self, ids: Sequence[str], values: Sequence[Values]) -> dict[str, Interval]:
        """Give score and distance."""
        score = bootstrap_mean(np.array([one["clip"] for one in values]), ids)
        estimate, low, high = map(clip_distance, (score.estimate, score.high, score.low))
        return {"clip": score, "clip_distance": Interval(estimate, low, high, score.clusters)}

    def remarks(self, values: Sequence[Values]) -> list[str]:
        """How many captions are longer than the text tower reads."""
        cut = sum(one["cut"] for one in values)
        if not cut or self._backbone is None:
            return []
        limit = self._backbone.max_length
        return [
            f"{cut} of {len(values)} captions are longer than {limit} tokens; CLIP reads a part"
        ]


class JudgeMetric(SampleMetric):
    """What a local vision-language model, a folder or hub id, answers about a picture."""

    def __init__(self, judge: str | Path = JUDGE_ID) -> None:
        self.source = judge
        self.remedy = f"hf download {judge}, or give a folder with judge=DIR"
        self._judge: VisionLanguageJudge | None = None

    def load(self, device: torch.device) -> Skipped | None:
        """Load the judge."""
        self._judge = VisionLanguageJudge.from_pretrained(self.source)
        self._judge.model.to(device)
        return None

    @property
    def protocol(self) -> str:
        """Model and dtype."""
        return "" if self._judge is None else self._judge.protocol


@register
class JudgeRatings(JudgeMetric):
    """Two ratings by a local vision-language model."""

    name = "judge"
    columns: ClassVar = {
        "judge_yes": Column("P(yes)", "higher", 4),
        "judge_digit": Column("Rating", "higher", 4),
    }
    needs = frozenset({"picture", "caption"})
    controls = frozenset({"reconstruction", "others", "shuffled_prompts"})

    def read(self, products: Images, orders: Sequence[PictureOrder]) -> list[Values]:
        """Ask two questions about each picture."""
        assert self._judge is not None
        check_pictures(products)
        return [
            {
                "judge_yes": yes_probability(self._judge, image, order.prompt),
                "judge_digit": digit_expectation(self._judge, image, order.prompt),
            }
            for image, order in zip(products, orders, strict=True)
        ]
