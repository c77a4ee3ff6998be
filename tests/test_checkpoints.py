"""Checkpoints: complete or absent, of the right run, and on a disk that can hold them."""

import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from safetensors.torch import save_file
from training_runs import (
    FORK,
    LineTask,
    assert_equal,
    line_trainer,
    moments,
    weights,
)

from mmface.training.checkpoints import check_settings, flattened
from mmface.training.recipe import Cadence

CONFIGS = Path(__file__).parent.parent / "configs"
EVERY_SECOND = Cadence(log_every=1, checkpoint_every=2, checkpoint_limit=2)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.slow
def test_checkpoints_are_limited_and_half_written_ones_cleared(tmp_path):
    half = tmp_path / "checkpoints" / ".step-00000099.aside-elsewhere-1"
    half.mkdir(parents=True)
    line_trainer(tmp_path, cadence=EVERY_SECOND).train()
    assert names_in(tmp_path / "checkpoints") == ["step-00000006", "step-00000008"]
    with pytest.raises(ValueError, match="checkpoint_limit"):
        Cadence(checkpoint_limit=0)


def killed_run(folder: Path, kills: int, steps: int, seed: int = 0) -> None:
    """Start a run again and again, kill -9 each at a random moment, and let the last one end."""
    draw = random.Random(seed)
    calls = FORK.Value("i", 0)

    def run():
        def count(call):
            calls.value += 1

        line_trainer(folder, steps, task=LineTask(count), cadence=Cadence(1, 0, 1, 2)).train()

    for _ in range(kills):
        process = FORK.Process(target=run)
        process.start()
        wanted = calls.value + draw.randint(1, 2 * steps // (kills + 2))
        while calls.value < wanted and process.is_alive():
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.03))
        assert process.is_alive(), "the run ended before it could be killed"
        process.kill()
        process.join()
    process = FORK.Process(target=run)
    process.start()
    process.join(120)
    assert process.exitcode == 0


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_bit_equal(tmp_path):
    steps = 30
    killed_run(tmp_path / "killed", kills=3, steps=steps)
    line_trainer(tmp_path / "whole", steps).train()
    assert_equal(weights(tmp_path / "killed", steps), weights(tmp_path / "whole", steps))
    assert_equal(moments(tmp_path / "killed", steps), moments(tmp_path / "whole", steps))
    lines = (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, steps + 1))
    assert names_in(tmp_path / "killed" / "checkpoints") == ["step-00000029", "step-00000030"]


@pytest.mark.slow
def test_resume_false_begins_but_never_over_a_run(tmp_path):
    (tmp_path / "config").mkdir()  # what the script's own framework writes is no run
    line_trainer(tmp_path, steps=2, resume=False).train()
    with pytest.raises(ValueError, match=r"trainer\.resume=auto"):
        line_trainer(tmp_path, steps=4, resume=False)
    with pytest.raises(ValueError, match="got true"):
        line_trainer(tmp_path, steps=4, resume=True)


@pytest.mark.slow
def test_resume_from_a_path_branches_off(tmp_path):
    line_trainer(tmp_path / "whole", cadence=EVERY_SECOND).train()
    sixth = tmp_path / "whole" / "checkpoints" / "step-00000006"
    line_trainer(tmp_path / "branch", resume=sixth).train()
    assert_equal(weights(tmp_path / "branch", 8), weights(tmp_path / "whole", 8))
    with pytest.raises(ValueError, match="would be mixed"):
        line_trainer(tmp_path / "whole", resume=str(sixth))
    with pytest.raises(FileNotFoundError, match="is no checkpoint"):
        line_trainer(tmp_path / "branch", resume=tmp_path)


@pytest.mark.slow
def test_changed_settings_are_shown_and_must_be_allowed_by_name(tmp_path, capsys):
    def settings(lr, workers=0):
        return {"optimizer": {"lr": lr}, "hardware": {"num_workers": workers}, "trackers": []}

    line_trainer(tmp_path, steps=2, settings=settings(1e-2)).train()
    line_trainer(tmp_path, steps=2, settings=settings(1e-2, workers=3))
    with pytest.raises(ValueError, match=r"optimizer.lr: 0.01 -> 0.02") as error:
        line_trainer(tmp_path, steps=4, settings=settings(2e-2))
    assert "trainer.allow_changes=[optimizer.lr]" in str(error.value)
    trainer = line_trainer(tmp_path, steps=4, settings=settings(2e-2), allow_changes=["optimizer"])
    assert "optimizer.lr: 0.01 -> 0.02" in capsys.readouterr().err
    trainer.train()
    state = json.loads((tmp_path / "checkpoints" / "step-00000004" / "state.json").read_text())
    assert state["settings"]["optimizer.lr"] == 2e-2
    assert state["settings"]["num_items"] == 12
    assert state["versions"]["torch"] == torch.__version__


def test_an_allowed_change_of_the_learning_rate_counts(tmp_path):
    """The optimizer's own numbers are the new run's; only its moments come from the checkpoint."""
    trainer = line_trainer(tmp_path, steps=2)
    trainer.train()
    again = line_trainer(tmp_path, steps=4)
    for group in trainer.optimizer.param_groups:
        group["lr"] = 123.0
    assert [group["lr"] for group in again.optimizer.param_groups] == [1e-2, 1e-2]
    assert [group["weight_decay"] for group in again.optimizer.param_groups] == [1e-2, 0.0]


