"""Tables of results, published numbers beside measured ones; `table_formats` writes them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from mmface.evaluation.backbones import UNTRAINED, Skipped
from mmface.evaluation.published import PublishedTable
from mmface.evaluation.statistics import require_equal_counts

_PACKAGES = ("mmface", "torch", "torchmetrics", "transformers", "diffusers", "pillow", "numpy")


@dataclass(frozen=True)
class Column:
    """How a metric is shown.

    Attributes:
        title: its heading.
        better: which way it improves.
        digits: digits after the point of a measured value.
        of_sets: whether it compares sets of pictures, so that methods of different N may not
            stand in one column.
    """

    title: str
    better: Literal["higher", "lower"]
    digits: int
    of_sets: bool = False

    @property
    def heading(self) -> str:
        """The title with an arrow."""
        return f"{self.title} {'↑' if self.better == 'higher' else '↓'}"


COLUMNS: dict[str, Column] = {
    "fid": Column("FID", "lower", 2, of_sets=True),
    "clean_fid": Column("FID (clean)", "lower", 2, of_sets=True),
    "fdd": Column("FDD", "lower", 1, of_sets=True),
    "kid": Column("KID", "lower", 5, of_sets=True),
    "cmmd": Column("CMMD", "lower", 3, of_sets=True),
    "precision": Column("Precision", "higher", 3, of_sets=True),
    "recall": Column("Recall", "higher", 3, of_sets=True),
    "density": Column("Density", "higher", 3, of_sets=True),
    "coverage": Column("Coverage", "higher", 3, of_sets=True),
    "lpips": Column("LPIPS", "lower", 3),
    "lpips_vgg": Column("LPIPS (VGG)", "lower", 3),
    "ssim": Column("SSIM", "higher", 3),
    "ms_ssim": Column("MS-SSIM", "higher", 3),
    "accuracy": Column("ACC", "higher", 2),
    "mean_iou": Column("mIoU", "higher", 2),
    "mean_iou_of_pictures": Column("mIoU (pictures)", "higher", 2),
    "mean_iou_absent_zero": Column("mIoU (absent 0)", "higher", 2),
    "edges": Column("Edges", "higher", 3),
    "clip": Column("CLIP", "higher", 2),
    "clip_distance": Column("Dist", "lower", 3),
    "llm": Column("LLM", "higher", 4),
    "judge_yes": Column("P(yes)", "higher", 4),
    "judge_digit": Column("Rating", "higher", 4),
}
"""All metrics by name. `llm` is the paper's; the two of a local judge are columns of their own."""


@dataclass(frozen=True)
class Measured:
    """A measured number and what it rests on.

    Attributes:
        value: the number, in the paper's units.
        pictures: how many pictures.
        protocol: what a number must share with this one to be compared.
        low: lower end of its confidence interval, if there is one.
        high: upper end.
        spread: standard deviation over generation seeds, if there are several.
        seeds: how many generation seeds.
    """

    value: float
    pictures: int
    protocol: str
    low: float | None = None
    high: float | None = None
    spread: float | None = None
    seeds: int = 1


@dataclass(frozen=True)
class Cell:
    """A metric of a method.

    Attributes:
        published: the paper's number, if it has one.
        measured: ours, or why it is not there; None if nobody tried.
    """

    published: Decimal | None = None
    measured: Measured | Skipped | None = None


@dataclass(frozen=True)
class Row:
    """A method.

    Attributes:
        name: its name.
        cells: its cells by metric.
    """

    name: str
    cells: Mapping[str, Cell]

    def cell(self, metric: str) -> Cell:
        """Give a metric's cell; an empty one if there is none."""
        return self.cells.get(metric, Cell())


