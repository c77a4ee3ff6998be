"""Hair: what falls behind the head, and what lies on it, over the forehead and at its sides."""

import numpy as np

from mmface.rendered.candid.attributes import LONG_STYLES
from mmface.rendered.candid.canvas import CandidScene
from mmface.rendered.curves import between, ellipse, spline
from mmface.rendered.scene import RUDDY

Lines = list[np.ndarray]


def draw_back_hair(scene: CandidScene) -> None:
    """Hair behind the head: its far side, a bun, or what falls behind the neck."""
    f = scene.face
    if f.hair_style == "bald":
        return
    if f.hair_style == "bun":
        _draw_bun(scene)
    shapes = [scene.head(points) for points in _skull(scene)[:5]]
    if f.hair_style in LONG_STYLES:
        left, right = _falling_edges(scene)
        shapes.append(np.concatenate([left, right[::-1]]))
        lines = _spread(scene, left, right, 120)
    else:
        lines = _fan(scene, 70)
    _paint(scene, shapes, lines, shade=0.8)


def draw_front_hair(scene: CandidScene) -> None:
    """Hair on the head, the fringe, and the curtains at the sides."""
    f = scene.face
    if f.hair_style == "bald":
        return
    cap = scene.mask(*[scene.head(points) for points in _skull(scene)[1:]])
    opening = scene.mask(scene.head(_window(scene), 0.012))
    tufts, strands = _fringe(scene)
    side_shapes, side_lines = _curtains(scene)
    alpha = np.maximum(cap * (1 - opening), scene.mask(*tufts, *side_shapes))
    forehead = scene.labelled("skin", "l_brow", "r_brow", "nose")
    scene.darken(0.32 * scene.cast(alpha, 0.025, drop=0.018) * forehead, RUDDY)
    _paint_alpha(scene, alpha, _fan(scene, 150) + strands + side_lines)


def _skull(scene: CandidScene) -> Lines:
    f = scene.face
    volume = f.hair_volume + (0.03 if f.hair_style == "curly" else 0.0)
    top = {"slicked back": 0.02, "tousled": 0.03, "curly": 0.03, "bun": -0.03}.get(f.hair_style, 0)
    outlines = scene.pose.skull(volume, top)
    if f.hair_style in ("curly", "tousled"):
        waves = 0.035 if f.hair_style == "curly" else 0.02
        angles = np.linspace(0, 2 * np.pi, 40)
        bumps = 1 + waves * np.sin(angles * 15 + f.texture_seed % 7) * scene.rng.uniform(0.3, 1, 40)
        centre = np.array((0.0, -0.075, 0.0))
        outlines = [
            (o - centre) * np.stack([bumps, bumps, np.ones(40)], 1) + centre for o in outlines
        ]
    return outlines


def _hairline(scene: CandidScene) -> np.ndarray:
    """Lower edge of the hair on the forehead, from the picture's left to its right: [N, 2]."""
    f = scene.face
    w, top, p = f.face_width, f.hairline, f.parting
    high, low = -0.02, 0.035
    left = [(-w * 0.9, -0.1), (-w * 0.78, top * 0.72 + (low if p > 0 else high) * 0.6)]
    right = [(w * 0.78, top * 0.72 + (low if p < 0 else high) * 0.6), (w * 0.9, -0.1)]
    points = [*left, (p - 0.06, top + 0.01), (p, top - 0.012), (p + 0.06, top + 0.01), *right]
    line = spline(points, closed=False)
    rough = {"tousled": 0.012, "curly": 0.012, "short": 0.007}.get(f.hair_style, 0.003)
    return line + scene.rng.normal(0, rough, line.shape) * (0.4, 1)


