"""The device memory that sampling needs, by phase, without weights and without a GPU.

The sampling call itself runs on the meta device, where live storages are counted. Workspaces inside
kernels and memory that the allocator leaves unused do not show; a constant is added for them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from diffusers import AutoencoderKL
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from mmface.conditions import condition_kinds
from mmface.core.command_line import check_number
from mmface.core.files import shared_parts
from mmface.core.sources import builtin_pipelines, dtype_named, opened
from mmface.encoders import VAES, Vae
from mmface.generation.requests import PreparedRequest, call_arguments, prepare_request
from mmface.generation.sample import asked_of, locate_here
from mmface.generation.settings import Draws, ModelChoice, Run, Settings
from mmface.model.ablations import NETWORKS
from mmface.model.lora import load_loras
from mmface.model.released import from_released
from mmface.model.transformer import MMFaceDiT
from mmface.planning.live_memory import KernelRules, LiveBytes
from mmface.planning.training import DEVICE_CONTEXT
from mmface.sampling.pipeline import MMFacePipeline
from mmface.sampling.released_folder import RELEASED_TEXT, released_checkpoint

GB = 1e9
ENCODING, PROMPTS, DENOISING, DECODING = "conditions", "prompts", "steps", "decoding"
RESIDENT = {
    ENCODING: ("VAE",),
    PROMPTS: ("VAE", "text encoder"),
    DENOISING: ("VAE", "transformer"),
    DECODING: ("VAE",),
}
"""Which weights are on the device in each phase under --offload. The VAE encodes first and stays,
because a component is moved off only by the one after it in `model_cpu_offload_seq`."""
_VAES = {each.__name__: each for each in get_args(Vae)}


@dataclass(frozen=True)
class Phase:
    """Bytes on the device in a phase of sampling; activations are all but weights, at the peak."""

    weights: int
    activations: int

    @property
    def total(self) -> int:
        """Both together."""
        return self.weights + self.activations


@dataclass(frozen=True)
class SamplingPlan:
    """The device memory of a call of the pipeline, in bytes.

    `weights` counts all components, also those not on the device. `fitting_batch` is the largest
    `max_batch` that fits, 0 if none does; None if `device_memory` is None.
    """

    title: str
    weights: dict[str, int]
    phases: dict[str, Phase]
    device_memory: int | None = None
    fitting_batch: int | None = None

    @property
    def peak(self) -> int:
        """Peak of all phases, plus the assumed context and workspaces."""
        return max(phase.total for phase in self.phases.values()) + int(DEVICE_CONTEXT)

    def table(self) -> str:
        """Format the plan as text."""
        lines = [self.title, ""]
        lines += [_line(f"weights: {name}", size) for name, size in self.weights.items()]
        lines += ["", f"{'':<34}{'weights':>9} + {'activations':>11} = {'GB':>9}"]
        for name, phase in self.phases.items():
            sizes = (phase.weights / GB, phase.activations / GB, phase.total / GB)
            lines.append("{:<34}{:9.3f} + {:11.3f} = {:9.3f}".format(name, *sizes))
        lines += ["", _line("context and workspaces (assumed)", int(DEVICE_CONTEXT))]
        lines.append(_line("peak of the device", self.peak))
        if self.device_memory is not None:
            lines.append(_line("the device has", self.device_memory) + f": {self._verdict()}")
        return "\n".join(lines)

    def _verdict(self) -> str:
        assert self.device_memory is not None
        if self.peak < self.device_memory:
            return "fits"
        if self.fitting_batch:
            return f"DOES NOT FIT; --max-batch {self.fitting_batch} does"
        return (
            "DOES NOT FIT, and no --max-batch does; use --dtype bfloat16, --vae-tiling, --offload "
            "or --quantize 4bit"
        )


def _line(name: str, size: int) -> str:
    return f"{name:<34}{size / GB:9.3f} GB"


def plan_sampling(
    pipeline: MMFacePipeline,
    rows: Sequence[PreparedRequest],
    seeds: Sequence[Sequence[int]],
    max_batch: int | None = None,
    offload: bool = False,
    quantize: str | None = None,
    device_memory: int | None = None,
) -> SamplingPlan:
    """Plan a call of `sample_requests` by a pipeline on the meta device.

    `offload`: only the component in use is on the device. `device_memory`: bytes of the device, to
    search the `max_batch` that fits; or None.
    """
    transformer: Any = pipeline.transformer
    weights = {
        "transformer": stored_bytes(transformer, quantize),
        "text encoder": stored_bytes(pipeline.text_encoder),
        "VAE": stored_bytes(pipeline.vae),
    }

    def planned(batch: int | None) -> SamplingPlan:
        peaks = activation_peaks(pipeline, rows, seeds, batch, quantize)
        phases = {}
        for name, peak in peaks.items():
            resident = RESIDENT[name] if offload else tuple(weights)
            phases[name] = Phase(sum(weights[each] for each in resident), peak)
        dtype = str(transformer.dtype).removeprefix("torch.")
        title = _title(rows, len(seeds[0]), batch, quantize or dtype)
        return SamplingPlan(title, weights, phases)

    plan = planned(max_batch)
    if device_memory is None:
        return plan
    # At most so many predictions a picture and step: of two texts, with each condition and none.
    most = 2 * (len(condition_kinds()) + 1)
    fits, too_large = 0, most * len(rows) * len(seeds[0]) + 1
    middle = 1
    while plan.peak >= device_memory and too_large - fits > 1:
        if planned(middle).peak < device_memory:
            fits = middle
        else:
            too_large = middle
        middle = (fits + too_large) // 2
    return replace(plan, device_memory=device_memory, fitting_batch=fits)


def plan_command(settings: Settings, draws: Draws, choice: ModelChoice, run: Run) -> str:
    """Say, as a table, what memory a command of `scripts/sample.py` would take.

    Of the weights only the shapes are read. `run.memory` is what the device has, in GB.
    """
    if run.rerun is not None or run.jobs is not None:
        other = "--rerun" if run.rerun is not None else "--jobs"
        raise ValueError(f"--plan is for one request, not for {other}.")
    if run.memory is not None:
        check_number("memory", run.memory, 0)
    asked = asked_of(settings, draws, run)
    pipeline = meta_pipeline(choice)
    requests = [prepare_request(one, pipeline, locate_here, asked.steps) for one in asked.settings]
    memory = None if run.memory is None else int(run.memory * 1e9)
    seeds = [asked.seeds] * len(requests)
    return plan_sampling(
        pipeline, requests, seeds, run.max_batch, run.offload, choice.quantize, memory
    ).table()


def _title(
    rows: Sequence[PreparedRequest], num: int, max_batch: int | None, arithmetic: str
) -> str:
    settings, pictures = rows[0].settings, len(rows) * num
    limit = "all at once" if max_batch is None else f"{max_batch} at once"
    return (
        f"{pictures} picture{'s' * (pictures > 1)} of {settings.width} x {settings.height}, "
        f"{settings.steps} steps, {arithmetic}, {limit}"
    )


def stored_bytes(module: nn.Module, quantize: str | None = None) -> int:
    """Count the bytes of a component's weights and buffers.

    With 8 bits, a linear layer has a float32 scale a row; with 4 bits, one a block of 64.
    """
    total = sum(x.numel() * x.element_size() for x in (*module.parameters(), *module.buffers()))
    for layer in module.modules() if quantize is not None else ():
        if isinstance(layer, nn.Linear):
            size, itemsize = layer.weight.numel(), layer.weight.element_size()
            eight_bit = quantize == "8bit"
            stored = size + 4 * len(layer.weight) if eight_bit else -(-size // 2) + size // 64 * 4
            total += stored - size * itemsize
    return total


def activation_peaks(
    pipeline: MMFacePipeline,
    rows: Sequence[PreparedRequest],
    seeds: Sequence[Sequence[int]],
    max_batch: int | None = None,
    quantize: str | None = None,
) -> dict[str, int]:
    """Run the sampling call on the meta device; the most live bytes of each phase."""
    parts = (pipeline.vae, pipeline.text_encoder, pipeline.transformer)
    live = LiveBytes("meta", (x for each in parts for x in (*each.parameters(), *each.buffers())))
    rules = KernelRules(pipeline.transformer, quantize)
    pipeline.set_progress_bar_config(disable=True)
    arguments = call_arguments(rows, seeds) | {"cache": None}  # a cache needs values
    with measured(pipeline, live), rules, live:
        pipeline(**arguments, max_batch=max_batch, output_type="pt")
    return live.peaks


@contextmanager
def measured(pipeline: MMFacePipeline, live: LiveBytes) -> Iterator[None]:
    """Start the phases of a call in a counter as the pipeline's components are called.

    On the meta device, the network runs once a batch size.
    """
    vae, transformer = pipeline.vae, pipeline.transformer
    begins = [
        (vae, "encode", ENCODING),
        (pipeline.text_encoder, "forward", PROMPTS),
        (transformer, "global_condition", DENOISING),
        (vae, "decode", DECODING),
    ]
    live.begin(ENCODING)
    for part, name, phase in begins:
        part.__dict__[name] = live.beginning(phase, getattr(part, name))
    if live.device_type == "meta":
        transformer.__dict__["denoise"] = live.once_a_shape(transformer.denoise)
    try:
        yield
    finally:
        transformer.__dict__.pop("denoise", None)
        for part, name, _ in begins:
            del part.__dict__[name]


def meta_pipeline(choice: ModelChoice) -> MMFacePipeline:
    """Build a pipeline on the meta device, from its configs alone."""
    try:
        pipeline = _of_released(choice) if choice.released is not None else _of_saved(choice)
    except (OSError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        name = choice.released or choice.pipeline
        raise ValueError(f"The configs of {name} cannot be read: {reason}") from error
    if choice.vae_tiling:
        pipeline.vae.enable_tiling()
    if choice.lora:
        with torch.device("meta"):
            load_loras(pipeline.transformer, choice.loras)
    return pipeline


def _of_saved(choice: ModelChoice) -> MMFacePipeline:
    with opened("pipeline", choice.pipeline, builtin_pipelines()) as source:
        index = MMFacePipeline.load_config(source)
    transformer = MMFaceDiT.load_config(source, subfolder="transformer")
    shared = shared_parts(source)
    homes = {name: str(shared[name].parent) for name in shared}
    vae = AutoencoderKL.load_config(homes.get("vae", source), subfolder="vae")
    text_home = homes.get("text_encoder", source)
    dtype = dtype_named(choice.dtype)
    with torch.device("meta"):
        network = NETWORKS[transformer["_class_name"]].from_config(transformer)
        codec = _VAES[vae["_class_name"]].from_config(vae)
        text = CLIPTextModel(CLIPTextConfig.from_pretrained(text_home, subfolder="text_encoder"))
    return MMFacePipeline(
        vae=_frozen(codec, dtype),
        text_encoder=_frozen(text, dtype),
        tokenizer=CLIPTokenizer.from_pretrained(text_home, subfolder="tokenizer"),
        transformer=_frozen(network, dtype),
        scheduler=None,
        image_size=index["image_size"],
        guidance_scale=index["guidance_scale"],
    )


def _of_released(choice: ModelChoice) -> MMFacePipeline:
    """Read the configs, and the shapes of the weights, in a copy of the authors' repository."""
    folder = Path(str(choice.released))
    text_folder = folder / RELEASED_TEXT
    found = released_checkpoint(folder, choice.checkpoint, None, None)
    dtype = dtype_named(choice.dtype)
    with torch.device("meta"), safe_open(found.weights, framework="pt") as file:
        names = file.keys()
        shapes = {name: torch.empty(file.get_slice(name).get_shape()) for name in names}
        sizes, _ = from_released(shapes)
        network = MMFaceDiT(**sizes, text_rope="none", objective=found.objective)
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(folder / "VAE"))
        text = CLIPTextModel(CLIPTextConfig.from_pretrained(text_folder, subfolder="text_encoder"))
    return MMFacePipeline(
        vae=VAES["flux_released"].configure(_frozen(vae, dtype)),
        text_encoder=_frozen(text, dtype),
        tokenizer=CLIPTokenizer.from_pretrained(text_folder, subfolder="tokenizer"),
        transformer=_frozen(network, dtype),
        scheduler=None,
        image_size=found.image_size,
    )


def _frozen(module: nn.Module, dtype: torch.dtype) -> Any:
    # torch's own `to`: diffusers' warns of float32 layers where there are none.
    return nn.Module.to(module, dtype).requires_grad_(False).eval()
