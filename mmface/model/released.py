"""Translation between the released MMFace-DiT state-dict names and ours, both ways.

The authors publish one safetensors file a model. Our tensors are the same under other names, with
each stream's query, key and value projections stacked into one (`qkv`). The translation is exact in
both directions and keeps the dtype.

Sizes in the table, read from the tensors:
    D  width            C  latent channels    p  patch size    T  text width
    H  hidden width of the MLPs               M  modalities    N  number of blocks
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmface.core.sources import read_weights

WEIGHTS_NAME = "dit_model_weights_ema.safetensors"
"""The weights' file of each released checkpoint."""


class NamePair(NamedTuple):
    """A tensor of ours, the released tensors stacked in it, and the shape of each of those."""

    ours: str
    released: tuple[str, ...]
    shape: str


_MODEL_NAMES = (
    NamePair("patch_embedder.weight", ("x_embedder.proj.weight",), "D 2C p p"),
    NamePair("patch_embedder.bias", ("x_embedder.proj.bias",), "D"),
    NamePair("time_mlp.0.weight", ("t_embedder.mlp.0.weight",), "D 256"),
    NamePair("time_mlp.0.bias", ("t_embedder.mlp.0.bias",), "D"),
    NamePair("time_mlp.2.weight", ("t_embedder.mlp.2.weight",), "D D"),
    NamePair("time_mlp.2.bias", ("t_embedder.mlp.2.bias",), "D"),
    NamePair("null_pooled", ("c_embedder.null_feature_pooled",), "T"),
    NamePair("pooled_embedder.weight", ("c_embedder.proj.weight",), "D T"),
    NamePair("pooled_embedder.bias", ("c_embedder.proj.bias",), "D"),
    NamePair("text_embedder.weight", ("clip_seq_proj.weight",), "D T"),
    NamePair("text_embedder.bias", ("clip_seq_proj.bias",), "D"),
    NamePair("modality_embedder.weight", ("modality_embedder.weight",), "M D"),
    NamePair("final_linear.weight", ("final_layer.linear.weight",), "ppC D"),
    NamePair("final_linear.bias", ("final_layer.linear.bias",), "ppC"),
    NamePair("final_modulation.weight", ("final_layer.adaLN_modulation.1.weight",), "2D D"),
    NamePair("final_modulation.bias", ("final_layer.adaLN_modulation.1.bias",), "2D"),
)


def _stream_names(ours: str, attention: str, mlp: str) -> tuple[NamePair, ...]:
    """Names of one stream of a block; `attention` and `mlp` are its suffixes in the release."""
    qkv = tuple(f"blocks.{{n}}.attn.to_{part}{attention}.weight" for part in "qkv")
    return (
        NamePair(f"blocks.{{n}}.{ours}.qkv.weight", qkv, "D D"),
        NamePair(
            f"blocks.{{n}}.{ours}.out.weight",
            (f"blocks.{{n}}.attn.to_out{attention}.weight",),
            "D D",
        ),
        NamePair(f"blocks.{{n}}.{ours}.mlp.0.weight", (f"blocks.{{n}}.mlp_{mlp}.0.weight",), "H D"),
        NamePair(f"blocks.{{n}}.{ours}.mlp.0.bias", (f"blocks.{{n}}.mlp_{mlp}.0.bias",), "H"),
        NamePair(f"blocks.{{n}}.{ours}.mlp.2.weight", (f"blocks.{{n}}.mlp_{mlp}.2.weight",), "D H"),
        NamePair(f"blocks.{{n}}.{ours}.mlp.2.bias", (f"blocks.{{n}}.mlp_{mlp}.2.bias",), "D"),
    )


_BLOCK_NAMES = (
    *_stream_names("image", attention="", mlp="i"),
    *_stream_names("text", attention="_t", mlp="t"),
    NamePair("block_modulations.{n}.weight", ("blocks.{n}.adaLN_modulation.1.weight",), "12D D"),
    NamePair("block_modulations.{n}.bias", ("blocks.{n}.adaLN_modulation.1.bias",), "12D"),
)

# The tensors from which sizes are read, and the number of dimensions that each must have.
_ANCHORS = {
    "x_embedder.proj.weight": 4,
    "clip_seq_proj.weight": 2,
    "modality_embedder.weight": 2,
    "blocks.0.mlp_i.0.weight": 2,
}


def table(depth: int) -> list[NamePair]:
    """List every tensor of a model of `depth` blocks."""
    pairs = list(_MODEL_NAMES)
    for n in range(depth):
        for ours, released, shape in _BLOCK_NAMES:
            pairs.append(
                NamePair(ours.format(n=n), tuple(name.format(n=n) for name in released), shape)
            )
    return pairs


