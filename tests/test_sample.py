"""Sampling from the command line: files are whole or absent, and mistakes are one line."""

import errno
import re
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from conftest import IMAGE_SIZE, MAX_TOKENS, TEXT_DIM, build_pipeline, build_vae
from dead_writers import killed_while_writing
from PIL import Image, ImageFont
from safetensors.torch import save_file
from script_runs import load_script

from mmface.conditions import condition_kind, edge_agreement
from mmface.core.files import check_output
from mmface.generation.grid import GAP_PX, MARGIN_PX, GridRow, labelled_grid, wrapped
from mmface.generation.requests import photo_conditions
from mmface.generation.settings import (
    ModelChoice,
    Provenance,
    Settings,
    option_values,
    read_provenance,
    write_pictures,
)
from mmface.model.transformer import MMFaceDiT
from mmface.rendered import render_face
from mmface.rendered.examples import read_examples, write_examples

SCRIPT = Path(__file__).parent.parent / "scripts" / "sample.py"


class Result(NamedTuple):
    exit_code: int
    stdout: str
    stderr: str


@pytest.fixture
def run(tiny_pipeline_folder, tmp_path, monkeypatch, capsys):
    """Run the script in an empty folder, with the tiny pipeline and two steps."""
    monkeypatch.setenv("COLUMNS", "100")
    run_script = load_script("sample")
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def run(*arguments, pipeline=tiny_pipeline_folder, steps=2):
        options = ["--pipeline", str(pipeline), "--steps", str(steps)]
        capsys.readouterr()
        exit_code = run_script([*options, *map(str, arguments)])
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
    with Image.open("new/grid.jpg") as grid:
        assert grid.width > 4 * 192
    result = run(*arguments, "--out", "faces", "--height", 32, "--width", 64)
    assert result.stdout.split() == ["faces/seed_7.png", "faces/seed_8.png"]
    with Image.open("faces/seed_8.png") as face:
        assert face.size == (64, 32)


@pytest.mark.slow
def test_demo_without_arguments(run):
    result = run(steps=1)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "mmface_demo.png\n"
    with Image.open("mmface_demo.png") as grid:
        assert grid.height > 6 * 192


def test_soft_masks_and_cut_prompts_are_said_aloud(run, face_mask, tmp_path):
    soft = tmp_path / "soft.png"
    Image.fromarray(face_mask).resize((160, 160), Image.Resampling.BICUBIC).save(soft)
    prompt = "a " * (MAX_TOKENS - 2) + "nobody hears this"
    result = run("--prompt", prompt, "--mask", soft)
    assert result.exit_code == 0
    assert re.search(
        r"note: .*soft\.png: \d+\.\d% of the pixels .* background, skin", result.stderr
    )
    assert (
        f"{MAX_TOKENS} tokens that are read; this was cut: 'a nobody hears this'" in result.stderr
    )


def changed(one: str, other: str) -> float:
    pixels = [np.array(Image.open(path)).astype(int) for path in (one, other)]
    return float(np.abs(pixels[0] - pixels[1]).mean())


CONTROLS: dict[str, list] = {
    "condition strength": ["--condition-strength", 0.3],
    "condition window": ["--condition-window", 0, 0.5],
    "condition guidance": ["--condition-guidance", 2],
    "condition region": ["--condition-region", "REGION"],
    "guidance interval": ["--guidance-interval", 0, 0.5],
    "guidance rescale": ["--guidance-rescale", 0.7],
    "negative": ["--negative", "b"],
    "solver": ["--solver", "unipc"],
    "image": ["--image", "PHOTO", "--strength", 0.5],
    "sketch too": ["--sketch", "SKETCH"],
}


@pytest.mark.slow
@pytest.mark.parametrize("control", CONTROLS)
def test_every_control_reaches_the_pipeline(run, mask_file, sketch_file, files, control):
    given = {"SKETCH": sketch_file, **files}
    options = [given.get(option, option) for option in CONTROLS[control]]
    base = ("--prompt", "a", "--mask", mask_file, "--guidance", 4)
    for name, extra in (("plain.png", []), ("controlled.png", options)):
        result = run(*base, *extra, "--out", name)
        assert result.exit_code == 0, result.stderr
    assert changed("plain.png", "controlled.png") > 0.01
    field = str(options[0])[2:].replace("-", "_")
    controlled, plain = (
        option_values(read_provenance(name)[0].rows[0]).get(field)
        for name in ("controlled.png", "plain.png")
    )
    assert controlled != plain