def test_settings_are_compared_by_their_dotted_names(tmp_path):
    assert flattened({"a": {"b": 1, "c": {"d": [2]}}, "e": None}) == {
        "a.b": 1,
        "a.c.d": [2],
        "e": None,
    }
    assert check_settings({"a": 1, "b": (1,)}, {"a": 2, "b": [1]}, ["a"], tmp_path) == [
        "trainer.a: 1 -> 2"
    ]
    with pytest.raises(ValueError, match=r"new: \(not set\) -> 3"):
        check_settings({"a": 1}, {"a": 1, "new": 3}, ["a"], tmp_path)
    assert check_settings({}, {"a": 1}, [], tmp_path) == []  # saved without settings
    assert check_settings({"cadence.log_every": 1}, {"cadence.log_every": 2}, [], tmp_path) == []


def test_a_class_that_moved_to_another_file_is_no_change(tmp_path):
    before, now = "mmface.transformer.MMFaceDiT", "mmface.model.transformer.MMFaceDiT"
    assert check_settings({"m._target_": before}, {"m._target_": now}, [], tmp_path) == []
    with pytest.raises(ValueError, match="Other"):
        check_settings({"m._target_": before}, {"m._target_": "mmface.Other"}, [], tmp_path)


@pytest.mark.parametrize("name", ["rectified_flow", "min_snr_diffusion"])
def test_settings_from_before_objectives_were_configured_are_the_defaults(tmp_path, name):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        objective: Any = OmegaConf.to_container(compose(f"objective/{name}").objective)
    model = {"transformer": {"objective": name}}
    saved, wanted = flattened({"task": model}), {"task": model | {"objective": objective}}
    assert check_settings(saved, flattened(wanted), [], tmp_path) == []
    objective["time"]["_target_"] = "mmface.objectives.times.LogitNormalTime"
    with pytest.raises(ValueError, match=r"UniformTime -> .*LogitNormalTime"):
        check_settings(saved, flattened(wanted), [], tmp_path)


@pytest.mark.slow
def test_a_checkpoint_of_moments_without_names_is_read(tmp_path):
    """The layout of runs begun before decay groups: one group, parameters by their number."""
    line_trainer(tmp_path / "whole").train()
    line_trainer(tmp_path / "parts", steps=4).train()
    folder = tmp_path / "parts" / "checkpoints" / "step-00000004"
    saved = torch.load(folder / "optimizer.pt", weights_only=True)["optimizer"]["state"]
    names = [name for name, _ in LineTask().trained.named_parameters()]
    state = {number: saved[name] for number, name in enumerate(names)}
    groups = [{"params": [*range(4)], "lr": 1.0}]
    torch.save(
        {"optimizer": {"state": state, "param_groups": groups}, "schedule": {}},
        folder / "optimizer.pt",
    )
    (folder / "state.json").write_text(json.dumps({"step": 4, "num_averaged": 4}))
    line_trainer(tmp_path / "parts").train()
    assert_equal(weights(tmp_path / "parts", 8), weights(tmp_path / "whole", 8))


def test_a_full_disk_is_seen_before_the_first_step(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 2000, 2000))
    task = LineTask()
    trainer = line_trainer(tmp_path, task=task)
    # 49 weights of 8 bytes, raw and averaged, and two moments: 1,568 bytes a checkpoint.
    with pytest.raises(OSError, match=r"has [\d,]+ MB free.* 2 \+ 1 checkpoints"):
        trainer.train()
    assert task.calls == 0
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, 3 * 1568 + 392))
    trainer.train()


def test_a_read_only_folder_is_seen_before_the_first_step():
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o555)
    was_root = os.geteuid() == 0
    task = LineTask()
    trainer = line_trainer(folder / "run", task=task)
    if was_root:
        os.seteuid(65534)  # root may write anywhere
    try:
        with pytest.raises(OSError, match="cannot be written"):
            trainer.train()
    finally:
        if was_root:
            os.seteuid(0)
        folder.chmod(0o755)
        shutil.rmtree(folder)
    assert task.calls == 0


@pytest.mark.slow
def test_a_disk_that_fills_up_leaves_the_last_checkpoint_and_says_so(tmp_path, monkeypatch):
    real = save_file

    def fail_at_step_4(tensors, path):
        if "step-00000004" in str(path) and "ema" in str(path):
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr("mmface.training.checkpoints.save_file", fail_at_step_4)
    with pytest.raises(OSError, match=r"step 4 .*No space left.*goes on from step-00000002"):
        line_trainer(tmp_path, cadence=EVERY_SECOND).train()
    assert names_in(tmp_path / "checkpoints") == ["step-00000002"]
    monkeypatch.undo()
    line_trainer(tmp_path / "whole").train()
    line_trainer(tmp_path, cadence=EVERY_SECOND).train()
    assert_equal(weights(tmp_path, 8), weights(tmp_path / "whole", 8))


def test_an_export_that_would_fail_fails_before_the_first_step(tmp_path):
    class Unexportable(LineTask):
        def check_export(self, trained):
            raise TypeError("not JSON serializable")

    task = Unexportable()
    with pytest.raises(TypeError, match="JSON"):
        line_trainer(tmp_path, task=task).train()
    assert task.calls == 0


def test_signals_are_the_callers_again_after_the_run(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    line_trainer(tmp_path, steps=1).train()
    assert signal.getsignal(signal.SIGTERM) is before
