"""Weights and configs that somebody brought: whole, finite and of the right shapes, or refused."""

import json
import pickle
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

_FLOATS = {"F64", "F32", "F16", "BF16"}
_COUNTERS = ("position_ids", "num_batches_tracked")
"""Ends of the names of whole numbers in weights files, which nothing is computed from."""

_NUM_NAMED = 3

Network = TypeVar("Network", bound=nn.Module)


class BrokenModelError(ValueError):
    """What was brought cannot be used; the message says what, why and what to do."""


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
    """Load a network of diffusers or transformers from safetensors; nothing is left at random.

    Args:
        network: Its class.
        source: A folder or a hub id.
        subfolder: The folder inside it.
        **options: For `from_pretrained`.

    Returns:
        The network, in eval mode.

    Raises:
        BrokenModelError: If tensors are missing, unknown, of other shapes, of whole numbers or not
            finite, or if the config is no JSON object.
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


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from safetensors, or from a .pth without running what is pickled in it.

    BrokenModelError if it cannot be read so, or has values that are not finite.
    """
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
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise BrokenModelError(f"{path} holds no state dict of tensors")
    check_finite(found, path)
    return found


def check_finite(weights: dict[str, Tensor], source: Path) -> None:
    """Raise BrokenModelError if a tensor holds NaN or infinity."""
    odd = [name for name, values in weights.items() if not _is_finite(values)]
    if odd:
        raise BrokenModelError(
            f"{source}: {_listed(odd)} not finite (NaN or infinity); take an earlier checkpoint, "
            "or get the file again"
        )


def _is_finite(values: Tensor) -> bool:
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


def _again(network: type[nn.Module]) -> str:
    return f"these are not the weights of the {network.__name__} in config.json, get both again"
