"""What a metric is: its columns, what it needs, and how it is found by its name.

A file of this room declares a metric by a class with `@register`; a table is a list of names for
`build_metrics`. No other file names a metric.
"""

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

import mmface.metrics
from mmface.conditions import ConditionKind
from mmface.data.pictures import FacePictures
from mmface.metrics.statistics import Interval, bootstrap_mean

if TYPE_CHECKING:
    from mmface.metrics.backbones import BackboneSource

Values = dict[str, Any]
"""What was read off one picture or answer, in plain JSON values."""
Features = Float[Tensor, "n features"]
Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class Column:
    """How a number is shown.

    `better` is None where a number says what is there and not how good it is. `of_sets`: it
    compares sets, so methods of different N may not share a column. `charted`: it is drawn against
    the guidance scale.
    """

    title: str
    better: Literal["higher", "lower"] | None
    digits: int
    of_sets: bool = False
    charted: bool = False

    @property
    def heading(self) -> str:
        """The title, with an arrow where there is a better."""
        arrow = {"higher": " ↑", "lower": " ↓", None: ""}[self.better]
        return f"{self.title}{arrow}"


@dataclass(frozen=True)
class Skipped:
    """Why a measurement could not be made, and how to get what is missing. It is never a number."""

    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"skipped: {self.reason}; {self.remedy}"


def or_skipped(load: Callable[[], Loaded], remedy: str) -> Loaded | Skipped:
    """Load something; say why it is not there if `load` raises OSError or ImportError."""
    try:
        return load()
    except (OSError, ImportError) as error:
        return Skipped(str(error).strip().splitlines()[0].rstrip(".;"), remedy)


@dataclass(frozen=True)
class Order:
    """What a method is asked to make; `prompt` is the caption or the question."""

    id: str
    prompt: str
    seed: int
    face: FacePictures


@dataclass(frozen=True)
class PictureOrder(Order):
    """An order for a picture, made from a condition of this kind."""

    kind: ConditionKind

    @property
    def condition(self) -> np.ndarray:
        """The values of the condition."""
        return self.face.conditions[self.kind.name]

    @property
    def truth(self) -> UInt8[np.ndarray, "height width 3"]:
        """The true picture."""
        return self.face.image


@dataclass(frozen=True)
class AnswerOrder(Order):
    """An order for text about the true picture; the prompt is the question, `truth` the answer."""

    truth: str


class Metric(ABC):
    """Columns of a table, and what must be there to fill them.

    `needs` names what it reads: `picture` or `answer` (the product), `truth` (the true picture),
    `caption`, `condition`, `backbone`, or a condition's name, which limits it to tables of that
    one; a table without it leaves the metric out. `controls` names the methods that show its best
    and worst values.
    """

    name: ClassVar[str]
    columns: ClassVar[Mapping[str, Column]]
    needs: ClassVar[frozenset[str]] = frozenset({"picture"})
    controls: ClassVar[frozenset[str]] = frozenset({"reconstruction", "others"})
    remedy = ""

    def check(self, order: Any) -> Skipped | None:
        """Why what is made for orders like this one cannot be measured, or None."""
        return None

    def load(self, device: torch.device) -> Skipped | None:
        """Load what it needs; OSError or ImportError if that is out of reach."""
        return None

    @property
    @abstractmethod
    def protocol(self) -> str:
        """What a value must share with another to be compared, the references aside."""


class SampleMetric(Metric):
    """A metric with values of its own for every picture or answer."""

    @abstractmethod
    def read(self, products: Any, orders: Sequence[Any]) -> list[Values]:
        """Measure a batch: plain values of each product.

        Products are uint8 pictures [B, 3, H, W], or a list of answers.
        """

    def intervals(self, ids: Sequence[str], values: Sequence[Values]) -> dict[str, Interval]:
        """Turn values into columns; by default each value is one, and its mean is taken.

        `ids` names the face of each; those of one face are one cluster.
        """
        names = values[0]
        columns = {name: np.array([one[name] for one in values], np.float64) for name in names}
        return {name: bootstrap_mean(column, ids) for name, column in columns.items()}

    def remarks(self, values: Sequence[Values]) -> list[str]:
        """What a reader of the table should know of these values."""
        return []

    def of_classes(self, values: Sequence[Values]) -> dict[str, float | None]:
        """Give a number in [0, 1] for each class of a mask; nothing unless it has such numbers."""
        return {}


