"""What a face may wear: necklace, glasses, hat and earrings."""

import numpy as np

from mmface.rendered.attributes import HAT_COLORS
from mmface.rendered.curves import Point, ellipse, mirror, ring
from mmface.rendered.head import EYE_X, EYE_Y, ear_reach
from mmface.rendered.scene import DARK, GOLD, WHITE, Scene, rgb


def draw_necklace(scene: Scene) -> None:
    """A string of beads around the neck."""
    half = 0.155 if scene.face.gender == "woman" else 0.18
    arc = [(-half, 0.365), (-0.11, 0.42), (0.0, 0.445), (0.11, 0.42), (half, 0.365)]
    line = scene.line(arc, head=False)
    beads = [line[i] + ellipse(0.0, 0.0, 0.0235, 0.0235, count=12) for i in range(1, 32, 3)]
    chain = scene.mask(*beads)
    shadow = scene.blur(np.roll(chain, scene.size // 60, 0), 0.008)
    scene.darken(0.2 * shadow * (1 - chain))
    scene.fill(chain, scene.lit(GOLD), "neck_l")
    glints = [bead * 0.45 + 0.55 * bead.mean(0) - 0.006 for bead in beads]
    scene.fill(scene.mask(*glints) * 0.7, WHITE, hide=False)
    scene.draw_ink([ring(bead) for bead in beads], 0.006, 0.8)


def draw_glasses(scene: Scene) -> None:
    """Glasses: frame and lens are `eye_g`, what is seen through them keeps its label."""
    turn = 0.022 * scene.face.yaw
    lenses = [scene.place(_lens(s * EYE_X + turn, EYE_Y + 0.006)) for s in (-1, 1)]
    glass = scene.mask(*lenses)
    bridge = scene.line([(turn - 0.026, -0.03), (turn, -0.04), (turn + 0.026, -0.03)])
    hinge, ear = EYE_X + 0.098, scene.face.face_width + 0.004
    arms = [scene.place(np.array([(s * hinge + turn, -0.03), (s * ear, -0.045)])) for s in (-1, 1)]
    # Two points past the start: the joint of the stroke closes.
    rims = [np.concatenate([lens, lens[:2]]) for lens in lenses]
    frame = scene.strokes([*rims, bridge, *arms], 0.021)
    kept = scene.labelled("l_eye", "r_eye", "l_brow", "r_brow", "hair")
    streak = np.exp(-((((scene.x - scene.y * 0.6) * 5.2) % 1.0 - 0.5) ** 2) * 60)
    scene.fill(glass * (0.06 + 0.16 * streak), WHITE, hide=False)
    scene.fill(frame, DARK * 1.2)
    scene.mark((glass >= 0.5) & ~kept, "eye_g")
    scene.mark(frame >= 0.5, "eye_g")
    scene.add_ink(0.9 * frame)


def _lens(x: float, y: float) -> np.ndarray:
    """Outline of a lens around a point, between an ellipse and a rectangle: [40, 2]."""
    t = np.linspace(0, 2 * np.pi, 40)
    across = np.sign(np.cos(t)) * np.abs(np.cos(t)) ** 0.7 * 0.1
    down = np.sign(np.sin(t)) * np.abs(np.sin(t)) ** 0.7 * 0.07
    return np.stack([across + x, down + y], 1)


def draw_hat(scene: Scene) -> None:
    """A hat over the hair, with its shadow on the face."""
    f = scene.face
    assert f.hat is not None
    color = rgb(HAT_COLORS[f.hat])
    half = f.face_width + f.hair_volume
    crown = [(0.0, -0.53), (half * 0.7, -0.48), (half + 0.015, -0.32), (half + 0.02, -0.2)]
    dome = scene.contour(mirror([*crown, (half * 0.5, -0.21), (0.0, -0.215)]))
    band = scene.contour(mirror(_hat_band(f.hat_kind, half)))
    shadow = scene.cast(scene.mask(band), 0.03, drop=0.035)
    face = scene.labelled("skin", "nose", "l_eye", "r_eye", "l_brow", "r_brow")
    scene.darken(0.3 * shadow * face)
    for shape, gain in ((dome, 0.94), (band, 1.04)):
        alpha = scene.mask(shape)
        scene.fill(alpha, scene.lit(color * gain), "hat")
        scene.darken(0.4 * alpha * (1 - scene.blur(alpha, 0.03)))
        scene.outline(shape)
    if f.hat_kind == "beanie":
        _draw_ribs(scene, half, 26.0 if color.mean() < 70 else -26.0)


def _hat_band(kind: str, half: float) -> list[Point]:
    """Right half outline of a beanie's cuff or a hat's brim, on a head `half` as wide."""
    if kind == "beanie":
        return [
            (0.0, -0.3),
            (half * 0.6, -0.29),
            (half + 0.03, -0.265),
            (half + 0.03, -0.165),
            (half * 0.6, -0.19),
            (0.0, -0.2),
        ]
    return [
        (0.0, -0.29),
        (half, -0.27),
        (half + 0.2, -0.22),
        (half + 0.19, -0.175),
        (half, -0.185),
        (0.0, -0.2),
    ]


def _draw_ribs(scene: Scene, half: float, gain: float) -> None:
    across = np.linspace(-1, 1, 15) * half
    ribs = [scene.place(np.array([(x, -0.27), (x * 1.03, -0.19)])) for x in across]
    for x in across[::2]:
        ribs.append(scene.line([(x * 0.9, -0.3), (x * 0.75, -0.42), (x * 0.3, -0.52)]))
    scene.add(gain * scene.strokes(ribs, 0.008))
    scene.draw_ink(ribs, 0.006, 0.55)


def draw_earrings(scene: Scene) -> None:
    """A drop below each ear."""
    f = scene.face
    for side in (-1.0, 1.0):
        x = side * (f.face_width - 0.012 + 0.05 * ear_reach(f, side))
        drop = scene.place(ellipse(x, 0.15, 0.029, 0.042))
        alpha = scene.mask(drop)
        scene.fill(alpha, scene.lit(GOLD), "ear_r")
        scene.darken(0.4 * alpha * (1 - scene.blur(alpha, 0.015)))
        scene.add(70 * scene.spot(x - 0.008, 0.135, 0.01, 0.014) * alpha)
        scene.outline(drop, 0.009)
