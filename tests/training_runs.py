"""Small trainings that tests start in this process, or in forked ones as a launcher would."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from conftest import TEXT_DIM
from safetensors.torch import load_file
from torch import nn
from transformers import get_constant_schedule

from mmface.data.keyed import keyed_generator
from mmface.model.transformer import MMFaceDiT
from mmface.training.face_diffusion import FaceDiffusion
from mmface.training.recipe import Cadence, Recipe
from mmface.training.task import TrainingTask
from mmface.training.trainer import Trainer

FORK = multiprocessing.get_context("fork")


class LineSamples:
    """Points of a noisy line, drawn from the sample's own generator."""

    def __len__(self):
        return 12

    def sample(self, item, generator):
        x = torch.randn(4, generator=generator, dtype=torch.float64)
        return {"x": x, "y": x.sum() * item + torch.rand((), generator=generator)}


class LineTask(TrainingTask):
    """A small regression whose weights are easily compared."""

    def __init__(self, before_call: Callable[[int], None] | None = None):
        super().__init__()
        torch.manual_seed(0)
        self.trained = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()
        self.poisoned_calls: set[int] = set()
        self.calls = 0
        self.before_call = before_call

    def forward(self, batch):
        if self.before_call is not None:
            self.before_call(self.calls)
        loss = (self.trained(batch["x"])[:, 0] - batch["y"]).square()
        if self.calls in self.poisoned_calls:
            loss = loss * float("nan")
        self.calls += 1
        return {"loss": loss}

    def subsets(self, batch):
        return {"right": batch["y"] > 0, "left": batch["y"] <= 0}

    def export(self, trained, folder):
        folder.mkdir()
        (folder / "done").write_text("yes")


def line_trainer(
    folder, steps=8, micro=6, task=None, cadence=None, recipe=None, samples=None, **arguments
):
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    return Trainer(
        task=task or LineTask(),
        samples=samples or LineSamples(),
        recipe=Recipe(
            **{"total_steps": steps, "global_batch_size": 6, "micro_batch_size": micro}
            | {"ema_decay": 0.9, **(recipe or {})}
        ),
        optimizer=partial(torch.optim.AdamW, lr=1e-2),
        schedule=get_constant_schedule,
        output_dir=folder,
        cadence=cadence or Cadence(log_every=1, checkpoint_every=0),
        **arguments,
    )


class FaceSamples:
    """Latents, conditions and captions as a store gives them, drawn from the item's number."""

    def __len__(self):
        return 10

    def sample(self, item, generator):
        face = keyed_generator(17, item)
        return {
            "latents": torch.randn(16, 4, 4, generator=face),
            "condition": torch.randn(16, 4, 4, generator=face),
            "noise": torch.randn(16, 4, 4, generator=generator),
            "uniform": torch.rand((), generator=generator),
            "modality": torch.randint(2, (), generator=generator),
            "caption": ["a man", "a woman with red hair", ""][item % 3],
        }


def as_double(module, inputs):
    return tuple(x.double() if x.is_floating_point() else x for x in inputs)


def face_task(
    folder,
    objective="rectified_flow",
    dtype=torch.float32,
    objective_to_train=None,
    num_modalities=2,
    **arguments,
):
    """The paper's task at a small size; its frozen parts come from a saved tiny pipeline."""
    torch.manual_seed(0)
    transformer = MMFaceDiT(
        hidden_size=16,
        depth=2,
        num_heads=2,
        mlp_ratio=2.0,
        text_dim=TEXT_DIM,
        objective=objective,
        num_modalities=num_modalities,
    )
    for parameter in transformer.parameters():
        nn.init.normal_(parameter, std=0.1)
    if dtype == torch.float64:
        transformer = transformer.double()
        transformer.register_forward_pre_hook(as_double)
    arguments |= {"vae": folder / "vae", "text": folder, "image_size": 32}
    return FaceDiffusion(transformer, objective=objective_to_train, **arguments)


def face_trainer(folder, task, steps=20, micro=2, cadence=None, samples=None, **arguments):
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    return Trainer(
        task=task,
        samples=samples or FaceSamples(),
        recipe=Recipe(steps, 4, micro, ema_decay=0.9, gradient_clip=1.0),
        optimizer=partial(torch.optim.AdamW, lr=1e-3),
        schedule=get_constant_schedule,
        output_dir=folder,
        cadence=cadence or Cadence(log_every=1, checkpoint_every=0),
        **arguments,
    )


def weights(folder: Path, step: int):
    """Raw and averaged weights of a checkpoint, by `model.` or `ema.` and their name."""
    checkpoint = folder / "checkpoints" / f"step-{step:08d}"
    return {
        f"{kind}.{name}": tensor
        for kind in ("model", "ema")
        for name, tensor in load_file(checkpoint / f"{kind}.safetensors").items()
    }


def moments(folder: Path, step: int):
    """Tensors of the optimizer of a checkpoint, by the parameter's name and their own."""
    path = folder / "checkpoints" / f"step-{step:08d}" / "optimizer.pt"
    state = torch.load(path, weights_only=True)["optimizer"]["state"]
    return {f"{name}.{key}": t for name, each in state.items() for key, t in each.items()}


def assert_equal(first, second, rtol=0.0, atol=None):
    assert first.keys() == second.keys()
    for name in first:
        atol = rtol if atol is None else atol
        torch.testing.assert_close(first[name], second[name], rtol=rtol, atol=atol, msg=name)


def _as_rank(rank: int, size: int, port: int, environment: dict, work: Callable[[], object]):
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "OMP_NUM_THREADS": "1",  # as launchers set it
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        **environment,
    }
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    work()


def in_two_processes(work: Callable[[], object], timeout_s: float = 120, **environment: str):
    """Run the same in two gloo processes; a hang is a failure, and nothing is left behind."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [
        FORK.Process(target=_as_rank, args=(rank, 2, port, environment, work)) for rank in (0, 1)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout_s)
    codes = [process.exitcode for process in ranks]
    for process in ranks:
        process.kill()
    assert codes == [0, 0], f"exit codes of the two processes: {codes}"
