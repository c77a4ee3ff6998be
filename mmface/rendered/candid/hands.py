"""Sketches of one face in several hands, and what goes wrong in sketches.

A hand gives how dark the paper is, float32 [S, S] in [0, 1]. How dark it draws hair, clothes and
background is its own choice and tells nothing of their colours, but for XDoG and Canny, which see
the picture.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

from mmface.conditions import LABEL_INDEX
from mmface.rendered.candid.canvas import CandidScene, smooth_noise, warped

Hand = Callable[[CandidScene, np.random.Generator], np.ndarray]


def _smoothstep(field: np.ndarray, low: float, high: float) -> np.ndarray:
    t = np.clip((field - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def _gaussian(field: np.ndarray, radius: float) -> np.ndarray:
    image = Image.fromarray((np.clip(field, 0, 1) * 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(radius)), np.float32) / 255


def _pencil(scene: CandidScene, rng: np.random.Generator) -> np.ndarray:
    """Clean lines of even grey."""
    grain = 0.85 + 0.15 * np.sin(scene.x * 41 + 3 * scene.y) * np.sin(scene.y * 37)
    return 0.92 * scene.ink * grain * rng.uniform(0.75, 1.0)


def _portrait(scene: CandidScene, rng: np.random.Generator) -> np.ndarray:
    """Dense strokes in hair and dark background, as networks for portraits draw."""
    size, hair = scene.size, scene.hair_cover()
    lines = _smoothstep(scene.ink * (1 - hair), 0.18, 0.75)
    darkness = rng.uniform(-0.45, 0.6)
    relief = smooth_noise(rng, size, 5)
    fine = smooth_noise(rng, size, size // 5)
    strands = scene.strand_field + 0.5 * relief + 0.35 * fine + darkness
    tone = _smoothstep(strands, 0.05, 0.5) * rng.uniform(0.85, 1.0)
    edge = _smoothstep(np.clip(hair - scene.eroded(hair), 0, 1), 0.2, 0.7) * rng.uniform(0.3, 1)
    drawn = np.maximum(lines, np.maximum(tone * hair, edge))
    empty = scene.labels == LABEL_INDEX["background"]
    if rng.random() < 0.55:
        drawn = np.maximum(drawn, _dark_background(scene, rng, empty))
    cloth = scene.labels == LABEL_INDEX["cloth"]
    if rng.random() < 0.45 and cloth.any():
        folds = smooth_noise(rng, size, 8) + rng.uniform(-0.2, 0.9)
        fabric = _smoothstep(folds, 0.0, 0.35) * (1 - 0.9 * lines)
        drawn = np.where(cloth, np.maximum(fabric, lines * 0.3), drawn)
    return _gaussian(drawn, 0.35 * size / 128) if rng.random() < 0.6 else drawn


def _dark_background(scene: CandidScene, rng: np.random.Generator, empty: np.ndarray) -> np.ndarray:
    size = scene.size
    slant = rng.uniform(-0.6, 0.6)
    along = (scene.x + slant * scene.y) * rng.uniform(18, 50)
    wobble = 0.9 * smooth_noise(rng, size, 6)
    streaks = np.sin(along + wobble * 2) * np.sin(along * 0.37 + wobble)
    field = smooth_noise(rng, size, 3) * 1.2 + 0.7 * streaks + rng.uniform(-0.4, 1.1)
    dark = _smoothstep(field, 0.0, 0.5)
    if rng.random() < 0.5:  # a pale rim around the head
        near = _gaussian((~empty).astype(np.float32), 0.025 * size)
        dark = dark * (1 - _smoothstep(near, 0.05, 0.5))
    return dark * empty


def _luminance(scene: CandidScene) -> np.ndarray:
    weights = np.array((0.299, 0.587, 0.114), np.float32) / 255
    return np.clip(np.tensordot(weights, scene.pixels, 1), 0, 1)


def _xdog(scene: CandidScene, rng: np.random.Generator) -> np.ndarray:
    """The extended difference of Gaussians of the picture."""
    grey = _luminance(scene)
    radius = rng.uniform(0.5, 0.9) * scene.size / 128
    near, far = _gaussian(grey, radius), _gaussian(grey, 1.6 * radius)
    difference = near - far * rng.uniform(0.97, 1.0)
    return np.clip(1 - (1 + np.tanh((difference + rng.uniform(0.0, 0.012)) * 90)), 0, 1)


def _canny(scene: CandidScene, rng: np.random.Generator) -> np.ndarray:
    """Thin lines, all equally dark, where the picture changes most."""
    grey = _gaussian(_luminance(scene), rng.uniform(0.6, 1.1) * scene.size / 128)
    dy, dx = np.gradient(grey)
    strength = np.hypot(dx, dy)
    flat = np.abs(dx) > np.abs(dy)
    before = np.where(flat, np.roll(strength, 1, 1), np.roll(strength, 1, 0))
    after = np.where(flat, np.roll(strength, -1, 1), np.roll(strength, -1, 0))
    ridge = (strength >= before) & (strength > after)
    return (ridge & (strength > rng.uniform(0.02, 0.045))).astype(np.float32)


def _clumsy(scene: CandidScene, rng: np.random.Generator) -> np.ndarray:
    """A few shaky lines around the parts."""
    size, labels = scene.size, scene.labels
    edges = np.zeros((size, size), bool)
    edges[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edges[1:] |= labels[1:] != labels[:-1]
    shaken = warped(edges, rng.uniform(0.002, 0.013), (5, 12), rng)
    thick = _gaussian(shaken.astype(np.float32), rng.uniform(0.5, 1.0) * size / 128)
    drawn = np.clip(thick * rng.uniform(1.6, 2.6), 0, 1)
    inner = scene.ink * (1 - scene.hair_cover()) * (rng.random() < 0.6) * rng.uniform(0.4, 1)
    return np.maximum(drawn, inner)


HANDS: dict[str, tuple[Hand, float]] = {
    "pencil": (_pencil, 0.2),
    "portrait": (_portrait, 0.46),
    "xdog": (_xdog, 0.1),
    "canny": (_canny, 0.08),
    "clumsy": (_clumsy, 0.16),
}
"""Name -> who draws, and how often."""


def draw_sketch(scene: CandidScene, hand: str, rng: np.random.Generator) -> np.ndarray:
    """Draw a sketch, uint8 [S, S], dark on white, with what may go wrong in it."""
    drawn = HANDS[hand][0](scene, rng)
    size = scene.size
    if rng.random() < 0.12:
        reach = 3 if size < 200 else 5
        image = Image.fromarray((drawn * 255).astype(np.uint8))
        drawn = np.asarray(image.filter(ImageFilter.MaxFilter(reach)), np.float32) / 255
    if rng.random() < 0.12:
        move = rng.integers(-2, 3, 2) * size // 128
        again = np.roll(drawn, move.tolist(), (0, 1)) * rng.uniform(0.3, 0.8)
        drawn = np.maximum(drawn, again)
    if rng.random() < 0.3:
        missing = smooth_noise(rng, size, int(rng.integers(4, 12)))
        drawn = drawn * (1 - _smoothstep(missing, rng.uniform(0.1, 0.5), 0.7))
    if rng.random() < 0.1:
        drawn = drawn * ~_left_out(scene, rng)
    drawn = drawn * rng.uniform(0.65, 1.0) if rng.random() < 0.4 else drawn
    if rng.random() < 0.2:
        drawn = drawn + rng.uniform(0.01, 0.06) + rng.normal(0, 0.02, drawn.shape)
    return np.clip(np.rint(255 * (1 - drawn)), 0, 255).astype(np.uint8)


def _left_out(scene: CandidScene, rng: np.random.Generator) -> np.ndarray:
    """A part of the picture that the hand did not draw: bool [S, S]."""
    if rng.random() < 0.6:
        names = (("hair",), ("cloth", "neck", "neck_l"), ("background",), ("l_ear", "r_ear"))
        return scene.labelled(*names[int(rng.integers(4))])
    x, y, r = rng.uniform((0, 0, 0.1), (1, 1, 0.25)).tolist()
    return (scene.x - x) ** 2 + (scene.y - y) ** 2 < r * r
