"""Sketches as people bring them: depth, paper, light and scale do not change what is read."""

import os
from functools import cache

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mmface.conditions import SKETCH, load_sketch
from mmface.rendered import render_face

SIZE = (128, 128)
MUTATIONS = int(os.environ.get("MMFACE_MUTATIONS", "300"))
WAYS = ("sixteen", "twelve", "float", "dim", "uneven", "faint", "paper", "alpha", "inverted")


@cache
def drawing(number: int) -> np.ndarray:
    sketch = render_face(number, SIZE[0]).sketch
    sketch.flags.writeable = False
    return sketch


def changed(sketch: np.ndarray, way: str, random: np.random.Generator) -> Image.Image:
    """Bring a drawing to another depth, paper or light."""
    share = sketch.astype(np.float64) / 255
    if way == "sixteen":
        return Image.fromarray((share * 65535).astype(np.uint16))
    if way == "twelve":
        return Image.fromarray((share * 4095).astype(np.uint16))
    if way == "float":
        return Image.fromarray((share * random.choice([1.0, 255.0])).astype(np.float32))
    if way == "dim":
        return Image.fromarray((share * random.uniform(60, 200)).astype(np.uint8))
    if way == "uneven":
        place = np.mgrid[0 : SIZE[0], 0 : SIZE[1]] / SIZE[0]
        light = 1 - random.uniform(0.2, 0.65) * place[int(random.integers(2))]
        return Image.fromarray((sketch * light * random.uniform(0.7, 1)).astype(np.uint8))
    if way == "faint":
        paper = random.uniform(190, 250)
        return Image.fromarray((paper - (1 - share) * random.uniform(15, 60)).astype(np.uint8))
    if way == "paper":
        colors = [(255, 200, 110), (255, 247, 123), (150, 190, 240), (240, 180, 190)]
        color = np.array(colors[int(random.integers(len(colors)))])
        return Image.fromarray((share[..., None] * color).astype(np.uint8))
    if way == "alpha":
        white = np.full((*sketch.shape, 3), int(random.choice([0, 255])), np.uint8)
        return Image.fromarray(np.dstack([white, 255 - sketch]))
    return Image.fromarray(255 - sketch)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_depth_paper_light_and_polarity_do_not_change_a_sketch(way):
    for number in range(MUTATIONS // len(WAYS)):
        random = np.random.default_rng([5, WAYS.index(way), number])
        sketch = drawing(number % 12)
        read, remark = SKETCH.load(changed(sketch, way, random), SIZE)
        likeness = np.corrcoef(read.ravel(), sketch.ravel())[0, 1]
        assert likeness > 0.9, (way, number, likeness, remark)
        assert np.median(read) > 240
        assert (remark is None) == (way in ("sixteen", "twelve", "float")) or way == "alpha"


@pytest.mark.slow
def test_clean_sketches_are_only_resized():
    for number in range(12):
        for edge in (96, 128, 180):
            sketch = Image.fromarray(drawing(number))
            expected = np.array(sketch.resize((edge, edge), Image.Resampling.LANCZOS))
            assert np.array_equal(load_sketch(sketch, (edge, edge)), expected)


@pytest.mark.slow
def test_thin_lines_stay_dark_at_any_scale():
    found = []
    for edge in (256, 512, 1024, 2048, 4096):
        picture, unit = Image.new("L", (edge, edge), 255), edge / 256
        draw = ImageDraw.Draw(picture)
        draw.ellipse([60 * unit, 40 * unit, 196 * unit, 220 * unit], outline=0)
        draw.line([90 * unit, 110 * unit, 115 * unit, 108 * unit], fill=0)
        draw.arc([100 * unit, 150 * unit, 156 * unit, 190 * unit], 20, 160, fill=0)
        found.append(load_sketch(picture, (256, 256)))
    assert max(each.min() for each in found) < 60
    means = [float(each.mean()) for each in found]
    assert max(means) - min(means) < 1.5, means


def test_what_has_no_lines_is_blank():
    random = np.random.default_rng(0)
    grain = (235 + random.normal(0, 3, SIZE)).clip(0, 255).astype(np.uint8)
    slope = np.linspace(90, 220, SIZE[1]).repeat(SIZE[0]).reshape(SIZE[::-1]).T.astype(np.uint8)
    nearly = np.full(SIZE, 200, np.uint8)
    nearly[40, 20:90] = 201
    for blank in (grain, nearly, slope, np.full(SIZE, 225, np.uint8)):
        with pytest.raises(ValueError, match="is blank"):
            SKETCH.load(blank, SIZE)
    with pytest.raises(ValueError, match="not finite"):
        SKETCH.load(Image.fromarray(np.full(SIZE, np.nan, np.float32)), SIZE)