def _window(scene: CandidScene) -> np.ndarray:
    """Where the face shows through the hair on the head: outline, float64 [N, 2]."""
    f = scene.face
    w = f.face_width
    burn, ear = scene.rng.uniform(-0.02, 0.12), scene.rng.uniform(-0.06, 0.05)
    sides = [(w * 0.955, burn * 0.6), (w * 0.985, burn), (w * 1.01, ear + 0.01), (w * 1.6, ear)]
    sides.append((w * 1.6, 0.6))
    right = np.array(sides)
    return np.concatenate([_hairline(scene), right, right[::-1] * (-1, 1)])


def _fan(scene: CandidScene, count: int) -> Lines:
    """Placed strands over the skull, from the parting down or from the forehead back."""
    f, rng = scene.face, scene.rng
    if f.hair_style == "curly":
        return _curls(scene, count)
    rx, ry = f.face_width + f.hair_volume, 0.33 + f.hair_volume
    t = np.linspace(0, 1, 9)[None]
    side = rng.choice((-1.0, 1.0), count)[:, None]
    spread, loose = rng.uniform(0, 1, (2, count, 1))
    if f.hair_style in ("slicked back", "bun"):
        x = side * spread * f.face_width * 0.95 * (1 + 0.25 * t)
        y = f.hairline + 0.06 * spread + (-0.25 * t + 0.05 * t * t) * (1 - 0.3 * spread)
        z = 0.16 - 0.2 * t + 0 * x
    else:
        x = f.parting * (1 - t) + side * rx * (0.7 + 0.4 * spread) * np.sin(t * np.pi / 2)
        y = -0.075 - ry * (0.72 + 0.3 * spread) * np.cos(t * np.pi / 2)
        y = y + (0.1 + 0.24 * loose) * t**3
        y = np.maximum(y, f.hairline * (1.05 - 0.75 * t) * (1 - spread) + y * spread)
        z = (0.16 - 0.26 * spread) * (1 - 0.7 * t)
        if f.hair_style == "tousled":
            x = x + 0.03 * rng.normal(0, 1, (count, 1)) * t
            y = y + 0.03 * rng.normal(0, 1, (count, 1)) * t
    return _placed(scene, np.stack([x, y, z], -1))


def _placed(scene: CandidScene, lines: np.ndarray) -> Lines:
    """Carry lines [K, N, 3] of the head to the picture."""
    count, points, _ = lines.shape
    return list(scene.head(lines.reshape(-1, 3)).reshape(count, points, 2))


def _spread(scene: CandidScene, first: np.ndarray, second: np.ndarray, count: int) -> Lines:
    """Lines at random places between two placed ones."""
    ends = between(first, second, 0.0), between(first, second, 1.0)
    share = scene.rng.uniform(0, 1, (count, 1, 1))
    return list((1 - share) * ends[0] + share * ends[1])


def _curls(scene: CandidScene, count: int) -> Lines:
    f, rng = scene.face, scene.rng
    rx, ry = f.face_width + f.hair_volume + 0.04, 0.36 + f.hair_volume
    angle, share = rng.uniform(-0.3, np.pi + 0.3, count), np.sqrt(rng.uniform(0.3, 1.05, count))
    start, r = rng.uniform(0, 6.28, count), rng.uniform(0.014, 0.034, count)
    x, y = rx * share * np.cos(angle), -0.075 - ry * share * np.sin(angle)
    turn = start[:, None] + np.linspace(0, 4.4, 9)
    curls = [x[:, None] + r[:, None] * np.cos(turn), y[:, None] + r[:, None] * np.sin(turn)]
    return _placed(scene, np.stack([*curls, np.full(turn.shape, 0.05)], -1))


