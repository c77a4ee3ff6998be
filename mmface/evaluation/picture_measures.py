"""What is measured of each picture by itself, and how the values become a table's cells.

A measure reads a batch into one row of plain values a picture, which the journal keeps; the rows
of all pictures then give the columns, with intervals clustered by face.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from mmface.conditions import LABELS, Modality
from mmface.encoders.face_parser import FaceParser
from mmface.evaluation.backbones import CLIP_SCORE_ID, ClipBackbone, Skipped, hash_weights
from mmface.evaluation.clip_score import ClipScore, clip_distance
from mmface.evaluation.condition_agreement import (
    EdgeAgreement,
    MaskAgreement,
    class_ious,
    pooled_accuracy,
    pooled_mean_iou,
)
from mmface.evaluation.feature_cache import BackboneSource
from mmface.evaluation.judge import (
    JUDGE_ID,
    DigitExpectation,
    VisionLanguageJudge,
    YesProbability,
)
from mmface.evaluation.perceptual import TRUNKS, PerceptualDistance, PerceptualNetwork
from mmface.evaluation.references import Order
from mmface.evaluation.statistics import Interval, bootstrap, bootstrap_mean
from mmface.evaluation.structural import (
    MIN_MULTISCALE_PX,
    MultiScaleStructuralSimilarity,
    StructuralSimilarity,
)

Images = UInt8[Tensor, "batch 3 height width"]
Row = dict[str, Any]


class PictureMeasure(ABC):
    """A metric with a value of its own for every picture."""

    modalities: Sequence[Modality] = tuple(Modality)
    remedy = ""

    def check(self, size_px: int) -> Skipped | None:
        """Why pictures of this size cannot be measured, or None."""
        return None

    def load(self, device: torch.device) -> Skipped | None:
        """Load what the measure needs; OSError or ImportError if it is out of reach."""
        return None

    @property
    @abstractmethod
    def protocol(self) -> str:
        """What a value must share with another to be compared, the references aside."""

    @abstractmethod
    def read(self, images: Images, orders: Sequence[Order]) -> list[Row]:
        """Measure a batch.

        Args:
            images: uint8 pictures.
            orders: what each should be.

        Returns:
            Plain values of each picture.
        """

    def intervals(self, ids: Sequence[str], rows: Sequence[Row]) -> dict[str, Interval]:
        """Turn rows into columns.

        Args:
            ids: the face of each row; rows of one face are one cluster.
            rows: what `read` gave.

        Returns:
            The columns with their intervals.
        """
        columns = {name: np.array([row[name] for row in rows], np.float64) for name in rows[0]}
        return {name: bootstrap_mean(values, ids) for name, values in columns.items()}

    def remarks(self, rows: Sequence[Row]) -> list[str]:
        """What a reader of the table should know of these rows."""
        return []


def _true_pictures(images: Tensor, orders: Sequence[Order]) -> Tensor:
    stacked = np.stack([order.face.image for order in orders])
    return torch.from_numpy(stacked).movedim(-1, 1).contiguous().to(images.device)


class Structure(PictureMeasure):
    """SSIM."""

    protocol = "ssim/gaussian-11-1.5/range-1/windows-inside"

    def read(self, images: Images, orders: Sequence[Order]) -> list[Row]:
        """Compare with the true pictures."""
        metric = StructuralSimilarity()
        metric.update(images, _true_pictures(images, orders))
        return [{"ssim": value} for value in metric.per_picture().tolist()]


class MultiScaleStructure(PictureMeasure):
    """MS-SSIM."""

    protocol = "ms-ssim/5-scales/range-1"

    def check(self, size_px: int) -> Skipped | None:
        """Five scales need large pictures."""
        if size_px >= MIN_MULTISCALE_PX:
            return None
        reason = f"MS-SSIM needs {MIN_MULTISCALE_PX} px, pictures have {size_px} px"
        return Skipped(reason, "see SSIM")

    def read(self, images: Images, orders: Sequence[Order]) -> list[Row]:
        """Compare with the true pictures."""
        metric = MultiScaleStructuralSimilarity()
        metric.update(images, _true_pictures(images, orders))
        return [{"ms_ssim": value} for value in metric.per_picture().tolist()]


class Perception(PictureMeasure):
    """LPIPS."""

    def __init__(self, trunk: str = "alex", weights: str | Path | None = None) -> None:
        """Name a trunk.

        Args:
            trunk: `alex` or `vgg`.
            weights: torchvision's file; None takes torch's hub cache, or downloads it.
        """
        self.trunk = trunk
        self.weights = weights
        self.column = "lpips" if trunk == "alex" else f"lpips_{trunk}"
        self.remedy = f"download {TRUNKS[trunk].url} and give it with lpips_weights.{trunk}=FILE"
        self._metric: PerceptualDistance | None = None
        self._protocol = ""

    def load(self, device: torch.device) -> Skipped | None:
        """Load the trunk."""
        network = PerceptualNetwork.from_weights(self.trunk, self.weights).to(device)
        self._metric, self._protocol = PerceptualDistance(network), network.protocol
        return None

    @property
    def protocol(self) -> str:
        """Version, trunk and weights."""
        return self._protocol

    def read(self, images: Images, orders: Sequence[Order]) -> list[Row]:
        """Compare with the true pictures."""
        assert self._metric is not None
        self._metric.reset()
        self._metric.update(images, _true_pictures(images, orders))
        return [{self.column: value} for value in self._metric.per_picture().tolist()]


class MaskFidelity(PictureMeasure):
    """ACC and mIoU of what a parser sees, in all averagings."""

    modalities = (Modality.MASK,)

    def __init__(self, parser: str | Path, revision: str | None = None) -> None:
        """Name a parser.

        Args:
            parser: a folder or hub id of a SegFormer with its preprocessor.
            revision: the commit of a hub id.
        """
        self.source, self.revision = parser, revision
        self.remedy = f"hf download {parser}, or give its folder with parser=DIR"
        self._parser: FaceParser | None = None
        self._protocol = ""

    def load(self, device: torch.device) -> Skipped | None:
        """Load the parser."""
        self._parser = FaceParser.from_pretrained(self.source, self.revision, str(device))
        digest = hash_weights(self._parser.model)[:12]
        self._protocol = f"parser/{Path(self.source).name}/sha256:{digest}"
        return None

    @property
    def protocol(self) -> str:
        """The parser by its weights."""
        return self._protocol

    def read(self, images: Images, orders: Sequence[Order]) -> list[Row]:
        """Count each picture's pixels by (true class, parsed class)."""
        assert self._parser is not None
        parsed = self._parser(list(images.movedim(1, -1).cpu().numpy()))
        metric = MaskAgreement()
        masks = np.stack([order.labels for order in orders])
        metric.update(torch.from_numpy(np.stack(parsed)), torch.from_numpy(masks))
        return [{"confusion": table.flatten().tolist()} for table in metric.per_picture()]

    def intervals(self, ids: Sequence[str], rows: Sequence[Row]) -> dict[str, Interval]:
        """Give the paper's two columns over the whole set, and mIoU in two other averagings."""
        tables = np.array([row["confusion"] for row in rows], np.float64)
        _, cluster = np.unique(np.asarray(ids), return_inverse=True)
        totals = np.zeros((cluster.max() + 1, tables.shape[1]))
        np.add.at(totals, cluster, tables)
        ious = class_ious(torch.from_numpy(tables).unflatten(1, (len(LABELS), len(LABELS))))
        present, zero = ious.nanmean(1), ious.nan_to_num(0.0).mean(1)
        return {
            "accuracy": bootstrap(totals, pooled_accuracy),
            "mean_iou": bootstrap(totals, pooled_mean_iou),
            "mean_iou_of_pictures": bootstrap_mean(100 * present.numpy(), ids),
            "mean_iou_absent_zero": bootstrap_mean(100 * zero.numpy(), ids),
        }

    def of_classes(self, rows: Sequence[Row]) -> dict[str, float | None]:
        """Give each class's intersection over union over the whole set; None if it is absent."""
        total = torch.tensor([row["confusion"] for row in rows]).sum(0)
        ious = class_ious(total.unflatten(0, (len(LABELS), len(LABELS)))).tolist()
        pairs = zip(LABELS, ious, strict=True)
        return {name: None if np.isnan(value) else value for name, value in pairs}


