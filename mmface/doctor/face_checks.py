"""The checks that look at one face: its files, mask, sketch and captions."""

import re
from collections.abc import Iterator

import numpy as np

from mmface.conditions import (
    LABELS,
    LEFT_RIGHT_PAIRS,
    MASK,
    SKETCH,
    SKETCH_POLARITIES,
    ForeignOrderError,
    LoadedMask,
    condition_kinds,
)
from mmface.doctor.alignment import CLEAR_SHARE, MIN_TYPICAL_EXCESS, excess_of
from mmface.doctor.face import Face
from mmface.doctor.findings import Problem, Repair, check

MAX_ASPECT_DIFFERENCE = 0.02
"""Of a mask or sketch and its photo; one pixel of 64 is 0.016."""

MAX_WORDS = 55
"""Words that 77 CLIP tokens hold, at the 1.36 tokens a word of English captions."""

MIN_SWAP = 0.02
"""Distance between the parts of a swapped pair, as a share of the width, from which it counts."""

_MIN_LETTERS = 0.6
_NO_WORDS = frozenset({"none", "null", "nan", "n/a", "undefined", "todo", "caption"})
_ADDRESS = re.compile(r"https?://|^\S*[/\\]\S*$|^\S+\.(jpe?g|png|webp|txt|json)$|^data:", re.I)


def _bad(face: Face, kind: str) -> Iterator[Problem]:
    for name, bad in face.bad.items():
        if bad.kind == kind:
            yield Problem(getattr(face.record, name), f"the {name}: {bad.words}")


@check("face", "error", "Put the file where the manifest says, or import again.", "drop")
def missing_file(face: Face) -> Iterator[Problem]:
    """Picture that is not there."""
    yield from _bad(face, "missing")


@check("face", "error", "Get the file anew; it is no picture.", "drop")
def unreadable_file(face: Face) -> Iterator[Problem]:
    """File that is no picture."""
    yield from _bad(face, "unreadable")


@check("face", "error", "Get the file anew; a part of it is lost.", "drop")
def truncated_file(face: Face) -> Iterator[Problem]:
    """Picture that breaks off."""
    yield from _bad(face, "truncated")


@check("face", "warning", "Import again if the file was exchanged on purpose.", "repair")
def changed_file(face: Face) -> Iterator[Problem]:
    """Photo that is not the file that was imported."""
    if face.sha256 and face.record.sha256 and face.sha256 != face.record.sha256:
        words = "the image has another SHA-256 than the manifest says"
        yield Problem(face.record.image, words, repair=(Repair("sha256", face.sha256),))


@check("face", "error", "Crop mask and sketch as the photo was cropped.", "drop")
def wrong_aspect(face: Face) -> Iterator[Problem]:
    """Mask, sketch or other condition of another aspect ratio than the photo."""
    width, height = face.sizes.get("image", (0, 0))
    for name in face.record.conditions:
        own_width, own_height = face.sizes.get(name, (0, 0))
        if not (width and own_width):
            continue
        if abs(own_width * height / (own_height * width) - 1) > MAX_ASPECT_DIFFERENCE:
            words = f"the {name} is {own_width}x{own_height}, the image {width}x{height}"
            yield Problem(getattr(face.record, name), words)


@check("face", "warning", "Set width and height to those of the file.", "repair")
def wrong_size_in_manifest(face: Face) -> Iterator[Problem]:
    """Photo of another size than the manifest says."""
    size, said = face.sizes.get("image"), (face.record.width, face.record.height)
    if size and size != said:
        words = f"the image is {size[0]}x{size[1]}, the manifest says {said[0]}x{said[1]}"
        repair = (Repair("width", size[0]), Repair("height", size[1]))
        yield Problem(face.record.image, words, repair=repair)


@check("face", "warning", "Take larger pictures, or train at a lower resolution.")
def low_resolution(face: Face) -> Iterator[Problem]:
    """Picture smaller than the resolution that was asked for."""
    wanted = face.examination.size_px or 0
    for name, size in face.sizes.items():
        if min(size) < wanted:
            words = f"the {name} is {size[0]}x{size[1]}, smaller than {wanted} pixels"
            yield Problem(getattr(face.record, name), words)


