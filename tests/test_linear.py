"""The linear layer: torch's numbers, whichever library multiplies."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmface.benchmarks.counting import count_operators
from mmface.benchmarks.measuring import relative_error
from mmface.model import transformer
from mmface.model.transformer import Linear, MMFaceDiT, OneDnnLinear, product

needs_onednn = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="torch was built without oneDNN"
)
SHAPES = [(3, 64, 128), (2, 333, 96), (5, 128), (1, 1, 40), (7,)]


def gradients(layer: Callable[[Tensor], Tensor], x: Tensor, weights: list[Tensor]) -> list[Tensor]:
    x = x.clone().requires_grad_()
    output = layer(x)
    upstream = torch.linspace(-1, 2, output.numel(), dtype=x.dtype).reshape(output.shape)
    return [output, *torch.autograd.grad(output, [x, *weights], upstream)]


@needs_onednn
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_onednn_gives_the_numbers_and_gradients_of_float64(shape: tuple[int, ...], bias: bool):
    torch.manual_seed(0)
    x, plain = torch.randn(shape), nn.Linear(shape[-1], 48, bias=bias)
    weights = [plain.weight, plain.bias] if bias else [plain.weight]

    def by_onednn(x: Tensor) -> Tensor:
        return OneDnnLinear.apply(x, plain.weight, plain.bias)

    ours = gradients(by_onednn, x, weights)
    exact = copy.deepcopy(plain).double()
    exact_weights = [exact.weight, exact.bias] if bias else [exact.weight]
    theirs = gradients(exact, x.double(), exact_weights)
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == torch.float32
        assert relative_error(a, b) <= 3e-6
    assert relative_error(product(x, plain.weight, plain.bias), theirs[0]) <= 3e-6


@needs_onednn
def test_onednn_takes_strided_inputs():
    torch.manual_seed(0)
    x, weight = torch.randn(4, 24, 10).transpose(1, 2), torch.randn(16, 48)[:, ::2]
    expected = F.linear(x.double(), weight.double())
    assert relative_error(product(x, weight), expected) <= 3e-6


@needs_onednn
def test_only_the_gradients_that_are_asked_for_are_computed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(transformer, "HAS_WIDE_ONEDNN", True)
    monkeypatch.setattr(transformer, "WORTH_IT", 0)
    layer, x = Linear(8, 4), torch.randn(2, 3, 8, requires_grad=True)
    layer.weight.requires_grad_(False)
    layer(x).sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is None
    assert layer.bias.grad is not None


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_layer_is_torchs_in_every_dtype(
    wide: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    if wide and not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("torch was built without oneDNN")
    monkeypatch.setattr(transformer, "HAS_WIDE_ONEDNN", wide)
    monkeypatch.setattr(transformer, "WORTH_IT", 0)
    torch.manual_seed(0)
    layer, x = Linear(32, 16).to(dtype), torch.randn(2, 5, 32, dtype=dtype)
    with torch.no_grad():
        assert layer(x).dtype == dtype
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))
        assert layer.to("meta")(x.to("meta")).shape == (2, 5, 16)


def test_small_products_stay_torchs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(transformer, "HAS_WIDE_ONEDNN", True)
    layer, x = Linear(32, 16), torch.randn(2, 32)
    assert count_operators(lambda: layer(x))["aten.addmm.default"] == 1
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        layer, x = Linear(1024, 1024), torch.randn(2, 1024)
        assert count_operators(lambda: layer(x))["aten.addmm.default"] == 0


def test_autocast_decides_the_dtype():
    layer, x = Linear(32, 16), torch.randn(2, 32)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


def test_every_layer_of_the_network_is_one():
    model = MMFaceDiT(hidden_size=16, depth=2, num_heads=2, text_dim=8)
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert layers
    assert {type(layer) for layer in layers} == {Linear}
