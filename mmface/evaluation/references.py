"""The faces that methods are measured on: prompts, conditions and the true pictures."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from mmface.conditions import MASK, SKETCH, ConditionKind, condition_kind, condition_kinds
from mmface.core.command_line import check_whole
from mmface.core.journal import as_json
from mmface.data.pictures import FacePictures, PictureSource
from mmface.metrics.metric import AnswerOrder, PictureOrder
from mmface.rendered import distribution
from mmface.rendered.attributes import HELD_OUT_SEED

_CACHED_FACES = 1024
"""Faces kept in memory; at 256 pixels each is 0.5 MB."""


@dataclass(frozen=True)
class HeldOutPictures:
    """Rendered faces that nothing was trained on, from the seed `HELD_OUT_SEED + first_face` up.

    `distribution` says which faces are drawn. Masks are the true ones, also of a distribution that
    has rough ones, so that a picture of the truth agrees with its mask.
    """

    num_faces: int
    size_px: int = 128
    first_face: int = 0
    distribution: str = "studio"

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        check_whole("num_faces", self.num_faces, 1)
        check_whole("size_px", self.size_px, 1)
        check_whole("first_face", self.first_face, 0)
        distribution(self.distribution)

    def __len__(self) -> int:
        """Number of faces."""
        return self.num_faces

    def size(self) -> tuple[int, int]:
        """Height and width of all pictures in pixels."""
        return self.size_px, self.size_px

    def kinds(self) -> tuple[ConditionKind, ...]:
        """Which conditions every face has."""
        return MASK, SKETCH

    def is_even(self) -> bool:
        """Whether every face has all of `kinds`."""
        return True

    def made_by(self) -> dict[str, Any]:
        """What decides the pictures."""
        first_seed = HELD_OUT_SEED + self.first_face
        sizes = {"num_faces": self.num_faces, "size_px": self.size_px}
        drawn = {} if self.distribution == "studio" else {"distribution": self.distribution}
        return {"kind": "held-out rendered faces", "first_seed": first_seed, **sizes, **drawn}

    def id(self, item: int) -> str:
        """Name of a face."""
        return f"rendered/{HELD_OUT_SEED + self.first_face + item}"

    def face(self, item: int) -> FacePictures:
        """Draw a face."""
        seed = HELD_OUT_SEED + self.first_face + item
        face = distribution(self.distribution).render(seed, self.size_px)
        values = {MASK.name: face.labels, SKETCH.name: face.sketch}
        return FacePictures(self.id(item), face.image, values, face.captions)


class References:
    """The faces of a protocol, each with one of its captions."""

    def __init__(
        self,
        source: PictureSource,
        modality: str,
        caption_index: int = 0,
        num_faces: int | None = None,
    ) -> None:
        """Take the first `num_faces` of a source, or all.

        `modality` names a kind of condition. A face with fewer captions gives its last one.
        """
        check_whole("caption_index", caption_index, 0)
        check_whole("size_px", source.size()[0], 1)
        count = len(source) if num_faces is None else num_faces
        check_whole("num_faces", count, 2)
        if count > len(source):
            raise ValueError(f"num_faces is {count}, but there are {len(source)} faces; take fewer")
        self.source = source
        self.kind = condition_kind(modality)
        if self.kind not in source.kinds():
            there = ", ".join(kind.name for kind in source.kinds())
            raise ValueError(f"the faces have no {modality} each, but {there}; take one of these")
        self.caption_index = caption_index
        self.ids: Sequence[str] = [source.id(item) for item in range(count)]
        self._face = lru_cache(maxsize=_CACHED_FACES)(self._checked)

    def _checked(self, item: int) -> FacePictures:
        face = self.source.face(item)
        if self.kind.name not in face.conditions:
            raise ValueError(f"{face.id} has no {self.kind.name}; leave it out, or make one")
        return face

    def __len__(self) -> int:
        """Number of faces."""
        return len(self.ids)

    @property
    def gives(self) -> frozenset[str]:
        """What a metric may need of these faces and of what is made for them."""
        return frozenset({"picture", "truth", "caption", "backbone", "condition", self.kind.name})

    @property
    def size_px(self) -> int:
        """Edge of the square pictures."""
        return self.source.size()[0]

    def order(self, item: int, seed: int) -> Any:
        """Ask for a face; `seed` is of the run, and each face has noise of its own."""
        face = self._face(item)
        caption = face.captions[min(self.caption_index, len(face.captions) - 1)]
        # A million seeds apart, the runs of two seeds share no noise.
        own_seed = seed * 1_000_000 + item
        return PictureOrder(self.ids[item], caption, own_seed, face, self.kind)

    def made_by(self) -> dict[str, Any]:
        """What decides pictures and prompts, in plain values."""
        return {
            **self.source.made_by(),
            "caption_index": self.caption_index,
            "modality": self.kind.name,
            "num_faces": len(self),
        }

    @property
    def protocol(self) -> str:
        """Which pictures, at what size: what two numbers must share to be compared."""
        made_by = self.source.made_by()
        digest = hashlib.sha256(as_json(made_by).encode()).hexdigest()[:8]
        return f"ref={made_by['kind'].replace(' ', '-')}-{self.size_px}px-{digest}"


class Questions(References):
    """Faces that methods answer questions about: products are texts, not pictures."""

    def __init__(
        self,
        source: PictureSource,
        ask: Callable[[FacePictures], tuple[str, str]],
        num_faces: int | None = None,
    ) -> None:
        """`ask` gives a face's question and its true answer; a function with a name."""
        super().__init__(source, condition_kinds()[0].name, 0, num_faces)
        self.ask = ask

    @property
    def gives(self) -> frozenset[str]:
        """What a metric may need of these faces and of the answers."""
        return frozenset({"answer", "truth"})

    def order(self, item: int, seed: int) -> AnswerOrder:
        """Ask about a face; the arguments are those of `References.order`."""
        picture_order = super().order(item, seed)
        question, answer = self.ask(picture_order.face)
        return AnswerOrder(self.ids[item], question, picture_order.seed, picture_order.face, answer)

    def made_by(self) -> dict[str, Any]:
        """What decides questions and answers, in plain values."""
        made_by = {**self.source.made_by(), "num_faces": len(self)}
        return made_by | {"questions": f"{self.ask.__module__}.{self.ask.__qualname__}"}
