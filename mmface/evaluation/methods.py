"""Methods to be measured: a pipeline, a ControlNet, or a folder of pictures from elsewhere.

A `GeneratingMethod` makes a picture for each order; a `FolderMethod` finds pictures on disk. A
method that is missing is `Skipped`, with the command that makes it.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from safetensors.torch import load_file

from mmface.core.files import PICTURE_SUFFIXES, file_sha256, folder_sha256
from mmface.core.sources import AUTO, dtype_name, dtype_named, load_network, opened, tf32_allowed
from mmface.evaluation.references import References
from mmface.metrics.metric import PictureOrder, Skipped, or_skipped
from mmface.sampling.guidance import Guidance
from mmface.sampling.pipeline import MMFacePipeline
from mmface.sampling.step_cache import StepCache

STABLE_DIFFUSION = "stable-diffusion-v1-5/stable-diffusion-v1-5"
RESULTS_FILE = "results.jsonl"
ALL_STEPS = (0.0, 1.0)
_SHOWN = 5
Picture = UInt8[np.ndarray, "height width 3"]


class Method(ABC):
    """Something that has a row in a table, and perhaps a remark for below it."""

    remark = ""
    is_a_set = True
    """Whether its pictures are compared as a set with the real ones."""

    def __init__(self, name: str) -> None:
        """A published `name` stands beside the paper's numbers."""
        self.name = name

    @abstractmethod
    def unavailable(self) -> Skipped | None:
        """Why the method cannot be measured here, or None."""

    @abstractmethod
    def made_by(self) -> dict[str, Any]:
        """What decides the pictures, in plain values."""


class GeneratingMethod(Method):
    """A method that makes pictures."""

    def order(self, references: References, item: int, seed: int) -> Any:
        """Ask for a face, as this method is asked for it."""
        return references.order(item, seed)

    @abstractmethod
    def generate(self, orders: Sequence[Any], device: torch.device) -> Sequence[Picture | str]:
        """Make one RGB picture, or one answer, for each order of a batch."""


def _guidance(scale: float | None, interval: Sequence[float]) -> Guidance:
    if len(interval) != 2:
        raise ValueError(f"guidance_interval is a start and an end, got {list(interval)}")
    return Guidance(scale, start=interval[0], end=interval[1])


