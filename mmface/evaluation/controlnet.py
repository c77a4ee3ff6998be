"""ControlNet through diffusers, zero-shot: trained on other masks and other sketches than ours.

The paper does not say which ControlNets it measured. There is no well-known one for face parsing:
the segmentation model knows ADE20K's colours, and gets ours; the scribble model wants white lines
on black, and gets the inverted sketch. A fine-tuned ControlNet goes in by its folder.
"""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline
from jaxtyping import UInt8
from PIL import Image

from mmface.evaluation.backbones import Skipped, or_skipped
from mmface.evaluation.methods import GeneratingMethod, digest_of_folder
from mmface.evaluation.references import Order

BASE = "stable-diffusion-v1-5/stable-diffusion-v1-5"


class ControlNetMethod(GeneratingMethod):
    """A Stable Diffusion with a ControlNet."""

    remark = "ControlNet is zero-shot: it was not trained on these conditions"

    def __init__(
        self,
        name: str,
        controlnet: str | Path,
        base: str | Path = BASE,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        size_px: int = 512,
    ) -> None:
        """Name the models; they are loaded when they are first needed.

        Args:
            name: the row's name.
            controlnet: a folder or hub id of the ControlNet.
            base: a folder or hub id of the Stable Diffusion that it was trained on.
            num_inference_steps: steps of the pipeline's own scheduler.
            guidance_scale: scale of guidance.
            size_px: edge of the pictures that it makes; they are resized to the references' size.
        """
        super().__init__(name)
        self.controlnet = str(controlnet)
        self.base = str(base)
        self.num_inference_steps = num_inference_steps
        self.guidance_scale = guidance_scale
        self.size_px = size_px
        self._pipeline: StableDiffusionControlNetPipeline | None = None

    @abstractmethod
    def condition_picture(self, order: Order) -> Image.Image:
        """Draw the condition as the ControlNet wants it: RGB, `size_px` wide."""

    def _load(self) -> StableDiffusionControlNetPipeline:
        if self._pipeline is None:
            self._pipeline = StableDiffusionControlNetPipeline.from_pretrained(
                self.base,
                controlnet=ControlNetModel.from_pretrained(self.controlnet, use_safetensors=True),
                safety_checker=None,
                use_safetensors=True,
            )
            self._pipeline.set_progress_bar_config(disable=True)
        return self._pipeline

    def unavailable(self) -> Skipped | None:
        """Whether a model cannot be loaded."""
        remedy = f"hf download {self.base}; hf download {self.controlnet}"
        pipeline = or_skipped(self._load, remedy)
        return pipeline if isinstance(pipeline, Skipped) else None

    def made_by(self) -> dict[str, Any]:
        """The models, folders by their content, and the sampler's settings."""
        models = {}
        for part in ("base", "controlnet"):
            path = getattr(self, part)
            models[part] = digest_of_folder(path) if Path(path).is_dir() else path
        settings = ("num_inference_steps", "guidance_scale", "size_px")
        return {
            "method": type(self).__name__,
            **models,
            **{name: getattr(self, name) for name in settings},
        }

    def generate(
        self, orders: Sequence[Order], device: torch.device
    ) -> list[UInt8[np.ndarray, "height width 3"]]:
        """Sample, each picture from a generator of its own."""
        generators = [torch.Generator("cpu").manual_seed(order.seed) for order in orders]
        output = self._load().to(device)(
            [order.prompt for order in orders],
            image=[self.condition_picture(order) for order in orders],
            height=self.size_px,
            width=self.size_px,
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
            generator=generators,
        )
        return [np.array(image) for image in output.images]


class SegmentationControlNet(ControlNetMethod):
    """One that was trained on maps of classes in colour."""

    remark = (
        "ControlNet is zero-shot with a palette mismatch: it knows ADE20K's classes and gets the "
        "colours of CelebAMask-HQ"
    )

    def condition_picture(self, order: Order) -> Image.Image:
        """Give the mask in its colours; enlarged by nearest neighbour."""
        side = (self.size_px, self.size_px)
        return Image.fromarray(order.face.mask).resize(side, Image.Resampling.NEAREST)


class ScribbleControlNet(ControlNetMethod):
    """One that was trained on white lines on black."""

    remark = "ControlNet is zero-shot: it knows scribbles and gets inverted sketches"

    def condition_picture(self, order: Order) -> Image.Image:
        """Give the sketch with its dark lines turned white."""
        side = (self.size_px, self.size_px)
        sketch = Image.fromarray(255 - order.face.sketch).convert("RGB")
        return sketch.resize(side, Image.Resampling.LANCZOS)
