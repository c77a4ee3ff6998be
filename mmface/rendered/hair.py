"""Hair: what falls behind the head, and what lies on it and at its sides."""

import numpy as np
from PIL import Image, ImageFilter

from mmface.rendered.attributes import COVERING_STYLES, FaceAttributes
from mmface.rendered.curves import between, ellipse, mirror, ring, spline
from mmface.rendered.scene import RUDDY, Scene


def draw_back_hair(scene: Scene) -> None:
    """Hair behind the head: a bun, or what falls behind the neck."""
    if scene.face.hair_style == "bun":
        _draw_bun(scene)
    elif scene.face.hair_style in COVERING_STYLES:
        _draw_falling_hair(scene)


def draw_front_hair(scene: Scene) -> None:
    """Hair on the head and, over covered ears, the locks at its sides."""
    f = scene.face
    inner, outer = _hairline(f), _cap_edge(f)
    shapes = [scene.place(np.concatenate([outer, inner[::-1]]))]
    locks = _cap_locks(scene, inner, outer)
    if f.hair_style in COVERING_STYLES and not f.ears_visible:
        end = 0.32 if f.hair_style == "shoulder-length" else 0.6
        for side in (-1.0, 1.0):
            shapes.append(scene.place(_side_hair(f, end) * (side, 1)))
            locks += _side_locks(scene, side, end)
    alpha = scene.mask(*shapes)
    forehead = scene.labelled("skin", "l_brow", "r_brow")
    scene.darken(0.3 * scene.cast(alpha, 0.025, drop=0.02) * forehead, RUDDY)
    _paint_hair(scene, alpha, locks, sheen=0.2)
    # Outlines of single shapes are faint where they run inside their union.
    visible = 1 - 0.8 * _eroded(alpha)
    for shape in shapes:
        scene.draw_ink([ring(shape)], 0.013, 0.92, visible)


def _paint_hair(scene: Scene, alpha: np.ndarray, locks: list[np.ndarray], sheen: float) -> None:
    """A layer of hair; `locks` are strands, alternately dark and pale."""
    scene.fill(alpha, scene.lit(scene.hair, light=0.06), "hair")
    rim = alpha * (1 - scene.blur(alpha, 0.022))
    dark = scene.strokes(locks[::2], 0.007) * alpha
    pale = scene.strokes(locks[1::2], 0.009) * alpha
    scene.darken(0.24 * dark + 0.26 * rim)
    band = np.exp(-(((scene.y - sheen) / 0.07) ** 2))
    gain = (12 + 0.12 * scene.hair) * np.array((1.0, 0.96, 0.9), np.float32)
    scene.add(pale * (0.35 + 1.3 * band), gain)
    scene.draw_ink(locks[::2], 0.006, 0.85, alpha)
    scene.draw_ink(locks[1::4], 0.005, 0.55, alpha)


def _draw_bun(scene: Scene) -> None:
    knot = scene.place(ellipse(0.0, -0.405, 0.12, 0.085))
    coils = [
        scene.place(ellipse(0.0, -0.405, 0.12 * s, 0.085 * s, 0.3, 3.4))
        for s in (0.9, 0.75, 0.6, 0.45, 0.3)
    ]
    _paint_hair(scene, scene.mask(knot), coils, sheen=0.06)
    scene.outline(knot)


def _draw_falling_hair(scene: Scene) -> None:
    f, rng = scene.face, scene.rng
    outline = scene.place(_falling_outline(f, rng))
    sway = 0.02 if f.hair_style == "long wavy" else 0.004
    ys = np.linspace(-0.25, 0.56, 22)
    half = f.face_width + f.hair_volume + 0.02 + 0.15 * (ys + 0.1)
    locks = []
    for x in np.linspace(-1, 1, 34) + rng.uniform(-0.02, 0.02, 34):
        wave = sway * np.sin(ys * 26 + rng.uniform(-0.4, 0.4)) * np.sign(x)
        locks.append(scene.place(np.stack([x * half + wave, ys], 1)))
    _paint_hair(scene, scene.mask(outline), locks, sheen=0.62)
    scene.outline(outline)


def _falling_outline(f: FaceAttributes, rng: np.random.Generator) -> np.ndarray:
    w, v = f.face_width, f.hair_volume
    if f.hair_style == "shoulder-length":
        side = [(w + v + 0.01, -0.05), (w + v + 0.035, 0.12), (w + v + 0.035, 0.25)]
        return spline(mirror([(0.0, -0.40), (w * 0.8, -0.34), *side, (w, 0.335)]))
    sway = 0.022 if f.hair_style == "long wavy" else 0.0
    ys = np.linspace(-0.1, 0.56, 9)
    half = w + v + 0.02 + 0.11 * (ys + 0.1) / 0.66 + sway * np.sin(ys * 26)
    half = half + rng.uniform(-0.004, 0.004, 9)
    right = list(zip(half.tolist(), ys.tolist(), strict=True))
    return spline(mirror([(0.0, -0.42), (w * 0.8, -0.36), *right]))


def _temple(f: FaceAttributes) -> float:
    """Height at which the hair on the head ends at its sides."""
    return 0.0 if f.ears_visible else 0.06


