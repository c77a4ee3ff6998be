"""The bare head: ears, skin with its light and shade, beard, wrinkles and freckles."""

import numpy as np

from mmface.rendered.candid.canvas import CandidScene, smooth_noise
from mmface.rendered.candid.pose import EYE_X, MOUTH_Y
from mmface.rendered.curves import Point, ring, spline
from mmface.rendered.scene import RUDDY


def draw_ear(scene: CandidScene, side: float) -> None:
    """The ear on a side (+1: the picture's right) with its inner fold."""
    f = scene.face
    label = "l_ear" if side > 0 else "r_ear"
    base, out, tall = f.face_width - 0.004, f.ear, 0.9 + 2.0 * (f.ear - 0.05)
    # An ear slants: it leaves the head in front and ends further back.
    rim = [
        (base, 0.0, 0.01),
        (base + out * 0.55, -0.035, -0.03),
        (base + out, -0.005, -0.07),
        (base + out * 0.95, 0.07, -0.08),
        (base + out * 0.5, 0.165, -0.04),
        (base + out * 0.1, 0.2, 0.0),
        (base, 0.17, 0.02),
    ]
    points = np.array(rim) * (side, tall, 1)
    flat = np.concatenate([spline([tuple(p[:2]) for p in points])], 0)
    depth = np.interp(flat[:, 0] * side, (base, base + out), (0.01, -0.08))
    outline = scene.head(np.concatenate([flat, depth[:, None]], 1))
    alpha = scene.mask(outline)
    scene.fill(alpha, scene.lit(scene.skin) * 0.97, label)
    scene.darken(0.4 * alpha * (1 - scene.blur(alpha, 0.02)), (0.7, 1.0, 1.0))
    fold = [(base + out * a, tall * b) for a, b in ((0.3, 0.01), (0.75, 0.005), (0.5, 0.1))]
    fold_flat = spline([(side * a, b) for a, b in fold], closed=False)
    fold_depth = np.full((len(fold_flat), 1), -0.03)
    lines = [scene.head(np.concatenate([fold_flat, fold_depth], 1))]
    scene.darken(0.3 * scene.strokes(lines, 0.01), (0.7, 1.0, 1.0))
    scene.outline(outline, 0.011)
    scene.draw_ink(lines, 0.007, 0.6)


def draw_skin(scene: CandidScene) -> np.ndarray:
    """The face without its features, over the shadow it casts; coverage float32 [S, S]."""
    outlines = [scene.head(points) for points in scene.pose.slices()]
    skull = [scene.head(points) for points in scene.pose.skull(0.0)[2:]]
    alpha = scene.mask(*outlines, *skull)
    body = scene.labelled("neck", "neck_l")
    under = scene.cast(alpha, 0.035, drop=0.035)
    scene.darken(0.4 * under * body, RUDDY)
    scene.darken(0.1 * under * ~body)
    scene.fill(alpha, scene.lit(scene.skin, light=0.15), "skin")
    _shade_skin(scene, alpha)
    edge = alpha - scene.eroded(alpha)
    scene.add_ink(np.clip(edge * 1.5, 0, 1) * 0.95)
    if scene.face.beard:
        draw_beard(scene, alpha)
    _draw_wrinkles(scene)
    return alpha


def _shade_skin(scene: CandidScene, face: np.ndarray) -> None:
    rim = face * (1 - scene.blur(face, 0.06))
    scene.darken(0.4 * rim, (0.75, 1.0, 1.05))
    for side in (-1, 1):
        scene.darken(0.13 * scene.spot(side * 0.14, 0.13, 0.07, 0.055) * face, (0.05, 1.0, 0.75))
        scene.darken(-0.08 * scene.spot(side * 0.135, 0.075, 0.05, 0.03) * face)
        scene.darken(0.13 * scene.spot(side * EYE_X, -0.02, 0.08, 0.04) * face)
        # Below the cheekbone.
        scene.darken(0.09 * scene.spot(side * 0.19, 0.22, 0.05, 0.1) * face)
    scene.darken(-0.08 * scene.spot(0.0, -0.17, 0.15, 0.07) * face)
    scene.darken(-0.07 * scene.spot(0.0, scene.face.chin_y - 0.06, 0.04, 0.03) * face)
    scene.darken(0.10 * scene.spot(0.0, MOUTH_Y + 0.075, 0.07, 0.018) * face)
    grain = smooth_noise(scene.rng, scene.size, 9) + smooth_noise(scene.rng, scene.size, 30)
    scene.darken(0.022 * grain * face)
    if scene.rng.random() < 0.15:
        _draw_freckles(scene, face)


