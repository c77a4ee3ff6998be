"""Which named colour a region of a picture has."""

from collections.abc import Mapping

import numpy as np


def nearest_colour(
    image: np.ndarray, region: np.ndarray, colours: Mapping[str, tuple[int, int, int]]
) -> str:
    """Name the colour nearest (RGB L2) to the median of a region.

    Args:
        image: uint8 [H, W, 3].
        region: bool [H, W], with at least one pixel.
        colours: RGB by name.

    Returns:
        A key of `colours`.
    """
    median = np.median(image[region], axis=0)
    distances = {name: float(((median - rgb) ** 2).sum()) for name, rgb in colours.items()}
    return min(distances, key=distances.__getitem__)
