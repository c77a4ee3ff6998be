"""Faces drawn from parameters: a picture, its 19-class label map, its sketch and captions.

The data set needs no download and no network: a seed is a face. It is drawn as a stack of
layers, back to front, in the manner of a soft illustration. Every layer is a coverage mask,
drawn once with supersampling; the picture takes the mask as alpha, the label map takes it
thresholded at one half and the sketch takes its outline, so that the three agree by
construction. Framing follows the aligned crops of CelebA-HQ.

Geometry is in fractions of the picture's side, y down. Head coordinates have their origin on
the axis of the face at the picture's middle height; `_Scene.place` carries them to the picture.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from mmface.conditions import LABEL_INDEX
from mmface.data.captions import (
    BACKGROUND_COLORS,
    CLOTHES_COLORS,
    EYE_COLORS,
    HAIR_COLORS,
    HAT_COLORS,
    LONG_STYLES,
    SKIN_TONES,
    FaceAttributes,
    captions,
    sample_attributes,
)

__all__ = [
    "BACKGROUND_COLORS",
    "CLOTHES_COLORS",
    "EYE_COLORS",
    "HAIR_COLORS",
    "HAT_COLORS",
    "SKIN_TONES",
    "FaceAttributes",
    "RenderedFace",
    "captions",
    "draw",
    "render_face",
    "sample_attributes",
]

Paint = Callable[[ImageDraw.ImageDraw, list[float], int], None]
"""Draws one curve, a flat list x, y, x, y, ..., with a line width."""
Hue = Sequence[float] | np.ndarray
"""A colour, red, green and blue, or a field of colours [3, S, S]."""

SUPERSAMPLING = 3
PIVOT = np.array((0.0, 0.1))
"""The point of the head, in head coordinates, about which it rolls and scales."""
EYE_Y, EYE_X, EYE_HALF = -0.02, 0.122, 0.068
BROW_Y, NOSE_Y, MOUTH_Y, CHIN_Y = -0.098, 0.155, 0.238, 0.375
GOLD = np.array((226, 180, 74), np.float32)
WHITE = np.array((246, 243, 238), np.float32)
DARK = np.array((40, 30, 30), np.float32)

FACE_PARTS = ("skin", "nose", "l_eye", "r_eye", "l_brow", "r_brow")
LIGHT_X = {"left": -1.0, "right": 1.0, "front": 0.0}


@dataclass(frozen=True)
class RenderedFace:
    """A drawn face.

    Attributes:
        image: uint8 [S, S, 3], RGB.
        labels: uint8 [S, S], indices into `mmface.conditions.LABELS`.
        sketch: uint8 [S, S], dark lines on white.
        attributes: what was drawn.
        captions: six descriptions.
    """

    image: np.ndarray
    labels: np.ndarray
    sketch: np.ndarray
    attributes: FaceAttributes
    captions: tuple[str, ...]


@lru_cache(maxsize=8)
def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centres as fractions of the side: float32 [S, S] x and y."""
    centres = (np.arange(size, dtype=np.float32) + 0.5) / size
    x, y = np.meshgrid(centres, centres)
    return x, y


def _spline(
    points: Sequence[tuple[float, float]], closed: bool = True, steps: int = 8
) -> np.ndarray:
    """A Catmull-Rom curve through `points`: float64 [N, 2]."""
    p = np.asarray(points, np.float64)
    ends = (p[-1:], p[:2]) if closed else (p[:1], p[-1:])
    padded = np.concatenate([ends[0], p, ends[1]])
    a, b, c, d = (padded[i : len(padded) - 3 + i, None] for i in range(4))
    t = (np.arange(steps) / steps)[None, :, None]
    curve = 0.5 * (
        2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3
    )
    curve = curve.reshape(-1, 2)
    return curve if closed else np.concatenate([curve, p[-1:]])


def _ellipse(
    x: float,
    y: float,
    rx: float,
    ry: float,
    start: float = 0.0,
    end: float = 2 * np.pi,
    count: int = 36,
) -> np.ndarray:
    """Points of an ellipse's arc, counter-clockwise on the picture: float64 [count, 2]."""
    angles = np.linspace(start, end, count)
    return np.stack([x + rx * np.cos(angles), y - ry * np.sin(angles)], 1)