class EdgeFidelity(PictureMeasure):
    """How far the strongest edges follow the sketch."""

    modalities = (Modality.SKETCH,)
    protocol = "edges/strongest/1px"

    def read(self, images: Images, orders: Sequence[Order]) -> list[Row]:
        """Compare edges with lines."""
        metric = EdgeAgreement()
        sketches = np.stack([order.face.sketch for order in orders])
        metric.update(images, torch.from_numpy(sketches))
        return [{"edges": value} for value in metric.per_picture().tolist()]


class CaptionFidelity(PictureMeasure):
    """The CLIP score and the distance that is the same fact."""

    def __init__(self, backbone: BackboneSource) -> None:
        """Name a CLIP pair.

        Args:
            backbone: a source of a `ClipBackbone`, by default of the paper's kind.
        """
        self.source = backbone
        self.remedy = f"hf download {CLIP_SCORE_ID}"
        self._metric: ClipScore | None = None

    def load(self, device: torch.device) -> Skipped | None:
        """Load the pair."""
        backbone = self.source.open(device)
        if isinstance(backbone, Skipped):
            return backbone
        assert isinstance(backbone, ClipBackbone)
        self._metric = ClipScore(backbone)
        return None

    @property
    def protocol(self) -> str:
        """The pair by its weights."""
        assert self._metric is not None
        return self._metric.backbone.protocol

    def read(self, images: Images, orders: Sequence[Order]) -> list[Row]:
        """Compare with the prompts, and mark those that are cut."""
        assert self._metric is not None
        self._metric.reset()
        prompts = [order.prompt for order in orders]
        self._metric.update(images, prompts)
        cut = [self._metric.backbone.is_cut(prompt) for prompt in prompts]
        scores = self._metric.per_picture().tolist()
        return [{"clip": s, "cut": c} for s, c in zip(scores, cut, strict=True)]

    def intervals(self, ids: Sequence[str], rows: Sequence[Row]) -> dict[str, Interval]:
        """Give score and distance."""
        score = bootstrap_mean(np.array([row["clip"] for row in rows]), ids)
        estimate, low, high = map(clip_distance, (score.estimate, score.high, score.low))
        return {"clip": score, "clip_distance": Interval(estimate, low, high, score.clusters)}

    def remarks(self, rows: Sequence[Row]) -> list[str]:
        """How many captions are longer than the text tower reads."""
        cut = sum(row["cut"] for row in rows)
        if not cut or self._metric is None:
            return []
        limit = self._metric.backbone.max_length
        return [f"{cut} of {len(rows)} captions are longer than {limit} tokens; CLIP reads a part"]


class JudgeFidelity(PictureMeasure):
    """Two ratings by a local vision-language model."""

    def __init__(self, judge: str | Path = JUDGE_ID) -> None:
        """Name a judge.

        Args:
            judge: a folder or hub id.
        """
        self.source = judge
        self.remedy = f"hf download {judge}, or give a folder with judge=DIR"
        self._judge: VisionLanguageJudge | None = None

    def load(self, device: torch.device) -> Skipped | None:
        """Load the judge."""
        self._judge = VisionLanguageJudge.from_pretrained(self.source)
        self._judge.model.to(device)
        return None

    @property
    def protocol(self) -> str:
        """Model and dtype."""
        assert self._judge is not None
        return self._judge.protocol

    def read(self, images: Images, orders: Sequence[Order]) -> list[Row]:
        """Ask two questions about each picture."""
        assert self._judge is not None
        prompts = [order.prompt for order in orders]
        metrics = {
            "judge_yes": YesProbability(self._judge),
            "judge_digit": DigitExpectation(self._judge),
        }
        for metric in metrics.values():
            metric.update(images, prompts)
        values = {name: metric.per_picture().tolist() for name, metric in metrics.items()}
        return [{name: values[name][i] for name in values} for i in range(len(orders))]
