"""Released weights: the whole table at full size, exact both ways, and refusals that name names."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmface.model.released import WEIGHTS_NAME, released_shapes
from mmface.model.transformer import MMFaceDiT

GOLDEN = Path(__file__).parent / "golden" / "released_layout_public.safetensors"


@pytest.fixture
def weights() -> dict[str, Tensor]:
    """The golden file's released state dict, float16."""
    tensors = load_file(GOLDEN)
    prefix = "weights."
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def released_layout() -> dict[str, tuple[int, ...]]:
    """The state dict that the authors publish, written out from their layout at full size."""
    d, text_dim = 1152, 1024
    layout: dict[str, tuple[int, ...]] = {
        "x_embedder.proj.weight": (d, 32, 2, 2),
        "x_embedder.proj.bias": (d,),
        "t_embedder.mlp.0.weight": (d, 256),
        "t_embedder.mlp.0.bias": (d,),
        "t_embedder.mlp.2.weight": (d, d),
        "t_embedder.mlp.2.bias": (d,),
        "c_embedder.null_feature_pooled": (text_dim,),
        "c_embedder.proj.weight": (d, text_dim),
        "c_embedder.proj.bias": (d,),
        "clip_seq_proj.weight": (d, text_dim),
        "clip_seq_proj.bias": (d,),
        "modality_embedder.weight": (2, d),
        "final_layer.linear.weight": (64, d),
        "final_layer.linear.bias": (64,),
        "final_layer.adaLN_modulation.1.weight": (2 * d, d),
        "final_layer.adaLN_modulation.1.bias": (2 * d,),
    }
    for n in range(28):
        for projection in ("q", "k", "v", "out"):
            layout[f"blocks.{n}.attn.to_{projection}.weight"] = (d, d)
            layout[f"blocks.{n}.attn.to_{projection}_t.weight"] = (d, d)
        for stream in "it":
            layout[f"blocks.{n}.mlp_{stream}.0.weight"] = (4 * d, d)
            layout[f"blocks.{n}.mlp_{stream}.0.bias"] = (4 * d,)
            layout[f"blocks.{n}.mlp_{stream}.2.weight"] = (d, 4 * d)
            layout[f"blocks.{n}.mlp_{stream}.2.bias"] = (d,)
        layout[f"blocks.{n}.adaLN_modulation.1.weight"] = (12 * d, d)
        layout[f"blocks.{n}.adaLN_modulation.1.bias"] = (12 * d,)
    return layout


def assert_equal(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(actual) == set(expected)
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype, name
        assert torch.equal(actual[name], tensor), name


def test_the_whole_table_at_full_size() -> None:
    with torch.device("meta"):
        model = MMFaceDiT()
    layout = released_layout()
    assert len(layout) == 520
    assert {name: tuple(x.shape) for name, x in model.to_released().items()} == layout
    sizes = {k: v for k, v in model.config.items() if k in released_shapes.__annotations__}
    assert released_shapes(**sizes) == layout


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_there_and_back_is_bit_equal(weights: dict[str, Tensor], dtype: torch.dtype) -> None:
    weights = {name: x.to(dtype) for name, x in weights.items()}
    model = MMFaceDiT.from_released(weights, num_heads=4, dtype=dtype)
    assert_equal(model.to_released(), weights)


def test_loads_float32_by_default_and_infers_the_sizes(weights: dict[str, Tensor]) -> None:
    model = MMFaceDiT.from_released(weights, num_heads=4, objective="min_snr_diffusion")
    assert model.dtype == torch.float32
    assert_equal(model.to_released(), {name: x.float() for name, x in weights.items()})
    sizes = {"latent_channels": 4, "patch_size": 2, "hidden_size": 96, "depth": 2, "text_dim": 32}
    others = {"num_heads": 4, "mlp_ratio": 4.0, "num_modalities": 2, "text_rope": "none"}
    expected = {**sizes, **others, "objective": "min_snr_diffusion"}
    assert {name: model.config[name] for name in expected} == expected
    assert not model.training


def test_the_model_does_not_share_memory_with_the_state_dict(weights: dict[str, Tensor]) -> None:
    model = MMFaceDiT.from_released(weights, num_heads=4, dtype=torch.float16)
    exported = model.to_released()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert weights["clip_seq_proj.weight"].any()
    assert exported["clip_seq_proj.weight"].any()


@pytest.mark.parametrize("name", [WEIGHTS_NAME, "model.safetensors"])
@pytest.mark.parametrize("as_folder", [False, True])
def test_paths(weights: dict[str, Tensor], tmp_path: Path, name: str, as_folder: bool) -> None:
    save_file(weights, tmp_path / name)
    (tmp_path / "optimizer.pt").touch()
    source = tmp_path if as_folder else tmp_path / name
    model = MMFaceDiT.from_released(source, num_heads=4, dtype=torch.float16)
    assert_equal(model.to_released(), weights)
    save_file(model.to_released(), tmp_path / "again.safetensors")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefix_on_every_name_is_dropped(weights: dict[str, Tensor], prefix: str) -> None:
    model = MMFaceDiT.from_released({prefix + k: v for k, v in weights.items()}, num_heads=4)
    assert set(model.to_released()) == set(weights)


def test_prefix_on_some_names_is_refused(weights: dict[str, Tensor]) -> None:
    weights["module.final_layer.linear.bias"] = weights.pop("final_layer.linear.bias")
    with pytest.raises(ValueError, match=r"missing: final.*unexpected: module\.final"):
        MMFaceDiT.from_released(weights, num_heads=4)


def test_names_and_shapes_that_do_not_fit_are_listed(weights: dict[str, Tensor]) -> None:
    del weights["blocks.1.attn.to_k_t.weight"]
    weights["pos_embed"] = torch.zeros(1)
    weights["final_layer.linear.bias"] = torch.zeros(5)
    expected = (
        "missing: blocks.1.attn.to_k_t.weight; unexpected: pos_embed; "
        "of the wrong shape: final_layer.linear.bias (5,) instead of (16,)"
    )
    with pytest.raises(ValueError, match=re.escape(expected)):
        MMFaceDiT.from_released(weights, num_heads=4)


def test_a_missing_block_is_named_shortly(weights: dict[str, Tensor]) -> None:
    weights |= {k.replace("blocks.1", "blocks.2"): v for k, v in weights.items() if "ks.1." in k}
    weights = {k: v for k, v in weights.items() if "ks.1." not in k}
    with pytest.raises(ValueError, match=r"missing: blocks\.1\.attn.* and 10 more"):
        MMFaceDiT.from_released(weights, num_heads=4)


@pytest.mark.parametrize("state", [{}, {"conv.weight": torch.zeros(3)}])
def test_another_models_state_dict_is_refused(state: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"not a released MMFace-DiT state dict.*x_embedder\.proj"):
        MMFaceDiT.from_released(state)


@pytest.mark.parametrize("name", ["model.pt", "model.bin", "model.ckpt"])
def test_pickles_are_never_loaded(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not to be read")
    with pytest.raises(ValueError, match="never loaded"):
        MMFaceDiT.from_released(tmp_path / name)
    with pytest.raises(ValueError, match="holds neither"):
        MMFaceDiT.from_released(tmp_path)


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        MMFaceDiT.from_released(tmp_path / WEIGHTS_NAME)


def test_the_number_of_heads_must_fit(weights: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="num_heads"):
        MMFaceDiT.from_released(weights, num_heads=16)
