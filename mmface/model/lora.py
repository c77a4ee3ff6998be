"""Files of LoRA (arXiv 2106.09685) and DoRA (2402.09353): read, checked, added by diffusers' mixin.

After `load_loras`, the network's `set_adapters` scales them, `fuse_lora` and `unfuse_lora` add
them to the weights and take them back, and `unload_lora` removes them (`PeftAdapterMixin`).
"""

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LORA_WEIGHT_NAME_SAFE
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mmface.model.packed_modulations import unfuse_modulations
from mmface.model.transformer import MMFaceDiT

ADAPTER = "default"
"""The name of the first LoRA of a network; the others' have a number."""
BASE_KEY = "mmface_base"
"""Key of a LoRA file's metadata: JSON of what its base is, such as its objective."""
_PREFIXES = ("base_model.model.", "transformer.")


class LoraPair(NamedTuple):
    """The update of one linear layer: scale * alpha / rank * up @ down.

    `down` [rank, in] is peft's `lora_A`, `up` [out, rank] its `lora_B`; alpha is the rank where a
    file says nothing. DoRA has a `magnitude` [out] as well: the norms of the updated weight's rows.
    """

    down: Tensor
    up: Tensor
    alpha: float
    magnitude: Tensor | None = None


class LoraFile(NamedTuple):
    """What a file holds: a pair for each layer, and what it says of its base."""

    path: Path
    pairs: Mapping[str, LoraPair]
    base: Mapping[str, str]


def read_lora(path: str | Path) -> dict[str, LoraPair]:
    """Read a LoRA file of peft or diffusers, safetensors, as a pair for each layer.

    Tensors are named after the transformer's layers, such as `blocks.0.image.qkv.lora_A.weight`,
    with or without `transformer.` in front. `path` may be the folder of
    `pytorch_lora_weights.safetensors`. ValueError if they are not pairs of matrices.
    """
    return dict(_read(path).pairs)


def _read(path: str | Path) -> LoraFile:
    path = lora_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"The LoRA {path} cannot be read as safetensors ({error}); other formats are not "
            "taken, as they can run code."
        ) from None
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        layer, _, kind = _without_prefixes(name).rpartition(".lora_")
        if not layer or kind not in _KINDS:
            raise ValueError(
                f"The LoRA {path} has a tensor {name!r}: not lora_A or lora_B. Convert the file to "
                "the names that peft and diffusers write, LAYER.lora_A.weight and .lora_B.weight."
            )
        layers.setdefault(layer, {})[_KINDS[kind]] = tensor
    if not layers:
        raise ValueError(f"The LoRA {path} is empty.")
    alphas = _alphas_of(metadata, path)
    pairs = {layer: _pair(path, layer, parts, alphas) for layer, parts in layers.items()}
    weight_decomposed = {pair.magnitude is not None for pair in pairs.values()}
    if len(weight_decomposed) > 1 or _says_dora(metadata) > weight_decomposed.pop():
        raise ValueError(f"The LoRA {path} is DoRA, but has no magnitude for some of its layers.")
    return LoraFile(path, pairs, _base_of(metadata))


_KINDS = {"A.weight": "down", "B.weight": "up", "magnitude_vector": "magnitude"}


def _pair(
    path: Path, layer: str, parts: Mapping[str, Tensor], alphas: Mapping[str, float]
) -> LoraPair:
    shapes = {kind: list(tensor.shape) for kind, tensor in parts.items()}
    down, up, magnitude = (parts.get(kind) for kind in LoraPair._fields if kind != "alpha")
    if down is None or up is None or not (down.ndim == up.ndim == 2 and len(down) > 0):
        raise ValueError(f"The LoRA {path} has no matching pair for {layer!r}: {shapes}.")
    rows = None if magnitude is None else list(magnitude.shape)
    if len(down) != up.shape[1] or rows not in (None, [len(up)]):
        raise ValueError(f"The LoRA {path} has no matching pair for {layer!r}: {shapes}.")
    if not all(each.is_floating_point() and each.isfinite().all() for each in parts.values()):
        raise ValueError(f"The LoRA {path} has values in {layer!r} that are not finite.")
    return LoraPair(down, up, alphas.get(layer, alphas.get("", float(len(down)))), magnitude)


def lora_file(path: str | Path) -> Path:
    """The file of a LoRA that is named by it or by its folder; FileNotFoundError if none is."""
    file = Path(path) / LORA_WEIGHT_NAME_SAFE if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"The LoRA {file} does not exist.")
    return file


