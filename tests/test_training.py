"""The loop: resumed, accumulated, distributed and broken runs all end where they should."""

import json
import os
import signal
from functools import partial

import bitsandbytes
import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn
from training_runs import (
    LineSamples,
    LineTask,
    assert_equal,
    face_task,
    face_trainer,
    in_two_processes,
    line_trainer,
    moments,
    weights,
)
from transformers import get_constant_schedule

from mmface.model.transformer import MMFaceDiT
from mmface.sampling.pipeline import MMFacePipeline
from mmface.training.recipe import Cadence, Hardware, Recipe
from mmface.training.trainer import Trainer

# 50 steps of rectified flow at the smallest size, in float32 on one thread; every fifth loss. A
# change that should not alter numbers must leave it as it is.
GOLDEN_LOSSES = [
    2.34282,
    2.17629,
    2.21635,
    2.00495,
    1.96274,
    2.08118,
    2.03492,
    1.85316,
    1.86842,
    1.90683,
]


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """Forget the precision that an earlier test asked accelerate for."""
    AcceleratorState._reset_state(reset_partial_state=True)


def metrics_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_training_reduces_the_loss_and_exports(tmp_path):
    result = line_trainer(tmp_path, steps=60).train()
    lines = metrics_of(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, 61))
    assert sum(line["loss"] for line in lines[-10:]) < sum(line["loss"] for line in lines[:10])
    assert (result / "done").read_text() == "yes"


@pytest.mark.slow
def test_the_loss_curve_is_the_golden_one(tmp_path, tiny_pipeline_folder):
    face_trainer(tmp_path, face_task(tiny_pipeline_folder), steps=50).train()
    losses = [line["loss"] for line in metrics_of(tmp_path)]
    assert losses[4::5] == pytest.approx(GOLDEN_LOSSES, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [1, 3, 7])
def test_resumed_run_ends_bit_equal(tmp_path, stop):
    line_trainer(tmp_path / "whole").train()

    def interrupt(call):
        if call == stop:
            raise KeyboardInterrupt

    cadence = Cadence(log_every=1, checkpoint_every=2)
    with pytest.raises(KeyboardInterrupt):
        line_trainer(tmp_path / "parts", cadence=cadence, task=LineTask(interrupt)).train()
    line_trainer(tmp_path / "parts", cadence=cadence).train()
    assert_equal(weights(tmp_path / "parts", 8), weights(tmp_path / "whole", 8))
    assert_equal(moments(tmp_path / "parts", 8), moments(tmp_path / "whole", 8))


@pytest.mark.slow
def test_a_resumed_run_logs_the_same_means(tmp_path):
    cadence = Cadence(log_every=5, checkpoint_every=3)  # checkpoints fall between log lines
    line_trainer(tmp_path / "whole", steps=10, cadence=cadence).train()
    line_trainer(tmp_path / "parts", steps=7, cadence=cadence).train()
    line_trainer(tmp_path / "parts", steps=10, cadence=cadence).train()
    for whole, parts in zip(*(metrics_of(tmp_path / n) for n in ("whole", "parts")), strict=True):
        for name in ("step", "loss", "loss/left", "loss/right", "gradient_norm"):
            assert whole[name] == parts[name], name


@pytest.mark.slow
def test_accumulation_equals_a_large_batch(tmp_path):
    line_trainer(tmp_path / "large", micro=6).train()
    line_trainer(tmp_path / "small", micro=2).train()
    assert_equal(weights(tmp_path / "small", 8), weights(tmp_path / "large", 8), rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signal_saves_and_stops_and_the_run_goes_on(tmp_path, number):
    def send(call):
        if call == 3:
            os.kill(os.getpid(), number)

    trainer = line_trainer(tmp_path / "parts", task=LineTask(send))
    assert trainer.train().name == "step-00000004"
    assert not trainer.finished
    assert not (tmp_path / "parts" / "export").exists()
    trainer = line_trainer(tmp_path / "parts")
    trainer.train()
    assert trainer.finished
    line_trainer(tmp_path / "whole").train()
    assert_equal(weights(tmp_path / "parts", 8), weights(tmp_path / "whole", 8))


def test_a_second_interrupt_ends_the_run_at_once(tmp_path):
    def send_twice(call):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        line_trainer(tmp_path, task=LineTask(send_twice)).train()


def test_a_step_that_is_not_finite_is_skipped_and_counted(tmp_path):
    task = LineTask()
    task.poisoned_calls = {2}
    line_trainer(tmp_path, task=task).train()
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path, 8).values())
    lines = metrics_of(tmp_path)
    assert "loss" not in lines[2]
    assert [line["skipped_steps"] for line in lines] == [0, 0, 1, 1, 1, 1, 1, 1]
    assert all(torch.isfinite(torch.tensor(list(line.values()))).all() for line in lines)


