"""The second and third stage: a method's features, and its cells.

Features lie in `METHOD/seed_K/features/BACKBONE`, values of single pictures in
`METHOD/seed_K/scores/METRIC`, the cells in `METHOD/scores.json`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import safetensors.torch
import torch
from jaxtyping import Float32
from safetensors import SafetensorError
from torch import Tensor

from mmface.core.files import write_bytes
from mmface.core.journal import PartedWork, as_json
from mmface.core.processes import Processes
from mmface.evaluation.generation import Answers, Pictures
from mmface.evaluation.references import References
from mmface.evaluation.tables import Measured
from mmface.metrics.backbones import Backbone
from mmface.metrics.metric import (
    Floor,
    Metric,
    SampleMetric,
    SetMetric,
    Skipped,
    Values,
    or_skipped,
)
from mmface.metrics.statistics import over_seeds

SCORES_FILE = "scores.json"
Cells = dict[str, Measured | Skipped]


@dataclass
class Scores:
    """What was measured of a method.

    Attributes:
        cells: by column.
        remarks: lines for below the table.
        class_iou: of each class over the whole set; None where it is absent.
    """

    cells: Cells = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    class_iou: dict[str, float | None] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write the scores as JSON, aside first."""
        content = {**vars(self), "cells": {name: asdict(one) for name, one in self.cells.items()}}
        write_bytes(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())

    @classmethod
    def read(cls, path: Path) -> "Scores":
        """Read what `write` wrote."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is broken ({error}); add score to the stages") from None
        cells: Cells = {
            name: Skipped(**cell) if "reason" in cell else Measured(**cell)
            for name, cell in content["cells"].items()
        }
        return cls(cells, content["remarks"], content["class_iou"])


@dataclass(frozen=True)
class MethodRun:
    """What a method made with one seed, and where what is read off them goes.

    Attributes:
        seed: of the generation.
        folder: of this method and seed.
        products: the pictures or answers.
    """

    seed: int
    folder: Path
    products: Pictures | Answers


def _count_features(content: bytes) -> int:
    """Number of rows in a part; 0 if it is broken."""
    try:
        return len(safetensors.torch.load(content)["features"])
    except (SafetensorError, KeyError):
        return 0


class FeatureCache:
    """The features of one method's pictures, by backbone."""

    def __init__(self, folder: Path, pictures: Pictures, batch_size: int) -> None:
        self.folder = folder
        self.pictures = pictures
        self.batch_size = batch_size

    def _work(self, name: str, backbone: Backbone) -> PartedWork:
        made_by = {
            "stage": "features",
            "pictures": self.pictures.digest,
            "backbone": backbone.protocol,
        }
        count = len(self.pictures.ids)
        return PartedWork(
            self.folder / name,
            made_by,
            count,
            self.batch_size,
            suffix=".safetensors",
            count=_count_features,
        )

    def run(self, name: str, backbone: Backbone, processes: Processes, title: str) -> None:
        """Read what is absent; all processes call this."""
        ids, device = self.pictures.ids, processes.accelerator.device

        def part(items: range) -> bytes:
            images = self.pictures.batch(ids[items.start : items.stop], device)
            return safetensors.torch.save({"features": backbone(images).cpu().contiguous()})

        self._work(name, backbone).run(part, processes, title)

    def features(self, name: str, backbone: Backbone) -> Float32[Tensor, "n features"] | None:
        """Give the finished features, in the order of the ids; None if they are not finished."""
        work = self._work(name, backbone)
        if not work.is_complete():
            return None
        parts = [safetensors.torch.load(content)["features"] for content in work.contents()]
        return torch.cat(parts)


