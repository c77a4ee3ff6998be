"""LoRA files (arXiv 2106.09685): read, checked against the network, added by diffusers' own mixin.

After `load_lora`, the network's `set_adapters` scales the LoRA, `fuse_lora` and `unfuse_lora` add
it to the weights and take it back, and `unload_lora` removes it (diffusers' `PeftAdapterMixin`).
"""

import json
import math
from pathlib import Path
from typing import NamedTuple

from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mmface.model.packed_modulations import unfuse_modulations
from mmface.model.transformer import MMFaceDiT

ADAPTER = "default"
_PREFIXES = ("base_model.model.", "transformer.")


class LoraPair(NamedTuple):
    """The update of one linear layer: scale * alpha / rank * up @ down.

    `down` [rank, in] is peft's `lora_A`, `up` [out, rank] its `lora_B`; alpha is the rank where a
    file says nothing.
    """

    down: Tensor
    up: Tensor
    alpha: float


def read_lora(path: str | Path) -> dict[str, LoraPair]:
    """Read a LoRA of peft or diffusers from safetensors, as a pair for each layer.

    Tensors are named after the transformer's layers, such as `blocks.0.image.qkv.lora_A.weight`,
    with or without `transformer.` in front. ValueError if they are not pairs of matrices.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"The LoRA {path} does not exist.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"The LoRA {path} cannot be read as safetensors ({error}); other formats are not "
            "taken, as they can run code."
        ) from None
    halves: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        layer, _, kind = _without_prefixes(name).rpartition(".lora_")
        if not layer or kind not in ("A.weight", "B.weight"):
            raise ValueError(
                f"The LoRA {path} has a tensor {name!r}: not lora_A or lora_B. Convert the file to "
                "the names that peft and diffusers write, LAYER.lora_A.weight and .lora_B.weight."
            )
        halves.setdefault(layer, {})[kind[0]] = tensor
    if not halves:
        raise ValueError(f"The LoRA {path} is empty.")
    alphas = _alphas_of(metadata, path)
    pairs = {}
    for layer, half in halves.items():
        shapes = {kind: list(tensor.shape) for kind, tensor in half.items()}
        matched = len(half) == 2 and half["A"].ndim == half["B"].ndim == 2
        if not (matched and len(half["A"]) == half["B"].shape[1] > 0):
            raise ValueError(f"The LoRA {path} has no matching pair for {layer!r}: {shapes}.")
        if not all(half[kind].is_floating_point() and half[kind].isfinite().all() for kind in "AB"):
            raise ValueError(f"The LoRA {path} has values in {layer!r} that are not finite.")
        alpha = alphas.get(layer, alphas.get("", float(len(half["A"]))))
        pairs[layer] = LoraPair(half["A"], half["B"], alpha)
    return pairs


def load_lora(model: MMFaceDiT, path: str | Path, scale: float = 1.0) -> int:
    """Add a LoRA to a model's linear layers; gives the number of layers that it changes.

    The model's own weights are not touched. ValueError if the file is no LoRA, does not fit the
    model, or peft is not installed.
    """
    if not math.isfinite(scale):
        raise ValueError(f"The scale of a LoRA must be finite, got {scale}.")
    if hasattr(model, "peft_config"):
        raise ValueError("The model has a LoRA already; call its unload_lora() first.")
    pairs = read_lora(path)
    if any(name.startswith("block_modulations.") for name in pairs):
        unfuse_modulations(model)
    _check_fit(model, pairs, path)
    state = {f"{name}.lora_A.weight": pair.down for name, pair in pairs.items()}
    state |= {f"{name}.lora_B.weight": pair.up for name, pair in pairs.items()}
    config = {
        "target_modules": list(pairs),
        "rank_pattern": {name: len(pair.down) for name, pair in pairs.items()},
        "alpha_pattern": {name: pair.alpha for name, pair in pairs.items()},
    }
    try:
        model.load_lora_adapter(state, prefix=None, adapter_name=ADAPTER, metadata=config)
    except ImportError:
        raise ValueError('A LoRA needs peft: pip install -e ".[lora]".') from None
    model.set_adapters(ADAPTER, scale)
    model.requires_grad_(False).eval()
    return len(pairs)


def _check_fit(model: nn.Module, pairs: dict[str, LoraPair], path: str | Path) -> None:
    modules = dict(model.named_modules())
    linear = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
    for name, pair in pairs.items():
        layer = modules.get(name)
        if not isinstance(layer, nn.Linear):
            raise ValueError(
                f"The LoRA {path} is for a layer {name!r}, which is no linear layer of this "
                f"model; those are such as {', '.join(linear[-3:])}."
            )
        wanted = [layer.out_features, layer.in_features]
        if (found := [len(pair.up), pair.down.shape[1]]) != wanted:
            raise ValueError(f"The LoRA {path} is {found} for {name!r}, which is {wanted}.")


def _without_prefixes(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _alphas_of(metadata: dict[str, str], path: Path) -> dict[str, float]:
    """Read alpha by layer from the config that diffusers writes; "" is the key of all others."""
    if LORA_ADAPTER_METADATA_KEY not in metadata:
        return {}
    try:
        config = json.loads(metadata[LORA_ADAPTER_METADATA_KEY])
        config = {_without_prefixes(key): value for key, value in config.items()}
        pattern = config.get("alpha_pattern") or {}
        alphas = {_without_prefixes(key.lstrip("^")): float(x) for key, x in pattern.items()}
        alphas[""] = float(config["lora_alpha"])
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise ValueError(f"The LoRA {path} has a config that cannot be read.") from None
    plain = not (config.get("use_rslora") or config.get("use_dora"))
    if not plain or not all(map(math.isfinite, alphas.values())):
        raise ValueError(f"The LoRA {path} is of a kind that is not plain LoRA (its config).")
    return alphas
