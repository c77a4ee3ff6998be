"""Sketches: the pencil keeps its promises, and U2-Net computes what the published code does."""

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from mmface.annotation.sketches import PencilSketch, U2NetPortrait
from mmface.annotation.u2net import U2Net
from mmface.rendered import render_face


@pytest.fixture(scope="module")
def face():
    return render_face(1_000_010, 256)


def ink(sketch):
    return 255 - sketch.astype(np.float64)


def spread(lines, radius=2):
    """Grow dark lines by a few pixels."""
    shifts = [(y, x) for y in range(-radius, radius + 1) for x in range(-radius, radius + 1)]
    return np.max([np.roll(lines, shift, (0, 1)) for shift in shifts], axis=0)


def test_the_pencil_draws_the_lines_that_the_face_was_drawn_with(face):
    # The light lines of the true sketch are lines too.
    drawn, true = ink(PencilSketch()([face.image])[0]) > 128, ink(face.sketch) > 40
    assert (spread(true)[drawn]).mean() > 0.8
    assert (spread(drawn)[true]).mean() > 0.6
    assert (spread(true[::-1])[drawn]).mean() < 0.6


def test_paper_is_white_and_a_blank_picture_stays_blank(face):
    sketch = PencilSketch()([face.image])[0]
    assert sketch.dtype == np.uint8
    assert sketch.shape == (256, 256)
    assert np.median(sketch) > 250
    assert 0.03 < (sketch < 128).mean() < 0.3
    assert (PencilSketch()([np.full((40, 60, 3), 90, np.uint8)])[0] == 255).all()


def test_the_drawing_does_not_depend_on_the_resolution(face):
    large = render_face(1_000_010, 512).image
    small_drawing, large_drawing = PencilSketch()([face.image, large])
    halved = np.array(Image.fromarray(large_drawing).resize((256, 256), Image.Resampling.BOX))
    assert np.corrcoef(ink(halved).ravel(), ink(small_drawing).ravel())[0, 1] > 0.95
    assert abs(ink(halved).mean() / ink(small_drawing).mean() - 1) < 0.1


