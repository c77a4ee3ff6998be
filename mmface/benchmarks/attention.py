"""Attention alone: each kernel of the device, and padded heads, beside torch's own choice.

A head of the paper's model has 72 numbers. Kernels round that up, most of them to 96 or 128.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from diffusers.models.attention_dispatch import attention_backend, dispatch_attention_fn
from torch import Tensor

from mmface.benchmarks.measuring import relative_error
from mmface.benchmarks.network import share_of_peak
from mmface.benchmarks.subjects import TEXT_TOKENS, Bench

BACKENDS = {
    "cuda": ("_native_flash", "_native_cudnn", "_native_efficient", "_native_math"),
    "cpu": ("_native_math",),
}
"""Names of diffusers' dispatcher; on a CPU torch's own choice is its flash kernel."""
PADDED = (80, 96, 128)


def padded_attention(query: Tensor, key: Tensor, value: Tensor, head_dim: int) -> Tensor:
    """Attend with zeros behind each head, [B, tokens, H, d] -> the same numbers.

    A kernel may prefer the width `head_dim`.
    """
    own = query.shape[-1]
    query, key, value = (F.pad(x, (0, head_dim - own)) for x in (query, key, value))
    return dispatch_attention_fn(query, key, value, scale=own**-0.5)[..., :own]


def measure_attention(bench: Bench) -> None:
    """The attention of one block over image and text, for one guided picture."""
    head_dim = bench.models[0].head_dim
    for side in bench.size.sides:
        for backend in BACKENDS[bench.device.type]:
            way: Callable[..., Tensor] = dispatch_attention_fn
            case = f"{8 * side} px {backend}"
            run = partial(_attention, bench, case, side, way, backend)
            bench.report.measure("attention", case, run)
        for width in (width for width in PADDED if width > head_dim):
            way = partial(padded_attention, head_dim=width)
            case = f"{8 * side} px heads of {width}"
            run = partial(_attention, bench, case, side, way, "native")
            bench.report.measure("attention", case, run)


@torch.no_grad()
def _attention(
    bench: Bench, case: str, side: int, way: Callable[..., Tensor], backend: str
) -> dict[str, float]:
    network, batch = bench.models[0], 2
    heads, head_dim = network.config.num_heads, network.head_dim
    tokens = (side // network.patch_size) ** 2 + TEXT_TOKENS
    generator = torch.Generator(bench.device).manual_seed(2)
    shape = (3, batch, tokens, heads, head_dim)
    drawn = torch.randn(shape, generator=generator, device=bench.device).to(bench.dtype)

    def reference() -> Tensor:
        query, key, value = (x.transpose(1, 2) for x in drawn)
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)

    def own() -> Tensor:
        with attention_backend(backend):
            return way(*drawn)

    values = bench.compare(f"attention {case}", reference, own)
    work = 4 * batch * heads * head_dim * tokens**2
    exact = F.scaled_dot_product_attention(*(x.transpose(1, 2).double() for x in drawn))
    error = relative_error(own(), exact.transpose(1, 2))
    return {**values, **share_of_peak(bench, work, values), "relative_error": error}
