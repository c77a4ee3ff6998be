"""Files that a visitor may take for masks, and that are none."""

from pathlib import Path

import numpy as np
from PIL import Image

from mmface.conditions import colorize
from mmface.rendered import render_face


def bad_files(folder: Path) -> dict[str, Path]:
    """Write files that are no masks: each is a mistake that a visitor can make."""
    files = {name: folder / name for name in ("text.png", "cut.png", "bomb.png", "photo.png")}
    files["text.png"].write_text("I am no picture")
    Image.fromarray(colorize(render_face(1, 64).labels)).save(files["cut.png"])
    files["cut.png"].write_bytes(files["cut.png"].read_bytes()[:200])
    Image.new("1", (5000, 5000)).save(files["bomb.png"])
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(files["photo.png"])
    return files
