"""Whether pictures follow their condition: parsed masks against masks, edges against sketches.

The paper does not say how its ACC and mIoU are averaged, and the choices differ by tens of per
cent: over pictures or over the whole set, and with absent classes left out or counted as 0. All
are given; the whole set with absent classes left out comes first.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float64, Int64, UInt8
from torch import Tensor

from mmface.conditions import LABELS, confusion_matrix, edge_agreement
from mmface.core.files import weights_sha256
from mmface.encoders.face_parser import FaceParser
from mmface.metrics.metric import Column, PictureOrder, SampleMetric, Skipped, Values, register
from mmface.metrics.preprocessing import check_pictures
from mmface.metrics.statistics import Interval, bootstrap, bootstrap_mean

Images = UInt8[Tensor, "batch 3 height width"]


def class_ious(
    confusions: Int64[Tensor, "*sets classes classes"] | Float64[Tensor, "*sets classes classes"],
) -> Float64[Tensor, "*sets classes"]:
    """Intersection over union of each class, in [0, 1]; NaN where neither side has the class."""
    counts = confusions.double()
    hits = counts.diagonal(dim1=-2, dim2=-1)
    union = counts.sum(-1) + counts.sum(-2) - hits
    return torch.where(union > 0, hits / union.clamp(min=1e-12), torch.nan)


def confusion_matrices(
    truth: UInt8[Tensor, "batch height width"], parsed: UInt8[Tensor, "batch height width"]
) -> Int64[Tensor, "batch classes classes"]:
    """Count each picture's pixels by (true class, parsed class), as `LABELS` orders them."""
    pairs = zip(truth.cpu().numpy(), parsed.cpu().numpy(), strict=True)
    return torch.from_numpy(np.stack([confusion_matrix(one, other) for one, other in pairs]))


def pooled_accuracy(confusions: np.ndarray) -> np.ndarray:
    """Pixel accuracy in per cent of summed, flattened tables: float64 [B, 361] -> [B]."""
    classes = int(confusions.shape[1] ** 0.5)
    hits = confusions[:, :: classes + 1].sum(1)
    return 100 * hits / confusions.sum(1)


def pooled_mean_iou(confusions: np.ndarray) -> np.ndarray:
    """The whole set's mIoU in per cent of summed, flattened tables: float64 [B, 361] -> [B]."""
    classes = int(confusions.shape[1] ** 0.5)
    tables = torch.from_numpy(np.ascontiguousarray(confusions, np.float64))
    ious = class_ious(tables.reshape(-1, classes, classes))
    return (100 * ious.nanmean(1)).numpy()


def edge_agreements(
    images: Images, sketches: UInt8[Tensor, "batch height width"], tolerance_px: int = 1
) -> Float64[Tensor, " batch"]:
    """F-score of pictures' strongest edges against their sketches' lines, in [0, 1].

    Sketches are dark lines on white; ValueError if one has no line darker than mid-grey.
    """
    check_pictures(images)
    pairs = zip(images.permute(0, 2, 3, 1).cpu().numpy(), sketches.cpu().numpy(), strict=True)
    scores = [
        edge_agreement(np.ascontiguousarray(image), sketch, tolerance_px) for image, sketch in pairs
    ]
    return torch.tensor(scores, dtype=torch.float64)


class ParserMetric(SampleMetric):
    """What a face parser sees in a picture."""

    def __init__(self, parser: str | Path, revision: str | None = None) -> None:
        """Name a SegFormer with its preprocessor: a folder, or a hub id and its revision."""
        self.source, self.revision = parser, revision
        self.remedy = f"hf download {parser}, or give its folder with parser=DIR"
        self._parser: FaceParser | None = None
        self._protocol = ""

    def load(self, device: torch.device) -> Skipped | None:
        """Load the parser."""
        self._parser = FaceParser.from_pretrained(self.source, self.revision, str(device))
        digest = weights_sha256(self._parser.model.state_dict())[:12]
        self._protocol = f"parser/{Path(self.source).name}/sha256:{digest}"
        return None

    @property
    def protocol(self) -> str:
        """The parser by its weights."""
        return self._protocol


