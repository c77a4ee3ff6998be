"""All families of measurements, and the run of some of them: what `scripts/benchmark.py` does."""

import platform
import re
import sys
import warnings
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path

import diffusers
import torch
import transformers

import mmface
from mmface.benchmarks.attention import measure_attention
from mmface.benchmarks.counting import measure_counts, measure_parity
from mmface.benchmarks.measuring import Report
from mmface.benchmarks.network import (
    measure_ceilings,
    measure_forward,
    measure_growth,
    measure_training,
)
from mmface.benchmarks.phases import measure_phases
from mmface.benchmarks.reading import measure_encoding, measure_loading
from mmface.benchmarks.sampling import measure_fewer, measure_sampling
from mmface.benchmarks.subjects import SIZES, Bench, load_reference

FAMILIES: dict[str, Callable[[Bench], None]] = {
    "phases": measure_phases,
    "count": measure_counts,
    "parity": measure_parity,
    "data": measure_loading,
    "encode": measure_encoding,
    "sample": measure_sampling,
    "train": measure_training,
    "forward": measure_forward,
    "attention": measure_attention,
    "growth": measure_growth,
    "fewer": measure_fewer,
}
"""The families in the order of a whole run: what matters most if time runs out stands first."""

NOTES = (
    "A ratio is the reference's time over ours: the median of pairs measured in turn in one "
    "process, by its CPU time, and in brackets the quartiles of the pairs.",
    "Shares count the FLOPs that are useful, 3 forward passes for a training step, and are of the "
    "fastest large product on the same machine; the reference's share is of the same rate.",
    "Training is without the frozen text encoder, sampling without decoding. Fewer steps compare "
    "with 50 Euler steps of the reference.",
)
"""What every table says of its figures."""

REFERENCE = Path(__file__).parent.parent.parent / "tests" / "plain_reference.py"


def facts(size: str, device: torch.device) -> dict[str, str | int]:
    """What a reader of the figures must know of the machine and the libraries."""
    named = {"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    built = torch.__config__.show()
    onednn = re.search(r"MKL-DNN (v[\d.]+)", built)
    blas = re.search(r"BLAS_INFO=(\w+)", built)
    return {
        "mmface": mmface.__version__,
        "size": size,
        "device": str(device),
        **named,
        "cpu": cpu_kind(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "torch_threads": torch.get_num_threads(),
        "blas": blas[1] if blas else "unknown",
        "onednn": onednn[1] if onednn else "none",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
        "diffusers": diffusers.__version__,
    }


def cpu_kind(path: Path = Path("/proc/cpuinfo")) -> str:
    """Name, family and model of the processor, as Linux tells them; elsewhere its name alone."""
    if not path.is_file():
        return platform.processor() or platform.machine()
    first = path.read_text(encoding="utf-8").partition("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    told = {name.strip(): value.strip() for name, _, value in pairs}
    if "cpu family" not in told:
        return platform.machine()
    return f"{told['model name']}, family {told['cpu family']}, model {told['model']}"


def run_suite(
    families: Sequence[str],
    size: str,
    device: str,
    out: Path | None,
    traces: Path | None = None,
    minutes: float = 9.5,
    reference: Path = REFERENCE,
    only: str = "",
) -> Report:
    """Run families of measurements; a measurement that fails is reported as such.

    `out` is written anew after every measurement. After `minutes` none is begun. `only` is a
    regular expression that the cases must contain.
    """
    choices: list[tuple[str, str, Collection[str]]] = [
        *(("family", family, FAMILIES) for family in families),
        ("size", size, SIZES),
        ("device", device, ("cpu", "cuda")),
    ]
    for kind, name, known in choices:
        if name not in known:
            raise ValueError(f"There is no {kind} {name!r}; choose one of {', '.join(known)}.")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("torch sees no CUDA device; give --device cpu.")
    warnings.filterwarnings("ignore")
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    place, threads = torch.device(device), torch.get_num_threads()
    torch.set_num_threads(1)  # process CPU time says nothing of several threads at work
    try:
        told = {**facts(size, place), "notes": NOTES}
        report = Report(out, told, limit_s=60 * minutes, only=only)
        bench = Bench(SIZES[size], place, load_reference(reference), report, traces)
        measure_ceilings(bench)
        for family in families:
            print(f"# {family}", file=sys.stderr)
            # Setting up a family can fail, too, before its first measurement.
            report.attempt(family, partial(FAMILIES[family], bench))
    finally:
        torch.set_num_threads(threads)
    return report
