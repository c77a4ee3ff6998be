"""Many requests from a JSON-lines file, over any number of processes, to be gone on with.

Batches are cut from the whole file before they are dealt out, so that a picture is of the same
batch, and thus the same to the bit, whatever the number of processes and however often a run was
stopped. A picture that is there with the very recipe is not made again.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from mmface.conditions import condition_kinds
from mmface.core.files import write_text
from mmface.core.journal import as_lines
from mmface.core.processes import joined_processes
from mmface.generation.provenance import (
    Provenance,
    check_output,
    parse_object,
    read_provenance,
    write_pictures,
)
from mmface.generation.requests import (
    PreparedRequest,
    check_asked,
    located,
    prepare_request,
    sample_requests,
    say,
    seeds_from,
)
from mmface.generation.sample import OpenedModel, open_model, provenance_of
from mmface.generation.settings import (
    Draws,
    ModelChoice,
    Run,
    Settings,
    check_text,
    option_values,
    options_of,
    read_fields,
)

MAX_LINE_BYTES = 200_000
MAX_ID_BYTES = 200
MAX_BATCH = 8
"""Pictures of a batch where nobody says."""


@dataclass(frozen=True)
class Job:
    """One line of a jobs file.

    Attributes:
        id: What its pictures are called.
        line: Its number in the file, from 1.
        settings: What was asked for.
        seeds: The seeds of its pictures.
    """

    id: str
    line: int
    settings: Settings
    seeds: tuple[int, ...]

    @property
    def names(self) -> list[str]:
        """The files of its pictures."""
        if len(self.seeds) == 1:
            return [f"{self.id}.png"]
        return [f"{self.id}_{k}.png" for k in range(len(self.seeds))]


@dataclass(frozen=True)
class Failure:
    """A line that could not be done, and why."""

    line: int
    id: str | None
    error: str


def read_jobs(
    path: str | Path, settings: Settings | None = None, draws: Draws | None = None
) -> tuple[list[Job], list[Failure]]:
    """Read a jobs file; lines that are no jobs do not spoil the others.

    Args:
        path: JSON lines: `id`, and any option of `Settings` and `Draws` by its name.
        settings: What holds for lines that do not say it themselves; None for the defaults.
        draws: The same for seeds.

    Returns:
        The jobs, and the lines that are none.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it has no lines.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"The jobs file {path} does not exist.")
    defaults = option_values(settings or Settings()) | option_values(draws or Draws())
    jobs, failures = list[Job](), list[Failure]()
    taken: dict[str, int] = {}
    for number, line in _lines(path):
        found: dict[str, Any] = {}
        try:
            found = _object(line)
            job = _job(found, number, defaults)
            for name in job.names:
                if name in taken:
                    raise ValueError(f"{name} is the picture of line {taken[name]} already")
            taken |= dict.fromkeys(job.names, number)
            jobs.append(job)
        except ValueError as error:
            named = found.get("id")
            failures.append(Failure(number, named if isinstance(named, str) else None, str(error)))
    if not jobs and not failures:
        raise ValueError(f"{path} has no jobs: give a JSON object a line.")
    return jobs, failures


def _lines(path: Path) -> Iterable[tuple[int, bytes | None]]:
    """Give the lines that are not blank with their numbers; None for one that is too long."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES):
            number += 1
            too_long = False
            while not line.endswith(b"\n") and (more := file.readline(MAX_LINE_BYTES)):
                line, too_long = more, True
            if too_long or line.strip():
                yield number, None if too_long else line


def _object(line: bytes | None) -> dict[str, Any]:
    """Parse a line."""
    if line is None:
        raise ValueError(f"it is longer than {MAX_LINE_BYTES} bytes")
    try:
        return parse_object(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 ({error.reason} at byte {error.start})") from None


def _job(values: dict[str, Any], line: int, defaults: Mapping[str, Any]) -> Job:
    """Make a job of a line's values."""
    rest = {key: value for key, value in values.items() if key != "id"}
    name = check_text("id", values.get("id"))
    is_safe = name.isprintable() and not set(name) & set('/\\:*?"<>|') and name.strip(". ")
    if not is_safe or name.startswith(".") or len(name.encode()) > MAX_ID_BYTES:
        raise ValueError(
            f"the id {name[:80]!r} cannot be a file's name: no separators, no dots first"
        )
    known = [option.name for group in (Settings, Draws) for option in options_of(group)]
    if unknown := sorted(rest.keys() - set(known)):
        raise ValueError(f"unknown key {unknown[0][:80]!r}; known are id, {', '.join(known)}")
    sources = {"photo", *(kind.name for kind in condition_kinds())}
    if sources & rest.keys():  # its own condition stands for all of the command line's
        defaults = {**defaults, **dict.fromkeys(sources)}
    merged = {**defaults, **rest}
    draw_names = {option.name for option in options_of(Draws)}
    asked = {key: value for key, value in merged.items() if key not in draw_names}
    settings = read_fields(Settings, asked, "options")
    draws = read_fields(Draws, {key: merged[key] for key in draw_names}, "options")
    check_asked(settings)
    return Job(name, line, settings, seeds_from(draws.seed, 1 if draws.num is None else draws.num))


