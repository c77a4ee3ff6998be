"""The whole path by the repository's own scripts, at the smallest size: nothing to a face."""

import json
import os
import runpy
import signal
import sys
from pathlib import Path

import jaxtyping
import pytest
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

SCRIPTS = Path(__file__).parent.parent / "scripts"
SMALL_RUN = (
    "trainer.recipe.total_steps=2",
    "trainer.recipe.global_batch_size=2",
    "trainer.recipe.micro_batch_size=2",
    "trainer.cadence.log_every=1",
)
SMALL_CLIP = (
    "task.tokenizer.vocab_size=520",
    "task.text_config.num_hidden_layers=2",
    "task.vision_config.num_hidden_layers=1",
    "task.vision_config.image_size=32",
    "task.vision_config.patch_size=8",
)
SMALL_DIT = (
    "model.hidden_size=16",
    "model.depth=2",
    "model.num_heads=2",
    "task.image_size=32",
    "task.compile_blocks=false",
)
SMALL_FLOW = (*SMALL_DIT, "task.init_from=null")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workplace")
    (folder / "mmface").mkdir()  # where the configs look for the built-in weights
    (folder / "mmface/assets").symlink_to(SCRIPTS.parent / "mmface/assets")
    return folder


@pytest.fixture
def run(workplace, monkeypatch):
    """Run a script in this process, in a folder of its own."""

    def run_script(name, *arguments):
        monkeypatch.chdir(workplace)
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        GlobalHydra.instance().clear()
        runpy.run_path(str(SCRIPTS / name), run_name="__main__")

    return run_script


