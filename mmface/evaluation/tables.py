"""Tables of results, the paper's numbers beside measured ones; `reports` writes them.

The paper is MMFace-DiT, CVPR 2026, arXiv 2603.29029. It does not state the number of test
pictures, the reference set, nor the networks behind FID, LPIPS, CLIP, parser and LLM score:
compare rankings and gaps under one protocol, not single digits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from importlib.metadata import PackageNotFoundError, version

from mmface.metrics.backbones import UNTRAINED
from mmface.metrics.metric import Skipped, columns
from mmface.metrics.statistics import require_equal_counts

_PACKAGES = (
    "mmface",
    "torch",
    "pytorch-msssim",
    "torchvision",
    "lpips",
    "transformers",
    "diffusers",
    "pillow",
    "numpy",
)


SOURCE = "arXiv 2603.29029"


@dataclass(frozen=True)
class PublishedRow:
    """One method of a table: its name there, and the printed numbers by metric."""

    method: str
    values: Mapping[str, Decimal]


@dataclass(frozen=True)
class PublishedTable:
    """One table; columns and rows in order."""

    number: int
    title: str
    metrics: tuple[str, ...]
    rows: tuple[PublishedRow, ...]
    source: str = SOURCE

    def row(self, method: str) -> PublishedRow:
        """Find a method."""
        for row in self.rows:
            if row.method == method:
                return row
        names = ", ".join(row.method for row in self.rows)
        raise ValueError(f"table {self.number} has no method {method!r}; it has {names}")


def _table(number: int, title: str, metrics: str, lines: str) -> PublishedTable:
    names = tuple(metrics.split())
    rows = []
    for line in lines.strip().splitlines():
        method, *numbers = (part.strip() for part in line.split("|"))
        values = dict(zip(names, map(Decimal, " ".join(numbers).split()), strict=True))
        rows.append(PublishedRow(method, values))
    return PublishedTable(number, title, names, tuple(rows))


TABLE_1 = _table(
    1,
    "Text and mask",
    "fid lpips ssim accuracy mean_iou clip clip_distance llm",
    """
    TediGAN        | 62.55 0.43 0.48 79.77 39.02 25.26 0.75 0.4061
    ControlNet     | 49.39 0.57 0.41 82.86 43.95 25.39 0.75 0.3103
    UaC            | 48.88 0.46 0.48 78.27 38.82 23.75 0.76 0.3516
    CD             | 49.00 0.56 0.46 85.69 38.85 25.07 0.75 0.3029
    DDGI           | 50.88 0.45 0.49 86.00 36.02 24.29 0.76 0.3851
    MM2Latent      | 49.78 0.59 0.45 84.57 38.19 26.78 0.73 0.3619
    MMFace-DiT (D) | 27.95 0.34 0.51 93.95 49.16 31.69 0.68 0.6006
    MMFace-DiT (F) | 16.63 0.34 0.53 93.74 50.12 31.34 0.69 0.6372
    """,
)

TABLE_2 = _table(
    2,
    "Text and sketch",
    "fid lpips ssim clip clip_distance llm",
    """
    TediGAN        | 121.24 0.55 0.30 21.62 0.78 0.10
    ControlNet     | 67.13 0.54 0.56 26.17 0.74 0.44
    UaC            | 118.52 0.61 0.41 22.92 0.77 0.27
    DDGI           | 56.57 0.43 0.51 23.95 0.76 0.43
    MM2Latent      | 40.91 0.58 0.46 27.04 0.73 0.39
    MMFace-DiT (D) | 27.67 0.24 0.72 31.56 0.68 0.69
    MMFace-DiT (F) | 9.14 0.20 0.70 31.30 0.69 0.72
    """,
)

TABLE_3 = _table(
    3,
    "Ablation, text and mask, DDPM",
    "fid lpips clip ssim accuracy mean_iou",
    """
    Model-1: SD2 VAE                            | 44.52 0.486 24.53 0.44 86.65 44.86
    Model-2: + modality embedder                | 40.49 0.366 24.31 0.46 87.91 46.34
    Model-3: + dual stream                      | 35.61 0.367 29.69 0.49 90.79 48.91
    Model-4: + shared RoPE attention            | 33.77 0.326 31.42 0.50 92.29 50.05
    Model-5: + FLUX VAE (MMFace-DiT (D))        | 27.95 0.340 31.69 0.51 93.95 49.16
    """,
)

TABLES: tuple[PublishedTable, ...] = (TABLE_1, TABLE_2, TABLE_3)
"""All published tables, in order."""


NEAR_FLOOR = 1.1
"""Times its floor, up to which a distance is marked."""
AT_FLOOR = " (at the floor)"


def is_at_floor(value: float, floor: float | None) -> bool:
    """Whether a distance does not tell pictures from real ones, whose own distance is `floor`."""
    return floor is not None and value <= NEAR_FLOOR * floor


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
        floor: what as many real pictures have, if more of them have less.
    """

    value: float
    pictures: int
    protocol: str
    low: float | None = None
    high: float | None = None
    spread: float | None = None
    seeds: int = 1
    floor: float | None = None

    @property
    def is_at_floor(self) -> bool:
        """Whether the number does not tell the pictures from real ones."""
        return is_at_floor(self.value, self.floor)


@dataclass(frozen=True)
class Cell:
    """The paper's number, and ours or why it is not there; None if nobody tried."""

    published: Decimal | None = None
    measured: Measured | Skipped | None = None


@dataclass(frozen=True)
class TableRow:
    """A method, and its cells by metric."""

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
    """Results of several methods; columns and rows in order, notes for below."""

    title: str
    metrics: Sequence[str]
    rows: Sequence[TableRow]
    notes: Sequence[str] = ()
    versions: Mapping[str, str] = field(default_factory=installed_versions)

    def __post_init__(self) -> None:
        """Refuse a metric without a column, and sets of different N in one column."""
        for metric in self.metrics:
            if metric not in columns():
                raise ValueError(f"there is no column {metric!r}; there are {', '.join(columns())}")
            if columns()[metric].of_sets:
                try:
                    require_equal_counts(
                        {name: one.pictures for name, one in self.measured(metric).items()}
                    )
                except ValueError as error:
                    raise ValueError(f"{columns()[metric].title}: {error}") from None

    @classmethod
    def beside(
        cls,
        published: PublishedTable,
        measured: Mapping[str, Mapping[str, Measured | Skipped]],
        notes: Sequence[str] = (),
    ) -> "Table":
        """Set measured numbers beside a published table.

        Methods that it lacks come after its own, as do metrics.
        """
        extra = dict.fromkeys(m for row in measured.values() for m in row)
        metrics = [*published.metrics, *(m for m in extra if m not in published.metrics)]
        printed = {row.method: row.values for row in published.rows}
        rows = []
        for method in dict.fromkeys([*printed, *measured]):
            theirs, ours = printed.get(method, {}), measured.get(method, {})
            cells = {m: Cell(theirs.get(m), ours.get(m)) for m in metrics}
            rows.append(TableRow(method, cells))
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
        better = columns()[metric].better
        if better is None or len(measured) < 2 or len(terms) > 1:
            return set()
        choose = max if better == "higher" else min
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
            lines += [f"{columns()[metric].title}: {text}" for text in self._protocols(metric)]
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