def _draw_freckles(scene: CandidScene, face: np.ndarray) -> None:
    spots = scene.head(scene.rng.normal((0, 0.07), (0.1, 0.05), (50, 2)))
    dots = [np.stack([p, p + 0.006]) for p in spots]
    scene.darken(0.22 * scene.strokes(dots, 0.008) * face, (0.6, 1.0, 1.0))


def _beard_region(kind: str, w: float, chin_y: float) -> tuple[list[list[Point]], float]:
    """Outlines of a beard on the face, and how dense it is."""
    lip_y = MOUTH_Y - 0.035
    moustache: list[Point] = [
        (-0.11, MOUTH_Y + 0.03),
        (-0.09, lip_y - 0.005),
        (0.0, lip_y - 0.02),
        (0.09, lip_y - 0.005),
        (0.11, MOUTH_Y + 0.03),
        (0.0, lip_y + 0.02),
    ]
    if kind == "mustache":
        return [moustache], 0.9
    chin: list[Point] = [
        (-0.1, MOUTH_Y + 0.05),
        (0.0, MOUTH_Y + 0.065),
        (0.1, MOUTH_Y + 0.05),
        (0.08, chin_y),
        (0.0, chin_y + 0.02),
        (-0.08, chin_y),
    ]
    if kind == "goatee":
        sides: list[list[Point]] = [
            [(s * 0.125, MOUTH_Y - 0.02), (s * 0.09, MOUTH_Y), (s * 0.09, 0.33), (s * 0.12, 0.33)]
            for s in (-1, 1)
        ]
        return [moustache, chin, *sides], 0.85
    outer = [(w * 1.05, 0.02), (w * 0.93, 0.08), (w * 0.68, 0.175), (0.11, 0.185), (0.06, lip_y)]
    top = [*outer, (0.0, lip_y - 0.012), *[(-x, y) for x, y in reversed(outer)]]
    below = [(-0.4, 0.0), (-0.4, 0.55), (0.4, 0.55), (0.4, 0.0)]
    return [[*top, *below]], 0.85 if kind == "full beard" else 0.4


def draw_beard(scene: CandidScene, face: np.ndarray) -> None:
    """Beard as hairs on the skin, which they stay in the label map."""
    f = scene.face
    regions, density = _beard_region(f.beard_kind or "", f.face_width, f.chin_y)
    shapes = [scene.head(np.array(points)) for points in regions]
    alpha = scene.blur(scene.mask(*shapes), 0.014) * face
    roots = scene.rng.uniform((-f.face_width, 0.0), (f.face_width, f.chin_y + 0.02), (220, 2))
    tips = roots * (1.05, 1) + np.stack([0 * roots[:, 0], np.full(len(roots), 0.028)], 1)
    low, high = scene.head(roots), scene.head(tips)
    field = scene.strands(list(np.stack([low, high], 1)), 0.006)
    scene.fill(alpha * density * (0.82 + 0.18 * field), scene.hair * 0.85, hide=False)
    scene.darken(0.3 * np.clip(field, -1, 1) * alpha)
    scene.add_ink(np.clip(field * 1.6 - 0.25, 0, 0.9) * alpha * min(1.0, density + 0.2))


def _draw_wrinkles(scene: CandidScene) -> None:
    f = scene.face
    depth = {"young": 0.0, "middle-aged": 0.1, "elderly": 0.24}[f.age]
    smile = 0.1 if f.expression != "serious" else 0.02
    w = f.mouth_width
    folds = [
        [(s * 0.085, 0.16), (s * (w + 0.03), 0.2), (s * (w + 0.045), MOUTH_Y + 0.02)]
        for s in (-1, 1)
    ]
    forehead = [[(-0.1, y), (0.0, y - 0.008), (0.1, y)] for y in (-0.17, -0.14)]
    bags = [
        [(s * (EYE_X - 0.05), 0.034), (s * EYE_X, 0.05), (s * (EYE_X + 0.05), 0.032)]
        for s in (-1, 1)
    ]
    feet = [
        [(s * (EYE_X + 0.065), 0.0), (s * (EYE_X + 0.095), y)]
        for s in (-1, 1)
        for y in (-0.01, 0.02)
    ]
    groups = ((folds, depth + smile), (forehead, depth), (bags, 0.4 * depth + 0.05), (feet, depth))
    for group, strength in groups:
        if strength == 0:
            continue
        lines = [scene.curve(points) for points in group]
        scene.darken(strength * 1.2 * scene.strokes(lines, 0.01), RUDDY)
        scene.draw_ink(lines, 0.007, min(0.7, 2.5 * strength))


def closed_line(polygon: np.ndarray) -> np.ndarray:
    """A polygon as a line whose joint closes."""
    return np.concatenate([ring(polygon), polygon[1:2]])