def installed_versions() -> dict[str, str]:
    """Versions of the packages that a number depends on."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


@dataclass(frozen=True)
class Table:
    """Results of several methods.

    Attributes:
        title: what is shown.
        metrics: names in `COLUMNS`, in the order of the columns.
        rows: the methods.
        notes: lines for below the table.
        versions: package versions.
    """

    title: str
    metrics: Sequence[str]
    rows: Sequence[Row]
    notes: Sequence[str] = ()
    versions: Mapping[str, str] = field(default_factory=installed_versions)

    def __post_init__(self) -> None:
        """Refuse columns that cannot be read as one.

        Raises:
            ValueError: for a metric without a column, or sets of different N in one column.
        """
        for metric in self.metrics:
            if metric not in COLUMNS:
                raise ValueError(f"there is no column {metric!r}; there are {', '.join(COLUMNS)}")
            if COLUMNS[metric].of_sets:
                try:
                    require_equal_counts(
                        {name: one.pictures for name, one in self.measured(metric).items()}
                    )
                except ValueError as error:
                    raise ValueError(f"{COLUMNS[metric].title}: {error}") from None

    @classmethod
    def beside(
        cls,
        published: PublishedTable,
        measured: Mapping[str, Mapping[str, Measured | Skipped]],
        notes: Sequence[str] = (),
    ) -> "Table":
        """Set measured numbers beside a published table.

        Args:
            published: the paper's table.
            measured: ours, by method and metric. Methods that the table lacks come after its own,
                as do metrics.
            notes: lines for below the table.

        Returns:
            The table.
        """
        extra = dict.fromkeys(m for row in measured.values() for m in row)
        metrics = [*published.metrics, *(m for m in extra if m not in published.metrics)]
        printed = {row.method: row.values for row in published.rows}
        rows = []
        for method in dict.fromkeys([*printed, *measured]):
            theirs, ours = printed.get(method, {}), measured.get(method, {})
            cells = {m: Cell(theirs.get(m), ours.get(m)) for m in metrics}
            rows.append(Row(method, cells))
        title = f"{published.title} (table {published.number} of {published.source})"
        return cls(title, metrics, rows, notes)

    def measured(self, metric: str) -> dict[str, Measured]:
        """Give what was measured of a metric, by method."""
        found = {row.name: row.cell(metric).measured for row in self.rows}
        return {name: one for name, one in found.items() if isinstance(one, Measured)}

    def best(self, metric: str) -> set[str]:
        """Name the best methods; none unless two or more share protocol and N."""
        measured = self.measured(metric)
        terms = {(one.protocol, one.pictures) for one in measured.values()}
        if len(measured) < 2 or len(terms) > 1:
            return set()
        choose = max if COLUMNS[metric].better == "higher" else min
        value = choose(one.value for one in measured.values())
        return {name for name, one in measured.items() if one.value == value}

    def has_published(self, metric: str) -> bool:
        """Whether any method has a published number of a metric."""
        return any(row.cell(metric).published is not None for row in self.rows)

    def skips(self) -> list[str]:
        """Give the reasons of skipped cells, each once, in the order of the footnotes."""
        cells = (row.cell(metric).measured for row in self.rows for metric in self.metrics)
        return list(dict.fromkeys(str(one) for one in cells if isinstance(one, Skipped)))

    def footer(self) -> list[str]:
        """Give the lines below the table: protocols, N, seeds, footnotes, versions."""
        lines = []
        if any(UNTRAINED in p for m in self.metrics for p in self._protocols(m)):
            lines.append("MADE WITH UNTRAINED NETWORKS: these numbers mean nothing.")
        for metric in self.metrics:
            lines += [f"{COLUMNS[metric].title}: {text}" for text in self._protocols(metric)]
        lines += [f"[{number}] {reason}" for number, reason in enumerate(self.skips(), 1)]
        lines += self.notes
        lines.append("Versions: " + ", ".join(f"{k} {v}" for k, v in self.versions.items()))
        return lines

    def _protocols(self, metric: str) -> list[str]:
        groups: dict[str, list[str]] = {}
        measured = self.measured(metric)
        for name, one in measured.items():
            seeds = f", {one.seeds} seeds" if one.seeds > 1 else ""
            groups.setdefault(f"{one.protocol}, N = {one.pictures}{seeds}", []).append(name)
        if len(groups) == 1:
            return list(groups)
        return [f"{text} ({', '.join(names)})" for text, names in groups.items()]
