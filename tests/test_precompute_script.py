"""scripts/precompute.py: plans, encodes a manifest, goes on, and says what it left out."""

import runpy
import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from test_latents import broken_set, written_manifest

from mmface.data.store import Store

SCRIPT = Path(__file__).parent.parent / "scripts" / "precompute.py"


@pytest.fixture
def run(tmp_path, monkeypatch, tiny_pipeline_folder):
    """Encode a manifest with the tiny VAE in a folder of its own, in this process."""

    def run_script(*arguments):
        small = (
            "job.pictures.size_px=32",
            f"job.vae={tiny_pipeline_folder}/vae",
            "job.num_workers=0",
        )
        monkeypatch.chdir(tmp_path)
        out = f"output_dir={tmp_path}/store"
        monkeypatch.setattr(
            sys, "argv", ["precompute.py", "experiment=latents_256", out, *small, *arguments]
        )
        GlobalHydra.instance().clear()
        runpy.run_path(str(SCRIPT), run_name="__main__")

    return run_script


def error_of(ended, capsys):
    """The one line that a mistake ended with, and status 2."""
    assert ended.value.code == 2
    (line,) = (x for x in capsys.readouterr().err.splitlines() if x.startswith("error: "))
    return line


def test_a_job_that_cannot_be_built_is_one_line(run, capsys):
    with pytest.raises(SystemExit) as ended:
        run("job.posterior=median")
    assert error_of(ended, capsys).startswith("error: job: 'median' is not one of sample")


@pytest.mark.slow
def test_it_plans_before_anything_is_there(run, tmp_path, capsys):
    run("plan=true", "job.vae=flux", "job.pictures.size_px=256")
    said = capsys.readouterr().out
    assert "94,000" in said
    assert "9.43 GB" in said
    assert "TFLOP/s" in said
    assert not (tmp_path / "store/store.json").exists()


@pytest.mark.slow
def test_it_encodes_lists_what_is_bad_and_goes_on(run, tmp_path, capsys):
    path = broken_set(tmp_path / "set")
    run(f"job.pictures.manifest={path}")
    said = capsys.readouterr().out
    assert f"4 of 9 skipped; why: {tmp_path}/store/skipped.jsonl" in said
    assert said.splitlines()[-1] == f"result: {tmp_path}/store"
    store = Store(tmp_path / "store")
    assert len(store) == 5  # the fifth bad one is for testing
    before = (tmp_path / "store/shard-00000.arrow").stat().st_mtime_ns
    run(f"job.pictures.manifest={path}")
    assert (tmp_path / "store/shard-00000.arrow").stat().st_mtime_ns == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["job.strict=true"], "images/1.png cannot be read"),
        (["job.pictures.split=val"], "no faces in the split"),
        (["job.pictures.manifest=no.jsonl"], "no.jsonl does not exist"),
    ],
)
def test_a_mistake_is_one_line_and_a_status(run, tmp_path, capsys, arguments, words):
    path = broken_set(tmp_path / "set")
    with pytest.raises(SystemExit) as ended:
        run(f"job.pictures.manifest={path}", *arguments)
    assert words in error_of(ended, capsys)


def test_nothing_to_read_is_an_error(run, tmp_path, capsys):
    path = written_manifest(tmp_path / "set", range(2)).path
    for picture in (tmp_path / "set/sketches").iterdir():
        picture.unlink()
    with pytest.raises(SystemExit) as ended:
        run(f"job.pictures.manifest={path}")
    told = capsys.readouterr()
    assert ended.value.code == 2
    assert "error: nothing could be read" in told.err
    assert "2 of 2 skipped" in told.out
