"""A picture made again from what it says of itself, and compared.

It is equal to the bit with the same versions, processor, threads and batch; a rerun repeats the
last two. Other jobs in a picture's batch are not recorded: stand-ins take their places, and
rounding may differ where those jobs had other kinds of conditions.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mmface.conditions import condition_kinds
from mmface.core.files import check_output, check_unused, file_sha256, unused
from mmface.core.sources import default_device
from mmface.generation.requests import (
    Locate,
    PreparedRequest,
    located,
    prepare_request,
    sample_requests,
    say,
)
from mmface.generation.sample import grid_of, open_model
from mmface.generation.settings import (
    Computation,
    Draws,
    ModelChoice,
    Provenance,
    Run,
    Settings,
    current_versions,
    option_values,
    options_of,
    read_provenance,
    write_pictures,
)
from mmface.sampling.acceleration import check_compiler

MAX_RERUN_PIXELS = 1 << 28
"""Largest number of pixels of all faces together for which a picture is made again."""


def rerun(settings: Settings, draws: Draws, choice: ModelChoice, run: Run) -> list[Path]:
    """Make a picture again as its recipe says, and say what is not as it was."""
    assert run.rerun is not None
    source = Path(run.rerun)
    recipe, picture = read_provenance(source)
    _check_only_places(settings, draws, choice, run)
    _check_size(recipe, picture, source)
    name = f"{source.stem}_rerun.png"
    out = check_output(unused(Path(name)) if run.out is None else run.out).file(name)
    if out.resolve() == source.resolve():
        raise ValueError(f"{out} is the picture itself; give another --out.")
    check_unused([out], run.overwrite)
    locate = _recorded_files(recipe, settings.paths, source.parent)
    model = open_model(_recorded_model(recipe, choice, locate), run.offload, None, recipe.weights)
    requests = [prepare_request(each, model.pipeline, locate) for each in recipe.rows]
    if any(one.settings != each for one, each in zip(requests, recipe.rows, strict=True)):
        raise ValueError(f"The recipe in {source} leaves open what a written one says.")
    then = recipe.computed
    max_batch = run.max_batch if then is None or run.max_batch is not None else then.max_batch
    call, place = (requests, 0) if then is None else (_call(requests, then), then.place)
    with _threads(then):
        seeds = [recipe.seeds] * len(call)
        faces = sample_requests(model.pipeline, call, seeds, max_batch)
        now = Computation.here(model.pipeline._execution_device, len(call), place, max_batch)
    faces = faces[place : place + len(requests)]
    k = recipe.picture
    made = grid_of(requests, recipe.seeds, faces) if k is None else faces[0][k]
    made_by = replace(recipe.model, fast=model.choice.fast)
    again = replace(recipe, model=made_by, versions=current_versions(), computed=now)
    write_pictures({out: (made, again)})
    for difference in recipe.other_versions(again.versions):
        say(f"made with {difference}")
    if then is not None and then.processor != now.processor:
        say(f"made on {now.processor} instead of {then.processor}")
    if then is not None and then.max_batch != now.max_batch:
        say(f"made with --max-batch {now.max_batch} instead of {then.max_batch}")
    say(_compared(made, picture, source))
    return [out]


def _call(requests: Sequence[PreparedRequest], then: Computation) -> list[PreparedRequest]:
    """Fill a call up to its former number of requests, since rounding depends on it.

    In a file of jobs other requests were in it, which the picture does not name: others take their
    places, of the same kinds of conditions.
    """
    first = requests[0]

    def stand_in(number: int) -> PreparedRequest:
        copies = {name: values.copy() for name, values in first.files.conditions.items()}
        files = replace(first.files, conditions=copies)
        return replace(first, prompt=f"{first.prompt} {number}", files=files)

    before = [stand_in(number) for number in range(then.place)]
    after = range(then.place + len(requests), then.requests)
    return [*before, *requests, *map(stand_in, after)]


@contextmanager
def _threads(then: Computation | None) -> Iterator[None]:
    """Compute with as many CPU threads as then."""
    now = torch.get_num_threads()
    torch.set_num_threads(now if then is None else then.threads)
    try:
        yield
    finally:
        torch.set_num_threads(now)


def _check_only_places(settings: Settings, draws: Draws, choice: ModelChoice, run: Run) -> None:
    """Raise ValueError if a rerun is asked for anything but where things lie."""
    places = {kind.name for kind in condition_kinds()}
    places |= {"photo", "image", "region", "condition_region"}
    places |= {"pipeline", "released", "checkpoint", "lora"}
    places |= {"out", "overwrite", "rerun", "max_batch", "offload"}
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
    num = len(sizes) if recipe.computed is None else recipe.computed.requests
    if len(recipe.seeds) * num * max(width * height for width, height in sizes) > MAX_RERUN_PIXELS:
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
    moved: Sequence[str | None] = given.lora or [None] * len(model.lora)
    if len(moved) != len(model.lora):
        raise ValueError(f"The picture was made with {len(model.lora)} LoRAs; give as many --lora.")
    found = []
    for (path, weight), now in zip(model.loras, moved, strict=True):
        places = {} if now is None else {"lora": now}
        found.append(f"{_recorded_files(recipe, places, Path())('lora', path)}:{weight}")
    return replace(model, lora=tuple(found))


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
