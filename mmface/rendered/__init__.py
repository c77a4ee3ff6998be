"""Faces drawn from parameters: a picture, its 19-class label map, its sketch and captions.

The data set needs no download and no network: a seed is a face. A face is a stack of layers, back
to front. Every layer is a coverage mask, drawn once with supersampling; the picture takes the mask
as alpha, the label map takes it thresholded at one half and the sketch takes its outline, so that
the three agree by construction. Framing follows the aligned crops of CelebA-HQ.

There are two distributions (`distributions`): "studio", which the built-in models learned, and
"candid", in its own folder, whose masks and sketches are like those of photographs.

`attributes` says what a face can be, `wording` describes one, `curves` and `scene` are what it is
drawn with, `face` stacks the layers, and the other modules draw one subject each.
"""

from mmface.rendered.attributes import (
    BACKGROUND_COLORS,
    CLOTHES_COLORS,
    EYE_COLORS,
    HAIR_COLORS,
    HAT_COLORS,
    SKIN_TONES,
    FaceAttributes,
    sample_attributes,
)
from mmface.rendered.distributions import distribution, distribution_names
from mmface.rendered.face import RenderedFace, draw, render_face
from mmface.rendered.wording import captions

__all__ = [
    "BACKGROUND_COLORS",
    "CLOTHES_COLORS",
    "EYE_COLORS",
    "HAIR_COLORS",
    "HAT_COLORS",
    "SKIN_TONES",
    "FaceAttributes",
    "RenderedFace",
    "captions",
    "distribution",
    "distribution_names",
    "draw",
    "render_face",
    "sample_attributes",
]
