"""The network: its numbers against the released code, and the properties the paper gives it."""

import copy
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from diffusers.models.attention_dispatch import attention_backend
from safetensors import safe_open
from torch import Tensor
from torch._dynamo.utils import counters

from mmface.benchmarks.counting import count_operators
from mmface.model import transformer
from mmface.model.transformer import Block, MMFaceDiT, joint_rotation, rotate

GOLDEN = Path(__file__).parent / "golden" / "released_layout_public.safetensors"
TINY = {"latent_channels": 4, "hidden_size": 32, "depth": 2, "num_heads": 2, "text_dim": 8}
CPU = torch.device("cpu")


def tiny_model(**overrides: object) -> MMFaceDiT:
    """Build a tiny model with random weights everywhere, also on layers that start at zero."""
    return randomized(MMFaceDiT(**{**TINY, **overrides}))


def randomized(model: MMFaceDiT) -> MMFaceDiT:
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.2, generator=generator)
    return model


def tiny_inputs(height: int = 8, width: int = 8, batch: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "noisy_latents": torch.randn(batch, 4, height, width, generator=generator),
        "condition_latents": torch.randn(batch, 4, height, width, generator=generator),
        "timestep": torch.rand(batch, generator=generator) * 999,
        "text_tokens": torch.randn(batch, 5, 8, generator=generator),
        "pooled_text": torch.randn(batch, 8, generator=generator),
        "modality": torch.arange(batch) % 2,
    }


@pytest.fixture(scope="module")
def unchecked() -> Iterator[ModuleType]:
    """The model's file without run-time type checks, as users run it.

    An import hook that checks shapes would answer wrong inputs in the model's place, and its
    wrappers cannot be compiled.
    """
    with pytest.MonkeyPatch.context() as patch:
        own = unchecked_copy(transformer)
        patch.setitem(sys.modules, own.__name__, own)  # where the compiler looks for globals
        yield own