def run_jobs(
    settings: Settings, draws: Draws, choice: ModelChoice, run: Run
) -> tuple[list[Path], int]:
    """Sample all jobs of a file; each process of a launch takes its share of the batches.

    Args:
        settings: What holds for lines that do not say it themselves.
        draws: The same for seeds.
        choice: The model.
        run: `jobs` is the file, `out` the folder that gets `images/`, `results.jsonl` and, where
            lines failed, `failures.jsonl`.

    Returns:
        The results' file, on the first process; and the exit status: 0, or 1 if lines failed.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it has no lines, or `run` asks for what jobs do not do.
    """
    assert run.jobs is not None
    if run.report or run.best_of is not None:
        raise ValueError("--report and --best-of are for one request; evaluate measures jobs.")
    out = check_output("jobs" if run.out is None else run.out)
    if out.suffix:
        raise ValueError(f"{out} is a picture; jobs need a folder as --out.")
    jobs, failures = read_jobs(run.jobs, settings, draws)
    state = joined_processes()
    model = open_model(choice, run.offload, state.device)
    worker = _Worker(model, Path(run.jobs).parent, out, run.max_batch)
    mine = worker.work(jobs, state.process_index, state.num_processes)
    part = _part(out, state.process_index)
    write_text(part, json.dumps({**mine, "failures": [asdict(f) for f in worker.failures]}))
    state.wait_for_everyone()
    status = 0
    if state.is_main_process:
        status = _merge(out, state.num_processes, jobs, failures)
    state.wait_for_everyone()
    failed_here = bool(failures or worker.failures)
    return ([out / "results.jsonl"] if state.is_main_process else []), int(status or failed_here)


def _part(out: Path, process: int) -> Path:
    return out / f".part_{process:05d}.json"


def _merge(out: Path, num_processes: int, jobs: Sequence[Job], failures: list[Failure]) -> int:
    """Write the results and the failures of all processes, in the order of the file."""
    parts = [_part(out, process) for process in range(num_processes)]
    results: dict[str, list[dict[str, Any]]] = {}
    failed = list(failures)
    for part in parts:
        found = json.loads(part.read_text(encoding="utf-8"))
        failed += [Failure(**each) for each in found["failures"]]
        results |= found["results"]
    lines = [line for job in jobs for line in results.get(job.id, [])]
    write_text(out / "results.jsonl", as_lines(lines))
    failed.sort(key=lambda failure: failure.line)
    path = out / "failures.jsonl"
    if failed:
        write_text(path, as_lines(map(asdict, failed)))
        for failure in failed:
            print(f"failed: line {failure.line}: {failure.error}", file=sys.stderr)
    else:
        path.unlink(missing_ok=True)
    say(f"{len(lines)} pictures are in {out / 'images'}, {len(failed)} lines failed")
    for part in parts:
        part.unlink()
    return int(bool(failed))


