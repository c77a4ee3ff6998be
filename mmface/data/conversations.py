"""Training samples of the unified model: pictures to draw from words, and to be asked about.

Words of a face come from `FaceWords`; those of rendered faces are exact.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from mmface.core.command_line import check_number, check_whole
from mmface.data.attributes import Attributes, attributes_of_rendered
from mmface.data.pictures import PictureSource
from mmface.data.questions import DESCRIBE, DESCRIPTION, Question, description, questions_of
from mmface.encoders.vae import image_pixels


@runtime_checkable
class FaceWords(Protocol):
    """What is known of faces by their ids."""

    def attributes(self, face_id: str) -> Attributes:
        """The attributes of a face."""
        ...

    def questions(self, face_id: str) -> Sequence[Question]:
        """Questions and answers that somebody wrote of it; templates make others."""
        ...


@dataclass(frozen=True)
class RenderedWords:
    """What is true of candid rendered faces."""

    def attributes(self, face_id: str) -> Attributes:
        """The attributes that the face was drawn from."""
        return attributes_of_rendered(face_id)

    def questions(self, face_id: str) -> Sequence[Question]:
        """None, as templates ask for all attributes."""
        return ()


def _chooser(generator: torch.Generator) -> Any:
    return lambda below: int(torch.randint(below, (), generator=generator))


def _flipped(image: np.ndarray, generator: torch.Generator) -> np.ndarray:
    is_flipped = torch.rand((), generator=generator).item() < 0.5
    return np.ascontiguousarray(image[:, ::-1]) if is_flipped else image


_SIDED = ("gaze", "lighting")
"""Attributes that a mirrored picture has otherwise; such faces are not mirrored."""


class DrawingSamples:
    """Pictures with a caption, or with a sentence that says all that is known."""

    def __init__(
        self,
        pictures: PictureSource,
        words: FaceWords | None = None,
        text_dropout: float = 0.1,
        described: float = 0.5,
    ) -> None:
        """Choose the shares of empty prompts, and of sentences made of attributes."""
        check_number("text_dropout", text_dropout, 0, 1)
        check_number("described", described, 0, 1)
        self.pictures, self.words = pictures, words
        self.text_dropout, self.described = text_dropout, described

    def __len__(self) -> int:
        """Number of faces."""
        return len(self.pictures)

    def sample(self, item: int, generator: torch.Generator) -> dict[str, Any]:
        """`pixels` float32 [3, H, W] in [-1, 1], `caption` str, `uniform` scalar, `noise_seed`."""
        face, choose = self.pictures.face(item), _chooser(generator)
        kind = float(torch.rand((), generator=generator))
        caption = face.captions[choose(len(face.captions))] if face.captions else ""
        if self.words is not None and float(torch.rand((), generator=generator)) < self.described:
            caption = description(self.words.attributes(face.id), choose)
        return {
            "pixels": image_pixels(face.image),
            "caption": "" if kind < self.text_dropout else caption,
            "uniform": torch.rand((), generator=generator),
            "noise_seed": torch.randint(2**62, (), generator=generator),
        }


class ConversationSamples:
    """Pictures with several questions of different kinds, or with a description."""

    def __init__(
        self,
        pictures: PictureSource,
        words: FaceWords,
        num_turns: int = 6,
        described: float = 0.25,
        kinds: Sequence[str] = (),
    ) -> None:
        """Choose how many questions, and the share of descriptions; no `kinds` ask for all."""
        check_whole("num_turns", num_turns, 1, 46)
        check_number("described", described, 0, 1)
        self.pictures, self.words = pictures, words
        self.num_turns, self.described, self.kinds = num_turns, described, tuple(kinds)

    def __len__(self) -> int:
        """Number of faces."""
        return len(self.pictures)

    def sample(self, item: int, generator: torch.Generator) -> dict[str, Any]:
        """`pixels` float32 [3, H, W] in [-1, 1], and `turns`, JSON of pairs of texts."""
        face, choose = self.pictures.face(item), _chooser(generator)
        known = self.words.attributes(face.id)
        is_described = float(torch.rand((), generator=generator)) < self.described
        image = face.image if set(_SIDED) & known.keys() else _flipped(face.image, generator)
        if is_described and known:
            answer = description(known, choose)
            turns = [Question(DESCRIBE[choose(len(DESCRIBE))], answer, DESCRIPTION)]
        else:
            turns = questions_of(known, choose, self.num_turns, self.kinds)
            written = list(self.words.questions(face.id))
            while written and len(turns) < self.num_turns:
                turns.append(written.pop(choose(len(written))))
        return {
            "pixels": image_pixels(image),
            "turns": json.dumps([[each.question, each.answer] for each in turns]),
        }
