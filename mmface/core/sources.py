"""Finding and loading models by folder, built-in name or hub id, and in which precision.

Weights and configs that are incomplete, not finite or of wrong shapes are refused. torch is
imported only when weights are read.

The precision `auto` is what is fastest at equal quality: bfloat16 on a GPU that has it, float16 on
any other GPU, float32 on a CPU. A CPU with bfloat16 units computes in it only if asked to; one
without them emulates it, which is slower than float32.
"""

import json
import os
import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from safetensors import SafetensorError, safe_open

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Network = TypeVar("Network")

ASSETS = Path(__file__).parent.parent / "assets"
"""Holds the built-in models, each a folder."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
AUTO = "auto"
FLOATS = ("float32", "bfloat16", "float16")
"""Precisions by name: one that is decided, and those that may be asked for."""

_FLOATS = {"F64", "F32", "F16", "BF16"}
_COUNTERS = ("position_ids", "num_batches_tracked")
"""Ends of the names of integer tensors that weights files may hold and nothing uses."""

_NUM_NAMED = 3
_NONE: Mapping[str, Path] = {}


class UnusableModelError(OSError, ValueError):
    """A model exists but cannot be loaded; the message names it, the cause and the remedy."""


class BrokenModelError(ValueError):
    """A file or folder cannot be used; the message says which, why and what to do."""


def builtin_pipelines() -> dict[str, Path]:
    """The folders of the built-in pipelines by name."""
    return {path.parent.name: path.parent for path in sorted(ASSETS.glob("*/model_index.json"))}


def unknown_builtin(kind: str, name: str, builtin: Mapping[str, Path]) -> str:
    """Say that there is no built-in model of this name, and which there are."""
    return f"No built-in {kind} is named {name!r}; there are: {', '.join(builtin) or 'none'}."


@contextmanager
def opened(
    kind: str, name: str | Path, builtin: Mapping[str, Path] = _NONE, parts: str = ""
) -> Iterator[str]:
    """Find a model by folder, built-in name or hub id, and explain a failed load in one line.

    A folder goes before a built-in name. `kind`, such as "face parser", and `parts`, what `hf
    download` needs beside the hub id, are for messages. UnusableModelError if the block cannot load
    it.
    """
    name = str(name)
    folder = Path(name) if Path(name).exists() else builtin.get(name)
    if folder is None:
        _check_hub_id(kind, name, builtin, parts)
    try:
        yield name if folder is None else str(folder)
    except UnusableModelError:
        raise  # a part's own block has named it
    except OSError as error:
        if folder is None and not _is_cached(name):
            raise FileNotFoundError(_absent(kind, name, parts, error)) from error
        raise UnusableModelError(_broken(kind, name, error)) from error
    except Exception as error:
        # Loaders and the constructors behind them raise whatever an odd config makes them raise.
        raise UnusableModelError(_broken(kind, name, error)) from error


def _broken(kind: str, name: str, error: Exception) -> str:
    reason = " ".join(str(error).split()).partition(" If you want to instead")[0]
    if not isinstance(error, ValueError | OSError):
        reason = f"its config may be damaged, get it again ({type(error).__name__}: {reason})"
    return f"The {kind} {name} cannot be loaded: {reason:.400}"


def _check_hub_id(kind: str, name: str, builtin: Mapping[str, Path], parts: str) -> None:
    """Raise FileNotFoundError if a name that is no folder cannot be loaded from the hub either."""
    if builtin and "/" not in name and os.sep not in name:
        raise FileNotFoundError(unknown_builtin(kind, name, builtin))
    if not _HUB_ID.fullmatch(name):
        raise FileNotFoundError(f"The {kind} {name} does not exist; give a folder or a hub id")
    # Asked here, since transformers makes an empty tokenizer of a name that nobody has.
    if _is_offline() and not _is_cached(name):
        raise FileNotFoundError(_absent(kind, name, parts))


def _absent(kind: str, name: str, parts: str, error: Exception | None = None) -> str:
    said = type(error.__cause__ or error.__context__ or error).__name__ if error else ""
    if "RepositoryNotFound" in said or "GatedRepo" in said:
        why = "the hub has none of this name either, or wants a login (hf auth login)"
    elif _is_offline():
        why = "as a hub id it is not in the cache and offline (HF_HUB_OFFLINE)"
    else:
        why = "as a hub id it is not in the cache, and the hub cannot be reached"
    how = f"hf download {name} {parts}".strip()
    return f"The {kind} {name} does not exist as a folder; {why}: {how}, or give a folder"


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _is_cached(name: str) -> bool:
    """Whether something of a repository was downloaded before."""
    from huggingface_hub import constants

    snapshots = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}" / "snapshots"
    return any(snapshots.glob("*/*"))


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object, or raise BrokenModelError."""
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise BrokenModelError(f"{path} does not exist; copy the whole folder again") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BrokenModelError(f"{path} is not JSON ({error}); copy it again") from None
    if not isinstance(found, dict):
        raise BrokenModelError(f"{path} is not a JSON object; copy it again")
    return found


