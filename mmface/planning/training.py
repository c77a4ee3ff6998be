"""Memory by part, steps, disk and time of a training run, without running it.

Everything is counted on the meta device: no GPU, data or weights are needed. Activations are exact:
a shallow network of full width runs forward under the rules of CUDA's autocast, a hook sees every
tensor that autograd keeps, and the rest is linear in depth and batch. For compiled blocks, which
keep less than eager ones, it is an upper bound.
"""

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import CLIPTokenizer

from mmface.encoders import Encoder, LatentCodec, TextEncoder, meta_text_model, meta_vae
from mmface.model.recomputation import SELECTIVE, KeptResults, num_recomputed, recompute_blocks
from mmface.training.face_diffusion import FaceDiffusion
from mmface.training.metering import training_flops
from mmface.training.task import Companions, TrainingTask, frozen_dtype_named

TRAINING_IMAGES = 94_000
"""Training pictures of the paper's data: CelebA-HQ's 24,000 and FFHQ's 70,000."""
TEXT_TOKENS = 77
DOWNSCALE = 8
"""Every VAE of the paper makes a picture's side 8 times smaller."""
ASSUMED_MFU = 0.35
"""Assumed share of the peak FLOP/s; public trainings of diffusion transformers reach 0.25-0.48."""
DEVICE_CONTEXT = 0.8e9
"""Assumed bytes of the CUDA context and of library workspaces."""


class DeviceRules(TorchFunctionMode):
    """Uses the dtypes and the attention kernel of a GPU, on meta tensors.

    Under bf16 autocast, products are in bf16 and LayerNorm in float32. Attention is a flash kernel,
    which stores no tokens x tokens matrix.
    """

    def __init__(self, bf16: bool) -> None:
        super().__init__()
        self.bf16 = bf16

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run one function of torch."""
        kwargs = dict(kwargs or {})
        if self.bf16 and func in (F.linear, F.conv2d, F.scaled_dot_product_attention):
            args = [_cast(x, torch.bfloat16) for x in args]
            kwargs = {name: _cast(x, torch.bfloat16) for name, x in kwargs.items()}
        elif self.bf16 and func is F.layer_norm:
            args = [_cast(x, torch.float32) for x in args]
        if func is F.scaled_dot_product_attention:
            kwargs.pop("enable_gqa", None)  # the kernel below does not know it
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*args, **kwargs)[0]
        return func(*args, **kwargs)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def kept_bytes(network: nn.Module, inputs: tuple[Tensor, ...], bf16: bool) -> int:
    """Count the bytes that autograd and checkpoints keep of a forward pass, each storage once.

    Parameters are not counted, bf16 copies of them are.
    """
    own = {p.untyped_storage()._cdata for p in network.parameters()}
    kept: dict[int, Any] = {}

    def see(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # held, or its number could come again
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(see, lambda x: x)
    with KeptResults() as results, hooks, DeviceRules(bf16), warnings.catch_warnings():
        # What recomputation keeps may come to the hooks one day: it is counted once either way.
        warnings.filterwarnings("ignore", "A saved_tensors_hooks context", FutureWarning)
        output = network(*inputs)
    saved = {number: storage.nbytes() for number, storage in kept.items()}
    total = sum((results.alive | saved).values())
    del output  # the graph had to live until the count was done
    return total


@dataclass(frozen=True)
class Activations:
    """Bytes that autograd keeps, as `fixed + block_fixed x depth + (sample + block x depth) B`.

    The fixed parts are bf16 copies of weights. The last block keeps less than the others; the
    difference is subtracted outside the blocks, so `fixed` and `sample` may be negative.
    """

    fixed: int
    block_fixed: int
    sample: int
    block: int

    @classmethod
    def counted(
        cls,
        network: Any,
        image_size: int,
        bf16: bool,
        setting: float | str,
        prepare: Callable[[Any], object] = id,
    ) -> "Activations":
        """Count at depths 2 and 3 and batches 2 and 3; a batch of 1 skips some copies.

        `setting`: 1 recomputes every block, 0 none; or "selective". `prepare` does to a shallow
        network what the task did to this one.
        """
        count = {}
        for depth in (2, 3):
            with torch.device("meta"):
                shallow = type(network).from_config(network.config, depth=depth)
                prepare(shallow)
            recompute_blocks(shallow, setting)
            for batch in (2, 3):
                inputs = meta_inputs(network.config, image_size, batch)
                count[depth, batch] = kept_bytes(shallow, inputs, bf16)
        of_sample = {depth: count[depth, 3] - count[depth, 2] for depth in (2, 3)}
        block = of_sample[3] - of_sample[2]
        block_fixed = count[3, 2] - count[2, 2] - 2 * block
        sample = of_sample[2] - 2 * block
        fixed = count[2, 2] - 2 * block_fixed - 2 * of_sample[2]
        return cls(fixed, block_fixed, sample, block)

    def total(self, depth: int, batch: int) -> int:
        """Give the bytes at a depth and a batch."""
        return self.fixed + self.block_fixed * depth + (self.sample + self.block * depth) * batch


def meta_inputs(config: Any, image_size: int, batch: int) -> tuple[Tensor, ...]:
    """Make what MMFaceDiT's forward takes, on the meta device."""
    side = image_size // DOWNSCALE
    with torch.device("meta"):
        latents = torch.empty(batch, config["latent_channels"], side, side)
        tokens = torch.empty(batch, TEXT_TOKENS, config["text_dim"])
        modality = torch.zeros(batch, dtype=torch.long)
        return latents, latents.clone(), torch.empty(batch), tokens, tokens[:, 0].clone(), modality