class PipelineMethod(GeneratingMethod):
    """A saved `MMFacePipeline`."""

    def __init__(
        self,
        name: str,
        folder: str | Path,
        num_inference_steps: int = 50,
        guidance_scale: float | None = None,
        how: str = "give the folder of a saved pipeline",
        solver: str | None = None,
        guidance_interval: Sequence[float] = ALL_STEPS,
        cache: StepCache | None = None,
        dtype: str = AUTO,
    ) -> None:
        """Name a pipeline's folder; it is loaded when the first picture is asked for.

        None for `guidance_scale` or `solver` takes the pipeline's own. `guidance_interval` is the
        fractions of the schedule between which there is guidance. `how` is the command that makes
        the folder; `dtype` is that of its weights, see `core.sources.dtype_name`.
        """
        super().__init__(name)
        self.folder = Path(folder)
        self.num_inference_steps = num_inference_steps
        self.guidance = _guidance(guidance_scale, guidance_interval)
        self.how = how
        self.solver = solver
        self.cache = cache
        self.dtype = dtype_name(dtype)
        self.averaged_weights: Path | None = None
        """A file of the network's weights in place of the folder's."""
        self.evaluations: float | None = None
        """Network evaluations a picture of the last batch; see `MMFacePipelineOutput`."""

    def unavailable(self) -> Skipped | None:
        """Whether the folder is missing."""
        if not self.folder.is_dir():
            return Skipped(f"not made: there is no {self.folder}", self.how)
        if self.averaged_weights is not None and not self.averaged_weights.is_file():
            kept = "trainer.cadence.checkpoint_limit says how many a run keeps"
            return Skipped(f"there is no {self.averaged_weights}", f"{self.how}; {kept}")
        return None

    @cached_property
    def _digest(self) -> str:
        return folder_sha256(self.folder)

    def made_by(self) -> dict[str, Any]:
        """The weights by their content, and the sampler's settings.

        A later setting is left out at its default, so that pictures from before it still count.
        """
        interval = (self.guidance.start, self.guidance.end)
        later = {
            "solver": self.solver,
            "guidance_interval": None if interval == ALL_STEPS else interval,
            "cache": None if self.cache is None else self.cache.made_by(),
            "averaged_weights": self.averaged_weights and file_sha256(self.averaged_weights),
            "dtype": None if self.dtype == "float32" else self.dtype,
        }
        return {
            "method": type(self).__name__,
            "weights": self._digest,
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": self.guidance.scale,
            **{name: value for name, value in later.items() if value is not None},
        }

    def with_guidance(self, scale: float) -> "PipelineMethod":
        """The same pipeline at another scale of guidance, as a row of its own."""
        other = copy(self)
        other.name = f"{self.name}, guidance {scale:g}"
        other.guidance = replace(self.guidance, scale=scale)
        return other

    def at_checkpoint(self, step: int) -> "PipelineMethod":
        """The same pipeline with the averaged weights of its run after a step, as a row of its own.

        The run's folder is that which the pipeline's folder lies in.
        """
        other = copy(self)
        other.__dict__.pop("pipeline", None)
        other.name = f"{self.name}, step {step}"
        checkpoint = self.folder.parent / "checkpoints" / f"step-{step:08d}"
        other.averaged_weights = checkpoint / "ema.safetensors"
        return other

    def _load(self) -> MMFacePipeline:
        return MMFacePipeline.from_pretrained(self.folder, dtype=dtype_named(self.dtype))

    @cached_property
    def pipeline(self) -> MMFacePipeline:
        """The loaded pipeline."""
        pipeline = self._load()
        if self.averaged_weights is not None:
            # Buffers are not averaged, and stay as they are.
            names = {name for name, _ in pipeline.transformer.named_parameters()}
            weights = load_file(self.averaged_weights)
            if unequal := sorted(names ^ weights.keys()):
                raise ValueError(
                    f"{self.averaged_weights} is of another network than {self.folder}: "
                    f"{len(unequal)} names differ, such as {unequal[0]}"
                )
            pipeline.transformer.load_state_dict(weights, strict=False)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def generate(self, orders: Sequence[PictureOrder], device: torch.device) -> list[Picture]:
        """Sample; ValueError if the pipeline's pictures are not of the references' size."""
        size, own = orders[0].face.image.shape[0], self.pipeline.config.image_size
        if size != own:
            raise ValueError(
                f"{self.name} makes pictures of {own} px, but the protocol's are {size} px; "
                "choose another method or protocol"
            )
        conditions = {orders[0].kind.name: [order.condition for order in orders]}
        with tf32_allowed(self.dtype != "float32"):
            output = self.pipeline.to(device)(
                [order.prompt for order in orders],
                **conditions,
                num_inference_steps=self.num_inference_steps,
                guidance=self.guidance,
                seed=[order.seed for order in orders],
                solver=self.solver,
                cache=self.cache,
            )
        self.evaluations = output.evaluations
        return [np.array(image) for image in output.images]


class ReleasedMethod(PipelineMethod):
    """A checkpoint in a copy of the authors' hub repository."""

    def __init__(
        self,
        name: str,
        folder: str | Path,
        checkpoint: str,
        num_inference_steps: int = 50,
        guidance_scale: float | None = None,
        solver: str | None = None,
        guidance_interval: Sequence[float] = ALL_STEPS,
        cache: StepCache | None = None,
        dtype: str = AUTO,
    ) -> None:
        """Name the copy of the repository and the checkpoint's folder in it."""
        how = f"hf download BharathK333/MMFace-DiT-Models --local-dir {folder}"
        sampler = (solver, guidance_interval, cache, dtype)
        super().__init__(name, folder, num_inference_steps, guidance_scale, how, *sampler)
        self.checkpoint = checkpoint

    @cached_property
    def _digest(self) -> str:
        return folder_sha256(self.folder / self.checkpoint)

    def _load(self) -> MMFacePipeline:
        dtype = dtype_named(self.dtype)
        return MMFacePipeline.from_released(self.folder, self.checkpoint, dtype=dtype)


