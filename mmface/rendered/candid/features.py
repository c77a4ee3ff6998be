"""The features of the face: nose, mouth, eyes and brows."""

import numpy as np

from mmface.rendered.attributes import EYE_COLORS
from mmface.rendered.candid.canvas import CandidScene
from mmface.rendered.candid.pose import EYE_X, MOUTH_Y
from mmface.rendered.curves import ellipse, spline
from mmface.rendered.scene import DARK, RUDDY, WHITE, rgb


def draw_nose(scene: CandidScene, face: np.ndarray) -> None:
    """The nose: a region in the label map, shade and a few lines in the others.

    It is drawn as its parts seen from anywhere: bridge, tip and wings at their own depths.
    """
    f = scene.face
    w, end = f.nose_width, f.nose_length
    base = 0.19
    bridge = [(0.028, 0.0), (0.024, end * 0.35), (w * 0.55, end * 0.72), (w, end * 0.83)]
    bottom = [(w * 0.93, end * 0.96), (w * 0.45, end * 1.02), (0.0, end * 1.06)]
    right = np.array([*bridge, *bottom])
    outline = np.concatenate([right, right[::-1][1:] * (-1, 1)])
    flat = spline([tuple(p) for p in outline], steps=4)
    depth = np.interp(flat[:, 1], (0.0, end), (0.195, 0.225)) - 0.02 * np.abs(flat[:, 0]) / w
    wings = scene.head(np.concatenate([flat, depth[:, None]], 1))
    ridge_y = np.array((-0.0, 0.3, 0.6, 0.85, 0.97, 1.05)) * end
    ridge_z = np.array((0.2, 0.225, 0.262, 0.3, 0.3, 0.262)) + base - 0.19
    half = np.array((0.02, 0.02, 0.026, 0.036, 0.034, 0.014))
    ridge = np.concatenate(
        [np.stack([half, ridge_y, ridge_z], 1), np.stack([-half, ridge_y, ridge_z], 1)[::-1]]
    )
    tip = scene.head(ridge)
    alpha = scene.mask(wings, tip)
    # In profile the nose stands out over the cheek: skin is there that the face has not.
    beyond = alpha * (1 - face)
    scene.fill(beyond, scene.lit(scene.skin, light=0.15) * 0.97, "nose")
    scene.mark(alpha >= 0.5, "nose")
    _shade_nose(scene, alpha, end)
    nostrils = [
        scene.head(
            np.concatenate(
                [
                    ellipse(s * w * 0.42, end * 0.985, 0.016, 0.008, count=12),
                    np.full((12, 1), 0.25),
                ],
                1,
            )
        )
        for s in (-1, 1)
    ]
    scene.darken(0.55 * scene.mask(*nostrils), (0.85, 1.0, 1.0))
    sides = []
    for s in (-1, 1):
        side = spline(
            [(s * w * 0.8, end * 0.66), (s * w * 1.02, end * 0.83), (s * w * 0.7, end * 0.99)],
            closed=False,
        )
        sides.append(scene.head(np.concatenate([side, np.full((len(side), 1), 0.225)], 1)))
    under = spline([(-w * 0.5, end), (0.0, end * 1.05), (w * 0.5, end)], closed=False)
    sides.append(scene.head(np.concatenate([under, np.full((len(under), 1), 0.262)], 1)))
    scene.darken(0.26 * scene.strokes(sides, 0.009), (0.75, 1.0, 1.0))
    scene.draw_ink(sides, 0.009, 0.8)
    scene.draw_ink(nostrils, 0.012, 0.85)
    if scene.turn > 0.2:
        far_edge = ridge[:6] if scene.far > 0 else ridge[6:]
        scene.draw_ink([scene.head(far_edge)], 0.01, 0.85)


def _shade_nose(scene: CandidScene, nose: np.ndarray, end: float) -> None:
    """Shadow beside and below the nose, light on its bridge and tip."""
    side = -scene.light if scene.light else scene.far
    soft = scene.blur(nose, 0.016)
    below = scene.spot(0.0, end * 1.05, 0.8 * scene.face.nose_width, 0.013, 0.03)
    scene.darken(0.16 * scene.spot(side * 0.045, end * 0.4, 0.03, 0.09, 0.02) * soft, RUDDY)
    scene.darken(0.16 * below * (1 - soft * 0.6), RUDDY)
    scene.darken(-0.12 * scene.spot(-side * 0.004, end * 0.3, 0.014, 0.09, 0.03))
    scene.darken(-0.18 * scene.spot(-side * 0.01, end * 0.78, 0.024, 0.022, 0.08))