@register
class Masks(ParserMetric):
    """ACC and mIoU in per cent of what a parser sees, in all averagings.

    A perfect picture does not reach 100 where absent ones of the 19 classes count as 0.
    """

    name = "masks"
    columns: ClassVar = {
        "accuracy": Column("ACC", "higher", 2, charted=True),
        "mean_iou": Column("mIoU", "higher", 2, charted=True),
        "mean_iou_of_pictures": Column("mIoU (pictures)", "higher", 2),
        "mean_iou_absent_zero": Column("mIoU (absent 0)", "higher", 2),
    }
    needs = frozenset({"picture", "mask"})
    controls = frozenset({"reconstruction", "others", "shuffled_conditions"})

    def read(self, products: Images, orders: Sequence[PictureOrder]) -> list[Values]:
        """Count each picture's pixels by (true class, parsed class)."""
        assert self._parser is not None
        parsed = np.stack(self._parser(list(products.movedim(1, -1).cpu().numpy())))
        masks = torch.from_numpy(np.stack([order.condition for order in orders]))
        tables = confusion_matrices(masks, torch.from_numpy(parsed))
        return [{"confusion": table} for table in tables.flatten(1).tolist()]

    def intervals(self, ids: Sequence[str], values: Sequence[Values]) -> dict[str, Interval]:
        """Give the paper's two columns over the whole set, and mIoU in two other averagings."""
        tables = np.array([one["confusion"] for one in values], np.float64)
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

    def of_classes(self, values: Sequence[Values]) -> dict[str, float | None]:
        """Give each class's intersection over union over the whole set; None if it is absent."""
        total = torch.tensor([one["confusion"] for one in values]).sum(0)
        ious = class_ious(total.unflatten(0, (len(LABELS), len(LABELS)))).tolist()
        pairs = zip(LABELS, ious, strict=True)
        return {name: None if np.isnan(value) else value for name, value in pairs}


@register
class Edges(SampleMetric):
    """How far the strongest edges follow the sketch."""

    name = "edges"
    columns: ClassVar = {"edges": Column("Edges", "higher", 3, charted=True)}
    needs = frozenset({"picture", "sketch"})
    controls = frozenset({"reconstruction", "others", "shuffled_conditions"})
    protocol = "edges/strongest/1px"

    def read(self, products: Images, orders: Sequence[PictureOrder]) -> list[Values]:
        """Compare edges with lines."""
        sketches = torch.from_numpy(np.stack([order.condition for order in orders]))
        return [{"edges": value} for value in edge_agreements(products, sketches).tolist()]


@register
class Agreement(SampleMetric):
    """What any kind of condition says of a picture itself: the number that it calls its score."""

    name = "agreement"
    columns: ClassVar = {"agreement": Column("Agreement", "higher", 3, charted=True)}
    needs = frozenset({"picture", "condition"})
    controls = frozenset({"reconstruction", "others", "shuffled_conditions"})

    def __init__(self, parser: str | Path | None = None) -> None:
        """Name a parser, for kinds that are read back by one."""
        self.source = parser
        self.remedy = f"hf download {parser}, or give its folder with parser=DIR"
        self._parser: FaceParser | None = None
        self._is_needed = False

    def check(self, order: PictureOrder) -> Skipped | None:
        """Some kinds need a parser."""
        self._is_needed = order.kind.needs_parser
        if self._is_needed and self.source is None:
            return Skipped(f"no parser reads a {order.kind.name} back", "give it with parser=DIR")
        return None

    def load(self, device: torch.device) -> Skipped | None:
        """Load the parser, if the kind needs it."""
        if self._is_needed and self.source is not None:
            self._parser = FaceParser.from_pretrained(self.source, device=str(device))
        return None

    @property
    def protocol(self) -> str:
        """The parser by its weights, if there is one."""
        if self._parser is None:
            return "agreement"
        return f"agreement/sha256:{weights_sha256(self._parser.model.state_dict())[:12]}"

    def read(self, products: Images, orders: Sequence[PictureOrder]) -> list[Values]:
        """Read each picture back, and compare."""
        kind = orders[0].kind
        read = kind.read_back(list(products.movedim(1, -1).cpu().numpy()), self._parser)
        compared = [kind.agreement(o.condition, one) for o, one in zip(orders, read, strict=True)]
        return [{"agreement": numbers[kind.score]} for numbers in compared]
