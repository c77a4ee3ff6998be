"""The training loop, on one process or many, with exact resume.

Every random draw is keyed on the recipe's seed: the first weights, if the trainer has the task
made; order and draws of the data, see `data/keyed.py`; dropout. A checkpoint is complete or absent.
Re-running a command goes on from the newest one. SIGTERM, SIGINT and SIGUSR1 save one and end the
run; a second SIGINT ends it at once.
"""

import contextlib
import copy
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from tqdm import tqdm

from mmface.core.command_line import RunError, check_names
from mmface.core.files import locked, sweep, written_aside
from mmface.core.processes import Processes, computes_on_cpu
from mmface.core.sources import allow_tf32
from mmface.data.keyed import Samples, keyed_generator
from mmface.data.mixed import keyed_loader
from mmface.training import checkpoints
from mmface.training.checkpoints import gather_average, gather_moments, gather_weights, restore
from mmface.training.metering import (
    LossMeter,
    MetricsFile,
    Throughput,
    gradient_norms,
    installed_trackers,
    means,
    peak_memory_gb,
    save_loss_curve,
)
from mmface.training.optimization import (
    ExponentialAverage,
    apply_rates,
    check_master_weights,
    num_bytes,
    optimizer_bytes,
    parameter_groups,
)
from mmface.training.recipe import Cadence, Hardware, Recipe, check_numbers, flattened
from mmface.training.task import RunFacts, TrainingTask

EVERY_20_STEPS = Cadence()
PLAIN_HARDWARE = Hardware()


