"""`python -m mmface.core.environment`: versions and hardware as one block, for a bug report."""

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, requires, version

PACKAGE = "mmface"


def package_versions() -> dict[str, str]:
    """Give the version of this package and of all that it may use; "-" if not installed."""
    try:
        required = requires(PACKAGE) or []
    except PackageNotFoundError:
        required = []
    # A requirement is "name>=1.2" or "name[extra]>=1.2; extra == 'eval'".
    names = {re.split(r"[^\w.-]", each, maxsplit=1)[0] for each in required}
    found = {}
    for name in (PACKAGE, *sorted(names)):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "-"
    return found


def hardware() -> dict[str, str]:
    """Describe processor, memory and GPUs, and the number formats that each computes in."""
    import torch

    cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    found = {
        "CPU": f"{platform.machine()}, {cores}, {torch.backends.cpu.get_cpu_capability()}",
        "oneDNN": str(torch.backends.mkldnn.is_available()),
    }
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        found["memory"] = f"{size / 1e9:.0f} GB"
    found["GPUs"] = str(torch.cuda.device_count())
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        with torch.cuda.device(index):
            dtypes = "float32, float16" + ", bfloat16" * torch.cuda.is_bf16_supported(False)
        found[f"GPU {index}"] = (
            f"{gpu.name}, {gpu.total_memory / 1e9:.0f} GB, "
            f"compute {gpu.major}.{gpu.minor}, {dtypes}"
        )
    found["CUDA, cuDNN"] = f"{torch.version.cuda}, {torch.backends.cudnn.version()}"
    return found


def describe_environment() -> str:
    """Give everything as lines of text."""
    lines = {"Python": platform.python_version(), "system": platform.platform()}
    lines |= package_versions() | hardware()
    return "\n".join(f"{name:<20}{value}" for name, value in lines.items())


if __name__ == "__main__":
    print(describe_environment())