@check("face", "error", "Save the mask as class indices 0..18, or say its label format.", "drop")
def off_palette(face: Face) -> Iterator[Problem]:
    """Mask that cannot be read in its label format."""
    if isinstance(face.mask, ValueError) and not isinstance(face.mask, ForeignOrderError):
        words = str(face.mask).replace("The picture", "the mask")
        yield Problem(face.record.mask or "", words)


@check("face", "error", "Parse the photo again: scripts/annotate.py masks.", "drop")
def one_class_mask(face: Face) -> Iterator[Problem]:
    """Mask of one class only."""
    if face.labels is not None and len(np.unique(face.labels)) == 1:
        words = f"all of the mask is {LABELS[int(face.labels.flat[0])]}"
        yield Problem(face.record.mask or "", words)


@check("face", "error", "Say the label format of this face in the manifest.", "repair")
def foreign_label_order(face: Face) -> Iterator[Problem]:
    """Single mask whose classes are in another order than the set's."""
    if isinstance(face.mask, ForeignOrderError):
        own, guess = face.record.label_format, face.mask.guess
        assert guess.format is not None
        words = f"the mask looks like {guess.format.name}, not {own}: {guess.evidence}"
        repair = (Repair("label_format", guess.format.name),)
        yield Problem(face.record.mask or "", words, repair=repair)


@check("face", "warning", "Look at the mask, and parse the photo again if it is wrong.")
def odd_mask(face: Face) -> Iterator[Problem]:
    """Mask that was read by a guess, or hardly looks like a face."""
    if isinstance(face.mask, LoadedMask) and not is_mirrored(face):
        for remark in face.mask.remarks:
            yield Problem(face.record.mask or "", f"the mask was read, but {remark}")


