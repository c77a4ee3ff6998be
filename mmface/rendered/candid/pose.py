"""A head in three dimensions, turned, nodded and aligned as the crops of CelebA-HQ are.

Head coordinates: x to the picture's right, y down from the line of the eyes, z towards the viewer,
in sides of the picture of a face that looks straight ahead. The crop is found from eyes and mouth
as CelebA-HQ finds it, then moved a little, as landmarks err.
"""

import numpy as np

from mmface.rendered.candid.attributes import CandidAttributes

EYE_X = 0.125
MOUTH_Y = 0.24
_PIVOT = np.array((0.0, 0.15, -0.1))
"""Where the head turns on the neck."""
_DISTANCE = 2.6
"""Of the camera."""

_HEIGHTS = np.array((-0.42, -0.34, -0.2, -0.04, 0.1, 0.22, 0.33, 0.40, 0.43, 0.45))
_DEPTHS = np.array((0.02, 0.11, 0.18, 0.185, 0.2, 0.21, 0.21, 0.205, 0.2, 0.19))


class Pose:
    """Carries points of a head or of a body to places on the picture, in fractions of its side."""

    def __init__(self, face: CandidAttributes) -> None:
        """Turn the head and find the crop."""
        self._face = face
        jaw, chin, w = face.jaw, face.chin, face.face_width
        shares = (0.3, 0.74, 0.95, 1.0, 0.985, jaw, 0.78 * jaw, chin, 0.7 * chin, 0.0)
        self._heights = np.where(_HEIGHTS > 0.2, _HEIGHTS * face.chin_y / 0.45, _HEIGHTS)
        self._half_widths = w * np.array(shares)
        marks = np.array(
            ((-EYE_X, 0.0, 0.165), (EYE_X, 0.0, 0.165), (0.0, MOUTH_Y, 0.205)),
        )
        left, right, mouth = self._turned(marks, face.yaw, face.pitch)
        middle, across = (left + right) / 2, right - left
        down = mouth - middle
        axis = across + np.array((down[1], -down[0]))
        side = max(np.hypot(*across) * 4.0, np.hypot(*down) * 3.6)
        ax, ay = axis / np.hypot(*axis) / side
        self._middle = middle + 0.1 * down
        cos, sin = np.cos(face.roll) * face.scale, np.sin(face.roll) * face.scale
        self._frame = np.array([[ax, -ay], [ay, ax]]) @ np.array([[cos, sin], [-sin, cos]])
        self._shift = np.array((0.5 + face.shift_x, 0.5 + face.shift_y))

    def half_width(self, y: np.ndarray | float) -> np.ndarray:
        """Half the width of the face at heights `y`, 0 below the chin."""
        return np.asarray(np.interp(y, self._heights, self._half_widths))

    def surface(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Depth z of the bare face at (x, y)."""
        back = np.interp(y, (0.05, self._face.chin_y), (0.0, 0.13))
        front = np.interp(y, self._heights, _DEPTHS)
        share = np.clip(x / (1.03 * self.half_width(y) + 1e-6), -1, 1)
        return back + np.maximum(front - back, 0.0) * np.sqrt(1 - share**2)

    def slices(self) -> list[np.ndarray]:
        """Outlines of the face, [N, 3] each, whose union seen from anywhere is its silhouette."""
        y = np.linspace(-0.36, self._face.chin_y, 26)
        w = self.half_width(y)
        back = np.interp(y, (0.05, self._face.chin_y), (0.0, 0.13))
        front = np.maximum(np.interp(y, self._heights, _DEPTHS), back)
        found = []
        for t in (0.0, 0.35, 0.6, 0.8, 0.95):
            x, z = w * np.sqrt(1 - t * t), back + (front - back) * t
            right = np.stack([x, y, z], 1)
            found.append(np.concatenate([right, right[::-1] * (-1, 1, 1)]))
        return found

    def skull(self, extra: float, top: float = 0.0) -> list[np.ndarray]:
        """Outlines of the skull with `extra` hair around it and `top` more above, as `slices`."""
        angles = np.linspace(0, 2 * np.pi, 40)
        rx, ry, rz = self._face.face_width + extra, 0.33 + extra + top, 0.27 + extra
        found = []
        for t in (-0.95, -0.75, -0.4, 0.0, 0.35, 0.6):
            share = np.sqrt(1 - t * t)
            x, y = rx * share * np.cos(angles), -0.075 + ry * share * np.sin(angles)
            # The back of the head ends at the nape, its front at the temples.
            y = np.minimum(y, 0.12 if t < 0.2 else 0.02)
            found.append(np.stack([x, y, np.full_like(x, -0.08 + rz * t)], 1))
        return found

    def head(self, points: np.ndarray, lift: float = 0.0) -> np.ndarray:
        """Places of points of the head, [N, 2]; points without a depth lie on the face.

        `lift` is how far above it they lie.
        """
        p = np.asarray(points, np.float64)
        if p.shape[1] == 2:
            p = np.concatenate([p, self.surface(p[:, 0], p[:, 1])[:, None]], 1)
        if lift:
            p = p + np.array((0.0, 0.0, lift))
        return self._placed(self._turned(p, self._face.yaw, self._face.pitch))

    def body(self, points: np.ndarray) -> np.ndarray:
        """Places of points [N, 2] of the body, which follows the head half way."""
        p = np.asarray(points, np.float64)
        p = np.concatenate([p, np.full((len(p), 1), -0.08)], 1)
        return self._placed(self._turned(p, self._face.body_yaw, 0.0))

    @staticmethod
    def _turned(points: np.ndarray, yaw: float, pitch: float) -> np.ndarray:
        relative = points - _PIVOT
        across, up = (np.cos(yaw), np.sin(yaw)), (np.cos(pitch), np.sin(pitch))
        x, y, z = relative.T
        x, z = x * across[0] + z * across[1], z * across[0] - x * across[1]
        y, z = y * up[0] - z * up[1], z * up[0] + y * up[1]
        near = _DISTANCE / (_DISTANCE - z)
        flat = np.empty((len(points), 2))
        flat[:, 0], flat[:, 1] = x * near + _PIVOT[0], y * near + _PIVOT[1]
        return flat

    def _placed(self, flat: np.ndarray) -> np.ndarray:
        return (flat - self._middle) @ self._frame + self._shift
