"""The 19 face classes, their colours, and how label maps are mirrored and compared.

Label maps are uint8 arrays [H, W] of class indices in the CelebAMask-HQ order (`LABELS`).
"""

import numpy as np

LABELS: tuple[str, ...] = (
    "background",
    "skin",
    "nose",
    "eye_g",
    "l_eye",
    "r_eye",
    "l_brow",
    "r_brow",
    "l_ear",
    "r_ear",
    "mouth",
    "u_lip",
    "l_lip",
    "hair",
    "hat",
    "ear_r",
    "neck_l",
    "neck",
    "cloth",
)
"""The CelebAMask-HQ classes in their index order. Left and right are the subject's own, so
`l_eye` lies on the picture's right. `eye_g` is eyeglasses, `ear_r` an earring, `neck_l` a
necklace, `mouth` the inside of the mouth between the lips."""

LABEL_INDEX: dict[str, int] = {name: index for index, name in enumerate(LABELS)}

LABEL_TITLES: dict[str, str] = {
    "background": "background",
    "skin": "skin",
    "hair": "hair",
    "l_brow": "left brow",
    "r_brow": "right brow",
    "l_eye": "left eye",
    "r_eye": "right eye",
    "nose": "nose",
    "u_lip": "upper lip",
    "mouth": "mouth",
    "l_lip": "lower lip",
    "l_ear": "left ear",
    "r_ear": "right ear",
    "neck": "neck",
    "cloth": "clothes",
    "eye_g": "glasses",
    "hat": "hat",
    "ear_r": "earring",
    "neck_l": "necklace",
}
"""What people call each class, in the page's order. Left and right are the subject's."""

PALETTE = np.array(
    [
        (0, 0, 0),
        (204, 0, 0),
        (76, 153, 0),
        (204, 204, 0),
        (51, 51, 255),
        (204, 0, 204),
        (0, 255, 255),
        (255, 204, 204),
        (102, 51, 0),
        (255, 0, 0),
        (102, 204, 0),
        (255, 255, 0),
        (0, 0, 153),
        (0, 0, 204),
        (255, 51, 153),
        (0, 204, 204),
        (0, 51, 0),
        (255, 153, 51),
        (0, 204, 0),
    ],
    dtype=np.uint8,
)
"""uint8 [19, 3]: the RGB colour of each class, as CelebAMask-HQ's `g_color.py` draws them."""

LEFT_RIGHT_PAIRS: tuple[tuple[int, int], ...] = ((4, 5), (6, 7), (8, 9))
"""Classes that change places in a mirror: the eyes, the brows and the ears."""

_MIRRORED = np.arange(len(LABELS), dtype=np.uint8)
for _left, _right in LEFT_RIGHT_PAIRS:
    _MIRRORED[[_left, _right]] = _right, _left


def flip_labels(labels: np.ndarray) -> np.ndarray:
    """Mirror a label map [H, W] left to right, and swap the subject's left and right parts."""
    return _MIRRORED[labels[:, ::-1]]


def confusion_matrix(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Count pixels of uint8 label maps by (true, predicted class): int64 [19, 19], additive."""
    count = len(LABELS)
    joint = truth.astype(np.int64).ravel() * count + predicted.astype(np.int64).ravel()
    return np.bincount(joint, minlength=count * count).reshape(count, count)


def pixel_accuracy(confusion: np.ndarray) -> float:
    """Share of pixels with the right class, in [0, 1]."""
    return float(np.trace(confusion) / confusion.sum())


def class_iou(confusion: np.ndarray) -> np.ndarray:
    """Intersection over union of each class, float64 [19] in [0, 1]; NaN where truth has none."""
    hits = np.diag(confusion).astype(np.float64)
    union = confusion.sum(0) + confusion.sum(1) - hits
    return np.where(confusion.sum(1) > 0, hits / np.maximum(union, 1), np.nan)


def mean_iou(confusion: np.ndarray) -> float:
    """Mean over the classes that the truth has, in [0, 1]."""
    return float(np.nanmean(class_iou(confusion)))
