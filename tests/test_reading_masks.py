"""Masks as people save them: each is read right, or read with a word of doubt, or refused."""

import io
import os
from functools import lru_cache

import numpy as np
import pytest
from layouts import drawn_mask, face
from PIL import Image

from mmface.conditions import LABEL_FORMATS, LABELS, ForeignOrderError, colorize, load_mask
from mmface.rendered import render_face
from mmface.rendered.distributions import distribution, distribution_names

SIZES = (96, 128, 200)
MUTATIONS = int(os.environ.get("MMFACE_MUTATIONS", "400"))
NUM_FACES = 6
Resampling = Image.Resampling


@lru_cache
def labels_of(number: int, size: int = 128) -> np.ndarray:
    return render_face(number, size).labels


def saved(picture: Image.Image, kind: str, **options) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return Image.open(file)


def with_hidden_background(picture: Image.Image, labels: np.ndarray) -> Image.Image:
    """Make the background transparent, and give it the colour of some class."""
    pixels = np.array(picture)
    pixels[labels == 0] = pixels[labels > 0][0]
    hidden = Image.fromarray(pixels)
    hidden.putalpha(Image.fromarray(np.where(labels > 0, 255, 0).astype(np.uint8)))
    return hidden


def mutated(random: np.random.Generator) -> tuple[Image.Image, np.ndarray, str]:
    """Draw a mask, save it in some way, and give the truth and what was done."""
    size = int(random.choice(SIZES))
    labels, in_color = labels_of(int(random.integers(NUM_FACES)), size), random.random() < 0.5
    picture = Image.fromarray(colorize(labels) if in_color else labels)
    edge = int(size * random.uniform(0.6, 1.6)) if random.random() < 0.4 else size
    resampling = Resampling(int(random.choice([0, 1, 2, 3, 5])))
    resized = edge != size
    if resized:
        picture = picture.resize((edge, edge), resampling)
        labels = np.array(Image.fromarray(labels).resize((edge, edge), Resampling.NEAREST))
    way = str(
        random.choice(
            ["png", "palette", "web", "gif", "jpeg", "webp", "alpha", "grey", "deep", "float"]
        )
    )
    if way == "palette":
        count, dither = int(random.choice([8, 16, 24, 32, 64, 256])), int(random.choice([0, 3]))
        method = int(random.choice([0, 2])) if in_color else 0
        picture = picture.quantize(count, method, dither=Image.Dither(dither))
    elif way == "web" and in_color:
        picture = picture.convert("P", palette=Image.Palette.WEB, dither=Image.Dither.NONE)
    elif way == "gif":
        picture = saved(picture, "GIF")
    elif way in ("jpeg", "webp"):
        picture = saved(picture, way.upper(), quality=int(random.choice([60, 75, 95])))
    elif way == "alpha" and not resized:
        picture = with_hidden_background(picture, labels)
    elif way == "grey":
        picture = picture.convert("RGB")
    elif way == "deep" and not in_color:
        spread = int(random.choice([1, 257]))
        picture = Image.fromarray(np.array(picture).astype(np.uint16) * spread)
    elif way == "float" and not in_color:
        picture = Image.fromarray(np.array(picture).astype(np.float32))
    return picture, labels, f"{way} {'color' if in_color else 'index'} {resampling.name} {edge}"


@pytest.mark.slow
def test_masks_are_read_right_or_refused_however_they_were_saved():
    right, doubted, said = 0, 0, list[str]()
    for number in range(MUTATIONS):
        picture, truth, done = mutated(np.random.default_rng([3, number]))
        try:
            loaded = load_mask(picture, truth.shape)
        except ValueError as error:
            said.append(str(error))
            continue
        agreement = (loaded.labels == truth).mean()
        right += agreement >= 0.99
        if agreement < 0.99:
            doubted += 1
            assert loaded.remarks or loaded.off_palette_fraction, (number, done, agreement)
            assert agreement > 0.85, (number, done, agreement)
    assert right > MUTATIONS * 0.45, (right, doubted)
    assert all(each and "\n" not in each for each in said)
    assert doubted < MUTATIONS * 0.15, (right, doubted)


@pytest.mark.parametrize("name", ["celebamask_hq", "bisenet", "v_xchen_v", "facer"])
@pytest.mark.parametrize("resampling", [Resampling.BILINEAR, Resampling.LANCZOS, Resampling.BOX])
def test_interpolated_index_maps_are_refused(name, resampling):
    for number in range(NUM_FACES):
        indices = Image.fromarray(drawn_mask(labels_of(number), name))
        for edge in (80, 300) if resampling != Resampling.BOX else (80,):
            soft = np.array(indices.resize((edge, edge), resampling)).clip(0, 18)
            with pytest.raises(ValueError, match="resized with interpolation"):
                load_mask(soft, (edge, edge), name)
        with pytest.raises(ValueError, match=r"JPEG|values up to"):
            load_mask(saved(indices, "JPEG", quality=95), (64, 64), name)
        sharp = np.array(indices.resize((300, 300), Resampling.NEAREST))
        load_mask(sharp, (300, 300), name)


def test_index_maps_that_jpeg_changed_little_are_refused_or_doubted():
    for number in range(NUM_FACES):
        jpeg = saved(Image.fromarray(labels_of(number).clip(0, 17)), "JPEG", quality=100)
        with pytest.raises(ValueError, match="indices in a JPEG file"):
            load_mask(jpeg, (128, 128))
        remarks = load_mask(saved(jpeg, "PNG"), (128, 128)).remarks
        assert "as if it had been a JPEG file" in remarks[0]


