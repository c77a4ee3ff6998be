"""Every fast path of the network gives the numbers of the plain reference, and its counts hold."""

import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import plain_reference
import pytest
import torch
from plain_reference import SAMPLING, TRAINING, Encoded, PlainFlowDiT, PlainMMFaceDiT
from safetensors import safe_open
from torch import Tensor, nn
from torch.optim import AdamW

from mmface.benchmarks.counting import TOY, count_operators, host_syncs
from mmface.benchmarks.measuring import Report, relative_error
from mmface.benchmarks.network import (
    GRADIENT_CLIP,
    OwnTraining,
    gradient_error,
    objective_of,
    training_batch,
)
from mmface.benchmarks.subjects import SIZES, Bench, make_inputs, on_meta, randomize, run_reference
from mmface.model.recomputation import selective_checkpoint
from mmface.model.transformer import MMFaceDiT

GOLDEN = Path(__file__).parent / "golden" / "released_layout_public.safetensors"
ROOT = Path(__file__).parent.parent


def pair(depth: int = 3, dtype: torch.dtype = torch.float64) -> tuple[MMFaceDiT, PlainMMFaceDiT]:
    """Build a model with random weights everywhere, and the reference with the same."""
    model = randomize(MMFaceDiT(**TOY, depth=depth, text_rope="none")).to(dtype)
    return model, PlainMMFaceDiT.from_state(model.to_released(), num_heads=TOY["num_heads"])


def inputs_of(model: MMFaceDiT, batch: int = 2) -> dict[str, Tensor]:
    return make_inputs(model, side=8, batch=batch, num_text=5)


@torch.no_grad()
def test_reference_gives_the_numbers_of_the_released_code():
    with safe_open(GOLDEN, "pt") as file:
        golden = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        sampled = json.loads(file.metadata()["sample"])
    weights = {k.removeprefix("weights."): v.float() for k, v in golden.items() if "weights." in k}
    flow = PlainFlowDiT.from_state(weights, num_heads=4)
    text = (golden["text"], golden["pooled"], golden["modality"])
    assert relative_error(flow(golden["x"], golden["t_flow"], *text), golden["velocity"]) < 1e-5
    diffusion = PlainMMFaceDiT.from_state(weights, num_heads=4)
    epsilon = diffusion(golden["x"], golden["t_ddpm"].float(), *text)
    assert relative_error(epsilon, golden["epsilon"]) < 1e-5
    command = SAMPLING["sample_flow"](flow, None, None, None)
    names = ("sample_condition", "sample_pooled", "sample_text")
    condition, pooled, tokens = (golden[name] for name in names)
    encoded = Encoded(condition, pooled, tokens, torch.tensor(sampled["modality"]))
    result = command.solve(
        golden["sample_noise"], encoded, sampled["steps"], sampled["guidance_scale"]
    )
    assert relative_error(result, golden["sample_result"]) < 1e-5


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
@torch.no_grad()
def test_forward(dtype: torch.dtype, limit: float):
    model, plain = pair(dtype=dtype)
    inputs = inputs_of(model)
    expected = run_reference(plain, inputs)
    assert expected.abs().max() > 0.1
    assert relative_error(model(**inputs), expected) <= limit
    half = {name: x[:1] for name, x in inputs.items()}
    assert relative_error(model(**half), expected[:1]) <= limit


@pytest.mark.parametrize(
    ("script", "prepare"),
    [
        ("train_flow_256", lambda model: None),
        ("train_flow_256", lambda model: model.enable_gradient_checkpointing()),
        ("train_flow_256", lambda model: model.enable_gradient_checkpointing(selective_checkpoint)),
        *((script, lambda model: None) for script in TRAINING if script != "train_flow_256"),
    ],
)
def test_training_step(script: str, prepare: Callable[[MMFaceDiT], None]):
    model, _ = pair(dtype=torch.float32)
    prepare(model)
    optimizer = functools.partial(AdamW, lr=1e-3)
    bench = Bench(SIZES["tiny"], torch.device("cpu"), plain_reference, Report(None, {}))
    own = OwnTraining(model, optimizer, objective=objective_of(bench, script))
    theirs = bench.training_script(script, model, optimizer, GRADIENT_CLIP)
    batch = training_batch(model, side=8, batch=3)
    before = model.final_linear.weight.detach().clone()
    assert own.step(batch) == pytest.approx(theirs.step(batch), rel=1e-5)
    assert gradient_error(own, theirs.model) <= 1e-5
    assert not torch.equal(model.final_linear.weight, before)


def test_selective_checkpointing_keeps_matrix_products_and_recomputes_the_rest():
    def backward_calls(prepare: Callable[[MMFaceDiT], None]) -> dict[str, int]:
        model, _ = pair(depth=2, dtype=torch.float64)  # plain products on every CPU
        model.train()
        prepare(model)
        loss = model(**inputs_of(model)).square().mean()
        return count_operators(loss.backward)

    kept = backward_calls(lambda model: None)
    full = backward_calls(lambda model: model.enable_gradient_checkpointing())
    selective = backward_calls(
        lambda model: model.enable_gradient_checkpointing(selective_checkpoint)
    )
    for product in ("aten.addmm.default", "aten.mm.default"):
        assert full[product] > kept[product]
        assert selective[product] == kept[product]
    assert selective["aten.gelu.default"] == full["aten.gelu.default"] == 3  # none is dead
    assert kept["aten.gelu.default"] == 0


