"""Two real runs with one folder: the second says whose it is, before it loads what it lacks."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from test_latents import written_manifest

from mmface.data.pictures import RenderedPictures
from mmface.data.store import close_store
from mmface.rendered import render_face

SCRIPTS = Path(__file__).parent.parent / "scripts"
pytestmark = pytest.mark.slow


def sampling(folder, pipeline):
    rows = [{"id": str(k), "prompt": "a face", "mask": "mask.png"} for k in range(200)]
    (folder / "jobs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Image.fromarray(render_face(0, 32).labels).save(folder / "mask.png")
    command = ["sample.py", "--jobs", "jobs.jsonl", "--out", "out", "--steps", "50"]
    return command, ["--pipeline", str(pipeline)], ["--pipeline", "./no_model"]


def precomputing(folder, pipeline):
    manifest = written_manifest(folder / "set", range(24)).path
    command = ["precompute.py", "experiment=latents_256", "output_dir=out", "job.num_workers=0"]
    command += [f"job.pictures.manifest={manifest}", "job.pictures.size_px=256"]
    return command, [f"job.vae={pipeline}/vae"], ["job.vae=./no_model"]


def training(folder, pipeline):
    RenderedPictures(num_faces=6, size_px=32).write(folder / "runs/tiny_pictures", 0, 1)
    close_store(folder / "runs/tiny_pictures")
    command = ["train.py", "experiment=tiny_parser", "trainer.output_dir=out"]
    command += ["trainer.recipe.global_batch_size=2", "trainer.recipe.micro_batch_size=1"]
    return command, [], ["task.config.hidden_sizes=no_model"]


@pytest.mark.parametrize("work", [sampling, precomputing, training])
def test_the_second_of_two_runs_names_the_first_and_loads_nothing(
    work, tmp_path, tiny_pipeline_folder
):
    command, good, bad = work(tmp_path, tiny_pipeline_folder)
    command = [sys.executable, str(SCRIPTS / command[0]), *command[1:]]
    options: dict[str, Any] = {
        "cwd": tmp_path,
        "env": {**os.environ, "PYTHONPATH": str(SCRIPTS.parent), "OMP_NUM_THREADS": "1"},
    }
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([*command, *good], **options, **quiet) as first:
        try:
            end = time.monotonic() + 120
            while not (tmp_path / "out/.lock").exists():
                assert first.poll() is None
                assert time.monotonic() < end
                time.sleep(0.02)
            first.send_signal(signal.SIGSTOP)  # it cannot end before the second has started
            before = sorted((tmp_path / "out").rglob("*"))
            second = subprocess.run([*command, *bad], capture_output=True, text=True, **options)
            assert sorted((tmp_path / "out").rglob("*")) == before
        finally:
            first.kill()
    assert second.returncode == 2, second.stderr
    (line,) = (line for line in second.stderr.splitlines() if "error: " in line)
    assert re.fullmatch(
        rf"error: \S*out/? is in use by process {first.pid} on \S+; wait until it ends, stop it, "
        "or give another folder",
        line,
    )


def test_a_mistake_leaves_no_folder_behind(tmp_path, tiny_pipeline_folder):
    for work in (sampling, precomputing):
        folder = tmp_path / work.__name__
        folder.mkdir()
        command, _, bad = work(folder, tiny_pipeline_folder)
        command = [sys.executable, str(SCRIPTS / command[0]), *command[1:]]
        env = {**os.environ, "PYTHONPATH": str(SCRIPTS.parent), "HF_HUB_OFFLINE": "1"}
        ended = subprocess.run(
            [*command, *bad], capture_output=True, text=True, cwd=folder, env=env
        )
        assert ended.returncode == 2, ended.stderr
        assert "no_model" in ended.stderr
        assert not (folder / "out").exists()