class Scoring:
    """Measures methods against references."""

    def __init__(
        self,
        references: References,
        metrics: Mapping[str, Metric],
        processes: Processes,
        batch_size: int,
        compared: References | None = None,
    ) -> None:
        """Leave out metrics that need what the references lack, such as another condition.

        `compared` are the faces whose pictures sets are compared with; None takes the references.
        """
        self.references = references
        self.compared = compared or references
        self.metrics = {n: one for n, one in metrics.items() if one.needs <= references.gives}
        self.processes = processes
        self.batch_size = batch_size
        self._opened: dict[str, Skipped | None] = {}
        self._index = {id_: item for item, id_ in enumerate(references.ids)}

    @property
    def device(self) -> torch.device:
        """Where networks compute."""
        device: torch.device = self.processes.accelerator.device
        return device

    def read_features(self, run: MethodRun, title: str) -> None:
        """Read a run's features with every backbone that is there; all processes call this."""
        for metric in self._by_backbone().values():
            backbone = metric.backbone.open(self.device)
            if not isinstance(backbone, Skipped):
                cache = self._cache(run)
                cache.run(metric.backbone_name, backbone, self.processes, f"{title}: features")

    def score(
        self, runs: Sequence[MethodRun], real: MethodRun, name: str, is_a_set: bool = True
    ) -> Scores:
        """Measure a method by its runs, one a seed; all processes call this."""
        scores = Scores()
        for metric in self.metrics.values():
            if isinstance(metric, SetMetric):
                if not is_a_set:
                    continue
                cells, remarks = self._compare(metric, runs, real, name)
                scores.cells.update(cells)
                scores.remarks += remarks
            elif isinstance(metric, SampleMetric):
                self._read(scores, metric, runs, name)
        return scores

    def floors(self, real: MethodRun, others: MethodRun | None = None) -> dict[str, Floor]:
        """What the number of pictures alone costs, by the columns of metrics of sets.

        `others` are the true pictures of the evaluated faces, where methods are compared with the
        set `real` of other faces.
        """
        floors: dict[str, Floor] = {}
        for metric, features in self._of_sets(real):
            found = None if others is None else self._features(metric, others)
            floors |= metric.floor(features, None if isinstance(found, Skipped) else found)
        return floors

    def shortages(self, real: MethodRun) -> list[str]:
        """Warn of metrics of sets that these are too few pictures for."""
        return [line for one, features in self._of_sets(real) for line in one.shortage(features)]

    def _of_sets(self, real: MethodRun) -> list[tuple[SetMetric, torch.Tensor]]:
        found = [(metric, self._features(metric, real)) for metric in self._set_metrics()]
        return [(one, features) for one, features in found if not isinstance(features, Skipped)]

    def _read(
        self, scores: Scores, metric: SampleMetric, runs: Sequence[MethodRun], method: str
    ) -> None:
        why = self.open(metric)
        if why is not None:
            scores.cells.update(dict.fromkeys(metric.columns, why))
            return
        ids = [id_ for run in runs for id_ in run.products.ids]
        values = [one for run in runs for one in self.values(run, metric, method)]
        protocol = f"{metric.protocol}, {self.references.protocol}"
        for column, one in metric.intervals(ids, values).items():
            scores.cells[column] = Measured(
                one.estimate, one.clusters, protocol, one.low, one.high, seeds=len(runs)
            )
        scores.remarks += metric.remarks(values)
        scores.class_iou |= metric.of_classes(values)

    def open(self, metric: Metric) -> Skipped | None:
        """Load what a metric needs, once; says why it cannot be measured, if so."""
        if metric.name not in self._opened:
            load: Callable[[], Skipped | None] = partial(metric.load, self.device)
            why = metric.check(self.references.order(0, seed=0)) or or_skipped(load, metric.remedy)
            self._opened[metric.name] = why
        return self._opened[metric.name]

    def values(self, run: MethodRun, metric: SampleMetric, method: str) -> list[Values]:
        """Read each product of a run with an opened metric; all processes call this."""
        made_by = {
            "stage": "score",
            "pictures": run.products.digest,
            "references": self.references.made_by(),
            "measure": metric.protocol,
        }
        ids = run.products.ids

        def part(items: range) -> bytes:
            chosen = ids[items.start : items.stop]
            orders = [self.references.order(self._index[id_], run.seed) for id_ in chosen]
            read = metric.read(run.products.batch(chosen, self.device), orders)
            lines = [as_json({"id": id_, **one}) for id_, one in zip(chosen, read, strict=True)]
            return "".join(f"{line}\n" for line in lines).encode()

        work = PartedWork(run.folder / "scores" / metric.name, made_by, len(ids), self.batch_size)
        work.run(part, self.processes, f"{method}: {metric.name}")
        return [{k: v for k, v in line.items() if k != "id"} for line in work.rows()]

    def _compare(
        self, metric: SetMetric, runs: Sequence[MethodRun], real: MethodRun, name: str
    ) -> tuple[Cells, list[str]]:
        missing = len(self.references) - len(runs[0].products.ids)
        if missing:
            reason = f"{missing} of {len(self.references)} pictures of {name} are missing"
            return dict.fromkeys(metric.columns, Skipped(reason, "make them")), []
        features = self._features(metric, real)
        if isinstance(features, Skipped):
            return dict.fromkeys(metric.columns, features), []
        values: dict[str, list[float]] = {column: [] for column in metric.columns}
        remarks = []
        for run in runs:
            own = self._features(metric, run)
            if isinstance(own, Skipped):
                return dict.fromkeys(metric.columns, own), []
            try:
                compared = metric.compare(features, own)
            except ValueError as error:  # too few pictures for this metric
                why = Skipped(str(error), "measure more pictures")
                return dict.fromkeys(metric.columns, why), []
            for column, value in compared.items():
                values[column].append(value)
            if run.folder != real.folder:
                remarks += metric.remarks(features, own, name)
        backbone = metric.backbone.open(self.device)
        assert not isinstance(backbone, Skipped)
        width = f"{backbone.num_features} features"
        protocol = f"{backbone.protocol}, {width}, {self.compared.protocol}"
        count = len(self.references)
        return {c: _over_seeds(v, count, protocol) for c, v in values.items()}, remarks

    def _features(self, metric: SetMetric, run: MethodRun) -> torch.Tensor | Skipped:
        backbone = metric.backbone.open(self.device)
        if isinstance(backbone, Skipped):
            return backbone
        features = self._cache(run).features(metric.backbone_name, backbone)
        if features is None:
            return Skipped(f"no features in {run.folder}", "add features to the stages")
        return features

    def _cache(self, run: MethodRun) -> FeatureCache:
        assert isinstance(run.products, Pictures)
        return FeatureCache(run.folder / "features", run.products, self.batch_size)

    def _set_metrics(self) -> list[SetMetric]:
        return [one for one in self.metrics.values() if isinstance(one, SetMetric)]

    def _by_backbone(self) -> dict[str, SetMetric]:
        return {metric.backbone_name: metric for metric in self._set_metrics()}


def _over_seeds(values: Sequence[float], pictures: int, protocol: str) -> Measured:
    if len(values) == 1:
        return Measured(values[0], pictures, protocol)
    spread = over_seeds(values)
    return Measured(spread.mean, pictures, protocol, spread=spread.std, seeds=spread.seeds)