def load_network(
    network: type[Network], source: str, subfolder: str = "", **options: Any
) -> Network:
    """Load a network of diffusers or transformers from safetensors, in eval mode.

    `source` is a folder or a hub id; `options` are those of `from_pretrained`. BrokenModelError if
    tensors are missing, unknown, of wrong shapes, integers or not finite, or if the config is no
    JSON object.
    """
    folder = Path(source, subfolder)
    is_local = Path(source).is_dir()
    if is_local and "quantization_config" not in read_object(folder / "config.json"):
        for path in sorted(folder.glob("*.safetensors")):
            _check_dtypes(path)
    where: dict[str, Any] = {"subfolder": subfolder} if subfolder else {}
    if network.__module__.startswith("transformers."):
        where["ignore_mismatched_sizes"] = True  # they are listed then, and refused below
    loaded, found = cast(Any, network).from_pretrained(
        source, output_loading_info=True, use_safetensors=True, **where, **options
    )
    for fault in ("missing", "unexpected", "mismatched"):
        keys = found.get(f"{fault}_keys", ())
        names = sorted(key if isinstance(key, str) else key[0] for key in keys)
        names = [name for name in names if not name.endswith(_COUNTERS)]
        if names:
            said = "of another shape" if fault == "mismatched" else fault
            raise BrokenModelError(f"{folder}: {_listed(names)} {said}; {_again(network)}")
    check_finite(loaded.state_dict(), folder)
    return cast(Network, loaded.eval())


def read_weights(path: str | Path) -> "dict[str, Tensor]":
    """Read a state dict from safetensors, or from a .pth without running its pickled code.

    BrokenModelError if that fails, or if values are not finite.
    """
    import torch

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, KeyError) as error:
        reason = str(error).split(". ")[0].splitlines()[0]
        raise BrokenModelError(f"{path} cannot be read as weights ({reason})") from None
    if not isinstance(found, dict) or not all(isinstance(v, torch.Tensor) for v in found.values()):
        raise BrokenModelError(f"{path} holds no state dict of tensors")
    check_finite(found, path)
    return found


def check_finite(weights: "dict[str, Tensor]", source: Path) -> None:
    """Raise BrokenModelError if a tensor holds NaN or infinity."""
    odd = [name for name, values in weights.items() if not _is_finite(values)]
    if odd:
        raise BrokenModelError(
            f"{source}: {_listed(odd)} not finite (NaN or infinity); take an earlier checkpoint, "
            "or get the file again"
        )


def _is_finite(values: "Tensor") -> bool:
    if values.is_meta or not values.is_floating_point() or not values.numel():
        return True
    if values.itemsize < 2:  # float8 has no minimum
        values = values.float()
    return all(bool(end.isfinite()) for end in values.aminmax())


def _check_dtypes(path: Path) -> None:
    try:
        with safe_open(path, framework="pt") as file:
            dtypes = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise BrokenModelError(
            f"{path} cannot be read as safetensors ({error}); get it again"
        ) from None
    odd = {name: dtype for name, dtype in dtypes.items() if dtype not in _FLOATS}
    if names := [name for name in sorted(odd) if not name.endswith(_COUNTERS)]:
        raise BrokenModelError(
            f"{path}: {_listed(names)} of dtype {odd[names[0]]}; save the weights as float32, "
            "float16 or bfloat16"
        )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NUM_NAMED} more" if len(names) > _NUM_NAMED else ""
    return f"{', '.join(names[:_NUM_NAMED])}{more} {'are' if len(names) > 1 else 'is'}"


def _again(network: type) -> str:
    return f"these are not the weights of the {network.__name__} in config.json, get both again"


def default_device() -> "torch.device":
    """The GPU if there is one, else the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def has_bfloat16(device: "torch.device") -> bool:
    """Whether a device has units for bfloat16, and does not emulate it."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, probe, bool)() for probe in probes)


def dtype_name(name: str, device: "torch.device | None" = None) -> str:
    """Give the name of a dtype, `auto` decided for a device: None is the default one.

    ValueError for a name that is neither `auto` nor one of `FLOATS`.
    """
    if name != AUTO:
        if name not in FLOATS:
            raise ValueError(f"{name!r} is not one of {', '.join((AUTO, *FLOATS))}")
        return name
    device = device or default_device()
    if device.type != "cuda":
        return "float32"
    return "bfloat16" if has_bfloat16(device) else "float16"


def dtype_named(name: str, device: "torch.device | None" = None) -> "torch.dtype":
    """Give the dtype of a name, as `dtype_name` decides it."""
    import torch

    found: torch.dtype = getattr(torch, dtype_name(name, device))
    return found


def allow_tf32(allowed: bool = True) -> None:
    """Let a GPU round the factors of float32 products to 10 bits of mantissa, or forbid it.

    For runs whose precision is not asked to be float32: what stays float32 beside half precision
    is then as fast. A CPU is not touched.
    """
    import torch

    # The older of torch's two interfaces, which its compiler still reads.
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


@contextmanager
def tf32_allowed(allowed: bool = True) -> Iterator[None]:
    """Allow or forbid TF32 inside, and restore what held before."""
    import torch

    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    allow_tf32(allowed)
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
