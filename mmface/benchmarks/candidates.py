"""Ways to run the model that are measured here and switched on nowhere by themselves."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

aten = torch.ops.aten
KEPT = [
    aten.mm.default,
    aten.addmm.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
]
"""What selective checkpointing keeps: matrix products and attention, all that is dear to redo."""


def selective_checkpoint(block: nn.Module, *arguments: Any) -> Any:
    """Run a block so that the backward pass recomputes norms, rotations, gates and GELU alone.

    Of about 27 vectors of width D that a token leaves in each block, about 10 stay. For
    `MMFaceDiT.enable_gradient_checkpointing(selective_checkpoint)`.

    Args:
        block: The block.
        *arguments: What its forward takes.

    Returns:
        What its forward returns.
    """
    contexts = partial(create_selective_checkpoint_contexts, KEPT)
    return checkpoint(block, *arguments, use_reentrant=False, context_fn=contexts)


class CapturedDenoise:
    """`MMFaceDiT.denoise` as one CUDA graph a shape: the host launches once instead of 2,000 times.

    For inference on a GPU. The inputs are copied into the graph's own tensors. A graph holds the
    addresses of the weights, which must not be replaced or moved.
    """

    def __init__(self, denoise: Callable[..., Tensor]) -> None:
        """Wrap the method of a model, whose blocks may be compiled."""
        self.denoise = denoise
        self.graphs: dict[tuple[torch.Size, ...], tuple[Any, list[Tensor], Tensor]] = {}

    @torch.no_grad()
    def __call__(
        self,
        noisy_latents: Float[Tensor, "batch channels height width"],
        condition_latents: Float[Tensor, "batch channels height width"],
        text: Float[Tensor, "batch text_tokens dim"],
        modulations: list[Tensor],
    ) -> Float[Tensor, "batch channels height width"]:
        """Capture on the first call with these shapes, and replay."""
        inputs = [noisy_latents, condition_latents, text, *modulations]
        key = tuple(x.shape for x in inputs)
        if key not in self.graphs:
            self.graphs[key] = self._capture(inputs)
        graph, own, output = self.graphs[key]
        torch._foreach_copy_(own, inputs)
        graph.replay()
        return output.clone()

    def _capture(self, inputs: list[Tensor]) -> tuple[Any, list[Tensor], Tensor]:
        own = [x.clone() for x in inputs]

        def run() -> Tensor:
            return self.denoise(*own[:3], own[3:])

        # Compiles, fills caches and sets up libraries, none of which may happen under capture.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = run()
        return graph, own, output