def _mirror(half: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Close a right half outline, listed top to bottom, with its mirror image."""
    left = [(-x, y) for x, y in reversed(half) if x != 0]
    return [*half, *left]


def _along(first: np.ndarray, second: np.ndarray, amount: float) -> np.ndarray:
    """The curve that lies `amount` of the way from one curve to another, by arc parameter."""
    t = np.linspace(0, 1, 24)

    def resample(curve: np.ndarray) -> np.ndarray:
        s = np.linspace(0, 1, len(curve))
        return np.stack([np.interp(t, s, curve[:, 0]), np.interp(t, s, curve[:, 1])], 1)

    return (1 - amount) * resample(first) + amount * resample(second)


def _planes(color: Hue) -> np.ndarray:
    """A colour [3] or a field of colours [3, S, S], ready to multiply a [S, S] mask."""
    planes = np.asarray(color, np.float32)
    return planes[:, None, None] if planes.ndim == 1 else planes


class _Scene:
    """Picture, labels and ink under construction, and the drawing operations on all three.

    `pixels` is float32 [3, S, S] in 0 to 255 (planes first, since broadcasting a mask over them
    is several times faster), `labels` uint8 [S, S], `ink` float32 [S, S], 1 where it is darkest.
    """

    def __init__(self, attributes: FaceAttributes, size: int) -> None:
        self.face = attributes
        self.size = size
        self.rng = np.random.default_rng(attributes.texture_seed)
        self.x, self.y = _grid(size)
        self.pixels = np.zeros((3, size, size), np.float32)
        self.labels = np.zeros((size, size), np.uint8)
        self.ink = np.zeros((size, size), np.float32)
        self.origin = PIVOT + (0.5 + attributes.shift_x, 0.5 + attributes.shift_y)
        self.light = LIGHT_X[attributes.lighting]

    def place(self, points: np.ndarray, head: bool = True) -> np.ndarray:
        """Head coordinates (or body coordinates, which do not roll) -> picture fractions."""
        f = self.face
        relative = np.asarray(points, np.float64) - PIVOT
        if head:
            cos, sin = np.cos(f.roll), np.sin(f.roll)
            relative = relative @ np.array([[cos, sin], [-sin, cos]]) * f.scale
        return relative + self.origin

    def mask(self, *polygons: np.ndarray) -> np.ndarray:
        """Coverage of the union of placed polygons: float32 [S, S] in [0, 1]."""

        def paint(canvas: ImageDraw.ImageDraw, points: list[float], _: int) -> None:
            canvas.polygon(points, fill=255)

        return self._coverage(polygons, 0.0, paint)

    def strokes(self, lines: Sequence[np.ndarray], width: float) -> np.ndarray:
        """Coverage of placed polylines of a width in fractions: float32 [S, S] in [0, 1]."""

        def paint(canvas: ImageDraw.ImageDraw, points: list[float], pixels: int) -> None:
            canvas.line(points, fill=255, width=pixels)

        return self._coverage(lines, width, paint)

    def _coverage(self, curves: Sequence[np.ndarray], width: float, paint: Paint) -> np.ndarray:
        """Draw curves supersampled, within their bounding box only, and reduce to the grid."""
        coverage = np.zeros((self.size, self.size), np.float32)
        if not len(curves):
            return coverage
        margin = width * self.size + 1
        corners = np.concatenate(curves) * self.size
        low = np.clip(np.floor(corners.min(0) - margin), 0, self.size).astype(int)
        high = np.clip(np.ceil(corners.max(0) + margin), 0, self.size).astype(int)
        if (high <= low).any():
            return coverage
        scale = self.size * SUPERSAMPLING
        image = Image.new("L", tuple(((high - low) * SUPERSAMPLING).tolist()))
        canvas = ImageDraw.Draw(image)
        for curve in curves:
            points = curve * scale - low * SUPERSAMPLING
            paint(canvas, points.ravel().tolist(), max(1, round(width * scale)))
        small = np.asarray(image.reduce(SUPERSAMPLING), np.float32) / 255
        coverage[low[1] : high[1], low[0] : high[0]] = small
        return coverage

    def blur(self, field: np.ndarray, radius: float) -> np.ndarray:
        """Blur a [0, 1] field by a radius in fractions of the side."""
        image = Image.fromarray((field * 255).astype(np.uint8))
        blurred = image.filter(ImageFilter.BoxBlur(radius * self.size))
        return np.asarray(blurred, np.float32) / 255

    def spot(self, x: float, y: float, rx: float, ry: float) -> np.ndarray:
        """A soft round spot in head coordinates: float32 [S, S], 1 at its centre."""
        cx, cy = self.place(np.array([[x, y]]))[0].tolist()
        return np.exp(-(((self.x - cx) / rx) ** 2) - ((self.y - cy) / ry) ** 2)

    def fill(
        self, alpha: np.ndarray, color: Hue, label: str | None = None, hide: bool = True
    ) -> None:
        """Paint a colour ([3] or [3, S, S]) over the picture; with a label, over the labels."""
        self.pixels += alpha * (_planes(color) - self.pixels)
        if label is not None:
            self.labels[alpha >= 0.5] = LABEL_INDEX[label]
        if hide:
            self.ink *= 1 - alpha

    def darken(self, amount: np.ndarray, tint: Hue | None = None) -> None:
        """Multiply the picture by 1 - amount * tint: a shadow where amount is positive."""
        self.pixels *= 1 - (amount if tint is None else amount * _planes(tint))

    def add(self, amount: np.ndarray, color: Hue) -> None:
        """Add light of a colour, or take it away where it is negative."""
        self.pixels += amount * _planes(color)

    def draw_ink(
        self,
        lines: Sequence[np.ndarray],
        width: float,
        strength: float,
        clip: np.ndarray | None = None,
    ) -> None:
        """Add pencil lines to the sketch, within a mask where one is given."""
        stroke = self.strokes(lines, width) * strength
        self.ink = np.maximum(self.ink, stroke if clip is None else stroke * clip)

    def outline(self, polygon: np.ndarray, width: float = 0.013, strength: float = 0.95) -> None:
        """Add the outline of a placed polygon to the sketch."""
        self.draw_ink([np.concatenate([polygon, polygon[:1]])], width, strength)


def _tone(scene: _Scene, color: Hue, light: float = 0.1, fall: float = 0.06) -> np.ndarray:
    """A colour under the scene's light: float32 [3, S, S]."""
    across = (scene.x - 0.5 - scene.face.shift_x) * 3
    shade = 1 + light * np.clip(scene.light * across, -1, 1) + fall * (0.5 - scene.y)
    return shade * _planes(color)


def _draw_background(scene: _Scene) -> None:
    """A soft gradient with a faint vignette and a few blurred patches."""
    color = BACKGROUND_COLORS[scene.face.background_color]
    scene.pixels[:] = _tone(scene, color, light=0.05, fall=0.08)
    radius = (scene.x - 0.5) ** 2 + (scene.y - 0.45) ** 2
    scene.darken(0.22 * (radius - 0.15))
    for _ in range(4):
        cx, cy, r = scene.rng.uniform((0, 0, 0.08), (1, 0.8, 0.2)).tolist()
        blob = np.exp(-((scene.x - cx) ** 2 + (scene.y - cy) ** 2) / r**2)
        scene.darken(scene.rng.uniform(-0.05, 0.05) * blob)


def _paint_hair(scene: _Scene, alpha: np.ndarray, locks: list[np.ndarray], sheen: float) -> None:
    """Hair-coloured layer with strands; `locks` are placed polylines that follow the style."""
    base = np.array(HAIR_COLORS[scene.face.hair_color], np.float32)
    scene.fill(alpha, _tone(scene, base, light=0.06), "hair")
    rim = alpha * (1 - scene.blur(alpha, 0.022))
    dark = scene.strokes(locks[::2], 0.007) * alpha
    pale = scene.strokes(locks[1::2], 0.009) * alpha
    scene.darken(0.24 * dark + 0.26 * rim)
    band = np.exp(-(((scene.y - sheen) / 0.07) ** 2))
    gain = (12 + 0.12 * base) * np.array((1.0, 0.96, 0.9), np.float32)
    scene.add(pale * (0.35 + 1.3 * band), gain)
    scene.draw_ink(locks[::2], 0.006, 0.85, alpha)
    scene.draw_ink(locks[1::4], 0.005, 0.55, alpha)


def _back_outline(f: FaceAttributes, rng: np.random.Generator) -> np.ndarray | None:
    """Outline of the hair that falls behind the head, or None where there is none."""
    w, v = f.face_width, f.hair_volume
    if f.hair_style in LONG_STYLES:
        sway = 0.022 if f.hair_style == "long wavy" else 0.0
        ys = np.linspace(-0.1, 0.56, 9)
        half = w + v + 0.02 + 0.11 * (ys + 0.1) / 0.66 + sway * np.sin(ys * 26)
        half = half + rng.uniform(-0.004, 0.004, 9)
        right = list(zip(half.tolist(), ys.tolist(), strict=True))
        return _spline(_mirror([(0.0, -0.42), (w * 0.8, -0.36), *right]))
    if f.hair_style == "shoulder-length":
        side = [(w + v + 0.01, -0.05), (w + v + 0.035, 0.12), (w + v + 0.035, 0.25)]
        return _spline(_mirror([(0.0, -0.40), (w * 0.8, -0.34), *side, (w + 0.0, 0.335)]))
    return None


def _draw_back_hair(scene: _Scene) -> None:
    """Hair behind the head: a bun, or what falls behind the neck."""
    f = scene.face
    outline = _back_outline(f, scene.rng)
    if f.hair_style == "bun":
        knot = scene.place(_ellipse(0.0, -0.405, 0.12, 0.085))
        coils = [scene.place(_ellipse(0.0, -0.405, 0.12 * s, 0.085 * s, 0.3, 3.4))
                 for s in (0.9, 0.75, 0.6, 0.45, 0.3)]  # fmt: skip
        _paint_hair(scene, scene.mask(knot), coils, sheen=0.06)
        scene.outline(knot)
    if outline is None:
        return
    placed = scene.place(outline)
    sway = 0.02 if "wavy" in f.hair_style else 0.004
    ys = np.linspace(-0.25, 0.56, 22)
    locks = []
    for x in np.linspace(-1, 1, 34) + scene.rng.uniform(-0.02, 0.02, 34):
        half = f.face_width + f.hair_volume + 0.02 + 0.15 * (ys + 0.1)
        wave = sway * np.sin(ys * 26 + scene.rng.uniform(-0.4, 0.4)) * np.sign(x)
        locks.append(scene.place(np.stack([x * half + wave, ys], 1)))
    _paint_hair(scene, scene.mask(placed), locks, sheen=0.62)
    scene.outline(placed)


def _draw_neck(scene: _Scene) -> None:
    """Neck and shoulders as far as the clothes leave them bare."""
    f = scene.face
    half = 0.135 if f.gender == "woman" else 0.165
    side = [(half, 0.15), (half, 0.34), (half + 0.03, 0.42), (0.3, 0.475), (0.4, 0.6)]
    outline = scene.place(_spline(_mirror([(0.0, 0.1), *side])), head=False)
    scene.fill(scene.mask(outline), _tone(scene, SKIN_TONES[f.skin_tone]) * 0.97, "neck")
    scene.outline(outline, 0.011, 0.9)
    bones = [_spline([(s * 0.03, 0.475), (s * 0.12, 0.462), (s * 0.22, 0.47)], closed=False)
             for s in (-1, 1)]  # fmt: skip
    bones = [scene.place(line, head=False) for line in bones]
    scene.darken(0.12 * scene.strokes(bones, 0.008))
    scene.draw_ink(bones, 0.006, 0.35)


def _neckline(f: FaceAttributes) -> list[tuple[float, float]]:
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


def _draw_clothes(scene: _Scene) -> None:
    """Clothes with collar, trim and folds."""
    f = scene.face
    color = np.array(CLOTHES_COLORS[f.clothes_color], np.float32)
    half = _neckline(f)
    outline = scene.place(_spline(_mirror(half)), head=False)
    alpha = scene.mask(outline)
    scene.fill(alpha, _tone(scene, color, light=0.08), "cloth")
    rim = alpha * (1 - scene.blur(alpha, 0.02))
    scene.darken(0.3 * rim)
    if f.clothing == "suit":
        _draw_shirt_front(scene)
    scene.outline(outline)
    seams: list[list[tuple[float, float]]] = []
    for side in (-1.0, 1.0):
        seams.append([(side * 0.34, 0.45), (side * 0.36, 0.49), (side * 0.34, 0.53)])
        if f.clothing in ("shirt", "suit"):
            base = abs(half[3][0])
            seams.append([(side * base, 0.36), (side * (base + 0.05), 0.46), (side * 0.05, 0.49)])
            seams.append([(side * 0.26, 0.41), (side * 0.2, 0.5), (side * 0.1, 0.54)])
        else:
            trim = [(side * (x + 0.022), y + 0.024) for x, y in half[:4]]
            seams.append([(0.0, trim[0][1]), *trim[1:]])
    if f.clothing == "sweater":
        ribs = np.linspace(-0.16, 0.16, 13)
        seams += [[(x, 0.45 - 1.6 * x * x), (x * 1.12, 0.47 - 1.5 * x * x)] for x in ribs]
    lines = [scene.place(_spline(seam, closed=False), head=False) for seam in seams]
    folds = scene.strokes(lines, 0.008) * alpha
    gain = np.full(3, 40.0 if color.mean() < 70 else -36.0)
    scene.add(folds, gain)
    scene.draw_ink(lines, 0.007, 0.65, alpha)


def _draw_shirt_front(scene: _Scene) -> None:
    """The white shirt in the opening of a suit; clothes in the label map."""
    inner = [(0.0, 0.44), (0.05, 0.44), (0.15, 0.36), (0.185, 0.375), (0.1, 0.52), (0.06, 0.62)]
    placed = scene.place(_spline(_mirror(inner), steps=4), head=False)
    scene.fill(scene.mask(placed), _tone(scene, WHITE, light=0.05), "cloth")
    scene.outline(placed)
    tips = [scene.place(np.array([(0.0, 0.445), (s * 0.055, 0.5), (s * 0.1, 0.41)]), head=False)
            for s in (-1, 1)]  # fmt: skip
    scene.darken(0.25 * scene.strokes(tips, 0.007))
    scene.draw_ink(tips, 0.007, 0.7)


def _draw_necklace(scene: _Scene) -> None:
    """A string of beads around the neck."""
    f = scene.face
    half = 0.155 if f.gender == "woman" else 0.18
    arc = [(-half, 0.365), (-0.11, 0.42), (0.0, 0.445), (0.11, 0.42), (half, 0.365)]
    line = scene.place(_spline(arc, closed=False), head=False)
    beads = [line[i] + _ellipse(0, 0, 0.0235, 0.0235, count=12) for i in range(1, 32, 3)]
    chain = scene.mask(*beads)
    scene.darken(0.2 * scene.blur(np.roll(chain, scene.size // 60, 0), 0.008) * (1 - chain))
    scene.fill(chain, _tone(scene, GOLD), "neck_l")
    shine = [bead * 0.45 + 0.55 * bead.mean(0) - 0.006 for bead in beads]
    scene.fill(scene.mask(*shine) * 0.7, WHITE, hide=False)
    scene.draw_ink([np.concatenate([bead, bead[:1]]) for bead in beads], 0.006, 0.8)


def _ear_side(f: FaceAttributes, side: float) -> float:
    """How far the ear on a side (+1: the picture's right) stands out; less on the far side."""
    return 1 - 0.22 * max(0.0, side * f.yaw)


def _draw_ears(scene: _Scene) -> None:
    """Both ears, each with its inner fold."""
    f = scene.face
    for side, label in ((1.0, "l_ear"), (-1.0, "r_ear")):
        x = f.face_width - 0.012
        out = 0.082 * _ear_side(f, side)
        half = [(x, -0.06), (x + out * 0.75, -0.085), (x + out, -0.04), (x + out * 0.85, 0.05),
                (x + out * 0.5, 0.115), (x, 0.12)]  # fmt: skip
        outline = scene.place(_spline([(side * a, b) for a, b in half]))
        alpha = scene.mask(outline)
        scene.fill(alpha, _tone(scene, SKIN_TONES[f.skin_tone]), label)
        scene.darken(0.35 * alpha * (1 - scene.blur(alpha, 0.02)), (0.7, 1.0, 1.0))
        fold = [(side * (x + out * 0.35), -0.04), (side * (x + out * 0.72), -0.045),
                (side * (x + out * 0.62), 0.03), (side * (x + out * 0.4), 0.06)]  # fmt: skip
        line = [scene.place(_spline(fold, closed=False))]
        scene.darken(0.3 * scene.strokes(line, 0.009), (0.7, 1.0, 1.0))
        scene.outline(outline)
        scene.draw_ink(line, 0.007, 0.6)


def _face_outline(f: FaceAttributes) -> np.ndarray:
    """Outline of the face without hair, in head coordinates."""
    w = f.face_width
    half = [(0.0, -0.36), (w * 0.6, -0.33), (w * 0.93, -0.2), (w, -0.04), (w * 0.965, 0.1),
            (w * f.jaw, 0.24), (w * f.chin, 0.345), (0.0, CHIN_Y)]  # fmt: skip
    return _spline(_mirror(half))


def _draw_skin(scene: _Scene) -> np.ndarray:
    """The bare face, shaded; returns its coverage."""
    f = scene.face
    outline = scene.place(_face_outline(f))
    alpha = scene.mask(outline)
    under = np.roll(scene.blur(alpha, 0.03), round(0.035 * scene.size), 0)
    under[: scene.size // 2] = 0
    body = np.isin(scene.labels, [LABEL_INDEX["neck"], LABEL_INDEX["neck_l"]])
    scene.darken(0.34 * under * body, (0.8, 1.0, 1.0))
    scene.darken(0.12 * under * ~body)
    scene.fill(alpha, _tone(scene, SKIN_TONES[f.skin_tone], light=0.12), "skin")
    rim = alpha * (1 - scene.blur(alpha, 0.05))
    scene.darken(0.34 * rim, (0.75, 1.0, 1.05))
    scene.outline(outline, 0.013, 0.92)
    turn = 0.02 * f.yaw
    for side in (-1, 1):
        cheek = scene.spot(side * 0.145 + turn, 0.12, 0.075, 0.06) * alpha
        scene.darken(0.13 * cheek, (0.1, 1.0, 0.75))
        scene.darken(-0.05 * scene.spot(side * 0.14 + turn, 0.06, 0.06, 0.035) * alpha)
        scene.darken(0.1 * scene.spot(side * EYE_X + turn, EYE_Y - 0.02, 0.09, 0.05) * alpha)
    scene.darken(-0.06 * scene.spot(turn, -0.2, 0.16, 0.08) * alpha)
    scene.darken(-0.05 * scene.spot(turn, 0.33, 0.05, 0.03) * alpha)
    if f.beard:
        _draw_beard(scene, alpha)
    _draw_wrinkles(scene)
    return alpha


def _draw_beard(scene: _Scene, face: np.ndarray) -> None:
    """Beard and moustache as shade on the skin, which they stay in the label map."""
    f = scene.face
    turn = 0.02 * f.yaw
    w = f.face_width
    half = [(w * 1.02, 0.0), (w * 0.9, 0.09), (w * 0.66, 0.175), (0.13, 0.182), (0.06, 0.178)]
    inner = [(x + turn, y) for x, y in _mirror([*half, (0.0, 0.186)])]
    region = np.array([*inner[:6][::-1], (0.4, 0.0), (0.4, 0.5), (-0.4, 0.5), (-0.4, 0.0),
                       *inner[6:][::-1]])  # fmt: skip
    alpha = scene.blur(scene.mask(scene.place(region)), 0.012) * face
    hairs = []
    for x, y in scene.rng.uniform((-w, 0.02), (w, CHIN_Y), (150, 2)):
        hairs.append(scene.place(np.array([(x, y), (x * 1.04, y + 0.026)])))
    color = np.array(HAIR_COLORS[f.hair_color], np.float32)
    scene.fill(alpha * 0.72, color, hide=False)
    grain = scene.strokes(hairs, 0.006) * alpha
    scene.darken(0.22 * grain)
    scene.ink = np.maximum(scene.ink, 0.6 * grain)


def _draw_wrinkles(scene: _Scene) -> None:
    """Lines of age, and those that a smile leaves beside the mouth."""
    f = scene.face
    depth = {"young": 0.0, "middle-aged": 0.1, "elderly": 0.22}[f.age]
    smile = 0.06 if f.expression != "serious" else 0.0
    turn = 0.025 * f.yaw
    folds = [[(s * 0.085 + turn, 0.145), (s * 0.135 + turn, 0.2), (s * 0.145 + turn, 0.25)]
             for s in (-1, 1)]  # fmt: skip
    brow = [[(-0.1 + turn, y), (turn, y - 0.008), (0.1 + turn, y)] for y in (-0.185, -0.155)]
    bags = [[(s * (EYE_X - 0.05) + turn, 0.04), (s * EYE_X + turn, 0.052),
             (s * (EYE_X + 0.05) + turn, 0.036)] for s in (-1, 1)]  # fmt: skip
    for group, strength in ((folds, depth + smile), (brow, depth), (bags, depth)):
        if strength == 0:
            continue
        lines = [scene.place(_spline(line, closed=False)) for line in group]
        scene.darken(strength * 1.2 * scene.strokes(lines, 0.01), (0.8, 1.0, 1.0))
        scene.draw_ink(lines, 0.007, min(0.7, 2.5 * strength))


def _draw_nose(scene: _Scene, face: np.ndarray) -> None:
    """The nose: a region in the label map, shade and a few lines in the others."""
    f = scene.face
    turn, tip, w = 0.02 * f.yaw, 0.042 * f.yaw, f.nose_width
    outline = _spline([(turn, -0.085), (turn + 0.024, -0.075), (tip * 0.6 + 0.026, 0.02),
                       (tip + w, 0.115), (tip + w * 0.9, 0.155), (tip, 0.18),
                       (tip - w * 0.9, 0.155), (tip - w, 0.115), (tip * 0.6 - 0.026, 0.02),
                       (turn - 0.024, -0.075)])  # fmt: skip
    placed = scene.place(outline)
    alpha = scene.mask(placed)
    scene.labels[alpha >= 0.5] = LABEL_INDEX["nose"]
    side = -scene.light if scene.light else (1.0 if f.yaw < 0 else -1.0)
    soft = scene.blur(alpha, 0.016)
    scene.darken(0.12 * scene.spot(tip + side * 0.04, 0.05, 0.03, 0.11) * face, (0.8, 1.0, 1.0))
    scene.darken(0.2 * scene.spot(tip, 0.185, w, 0.018) * (1 - soft * 0.5), (0.8, 1.0, 1.0))
    scene.darken(-0.1 * scene.spot(tip * 0.6 - side * 0.006, 0.03, 0.014, 0.1))
    scene.darken(-0.13 * scene.spot(tip - side * 0.01, 0.122, 0.026, 0.022))
    holes = [scene.place(_ellipse(tip + s * w * 0.45, 0.158, 0.017, 0.009)) for s in (-1, 1)]
    scene.darken(0.5 * scene.mask(*holes), (0.85, 1.0, 1.0))
    wings = [scene.place(_spline([(tip + s * w * 0.8, 0.095), (tip + s * w * 1.04, 0.13),
                                  (tip + s * w * 0.85, 0.162), (tip + s * w * 0.5, 0.16)],
                                 closed=False)) for s in (-1, 1)]  # fmt: skip
    scene.darken(0.26 * scene.strokes(wings, 0.009), (0.75, 1.0, 1.0))
    scene.draw_ink(wings, 0.009, 0.8)
    scene.draw_ink(holes, 0.012, 0.85)
    bridge = [scene.place(line) for line in (outline[8:22], outline[58:72])]
    scene.draw_ink(bridge, 0.006, 0.35)


def _draw_eye(scene: _Scene, side: float, label: str) -> None:
    """One eye; `side` is +1 on the picture's right."""
    f = scene.face
    x, y = side * EYE_X + 0.022 * f.yaw, EYE_Y
    half, tall = EYE_HALF, f.eye_height / 2
    lid = [(-half, 0.008), (-half * 0.55, -tall * 0.75), (0.0, -tall), (half * 0.6, -tall * 0.78),
           (half, -0.004)]  # fmt: skip
    low = [(half * 0.55, tall * 0.72), (0.0, tall * 0.95), (-half * 0.6, tall * 0.7)]
    outline = scene.place(_spline([(x + side * a, y + b) for a, b in [*lid, *low]]))
    alpha = scene.mask(outline)
    scene.fill(alpha, WHITE, label)
    gaze = 0.012 * f.yaw
    iris = scene.place(_ellipse(x + gaze, y - 0.004, 0.036, 0.041))
    pupil = scene.place(_ellipse(x + gaze, y, 0.017, 0.018))
    color = np.array(EYE_COLORS[f.eye_color], np.float32)
    scene.fill(scene.mask(iris) * alpha, color * 0.72)
    inner = scene.place(_ellipse(x + gaze, y + 0.002, 0.029, 0.032))
    scene.fill(scene.mask(inner) * alpha, color * 1.12)
    scene.fill(scene.mask(pupil) * alpha, DARK * 0.6)
    shine = scene.place(_ellipse(x + gaze - 0.013, y - 0.013, 0.01, 0.01))
    scene.darken(0.35 * alpha * np.exp(-((scene.spot(x, y - tall, 9, 0.016) - 1) ** 2) * 12))
    scene.fill(scene.mask(shine) * alpha, np.array((255, 255, 255), np.float32), hide=False)
    lash = [(x + side * a, y + b) for a, b in [*lid, (half * 1.12, -0.016)]]
    crease = [(x + side * a, y + b - 0.02) for a, b in lid[1:]]
    lines = [scene.place(_spline(lash, closed=False))]
    weight = 0.014 if f.gender == "woman" else 0.010
    scene.fill(scene.strokes(lines, weight) * 0.9, DARK, hide=False)
    folds = [scene.place(_spline(crease, closed=False))]
    scene.darken(0.22 * scene.strokes(folds, 0.008), (0.8, 1.0, 1.0))
    scene.outline(outline, 0.007, 0.6)
    scene.draw_ink([iris], 0.008, 0.75, alpha)
    scene.ink = np.maximum(scene.ink, 0.95 * scene.mask(pupil) * alpha)
    scene.draw_ink(lines, 0.013, 0.95)
    scene.draw_ink(folds, 0.006, 0.5)


def _draw_brow(scene: _Scene, side: float, label: str) -> None:
    """One eyebrow; `side` is +1 on the picture's right."""
    f = scene.face
    x = 0.02 * f.yaw
    top = BROW_Y - f.brow_arch
    spine = np.array([(0.052, BROW_Y + 0.004), (0.09, top + 0.004), (0.15, top), (0.205, BROW_Y)])
    curve = _spline([tuple(p) for p in spine], closed=False)
    t = np.linspace(0, 1, len(curve))
    thick = 0.5 * f.brow_weight * (1 - 0.45 * t**3)
    shape = np.concatenate([curve - np.stack([0 * t, thick], 1),
                            (curve + np.stack([0 * t, thick], 1))[::-1]])  # fmt: skip
    placed = scene.place(shape * (side, 1) + (x, 0))
    alpha = scene.mask(placed)
    skin = np.array(SKIN_TONES[f.skin_tone], np.float32)
    color = 0.72 * np.array(HAIR_COLORS[f.hair_color], np.float32) + 0.08 * skin
    scene.fill(alpha * 0.9, np.minimum(color, 0.72 * skin))
    scene.labels[alpha >= 0.5] = LABEL_INDEX[label]
    hairs = [scene.place((np.array([c + (0, 0.012), c + (0.016, -0.012)])) * (side, 1) + (x, 0))
             for c in curve[1:-2:2]]  # fmt: skip
    scene.darken(0.2 * scene.strokes(hairs, 0.006) * alpha)
    scene.outline(placed, 0.006, 0.5)
    scene.draw_ink(hairs, 0.009, 0.8)


def _draw_mouth(scene: _Scene) -> None:
    """Lips, and teeth between them where the mouth is open."""
    f = scene.face
    x, y, w = 0.026 * f.yaw, MOUTH_Y, f.mouth_width
    rise = {"open smile": 0.032, "smile": 0.034, "serious": 0.014}[f.expression]
    gap = f.mouth_open if f.expression == "open smile" else 0.0
    corner_r, corner_l = (x + w, y - rise), (x - w, y - rise)
    lip = 0.036
    seam_top = [corner_l, (x - w * 0.5, y - 0.003), (x, y), (x + w * 0.5, y - 0.003), corner_r]
    seam_low = [corner_l, (x - w * 0.55, y + gap * 0.72), (x, y + gap), (x + w * 0.55,
                y + gap * 0.72), corner_r]  # fmt: skip
    bow = [(x + w * 0.55, y - lip * 0.85), (x + w * 0.18, y - lip * 1.12), (x, y - lip * 0.95),
           (x - w * 0.18, y - lip * 1.12), (x - w * 0.55, y - lip * 0.85)]  # fmt: skip
    base = [(x + w * 0.55, y + gap * 0.8 + lip * 0.85), (x, y + gap + lip * 1.15),
            (x - w * 0.55, y + gap * 0.8 + lip * 0.85)]  # fmt: skip
    top, low = _spline(seam_top, False), _spline(seam_low, False)
    upper = scene.place(np.concatenate([top, _spline([corner_r, *bow, corner_l], False)]))
    lower = scene.place(np.concatenate([low, _spline([corner_r, *base, corner_l], False)]))
    skin = np.array(SKIN_TONES[f.skin_tone], np.float32)
    rose = np.array((188, 62, 74) if f.gender == "woman" else (166, 84, 76), np.float32)
    tint = 0.35 * skin * (0.9, 0.72, 0.72) + 0.65 * rose
    scene.darken(0.16 * scene.spot(x, y + gap + 0.065, 0.07, 0.016), (0.8, 1.0, 1.0))
    if gap:
        _draw_teeth(scene, scene.place(np.concatenate([top, low[::-1]])), x, gap)
    lower_alpha, upper_alpha = scene.mask(lower), scene.mask(upper)
    scene.fill(lower_alpha, _tone(scene, tint * 1.06), "l_lip")
    scene.fill(upper_alpha, _tone(scene, tint * 0.86), "u_lip")
    shine = scene.spot(x, y + gap + lip * 0.6, w * 0.4, 0.01) * lower_alpha
    scene.add(46 * shine, (1.0, 1.0, 1.0))
    seams = [scene.place(top), scene.place(low)] if gap else [scene.place(top)]
    scene.darken(0.5 * scene.strokes(seams[:1], 0.008), (0.85, 1.0, 1.0))
    scene.outline(upper, 0.006, 0.6)
    scene.outline(lower, 0.006, 0.55)
    scene.draw_ink(seams, 0.01, 0.9)


def _draw_teeth(scene: _Scene, opening: np.ndarray, x: float, gap: float) -> None:
    """The inside of an open mouth."""
    alpha = scene.mask(opening)
    scene.fill(alpha, np.array((96, 30, 36), np.float32), "mouth")
    teeth = scene.mask(scene.place(_ellipse(x, MOUTH_Y - 0.012, 0.1, 0.012 + gap * 0.72)))
    scene.fill(teeth * alpha, WHITE)
    gaps = [scene.place(np.array([(x + d, MOUTH_Y - 0.03), (x + d, MOUTH_Y + gap * 0.6)]))
            for d in (-0.052, -0.018, 0.018, 0.052)]  # fmt: skip
    lines = scene.strokes(gaps, 0.004) * teeth * alpha
    scene.darken(0.12 * lines)
    scene.ink = np.maximum(scene.ink, 0.35 * lines)


def _hairline(f: FaceAttributes) -> np.ndarray:
    """Lower edge of the hair on the head, from the picture's right to its left."""
    w, p = f.face_width, f.parting
    low = 0.0 if f.ears_visible else 0.06
    if f.hair_style == "bangs":
        half = [(w * 1.0, low), (w * 0.93, -0.08), (w * 0.72, -0.134), (w * 0.3, -0.142)]
        return _spline([*half, *[(-x, y) for x, y in reversed(half)]], closed=False)
    top = -0.285 if f.hair_style == "bun" else -0.27
    dip = 0.03 if f.gender == "woman" else 0.015
    right = [(w * 1.0, low), (w * 0.93, -0.1), (w * 0.72, -0.215 + (dip if p < 0 else -0.01))]
    left = [(-w * 0.72, -0.215 + (dip if p > 0 else -0.01)), (-w * 0.93, -0.1), (-w, low)]
    part = [(p + 0.03, top + 0.01), (p, top - 0.012), (p - 0.03, top + 0.01)]
    return _spline([*right, *part, *left], closed=False)


def _draw_front_hair(scene: _Scene) -> None:
    """Hair on the head and, over covered ears, the locks at its sides."""
    f = scene.face
    w, v = f.face_width, f.hair_volume
    low = 0.0 if f.ears_visible else 0.06
    rx = w + v + {"curly": 0.02, "bun": -0.025}.get(f.hair_style, 0.0)
    top = 0.39 if f.hair_style == "bun" else 0.43 + v * 0.5
    # Hair that frees the ears ends higher and lies closer to the temples.
    start = 0.3 if f.ears_visible else 0.0
    outer = _ellipse(0.0, -0.05, rx, top - 0.05, start, np.pi - start, 48)
    if f.hair_style == "curly":
        bumps = 1 + 0.045 * np.sin(np.linspace(0, np.pi * 22, 48))[:, None]
        outer = (outer - (0, -0.05)) * bumps + (0, -0.05)
    tail = np.array([(w + 0.01, low), (w + 0.028, low - 0.03), (w + 0.7 * v, low - 0.09)])
    outer = np.concatenate([tail, outer, tail[::-1] * (-1, 1)])
    inner = _hairline(f)
    cap = scene.place(np.concatenate([outer, inner[::-1]]))
    shapes = [cap]
    locks = _cap_locks(scene, inner, outer)
    covering = f.hair_style in (*LONG_STYLES, "shoulder-length")
    if covering and not f.ears_visible:
        end = 0.32 if f.hair_style == "shoulder-length" else 0.6
        for side in (-1.0, 1.0):
            shapes.append(scene.place(_side_lock(f, end) * (side, 1)))
            ys = np.linspace(-0.2, end, 12)
            for x in np.linspace(0.9, 1.35, 7):
                wave = (0.012 if "wavy" in f.hair_style else 0.0) * np.sin(ys * 24)
                locks.append(scene.place(np.stack([side * (w * x + wave), ys], 1)))
    alpha = scene.mask(*shapes)
    head = np.isin(scene.labels, [LABEL_INDEX[k] for k in ("skin", "l_brow", "r_brow")])
    cast = np.roll(scene.blur(alpha, 0.025), round(0.02 * scene.size), 0)
    scene.darken(0.3 * cast * head, (0.8, 1.0, 1.0))
    _paint_hair(scene, alpha, locks, sheen=0.2)
    for shape in shapes:
        scene.draw_ink([np.concatenate([shape, shape[:1]])], 0.013, 0.92, 1 - 0.8 * _eroded(alpha))


def _eroded(alpha: np.ndarray) -> np.ndarray:
    """Coverage shrunk by about a pixel, to tell inner outlines of a union from its border."""
    image = Image.fromarray((alpha * 255).astype(np.uint8)).filter(ImageFilter.MinFilter(3))
    return np.asarray(image, np.float32) / 255


def _side_lock(f: FaceAttributes, end: float) -> np.ndarray:
    """Hair that falls over the ear, on the picture's right."""
    w = f.face_width
    out = w + f.hair_volume + 0.02
    return _spline([(w * 0.8, -0.24), (w * 0.95, -0.06), (w * 0.97, 0.1), (w * 0.93, 0.24),
                    (w * 0.95, end), (out + 0.02, end), (out, 0.1),
                    (out - 0.02, -0.1)])  # fmt: skip


def _cap_locks(scene: _Scene, inner: np.ndarray, outer: np.ndarray) -> list[np.ndarray]:
    """Strands of the hair on the head: from the parting down to both sides, or curls."""
    f, rng = scene.face, scene.rng
    if f.hair_style == "curly":
        locks = []
        centres = np.concatenate([_along(inner, outer, t) for t in np.linspace(0.05, 1, 12)])
        for cx, cy in rng.permutation(centres)[:90] + rng.uniform(-0.012, 0.012, (90, 2)):
            start = rng.uniform(0, 6.28)
            r = rng.uniform(0.014, 0.03)
            locks.append(scene.place(_ellipse(cx, cy, r, r, start, start + 4.2, 10)))
        return locks
    if f.hair_style == "bangs":
        ends = np.linspace(-1.2, 1.2, 30) * f.face_width
        falls = [[(x * 0.3, -0.43), (x * 0.85, -0.3), (x, -0.19), (x, -0.12)] for x in ends]
        return [scene.place(_spline(fall, closed=False, steps=4)) for fall in falls]
    right, left = [], []
    for amount in np.linspace(0.02, 0.98, 17):
        curve = _along(inner, outer, float(np.clip(amount + rng.uniform(-0.02, 0.02), 0, 1)))
        middle = 12 - round(f.parting / f.face_width * 8)
        right.append(scene.place(curve[: middle + 1]))
        left.append(scene.place(curve[middle:]))
    locks = right + left
    return locks


def _draw_glasses(scene: _Scene) -> None:
    """Glasses: frame and lens are `eye_g`, what is seen through them keeps its label."""
    f = scene.face
    turn = 0.022 * f.yaw
    t = np.linspace(0, 2 * np.pi, 40)
    shape = np.stack([np.sign(np.cos(t)) * np.abs(np.cos(t)) ** 0.7 * 0.1,
                      np.sign(np.sin(t)) * np.abs(np.sin(t)) ** 0.7 * 0.07], 1)  # fmt: skip
    lenses = [scene.place(shape + (side * EYE_X + turn, EYE_Y + 0.006)) for side in (-1, 1)]
    glass = scene.mask(*lenses)
    bridge = _spline([(turn - 0.026, -0.03), (turn, -0.04), (turn + 0.026, -0.03)], closed=False)
    arms = [np.array([(s * (EYE_X + 0.098) + turn, -0.03), (s * (f.face_width + 0.004), -0.045)])
            for s in (-1, 1)]  # fmt: skip
    rings = [np.concatenate([lens, lens[:2]]) for lens in lenses]
    lines = rings + [scene.place(line) for line in (bridge, *arms)]
    frame = scene.strokes(lines, 0.021)
    features = [LABEL_INDEX[name] for name in ("l_eye", "r_eye", "l_brow", "r_brow", "hair")]
    kept = np.isin(scene.labels, features)
    streak = np.exp(-((((scene.x - scene.y * 0.6) * 5.2) % 1.0 - 0.5) ** 2) * 60)
    scene.fill(glass * (0.06 + 0.16 * streak), WHITE, hide=False)
    scene.fill(frame, DARK * 1.2)
    scene.labels[(glass >= 0.5) & ~kept] = LABEL_INDEX["eye_g"]
    scene.labels[frame >= 0.5] = LABEL_INDEX["eye_g"]
    scene.ink = np.maximum(scene.ink, 0.9 * frame)


def _draw_hat(scene: _Scene) -> None:
    """A hat over the hair, with its shadow on the face."""
    f = scene.face
    assert f.hat is not None
    color = np.array(HAT_COLORS[f.hat], np.float32)
    half = f.face_width + f.hair_volume
    crown = [(0.0, -0.53), (half * 0.7, -0.48), (half + 0.015, -0.32), (half + 0.02, -0.2)]
    dome = scene.place(_spline(_mirror([*crown, (half * 0.5, -0.21), (0, -0.215)])))
    if f.hat_kind == "beanie":
        edge = _mirror([(0, -0.3), (half * 0.6, -0.29), (half + 0.03, -0.265),
                        (half + 0.03, -0.165), (half * 0.6, -0.19), (0, -0.2)])  # fmt: skip
    else:
        edge = _mirror([(0, -0.29), (half, -0.27), (half + 0.2, -0.22), (half + 0.19, -0.175),
                        (half, -0.185), (0, -0.2)])  # fmt: skip
    band = scene.place(_spline(edge))
    shadow = np.roll(scene.blur(scene.mask(band), 0.03), round(0.035 * scene.size), 0)
    face = np.isin(scene.labels, [LABEL_INDEX[name] for name in FACE_PARTS])
    scene.darken(0.3 * shadow * face)
    for shape, gain in ((dome, 0.94), (band, 1.04)):
        alpha = scene.mask(shape)
        scene.fill(alpha, _tone(scene, color * gain, light=0.1), "hat")
        scene.darken(0.4 * alpha * (1 - scene.blur(alpha, 0.03)))
        scene.outline(shape)
    bow = np.linspace(-1, 1, 15 if f.hat_kind == "beanie" else 0)
    ribs = [scene.place(np.array([(x * half, -0.27), (x * half * 1.03, -0.19)])) for x in bow]
    ribs += [scene.place(_spline([(x * half * 0.9, -0.3), (x * half * 0.75, -0.42),
                                  (x * half * 0.3, -0.52)], False)) for x in bow[::2]]  # fmt: skip
    folds = scene.strokes(ribs, 0.008)
    scene.add(folds, np.full(3, 26.0 if color.mean() < 70 else -26.0))
    scene.draw_ink(ribs, 0.006, 0.55)


def _draw_earrings(scene: _Scene) -> None:
    """A drop below each ear."""
    f = scene.face
    for side in (-1.0, 1.0):
        x = side * (f.face_width - 0.012 + 0.05 * _ear_side(f, side))
        drop = scene.place(_ellipse(x, 0.15, 0.029, 0.042))
        alpha = scene.mask(drop)
        scene.fill(alpha, _tone(scene, GOLD), "ear_r")
        scene.darken(0.4 * alpha * (1 - scene.blur(alpha, 0.015)))
        scene.add(70 * scene.spot(x - 0.008, 0.135, 0.01, 0.014) * alpha, (1.0, 1.0, 1.0))
        scene.outline(drop, 0.009)


def _finish(scene: _Scene) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Warm or cool light over the picture, paper grain over the pencil."""
    warmth = 0.022 * scene.face.warmth
    pixels = scene.pixels * _planes((1 + warmth, 1.0, 1 - warmth))
    image = np.clip(np.rint(pixels), 0, 255).astype(np.uint8).transpose(1, 2, 0)
    image = np.ascontiguousarray(image)
    grain = 0.85 + 0.15 * np.sin(scene.x * 41 + 3 * scene.y) * np.sin(scene.y * 37)
    sketch = np.clip(np.rint(255 * (1 - 0.92 * scene.ink * grain)), 0, 255).astype(np.uint8)
    return image, scene.labels, sketch


def draw(attributes: FaceAttributes, size: int = 128) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw a face.

    Args:
        attributes: the face.
        size: side of the square picture in pixels; the scene is the same at every size.

    Returns:
        Image uint8 [S, S, 3], labels uint8 [S, S] and sketch uint8 [S, S].

    Raises:
        ValueError: if `size` is below 16, where parts of the face would vanish.
    """
    if size < 16:
        raise ValueError(f"size is {size}; a face needs at least 16 pixels")
    scene = _Scene(attributes, size)
    _draw_background(scene)
    _draw_back_hair(scene)
    _draw_neck(scene)
    _draw_clothes(scene)
    if attributes.necklace:
        _draw_necklace(scene)
    if attributes.ears_visible:
        _draw_ears(scene)
    face = _draw_skin(scene)
    _draw_nose(scene, face)
    _draw_mouth(scene)
    for side, prefix in ((1.0, "l"), (-1.0, "r")):
        _draw_eye(scene, side, f"{prefix}_eye")
        _draw_brow(scene, side, f"{prefix}_brow")
    if attributes.hair_style != "bald":
        _draw_front_hair(scene)
    if attributes.glasses:
        _draw_glasses(scene)
    if attributes.hat:
        _draw_hat(scene)
    if attributes.earrings:
        _draw_earrings(scene)
    return _finish(scene)


def render_face(seed: int, size: int = 128) -> RenderedFace:
    """The face of a seed, drawn and described; equal for equal seeds.

    Args:
        seed: any non-negative integer.
        size: side of the square picture in pixels.

    Returns:
        The face.
    """
    attributes = sample_attributes(seed)
    image, labels, sketch = draw(attributes, size)
    return RenderedFace(image, labels, sketch, attributes, captions(attributes, seed))