def test_too_many_such_steps_stop_the_run_with_the_remedy(tmp_path):
    task = LineTask()
    task.poisoned_calls = set(range(3, 99))
    cadence = Cadence(checkpoint_every=2)
    with pytest.raises(RuntimeError, match="Lower the learning rate"):
        line_trainer(
            tmp_path, steps=50, task=task, cadence=cadence, recipe={"max_skipped_steps": 3}
        ).train()
    newest = max(path.name for path in (tmp_path / "checkpoints").iterdir())
    step = int(newest.removeprefix("step-"))
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path, step).values())


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["rectified_flow", "min_snr_diffusion"])
def test_two_processes_with_accumulation_equal_one(tmp_path, tiny_pipeline_folder, objective):
    """Exact arithmetic would give the same weights; float64 leaves almost no rounding."""

    def train(folder, micro):
        task = face_task(tiny_pipeline_folder, objective, torch.float64)
        face_trainer(folder, task, micro=micro).train()

    in_two_processes(lambda: train(tmp_path / "two", 1))  # 2 processes x 2 micro-batches of 1
    train(tmp_path / "one", 4)
    two, one = weights(tmp_path / "two", 20), weights(tmp_path / "one", 20)
    assert_equal(two, one, rtol=1e-9)
    start = face_task(tiny_pipeline_folder, objective, torch.float64).trained.state_dict()
    assert (one["model.final_linear.weight"] - start["final_linear.weight"]).abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["rectified_flow", "min_snr_diffusion"])
def test_two_processes_equal_one_in_float32(tmp_path, tiny_pipeline_folder, objective):
    def train(folder, micro):
        face_trainer(folder, face_task(tiny_pipeline_folder, objective), micro=micro).train()

    in_two_processes(lambda: train(tmp_path / "two", 1))
    train(tmp_path / "one", 4)
    assert_equal(weights(tmp_path / "two", 20), weights(tmp_path / "one", 20), rtol=1e-4, atol=2e-5)
    for two, one in zip(*(metrics_of(tmp_path / n) for n in ("two", "one")), strict=True):
        for name in one.keys() & {"loss", "loss/mask", "loss/sketch", "loss/time_3"}:
            assert two[name] == pytest.approx(one[name], rel=1e-4), name


@pytest.mark.slow
def test_one_bad_process_makes_both_skip(tmp_path):
    def train():
        task = LineTask()
        trainer = line_trainer(tmp_path / "two", micro=3, task=task)
        task.poisoned_calls = {2} if trainer.accelerator.process_index == 1 else set()
        trainer.train()

    in_two_processes(train)
    task = LineTask()
    task.poisoned_calls = {2}
    line_trainer(tmp_path / "one", task=task).train()
    assert_equal(weights(tmp_path / "two", 8), weights(tmp_path / "one", 8), rtol=1e-9)
    assert metrics_of(tmp_path / "two")[-1]["skipped_steps"] == 1


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_at_the_same_step(tmp_path):
    def train():
        def send(call):
            if call == 3 and os.environ["RANK"] == "1":
                os.kill(os.getpid(), signal.SIGTERM)

        trainer = line_trainer(tmp_path, micro=3, task=LineTask(send))
        assert trainer.train().name == "step-00000004"

    in_two_processes(train)


FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "Block,FinalBlock",
}


@pytest.mark.slow
def test_two_sharded_processes_equal_one_and_resume(tmp_path, tiny_pipeline_folder):
    def train(folder, micro, steps):
        cadence = Cadence(log_every=1, preview_every=4, checkpoint_every=0)
        task = face_task(tiny_pipeline_folder)
        face_trainer(folder, task, steps=steps, micro=micro, cadence=cadence).train()

    in_two_processes(lambda: train(tmp_path / "two", 1, 4), 120, **FSDP)
    in_two_processes(lambda: train(tmp_path / "two", 1, 8), 120, **FSDP)
    train(tmp_path / "one", 4, 8)
    assert_equal(weights(tmp_path / "two", 8), weights(tmp_path / "one", 8), rtol=1e-4, atol=2e-5)
    assert len(list((tmp_path / "two" / "previews").iterdir())) == 3
    MMFacePipeline.from_pretrained(tmp_path / "two" / "export")


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
        hardware=Hardware(mixed_precision="bf16"),
    )


@pytest.mark.slow
def test_bf16_with_8_bit_adamw_trains_and_resumes_bit_equal(tmp_path):
    trainer = eight_bit_trainer(tmp_path / "whole", 6)
    trainer.train()
    states = [s["state1"].dtype for s in trainer.optimizer.optimizer.state.values()]
    assert torch.uint8 in states
    assert {p.dtype for p in trainer.task.trained.parameters()} == {torch.float32}
    eight_bit_trainer(tmp_path / "parts", 3).train()
    eight_bit_trainer(tmp_path / "parts", 6).train()
    assert_equal(weights(tmp_path / "parts", 6), weights(tmp_path / "whole", 6))


def test_weights_of_less_than_32_bits_are_refused(tmp_path):
    task = LineTask()
    task.trained.bfloat16()
    with pytest.raises(ValueError, match="load them as float32"):
        line_trainer(tmp_path, task=task)


def test_fp16_and_unknown_trackers_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no or bf16"):
        Hardware(mixed_precision="fp16")
    with pytest.raises(ValueError, match="pip install aim_typo"):
        line_trainer(tmp_path, trackers=["aim_typo"])


