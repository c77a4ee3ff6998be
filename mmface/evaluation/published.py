"""The paper's tables, as printed: MMFace-DiT, CVPR 2026, arXiv 2603.29029.

Values are decimals with the digits that the paper gives. The paper does not state the number of
test pictures, the reference set, nor the networks behind FID, LPIPS, CLIP, parser and LLM score:
compare rankings and gaps under one protocol, not single digits.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

SOURCE = "arXiv 2603.29029"


@dataclass(frozen=True)
class PublishedRow:
    """One method of a table.

    Attributes:
        method: its name in the table.
        values: the printed numbers by metric.
    """

    method: str
    values: Mapping[str, Decimal]


@dataclass(frozen=True)
class PublishedTable:
    """One table.

    Attributes:
        number: the table's number.
        title: what it shows.
        metrics: its columns, in order.
        rows: its methods, in order.
        source: where it is printed.
    """

    number: int
    title: str
    metrics: tuple[str, ...]
    rows: tuple[PublishedRow, ...]
    source: str = SOURCE

    def row(self, method: str) -> PublishedRow:
        """Find a method.

        Args:
            method: its name.

        Returns:
            Its row.

        Raises:
            ValueError: if the table has no such method.
        """
        for row in self.rows:
            if row.method == method:
                return row
        names = ", ".join(row.method for row in self.rows)
        raise ValueError(f"table {self.number} has no method {method!r}; it has {names}")


def printed_distance(row: PublishedRow) -> Decimal:
    """The CLIP distance that a row's CLIP score gives, 1 - score / 100, to two digits."""
    distance = 1 - row.values["clip"] / 100
    return distance.quantize(Decimal("0.01"), rounding=ROUND_HALF_UP)


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
