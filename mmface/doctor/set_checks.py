"""The checks that look at the whole set: splits, label order, mirrors, duplicates, latents."""

from collections import Counter
from collections.abc import Iterator, Sequence

from mmface.data.pictures import ManifestPictures, lacking
from mmface.data.store import Store
from mmface.doctor.alignment import MIN_TYPICAL_EXCESS
from mmface.doctor.findings import Problem, Repair, check
from mmface.doctor.patient import Duplicate, Patient


@check("set", "error", "Import again with --split, or merge a set that has one.")
def empty_split(patient: Patient) -> Iterator[Problem]:
    """Set without a face to train on."""
    if not any(each.split == "train" for each in patient.manifest.records):
        words = "no face is in the split train"
        yield Problem(str(patient.manifest.path), words)


@check("set", "warning", "Make what is missing: scripts/annotate.py.")
def incomplete_faces(patient: Patient) -> Iterator[Problem]:
    """Faces without captions, or without any condition, which training leaves out."""
    lacks = [lacking(each) for each in patient.manifest.records]
    if 0 < (count := sum(map(bool, lacks))) < len(lacks):
        words = f"{count} of {len(lacks)} faces are left out of training: {_counted(lacks)}"
        yield Problem(str(patient.manifest.path), words)


@check("set", "error", "Mend the faces, or make what is missing: scripts/annotate.py.")
def nothing_to_train_on(patient: Patient) -> Iterator[Problem]:
    """Set of which no face of the split train can be used."""
    faces = zip(patient.manifest.records, patient.faces, strict=True)
    training = [(record, face) for record, face in faces if record.split == "train"]
    if training and not any(face.is_readable and not lacking(record) for record, face in training):
        unreadable = sum(not face.is_readable for _, face in training)
        told = [f"{unreadable} have files that cannot be read"] if unreadable else []
        told += filter(None, [_counted([lacking(record) for record, _ in training])])
        words = f"none of {len(training)} faces can be used: {', '.join(told)}"
        yield Problem(str(patient.manifest.path), words)


def _counted(lacks: Sequence[Sequence[str]]) -> str:
    counts = Counter(" and no ".join(each) for each in lacks if each)
    return ", ".join(f"{count} have no {names}" for names, count in counts.items())


@check("set", "error", "Import again with the --label-format that the masks have.", "repair")
def label_order(patient: Patient) -> Iterator[Problem]:
    """Masks of the set in another label format than the manifest says."""
    for said, guess in patient.label_guesses.items():
        if guess.format is None:
            continue
        words = f"masks said to be {said} look like {guess.format.name}: {guess.evidence}"
        repair = (Repair("label_format", guess.format.name, said),)
        yield Problem(str(patient.manifest.path), words, repair=repair)


@check("set", "error", "Mirror all masks, or swap left and right in their label format.")
def mirrored_set(patient: Patient) -> Iterator[Problem]:
    """Set whose masks have left and right swapped throughout."""
    if patient.is_mirrored:
        told = [each.mirrored for each in patient.faces if each.mirrored is not None]
        words = (
            f"in {sum(told)} of {len(told)} masks the subject's left eye, brow and ear lie on the "
            "picture's left"
        )
        yield Problem(str(patient.manifest.path), words)


@check("set", "warning", "Look at a few masks and sketches beside their photos.")
def misaligned_set(patient: Patient) -> Iterator[Problem]:
    """Set whose masks or sketches fit their photos hardly better than other faces' do."""
    for name, excess in patient.typical_excess.items():
        if excess < MIN_TYPICAL_EXCESS:
            words = (
                f"a {name} fits its own photo {excess:.1f} deviations better than other faces' "
                f"do, {MIN_TYPICAL_EXCESS:.0f} or more is usual; single faces were not judged"
            )
            yield Problem(str(patient.manifest.path), words)


@check("set", "error", "Keep the face in one split only, best in the test split.", "drop")
def leak(patient: Patient) -> Iterator[Problem]:
    """Photo that is in two splits."""
    for each in patient.duplicates:
        if each.record.split != each.kept.split:
            words = f"{_alike(each)}, which is in the split {each.kept.split}"
            yield Problem(each.record.image, words, each.record.id)


@check("set", "warning", "Keep one of them.", "drop")
def exact_duplicate(patient: Patient) -> Iterator[Problem]:
    """Photo whose file is in its split twice."""
    for each in patient.duplicates:
        if each.same_file and each.record.split == each.kept.split:
            yield Problem(each.record.image, _alike(each), each.record.id)


@check("set", "warning", "Keep one of them.", "drop")
def near_duplicate(patient: Patient) -> Iterator[Problem]:
    """Photo that looks like another of its split."""
    for each in patient.duplicates:
        if not each.same_file and each.record.split == each.kept.split:
            yield Problem(each.record.image, _alike(each), each.record.id)


def _alike(duplicate: Duplicate) -> str:
    verb = "has the same file as" if duplicate.same_file else "looks like"
    return f"the photo {verb} that of {duplicate.kept.id}"


@check("set", "error", "Make the latents anew: scripts/precompute.py.")
def stale_latents(patient: Patient) -> Iterator[Problem]:
    """Latents that were made of another manifest."""
    if patient.store is None:
        return
    folder = str(patient.store)
    try:
        store = Store(patient.store)
    except (FileNotFoundError, ValueError) as error:
        yield Problem(folder, f"it cannot be used: {error}")
        return
    made_by = store.spec.made_by.get("pictures", {})
    if not isinstance(made_by, dict) or made_by.get("kind") != "manifest":
        yield Problem(folder, "it was not made of a manifest")
        return
    split = made_by.get("split")
    wanted = {
        each.id: each.captions
        for each in patient.manifest.records
        if split is None or each.split == split
    }
    there = dict(zip(store.rows["id"], map(tuple, store.rows["captions"]), strict=True))
    skipped = {each.id for each in store.skipped}
    counts = {
        "faces are not in the manifest": len(there.keys() - wanted.keys()),
        "faces of the manifest are not in it": len(wanted.keys() - there.keys() - skipped),
        "faces have other captions": sum(wanted[k] != there[k] for k in wanted.keys() & there),
    }
    told = [f"{count} {what}" for what, count in counts.items() if count]
    path = patient.manifest.path
    now = ManifestPictures(path, 1).made_by()["sha256"]
    if not told and made_by.get("sha256") != now:
        told = ["the manifest was changed since, though not its ids and captions"]
    if told:
        yield Problem(folder, f"made of another state of {path.name}: {', '.join(told)}")
