"""What a face is drawn on: picture, label map and sketch, and the operations on all three.

Geometry is in fractions of the picture's side, y down. Head coordinates have their origin on the
axis of the face at the picture's middle height, body coordinates are the same for an upright head;
`Scene.place` turns both into places on the picture.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from mmface.conditions import LABEL_INDEX
from mmface.rendered.attributes import HAIR_COLORS, SKIN_TONES, Color, FaceAttributes
from mmface.rendered.curves import Point, ring, spline

Hue = Sequence[float] | np.ndarray
"""A colour, red, green and blue in 0 to 255, or a field of colours [3, S, S]."""

SUPERSAMPLING = 3
PIVOT = np.array((0.0, 0.1))
"""The point of the head, in head coordinates, about which it rolls and scales."""
LIGHT_X = {"left": -1.0, "right": 1.0, "front": 0.0}

WHITE = np.array((246, 243, 238), np.float32)
DARK = np.array((40, 30, 30), np.float32)
GOLD = np.array((226, 180, 74), np.float32)
RUDDY = (0.8, 1.0, 1.0)
"""The tint of most shadows on skin, which keep some of its red."""


def rgb(color: Color) -> np.ndarray:
    """A named colour ready to reckon with: float32 [3] in 0 to 255."""
    return np.array(color, np.float32)


def planes(color: Hue) -> np.ndarray:
    """A colour [3] or a field of colours [3, S, S], ready to multiply a [S, S] mask."""
    field = np.asarray(color, np.float32)
    return field[:, None, None] if field.ndim == 1 else field


@lru_cache(maxsize=8)
def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centres as fractions of the side: float32 [S, S] x and y."""
    centres = (np.arange(size, dtype=np.float32) + 0.5) / size
    x, y = np.meshgrid(centres, centres)
    return x, y


class Canvas:
    """Picture, labels and ink under construction, and what is drawn with.

    Colours are float32 in 0 to 255, `pixels` [3, S, S]: planes first, since broadcasting a mask
    over them is several times faster. `labels` are uint8 [S, S] indices into
    `mmface.conditions.LABELS`; `ink`, float32 [S, S], is 0 on bare paper and 1 where the pencil is
    darkest. `x` and `y`, float32 [S, S], are the pixels' places in [0, 1]. Coverages are [S, S] in
    [0, 1].
    """

    def __init__(self, size: int, seed: int) -> None:
        """Start with a black picture, all background, and bare paper; `seed` is the texture's."""
        self.size = size
        self.rng = np.random.default_rng(seed)
        self.x, self.y = _grid(size)
        self.pixels = np.zeros((3, size, size), np.float32)
        self.labels = np.zeros((size, size), np.uint8)
        self.ink = np.zeros((size, size), np.float32)

    def mask(self, *polygons: np.ndarray) -> np.ndarray:
        """Coverage of the union of placed polygons: float32 [S, S] in [0, 1]."""
        return self._coverage(polygons, 0.0)

    def strokes(self, lines: Sequence[np.ndarray], width: float) -> np.ndarray:
        """Coverage of placed polylines of a width in fractions: float32 [S, S] in [0, 1]."""
        return self._coverage(lines, width)

    def _coverage(self, curves: Sequence[np.ndarray], width: float) -> np.ndarray:
        """Lines of a width or, where it is 0, filled polygons: float32 [S, S] in [0, 1].

        Supersampled within their bounding box only, which makes many small layers affordable.
        """
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
        columns, rows = ((high - low) * SUPERSAMPLING).tolist()
        image = Image.new("L", (columns, rows))
        canvas = ImageDraw.Draw(image)
        for curve in curves:
            points = (curve * scale - low * SUPERSAMPLING).ravel().tolist()
            if width:
                canvas.line(points, fill=255, width=max(1, round(width * scale)))
            else:
                canvas.polygon(points, fill=255)
        small = np.asarray(image.reduce(SUPERSAMPLING), np.float32) / 255
        coverage[low[1] : high[1], low[0] : high[0]] = small
        return coverage

    def blur(self, field: np.ndarray, radius: float) -> np.ndarray:
        """A [0, 1] field [S, S] blurred by a radius in fractions of the side."""
        image = Image.fromarray((field * 255).astype(np.uint8))
        blurred = image.filter(ImageFilter.BoxBlur(radius * self.size))
        return np.asarray(blurred, np.float32) / 255

    def cast(self, field: np.ndarray, radius: float, drop: float) -> np.ndarray:
        """The soft shadow of a layer: strength, float32 [S, S] in [0, 1].

        `radius` of the blur and `drop` below the layer are fractions of the side.
        """
        return np.roll(self.blur(field, radius), round(drop * self.size), 0)

    def fill(
        self, alpha: np.ndarray, color: Hue, label: str | None = None, hide: bool = True
    ) -> None:
        """Lay a colour over the picture; without a label, labels stay as they are.

        `hide`: whether the layer covers the pencil lines below it.
        """
        self.pixels += alpha * (planes(color) - self.pixels)
        if label is not None:
            self.mark(alpha >= 0.5, label)
        if hide:
            self.ink *= 1 - alpha

    def mark(self, region: np.ndarray, label: str) -> None:
        """Give a region, bool [S, S], its label."""
        self.labels[region] = LABEL_INDEX[label]

    def labelled(self, *names: str) -> np.ndarray:
        """Where the label map shows one of these labels: bool [S, S]."""
        return np.isin(self.labels, [LABEL_INDEX[name] for name in names])

    def darken(self, amount: np.ndarray, tint: Hue | None = None) -> None:
        """Multiply the picture by 1 - amount * tint: a shadow where amount is positive."""
        self.pixels *= 1 - (amount if tint is None else amount * planes(tint))

    def add(self, amount: np.ndarray, color: Hue = (1.0, 1.0, 1.0)) -> None:
        """Add light of a colour, or take it away where the amount is negative."""
        self.pixels += amount * planes(color)

    def add_ink(self, field: np.ndarray) -> None:
        """Add pencil to the sketch where a field [S, S] in [0, 1] is darker than it."""
        self.ink = np.maximum(self.ink, field)

    def draw_ink(
        self,
        lines: Sequence[np.ndarray],
        width: float,
        strength: float,
        clip: np.ndarray | None = None,
    ) -> None:
        """Add pencil lines to the sketch, as dark as `strength`, at most 1.

        `clip`, [S, S] in [0, 1], is how much of the lines may be seen where.
        """
        stroke = self.strokes(lines, width) * strength
        self.add_ink(stroke if clip is None else stroke * clip)

    def outline(self, polygon: np.ndarray, width: float = 0.013, strength: float = 0.95) -> None:
        """Add the outline of a placed polygon to the sketch."""
        self.draw_ink([ring(polygon)], width, strength)