class FolderMethod(Method):
    """Pictures that lie in a folder, named by the references' ids.

    Either `results.jsonl`, as `scripts/sample.py --jobs` writes it, says which picture is whose, by
    the fields `id` and `image`; or a picture's path below the folder, without its suffix, is its
    id: `celebahq/00012.png`. Where an id has a prefix that no file has, the rest is enough.
    """

    def __init__(
        self,
        name: str,
        folder: str | Path | None,
        allow_missing: bool = False,
        how: str = "give it with folder=DIR",
    ) -> None:
        """With `allow_missing`, distances between sets are not measured."""
        super().__init__(name)
        self.folder = None if folder is None else Path(folder)
        self.allow_missing = allow_missing
        self.how = how

    def unavailable(self) -> Skipped | None:
        """Whether the folder is missing."""
        if self.folder is None:
            return Skipped(f"there is no folder of {self.name}'s pictures", self.how)
        if not self.folder.is_dir():
            return Skipped(f"{self.folder} does not exist", self.how)
        return None

    def made_by(self) -> dict[str, Any]:
        """The folder's kind; the pictures count by their own content."""
        return {"method": type(self).__name__, "allow_missing": self.allow_missing}

    def pictures(self, ids: Sequence[str]) -> dict[str, Path]:
        """Find each id's picture; ValueError if some have none and `allow_missing` is not set."""
        assert self.folder is not None
        listed = self.folder / RESULTS_FILE
        named = _listed_pictures(listed) if listed.is_file() else _named_pictures(self.folder)
        found = {id_: named.get(id_, named.get(id_.rpartition("/")[2])) for id_ in ids}
        missing = [id_ for id_, path in found.items() if path is None or not path.is_file()]
        if missing and (not self.allow_missing or len(missing) == len(ids)):
            shown = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
            surplus = sorted(named.keys() - set(ids) - {id_.rpartition("/")[2] for id_ in ids})
            others = f" Files of no id: {', '.join(surplus[:_SHOWN])}." if surplus else ""
            raise ValueError(
                f"{self.folder} has no picture of {len(missing)} of {len(ids)} ids: {shown}."
                f"{others} Name pictures by their id, or allow_missing=true to leave these out."
            )
        return {id_: path for id_, path in found.items() if path and id_ not in missing}


def _listed_pictures(path: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row: Mapping[str, Any] = json.loads(line)
            id_, picture = str(row["id"]), path.parent / row["image"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}:{number} is not a line of results ({error!r}); each needs id and image"
            ) from None
        if id_ in found:
            raise ValueError(
                f"{path}:{number} has a second picture of {id_!r}; measure one picture an id"
            )
        found[id_] = picture
    return found


def _named_pictures(folder: Path) -> dict[str, Path]:
    pictures = [p for p in sorted(folder.rglob("*")) if p.suffix.lower() in PICTURE_SUFFIXES]
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in pictures}


class ControlNetMethod(GeneratingMethod):
    """A Stable Diffusion with a ControlNet, zero-shot: trained on other masks and sketches.

    The paper does not say which ControlNets it measured, and no well-known one reads face parsing.
    A fine-tuned ControlNet goes in by its folder.
    """

    remark = "ControlNet is zero-shot: it was not trained on these conditions"

    def __init__(
        self,
        name: str,
        controlnet: str | Path,
        base: str | Path = STABLE_DIFFUSION,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        size_px: int = 512,
    ) -> None:
        """Name folders or hub ids; pictures of `size_px` are resized to the references' size."""
        super().__init__(name)
        self.controlnet = str(controlnet)
        self.base = str(base)
        self.num_inference_steps = num_inference_steps
        self.guidance_scale = guidance_scale
        self.size_px = size_px
        self._pipeline: Any = None

    @abstractmethod
    def condition_picture(self, order: PictureOrder) -> Image.Image:
        """Draw the condition as the ControlNet wants it: RGB, `size_px` wide."""

    def _load(self) -> Any:
        from diffusers import ControlNetModel, StableDiffusionControlNetPipeline

        if self._pipeline is None:
            with opened("ControlNet", self.controlnet) as source:
                controlnet = load_network(ControlNetModel, source)
            with opened("pipeline", self.base) as source:
                self._pipeline = StableDiffusionControlNetPipeline.from_pretrained(
                    source, controlnet=controlnet, safety_checker=None, use_safetensors=True
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
            models[part] = folder_sha256(path) if Path(path).is_dir() else path
        settings = ("num_inference_steps", "guidance_scale", "size_px")
        return {
            "method": type(self).__name__,
            **models,
            **{name: getattr(self, name) for name in settings},
        }

    def generate(self, orders: Sequence[PictureOrder], device: torch.device) -> list[Picture]:
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

    def condition_picture(self, order: PictureOrder) -> Image.Image:
        """Give the mask in its colours; enlarged by nearest neighbour."""
        side = (self.size_px, self.size_px)
        return order.kind.draw(order.condition).resize(side, Image.Resampling.NEAREST)


class ScribbleControlNet(ControlNetMethod):
    """One that was trained on white lines on black."""

    remark = "ControlNet is zero-shot: it knows scribbles and gets inverted sketches"

    def condition_picture(self, order: PictureOrder) -> Image.Image:
        """Give the sketch with its dark lines turned white."""
        side = (self.size_px, self.size_px)
        sketch = Image.fromarray(255 - order.condition).convert("RGB")
        return sketch.resize(side, Image.Resampling.LANCZOS)
