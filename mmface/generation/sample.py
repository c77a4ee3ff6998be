"""From words on a command line to picture files: what `scripts/sample.py` does."""

import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import diffusers
import numpy as np
import transformers
from PIL import Image

from mmface.conditions import condition_kind, condition_kinds, draw_conditions
from mmface.core.command_line import check_whole
from mmface.core.files import file_sha256, write_text
from mmface.generation.adherence import Adherence, check_measurable, measure_adherence
from mmface.generation.grid import GridRow, labelled_grid
from mmface.generation.jobs import run_jobs
from mmface.generation.models import default_device, open_model
from mmface.generation.provenance import (
    Provenance,
    check_output,
    current_versions,
    read_provenance,
    write_pictures,
)
from mmface.generation.requests import (
    BUILTIN_PREFIX,
    DEFAULT_STEPS,
    Locate,
    PreparedRequest,
    check_asked,
    located,
    open_parser,
    prepare_request,
    provenance_of,
    sample_requests,
    say,
    seeds_from,
)
from mmface.generation.settings import (
    Draws,
    ModelChoice,
    Run,
    Settings,
    option_values,
    options_of,
)
from mmface.rendered.examples import EXAMPLES, read_examples
from mmface.sampling.acceleration import check_compiler

DEMO_STEPS = 25
DEMO_NUM = 3
MAX_RERUN_PIXELS = 1 << 28
"""Above this, all faces together, a picture's recipe is not followed."""


def quiet() -> None:
    """Leave the terminal to sampling: no progress of loading, no warnings of libraries."""
    warnings.filterwarnings("ignore")
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def sample(
    settings: Settings, draws: Draws, choice: ModelChoice, run: Run
) -> tuple[list[Path], int]:
    """Do what a command line asks for.

    Args:
        settings: The face; without prompt and conditions, the built-in examples.
        draws: Seeds.
        choice: The model.
        run: What to do with the faces. `out` is a file, for one face as it is or a labelled grid
            of several; or a folder, for a file `seed_<seed>.png` of each.

    Returns:
        What was written, and the exit status: 0, or 1 if some jobs failed.

    Raises:
        FileNotFoundError: If a file is not there.
        ValueError: If what is asked for does not fit; nothing was written then.
    """
    if run.memory is not None:
        raise ValueError("--memory is for --plan; give both.")
    if choice.fast:
        say("--fast: the first faces of each batch size and picture size take longer, to compile")
    if run.rerun is not None:
        return _rerun(settings, draws, choice, run), 0
    if run.jobs is not None:
        return run_jobs(settings, draws, choice, run)
    return _sample_one(settings, draws, choice, run), 0


class Asked(NamedTuple):
    """What one command asks for.

    Attributes:
        settings: Each face; the built-in examples where nothing is asked.
        seeds: Those that each face is sampled with.
        steps: Sampling steps where the settings say none.
        is_demo: Whether these are the built-in examples.
    """

    settings: Sequence[Settings]
    seeds: tuple[int, ...]
    steps: int
    is_demo: bool


def asked_of(settings: Settings, draws: Draws, run: Run) -> Asked:
    """Sort what a command asks for, or raise ValueError if it cannot be sampled."""
    is_demo = settings.prompt is None and not settings.paths
    num = (DEMO_NUM if is_demo else 1) if draws.num is None else draws.num
    if run.best_of is not None:
        check_whole("best_of", run.best_of, 2, 1000)
        if is_demo or num != 1:
            raise ValueError("--best-of keeps one face of one request: leave --num out.")
        num = run.best_of
    faces = _demo(settings) if is_demo else [settings]
    for each in faces:
        check_asked(each)
    return Asked(
        faces, seeds_from(draws.seed, num), DEMO_STEPS if is_demo else DEFAULT_STEPS, is_demo
    )


def _sample_one(settings: Settings, draws: Draws, choice: ModelChoice, run: Run) -> list[Path]:
    """Sample one request, or all built-in ones, and write the faces."""
    asked, seeds, steps, is_demo = asked_of(settings, draws, run)
    default = "mmface_demo.png" if is_demo else "faces.png"
    out = check_output(default if run.out is None else run.out)
    model = open_model(choice, run.offload)
    requests = [prepare_request(each, model.pipeline, locate_here, steps) for each in asked]
    measured = run.report or run.best_of is not None
    for one in requests if measured else []:
        check_measurable(one.files.conditions)
    faces = sample_requests(model.pipeline, requests, [seeds] * len(requests), run.max_batch)
    recipe = provenance_of(model, requests, seeds)
    scores = [_adherences(one, own) for one, own in zip(requests, faces, strict=True) if measured]
    kept = [range(len(seeds))] * len(requests)
    if run.best_of is not None:
        kept = [_best(seeds, scores[0])]
    if is_demo or (len(kept[0]) > 1 and not _is_folder(out)):
        path = out / default if _is_folder(out) else out
        files = {path: (_grid(requests, seeds, faces), recipe)}
    else:
        paths = {k: out / f"seed_{seeds[k]}.png" if _is_folder(out) else out for k in kept[0]}
        files = {paths[k]: (faces[0][k], recipe.of_picture(k)) for k in kept[0]}
    write_pictures(files)
    if not run.report:
        return list(files)
    return [*files, _write_report(out, requests, seeds, scores, kept)]


