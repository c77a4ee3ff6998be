"""The doctor: examines a data set before training, and says what is wrong with it.

`findings` registers the checks, one function a kind: `lines` has those of the manifest's lines,
`face_checks` those of one face, `set_checks` those of the whole. `examination` runs them, `cure`
writes a mended manifest, `report` prints and draws.
"""

from pathlib import Path

from mmface.doctor.cure import Cure, cure
from mmface.doctor.examination import Diagnosis, examine
from mmface.doctor.findings import CHECKS, Finding
from mmface.doctor.report import kinds_table, sheet, statistics, summary, write_report

__all__ = [
    "CHECKS",
    "Cure",
    "Diagnosis",
    "Finding",
    "cure",
    "examine",
    "kinds_table",
    "sheet",
    "statistics",
    "summary",
    "write_report",
    "write_results",
]


def write_results(
    diagnosis: Diagnosis,
    report: str | Path | None = None,
    worst: str | Path | None = None,
    fixed: str | Path | None = None,
) -> str:
    """Write the files that are not None: JSON findings, worst faces as PNG, mended manifest.

    Gives a text of what was found and where the files are. The PNG is not written if no face has a
    finding; ValueError if the mended manifest would replace the examined one.
    """
    lines = [summary(diagnosis)]
    if fixed is not None:
        lines += ["", str(cure(diagnosis, fixed))]
    if worst is not None and (picture := sheet(diagnosis)) is not None:
        Path(worst).parent.mkdir(parents=True, exist_ok=True)
        picture.save(worst, format="PNG")
        lines.append(str(worst))
    if report is not None:
        lines.append(str(write_report(diagnosis, report)))
    return "\n".join(lines)