class Trainer:
    """Trains a task on samples with accelerate."""

    def __init__(
        self,
        task: TrainingTask | Callable[[], TrainingTask],
        samples: Samples,
        recipe: Recipe,
        optimizer: Callable[[Iterable[Any]], Optimizer],
        schedule: Callable[[Optimizer], LRScheduler],
        output_dir: str | Path,
        cadence: Cadence = EVERY_20_STEPS,
        hardware: Hardware = PLAIN_HARDWARE,
        trackers: Sequence[str] = (),
        resume: bool | str | Path = "auto",
        allow_changes: Sequence[str] = (),
        settings: Mapping[str, Any] | None = None,
        derived: Collection[str] = (),
    ) -> None:
        """Receive built objects; `train` does the work.

        Args:
            task: what is trained, or what makes it: then the seed decides the first weights, too.
            samples: what it is trained on.
            recipe: the run's numbers.
            optimizer: makes the optimizer from parameter groups.
            schedule: makes the learning-rate schedule from the optimizer; stepped once a step.
            output_dir: folder of checkpoints, metrics and previews; `export/` holds the product.
            cadence: how often to log, show and save.
            hardware: precision, loader processes, memory.
            trackers: accelerate trackers, such as `wandb` or `tensorboard`.
            resume: `auto` goes on from the newest checkpoint of `output_dir`, if there is one;
                False begins, and refuses a folder that holds a run; a path goes on from that one.
            allow_changes: settings, by dotted name, that may differ from the checkpoint's.
            settings: this constructor's arguments as plain values, to be saved and compared.
            derived: settings copied from another one, which need no allowance of their own.

        Raises:
            FileNotFoundError: if there is no checkpoint at the path to resume from.
            ValueError: if a tracker is not installed, trained weights are of less than 32 bits, or
                the run does not fit what `output_dir` holds.
        """
        if not isinstance(samples, Samples):
            raise ValueError(f"trainer.samples must be a set of samples, got {samples!r}.")
        check_names("trackers", trackers)
        check_names("allow_changes", allow_changes)
        self.recipe, self.cadence, self.hardware = recipe, cadence, hardware
        self.output_dir = Path(str(output_dir))
        self.samples = samples
        self.step = 0
        self.checkpoints = checkpoints.Checkpoints(self.output_dir, cadence.checkpoint_limit)
        self.metrics = MetricsFile(self.output_dir / "metrics.jsonl")
        self.settings = flattened(settings or {})
        check_numbers(self.settings)
        if self.settings:
            self.settings["num_items"] = len(samples)
        start = self.checkpoints.start(resume)
        wait = timedelta(seconds=hardware.timeout_s)
        self.accelerator = Accelerator(
            cpu=computes_on_cpu(),
            mixed_precision=hardware.mixed_precision,
            log_with=installed_trackers(trackers),
            project_dir=self.output_dir,
            # Gradients lie in the buckets that are sent, not once more beside them.
            kwargs_handlers=[
                DistributedDataParallelKwargs(gradient_as_bucket_view=True),
                InitProcessGroupKwargs(timeout=wait),
            ],
        )
        if hardware.mixed_precision != "no":
            allow_tf32()
        self.processes = Processes(self.accelerator)
        self._loader()  # refuses batches that do not divide
        if start is not None:
            for line in checkpoints.changes_since(start, self.settings, allow_changes, derived):
                self.accelerator.print(line, file=sys.stderr)
        task = self._made(task, is_new=start is None)
        check_master_weights(task.trained)
        # Whole and on the CPU, whatever becomes of the weights under training.
        self.product = copy.deepcopy(task.product) if self.accelerator.is_main_process else None
        self.task = task.to(self.accelerator.device)
        self._leave_frozen_parts_whole()
        groups = parameter_groups(task.trained, task.rates)
        with self._building("optimizer"):
            built = optimizer(groups)
            apply_rates(built)
        self.wrapped, self.optimizer = self.accelerator.prepare(task, built)
        # Not prepared: accelerate would step it once for every process.
        with self._building("schedule"):
            self.schedule = schedule(self.optimizer.optimizer)
        self.average = ExponentialAverage(
            task.product, recipe.ema_decay, recipe.ema_every, hardware.average_on_cpu
        )
        self.skipped_in_a_row, self.skipped = 0, 0
        self.meter, self.throughput = LossMeter(), Throughput()
        self.flops: float | None = None
        self._stopping = False
        if start is not None:
            self._load(start)

    def _made(self, task: TrainingTask | Callable[[], TrainingTask], is_new: bool) -> TrainingTask:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.recipe.seed)
            if not isinstance(task, TrainingTask):
                task = task()
            if not isinstance(task, TrainingTask):
                raise ValueError(f"trainer.task must be a TrainingTask, got {task!r}.")
            task.check_samples(self.samples)
            if is_new:
                task.initialize()
        return task

    @contextlib.contextmanager
    def _building(self, part: str) -> Iterator[None]:
        """Blame what a library raises on the settings that it was given."""
        try:
            yield
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            names = [n for n in self.settings if n.startswith(f"{part}.") and n[-1] != "_"]
            given = ", ".join(f"{name}={self.settings[name]}" for name in names)
            raise ValueError(f"no {part} can be made of {given or 'this'}: {error}") from error

    @property
    def finished(self) -> bool:
        """Whether every step is made; if not after `train`, a signal stopped the run."""
        return self.step >= self.recipe.total_steps

    def train(self) -> Path:
        """Run to the last step; gives the exported product's folder, or a stopped run's checkpoint.

        BlockingIOError if another run trains in the same folder; RunError if another process is
        lost, or too many steps in a row are not finite; OSError if the disk is too small.
        """
        lost = self.processes.naming_lost_processes(self.hardware.timeout_s)
        with lost, contextlib.ExitStack() as held:
            self.processes.on_main(lambda: self._take_output(held))
            return self._train()

    def _take_output(self, held: contextlib.ExitStack) -> None:
        """Keep other runs out of the folder, and see that this one has room in it."""
        held.enter_context(locked(self.output_dir))
        for folder in (self.output_dir, self.checkpoints.folder):
            sweep(folder, alone=True)
        self._check_output()
        self.metrics.forget_after(self.step)

    def _train(self) -> Path:
        plain = {k: v if isinstance(v, int | float) else str(v) for k, v in self.settings.items()}
        self.accelerator.init_trackers("mmface", config=plain)
        with self.processes.catching_signals():
            try:
                self._run_steps()
                checkpoint = self.save()
                self.processes.on_main(self._draw_losses)
                return self.export() if self.finished else checkpoint
            finally:
                self.processes.end()

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
        if self.step == 0 and cadence.preview_every:
            self._preview()
        self.throughput.restart()
        with progress:
            while not self.finished and not self._stopping:
                self.train_step(batches)
                self.step += 1
                self.throughput.add(recipe.global_batch_size)
                progress.update()
                if cadence.log_every and self.step % cadence.log_every == 0:
                    shown = self._log()
                    progress.set_postfix_str(shown)
                if cadence.preview_every and self.step % cadence.preview_every == 0:
                    with self.throughput.paused():
                        self._preview()
                if cadence.checkpoint_every and self.step % cadence.checkpoint_every == 0:
                    with self.throughput.paused():
                        self.save()

    def train_step(self, batches: Iterator[dict[str, Any]]) -> None:
        """One optimizer step over this process's micro-batches.

        The norm is that of the summed gradients. The processes vote: where one has a non-finite
        loss or norm, all skip the step.
        """
        count = self._micro_batches_per_step
        seen = LossMeter()
        self.task.train()
        for micro in range(count):
            with self.throughput.waiting():
                batch = next(batches)
            batch = self._to_device(batch)
            if micro == 0:
                self._look_into(batch)
            self._seed_dropout(micro)
            last = micro == count - 1
            with self.accelerator.no_sync(self.wrapped) if not last else contextlib.nullcontext():
                with self.accelerator.autocast():
                    losses = self.wrapped(batch)
                self.accelerator.backward(losses["loss"].mean() / count)
            for name, values in losses.items():
                seen.add(name, values)
            for name, part in self.task.subsets(batch).items():
                seen.add(f"loss/{name}", losses["loss"], part)
        norm = self._clipped_norm()
        finite = torch.isfinite(norm) & torch.isfinite(seen.sums["loss"][0])
        all_finite, self._stopping = self.processes.vote(finite)
        if all_finite:
            self.optimizer.step()
            seen.add("gradient_norm", norm)
            self.meter.merge(seen)
            self.skipped_in_a_row = 0
        else:
            self._skip()
        self.optimizer.zero_grad()
        self.schedule.step()
        self.average.update()

    def save(self) -> Path:
        """Write a checkpoint of this step, complete or not at all; every process takes part."""
        weights = gather_weights(self.task.trained, self.task.product, self.average)
        moments = gather_moments(self.task.trained, self.optimizer.optimizer)
        state = {
            "step": self.step,
            "num_averaged": self.average.num_averaged,
            "skipped": self.skipped,
            "meter": self.meter.state(self.processes.gathered),
            "settings": self.settings,
            "versions": checkpoints.versions(),
        }
        contents = (weights, {"optimizer": moments}, state)
        return self.processes.on_main(lambda: self.checkpoints.write(self.step, *contents))

    def _load(self, folder: Path) -> None:
        """Take over a checkpoint; hyper-parameters and schedule are this run's own."""
        optimizer = self.optimizer.optimizer
        state = restore(folder, self.task.trained, optimizer, self.average)
        self.step = state["step"]
        self.skipped = state.get("skipped", 0)
        if self.accelerator.is_main_process:
            self.meter.load(state.get("meter", {}), self.accelerator.device)
        with warnings.catch_warnings():
            # The schedule cannot know that the optimizer's steps were made by an earlier start.
            warnings.simplefilter("ignore", UserWarning)
            for _ in range(self.step):
                self.schedule.step()
        self.accelerator.print(f"resumed from {folder} at step {self.step}")

    def export(self) -> Path:
        """Write the product with the averaged weights to `export/`, complete or not at all."""
        averaged = gather_average(self.task.product, self.average)
        return self.processes.on_main(lambda: self._export(averaged))

    def _export(self, state: Mapping[str, Tensor]) -> Path:
        folder = self.output_dir / "export"
        if broken := [name for name, tensor in state.items() if not tensor.isfinite().all()]:
            raise RunError(
                f"{len(broken)} of {len(state)} averaged weights are not finite, {broken[0]} for "
                "one, and nothing is exported; lower the learning rate and train again"
            )
        lines = self.metrics.read()
        facts = RunFacts(
            steps=self.step,
            global_batch_size=self.recipe.global_batch_size,
            num_items=len(self.samples),
            settings=self.settings,
            versions=checkpoints.versions(),
            final=lines[-1] if lines else {},
        )
        with written_aside(folder) as aside:
            self.task.export(self._averaged_product(state), aside)
            self.task.describe(aside, facts)
        self.task.publish(folder)
        return folder

    def _seed_dropout(self, micro: int) -> None:
        """Key what a network draws from torch's global state, as dropout does."""
        process = 1 + self.accelerator.process_index  # a sample's key has 0 there
        key = (self.recipe.seed, self.step, micro, process)
        torch.manual_seed(keyed_generator(*key).initial_seed())

    def _averaged_product(self, state: Mapping[str, Tensor]) -> Any:
        assert self.product is not None, "only the main process holds the product"
        self.product.load_state_dict(state)
        return self.product.to(self.accelerator.device).eval()

    def _check_output(self) -> None:
        weights = num_bytes(self.task.trained) + num_bytes(self.task.product)
        checkpoint = weights + optimizer_bytes(self.optimizer.optimizer)
        self.checkpoints.check_room(checkpoint, export_bytes=self.task.exported_bytes)
        self.task.check_export(self.product)

    def _draw_losses(self) -> None:
        save_loss_curve(self.metrics.read(), self.output_dir / "loss.png")

    def _preview(self) -> None:
        averaged = gather_average(self.task.product, self.average)
        folder = self.output_dir / "previews"

        def draw() -> None:
            folder.mkdir(parents=True, exist_ok=True)
            self.task.eval()
            product = self._averaged_product(averaged)
            self.task.preview(product, folder, self.step)
            product.to("cpu")

        self.processes.on_main(draw)

    def _look_into(self, batch: dict[str, Any]) -> None:
        """Count FLOPs once, and log the gradient norms of the batch's parts now and then."""
        if self.hardware.peak_flops and self.flops is None:
            self.flops = self.task.flops_per_sample(batch)
        every = self.cadence.gradients_every
        if every and self.step % every == 0 and self.task.subsets(batch):
            with self.throughput.paused(), self.accelerator.autocast():
                norms = gradient_norms(self.task, batch)
            for name, norm in norms.items():
                self.meter.add(f"gradient_norm/{name}", norm)

    def _log(self) -> str:
        """Write what was seen since the last time, and give a line for the progress bar."""
        values = means(self.meter.state(self.processes.gathered))
        values["lr"] = float(self.schedule.get_last_lr()[0])
        values["skipped_steps"] = float(self.skipped)
        processes = self.accelerator.num_processes
        speed = self.throughput.values(processes, self.flops, self.hardware.peak_flops)
        values |= speed | {"peak_memory_gb": peak_memory_gb(self.accelerator.device)}
        self.accelerator.log(values, step=self.step)
        self.processes.on_main(lambda: self.metrics.append(self.step, values))
        self.meter = LossMeter()
        self.throughput.restart()
        loss = f"{values['loss']:.4f}" if "loss" in values else "not finite"
        return f"loss {loss}, lr {values['lr']:.1e}, {speed['samples_per_second']:.1f} samples/s"

    def _clipped_norm(self) -> Tensor:
        trained = [p for p in self.task.trained.parameters() if p.requires_grad]
        norm = self.accelerator.clip_grad_norm_(trained, self.recipe.gradient_clip)
        return (norm.full_tensor() if isinstance(norm, DTensor) else norm).detach()

    def _skip(self) -> None:
        self.skipped += 1
        self.skipped_in_a_row += 1
        self.accelerator.print(f"step {self.step}: loss or gradient is not finite, step skipped")
        if self.skipped_in_a_row > self.recipe.max_skipped_steps:
            raise RunError(
                f"{self.skipped_in_a_row} steps in a row had a loss or gradient that is not "
                f"finite; the last good checkpoint is in {self.checkpoints.folder}. Lower the "
                "learning rate or the precision's risk (mixed_precision=no) and start again."
            )

    @property
    def _micro_batches_per_step(self) -> int:
        processes = self.accelerator.num_processes
        return self.recipe.global_batch_size // (self.recipe.micro_batch_size * processes)

    def _loader(self) -> DataLoader[dict[str, Any]]:
        # Not prepared: each process already gets its own share.
        return keyed_loader(
            self.samples,
            self.recipe.seed,
            self.recipe.global_batch_size,
            self.recipe.micro_batch_size,
            range(self.step, self.recipe.total_steps),
            self.accelerator.process_index,
            self.accelerator.num_processes,
            num_workers=self.hardware.num_workers,
            pin_memory=self.accelerator.device.type == "cuda",
        )

    def _to_device(self, value: Any) -> Any:
        """Move the tensors of a batch, or of a batch of batches."""
        if isinstance(value, dict):
            return {name: self._to_device(part) for name, part in value.items()}
        if isinstance(value, Tensor):
            return value.to(self.accelerator.device, non_blocking=True)
        return value

    def _leave_frozen_parts_whole(self) -> None:
        """Keep FSDP from sharding what is not trained: previews use it on one process."""
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        if plugin is not None:
            if self.cadence.gradients_every:
                raise ValueError("gradients_every needs whole weights: set it to 0 under FSDP.")
            trained = {id(parameter) for parameter in self.task.trained.parameters()}
            others = [part for part in self.task.children() if part is not self.task.trained]
            frozen = [part for part in others if trained.isdisjoint(map(id, part.parameters()))]
            if len(frozen) < len(others):
                raise ValueError(
                    "an adapter inside a frozen network cannot be sharded: start it without FSDP, "
                    "for instance with configs/accelerate/one_gpu.yaml."
                )
            plugin.ignored_modules = frozen or None
