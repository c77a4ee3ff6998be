"""Writes a manifest without what is wrong, as far as that is safe; no other file is touched."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mmface.data.manifest import Manifest, Record
from mmface.doctor.examination import Diagnosis
from mmface.doctor.findings import CHECKS, Finding, Repair


@dataclass(frozen=True)
class Cure:
    """The manifest as written; by kind, findings mended or left out, and those that stay."""

    manifest: Manifest
    done: Counter[str]
    left: Counter[str]

    def __str__(self) -> str:
        """Say it, one line a kind."""
        lines = [
            f"{kind.replace('_', ' ')}: {count} {_DONE[CHECKS[kind].cure]}"
            for kind, count in self.done.items()
        ]
        left = [f"{kind.replace('_', ' ')}: {n} left as it is" for kind, n in self.left.items()]
        faces = f"{len(self.manifest.records)} faces in the fixed manifest"
        return "\n".join([faces, *lines, *left, str(self.manifest.path)])


_DONE = {"drop": "left out", "repair": "mended", "none": "left as it is"}


def cure(diagnosis: Diagnosis, out: str | Path) -> Cure:
    """Write a manifest without the faces and values that would fail or mislead training.

    Left out are faces with a missing or broken file, in the set twice, or with a mask or sketch
    that would teach something wrong. Sizes, polarities, label formats that are sure, and captions
    are mended. ValueError if `out` is the examined manifest.
    """
    manifest, out = diagnosis.reading.manifest, Path(out)
    if out.resolve() == manifest.path.resolve():
        raise ValueError(f"{out} is the examined manifest; give the fixed one another name.")
    by_face: dict[str, list[Finding]] = {}
    formats: dict[str, str] = {}
    done: Counter[str] = Counter()
    left: Counter[str] = Counter()
    for finding in diagnosis.findings:
        level, cure_ = CHECKS[finding.kind].level, CHECKS[finding.kind].cure
        # Without a tokenizer there is no knowing where to cut a caption.
        helped = cure_ == "drop" or level == "line" or (cure_ == "repair" and finding.repair)
        (done if helped else left)[finding.kind] += 1
        if finding.kind == "label_order":
            formats |= {str(each.of): each.value for each in finding.repair}
        elif finding.id is not None and level != "line":
            by_face.setdefault(finding.id, []).append(finding)
    records = []
    for record in manifest.records:
        kept = _mended(record, by_face.get(record.id, ()))
        if kept is not None:
            own_format = kept.label_format != record.label_format
            new = kept.label_format if own_format else formats.get(record.label_format)
            records.append(kept.having(label_format=new or kept.label_format))
    usual = manifest.all_readings
    header = usual | {"label_format": formats.get(usual["label_format"], usual["label_format"])}
    made_by = {**manifest.made_by, "fixed": dict(done)}
    fixed = replace(manifest, records=records, readings=header, made_by=made_by)
    return Cure(fixed.write(out), done, left)


def _mended(record: Record, findings: Sequence[Finding]) -> Record | None:
    """Apply the repairs to a record; None if it is to be left out."""
    if any(CHECKS[each.kind].cure == "drop" for each in findings):
        return None
    for finding in findings:
        for repair in finding.repair:
            record = _repaired(record, repair)
    return record


def _repaired(record: Record, repair: Repair) -> Record:
    if repair.field != "captions":
        return record.having(**{repair.field: repair.value})
    exchanged = [repair.value if each == repair.of else each for each in record.captions]
    return replace(record, captions=tuple(each for each in exchanged if each is not None))
