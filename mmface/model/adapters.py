"""Adapters under training: LoRA and DoRA by peft inside a frozen, perhaps quantized network."""

import contextlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from safetensors.torch import save_file
from torch import Tensor, nn

from mmface.core.command_line import check_number, check_whole
from mmface.model.lora import ADAPTER, BASE_KEY
from mmface.model.transformer import MMFaceDiT

BLOCKS = ("blocks",)
"""The targets that stand for all linear layers of the blocks."""
PREFIX = "transformer"
"""What diffusers puts before the name of a layer of a pipeline's transformer."""


def add_lora(
    network: MMFaceDiT,
    rank: int,
    alpha: int | None = None,
    targets: Sequence[str] = BLOCKS,
    dropout: float = 0.0,
    dora: bool = False,
) -> None:
    """Freeze a network, and put a LoRA under training beside its linear layers.

    Args:
        network: Its weights stay as they are.
        rank: Of the matrices.
        alpha: The update is scaled by alpha / rank; None takes the rank.
        targets: Parts of the layers' dotted names: `blocks`, `qkv`, `image.mlp`, `blocks.3`.
        dropout: Share of a layer's inputs that the LoRA does not see in training.
        dora: Whether the norms of the weights' rows are trained, too (arXiv 2402.09353).

    Raises:
        ValueError: If a target names no linear layer, or a number is out of range.
    """
    from peft import LoraConfig  # takes a second, and most trainings never ask for it

    check_whole("lora.rank", rank, 1)
    check_number("lora.alpha", rank if alpha is None else alpha, 0)
    check_number("lora.dropout", dropout, 0, 1)
    # What the loss does not depend on is frozen already; quantized layers are, but count.
    layers = [n for n, m in network.named_modules() if isinstance(m, nn.Linear) and _is_used(m)]
    wanted = [f".{target}." for target in targets]
    for target in wanted:
        if not any(target in f".{name}." for name in layers):
            raise ValueError(
                f"lora.targets: no linear layer's name has {target.strip('.')!r} in it; there are "
                f"{', '.join(layers[:4])}, ..., {layers[-1]}."
            )
    names = [name for name in layers if any(target in f".{name}." for target in wanted)]
    network.requires_grad_(False)
    config = LoraConfig(
        r=rank,
        lora_alpha=rank if alpha is None else alpha,
        target_modules=names,
        lora_dropout=dropout,
        use_dora=dora,
    )
    network.add_adapter(config, ADAPTER)


def _is_used(layer: nn.Linear) -> bool:
    return layer.weight.requires_grad or getattr(layer, "is_quantized", False)


def quantize(network: MMFaceDiT, bits: int, dtype: torch.dtype) -> None:
    """Store the linear layers' weights in 8 or 4 bits, in place, by bitsandbytes.

    LLM.int8 (arXiv 2208.07339) or NF4 (2305.14314); products are computed in `dtype`. ValueError if
    the bits are others, or bitsandbytes cannot.
    """
    if bits not in (8, 4):
        raise ValueError(f"base_bits must be 8, 4 or null, got {bits!r}.")
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it reports missing kernels of a CPU
            import bitsandbytes
        layers = [
            (parent, name, layer)
            for parent in network.modules()
            for name, layer in parent.named_children()
            if isinstance(layer, nn.Linear)
        ]
        for parent, name, layer in layers:
            setattr(parent, name, _quantized(bitsandbytes.nn, layer, bits, dtype))
    except (ImportError, RuntimeError, NotImplementedError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"base_bits={bits} needs bitsandbytes and a device that it knows ({reason:.200}); "
            'pip install -e ".[train]", or leave base_bits out.'
        ) from error
    setattr(network, f"is_loaded_in_{bits}bit", True)  # where peft looks


def _quantized(kinds: Any, layer: nn.Linear, bits: int, dtype: torch.dtype) -> nn.Module:
    sizes = (layer.in_features, layer.out_features, layer.bias is not None)
    weight = layer.weight.data
    if bits == 8:
        made = kinds.Linear8bitLt(*sizes, has_fp16_weights=False)
        made.weight = kinds.Int8Params(weight.half(), requires_grad=False, has_fp16_weights=False)
    else:
        made = kinds.Linear4bit(*sizes, compute_dtype=dtype, quant_type="nf4")
        made.weight = kinds.Params4bit(weight, requires_grad=False, quant_type="nf4")
    made.bias = layer.bias
    made.is_quantized = layer.weight.requires_grad  # unless its loss did not depend on it
    return made.to("cuda" if torch.cuda.is_available() else "cpu")  # which is when it happens


class AdapterWeights(nn.Module):
    """The trained layers of a network's adapter by themselves, named as in its file.

    The parameters are the network's own: what is trained or loaded here is so there.
    """

    def __init__(self, network: MMFaceDiT) -> None:
        super().__init__()
        from peft.tuners.lora import LoraLayer

        for path, layer in network.named_modules():
            if isinstance(layer, LoraLayer):
                place = self._place(path)
                place.lora_A, place.lora_B = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
                if ADAPTER in layer.lora_magnitude_vector:
                    magnitude: Any = layer.lora_magnitude_vector[ADAPTER]
                    place.lora_magnitude_vector = magnitude.weight

    def _place(self, path: str) -> nn.Module:
        place: nn.Module = self
        for part in path.split("."):
            if part not in place._modules:
                place.add_module(part, nn.Module())
            place = place.get_submodule(part)
        return place


def adapter_config(network: MMFaceDiT) -> dict[str, Any]:
    """The adapter's settings as peft and diffusers write them: JSON values."""
    config = network.peft_config[ADAPTER].to_dict()
    return {name: sorted(v) if isinstance(v, set) else v for name, v in config.items()}


def save_adapter(
    path: Path, weights: Mapping[str, Tensor], config: Mapping[str, Any], base: Mapping[str, str]
) -> None:
    """Write a LoRA as diffusers' `save_lora_weights` does, with its settings and what its base is.

    `weights` is the state dict of `AdapterWeights`; see `mmface.model.lora` for reading.
    """
    settings = {f"{PREFIX}.{name}": value for name, value in config.items()}
    metadata = {
        "format": "pt",
        LORA_ADAPTER_METADATA_KEY: json.dumps(settings, indent=2, sort_keys=True, default=str),
        BASE_KEY: json.dumps(dict(base)),
    }
    named = {f"{PREFIX}.{name}": t.detach().cpu().contiguous() for name, t in weights.items()}
    save_file(named, path, metadata)
