"""The third stage: a method's cells, from its pictures, its features and the references.

Rows of single pictures lie in `METHOD/seed_K/scores/MEASURE`, the cells in `METHOD/scores.json`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch

from mmface.evaluation.backbones import Skipped, or_skipped
from mmface.evaluation.feature_cache import FeatureCache
from mmface.evaluation.generation import Pictures
from mmface.evaluation.parted_work import PartedWork, as_json, write_aside
from mmface.evaluation.picture_measures import MaskFidelity, PictureMeasure, Row
from mmface.evaluation.references import References
from mmface.evaluation.set_measures import SetMeasure
from mmface.evaluation.statistics import over_seeds
from mmface.evaluation.tables import Measured
from mmface.processes import Processes

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
        write_aside(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())

    @classmethod
    def read(cls, path: Path) -> "Scores":
        """Read what `write` wrote.

        Args:
            path: the file.

        Returns:
            The scores.

        Raises:
            ValueError: if the file is broken.
        """
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
class PictureRun:
    """The pictures of one seed, and where what is read off them goes.

    Attributes:
        seed: of the generation.
        folder: of this method and seed.
        pictures: the pictures.
    """

    seed: int
    folder: Path
    pictures: Pictures


class Scoring:
    """Measures methods against references."""

    def __init__(
        self,
        references: References,
        picture_measures: Mapping[str, PictureMeasure],
        set_measures: Mapping[str, SetMeasure],
        processes: Processes,
        batch_size: int,
    ) -> None:
        """Choose the measures.

        Args:
            references: what methods are measured against.
            picture_measures: those of each picture; those of another modality are left out.
            set_measures: those of the sets.
            processes: who shares the work.
            batch_size: pictures read at once.
        """
        self.references = references
        self.picture_measures = {
            name: measure
            for name, measure in picture_measures.items()
            if references.modality in measure.modalities
        }
        self.set_measures = dict(set_measures)
        self.processes = processes
        self.batch_size = batch_size
        self._opened: dict[str, Skipped | None] = {}
        self._index = {id_: item for item, id_ in enumerate(references.ids)}

    @property
    def device(self) -> torch.device:
        """Where networks compute."""
        device: torch.device = self.processes.accelerator.device
        return device

    def read_features(self, run: PictureRun, title: str) -> None:
        """Read a run's features with every backbone that is there; all processes call this."""
        for measure in self._by_backbone().values():
            backbone = measure.backbone.open(self.device)
            if not isinstance(backbone, Skipped):
                cache = self._cache(run)
                cache.run(measure.backbone_name, backbone, self.processes, f"{title}: features")

    def score(self, runs: Sequence[PictureRun], real: PictureRun, name: str) -> Scores:
        """Measure a method; all processes call this.

        Args:
            runs: its pictures, by seed.
            real: the true pictures.
            name: the method's.

        Returns:
            Its scores.
        """
        scores = Scores()
        for measure_name, measure in self.picture_measures.items():
            why = self._open(measure_name, measure)
            if why is not None:
                columns = _SKIPPED_COLUMNS.get(measure_name, (measure_name,))
                scores.cells.update(dict.fromkeys(columns, why))
                continue
            ids = [id_ for run in runs for id_ in run.pictures.ids]
            rows = [row for run in runs for row in self._rows(run, measure_name, measure, name)]
            self._summarise(scores, measure, ids, rows, len(runs))
        for set_measure in self.set_measures.values():
            cells, remarks = self._compare(set_measure, runs, real, name)
            scores.cells.update(cells)
            scores.remarks += remarks
        return scores

    def floors(self, real: PictureRun) -> list[str]:
        """Say what the number of pictures alone costs, by measure of sets."""
        lines = []
        for measure in self.set_measures.values():
            features = self._features(measure, real)
            if not isinstance(features, Skipped):
                lines += measure.floor(features)
        return lines

    def _open(self, name: str, measure: PictureMeasure) -> Skipped | None:
        if name not in self._opened:
            why = measure.check(self.references.size_px)
            load: Callable[[], Skipped | None] = partial(measure.load, self.device)
            self._opened[name] = why or or_skipped(load, measure.remedy)
        return self._opened[name]

    def _rows(self, run: PictureRun, name: str, measure: PictureMeasure, method: str) -> list[Row]:
        made_by = {
            "stage": "score",
            "pictures": run.pictures.digest,
            "references": self.references.made_by(),
            "measure": measure.protocol,
        }
        ids = run.pictures.ids

        def part(items: range) -> bytes:
            chosen = ids[items.start : items.stop]
            orders = [self.references.order(self._index[id_], run.seed) for id_ in chosen]
            rows = measure.read(run.pictures.batch(chosen, self.device), orders)
            lines = [as_json({"id": id_, **row}) for id_, row in zip(chosen, rows, strict=True)]
            return "".join(f"{line}\n" for line in lines).encode()

        work = PartedWork(run.folder / "scores" / name, made_by, len(ids), self.batch_size)
        work.run(part, self.processes, f"{method}: {name}")
        return [{k: v for k, v in row.items() if k != "id"} for row in work.rows()]

    def _summarise(
        self,
        scores: Scores,
        measure: PictureMeasure,
        ids: Sequence[str],
        rows: Sequence[Row],
        seeds: int,
    ) -> None:
        protocol = f"{measure.protocol}, {self.references.protocol}"
        for column, one in measure.intervals(ids, rows).items():
            scores.cells[column] = Measured(
                one.estimate, one.clusters, protocol, one.low, one.high, seeds=seeds
            )
        scores.remarks += measure.remarks(rows)
        if isinstance(measure, MaskFidelity):
            scores.class_iou = measure.of_classes(rows)

    def _compare(
        self, measure: SetMeasure, runs: Sequence[PictureRun], real: PictureRun, name: str
    ) -> tuple[Cells, list[str]]:
        missing = len(self.references) - len(runs[0].pictures.ids)
        if missing:
            reason = f"{missing} of {len(self.references)} pictures of {name} are missing"
            return dict.fromkeys(measure.columns, Skipped(reason, "make them")), []
        features = self._features(measure, real)
        if isinstance(features, Skipped):
            return dict.fromkeys(measure.columns, features), []
        values: dict[str, list[float]] = {column: [] for column in measure.columns}
        remarks = []
        for run in runs:
            own = self._features(measure, run)
            if isinstance(own, Skipped):
                return dict.fromkeys(measure.columns, own), []
            try:
                compared = measure.compare(features, own)
            except ValueError as error:  # too few pictures for this measure
                why = Skipped(str(error), "measure more pictures")
                return dict.fromkeys(measure.columns, why), []
            for column, value in compared.items():
                values[column].append(value)
            if run.folder != real.folder:
                remarks += measure.remarks(features, own, name)
        backbone = measure.backbone.open(self.device)
        assert not isinstance(backbone, Skipped)
        protocol = f"{backbone.protocol}, {self.references.protocol}"
        count = len(self.references)
        return {c: _over_seeds(v, count, protocol) for c, v in values.items()}, remarks

    def _features(self, measure: SetMeasure, run: PictureRun) -> torch.Tensor | Skipped:
        backbone = measure.backbone.open(self.device)
        if isinstance(backbone, Skipped):
            return backbone
        features = self._cache(run).features(measure.backbone_name, backbone)
        if features is None:
            return Skipped(f"no features in {run.folder}", "add features to the stages")
        return features

    def _cache(self, run: PictureRun) -> FeatureCache:
        return FeatureCache(run.folder / "features", run.pictures, self.batch_size)

    def _by_backbone(self) -> dict[str, SetMeasure]:
        return {measure.backbone_name: measure for measure in self.set_measures.values()}


_SKIPPED_COLUMNS = {
    "masks": ("accuracy", "mean_iou"),
    "clip": ("clip", "clip_distance"),
    "judge": ("judge_yes", "judge_digit"),
}
"""The columns of measures that have several; the others are named as their column."""


def _over_seeds(values: Sequence[float], pictures: int, protocol: str) -> Measured:
    if len(values) == 1:
        return Measured(values[0], pictures, protocol)
    spread = over_seeds(values)
    return Measured(spread.mean, pictures, protocol, spread=spread.std, seeds=spread.seeds)
