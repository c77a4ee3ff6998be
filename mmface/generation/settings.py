"""What sampling may be asked for, and what a made picture says of it.

Each option is one field of a dataclass, with its default, its help and its panel; the conditions
are one field, and an option a registered kind. The command line is made of the options, a line of a
jobs file may have their names as keys, and a picture carries their values: its recipe.

In a PNG the recipe is a chunk `mmface` of JSON beside the plain texts `Software` and `Description`;
in JPEG and WebP it is the EXIF fields `UserComment`, `Software` and `ImageDescription`. One that
somebody brings is data that is checked: nothing in it is run, loaded or taken for true.

Nothing here loads torch, so that `--help` is fast.
"""

import errno
import io
import json
import math
import platform
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property, lru_cache
from importlib.metadata import version
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

import mmface
from mmface.conditions import condition_kinds, open_picture
from mmface.core.command_line import check_whole
from mmface.core.files import PICTURE_SUFFIXES, written_aside

Fields = TypeVar("Fields")

ALL_STEPS = (0.0, 1.0)
"""The window of a guidance or a condition that is never left out."""
FROM_PHOTO = ("both", "mask", "sketch")
DTYPES = ("auto", "float32", "bfloat16", "float16")
QUANTIZATIONS = ("8bit", "4bit")
MAX_LORAS = 100
CACHES = ("first-block", "taylor-seer")
MAX_TEXT = 20_000
"""Characters of a prompt or path above which it is refused."""

DESCRIPTION = "synthetic face made by mmface"
VERSION = 2
MAX_RECIPE_CHARACTERS = 500_000
MAX_PICTURES = 1000
_CHUNK = "mmface"
_ASCII = b"ASCII\0\0\0"  # how EXIF marks the character set of a comment
_MAX_EXIF_BYTES = 60_000  # a JPEG has no room for more than 65,533
_KEYS = frozenset(
    {"recipe", "synthetic", "model", "weights", "rows", "seeds", "picture", "files", "versions"}
)
_MAX_THREADS = 1024


def option(default: Any, panel: str, text: str, choices: tuple[str, ...] = ()) -> Any:
    """Make the field of an option with its heading and text in `--help`; no choices for any."""
    return field(default=default, metadata={"panel": panel, "help": text, "choices": choices})


@dataclass(frozen=True)
class Settings:
    """What decides a face, besides the model and the seed. Paths are as they were given."""

    prompt: str | None = option(None, "Face", "What the face should look like.")
    conditions: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Paths of the conditions by their kind; each kind is an option of its own name."""
    photo: str | None = option(None, "Face", "Photo to take mask and sketch from.")
    from_photo: str = option("both", "Face", "What to take: both, mask or sketch.", FROM_PHOTO)
    parser: str = option("tiny-parser", "Face", "Face parser: tiny-parser, folder or hub id.")
    negative: str = option("", "Face", "What the face should not look like.")
    height: int | None = option(None, "Face", "Height in pixels.")
    width: int | None = option(None, "Face", "Width in pixels.")
    image: str | None = option(None, "Vary and edit", "Picture to start from.")
    strength: float | None = option(None, "Vary and edit", "How far to go from it, above 0 to 1.")
    region: str | None = option(None, "Vary and edit", "Part of it to make anew, in white.")
    steps: int | None = option(None, "Control", "Sampling steps; None: the model's, 50.")
    solver: str | None = option(None, "Control", "euler, heun, dpm++, unipc or ddim.")
    cache: str | None = option(None, "Control", "Leave out blocks: taylor-seer.", CACHES)
    guidance: float | None = option(None, "Control", "Guidance scale on the prompt.")
    condition_guidance: float = option(1.0, "Control", "Guidance scale on the conditions.")
    guidance_interval: tuple[float, float] = option(
        ALL_STEPS, "Control", "Shares of the steps with guidance."
    )
    guidance_rescale: float = option(0.0, "Control", "Tames strong guidance, 0 to 1.")
    condition_strength: float = option(1.0, "Control", "How strongly conditions bind.")
    condition_window: tuple[float, float] = option(
        ALL_STEPS, "Control", "Shares of the steps in which they do."
    )
    condition_region: str | None = option(None, "Control", "Picture: where they do, in white.")

    def __post_init__(self) -> None:
        """Raise ValueError unless the words are known ones."""
        _check_choices(self)

    @property
    def paths(self) -> dict[str, str]:
        """The files that were given, by the option's name."""
        names = ("photo", "image", "region", "condition_region")
        others = {name: path for name in names if (path := getattr(self, name)) is not None}
        return {**self.conditions, **others}

    @property
    def shared(self) -> "Settings":
        """What faces of one batch have in common: all but prompts, conditions and pictures."""
        return replace(
            self,
            prompt=None,
            negative="",
            conditions={},
            photo=None,
            from_photo=FROM_PHOTO[0],
            parser="",
            image="" if self.image is not None else None,
            region="" if self.region is not None else None,
        )


