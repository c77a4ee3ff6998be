"""What is worn on the head: glasses, hat and earrings."""

from collections.abc import Iterable

import numpy as np

from mmface.rendered.attributes import HAT_COLORS
from mmface.rendered.candid.canvas import CandidScene
from mmface.rendered.candid.head import closed_line
from mmface.rendered.candid.pose import EYE_X
from mmface.rendered.curves import ellipse, spline
from mmface.rendered.scene import DARK, GOLD, WHITE, rgb


def draw_glasses(scene: CandidScene) -> None:
    """Glasses: frame and lens are `eye_g`, which covers the eyes in one face of two."""
    rng = scene.rng
    lenses = []
    t = np.linspace(0, 2 * np.pi, 32)
    square, rx, ry = rng.uniform(0.55, 1.0), rng.uniform(0.085, 0.102), rng.uniform(0.055, 0.08)
    for s in (-1, 1):
        across = np.sign(np.cos(t)) * np.abs(np.cos(t)) ** square * rx + s * EYE_X
        down = np.sign(np.sin(t)) * np.abs(np.sin(t)) ** square * ry + 0.008
        depth = 0.235 - 0.35 * np.maximum(0, np.abs(across) - 0.1)
        lenses.append(scene.head(np.stack([across, down, depth], 1)))
    glass = scene.mask(*lenses)
    bridge = scene.head(
        np.array([(-0.03, -0.012, 0.235), (0, -0.022, 0.24), (0.03, -0.012, 0.235)])
    )
    w = scene.face.face_width
    arms = [
        scene.head(np.array([(s * (EYE_X + rx), -0.015, 0.2), (s * (w + 0.008), -0.03, 0.0)]))
        for s in (-1, 1)
        if scene.turn < 0.25 or s != scene.far
    ]
    thick = rng.uniform(0.008, 0.02)
    frame = scene.strokes([*[closed_line(each) for each in lenses], bridge, *arms], thick)
    frame *= ~scene.labelled("hair", "background")
    seen = scene.labelled("l_eye", "r_eye", "l_brow", "r_brow") * bool(rng.random() < 0.5)
    hair = scene.labelled("hair")
    dark = rng.random() < 0.12
    streak = np.exp(-((((scene.x - scene.y * 0.6) * 5.2) % 1.0 - 0.5) ** 2) * 60)
    if dark:
        scene.fill(glass * 0.85 * ~hair, DARK)
    scene.fill(glass * (0.05 + 0.16 * streak) * ~hair, WHITE, hide=False)
    scene.fill(frame, DARK * 1.2 if rng.random() < 0.7 else GOLD * 0.8)
    scene.mark((glass >= 0.5) & ~(seen | hair) if not dark else (glass >= 0.5) & ~hair, "eye_g")
    scene.mark((frame >= 0.5) & ~hair, "eye_g")
    scene.add_ink(0.9 * frame)


def draw_hat(scene: CandidScene) -> None:
    """A hat over the hair, with its shadow on the face."""
    f, rng = scene.face, scene.rng
    assert f.hat is not None
    color = rgb(HAT_COLORS[f.hat])
    extra = f.hair_volume + 0.03
    line = rng.uniform(-0.24, -0.15)
    lift = 0.02
    crown = []
    for points in scene.pose.skull(extra, 0.03):
        points = points.copy()
        points[:, 1] = np.minimum(points[:, 1], line)
        crown.append(scene.head(points))
    dome = _hull(np.concatenate(crown))
    half = f.face_width + extra
    angles = np.linspace(0, 2 * np.pi, 48)
    if f.hat_kind == "beanie":
        band = _round_band(scene, half + 0.012, line - 0.075, line + 0.02)
    elif f.hat_kind == "cap":
        x = np.linspace(-1, 1, 20)
        front = np.stack([x * half * 0.9, line + 0.05 - 0.05 * x**2, 0.38 - 0.26 * x**2], 1)
        rear = np.stack([x[::-1] * half * 0.95, np.full(20, line - 0.045), np.full(20, 0.16)], 1)
        band = [_hull(scene.head(np.concatenate([front, rear]), lift))]
    else:
        wide = half + rng.uniform(0.1, 0.2)
        tilt = rng.uniform(0.06, 0.14)
        brim = np.stack(
            [
                wide * np.cos(angles),
                line + 0.005 + tilt * np.abs(np.cos(angles)) ** 2 * 0.5,
                -0.05 + 0.34 * np.sin(angles),
            ],
            1,
        )
        band = [_hull(scene.head(np.concatenate([brim, brim + (0, -0.02, 0)])))]
        band += _round_band(scene, half, line - 0.06, line)
    alpha = scene.mask(*band)
    face = scene.labelled("skin", "nose", "l_eye", "r_eye", "l_brow", "r_brow")
    scene.darken(0.34 * scene.cast(alpha, 0.03, drop=0.035) * face)
    t, a = np.linspace(0, np.pi / 2, 6)[None], np.linspace(-1, 1, 60)[:, None]
    depth = 0.15 * np.cos(a) * (1 - 0.3 * t)
    lines = np.stack([a * half * np.sin(t), line - 0.26 * np.cos(t) + 0 * a, depth], -1)
    folds = list(scene.head(lines.reshape(-1, 3)).reshape(60, 6, 2))
    field = scene.strands(folds, 0.012)
    gain = 16.0 if color.mean() < 70 else 12.0
    for shape, level in ((scene.mask(dome), 0.93), (alpha, 1.04)):
        scene.fill(shape, scene.lit(color * level), "hat")
        scene.darken(0.45 * shape * (1 - scene.blur(shape, 0.03)))
        scene.add(gain * field * shape)
        scene.add_ink(np.clip((shape - scene.eroded(shape)) * 1.5, 0, 1) * 0.95)
        scene.add_ink(np.clip(field - 0.3, 0, 0.6) * shape)


