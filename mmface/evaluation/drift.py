"""What else changes when a prompt names one thing more: the drift of all that it does not name.

Pictures of the same masks and the same noise are made from a prompt that names nothing, and from
the same prompt with one phrase more. Attributes are read off both, and subtracted face by face.
The controls name nothing either: another seed, and the prompt in other words. What a phrase does to
an attribute that it does not name should lie within the controls' intervals.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from mmface.core.command_line import check_whole
from mmface.core.files import write_text
from mmface.core.processes import Processes, computes_on_cpu, joined_processes
from mmface.core.published import markdown_table
from mmface.data.pictures import PictureSource
from mmface.evaluation.generation import Generation
from mmface.evaluation.methods import GeneratingMethod, Method
from mmface.evaluation.references import References
from mmface.evaluation.scoring import MethodRun, Scoring
from mmface.evaluation.table_evaluation import Protocol, folder_name, hold_folder
from mmface.evaluation.tables import installed_versions
from mmface.metrics.metric import PictureOrder, SampleMetric, Skipped, Values, columns
from mmface.metrics.statistics import bootstrap_mean

OTHER_SEED = "another seed"
RESULT_FILE = "drift.json"


class OnePrompt(References):
    """Faces that are all asked for with the same prompt."""

    def __init__(self, prompt: str, source: PictureSource, modality: str, num_faces: int | None):
        super().__init__(source, modality, num_faces=num_faces)
        self.prompt = prompt

    def order(self, item: int, seed: int) -> PictureOrder:
        """Ask for a face, whatever its captions say."""
        return replace(super().order(item, seed), prompt=self.prompt)

    def made_by(self) -> dict[str, Any]:
        """What decides pictures and prompts, in plain values."""
        return {**super().made_by(), "prompt": self.prompt}


@dataclass(frozen=True)
class NamingPrompt:
    """The plain prompt with one phrase more.

    Attributes:
        prompt: the whole prompt.
        names: columns that the phrase is about; a change there is no drift.
    """

    prompt: str
    names: Sequence[str]


@dataclass(frozen=True)
class _Asked:
    """One row: what is asked with, whether it is a control, and the columns that it names."""

    name: str
    prompt: str
    seed: int
    is_control: bool
    names: Sequence[str] = ()


@dataclass(frozen=True)
class DriftEvaluation:
    """Measures drift of methods under one protocol.

    Attributes:
        protocol: faces, and metrics of single pictures that read attributes.
        methods: what makes the pictures, by any key.
        plain: the prompt that names nothing.
        paraphrases: the same in other words.
        naming: prompts by the names of their rows.
        output_dir: where everything goes.
        modality: what the faces are made from, the name of a kind.
        seed: of the generation; the control has the next one.
        batch_size: pictures made or read at once.
    """

    protocol: Protocol
    methods: Mapping[str, Method]
    plain: str
    paraphrases: Sequence[str]
    naming: Mapping[str, NamingPrompt]
    output_dir: str | Path
    modality: str = "mask"
    seed: int = 0
    batch_size: int = 16

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        check_whole("batch_size", self.batch_size, 1)
        check_whole("seed", self.seed, 0)
        if not self.methods:
            raise ValueError("there is no method to measure; name one, such as method=ours")
        for method in self.methods.values():
            if not isinstance(method, GeneratingMethod):
                raise ValueError(
                    f"{method.name} is a folder of pictures, which cannot be asked with other "
                    "prompts; take a method that makes pictures, such as method=ours"
                )
        for metric in self.protocol.metrics.values():
            if not isinstance(metric, SampleMetric):
                raise ValueError(f"{metric.name} reads sets of pictures; take one of attributes")
        unknown = {name for one in self.naming.values() for name in one.names} - columns().keys()
        if unknown:
            raise ValueError(f"naming has names {sorted(unknown)}, which are no columns")
        folders = [folder_name(one.name) for one in self._asked]
        if len(set(folders)) < len(folders):
            raise ValueError("paraphrases and naming need names of their own")

    @cached_property
    def _asked(self) -> list[_Asked]:
        controls = [_Asked(OTHER_SEED, self.plain, self.seed + 1, True)]
        controls += [_Asked(f'"{text}"', text, self.seed, True) for text in self.paraphrases]
        naming = self.naming.items()
        return [
            *controls,
            *(_Asked(name, one.prompt, self.seed, False, one.names) for name, one in naming),
        ]

    @cached_property
    def processes(self) -> Processes:
        """The processes that share the work."""
        joined_processes()  # with its time limit, which the accelerator then shares
        return Processes(Accelerator(cpu=computes_on_cpu()))

    @cached_property
    def _scoring(self) -> Scoring:
        # Attributes are read off the picture alone: all prompts share what is loaded.
        references = self._references(self.plain)
        return Scoring(references, self.protocol.metrics, self.processes, self.batch_size)

    def _references(self, prompt: str) -> References:
        return OnePrompt(prompt, self.protocol.source, self.modality, self.protocol.num_faces)

    def report(self) -> str:
        """Measure, and lay the tables out; empty on all processes but the main one."""
        content = self.run()
        if not self.processes.accelerator.is_main_process:
            return ""
        return f"{as_markdown(content)}\n\nresult: {self.output_dir}"

    def run(self) -> dict[str, Any]:
        """Make and read what is absent, write `drift.json`, and return what is in it."""
        missing = [str(why) for m in self.methods.values() if (why := m.unavailable())]
        missing += [str(why) for m in self.protocol.metrics.values() if (why := self._open(m))]
        if missing:
            raise ValueError(" | ".join(missing))
        with ExitStack() as held:
            self.processes.on_main(partial(hold_folder, Path(self.output_dir), held))
            tables = {method.name: self._table(method) for method in self.methods.values()}
            content = {"tables": tables, "notes": self._notes(), "versions": installed_versions()}
            path = Path(self.output_dir) / RESULT_FILE
            text = json.dumps(content, indent=1, allow_nan=False) + "\n"
            self.processes.on_main(partial(write_text, path, text))
        return content

    def _open(self, metric: Any) -> Skipped | None:
        if metric.name not in self._scoring.metrics:
            return Skipped(f"{metric.name} needs {', '.join(metric.needs)}", "take modality=mask")
        return self._scoring.open(metric)

    def _table(self, method: Method) -> list[dict[str, Any]]:
        plain = self._values(method, _Asked("plain", self.plain, self.seed, True))
        rows = []
        for asked in self._asked:
            changes = changed(plain, self._values(method, asked))
            row = {"name": asked.name, "prompt": asked.prompt, "control": asked.is_control}
            rows.append({**row, "names": list(asked.names), "cells": changes})
        return rows

    def _values(self, method: Method, asked: _Asked) -> list[Values]:
        folder = Path(self.output_dir) / folder_name(method.name) / folder_name(asked.name)
        references = self._references(asked.prompt)
        generation = Generation(method, references, folder, asked.seed, self.batch_size)
        generation.run(self.processes)
        products = generation.products()
        assert products is not None
        run = MethodRun(asked.seed, folder, products)
        read = [
            self._scoring.values(run, metric, f"{method.name}, {asked.name}")
            for metric in self._scoring.metrics.values()
            if isinstance(metric, SampleMetric)
        ]
        return [
            {k: v for part in parts for k, v in part.items()} for parts in zip(*read, strict=True)
        ]

    def _notes(self) -> list[str]:
        references = self._scoring.references
        protocols = ", ".join(metric.protocol for metric in self._scoring.metrics.values())
        return [
            f'Against the same faces and noise with "{self.plain}", N = {len(references)}',
            f"Read by {protocols}; {references.protocol}; made from: {self.modality}",
            *self.protocol.notes,
        ]


def changed(plain: Sequence[Values], named: Sequence[Values]) -> dict[str, dict[str, Any]]:
    """Compare two readings of the same faces, by column.

    `drift` is the mean of the differences, `change` that of their absolute values, each with its
    95 % interval over faces. Faces without the attribute in either (None) are left out; a column
    with fewer than two is not there.
    """
    found = {}
    for column in plain[0]:
        pairs = [(b[column], a[column]) for b, a in zip(plain, named, strict=True)]
        values = np.array([a - b for b, a in pairs if a is not None and b is not None], np.float64)
        if len(values) > 1:
            drift, change = bootstrap_mean(values), bootstrap_mean(np.abs(values))
            intervals = {"drift": drift, "change": change}
            found[column] = {name: asdict(one) for name, one in intervals.items()}
    return found


def bars(rows: Sequence[Mapping[str, Any]], measure: str) -> dict[str, tuple[float, float]]:
    """The range of the controls' intervals, by column; `measure` is `drift` or `change`.

    A smaller change than a control's is no fault: its range begins at 0.
    """
    intervals: dict[str, list[Mapping[str, float]]] = {}
    for row in rows:
        if row["control"]:
            for column, cell in row["cells"].items():
                intervals.setdefault(column, []).append(cell[measure])
    return {
        column: (
            0.0 if measure == "change" else min(one["low"] for one in found),
            max(one["high"] for one in found),
        )
        for column, found in intervals.items()
    }


def faults(rows: Sequence[Mapping[str, Any]], measure: str = "drift") -> Iterator[tuple[str, str]]:
    """(row, column) of every attribute that is not named and lies outside the controls' range."""
    ranges = bars(rows, measure)
    for row in rows:
        for column, cell in row["cells"].items():
            if not row["control"] and column not in row["names"]:
                low, high = ranges[column]
                if not low <= cell[measure]["estimate"] <= high:
                    yield row["name"], column