def _hairline(f: FaceAttributes) -> np.ndarray:
    """Lower edge of the hair on the head, from the picture's right to its left: [N, 2]."""
    w, p, low = f.face_width, f.parting, _temple(f)
    if f.hair_style == "bangs":
        half = [(w, low), (w * 0.93, -0.08), (w * 0.72, -0.134), (w * 0.3, -0.142)]
        return spline(mirror(half), closed=False)
    top = -0.285 if f.hair_style == "bun" else -0.27
    # Hair dips on the side it is combed to.
    dip = 0.03 if f.gender == "woman" else 0.015
    right = [(w, low), (w * 0.93, -0.1), (w * 0.72, -0.215 + (dip if p < 0 else -0.01))]
    left = [(-w * 0.72, -0.215 + (dip if p > 0 else -0.01)), (-w * 0.93, -0.1), (-w, low)]
    part = [(p + 0.03, top + 0.01), (p, top - 0.012), (p - 0.03, top + 0.01)]
    return spline([*right, *part, *left], closed=False)


def _cap_edge(f: FaceAttributes) -> np.ndarray:
    """Upper edge of the hair on the head, from the picture's right to its left: [54, 2]."""
    w, v, low = f.face_width, f.hair_volume, _temple(f)
    rx = w + v + {"curly": 0.02, "bun": -0.025}.get(f.hair_style, 0.0)
    top = 0.39 if f.hair_style == "bun" else 0.43 + v * 0.5
    # Hair that frees the ears ends higher and lies closer to the temples.
    start = 0.3 if f.ears_visible else 0.0
    arc = ellipse(0.0, -0.05, rx, top - 0.05, start, np.pi - start, 48)
    if f.hair_style == "curly":
        bumps = 1 + 0.045 * np.sin(np.linspace(0, np.pi * 22, 48))[:, None]
        arc = (arc - (0, -0.05)) * bumps + (0, -0.05)
    tail = np.array([(w + 0.01, low), (w + 0.028, low - 0.03), (w + 0.7 * v, low - 0.09)])
    return np.concatenate([tail, arc, tail[::-1] * (-1, 1)])


def _side_hair(f: FaceAttributes, end: float) -> np.ndarray:
    """Outline of the hair that falls over the ear on the picture's right, down to `end`."""
    w = f.face_width
    out = w + f.hair_volume + 0.02
    inside = [(w * 0.8, -0.24), (w * 0.95, -0.06), (w * 0.97, 0.1), (w * 0.93, 0.24)]
    outside = [(out + 0.02, end), (out, 0.1), (out - 0.02, -0.1)]
    return spline([*inside, (w * 0.95, end), *outside])


def _side_locks(scene: Scene, side: float, end: float) -> list[np.ndarray]:
    """Placed strands of the hair over the ear on a side (+1: the picture's right)."""
    ys = np.linspace(-0.2, end, 12)
    sway = 0.012 if scene.face.hair_style == "long wavy" else 0.0
    wave = sway * np.sin(ys * 24)
    xs = scene.face.face_width * np.linspace(0.9, 1.35, 7)
    return [scene.place(np.stack([side * (x + wave), ys], 1)) for x in xs]


def _cap_locks(scene: Scene, inner: np.ndarray, outer: np.ndarray) -> list[np.ndarray]:
    """Placed strands of the hair between the hairline and the upper edge of the hair."""
    if scene.face.hair_style == "curly":
        return _curls(scene, inner, outer)
    if scene.face.hair_style == "bangs":
        ends = np.linspace(-1.2, 1.2, 30) * scene.face.face_width
        falls = [[(x * 0.3, -0.43), (x * 0.85, -0.3), (x, -0.19), (x, -0.12)] for x in ends]
        return [scene.line(fall, steps=4) for fall in falls]
    return _parted_locks(scene, inner, outer)


def _curls(scene: Scene, inner: np.ndarray, outer: np.ndarray) -> list[np.ndarray]:
    rng = scene.rng
    spread = np.concatenate([between(inner, outer, t) for t in np.linspace(0.05, 1, 12)])
    curls = []
    for x, y in rng.permutation(spread)[:90] + rng.uniform(-0.012, 0.012, (90, 2)):
        start = rng.uniform(0, 6.28)
        r = rng.uniform(0.014, 0.03)
        curls.append(scene.place(ellipse(x, y, r, r, start, start + 4.2, 10)))
    return curls


def _parted_locks(scene: Scene, inner: np.ndarray, outer: np.ndarray) -> list[np.ndarray]:
    """Placed strands from the parting down to both sides; those on the right come first."""
    f = scene.face
    middle = 12 - round(f.parting / f.face_width * 8)
    right, left = [], []
    for amount in np.linspace(0.02, 0.98, 17):
        loose = amount + scene.rng.uniform(-0.02, 0.02)
        curve = between(inner, outer, float(np.clip(loose, 0, 1)))
        right.append(scene.place(curve[: middle + 1]))
        left.append(scene.place(curve[middle:]))
    return right + left


def _eroded(alpha: np.ndarray) -> np.ndarray:
    """Coverage shrunk by about a pixel, to tell the inside of a union from its border."""
    image = Image.fromarray((alpha * 255).astype(np.uint8)).filter(ImageFilter.MinFilter(3))
    return np.asarray(image, np.float32) / 255