def _demo(settings: Settings) -> list[Settings]:
    """Give the built-in examples, with what else was asked for."""
    asked = []
    for example in read_examples():
        path = BUILTIN_PREFIX + example.path.relative_to(EXAMPLES.parent).as_posix()
        asked.append(replace(settings, prompt=example.prompt, conditions={example.kind: path}))
    return asked


def locate_here(option: str, path: str) -> Path:
    """Give the file of an option; a relative path lies in the current folder."""
    return located(path, Path())


def _is_folder(out: Path) -> bool:
    return not out.suffix or out.is_dir()


def _grid(
    requests: Sequence[PreparedRequest],
    seeds: Sequence[int],
    faces: Sequence[Sequence[Image.Image]],
) -> Image.Image:
    """Draw the labelled grid of all faces."""
    lines = [
        GridRow(draw_conditions(one.files.conditions), str(one.settings.prompt), own)
        for one, own in zip(requests, faces, strict=True)
    ]
    return labelled_grid(lines, [f"seed {seed}" for seed in seeds])


def _adherences(one: PreparedRequest, faces: Sequence[Image.Image]) -> list[Adherence]:
    """Measure how the faces of a request follow its conditions."""
    conditions = one.files.conditions
    needed = any(condition_kind(name).needs_parser for name in conditions)
    parser = open_parser(one.settings.parser) if needed else None
    return [measure_adherence(np.array(face), conditions, parser) for face in faces]


def _best(seeds: Sequence[int], scores: Sequence[Adherence]) -> range:
    """Find the face that follows its conditions best, the first of equals, and say the scores."""
    best = max(range(len(seeds)), key=lambda k: scores[k].score)
    listed = ", ".join(f"{seed} {each.score:.3f}" for seed, each in zip(seeds, scores, strict=True))
    say(f"adherence by seed: {listed}; seed {seeds[best]} is kept")
    return range(best, best + 1)


def _write_report(
    out: Path,
    requests: Sequence[PreparedRequest],
    seeds: Sequence[int],
    scores: Sequence[Sequence[Adherence]],
    kept: Sequence[Sequence[int]],
) -> Path:
    """Print a table a face, and write all of them beside the pictures."""
    entries = []
    for one, own, places in zip(requests, scores, kept, strict=True):
        for k in places:
            prompt = one.settings.prompt
            print(f"seed {seeds[k]}, {prompt!r}\n{own[k].table()}", file=sys.stderr)
            entries.append({"prompt": prompt, "seed": seeds[k], "adherence": own[k].to_json()})
    path = out / "report.json" if _is_folder(out) else out.with_name(f"{out.stem}_report.json")
    write_text(path, json.dumps({"pictures": entries}, indent=1) + "\n")
    return path


def _rerun(settings: Settings, draws: Draws, choice: ModelChoice, run: Run) -> list[Path]:
    """Make a picture again as its recipe says, and say what is not as it was."""
    assert run.rerun is not None
    source = Path(run.rerun)
    recipe, picture = read_provenance(source)
    _check_only_places(settings, draws, choice, run)
    _check_size(recipe, picture, source)
    out = check_output(f"{source.stem}_rerun.png" if run.out is None else run.out)
    out = out / f"{source.stem}_rerun.png" if _is_folder(out) else out
    if out.resolve() == source.resolve():
        raise ValueError(f"{out} is the picture itself; give another --out.")
    locate = _recorded_files(recipe, settings.paths, source.parent)
    model = open_model(_recorded_model(recipe, choice, locate), run.offload, None, recipe.weights)
    requests = [prepare_request(each, model.pipeline, locate) for each in recipe.rows]
    if any(one.settings != each for one, each in zip(requests, recipe.rows, strict=True)):
        raise ValueError(f"The recipe in {source} leaves open what a written one says.")
    own_seeds = [recipe.seeds] * len(requests)
    faces = sample_requests(model.pipeline, requests, own_seeds, run.max_batch)
    k = recipe.picture
    made = _grid(requests, recipe.seeds, faces) if k is None else faces[0][k]
    made_by = replace(recipe.model, fast=model.choice.fast)
    again = replace(recipe, model=made_by, versions=current_versions())
    write_pictures({out: (made, again)})
    for difference in recipe.other_versions(again.versions):
        say(f"made with {difference}")
    say(_compared(made, picture, source))
    return [out]