def from_released(
    source: str | Path | Mapping[str, Tensor],
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Translate a released file, folder or state dict to MMFaceDiT's arguments and state dict.

    The tensors tell every argument but the number of heads, and keep their dtype. Those that need
    no stacking share memory with a state dict that was passed in. ValueError lists the tensors that
    a released model does not have.
    """
    state = dict(source) if isinstance(source, Mapping) else _load(Path(source))
    for prefix in ("module.", "_orig_mod."):  # left by DistributedDataParallel and torch.compile
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    config = _infer_config(state)
    pairs = table(config["depth"])
    _check(state, released_shapes(**config))
    ours = {}
    for pair in pairs:
        parts = [state[name] for name in pair.released]
        ours[pair.ours] = parts[0] if len(parts) == 1 else torch.cat(parts)
    return config, ours


def to_released(state: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Translate our state dict to the released names.

    No two tensors share memory, which safetensors would refuse.
    """
    released: dict[str, Tensor] = {}
    for pair in table(depth):
        parts = state[pair.ours].detach().chunk(len(pair.released))
        released |= {name: part.clone() for name, part in zip(pair.released, parts, strict=True)}
    return released


def released_shapes(
    latent_channels: int,
    patch_size: int,
    hidden_size: int,
    depth: int,
    mlp_ratio: float,
    text_dim: int,
    num_modalities: int,
) -> dict[str, tuple[int, ...]]:
    """Return the shape of each released tensor by name, for a model of these sizes."""
    sizes = {
        "D": hidden_size,
        "2D": 2 * hidden_size,
        "12D": 12 * hidden_size,
        "H": round(hidden_size * mlp_ratio),
        "2C": 2 * latent_channels,
        "ppC": patch_size**2 * latent_channels,
        "p": patch_size,
        "T": text_dim,
        "M": num_modalities,
        "256": 256,
    }
    return {
        name: tuple(sizes[symbol] for symbol in pair.shape.split())
        for pair in table(depth)
        for name in pair.released
    }


def _load(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give a released file or its folder.")
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        named = path / WEIGHTS_NAME
        if named not in files and len(files) != 1:
            raise ValueError(
                f"{path} holds neither {WEIGHTS_NAME} nor exactly one .safetensors file "
                f"(found {_shortened(file.name for file in files)}); give the file itself."
            )
        path = named if named in files else files[0]
    if path.suffix != ".safetensors":
        raise ValueError(
            f"{path.name} is not a .safetensors file. Pickled weights (.pt, .bin, .ckpt) can run "
            f"code and are never loaded; use the released {WEIGHTS_NAME}, or convert the file."
        )
    return read_weights(path)


def _infer_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    unfit = [
        name for name, ndim in _ANCHORS.items() if name not in state or state[name].ndim != ndim
    ]
    if unfit:
        raise ValueError(
            f"This is not a released MMFace-DiT state dict: missing or of the wrong rank: "
            f"{_shortened(unfit)}; it has {_shortened(state)}. Give the authors' "
            f"{WEIGHTS_NAME}; a folder saved by this package loads with from_pretrained."
        )
    hidden_size, channels, patch_size, _ = state["x_embedder.proj.weight"].shape
    blocks = (re.match(r"blocks\.(\d+)\.", name) for name in state)
    return {
        "latent_channels": channels // 2,
        "patch_size": patch_size,
        "hidden_size": hidden_size,
        "depth": 1 + max(int(match[1]) for match in blocks if match),
        "mlp_ratio": state["blocks.0.mlp_i.0.weight"].shape[0] / hidden_size,
        "text_dim": state["clip_seq_proj.weight"].shape[1],
        "num_modalities": state["modality_embedder.weight"].shape[0],
    }


def _check(state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    misshapen = [
        f"{name} {tuple(state[name].shape)} instead of {shape}"
        for name, shape in shapes.items()
        if name in state and state[name].shape != shape
    ]
    problems = {
        "missing": [name for name in shapes if name not in state],
        "unexpected": [name for name in state if name not in shapes],
        "of the wrong shape": misshapen,
    }
    if any(problems.values()):
        listed = "; ".join(
            f"{what}: {_shortened(names)}" for what, names in problems.items() if names
        )
        raise ValueError(
            f"The tensors are not those of a released MMFace-DiT model. {listed}. Download the "
            f"file again, or check that it is the authors' {WEIGHTS_NAME}."
        )


def _shortened(names: Iterable[str], limit: int = 8) -> str:
    names = list(names)
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "none") + rest
