"""The features of the face: nose, mouth, eyes and brows."""

import numpy as np

from mmface.rendered.attributes import EYE_COLORS, FaceAttributes
from mmface.rendered.curves import ellipse, spline
from mmface.rendered.head import EYE_X, EYE_Y
from mmface.rendered.scene import DARK, RUDDY, WHITE, Scene, rgb

EYE_HALF = 0.068
BROW_Y, MOUTH_Y = -0.098, 0.238
LIP = 0.036
"""Thickness of a lip."""


def draw_nose(scene: Scene, face: np.ndarray) -> None:
    """The nose: a region in the label map, shade and a few lines in the others."""
    f = scene.face
    tip, w = 0.042 * f.yaw, f.nose_width
    outline = _nose_outline(f, tip)
    alpha = scene.mask(scene.place(outline))
    scene.mark(alpha >= 0.5, "nose")
    _shade_nose(scene, face, alpha, tip)
    nostrils = [scene.place(ellipse(tip + s * w * 0.45, 0.158, 0.017, 0.009)) for s in (-1, 1)]
    scene.darken(0.5 * scene.mask(*nostrils), (0.85, 1.0, 1.0))
    wings = [
        scene.line(
            [
                (tip + s * w * 0.8, 0.095),
                (tip + s * w * 1.04, 0.13),
                (tip + s * w * 0.85, 0.162),
                (tip + s * w * 0.5, 0.16),
            ]
        )
        for s in (-1, 1)
    ]
    scene.darken(0.26 * scene.strokes(wings, 0.009), (0.75, 1.0, 1.0))
    scene.draw_ink(wings, 0.009, 0.8)
    scene.draw_ink(nostrils, 0.012, 0.85)
    bridge = [scene.place(line) for line in (outline[8:22], outline[58:72])]
    scene.draw_ink(bridge, 0.006, 0.35)


def _nose_outline(f: FaceAttributes, tip: float) -> np.ndarray:
    """The nose clockwise from its root, its tip turned by `tip`: float64 [80, 2]."""
    turn, w = 0.02 * f.yaw, f.nose_width
    return spline(
        [
            (turn, -0.085),
            (turn + 0.024, -0.075),
            (tip * 0.6 + 0.026, 0.02),
            (tip + w, 0.115),
            (tip + w * 0.9, 0.155),
            (tip, 0.18),
            (tip - w * 0.9, 0.155),
            (tip - w, 0.115),
            (tip * 0.6 - 0.026, 0.02),
            (turn - 0.024, -0.075),
        ]
    )


def _shade_nose(scene: Scene, face: np.ndarray, nose: np.ndarray, tip: float) -> None:
    """Shadow beside and below the nose, light on its bridge and tip."""
    # The side away from the light; under even light, the side that is turned away.
    side = -scene.light if scene.light else (1.0 if scene.face.yaw < 0 else -1.0)
    soft = scene.blur(nose, 0.016)
    below = scene.spot(tip, 0.185, scene.face.nose_width, 0.018)
    scene.darken(0.12 * scene.spot(tip + side * 0.04, 0.05, 0.03, 0.11) * face, RUDDY)
    scene.darken(0.2 * below * (1 - soft * 0.5), RUDDY)
    scene.darken(-0.1 * scene.spot(tip * 0.6 - side * 0.006, 0.03, 0.014, 0.1))
    scene.darken(-0.13 * scene.spot(tip - side * 0.01, 0.122, 0.026, 0.022))