def _round_band(scene: CandidScene, half: float, top: float, low: float) -> list[np.ndarray]:
    angles = np.linspace(-0.25 * np.pi, 1.25 * np.pi, 40)
    x, z = half * np.cos(angles), -0.06 + 0.28 * np.sin(angles)
    first = np.stack([x * 0.98, np.full(40, top), z], 1)
    second = np.stack([x, low + 0.03 * (1 - np.sin(angles)), z], 1)
    return [_hull(scene.head(np.concatenate([first, second[::-1]])))]


def _hull(points: np.ndarray) -> np.ndarray:
    """The convex outline of placed points."""
    ordered = sorted(map(tuple, points.tolist()))

    def chain(path: Iterable[tuple[float, ...]]) -> list[tuple[float, ...]]:
        kept: list[tuple[float, ...]] = []
        for p in path:
            while len(kept) > 1 and _turns_right(kept[-2], kept[-1], p):
                kept.pop()
            kept.append(p)
        return kept[:-1]

    return np.array(chain(ordered) + chain(ordered[::-1]))


def _turns_right(a: tuple[float, ...], b: tuple[float, ...], c: tuple[float, ...]) -> bool:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]) <= 0


def draw_earrings(scene: CandidScene) -> None:
    """Studs, drops, hoops or long ones below each ear that is seen."""
    rng = scene.rng
    kind = rng.integers(4)
    color = GOLD if rng.random() < 0.55 else np.array((206, 210, 218), np.float32)
    for side, label in ((1.0, "l_ear"), (-1.0, "r_ear")):
        shown = scene.labelled(label)
        if shown.sum() < 0.0009 * scene.size**2:
            continue
        rows, columns = np.nonzero(shown)
        low = rows.max()
        x = (columns[rows >= low - 1].mean() + 0.5) / scene.size
        y = (low + 0.5) / scene.size
        if y > 1.02:
            continue
        if kind == 0:
            shapes = [ellipse(x, y, 0.016, 0.017, count=12)]
        elif kind == 1:
            shapes = [ellipse(x, y, 0.01, 0.012, count=10), ellipse(x, y + 0.045, 0.022, 0.032)]
        elif kind == 2:
            long = rng.uniform(0.07, 0.2)
            lean = 0.02 * side
            shapes = [
                spline(
                    [
                        (x, y - 0.01),
                        (x + 0.02 + lean, y + long * 0.6),
                        (x + lean, y + long),
                        (x - 0.022 + lean, y + long * 0.7),
                    ]
                )
            ]
        else:
            shapes = []
        if shapes:
            alpha = scene.mask(*shapes)
        else:
            hoop = ellipse(x, y + 0.045, 0.036, 0.048)
            shapes = [hoop]
            alpha = scene.strokes([closed_line(hoop)], 0.013)
        scene.fill(alpha, scene.lit(color), "ear_r")
        scene.darken(0.4 * alpha * (1 - scene.blur(alpha, 0.015)))
        scene.add(
            70
            * np.exp(-(((scene.x - x + 0.006) / 0.01) ** 2) - ((scene.y - y - 0.03) / 0.02) ** 2)
            * alpha
        )
        for shape in shapes:
            scene.outline(shape, 0.009)
