"""The built-in family on held-out rendered faces.

Rows: true pictures, the VAE's reconstructions of them, and pictures sampled from masks and from
sketches, all read by one parser. No row can be much better than the one above it. The prompt is a
face's first caption, which names the colours of hair, clothes and background.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from mmface.conditions import (
    LABELS,
    class_iou,
    confusion_matrix,
    edge_agreement,
    mean_iou,
    pixel_accuracy,
)
from mmface.core.command_line import check_different, check_whole
from mmface.core.files import locked, write_text
from mmface.core.sources import AUTO, default_device, dtype_name, dtype_named, tf32_allowed
from mmface.encoders import LatentCodec
from mmface.encoders.face_parser import FaceParser
from mmface.encoders.vae import image_pixels, to_uint8
from mmface.rendered import (
    BACKGROUND_COLORS,
    CLOTHES_COLORS,
    HAIR_COLORS,
    RenderedFace,
    distribution,
)
from mmface.rendered.attributes import HELD_OUT_SEED
from mmface.sampling.pipeline import MMFacePipeline

MIN_REGION_PX = 40
"""Regions smaller than this are not asked for their colour."""

COLUMNS = {
    "pixel_accuracy": "pixel accuracy",
    "mean_iou": "mIoU",
    "hair_colour": "hair",
    "clothes_colour": "clothes",
    "background_colour": "background",
    "edge_agreement": "edges",
    "edge_agreement_shuffled": "edges, shuffled",
}
"""How the numbers of a kind of picture are headed."""


def nearest_colour(
    image: np.ndarray, region: np.ndarray, colours: Mapping[str, tuple[int, int, int]]
) -> str:
    """Name the colour nearest (RGB L2) to the median of a region, bool [H, W]."""
    median = np.median(image[region], axis=0)
    distances = {name: float(((median - rgb) ** 2).sum()) for name, rgb in colours.items()}
    return min(distances, key=distances.__getitem__)


@dataclass
class Tally:
    """Sums over pictures of one kind."""

    confusion: np.ndarray = field(default_factory=lambda: np.zeros((len(LABELS),) * 2, np.int64))
    colours_right: dict[str, int] = field(default_factory=dict)
    colours_asked: dict[str, int] = field(default_factory=dict)
    edges: list[float] = field(default_factory=list)
    shuffled_edges: list[float] = field(default_factory=list)

    def add(self, image: np.ndarray, labels: np.ndarray, face: RenderedFace) -> None:
        """Count one picture, uint8 [H, W, 3], with its parsed labels, against its face."""
        self.confusion += confusion_matrix(face.labels, labels)
        self.edges.append(edge_agreement(image, face.sketch))
        for part, label, named, colours in _named_colours(face):
            region = labels == LABELS.index(label)
            if region.sum() >= MIN_REGION_PX:
                right = nearest_colour(image, region, colours) == named
                self.colours_asked[part] = self.colours_asked.get(part, 0) + 1
                self.colours_right[part] = self.colours_right.get(part, 0) + int(right)

    def summary(self) -> dict[str, Any]:
        """Metrics of all pictures added so far; shares in [0, 1]."""
        ious = class_iou(self.confusion)
        return {
            "pictures": len(self.edges),
            "pixel_accuracy": pixel_accuracy(self.confusion),
            "mean_iou": mean_iou(self.confusion),
            "edge_agreement": float(np.mean(self.edges)),
            "edge_agreement_shuffled": float(np.mean(self.shuffled_edges or [np.nan])),
            **{
                f"{part}_colour": self.colours_right[part] / asked
                for part, asked in self.colours_asked.items()
            },
            "class_iou": dict(zip(LABELS, [round(float(v), 4) for v in ious], strict=True)),
        }


def _named_colours(face: RenderedFace) -> list[tuple[str, str, str, dict[str, Any]]]:
    """(part, class, colour's name, all colours) of the colours that the first caption names."""
    attributes = face.attributes
    named = [
        ("clothes", "cloth", attributes.clothes_color, CLOTHES_COLORS),
        ("background", "background", attributes.background_color, BACKGROUND_COLORS),
    ]
    if attributes.hair_style != "bald":
        named.append(("hair", "hair", attributes.hair_color, HAIR_COLORS))
    return named


@dataclass(frozen=True)
class HeldOutEvaluation:
    """Evaluates a pipeline on rendered faces that nothing was trained on.

    Attributes:
        pipeline: folder of the pipeline.
        parser: folder of the face parser.
        output: JSON file of the results.
        num_faces: how many held-out faces, the first ones.
        distribution: which faces are drawn.
        guidance_scales: guidance scales to sample with.
        modalities: conditions to sample from.
        num_inference_steps: sampling steps.
        batch_size: faces sampled at once.
        dtype: of the pipeline's weights, see `core.sources.dtype_name`.
    """

    pipeline: str | Path
    parser: str | Path
    output: str | Path
    num_faces: int = 256
    distribution: str = "studio"
    guidance_scales: Sequence[float] = (3.0,)
    modalities: Sequence[str] = ("mask", "sketch")
    num_inference_steps: int = 25
    batch_size: int = 16
    dtype: str = AUTO

    def __post_init__(self) -> None:
        """Refuse what cannot be run, before the first picture is made."""
        check_whole("num_faces", self.num_faces, 1)
        distribution(self.distribution)
        check_whole("batch_size", self.batch_size, 1)
        for name in ("pipeline", "parser"):
            if not Path(getattr(self, name)).is_dir():
                raise FileNotFoundError(f"{getattr(self, name)} does not exist; give {name}=DIR")
        unknown = [each for each in self.modalities if each not in ("mask", "sketch")]
        if unknown or not self.modalities or isinstance(self.modalities, str):
            raise ValueError(f"modalities are some of [mask,sketch], not {self.modalities!r}")
        check_different("guidance_scales", self.guidance_scales, int | float, "[1,3,5]")
        if not self.guidance_scales:
            raise ValueError("guidance_scales is empty; give at least one, such as [3]")
        dtype_name(self.dtype)
        if Path(self.output).is_dir():
            raise ValueError(f"{self.output} is a folder; give a file with output=FILE")

    def run(self) -> dict[str, Any]:
        """Evaluate, write the results, and return them."""
        output = Path(self.output)
        lax = tf32_allowed(dtype_name(self.dtype) != "float32")
        with locked(output.parent, work=output.name), lax:
            return self._run()

    def _run(self) -> dict[str, Any]:
        dtype = dtype_name(self.dtype)
        pipeline = MMFacePipeline.from_pretrained(self.pipeline, dtype=dtype_named(dtype))
        pipeline.to(default_device())
        pipeline.set_progress_bar_config(disable=True)
        parser = FaceParser.from_pretrained(self.parser)
        size = pipeline.config.image_size
        drawn = distribution(self.distribution)
        faces = [drawn.render(HELD_OUT_SEED + i, size) for i in range(self.num_faces)]
        results = {
            "true pictures": self._tally(parser, faces, [face.image for face in faces]),
            "reconstructions": self._tally(parser, faces, self._reconstruct(pipeline, faces)),
        }
        for modality in self.modalities:
            for scale in self.guidance_scales:
                pictures = self._sample(pipeline, faces, modality, scale)
                name = f"{modality}, guidance {scale:g}"
                results[name] = self._tally(parser, faces, pictures)
        values = asdict(self) | {"dtype": dtype}
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}
        write_text(self.output, json.dumps({"settings": settings, "results": results}, indent=1))
        return results

    def report(self) -> str:
        """Evaluate, and lay the results out for a terminal."""
        return f"{as_table(self.run())}\nresult: {self.output}"

    def _batches(self) -> range:
        return range(0, self.num_faces, self.batch_size)

    def _reconstruct(
        self, pipeline: MMFacePipeline, faces: Sequence[RenderedFace]
    ) -> list[np.ndarray]:
        codec = LatentCodec(pipeline.vae)
        pictures: list[np.ndarray] = []
        for first in self._batches():
            batch = faces[first : first + self.batch_size]
            pixels = torch.stack([image_pixels(face.image) for face in batch])
            with torch.no_grad():
                pictures.extend(to_uint8(codec.decode(codec.encode(pixels))))
        return pictures

    def _sample(
        self,
        pipeline: MMFacePipeline,
        faces: Sequence[RenderedFace],
        modality: str,
        guidance_scale: float,
    ) -> list[np.ndarray]:
        pictures: list[np.ndarray] = []
        for first in tqdm(self._batches(), desc=f"{modality} {guidance_scale:g}", unit="batch"):
            batch = faces[first : first + self.batch_size]
            conditions: dict[str, Any] = {
                modality: [face.labels if modality == "mask" else face.sketch for face in batch]
            }
            output = pipeline(
                [face.captions[0] for face in batch],
                **conditions,
                num_inference_steps=self.num_inference_steps,
                guidance_scale=guidance_scale,
                seed=HELD_OUT_SEED + first,
            )
            pictures += [np.array(image) for image in output.images]
        return pictures

    def _tally(
        self, parser: FaceParser, faces: Sequence[RenderedFace], pictures: Sequence[np.ndarray]
    ) -> dict[str, Any]:
        tally = Tally()
        for first in self._batches():
            group = slice(first, first + self.batch_size)
            pixels = torch.stack([image_pixels(image) for image in pictures[group]])
            for image, labels, face in zip(
                pictures[group], parser.of_pixels(pixels).numpy(), faces[group], strict=True
            ):
                tally.add(image, labels, face)
        neighbours = [*faces[1:], faces[0]]
        tally.shuffled_edges = [
            edge_agreement(image, face.sketch)
            for image, face in zip(pictures, neighbours, strict=True)
        ]
        return tally.summary()


def as_table(results: dict[str, dict[str, Any]]) -> str:
    """Lay results out as a plain-text table, one row for each kind of picture."""
    width = max(len(name) for name in results)
    lines = [" " * width + "".join(f"{title:>17}" for title in COLUMNS.values())]
    for name, row in results.items():
        cells = "".join(f"{row.get(key, float('nan')):>17.3f}" for key in COLUMNS)
        lines.append(f"{name:<{width}}{cells}")
    return "\n".join(lines)
