"""What a picture says of itself, and that it can be made again from that to the bit."""

import json
import shutil
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import IMAGE_SIZE, build_pipeline
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from script_runs import load_script

from mmface.core.files import model_sha256
from mmface.generation.settings import (
    MAX_RECIPE_CHARACTERS,
    Provenance,
    parse_object,
    read_provenance,
    write_pictures,
)


@pytest.fixture
def run(tmp_path, monkeypatch, face_mask, face_sketch, capsys):
    """Run the script in a folder that has mask.png and sketch.png; gives its notes."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(face_mask).save("mask.png")
    Image.fromarray(face_sketch).save("sketch.png")
    script = load_script("sample")

    def run(*arguments, status=0):
        capsys.readouterr()
        assert script([*map(str, arguments)]) == status, capsys.readouterr().err
        return capsys.readouterr().err

    return run


@pytest.fixture
def base(tiny_pipeline_folder):
    return (
        "--pipeline",
        tiny_pipeline_folder,
        "--steps",
        2,
        "--prompt",
        "a 'b', \u00e9",
        "--mask",
        "mask.png",
    )


def pixels(path):
    return np.array(Image.open(path).convert("RGB"))


def forged(path: Path, **changed) -> Path:
    """Write a picture with a changed recipe beside it."""
    recipe, picture = read_provenance(path)
    info = PngInfo()
    info.add_itxt("mmface", json.dumps(json.loads(recipe.json) | changed))
    picture.save("forged.png", pnginfo=info)
    return Path("forged.png")


def test_a_png_says_all(run, base, tiny_pipeline_folder):
    run(*base, "--seed", 4, "--sketch", "sketch.png", "--guidance-interval", 0, 0.5)
    with Image.open("faces.png") as picture:
        info = picture.info
    assert info["Software"] == "mmface 0.1.0"
    assert info["Description"] == "synthetic face made by mmface"
    said = json.loads(info["mmface"])
    assert said["synthetic"] is True
    assert said["seeds"] == [4]
    assert said["model"]["pipeline"] == str(tiny_pipeline_folder)
    assert said["weights"] == model_sha256(tiny_pipeline_folder)
    assert said["versions"]["torch"] == torch.__version__
    digests = {n: sha256(Path(n).read_bytes()).hexdigest() for n in ("mask.png", "sketch.png")}
    assert said["files"] == digests
    (row,) = said["rows"]
    assert (row["prompt"], row["mask"], row["steps"]) == ("a 'b', \u00e9", "mask.png", 2)
    assert (row["guidance"], row["guidance_interval"]) == (7.5, [0, 0.5])
    assert (row["height"], row["width"]) == (IMAGE_SIZE, IMAGE_SIZE)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_a_recipe_survives_its_file(run, base, suffix):
    run(*base, "--out", f"a.{suffix}")
    recipe, picture = read_provenance(f"a.{suffix}")
    assert picture.size == (IMAGE_SIZE, IMAGE_SIZE)
    assert Provenance.from_json(recipe.json) == recipe
    write_pictures({Path("b.png"): (picture, recipe)})
    assert read_provenance("b.png")[0] == recipe
    if suffix != "png":
        with Image.open(f"a.{suffix}") as written:
            exif = written.getexif()
        assert (exif[0x0131], exif[0x010E]) == ("mmface 0.1.0", "synthetic face made by mmface")


def test_the_digest_is_of_the_bytes_and_not_of_the_place(tiny_pipeline_folder, tmp_path):
    before = model_sha256(tiny_pipeline_folder)
    copy = tmp_path / "copy"
    shutil.copytree(tiny_pipeline_folder, copy)
    assert model_sha256(copy) == before
    weights = copy / "vae" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert model_sha256(copy) != before


@pytest.mark.slow
def test_rerun_makes_the_picture_again_to_the_bit(run, base):
    run(*base, "--seed", 9, "--solver", "heun", "--condition-strength", 0.5, "--out", "one.png")
    run(*base, "--seed", 9, "--num", 3, "--out", "folder")
    run(*base, "--seed", 9, "--num", 2, "--out", "grid.png")
    for name in ("one.png", "folder/seed_10.png", "grid.png"):
        note = run("--rerun", name, "--out", "again.png", "--overwrite")
        assert f"bit-equal to {name}" in note
        assert "made with" not in note
        assert np.array_equal(pixels("again.png"), pixels(name))
        assert read_provenance("again.png")[0] == read_provenance(name)[0]
    run(*base, "--out", "lossy.webp")
    assert "not lossless" in run("--rerun", "lossy.webp")
    assert Path("lossy_rerun.png").exists()


def test_rerun_says_what_differs(run, base):
    run(*base, "--out", "one.png")
    recipe, picture = read_provenance("one.png")
    older = replace(recipe, versions={**recipe.versions, "torch": "1.0"})
    changed = np.array(picture)
    changed[0, 0] = 255 - changed[0, 0]
    write_pictures({Path("other.png"): (Image.fromarray(changed), older)})
    note = run("--rerun", "other.png")
    assert f"made with torch {torch.__version__} instead of 1.0" in note
    assert "0.10% of the pixels differ from other.png" in note


@pytest.mark.slow
def test_files_are_found_where_they_have_gone_and_told_by_their_bytes(run, base):
    run(*base, "--out", "kept/one.png")
    shutil.move("mask.png", "elsewhere.png")
    assert "mask.png is not there" in run("--rerun", "kept/one.png", status=2)
    assert "bit-equal" in run("--rerun", "kept/one.png", "--mask", "elsewhere.png")
    shutil.copy("elsewhere.png", "kept/mask.png")
    assert "bit-equal" in run("--rerun", "kept/one.png")
    Path("kept/mask.png").unlink()
    shutil.copy("sketch.png", "mask.png")
    assert "mask.png is not the file that" in run("--rerun", "kept/one.png", status=2)
    assert sorted(p.name for p in Path().glob("*rerun*")) == ["one_rerun.png", "one_rerun_2.png"]


def test_other_weights_are_named(run, base, tmp_path):
    run(*base, "--out", "one.png")
    assert "it is not here" not in run("--rerun", "one.png")
    other = build_pipeline()
    with torch.no_grad():
        other.transformer.final_linear.weight += 1
    other.save_pretrained(tmp_path / "other")
    note = run("--rerun", "one.png", "--pipeline", tmp_path / "other", status=2)
    assert "was made by others" in note
    assert read_provenance("one.png")[0].weights[:16] in note


@pytest.mark.slow
def test_a_recipe_is_not_trusted(run, base):
    run(*base, "--out", "one.png")
    said = json.loads(read_provenance("one.png")[0].json)
    row, model = said["rows"][0], said["model"]
    for changed, message in (
        ({"more": 1}, "keys at odds: ['more']"),
        ({"recipe": 3}, "no recipe of version 1 or 2"),
        ({"recipe": 1}, "keys at odds: ['computed']"),
        ({"computed": {}}, "does not say how its call"),
        ({"computed": said["computed"] | {"threads": 10**6}}, "threads must be"),
        ({"computed": said["computed"] | {"place": 1}}, "place must be"),
        ({"computed": said["computed"] | {"max_batch": 0}}, "max_batch must be"),
        ({"rows": [row] * 2}, "more than the requests of its call"),
        ({"rows": [row | {"shell": "rm"}]}, "unknown key 'shell'"),
        ({"rows": [row | {"steps": "many"}]}, "steps must be a whole number"),
        ({"rows": [row | {"strength": True}]}, "strength must be a number"),
        ({"rows": [row | {"guidance_interval": [0]}]}, "guidance_interval must be two numbers"),
        ({"rows": [row | {"from_photo": "x"}]}, "from_photo must be both or mask or sketch"),
        ({"rows": [row | {"mask": "/etc/passwd"}]}, "files are not those"),
        ({"rows": [row | {"width": 1 << 12, "height": 1 << 12}]}, "is for (4096, 4096)"),
        ({"rows": [row | {"steps": None}]}, "leaves open"),
        ({"rows": []}, "number of faces"),
        ({"rows": 7}, "must be lists"),
        ({"seeds": [-1]}, "seed must be"),
        ({"seeds": list(range(2000))}, "number of faces"),
        ({"picture": 1}, "picture must be"),
        (
            {
                "picture": None,
                "rows": [row | {"width": 8192, "height": 8192}] * 5,
                "computed": said["computed"] | {"requests": 5},
            },
            "too many or too large",
        ),
        ({"model": model | {"pipeline": "somebody/model"}}, "which is not here"),
        ({"model": model | {"dtype": "int4"}}, "dtype must be"),
        ({"files": {"mask.png": 3}}, "files must be a text"),
    ):
        path = forged(Path("one.png"), **changed)
        note = run("--rerun", path, status=2)
        assert message in note, changed
        assert len(note.splitlines()) == 1
    assert not list(Path().glob("*rerun*"))


def test_other_pictures_and_options_are_refused(run, base):
    assert "carries no recipe" in run("--rerun", "mask.png", status=2)
    assert "does not exist" in run("--rerun", "nowhere.png", status=2)
    run(*base, "--out", "one.png")
    assert "takes --steps from the picture" in run("--rerun", "one.png", "--steps", 3, status=2)
    assert "is the picture itself" in run("--rerun", "one.png", "--out", "one.png", status=2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "must be a JSON object"),
        ('{"a": NaN}', "NaN"),
        ('{"a": 1, "a": 2}', "key twice"),
        ("{" * 3, "not JSON"),
        ('{"a":' * 100_000, "nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "4300 digits"),
    ],
)
def test_json_is_read_strictly(text, message):
    with pytest.raises(ValueError, match=message):
        parse_object(text)


def test_endless_recipes_are_refused():
    with pytest.raises(ValueError, match="longer than"):
        Provenance.from_json(" " * (MAX_RECIPE_CHARACTERS + 1))


@pytest.mark.slow
def test_rerun_repeats_the_batches_of_a_call(run, base):
    """Four pictures are computed one by one, two by two or at once, with the threads of then."""
    for max_batch in (1, 2, 4):
        threads, now = torch.get_num_threads(), 1 + max_batch % 2
        torch.set_num_threads(now)
        run(*base, "--num", 4, "--max-batch", max_batch, "--out", f"by_{max_batch}/")
        torch.set_num_threads(threads)
        name = f"by_{max_batch}/seed_3.png"
        recipe = read_provenance(name)[0]
        computed = recipe.computed
        assert computed is not None
        assert (computed.requests, computed.place, computed.max_batch) == (1, 0, max_batch)
        assert computed.threads == now
        assert "bit-equal" in run("--rerun", name, "--out", "again.png", "--overwrite")
        assert read_provenance("again.png")[0] == recipe
        assert torch.get_num_threads() == threads
    note = run("--rerun", "by_1/seed_3.png", "--max-batch", 2, "--out", "other.png")
    assert "made with --max-batch 2 instead of 1" in note


def test_pictures_of_the_first_recipes_are_made_again(run, base):
    run(*base, "--out", "one.png")
    recipe, picture = read_provenance("one.png")
    said = json.loads(recipe.json)
    del said["computed"]
    info = PngInfo()
    info.add_itxt("mmface", json.dumps(said | {"recipe": 1}))
    picture.save("first.png", pnginfo=info)
    first = read_provenance("first.png")[0]
    assert first == replace(recipe, computed=None)
    assert json.loads(first.json) == said | {"recipe": 1}
    assert "bit-equal" in run("--rerun", "first.png")


def test_another_processor_is_named(run, base):
    run(*base, "--out", "one.png")
    recipe, picture = read_provenance("one.png")
    assert recipe.computed is not None
    elsewhere = replace(recipe.computed, processor="Abacus 1")
    write_pictures({Path("other.png"): (picture, replace(recipe, computed=elsewhere))})
    assert f"made on {recipe.computed.processor} instead of Abacus 1" in run("--rerun", "other.png")
