"""Behind and below the head: background, neck and shoulders, clothes, necklace."""

import numpy as np

from mmface.rendered.attributes import BACKGROUND_COLORS, CLOTHES_COLORS
from mmface.rendered.candid.canvas import CandidScene, smooth_noise
from mmface.rendered.curves import Point, ellipse, mirror, ring
from mmface.rendered.scene import GOLD, WHITE, rgb


def draw_background(scene: CandidScene) -> None:
    """One colour, plain, blurred or with straight things in it."""
    f, rng = scene.face, scene.rng
    color = rgb(BACKGROUND_COLORS[f.background_color])
    scene.pixels[:] = scene.lit(color, light=0.05, fall=0.08)
    radius = (scene.x - 0.5) ** 2 + (scene.y - 0.45) ** 2
    scene.darken(0.22 * (radius - 0.15))
    if f.background_kind == "plain":
        scene.darken(0.05 * smooth_noise(rng, scene.size, 3))
    elif f.background_kind == "blurred":
        scene.darken(0.14 * smooth_noise(rng, scene.size, 4))
        scene.darken(0.07 * smooth_noise(rng, scene.size, 9))
    else:
        edges = np.sort(rng.uniform(0, 1, 4))
        tone = rng.uniform(-0.14, 0.14, 5)
        axis = scene.x if rng.random() < 0.7 else scene.y
        scene.darken(tone[np.searchsorted(edges, axis)].astype(np.float32))
        ends = [np.array([(e, -0.1), (e, 1.1)]) for e in edges]
        if axis is scene.y:
            ends = [line[:, ::-1] for line in ends]
        scene.draw_ink(ends, 0.008, 0.7)


def draw_neck(scene: CandidScene) -> None:
    """Neck and shoulders as far as the clothes leave them bare."""
    half = scene.face.neck_width
    side = [(half, 0.1), (half * 0.97, 0.36), (half + 0.05, 0.47), (0.36, 0.56), (0.5, 0.8)]
    outline = scene.body(mirror([(0.0, 0.05), *side]), closed=True)
    alpha = scene.mask(outline)
    scene.fill(alpha, scene.lit(scene.skin) * 0.95, "neck")
    scene.darken(0.25 * alpha * (1 - scene.blur(alpha, 0.05)), (0.8, 1.0, 1.0))
    scene.outline(outline, 0.011, 0.9)
    muscles = [scene.body([(s * 0.1, 0.36), (s * 0.06, 0.5), (s * 0.02, 0.56)]) for s in (-1, 1)]
    scene.darken(0.1 * scene.strokes(muscles, 0.012))
    scene.draw_ink(muscles, 0.006, 0.35)


def draw_clothes(scene: CandidScene) -> None:
    """Clothes with collar, trim and folds; a low neckline leaves them out of the picture."""
    f = scene.face
    color = rgb(CLOTHES_COLORS[f.clothes_color])
    edge = _neckline(scene)
    outline = scene.body(mirror(edge), closed=True)
    alpha = scene.mask(outline)
    scene.fill(alpha, scene.lit(color, light=0.1), "cloth")
    scene.darken(0.05 * smooth_noise(scene.rng, scene.size, 12) * alpha)
    scene.darken(0.35 * alpha * (1 - scene.blur(alpha, 0.02)))
    if f.clothing == "suit":
        _draw_shirt_front(scene)
    scene.outline(outline)
    seams = [scene.body(seam) for seam in _seams(scene, edge)]
    # Folds would be lost on black cloth if they were darker than it.
    gain = 40.0 if color.mean() < 70 else -36.0
    scene.add(gain * (scene.strokes(seams, 0.008) * alpha))
    scene.draw_ink(seams, 0.007, 0.65, alpha)
    if f.clothing in ("shirt", "suit"):
        _draw_collar(scene, color if f.clothing == "shirt" else WHITE)


def _neckline(scene: CandidScene) -> list[Point]:
    """Right half of the upper edge of the clothes, from the middle outwards."""
    f = scene.face
    base, d = f.neck_width + 0.012, f.neckline
    shoulders = [(base + 0.13, 0.50 + 0.5 * d), (0.5, 0.59 + 0.4 * d), (0.75, 0.75), (0.75, 0.95)]
    if f.clothing == "dress":
        return [(0.0, 0.8), (0.12, 0.68), (base + 0.05, 0.53 + d), *shoulders]
    if f.clothing == "top":
        return [(0.0, 0.57 + d), (0.09, 0.55 + d), (base, 0.49 + d), *shoulders]
    if f.clothing == "sweater":
        return [(0.0, 0.505 + d), (0.1, 0.48 + d), (base, 0.41 + 0.8 * d), *shoulders]
    return [(0.0, 0.62 + d), (0.06, 0.53 + d), (base - 0.005, 0.40 + 0.8 * d), *shoulders]