@dataclass(frozen=True)
class Draws:
    """How many faces, and from which seeds."""

    seed: int = option(0, "Face", "Seed of the first picture.")
    num: int | None = option(None, "Face", "Number of pictures.")


@dataclass(frozen=True)
class ModelChoice:
    """Which weights make the face, and in which arithmetic."""

    pipeline: str = option("tiny-flow", "Model", "Built-in name, folder or hub id.")
    released: str | None = option(None, "Model", "Copy of the authors' hub repository.")
    checkpoint: str | None = option(None, "Model", "Checkpoint folder in it.")
    lora: tuple[str, ...] = option((), "Model", "LoRA, FILE or FILE:WEIGHT; may be repeated.")
    lora_scale: float = option(1.0, "Model", "Weight of each LoRA that names none.")
    dtype: str = option("auto", "Model", "auto, float32, bfloat16 or float16.", DTYPES)
    quantize: str | None = option(None, "Model", "8bit or 4bit, on a GPU.", QUANTIZATIONS)
    vae_tiling: bool = option(False, "Model", "Decode large pictures in tiles.")
    fast: bool = option(False, "Model", "Compile first: for many faces, on a GPU.")

    def __post_init__(self) -> None:
        """Raise ValueError unless the words are known ones and go together."""
        _check_choices(self)
        if self.checkpoint is not None and self.released is None:
            raise ValueError("checkpoint is given without released; say where it lies.")
        if self.fast and self.quantize is not None:
            raise ValueError("fast and quantize do not go together; leave one of them out.")

    @property
    def loras(self) -> list[tuple[str, float]]:
        """The path and the weight of each LoRA."""
        found = []
        for given in self.lora:
            path, colon, end = given.rpartition(":")
            weight = _number(end) if colon and path else None
            found.append((given, self.lora_scale) if weight is None else (path, weight))
        return found


@dataclass(frozen=True)
class Run:
    """What is done with the faces, and what of the machine is used."""

    out: str | None = option(None, "Output", "Picture file, or folder.")
    report: bool = option(False, "Output", "Measure how faces follow their conditions.")
    best_of: int | None = option(None, "Output", "Sample so many seeds, keep the best.")
    rerun: str | None = option(None, "Output", "Make this picture again, as it says itself.")
    overwrite: bool = option(False, "Output", "Replace pictures that are there already.")
    jobs: str | None = option(None, "Output", "JSON lines, a request each, into a folder.")
    max_batch: int | None = option(None, "Model", "The most that is computed at once.")
    plan: bool = option(False, "Output", "Only say what memory it takes; loads no weights.")
    memory: float | None = option(None, "Output", "What the device has, in GB, for --plan.")
    offload: bool = option(False, "Model", "Keep on the GPU only what computes.")

    def __post_init__(self) -> None:
        """Raise ValueError if options are given that do not go together."""
        if self.memory is not None and not self.plan:
            raise ValueError("--memory is for --plan; give both.")


class Option(NamedTuple):
    """One option of a group.

    Attributes:
        name: With underscores.
        type: A type hint.
        default: What holds where it is not given.
        panel: Under which heading `--help` shows it.
        help: What `--help` says of it.
    """

    name: str
    type: Any
    default: Any
    panel: str
    help: str


def options_of(group: type[Any]) -> list[Option]:
    """List the options of one of this file's dataclasses."""
    hints, found = get_type_hints(group), list[Option]()
    for each in fields(group):
        if each.name == "conditions":
            kinds = condition_kinds()
            found += [Option(kind.name, str | None, None, "Face", kind.help) for kind in kinds]
        else:
            told = each.metadata
            hint = hints[each.name]
            found.append(Option(each.name, hint, each.default, told["panel"], told["help"]))
    return found


