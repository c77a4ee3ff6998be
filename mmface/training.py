"""The training loop: one process or many, stopped and resumed without a trace.

Every random draw and the order of the data are keyed on (seed, step, place in the global batch);
see `data/keyed.py`. A checkpoint is complete or absent. Re-running a command goes on from the
newest checkpoint.
"""

import contextlib
import copy
import json
import shutil
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader
from tqdm import tqdm

from mmface.data.keyed import GlobalBatchSampler, KeyedDataset, Samples


class TrainingTask(nn.Module, ABC):
    """A module under training: `forward(batch)` gives named per-sample losses.

    The trainer wraps and calls the task itself.

    Attributes:
        trained: the nn.Module whose weights are trained, averaged and exported. Everything else
            in the task is frozen.
    """

    trained: Any

    @abstractmethod
    def forward(self, batch: Mapping[str, Any]) -> dict[str, Float[Tensor, " batch"]]:
        """Per-sample losses, float32 and unreduced; the one named `loss` is minimised."""

    def preview(self, trained: Any, folder: Path, step: int) -> None:
        """Write pictures of what given weights do; the default task has nothing to show."""

    @abstractmethod
    def export(self, trained: Any, folder: Path) -> None:
        """Write the finished product with the given weights into a folder."""


def cast_copy(module: Any, dtype: torch.dtype) -> Any:
    """A copy of an nn.Module in another dtype; the run's own weights keep their precision."""
    # torch's own `to`, because diffusers' warns of modules to keep in float32 even without any.
    return nn.Module.to(copy.deepcopy(module), dtype)


@dataclass(frozen=True)
class Recipe:
    """The numbers of a run.

    Attributes:
        total_steps: optimizer steps.
        global_batch_size: samples in one optimizer step, over all processes and micro-batches.
        micro_batch_size: samples in one forward pass of one process.
        gradient_clip: largest global gradient norm.
        ema_decay: decay of the averaged weights, in [0, 1); early steps use (1 + n) / (10 + n)
            where that is smaller.
        seed: seed of every draw.
        max_skipped_steps: non-finite steps in a row after which the run stops.
    """

    total_steps: int
    global_batch_size: int
    micro_batch_size: int
    gradient_clip: float = 0.5
    ema_decay: float = 0.9999
    seed: int = 0
    max_skipped_steps: int = 20


@dataclass(frozen=True)
class Cadence:
    """How often the loop does what, in optimizer steps; 0 means never.

    Attributes:
        log_every: write losses to `metrics.jsonl` and the trackers.
        preview_every: draw preview pictures with the averaged weights.
        checkpoint_every: save a checkpoint (one is saved at the end and on a signal in any case).
        checkpoint_limit: how many checkpoints are kept.
    """

    log_every: int = 20
    preview_every: int = 0
    checkpoint_every: int = 500
    checkpoint_limit: int = 2


Tensors = tuple[Tensor, ...] | list[Tensor]


def averaging(decay: float) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    """An update rule for `AveragedModel`: exponential decay with a warm-up."""

    @torch.no_grad()
    def update(averaged: Tensors, current: Tensors, num_averaged: Tensor | int) -> None:
        n = int(num_averaged)
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))

    return update


