"""The last stage: the table of all methods in every format, and the table of controls.

They are `table.txt`, `.md`, `.tex`, `.csv` and `.json`, and `controls` likewise.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from mmface.evaluation.backbones import Skipped
from mmface.evaluation.published import TABLES, PublishedTable
from mmface.evaluation.scoring import Scores
from mmface.evaluation.table_formats import FORMATS, write_table
from mmface.evaluation.tables import COLUMNS, Cell, Row, Table

VAE = "vae"
VAE_TITLE = "Reconstruction by the VAE alone (the paper prints no numbers of its table of VAEs)"
PUBLISHED: dict[str, PublishedTable] = {str(table.number): table for table in TABLES}
NO_JUDGE = (
    "LLM: the paper's score rests on closed models and is not re-measured; "
    "protocol=paper_judged adds two ratings by a local model, P(yes) and Rating"
)


def check_table(name: str) -> None:
    """Refuse a table that the paper lacks.

    Args:
        name: `1`, `2`, `3` or `vae`.

    Raises:
        ValueError: for any other.
    """
    if name not in (*PUBLISHED, VAE):
        raise ValueError(f"there is no table {name!r}; take {', '.join(PUBLISHED)} or {VAE}")


def results_table(name: str, scores: Mapping[str, Scores | Skipped], notes: Sequence[str]) -> Table:
    """Set methods beside the published numbers.

    Args:
        name: see `check_table`.
        scores: by method's name; `Skipped` for one that could not be measured.
        notes: lines for below the table, the first of which is a watermark if there is one.

    Returns:
        The table.
    """
    remarks = [r for one in scores.values() if isinstance(one, Scores) for r in one.remarks]
    lines = list(dict.fromkeys([*notes, *remarks]))
    if name == VAE:
        return _bare(VAE_TITLE, scores, lines)
    published = PUBLISHED[name]
    measured = {
        method: one.cells if isinstance(one, Scores) else dict.fromkeys(published.metrics, one)
        for method, one in scores.items()
    }
    if "llm" in published.metrics:
        lines.append(NO_JUDGE)
    return Table.beside(published, measured, lines)


def controls_table(scores: Mapping[str, Scores | Skipped], notes: Sequence[str]) -> Table:
    """Lay out the controls; the arguments are those of `results_table`."""
    return _bare("Controls: what the numbers can be at best and at worst", scores, notes)


def _bare(title: str, scores: Mapping[str, Scores | Skipped], notes: Sequence[str]) -> Table:
    found = [one.cells for one in scores.values() if isinstance(one, Scores)]
    metrics = [column for column in COLUMNS if any(column in cells for cells in found)]
    rows = []
    for name, one in scores.items():
        cells = one.cells if isinstance(one, Scores) else dict.fromkeys(metrics, one)
        rows.append(Row(name, {metric: Cell(None, cells.get(metric)) for metric in metrics}))
    return Table(title, metrics, rows, notes)


def write_all(table: Table, stem: Path) -> list[Path]:
    """Write a table in every format.

    Args:
        table: the table.
        stem: the files' path without a suffix.

    Returns:
        The files.
    """
    paths = [stem.with_name(stem.name + suffix) for suffix in FORMATS]
    for path in paths:
        write_table(table, path)
    return paths