def activation_peak(
    network: Any,
    image_size: int,
    batch: int,
    bf16: bool,
    setting: float | str,
    prepare: Callable[[Any], object] = id,
) -> tuple[int, int]:
    """Give bytes of activations and of bf16 weight copies at the peak of a micro-batch's step.

    The first blocks are recomputed (`recompute_blocks`): a block's activations exist again during
    its backward pass, so the peak is at the start or at the end of the backward pass. Autocast
    keeps copies of all weights until the end of the forward pass.
    """
    depth = len(network.blocks)
    recomputed = num_recomputed(depth, setting)
    kind: float | str = setting if setting == SELECTIVE else 1
    whole = Activations.counted(network, image_size, bf16, 0, prepare)
    lessened = whole
    if recomputed:
        lessened = Activations.counted(network, image_size, bf16, kind, prepare)
    outside = (lessened if recomputed == depth else whole).sample * batch
    kept_first = recomputed * lessened.block * batch
    at_end = kept_first + (depth - recomputed) * whole.block * batch
    at_first_recomputation = kept_first + (whole.block * batch if recomputed else 0)
    copies = whole.fixed + whole.block_fixed * depth
    return outside + max(at_end, at_first_recomputation), copies


def optimizer_bytes(network: nn.Module, eight_bit: bool) -> int:
    """Count AdamW's two moments of the trainable parameters.

    With 8 bits (arXiv 2110.02861), each block of 256 values has a float32 scale, and tensors of
    fewer than 4,096 values stay in float32.
    """
    sizes = [p.numel() for p in network.parameters() if p.requires_grad]
    if not eight_bit:
        return sum(8 * size for size in sizes)
    return sum(2 * (n + 4 * math.ceil(n / 256)) if n >= 4096 else 8 * n for n in sizes)


def parameter_bytes(module: nn.Module) -> int:
    """Count a module's parameters in bytes of their own dtype."""
    return sum(p.numel() * p.element_size() for p in module.parameters())


def stored_bytes(network: nn.Module, bits: int | None) -> int:
    """Count a network's parameters, those of its frozen linear layers in so many bits.

    bitsandbytes has a float32 scale for each row with 8 bits, and for each 64 values with 4.
    """
    if bits is None:
        return parameter_bytes(network)
    layers = [m for m in network.modules() if isinstance(m, nn.Linear)]
    packed = [m.weight for m in layers if not m.weight.requires_grad]
    scales = sum(4 * (len(w) if bits == 8 else math.ceil(w.numel() / 64)) for w in packed)
    saved = sum(w.numel() * (w.element_size() - bits / 8) for w in packed)
    return int(parameter_bytes(network) - saved + scales)


