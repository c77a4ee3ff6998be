"""LoRA (arXiv 2106.09685) for a loaded transformer, through peft: added, scaled and taken away."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from diffusers.utils.peft_utils import recurse_remove_peft_layers
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mmface.model.packed_modulations import unfuse_modulations

_ADAPTER = "default"
_PREFIXES = ("base_model.model.", "transformer.")
_METADATA_KEY = "lora_adapter_metadata"
"""Under which diffusers writes the config of an adapter into safetensors."""


class LoraPair(NamedTuple):
    """The update of one linear layer: scale times alpha / rank times up @ down.

    Attributes:
        down: [rank, in], peft's `lora_A`.
        up: [out, rank], peft's `lora_B`.
        alpha: The numerator of its scale; the rank where a file says nothing.
    """

    down: Tensor
    up: Tensor
    alpha: float


def read_lora(path: str | Path) -> dict[str, LoraPair]:
    """Read a LoRA as peft and diffusers write it, from safetensors.

    Args:
        path: The file. Its tensors are named after the transformer's layers, such as
            `blocks.0.image.qkv.lora_A.weight`, with or without `transformer.` in front.

    Returns:
        The pair of each layer.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no safetensors file, or its tensors are not pairs of matrices.
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
            raise ValueError(f"The LoRA {path} has a tensor {name!r}: not lora_A or lora_B.")
        halves.setdefault(layer, {})[kind[0]] = tensor
    if not halves:
        raise ValueError(f"The LoRA {path} is empty.")
    config_alpha = _alpha_of(metadata, path)
    pairs = {}
    for layer, half in halves.items():
        shapes = {kind: list(tensor.shape) for kind, tensor in half.items()}
        matched = len(half) == 2 and half["A"].ndim == half["B"].ndim == 2
        if not (matched and len(half["A"]) == half["B"].shape[1] > 0):
            raise ValueError(f"The LoRA {path} has no matching pair for {layer!r}: {shapes}.")
        if not all(half[kind].is_floating_point() and half[kind].isfinite().all() for kind in "AB"):
            raise ValueError(f"The LoRA {path} has values in {layer!r} that are not finite.")
        alpha = float(len(half["A"])) if config_alpha is None else config_alpha
        pairs[layer] = LoraPair(half["A"], half["B"], alpha)
    return pairs


def load_lora(model: nn.Module, path: str | Path, scale: float = 1.0) -> int:
    """Add a LoRA to a model's linear layers; its own weights are not touched.

    Args:
        model: The transformer, without a LoRA.
        path: As for `read_lora`.
        scale: How much of the LoRA to add; 0 adds nothing.

    Returns:
        The number of layers that it changes.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no LoRA, does not fit the model, or peft is not there.
    """
    if not math.isfinite(scale):
        raise ValueError(f"The scale of a LoRA must be finite, got {scale}.")
    if hasattr(model, "peft_config"):
        raise ValueError("The model has a LoRA already; unload_lora it first.")
    pairs = read_lora(path)
    if any(name.startswith("block_modulations.") for name in pairs):
        unfuse_modulations(model)
    _check_fit(model, pairs, path)
    try:
        from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
        from peft.tuners.lora import LoraLayer
    except ImportError:
        raise ValueError('A LoRA needs peft: pip install -e ".[lora]".') from None
    config = LoraConfig(
        target_modules=list(pairs),
        rank_pattern={name: len(pair.down) for name, pair in pairs.items()},
        alpha_pattern={name: pair.alpha for name, pair in pairs.items()},
    )
    inject_adapter_in_model(config, model, _ADAPTER)
    state: dict[str, Tensor] = {}
    for name, pair in pairs.items():
        state |= {f"{name}.lora_A.weight": pair.down, f"{name}.lora_B.weight": pair.up}
    set_peft_model_state_dict(model, state, _ADAPTER)
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    assert len(layers) == len(pairs), "peft adapted other layers than those of the file"
    for layer in layers:
        layer.set_scale(_ADAPTER, scale)
    model.requires_grad_(False).eval()
    return len(layers)


def unload_lora(model: nn.Module) -> None:
    """Take a LoRA away: every layer is the one that it was before `load_lora`."""
    recurse_remove_peft_layers(model)
    if hasattr(model, "peft_config"):
        del model.peft_config


def _check_fit(model: nn.Module, pairs: dict[str, LoraPair], path: str | Path) -> None:
    """Raise ValueError unless each pair updates a linear layer of its shape."""
    modules = dict(model.named_modules())
    for name, pair in pairs.items():
        layer = modules.get(name)
        if not isinstance(layer, nn.Linear):
            raise ValueError(
                f"The LoRA {path} is for a layer {name!r}, which is no linear layer of this "
                f"model; those are such as {', '.join(_some_linear(modules.items()))}."
            )
        wanted = [layer.out_features, layer.in_features]
        if (found := [len(pair.up), pair.down.shape[1]]) != wanted:
            raise ValueError(f"The LoRA {path} is {found} for {name!r}, which is {wanted}.")


def _some_linear(modules: Iterable[tuple[str, nn.Module]]) -> list[str]:
    return [name for name, module in modules if isinstance(module, nn.Linear)][-3:]


def _without_prefixes(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _alpha_of(metadata: dict[str, str], path: Path) -> float | None:
    """Read alpha from the config that diffusers writes beside the tensors, if there is one."""
    if _METADATA_KEY not in metadata:
        return None
    try:
        config = json.loads(metadata[_METADATA_KEY])
        config = {_without_prefixes(key): value for key, value in config.items()}
        alpha = float(config["lora_alpha"])
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise ValueError(f"The LoRA {path} has a config that cannot be read.") from None
    if not math.isfinite(alpha) or any(
        config.get(key) for key in ("use_rslora", "use_dora", "alpha_pattern")
    ):
        raise ValueError(f"The LoRA {path} is of a kind that is not plain LoRA (its config).")
    return alpha