def unchecked_copy(module: ModuleType) -> ModuleType:
    assert module.__file__ is not None
    name = "unchecked_" + Path(module.__file__).stem
    spec = importlib.util.spec_from_file_location(name, module.__file__)
    assert spec is not None
    assert spec.loader is not None
    copy_of_module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy_of_module)
    return copy_of_module


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with safe_open(GOLDEN, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.fixture(scope="module")
def golden_model(golden: dict[str, Tensor]) -> MMFaceDiT:
    prefix = "weights."
    weights = {k.removeprefix(prefix): v for k, v in golden.items() if k.startswith(prefix)}
    return MMFaceDiT.from_released(weights, num_heads=4)


def assert_near(actual: Tensor, expected: Tensor) -> None:
    """Assert a relative error of at most 1e-4, in the largest element and in the norm."""
    error = (actual - expected).detach()
    assert error.abs().max() <= 1e-4 * expected.abs().max()
    assert error.norm() <= 1e-4 * expected.norm()


def test_released_velocity_and_gradient(golden: dict[str, Tensor], golden_model: MMFaceDiT) -> None:
    x = golden["x"].clone().requires_grad_()
    text = (golden["text"], golden["pooled"], golden["modality"])
    velocity = golden_model(*x.chunk(2, dim=1), golden["t_flow"] * 999, *text)
    (grad_x,) = torch.autograd.grad(velocity.square().mean(), x)
    assert_near(velocity, golden["velocity"])
    assert_near(grad_x, golden["grad_x"])


@torch.no_grad()
def test_released_epsilon(golden: dict[str, Tensor], golden_model: MMFaceDiT) -> None:
    text = (golden["text"], golden["pooled"], golden["modality"])
    epsilon = golden_model(*golden["x"].chunk(2, dim=1), golden["t_ddpm"].float(), *text)
    assert_near(epsilon, golden["epsilon"])


@pytest.mark.parametrize("at_once", [False, True], ids=["step by step", "modulations at once"])
@torch.no_grad()
def test_released_guided_euler_sample(
    golden: dict[str, Tensor], golden_model: MMFaceDiT, at_once: bool
) -> None:
    with safe_open(GOLDEN, "pt") as file:
        sample = json.loads(file.metadata()["sample"])
    steps, scale = sample["steps"], sample["guidance_scale"]
    text, pooled = golden["sample_text"], golden["sample_pooled"]
    condition_latents = golden["sample_condition"].repeat(2, 1, 1, 1)
    timesteps = 999 * torch.arange(steps).repeat_interleave(2) / steps
    modality = torch.full((2 * steps,), sample["modality"])
    condition = golden_model.global_condition(timesteps, pooled.repeat(steps, 1), modality)
    modulations = [m.split(2) for m in golden_model.modulations(condition)]
    tokens = golden_model.text_embedder(text)
    latents = golden["sample_noise"]
    for i in range(steps):
        both = latents.repeat(2, 1, 1, 1)
        if at_once:
            step = [m[i] for m in modulations]
            velocity = golden_model.denoise(both, condition_latents, tokens, step)
        else:
            now = timesteps[2 * i : 2 * i + 2]
            velocity = golden_model(both, condition_latents, now, text, pooled, modality[:2])
        unconditional, conditional = velocity.chunk(2)
        latents = latents + (unconditional + scale * (conditional - unconditional)) / steps
    assert_near(latents, golden["sample_result"])


def test_paper_model_has_the_published_size() -> None:
    with torch.device("meta"):
        model = MMFaceDiT()
    assert sum(p.numel() for p in model.parameters()) == 1_345_298_624
    assert model.config.text_rope == "sequential"
    assert not list(model.buffers())


@torch.no_grad()
def test_untrained_blocks_are_the_identity_and_the_output_is_zero() -> None:
    torch.manual_seed(0)
    model = MMFaceDiT(**TINY)
    image, text = torch.randn(2, 16, 32), torch.randn(2, 5, 32)
    rotation = joint_rotation(4, 4, (0, 1, 2, 3, 4), 16, "10000.0", CPU)
    modulations = model.modulations(torch.randn(2, 32))
    for block, modulation in zip(model.blocks, modulations[:-1], strict=True):
        new_image, new_text = block(image, text, modulation, rotation)
        assert torch.equal(new_image, image)
        assert torch.equal(new_text, text)
    assert not model(**tiny_inputs()).any()


def test_fused_projections_start_as_three_separate_ones() -> None:
    for block in MMFaceDiT(**TINY).blocks:
        for part in (*block.image.qkv.weight.chunk(3), *block.text.qkv.weight.chunk(3)):
            bound = (6 / (32 + 32)) ** 0.5  # Xavier's for a square matrix
            assert 0.9 * bound < part.abs().max() <= bound


def test_checkpointing_changes_no_value_and_no_gradient() -> None:
    def run(model: MMFaceDiT) -> tuple[Tensor, dict[str, Tensor | None]]:
        output = model(**tiny_inputs())
        output.square().mean().backward()
        return output, {name: p.grad for name, p in model.named_parameters()}

    plain = tiny_model().train()
    checkpointed = copy.deepcopy(plain)
    checkpointed.enable_gradient_checkpointing()
    output, gradients = run(plain)
    output_again, gradients_again = run(checkpointed)
    assert torch.equal(output, output_again)
    torch.testing.assert_close(gradients, gradients_again, rtol=0, atol=0)


def test_every_trainable_parameter_gets_a_gradient() -> None:
    model = tiny_model()
    model(**tiny_inputs()).square().mean().backward()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    dead = {"out.weight", "mlp.0.weight", "mlp.0.bias", "mlp.2.weight", "mlp.2.bias"}
    assert frozen == {"null_pooled"} | {f"blocks.1.text.{name}" for name in dead}
    assert {name for name, p in model.named_parameters() if p.grad is None} == frozen
    width = model.config.hidden_size
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    qkv = gradients["blocks.1.text.qkv.weight"]
    query_gradient, live_gradient = qkv.split([width, 2 * width])
    assert not query_gradient.any()
    assert live_gradient.any()
    assert not gradients["block_modulations.1.weight"][8 * width :].any()


@torch.no_grad()
def test_dropping_the_last_text_update_changes_nothing() -> None:
    model, inputs = tiny_model(), tiny_inputs()
    expected = model(**inputs)
    whole = Block(model.config.hidden_size, model.config.num_heads, model.config.mlp_ratio)
    whole.load_state_dict(model.blocks[-1].state_dict())
    computed = copy.deepcopy(model)
    computed.blocks[-1] = whole
    torch.testing.assert_close(computed(**inputs), expected)
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.fill_(torch.nan)
    assert torch.equal(model(**inputs), expected)


def test_save_and_load(tmp_path: Path) -> None:
    model, inputs = tiny_model(text_rope="none", objective="min_snr_diffusion"), tiny_inputs()
    with torch.no_grad():
        expected = model(**inputs)
        model.save_pretrained(tmp_path)
        loaded = MMFaceDiT.from_pretrained(tmp_path)
        assert torch.equal(loaded(**inputs), expected)
    assert [file.name for file in tmp_path.glob("diffusion_pytorch_model*")] == [
        "diffusion_pytorch_model.safetensors"
    ]
    assert loaded.config.text_rope == "none"
    assert loaded.config.objective == "min_snr_diffusion"
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, p in loaded.named_parameters() if p.requires_grad} == trainable


