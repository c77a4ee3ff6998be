"""Sampling from the command line: files are whole or absent, and mistakes are one line."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from conftest import IMAGE_SIZE, MAX_TOKENS
from PIL import Image, ImageFont

from mmface import sampling
from mmface.conditions import load_mask, load_sketch
from mmface.data.examples import read_examples, write_examples
from mmface.grid import GridRow, labelled_grid, wrapped

SCRIPT = Path(__file__).parent.parent / "scripts" / "sample.py"


class Result(NamedTuple):
    exit_code: int
    stdout: str
    stderr: str


@pytest.fixture
def run(tiny_pipeline_folder, tmp_path, monkeypatch, capsys):
    """Run the script in an empty folder, with the tiny pipeline and two steps."""
    spec = importlib.util.spec_from_file_location("sample_script", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def run(*arguments, pipeline=tiny_pipeline_folder, steps=2):
        options = ["--pipeline", str(pipeline), "--steps", str(steps)]
        capsys.readouterr()
        exit_code = script.run([*options, *map(str, arguments)])
        return Result(exit_code, *capsys.readouterr())

    return run


@pytest.fixture
def mask_file(face_mask, tmp_path) -> Path:
    path = tmp_path / "mask.png"
    Image.fromarray(face_mask).save(path)
    return path


@pytest.fixture
def sketch_file(face_sketch, tmp_path) -> Path:
    path = tmp_path / "sketch.png"
    Image.fromarray(face_sketch).save(path)
    return path


def test_one_face_is_the_pipelines_picture(run, tiny_pipeline, mask_file):
    result = run("--prompt", "a", "--mask", mask_file, "--seed", 4, "--guidance", 3)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "faces.png\n"
    expected = tiny_pipeline(
        "a", mask=mask_file, seed=4, guidance_scale=3.0, num_inference_steps=2
    ).images[0]
    assert np.array_equal(np.array(Image.open("faces.png")), np.array(expected))
    assert [path.name for path in Path.cwd().iterdir()] == ["faces.png"]


def test_several_faces_are_a_grid_or_a_folder(run, sketch_file):
    arguments = ("--prompt", "a", "--sketch", sketch_file, "--num", 2, "--seed", 7)
    assert run(*arguments, "--out", "new/grid.jpg").exit_code == 0
    grid = Image.open("new/grid.jpg")
    assert grid.width > 4 * 192
    result = run(*arguments, "--out", "faces", "--height", 32, "--width", 64)
    assert result.stdout.split() == ["faces/seed_7.png", "faces/seed_8.png"]
    assert Image.open("faces/seed_8.png").size == (64, 32)


def test_demo_without_arguments(run):
    result = run(steps=1)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "mmface_demo.png\n"
    assert Image.open("mmface_demo.png").height > 6 * 192


def test_soft_masks_and_cut_prompts_are_said_aloud(run, face_mask, tmp_path):
    soft = tmp_path / "soft.png"
    Image.fromarray(face_mask).resize((160, 160), Image.Resampling.BICUBIC).save(soft)
    prompt = "a " * (MAX_TOKENS - 2) + "nobody hears this"
    result = run("--prompt", prompt, "--mask", soft)
    assert result.exit_code == 0
    assert re.search(
        r"note: .*soft\.png: \d+\.\d% of the pixels .* background, skin", result.stderr
    )
    assert f"{MAX_TOKENS} tokens that are read; this was cut: 'nobody hears this'" in result.stderr


MISTAKES = {
    "no prompt": (["--mask", "MASK"], "prompt is empty"),
    "empty prompt": (["--prompt", " ", "--mask", "MASK"], "prompt is empty"),
    "no condition": (["--prompt", "a"], "Neither mask nor sketch"),
    "both": (["--prompt", "a", "--mask", "MASK", "--sketch", "SKETCH"], "Both mask and sketch"),
    "missing file": (["--prompt", "a", "--mask", "none.png"], "none.png does not exist"),
    "no picture": (["--prompt", "a", "--mask", str(SCRIPT)], "cannot be read as a picture"),
    "sketch as mask": (["--prompt", "a", "--mask", "SKETCH"], "not a mask"),
    "mask as sketch": (["--prompt", "a", "--sketch", "MASK"], "not a sketch"),
    "size": (["--prompt", "a", "--mask", "MASK", "--height", "33"], "multiples of 16"),
    "suffix": (["--prompt", "a", "--mask", "MASK", "--out", "x.txt"], "no picture suffix"),
    "nan": (["--prompt", "a", "--mask", "MASK", "--guidance", "nan"], "guidance_scale"),
    "no number": (["--prompt", "a", "--mask", "MASK", "--num", "many"], "--num"),
    "no option": (["--prompt", "a", "--mask", "MASK", "--nothing"], "--nothing"),
    "num": (["--prompt", "a", "--mask", "MASK", "--num", "0"], "number of pictures must be"),
    "steps": (["--prompt", "a", "--mask", "MASK", "--steps", "0"], "num_inference_steps must be"),
    "guidance": (["--prompt", "a", "--mask", "MASK", "--guidance", "-1"], "guidance_scale must be"),
    "height": (["--prompt", "a", "--mask", "MASK", "--height", "0"], "must be above 0"),
    "negative seed": (["--prompt", "a", "--mask", "MASK", "--seed", "-1"], "seed must be"),
    "seed": (["--prompt", "a", "--mask", "MASK", "--seed", 2**63], "seed must be"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line_and_write_nothing(run, mask_file, sketch_file, mistake):
    arguments, message = MISTAKES[mistake]
    files = {"MASK": mask_file, "SKETCH": sketch_file}
    result = run(*(files.get(argument, argument) for argument in arguments))
    assert result.exit_code == 2
    errors = [line for line in result.stderr.splitlines() if not line.startswith("note:")]
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert message in errors[0]
    assert not list(Path.cwd().iterdir())


def test_unknown_pipelines_are_named(run, mask_file, tmp_path):
    for pipeline, message in (
        ("tiny-nothing", "No built-in pipeline is named 'tiny-nothing'"),
        (tmp_path, "not a saved pipeline"),
    ):
        result = run("--prompt", "a", "--mask", mask_file, pipeline=pipeline)
        assert result.exit_code == 2
        assert message in result.stderr


def test_output_in_the_way_is_refused(tmp_path):
    (tmp_path / "faces").write_text("")
    (tmp_path / "faces.png").mkdir()
    for out in ("faces", "faces.png", "faces/face.png"):
        with pytest.raises(ValueError, match=r"in the way|cannot be written"):
            sampling.check_output(tmp_path / out)


def test_a_failed_write_leaves_nothing(tmp_path):
    picture = Image.new("RGB", (4, 4))
    with pytest.raises(ValueError, match="unknown file extension"):
        sampling.write_pictures({tmp_path / "a.png": picture, tmp_path / "b.nothing": picture})
    assert not list(tmp_path.iterdir())


def test_help_does_not_wait_for_torch():
    command = [sys.executable, "-X", "importtime", SCRIPT, "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--sketch" in result.stdout
    assert "torch" not in result.stderr


def test_examples_are_what_the_renderer_draws(tmp_path):
    write_examples(tmp_path)
    fresh, built_in = read_examples(tmp_path), read_examples()
    assert [(one.prompt, one.modality) for one in fresh] == [
        (one.prompt, one.modality) for one in built_in
    ]
    for drawn, shipped in zip(fresh, built_in, strict=True):
        load = load_mask if drawn.modality == 0 else load_sketch
        one, other = load(drawn.path, (64, 64)), load(shipped.path, (64, 64))
        assert np.array_equal(getattr(one, "labels", one), getattr(other, "labels", other))


def test_grid_fits_pictures_and_text():
    face, wide = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), "red"), Image.new("RGB", (64, 32))
    rows = [GridRow(face, "a long prompt " * 100, [wide, face]), GridRow(wide, "", [face, face])]
    grid = labelled_grid(rows, ["seed 0", "seed 1"], cell_px=200)
    pixels = np.array(grid)
    assert grid.width > 4 * 200
    assert (pixels[:20] == 255).all()
    assert (pixels[:, :20] == 255).all()
    assert ((pixels == (255, 0, 0)).all(axis=2)).sum() == pytest.approx(4 * 200 * 200, rel=0.01)
    with pytest.raises(ValueError, match="needs 1 faces"):
        labelled_grid(rows, ["seed 0"])


def test_wrapped_lines_fit():
    font = ImageFont.load_default(size=14)
    text = "short words and oneverylongwordthatdoesnotfitanywhereatall again"
    lines = wrapped(text, font, 80)
    assert all(font.getlength(line) <= 80 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
