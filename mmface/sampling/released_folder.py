"""Loading a pipeline from a copy of the authors' hub repository."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mmface.encoders import VAES, LatentCodec, TextEncoder
from mmface.model.released import WEIGHTS_NAME
from mmface.model.transformer import MMFaceDiT
from mmface.objectives.solvers import MIN_SNR_DIFFUSION, RECTIFIED_FLOW

RELEASED_TEXT = "stable-diffusion-2-1-base"
"""The repository's folder of the text encoder and tokenizer."""


class ReleasedCheckpoint(NamedTuple):
    """The weights of one of the authors' checkpoints, its objective, and its side in pixels."""

    weights: Path
    objective: str
    image_size: int


def released_checkpoint(
    folder: Path, checkpoint: str | None, objective: str | None, image_size: int | None
) -> ReleasedCheckpoint:
    """Find a checkpoint's weights in a copy of the authors' repository.

    `checkpoint` is its folder, or the one above; None if there is one only. The folder's name tells
    objective and image size unless they are given. ValueError for another layout, or an ambiguous
    checkpoint.
    """
    missing = [name for name in ("VAE", RELEASED_TEXT) if not (folder / name).is_dir()]
    if missing:
        raise ValueError(
            f"{folder} has no folder {' and no '.join(missing)}; copy the whole repository: "
            "hf download BharathK333/MMFace-DiT-Models --local-dir FOLDER."
        )
    found = sorted(folder.glob(f"{checkpoint or '**'}/{WEIGHTS_NAME}"))
    found += sorted(folder.glob(f"{checkpoint}/*/{WEIGHTS_NAME}")) if checkpoint else []
    if len(found) != 1:
        every = [path.parent.relative_to(folder) for path in folder.glob(f"**/{WEIGHTS_NAME}")]
        listed = ", ".join(sorted(map(str, every))) or "none"
        raise ValueError(
            f"{len(found)} checkpoints in {folder} fit {checkpoint!r}; give one of: {listed}."
        )
    name = found[0].parent.relative_to(folder).as_posix()
    size = re.search(r"-(\d{3,4})\b", name.split("/")[0])
    named = RECTIFIED_FLOW if "-rfm" in name else MIN_SNR_DIFFUSION
    side = int(size[1]) if size else 256
    return ReleasedCheckpoint(found[0], objective or named, image_size or side)


def released_components(
    folder: Path, checkpoint: ReleasedCheckpoint, num_heads: int, dtype: torch.dtype
) -> dict[str, Any]:
    """Load a pipeline's components by name, without a scheduler."""
    text = TextEncoder.from_pretrained(folder / RELEASED_TEXT, dtype=dtype)
    vae = LatentCodec.from_pretrained(str(folder / "VAE"), dtype=dtype).vae
    transformer = MMFaceDiT.from_released(
        checkpoint.weights,
        num_heads=num_heads,
        objective=checkpoint.objective,
        dtype=dtype,
    )
    return {
        "vae": VAES["flux_released"].configure(vae),
        "text_encoder": text.text_model,
        "tokenizer": text.tokenizer,
        "transformer": transformer,
    }
