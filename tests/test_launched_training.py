"""`scripts/train.py` in fresh interpreters: same bytes again, killed, shared, stuck or kept out."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmface.data.pictures import RenderedPictures
from mmface.data.store import close_store

SCRIPT = Path(__file__).parent.parent / "scripts" / "train.py"
LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
TINY = (
    "experiment=tiny_parser",
    "trainer.recipe.global_batch_size=2",
    "trainer.recipe.micro_batch_size=1",
    "trainer.cadence.log_every=1",
    "optimizer.lr=1e-2",
    "schedule.num_warmup_steps=1",
    "task.config.hidden_sizes=[8,8]",
    "task.config.depths=[1,1]",
    "task.config.strides=[2,2]",
    "task.config.num_attention_heads=[1,1]",
    "task.config.sr_ratios=[2,1]",
    "task.config.mlp_ratios=[2,2]",
    "+task.config.num_encoder_blocks=2",
    "+task.config.patch_sizes=[3,3]",
    "task.config.decoder_hidden_size=8",
    # What transformers' modules draw from torch's global state.
    "task.config.drop_path_rate=0.3",
    "task.config.classifier_dropout_prob=0.3",
)
NO_DROPOUT = ("task.config.drop_path_rate=0", "task.config.classifier_dropout_prob=0")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """Give a folder with a store of rendered faces."""
    folder = tmp_path_factory.mktemp("launched")
    RenderedPictures(num_faces=6, size_px=32).write(folder / "runs/tiny_pictures", 0, 1)
    close_store(folder / "runs/tiny_pictures")
    return folder


@pytest.fixture
def start(workplace):
    """Start trainings; none outlives its test."""
    started = []

    def start_training(name, *arguments, steps=3, launcher=(sys.executable,)):
        own = (f"run_name={name}", f"trainer.recipe.total_steps={steps}")
        process = subprocess.Popen(
            [*launcher, str(SCRIPT), *TINY, *own, *arguments],
            cwd=workplace,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(SCRIPT.parent.parent), "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start_training
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture
def finish(start):
    """Run a training to its end: status, stdout and stderr."""

    def finish_training(*arguments, **options):
        process = start(*arguments, **options)
        out, err = process.communicate(timeout=600)
        return process.returncode, out, err

    return finish_training


def product(folder: Path, name: str) -> dict[str, bytes]:
    """What a run learnt, byte for byte."""
    run = folder / "runs" / name
    assert not list(run.rglob(".*")), "left-overs"
    newest = max((run / "checkpoints").iterdir())
    files = [*newest.glob("*.safetensors"), newest / "optimizer.pt", *(run / "export").iterdir()]
    return {str(p.relative_to(run)): p.read_bytes() for p in files}


def await_step(folder: Path, name: str, step: int, timeout_s: float = 120) -> None:
    """Wait until a run has logged a step."""
    path, end = folder / "runs" / name / "metrics.jsonl", time.monotonic() + timeout_s
    while not path.exists() or len(path.read_text().splitlines()) < step:
        assert time.monotonic() < end, f"{name} has not made step {step}"
        time.sleep(0.05)


def told(err: str) -> list[str]:
    """The lines that a command ended with; the launcher adds a traceback of its own."""
    assert 'scripts/train.py", line' not in err, err
    return [line for line in err.splitlines() if line.startswith("error: ")]


def test_fresh_interpreters_end_with_equal_bytes(workplace, finish, start):
    assert finish("first")[0] == 0
    process = start("again")
    time.sleep(random.Random(0).uniform(3, 5))  # while it loads, builds, or makes the first step
    process.kill()
    process.wait()
    assert not list((workplace / "runs").glob("again/checkpoints/step-*"))
    assert finish("again")[0] == 0
    assert product(workplace, "again") == product(workplace, "first")
    assert finish("other", "trainer.recipe.seed=1")[0] == 0
    assert product(workplace, "other") != product(workplace, "first")


def test_two_processes_end_as_one(workplace, finish):
    for name, launcher in (("one", (sys.executable,)), ("two", LAUNCHER)):
        status, _, err = finish(name, *NO_DROPOUT, launcher=launcher)
        assert status == 0, err
    one, two = (
        load_file(workplace / "runs" / name / "checkpoints/step-00000003/model.safetensors")
        for name in ("one", "two")
    )
    for name in one:
        if "running" not in name and "batches" not in name:  # each process's own statistics
            torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=2e-5)


def test_an_interrupted_run_says_how_to_go_on(workplace, start):
    process = start("stopped", steps=4000)
    await_step(workplace, "stopped", 2)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert re.search(r"^stopped at \d+ of 4,000; the same command goes on$", out, re.MULTILINE)


def test_a_folder_in_use_keeps_other_launches_out(workplace, start, finish):
    process = start("shared", steps=4000)
    await_step(workplace, "shared", 1)
    (workplace / "runs/shared/.export.aside-elsewhere-1").mkdir()
    for launcher in ((sys.executable,), LAUNCHER):
        status, _, err = finish("shared", steps=4000, launcher=launcher)
        (line,) = told(err)
        assert f"runs/shared is in use by process {process.pid} on " in line
        assert status == (1 if launcher is LAUNCHER else 2)
    assert process.poll() is None
    process.kill()
    process.wait()
    assert finish("shared", "trainer.allow_changes=[trainer.recipe.total_steps]", steps=1000)


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_process_ends_the_others_by_name(workplace, start, blow):
    name = blow.name.lower()
    launched = start(name, "trainer.hardware.timeout_s=4", steps=100_000, launcher=LAUNCHER)
    await_step(workplace, name, 2)
    ranks = subprocess.run(
        ["pgrep", "-P", str(launched.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    (second,) = (pid for pid in ranks if rank_of(pid) == "1")
    struck = time.monotonic()
    os.kill(int(second), blow)
    _, err = launched.communicate(timeout=90)
    assert launched.returncode == 1
    (line,) = told(err)
    how = "did not answer for 4 s" if blow == signal.SIGSTOP else "ended or lost its connection"
    assert f"process 1 of 2 {how}, so process 0 ends too" in line
    assert time.monotonic() - struck < 60  # the launcher waits 30 s for a process that is stopped


def rank_of(pid: str) -> str:
    pairs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return dict(p.decode().partition("=")[::2] for p in pairs if p).get("RANK", "")


def kill_often(workplace, start, name: str, kills: int, steps: int, seed: int) -> None:
    """Kill a run some steps further each time, start it again, and let the last start end."""
    draw, options = random.Random(seed), ("trainer.cadence.checkpoint_every=2",)
    made = workplace / "runs" / name / "metrics.jsonl"

    def logged() -> int:
        return len(made.read_text().splitlines()) if made.exists() else 0

    for kill in range(kills):
        # Every third is struck while it imports or loads, the others in a step or a checkpoint.
        wanted = logged() + (0 if kill % 3 == 2 else draw.randint(1, steps // kills))
        process = start(name, *options, steps=steps)
        while process.poll() is None and logged() < wanted:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 8) if kill % 3 == 2 else draw.uniform(0, 0.3))
        process.kill()
        process.wait()
    process = start(name, *options, steps=steps)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err


def test_a_run_killed_at_random_times_ends_with_equal_bytes(workplace, start, finish):
    kills = int(os.environ.get("MMFACE_KILLS", "3"))
    steps = 12 * kills
    kill_often(workplace, start, "killed", kills, steps, seed=0)
    assert finish("whole", "trainer.cadence.checkpoint_every=2", steps=steps)[0] == 0
    assert product(workplace, "killed") == product(workplace, "whole")
    lines = (workplace / "runs/killed/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, steps + 1))


def test_mistakes_in_settings_end_with_one_line_and_status_2():
    script = Path(__file__).parent / "mutated_settings.py"
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parent.parent)}
    ended = subprocess.run(
        [sys.executable, str(script), "40", "1"], capture_output=True, text=True, env=environment
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr[-2000:]
