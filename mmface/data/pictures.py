"""A store of rendered faces: pictures, label maps, sketches and captions, drawn once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmface.data.rendered import render_face
from mmface.data.store import ArraySpec, StoreSpec, write_store

HELD_OUT_SEED = 1_000_000
"""Faces with this seed and above are never trained on; evaluation takes them from here up."""


@dataclass(frozen=True)
class RenderedPictures:
    """Draws faces `first_seed`, `first_seed + 1`, ... into a store.

    Attributes:
        num_faces: how many faces.
        size_px: edge of the square pictures.
        first_seed: seed of the first face.
    """

    num_faces: int
    size_px: int = 128
    first_seed: int = 0

    def write(self, folder: str | Path, process_index: int = 0, num_processes: int = 1) -> None:
        """Write this process's shards of the store.

        Args:
            folder: the store's folder.
            process_index: this process's number; see `write_store`.
            num_processes: how many processes write together.

        Raises:
            ValueError: if training faces would run into the held-out seeds.
        """
        last_seed = self.first_seed + self.num_faces - 1
        if self.first_seed < HELD_OUT_SEED <= last_seed:
            raise ValueError(
                f"seeds {self.first_seed}..{last_seed} run into the held-out faces, which start "
                f"at {HELD_OUT_SEED}; take fewer faces"
            )
        square = (self.size_px, self.size_px)
        spec = StoreSpec(
            num_items=self.num_faces,
            arrays={
                "image": ArraySpec((*square, 3), "uint8"),
                "labels": ArraySpec(square, "uint8"),
                "sketch": ArraySpec(square, "uint8"),
            },
            texts=("captions",),
            made_by={"kind": "rendered pictures", "first_seed": self.first_seed},
        )
        write_store(folder, spec, self._rows, process_index, num_processes)

    def _rows(self, items: range) -> list[dict[str, Any]]:
        rows = []
        for item in items:
            seed = self.first_seed + item
            face = render_face(seed, self.size_px)
            rows.append(
                {
                    "id": f"rendered/{seed}",
                    "image": face.image,
                    "labels": face.labels,
                    "sketch": face.sketch,
                    "captions": face.captions,
                }
            )
        return rows
