"""How alike the masks of two sets of faces are: shares and sizes of classes, and who meets whom.

Compares rendered masks with a folder of masks as CelebAMask-HQ colours or numbers them:

    python -m mmface.rendered.yardstick FOLDER
"""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmface.conditions import LABELS, MASK
from mmface.rendered.distributions import distribution, distribution_names

SIZE_PX = 128


@dataclass(frozen=True)
class MaskStatistics:
    """Averages over masks, by class of `mmface.conditions.LABELS`.

    `present` is how many masks show the class, `shares` its part of the picture in all masks,
    `sizes` in those that show it, and `meetings`, [19, 19], which part of all boundaries lies
    between two classes.
    """

    present: np.ndarray
    shares: np.ndarray
    sizes: np.ndarray
    meetings: np.ndarray

    @classmethod
    def of(cls, masks: Iterable[np.ndarray]) -> "MaskStatistics":
        """Measure label maps, uint8 [S, S] each."""
        counts, meetings = [], np.zeros((len(LABELS),) * 2)
        for labels in masks:
            counts.append(np.bincount(labels.ravel(), minlength=len(LABELS)) / labels.size)
            for first, second in ((labels[1:], labels[:-1]), (labels[:, 1:], labels[:, :-1])):
                np.add.at(meetings, (first.ravel(), second.ravel()), 1)
        shares = np.array(counts)
        there = shares > 0
        meetings = meetings + meetings.T
        np.fill_diagonal(meetings, 0)
        sizes = shares.sum(0) / np.maximum(there.sum(0), 1)
        return cls(there.mean(0), shares.mean(0), sizes, meetings / meetings.sum())

    def distance(self, other: "MaskStatistics") -> dict[str, float]:
        """Total variations of shares, of meetings, and the mean difference of presence."""
        return {
            "shares": float(np.abs(self.shares - other.shares).sum() / 2),
            "meetings": float(np.abs(self.meetings - other.meetings).sum() / 4),
            "presence": float(np.abs(self.present - other.present).mean()),
        }


def read_masks(folder: str | Path) -> list[np.ndarray]:
    """The masks of a folder, `*mask*.png`, as label maps; FileNotFoundError if there are none."""
    paths = sorted(Path(folder).glob("*mask*.png"))
    if not paths:
        raise FileNotFoundError(f"{folder} has no *mask*.png; give a folder of masks")
    return [MASK.load(path, (SIZE_PX, SIZE_PX)).values for path in paths]


def table(columns: dict[str, MaskStatistics], judged_by: str) -> str:
    """Lay statistics out in Markdown, with distances to the column `judged_by`."""
    heads = [f"{name}: present | share % | size %" for name in columns]
    lines = ["| class | " + " | ".join(heads) + " |", "|---" * (1 + 3 * len(columns)) + "|"]
    for index, label in enumerate(LABELS):
        cells = [
            f"{s.present[index]:.2f} | {100 * s.shares[index]:.2f} | {100 * s.sizes[index]:.2f}"
            for s in columns.values()
        ]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    for name, statistics in columns.items():
        if name != judged_by:
            found = statistics.distance(columns[judged_by])
            lines.append(
                f"\n{name} from {judged_by}: "
                + ", ".join(f"{key} {value:.3f}" for key, value in found.items())
            )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", help="folder of masks to compare with")
    parser.add_argument("--num-faces", type=int, default=400, help="rendered faces of each kind")
    options = parser.parse_args(arguments)
    columns = {"given": MaskStatistics.of(read_masks(options.folder))}
    for name in distribution_names():
        drawn = (distribution(name).render(i, SIZE_PX).labels for i in range(options.num_faces))
        columns[name] = MaskStatistics.of(drawn)
    print(table(columns, "given"))


if __name__ == "__main__":
    main()
