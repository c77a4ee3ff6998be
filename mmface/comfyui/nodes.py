"""The four nodes; an IMAGE is float32 [B, H, W, C] in 0..1, a MASK float32 [B, H, W] in 0..1."""

import sys
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mmface.conditions import LABEL_INDEX, LABELS, colorize, condition_kind, load_mask
from mmface.generation.adherence import measure_adherence
from mmface.generation.requests import open_parser
from mmface.sampling.pipeline import MMFacePipeline

CATEGORY = "mmface"
PIPELINE = "MMFACE_PIPELINE"

Images = Float[Tensor, "_ _ _ _"]
Masks = Float[Tensor, "_ _ _"]
Inputs = dict[str, dict[str, tuple[Any, ...]]]


def pictures_of(images: Images) -> list[np.ndarray]:
    """Turn a batch into pictures, uint8 [H, W, C]."""
    return list((images.detach().cpu().numpy() * 255).round().clip(0, 255).astype(np.uint8))


def images_of(pictures: list[np.ndarray]) -> Images:
    """Turn pictures of one size, uint8 [H, W, C], into a batch."""
    return torch.from_numpy(np.stack(pictures).astype(np.float32) / 255)


class MMFaceLoader:
    """Loads a pipeline, with a LoRA if one is named."""

    CATEGORY = CATEGORY
    FUNCTION = "load"
    RETURN_TYPES = (PIPELINE,)
    RETURN_NAMES = ("pipeline",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:  # noqa: N802
        """Say what the node asks for."""
        return {
            "required": {
                "pipeline": ("STRING", {"default": "tiny-flow"}),
                "dtype": (["float32", "bfloat16", "float16"],),
            },
            "optional": {
                "lora": ("STRING", {"default": ""}),
                "lora_weight": ("FLOAT", {"default": 1.0, "min": -4.0, "max": 4.0, "step": 0.05}),
            },
        }

    def load(
        self, pipeline: str, dtype: str, lora: str = "", lora_weight: float = 1.0
    ) -> tuple[MMFacePipeline]:
        """Load by a built-in name, a folder or a hub id, onto the GPU if there is one."""
        loaded = MMFacePipeline.from_pretrained(pipeline, dtype=getattr(torch, dtype))
        loaded.to("cuda" if torch.cuda.is_available() else "cpu")
        loaded.set_progress_bar_config(disable=True)
        if lora:
            loaded.load_lora_weights(lora, adapter_name="lora")
            loaded.set_adapters("lora", lora_weight)
        return (loaded,)


class MMFaceMaskPainter:
    """Paints one of a face's classes where a MASK is, on a picture of classes or on background."""

    CATEGORY = CATEGORY
    FUNCTION = "paint"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("classes",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:  # noqa: N802
        """Say what the node asks for; the MASK comes from ComfyUI's own mask editor, say."""
        return {
            "required": {"mask": ("MASK",), "label": (list(LABELS), {"default": "skin"})},
            "optional": {"below": ("IMAGE",)},
        }

    def paint(self, mask: Masks, label: str, below: Images | None = None) -> tuple[Images]:
        """Give a picture in the palette's colours; `below` is taken at the MASK's size."""
        painted = []
        for place, one in enumerate(mask.detach().cpu().numpy()):
            labels = np.zeros(one.shape, np.uint8)
            if below is not None:
                picture = pictures_of(below)[min(place, len(below) - 1)]
                labels = load_mask(picture, one.shape).labels.copy()
            labels[one > 0.5] = LABEL_INDEX[label]
            painted.append(colorize(labels))
        return (images_of(painted),)


class MMFaceSampler:
    """Samples faces from a mask, a sketch or both, and a prompt."""

    CATEGORY = CATEGORY
    FUNCTION = "sample"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("faces",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:  # noqa: N802
        """Say what the node asks for."""
        return {
            "required": {
                "pipeline": (PIPELINE,),
                "prompt": ("STRING", {"multiline": True, "default": "a woman with red hair"}),
                "negative_prompt": ("STRING", {"multiline": True, "default": ""}),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**63 - 1}),
                "steps": ("INT", {"default": 20, "min": 1, "max": 1000}),
                "guidance_scale": ("FLOAT", {"default": 3.0, "min": 0.0, "max": 30.0, "step": 0.1}),
                "num_faces": ("INT", {"default": 1, "min": 1, "max": 64}),
            },
            "optional": {"mask": ("IMAGE",), "sketch": ("IMAGE",)},
        }

    def sample(
        self,
        pipeline: MMFacePipeline,
        prompt: str,
        negative_prompt: str,
        seed: int,
        steps: int,
        guidance_scale: float,
        num_faces: int,
        mask: Images | None = None,
        sketch: Images | None = None,
    ) -> tuple[Images]:
        """Sample `num_faces` of each picture of the batch; ValueError with neither of the two."""
        given = {"mask": mask, "sketch": sketch}
        conditions: dict[str, Any] = {
            name: pictures_of(images) for name, images in given.items() if images is not None
        }
        count = max((len(pictures) for pictures in conditions.values()), default=1)
        for name, pictures in conditions.items():
            conditions[name] = pictures * count if len(pictures) == 1 else pictures
        faces = pipeline(
            [prompt] * count,
            negative_prompt=negative_prompt,
            seed=seed,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            num_images_per_prompt=num_faces,
            output_type="pt",
            callback_on_step_end=_progress(steps),
            **conditions,
        ).images
        return (torch.as_tensor(faces).movedim(1, -1).cpu().contiguous(),)


class MMFaceAdherence:
    """Measures how far faces follow the mask or sketch that they were made from."""

    CATEGORY = CATEGORY
    FUNCTION = "measure"
    RETURN_TYPES = ("FLOAT", "STRING")
    RETURN_NAMES = ("score", "report")
    OUTPUT_NODE: ClassVar[bool] = True

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:  # noqa: N802
        """Say what the node asks for."""
        return {
            "required": {
                "faces": ("IMAGE",),
                "parser": ("STRING", {"default": "tiny-parser"}),
            },
            "optional": {"mask": ("IMAGE",), "sketch": ("IMAGE",)},
        }

    def measure(
        self,
        faces: Images,
        parser: str,
        mask: Images | None = None,
        sketch: Images | None = None,
    ) -> dict[str, Any]:
        """Give the mean score in 0..1 and a table of each face, which ComfyUI shows, too."""
        size = (faces.shape[1], faces.shape[2])
        loaded = open_parser(parser) if mask is not None else None
        scores, report = [], []
        for place, face in enumerate(pictures_of(faces[..., :3])):
            conditions = {}
            for name, images in (("mask", mask), ("sketch", sketch)):
                if images is not None:
                    own = pictures_of(images)[place * len(images) // len(faces)]
                    conditions[name] = condition_kind(name).load(own, size).values
            found = measure_adherence(face, conditions, loaded)
            scores.append(found.score)
            report.append(f"face {place + 1}: {found.score:.3f}\n{found.table()}")
        score, text = sum(scores) / len(scores), "\n".join(report)
        return {"ui": {"text": [text]}, "result": (score, text)}


def _progress(steps: int) -> Callable[..., None] | None:
    """Show a call's progress in ComfyUI and let its cancel button end it; None without ComfyUI."""
    if "comfy.utils" not in sys.modules:
        return None
    comfy = sys.modules["comfy.utils"]
    bar = comfy.ProgressBar(steps)
    management = sys.modules.get("comfy.model_management")

    def after_step(pipeline: Any, index: int, timestep: Any, tensors: Any) -> None:
        bar.update(1)
        if management is not None:
            management.throw_exception_if_processing_interrupted()

    return after_step


NODE_CLASS_MAPPINGS: dict[str, type] = {
    node.__name__: node
    for node in (MMFaceLoader, MMFaceMaskPainter, MMFaceSampler, MMFaceAdherence)
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "MMFaceLoader": "MMFace: load a pipeline",
    "MMFaceMaskPainter": "MMFace: paint a class",
    "MMFaceSampler": "MMFace: sample faces",
    "MMFaceAdherence": "MMFace: how far faces follow",
}
