"""Below the head: neck and shoulders, and the clothes over them."""

import numpy as np

from mmface.rendered.attributes import CLOTHES_COLORS, FaceAttributes
from mmface.rendered.curves import Point, mirror
from mmface.rendered.scene import WHITE, Scene, rgb


def draw_neck(scene: Scene) -> None:
    """Neck and shoulders as far as the clothes leave them bare."""
    half = 0.135 if scene.face.gender == "woman" else 0.165
    side = [(half, 0.15), (half, 0.34), (half + 0.03, 0.42), (0.3, 0.475), (0.4, 0.6)]
    outline = scene.contour(mirror([(0.0, 0.1), *side]), head=False)
    scene.fill(scene.mask(outline), scene.lit(scene.skin) * 0.97, "neck")
    scene.outline(outline, 0.011, 0.9)
    bones = [
        scene.line([(s * 0.03, 0.475), (s * 0.12, 0.462), (s * 0.22, 0.47)], head=False)
        for s in (-1, 1)
    ]
    scene.darken(0.12 * scene.strokes(bones, 0.008))
    scene.draw_ink(bones, 0.006, 0.35)


def draw_clothes(scene: Scene) -> None:
    """Clothes with collar, trim and folds."""
    f = scene.face
    color = rgb(CLOTHES_COLORS[f.clothes_color])
    edge = _neckline(f)
    outline = scene.contour(mirror(edge), head=False)
    alpha = scene.mask(outline)
    scene.fill(alpha, scene.lit(color, light=0.08), "cloth")
    rim = alpha * (1 - scene.blur(alpha, 0.02))
    scene.darken(0.3 * rim)
    if f.clothing == "suit":
        _draw_shirt_front(scene)
    scene.outline(outline)
    seams = [scene.line(seam, head=False) for seam in _seams(f.clothing, edge)]
    # Folds would be lost on black cloth if they were darker than it.
    gain = 40.0 if color.mean() < 70 else -36.0
    scene.add(gain * (scene.strokes(seams, 0.008) * alpha))
    scene.draw_ink(seams, 0.007, 0.65, alpha)


def _neckline(f: FaceAttributes) -> list[Point]:
    """Right half of the upper edge of the clothes, from the middle outwards."""
    base = 0.15 if f.gender == "woman" else 0.175
    shoulders = [(base + 0.1, 0.40), (0.42, 0.44), (0.56, 0.53), (0.56, 0.62)]
    if f.clothing == "dress":
        return [(0.0, 0.62), (0.11, 0.52), (base + 0.04, 0.425), (base + 0.1, 0.42), *shoulders[1:]]
    if f.clothing == "top":
        return [(0.0, 0.49), (0.09, 0.475), (base, 0.415), (base + 0.04, 0.385), *shoulders]
    if f.clothing == "sweater":
        return [(0.0, 0.435), (0.1, 0.41), (base, 0.35), (base + 0.03, 0.345), *shoulders]
    return [(0.0, 0.52), (0.05, 0.47), (base - 0.005, 0.355), (base + 0.02, 0.35), *shoulders]


def _seams(clothing: str, edge: list[Point]) -> list[list[Point]]:
    """Folds at the shoulders, collar or trim, and a sweater's ribs; `edge` is the neckline."""
    seams: list[list[Point]] = []
    for side in (-1.0, 1.0):
        seams.append([(side * 0.34, 0.45), (side * 0.36, 0.49), (side * 0.34, 0.53)])
        if clothing in ("shirt", "suit"):
            base = edge[3][0]
            seams.append([(side * base, 0.36), (side * (base + 0.05), 0.46), (side * 0.05, 0.49)])
            seams.append([(side * 0.26, 0.41), (side * 0.2, 0.5), (side * 0.1, 0.54)])
        else:
            trim = [(side * (x + 0.022), y + 0.024) for x, y in edge[:4]]
            seams.append([(0.0, trim[0][1]), *trim[1:]])
    if clothing == "sweater":
        for x in np.linspace(-0.16, 0.16, 13).tolist():
            seams.append([(x, 0.45 - 1.6 * x * x), (x * 1.12, 0.47 - 1.5 * x * x)])
    return seams


def _draw_shirt_front(scene: Scene) -> None:
    inner = [(0.0, 0.44), (0.05, 0.44), (0.15, 0.36), (0.185, 0.375), (0.1, 0.52), (0.06, 0.62)]
    outline = scene.contour(mirror(inner), head=False, steps=4)
    scene.fill(scene.mask(outline), scene.lit(WHITE, light=0.05), "cloth")
    scene.outline(outline)
    collar = [
        scene.place(np.array([(0.0, 0.445), (s * 0.055, 0.5), (s * 0.1, 0.41)]), head=False)
        for s in (-1, 1)
    ]
    scene.darken(0.25 * scene.strokes(collar, 0.007))
    scene.draw_ink(collar, 0.007, 0.7)
