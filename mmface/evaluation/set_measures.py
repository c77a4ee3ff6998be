"""What is measured between the set of real pictures and a method's: FID and its relatives."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from mmface.evaluation.feature_cache import BackboneSource
from mmface.evaluation.frechet import FeatureStatistics, frechet_distance
from mmface.evaluation.kernel import gaussian_mmd, kernel_distance
from mmface.evaluation.precision_recall import precision_recall
from mmface.evaluation.statistics import frechet_floor, frechet_infinity
from mmface.evaluation.tables import COLUMNS

Features = Float[Tensor, "n features"]
_SIZES = 8


class SetMeasure(ABC):
    """A metric of two sets of features; `columns` are the columns that it fills."""

    columns: Sequence[str]

    def __init__(self, backbone: BackboneSource, backbone_name: str) -> None:
        """Name the network.

        Args:
            backbone: reads the pictures.
            backbone_name: of the folder of its features; measures of one network share it.
        """
        self.backbone = backbone
        self.backbone_name = backbone_name

    @abstractmethod
    def compare(self, real: Features, generated: Features) -> dict[str, float]:
        """Give the columns' values."""

    def remarks(self, real: Features, generated: Features, name: str) -> list[str]:
        """What a reader of the table should know of a method's value."""
        return []

    def floor(self, real: Features) -> list[str]:
        """What the number of real pictures alone costs."""
        return []


class Frechet(SetMeasure):
    """FID, clean FID or FDD, as the backbone is."""

    def __init__(self, backbone: BackboneSource, backbone_name: str, column: str = "fid") -> None:
        """Name network and column.

        Args:
            backbone: reads the pictures.
            backbone_name: see `SetMeasure`.
            column: `fid`, `clean_fid` or `fdd`.
        """
        super().__init__(backbone, backbone_name)
        self.column = column
        self.columns = (column,)

    def compare(self, real: Features, generated: Features) -> dict[str, float]:
        """Compare mean and covariance."""
        statistics = [FeatureStatistics.of(features) for features in (real, generated)]
        return {self.column: frechet_distance(*statistics)}

    def remarks(self, real: Features, generated: Features, name: str) -> list[str]:
        """The distance at infinite N, where there are enough pictures for a line."""
        if len(real) != len(generated) or len(real) < 4 * _SIZES:
            return []
        limit = frechet_infinity(real, generated, _SIZES).limit
        return [f"{COLUMNS[self.column].title} extrapolated to infinite N: {name} {limit:.2f}"]

    def floor(self, real: Features) -> list[str]:
        """The distance between two halves of the real pictures."""
        if len(real) < 4:
            return []
        distance, half = frechet_floor(real)
        title = COLUMNS[self.column].title
        return [f"{title} between two halves of the real pictures: {distance:.2f} at N = {half}"]


class Kernel(SetMeasure):
    """KID."""

    columns = ("kid",)

    def compare(self, real: Features, generated: Features) -> dict[str, float]:
        """Average over subsets."""
        return {"kid": kernel_distance(real, generated).mean}


class ClipMaximumMeanDiscrepancy(SetMeasure):
    """CMMD, with a CLIP backbone."""

    columns = ("cmmd",)

    def compare(self, real: Features, generated: Features) -> dict[str, float]:
        """Compare embeddings."""
        return {"cmmd": gaussian_mmd(real, generated)}


class Neighbourhoods(SetMeasure):
    """Precision, recall, density and coverage."""

    columns = ("precision", "recall", "density", "coverage")

    def compare(self, real: Features, generated: Features) -> dict[str, float]:
        """Compare neighbourhoods."""
        return precision_recall(real, generated)._asdict()
