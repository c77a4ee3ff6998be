"""The fast form of a pipeline: recorded steps, compiled blocks, the CLI, and the way back."""

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload_with_hook
from conftest import IMAGE_SIZE, TEXT_DIM, build_pipeline, build_transformer
from PIL import Image
from test_lora import inputs, write_lora
from test_modulations import build, fused, outputs
from torch import Tensor, nn

from mmface.benchmarks.measuring import relative_error
from mmface.benchmarks.subjects import randomize
from mmface.model.lora import load_lora
from mmface.model.packed_modulations import PackedModulations
from mmface.model.transformer import MMFaceDiT
from mmface.sampling import acceleration
from mmface.sampling.acceleration import (
    CapturedDenoise,
    accelerate_pipeline,
    check_compiler,
    restore_pipeline,
)
from mmface.sampling.pipeline import MMFacePipeline

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden" / "released_layout_public.safetensors"


class Rerun:
    """Stands for a CUDA graph on a CPU: runs the function again, into the same output."""

    made: list["Rerun"]

    def __init__(self, run: Callable[[], Tensor], beside: "Rerun | None") -> None:
        self.run, self.beside, self.output = run, beside, run()
        self.made.append(self)

    def replay(self) -> None:
        self.output.copy_(self.run())


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> type[Rerun]:
    monkeypatch.setattr(Rerun, "made", [], raising=False)
    return Rerun


def step_inputs(model: MMFaceDiT, batch: int, seed: int = 0, side: int = 4) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(model.dtype)

    latents = draw(2, batch, model.config.latent_channels, side, side)
    width = model.config.hidden_size
    return *latents, draw(batch, 5, width), model.modulations(draw(batch, width))


@torch.no_grad()
def test_a_captured_step_is_the_step_for_each_shape(record: type[Rerun]):
    model = fused(build())
    captured = CapturedDenoise(model, record)
    first = captured(*step_inputs(model, 2))
    kept = first.clone()
    for batch, side in ((2, 4), (3, 4), (2, 6), (2, 4)):
        given = step_inputs(model, batch, seed=batch + side, side=side)
        assert torch.equal(captured(*given), MMFaceDiT.denoise(model, *given))
    assert torch.equal(first, kept)  # what a step gave is not written again
    assert len(record.made) == 3
    assert [each.beside is not None for each in record.made] == [False, True, True]


@torch.no_grad()
def test_the_shape_least_in_use_gives_way(record: type[Rerun]):
    model = build()
    captured = CapturedDenoise(model, record, max_graphs=2)
    for batch, made in ((1, 1), (2, 2), (1, 2), (3, 3), (1, 3), (2, 4)):
        captured(*step_inputs(model, batch))
        assert len(record.made) == made
        assert len(captured.captured) <= 2


def move(model: MMFaceDiT, folder: Path) -> None:
    nn.Module.to(model, torch.float32)


def assign(model: MMFaceDiT, folder: Path) -> None:
    model.load_state_dict(randomize(build(), seed=5).state_dict(), assign=True)


def adapt(model: MMFaceDiT, folder: Path) -> None:
    pytest.importorskip("peft", reason="needs the extra lora")
    load_lora(model, write_lora(folder / "lora.safetensors", model, ("blocks.0.image.qkv",)))


@torch.no_grad()
@pytest.mark.parametrize("change", [move, assign, adapt])
def test_a_graph_goes_with_the_weights_that_it_was_made_for(
    change: Callable[[MMFaceDiT, Path], None], record: type[Rerun], tmp_path: Path
):
    model = build()
    captured = CapturedDenoise(model, record)
    before = captured(*step_inputs(model, 2))
    change(model, tmp_path)
    given = step_inputs(model, 2)
    after = captured(*given)
    assert len(record.made) == 2
    assert record.made[1].beside is None
    assert torch.equal(after, MMFaceDiT.denoise(model, *given))
    assert after.dtype != before.dtype or not torch.equal(after, before)
    captured(*given)
    assert len(record.made) == 2
    if change is adapt:
        model.unload_lora()
        assert torch.equal(captured(*given), before)
        assert len(record.made) == 3


@torch.no_grad()
def test_numbers_that_change_in_place_are_read_by_the_same_graph(record: type[Rerun]):
    model = build()
    captured = CapturedDenoise(model, record)
    captured(*step_inputs(model, 2))
    model.load_state_dict(randomize(build(), seed=5).state_dict())
    given = step_inputs(model, 2)
    assert torch.equal(captured(*given), MMFaceDiT.denoise(model, *given))
    assert len(record.made) == 1


@torch.no_grad()
def test_a_copy_of_a_model_captures_for_itself(record: type[Rerun]):
    model = build()
    model.__dict__["denoise"] = CapturedDenoise(model, record)
    expected = outputs(model)
    other = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.zero_()
    assert torch.equal(outputs(other), expected)
    assert len(record.made) == 2


def test_hooked_offloaded_and_quantized_models_are_refused(record: type[Rerun]):
    model = build()
    captured = CapturedDenoise(model, record)
    handle = model.blocks[1].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"hook \(blocks.1\)"):
        captured(*step_inputs(model, 2))
    handle.remove()
    _, hook = cpu_offload_with_hook(model, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"hook \(on itself\), by offloading"):
        CapturedDenoise(model, record)
    hook.remove()

    class Quantized(nn.Parameter):
        pass

    model.text_embedder.weight = Quantized(model.text_embedder.weight.detach())
    with pytest.raises(ValueError, match="quantized"):
        CapturedDenoise(model, record)