@pytest.mark.slow
def test_with_a_cache_a_face_is_its_seeds_all_the_same(run, mask_file):
    base = ("--prompt", "a", "--mask", mask_file)
    faces: dict[str, list[str]] = {"plain": [], "cached": ["--cache", "taylor-seer"]}
    for out, options in faces.items():
        result = run(*base, *options, "--num", 2, "--out", out, steps=8)
        assert result.exit_code == 0, result.stderr
    assert changed("plain/seed_1.png", "cached/seed_1.png") > 0.01
    assert run(*base, *faces["cached"], "--seed", 1, "--out", "alone.png", steps=8).exit_code == 0
    assert changed("alone.png", "cached/seed_1.png") == 0
    assert read_provenance("alone.png")[0].rows[0].cache == "taylor-seer"


@pytest.fixture
def files(tmp_path) -> dict[str, Path]:
    region = np.zeros((64, 64), np.uint8)
    region[16:48, 16:48] = 255
    pictures = {"REGION": region, "PHOTO": render_face(1_000_020, 64).image}
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    return {name: tmp_path / f"{name}.png" for name in pictures}


def test_an_edit_leaves_the_rest_of_the_picture(run, mask_file, files):
    Image.open(files["PHOTO"]).resize((IMAGE_SIZE, IMAGE_SIZE)).save("small.png")
    edit = ("--image", "small.png", "--region", files["REGION"], "--out", "edited.png")
    assert run("--prompt", "a", "--mask", mask_file, *edit).exit_code == 0
    before, after = (np.array(Image.open(name)).astype(int) for name in ("small.png", "edited.png"))
    inside = np.zeros((IMAGE_SIZE, IMAGE_SIZE), bool)
    inside[7:25, 7:25] = True
    assert np.array_equal(before[~inside], after[~inside])
    assert np.abs(before[inside] - after[inside]).mean() > 5


@pytest.mark.slow
def test_a_photo_gives_mask_and_sketch(run, files):
    face = render_face(1_000_020, 64)
    taken = photo_conditions(files["PHOTO"], (64, 64), "tiny-parser")
    sketch = taken["sketch"]
    assert (taken["mask"] == face.labels).mean() > 0.9
    lines = sketch < 128
    assert 0.01 < lines.mean() < 0.3
    assert edge_agreement(face.image, sketch) > 0.6
    base = ("--prompt", "a", "--photo", files["PHOTO"])
    for wanted in ("both", "mask", "sketch"):
        assert run(*base, "--from-photo", wanted, "--out", f"{wanted}.png").exit_code == 0
    assert changed("both.png", "mask.png") > 0.01
    assert changed("mask.png", "sketch.png") > 0.01
    recipe, _ = read_provenance("both.png")
    assert recipe.files == {str(files["PHOTO"]): sha256(files["PHOTO"].read_bytes()).hexdigest()}


def test_a_blank_photo_is_named(run, tmp_path):
    Image.new("RGB", (64, 64), "white").save(tmp_path / "blank.png")
    result = run("--prompt", "a", "--photo", tmp_path / "blank.png")
    assert result.exit_code == 2
    assert "blank.png shows nothing" in result.stderr


@pytest.mark.slow
def test_arithmetic_and_tiles_are_asked_for(run, mask_file):
    base = ("--prompt", "a", "--mask", mask_file)
    for name, extra in {"a": [], "b": ["--dtype", "bfloat16"], "c": ["--vae-tiling"]}.items():
        assert run(*base, *extra, "--out", f"{name}.png").exit_code == 0
    assert 0 < changed("a.png", "b.png") < 20
    assert changed("a.png", "c.png") == 0  # one tile holds so small a picture
    assert run(*base, "--max-batch", 1, "--out", "d.png").exit_code == 0
    assert changed("a.png", "d.png") < 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what it does without a GPU")
@pytest.mark.parametrize("option", [["--offload"], ["--quantize", "8bit"], ["--quantize", "4bit"]])
def test_what_needs_a_gpu_says_so(run, mask_file, option):
    result = run("--prompt", "a", "--mask", mask_file, *option)
    assert result.exit_code == 2
    assert f"{option[0]} needs a CUDA GPU" in result.stderr


