"""Whether a mask or a sketch belongs to its photo: do its outlines lie on the photo's edges.

In aligned pictures all faces resemble each other, so a photo's agreement with an outline says
little by itself. It is compared with the photo's agreement with other outlines, and the outline's
with other photos:

    excess(photo, outline) = a(photo, outline) - mean a(photo, .) - mean a(., outline) + mean a

in units of the deviation of the excess of photos and outlines that do not belong together.
"""

from collections.abc import Sequence

import numpy as np

from mmface.doctor.face import Face, Reference

MIN_REFERENCES = 12
MAX_REFERENCES = 32

OUTLINES = ("mask", "sketch")
"""The fields of a record that have outlines."""

CLEAR_SHARE = 0.25
"""Share of the set's typical excess below which an outline is another's. Of 200 rendered faces at
256 pixels none falls below it, and of others' masks and sketches 95% and 90% do."""

MIN_TYPICAL_EXCESS = 3.0
"""Typical excess of a set below which no single outline is called wrong."""

_TYPICAL = 0.75  # quantile of the own excesses; a set may be wrong in half of its faces


def reference_of(faces: Sequence[Face], name: str) -> Reference | None:
    """Gather the `mask` or `sketch` outlines of faces spread over the set.

    None if too few faces have a photo and an outline, or all look the same.
    """
    usable = [each for each in faces if each.edges is not None and each.outline(name) is not None]
    if len(usable) < MIN_REFERENCES:
        return None
    edges = np.array([each.edges for each in usable], dtype=np.float32)
    outlines = np.array([each.outline(name) for each in usable], dtype=np.float32)
    agreement = edges @ outlines.T
    own = np.eye(len(usable), dtype=bool)
    others = np.where(own, np.nan, agreement)
    excess = (
        agreement
        - np.nanmean(others, axis=1, keepdims=True)
        - np.nanmean(others, axis=0, keepdims=True)
        + np.nanmean(others)
    )
    spread = float(excess[~own].std())
    if spread < 1e-9:
        return None
    ids = tuple(each.record.id for each in usable)
    typical_excess = float(np.quantile(excess[own], _TYPICAL)) / spread
    return Reference(ids, edges, outlines, agreement, spread, typical_excess)


def excess_of(face: Face, name: str, reference: Reference) -> float | None:
    """How much better an outline fits its photo than others' do, in deviations.

    None if there is nothing to measure. The reference may hold the face itself.
    """
    edges, outline = face.edges, face.outline(name)
    if edges is None or outline is None:
        return None
    apart = np.array([each != face.record.id for each in reference.ids])
    with_others = (reference.outlines @ edges)[apart].mean()
    of_others = (reference.edges @ outline)[apart].mean()
    strangers = apart[:, None] & apart & ~np.eye(len(apart), dtype=bool)
    level = reference.agreement[strangers].mean()
    return float((edges @ outline - with_others - of_others + level) / reference.spread)
