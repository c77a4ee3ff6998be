"""The modulations as one layer: numbers, names and files of a layer a block, and the way back."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_reference import PlainMMFaceDiT
from safetensors import safe_open
from torch import Tensor, nn

from mmface.benchmarks.counting import TOY, count_operators
from mmface.benchmarks.measuring import relative_error
from mmface.benchmarks.subjects import make_inputs, on_meta, randomize, run_reference, twin
from mmface.model.ablations import SingleStreamDiT
from mmface.model.packed_modulations import PackedModulations, fuse_modulations, unfuse_modulations
from mmface.model.transformer import MMFaceDiT

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden" / "released_layout_public.safetensors"


def build(depth: int = 3, dtype: torch.dtype = torch.float64) -> MMFaceDiT:
    return randomize(MMFaceDiT(**TOY, depth=depth, text_rope="none")).to(dtype).eval()


def fused(model: MMFaceDiT) -> MMFaceDiT:
    model = copy.deepcopy(model)
    assert fuse_modulations(model)
    assert isinstance(model.block_modulations, PackedModulations)
    return model


def outputs(model: MMFaceDiT) -> Tensor:
    return model(**make_inputs(model, side=8, batch=2, num_text=5))


def same_states(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    assert list(ours) == list(theirs)
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


@torch.no_grad()
def test_fused_gives_the_same_numbers_as_the_reference_and_the_layers():
    model = build()
    packed = fused(model)
    plain = PlainMMFaceDiT.from_state(packed.to_released(), num_heads=TOY["num_heads"])
    expected = run_reference(plain, make_inputs(model, side=8, batch=2, num_text=5))
    assert relative_error(outputs(packed), expected) <= 1e-12
    condition = torch.randn(5, TOY["hidden_size"]).double()
    for own, layer in zip(packed.modulations(condition), model.modulations(condition), strict=True):
        assert relative_error(own, layer) <= 1e-12
    single = randomize(SingleStreamDiT(**TOY, depth=2)).double()
    assert relative_error(outputs(fused(single)), outputs(single)) <= 1e-12


@pytest.mark.slow
def test_28_layers_are_one_in_a_forward_pass():
    with torch.device("meta"):
        model = MMFaceDiT(**TOY, depth=28)
    shapes = make_inputs(model, side=8, batch=2, num_text=5)
    with torch.no_grad():
        model(**shapes)
        before = count_operators(lambda: model(**shapes))
        assert fuse_modulations(model)
        after = count_operators(lambda: model(**shapes))
    assert before.total() - after.total() == 2 * 28 - 3  # each transposed and multiplied
    assert before["aten.addmm.default"] - after["aten.addmm.default"] == 27


def test_fused_weights_are_in_memory_once():
    model = build()
    numel = sum(p.numel() for p in model.parameters())
    before = {p.data_ptr() for p in model.block_modulations.parameters()}
    assert fuse_modulations(model)
    assert sum(p.numel() for p in model.parameters()) == numel
    own = {p.untyped_storage().data_ptr() for p in model.block_modulations.parameters()}
    state = model.state_dict()
    shown = {
        state[name].untyped_storage().data_ptr()
        for name in state
        if name.startswith("block_modulations.")
    }
    assert shown == own
    assert not own & before


def test_state_dicts_and_files_are_those_of_the_layers(tmp_path):
    model = build(dtype=torch.float32)
    packed = fused(model)
    assert same_states(packed, model)
    for name, tensor in packed.to_released().items():
        assert torch.equal(tensor, model.to_released()[name])
    model.save_pretrained(tmp_path / "plain")
    packed.save_pretrained(tmp_path / "fused")
    files = sorted(path.name for path in (tmp_path / "plain").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "fused").iterdir())
    for name in files:
        one, other = (tmp_path / kind / name for kind in ("plain", "fused"))
        assert one.read_bytes() == other.read_bytes()
    assert same_states(MMFaceDiT.from_pretrained(tmp_path / "fused"), model)


@pytest.mark.parametrize("assign", [False, True])
def test_a_fused_model_loads_what_a_plain_one_does(assign: bool):
    other = randomize(build(), seed=7)
    packed = fused(build())
    address = packed.get_parameter("block_modulations.weight").data_ptr()
    packed.load_state_dict(other.state_dict(), assign=assign)
    assert (packed.get_parameter("block_modulations.weight").data_ptr() == address) is not assign
    assert same_states(packed, other)
    assert relative_error(outputs(packed), outputs(other)) <= 1e-12


def change_names(state: dict[str, Tensor]) -> None:
    state["block_modulations.1.scale"] = state.pop("block_modulations.1.bias")
    state["block_modulations.3.weight"] = state["block_modulations.2.weight"]


def change_shape(state: dict[str, Tensor]) -> None:
    state["block_modulations.0.weight"] = state["block_modulations.0.weight"][1:]


@pytest.mark.parametrize("change", [change_names, change_shape])
def test_what_does_not_fit_is_reported_as_by_a_plain_model(change: Callable[[Any], None]):
    model = build()
    state = dict(model.state_dict())
    change(state)
    messages = []
    for each in (model, fused(model)):
        with pytest.raises(RuntimeError) as caught:
            each.load_state_dict(state)
        messages.append(sorted(re.findall(r"\w+(?:\.\w+)*", str(caught.value))))
    assert messages[0] == messages[1]
    if change is change_names:
        found = fused(model).load_state_dict(state, strict=False)
        assert found.missing_keys == ["block_modulations.1.bias"]
        assert set(found.unexpected_keys) == {
            "block_modulations.1.scale",
            "block_modulations.3.weight",
        }


def test_copies_and_other_dtypes_of_a_fused_model():
    model = build()
    packed = fused(model)
    other = copy.deepcopy(packed)
    assert same_states(other, model)
    with torch.no_grad():
        other.get_parameter("block_modulations.weight").zero_()
    assert same_states(packed, model)
    assert same_states(nn.Module.to(packed, torch.bfloat16), nn.Module.to(model, torch.bfloat16))
    assert packed.block_modulations.weight.dtype == torch.bfloat16
    assert on_meta(model).block_modulations[0].weight.device.type == "meta"


@torch.no_grad()
def test_golden_weights_load_into_a_fused_model():
    with safe_open(GOLDEN, "pt") as file:
        golden = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    weights = {k.removeprefix("weights."): v.float() for k, v in golden.items() if "weights." in k}
    model = MMFaceDiT.from_released(weights, num_heads=4)
    assert fuse_modulations(model)
    text = (golden["text"], golden["pooled"], golden["modality"])
    velocity = model(*golden["x"].chunk(2, dim=1), golden["t_flow"] * 999, *text)
    assert relative_error(velocity, golden["velocity"]) < 1e-5
    for name, tensor in model.to_released().items():
        assert torch.equal(tensor, weights[name])


def test_fusing_and_unfusing_again_is_harmless_and_an_unfused_model_trains():
    model = build()
    other = copy.deepcopy(model).train()
    assert fuse_modulations(other)
    packed = other.block_modulations
    assert fuse_modulations(other)
    assert other.block_modulations is packed
    unfuse_modulations(other)
    layers = other.block_modulations
    unfuse_modulations(other)
    assert other.block_modulations is layers
    assert all(module.training for module in layers.modules())
    addresses = {p.untyped_storage().data_ptr() for p in layers.parameters()}
    assert len(addresses) == 2 * 3  # accelerate saves one of the tensors that share memory
    assert same_states(other, model)
    for each in (model, other):
        optimizer = torch.optim.AdamW([p for p in each.parameters() if p.requires_grad], lr=0.01)
        outputs(each).square().mean().backward()
        optimizer.step()
    assert same_states(other, model)
    assert not same_states(other, build())


def test_layers_that_are_not_alike_stay_as_they_are():
    model = build()
    model.block_modulations[1].requires_grad_(False)
    layers = model.block_modulations
    assert not fuse_modulations(model)
    assert model.block_modulations is layers


def test_twins_share_the_weights_of_a_fused_model():
    packed = fused(build())
    assert relative_error(outputs(twin(packed)), outputs(packed)) <= 1e-12
