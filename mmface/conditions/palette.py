"""The 19 face classes, and the colours that masks are drawn in.

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