def trainable_bytes(module: nn.Module) -> int:
    """Count those of its trainable parameters: its gradients, and their average over the steps."""
    return sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad)


def frozen_encoders(network: Any, task: Mapping[str, Any]) -> dict[str, Encoder]:
    """Give the encoders that stand beside the network in a run, without weights."""
    text, config = meta_text_model(network.config.text_dim), network.config
    vae: Any = meta_vae(str(task["vae"]), config.latent_channels)
    dtype = frozen_dtype_named(task.get("frozen_dtype", "float32"))
    for module in (text, vae):
        nn.Module.to(module, dtype)
    return {"text encoder": TextEncoder(text, CLIPTokenizer()), "VAE": LatentCodec(vae)}


@dataclass(frozen=True)
class Plan:
    """What a run takes, all in bytes, seconds and counts of one device unless said otherwise.

    `memory` is by part; `host_memory` is the averaged weights, if they lie in the CPU's memory;
    `epochs` are of `TRAINING_IMAGES`; `accumulation` counts micro-batches of one process in a step;
    `disk` holds all checkpoints kept, one being written, and the export; `step_flops` are over all
    devices, recomputation included; `seconds` assume `ASSUMED_MFU`, or are None where no peak is
    known.
    """

    parameters: int
    memory: dict[str, int]
    host_memory: int
    device_memory: int | None
    steps: int
    epochs: float
    accumulation: int
    checkpoint: int
    disk: int
    step_flops: float
    seconds: float | None

    @property
    def peak(self) -> int:
        """Bytes of all parts together."""
        return sum(self.memory.values())

    def table(self) -> str:
        """Give everything as lines of text."""
        gb = 1e9
        rows = [("parameters", f"{self.parameters:,}"), ("", "")]
        rows += [(name, f"{size / gb:8.2f} GB") for name, size in self.memory.items()]
        rows += [("peak of one device", f"{self.peak / gb:8.2f} GB")]
        if self.device_memory is not None:
            verdict = "fits" if self.peak < self.device_memory else "DOES NOT FIT"
            rows += [("the device has", f"{self.device_memory / gb:8.2f} GB: {verdict}")]
        if self.host_memory:
            rows += [("averaged weights on the CPU", f"{self.host_memory / gb:8.2f} GB")]
        rows += [
            ("", ""),
            ("steps", f"{self.steps:,}, each of {self.accumulation} micro-batch(es) a process"),
            ("epochs", f"{self.epochs:.1f} of {TRAINING_IMAGES:,} pictures"),
            ("a checkpoint", f"{self.checkpoint / gb:8.2f} GB"),
            ("disk", f"{self.disk / gb:8.2f} GB"),
            ("FLOPs of a step", f"{self.step_flops / 1e12:8.2f} T"),
        ]
        time = "unknown: set hardware.peak_flops"
        if self.seconds is not None:
            time = f"{self.seconds / 86400:8.2f} days at {ASSUMED_MFU:.0%} of the peak (assumed)"
        rows.append(("time", time))
        return "\n".join(f"{name:<34}{value}".rstrip() for name, value in rows)