def test_indices_of_another_order_are_refused_by_name():
    for number in range(3):
        indices = drawn_mask(face(number).labels, "bisenet")
        with pytest.raises(ForeignOrderError, match="order of the label format 'bisenet', not"):
            load_mask(indices, (64, 64))
        assert np.array_equal(load_mask(indices, (64, 64), "bisenet").labels, face(number).labels)


@pytest.mark.parametrize("name", distribution_names())
def test_masks_of_upright_faces_are_read_without_a_word(name):
    for number in range(NUM_FACES):
        face = distribution(name).render(number, 128)
        for labels in (face.labels, face.mask):
            for source in (labels, colorize(labels)):
                loaded = load_mask(source, labels.shape)
                assert np.array_equal(loaded.labels, labels)
                assert not loaded.remarks


@pytest.mark.parametrize(
    "turn", [np.fliplr, np.flipud, np.rot90, lambda labels: labels[::-1, ::-1]]
)
def test_turned_and_mirrored_masks_are_read_and_doubted(turn):
    for number in range(NUM_FACES):
        labels = np.ascontiguousarray(turn(labels_of(number)))
        for source in (labels, colorize(labels)):
            loaded = load_mask(source, labels.shape)
            assert np.array_equal(loaded.labels, labels)
            assert "turned or mirrored" in loaded.remarks[-1]


def test_a_palette_of_colours_is_decoded_as_colours():
    labels = labels_of(0)
    own = Image.fromarray(colorize(labels)).quantize(256)
    assert not np.array_equal(np.array(own), labels)
    assert np.array_equal(load_mask(own, labels.shape).labels, labels)
    strange = Image.fromarray(labels, mode="P")
    strange.putpalette((np.arange(768) * 7 % 256).tolist())
    with pytest.raises(ValueError, match="not a mask in the CelebAMask-HQ palette"):
        load_mask(strange, labels.shape)


def test_the_web_palette_moves_a_colour_that_is_known_again():
    labels = labels_of(0)
    web = Image.fromarray(colorize(labels)).convert(
        "P", palette=Image.Palette.WEB, dither=Image.Dither.NONE
    )
    loaded = load_mask(web, labels.shape)
    assert np.array_equal(loaded.labels, labels)
    assert loaded.remarks == ("colours that a palette had moved were read: (51, 153, 0) as nose",)


def test_a_palette_too_small_for_soft_edges_is_refused():
    soft = Image.fromarray(colorize(labels_of(0))).resize((160, 160), Resampling.BILINEAR)
    with pytest.raises(ValueError, match="palette of 16 colours, too few"):
        load_mask(soft.quantize(16), (160, 160))
    assert load_mask(soft.quantize(255), (160, 160)).labels.any()


def test_indices_whose_palette_merged_classes_are_doubted():
    indices = Image.fromarray(labels_of(0))
    for count in (4, 8):
        (remark,) = load_mask(indices.quantize(count), (128, 128)).remarks[-1:]
        assert remark.startswith(f"its palette has {count} greys only, which may have merged")
    assert not load_mask(indices.quantize(256), (128, 128)).remarks
    assert not load_mask(saved(indices, "GIF"), (128, 128)).remarks


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparent_pixels_of_index_maps_are_background(mode):
    labels = labels_of(0)
    hidden = with_hidden_background(Image.fromarray(labels), labels).convert(mode)
    assert np.array_equal(load_mask(hidden, labels.shape).labels, labels)
    hidden.putalpha(0)
    with pytest.raises(ValueError, match="transparent everywhere"):
        load_mask(hidden, labels.shape)


def test_masks_without_a_face_are_refused():
    with pytest.raises(ValueError, match="all background"):
        load_mask(Image.new("L", (64, 64)), (64, 64))
    assert not load_mask(np.zeros((64, 64), np.uint8), (64, 64)).labels.any()
    dim = np.random.default_rng(0).integers(0, 10, (64, 64, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match="all background"):
        load_mask(dim, (64, 64))
    lines = Image.new("1", (64, 64), 1)
    lines.paste(0, (10, 10, 50, 12))
    for sketch in (lines, lines.convert("P"), lines.convert("L").quantize(2)):
        with pytest.raises(ValueError, match="sketch goes in as the sketch"):
            load_mask(sketch, (64, 64))
    with pytest.raises(ValueError, match="fractions"):
        load_mask(Image.fromarray(np.full((8, 8), 0.5, np.float32)), (8, 8))


def test_parts_that_lie_like_no_face_are_said():
    order = np.roll(np.arange(len(LABELS), dtype=np.uint8), 7)
    remarks = load_mask(order[labels_of(0)], (128, 128)).remarks
    assert any("lie to each other as in an upright face" in remark for remark in remarks)


@pytest.mark.parametrize("soft", [False, True])
def test_large_masks_are_read_as_small_ones(soft):
    labels = labels_of(2, 256)
    large = Image.fromarray(colorize(labels)).resize((1600, 1600), Resampling.NEAREST)
    if soft:
        large = large.resize((1700, 1700), Resampling.BILINEAR)
    agreement = (load_mask(large, (256, 256)).labels == labels).mean()
    assert agreement == 1 if not soft else agreement > 0.99


def test_all_formats_are_read_from_a_gif():
    for name in LABEL_FORMATS:
        indices = Image.fromarray(drawn_mask(labels_of(1), name))
        assert np.array_equal(
            load_mask(saved(indices, "GIF"), (128, 128), name).labels, labels_of(1)
        )