def draw_mouth(scene: Scene) -> None:
    """Lips, and teeth between them where the mouth is open."""
    f = scene.face
    x = 0.026 * f.yaw
    gap = f.mouth_open if f.expression == "open smile" else 0.0
    top, low, opening, upper, lower = (scene.place(curve) for curve in _lips(f, x, gap))
    scene.darken(0.16 * scene.spot(x, MOUTH_Y + gap + 0.065, 0.07, 0.016), RUDDY)
    if gap:
        _draw_teeth(scene, opening, x, gap)
    rose = np.array((188, 62, 74) if f.gender == "woman" else (166, 84, 76), np.float32)
    tint = 0.35 * scene.skin * (0.9, 0.72, 0.72) + 0.65 * rose
    lower_alpha = scene.mask(lower)
    scene.fill(lower_alpha, scene.lit(tint * 1.06), "l_lip")
    scene.fill(scene.mask(upper), scene.lit(tint * 0.86), "u_lip")
    shine = scene.spot(x, MOUTH_Y + gap + LIP * 0.6, f.mouth_width * 0.4, 0.01) * lower_alpha
    scene.add(46 * shine)
    scene.darken(0.5 * scene.strokes([top], 0.008), (0.85, 1.0, 1.0))
    scene.outline(upper, 0.006, 0.6)
    scene.outline(lower, 0.006, 0.55)
    scene.draw_ink([top, low] if gap else [top], 0.01, 0.9)


def _lips(f: FaceAttributes, x: float, gap: float) -> tuple[np.ndarray, ...]:
    """The curves of a mouth in head coordinates, float64 [N, 2] each.

    Lower edge of the upper lip, upper edge of the lower lip, and the outlines of what lies between
    them, of the upper and of the lower lip.
    """
    y, w = MOUTH_Y, f.mouth_width
    rise = {"open smile": 0.032, "smile": 0.034, "serious": 0.014}[f.expression]
    right, left = (x + w, y - rise), (x - w, y - rise)
    middle_top = [(x - w * 0.5, y - 0.003), (x, y), (x + w * 0.5, y - 0.003)]
    middle_low = [(x - w * 0.55, y + gap * 0.72), (x, y + gap), (x + w * 0.55, y + gap * 0.72)]
    bow = [
        (x + w * 0.55, y - LIP * 0.85),
        (x + w * 0.18, y - LIP * 1.12),
        (x, y - LIP * 0.95),
        (x - w * 0.18, y - LIP * 1.12),
        (x - w * 0.55, y - LIP * 0.85),
    ]
    base = [
        (x + w * 0.55, y + gap * 0.8 + LIP * 0.85),
        (x, y + gap + LIP * 1.15),
        (x - w * 0.55, y + gap * 0.8 + LIP * 0.85),
    ]
    top = spline([left, *middle_top, right], closed=False)
    low = spline([left, *middle_low, right], closed=False)
    upper = np.concatenate([top, spline([right, *bow, left], closed=False)])
    lower = np.concatenate([low, spline([right, *base, left], closed=False)])
    return top, low, np.concatenate([top, low[::-1]]), upper, lower


def _draw_teeth(scene: Scene, opening: np.ndarray, x: float, gap: float) -> None:
    """The inside of an open mouth."""
    alpha = scene.mask(opening)
    scene.fill(alpha, np.array((96, 30, 36), np.float32), "mouth")
    teeth = scene.mask(scene.place(ellipse(x, MOUTH_Y - 0.012, 0.1, 0.012 + gap * 0.72)))
    scene.fill(teeth * alpha, WHITE)
    gaps = [
        scene.place(np.array([(x + d, MOUTH_Y - 0.03), (x + d, MOUTH_Y + gap * 0.6)]))
        for d in (-0.052, -0.018, 0.018, 0.052)
    ]
    lines = scene.strokes(gaps, 0.004) * teeth * alpha
    scene.darken(0.12 * lines)
    scene.add_ink(0.35 * lines)