def test_the_authors_layout_is_opened(run, tiny_pipeline, mask_file, tmp_path):
    folder, checkpoint = tmp_path / "released", "dit-unified-flux-vae-256-rfm/checkpoint-7"
    text = folder / "stable-diffusion-2-1-base"
    build_vae().save_pretrained(folder / "VAE")
    tiny_pipeline.tokenizer.save_pretrained(text / "tokenizer")
    tiny_pipeline.text_encoder.save_pretrained(text / "text_encoder")
    (folder / checkpoint).mkdir(parents=True)
    # As many heads as the released models have, which their weights do not tell.
    model = MMFaceDiT(hidden_size=64, depth=1, num_heads=16, text_dim=TEXT_DIM)
    save_file(model.to_released(), folder / checkpoint / "dit_model_weights_ema.safetensors")
    asked = ("--prompt", "a", "--mask", mask_file, "--height", 32, "--width", 32)
    result = run(*asked, "--released", folder, "--checkpoint", checkpoint)
    assert result.exit_code == 0, result.stderr
    recipe, picture = read_provenance("faces.png")
    assert (recipe.model.released, recipe.model.checkpoint) == (str(folder), checkpoint)
    assert picture.size == (32, 32)
    result = run(*asked, "--released", folder, "--quantize", "4bit")
    assert result.exit_code == 2


@pytest.mark.slow
def test_the_example_of_the_readme_runs(tmp_path, monkeypatch, face_mask):
    text = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    (code,) = (
        block
        for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        if "builtin(" in block
    )
    monkeypatch.chdir(tmp_path)
    Image.fromarray(face_mask).save("mask.png")
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert len(names["faces"]) == 4
    assert all(face.size == (128, 128) for face in names["faces"])


MISTAKES: dict[str, tuple[list, str]] = {
    "no prompt": (["--mask", "MASK"], "prompt is empty"),
    "empty prompt": (["--prompt", " ", "--mask", "MASK"], "prompt is empty"),
    "no condition": (["--prompt", "a"], "Neither mask nor sketch"),
    "photo and mask": (["--prompt", "a", "--mask", "MASK", "--photo", "MASK"], "give either"),
    "words": (["--prompt", "a", "--mask", "MASK", "--dtype", "int4"], "dtype must be auto or"),
    "solver": (["--prompt", "a", "--mask", "MASK", "--solver", "magic"], "choose one of euler"),
    "window": (["--prompt", "a", "--mask", "MASK", "--condition-window", "1", "0"], "below its"),
    "strength": (["--prompt", "a", "--mask", "MASK", "--strength", "0.5"], "without an image"),
    "region": (["--prompt", "a", "--mask", "MASK", "--image", "MASK", "--region", "x"], "x does"),
    "parser": (
        ["--prompt", "a", "--photo", "MASK", "--parser", "none"],
        "face parser is named 'none'; there are: tiny-parser",
    ),
    "best of": (["--prompt", "a", "--mask", "MASK", "--best-of", "3", "--num", "2"], "one face"),
    "lora": (["--prompt", "a", "--mask", "MASK", "--lora", "x.safetensors"], "does not exist"),
    "checkpoint": (["--prompt", "a", "--mask", "MASK", "--checkpoint", "x"], "without released"),
    "released": (["--prompt", "a", "--mask", "MASK", "--released", "."], "has no folder VAE"),
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
    "height": (["--prompt", "a", "--mask", "MASK", "--height", "0"], "height must be a whole"),
    "negative seed": (["--prompt", "a", "--mask", "MASK", "--seed", "-1"], "seed must be"),
    "seed": (["--prompt", "a", "--mask", "MASK", "--seed", 2**63], "seed must be"),
}


@pytest.mark.slow
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
            check_output(tmp_path / out)


def test_what_is_a_folder(tmp_path):
    (tmp_path / "v1.5").mkdir()
    (tmp_path / "here").mkdir()
    for out in ("v1.5", "here", "faces", "v2.0/", "face.png/"):
        found = check_output(f"{tmp_path}/{out}")
        assert found.is_folder, out
        assert found.file("a.png") == tmp_path / out / "a.png"
    assert check_output(f"{tmp_path}/v2.0/face.png").file("a.png") == tmp_path / "v2.0/face.png"
    with pytest.raises(ValueError, match="not there yet ends in a slash"):
        check_output(f"{tmp_path}/v2.0")


@pytest.mark.slow
def test_a_second_run_replaces_no_picture_unasked(run, mask_file):
    base = ("--prompt", "a", "--mask", mask_file)
    assert [run(*base).stdout for _ in range(3)] == [
        "faces.png\n",
        "faces_2.png\n",
        "faces_3.png\n",
    ]
    for more in (
        ["--out", "one.png"],
        ["--out", "v1.5/", "--num", 2],
        ["--out", "rep/", "--report"],
    ):
        assert run(*base, *more).exit_code == 0
        before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
        result = run(*base, *more, "--seed", 1)  # whose report or picture is there already
        assert result.exit_code == 2, more
        assert "is there already: give another --out, or --overwrite" in result.stderr
        assert len(result.stderr.splitlines()) == 1, result.stderr
        assert all(path.read_bytes() == content for path, content in before.items())
        assert run(*base, *more, "--negative", "b", "--overwrite").exit_code == 0
        assert any(path.read_bytes() != content for path, content in before.items())


