"""Captions of pictures as the paper makes them: ten prompts, rules, a rewrite, and a cap."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from jaxtyping import UInt8
from transformers import PreTrainedTokenizerBase

from mmface.annotation.caption_engines import Captioner, CaptionRequest
from mmface.annotation.caption_filters import filter_caption, words
from mmface.annotation.caption_prompts import PROMPTS, CaptionPrompt
from mmface.annotation.rewriting import MAX_TOKENS, Rewriter, cap_to_tokens


@dataclass
class CaptionDraft:
    """How one caption came about, from the captioner's answer to the text for training.

    `filters` changed the last answer; `rejected_by` names the cause of each rejected answer;
    `rewrite` is `none`, `unchanged`, `shortened` or `refused`; `capped` tells whether the caption
    was cut to the text encoder's length.
    """

    prompt: str
    text: str = ""
    answer: str = ""
    attempts: int = 0
    filters: list[str] = field(default_factory=list)
    rejected_by: list[str] = field(default_factory=list)
    rewrite: str = "none"
    capped: bool = False


@dataclass(frozen=True)
class PictureCaptioner:
    """Captions pictures: each prompt is answered, filtered, rewritten and capped.

    The first answer is greedy. After a rejected one, the next is sampled with a seed that depends
    on the picture's id, the prompt and the attempt alone. `tokenizer` is the text encoder's, which
    decides the cap of `max_tokens`, start and end included. Without a rewriter captions stay as
    filtered.
    """

    captioner: Captioner
    tokenizer: PreTrainedTokenizerBase
    rewriter: Rewriter | None = None
    prompts: Sequence[CaptionPrompt] = PROMPTS
    num_attempts: int = 3
    temperature: float = 0.7
    seed: int = 0
    batch_size: int = 10
    max_tokens: int = MAX_TOKENS

    @property
    def made_by(self) -> dict[str, Any]:
        """What decides the captions, for a record of them."""
        return {
            "captioner": self.captioner.made_by,
            "rewriter": self.rewriter.made_by if self.rewriter else None,
            "prompts": [prompt.name for prompt in self.prompts],
            "num_attempts": self.num_attempts,
            "temperature": self.temperature,
            "seed": self.seed,
            "max_tokens": self.max_tokens,
        }

    def caption(
        self, ids: Sequence[str], pictures: Sequence[UInt8[np.ndarray, "_ _ 3"]]
    ) -> list[dict[str, Any]]:
        """Caption RGB pictures of any sizes; gives a JSON record for each.

        A record holds `id`, `captions`, `drafts` (how each came about), `counts` of what happened,
        and `made_by`.
        """
        drafts = [[CaptionDraft(prompt.name) for prompt in self.prompts] for _ in ids]
        for attempt in range(self.num_attempts):
            self._attempt(attempt, ids, pictures, drafts)
        accepted = [draft for row in drafts for draft in row if draft.text]
        for batch in self._batches(accepted):
            self._finish(batch)
        return [self._record(one, row) for one, row in zip(ids, drafts, strict=True)]

    def _batches(self, things: Sequence[Any]) -> Iterator[Sequence[Any]]:
        for first in range(0, len(things), self.batch_size):
            yield things[first : first + self.batch_size]

    def _attempt(
        self,
        attempt: int,
        ids: Sequence[str],
        pictures: Sequence[np.ndarray],
        drafts: list[list[CaptionDraft]],
    ) -> None:
        open_places = [
            (row, column)
            for row, of_picture in enumerate(drafts)
            for column, draft in enumerate(of_picture)
            if not draft.text
        ]
        temperature = self.temperature if attempt else 0.0
        for batch in self._batches(open_places):
            requests = [
                CaptionRequest(
                    pictures[row],
                    self.prompts[column].text,
                    _seed(self.seed, ids[row], self.prompts[column].name, attempt),
                )
                for row, column in batch
            ]
            answers = self.captioner.answer(requests, temperature)
            for (row, column), answer in zip(batch, answers, strict=True):
                draft = drafts[row][column]
                found = filter_caption(answer.text, self.prompts[column].text, answer.finished)
                draft.answer, draft.filters = answer.text, list(found.changed_by)
                draft.attempts += 1
                said = {" ".join(words(other.text)) for other in drafts[row]}
                if not found.text:
                    rejections = found.changed_by or ("empty_answer",)
                    draft.rejected_by.append(rejections[-1])
                elif " ".join(words(found.text)) in said:
                    draft.rejected_by.append("said_already")
                else:
                    draft.text = found.text

    def _finish(self, drafts: Sequence[CaptionDraft]) -> None:
        if self.rewriter is not None:
            rewrites = self.rewriter.rewrite([draft.text for draft in drafts])
            for draft, rewrite in zip(drafts, rewrites, strict=True):
                draft.text, draft.rewrite = rewrite
        for draft in drafts:
            capped = cap_to_tokens(draft.text, self.tokenizer, self.max_tokens)
            draft.text, draft.capped = capped, capped != draft.text

    def _record(self, name: str, drafts: Sequence[CaptionDraft]) -> dict[str, Any]:
        counts = Counter(one for draft in drafts for one in draft.filters)
        counts.update(f"rejected_by_{one}" for draft in drafts for one in draft.rejected_by)
        counts.update(f"rewrite_{draft.rewrite}" for draft in drafts if draft.text)
        counts["capped"] = sum(draft.capped for draft in drafts)
        return {
            "id": name,
            "captions": [draft.text for draft in drafts if draft.text],
            "drafts": [asdict(draft) for draft in drafts],
            "counts": dict(sorted(counts.items())),
            "made_by": self.made_by,
        }


def _seed(*key: object) -> int:
    """Give a 64-bit number that depends on the key alone."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:8], "little")
