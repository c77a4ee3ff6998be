"""The table between the released MMFace-DiT state-dict names and ours, both ways.

The authors publish one safetensors file a model. Its tensors and ours hold the same numbers: ours
are the same tensors under other names, with each stream's query, key and value projections stacked
in that order into one (`qkv`). So the translation is exact in both directions and keeps the dtype.

Sizes in the table, all read from the tensors themselves:
    D  width            C  latent channels    p  patch size    T  text width
    H  hidden width of the MLPs               M  modalities    N  number of blocks
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

WEIGHTS_NAME = "dit_model_weights_ema.safetensors"
"""The file that each released checkpoint folder carries."""


class Row(NamedTuple):
    """One tensor of ours, the released tensors stacked in it, and the shape of each of those."""

    ours: str
    released: tuple[str, ...]
    shape: str


_MODEL_ROWS = (
    Row("patch_embedder.weight", ("x_embedder.proj.weight",), "D 2C p p"),
    Row("patch_embedder.bias", ("x_embedder.proj.bias",), "D"),
    Row("time_mlp.0.weight", ("t_embedder.mlp.0.weight",), "D 256"),
    Row("time_mlp.0.bias", ("t_embedder.mlp.0.bias",), "D"),
    Row("time_mlp.2.weight", ("t_embedder.mlp.2.weight",), "D D"),
    Row("time_mlp.2.bias", ("t_embedder.mlp.2.bias",), "D"),
    Row("null_pooled", ("c_embedder.null_feature_pooled",), "T"),
    Row("pooled_embedder.weight", ("c_embedder.proj.weight",), "D T"),
    Row("pooled_embedder.bias", ("c_embedder.proj.bias",), "D"),
    Row("text_embedder.weight", ("clip_seq_proj.weight",), "D T"),
    Row("text_embedder.bias", ("clip_seq_proj.bias",), "D"),
    Row("modality_embedder.weight", ("modality_embedder.weight",), "M D"),
    Row("final_linear.weight", ("final_layer.linear.weight",), "ppC D"),
    Row("final_linear.bias", ("final_layer.linear.bias",), "ppC"),
    Row("final_modulation.weight", ("final_layer.adaLN_modulation.1.weight",), "2D D"),
    Row("final_modulation.bias", ("final_layer.adaLN_modulation.1.bias",), "2D"),
)


def _stream_rows(ours: str, attention: str, mlp: str) -> tuple[Row, ...]:
    """Rows of one stream of a block; `attention` and `mlp` are its released suffixes."""
    qkv = tuple(f"blocks.{{n}}.attn.to_{part}{attention}.weight" for part in "qkv")
    return (
        Row(f"blocks.{{n}}.{ours}.qkv.weight", qkv, "D D"),
        Row(
            f"blocks.{{n}}.{ours}.out.weight",
            (f"blocks.{{n}}.attn.to_out{attention}.weight",),
            "D D",
        ),
        Row(f"blocks.{{n}}.{ours}.mlp.0.weight", (f"blocks.{{n}}.mlp_{mlp}.0.weight",), "H D"),
        Row(f"blocks.{{n}}.{ours}.mlp.0.bias", (f"blocks.{{n}}.mlp_{mlp}.0.bias",), "H"),
        Row(f"blocks.{{n}}.{ours}.mlp.2.weight", (f"blocks.{{n}}.mlp_{mlp}.2.weight",), "D H"),
        Row(f"blocks.{{n}}.{ours}.mlp.2.bias", (f"blocks.{{n}}.mlp_{mlp}.2.bias",), "D"),
    )


_BLOCK_ROWS = (
    *_stream_rows("image", attention="", mlp="i"),
    *_stream_rows("text", attention="_t", mlp="t"),
    Row("block_modulations.{n}.weight", ("blocks.{n}.adaLN_modulation.1.weight",), "12D D"),
    Row("block_modulations.{n}.bias", ("blocks.{n}.adaLN_modulation.1.bias",), "12D"),
)

# The tensors that tell the sizes, and the number of dimensions that each must have for that.
_ANCHORS = {
    "x_embedder.proj.weight": 4,
    "clip_seq_proj.weight": 2,
    "modality_embedder.weight": 2,
    "blocks.0.mlp_i.0.weight": 2,
}


def table(depth: int) -> list[Row]:
    """List every tensor of a model of `depth` blocks."""
    rows = list(_MODEL_ROWS)
    for n in range(depth):
        for ours, released, shape in _BLOCK_ROWS:
            rows.append(Row(ours.format(n=n), tuple(name.format(n=n) for name in released), shape))
    return rows


def from_released(
    source: str | Path | Mapping[str, Tensor],
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Translate released weights to ours.

    A path that does not exist raises FileNotFoundError. A file that is not safetensors, or whose
    tensors are not those of a released model, raises ValueError; it lists the names that are
    missing, unexpected or of the wrong shape.

    Args:
        source: A released safetensors file, a folder that holds one, or a state dict.

    Returns:
        The constructor arguments of `MMFaceDiT` that the tensors determine (all sizes except the
        number of heads), and the state dict under our names, in the dtype it came in. Tensors that
        need no stacking share memory with a state dict that was passed in.
    """
    state = dict(source) if isinstance(source, Mapping) else _load(Path(source))
    for prefix in ("module.", "_orig_mod."):  # left by DistributedDataParallel and torch.compile
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    config = _infer_config(state)
    rows = table(config["depth"])
    _check(state, released_shapes(**config))
    ours = {}
    for row in rows:
        parts = [state[name] for name in row.released]
        ours[row.ours] = parts[0] if len(parts) == 1 else torch.cat(parts)
    return config, ours


def to_released(state: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Translate our state dict to the released names.

    Args:
        state: State dict of an `MMFaceDiT`.
        depth: Number of blocks.

    Returns:
        The released state dict. Every tensor has memory of its own, as safetensors asks for.
    """
    released: dict[str, Tensor] = {}
    for row in table(depth):
        parts = state[row.ours].detach().chunk(len(row.released))
        released |= {name: part.clone() for name, part in zip(row.released, parts, strict=True)}
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
    """Give the shape of each released tensor of a model of these sizes, by name."""
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
        name: tuple(sizes[symbol] for symbol in row.shape.split())
        for row in table(depth)
        for name in row.released
    }


def _load(path: Path) -> dict[str, Tensor]:
    """Read the safetensors file at `path`, or the one in the folder `path`."""
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
    return load_file(path)


def _infer_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read every size from the shapes of `state`, or say which tensors that tell them are unfit."""
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
    """Raise ValueError unless `state` holds exactly the tensors of `shapes`."""
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
    """Join names for a message, at most `limit` of them."""
    names = list(names)
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "none") + rest
