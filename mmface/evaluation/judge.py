"""The LLM score, by a local vision-language model that is asked, not sampled.

The paper's LLM score rests on closed models that no longer answer as they did (LLMScore,
arXiv 2305.11116, over GPT-4). In its place stand two readings of one forward pass's logits: the
probability of "Yes" (as VQAScore reads it, arXiv 2404.01291), and the expectation of a digit 0..9
as a rating. One picture goes through at a time, so that padding cannot change an answer.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float32, Float64, UInt8
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmface.evaluation.per_picture import PerPictureMetric
from mmface.evaluation.preprocessing import check_pictures

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

    def next_token_logits(
        self, image: UInt8[Tensor, "3 height width"], question: str
    ) -> Float32[Tensor, " vocabulary"]:
        """Give the logits of the answer's first token."""

    def answer_token(self, answer: str) -> int:
        """Give the one token that an answer is."""


class VisionLanguageJudge:
    """A chat model of transformers' image-text-to-text family."""

    def __init__(self, model: Any, processor: Any, name: str) -> None:
        """Wrap a model.

        Args:
            model: a transformers model for image-text-to-text.
            processor: its processor, with a chat template and a tokenizer.
            name: which model.
        """
        self.model = model.eval()
        self.processor = processor
        self.name = name

    @classmethod
    def from_pretrained(
        cls, path: str | Path = JUDGE_ID, torch_dtype: torch.dtype = torch.bfloat16
    ) -> "VisionLanguageJudge":
        """Load a judge.

        Args:
            path: a folder or hub id.
            torch_dtype: dtype of the weights; rounding of bfloat16 moves scores by about 1e-3.

        Returns:
            The judge.
        """
        model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch_dtype)
        return cls(model, AutoProcessor.from_pretrained(path), Path(path).name)

    @property
    def protocol(self) -> str:
        """Model and dtype."""
        return f"{self.name}/{str(self.model.dtype).removeprefix('torch.')}"

    @torch.no_grad()
    def next_token_logits(
        self, image: UInt8[Tensor, "3 height width"], question: str
    ) -> Float32[Tensor, " vocabulary"]:
        """Ask one question about one picture.

        Args:
            image: a uint8 picture.
            question: what to ask.

        Returns:
            Logits of the first token of the answer.
        """
        content = [{"type": "image"}, {"type": "text", "text": question}]
        prompt = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        picture = Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
        inputs = self.processor(images=[picture], text=[prompt], return_tensors="pt")
        return self.model(**inputs.to(self.model.device)).logits[0, -1].float().cpu()

    def answer_token(self, answer: str) -> int:
        """Look up the token of an answer.

        Args:
            answer: such as "Yes" or "7".

        Returns:
            Its token.

        Raises:
            ValueError: if the tokenizer makes more than one token of it, or does not know it.
        """
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


class JudgeScore(PerPictureMetric, ABC):
    """A judge's rating of how well pictures show their captions, in [0, 1]."""

    higher_is_better = True
    question: str

    def __init__(self, judge: Judge) -> None:
        """Begin without pictures.

        Args:
            judge: answers the questions.

        Raises:
            ValueError: if the judge's tokenizer splits an answer.
        """
        super().__init__()
        self.judge = judge
        self.tokens = [judge.answer_token(answer) for answer in self.answers()]

    @abstractmethod
    def answers(self) -> Sequence[str]:
        """The answers to choose from."""

    @abstractmethod
    def rate(self, probabilities: Float64[Tensor, " choices"]) -> Float64[Tensor, ""]:
        """Turn the answers' probabilities into a rating in [0, 1]."""

    def update(
        self, images: UInt8[Tensor, "batch 3 height width"], captions: Sequence[str]
    ) -> None:
        """Ask about each picture.

        Args:
            images: uint8 pictures.
            captions: one a picture.
        """
        check_pictures(images)
        ratings = [
            self.rate(
                choice_probabilities(
                    self.judge.next_token_logits(image, self.question.format(caption=caption)),
                    self.tokens,
                )
            )
            for image, caption in zip(images, captions, strict=True)
        ]
        self.add_values(torch.stack(ratings))


class YesProbability(JudgeScore):
    """The probability of "Yes" against "No" (VQAScore, arXiv 2404.01291)."""

    question = YES_NO_QUESTION

    def answers(self) -> Sequence[str]:
        """Yes and no."""
        return ("Yes", "No")

    def rate(self, probabilities: Float64[Tensor, " choices"]) -> Float64[Tensor, ""]:
        """The first answer's probability."""
        return probabilities[0]


class DigitExpectation(JudgeScore):
    """The expected digit of a rating 0..9, over 9."""

    question = DIGIT_QUESTION

    def answers(self) -> Sequence[str]:
        """The ten digits."""
        return tuple("0123456789")

    def rate(self, probabilities: Float64[Tensor, " choices"]) -> Float64[Tensor, ""]:
        """The mean digit, over 9."""
        digits = torch.arange(10, dtype=torch.float64)
        return (probabilities * digits).sum() / 9