def _fringe(scene: CandidScene) -> tuple[Lines, Lines]:
    """Tufts that fall over the forehead, as outlines, and their strands."""
    f, rng = scene.face, scene.rng
    count = 0
    if f.fringe > 0:
        count = 26 if f.hair_style not in ("tousled", "short") else 15
    elif f.hair_style in ("tousled", "curly", "short"):
        count = int(rng.integers(0, 5))
    tufts, lines = [], []
    w = f.face_width
    lean = rng.uniform(-0.05, 0.05)
    gaps = rng.random() < 0.4
    for x in np.linspace(-0.82, 0.82, max(count, 1))[:count] * w + rng.normal(0, 0.01, count):
        top = f.hairline - 0.03 + 0.35 * x * x / w
        reach = f.fringe if f.fringe else rng.uniform(0.2, 0.7)
        reach *= rng.uniform(0.7, 1.12) if gaps else rng.uniform(0.92, 1.06)
        bottom = top + (f.brow_y + 0.015 - top) * reach
        half = rng.uniform(0.014, 0.03)
        tip = x + lean * reach + rng.normal(0, 0.008)
        outline = spline(
            [
                (x - half, top),
                (x - half * 0.9 + (tip - x) * 0.5, (top + bottom) / 2),
                (tip, bottom),
                (x + half * 0.9 + (tip - x) * 0.5, (top + bottom) / 2),
                (x + half, top),
            ],
            steps=3,
        )
        tufts.append(scene.head(outline, 0.02))
        strand = np.array(((x, top - 0.04), ((x + tip) / 2, (top + bottom) / 2), (tip, bottom)))
        strands = strand + np.array((-0.6, 0.1, 0.7))[:, None, None] * ((half, 0),) * 0.9
        lines += list(scene.head(strands.reshape(-1, 2), 0.02).reshape(3, 3, 2))
    return tufts, lines


def _curtains(scene: CandidScene) -> tuple[Lines, Lines]:
    """Hair at the sides of the face over ear, cheek or eye: outlines and strands."""
    f, rng = scene.face, scene.rng
    shapes, lines = [], []
    for side, cover, reach in zip((-1.0, 1.0), f.covers, f.hair_reach, strict=True):
        if cover == 0:
            continue
        w = f.face_width
        end = {"shoulder-length": 0.4, "long straight": 0.72, "long wavy": 0.72}.get(
            f.hair_style, 0.12
        )
        cheek, brow = {1: (0.97, 0.93), 2: (0.84, 0.82), 3: (0.62, 0.42)}[cover]
        ys = np.array((f.hairline - 0.05, -0.2, -0.1, 0.0, 0.1, 0.2, 0.32, 0.45, 0.72))
        xs = w * np.array(
            (
                0.35,
                0.6 * brow + 0.2,
                brow,
                (brow + cheek) / 2,
                cheek,
                cheek * 0.99,
                cheek * 0.92,
                0.9,
                1.0,
            )
        )
        xs[0] = side * f.parting + (0.02 if cover == 3 else 0.08)
        sway = 0.018 if f.hair_style == "long wavy" else 0.004
        dense = np.linspace(ys[0], end, 16)
        phase = rng.uniform(0, 6.28)
        inner = np.interp(dense, ys, xs) + sway * np.sin(dense * 24 + phase) * (dense > -0.1)
        outer_x = w + f.hair_volume + np.interp(dense, (-0.1, 0.3, 0.7), (0.0, 0.02, reach))
        outer = outer_x + sway * np.sin(dense * 22 + phase)
        outer[:4] = np.maximum(outer[:4] * (0.75, 0.85, 0.93, 0.98), inner[:4] + 0.01)
        z_in = scene.pose.surface(inner * side, dense) + 0.02
        z_in = np.where(dense > 0.3, np.minimum(z_in, 0.1), z_in)
        first = scene.head(np.stack([side * inner, dense, z_in], 1))
        second = scene.head(np.stack([side * outer, dense, np.full(16, -0.02)], 1))
        shapes.append(np.concatenate([first, second[::-1]]))
        lines += _spread(scene, first, second, 40)
        if cover >= 2 and rng.random() < 0.6:
            shapes.append(_loose_strand(scene, side, w * cheek))
    return shapes, lines