def test_a_shadow_is_drawn_like_a_light_place():
    """The same relative contrast gives the same line at half the brightness."""
    picture = np.full((96, 96, 3), 200, np.uint8)
    picture[:, 40:44] = 120
    dark = (picture // 2).astype(np.uint8)
    light_ink, dark_ink = (ink(one).mean() for one in PencilSketch()([picture, dark]))
    assert 0.7 < dark_ink / light_ink < 1.2


def test_edges_between_equally_bright_colours_are_drawn():
    picture = np.zeros((96, 96, 3), np.uint8)
    picture[:, :48], picture[:, 48:] = (200, 60, 60), (60, 132, 60)
    sketch = PencilSketch()([picture])[0]
    assert (sketch[:, 44:52].min(axis=1) < 100).all()


def test_turning_the_picture_turns_the_drawing(face):
    upright, turned = PencilSketch()([face.image, np.rot90(face.image).copy()])
    difference = np.abs(np.rot90(upright).astype(int) - turned)
    assert difference.mean() < 1


def fill(model):
    """Set every weight by a formula, the same one the golden numbers were computed with."""
    for number, (name, tensor) in enumerate(sorted(model.state_dict().items())):
        if not tensor.is_floating_point():
            continue
        wave = torch.sin(torch.arange(tensor.numel(), dtype=torch.float64) * 0.7 + number)
        wave = wave.reshape(tensor.shape)
        if tensor.ndim == 4:
            wave = wave * (0.25 / tensor[0].numel()) ** 0.5
        elif name.endswith(("running_var", "weight")):
            wave = 1 + 0.1 * wave
        else:
            wave = 0.1 * wave
        tensor.copy_(wave)
    model.outconv.bias.data.zero_()
    return model.eval()


# Every 163rd value of the published code's first output, computed with it once.
GOLDEN = [0.662835, 0.447612, 0.669026, 0.620121, 0.617815]
GOLDEN += [0.659575, 0.579558, 0.450323, 0.42905, 0.358044]


@pytest.mark.slow
def test_u2net_computes_what_the_published_code_does():
    pixels = torch.sin(torch.arange(3 * 36 * 44) * 0.13).reshape(1, 3, 36, 44)
    with torch.device("meta"):
        model = U2Net()
    with torch.no_grad():
        found = fill(model.to_empty(device="cpu"))(pixels).flatten()[::163]
    torch.testing.assert_close(found, torch.tensor(GOLDEN), rtol=0, atol=2e-5)


def test_u2net_has_the_published_size_and_names():
    with torch.device("meta"):
        model = U2Net()
    names = model.state_dict()
    assert sum(parameter.numel() for parameter in model.parameters()) == 44_009_869
    assert len(names) == 798
    assert names["stage1.rebnconvin.conv_s1.weight"].shape == (64, 3, 3, 3)
    assert names["stage5d.rebnconv4.bn_s1.running_var"].shape == (256,)
    assert names["side6.weight"].shape == (1, 512, 3, 3)
    assert names["outconv.weight"].shape == (1, 6, 1, 1)


class SmallPortrait(U2NetPortrait):
    input_size = 64


@pytest.fixture(scope="module")
def small_portrait():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SmallPortrait(U2Net(width=8))


def test_portraits_are_stretched_from_black_to_white_at_the_pictures_size(small_portrait, face):
    wide = np.ascontiguousarray(face.image[:120])
    alone, with_another = small_portrait([wide])[0], small_portrait([face.image, wide])[1]
    assert alone.shape == (120, 256)
    assert alone.min() < 20
    assert alone.max() > 235
    assert np.abs(alone.astype(int) - with_another).max() <= 1


def test_a_portrait_is_one_minus_the_map_whatever_the_exposure(small_portrait, face):
    pixels = small_portrait._pixels(face.image)
    with torch.no_grad():
        found = small_portrait.model(pixels[None])[0, 0]
    square = np.array(Image.fromarray(small_portrait([face.image])[0]).resize((64, 64)))
    assert np.corrcoef(square.ravel(), (1 - found).numpy().ravel())[0, 1] > 0.9
    even = np.full((64, 64, 3), 100, np.uint8)
    torch.testing.assert_close(small_portrait._pixels(even), small_portrait._pixels(even * 2))


@pytest.mark.slow
def test_weights_load_from_both_kinds_of_file(tmp_path, small_portrait, monkeypatch):
    monkeypatch.setattr("mmface.annotation.sketches.U2Net", lambda: U2Net(width=8))
    weights = small_portrait.model.state_dict()
    torch.save({f"module.{name}": value for name, value in weights.items()}, tmp_path / "w.pth")
    save_file(weights, tmp_path / "w.safetensors")
    picture = [np.arange(48 * 48 * 3, dtype=np.uint8).reshape(48, 48, 3)]
    for name in ("w.pth", "w.safetensors"):
        digest = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        loaded = SmallPortrait.from_file(tmp_path / name, digest.upper())
        assert loaded.made_by["weights"] == digest
        assert (loaded(picture)[0] == small_portrait(picture)[0]).all()
    with pytest.raises(ValueError, match="get it again"):
        SmallPortrait.from_file(tmp_path / "w.pth", "0" * 64)


class Trap:
    def __reduce__(self):
        return (print, ("code ran",))


def test_bad_weights_are_refused_and_nothing_pickled_runs(tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match="README"):
        U2NetPortrait.from_file(tmp_path / "missing.pth")
    torch.save({"stage1": Trap()}, tmp_path / "trap.pth")
    (tmp_path / "text.safetensors").write_text("no weights")
    (tmp_path / "text.pth").write_text("no weights")
    for name in ("trap.pth", "text.safetensors", "text.pth"):
        with pytest.raises(ValueError, match="cannot be read as weights"):
            U2NetPortrait.from_file(tmp_path / name)
    assert "code ran" not in capsys.readouterr().out
    save_file({"other": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="no weights of U2-Net"):
        U2NetPortrait.from_file(tmp_path / "other.safetensors")