def _seams(scene: CandidScene, edge: list[Point]) -> list[list[Point]]:
    f, rng = scene.face, scene.rng
    seams: list[list[Point]] = []
    for side in (-1.0, 1.0):
        for _ in range(int(rng.integers(1, 4))):
            x, y = rng.uniform(0.2, 0.48), rng.uniform(0.5, 0.62)
            seams.append([(side * x, y), (side * (x + 0.03), y + 0.05), (side * x, y + 0.12)])
        if f.clothing == "suit":
            seams.append([(side * 0.3, 0.5), (side * 0.2, 0.6), (side * 0.1, 0.75)])
        elif f.clothing != "shirt":
            trim = [(side * (x + 0.022), y + 0.024) for x, y in edge[:4]]
            seams.append([(0.0, trim[0][1]), *trim[1:]])
    if f.clothing == "sweater":
        for x in np.linspace(-0.16, 0.16, 13).tolist():
            y = edge[0][1] - 1.6 * x * x
            seams.append([(x, y + 0.005), (x * 1.12, y + 0.028)])
    return seams


def _draw_shirt_front(scene: CandidScene) -> None:
    d, base = scene.face.neckline, scene.face.neck_width
    inner = [
        (0.0, 0.5 + d),
        (0.05, 0.49 + d),
        (base, 0.405 + 0.8 * d),
        (base + 0.045, 0.44 + 0.8 * d),
        (0.1, 0.66),
        (0.06, 0.8),
    ]
    outline = scene.body(mirror(inner), closed=True, steps=4)
    alpha = scene.mask(outline)
    scene.fill(alpha, scene.lit(WHITE, light=0.05), "cloth")
    scene.outline(outline)
    if scene.rng.random() < 0.5:
        tie = scene.body(
            mirror([(0.0, 0.52 + d), (0.035, 0.53 + d), (0.022, 0.57 + d), (0.05, 0.85)]),
            closed=True,
            steps=3,
        )
        tone = rgb(CLOTHES_COLORS[scene.face.clothes_color]) * 0.8
        scene.fill(scene.mask(tie) * alpha, scene.lit(tone), "cloth")
        scene.outline(tie, 0.01)


def _draw_collar(scene: CandidScene, color: np.ndarray) -> None:
    """Two wings beside the neck."""
    d, base = scene.face.neckline, scene.face.neck_width
    for s in (-1, 1):
        points = [
            (s * (base + 0.01), 0.385 + 0.8 * d),
            (s * (base + 0.05), 0.47 + 0.8 * d),
            (s * 0.095, 0.61 + d),
            (s * 0.035, 0.515 + d),
            (s * base * 0.8, 0.44 + d),
        ]
        wing = scene.pose.body(np.array(points))
        alpha = scene.mask(wing)
        scene.fill(alpha, scene.lit(color * 1.04, light=0.08), "cloth")
        scene.darken(0.3 * alpha * (1 - scene.blur(alpha, 0.015)))
        scene.outline(wing, 0.01)


def draw_necklace(scene: CandidScene) -> None:
    """A chain or a string of beads around the neck."""
    half, rng = scene.face.neck_width, scene.rng
    low = rng.uniform(0.49, 0.6)
    arc: list[Point] = [
        (-half, 0.43),
        (-0.6 * half, low - 0.03),
        (0.0, low),
        (0.6 * half, low - 0.03),
        (half, 0.43),
    ]
    line = scene.body(arc, steps=8)
    color = GOLD if rng.random() < 0.6 else WHITE * 0.88
    if rng.random() < 0.5:
        shapes = [line[i] + ellipse(0, 0, 0.019, 0.019, count=10) for i in range(1, 32, 2)]
        chain = scene.mask(*shapes)
    else:
        shapes = [line[16] + ellipse(0, 0.02, 0.02, 0.026, count=12)]
        chain = np.maximum(scene.strokes([line], 0.012), scene.mask(*shapes))
    shadow = scene.cast(chain, 0.008, 0.016)
    scene.darken(0.3 * shadow * (1 - chain))
    scene.fill(chain, scene.lit(color), "neck_l")
    scene.darken(0.4 * chain * (1 - scene.blur(chain, 0.012)))
    glints = [shape * 0.45 + 0.55 * shape.mean(0) - 0.005 for shape in shapes]
    scene.fill(scene.mask(*glints) * 0.7, WHITE, hide=False)
    scene.draw_ink([ring(shape) for shape in shapes], 0.006, 0.8)
    scene.draw_ink([line], 0.007, 0.6)