def _check_only_places(settings: Settings, draws: Draws, choice: ModelChoice, run: Run) -> None:
    """Raise ValueError if a rerun is asked for anything but where things lie."""
    places = {kind.name for kind in condition_kinds()}
    places |= {"photo", "image", "region", "condition_region"}
    places |= {"pipeline", "released", "checkpoint", "lora"}
    places |= {"out", "rerun", "max_batch", "offload"}
    for group in (settings, draws, choice, run):
        values = option_values(group)
        for each in options_of(type(group)):
            if each.name not in places and values[each.name] != each.default:
                name = each.name.replace("_", "-")
                raise ValueError(
                    f"--rerun takes --{name} from the picture; leave it out. What may be given "
                    "are --out and, where files have moved, their places."
                )


def _check_size(recipe: Provenance, picture: Image.Image, source: Path) -> None:
    """Raise ValueError unless a recipe can be that of its picture, and is worth following."""
    sizes = [(row.width or 0, row.height or 0) for row in recipe.rows]
    if recipe.picture is not None and sizes[0] != picture.size:
        raise ValueError(f"The recipe in {source} is for {sizes[0]}, not for {picture.size}.")
    if len(recipe.seeds) * sum(width * height for width, height in sizes) > MAX_RERUN_PIXELS:
        raise ValueError(f"The recipe in {source} asks for too many or too large faces.")


def _recorded_files(recipe: Provenance, given: Mapping[str, str], beside: Path) -> Locate:
    """Give what finds a recipe's files: where they are said to be, or beside the picture."""

    def locate(option: str, path: str) -> Path:
        places = [Path(given[option])] if option in given else []
        places += [located(path, Path()), beside / path]
        found = [place for place in places if place.is_file()]
        for place in found:
            if file_sha256(place) == recipe.files[path]:
                return place
        flag = option.replace("_", "-")
        if found:
            raise ValueError(
                f"{found[0]} is not the file that the picture was made from (its SHA-256 is "
                f"another one); say where that lies with --{flag}."
            )
        raise FileNotFoundError(f"{path} is not there; say where it lies with --{flag}.")

    return locate


def _recorded_model(recipe: Provenance, given: ModelChoice, locate: Locate) -> ModelChoice:
    """Give the model of a recipe, from where it lies; nothing is downloaded for a recipe's sake."""
    model, default = _compilable(recipe.model), ModelChoice()
    if given.released is not None:
        model = replace(model, released=given.released, checkpoint=given.checkpoint)
    elif given.pipeline != default.pipeline:
        model = replace(model, pipeline=given.pipeline, released=None, checkpoint=None)
    elif model.released is None and "/" in model.pipeline and not Path(model.pipeline).exists():
        raise ValueError(
            f"The picture was made by {model.pipeline}, which is not here; give it as --pipeline."
        )
    for row in recipe.rows:
        is_local = "/" not in row.parser or Path(row.parser).is_dir()
        if row.photo is not None and not is_local:
            raise ValueError(f"The face parser {row.parser} of the picture is not here.")
    if model.lora is None:
        return model
    places = {"lora": given.lora} if given.lora else {}
    lora = _recorded_files(recipe, places, Path())("lora", model.lora)
    return replace(model, lora=str(lora))


def _compilable(model: ModelChoice) -> ModelChoice:
    """Give the model of a recipe uncompiled if this machine cannot compile, and say so."""
    if not model.fast:
        return model
    try:
        check_compiler(default_device())
    except ValueError as error:
        say(f"made with --fast, which this machine cannot; made without now. {error}")
        return replace(model, fast=False)
    return model


def _compared(made: Image.Image, picture: Image.Image, source: Path) -> str:
    """Say whether a picture came out as it was."""
    if source.suffix.lower() != ".png":
        return f"{source} is not lossless, so it was not compared"
    one, other = (np.array(each.convert("RGB")).astype(int) for each in (made, picture))
    if one.shape != other.shape:
        return f"it is not like {source}, which has another size"
    difference = np.abs(one - other)
    if not difference.any():
        return f"bit-equal to {source}"
    share = (difference.max(axis=-1) > 0).mean()
    return f"{share:.2%} of the pixels differ from {source}, by at most {difference.max()} of 255"
