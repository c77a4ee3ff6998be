"""Decay groups, the 8-bit optimizer and what stands in for it, and the weights' average."""

import sys

import pytest
import torch
from conftest import build_transformer
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from mmface.training.optimization import (
    ExponentialAverage,
    adamw_8bit,
    optimizer_bytes,
    parameter_groups,
)


def decayed_names(module):
    decayed = {id(p) for p in parameter_groups(module)[0]["params"]}
    return {name for name, p in module.named_parameters() if id(p) in decayed}


def test_only_matrices_of_linears_and_convolutions_decay_in_the_transformer():
    stream = ("qkv.weight", "out.weight", "mlp.0.weight", "mlp.2.weight")
    expected = {f"blocks.0.{side}.{name}" for side in ("image", "text") for name in stream}
    expected |= {f"blocks.1.image.{name}" for name in stream}
    expected |= {"blocks.1.text.qkv.weight"}  # the rest of it is frozen
    expected |= {f"block_modulations.{i}.weight" for i in (0, 1)}
    for name in ("patch_embedder", "text_embedder", "time_mlp.0", "time_mlp.2", "pooled_embedder"):
        expected.add(f"{name}.weight")
    expected |= {"final_modulation.weight", "final_linear.weight"}
    model = build_transformer()
    assert decayed_names(model) == expected
    decayed, rest = parameter_groups(model)
    assert "weight_decay" not in decayed
    assert rest["weight_decay"] == 0.0
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert len(decayed["params"]) + len(rest["params"]) == len(trainable)
    names = {id(p): name for name, p in model.named_parameters()}
    others = {names[id(p)] for p in rest["params"]}
    assert "modality_embedder.weight" in others
    assert all(name.endswith((".bias", "modality_embedder.weight")) for name in others)


def test_norms_and_embeddings_do_not_decay():
    config = CLIPTextConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    names = decayed_names(CLIPTextModel(config))
    assert names
    assert not [name for name in names if "norm" in name or "embedding" in name or "bias" in name]


def test_the_groups_own_decay_reaches_the_optimizer():
    layer = nn.Linear(2, 2)
    nn.init.ones_(layer.weight)
    nn.init.ones_(layer.bias)
    optimizer = torch.optim.AdamW(parameter_groups(layer), lr=0.1, weight_decay=0.5)
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(layer.weight, torch.full((2, 2), 0.95))
    torch.testing.assert_close(layer.bias, torch.ones(2))


def test_8_bit_adamw_is_taken_where_it_runs(capsys):
    layer = nn.Linear(128, 128)
    optimizer = adamw_8bit(parameter_groups(layer), lr=1e-3)
    assert type(optimizer).__name__ == "AdamW8bit"
    assert capsys.readouterr().err == ""
    layer(torch.ones(1, 128)).sum().backward()
    optimizer.step()
    states = [state["state1"].dtype for state in optimizer.state.values()]
    assert sorted(map(str, states)) == ["torch.float32", "torch.uint8"]
    assert optimizer_bytes(optimizer) == 2 * 128 * 128 + 8 * 128
    assert optimizer_bytes(torch.optim.AdamW(layer.parameters())) == 8 * (128 * 128 + 128)


def test_plain_adamw_stands_in_and_says_why(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    layer = nn.Linear(4, 4)
    optimizer = adamw_8bit(parameter_groups(layer), lr=3e-4, betas=[0.8, 0.9], weight_decay=0.2)
    assert type(optimizer) is torch.optim.AdamW
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.2, 0.0]
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.9)
    (line,) = capsys.readouterr().err.splitlines()
    assert "8-bit AdamW cannot run on cpu" in line
    assert "torch.optim.AdamW is used instead" in line
    layer(torch.ones(1, 4)).sum().backward()
    optimizer.step()


def averages_of(values, **arguments):
    """The average after each step of a weight that takes these values."""
    layer = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(layer.weight)
    average = ExponentialAverage(layer, **arguments)
    seen = []
    for value in values:
        nn.init.constant_(layer.weight, value)
        average.update()
        seen.append(average.state()["weight"].item())
    return seen


def test_average_starts_from_the_first_step_warms_up_and_then_decays():
    first, second, third = averages_of([5.0, 1.0, 1.0], decay=0.9)
    assert first == 5.0
    assert second == pytest.approx(1 + 4 * 2 / 11)  # (1 + n) / (10 + n) at n = 1
    assert third == pytest.approx(1 + 4 * 2 / 11 * 3 / 12)
    values = [3.0] + [0.0] * 400
    late = averages_of(values, decay=0.5)
    assert late[30] == pytest.approx(late[29] * 0.5)


def test_every_k_steps_decays_by_all_of_them():
    values = [0.0] * 400 + [1.0] * 40  # the warm-up is over
    each, fourth = (averages_of(values, decay=0.95, every=k) for k in (1, 4))
    assert fourth[-1] == pytest.approx(each[-1], abs=1e-6)
    assert fourth[401] == fourth[400] == 0.0
    assert fourth[403] == pytest.approx(1 - 0.95**4)


def test_average_goes_on_from_its_state_and_can_lie_on_the_cpu():
    layer = nn.Linear(2, 2)
    layer.bias.requires_grad_(False)
    average = ExponentialAverage(layer, 0.9, on_cpu=True)
    average.update()
    assert set(average.state()) == {"weight"}
    other = ExponentialAverage(nn.Linear(2, 2), 0.9, on_cpu=True)
    other.load(average.state() | {"bias": torch.zeros(2)}, average.num_averaged)
    assert torch.equal(other.state()["weight"], average.state()["weight"])
    assert other.num_averaged == 1