class Floor(NamedTuple):
    """What real pictures have against real ones, which no method can be told from.

    Attributes:
        value: the distance.
        pictures: in each set.
        of: which two sets.
    """

    value: float
    pictures: int
    of: str


class SetMetric(Metric):
    """A metric of the features of two sets, the true pictures and a method's."""

    default_backbone: ClassVar[str] = "inception"
    needs = frozenset({"picture", "truth", "backbone"})

    def __init__(self, backbone: "BackboneSource", backbone_name: str) -> None:
        """Metrics of one network share the features in a folder of `backbone_name`."""
        self.backbone = backbone
        self.backbone_name = backbone_name

    @property
    def protocol(self) -> str:
        """The network."""
        backbone = self.backbone.open()
        return "" if isinstance(backbone, Skipped) else backbone.protocol

    @abstractmethod
    def compare(self, real: Features, generated: Features) -> dict[str, float]:
        """Give the columns' values."""

    def remarks(self, real: Features, generated: Features, method: str) -> list[str]:
        """What a reader of the table should know of a method's value."""
        return []

    def floor(self, real: Features, others: Features | None = None) -> Mapping[str, Floor]:
        """What the number of pictures alone costs, by column.

        `others` are real pictures of other faces.
        """
        return {}

    def shortage(self, real: Features) -> list[str]:
        """Warn where there are too few pictures for a number that means something."""
        return []


_METRICS: dict[str, type[Metric]] = {}
_COLUMNS: dict[str, Column] = {
    "llm": Column("LLM", "higher", 4),  # published only: the models behind it are closed
    # Of methods and not of pictures: their cost, and the distance to another method's pictures.
    "evaluations": Column("evaluations", "lower", 1),
    "pixels": Column("pixels", "lower", 2),
}
Registered = TypeVar("Registered", bound=type[Metric])


def register(metric: Registered) -> Registered:
    """Declare a metric and its columns; ValueError if a name is taken."""
    taken = {*_METRICS} & {metric.name} | {*_COLUMNS} & {*metric.columns}
    if taken:
        raise ValueError(f"{metric.__name__}: {', '.join(sorted(taken))} is declared already")
    _METRICS[metric.name] = metric
    _COLUMNS.update(metric.columns)
    return metric


@cache
def _read_the_room() -> None:
    for module in pkgutil.iter_modules(mmface.metrics.__path__):
        importlib.import_module(f"mmface.metrics.{module.name}")


def columns() -> Mapping[str, Column]:
    """All columns by name."""
    _read_the_room()
    return _COLUMNS


def build_metrics(
    names: Sequence[str],
    backbones: Mapping[str, "BackboneSource"] | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Metric]:
    """Make metrics by name, in the order of the columns; they load when first needed.

    `names` are in the order of the columns; `settings` are arguments by a metric's name, of which
    `backbone` names a network of `backbones`.
    """
    _read_the_room()
    backbones, settings = backbones or {}, settings or {}
    unknown = [name for name in names if name not in _METRICS]
    if unknown or isinstance(names, str):
        raise ValueError(f"metrics are some of [{','.join(_METRICS)}], not {unknown or names!r}")
    built = {}
    for name in names:
        metric, own = _METRICS[name], dict(settings.get(name, {}))
        if "backbone" in metric.needs:
            wanted = own.pop("backbone", getattr(metric, "default_backbone", ""))
            if wanted not in backbones:
                raise ValueError(
                    f"{name} reads with the backbone {wanted!r}, but there are "
                    f"[{','.join(backbones)}]; add it to backbones"
                )
            own |= {"backbone": backbones[wanted], "backbone_name": wanted}
        built[name] = metric(**own)
    return built
