"""Which numbers a network computes with: decided here for sampling, evaluation and precomputing.

`auto` is what is fastest at equal quality: bfloat16 on a GPU that has it, float16 on any other GPU,
float32 on a CPU. A CPU with bfloat16 units computes in it only if asked to; one without them
emulates it, which is slower than float32.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

AUTO = "auto"
FLOATS = ("float32", "bfloat16", "float16")


def default_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device has units for bfloat16, and does not emulate it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, probe, bool)() for probe in probes)


def dtype_name(name: str, device: torch.device | None = None) -> str:
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


def dtype_named(name: str, device: torch.device | None = None) -> torch.dtype:
    """Give the dtype of a name, as `dtype_name` decides it."""
    found: torch.dtype = getattr(torch, dtype_name(name, device))
    return found


def allow_tf32(allowed: bool = True) -> None:
    """Let a GPU round the factors of float32 products to 10 bits of mantissa, or forbid it.

    For runs whose precision is not asked to be float32: what stays float32 beside half precision
    is then as fast. A CPU is not touched.
    """
    # The older of torch's two interfaces, which its compiler still reads.
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


@contextmanager
def tf32_allowed(allowed: bool = True) -> Iterator[None]:
    """Allow or forbid TF32 inside, and restore what held before."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    allow_tf32(allowed)
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
