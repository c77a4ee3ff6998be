"""Exactness compared with the reference, and counts of operators: nothing that is timed."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.nn.functional import scaled_dot_product_attention
from torch.optim import AdamW
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from mmface.benchmarks.measuring import relative_error
from mmface.benchmarks.network import (
    SCRIPT,
    WAYS_OF_TRAINING,
    OwnTraining,
    gradient_error,
    training_batch,
)
from mmface.benchmarks.subjects import (
    Bench,
    compiled_twin,
    forward_flops,
    fused_twin,
    make_inputs,
    on_meta,
    run_reference,
    twin,
)
from mmface.model.packed_modulations import fuse_modulations
from mmface.model.transformer import MMFaceDiT

TOY = {"hidden_size": 16, "num_heads": 2, "text_dim": 8, "latent_channels": 4}
"""A width at which the host's work is all that there is; the depth stays the paper's 28."""


MOVES_NOTHING = ("aten._unsafe_view.default", "aten.detach.default")
"""Operators that are views but do not say so."""


class OperatorCount(TorchDispatchMode):
    """Counts the ATen operators that reach the dispatcher, by name; `views` only rename memory."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.views = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Count, and go on."""
        self.calls[str(func)] += 1
        self.views += func.is_view or str(func) in MOVES_NOTHING
        return func(*args, **(kwargs or {}))


class OneAttention(TorchFunctionMode):
    """Makes attention one operator on the meta device, too, as it is wherever it computes."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run attention without a mask as one operator."""
        named = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
        if func is scaled_dot_product_attention and named["query"].is_meta:
            parts = (named[name] for name in ("query", "key", "value"))
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*parts)[0]
        return func(*args, **(kwargs or {}))


SYNCHRONIZING = ("aten._local_scalar_dense.default", "aten.nonzero.default", "aten.equal.default")
"""Operators for whose result the host waits."""


def count_operators(work: Callable[[], Any]) -> Counter[str]:
    """Count the ATen operators of one call; on the meta device, those of any other."""
    with OneAttention(), OperatorCount() as count:
        work()
    return count.calls


def host_syncs(work: Callable[[], Any]) -> int:
    """Count the operators of one call for which the host waits for the device."""
    calls = count_operators(work)
    return sum(calls[name] for name in SYNCHRONIZING)


@contextlib.contextmanager
def forbidden_syncs(device: torch.device) -> Iterator[None]:
    """On a GPU, let whatever makes the host wait raise."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@torch.no_grad()
def count_compilation(model: MMFaceDiT, inputs: Mapping[str, Tensor]) -> dict[str, int]:
    """Count a forward pass's `graph_breaks`, `recompiles` and `graphs`.

    `recompiles` are of three more calls of the same shape; `graphs` of two shapes.
    """
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(model, backend="eager", dynamic=False)
    compiled(**inputs)
    first = counters["stats"]["unique_graphs"]
    for _ in range(3):
        compiled(**{name: x.clone() for name, x in inputs.items()})
    recompiles = counters["stats"]["unique_graphs"] - first
    compiled(**{name: torch.cat((x, x)) for name, x in inputs.items()})
    graphs, breaks = counters["stats"]["unique_graphs"], counters["graph_break"].total()
    torch._dynamo.reset()
    return {"graph_breaks": breaks, "recompiles": recompiles, "graphs": graphs}


def measure_counts(bench: Bench) -> None:
    """Operators, graph breaks, recompilations and synchronizations of a 28-block forward pass."""
    model = bench.model(torch.float32, **{**TOY, "depth": 28})
    plain, inputs = bench.plain(model), make_inputs(model, 4, 2, num_text=5)

    @torch.no_grad()
    def operators() -> dict[str, float]:
        network = on_meta(model)
        shapes = {name: x.to("meta") for name, x in inputs.items()}
        network(**shapes)  # makes the rotation table
        own = count_operators(lambda: network(**shapes)).total()
        fuse_modulations(network)
        return {
            "own_operators": own,
            "fused_operators": count_operators(lambda: network(**shapes)).total(),
        }

    @torch.no_grad()
    def host_time() -> dict[str, float]:
        return bench.compare(
            "count host", lambda: run_reference(plain, inputs), lambda: model(**inputs)
        )

    @torch.no_grad()
    def syncs() -> dict[str, int]:
        model(**inputs)
        with forbidden_syncs(bench.device):
            return {"host_syncs": host_syncs(lambda: model(**inputs))}

    def work() -> dict[str, Any]:
        sizes = {**bench.size.model, "text_rope": "none"}
        with torch.device("meta"):
            network = MMFaceDiT(**sizes)
            values = {"parameters": sum(p.numel() for p in network.parameters())}
            for side in bench.size.sides:
                values[f"gflops_{8 * side}px"] = forward_flops(network, side, 1) / 1e9
        return values

    bench.report.measure("count", "28 blocks, operators", operators)
    bench.report.measure("count", "28 blocks of width 16, the host's time", host_time)
    bench.report.measure("count", "28 blocks, host syncs", syncs)
    # Three blocks hold all that twenty-eight do, and are traced in a tenth of the time.
    short = bench.model(torch.float32, **{**TOY, "depth": 3})
    bench.report.measure("count", "torch.compile", partial(count_compilation, short, inputs))
    bench.report.measure("count", "parameters, FLOPs of a sample's forward", work)


def measure_parity(bench: Bench) -> None:
    """Relative errors of each way of running beside the reference, in float32 and float64."""
    for dtype, name, way in (
        (torch.float64, "eager", twin),
        (torch.float32, "eager", twin),
        (torch.float32, "fused", fused_twin),
        (torch.float32, "compiled", compiled_twin),
    ):
        run = partial(_forward_error, bench, dtype, way)
        bench.report.measure("parity", f"forward {name} {dtype}", run)
    for name, prepare in WAYS_OF_TRAINING.items():
        run = partial(_gradient_error, bench, prepare)
        bench.report.measure("parity", f"gradients {name} torch.float32", run)


@torch.no_grad()
def _forward_error(
    bench: Bench, dtype: torch.dtype, way: Callable[[MMFaceDiT], MMFaceDiT]
) -> dict[str, float]:
    model = bench.model(dtype)
    inputs = make_inputs(model, bench.size.sides[0], 2)
    expected = run_reference(bench.plain(model), inputs)
    return {"relative_error": relative_error(way(model)(**inputs), expected)}


def _gradient_error(bench: Bench, prepare: Callable[[MMFaceDiT], None]) -> dict[str, float]:
    model = bench.model(torch.float32, depth=2)
    plain = bench.plain(model).requires_grad_(True)
    prepare(model)
    optimizer = partial(AdamW, lr=1e-4)
    own = OwnTraining(model, optimizer)
    samples = training_batch(model, bench.size.sides[0], 2)
    loss = own.step(samples)
    expected = bench.reference.TRAINING[SCRIPT](plain, optimizer).step(samples)
    return {
        "loss_error": abs(loss / expected - 1),
        "gradient_error": gradient_error(own, plain),
    }