@pytest.mark.slow
def test_broken_weights_make_no_picture(run, mask_file, tmp_path):
    """Neither files that hold NaN, nor numbers that become NaN on the way, end as a black PNG."""
    for name in ("transformer", "vae"):
        pipeline = build_pipeline()
        with torch.no_grad():
            list(getattr(pipeline, name).parameters())[-1].fill_(torch.nan)
        with pytest.raises(ValueError, match=r"are not finite .* No picture is made"):
            pipeline("a", mask=mask_file, num_inference_steps=1)
        pipeline.save_pretrained(tmp_path / name)
        result = run("--prompt", "a", "--mask", mask_file, pipeline=tmp_path / name)
        assert result.exit_code == 2
        (line,) = (line for line in result.stderr.splitlines() if "error" in line)
        assert "not finite (NaN or infinit" in line
    assert not list(Path.cwd().iterdir())


def test_numbers_that_overflow_make_no_picture(run, mask_file, tmp_path):
    pipeline = build_pipeline()
    with torch.no_grad():
        pipeline.transformer.final_linear.weight.fill_(3e38)
    pipeline.save_pretrained(tmp_path / "huge")
    result = run("--prompt", "a", "--mask", mask_file, pipeline=tmp_path / "huge")
    assert result.exit_code == 2
    assert "The transformer's latents are not finite" in result.stderr
    assert not list(Path.cwd().iterdir())


def test_left_overs_of_killed_writers_are_swept(run, mask_file):
    left = killed_while_writing(Path("faces/seed_0.png").absolute())
    assert left.exists()
    assert run("--prompt", "a", "--mask", mask_file, "--out", "faces/").exit_code == 0
    assert [path.name for path in Path("faces").iterdir()] == ["seed_0.png"]


def test_a_full_disk_says_what_is_needed(tmp_path, monkeypatch):
    settings = Settings(prompt="a")
    recipe = Provenance(ModelChoice(), "", (settings,), (0,), None, {}, {})
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"a\.png cannot be written: .*full\. 0\.48 MB are needed"):
        write_pictures({tmp_path / "a.png": (Image.fromarray(noise), recipe)})
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_nothing(tmp_path):
    picture = Image.new("RGB", (4, 4))
    settings = Settings(prompt="a" * 19_000, negative="a" * 19_000, solver="a" * 19_000)
    recipe = Provenance(ModelChoice(), "", (settings, settings), (0,), None, {}, {})
    with pytest.raises(ValueError, match=r"c\.jpg has no room"):
        write_pictures(
            {tmp_path / "a.png": (picture, recipe), tmp_path / "c.jpg": (picture, recipe)}
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_help_does_not_wait_for_torch():
    command = [sys.executable, "-X", "importtime", str(SCRIPT), "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--sketch" in result.stdout
    assert "torch" not in result.stderr


@pytest.mark.slow
def test_examples_are_what_the_renderer_draws(tmp_path):
    write_examples(tmp_path)
    fresh, built_in = read_examples(tmp_path), read_examples()
    assert [(one.prompt, one.kind) for one in fresh] == [(one.prompt, one.kind) for one in built_in]
    for drawn, shipped in zip(fresh, built_in, strict=True):
        load = condition_kind(drawn.kind).load
        one, other = load(drawn.path, (64, 64)), load(shipped.path, (64, 64))
        assert np.array_equal(one.values, other.values)


@pytest.mark.slow
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


def test_long_titles_of_a_grid_stay_above_their_own_column():
    face = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), "red")
    short, long = "seed", "a title that is much longer than its own column is wide"
    pixels = np.array(labelled_grid([GridRow(face, "", [face, face])], [long, long], cell_px=100))
    plain = np.array(labelled_grid([GridRow(face, "", [face, face])], [short, short], cell_px=100))
    added = len(pixels) - len(plain)
    assert added > 0
    assert np.array_equal(pixels[-120:], plain[-120:])  # the faces stand as they stood
    last_gap = pixels.shape[1] - MARGIN_PX - 100 - GAP_PX
    assert (pixels[:, last_gap + 1 : last_gap + GAP_PX - 1] == 255).all()  # between the frames
    assert (pixels[: MARGIN_PX + added, last_gap + GAP_PX :] < 255).any()


def test_wrapped_lines_fit():
    font = ImageFont.load_default(size=14)
    text = "short words and oneverylongwordthatdoesnotfitanywhereatall again"
    lines = wrapped(text, font, 80)
    assert all(font.getlength(line) <= 80 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