def test_image_rotation_depends_on_relative_position_only() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 9, 2, 16).unbind()
    table = joint_rotation(8, 8, (), 16, "10000.0", CPU).unflatten(1, (8, 8))

    def logits(row: int, column: int) -> Tensor:
        rotation = table[:, row : row + 3, column : column + 3].flatten(1, 2)
        return torch.einsum("bqhd,bkhd->bhqk", rotate(query, rotation), rotate(key, rotation))

    torch.testing.assert_close(logits(4, 2), logits(0, 0), rtol=1e-5, atol=1e-5)
    unrotated = torch.einsum("bqhd,bkhd->bhqk", query, key)
    assert (logits(0, 0) - unrotated).abs().max() > 0.1


def test_rotation_of_text_and_of_the_two_axes() -> None:
    sequential = joint_rotation(2, 3, (0, 1, 2), 16, "10000.0", CPU)
    angles = torch.atan2(*sequential.flip(0))[:, 0]  # [6 + 3, 8]
    frequencies = 10000.0 ** (-torch.arange(4) / 4)
    torch.testing.assert_close(angles[5], torch.cat((frequencies, 2 * frequencies)))  # row 1 col 2
    torch.testing.assert_close(angles[7], 10000.0 ** (-torch.arange(8) / 8))
    still = joint_rotation(2, 3, (0, 0, 0), 16, "10000.0", CPU)[:, 6:]
    assert torch.equal(still, torch.stack((torch.ones(3, 1, 8), torch.zeros(3, 1, 8))))


@pytest.mark.parametrize(("text_rope", "matters"), [("sequential", True), ("none", False)])
@torch.no_grad()
def test_order_of_text_tokens(text_rope: str, matters: bool) -> None:
    model, inputs = tiny_model(text_rope=text_rope), tiny_inputs()
    expected = model(**inputs)
    inputs["text_tokens"] = inputs["text_tokens"].flip(1)
    difference = (model(**inputs) - expected).abs().max() / expected.abs().max()
    assert difference > 1e-3 if matters else difference < 1e-5


@torch.no_grad()
def test_rectangular_latents() -> None:
    model = tiny_model()
    wide = model(**tiny_inputs(4, 12))
    assert wide.shape == (2, 4, 4, 12)
    turned = {
        name: x.transpose(2, 3) if x.ndim == 4 else x for name, x in tiny_inputs(4, 12).items()
    }
    assert model(**turned).shape == (2, 4, 12, 4)
    assert not torch.allclose(model(**turned).transpose(2, 3), wide, atol=1e-3)


@torch.no_grad()
def test_modality_and_time_and_prompt_steer_the_output() -> None:
    model, inputs = tiny_model(), tiny_inputs()
    expected = model(**inputs)
    changed = {
        "modality": 1 - inputs["modality"],
        "timestep": inputs["timestep"] / 2,
        "pooled_text": inputs["pooled_text"] + 1,
        "condition_latents": torch.zeros_like(inputs["condition_latents"]),
    }
    for name, value in changed.items():
        assert not torch.allclose(model(**{**inputs, name: value}), expected, atol=1e-3), name