def load_lora(model: MMFaceDiT, path: str | Path, scale: float = 1.0) -> int:
    """Add one LoRA; see `load_loras`. Gives the number of layers that it changes."""
    return load_loras(model, [(path, scale)])


def load_loras(model: MMFaceDiT, chosen: Sequence[tuple[str | Path, float]]) -> int:
    """Add LoRAs with their scales to a model's linear layers; gives how many layers they change.

    The model's own weights are not touched. ValueError if a file is no LoRA, does not fit the
    model, or peft is not installed; then none is added.
    """
    for _, scale in chosen:
        if not math.isfinite(scale):
            raise ValueError(f"The scale of a LoRA must be finite, got {scale}.")
    if ADAPTER in getattr(model, "peft_config", {}):
        raise ValueError("The model has a LoRA already; call its unload_lora() first.")
    files = [_read(path) for path, _ in chosen]
    changed = {name for file in files for name in file.pairs}
    if any(name.startswith("block_modulations.") for name in changed):
        unfuse_modulations(model)
    for file in files:
        _check_fit(model, file)
    names = [ADAPTER, *(f"{ADAPTER}_{number}" for number in range(1, len(files)))]
    for name, file in zip(names, files, strict=False):
        _add(model, file, name)
    if files:
        model.set_adapters(names, [scale for _, scale in chosen])
        model.requires_grad_(False).eval()
    return len(changed)


def _add(model: MMFaceDiT, file: LoraFile, name: str) -> None:
    state, pairs = {}, file.pairs
    for layer, pair in pairs.items():
        for kind, field in _KINDS.items():
            if (tensor := getattr(pair, field)) is not None:
                state[f"{layer}.lora_{kind}"] = tensor
    config = {
        "target_modules": list(pairs),
        "rank_pattern": {layer: len(pair.down) for layer, pair in pairs.items()},
        "alpha_pattern": {layer: pair.alpha for layer, pair in pairs.items()},
        "use_dora": all(pair.magnitude is not None for pair in pairs.values()),
    }
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several are meant
            model.load_lora_adapter(state, prefix=None, adapter_name=name, metadata=config)
    except ImportError:
        raise ValueError('A LoRA needs peft: pip install -e ".[lora]".') from None


def _check_fit(model: MMFaceDiT, file: LoraFile) -> None:
    path, objective = file.path, file.base.get("objective")
    if objective not in (None, model.config.objective):
        raise ValueError(
            f"The LoRA {path} was trained on a model of {objective}, and this one is of "
            f"{model.config.objective}; take its own base{_named(file.base)}."
        )
    # A reference adapter's LoRA may lie around a layer already.
    modules = {n: getattr(m, "base_layer", m) for n, m in model.named_modules()}
    linear = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
    for name, pair in file.pairs.items():
        layer = modules.get(name)
        if not isinstance(layer, nn.Linear):
            raise ValueError(
                f"The LoRA {path} is for a layer {name!r}, which is no linear layer of this "
                f"model; those are such as {', '.join(linear[-3:])}{_named(file.base)}."
            )
        wanted = [layer.out_features, layer.in_features]
        if (found := [len(pair.up), pair.down.shape[1]]) != wanted:
            raise ValueError(
                f"The LoRA {path} is {found} for {name!r}, which is {wanted}{_named(file.base)}."
            )


def _named(base: Mapping[str, str]) -> str:
    return f" (it was trained on {base['name']})" if "name" in base else ""


def _without_prefixes(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _alphas_of(metadata: dict[str, str], path: Path) -> dict[str, float]:
    """Read alpha by layer from diffusers' config; the key "" stands for all other layers."""
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
    if config.get("use_rslora") or not all(map(math.isfinite, alphas.values())):
        raise ValueError(f"The LoRA {path} is of a kind that is not plain LoRA (its config).")
    return alphas


def _says_dora(metadata: Mapping[str, str]) -> bool:
    config = json.loads(metadata.get(LORA_ADAPTER_METADATA_KEY, "{}"))
    return any(value is True for key, value in config.items() if key.endswith("use_dora"))


def _base_of(metadata: Mapping[str, str]) -> dict[str, str]:
    """What our own trainer wrote of the base; nothing of other people's files."""
    try:
        found = json.loads(metadata.get(BASE_KEY, "{}"))
    except (ValueError, RecursionError):
        return {}
    known = found if isinstance(found, dict) else {}
    return {name: text for name, text in known.items() if isinstance(text, str)}
