"""Masks as parsers and people make them: rounded, shifted, with islands and left-out parts."""

import numpy as np
from PIL import Image, ImageFilter

from mmface.conditions import LABEL_INDEX
from mmface.rendered.candid.canvas import warped

CONFUSED = (
    ("l_ear", "skin"), ("r_ear", "skin"), ("l_ear", "hair"), ("r_ear", "hair"),
    ("ear_r", "hair"), ("neck_l", "neck"), ("cloth", "background"), ("neck", "cloth"),
    ("l_brow", "skin"), ("r_brow", "skin"), ("mouth", "l_lip"), ("hat", "hair"),
    ("neck", "background"), ("neck", "hair"), ("eye_g", "skin"),
)  # fmt: skip
"""What is taken for what."""


def rough_mask(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A label map, uint8 [S, S], as it may be brought; one in five comes back as it was."""
    if rng.random() < 0.2:
        return labels
    size = len(labels)
    rough = labels
    if rng.random() < 0.6:
        rough = warped(rough, rng.uniform(0.002, 0.009), (6, 20), rng)
    if rng.random() < 0.45:
        reach = 3 if size < 200 else 5
        rough = np.asarray(Image.fromarray(rough).filter(ImageFilter.ModeFilter(reach)))
    if rng.random() < 0.3:
        rough = _with_islands(rough, rng)
    if rng.random() < 0.16:
        old, new = CONFUSED[int(rng.integers(len(CONFUSED)))]
        rough = np.where(rough == LABEL_INDEX[old], LABEL_INDEX[new], rough)
    return np.ascontiguousarray(rough, np.uint8)


def _with_islands(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Small blobs that have the label of a place nearby."""
    size = len(labels)
    found = labels.copy()
    rows, columns = np.indices(labels.shape)
    for _ in range(int(rng.integers(1, 5))):
        y, x = rng.integers(0, size, 2)
        move = rng.normal(0, 0.08 * size, 2)
        source = np.clip(np.rint(move + (y, x)), 0, size - 1).astype(int)
        ry, rx = rng.uniform(0.008, 0.035, 2) * size
        blob = ((rows - y) / ry) ** 2 + ((columns - x) / rx) ** 2 < 1
        found[blob] = labels[source[0], source[1]]
    return found
