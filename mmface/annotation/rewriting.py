"""The last two steps of a caption: a rewrite that may only take away, and the cap on its length."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from mmface.annotation.caption_engines import generate
from mmface.annotation.caption_filters import filter_caption, sentences, words
from mmface.core.sources import opened

REWRITER = "Qwen/Qwen3-8B"
"""The paper rewrites with Qwen3; it does not say which size."""

MAX_TOKENS = 77
"""Length of the text encoder's input, with its start and end tokens."""

_INSTRUCTION = (
    "Below is the caption of a portrait. Take out every claim that the portrait alone cannot "
    "support: feelings behind the expression, character, occupation, occasion, place names, "
    "relations, sounds, and whatever lies outside the frame. Take out contradictions. Leave all "
    "else word for word. Add nothing. Answer with the caption alone.\n\nCaption: "
)

_GLUE = frozenset(
    words(
        "a an the and or but with of in on at to for from by as is are was were has have his her "
        "their its he she they it this that which who while wearing there be being been"
    )
)


@dataclass(frozen=True)
class RewriterSettings:
    """Which language model rewrites, and how it is run."""

    model: str = REWRITER
    revision: str | None = None
    dtype: str = "bfloat16"
    device: str = "cpu"
    max_new_tokens: int = 160


class Rewrite(NamedTuple):
    """The shortened caption, or its source if refused; `unchanged`, `shortened` or `refused`."""

    text: str
    outcome: str


def content_words(text: str) -> list[str]:
    """List the words, in order, that claim or deny something: all but articles and other glue."""
    return [word for word in words(text) if word not in _GLUE]


def only_takes_away(source: str, rewrite: str) -> bool:
    """Tell whether a rewrite's content words all stand in the source, in the same order."""
    remaining = iter(content_words(source))
    return all(word in remaining for word in content_words(rewrite))


class Rewriter:
    """Qwen3 without thinking, held to taking away: a rewrite that adds a word is refused."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: RewriterSettings,
    ) -> None:
        self.model = model.eval().to(settings.device)
        self.tokenizer = tokenizer
        self.tokenizer.padding_side = "left"
        self.settings = settings

    @classmethod
    def from_pretrained(cls, settings: RewriterSettings) -> "Rewriter":
        """Load the model and its tokenizer; OSError if there is no such model."""
        where = {"revision": settings.revision}
        with opened("rewriter", settings.model) as source:
            tokenizer = AutoTokenizer.from_pretrained(source, **where)
            model = AutoModelForCausalLM.from_pretrained(
                source, **where, dtype=getattr(torch, settings.dtype)
            )
        return cls(model, tokenizer, settings)

    @property
    def made_by(self) -> dict[str, Any]:
        """Model, the commit that was read, and the settings that decide the rewrites."""
        commit = getattr(self.model.config, "_commit_hash", None) or self.settings.revision
        return {
            "model": self.settings.model,
            "revision": commit,
            "dtype": self.settings.dtype,
            "max_new_tokens": self.settings.max_new_tokens,
        }

    def rewrite(self, captions: Sequence[str]) -> list[Rewrite]:
        """Take unsupported claims out of captions, as one batch; refused, a caption stays."""
        if not captions:
            return []
        return [
            self._judged(source, answer)
            for source, answer in zip(captions, self._answers(captions), strict=True)
        ]

    @torch.no_grad()
    def _answers(self, captions: Sequence[str]) -> list[tuple[str, bool]]:
        texts = [
            self.tokenizer.apply_chat_template(
                [{"role": "user", "content": _INSTRUCTION + caption}],
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=False,
            )
            for caption in captions
        ]
        inputs = self.tokenizer(texts, padding=True, return_tensors="pt").to(self.settings.device)
        new, finished = generate(self.model, inputs, self.settings.max_new_tokens)
        said = self.tokenizer.batch_decode(new, skip_special_tokens=True)
        return list(zip(said, finished, strict=True))

    @staticmethod
    def _judged(source: str, answer: tuple[str, bool]) -> Rewrite:
        text, finished = answer
        shorter = filter_caption(text, finished=finished).text
        if not finished or not shorter or not only_takes_away(source, shorter):
            return Rewrite(source, "refused")
        same = content_words(shorter) == content_words(source)
        return Rewrite(source, "unchanged") if same else Rewrite(shorter, "shortened")


def num_tokens(text: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """Count a text's tokens, start and end included."""
    return len(tokenizer(text, verbose=False)["input_ids"])


def cap_to_tokens(
    caption: str, tokenizer: PreTrainedTokenizerBase, max_tokens: int = MAX_TOKENS
) -> str:
    """Shorten a caption to the text encoder's limit, start and end tokens included.

    It keeps the most whole sentences that fit; if not even the first does, the most whole clauses
    of it; if not even the first clause does, the most words. ValueError if not one word fits.
    """
    if num_tokens(caption, tokenizer) <= max_tokens:
        return caption
    first = sentences(caption)[0]
    clauses = re.split(r"(?<=[,;:])\s+", first)
    for parts in (sentences(caption), clauses, first.split()):
        # Longest first; a beginning of few tokens may be followed by one of many.
        for count in range(len(parts) - 1, 0, -1):
            beginning = " ".join(parts[:count]).rstrip(" ,;:.!?-") + "."
            if num_tokens(beginning, tokenizer) <= max_tokens:
                return beginning
    raise ValueError(f"not one word of {caption[:40]!r} fits into {max_tokens} tokens")
