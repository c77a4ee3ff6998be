"""The second stage: features of pictures, kept by what the pictures and the network are."""

from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
from jaxtyping import Float32
from safetensors import SafetensorError
from torch import Tensor

from mmface.evaluation.backbones import Backbone, Skipped, or_skipped
from mmface.evaluation.generation import Pictures
from mmface.evaluation.parted_work import PartedWork
from mmface.processes import Processes


class BackboneSource:
    """A backbone that is loaded when it is first needed, or known to be missing."""

    def __init__(self, load: Callable[[], Backbone], remedy: str) -> None:
        """Name a backbone.

        Args:
            load: loads it.
            remedy: how to get what `load` needs.
        """
        self._load = load
        self._remedy = remedy
        self._loaded: Backbone | Skipped | None = None

    def open(self, device: torch.device | str = "cpu") -> Backbone | Skipped:
        """Load the backbone, once.

        Args:
            device: where it computes.

        Returns:
            The backbone, or why it is not there.
        """
        if self._loaded is None:
            self._loaded = or_skipped(self._load, self._remedy)
        if isinstance(self._loaded, Backbone):
            self._loaded.to(device)
        return self._loaded


def _count_features(content: bytes) -> int:
    """Number of rows in a part; 0 if it is broken."""
    try:
        return len(safetensors.torch.load(content)["features"])
    except (SafetensorError, KeyError):
        return 0


class FeatureCache:
    """The features of one method's pictures, by backbone."""

    def __init__(self, folder: Path, pictures: Pictures, batch_size: int) -> None:
        """Plan the work.

        Args:
            folder: where features are kept.
            pictures: whose.
            batch_size: pictures read at once.
        """
        self.folder = folder
        self.pictures = pictures
        self.batch_size = batch_size

    def _work(self, name: str, backbone: Backbone) -> PartedWork:
        made_by = {
            "stage": "features",
            "pictures": self.pictures.digest,
            "backbone": backbone.protocol,
        }
        count = len(self.pictures.ids)
        return PartedWork(
            self.folder / name,
            made_by,
            count,
            self.batch_size,
            suffix=".safetensors",
            count=_count_features,
        )

    def run(self, name: str, backbone: Backbone, processes: Processes, title: str) -> None:
        """Read what is absent; all processes call this.

        Args:
            name: of the backbone's folder.
            backbone: reads the pictures.
            processes: who shares the work.
            title: stands beside the progress bar.
        """
        ids, device = self.pictures.ids, processes.accelerator.device

        def part(items: range) -> bytes:
            images = self.pictures.batch(ids[items.start : items.stop], device)
            return safetensors.torch.save({"features": backbone(images).cpu().contiguous()})

        self._work(name, backbone).run(part, processes, title)

    def features(self, name: str, backbone: Backbone) -> Float32[Tensor, "n features"] | None:
        """Give the finished features, in the order of the ids; None if they are not finished."""
        work = self._work(name, backbone)
        if not work.is_complete():
            return None
        parts = [safetensors.torch.load(content)["features"] for content in work.contents()]
        return torch.cat(parts)
