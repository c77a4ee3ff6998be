"""Vision towers for reference faces: CLIP's or DINOv2's, to a class feature and patch features.

Face-recognition embeddings are brought by whoever has them: the weights that make them, such as
ArcFace's, are not free for every use, and none is loaded here.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
)

from mmface.conditions import Picture, flat_rgb, open_picture
from mmface.core.files import values_sha256
from mmface.core.sources import ASSETS, load_network, opened, read_object
from mmface.encoders.encoder import Feature, count_flops

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP_STATISTICS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
DINOV2 = "dinov2"
CLIP_VISION = "clip_vision_model"
Tower: TypeAlias = CLIPVisionModelWithProjection | Dinov2Model
MIN_SIDE_PX = 64
"""Smaller pictures say too little of a face."""


class ReferenceFeatures(NamedTuple):
    """The features of reference pictures: `cls` [B, c] and `patches` [B, P, v]."""

    cls: Float[Tensor, "batch cls_dim"]
    patches: Float[Tensor, "batch patches patch_dim"]


class ReferenceEncoder:
    """A vision tower, frozen or trained along, with its preprocessing.

    CLIP gives its projected embedding and the states before its last layer (MM-Diff); DINOv2 its
    class token after the last norm, and its patches there.
    """

    def __init__(
        self, tower: CLIPVisionModelWithProjection | Dinov2Model, source: str = ""
    ) -> None:
        """Wrap a tower; `source` is where it came from."""
        self.tower = tower
        self.source = source
        self.kind: str = tower.config.model_type
        self.side: int = min(tower.config.image_size, 224)

    @classmethod
    def from_pretrained(
        cls, name: str | Path, dtype: torch.dtype = torch.float32
    ) -> "ReferenceEncoder":
        """Load a CLIP or DINOv2 from a folder or hub id, or the built-in "tiny-clip"; frozen."""
        with opened("reference encoder", name, {"tiny-clip": ASSETS / "tiny-clip"}) as source:
            kind = _model_type(source)
            tower: Tower
            if kind == DINOV2:
                tower = load_network(Dinov2Model, source, dtype=dtype)
            elif kind == "clip":
                tower = _vision_tower(load_network(CLIPModel, source, dtype=dtype))
            elif kind == CLIP_VISION:
                tower = load_network(CLIPVisionModelWithProjection, source, dtype=dtype)
            else:
                raise ValueError(f"it is a {kind!r:.40}; give a CLIP or a DINOv2")
        return cls(tower.requires_grad_(False).eval(), str(name))

    @classmethod
    def from_description(
        cls, description: Mapping[str, Any], weights: Mapping[str, Tensor]
    ) -> "ReferenceEncoder":
        """Build the tower that an adapter describes: of its own weights, or by name.

        ValueError if the weights are not those of the tower, or a named tower has others than the
        adapter was trained with.
        """
        source = str(description.get("source", ""))
        if not weights:
            found = cls.from_pretrained(source)
            if found.identity() != (wanted := description.get("identity")):
                raise ValueError(
                    f"The reference encoder {source} is not the one that the adapter was trained "
                    f"with ({found.identity()} instead of {wanted}); get that one."
                )
            return found
        try:
            config = dict(description["config"])
            is_dino = config.get("model_type") == DINOV2
            tower: Any = (
                Dinov2Model(Dinov2Config(**config))
                if is_dino
                else CLIPVisionModelWithProjection(CLIPVisionConfig(**config))
            )
            tower.load_state_dict({name: each.float() for name, each in weights.items()})
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"The adapter's own vision tower cannot be built ({reason:.200}); get the file "
                "again."
            ) from None
        return cls(tower.requires_grad_(False).eval(), source)

    def describe(self) -> dict[str, Any]:
        """What `from_description` needs beside weights of its own."""
        config = self.tower.config.to_diff_dict() | {"model_type": self.kind}
        kept = {n: v for n, v in config.items() if isinstance(v, str | int | float | bool)}
        kept.pop("dtype", None)
        return {"source": self.source, "config": kept, "identity": self.identity()}

    def __call__(self, pixels: Float[Tensor, "batch 3 side side"]) -> ReferenceFeatures:
        """Encode pictures in [-1, 1] of the tower's own size; gradients pass if it is trained."""
        statistics = IMAGENET if self.kind == DINOV2 else CLIP_STATISTICS
        mean, std = (pixels.new_tensor(each).view(3, 1, 1) for each in statistics)
        inputs = (((pixels + 1) / 2 - mean) / std).to(self.tower.dtype)
        if self.kind == DINOV2:
            states = self.tower(pixel_values=inputs).last_hidden_state
            return ReferenceFeatures(states[:, 0], states[:, 1:])
        output = self.tower(pixel_values=inputs, output_hidden_states=True)
        return ReferenceFeatures(output.image_embeds, output.hidden_states[-2])

    @property
    def module(self) -> nn.Module:
        """The tower."""
        return self.tower

    @property
    def cls_dim(self) -> int:
        """Width of the class feature."""
        config: Any = self.tower.config
        return int(config.hidden_size if self.kind == DINOV2 else config.projection_dim)

    @property
    def patch_dim(self) -> int:
        """Width of the patch features."""
        return int(self.tower.config.hidden_size)

    def gives(self, size: tuple[int, int] = (0, 0)) -> dict[str, Feature]:
        """The fields of `ReferenceFeatures`; CLIP's class token is among its patches."""
        config, dtype = self.tower.config, self.tower.dtype
        patches = (self.side // config.patch_size) ** 2 + (self.kind != DINOV2)
        return {
            "cls": Feature((self.cls_dim,), dtype),
            "patches": Feature((patches, self.patch_dim), dtype),
        }

    def identity(self) -> dict[str, Any]:
        """The weights' hash and the side of the pictures."""
        return {
            "reference_weights": values_sha256(self.tower.state_dict())[:16],
            "reference_side": self.side,
        }

    def flops(self, size: tuple[int, int] = (0, 0)) -> int:
        """FLOPs of one picture."""
        pixels = torch.empty(1, 3, self.side, self.side, device=self.tower.device)
        return count_flops(lambda: self(pixels))

    def activation_bytes(self, size: tuple[int, int], dtype: torch.dtype) -> int:
        """Bytes of all layers' states, which are returned, and of the widest layer."""
        config: Any = self.tower.config
        wide = getattr(config, "intermediate_size", 4 * config.hidden_size)
        states = (config.num_hidden_layers + 2) * config.hidden_size + 2 * wide
        return int(((self.side // config.patch_size) ** 2 + 1) * states * dtype.itemsize)

    @torch.no_grad()
    def features(self, inputs: Float[Tensor, "batch 3 _ _"]) -> dict[str, Tensor]:
        """Encode square pictures in [-1, 1] of any size, frozen."""
        return self(resized(inputs.to(self.tower.device), self.side))._asdict()


class ReferencePixels:
    """Stands in for an encoder that is trained along: keeps the pictures themselves, small."""

    def __init__(self, side: int = 128) -> None:
        """Choose the side in pixels, which is the encoder's."""
        self.side = side
        self.source = "pixels"
        self.module = nn.Identity()

    def gives(self, size: tuple[int, int] = (0, 0)) -> dict[str, Feature]:
        """The picture, channels first."""
        return {"pixels": Feature((3, self.side, self.side), torch.uint8)}

    def identity(self) -> dict[str, Any]:
        """The side."""
        return {"reference_side": self.side}

    def flops(self, size: tuple[int, int] = (0, 0)) -> int:
        """None."""
        return 0

    def activation_bytes(self, size: tuple[int, int], dtype: torch.dtype) -> int:
        """Bytes of the picture in float32."""
        return 12 * self.side**2

    def features(self, inputs: Float[Tensor, "batch 3 _ _"]) -> dict[str, Tensor]:
        """Resize square pictures in [-1, 1] to bytes."""
        pixels = (resized(inputs.float(), self.side) + 1) * 127.5
        return {"pixels": pixels.round().clamp(0, 255).to(torch.uint8)}


def resized(
    pixels: Float[Tensor, "batch 3 _ _"], side: int
) -> Float[Tensor, "batch 3 {side} {side}"]:
    """Resize square pictures, with antialiasing."""
    if pixels.shape[-1] == side:
        return pixels
    return F.interpolate(pixels, (side, side), mode="bicubic", antialias=True).clamp(-1, 1)


def load_reference(source: Picture, side: int) -> np.ndarray:
    """Read a reference picture: uint8 [side, side, 3], its middle square.

    FileNotFoundError if it is not there; ValueError if it is no picture, or too small.
    """
    rgb = flat_rgb(open_picture(source), "white")
    height, width = rgb.shape[:2]
    if min(height, width) < MIN_SIDE_PX:
        raise ValueError(
            f"The reference {_named(source)} is {width} x {height} pixels; give one of at least "
            f"{MIN_SIDE_PX} a side that shows the face large."
        )
    edge = min(height, width)
    left, top = (width - edge) // 2, (height - edge) // 2
    square = Image.fromarray(rgb[top : top + edge, left : left + edge])
    return np.array(square.resize((side, side), Image.Resampling.BICUBIC))


def _named(source: Picture) -> str:
    return str(source) if isinstance(source, str | Path) else "picture"


def _model_type(source: str) -> str:
    folder = Path(source)
    if folder.is_dir():
        return str(read_object(folder / "config.json").get("model_type"))
    from transformers import AutoConfig  # asks the hub

    return str(AutoConfig.from_pretrained(source).model_type)


def _vision_tower(clip: CLIPModel) -> CLIPVisionModelWithProjection:
    config: CLIPConfig = clip.config
    vision = config.vision_config
    vision.projection_dim = config.projection_dim
    tower = CLIPVisionModelWithProjection(vision).to(clip.dtype)
    weights = {n: t for n, t in clip.state_dict().items() if n.startswith("visi") or "visual" in n}
    tower.load_state_dict(weights)
    return tower