def draw_mouth(scene: CandidScene) -> None:
    """Lips, and teeth between them where the mouth is open."""
    f = scene.face
    smile = f.expression != "serious"
    w = f.mouth_width + (0.018 if f.expression == "open smile" else 0.006 * smile)
    gap = f.mouth_open if f.expression == "open smile" else 0.0
    rise = {"open smile": 0.034, "smile": 0.022, "serious": 0.0}[f.expression]
    y, lip = MOUTH_Y - 0.3 * gap, f.lip
    corners = ((-w, y - rise), (w, y - rise))
    sag = 0.55 * rise if gap else 0.3 * rise
    top = spline(
        [
            corners[0],
            (-w * 0.5, y - 0.5 * rise + sag * 0.6),
            (0.0, y + sag - 0.3 * rise),
            (w * 0.5, y - 0.5 * rise + sag * 0.6),
            corners[1],
        ],
        closed=False,
    )
    low = spline(
        [
            corners[0],
            (-w * 0.55, y - 0.3 * rise + gap * 0.75 + sag * 0.5),
            (0.0, y + gap + sag),
            (w * 0.55, y - 0.3 * rise + gap * 0.75 + sag * 0.5),
            corners[1],
        ],
        closed=False,
    )
    if not gap:
        low = top
    bow = spline(
        [
            corners[1],
            (w * 0.55, y - rise * 0.6 - lip * 0.75),
            (w * 0.16, y - lip * 1.1),
            (0.0, y - lip * 0.85),
            (-w * 0.16, y - lip * 1.1),
            (-w * 0.55, y - rise * 0.6 - lip * 0.75),
            corners[0],
        ],
        closed=False,
    )
    floor = low[len(low) // 2, 1]
    base = spline(
        [
            corners[1],
            (w * 0.55, floor - 0.35 * rise + lip * 0.85 - gap * 0.25),
            (0.0, floor + lip * 1.35),
            (-w * 0.55, floor - 0.35 * rise + lip * 0.85 - gap * 0.25),
            corners[0],
        ],
        closed=False,
    )
    lift = 0.016
    upper = scene.head(np.concatenate([top, bow]), lift)
    lower = scene.head(np.concatenate([low, base]), lift)
    if gap:
        _draw_teeth(scene, scene.head(np.concatenate([top, low[::-1]]), lift), y, gap, w)
    rose = np.array((186, 52, 68) if f.lipstick else (178, 98, 92), np.float32)
    share = 0.75 if f.lipstick else 0.5
    tint = (1 - share) * scene.skin * (0.9, 0.72, 0.72) + share * rose
    lower_alpha = scene.mask(lower)
    scene.fill(lower_alpha, scene.lit(tint * 1.08), "l_lip")
    scene.fill(scene.mask(upper), scene.lit(tint * 0.84), "u_lip")
    scene.add(48 * scene.spot(0.0, floor + lip * 0.6, w * 0.4, 0.01, lift) * lower_alpha)
    lines = [scene.head(top, lift)]
    scene.darken(0.55 * scene.strokes(lines, 0.008), (0.85, 1.0, 1.0))
    scene.outline(upper, 0.006, 0.6)
    scene.outline(lower, 0.006, 0.55)
    scene.draw_ink([*lines, scene.head(low, lift)] if gap else lines, 0.01, 0.9)


def _draw_teeth(scene: CandidScene, opening: np.ndarray, y: float, gap: float, w: float) -> None:
    """The inside of an open mouth."""
    alpha = scene.mask(opening)
    scene.fill(alpha, np.array((92, 30, 36), np.float32), "mouth")
    teeth = scene.mask(scene.head(ellipse(0.0, y - 0.015, w * 0.95, 0.022 + gap * 0.75), 0.016))
    scene.fill(teeth * alpha, WHITE * 0.97)
    gaps = [
        scene.head([(d, y - 0.04), (d, y + gap * 0.8)], 0.016) for d in np.linspace(-0.07, 0.07, 7)
    ]
    lines = scene.strokes(gaps, 0.004) * teeth * alpha
    scene.darken(0.14 * lines)
    scene.add_ink(0.4 * lines)


def draw_eye(scene: CandidScene, side: float) -> None:
    """One eye; `side` is +1 on the picture's right, -1 on its left."""
    f = scene.face
    laughing = f.expression == "open smile"
    openness = {"wide": 1.15, "open": 0.9, "narrow": 0.58, "closed": 0.2}[f.eyes]
    openness *= 0.82 if laughing else 1.0
    half, tall = f.eye_width, f.eye_height / 2 * openness
    x, lift = side * EYE_X, 0.004
    bend = -0.006 if f.eyes == "closed" or (laughing and f.eyes == "narrow") else 0.0
    lid = [
        (-half, 0.006),
        (-half * 0.55, -tall * 0.72 + bend),
        (0.0, -tall + bend),
        (half * 0.6, -tall * 0.78 + bend),
        (half, -0.006),
    ]
    low = [
        (half * 0.55, tall * 0.72 + bend),
        (0.0, tall * 0.9 + bend),
        (-half * 0.6, tall * 0.7 + bend),
    ]
    outline = scene.curve([(x + side * a, b) for a, b in [*lid, *low]], closed=True, lift=lift)
    alpha = scene.mask(outline)
    label = "l_eye" if side > 0 else "r_eye"
    lash = [(x + side * a, b) for a, b in [*lid, (half * 1.12, -0.016)]]
    crease = [(x + side * a, b - 0.018) for a, b in lid[1:]]
    lashes, folds = scene.curve(lash, lift=lift), scene.curve(crease, lift=lift)
    if f.eyes == "closed":
        scene.fill(alpha, scene.lit(scene.skin) * 0.86, label)
    else:
        scene.fill(alpha, WHITE * 0.98, label)
        _draw_iris(scene, alpha, x, tall)
    weight = 0.013 if f.lipstick else 0.009
    scene.fill(scene.strokes([lashes], weight) * 0.9, DARK, hide=False)
    scene.darken(0.24 * scene.strokes([folds], 0.008), RUDDY)
    scene.outline(outline, 0.007, 0.6)
    scene.draw_ink([lashes], 0.013, 0.95)
    scene.draw_ink([folds], 0.006, 0.5)


def _draw_iris(scene: CandidScene, eye: np.ndarray, x: float, tall: float) -> None:
    """Iris and pupil, the shadow of the lid on them, and a glint."""
    f = scene.face
    gaze = x - 0.014 * np.sin(f.yaw) + 0.008 * scene.rng.uniform(-1, 1)
    iris = scene.head(ellipse(gaze, -0.003, 0.025, 0.026, count=20), 0.004)
    inner = scene.head(ellipse(gaze, 0.0, 0.02, 0.021, count=20), 0.004)
    pupil = scene.mask(scene.head(ellipse(gaze, -0.002, 0.011, 0.012, count=12), 0.004))
    glint = scene.mask(scene.head(ellipse(gaze - 0.008, -0.01, 0.007, 0.007, count=10), 0.004))
    color = rgb(EYE_COLORS[f.eye_color])
    scene.fill(scene.mask(iris) * eye, color * 0.7)
    scene.fill(scene.mask(inner) * eye, color * 1.1)
    scene.fill(pupil * eye, DARK * 0.6)
    scene.darken(0.3 * eye * scene.spot(x, -tall, 0.07, 0.012))
    scene.fill(glint * eye, (255.0, 255.0, 255.0), hide=False)
    scene.draw_ink([iris], 0.008, 0.75, eye)
    scene.add_ink(0.95 * pupil * eye)


def draw_brow(scene: CandidScene, side: float) -> None:
    """One eyebrow; `side` is +1 on the picture's right, -1 on its left."""
    f = scene.face
    y, top = f.brow_y, f.brow_y - f.brow_arch
    ridge = [(0.042, y + 0.012), (0.08, top + 0.004), (0.14, top), (0.205, y + 0.006)]
    spine = spline(ridge, closed=False)
    t = np.linspace(0, 1, len(spine))
    thick = 0.5 * f.brow_weight * (1 - 0.75 * t**2.5)
    rise = np.stack([0 * t, thick], 1)
    shape = np.concatenate([spine - rise, (spine + rise)[::-1]])
    placed = scene.head(shape * (side, 1), 0.012)
    alpha = scene.mask(placed)
    color = np.minimum(0.7 * scene.hair + 0.08 * scene.skin, 0.72 * scene.skin)
    scene.fill(alpha * 0.88, color)
    scene.mark(alpha >= 0.5, "l_brow" if side > 0 else "r_brow")
    starts = np.repeat(spine[1:-1], 2, 0) * (side, 1)
    ends = starts + (0.016 * side, -0.012)
    hairs = list(np.stack([scene.head(starts, 0.012), scene.head(ends, 0.012)], 1))
    scene.darken(0.3 * scene.strokes(hairs, 0.006) * alpha)
    scene.outline(placed, 0.006, 0.4)
    scene.draw_ink(hairs, 0.009, 0.85)
