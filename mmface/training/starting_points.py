"""What a training may start from: a built-in pipeline, a pipeline's folder, or weights alone."""

from pathlib import Path
from typing import Any, NamedTuple

from mmface.core.sources import builtin_pipelines, read_object, unknown_builtin


class StartingPoint(NamedTuple):
    """A trained model that somebody named.

    Attributes:
        weights: Folder of the saved network, or a file of the authors' layout.
        pipeline: Folder of the whole pipeline; None for weights alone.
        config: The network's config; empty for a file.
        model_index: The pipeline's `model_index.json`; empty for weights alone.
    """

    weights: Path
    pipeline: Path | None
    config: dict[str, Any]
    model_index: dict[str, Any]

    def part(self, name: str) -> Any:
        """What a task's setting of this name is, or None if the pipeline does not say.

        `vae` and `text` are where they lie, other names are the pipeline's own defaults.
        """
        if self.pipeline is None:
            return None
        folders = {"vae": self.pipeline / "vae", "text": self.pipeline}
        return str(folders[name]) if name in folders else self.model_index.get(name)


def starting_point(source: str | Path) -> StartingPoint:
    """Find what `task.init_from` names; FileNotFoundError or ValueError if it is no model."""
    path = Path(str(source))
    if not path.exists() and str(source) in builtin_pipelines():
        path = builtin_pipelines()[str(source)]
    if not path.exists():
        hint = unknown_builtin("pipeline", str(source), builtin_pipelines())
        raise FileNotFoundError(f"init_from: {source} does not exist. {hint}")
    if path.is_file():
        return StartingPoint(path, None, {}, {})
    pipeline: Path | None
    if (path / "model_index.json").is_file():
        weights, pipeline = path / "transformer", path
    else:
        weights = path
        pipeline = path.parent if (path.parent / "model_index.json").is_file() else None
    if not (weights / "config.json").is_file():
        raise ValueError(
            f"init_from: {weights} has no config.json, so it is no saved network. The authors' "
            "weights are given as their .safetensors file, or saved as a pipeline first: "
            "MMFacePipeline.from_released(FOLDER, CHECKPOINT).save_pretrained(NEW_FOLDER)."
        )
    index = {} if pipeline is None else read_object(pipeline / "model_index.json")
    return StartingPoint(weights, pipeline, read_object(weights / "config.json"), index)


def setting_of(source: str | Path | None, name: str, default: Any = None) -> Any:
    """A task's setting as the pipeline has it that it starts from, or the default."""
    found = None if source is None else starting_point(source).part(name)
    return default if found is None else found


def started_network(init_from: str | Path | None, objective: str, **sizes: Any) -> Any:
    """Make a network of the sizes of what it starts from, or else of these; no weights are read.

    `sizes` are arguments of `MMFaceDiT`; `objective` is the training's, whatever the start's was.
    """
    from mmface.model.ablations import NETWORKS  # loads torch

    config = {} if init_from is None else starting_point(init_from).config
    if not config:
        return NETWORKS["MMFaceDiT"](objective=objective, **sizes)
    name = config.get("_class_name")
    if name not in NETWORKS:
        raise ValueError(f"init_from: {init_from} is a {name}, not one of {', '.join(NETWORKS)}.")
    return NETWORKS[name].from_config(config, objective=objective)
