"""The frozen networks around the transformer: VAEs, text towers and the face parser.

`Encoder` is what each of them gives: its features, identity and cost. Entry points are
`LatentCodec` and `TextEncoder`; `mmface.encoders.face_parser` has `FaceParser`.
"""

from mmface.encoders.encoder import Encoder, Feature
from mmface.encoders.text import TextEncoder, TextFeatures, meta_text_model
from mmface.encoders.vae import VAES, LatentCodec, Vae, VaeSpec, execution_device, meta_vae

__all__ = [
    "VAES",
    "Encoder",
    "Feature",
    "LatentCodec",
    "TextEncoder",
    "TextFeatures",
    "Vae",
    "VaeSpec",
    "execution_device",
    "meta_text_model",
    "meta_vae",
]
