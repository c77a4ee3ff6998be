"""The loop: resumed, accumulated, distributed and broken runs all end where they should."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path

import bitsandbytes
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import nn
from transformers import get_constant_schedule

from mmface.training import Cadence, Recipe, Trainer, TrainingTask, averaging


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """Forget the precision that an earlier test asked accelerate for."""
    AcceleratorState._reset_state(reset_partial_state=True)


class LineSamples:
    """Points of a noisy line, drawn from the sample's own generator."""

    def __len__(self):
        return 12

    def sample(self, item, generator):
        x = torch.randn(4, generator=generator, dtype=torch.float64)
        return {"x": x, "y": x.sum() * item + torch.rand((), generator=generator)}


class LineTask(TrainingTask):
    """A small regression whose weights are easily compared."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.trained = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()
        self.poisoned_calls: set[int] = set()
        self.calls = 0

    def forward(self, batch):
        loss = (self.trained(batch["x"])[:, 0] - batch["y"]).square()
        if self.calls in self.poisoned_calls:
            loss = loss * float("nan")
        self.calls += 1
        return {"loss": loss}

    def export(self, trained, folder):
        folder.mkdir()
        (folder / "done").write_text("yes")


def line_trainer(folder, steps=8, micro=6, cadence=None, task=None, **recipe):
    return Trainer(
        task=task or LineTask(),
        samples=LineSamples(),
        recipe=Recipe(steps, 6, micro, ema_decay=0.9, **recipe),
        optimizer=partial(torch.optim.AdamW, lr=1e-2),
        schedule=get_constant_schedule,
        output_dir=folder,
        cadence=cadence or Cadence(log_every=1, checkpoint_every=0),
    )


def weights(folder: Path, step: int):
    return {
        f"{kind}.{name}": tensor
        for kind in ("model", "ema")
        for name, tensor in load_file(
            folder / "checkpoints" / f"step-{step:08d}" / f"{kind}.safetensors"
        ).items()
    }


def assert_equal(first, second, rtol=0.0):
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=rtol, atol=rtol)


def test_training_reduces_the_loss_and_exports(tmp_path):
    result = line_trainer(tmp_path, steps=60).train()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 61))
    assert sum(line["loss"] for line in lines[-10:]) < sum(line["loss"] for line in lines[:10])
    assert (result / "done").read_text() == "yes"


@pytest.mark.parametrize("stop", [1, 3, 7])
def test_resumed_run_ends_bit_equal(tmp_path, stop):
    line_trainer(tmp_path / "whole").train()

    class Interrupted(LineTask):
        def forward(self, batch):
            if self.calls == stop:
                raise KeyboardInterrupt
            return super().forward(batch)

    cadence = Cadence(log_every=1, checkpoint_every=2)
    with pytest.raises(KeyboardInterrupt):
        line_trainer(tmp_path / "parts", cadence=cadence, task=Interrupted()).train()
    line_trainer(tmp_path / "parts", cadence=cadence).train()
    metrics = (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in metrics] == list(range(1, 9))
    assert_equal(weights(tmp_path / "parts", 8), weights(tmp_path / "whole", 8))


def test_accumulation_equals_a_large_batch(tmp_path):
    line_trainer(tmp_path / "large", micro=6).train()
    line_trainer(tmp_path / "small", micro=2).train()
    assert_equal(weights(tmp_path / "small", 8), weights(tmp_path / "large", 8), rtol=1e-9)


def test_signal_saves_and_stops_and_the_run_goes_on(tmp_path):
    class Signalled(LineTask):
        def forward(self, batch):
            if self.calls == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().forward(batch)

    folder = line_trainer(tmp_path / "parts", task=Signalled()).train()
    assert folder.name == "step-00000004"
    assert not (tmp_path / "parts" / "export").exists()
    line_trainer(tmp_path / "parts").train()
    line_trainer(tmp_path / "whole").train()
    assert_equal(weights(tmp_path / "parts", 8), weights(tmp_path / "whole", 8))


def test_a_step_that_is_not_finite_is_skipped(tmp_path):
    task = LineTask()
    task.poisoned_calls = {2}
    trainer = line_trainer(tmp_path, task=task)
    trainer.train()
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path, 8).values())


def test_too_many_such_steps_stop_the_run_with_the_remedy(tmp_path):
    task = LineTask()
    task.poisoned_calls = set(range(2, 99))
    with pytest.raises(RuntimeError, match="Lower the learning rate"):
        line_trainer(tmp_path, steps=50, task=task, max_skipped_steps=3).train()


def test_checkpoints_are_limited_and_partial_ones_ignored(tmp_path):
    cadence = Cadence(log_every=0, checkpoint_every=2, checkpoint_limit=2)
    (tmp_path / "checkpoints" / "step-00000099.partial").mkdir(parents=True)
    line_trainer(tmp_path, cadence=cadence).train()
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000006", "step-00000008", "step-00000099.partial"]


def test_average_warms_up_and_then_decays():
    update = averaging(0.5)
    averaged, current = [torch.zeros(1)], [torch.ones(1)]
    update(averaged, current, 0)
    assert averaged[0].item() == pytest.approx(0.9)
    averaged = [torch.zeros(1)]
    update(averaged, current, 1000)
    assert averaged[0].item() == pytest.approx(0.5)


TWO_PROCESSES = """
    import sys
    sys.path.insert(0, {tests!r})
    from test_training import LineTask, line_trainer
    from mmface.training import Cadence
    task = LineTask()
    poisoned = {poisoned!r}
    trainer = line_trainer({folder!r}, micro=3, task=task)
    if trainer.accelerator.process_index == 1:
        task.poisoned_calls = poisoned
    assert trainer.accelerator.num_processes == 2
    trainer.train()