def _loose_strand(scene: CandidScene, side: float, x: float) -> np.ndarray:
    """One long thin lock over the face: a placed outline."""
    rng = scene.rng
    low = rng.uniform(0.1, 0.35)
    spine = spline(
        [(side * x, -0.16), (side * (x - rng.uniform(0.0, 0.04)), 0.0), (side * x, low)],
        closed=False,
    )
    half = np.linspace(0.012, 0.003, len(spine))[:, None] * (1, 0)
    return scene.head(np.concatenate([spine - half, (spine + half)[::-1]]), 0.02)


def _falling_edges(scene: CandidScene) -> tuple[np.ndarray, np.ndarray]:
    """Placed left and right edge of the hair behind the neck, [N, 2] each."""
    f, rng = scene.face, scene.rng
    end = rng.uniform(0.26, 0.4) if f.hair_style == "shoulder-length" else 0.75
    ys = np.linspace(-0.25, end, 14)
    edges = []
    for side, reach in zip((-1.0, 1.0), f.hair_reach, strict=True):
        half = f.face_width + f.hair_volume + 0.01 + reach * np.clip((ys + 0.15) / 0.6, 0, 2.0)
        half = half * np.interp(ys, (-0.25, -0.1), (0.9, 1.0))
        sway = 0.02 if f.hair_style == "long wavy" else 0.005
        half = half + sway * np.sin(ys * 24 + rng.uniform(0, 6.28)) + rng.normal(0, 0.004, 14)
        head = scene.head(np.stack([side * half, ys, np.full(14, -0.1)], 1))
        body = scene.pose.body(np.stack([side * half, ys], 1))
        # From the head's pose at the top to the body's at the bottom.
        share = np.clip(ys / 0.5, 0, 1)[:, None]
        edges.append(head * (1 - share) + body * share)
    return edges[0], edges[1]


def _draw_bun(scene: CandidScene) -> None:
    rng = scene.rng
    x, r = rng.uniform(-0.05, 0.05), rng.uniform(0.07, 0.11)
    z = np.full((36, 1), -0.15)
    knot = scene.head(np.concatenate([ellipse(x, -0.43, r * 1.3, r), z], 1))
    coils = [
        scene.head(
            np.concatenate([ellipse(x, -0.43, r * 1.3 * s, r * s, 0.3 * k, 3.4 + 0.3 * k), z], 1)
        )
        for k, s in enumerate(np.linspace(0.2, 0.98, 24))
    ]
    _paint(scene, [knot], coils, shade=0.9)


def _paint(scene: CandidScene, shapes: Lines, lines: Lines, shade: float = 1.0) -> None:
    _paint_alpha(scene, scene.mask(*shapes), lines, shade)


def _paint_alpha(scene: CandidScene, alpha: np.ndarray, lines: Lines, shade: float = 1.0) -> None:
    """A layer of hair with its strands in all three."""
    field = scene.strands(lines, 0.009)
    wide = scene.blur(np.clip(field * 0.5 + 0.5, 0, 1), 0.012) * 2 - 1
    scene.fill(alpha, scene.lit(scene.hair * shade, light=0.08), "hair")
    rim = alpha * (1 - scene.blur(alpha, 0.025))
    scene.darken(0.3 * rim)
    bright = float(scene.hair.mean())
    amount = 12 + 0.2 * bright
    band = 0.6 + 0.8 * np.exp(-(((scene.y - 0.2 - 0.1 * scene.rng.random()) / 0.1) ** 2))
    gain = amount * np.array((1.0, 0.96, 0.9), np.float32)
    scene.add((np.maximum(field, 0) * band + np.minimum(field, 0) * 0.9 + 0.5 * wide) * alpha, gain)
    scene.strand_field += alpha * (field - scene.strand_field)
    scene.add_ink(np.clip(np.abs(field) * 1.3 - 0.35, 0, 0.85) * alpha)
    scene.add_ink(np.clip((alpha - scene.eroded(alpha)) * 1.5, 0, 1) * 0.92)
