"""What sampling may be asked for: the options of the command line, of jobs and of recipes.

Each option is one field of a dataclass, with its default, its help and its panel; the conditions
are one field, and an option a registered kind. The command line is made of the options, a line of a
jobs file may have their names as keys, and a picture carries their values. Nothing here loads
torch, so that `--help` is fast.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import UnionType
from typing import Any, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from mmface.conditions import condition_kinds

Fields = TypeVar("Fields")

ALL_STEPS = (0.0, 1.0)
"""The window of a guidance or a condition that is never left out."""
FROM_PHOTO = ("both", "mask", "sketch")
DTYPES = ("float32", "bfloat16", "float16")
QUANTIZATIONS = ("8bit", "4bit")
CACHES = ("first-block", "taylor-seer")
MAX_TEXT = 20_000
"""Characters of a prompt or path above which it is refused."""


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
    steps: int | None = option(None, "Control", "Sampling steps; 50.")
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
    lora: str | None = option(None, "Model", "LoRA of the transformer, safetensors.")
    lora_scale: float = option(1.0, "Model", "How much of the LoRA to add.")
    dtype: str = option("float32", "Model", "float32, bfloat16 or float16.", DTYPES)
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
    known = {name: value for name, value in values.items() if name in own}
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


def _typed(name: str, value: Any, hint: Any) -> Any:
    """Give a JSON value as this type, or raise ValueError."""
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