_TITLES = {
    "drift": "drift, with its sign",
    "change": "change of single faces, without sign",
}


def as_markdown(content: Mapping[str, Any]) -> str:
    """Lay out both tables of each method.

    What lies outside the controls' range is bold; what the phrase names is in brackets.
    """
    parts = []
    for method, rows in content["tables"].items():
        for measure, title in _TITLES.items():
            outside = set(faults(rows, measure))
            asked = sum(len(r["cells"].keys() - r["names"]) for r in rows if not r["control"])
            parts.append(
                f"**{method}: {title}.** {len(outside)} of {asked} attributes that are not named "
                f"lie outside the controls' range.\n\n{_grid(rows, measure, outside)}"
            )
    notes = [*content["notes"], _versions(content["versions"])]
    return "\n\n".join([*parts, "\n".join(f"- {note}" for note in notes)])


def _versions(versions: Mapping[str, str]) -> str:
    return "Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items())


def _grid(rows: Sequence[Mapping[str, Any]], measure: str, outside: set[tuple[str, str]]) -> str:
    known = columns()
    shown = [column for column in known if any(column in row["cells"] for row in rows)]
    lines = []
    for row in rows:
        line = [row["name"] if not row["control"] else f"control: {row['name']}"]
        for column in shown:
            if column not in row["cells"]:
                line.append("")
                continue
            one, digits = row["cells"][column][measure], known[column].digits
            sign = "+" if measure == "drift" else ""
            half = (one["high"] - one["low"]) / 2
            text = f"{one['estimate']:{sign}.{digits}f} ± {half:.{digits}f}"
            if column in row["names"]:
                text = f"({text})"
            line.append(f"**{text}**" if (row["name"], column) in outside else text)
        lines.append(line)
    return markdown_table(["", *(known[column].title for column in shown)], lines)