"""


def run_two_processes(folder: Path, poisoned: set[int] | None = None):
    """Train with two gloo processes on this machine."""
    script = folder.with_suffix(".py")
    source = textwrap.dedent(TWO_PROCESSES).format(
        tests=str(Path(__file__).parent), folder=str(folder), poisoned=poisoned or set()
    )
    script.write_text(source)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    command += ["--master-addr=127.0.0.1", f"--master-port={port}", str(script)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_two_processes_equal_one(tmp_path):
    run_two_processes(tmp_path / "two")
    line_trainer(tmp_path / "one").train()
    assert_equal(weights(tmp_path / "two", 8), weights(tmp_path / "one", 8), rtol=1e-9)


def test_one_bad_process_makes_both_skip(tmp_path):
    run_two_processes(tmp_path / "two", poisoned={2})
    task = LineTask()
    task.poisoned_calls = {2}
    line_trainer(tmp_path / "one", task=task).train()
    assert_equal(weights(tmp_path / "two", 8), weights(tmp_path / "one", 8), rtol=1e-9)


class WideTask(LineTask):
    """The same in float32 with a layer large enough for 8-bit optimizer states."""

    def __init__(self):
        super().__init__()
        self.trained = nn.Sequential(nn.Linear(4, 2048), nn.Tanh(), nn.Linear(2048, 1))

    def forward(self, batch):
        loss = (self.trained(batch["x"].float())[:, 0].float() - batch["y"].float()).square()
        return {"loss": loss}


def eight_bit_trainer(folder, steps):
    torch.manual_seed(0)
    return Trainer(
        task=WideTask(),
        samples=LineSamples(),
        recipe=Recipe(steps, 6, 6, ema_decay=0.9),
        optimizer=partial(bitsandbytes.optim.AdamW8bit, lr=1e-2),
        schedule=get_constant_schedule,
        output_dir=folder,
        mixed_precision="bf16",
    )


def test_bf16_with_8_bit_adamw_trains_and_resumes_bit_equal(tmp_path):
    trainer = eight_bit_trainer(tmp_path / "whole", 6)
    trainer.train()
    states = [s["state1"].dtype for s in trainer.optimizer.optimizer.state.values()]
    assert torch.uint8 in states
    eight_bit_trainer(tmp_path / "parts", 3).train()
    eight_bit_trainer(tmp_path / "parts", 6).train()
    assert_equal(weights(tmp_path / "parts", 6), weights(tmp_path / "whole", 6))