@pytest.fixture
def unchecked_types():
    """Let values of wrong types through to our own checks, as outside of tests."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("data.store=no/such", "no store in no/such"),
        ("task.gradient_checkpointing=selectiv", "or 'selective', got 'selectiv'"),
        ("trainer.recipe.global_batch_size=0", "trainer.recipe.global_batch_size must be"),
        ("trainer.recipe.global_batch_size=3.5", "trainer.recipe.global_batch_size must be"),
        ("trainer.recipe.micro_batch_size=4", "does not divide"),
        ("data.text_dropout=9", "data.text_dropout must be in 0..1"),
        ("optimizer.lr=abc", "optimizer.lr must be 0 or more"),
        ("optimizer.lr=inf", "optimizer.lr must be finite"),
        ("trainer.output_dir=runs/tiny_clip/export/clip/config.json", "is a file"),
        ("+model.num_modalities=1", "model.num_modalities is 1, but training on sketch"),
    ],
)
def test_a_mistake_in_training_is_one_line(
    run, trained, capsys, unchecked_types, argument, message
):
    with pytest.raises(SystemExit) as ended:
        run("train.py", "experiment=tiny_flow", "run_name=wrong", *SMALL_RUN, *SMALL_FLOW, argument)
    assert ended.value.code == 2
    (error,) = (x for x in capsys.readouterr().err.splitlines() if x.startswith("error: "))
    assert message in error


@pytest.fixture
def trained(run, workplace):
    """Everything up to a flow pipeline, made once."""
    if not (workplace / "runs/tiny_flow/export").exists():
        run("precompute.py", "experiment=tiny_pictures", "job.num_faces=4", "job.size_px=32")
        run("train.py", "experiment=tiny_vae", *SMALL_RUN)
        refine = (*SMALL_RUN, "trainer.recipe.micro_batch_size=1")
        run("train.py", "experiment=tiny_vae_refined", *refine)
        run("train.py", "experiment=tiny_clip", *SMALL_RUN, *SMALL_CLIP)
        run("train.py", "experiment=tiny_parser", *SMALL_RUN)
        run("precompute.py", "experiment=tiny_latents")
        run("train.py", "experiment=tiny_flow", *SMALL_RUN, *SMALL_FLOW)
    return workplace / "runs"


@pytest.mark.slow
def test_every_stage_leaves_its_product(trained):
    for name in (
        "tiny_vae",
        "tiny_vae_refined",
        "tiny_clip/export/clip",
        "tiny_parser",
        "tiny_flow",
    ):
        folder = trained / name if "/" in name else trained / name / "export"
        assert any(folder.rglob("*.safetensors")), name
    lines = (trained / "tiny_flow" / "metrics.jsonl").read_text().splitlines()
    assert all("loss" in json.loads(line) for line in lines)


@pytest.mark.slow
def test_a_trained_pipeline_samples(trained, run, workplace, capsys):
    mask = next((Path(__file__).parent.parent / "mmface/assets/examples").glob("mask_*.png"))
    arguments = ["--prompt", "a woman", "--mask", str(mask), "--steps", "2", "--out", "face.png"]
    with pytest.raises(SystemExit) as ended:
        run("sample.py", *arguments, "--pipeline", str(trained / "tiny_flow/export"))
    assert ended.value.code in (0, None), capsys.readouterr().err
    with Image.open(workplace / "face.png") as face:
        assert face.size == (32, 32)


@pytest.mark.slow
def test_a_trained_pipeline_is_evaluated(trained, run, workplace, capsys):
    run(
        "evaluate.py",
        f"pipeline={trained}/tiny_flow/export",
        f"parser={trained}/tiny_parser/export",
        "num_faces=2",
        "num_inference_steps=1",
        "output=report.json",
    )
    results = json.loads((workplace / "report.json").read_text())["results"]
    assert set(results) == {
        "true pictures",
        "reconstructions",
        "mask, guidance 3",
        "sketch, guidance 3",
    }
    assert all(0 <= row["pixel_accuracy"] <= 1 for row in results.values())
    assert "sketch, guidance 3" in capsys.readouterr().out


@pytest.mark.slow
def test_ddpm_trains_with_previews(trained, run):
    previews = ("trainer.cadence.preview_every=2",)
    run("train.py", "experiment=tiny_ddpm", *SMALL_RUN, *SMALL_DIT, *previews)
    names = sorted(p.name for p in (trained / "tiny_ddpm" / "previews").iterdir())
    assert names == ["step-00000000.png", "step-00000002.png"]


@pytest.mark.slow
def test_a_changed_setting_must_be_allowed_by_the_name_that_is_shown(trained, run, capsys):
    longer = ("experiment=tiny_flow", *SMALL_RUN, *SMALL_FLOW, "trainer.recipe.total_steps=3")
    with pytest.raises(SystemExit) as ended:
        run("train.py", *longer)
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    assert "trainer.recipe.total_steps: 2 -> 3" in shown
    allowed = "trainer.allow_changes=[trainer.recipe.total_steps]"  # the schedule's number follows
    assert allowed in shown
    run("train.py", *longer, allowed)
    (state,) = (trained / "tiny_flow" / "checkpoints").glob("step-00000003/state.json")
    settings = json.loads(state.read_text())["settings"]
    assert settings["optimizer.lr"] == 8e-4
    assert settings["task.transformer.depth"] == 2
    card = (trained / "tiny_flow" / "export" / "README.md").read_text()
    assert "3 steps of 2 samples" in card


@pytest.mark.slow
def test_the_seed_decides_a_run_from_its_first_weights_on(trained, run):
    def weights(name, *arguments):
        run(
            "train.py",
            "experiment=tiny_flow",
            f"run_name={name}",
            *SMALL_RUN,
            *SMALL_FLOW,
            *arguments,
        )
        return (trained / name / "checkpoints/step-00000002/model.safetensors").read_bytes()

    first = weights("first")
    assert weights("again") == first
    assert weights("other", "trainer.recipe.seed=1") != first


@pytest.mark.slow
def test_a_run_that_a_signal_stopped_says_so_with_its_exit_status(
    trained, run, monkeypatch, capsys
):
    def stop_at_the_first_preview(self, trained, folder, step):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(
        "mmface.training.face_diffusion.FaceDiffusion.preview", stop_at_the_first_preview
    )
    arguments = ("run_name=stopped", "trainer.cadence.preview_every=1")
    with pytest.raises(SystemExit) as ended:
        run("train.py", "experiment=tiny_flow", *SMALL_RUN, *SMALL_FLOW, *arguments)
    assert ended.value.code == 75
    assert "stopped at 1 of 2; the same command goes on" in capsys.readouterr().out
    assert [p.name for p in (trained / "stopped" / "checkpoints").iterdir()] == ["step-00000001"]
