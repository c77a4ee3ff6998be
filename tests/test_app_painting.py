"""What the page's canvases and uploads hold: painted, drawn, read from files, and refused."""

import base64
import io
from collections.abc import Callable

import numpy as np
import pytest
from bad_uploads import bad_files
from PIL import Image

from mmface.app import painting
from mmface.conditions import (
    LABEL_INDEX,
    LABEL_TITLES,
    LABELS,
    PALETTE,
    colorize,
    label_format_named,
    load_mask,
)
from mmface.encoders.face_parser import FaceParser
from mmface.rendered import render_face

SIZE = (64, 64)


@pytest.fixture(scope="module")
def parser() -> FaceParser:
    return FaceParser.from_pretrained("tiny-parser")


def url_of(array: np.ndarray) -> str:
    return painting.to_data_url(Image.fromarray(array))


def test_a_painted_mask_comes_back_class_by_class(face_labels):
    for label_map in (face_labels, np.arange(64 * 64).reshape(64, 64).astype(np.uint8) % 19):
        found = painting.painted_labels(url_of(colorize(label_map)), SIZE)
        assert (found == label_map).all()
        assert (painting.painted_labels(painting.mask_url(label_map), SIZE) == label_map).all()


def test_soft_strokes_are_snapped_to_a_class_that_was_painted(face_labels):
    soft = Image.fromarray(colorize(face_labels)).resize((256, 256), Image.Resampling.BICUBIC)
    found = painting.painted_labels(painting.to_data_url(soft), SIZE)
    assert set(np.unique(found)) <= set(np.unique(face_labels))
    assert (found == face_labels).mean() > 0.98


def test_every_class_has_one_named_colour_of_the_palette():
    assert set(LABEL_TITLES) == set(LABELS)
    colors = painting.class_colors()
    assert len(colors) == 19
    assert set(colors.values()) == {f"#{bytes(color.tolist()).hex()}" for color in PALETTE}
    assert colors["hair"] == "#0000cc"


def test_a_drawn_sketch_and_a_region_come_back(face_sketch):
    found = painting.painted_sketch(url_of(face_sketch), SIZE)
    assert (found == face_sketch).all()
    layer = np.zeros((8, 8, 4), dtype=np.uint8)
    assert painting.painted_region(url_of(layer)) is None
    layer[2:4, 2:4] = (255, 61, 154, 255)
    region = painting.painted_region(url_of(layer))
    assert region is not None
    assert region.sum() == 4
    assert region[2:4, 2:4].all()


@pytest.mark.parametrize("value", [None, "", "backdrop:data:image/png;base64,AAAA"])
def test_an_empty_canvas_says_what_to_do(value):
    with pytest.raises(ValueError, match="mask is empty: paint one"):
        painting.painted_labels(value, SIZE)
    with pytest.raises(ValueError, match="sketch is empty: draw one"):
        painting.painted_sketch(value, SIZE)
    assert painting.painted_region(value) is None


def test_an_all_background_or_blank_canvas_counts_as_empty():
    with pytest.raises(ValueError, match="mask is empty"):
        painting.painted_labels(url_of(np.zeros((64, 64, 3), np.uint8)), SIZE)
    with pytest.raises(ValueError, match="sketch is empty"):
        painting.painted_sketch(url_of(np.full((64, 64, 3), 255, np.uint8)), SIZE)


def jpeg_url() -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.parametrize(
    "value",
    [
        "hello",
        "file:///etc/passwd",
        "data:image/png;base64,####",
        "data:image/png;base64,AAAA",
        "data:image/svg+xml;base64,AAAA",
        "data:image/png;base64," + "A" * painting.MAX_CANVAS_CHARACTERS,
        jpeg_url(),
        url_of(np.zeros((2, painting.CANVAS_PX + 1, 3), np.uint8)),
    ],
    ids=["words", "path", "characters", "bytes", "svg", "huge", "jpeg", "wide"],
)
def test_a_forged_canvas_value_is_refused_in_words(value):
    with pytest.raises(ValueError, match="reload the page"):
        painting.from_data_url(value)


def test_an_uploaded_mask_is_read_in_its_own_format_and_the_note_says_which(tmp_path):
    face = render_face(1_000_003, 128)
    bisenet = np.argsort(label_format_named("bisenet").to_labels)
    for name, title, array in (
        ("colour", "CelebAMask-HQ", colorize(face.labels)),
        ("bisenet", "BiSeNet", bisenet[face.labels]),
    ):
        path = tmp_path / f"{name}.png"
        Image.fromarray(array.astype(np.uint8)).save(path)
        found = painting.read_mask(path, (128, 128))
        assert (found.labels == face.labels).all(), name
        assert found.note == f"Read as a mask of the {title} kind."
    few = np.zeros((128, 128), np.uint8)
    few[40:90, 40:90] = LABEL_INDEX["skin"]
    Image.fromarray(few).save(path)
    assert "does not tell which kind" in painting.read_mask(path, (128, 128)).note


def test_a_light_on_dark_sketch_is_turned_round(face_sketch, tmp_path):
    Image.fromarray(255 - face_sketch).save(tmp_path / "sketch.png")
    assert (painting.read_sketch(tmp_path / "sketch.png", SIZE) == face_sketch).all()


def test_bad_uploads_are_one_sentence_without_the_servers_paths(tmp_path, parser):
    for name, path in bad_files(tmp_path).items():
        readers: list[Callable] = [painting.read_mask, painting.read_sketch]
        if name != "photo.png":
            readers.append(painting.open_upload)
            readers.append(lambda given: painting.from_photo(given, parser, "sketch"))
        for reader in readers:
            with pytest.raises(ValueError, match=r"\w") as caught:
                reader(path)
            assert str(tmp_path) not in str(caught.value)
            assert "\n" not in str(caught.value)


def test_a_photo_in_which_nothing_is_skin_is_refused(tmp_path):
    def parser(pictures):
        return [np.full(each.shape[:2], LABEL_INDEX["hair"], np.uint8) for each in pictures]

    Image.new("RGB", (64, 64), "white").save(tmp_path / "white.png")
    with pytest.raises(ValueError, match="No face was found"):
        painting.from_photo(tmp_path / "white.png", parser, "mask")


@pytest.mark.slow
def test_a_photo_gives_mask_and_sketch(tmp_path, parser):
    face = render_face(1_000_006, 256)
    Image.fromarray(face.image).save(tmp_path / "photo.jpg", quality=95)
    labels, sketch = painting.from_photo(tmp_path / "photo.jpg", parser, "both")
    assert labels is not None
    assert sketch is not None
    wanted = load_mask(face.labels, (painting.CANVAS_PX, painting.CANVAS_PX)).labels
    assert (labels == wanted).mean() > 0.9
    assert (sketch < 128).any()
    assert painting.from_photo(tmp_path / "photo.jpg", parser, "sketch")[0] is None