@torch.no_grad()
def test_modulations_of_all_steps_and_guidance_in_one_batch():
    model, _ = pair()
    inputs, steps, scale = inputs_of(model), 4, 3.0
    pooled, tokens = inputs["pooled_text"], inputs["text_tokens"]  # row 0 unwanted, row 1 wanted
    noise, condition = inputs["noisy_latents"], inputs["condition_latents"]
    times = 999 * torch.arange(steps) / steps
    table = model.modulations(
        model.global_condition(
            times.repeat_interleave(2), pooled.repeat(steps, 1), torch.ones(2 * steps).long()
        )
    )
    text = model.text_embedder(tokens)
    row = torch.tensor([0, 0, 1, 1])  # branch by branch, two pictures each
    latents, both = noise, condition.repeat(2, 1, 1, 1)
    for step in range(steps):
        now = [m.unflatten(0, (steps, 2))[step, row] for m in table]
        unwanted, wanted = model.denoise(latents.repeat(2, 1, 1, 1), both, text[row], now).chunk(2)
        latents = latents + (unwanted + scale * (wanted - unwanted)) / steps
    flow = PlainFlowDiT.from_state(model.to_released(), num_heads=TOY["num_heads"])
    command = SAMPLING["sample_flow"](flow, None, None, None)
    expected = torch.cat(
        [
            command.solve(
                each[None], Encoded(its[None], pooled, tokens, torch.tensor(1)), steps, scale
            )
            for each, its in zip(noise, condition, strict=True)
        ]
    )
    # Time is float32 on both sides, and its sines are taken before the model's own precision.
    assert relative_error(latents, expected) <= 1e-9


@torch.no_grad()
def test_a_batch_in_parts_is_the_whole_batch():
    model, _ = pair()
    inputs = inputs_of(model, batch=5)
    parts = [model(**{n: x[i : i + 2] for n, x in inputs.items()}) for i in range(0, 5, 2)]
    assert relative_error(torch.cat(parts), model(**inputs)) <= 1e-12


@pytest.mark.slow
@torch.no_grad()
def test_operators_and_syncs_of_a_forward_pass_of_28_blocks():
    model, plain = pair(depth=28, dtype=torch.float32)
    inputs = inputs_of(model)
    model(**inputs)  # makes the rotation table
    assert host_syncs(lambda: model(**inputs)) == 0
    # On the meta device, where no CPU has operators of its own.
    model, plain = nn.Module.to(model, "meta"), plain.to("meta")
    inputs = inputs_of(model)
    model(**inputs)
    calls = count_operators(lambda: model(**inputs))
    assert calls.total() == 2521
    assert calls.total() < 0.7 * count_operators(lambda: run_reference(plain, inputs)).total()
    # Two fused projections instead of six a block; the last block's text makes no update.
    linear = calls["aten.mm.default"] + calls["aten.addmm.default"]
    assert linear == 28 * 4 + (27 * 4 + 1) + (28 + 1) + 5  # streams, modulations, embedders
    assert calls["aten.cos.default"] == 1  # of the time, none of positions
    assert calls["aten._scaled_dot_product_flash_attention_for_cpu.default"] == 28


@torch.no_grad()
def test_operators_on_the_meta_device_are_those_of_a_real_one():
    model, _ = pair(dtype=torch.float64)  # plain products on every CPU
    counts = []
    for each in (model, nn.Module.to(on_meta(model), torch.float64)):
        call: Callable = each
        work = functools.partial(call, **inputs_of(each))
        work()  # makes the rotation table
        counts.append(count_operators(work))
    assert counts[0].total() == counts[1].total()
    for name in ("addmm", "mm", "_scaled_dot_product_flash_attention_for_cpu"):
        assert counts[0][f"aten.{name}.default"] == counts[1][f"aten.{name}.default"] > 0


def test_a_sync_is_counted():
    assert host_syncs(lambda: torch.ones(2).sum().item()) == 1
    assert host_syncs(lambda: bool(torch.ones(2).isnan().any())) == 1


COMPILED = """
import torch
from mmface.benchmarks.counting import TOY, count_compilation
from torch._dynamo.utils import counters
from mmface.benchmarks.subjects import make_inputs, randomize
from mmface.benchmarks.measuring import relative_error
from mmface.model.transformer import MMFaceDiT

torch.set_num_threads(1)
model = randomize(MMFaceDiT(**TOY, depth=2, text_rope="none")).eval()
inputs = make_inputs(model, 8, 2, num_text=5)
counts = count_compilation(model, inputs)
assert counts == {"graph_breaks": 0, "recompiles": 0, "graphs": 2}, counts
counters.clear()
# One block of the two, since the C++ compiler takes its time; the other stays as it is.
with torch.no_grad():
    expected = model(**inputs)
    model.blocks[0].compile(fullgraph=True, dynamic=False)
    error = relative_error(model(**inputs), expected)
assert counters["stats"]["unique_graphs"] == 1, counters
assert error <= 1e-5, error
"""


@pytest.mark.slow
def test_compiled_blocks_break_nowhere_compile_once_and_agree():
    # In a process of its own, because the type-checking hook of these tests cannot be compiled.
    done = subprocess.run(
        [sys.executable, "-c", COMPILED], cwd=ROOT, capture_output=True, text=True
    )
    if "InvalidCxxCompiler" in done.stderr:
        pytest.skip("there is no C++ compiler")
    assert done.returncode == 0, done.stderr


def test_reference_leaves_out_a_step_whose_gradient_is_not_finite():
    _, plain = pair(depth=1, dtype=torch.float32)
    plain.requires_grad_(True)
    training = TRAINING["train_flow_512_optimized"](plain, lambda p: AdamW(p, lr=1e-3))
    model, _ = pair(depth=1, dtype=torch.float32)
    batch: dict[str, Any] = training_batch(model, side=8, batch=2)
    batch["latents"] = batch["latents"].fill_(torch.inf)
    before = nn.utils.parameters_to_vector(plain.parameters()).clone()
    training.step(batch)
    assert torch.equal(nn.utils.parameters_to_vector(plain.parameters()), before)