class Scene(Canvas):
    """A canvas for one face; `light` comes from -1 left, 1 right, or 0 the front."""

    def __init__(self, attributes: FaceAttributes, size: int) -> None:
        """Start with an empty canvas."""
        super().__init__(size, attributes.texture_seed)
        self.face = attributes
        self.skin = rgb(SKIN_TONES[attributes.skin_tone])
        self.hair = rgb(HAIR_COLORS[attributes.hair_color])
        self.light = LIGHT_X[attributes.lighting]
        self._origin = PIVOT + np.array((0.5 + attributes.shift_x, 0.5 + attributes.shift_y))

    def place(self, points: np.ndarray, head: bool = True) -> np.ndarray:
        """Carry points of head (or body) coordinates, [N, 2], to fractions of the picture."""
        relative = np.asarray(points, np.float64) - PIVOT
        if head:
            cos, sin = np.cos(self.face.roll), np.sin(self.face.roll)
            relative = relative @ np.array([[cos, sin], [-sin, cos]]) * self.face.scale
        return relative + self._origin

    def contour(self, points: Sequence[Point], head: bool = True, steps: int = 8) -> np.ndarray:
        """A closed spline through points, placed: float64 [N, 2]."""
        return self.place(spline(points, steps=steps), head)

    def line(self, points: Sequence[Point], head: bool = True, steps: int = 8) -> np.ndarray:
        """An open spline through points, placed: float64 [N, 2]."""
        return self.place(spline(points, closed=False, steps=steps), head)

    def spot(self, x: float, y: float, rx: float, ry: float) -> np.ndarray:
        """A soft round spot in head coordinates: float32 [S, S], 1 at its centre."""
        cx, cy = self.place(np.array([[x, y]]))[0].tolist()
        return np.exp(-(((self.x - cx) / rx) ** 2) - ((self.y - cy) / ry) ** 2)

    def lit(self, color: Hue, light: float = 0.1, fall: float = 0.06) -> np.ndarray:
        """A colour, [3] or [3, S, S], under the scene's light: float32 [3, S, S].

        `light` is how much brighter it is towards the light, `fall` at the top than at the bottom.
        """
        across = (self.x - 0.5 - self.face.shift_x) * 3
        shade = 1 + light * np.clip(self.light * across, -1, 1) + fall * (0.5 - self.y)
        return shade * planes(color)
