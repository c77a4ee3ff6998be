"""A canvas for one candid face: the operations of `Canvas` in places of a head or a body."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from mmface.rendered.attributes import HAIR_COLORS
from mmface.rendered.candid.attributes import SKIN_TONES, CandidAttributes
from mmface.rendered.candid.pose import Pose
from mmface.rendered.curves import Point, spline
from mmface.rendered.scene import LIGHT_X, Canvas, Hue, planes, rgb


def smooth_noise(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Smooth noise, float32 [size, size] in about [-1, 1], with `cells` bumps across."""
    grid = rng.uniform(-1, 1, (cells + 2, cells + 2)).astype(np.float32)
    place = np.linspace(0, cells, size, dtype=np.float32)
    low = place.astype(int)
    part = place - low
    part = part * part * (3 - 2 * part)
    rows = grid[low] * (1 - part[:, None]) + grid[low + 1] * part[:, None]
    return rows[:, low] * (1 - part) + rows[:, low + 1] * part


def warped(
    field: np.ndarray, amount: float, cells: tuple[int, int], rng: np.random.Generator
) -> np.ndarray:
    """A field [S, S] whose pixels are moved smoothly by up to `amount` of the side.

    `cells` are the least and, exclusive, the most bumps across.
    """
    size = len(field)
    moves = [smooth_noise(rng, size, int(rng.integers(*cells))) for _ in range(2)]
    places = np.indices(field.shape) + amount * size * np.stack(moves).astype(np.float64)
    rows, columns = np.clip(np.rint(places), 0, size - 1).astype(int)
    return np.asarray(field[rows, columns])


class CandidScene(Canvas):
    """A canvas for one face; `light` comes from -1 left, 1 right, or 0 the front.

    `far` is the side turned away, -1 or 1, and `turn` how far, 0 to about 0.8: the sine of the yaw.
    `strand_field`, [S, S] in [-1, 1], holds the strands where hair is.
    """

    def __init__(self, attributes: CandidAttributes, size: int) -> None:
        """Start with an empty canvas."""
        super().__init__(size, attributes.texture_seed)
        self.face = attributes
        self.pose = Pose(attributes)
        self.skin = rgb(SKIN_TONES[attributes.skin_tone])
        self.hair = rgb(HAIR_COLORS[attributes.hair_color])
        self.light = LIGHT_X[attributes.lighting]
        self.far = 1.0 if attributes.yaw > 0 else -1.0
        self.turn = abs(float(np.sin(attributes.yaw)))
        self.strand_field = np.zeros((size, size), np.float32)

    def head(self, points: Sequence[Point] | np.ndarray, lift: float = 0.0) -> np.ndarray:
        """Carry points of the face to the picture: float64 [N, 2]."""
        return self.pose.head(np.asarray(points, np.float64), lift)

    def curve(
        self, points: Sequence[Point], closed: bool = False, lift: float = 0.0, steps: int = 6
    ) -> np.ndarray:
        """A spline through points of the face, placed: float64 [N, 2]."""
        return self.head(spline(points, closed=closed, steps=steps), lift)

    def body(self, points: Sequence[Point], closed: bool = False, steps: int = 6) -> np.ndarray:
        """A spline through points of the body, placed: float64 [N, 2]."""
        return self.pose.body(spline(points, closed=closed, steps=steps))

    def spot(self, x: float, y: float, rx: float, ry: float, lift: float = 0.0) -> np.ndarray:
        """A soft spot on the face: float32 [S, S], 1 at its centre."""
        cx, cy = self.head([(x, y)], lift)[0].tolist()
        return np.exp(-(((self.x - cx) / rx) ** 2) - ((self.y - cy) / ry) ** 2)

    def lit(self, color: Hue, light: float = 0.12, fall: float = 0.08) -> np.ndarray:
        """A colour, [3] or [3, S, S], under the scene's light: float32 [3, S, S]."""
        across = (self.x - 0.5 - self.face.shift_x) * 3
        shade = 1 + light * np.clip(self.light * across, -1, 1) + fall * (0.5 - self.y)
        return shade * planes(color)

    def strands(self, lines: Sequence[np.ndarray], width: float) -> np.ndarray:
        """Many thin placed lines of random brightness: float32 [S, S] in [-1, 1], 0 on average."""
        scale = 2
        side = self.size * scale
        image = Image.new("L", (side, side), 128)
        draw = ImageDraw.Draw(image)
        thick = max(1, round(width * side))
        for line, grey in zip(lines, self.rng.integers(0, 256, len(lines)).tolist(), strict=True):
            draw.line((line * side).ravel().tolist(), fill=grey, width=thick)
        return np.asarray(image.reduce(scale), np.float32) / 127.5 - 1

    def hair_cover(self) -> np.ndarray:
        """Where hair is seen: float32 [S, S], 0 or 1."""
        return self.labelled("hair").astype(np.float32)

    def eroded(self, alpha: np.ndarray) -> np.ndarray:
        """Coverage shrunk by about a pixel at 128."""
        reach = 3 if self.size < 200 else 5
        image = Image.fromarray((alpha * 255).astype(np.uint8)).filter(ImageFilter.MinFilter(reach))
        return np.asarray(image, np.float32) / 255
