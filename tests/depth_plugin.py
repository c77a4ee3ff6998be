"""A third kind of condition, as another package would bring it."""

from typing import ClassVar

import numpy as np
from PIL import Image, ImageOps

from mmface.conditions import ConditionKind, LoadedCondition, Reading, flat_rgb, open_picture


class DepthKind(ConditionKind):
    """Depth maps; uint8 [H, W], near is white."""

    name: ClassVar = "depth"
    index: ClassVar = 2
    help: ClassVar = "Depth map, near in white."
    score: ClassVar = "depth"
    reading: ClassVar = Reading("depth_order", ("near_is_white", "near_is_black"))

    def load(self, source, size, reading=None):
        grey = Image.fromarray(flat_rgb(open_picture(source), "black")).convert("L")
        depth = np.array(ImageOps.fit(grey, size[::-1]))
        if not np.ptp(depth):
            raise ValueError("The picture is flat.")
        return LoadedCondition(255 - depth if reading == "near_is_black" else depth)

    def rgb(self, values):
        return np.repeat(values[..., None], 3, axis=2)

    def read_back(self, pictures, parser):
        return [picture.mean(axis=-1) for picture in pictures]

    def agreement(self, values, read):
        return {"depth": float(1 - abs(values - read).mean() / 255)}