def option_values(group: Any) -> dict[str, Any]:
    """Give the values of a group by their options' names; of conditions only those given."""
    values = {each.name: getattr(group, each.name) for each in fields(group)}
    return values | dict(values.pop("conditions", {}))


def from_options(group: type[Fields], values: Mapping[str, Any]) -> Fields:
    """Make a group of values by their options' names; the opposite of `option_values`."""
    own = {each.name for each in fields(group)}  # type: ignore[arg-type]
    known = {  # the command line gives lists
        name: tuple(value) if isinstance(value, list) else value
        for name, value in values.items()
        if name in own
    }
    if "conditions" in own:
        rest = {kind.name: values.get(kind.name) for kind in condition_kinds()}
        known["conditions"] = {name: path for name, path in rest.items() if path is not None}
    return group(**known)


def _check_choices(group: Any) -> None:
    for each in fields(group):
        value, choices = getattr(group, each.name), each.metadata.get("choices")
        if choices and value is not None and value not in choices:
            raise ValueError(f"{each.name} must be {' or '.join(choices)}, got {value!r}.")


def read_fields(kind: type[Fields], values: Mapping[str, Any], where: str) -> Fields:
    """Make options of untrusted JSON; missing ones take their default.

    ValueError, at `where`, if a name is unknown, or a value has the wrong type or is not finite.
    """
    hints = {option.name: option.type for option in options_of(kind)}
    if unknown := sorted(map(str, values.keys() - hints.keys())):
        raise ValueError(f"{where}: unknown key {unknown[0][:80]!r}; known are {', '.join(hints)}.")
    try:
        typed = {name: _typed(name, value, hints[name]) for name, value in values.items()}
        return from_options(kind, typed)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def check_text(name: str, value: Any) -> str:
    """Give back a text of at most `MAX_TEXT` characters that UTF-8 can write, else ValueError."""
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise ValueError(f"{name} must be a text of at most {MAX_TEXT} characters.")
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"{name} has a character that no text has.")
    return value


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _typed(name: str, value: Any, hint: Any) -> Any:
    """Give a JSON value as this type, or raise ValueError."""
    if hint == tuple[str, ...]:
        if value is None or isinstance(value, str):  # as first recipes have it
            value = [] if value is None else [value]
        if not isinstance(value, list | tuple) or len(value) > MAX_LORAS:
            raise ValueError(f"{name} must be a list of at most {MAX_LORAS} texts.")
        return tuple(check_text(name, each) for each in value)
    if get_origin(hint) in (Union, UnionType):
        if value is None:
            return None
        (hint,) = (each for each in get_args(hint) if each is not type(None))
    if hint is str:
        return check_text(name, value)
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint is float:
        return _finite(name, value)
    if hint == tuple[float, float] and isinstance(value, list | tuple) and len(value) == 2:
        return tuple(_finite(name, each) for each in value)
    wanted = {bool: "true or false", int: "a whole number"}.get(hint, "two numbers, as [0, 1]")
    raise ValueError(f"{name} must be {wanted}, got {str(value)[:80]!r}.")


