"""The fast form of a pipeline: its first call compiles, those that follow take less time on a GPU.

Nothing is approximated: the same numbers are computed in another order, and differ by rounding. The
modulations become one layer, the blocks are compiled, a graph for each of the two kinds of blocks
and for each shape, the VAE's weights lie as its convolutions read them, and on a GPU a step is one
CUDA graph, which the host launches at once instead of kernel by kernel.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmface.model.packed_modulations import fuse_modulations, unfuse_modulations
from mmface.model.transformer import MMFaceDiT
from mmface.pipeline import MMFacePipeline

MAX_GRAPHS = 8
"""Shapes of which a CUDA graph is kept; a batch of another shape replaces the one least in use."""

MAX_SHAPES = 64
"""Shapes for which blocks are compiled in one process; the compiler's own limit is 8."""


class Recording(Protocol):
    """A run of a function that can be run again on what its inputs hold by then.

    Attributes:
        output: What the last run gave.
    """

    output: Tensor

    def replay(self) -> None:
        """Run again, and write into `output`."""


Record = Callable[[Callable[[], Tensor], Any], Recording]
"""Records a function; the second argument is another recording to share memory with, or None."""


class CudaRecording:
    """A run of a function as a CUDA graph.

    Attributes:
        output: What the last run gave.
        graph: The graph; it holds the addresses of all that the function reads.
    """

    def __init__(self, run: Callable[[], Tensor], beside: "CudaRecording | None") -> None:
        """Run a function three times, then record it.

        Args:
            run: The function. It must not wait for the GPU.
            beside: A recording whose memory for intermediate results is used, too, so that the two
                never run at the same time; None takes memory of its own.

        Raises:
            ValueError: If the function does not run on a GPU.
        """
        # Compiles, fills caches and sets up libraries, none of which may happen under capture.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.output = run()
        if self.output.device.type != "cuda":
            raise ValueError("A CUDA graph needs a model on a GPU; restore_pipeline takes it back.")
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        pool = None if beside is None else beside.graph.pool()
        with torch.cuda.graph(self.graph, pool=pool):
            self.output = run()

    def replay(self) -> None:
        """Run again, and write into `output`."""
        self.graph.replay()


class Captured(NamedTuple):
    """A recorded step, and the tensors that it reads.

    Attributes:
        recording: The step.
        inputs: Noisy latents, condition latents and text.
        modulations: All modulations side by side.
    """

    recording: Recording
    inputs: list[Tensor]
    modulations: Tensor


class Fittings:
    """What a recording has taken in of a model besides its inputs: modules, weights, adapters."""

    def __init__(self, model: nn.Module) -> None:
        """Look at a model."""
        self.modules = list(model.modules())
        self.adapters: list[Any] = [each for each in self.modules if "lora_A" in each._modules]
        self.seen = self._look()

    def have_changed(self) -> bool:
        """Whether the model is another one than it was; the numbers in its weights may be."""
        return self._look() != self.seen

    def _look(self) -> list[Any]:
        look: list[Any] = []
        for module in self.modules:
            look += module._modules.values()
            look += [None if p is None else p.data_ptr() for p in module._parameters.values()]
            look.append(is_hooked(module))
        return look + [
            (dict(each.scaling), each.active_adapters, each.merged) for each in self.adapters
        ]


