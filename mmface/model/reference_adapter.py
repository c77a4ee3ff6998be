"""Adapters for reference faces in a network: put in, taken out, saved, loaded.

A file is one safetensors: the tensors of `ReferenceAdapter`, of each block's `SubjectAttention`, of
the LoRA, and of the vision tower where it was trained along; and a description in JSON.
"""

import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mmface.core.files import written_aside
from mmface.core.sources import BrokenModelError, check_finite
from mmface.model.subjects import ReferenceAdapter, SubjectAttention, SubjectSettings
from mmface.model.transformer import Block, MMFaceDiT

LORA = "reference"
"""The name of an adapter's LoRA among those that peft keeps."""
DESCRIPTION_KEY = "mmface_reference_adapter"
VERSION = 1
LAYERS = ("image.qkv", "image.out", "text.qkv", "text.out")
SIZES = ("hidden_size", "depth", "num_heads", "text_dim")
TOLERANCE = 0.02
"""How far, relative, the spread of a base's weights may be from that of the adapter's own base."""


@dataclass(frozen=True)
class AdapterFile:
    """What an adapter's file holds beside the network's tensors.

    Attributes:
        settings: its sizes.
        encoder: the vision tower that it reads references with, as `ReferenceEncoder` describes it.
        encoder_weights: that tower's tensors, if it was trained along; else empty.
    """

    settings: SubjectSettings
    encoder: Mapping[str, Any]
    encoder_weights: Mapping[str, Tensor]


def add_reference_adapter(network: MMFaceDiT, settings: SubjectSettings) -> None:
    """Put a fresh adapter into a network; ValueError if it cannot take one, or has one already."""
    if network.reference is not None:
        raise ValueError("The model has a reference adapter already; unload it first.")
    if not all(isinstance(block, Block) for block in network.blocks):
        raise ValueError(
            f"A {type(network).__name__} takes no reference adapter: its blocks have no text "
            "stream; take an MMFaceDiT."
        )
    config, like = network.config, next(network.parameters())
    width, heads = config.hidden_size, config.num_heads
    placed = {"device": like.device, "dtype": like.dtype}
    network.reference = ReferenceAdapter(width, heads, config.text_dim, settings).to(**placed)
    for block in network.blocks:
        block.added_attention = SubjectAttention(width, heads, settings.rank).to(**placed)
    if settings.lora_rank:
        from peft import LoraConfig  # takes a second, and most samplings never ask for it

        names = [f"blocks.{i}.{name}" for i in range(config.depth) for name in LAYERS]
        names.remove(f"blocks.{config.depth - 1}.text.out")  # which never runs
        rank = settings.lora_rank
        lora = LoraConfig(r=rank, lora_alpha=rank, target_modules=names)
        requires = {name: p.requires_grad for name, p in network.named_parameters()}
        with warnings.catch_warnings():  # of a second LoRA, which a user's may be
            warnings.simplefilter("ignore", UserWarning)
            network.add_adapter(lora, adapter_name=LORA)
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(requires.get(name.replace(".base_layer", ""), True))


def unload_reference_adapter(network: MMFaceDiT) -> None:
    """Take the adapter out, if there is one; the base's own weights were never changed."""
    network.reference = None
    for block in network.blocks:
        if isinstance(block, Block):
            block.added_attention = None
    if LORA in getattr(network, "peft_config", {}):
        if len(network.peft_config) > 1:
            network.delete_adapters(LORA)
        else:
            network.unload_lora()


def train_adapter_alone(network: MMFaceDiT) -> None:
    """Freeze the base's weights, and let the adapter's be trained."""
    own = adapter_tensors(network)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in own)


def adapter_tensors(network: nn.Module) -> dict[str, Tensor]:
    """The adapter's parameters in a network, by their names there."""
    marks = (f".lora_A.{LORA}.", f".lora_B.{LORA}.", ".added_attention.")
    return {
        name: parameter
        for name, parameter in network.named_parameters()
        if name.startswith("reference.") or any(mark in name for mark in marks)
    }


def use_reference_lora(network: MMFaceDiT, used: bool) -> None:
    """Let the adapter's LoRA take part, or not; other LoRAs stay as they are."""
    names = [name for name in getattr(network, "peft_config", {}) if used or name != LORA]
    for module in network.modules():
        if "lora_A" in module._modules:
            layer: Any = module
            if list(layer.active_adapters) != names:
                trainable = {name: p.requires_grad for name, p in layer.named_parameters()}
                layer.set_adapter(names)
                for name, parameter in layer.named_parameters():
                    parameter.requires_grad_(trainable[name])