@pytest.mark.slow
def test_metrics_say_what_happened_where(tmp_path, tiny_pipeline_folder):
    cadence = Cadence(log_every=10, gradients_every=5)
    hardware = Hardware(peak_flops=1e12)
    task = face_task(tiny_pipeline_folder)
    face_trainer(tmp_path, task, steps=10, cadence=cadence, hardware=hardware).train()
    (line,) = metrics_of(tmp_path)
    for kind in ("loss", "gradient_norm"):
        parts = {name.split("/")[1] for name in line if name.startswith(f"{kind}/")}
        assert {"mask", "sketch"} < parts
        assert len(parts & {f"time_{i}" for i in range(10)}) >= 3
    assert min(line["loss/mask"], line["loss/sketch"]) <= line["loss"]
    assert max(line["loss/mask"], line["loss/sketch"]) >= line["loss"]
    assert 0 < line["mfu"] < 1
    assert 0 <= line["data_wait_share"] < 1
    assert line["peak_memory_gb"] > 0.05
    assert line["samples_per_second"] > 0


@pytest.mark.slow
def test_looking_on_does_not_change_the_run(tmp_path, tiny_pipeline_folder):
    plain = Cadence(log_every=0, checkpoint_every=0)
    looked = Cadence(log_every=1, preview_every=2, checkpoint_every=1, gradients_every=1)
    for name, cadence in (("plain", plain), ("looked", looked)):
        task = face_task(tiny_pipeline_folder)
        face_trainer(tmp_path / name, task, steps=4, cadence=cadence).train()
    assert_equal(weights(tmp_path / "looked", 4), weights(tmp_path / "plain", 4))
    names = sorted(path.name for path in (tmp_path / "looked" / "previews").iterdir())
    assert names == ["step-00000000.png", "step-00000002.png", "step-00000004.png"]
    assert (tmp_path / "looked" / "loss.png").exists()


@pytest.mark.slow
def test_the_export_holds_the_average_and_says_what_made_it(tmp_path, tiny_pipeline_folder):
    stores = {"near": {"store": "runs/latents"}, "far": {"store": "runs/more_latents"}}
    settings = {"task": {"vae": "flux"}, "samples": {"streams": stores}}
    task = face_task(tiny_pipeline_folder)
    folder = face_trainer(tmp_path, task, steps=3, settings=settings).train()
    exported = MMFacePipeline.from_pretrained(folder).transformer.state_dict()
    saved = weights(tmp_path, 3)
    for name, tensor in exported.items():
        assert torch.equal(tensor, saved[f"ema.{name}"]), name
    assert not torch.equal(exported["final_linear.bias"], saved["model.final_linear.bias"])
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: diffusers\n")
    for fact in (
        "rectified flow",
        "3 steps of 4 samples",
        "runs/latents",
        "runs/more_latents",
        "velocity: `SquaredError",
        "`flux`",
        "torch 2",
    ):
        assert fact in card, fact


def test_a_config_that_cannot_be_saved_is_seen_before_the_first_step(
    tmp_path, tiny_pipeline_folder
):
    task = face_task(tiny_pipeline_folder)
    task.trained.register_to_config(text_rope={"sequential"})
    trainer = face_trainer(tmp_path, task)
    with pytest.raises(TypeError, match="not JSON serializable"):
        trainer.train()
    assert trainer.step == 0


@pytest.mark.slow
def test_only_a_new_run_reads_its_first_weights(tmp_path, tiny_pipeline_folder):
    first = tiny_pipeline_folder / "transformer"
    source = MMFaceDiT.from_pretrained(first)
    task = face_task(tiny_pipeline_folder, init_from=first)
    trainer = face_trainer(tmp_path, task, steps=1)
    for name, tensor in trainer.task.trained.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[name]), name
    trainer.train()
    moved = face_task(tiny_pipeline_folder, init_from=tmp_path / "gone")
    face_trainer(tmp_path, moved, steps=2).train()
    with pytest.raises(FileNotFoundError, match="init_from"):
        face_trainer(tmp_path / "new", moved)


def test_released_weights_and_misfits_to_start_from(tmp_path, tiny_pipeline_folder):
    from safetensors.torch import save_file

    source = MMFaceDiT.from_pretrained(tiny_pipeline_folder / "transformer")
    save_file(source.to_released(), tmp_path / "released.safetensors")
    task = face_task(tiny_pipeline_folder, init_from=tmp_path / "released.safetensors")
    task.initialize()
    for name, tensor in task.trained.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[name]), name
    assert task.trained.config.text_rope == "sequential"
    for sizes, complaint in (({"depth": 3}, "do not fit"), ({"num_heads": 4}, "4 heads")):
        other = {"hidden_size": 16, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0, "text_dim": 12}
        MMFaceDiT(**other | sizes).save_pretrained(tmp_path / complaint)
        task = face_task(tiny_pipeline_folder, init_from=tmp_path / complaint)
        with pytest.raises(ValueError, match=complaint):
            task.initialize()