def draw_eye(scene: Scene, side: float, label: str) -> None:
    """One eye; `side` is +1 on the picture's right, -1 on its left."""
    f = scene.face
    x, half, tall = side * EYE_X + 0.022 * f.yaw, EYE_HALF, f.eye_height / 2
    lid = [
        (-half, 0.008),
        (-half * 0.55, -tall * 0.75),
        (0.0, -tall),
        (half * 0.6, -tall * 0.78),
        (half, -0.004),
    ]
    low = [(half * 0.55, tall * 0.72), (0.0, tall * 0.95), (-half * 0.6, tall * 0.7)]
    outline = scene.contour([(x + side * a, EYE_Y + b) for a, b in [*lid, *low]])
    alpha = scene.mask(outline)
    scene.fill(alpha, WHITE, label)
    _draw_iris(scene, alpha, x)
    lash = [(x + side * a, EYE_Y + b) for a, b in [*lid, (half * 1.12, -0.016)]]
    crease = [(x + side * a, EYE_Y + b - 0.02) for a, b in lid[1:]]
    lashes, folds = [scene.line(lash)], [scene.line(crease)]
    weight = 0.014 if f.gender == "woman" else 0.010
    scene.fill(scene.strokes(lashes, weight) * 0.9, DARK, hide=False)
    scene.darken(0.22 * scene.strokes(folds, 0.008), RUDDY)
    scene.outline(outline, 0.007, 0.6)
    scene.draw_ink(lashes, 0.013, 0.95)
    scene.draw_ink(folds, 0.006, 0.5)


def _draw_iris(scene: Scene, eye: np.ndarray, x: float) -> None:
    """Iris and pupil, the shadow of the lid on them, and a glint."""
    f, y = scene.face, EYE_Y
    color = rgb(EYE_COLORS[f.eye_color])
    gaze = x + 0.012 * f.yaw
    iris = scene.place(ellipse(gaze, y - 0.004, 0.036, 0.041))
    inner = scene.place(ellipse(gaze, y + 0.002, 0.029, 0.032))
    pupil = scene.mask(scene.place(ellipse(gaze, y, 0.017, 0.018)))
    glint = scene.mask(scene.place(ellipse(gaze - 0.013, y - 0.013, 0.01, 0.01)))
    scene.fill(scene.mask(iris) * eye, color * 0.72)
    scene.fill(scene.mask(inner) * eye, color * 1.12)
    scene.fill(pupil * eye, DARK * 0.6)
    lid = scene.spot(x, y - f.eye_height / 2, 9.0, 0.016)
    scene.darken(0.35 * eye * np.exp(-((lid - 1) ** 2) * 12))
    scene.fill(glint * eye, (255.0, 255.0, 255.0), hide=False)
    scene.draw_ink([iris], 0.008, 0.75, eye)
    scene.add_ink(0.95 * pupil * eye)


def draw_brow(scene: Scene, side: float, label: str) -> None:
    """One eyebrow; `side` is +1 on the picture's right, -1 on its left."""
    f = scene.face
    mirrored, turn = (side, 1), (0.02 * f.yaw, 0)
    top = BROW_Y - f.brow_arch
    ridge = [(0.052, BROW_Y + 0.004), (0.09, top + 0.004), (0.15, top), (0.205, BROW_Y)]
    spine = spline(ridge, closed=False)
    t = np.linspace(0, 1, len(spine))
    thick = 0.5 * f.brow_weight * (1 - 0.45 * t**3)
    rise = np.stack([0 * t, thick], 1)
    shape = np.concatenate([spine - rise, (spine + rise)[::-1]])
    placed = scene.place(shape * mirrored + turn)
    alpha = scene.mask(placed)
    # Brows of pale hair stay darker than the skin around them.
    color = np.minimum(0.72 * scene.hair + 0.08 * scene.skin, 0.72 * scene.skin)
    scene.fill(alpha * 0.9, color)
    scene.mark(alpha >= 0.5, label)
    hairs = [
        scene.place(np.array([(x, y + 0.012), (x + 0.016, y - 0.012)]) * mirrored + turn)
        for x, y in spine[1:-2:2]
    ]
    scene.darken(0.2 * scene.strokes(hairs, 0.006) * alpha)
    scene.outline(placed, 0.006, 0.5)
    scene.draw_ink(hairs, 0.009, 0.8)