class _Worker:
    """One process's part in a file of jobs."""

    def __init__(self, model: OpenedModel, folder: Path, out: Path, max_batch: int | None) -> None:
        self.model, self.folder, self.out, self.max_batch = model, folder, out, max_batch
        self.failures: list[Failure] = []

    def work(self, jobs: Sequence[Job], process: int, num_processes: int) -> dict[str, Any]:
        """Do every num_processes-th batch; gives the results' lines by the jobs' ids."""
        results: dict[str, list[dict[str, Any]]] = {}
        batches = _batches(jobs, self.max_batch or MAX_BATCH)[process::num_processes]
        progress = tqdm(total=sum(map(len, batches)), desc="jobs", unit="job")
        self.model.pipeline.set_progress_bar_config(disable=True)
        with progress:
            for batch in batches:
                for job, recipe in self._do(batch):
                    results[job.id] = self._results(job, recipe)
                progress.update(len(batch))
        return {"results": results}

    def _do(self, batch: Sequence[Job]) -> list[tuple[Job, Provenance]]:
        """Do a batch; where one of its jobs cannot be done, the others are."""
        ready = [(job, one) for job in batch if (one := self._ready(job)) is not None]
        recipes = [provenance_of(self.model, [one], job.seeds) for job, one in ready]
        missing = [
            any(not self._is_there(name, recipe.of_picture(k)) for k, name in enumerate(job.names))
            for (job, _), recipe in zip(ready, recipes, strict=True)
        ]
        done = [True] * len(ready)
        if any(missing):
            faces = self._sample(ready)
            done = [own is not None for own in faces]
            for (job, _), recipe, own in zip(ready, recipes, faces, strict=True):
                if own is not None:
                    self._write(job, recipe, own)
        return [
            (job, recipe)
            for (job, _), recipe, is_done in zip(ready, recipes, done, strict=True)
            if is_done
        ]

    def _ready(self, job: Job) -> PreparedRequest | None:
        try:
            return prepare_request(
                job.settings, self.model.pipeline, lambda option, path: located(path, self.folder)
            )
        except (ValueError, OSError) as error:
            self.failures.append(Failure(job.line, job.id, " ".join(str(error).split())))
            return None

    def _sample(
        self, ready: Sequence[tuple[Job, PreparedRequest]]
    ) -> list[list[Image.Image] | None]:
        """Sample requests at once or, where that fails, one by one to find the one at fault."""
        requests, seeds = [one for _, one in ready], [job.seeds for job, _ in ready]
        try:
            return list(sample_requests(self.model.pipeline, requests, seeds, self.max_batch))
        except ValueError as error:
            if len(ready) == 1:
                job = ready[0][0]
                self.failures.append(Failure(job.line, job.id, " ".join(str(error).split())))
                return [None]
        return [self._sample([one])[0] for one in ready]

    def _is_there(self, name: str, recipe: Provenance) -> bool:
        try:
            return read_provenance(self.out / "images" / name)[0].makes_the_same_as(recipe)
        except (ValueError, OSError):
            return False

    def _write(self, job: Job, recipe: Provenance, faces: Sequence[Image.Image]) -> None:
        wanted = {
            self.out / "images" / name: (face, recipe.of_picture(k))
            for k, (name, face) in enumerate(zip(job.names, faces, strict=True))
        }
        write_pictures(
            {path: each for path, each in wanted.items() if not self._is_there(path.name, each[1])}
        )

    def _results(self, job: Job, recipe: Provenance) -> list[dict[str, Any]]:
        """Give a line for each of a job's pictures; its files' paths are as the job has them."""
        return [
            {
                "id": job.id,
                "prompt": job.settings.prompt,
                "seed": seed,
                **{kind.name: job.settings.conditions.get(kind.name) for kind in condition_kinds()},
                "photo": job.settings.photo,
                "image": f"images/{name}",
                "recipe": json.loads(recipe.of_picture(k).json),
            }
            for k, (name, seed) in enumerate(zip(job.names, job.seeds, strict=True))
        ]


def _batches(jobs: Sequence[Job], max_batch: int) -> list[list[Job]]:
    """Cut jobs into batches of equal settings, of at most so many pictures or of one job."""
    alike: dict[tuple[Settings, int], list[Job]] = {}
    for job in jobs:
        alike.setdefault((job.settings.shared, len(job.seeds)), []).append(job)
    batches = []
    for (_, num), group in alike.items():
        size = max(1, max_batch // num)
        batches += [group[start : start + size] for start in range(0, len(group), size)]
    return sorted(batches, key=lambda batch: batch[0].line)