def faces(pipeline: MMFacePipeline) -> Tensor:
    mask = torch.zeros(IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8).numpy()
    options: dict[str, Any] = {"num_inference_steps": 3, "num_images_per_prompt": 2, "seed": 3}
    found = pipeline("a face", mask=mask, output_type="pt", guidance_scale=2.0, **options).images
    assert isinstance(found, Tensor)
    return found


@pytest.mark.slow
def test_a_pipeline_and_back(record: type[Rerun], tmp_path: Path):
    pipeline = build_pipeline()
    expected = faces(pipeline)
    for _ in range(2):
        accelerate_pipeline(pipeline, compile_blocks=False)
        assert isinstance(pipeline.transformer.block_modulations, PackedModulations)
        assert pipeline.vae.decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
        assert relative_error(faces(pipeline), expected) < 1e-5
    pipeline.transformer.__dict__["denoise"] = CapturedDenoise(pipeline.transformer, record)
    assert relative_error(faces(pipeline), expected) < 1e-5
    assert len(record.made) == 1
    pipeline.save_pretrained(tmp_path)
    assert torch.equal(faces(MMFacePipeline.from_pretrained(tmp_path)), expected)
    for _ in range(2):
        restore_pipeline(pipeline)
        assert torch.equal(faces(pipeline), expected)
    assert "denoise" not in vars(pipeline.transformer)


def test_blocks_are_compiled_and_are_not_any_more():
    pipeline = build_pipeline()
    accelerate_pipeline(pipeline)
    compiled = [block._compiled_call_impl is not None for block in pipeline.transformer.blocks]
    assert compiled == [True, True]
    assert torch._dynamo.config.recompile_limit >= acceleration.MAX_SHAPES
    restore_pipeline(pipeline)
    assert all(block._compiled_call_impl is None for block in pipeline.transformer.blocks)


@pytest.mark.slow
def test_what_a_machine_lacks_is_said_and_changes_nothing(monkeypatch: pytest.MonkeyPatch):
    pipeline = build_pipeline()
    with pytest.raises(ValueError, match="CUDA graphs need a GPU"):
        accelerate_pipeline(pipeline, capture=True)

    def no_compiler(device: torch.device) -> None:
        raise ValueError("none")

    monkeypatch.setattr(acceleration, "check_compiler", no_compiler)
    with pytest.raises(ValueError, match="none"):
        accelerate_pipeline(pipeline)
    assert not isinstance(pipeline.transformer.block_modulations, PackedModulations)


def test_a_missing_compiler_is_said(monkeypatch: pytest.MonkeyPatch):
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def none() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(ValueError, match="needs a C\\+\\+ compiler"):
        check_compiler(torch.device("cpu"))


@torch.no_grad()
def test_a_lora_of_the_modulations_keeps_them_apart(tmp_path: Path):
    pytest.importorskip("peft", reason="needs the extra lora")
    pipeline = build_pipeline()
    model = pipeline.transformer
    layers = ("block_modulations.0", "blocks.1.text.mlp.2")
    load_lora(model, write_lora(tmp_path / "lora", model, layers))
    adapted = model(*inputs())
    accelerate_pipeline(pipeline, compile_blocks=False)
    assert torch.equal(model(*inputs()), adapted)
    assert not torch.equal(build_transformer()(*inputs()), adapted)


FAST = """
import sys, torch
from pathlib import Path
from mmface.generation.sample import sample_one
from mmface.generation.rerun import rerun
from mmface.generation.settings import Draws, ModelChoice, Run, Settings, read_provenance

torch.set_num_threads(1)
folder = Path(sys.argv[1])
asked = Settings("a face", conditions={"mask": str(folder / "mask.png")}, steps=2)
choice = ModelChoice(str(folder), fast=True)
sample_one(asked, Draws(), choice, Run(str(folder / "fast.png")))
assert read_provenance(folder / "fast.png")[0].model.fast
rerun(Settings(), Draws(), ModelChoice(), Run(str(folder / "again.png"),
    rerun=str(folder / "fast.png")))
assert (folder / "again.png").read_bytes() == (folder / "fast.png").read_bytes()
"""


@pytest.mark.slow
def test_fast_pictures_of_the_command_line_and_their_rerun(tmp_path: Path, face_mask: np.ndarray):
    pipeline = build_pipeline()
    sizes = {"hidden_size": 16, "num_heads": 2, "text_dim": TEXT_DIM}
    pipeline.register_modules(transformer=randomize(MMFaceDiT(**sizes, depth=1)))  # one to compile
    pipeline.save_pretrained(tmp_path)
    Image.fromarray(face_mask).save(tmp_path / "mask.png")
    # In a process of its own, because the type-checking hook of these tests cannot be compiled.
    done = subprocess.run(
        [sys.executable, "-c", FAST, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    if "Compiling needs a C++ compiler" in done.stderr:
        pytest.skip("there is no C++ compiler")
    assert done.returncode == 0, done.stderr
    assert "bit-equal" in done.stderr
