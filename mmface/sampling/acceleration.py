"""Faster sampling with a pipeline on a GPU; the first call compiles, pictures differ by rounding.

The modulations become one layer, the blocks are compiled (once for each kind of block and shape),
the VAE's weights are stored channels-last, and a step is one CUDA graph instead of separate kernel
launches.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmface.model.packed_modulations import fuse_modulations, unfuse_modulations
from mmface.model.transformer import MMFaceDiT
from mmface.sampling.pipeline import MMFacePipeline

MAX_GRAPHS = 8
"""CUDA graphs that are kept, one for each shape; the least recently used is dropped."""

MAX_SHAPES = 64
"""Shapes for which blocks are compiled in one process; the compiler's own limit is 8."""


class Recording(Protocol):
    """A recorded function call, repeated on its inputs' current contents; writes into `output`."""

    output: Tensor

    def replay(self) -> None:
        """Repeat the call."""


Record = Callable[[Callable[[], Tensor], Any], Recording]
"""Records a function; the second argument is a recording to share memory with, or None."""


class CudaRecording:
    """A function call as a CUDA graph, bound to the memory of everything that it reads."""

    def __init__(self, run: Callable[[], Tensor], beside: "CudaRecording | None") -> None:
        """Run a function, which must not synchronise with the GPU, three times, then record it.

        Intermediate results share memory with those of the recording `beside`, so the two must
        never run at once. ValueError if the function does not run on a GPU.
        """
        # Warm-up: compiling, caches and set-up of libraries must not happen during capture.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.output = run()
        if self.output.device.type != "cuda":
            raise ValueError("A CUDA graph needs a model on a GPU; call restore_pipeline first.")
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        pool = None if beside is None else beside.graph.pool()
        with torch.cuda.graph(self.graph, pool=pool):
            self.output = run()

    def replay(self) -> None:
        """Run again, and write into `output`."""
        self.graph.replay()


class Captured(NamedTuple):
    """A recorded step and its inputs: noisy latents, condition latents, text; and modulations."""

    recording: Recording
    inputs: list[Tensor]
    modulations: Tensor


class ModelIdentity:
    """Identity of the modules, weights and adapters that a recording has captured."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = list(model.modules())
        self.adapters: list[Any] = [each for each in self.modules if "lora_A" in each._modules]
        self.captured = self._identity()

    def has_changed(self) -> bool:
        """Whether anything was replaced or moved; changed values in place do not count."""
        return self._identity() != self.captured

    def _identity(self) -> list[Any]:
        identity: list[Any] = []
        for module in self.modules:
            identity += module._modules.values()
            identity += [None if p is None else p.data_ptr() for p in module._parameters.values()]
            identity.append(is_hooked(module))
        return identity + [
            (dict(each.scaling), each.active_adapters, each.merged) for each in self.adapters
        ]


class CapturedDenoise:
    """`MMFaceDiT.denoise` for inference, recorded once for each shape of its inputs.

    Inputs are copied into the recording's own tensors. Replacing or moving weights, modules or
    adapters makes the next call record again. Autocast is off.
    """

    def __init__(
        self, model: MMFaceDiT, record: Record = CudaRecording, max_graphs: int = MAX_GRAPHS
    ) -> None:
        """Wrap a model that is neither offloaded, quantized nor hooked; blocks may be compiled."""
        check_plain(model)
        self.model, self.record, self.max_graphs = model, record, max_graphs
        self.captured: OrderedDict[tuple[Any, ...], Captured] = OrderedDict()
        self.identity = ModelIdentity(model)

    def __getstate__(self) -> dict[str, Any]:
        """Drop the recordings, which are bound to this model's weights."""
        return {**vars(self), "captured": OrderedDict(), "identity": None}

    @torch.no_grad()
    def __call__(
        self,
        noisy_latents: Float[Tensor, "batch channels height width"],
        condition_latents: Float[Tensor, "batch channels height width"],
        text: Float[Tensor, "batch text_tokens dim"],
        modulations: list[Tensor],
        added: Any = None,
        maps: dict[int, Any] | None = None,
    ) -> Float[Tensor, "batch channels height width"]:
        """Replay the recording for these shapes; the first call makes it.

        With reference faces (`added`) or attention maps the network runs without a recording.
        """
        if added is not None or maps is not None:
            plain = type(self.model).denoise
            given = noisy_latents, condition_latents, text, modulations
            return plain(self.model, *given, added, maps)
        if self.identity is None or self.identity.has_changed():
            self.captured.clear()
            check_plain(self.model)
            self.identity = ModelIdentity(self.model)
        inputs = [noisy_latents, condition_latents, text]
        key = tuple((x.shape, x.dtype) for x in (*inputs, *modulations))
        if key not in self.captured:
            while len(self.captured) >= self.max_graphs:
                self.captured.popitem(last=False)
            self.captured[key] = self._capture(inputs, modulations)
        self.captured.move_to_end(key)
        recording, own, own_modulations = self.captured[key]
        torch._foreach_copy_(own, inputs)
        torch.cat(modulations, dim=-1, out=own_modulations)  # in one kernel
        recording.replay()
        return recording.output.clone()

    def _capture(self, inputs: Sequence[Tensor], modulations: Sequence[Tensor]) -> Captured:
        own, own_modulations = [x.clone() for x in inputs], torch.cat(tuple(modulations), dim=-1)
        parts = own_modulations.split([x.shape[-1] for x in modulations], dim=-1)

        def run() -> Tensor:
            with torch.autocast(own[0].device.type, enabled=False):
                return type(self.model).denoise(self.model, own[0], own[1], own[2], list(parts))

        beside = next((each.recording for each in self.captured.values()), None)
        return Captured(self.record(run, beside), own, own_modulations)