def _finite(name: str, value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or abs(value) > 1e18 or not math.isfinite(value):
        raise ValueError(f"{name} must be a number, got {str(value)[:80]!r}.")
    return float(value)


@dataclass(frozen=True)
class Computation:
    """How a call was computed, which decides how its numbers are rounded.

    Attributes:
        requests: Number of requests in the call; each had the recipe's number of seeds.
        place: Number of requests in it before those of the recipe.
        max_batch: The most predictions that were computed at once; None for no limit.
        threads: CPU threads.
        processor: Name of the GPU, or of the CPU with its vector units.
    """

    requests: int
    place: int
    max_batch: int | None
    threads: int
    processor: str

    def __post_init__(self) -> None:
        """Raise ValueError unless the numbers are ones that can be computed with again."""
        check_whole("requests", self.requests, 1, MAX_PICTURES)
        check_whole("place", self.place, 0, self.requests - 1)
        check_whole("threads", self.threads, 1, _MAX_THREADS)
        if self.max_batch is not None:
            check_whole("max_batch", self.max_batch, 1)
        check_text("processor", self.processor)

    @classmethod
    def here(
        cls, device: Any, requests: int, place: int = 0, max_batch: int | None = None
    ) -> "Computation":
        """Describe a call on this machine's `torch.device`."""
        import torch

        if device.type == "cuda":
            name = torch.cuda.get_device_name(device)
        else:
            name = f"{_cpu_name()}, {torch.backends.cpu.get_cpu_capability()}"
        return cls(requests, place, max_batch, min(torch.get_num_threads(), _MAX_THREADS), name)


@lru_cache(maxsize=1)
def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


@dataclass(frozen=True)
class Provenance:
    """All that a picture was made from.

    Attributes:
        model: Which weights, in which arithmetic.
        weights: Digest of the weights' and their configs' files, as `model_sha256` gives it.
        rows: What was asked for: one, or several under each other in a grid.
        seeds: The seeds of each row's faces, which were one batch.
        picture: Which of the first row's faces this is; None for a labelled grid of all.
        files: SHA-256 of each file that a row or the model names, by its path as given.
        versions: Of mmface, torch and diffusers.
        computed: How it was computed; None in pictures of mmface's first recipes.
    """

    model: ModelChoice
    weights: str
    rows: tuple[Settings, ...]
    seeds: tuple[int, ...]
    picture: int | None
    files: Mapping[str, str]
    versions: Mapping[str, str]
    computed: Computation | None = None

    def __post_init__(self) -> None:
        """Raise ValueError unless it says which picture of how many it is."""
        check_whole("The number of faces", len(self.rows) * len(self.seeds), 1, MAX_PICTURES)
        if self.picture is not None:
            check_whole("picture", self.picture, 0, len(self.seeds) - 1)
        if self.computed and self.computed.place + len(self.rows) > self.computed.requests:
            raise ValueError("its rows are more than the requests of its call")
        named = {path for row in self.rows for path in row.paths.values()}
        named |= {path for path, _ in self.model.loras}
        if named != set(self.files):
            raise ValueError("its files are not those that its rows and its model name")

    def of_picture(self, picture: int | None) -> "Provenance":
        """Give the recipe of one of the faces, or with None of the grid of all."""
        return replace(self, picture=picture)

    @cached_property
    def json(self) -> str:
        """The recipe as ASCII in one line, its keys always in the same order."""
        values = {"recipe": VERSION, "synthetic": True, **asdict(self)}
        if self.computed is None:
            values |= {"recipe": 1}
            del values["computed"]
        values["rows"] = [option_values(row) for row in self.rows]
        return json.dumps(values, sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Provenance":
        """Read a recipe that somebody brings.

        Args:
            text: JSON.

        Returns:
            The recipe; whether its files and weights are there is not looked at.

        Raises:
            ValueError: If it is no recipe: too long, no JSON, or a key or value is not in order.
        """
        if len(text) > MAX_RECIPE_CHARACTERS:
            raise ValueError(f"the recipe is longer than {MAX_RECIPE_CHARACTERS} characters")
        values = parse_object(text)
        keys = _KEYS | ({"computed"} if values.get("recipe") == VERSION else set())
        is_known = values.get("recipe") in (1, VERSION) and values.get("synthetic") is True
        if values.keys() != keys or not is_known:
            odd = sorted(values.keys() ^ keys)
            raise ValueError(f"it is no recipe of version 1 or {VERSION} (keys at odds: {odd[:5]})")
        rows, seeds, picture = (values[key] for key in ("rows", "seeds", "picture"))
        if not (isinstance(rows, list) and isinstance(seeds, list)):
            raise ValueError("rows and seeds must be lists")
        check_whole("The number of faces", len(rows) * len(seeds), 1, MAX_PICTURES)
        for seed in seeds:
            check_whole("seed", seed, 0, 2**63 - 1)
        return cls(
            model=read_fields(ModelChoice, _mapping("model", values["model"]), "model"),
            weights=check_text("weights", values["weights"]),
            rows=tuple(read_fields(Settings, _mapping("a row", row), "a row") for row in rows),
            seeds=tuple(seeds),
            picture=picture,
            files=_texts("files", values["files"]),
            versions=_texts("versions", values["versions"]),
            computed=_computation(values["computed"]) if "computed" in values else None,
        )

    def other_versions(self, versions: Mapping[str, str]) -> list[str]:
        """Say in words which of these versions are other ones than those that were used."""
        names = sorted(self.versions.keys() | versions.keys())
        pairs = [(name, self.versions.get(name), versions.get(name)) for name in names]
        return [f"{name} {now} instead of {then}" for name, then, now in pairs if then != now]

    def makes_the_same_as(self, other: "Provenance") -> bool:
        """Whether two recipes are for one picture, up to rounding by versions and machines."""
        own, others = (replace(one, versions={}, computed=None) for one in (self, other))
        return own == others


def parse_object(text: str) -> dict[str, Any]:
    """Parse a JSON object strictly: no NaN, no key twice, no bottomless nesting."""
    try:
        found = json.loads(text, parse_constant=_refuse, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON ({error})") from None
    return _mapping("it", found)


def _refuse(constant: str) -> None:
    raise ValueError(f"it holds {constant}, which is no number")


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("it has a key twice")
    return found


def _mapping(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be a JSON object")
    return value


def _computation(value: Any) -> Computation:
    found = _mapping("computed", value)
    if found.keys() != {each.name for each in fields(Computation)}:
        raise ValueError("computed does not say how its call was computed")
    return Computation(**found)


def _texts(name: str, value: Any) -> dict[str, str]:
    """Check an object of strings."""
    pairs = _mapping(name, value).items()
    return {check_text(name, key): check_text(name, text) for key, text in pairs}


def current_versions() -> dict[str, str]:
    """Name the versions of what computes a picture."""
    import torch  # whose own version names the build, too: 2.14.1+cu130

    return {
        "mmface": mmface.__version__,
        "torch": str(torch.__version__),
        "diffusers": version("diffusers"),
    }


def write_pictures(pictures: Mapping[Path, tuple[Image.Image, Provenance]]) -> None:
    """Write pictures: all of them aside first, then each to its place, so that none is half there.

    Args:
        pictures: Each picture with its recipe by its path, whose suffix tells the format.

    Raises:
        OSError: If they cannot be written; a full disk's message says what they need.
    """
    files = {path: _encoded(picture, recipe, path) for path, (picture, recipe) in pictures.items()}
    with ExitStack() as renames:
        for path, content in files.items():
            aside = renames.enter_context(written_aside(path))
            try:
                aside.write_bytes(content)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                need, free = sum(map(len, files.values())), shutil.disk_usage(path.parent).free
                raise OSError(
                    f"{path} cannot be written: the disk is full. {need / 1e6:.2f} MB are needed "
                    f"for {len(files)} pictures, and {free / 1e6:.2f} MB are free."
                ) from error


def _encoded(picture: Image.Image, recipe: Provenance, path: Path) -> bytes:
    content = io.BytesIO()
    picture.save(content, PICTURE_SUFFIXES[path.suffix.lower()], **_embedded(recipe, path))
    return content.getvalue()


def _embedded(recipe: Provenance, path: Path) -> dict[str, Any]:
    """Give what Pillow needs to write a recipe into a file of this suffix."""
    software = f"mmface {mmface.__version__}"
    if path.suffix.lower() == ".png":
        info = PngInfo()
        info.add_text("Software", software)
        info.add_text("Description", DESCRIPTION)
        info.add_itxt(_CHUNK, recipe.json)
        return {"pnginfo": info}
    comment = _ASCII + recipe.json.encode("ascii")
    if len(comment) > _MAX_EXIF_BYTES:
        raise ValueError(f"{path} has no room for its recipe; write a PNG.")
    exif = Image.Exif()
    exif[ExifTags.Base.Software] = software
    exif[ExifTags.Base.ImageDescription] = DESCRIPTION
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
    return {"exif": exif}


def read_provenance(path: str | Path) -> tuple[Provenance, Image.Image]:
    """Read a picture and the recipe that it carries.

    Args:
        path: A PNG, JPEG or WebP that mmface wrote.

    Returns:
        The recipe, and the picture.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no picture, carries no recipe, or one that is not in order.
    """
    picture = open_picture(Path(path))
    text = picture.info.get(_CHUNK)
    if text is None:
        try:
            comment = picture.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
        except Exception as error:  # Pillow's EXIF reader fails in many ways on broken bytes
            raise ValueError(f"{path} has broken EXIF data ({error}).") from error
        text = comment.removeprefix(_ASCII).decode("latin-1") if comment else None
    if not isinstance(text, str):
        raise ValueError(f"{path} carries no recipe: mmface did not write it, or it was cut out.")
    try:
        return Provenance.from_json(text), picture
    except ValueError as error:
        raise ValueError(f"The recipe in {path} cannot be used: {error}") from None