def test_bfloat16_keeps_time_apart() -> None:
    model = MMFaceDiT(**TINY).to(torch.bfloat16)
    pooled = torch.zeros(2, 8, dtype=torch.bfloat16)
    near = torch.tensor([900.0, 901.0])  # equal in bfloat16
    first, second = model.global_condition(near, pooled, torch.zeros(2, dtype=torch.long))
    assert first.dtype == torch.bfloat16
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("noisy_latents", (2, 3, 8, 8), r"noisy_latents must be \[2, 4, height, width\]"),
        ("noisy_latents", (2, 4, 8), r"noisy_latents must be .* got \[2, 4, 8\]"),
        ("condition_latents", (2, 4, 8, 6), "condition_latents must be"),
        ("condition_latents", (1, 4, 8, 8), "condition_latents must be"),
        ("timestep", (1,), r"timestep must be \[2\], got \[1\]"),
        ("timestep", (), r"timestep must be \[2\], got \[\]"),
        ("text_tokens", (2, 5, 9), r"text_tokens must be \[2, tokens, 8\]"),
        ("text_tokens", (2, 8), "text_tokens must be"),
        ("pooled_text", (1, 8), "pooled_text must be"),
        ("modality", (3,), "modality must be"),
    ],
)
def test_wrong_shapes_are_refused(
    unchecked: ModuleType, name: str, shape: tuple[int, ...], message: str
) -> None:
    inputs = tiny_inputs()
    inputs[name] = torch.zeros(shape, dtype=inputs[name].dtype)
    with pytest.raises(ValueError, match=message):
        unchecked.MMFaceDiT(**TINY)(**inputs)


@pytest.mark.parametrize(("height", "width"), [(7, 8), (8, 7)])
def test_latents_must_divide_into_patches(height: int, width: int) -> None:
    with pytest.raises(ValueError, match=f"patch size 2, got {height} x {width}"):
        tiny_model()(**tiny_inputs(height, width))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_heads": 3}, "must divide by 4"),
        ({"num_heads": 16}, "must divide by 4"),
        ({"depth": 0}, "depth must be positive"),
        ({"mlp_ratio": -1.0}, "mlp_ratio must be positive"),
        ({"text_rope": "rotary"}, "text_rope must be in"),
    ],
)
def test_wrong_sizes_are_refused(overrides: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MMFaceDiT(**{**TINY, **overrides})


@pytest.mark.slow
def test_compiles_whole_and_only_once_for_a_size(unchecked: ModuleType) -> None:
    torch._dynamo.reset()
    counters.clear()
    for text_rope in ("sequential", "none"):  # the second must not get the first one's table
        model = randomized(unchecked.MMFaceDiT(**TINY, text_rope=text_rope))
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        for inputs in (tiny_inputs(), tiny_inputs(), tiny_inputs(8, 12)):
            torch.testing.assert_close(compiled(**inputs), model(**inputs))
    assert counters["stats"]["unique_graphs"] == 4
    torch._dynamo.reset()


def test_rotation_table_is_made_once_and_serves_training_after_inference() -> None:
    model, inputs = tiny_model(), tiny_inputs(10, 6)
    with torch.inference_mode():
        model(**inputs)
    made = transformer.make_rotation.cache_info().misses
    model(**inputs).mean().backward()
    assert transformer.make_rotation.cache_info().misses == made
    assert set(copy.deepcopy(model).state_dict()) == set(dict(model.named_parameters()))
    meta = {name: x.to("meta") for name, x in inputs.items()}
    assert model.to("meta")(**meta).shape == (2, 4, 10, 6)


@torch.no_grad()
def test_attention_is_the_backend_that_was_chosen() -> None:
    model, inputs = tiny_model(), tiny_inputs()
    flash = "aten._scaled_dot_product_flash_attention_for_cpu.default"
    assert count_operators(lambda: model(**inputs))[flash] == 2
    with attention_backend("_native_math"):
        assert count_operators(lambda: model(**inputs))[flash] == 0
        chosen = model(**inputs)
    torch.testing.assert_close(chosen, model(**inputs))