def is_hooked(module: nn.Module) -> bool:
    """Whether a module has hooks, such as those of offloading or a cache."""
    return "forward" in vars(module) or bool(module._forward_hooks or module._forward_pre_hooks)


def check_plain(model: MMFaceDiT) -> None:
    """Raise ValueError if a model is offloaded, hooked or quantized."""
    if any(type(p) is not nn.Parameter or not p.is_floating_point() for p in model.parameters()):
        raise ValueError(
            "The fast form does not support a quantized or sharded transformer; load plain "
            "weights, in bfloat16 to save memory."
        )
    for name, module in model.named_modules():
        if is_hooked(module):
            raise ValueError(
                f"The transformer has a hook ({name or 'on itself'}), by offloading or a cache, "
                "which the fast form would skip; load the pipeline without offloading, and call "
                "disable_cache() first."
            )


def check_compiler(device: torch.device) -> None:
    """Raise ValueError if torch.compile lacks a C++ compiler, or Triton for a GPU."""
    # Seconds of imports that only this needs.
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler
    from torch.utils._triton import has_triton

    if device.type == "cuda" and not has_triton():
        raise ValueError("Compiling for this GPU needs Triton, which is not there: install triton.")
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise ValueError("Compiling needs a C++ compiler such as g++, and none is here.") from None


def accelerate_pipeline(
    pipeline: MMFacePipeline, compile_blocks: bool = True, capture: bool | None = None
) -> None:
    """Make a pipeline fast for many calls of few shapes; `restore_pipeline` undoes it.

    The first call with each shape (number of rows, which guidance doubles; picture size; text
    length) compiles for seconds to a minute. A CPU gains little. Move the pipeline to its device
    and load LoRAs first; call again to change the arguments. `capture` records steps as CUDA
    graphs; None does so on a GPU. ValueError, with nothing changed, if the transformer is
    offloaded, hooked or quantized, or if a compiler or the GPU is missing.
    """
    transformer, device = pipeline.transformer, pipeline.transformer.device
    check_plain(transformer)
    capture = device.type == "cuda" if capture is None else capture
    if capture and device.type != "cuda":
        raise ValueError(f"CUDA graphs need a GPU, and the transformer is on the {device.type}.")
    if compile_blocks:
        check_compiler(device)
    restore_pipeline(pipeline)
    fuse_modulations(transformer)  # does nothing if a LoRA changes them
    transformer.eval()
    pipeline.vae.to(memory_format=torch.channels_last)
    if compile_blocks:
        # One graph a shape and kind of block; torch stops compiling at 8 by default.
        config = torch._dynamo.config
        config.recompile_limit = max(config.recompile_limit, MAX_SHAPES)
        transformer.compile_repeated_blocks(fullgraph=True, dynamic=False)
    if capture:
        transformer.__dict__["denoise"] = CapturedDenoise(transformer)


def restore_pipeline(pipeline: MMFacePipeline) -> None:
    """Undo `accelerate_pipeline`, except for eval mode, to train, adapt or move the pipeline."""
    pipeline.transformer.__dict__.pop("denoise", None)
    for module in pipeline.transformer.modules():
        module.__dict__.pop("_compiled_call_impl", None)
    unfuse_modulations(pipeline.transformer)
    pipeline.vae.to(memory_format=torch.contiguous_format)
