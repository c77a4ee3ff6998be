"""The bare head: ears, skin with its light and shade, beard and wrinkles.

Parts nearer to the viewer move further as the head turns: each follows `yaw` at its own rate.
"""

import numpy as np

from mmface.rendered.attributes import FaceAttributes
from mmface.rendered.curves import Point, mirror
from mmface.rendered.scene import RUDDY, Scene

EYE_X, EYE_Y = 0.122, -0.02
"""The eye on the picture's right, in head coordinates."""
CHIN_Y = 0.375


def ear_reach(f: FaceAttributes, side: float) -> float:
    """How far the ear on a side (+1: the picture's right) stands out; less on the far side."""
    return 1 - 0.22 * max(0.0, side * f.yaw)


def draw_ears(scene: Scene) -> None:
    """Both ears, each with its inner fold."""
    x = scene.face.face_width - 0.012
    for side, label in ((1.0, "l_ear"), (-1.0, "r_ear")):
        out = 0.082 * ear_reach(scene.face, side)
        rim = [
            (x, -0.06),
            (x + out * 0.75, -0.085),
            (x + out, -0.04),
            (x + out * 0.85, 0.05),
            (x + out * 0.5, 0.115),
            (x, 0.12),
        ]
        fold = [
            (x + out * 0.35, -0.04),
            (x + out * 0.72, -0.045),
            (x + out * 0.62, 0.03),
            (x + out * 0.4, 0.06),
        ]
        outline = scene.contour([(side * a, b) for a, b in rim])
        alpha = scene.mask(outline)
        scene.fill(alpha, scene.lit(scene.skin), label)
        scene.darken(0.35 * alpha * (1 - scene.blur(alpha, 0.02)), (0.7, 1.0, 1.0))
        lines = [scene.line([(side * a, b) for a, b in fold])]
        scene.darken(0.3 * scene.strokes(lines, 0.009), (0.7, 1.0, 1.0))
        scene.outline(outline)
        scene.draw_ink(lines, 0.007, 0.6)


def draw_skin(scene: Scene) -> np.ndarray:
    """The face without its features, over the shadow it casts on the body.

    Gives the coverage of the face, float32 [S, S] in [0, 1].
    """
    outline = scene.contour(_face_outline(scene.face))
    alpha = scene.mask(outline)
    under = scene.cast(alpha, 0.03, drop=0.035)
    under[: scene.size // 2] = 0
    body = scene.labelled("neck", "neck_l")
    scene.darken(0.34 * under * body, RUDDY)
    scene.darken(0.12 * under * ~body)
    scene.fill(alpha, scene.lit(scene.skin, light=0.12), "skin")
    _shade_skin(scene, alpha)
    scene.outline(outline, 0.013, 0.92)
    if scene.face.beard:
        _draw_beard(scene, alpha)
    _draw_wrinkles(scene)
    return alpha


def _face_outline(f: FaceAttributes) -> list[Point]:
    w = f.face_width
    half = [
        (0.0, -0.36),
        (w * 0.6, -0.33),
        (w * 0.93, -0.2),
        (w, -0.04),
        (w * 0.965, 0.1),
        (w * f.jaw, 0.24),
        (w * f.chin, 0.345),
        (0.0, CHIN_Y),
    ]
    return mirror(half)


def _shade_skin(scene: Scene, face: np.ndarray) -> None:
    rim = face * (1 - scene.blur(face, 0.05))
    scene.darken(0.34 * rim, (0.75, 1.0, 1.05))
    turn = 0.02 * scene.face.yaw
    for side in (-1, 1):
        cheek = scene.spot(side * 0.145 + turn, 0.12, 0.075, 0.06) * face
        scene.darken(0.13 * cheek, (0.1, 1.0, 0.75))
        scene.darken(-0.05 * scene.spot(side * 0.14 + turn, 0.06, 0.06, 0.035) * face)
        scene.darken(0.1 * scene.spot(side * EYE_X + turn, EYE_Y - 0.02, 0.09, 0.05) * face)
    scene.darken(-0.06 * scene.spot(turn, -0.2, 0.16, 0.08) * face)
    scene.darken(-0.05 * scene.spot(turn, 0.33, 0.05, 0.03) * face)


def _draw_beard(scene: Scene, face: np.ndarray) -> None:
    """Beard and moustache as shade on the skin, which they stay in the label map."""
    w = scene.face.face_width
    turn = 0.02 * scene.face.yaw
    half = [(w * 1.02, 0.0), (w * 0.9, 0.09), (w * 0.66, 0.175), (0.13, 0.182), (0.06, 0.178)]
    edge = [(x + turn, y) for x, y in mirror([*half, (0.0, 0.186)])]
    # From the middle out to the right, around below the chin, and back from the left.
    below = [(0.4, 0.0), (0.4, 0.5), (-0.4, 0.5), (-0.4, 0.0)]
    region = np.array([*edge[:6][::-1], *below, *edge[6:][::-1]])
    alpha = scene.blur(scene.mask(scene.place(region)), 0.012) * face
    roots = scene.rng.uniform((-w, 0.02), (w, CHIN_Y), (150, 2))
    hairs = [scene.place(np.array([(x, y), (x * 1.04, y + 0.026)])) for x, y in roots]
    scene.fill(alpha * 0.72, scene.hair, hide=False)
    grain = scene.strokes(hairs, 0.006) * alpha
    scene.darken(0.22 * grain)
    scene.add_ink(0.6 * grain)


def _draw_wrinkles(scene: Scene) -> None:
    f = scene.face
    depth = {"young": 0.0, "middle-aged": 0.1, "elderly": 0.22}[f.age]
    smile = 0.06 if f.expression != "serious" else 0.0
    turn = 0.025 * f.yaw
    folds = [
        [(s * 0.085 + turn, 0.145), (s * 0.135 + turn, 0.2), (s * 0.145 + turn, 0.25)]
        for s in (-1, 1)
    ]
    forehead = [[(-0.1 + turn, y), (turn, y - 0.008), (0.1 + turn, y)] for y in (-0.185, -0.155)]
    bags = [
        [
            (s * (EYE_X - 0.05) + turn, 0.04),
            (s * EYE_X + turn, 0.052),
            (s * (EYE_X + 0.05) + turn, 0.036),
        ]
        for s in (-1, 1)
    ]
    for group, strength in ((folds, depth + smile), (forehead, depth), (bags, depth)):
        if strength == 0:
            continue
        lines = [scene.line(points) for points in group]
        scene.darken(strength * 1.2 * scene.strokes(lines, 0.01), RUDDY)
        scene.draw_ink(lines, 0.007, min(0.7, 2.5 * strength))