class Trainer:
    """Trains a task on samples with accelerate."""

    def __init__(
        self,
        task: TrainingTask,
        samples: Samples,
        recipe: Recipe,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        schedule: Callable[[Optimizer], LRScheduler],
        output_dir: str | Path,
        cadence: Cadence = Cadence(),
        mixed_precision: str = "no",
        num_workers: int = 0,
        trackers: Iterable[str] = (),
    ) -> None:
        """Receive built objects; `train` does the work.

        Args:
            task: what is trained.
            samples: what it is trained on.
            recipe: the run's numbers.
            optimizer: makes the optimizer from the trained parameters.
            schedule: makes the learning-rate schedule from the optimizer; stepped once a step.
            output_dir: folder of checkpoints, metrics and previews; `export/` holds the product.
            cadence: how often to log, show and save.
            mixed_precision: accelerate's `no`, `bf16` or `fp16`.
            num_workers: loader processes.
            trackers: accelerate trackers, such as `wandb` or `tensorboard`.
        """
        self.recipe = recipe
        self.cadence = cadence
        self.output_dir = Path(output_dir)
        self.samples = samples
        self.num_workers = num_workers
        self.accelerator = Accelerator(
            mixed_precision=mixed_precision,
            log_with=list(trackers) or None,
            project_dir=self.output_dir,
        )
        self.task = task.to(self.accelerator.device)
        self.average = AveragedModel(task.trained, multi_avg_fn=averaging(recipe.ema_decay))
        self.average.requires_grad_(False)
        trained = [p for p in task.trained.parameters() if p.requires_grad]
        self.wrapped, self.optimizer = self.accelerator.prepare(task, optimizer(trained))
        # Not prepared: accelerate would step it once for every process.
        self.schedule = schedule(self.optimizer.optimizer)
        self.step = 0
        self.skipped = 0
        self._stop_requested = False
        self._stopping = False

    def train(self) -> Path:
        """Run to the last step, from the newest checkpoint if there is one.

        Returns:
            The folder of the exported product, or of the checkpoint if a signal stopped the run.

        Raises:
            RuntimeError: after too many non-finite steps in a row.
        """
        self.output_dir.mkdir(parents=True, exist_ok=True)
        self.resume()
        self._forget_metrics_after_this_step()
        self.accelerator.init_trackers("mmface")
        previous = {
            s: signal.signal(s, self._request_stop) for s in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            self._run_steps()
            checkpoint = self.save()
            return checkpoint if self.step < self.recipe.total_steps else self.export()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            self.accelerator.end_training()

    def _run_steps(self) -> None:
        recipe, cadence = self.recipe, self.cadence
        batches = iter(self._loader())
        progress = tqdm(
            initial=self.step,
            total=recipe.total_steps,
            desc=self.output_dir.name,
            unit="step",
            disable=not self.accelerator.is_main_process,
        )
        if self.step == 0:
            self._preview()
        with progress:
            while self.step < recipe.total_steps and not self._stopping:
                started = time.perf_counter()
                metrics = self.train_step(batches)
                self.step += 1
                progress.update()
                if cadence.log_every and self.step % cadence.log_every == 0:
                    values = self._log(metrics, time.perf_counter() - started)
                    progress.set_postfix(loss=f"{values['loss']:.4f}", lr=f"{values['lr']:.1e}")
                if cadence.preview_every and self.step % cadence.preview_every == 0:
                    self._preview()
                if cadence.checkpoint_every and self.step % cadence.checkpoint_every == 0:
                    self.save()

    def train_step(self, batches: Iterator[dict[str, Any]]) -> dict[str, Tensor]:
        """One optimizer step over the micro-batches of this process.

        The norm is taken after the processes have added up their gradients, so that one bad
        process makes every process skip the step.

        Args:
            batches: iterator over this process's micro-batches.

        Returns:
            Mean losses of this process and the gradient norm, as scalars on the device.
        """
        count = self._micro_batches_per_step
        sums: dict[str, Tensor] = {}
        self.wrapped.train()
        for micro in range(count):
            batch = self._to_device(next(batches))
            last = micro == count - 1
            with self.accelerator.no_sync(self.wrapped) if not last else contextlib.nullcontext():
                with self.accelerator.autocast():
                    losses = self.wrapped(batch)
                self.accelerator.backward(losses["loss"].mean() / count)
            for name, values in losses.items():
                sums[name] = sums.get(name, 0) + values.detach().mean() / count
        norm = self.accelerator.clip_grad_norm_(
            self.task.trained.parameters(), self.recipe.gradient_clip
        )
        all_finite, self._stopping = self._agree(torch.isfinite(norm))
        if all_finite:
            self.optimizer.step()
            self.skipped = 0
        else:
            self._skip()
        self.optimizer.zero_grad()
        self.schedule.step()
        self.average.update_parameters(self.task.trained)
        return {**sums, "gradient_norm": norm.detach()}

    def save(self) -> Path:
        """Write a checkpoint of this step, complete or not at all; every process takes part."""
        folder = self.checkpoints / f"step-{self.step:08d}"
        if self.accelerator.is_main_process and not folder.exists():
            partial = folder.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            save_file(_contiguous(self.task.trained), partial / "model.safetensors")
            save_file(_contiguous(self.average.module), partial / "ema.safetensors")
            state = {
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
            }
            torch.save(state, partial / "optimizer.pt")
            progress = {"step": self.step, "num_averaged": int(self.average.n_averaged)}
            (partial / "state.json").write_text(json.dumps(progress))
            partial.rename(folder)
            for old in self._saved()[: -self.cadence.checkpoint_limit]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()
        return folder

    def resume(self) -> None:
        """Load the newest checkpoint of the output folder, if there is one."""
        saved = self._saved()
        if not saved:
            return
        folder = saved[-1]
        self.task.trained.load_state_dict(load_file(folder / "model.safetensors"))
        self.average.module.load_state_dict(load_file(folder / "ema.safetensors"))
        state = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        progress = json.loads((folder / "state.json").read_text())
        self.step = progress["step"]
        self.average.n_averaged.fill_(progress["num_averaged"])
        self.accelerator.print(f"resumed from {folder} at step {self.step}")

    def export(self) -> Path:
        """Write the product with the averaged weights to `export/`, complete or not at all."""
        folder = self.output_dir / "export"
        if self.accelerator.is_main_process:
            partial = folder.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            self.task.export(self.average.module, partial)
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
        self.accelerator.wait_for_everyone()
        return folder

    @property
    def checkpoints(self) -> Path:
        """The folder of the run's checkpoints."""
        return self.output_dir / "checkpoints"

    def _saved(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(p for p in self.checkpoints.glob("step-*") if p.suffix != ".partial")

    @property
    def _micro_batches_per_step(self) -> int:
        processes = self.accelerator.num_processes
        return self.recipe.global_batch_size // (self.recipe.micro_batch_size * processes)

    def _loader(self) -> DataLoader[dict[str, Any]]:
        sampler = GlobalBatchSampler(
            len(self.samples),
            self.recipe.global_batch_size,
            self.recipe.micro_batch_size,
            range(self.step, self.recipe.total_steps),
            self.recipe.seed,
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )
        # Not prepared: the sampler already gives each process its own share.
        return DataLoader(
            KeyedDataset(self.samples, self.recipe.seed),
            batch_sampler=sampler,
            num_workers=self.num_workers,
            pin_memory=self.accelerator.device.type == "cuda",
        )

    def _to_device(self, batch: dict[str, Any]) -> dict[str, Any]:
        device = self.accelerator.device
        return {
            name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for name, value in batch.items()
        }

    def _skip(self) -> None:
        self.skipped += 1
        self.accelerator.print(f"step {self.step}: gradient is not finite, step skipped")
        if self.skipped > self.recipe.max_skipped_steps:
            raise RuntimeError(
                f"{self.skipped} steps in a row had a gradient that is not finite; the last good "
                f"checkpoint is in {self.checkpoints}. Lower the learning rate or the precision's "
                "risk (mixed_precision=no) and start again."
            )

    def _log(self, metrics: dict[str, Tensor], step_seconds: float) -> dict[str, float]:
        names = list(metrics)
        means = self.accelerator.reduce(torch.stack([metrics[n].float() for n in names]), "mean")
        values = dict(zip(names, means.tolist(), strict=True))
        values["lr"] = self.schedule.get_last_lr()[0]
        values["samples_per_second"] = self.recipe.global_batch_size / step_seconds
        self.accelerator.log(values, step=self.step)
        if self.accelerator.is_main_process:
            with (self.output_dir / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"step": self.step, **values}) + "\n")
        return values

    def _forget_metrics_after_this_step(self) -> None:
        """Drop the lines of steps that a killed run made but did not save: they come again."""
        path = self.output_dir / "metrics.jsonl"
        if self.accelerator.is_main_process and path.exists():
            lines = path.read_text().splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("\n")]  # a kill may tear the last
            aside = path.with_suffix(".partial")
            aside.write_text("".join(s for s in whole if json.loads(s)["step"] <= self.step))
            aside.replace(path)

    def _preview(self) -> None:
        if self.cadence.preview_every and self.accelerator.is_main_process:
            folder = self.output_dir / "previews"
            folder.mkdir(parents=True, exist_ok=True)
            self.average.module.eval()
            self.task.preview(self.average.module, folder, self.step)

    def _agree(self, finite: Tensor) -> tuple[bool, bool]:
        """Whether every process has a finite gradient, and whether any was asked to stop."""
        stop = torch.full_like(finite, self._stop_requested)
        votes = self.accelerator.reduce(torch.stack((~finite, stop)).float(), "sum")
        any_bad, any_stop = (votes > 0).tolist()
        return not any_bad, any_stop

    def _request_stop(self, number: int, frame: Any) -> None:
        self._stop_requested = True


def _contiguous(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
