"""Linear layers that use all of a CPU's vector units.

On a CPU torch hands float32 products to MKL, which gives processors that are not Intel's the
narrower AVX2 code: on an AMD EPYC with AVX-512, 93 GFLOP/s a core, where oneDNN, with which torch
runs convolutions, reaches 213. `Linear` multiplies with oneDNN there. Elsewhere, and in any other
dtype, it is `nn.Linear`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

HAS_WIDE_ONEDNN = (
    torch.backends.mkldnn.is_available()
    and torch.backends.cpu.get_cpu_capability() == "AVX512"
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
"""Whether oneDNN is faster on this CPU, and torch was built with its linear operator."""
WORTH_IT = 2**21
"""Multiplications above which oneDNN's speed outweighs 17 us more a call."""


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Give x W^T + b by oneDNN, without a gradient."""
    if torch.compiler.is_compiling():
        return opaque_product(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


# The compiler would treat the weights of torch's own operator as constants.
@torch.library.custom_op("mmface::product", mutates_args=())
def opaque_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Give x W^T + b by oneDNN, as one operator to the compiler."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@opaque_product.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


class OneDnnLinear(torch.autograd.Function):
    """x W^T + b whose three products, forward and backward, are oneDNN's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Multiply, and save what the backward pass needs."""
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Give the gradients of input, weight and bias that are asked for."""
        x, weight = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1])
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        return (
            product(gradient, weight.t()) if wants_x else None,
            product(rows.t(), x.reshape(-1, x.shape[-1]).t()) if wants_weight else None,
            rows.sum(0) if wants_bias else None,
        )


class Linear(nn.Linear):
    """`nn.Linear`, by oneDNN where that is faster."""

    def forward(self, input: Float[Tensor, "*batch in_features"]) -> Tensor:
        """Give input W^T + b, [*batch, out_features]."""
        x, weight, bias = input, self.weight, self.bias
        if not (
            HAS_WIDE_ONEDNN
            and x.device.type == weight.device.type == "cpu"
            and x.dtype == weight.dtype == torch.float32
            and x.numel() * self.out_features >= WORTH_IT
            and not torch.is_autocast_enabled("cpu")
        ):
            return F.linear(x, weight, bias)
        if torch.is_grad_enabled():
            return OneDnnLinear.apply(x, weight, bias)
        return product(x, weight, bias)
