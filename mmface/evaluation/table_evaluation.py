"""A table of the paper from one command: generate, features, score, table.

Every stage resumes from what is on disk. A value that a method lacks is a footnote in its cell.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from mmface.core.command_line import check_different, check_whole
from mmface.core.files import locked, sweep
from mmface.core.processes import Processes, computes_on_cpu, joined_processes
from mmface.data.pictures import FacePictures, PictureSource
from mmface.evaluation.controls import RealPictures
from mmface.evaluation.figures import (
    class_iou_bars,
    examples_grid,
    sweep_plot,
    write_figure,
)
from mmface.evaluation.generation import Generation, Pictures
from mmface.evaluation.methods import Method, PipelineMethod
from mmface.evaluation.references import Questions, References
from mmface.evaluation.reports import check_table, controls_table, results_table, write_all
from mmface.evaluation.scoring import SCORES_FILE, MethodRun, Scores, Scoring
from mmface.evaluation.tables import Measured
from mmface.metrics.metric import Floor, Metric, Skipped, columns

STAGES = ("generate", "features", "score", "table")


@dataclass(frozen=True)
class Protocol:
    """What methods share.

    Attributes:
        source: the faces.
        metrics: by name, in the order of the columns.
        caption_index: which caption is the prompt.
        num_faces: how many faces; None takes all.
        notes: lines for below every table; a watermark comes first.
        compared: faces that sets of pictures are compared with, apart from `source`; None compares
            with the true pictures of the evaluated faces.
        ask: gives a face's question and true answer, where methods are asked for text.
    """

    source: PictureSource
    metrics: Mapping[str, Metric]
    caption_index: int = 0
    num_faces: int | None = None
    notes: Sequence[str] = ()
    ask: Callable[[FacePictures], tuple[str, str]] | None = None
    compared: PictureSource | None = None


def folder_name(name: str) -> str:
    """A method's name as a folder's: letters, digits, dots and dashes."""
    kept = "".join(c if c.isalnum() or c in ".-" else "_" for c in name)
    return "_".join(part for part in kept.split("_") if part)


@dataclass(frozen=True)
class Sweep:
    """One setting of every pipeline at several values, each a row of its own, drawn as a curve.

    Attributes:
        name: of the chart's file.
        title: of its axis.
        values: of the setting.
        vary: gives a pipeline at a value.
    """

    name: str
    title: str
    values: Sequence[float]
    vary: Callable[[PipelineMethod, Any], PipelineMethod]


def hold_folder(folder: Path, held: ExitStack) -> None:
    """Lock a folder of results as long as `held` lasts, and sweep what dead writers left in it."""
    held.enter_context(locked(folder))
    for inner in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        sweep(inner, alone=True)


def _told(column: str, floor: Floor) -> str:
    """Say what a floor is of."""
    return (
        f"{columns()[column].title} between {floor.of} of real pictures, the least that means "
        f"anything: {floor.value:.2f} at N = {floor.pictures}"
    )


@dataclass(frozen=True)
class TableEvaluation:
    """Measures methods under one protocol, and sets them beside a table of the paper.

    Attributes:
        table: `1`, `2`, `3`, `vae` or `answers`.
        modality: what the table's faces are made from, the name of a kind.
        protocol: what methods share.
        methods: the rows, by any key.
        controls: the rows of the other table, by the names that metrics ask for them by.
        output_dir: where everything goes.
        stages: those to run, of `STAGES`.
        seeds: of the generation; with several, set metrics get a spread.
        guidance_scales: scales to sample each pipeline with besides, as rows of their own.
        checkpoints: steps of its run to sample each pipeline at besides, likewise.
        yardstick: key of a method; the pictures of the others are compared with its pictures.
        batch_size: pictures made or read at once.
        num_examples: rows of the grid of examples.
    """

    table: str | int
    modality: str
    protocol: Protocol
    methods: Mapping[str, Method]
    output_dir: str | Path
    controls: Mapping[str, Method] = field(default_factory=dict)
    stages: Sequence[str] = STAGES
    seeds: Sequence[int] = (0,)
    guidance_scales: Sequence[float] = ()
    batch_size: int = 16
    num_examples: int = 6
    checkpoints: Sequence[int] = ()
    yardstick: str | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        check_table(str(self.table))
        if isinstance(self.stages, str) or not self.stages or not set(self.stages) <= set(STAGES):
            raise ValueError(f"stages are some of [{','.join(STAGES)}], not {self.stages!r}")
        check_different("seeds", self.seeds, int, "[0,1,2]")
        check_different("guidance_scales", self.guidance_scales, int | float, "[1,3,5]")
        check_different("checkpoints", self.checkpoints, int, "[1000,2000]")
        if self.yardstick is not None and self.yardstick not in self.methods:
            known = ", ".join(self.methods)
            raise ValueError(f"yardstick is one of the methods, {known}, not {self.yardstick!r}")
        if not self.seeds:
            raise ValueError("seeds is empty; give at least one, such as [0]")
        check_whole("batch_size", self.batch_size, 1)
        check_whole("num_examples", self.num_examples, 0)
        if not self.methods:
            raise ValueError("there is no method to measure; name one, such as method=ours")
        names = [each.name for each in self._rows]
        folders = {folder_name(name) for name in names}
        if len(folders) < len(names):
            raise ValueError(f"methods need names of their own, got {names}; set name=NAME")

    @property
    def _rows(self) -> list[Method]:
        return [*self.methods.values(), *self._varied, *self._controls, self._real]

    @cached_property
    def _controls(self) -> list[Method]:
        wanted = {name for one in self.protocol.metrics.values() for name in one.controls}
        return [method for name, method in self.controls.items() if name in wanted]

    @cached_property
    def _real(self) -> RealPictures:
        return RealPictures()

    @cached_property
    def _compared(self) -> RealPictures:
        """What sets are compared with."""
        return self._real if self.protocol.compared is None else RealPictures("Compared with")

    @cached_property
    def _compared_references(self) -> References:
        source = self.protocol.compared
        if source is None:
            return self.references
        compared = References(source, self.modality, num_faces=len(self.references))
        if shared := set(compared.ids) & set(self.references.ids):
            raise ValueError(
                f"{len(shared)} faces are evaluated and compared with, such as {min(shared)}; "
                "give `compared` faces that no row is made from"
            )
        return compared

    @cached_property
    def _sweeps(self) -> list[Sweep]:
        return [
            Sweep(
                "guidance", "scale of guidance", self.guidance_scales, PipelineMethod.with_guidance
            ),
            Sweep("checkpoints", "training step", self.checkpoints, PipelineMethod.at_checkpoint),
        ]

    @cached_property
    def _pipelines(self) -> list[PipelineMethod]:
        return [method for method in self.methods.values() if isinstance(method, PipelineMethod)]

    @cached_property
    def _varied(self) -> list[Method]:
        pairs = [(one, method) for one in self._sweeps for method in self._pipelines]
        return [one.vary(method, value) for one, method in pairs for value in one.values]

    @cached_property
    def references(self) -> References:
        """The faces."""
        one = self.protocol
        if one.ask is not None:
            return Questions(one.source, one.ask, one.num_faces)
        return References(one.source, self.modality, one.caption_index, one.num_faces)

    @cached_property
    def processes(self) -> Processes:
        """The processes that share the work."""
        joined_processes()  # with its time limit, which the accelerator then shares
        return Processes(Accelerator(cpu=computes_on_cpu()))

    @cached_property
    def _scoring(self) -> Scoring:
        one = self.protocol
        shared = (one.metrics, self.processes, self.batch_size)
        return Scoring(self.references, *shared, self._compared_references)

    def run(self) -> Path:
        """Run the stages; all processes call this. Gives the folder of the results."""
        _ = self.references, self._compared_references  # a fault of theirs is told first
        available = self._available()
        with ExitStack() as held:
            self.processes.on_main(partial(hold_folder, Path(self.output_dir), held))
            self._run_stages(available)
        return Path(self.output_dir)

    def _available(self) -> list[Method]:
        """The rows that can be measured; the others are told before the work begins."""
        missing = {m.name: why for m in self._rows if (why := m.unavailable()) is not None}
        told = [f"{name} is {why}" for name, why in missing.items()]
        if all(method.name in missing for method in self.methods.values()):
            raise ValueError(f"no row of the table can be measured: {' | '.join(told)}")
        for line in told:
            self._warn(line)
        return [method for method in self._rows if method.name not in missing]

    def _warn(self, line: str) -> None:
        if self.processes.accelerator.is_main_process:
            print(f"warning: {line}", file=sys.stderr, flush=True)

    def _run_stages(self, available: Sequence[Method]) -> None:
        both = [*available] if self._compared is self._real else [*available, self._compared]
        if "generate" in self.stages:
            for method in both:
                for generation in self._generations(method):
                    generation.run(self.processes)
        if "features" in self.stages:
            for method in both:
                for run in self._runs(method):
                    self._scoring.read_features(run, method.name)
        if "score" in self.stages:
            self._score(available)
        if "table" in self.stages:
            self.processes.on_main(self._report)

    def report(self) -> str:
        """Run the stages, and say what came out; empty on all processes but the main one."""
        folder = self.run()
        if not self.processes.accelerator.is_main_process:
            return ""
        if "table" not in self.stages:
            return f"result: {folder}"
        shown = [(folder / f"{name}.txt").read_text("utf-8") for name in ("table", "controls")]
        return "\n".join([*shown, f"result: {folder}"])

    def _folder(self, method: Method) -> Path:
        return Path(self.output_dir) / folder_name(method.name)

    def _generations(self, method: Method) -> list[Generation]:
        # Only a pipeline's pictures differ from seed to seed.
        seeds = self.seeds if isinstance(method, PipelineMethod) else self.seeds[:1]
        folder = self._folder(method)
        is_compared = method is self._compared
        references = self._compared_references if is_compared else self.references
        return [
            Generation(method, references, folder / f"seed_{seed}", seed, self.batch_size)
            for seed in seeds
        ]

    def _runs(self, method: Method) -> list[MethodRun]:
        runs = []
        for generation in self._generations(method):
            products = generation.products()
            if products is None:
                raise ValueError(
                    f"{generation.folder} does not hold all that {method.name} makes; add "
                    "generate to the stages"
                )
            runs.append(MethodRun(generation.seed, generation.folder, products))
        return runs

    def _score(self, available: Sequence[Method]) -> None:
        (real,), (compared,) = self._runs(self._real), self._runs(self._compared)
        shortages = self._scoring.shortages(compared)
        for line in shortages:
            self._warn(line)
        floors = self._scoring.floors(compared, None if self._compared is self._real else real)
        controls = [self._real, *self._controls]
        for method in available:
            runs = self._runs(method)
            scores = self._scoring.score(runs, compared, method.name, method.is_a_set)
            if method is self._real:
                scores.remarks += shortages + [_told(*each) for each in floors.items()]
            elif method not in controls:
                self._mark_floors(scores, floors, method.name)
            path = self._folder(method) / SCORES_FILE
            self.processes.on_main(partial(scores.write, path))

    def _mark_floors(self, scores: Scores, floors: Mapping[str, Floor], name: str) -> None:
        """Mark the distances of a row that lie at or below their floor, and warn of them."""
        for column, floor in floors.items():
            cell = scores.cells.get(column)
            if not isinstance(cell, Measured):
                continue
            scores.cells[column] = cell = replace(cell, floor=floor.value)
            if cell.is_at_floor:
                line = (
                    f"{columns()[column].title} of {name}, {cell.value:.2f}, is below or near its "
                    f"floor of {floor.value:.2f}: it does not tell these pictures from real ones; "
                    "measure more pictures"
                )
                scores.remarks.append(line)
                self._warn(line)

    def _scores(self, methods: Sequence[Method]) -> dict[str, Scores | Skipped]:
        found: dict[str, Scores | Skipped] = {}
        for method in methods:
            path = self._folder(method) / SCORES_FILE
            why = method.unavailable()
            if why is None and not path.is_file():
                why = Skipped(f"not scored: there is no {path}", "add score to the stages")
            found[method.name] = why or Scores.read(path)
        return found

    def _report(self) -> None:
        folder = Path(self.output_dir)
        methods = [*self.methods.values(), *self._varied]
        scores = self._scores(methods)
        if self.yardstick is not None:
            self._set_beside(self.methods[self.yardstick], scores)
        controls = self._scores([self._real, *self._controls])
        real = controls[self._real.name]
        floors = real.remarks if isinstance(real, Scores) else []
        remarks = [method.remark for method in methods if method.remark]
        notes = [*self.protocol.notes, *floors, *remarks, *self._evaluations(methods)]
        write_all(results_table(str(self.table), scores, notes), folder / "table")
        write_all(controls_table(controls, notes), folder / "controls")
        self._draw(folder, scores, controls)

    def _set_beside(self, yardstick: Method, scores: Mapping[str, Scores | Skipped]) -> None:
        """Add what each method costs, and how far its pictures are from the yardstick's."""
        pictures = self._first_pictures()
        against = pictures[yardstick.name]
        for method in self._pipelines:
            found = scores[method.name]
            if not isinstance(found, Scores):
                continue
            own = pictures[method.name]
            distances = [
                np.abs(own.read(i) - against.read(i).astype(float)).mean() for i in own.ids
            ]
            how = f"mean absolute difference to {yardstick.name}, in 1/255"
            found.cells["pixels"] = Measured(float(np.mean(distances)), len(distances), how)
            count = self._generations(method)[0].evaluations()
            if count is not None:
                how = "network evaluations a picture; one of half of the blocks counts half"
                found.cells["evaluations"] = Measured(count, len(distances), how)

    def _evaluations(self, methods: Sequence[Method]) -> list[str]:
        found = {}
        for method in methods:
            if isinstance(method, PipelineMethod) and method.unavailable() is None:
                generation = self._generations(method)[0]
                count = None if generation.products() is None else generation.evaluations()
                if count is not None:
                    found[method.name] = f"{method.name} {count:.3g}"
        return [f"Network evaluations a picture: {'; '.join(found.values())}"] if found else []

    def _draw(
        self,
        folder: Path,
        scores: Mapping[str, Scores | Skipped],
        controls: Mapping[str, Scores | Skipped],
    ) -> None:
        pictures = self._first_pictures()
        if pictures and self.num_examples:
            grid = examples_grid(self.references, pictures, self.num_examples)
            write_figure(grid, folder / "examples.png")
        # Rows that differ in guidance or step alone have a plot of their own.
        varied = {method.name for method in self._varied}
        both = {n: s for n, s in {**scores, **controls}.items() if n not in varied}
        bars = {n: s.class_iou for n, s in both.items() if isinstance(s, Scores) and s.class_iou}
        if bars:
            write_figure(class_iou_bars(bars), folder / "class_iou.png")
        for each in self._sweeps:
            if curves := self._curves(each, scores):
                write_figure(sweep_plot(curves, each.title), folder / f"{each.name}.png")

    def _first_pictures(self) -> dict[str, Pictures]:
        found = {}
        for method in self.methods.values():
            if method.unavailable() is None:
                pictures = self._generations(method)[0].products()
                if isinstance(pictures, Pictures):
                    found[method.name] = pictures
        return found

    def _curves(
        self, swept: Sweep, scores: Mapping[str, Scores | Skipped]
    ) -> dict[str, dict[str, list[tuple[float, float]]]]:
        curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
        for method in self._pipelines if len(swept.values) > 1 else []:
            for value in swept.values:
                found = scores[swept.vary(method, value).name]
                cells = found.cells if isinstance(found, Scores) else {}
                for column, cell in cells.items():
                    if isinstance(cell, Measured) and columns()[column].charted:
                        points = curves.setdefault(column, {}).setdefault(method.name, [])
                        points.append((value, cell.value))
        return curves
