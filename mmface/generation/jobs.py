"""Many requests from a JSON-lines file, over any number of processes; a stopped run is resumable.

Batches are cut from the whole file before they are dealt out, so that a picture has the same batch,
and on equal processors and threads the same bits, whatever the number of processes and however
often a run was stopped. A picture that is there with the same recipe is not made again.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from PIL import Image
from tqdm import tqdm

from mmface.conditions import condition_kinds
from mmface.core.files import PICTURE_SUFFIXES, check_output, locked, sweep, write_text
from mmface.core.journal import as_lines
from mmface.core.processes import joined_processes
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
    Provenance,
    Run,
    Settings,
    check_text,
    option_values,
    options_of,
    parse_object,
    read_fields,
    read_provenance,
    write_pictures,
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
    given = "jobs" if run.out is None else run.out
    if Path(given).suffix.lower() in PICTURE_SUFFIXES and not given.endswith("/"):
        raise ValueError(f"{given} is a picture; jobs need a folder as --out.")
    out = check_output(f"{given}/").path
    jobs, failures = read_jobs(run.jobs, settings, draws)
    state = joined_processes()
    with _alone(out, state):  # before the model is loaded
        model = open_model(choice, run.offload, state.device)
        worker = _Worker(model, Path(run.jobs).parent, out, run)
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


@contextmanager
def _alone(out: Path, state: PartialState) -> Iterator[None]:
    """Hold the folder for the processes of this run, and delete what killed runs left in it."""
    with ExitStack() as held:
        failure: OSError | None = None
        if state.is_main_process:
            try:
                held.enter_context(locked(out))
                for folder in (out, out / "images"):
                    sweep(folder, alone=True)
                for part in out.glob(".part_*.json"):
                    part.unlink()
            except OSError as error:
                failure = error
        outcome = [str(failure or "")]
        if state.num_processes > 1:
            broadcast_object_list(outcome)
        if outcome[0]:
            raise failure or OSError(outcome[0])
        yield


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
        # What a line holds may be no text, and half of a surrogate pair cannot be written.
        said = as_lines(map(asdict, failed)).encode("utf-8", "replace").decode()
        write_text(path, said)
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

    def __init__(self, model: OpenedModel, folder: Path, out: Path, run: Run) -> None:
        self.model, self.folder, self.out, self.run = model, folder, out, run
        self.failures: list[Failure] = []
        self.there: dict[str, Provenance] = {}

    def work(self, jobs: Sequence[Job], process: int, num_processes: int) -> dict[str, Any]:
        """Do every num_processes-th batch; gives the results' lines by the jobs' ids."""
        results: dict[str, list[dict[str, Any]]] = {}
        batches = _batches(jobs, self.run.max_batch or MAX_BATCH)[process::num_processes]
        progress = tqdm(total=sum(map(len, batches)), desc="jobs", unit="job")
        self.model.pipeline.set_progress_bar_config(disable=True)
        with progress:
            for batch in batches:
                for job in self._do(batch):
                    results[job.id] = self._results(job)
                progress.update(len(batch))
        return {"results": results}

    def _do(self, batch: Sequence[Job]) -> list[Job]:
        """Do a batch, and give the jobs that are done; one that fails leaves the others."""
        ready = [(job, one) for job in batch if (one := self._ready(job)) is not None]
        if all(name in self.there for job, _ in ready for name in job.names):
            return [job for job, _ in ready]
        done = []
        for (job, _), made in zip(ready, self._sample(ready), strict=True):
            if made is not None:
                self._write(job, *made)
                done.append(job)
        return done

    def _ready(self, job: Job) -> PreparedRequest | None:
        """Read a job's files and find its pictures that are there; None if it cannot be done."""
        try:
            one = prepare_request(
                job.settings, self.model.pipeline, lambda option, path: located(path, self.folder)
            )
            recipe = provenance_of(self.model, [one], job.seeds)
            for k, name in enumerate(job.names):
                path = self.out / "images" / name
                found = _provenance_at(path)
                if found is not None and found.makes_the_same_as(recipe.of_picture(k)):
                    self.there[name] = found
                elif path.exists() and not self.run.overwrite:
                    raise ValueError(
                        f"{path} is there and was made of something else: give another --out, or "
                        "--overwrite to replace it"
                    )
        except (ValueError, OSError) as error:
            self._fail(job, error)
            return None
        return one

    def _sample(
        self, ready: Sequence[tuple[Job, PreparedRequest]]
    ) -> list[tuple[list[Image.Image], Provenance] | None]:
        """Sample requests at once or, where that fails, one by one to find the one at fault."""
        requests, seeds = [one for _, one in ready], [job.seeds for job, _ in ready]
        max_batch = self.run.max_batch
        try:
            faces = sample_requests(self.model.pipeline, requests, seeds, max_batch)
        except ValueError as error:
            if len(ready) > 1:
                return [self._sample([each])[0] for each in ready]
            self._fail(ready[0][0], error)
            return [None]
        calls = [(len(ready), place) for place in range(len(ready))]
        return [
            (own, provenance_of(self.model, [one], job.seeds, max_batch, call))
            for (job, one), own, call in zip(ready, faces, calls, strict=True)
        ]

    def _fail(self, job: Job, error: Exception) -> None:
        self.failures.append(Failure(job.line, job.id, " ".join(str(error).split())))

    def _write(self, job: Job, faces: Sequence[Image.Image], recipe: Provenance) -> None:
        made = {
            name: (face, recipe.of_picture(k))
            for k, (name, face) in enumerate(zip(job.names, faces, strict=True))
            if name not in self.there
        }
        write_pictures({self.out / "images" / name: each for name, each in made.items()})
        self.there |= {name: own for name, (_, own) in made.items()}

    def _results(self, job: Job) -> list[dict[str, Any]]:
        """Give a line for each of a job's pictures; its files' paths are as the job has them."""
        return [
            {
                "id": job.id,
                "prompt": job.settings.prompt,
                "seed": seed,
                **{kind.name: job.settings.conditions.get(kind.name) for kind in condition_kinds()},
                "photo": job.settings.photo,
                "image": f"images/{name}",
                "recipe": json.loads(self.there.pop(name).json),
            }
            for name, seed in zip(job.names, job.seeds, strict=True)
        ]


def _provenance_at(path: Path) -> Provenance | None:
    try:
        return read_provenance(path)[0]
    except (ValueError, OSError):
        return None


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