def memory_by_part(
    network: Any,
    settings: Mapping[str, Any],
    task_class: type[TrainingTask],
    companions: Companions,
) -> dict[str, int]:
    """Count bytes on one device at the peak of a step of a task with its companions; see `plan`."""
    hardware, task = settings["hardware"], settings["task"]
    encoders = frozen_encoders(network, task)
    devices, sharded = hardware.get("num_devices", 1), hardware.get("sharded", False)
    bf16 = hardware["mixed_precision"] == "bf16"
    trained = 1 + companions.trained
    parameters = sum(p.numel() for p in network.parameters())
    beside = {name: width * parameters for name, width in companions.frozen.items()}
    activations, copies = activation_peak(
        network,
        task["image_size"],
        settings["trainer"]["recipe"]["micro_batch_size"],
        bf16,
        hardware["gradient_checkpointing"],
        lambda shallow: task_class.planned(shallow, task),
    )
    weights = stored_bytes(network, companions.base_bits)
    gradients = trainable_bytes(network)
    eight_bit = "8bit" in settings["optimizer"]["_target_"].lower()
    moments = optimizer_bytes(network, eight_bit)
    share = devices if sharded else 1
    parts = {
        "weights": trained * weights // share,
        "gradients": trained * gradients // share,
        f"AdamW, {'8' if eight_bit else '32'} bits": trained * moments // share,
        "averaged weights": 0 if hardware.get("average_on_cpu") else gradients // share,
        "activations": trained * activations,
        "bf16 copies of weights": trained * copies,
        **beside,
        **{name: parameter_bytes(each.module) for name, each in encoders.items()},
        "context and workspaces (assumed)": int(DEVICE_CONTEXT),
    }
    return {name: size for name, size in parts.items() if size}


def plan(
    network: Any, settings: Mapping[str, Any], task: type[TrainingTask] = FaceDiffusion
) -> Plan:
    """Plan a run of a task that trains a network like the paper's, given on the meta device.

    `task` says what the network has beside it. `settings` is the resolved config as plain dicts,
    with `task`, `optimizer`, `trainer` and `hardware`. `hardware` may say, for the plan alone:
    `num_devices` (1), `sharded` (whether they share one copy of weights, gradients, moments and
    average) and `device_memory_gb`. What is shared is gathered a block at a time, which is left
    out. ValueError if the batch does not divide among the devices.
    """
    if network is None:
        raise ValueError("plan=true is for experiments that train MMFaceDiT or one of Table 3's.")
    hardware, trainer = settings["hardware"], settings["trainer"]
    recipe, devices = trainer["recipe"], hardware.get("num_devices", 1)
    batch, in_one_pass = recipe["global_batch_size"], recipe["micro_batch_size"] * devices
    if batch % in_one_pass:
        raise ValueError(
            f"A global batch of {batch} does not divide into micro-batches of "
            f"{recipe['micro_batch_size']} on {devices} device(s); set "
            "trainer.recipe.micro_batch_size or hardware.num_devices."
        )
    inputs = meta_inputs(network.config, settings["task"]["image_size"], 1)
    model_flops = training_flops(network, inputs) * batch
    parameters = sum(p.numel() for p in network.parameters())
    companions = task.planned(network, settings["task"])
    setting, depth = hardware["gradient_checkpointing"], len(network.blocks)
    # No product runs again under selective recomputation.
    recomputed = 0 if setting == SELECTIVE else num_recomputed(depth, setting) / depth
    eight_bit = "8bit" in settings["optimizer"]["_target_"].lower()
    weights, average = parameter_bytes(network), trainable_bytes(network)
    trained = 1 + companions.trained
    saved = average if companions.is_adapter else weights
    checkpoint = trained * (saved + optimizer_bytes(network, eight_bit)) + average
    memory = memory_by_part(network, settings, task, companions)
    neighbours = sum(memory[name] for name in frozen_encoders(network, settings["task"]))
    # Forward is a third of the step.
    step_flops = model_flops * (companions.passes + trained * recomputed / 3)
    peak_flops, total_steps = hardware.get("peak_flops"), recipe["total_steps"]
    rate = peak_flops and peak_flops * devices * ASSUMED_MFU
    device_memory = hardware.get("device_memory_gb")
    return Plan(
        parameters=parameters,
        memory=memory,
        host_memory=average if hardware.get("average_on_cpu") else 0,
        device_memory=int(device_memory * 1e9) if device_memory else None,
        steps=total_steps,
        epochs=total_steps * batch / TRAINING_IMAGES,
        accumulation=batch // in_one_pass,
        checkpoint=checkpoint,
        disk=(trainer["cadence"]["checkpoint_limit"] + 1) * checkpoint
        + (saved if companions.is_adapter else saved + neighbours),
        step_flops=step_flops,
        seconds=total_steps * step_flops / rate if rate else None,
    )
