"""Which faces are drawn: named ways to make a face of a seed."""

from typing import ClassVar, Protocol, runtime_checkable

import numpy as np

from mmface.rendered.candid import attributes as candid
from mmface.rendered.candid.face import draw_scene, finished_image
from mmface.rendered.candid.hands import HANDS, draw_sketch
from mmface.rendered.candid.noise import rough_mask
from mmface.rendered.candid.wording import captions
from mmface.rendered.face import RenderedFace, render_face


@runtime_checkable
class Distribution(Protocol):
    """A way to make faces."""

    name: ClassVar[str]
    has_rough_masks: ClassVar[bool]
    """Whether `RenderedFace.mask` differs from the labels."""

    def render(self, seed: int, size: int = 128) -> RenderedFace:
        """Draw and describe the face of a seed, `size` pixels; equal for equal seeds."""
        ...


class Studio:
    """Faces from the front with all their parts, in one hand: what the built-in models learned."""

    name: ClassVar[str] = "studio"
    has_rough_masks: ClassVar[bool] = False

    def render(self, seed: int, size: int = 128) -> RenderedFace:
        """Draw with `mmface.rendered.face`."""
        return render_face(seed, size)


class Candid:
    """Faces as photographs show them: turned, cropped and covered, sketched in several hands."""

    name: ClassVar[str] = "candid"
    has_rough_masks: ClassVar[bool] = True

    def render(self, seed: int, size: int = 128) -> RenderedFace:
        """Draw with `mmface.rendered.candid`."""
        attributes = candid.sample_attributes(seed)
        scene = draw_scene(attributes, size)
        rng = np.random.default_rng((seed, 4))
        hand = candid.choose(rng, {name: often for name, (_, often) in HANDS.items()})
        sketch = draw_sketch(scene, hand, rng)
        mask = rough_mask(scene.labels, rng)
        texts = captions(attributes, seed)
        return RenderedFace(finished_image(scene), scene.labels, sketch, attributes, texts, mask)


_ALL: dict[str, Distribution] = {each.name: each for each in (Studio(), Candid())}


def distribution_names() -> tuple[str, ...]:
    """Names that `distribution` knows."""
    return tuple(_ALL)


def distribution(name: str) -> Distribution:
    """Give the distribution of a name; ValueError if there is none."""
    if name not in _ALL:
        raise ValueError(f"distribution is {name!r}; choose from {', '.join(_ALL)}")
    return _ALL[name]