class CapturedDenoise:
    """`MMFaceDiT.denoise` as one recording a shape, for inference.

    The inputs are copied into the recording's own tensors. Recordings are dropped when the model's
    weights, modules or adapters are replaced or moved, and made anew by the next call. Autocast
    plays no part: inputs are of the model's dtype.
    """

    def __init__(
        self, model: MMFaceDiT, record: Record = CudaRecording, max_graphs: int = MAX_GRAPHS
    ) -> None:
        """Wrap the method of a model, whose blocks may be compiled.

        Args:
            model: The model, neither offloaded, quantized nor hooked.
            record: Makes a recording.
            max_graphs: Shapes of which a recording is kept.
        """
        check_plain(model)
        self.model, self.record, self.max_graphs = model, record, max_graphs
        self.captured: OrderedDict[tuple[Any, ...], Captured] = OrderedDict()
        self.fittings = Fittings(model)

    def __getstate__(self) -> dict[str, Any]:
        """Give what a copy has: all but the recordings, which are of this model's weights."""
        return {**vars(self), "captured": OrderedDict(), "fittings": None}

    @torch.no_grad()
    def __call__(
        self,
        noisy_latents: Float[Tensor, "batch channels height width"],
        condition_latents: Float[Tensor, "batch channels height width"],
        text: Float[Tensor, "batch text_tokens dim"],
        modulations: list[Tensor],
    ) -> Float[Tensor, "batch channels height width"]:
        """Record on the first call with these shapes, and replay."""
        if self.fittings is None or self.fittings.have_changed():
            self.captured.clear()
            check_plain(self.model)
            self.fittings = Fittings(self.model)
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
    """Whether something is run around a module's forward, such as offloading or a cache."""
    return "forward" in vars(module) or bool(module._forward_hooks or module._forward_pre_hooks)


def check_plain(model: MMFaceDiT) -> None:
    """Raise ValueError unless a model computes with plain weights that stay where they are.

    Args:
        model: The model.

    Raises:
        ValueError: If it is offloaded, hooked or quantized.
    """
    if any(type(p) is not nn.Parameter or not p.is_floating_point() for p in model.parameters()):
        raise ValueError(
            "The transformer is quantized or sharded, which the fast form does not take; load its "
            "plain weights, in bfloat16 to save memory."
        )
    for name, module in model.named_modules():
        if is_hooked(module):
            raise ValueError(
                f"The transformer has a hook ({name or 'on itself'}), by offloading or a cache, "
                "which the fast form would not run; load the pipeline without offloading, and "
                "disable_cache() first."
            )


def check_compiler(device: torch.device) -> None:
    """Raise ValueError unless torch.compile has what it needs on this machine.

    Args:
        device: Where the compiled code is to run.

    Raises:
        ValueError: If there is no C++ compiler for a CPU, or no Triton for a GPU.
    """
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
    """Put a pipeline into its fast form, for many calls of few shapes; `restore_pipeline` undoes.

    Blocks are compiled at the first call, and again for each other number of rows (pictures, twice
    with guidance), size or length of text, which takes seconds to a minute however deep the model
    is: a further call of a shape is the fast one. On a CPU, where matrix products take nearly all
    of the time, there is little to gain. Called again, the last call's arguments hold. Move the
    pipeline to its device and load LoRAs before.

    Args:
        pipeline: The pipeline, changed in place.
        compile_blocks: Whether to compile.
        capture: Whether to record steps as CUDA graphs; None does so on a GPU.

    Raises:
        ValueError: If the transformer is offloaded, hooked or quantized, a compiler or the GPU is
            missing; nothing has changed then.
    """
    transformer, device = pipeline.transformer, pipeline.transformer.device
    check_plain(transformer)
    capture = device.type == "cuda" if capture is None else capture
    if capture and device.type != "cuda":
        raise ValueError(f"CUDA graphs need a GPU, and the transformer is on the {device.type}.")
    if compile_blocks:
        check_compiler(device)
    restore_pipeline(pipeline)
    fuse_modulations(transformer)  # or not, if a LoRA changes them, which costs little
    transformer.eval()
    pipeline.vae.to(memory_format=torch.channels_last)
    if compile_blocks:
        # One graph a shape and kind of block; the compiler gives up at its own limit of eight.
        config = torch._dynamo.config
        config.recompile_limit = max(config.recompile_limit, MAX_SHAPES)
        transformer.compile_repeated_blocks(fullgraph=True, dynamic=False)
    if capture:
        transformer.__dict__["denoise"] = CapturedDenoise(transformer)


def restore_pipeline(pipeline: MMFacePipeline) -> None:
    """Take back `accelerate_pipeline`: a pipeline to train, adapt or move; eval mode stays.

    Args:
        pipeline: The pipeline, changed in place; one in its plain form stays as it is.
    """
    pipeline.transformer.__dict__.pop("denoise", None)
    for module in pipeline.transformer.modules():
        module.__dict__.pop("_compiled_call_impl", None)
    unfuse_modulations(pipeline.transformer)
    pipeline.vae.to(memory_format=torch.contiguous_format)
