"""The spatial conditions that people bring: how each kind is read, drawn, mirrored and compared.

A kind of condition is one class, registered by name (`kind.py`); masks and sketches are built in.
Nothing here loads torch: `pixels.py`, which turns pictures to tensors and back, stands apart.
"""

from mmface.conditions.kind import (
    ConditionKind,
    LoadedCondition,
    Parser,
    Reading,
    condition_kind,
    condition_kinds,
    draw_conditions,
    kinds_in_words,
    register,
    registered,
)
from mmface.conditions.label_formats import (
    COLOR_TOLERANCE,
    LABEL_FORMATS,
    LabelFormat,
    LabelFormatGuess,
    class_indices,
    guess_label_format,
    label_format_named,
)
from mmface.conditions.mask import (
    MASK,
    LoadedMask,
    class_iou,
    colorize,
    confusion_matrix,
    flip_labels,
    load_mask,
    mean_iou,
    pixel_accuracy,
    released_mask_rgb,
)
from mmface.conditions.palette import LABEL_INDEX, LABELS, LEFT_RIGHT_PAIRS, PALETTE
from mmface.conditions.pictures import MAX_PIXELS, Picture, flat_rgb, open_picture, picture_name
from mmface.conditions.sketch import (
    SKETCH,
    SKETCH_POLARITIES,
    edge_agreement,
    edge_strength,
    load_sketch,
)

__all__ = [
    "COLOR_TOLERANCE",
    "LABELS",
    "LABEL_FORMATS",
    "LABEL_INDEX",
    "LEFT_RIGHT_PAIRS",
    "MASK",
    "MAX_PIXELS",
    "PALETTE",
    "SKETCH",
    "SKETCH_POLARITIES",
    "ConditionKind",
    "LabelFormat",
    "LabelFormatGuess",
    "LoadedCondition",
    "LoadedMask",
    "Parser",
    "Picture",
    "Reading",
    "class_indices",
    "class_iou",
    "colorize",
    "condition_kind",
    "condition_kinds",
    "confusion_matrix",
    "draw_conditions",
    "edge_agreement",
    "edge_strength",
    "flat_rgb",
    "flip_labels",
    "guess_label_format",
    "kinds_in_words",
    "label_format_named",
    "load_mask",
    "load_sketch",
    "mean_iou",
    "open_picture",
    "picture_name",
    "pixel_accuracy",
    "register",
    "registered",
    "released_mask_rgb",
]
