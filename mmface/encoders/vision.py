"""Vision towers whose features the unified model's experts mix in: CLIP's, and one of faces."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import (
    CLIPModel,
    CLIPVisionModel,
    Dinov2Model,
    SegformerForSemanticSegmentation,
    SegformerModel,
)

from mmface.core.files import values_sha256
from mmface.core.sources import ASSETS, BrokenModelError, load_network, opened, read_object
from mmface.encoders.encoder import Feature, count_flops

BUILTIN = {name: ASSETS / name for name in ("tiny-clip", "tiny-parser")}
_HALF = [0.5, 0.5, 0.5]
_CLIP = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
_STATISTICS = {
    "clip": _CLIP,
    "clip_vision_model": _CLIP,
    "dinov2": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    "segformer": (_HALF, _HALF),
}
"""Mean and deviation of pixels in [0, 1] by the kind of tower, where its config says none."""


class VisionTower:
    """A frozen tower that gives a picture's last states as a sequence; an `Encoder`.

    A face parser serves as the tower of faces: weights of face recognition are not free for every
    use, and none is built in.
    """

    def __init__(self, network: Any, source: str = "") -> None:
        """Wrap a CLIPVisionModel, Dinov2Model or SegformerModel; pictures are made `image_size`."""
        self.network, self.source = network, source
        config = network.config
        mean, std = _STATISTICS[config.model_type]
        if "tiny-" in source:  # the built-in towers see pixels in [-1, 1]
            mean, std = _HALF, _HALF
        mean, std = getattr(config, "pixel_mean", mean), getattr(config, "pixel_std", std)
        config.update({"pixel_mean": list(mean), "pixel_std": list(std)})
        self.size: int | None = getattr(config, "image_size", None)
        if config.model_type == "segformer":
            self.size = None
            self.width: int = config.hidden_sizes[-1]
        else:
            self.width = config.hidden_size

    @classmethod
    def from_pretrained(cls, source: str | Path) -> "VisionTower":
        """Load a built-in tower by its name, a folder or a hub id."""
        with opened("vision tower", source, BUILTIN) as found:
            path = Path(found, "config.json")
            kind = read_object(path).get("model_type") if Path(found).is_dir() else "clip"
            architectures = read_object(path).get("architectures") if Path(found).is_dir() else []
            network: Any
            if kind == "clip":
                network = load_network(CLIPModel, found).vision_model
            elif kind == "clip_vision_model":
                network = load_network(CLIPVisionModel, found)
            elif kind == "dinov2":
                network = load_network(Dinov2Model, found)
            elif kind == "segformer" and architectures == ["SegformerModel"]:
                network = load_network(SegformerModel, found)
            elif kind == "segformer":
                network = load_network(SegformerForSemanticSegmentation, found).segformer
            else:
                raise BrokenModelError(f"it is a {kind}; give a CLIP, DINOv2 or SegFormer")
        return cls(network.float().eval().requires_grad_(False), str(source))

    @property
    def module(self) -> Any:
        """The frozen network."""
        return self.network

    def _num_tokens(self, size: tuple[int, int]) -> int:
        config = self.network.config
        if config.model_type == "segformer":
            height, width = size
            for stride in config.strides:
                height, width = -(-height // stride), -(-width // stride)
            return height * width
        return 1 + (config.image_size // config.patch_size) ** 2

    def gives(self, size: tuple[int, int]) -> dict[str, Feature]:
        """`states`, in sequence."""
        return {"states": Feature((self._num_tokens(size), self.width), torch.float32)}

    def identity(self) -> dict[str, Any]:
        """The weights' hash."""
        return {"vision_tower": values_sha256(self.network.state_dict())[:16]}

    def flops(self, size: tuple[int, int]) -> int:
        """FLOPs of encoding one picture."""
        pixels = torch.empty(1, 3, *size, device=next(self.network.parameters()).device)
        return count_flops(lambda: self.features(pixels))

    def activation_bytes(self, size: tuple[int, int], dtype: torch.dtype) -> int:
        """Bytes of a few states of a picture."""
        num = max(self._num_tokens(size), size[0] * size[1] // 16)
        return 8 * num * self.width * dtype.itemsize

    @torch.no_grad()
    def features(
        self, inputs: Float[Tensor, "batch 3 height width"]
    ) -> dict[str, Float[Tensor, "batch states dim"]]:
        """Encode pictures in [-1, 1]."""
        parameter = next(self.network.parameters())
        pixels = inputs.to(parameter.device, torch.float32)
        if self.size and pixels.shape[-2:] != (self.size, self.size):
            pixels = F.interpolate(
                pixels, (self.size, self.size), mode="bicubic", antialias=True, align_corners=False
            )
        config = self.network.config
        mean, std = (
            torch.tensor(values, device=pixels.device)[:, None, None]
            for values in (config.pixel_mean, config.pixel_std)
        )
        pixels = ((pixels / 2 + 0.5) - mean) / std
        found: Tensor = self.network(pixel_values=pixels.to(parameter.dtype)).last_hidden_state
        return {"states": (found.flatten(2).mT if found.ndim == 4 else found).float()}
