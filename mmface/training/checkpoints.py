"""Checkpoints, written completely or not at all, and only resumed with the same settings.

A checkpoint is a folder `checkpoints/step-NNNNNNNN` with `model.safetensors` (raw weights),
`ema.safetensors` (averaged ones), `optimizer.pt` (moments by the parameters' names, read without
unpickling) and `state.json` (step, counters, every setting of the run and the versions).
"""

import importlib.metadata
import json
import platform
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from mmface.core.files import remove_folder, written_aside
from mmface.training.optimization import ExponentialAverage
from mmface.training.recipe import flattened, typed_name

LIBRARIES = ("mmface", "accelerate", "diffusers", "transformers", "bitsandbytes")

FREE_SETTINGS = (
    "output_dir",
    "cadence",
    "trackers",
    "resume",
    "allow_changes",
    "hardware.num_workers",
    "hardware.peak_flops",
    "hardware.average_on_cpu",
    "hardware.timeout_s",
)
"""Settings that do not change what is learnt, and may differ from start to start."""

_SQUARED_ERROR = {"_target_": "mmface.objectives.losses.SquaredError", "weight": 1.0}
_MIN_SNR = {"_target_": "mmface.objectives.losses.MinSnr"}
FORMER_OBJECTIVES = {
    "rectified_flow": {
        "_target_": "mmface.objectives.objective.RectifiedFlow",
        "terms": {"velocity": {**_SQUARED_ERROR, "weighting": None}},
    },
    "min_snr_diffusion": {
        "_target_": "mmface.objectives.objective.MinSnrDiffusion",
        "terms": {"noise": {**_SQUARED_ERROR, "weighting": _MIN_SNR}},
    },
}
"""What the objectives were, by the model's setting, before a run's settings said it."""


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that a run's numbers depend on."""
    # torch's own version names the build, too: 2.14.1+cu130
    found = {"python": platform.python_version(), "torch": str(torch.__version__)}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # run from a folder, not installed
            continue
    return found


def _with_objective(saved: Mapping[str, Any]) -> Mapping[str, Any]:
    """Add the objective to settings that were saved before it was one of them."""
    name = saved.get("task.transformer.objective")
    if name not in FORMER_OBJECTIVES or "task.objective.name" in saved:
        return saved
    time = {"_target_": "mmface.objectives.times.UniformTime"}
    objective = {**FORMER_OBJECTIVES[name], "name": name, "time": time}
    return {**saved, **flattened(objective, "task.objective.")}


def _comparable(name: str, value: Any) -> Any:
    """A setting without the module of one of our classes, which may have moved."""
    ours = name.endswith("_target_") and str(value).startswith("mmface.")
    return value.rpartition(".")[2] if ours else value


def _is_under(name: str, parents: Sequence[str]) -> bool:
    return any(name == parent or name.startswith(f"{parent}.") for parent in parents)


def check_settings(
    saved: Mapping[str, Any],
    wanted: Mapping[str, Any],
    allowed: Sequence[str],
    where: Path,
    derived: Collection[str] = (),
) -> list[str]:
    """Compare a checkpoint's flat settings with those of the run that resumes from it.

    `allowed` names may differ, as typed or without `trainer`; a name includes all below it.
    `derived` names follow others and are not compared. Gives a line for each allowed change;
    ValueError if anything else differs.
    """
    if not saved or not wanted:
        return []
    saved, wanted = json.loads(json.dumps([_with_objective(saved), wanted], default=str))
    names = [n for n in dict.fromkeys([*saved, *wanted]) if not _is_under(n, FREE_SETTINGS)]
    names = [n for n in names if n not in derived]
    nothing = "(not set)"
    changes = {
        name: f"{typed_name(name)}: {saved.get(name, nothing)} -> {wanted.get(name, nothing)}"
        for name in names
        if _comparable(name, saved.get(name, nothing))
        != _comparable(name, wanted.get(name, nothing))
    }
    refused = {
        typed_name(name): line
        for name, line in changes.items()
        if not _is_under(name, allowed) and not _is_under(typed_name(name), allowed)
    }
    if refused:
        listed = "\n  ".join(refused.values())
        raise ValueError(
            f"{where} was made with other settings (checkpoint -> now):\n  {listed}\n"
            "Take back the change, give another output_dir, or allow it by name: "
            f"trainer.allow_changes=[{','.join(refused)}]"
        )
    return list(changes.values())