def swaps(face: Face) -> list[bool]:
    """Say for each pair of eyes, brows and ears whether the left one lies on the wrong side."""
    if face.labels is None:
        return []
    found, width = [], face.labels.shape[1]
    step = max(1, width // 128)  # `parts_of` looks at every so many pixels
    for left, right in LEFT_RIGHT_PAIRS:
        if left in face.parts and right in face.parts:
            distance = (face.parts[left].x - face.parts[right].x) * step / width
            if abs(distance) >= MIN_SWAP:
                found.append(distance < 0)
    return found


def is_mirrored(face: Face) -> bool:
    """Say whether all pairs of a mask are swapped; one pair alone is not enough."""
    found = swaps(face)
    return len(found) >= 2 and all(found)


@check("face", "error", "Mirror the mask, or swap its left and right classes.", "drop")
def mirrored_mask(face: Face) -> Iterator[Problem]:
    """Single mask in which left and right are swapped."""
    if is_mirrored(face):
        words = "the subject's left eye, brow and ear lie on the picture's left in the mask"
        yield Problem(face.record.mask or "", words)


def _misaligned(face: Face, name: str) -> Iterator[Problem]:
    reference = face.examination.references.get(name)
    if reference is None or reference.typical_excess < MIN_TYPICAL_EXCESS:
        return
    excess = excess_of(face, name, reference)
    if excess is not None and excess < CLEAR_SHARE * reference.typical_excess:
        words = (
            f"the {name} does not follow the photo: its outlines lie on the photo's edges no "
            f"better than other faces' ({excess:.1f} deviations, "
            f"{reference.typical_excess:.1f} are usual here)"
        )
        yield Problem(getattr(face.record, name), words)


@check("face", "warning", "Give the face its own mask, or parse the photo again.", "drop")
def misaligned_mask(face: Face) -> Iterator[Problem]:
    """Mask that does not belong to the photo, or is shifted."""
    if not (is_mirrored(face) or any(foreign_label_order(face)) or any(wrong_aspect(face))):
        yield from _misaligned(face, "mask")


@check("face", "error", "Draw the sketch again: scripts/annotate.py sketches.", "drop")
def blank_sketch(face: Face) -> Iterator[Problem]:
    """Sketch without a line in it."""
    if _is_blank(face):
        yield Problem(face.record.sketch or "", "the sketch is blank: no line in it")


def _is_blank(face: Face) -> bool:
    return isinstance(face.own_sketch, ValueError) and "is blank" in str(face.own_sketch)


@check("face", "error", "Say the other sketch polarity, or invert the sketch.", "repair")
def inverted_sketch(face: Face) -> Iterator[Problem]:
    """Sketch of the other polarity."""
    if not isinstance(face.own_sketch, ValueError) or _is_blank(face):
        return
    other = next(each for each in SKETCH_POLARITIES if each != face.record.sketch_polarity)
    if isinstance(face.sketch(other), np.ndarray):
        words = f"the sketch is {other}, the manifest says {face.record.sketch_polarity}"
        repair = (Repair("sketch_polarity", other),)
        yield Problem(face.record.sketch or "", words.replace("_", " "), repair=repair)


@check("face", "error", "Give a sketch; a mask or photo stands in its place.", "drop")
def no_sketch(face: Face) -> Iterator[Problem]:
    """Picture that is no sketch."""
    unusable = isinstance(face.own_sketch, ValueError)
    if unusable and not (_is_blank(face) or any(inverted_sketch(face))):
        words = str(face.own_sketch).replace("The picture", "the sketch")
        yield Problem(face.record.sketch or "", words)


@check("face", "error", "Make the condition anew from the photo.", "drop")
def unusable_condition(face: Face) -> Iterator[Problem]:
    """Condition that cannot be read, as no other check says."""
    for kind in condition_kinds():
        own = {MASK: face.mask, SKETCH: face.own_sketch}.get(kind)
        fault = None if isinstance(own, ValueError) else face.fault_of(kind)
        if fault is not None:
            yield Problem(face.record.conditions[kind.name], fault)


@check("face", "warning", "Give the face its own sketch, or draw it again.", "drop")
def misaligned_sketch(face: Face) -> Iterator[Problem]:
    """Sketch that does not belong to the photo, or is shifted."""
    if not any(wrong_aspect(face)):
        yield from _misaligned(face, "sketch")


@check("face", "error", "Take it out, or describe the face anew: scripts/annotate.py.", "repair")
def no_text_caption(face: Face) -> Iterator[Problem]:
    """Caption that is no text."""
    for caption in face.record.captions:
        if is_no_text(caption):
            words = f"the caption {shortened(caption)!r} is no text"
            yield Problem(face.record.image, words, repair=(Repair("captions", None, caption),))


def is_no_text(caption: str) -> bool:
    """Say whether a caption is a file name, an address, a placeholder or mostly no letters."""
    stripped = caption.strip()
    if "�" in stripped or stripped.lower() in _NO_WORDS or _ADDRESS.search(stripped):
        return True
    letters = sum(each.isalpha() or each.isspace() for each in stripped)
    return letters < _MIN_LETTERS * len(stripped)


def shortened(text: str, length: int = 40) -> str:
    """Cut a text for a message."""
    return text if len(text) <= length else text[: length - 3].rstrip() + "..."


@check("face", "warning", "Shorten it; the text encoder reads its beginning only.", "repair")
def long_caption(face: Face) -> Iterator[Problem]:
    """Caption longer than the text encoder reads."""
    tokenizer = face.examination.tokenizer
    for caption in face.record.captions:
        if is_no_text(caption):
            continue
        if tokenizer is None:
            count = len(caption.split())
            if count > MAX_WORDS:
                words = f"the caption {shortened(caption)!r} has {count} words"
                yield Problem(face.record.image, words)
            continue
        # The rewriter's module loads transformers' models, which most examinations do without.
        from mmface.annotation.rewriting import MAX_TOKENS, cap_to_tokens, num_tokens

        limit = min(MAX_TOKENS, tokenizer.model_max_length)
        count = num_tokens(caption, tokenizer)
        if count > limit:
            words = f"the caption {shortened(caption)!r} has {count} tokens of {limit}"
            repair = (Repair("captions", cap_to_tokens(caption, tokenizer, limit), caption),)
            yield Problem(face.record.image, words, repair=repair)
