"""Conditions: soft masks are snapped, geometry keeps classes, and what is no mask is refused."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from mmface.conditions import (
    LABEL_INDEX,
    LABELS,
    PALETTE,
    SKETCH,
    colorize,
    condition_kind,
    condition_kinds,
    draw_conditions,
    kind,
    load_mask,
    load_sketch,
    register,
    released_mask_rgb,
)
from mmface.encoders.vae import image_pixels, to_uint8

SIZE = (64, 64)


def jpeg(rgb: np.ndarray, quality: int) -> Image.Image:
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "JPEG", quality=quality)
    return Image.open(file)


def all_classes() -> np.ndarray:
    """Every class in a 16-pixel tile of its own: uint8 [64, 80]."""
    tiles = np.resize(np.arange(len(LABELS), dtype=np.uint8), (4, 5))
    return tiles.repeat(16, axis=0).repeat(16, axis=1)


def test_every_palette_colour_comes_back(tmp_path):
    labels = all_classes()
    path = tmp_path / "mask.png"
    Image.fromarray(colorize(labels)).save(path)
    for source in (path, str(path), Image.open(path), colorize(labels)):
        loaded = load_mask(source, labels.shape)
        assert np.array_equal(loaded.labels, labels)
        assert loaded.off_palette_fraction == 0
        assert set(loaded.classes) == set(LABELS)


def test_index_maps(face_labels, tmp_path):
    grey = tmp_path / "grey.png"
    Image.fromarray(face_labels).save(grey)
    own_colors = Image.fromarray(face_labels, mode="P")
    own_colors.putpalette((np.arange(768) % 251).tolist())
    sources = [
        face_labels,
        face_labels.astype(np.int64),
        grey,
        own_colors,
        np.repeat(face_labels[..., None], 3, axis=2),  # a grey picture saved as RGB
    ]
    for source in sources:
        assert np.array_equal(load_mask(source, SIZE).labels, face_labels)


def test_palette_pictures_are_read_by_colour(face_labels, face_mask):
    quantised = Image.fromarray(face_mask).quantize(32)
    assert quantised.mode == "P"
    assert np.array_equal(load_mask(quantised, SIZE).labels, face_labels)


@pytest.mark.parametrize("kind", ["resized", "jpeg"])
def test_soft_edges_bring_no_new_class(face_labels, kind):
    labels = face_labels.repeat(4, axis=0).repeat(4, axis=1)
    rgb = colorize(labels)
    if kind == "resized":
        soft = Image.fromarray(rgb).resize((192, 192), Image.Resampling.LANCZOS)
        soft = soft.resize((256, 256), Image.Resampling.BICUBIC)
    else:
        soft = jpeg(rgb, quality=75)
    loaded = load_mask(soft, (256, 256))
    assert 0 < loaded.off_palette_fraction < 0.1
    assert loaded.classes == ("background", "skin", "l_lip", "hair")
    assert (loaded.labels == labels).mean() > 0.98


def test_hair_edge_on_background_is_no_lip(face_labels):
    labels = face_labels.repeat(4, axis=0).repeat(4, axis=1)
    labels[labels == LABEL_INDEX["l_lip"]] = LABEL_INDEX["skin"]
    soft = Image.fromarray(colorize(labels)).resize((160, 160), Image.Resampling.BICUBIC)
    nearest = np.linalg.norm(np.array(soft)[:, :, None] - PALETTE.astype(float), axis=3).argmin(2)
    assert (nearest == LABEL_INDEX["l_lip"]).sum() > 50
    assert load_mask(soft, (160, 160)).classes == ("background", "skin", "hair")


def test_thin_lines_of_an_exact_picture_stay():
    labels = np.zeros(SIZE, dtype=np.uint8)
    labels[20:] = LABEL_INDEX["hair"]
    labels[20, :] = LABEL_INDEX["l_lip"]
    labels[40:, 32:] = LABEL_INDEX["skin"]
    labels[50, 40:60] = LABEL_INDEX["neck_l"]
    loaded = load_mask(colorize(labels), SIZE).labels
    assert (loaded[50, 40:60] == LABEL_INDEX["neck_l"]).all()


def test_middle_is_cropped_and_resized_without_mixing():
    labels = all_classes()
    square = load_mask(labels, SIZE)
    assert np.array_equal(square.labels, labels[:, 8:72])
    doubled = load_mask(colorize(labels), (128, 160)).labels
    assert np.array_equal(doubled, labels.repeat(2, axis=0).repeat(2, axis=1))
    assert load_mask(labels, (16, 40)).labels.shape == (16, 40)


def test_transparency_is_background(face_labels, face_mask):
    alpha = np.where(face_labels == 0, 0, 255).astype(np.uint8)
    rgba = np.dstack([np.where(alpha[..., None] > 0, face_mask, 255), alpha]).astype(np.uint8)
    assert np.array_equal(load_mask(rgba, SIZE).labels, face_labels)


def test_other_pictures_are_no_masks(face_labels):
    photo = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"not a mask in the CelebAMask-HQ palette: 9\d\.\d%"):
        load_mask(photo, SIZE)
    # Another palette: most of the picture is background, which it shares with ours.
    other = np.zeros((*SIZE, 3), dtype=np.uint8)
    other[face_labels == LABEL_INDEX["l_lip"]] = (128, 128, 0)
    other = other.repeat(4, axis=0).repeat(4, axis=1)
    with pytest.raises(ValueError, match=r"\(128, 128, 0\).*PALETTE"):
        load_mask(other, SIZE)


def test_grey_pictures_are_no_masks(face_sketch):
    for source in (face_sketch, Image.fromarray(face_sketch).convert("RGB")):
        with pytest.raises(ValueError, match=r"values up to 255.*sketch"):
            load_mask(source, SIZE)
    with pytest.raises(ValueError, match=r"values up to 19"):
        load_mask(np.full(SIZE, 19), SIZE)


def test_sketch_is_cropped_and_grey(face_sketch, tmp_path):
    wide = np.pad(face_sketch, ((0, 0), (10, 10)), constant_values=255)
    path = tmp_path / "sketch.png"
    Image.fromarray(wide).convert("RGB").save(path)
    assert np.array_equal(load_sketch(path, SIZE), face_sketch)
    assert load_sketch(path, (32, 48)).shape == (32, 48)


def test_dark_background_around_a_white_face_is_fine(face_sketch):
    rows, columns = np.mgrid[:64, :64]
    face_sketch[np.hypot(rows - 32, columns - 32) > 25] = 0
    assert np.median(face_sketch) < 128
    load_sketch(face_sketch, SIZE)


def test_wrong_sketches_are_refused(face_sketch, face_mask):
    with pytest.raises(ValueError, match="invert"):
        load_sketch(255 - face_sketch, SIZE)
    with pytest.raises(ValueError, match="blank"):
        load_sketch(np.full(SIZE, 250, dtype=np.uint8), SIZE)
    with pytest.raises(ValueError, match="mask goes in as the mask"):
        load_sketch(face_mask, SIZE)


@pytest.mark.parametrize("load", [load_mask, load_sketch])
def test_bad_files_are_named(load, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"nothing.png does not exist"):
        load(tmp_path / "nothing.png", SIZE)
    with pytest.raises(ValueError, match="cannot be read as a picture"):
        load(tmp_path, SIZE)
    text = tmp_path / "text.png"
    text.write_text("no picture")
    with pytest.raises(ValueError, match=r"text.png cannot be read as a picture"):
        load(text, SIZE)
    whole, cut = tmp_path / "whole.png", tmp_path / "cut.png"
    Image.effect_noise((200, 200), 50).save(whole)
    cut.write_bytes(whole.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"cut.png cannot be read"):
        load(cut, SIZE)
    monkeypatch.setattr(kind, "MAX_PIXELS", 200 * 199)
    with pytest.raises(ValueError, match=r"whole.png is larger than"):
        load(whole, SIZE)


@pytest.mark.filterwarnings("error")
def test_decompression_bomb_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "bomb.png"
    Image.new("L", (300, 300)).save(path)
    for limit in (60_000, 1_000):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        monkeypatch.setattr(kind, "MAX_PIXELS", limit)
        with pytest.raises(ValueError, match=r"bomb.png is larger"):
            load_mask(path, SIZE)


@pytest.mark.parametrize(
    "array",
    [np.zeros((4, 4)), np.zeros((0, 4), int), np.zeros((4, 4, 2), int), np.full((4, 4), 300)],
)
def test_bad_arrays_are_refused(array):
    with pytest.raises(ValueError, match="give integers"):
        load_mask(array, SIZE)


def test_pixels_and_back(face_labels, face_sketch):
    rgb = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    pixels = image_pixels(rgb)
    assert pixels.shape == (3, 5, 7)
    assert pixels.dtype == torch.float32
    assert np.array_equal(to_uint8(pixels), rgb)
    assert np.array_equal(to_uint8(torch.stack([pixels, pixels * 3]))[0], rgb)
    assert np.array_equal(to_uint8(image_pixels(colorize(face_labels))), colorize(face_labels))
    sketch = image_pixels(SKETCH.rgb(face_sketch))
    assert (sketch.min(), sketch.max()) == (-1, 1)
    assert torch.equal(sketch[0], sketch[2])


def test_white_on_dark_sketches(face_sketch):
    inverted = load_sketch(255 - face_sketch, SIZE, polarity="white_on_dark")
    assert np.array_equal(inverted, face_sketch)
    ink = np.dstack([255 - face_sketch] * 3 + [255 - face_sketch])  # transparent where no line is
    assert np.median(load_sketch(ink, SIZE, polarity="white_on_dark")) == 255
    with pytest.raises(ValueError, match=r"dark lines on white: .*dark_on_white"):
        load_sketch(face_sketch, SIZE, polarity="white_on_dark")
    with pytest.raises(ValueError, match=r"light lines on dark.*polarity white_on_dark"):
        load_sketch(255 - face_sketch, SIZE)
    with pytest.raises(ValueError, match="no sketch polarity 'grey'"):
        load_sketch(face_sketch, SIZE, polarity="grey")


def test_released_masks_are_resized_whole_as_colours(face_labels, face_mask):
    wide = np.pad(face_mask, ((0, 0), (0, 64), (0, 0)))
    expected = Image.fromarray(wide).resize((32, 32), Image.Resampling.LANCZOS)
    for source in (wide, np.pad(face_labels, ((0, 0), (0, 64)))):
        drawn = released_mask_rgb(source, (32, 32))
        assert np.array_equal(drawn, np.array(expected))
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > len(LABELS)
    assert not np.array_equal(colorize(load_mask(wide, (32, 32)).labels), drawn)


@pytest.mark.parametrize(
    ("name", "index"), [("mask", 7), ("depth", 0), ("Depth", 7), ("a depth", 7), ("", 7)]
)
def test_kinds_have_names_and_indices_of_their_own(name, index):
    kind = type("Kind", (type(SKETCH),), {"name": name, "index": index})()
    with pytest.raises(ValueError, match=r"cannot (be registered|name)"):
        register(kind)
    assert [each.name for each in condition_kinds()] == ["mask", "sketch"]


def test_unknown_kinds_are_refused():
    with pytest.raises(ValueError, match="no condition 'depth'; known are mask, sketch"):
        condition_kind("depth")


def test_kinds_load_and_draw(face_mask, face_sketch):
    soft = np.array(jpeg(face_mask, 75))
    values, remark = condition_kind("mask").load(soft, SIZE)
    assert np.array_equal(values, load_mask(soft, SIZE).labels)
    assert remark
    assert "took a neighbour's class; the mask has background, skin" in remark
    assert condition_kind("mask").load(face_mask, SIZE).remark is None
    drawn = draw_conditions({"sketch": face_sketch, "mask": load_mask(face_mask, SIZE).labels})
    lines = np.asarray(drawn)[face_sketch == 0]
    assert len(lines)
    assert not lines.any()
    assert np.array_equal(np.asarray(drawn)[face_sketch == 255], face_mask[face_sketch == 255])
    with pytest.raises(ValueError, match="no sketch polarity 'facer'"):
        condition_kind("sketch").load(face_sketch, SIZE, "facer")
