"""The network alone: ceilings of the device, forward passes, training steps, growth with size."""

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from mmface.benchmarks.measuring import flops, relative_error, seconds
from mmface.benchmarks.subjects import (
    Bench,
    compiled_twin,
    forward_flops,
    fused_twin,
    make_inputs,
    randomize,
    run_reference,
    twin,
)
from mmface.model import released
from mmface.model.recomputation import selective_checkpoint
from mmface.model.transformer import Linear, MMFaceDiT
from mmface.objectives.losses import SquaredError
from mmface.objectives.objective import MinSnrDiffusion, Objective, RectifiedFlow
from mmface.sampling.acceleration import CapturedDenoise
from mmface.training.optimization import ExponentialAverage

GRADIENT_CLIP = 0.5


def measure_ceilings(bench: Bench) -> None:
    """Measure what the device can do at best: large matrix products, and a large copy.

    On a CPU, float32 products are measured by torch's BLAS and by oneDNN, which the network's
    layers choose where it is faster; the share of every other measurement is of the faster one.
    """
    side = 8192 if bench.on_gpu else 1024
    copied = 8e9 if bench.on_gpu else 0.25e9

    def product(layer: type[nn.Linear], dtype: torch.dtype) -> Mapping[str, float]:
        factor = layer(side, side, bias=False, device=bench.device, dtype=dtype)
        other = torch.randn(side, side, device=bench.device, dtype=dtype)
        with torch.no_grad():
            best = min(seconds(lambda: factor(other), bench.device) for _ in range(12))
        rate = 2 * side**3 / best
        bench.peak_flops[dtype] = max(rate, bench.peak_flops.get(dtype, 0.0))
        return {"tflops": rate / 1e12}

    def copy() -> Mapping[str, float]:
        source = torch.ones(int(copied / 4), device=bench.device)
        target = torch.empty_like(source)
        best = min(seconds(lambda: target.copy_(source), bench.device) for _ in range(5))
        return {"terabytes_per_s": 2 * copied / best / 1e12}  # read and written

    products: list[tuple[str, type[nn.Linear], torch.dtype]] = [
        ("float32", nn.Linear, torch.float32),
        ("bfloat16", nn.Linear, torch.bfloat16),
    ]
    if not bench.on_gpu:
        products.insert(1, ("float32, the network's layers", Linear, torch.float32))
    for name, layer, dtype in products:
        case = f"product of {side} x {side}, {name}"
        bench.report.measure("ceiling", case, partial(product, layer, dtype))
    bench.report.measure("ceiling", f"copy of {copied / 1e9:g} GB", copy)


PEAKS = {torch.float32: "float32_peak", torch.bfloat16: "bfloat16_peak"}


def share_of_peak(bench: Bench, work: float, values: Mapping[str, float]) -> dict[str, float]:
    """TFLOP/s of timed work and its shares of the measured rates of products, and the reference's.

    `work` counts the FLOPs of what is useful, the same for both.
    """
    own, reference = (1e3 * work / values[name] for name in ("own_ms", "reference_ms"))
    shares = {"tflops": own / 1e12}
    for dtype, peak in bench.peak_flops.items():
        shares[f"of_{PEAKS[dtype]}"] = own / peak
    if bench.dtype in bench.peak_flops:
        shares[f"reference_of_{PEAKS[bench.dtype]}"] = reference / bench.peak_flops[bench.dtype]
    return shares


def _use_blas(model: MMFaceDiT) -> None:
    """Let torch's BLAS compute a model's products, as it does the reference's."""
    layers: list[Any] = [module for module in model.modules() if type(module) is Linear]
    for layer in layers:
        layer.__class__ = nn.Linear


def blas_twin(model: MMFaceDiT) -> MMFaceDiT:
    """A twin with the reference's matrix products, so that all the rest is compared."""
    other = twin(model)
    _use_blas(other)
    return other


def captured_twin(model: MMFaceDiT) -> MMFaceDiT:
    """A fused twin with compiled blocks, in one CUDA graph."""
    other = compiled_twin(model)
    other.__dict__["denoise"] = CapturedDenoise(other)
    return other


def ways_of_running(bench: Bench) -> dict[str, Callable[[MMFaceDiT], MMFaceDiT]]:
    """The ways to run a model for inference that the device has, each on top of the one before."""
    ways: dict[str, Callable[[MMFaceDiT], MMFaceDiT]] = {
        "eager": twin,
        "fused": fused_twin,
        "compiled": compiled_twin,
    }
    return ways | ({"captured": captured_twin} if bench.on_gpu else {"products by BLAS": blas_twin})