def base_signature(network: nn.Module) -> list[float]:
    """The spread of some of a network's weights, which tells bases apart in any dtype."""
    named = {name.replace(".base_layer", ""): p for name, p in network.named_parameters()}
    depth = len(network.get_submodule("blocks"))  # type: ignore[arg-type]
    blocks = sorted({0, depth // 2, depth - 1})
    names = [f"blocks.{i}.{part}.weight" for i in blocks for part in ("image.qkv", "text.qkv")]
    wanted = [*names, "patch_embedder.weight", "text_embedder.weight"]
    return [float(named[name].detach().float().std()) for name in wanted]


def save_reference_adapter(
    network: MMFaceDiT,
    path: str | Path,
    encoder: Mapping[str, Any],
    encoder_weights: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a network's adapter; `encoder` describes the vision tower that it reads with."""
    assert network.reference is not None, "the network has no adapter"
    description = {
        "version": VERSION,
        "base": {name: network.config[name] for name in SIZES},
        "signature": base_signature(network),
        "settings": asdict(network.reference.settings),
        "encoder": dict(encoder),
    }
    tensors = {f"network.{name}": p.detach() for name, p in adapter_tensors(network).items()}
    tensors |= {f"encoder.{name}": each for name, each in (encoder_weights or {}).items()}
    tensors = {name: each.to("cpu", dtype).contiguous() for name, each in tensors.items()}
    with written_aside(path) as aside:
        save_file(tensors, aside, {DESCRIPTION_KEY: json.dumps(description, sort_keys=True)})


def load_reference_adapter(network: MMFaceDiT, path: str | Path) -> AdapterFile:
    """Add an adapter of a file to the network that it was trained on.

    FileNotFoundError if there is none; ValueError, with the network as it was, if it is torn, of
    something else, or of another base.
    """
    path = Path(path)
    description, tensors = _read(path)
    try:
        settings = SubjectSettings(**description["settings"])
        base = {name: int(description["base"][name]) for name in SIZES}
        signature = [float(each) for each in description["signature"]]
        encoder = dict(description["encoder"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"The reference adapter {path} has a description that cannot be read ({error}); get "
            "the file again."
        ) from None
    own = {name: network.config.get(name) for name in SIZES}
    if own != base:
        differing = [f"{name} {base[name]}, not {own[name]}" for name in SIZES if own != base]
        raise ValueError(
            f"The reference adapter {path} is for a model of {', '.join(differing)}; load it with "
            "the pipeline that it was trained on."
        )
    found = base_signature(network)
    pairs = zip(signature, found, strict=False)
    if len(signature) != len(found) or any(
        not math.isclose(a, b, rel_tol=TOLERANCE) for a, b in pairs
    ):
        raise ValueError(
            f"The reference adapter {path} was trained on another model of the same sizes; load it "
            "with the pipeline that it was trained on."
        )
    add_reference_adapter(network, settings)
    wanted = adapter_tensors(network)
    given = {n.removeprefix("network."): t for n, t in tensors.items() if n.startswith("network.")}
    shapes = {name: tensor.shape for name, tensor in given.items()}
    if shapes != {name: tensor.shape for name, tensor in wanted.items()}:
        odd = sorted(shapes.keys() ^ wanted.keys()) or sorted(
            name for name in shapes if shapes[name] != wanted[name].shape
        )
        unload_reference_adapter(network)
        raise ValueError(
            f"The reference adapter {path} does not have the tensors that it describes (first "
            f"{odd[0]}); get the file again."
        )
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(given[name])
    use_reference_lora(network, False)
    network.requires_grad_(False).eval()
    weights = {n.removeprefix("encoder."): t for n, t in tensors.items() if n[:8] == "encoder."}
    return AdapterFile(settings, encoder, weights)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise FileNotFoundError(f"The reference adapter {path} does not exist.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"The reference adapter {path} cannot be read as safetensors ({error}); get it again."
        ) from None
    try:
        description = json.loads(metadata[DESCRIPTION_KEY])
        version = description["version"]
    except (KeyError, TypeError, ValueError, RecursionError):
        raise ValueError(
            f"{path} is no reference adapter; give a file that a training with "
            "experiment=reference_256 or the like exported."
        ) from None
    if version != VERSION:
        raise ValueError(f"The reference adapter {path} is of version {version}, not {VERSION}.")
    try:
        check_finite(tensors, path)
    except BrokenModelError as error:
        raise ValueError(f"The reference adapter {error}") from None
    return description, tensors