def changes_since(
    checkpoint: Path,
    settings: Mapping[str, Any],
    allowed: Sequence[str],
    derived: Collection[str] = (),
) -> list[str]:
    """A line for each version and setting that changed since then; see `check_settings`."""
    state = read_state(checkpoint)
    lines = check_settings(state.get("settings", {}), settings, allowed, checkpoint, derived)
    before, now = state.get("versions", {}), versions()
    lines += [f"{n}: {before[n]} -> {now.get(n)}" for n in before if before[n] != now.get(n)]
    return [f"changed since {checkpoint.name}: {line}" for line in lines]


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, output_dir: Path, limit: int) -> None:
        """Keep at most `limit` checkpoints in a run's folder, which need not be there."""
        self.output_dir = output_dir
        self.folder = output_dir / "checkpoints"
        self.limit = limit

    def saved(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(self.folder.glob("step-" + 8 * "[0-9]"))

    def start(self, resume: bool | str | Path) -> Path | None:
        """Give the checkpoint to resume from, or None to begin at step 0.

        "auto" takes the newest one, if any; False begins, and refuses a folder that holds a run; a
        path takes that checkpoint. ValueError if the start would overwrite a run.
        """
        if self.output_dir.exists() and not self.output_dir.is_dir():
            raise NotADirectoryError(f"output_dir {self.output_dir} is a file; give a folder")
        saved = self.saved()
        if resume == "auto":
            return saved[-1] if saved else None
        if resume is True:
            raise ValueError("resume must be false, auto, or a checkpoint's folder, got true.")
        if resume is False:
            found = [*saved, *(self.output_dir / n for n in ("metrics.jsonl", "export"))]
            found = [path for path in found if path.exists()]
            if found:
                raise ValueError(
                    f"resume is false, but {self.output_dir} holds a run already "
                    f"({found[-1].name}). Give another output_dir, delete this one, or go on with "
                    "trainer.resume=auto."
                )
            return None
        if not isinstance(resume, str | Path):
            raise ValueError(
                f"resume must be false, auto, or a checkpoint's folder, got {resume!r}."
            )
        chosen = Path(resume)
        if not (chosen / "state.json").exists():
            raise FileNotFoundError(
                f"resume: {chosen} is no checkpoint; give a folder like "
                f"{self.folder / 'step-00000500'}, or trainer.resume=auto for the newest."
            )
        if saved and saved[-1].name > chosen.name:
            raise ValueError(
                f"resume: {self.output_dir} holds {saved[-1].name}, which is later than "
                f"{chosen.name} and would be mixed with the new run. Give another output_dir."
            )
        return chosen

    def write(
        self,
        step: int,
        weights: Mapping[str, Mapping[str, Tensor]],
        optimizer: Mapping[str, Any],
        state: Mapping[str, Any],
    ) -> Path:
        """Write a checkpoint, complete or not at all, and delete those beyond the limit.

        Args:
            step: the number of steps made.
            weights: `model` and `ema`, each tensors by name on the CPU.
            optimizer: the optimizer's state.
            state: JSON values.

        Returns:
            The checkpoint's folder.

        Raises:
            OSError: if it cannot be written.
        """
        folder = self.folder / f"step-{step:08d}"
        if folder.exists():
            return folder
        try:
            with written_aside(folder) as aside:
                aside.mkdir()
                for name, tensors in weights.items():
                    whole = {key: tensor.contiguous() for key, tensor in tensors.items()}
                    save_file(whole, aside / f"{name}.safetensors")
                torch.save(optimizer, aside / "optimizer.pt")
                (aside / "state.json").write_text(json.dumps(dict(state), indent=1, default=str))
        except Exception as error:  # safetensors and torch.save raise their own kinds
            last = self.saved()[-1:]
            # Adam's two moments are about twice the raw weights.
            parts = [*weights["model"].values()] * 3 + [*weights["ema"].values()]
            need = sum(tensor.numel() * tensor.element_size() for tensor in parts)
            raise OSError(
                f"the checkpoint of step {step} could not be written to {self.folder}: {error} "
                f"It needs {need / 1e6:,.0f} MB; free some space and run the command again: it "
                f"goes on from {last[0].name if last else 'the start'}."
            ) from error
        for old in self.saved()[: -self.limit]:
            remove_folder(old)
        return folder

    def check_room(self, checkpoint_bytes: int, export_bytes: int) -> None:
        """Raise OSError if the disk lacks room for what the run saves: checkpoints and product.

        It counts the checkpoints that are kept and one that is being written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe = self.folder / ".probe"
            probe.write_bytes(bytes(4096))
            probe.unlink()
        except OSError as error:
            raise OSError(
                f"output_dir {self.output_dir} cannot be written ({error.strerror}); "
                "give one that can."
            ) from error
        held = sum(f.stat().st_size for f in self.output_dir.rglob("*.*") if f.is_file())
        wanted = checkpoint_bytes * (self.limit + 1) + export_bytes - held
        free = shutil.disk_usage(self.folder).free
        if free < wanted:
            raise OSError(
                f"{self.output_dir} has {free / 1e6:,.0f} MB free, but the run needs "
                f"{wanted / 1e6:,.0f} MB more: {self.limit} + 1 checkpoints of "
                f"{checkpoint_bytes / 1e6:,.0f} MB and an export of {export_bytes / 1e6:,.0f} MB. "
                "Free some space, give another output_dir, or lower "
                "trainer.cadence.checkpoint_limit."
            )


def read_weights(checkpoint: Path, name: str) -> dict[str, Tensor]:
    """The `model` or `ema` weights of a checkpoint by name, on the CPU."""
    return load_file(checkpoint / f"{name}.safetensors")


def read_state(checkpoint: Path) -> dict[str, Any]:
    """What `state.json` of a checkpoint holds."""
    return json.loads((checkpoint / "state.json").read_text())


def read_moments(checkpoint: Path, trainable: Sequence[str]) -> dict[str, Any]:
    """The optimizer's state by the parameters' names.

    Old checkpoints number the parameters, in the order of `trainable`.
    """
    saved = torch.load(checkpoint / "optimizer.pt", map_location="cpu", weights_only=True)
    moments = saved["optimizer"]["state"]
    return {trainable[key] if isinstance(key, int) else key: moments[key] for key in moments}


TO_CPU = StateDictOptions(full_state_dict=True, cpu_offload=True)
WHOLE = StateDictOptions(full_state_dict=True)


def gather_weights(
    trained: nn.Module, product: nn.Module, average: ExponentialAverage
) -> dict[str, dict[str, Tensor]]:
    """Give `model` and `ema`: raw and averaged weights by name, on the CPU.

    Every process calls this; only the main one's result is complete.
    """
    model: dict[str, Any] = get_model_state_dict(trained, options=TO_CPU)
    if product is trained:  # gathered once
        return {"model": model, "ema": model | average.state()}
    return {"model": model, "ema": gather_average(product, average)}


def gather_average(product: nn.Module, average: ExponentialAverage) -> dict[str, Any]:
    """Give the product's averaged weights, and what of it is not trained, as `gather_weights`."""
    whole: dict[str, Any] = get_model_state_dict(product, options=TO_CPU)
    return whole | average.state()


def gather_moments(trained: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Give the optimizer's state by the parameters' names; every process takes part."""
    return get_optimizer_state_dict(trained, optimizer, options=TO_CPU)


def restore(
    checkpoint: Path, trained: nn.Module, optimizer: Optimizer, average: ExponentialAverage
) -> Mapping[str, Any]:
    """Load a checkpoint's tensors and return its `state.json`; every process takes part.

    The optimizer keeps its own hyper-parameters: a change that was allowed must count.
    """
    trainable = [name for name, p in trained.named_parameters() if p.requires_grad]
    own = get_optimizer_state_dict(trained, optimizer, options=WHOLE)
    moments = {
        "state": read_moments(checkpoint, trainable),
        "param_groups": own["param_groups"],
    }
    # Before the weights: torch fills an optimizer by a step without a gradient.
    set_optimizer_state_dict(trained, optimizer, optim_state_dict=moments, options=WHOLE)
    for group in optimizer.param_groups:  # torch leaves lists for tuples, which files tell apart
        numbers = {n: tuple(v) for n, v in group.items() if n != "params" and isinstance(v, list)}
        group.update(numbers)
    weights: dict[str, Any] = {**read_weights(checkpoint, "model")}
    set_model_state_dict(trained, weights, options=WHOLE)
    state = read_state(checkpoint)
    average.load(read_weights(checkpoint, "ema"), state["num_averaged"])
    return state