def measure_forward(bench: Bench) -> None:
    """Forward passes of each size and batch, in each way of running."""
    for side in bench.size.sides:
        for batch in bench.size.batches:
            for name, way in ways_of_running(bench).items():
                case = f"{8 * side} px batch {batch} {name}"
                bench.report.measure(
                    "forward", case, partial(_forward, bench, case, side, batch, way)
                )
            case = f"{8 * side} px batch {batch}, SD3Transformer2DModel of diffusers"
            bench.report.measure("forward", case, partial(_forward_sd3, bench, case, side, batch))


@torch.no_grad()
def _forward(
    bench: Bench, case: str, side: int, batch: int, way: Callable[[MMFaceDiT], MMFaceDiT]
) -> dict[str, float]:
    model, plain = bench.models
    own, inputs = way(model), make_inputs(model, side, batch)

    def reference() -> Tensor:
        with bench.autocast():
            return run_reference(plain, inputs)

    values = bench.compare(f"forward {case}", reference, lambda: own(**inputs))
    error = relative_error(own(**inputs), reference())
    work = forward_flops(model, side, batch)
    return {**values, **share_of_peak(bench, work, values), "relative_error": error}


def sd3_of(model: MMFaceDiT, side: int) -> SD3Transformer2DModel:
    """The transformer of Stable Diffusion 3, of the same width, depth, heads and tokens."""
    config = model.config
    with torch.device(model.device):
        sd3 = SD3Transformer2DModel(
            sample_size=side,
            patch_size=config.patch_size,
            in_channels=2 * config.latent_channels,
            num_layers=config.depth,
            attention_head_dim=model.head_dim,
            num_attention_heads=config.num_heads,
            joint_attention_dim=config.text_dim,
            caption_projection_dim=config.hidden_size,
            pooled_projection_dim=config.text_dim,
            out_channels=config.latent_channels,
            pos_embed_max_size=side // config.patch_size,
        )
    return nn.Module.to(randomize(sd3), model.dtype).eval()


@torch.no_grad()
def _forward_sd3(bench: Bench, case: str, side: int, batch: int) -> dict[str, float]:
    model, plain = bench.models
    inputs, sd3 = make_inputs(model, side, batch), sd3_of(model, side)
    latents = torch.cat((inputs["noisy_latents"], inputs["condition_latents"]), dim=1)
    texts = {"pooled_projections": inputs["pooled_text"]}
    texts["encoder_hidden_states"] = inputs["text_tokens"]

    def other() -> Any:
        return sd3(latents, timestep=inputs["timestep"], return_dict=False, **texts)

    def reference() -> Tensor:
        with bench.autocast():
            return run_reference(plain, inputs)

    values = bench.compare(f"forward {case}", reference, other)
    shares = share_of_peak(bench, flops(other), values)  # not of the reference's work
    return {**values, **{k: v for k, v in shares.items() if not k.startswith("reference")}}


class OwnTraining:
    """The training step of this package on one process, without the loader and the encoders."""

    def __init__(
        self,
        model: MMFaceDiT,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
        objective: Objective | None = None,
    ) -> None:
        self.model, self.autocast = model.train(), autocast
        self.objective = objective or RectifiedFlow()
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = optimizer(self.parameters)
        self.average = ExponentialAverage(model, decay=0.9999)

    def step(self, batch: Mapping[str, Tensor]) -> float:
        """Make one step and return its loss."""
        corrupted = self.objective.corrupt(batch["latents"], batch["noise"], batch["uniform"])
        names = ("text_tokens", "pooled_text", "modality")
        text = {name: batch[name] for name in names}
        self.optimizer.zero_grad()
        with self.autocast():
            prediction = self.model(
                corrupted.noisy_latents, batch["condition"], corrupted.timestep, **text
            )
        loss = self.objective.losses(prediction, corrupted)["loss"].mean()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, GRADIENT_CLIP)
        if torch.isfinite(norm):
            self.optimizer.step()
        self.average.update()
        return float(loss.detach())

    def released_gradients(self) -> dict[str, Tensor]:
        """The last step's clipped gradients under the released names; zeros for frozen ones."""
        gradients = {
            name: torch.zeros_like(p) if p.grad is None else p.grad
            for name, p in self.model.named_parameters()
        }
        return released.to_released(gradients, len(self.model.blocks))


def gradient_error(own: OwnTraining, plain: nn.Module) -> float:
    """Largest difference of any gradient over the largest gradient of the reference.

    The null vector and the last block's unused text weights have no gradient on either side.
    """
    ours = own.released_gradients()
    pairs = [(ours[n], p.grad) for n, p in plain.named_parameters() if p.grad is not None]
    difference = max(float((a - b).abs().max()) for a, b in pairs)
    return difference / max(float(b.abs().max()) for _, b in pairs)


def training_batch(model: MMFaceDiT, side: int, batch: int) -> dict[str, Tensor]:
    """A float32 batch of latents, their noise and time, condition and text features."""
    inputs = make_inputs(model, side, batch)
    return {
        "latents": inputs["noisy_latents"].float(),
        "noise": make_inputs(model, side, batch + 1)["noisy_latents"][1:].float(),
        "uniform": inputs["timestep"] / 1000,
        "condition": inputs["condition_latents"].float(),
        **{name: inputs[name].float() for name in ("text_tokens", "pooled_text")},
        "modality": inputs["modality"],
    }


