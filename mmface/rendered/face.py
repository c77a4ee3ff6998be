"""The stack of layers that makes a face, from the background to the earrings."""

from dataclasses import dataclass

import numpy as np

from mmface.rendered.accessories import (
    draw_earrings,
    draw_glasses,
    draw_hat,
    draw_necklace,
)
from mmface.rendered.attributes import (
    BACKGROUND_COLORS,
    FaceAttributes,
    sample_attributes,
)
from mmface.rendered.body import draw_clothes, draw_neck
from mmface.rendered.candid.attributes import CandidAttributes
from mmface.rendered.features import draw_brow, draw_eye, draw_mouth, draw_nose
from mmface.rendered.hair import draw_back_hair, draw_front_hair
from mmface.rendered.head import draw_ears, draw_skin
from mmface.rendered.scene import Scene, planes, rgb
from mmface.rendered.wording import captions

MIN_SIZE = 16
"""Side in pixels below which parts of the face would vanish."""


@dataclass(frozen=True)
class RenderedFace:
    """A drawn face: image uint8 [S, S, 3] RGB, labels and sketch uint8 [S, S], and captions.

    Labels are indices into `mmface.conditions.LABELS`; the sketch has dark lines on white.
    """

    image: np.ndarray
    labels: np.ndarray
    sketch: np.ndarray
    attributes: FaceAttributes | CandidAttributes
    captions: tuple[str, ...]
    rough_mask: np.ndarray | None = None

    @property
    def mask(self) -> np.ndarray:
        """The label map as it may be brought as a condition: uint8 [S, S], not always exact."""
        return self.labels if self.rough_mask is None else self.rough_mask


def render_face(seed: int, size: int = 128) -> RenderedFace:
    """The face of a seed, drawn and described; equal for equal seeds. `size` is in pixels."""
    attributes = sample_attributes(seed)
    image, labels, sketch = draw(attributes, size)
    return RenderedFace(image, labels, sketch, attributes, captions(attributes, seed))


def draw(attributes: FaceAttributes, size: int = 128) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw a face: image uint8 [S, S, 3], labels and sketch uint8 [S, S].

    The scene is the same at every size. Below 16 pixels, parts of the face would vanish:
    ValueError.
    """
    if size < MIN_SIZE:
        raise ValueError(f"size is {size}; a face needs at least {MIN_SIZE} pixels")
    scene = Scene(attributes, size)
    _draw_background(scene)
    draw_back_hair(scene)
    draw_neck(scene)
    draw_clothes(scene)
    if attributes.necklace:
        draw_necklace(scene)
    if attributes.ears_visible:
        draw_ears(scene)
    face = draw_skin(scene)
    draw_nose(scene, face)
    draw_mouth(scene)
    for side, prefix in ((1.0, "l"), (-1.0, "r")):
        draw_eye(scene, side, f"{prefix}_eye")
        draw_brow(scene, side, f"{prefix}_brow")
    if attributes.hair_style != "bald":
        draw_front_hair(scene)
    if attributes.glasses:
        draw_glasses(scene)
    if attributes.hat:
        draw_hat(scene)
    if attributes.earrings:
        draw_earrings(scene)
    return _finished_image(scene), scene.labels, _finished_sketch(scene)


def _draw_background(scene: Scene) -> None:
    color = rgb(BACKGROUND_COLORS[scene.face.background_color])
    scene.pixels[:] = scene.lit(color, light=0.05, fall=0.08)
    radius = (scene.x - 0.5) ** 2 + (scene.y - 0.45) ** 2
    scene.darken(0.22 * (radius - 0.15))
    for _ in range(4):
        cx, cy, r = scene.rng.uniform((0, 0, 0.08), (1, 0.8, 0.2)).tolist()
        patch = np.exp(-((scene.x - cx) ** 2 + (scene.y - cy) ** 2) / r**2)
        scene.darken(scene.rng.uniform(-0.05, 0.05) * patch)


def _finished_image(scene: Scene) -> np.ndarray:
    warmth = 0.022 * scene.face.warmth
    pixels = scene.pixels * planes((1 + warmth, 1.0, 1 - warmth))
    image = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(image.transpose(1, 2, 0))


def _finished_sketch(scene: Scene) -> np.ndarray:
    grain = 0.85 + 0.15 * np.sin(scene.x * 41 + 3 * scene.y) * np.sin(scene.y * 37)
    return np.clip(np.rint(255 * (1 - 0.92 * scene.ink * grain)), 0, 255).astype(np.uint8)