def _compile_in_place(model: MMFaceDiT) -> None:
    torch._dynamo.reset()
    model.compile_repeated_blocks(fullgraph=True, dynamic=False)


WAYS_OF_TRAINING: dict[str, Callable[[MMFaceDiT], None]] = {
    "eager": lambda model: None,
    "products by BLAS": _use_blas,
    "checkpointed": lambda model: model.enable_gradient_checkpointing(),
    "selective": lambda model: model.enable_gradient_checkpointing(selective_checkpoint),
    "compiled": _compile_in_place,
}
"""What is done to a model before it is trained; the reference checkpoints every block."""


SCRIPT = "train_flow_256"
"""The published script that our ways of training are compared with."""


def measure_training(bench: Bench) -> None:
    """Whole training steps: forward, backward, clipping, AdamW, average."""
    for side, batch in bench.size.training:
        pairs = [(SCRIPT, way) for way in WAYS_OF_TRAINING]
        pairs += [(script, "eager") for script in bench.reference.TRAINING if script != SCRIPT]
        for script, way in pairs:
            case = f"{8 * side} px batch {batch} {way}, {script}"
            run = partial(_training, bench, case, side, batch, script, WAYS_OF_TRAINING[way])
            bench.report.measure("train", case, run)


def objective_of(bench: Bench, script: str) -> Objective:
    """The objective of a published script; no published config weighs diffusion by Min-SNR."""
    if bench.reference.TRAINING[script].network is bench.reference.PlainFlowDiT:
        return RectifiedFlow()
    return MinSnrDiffusion(terms={"noise": SquaredError()})


def _training(
    bench: Bench,
    case: str,
    side: int,
    batch: int,
    script: str,
    prepare: Callable[[MMFaceDiT], None],
) -> dict[str, Any]:
    model = bench.model(torch.float32)
    prepare(model)
    optimizer = partial(AdamW, lr=1e-4, fused=True)  # the same for both
    plain = bench.training_script(script, model, optimizer, GRADIENT_CLIP)
    own = OwnTraining(model, optimizer, bench.autocast, objective_of(bench, script))
    samples = training_batch(model, side, batch)
    drawn = {name: x for name, x in samples.items() if name not in ("noise", "uniform")}

    def reference(batch: Mapping[str, Tensor] = drawn) -> float:
        with bench.autocast():
            loss: float = plain.step(batch)
        return loss

    losses = own.step(samples), reference(samples)
    errors = {
        "loss_error": abs(losses[0] / losses[1] - 1),
        "gradient_error": gradient_error(own, plain.model),
    }
    plain.model.c_embedder.dropout = 0.05  # drawn by chance, so not while both are compared
    values = bench.compare(f"train {case}", reference, lambda: own.step(samples))
    work = 3 * forward_flops(model, side, batch)
    return {
        **values,
        **share_of_peak(bench, work, values),
        "samples_per_s": 1e3 * batch / values["own_ms"],
        **errors,
    }


def fitted_exponent(sizes: Iterable[float], costs: Iterable[float]) -> float:
    """The k of cost ~ size ** k that fits best, by least squares of the logarithms."""
    return float(np.polyfit(np.log(list(sizes)), np.log(list(costs)), 1)[0])


def measure_growth(bench: Bench) -> None:
    """How the time of a forward pass grows with tokens and with samples, and how its FLOPs do."""
    sides, batches = (16, 32, 64, 128), (1, 4, 16, 64)
    side = bench.size.sides[0]
    tokens = {s * s // 4: (s, 1) for s in sides if s > 16}
    samples = {b: (side, b) for b in batches}
    for unit, points in (("tokens", tokens), ("samples", samples)):
        bench.report.measure(
            "growth", f"{min(points)} to {max(points)} {unit}", partial(_growth, bench, points)
        )


@torch.no_grad()
def _growth(bench: Bench, points: Mapping[int, tuple[int, int]]) -> dict[str, Any]:
    model = bench.model(depth=bench.size.growth_depth)
    times, work = {}, {}
    started = time.monotonic()
    for point, (side, batch) in points.items():
        run = partial(model.__call__, **make_inputs(model, side, batch))
        work[point] = forward_flops(model, side, batch)
        run()  # warms up
        repeats = 1 if time.monotonic() - started > 30 else 3
        times[point] = min(seconds(run, bench.device) for _ in range(repeats))
    return {
        "exponent": fitted_exponent(times, times.values()),
        "flops_exponent": fitted_exponent(work, work.values()),
        "own_ms": {point: round(1e3 * value, 3) for point, value in times.items()},
    }
