"""The plan of sampling's memory against what an allocator really hands out."""

import json
from pathlib import Path

import pytest
import torch
from conftest import build_pipeline
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import save_file
from torch.profiler import ProfilerActivity, profile

from mmface import builtin
from mmface.encoders import meta_text_model, meta_vae
from mmface.generation.requests import PreparedRequest, call_arguments, located, prepare_request
from mmface.generation.sample import open_model
from mmface.generation.settings import Draws, ModelChoice, Run, Settings
from mmface.model.released import WEIGHTS_NAME
from mmface.model.transformer import MMFaceDiT
from mmface.planning.live_memory import KernelRules, LiveBytes
from mmface.planning.sampling import (
    DECODING,
    DENOISING,
    ENCODING,
    PROMPTS,
    activation_peaks,
    measured,
    meta_pipeline,
    plan_command,
    plan_sampling,
    stored_bytes,
)
from mmface.planning.training import DEVICE_CONTEXT
from mmface.rendered.examples import read_examples
from mmface.sampling.pipeline import MMFacePipeline

ASKED = Settings(
    prompt="a man with black hair", conditions={"mask": "mmface:examples/mask_0.png"}, steps=2
)


@pytest.fixture(scope="module")
def meta() -> MMFacePipeline:
    return meta_pipeline(ModelChoice())


@pytest.fixture(scope="module")
def real() -> MMFacePipeline:
    pipeline = open_model(ModelChoice()).pipeline
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def small(tiny_pipeline_folder) -> MMFacePipeline:
    return meta_pipeline(ModelChoice(pipeline=str(tiny_pipeline_folder)))


def row_of(pipeline, **options) -> PreparedRequest:
    settings = Settings(**vars(ASKED) | options)
    return prepare_request(settings, pipeline, lambda _, path: located(path, Path()))


def weights_of(pipeline):
    parts = (pipeline.vae, pipeline.text_encoder, pipeline.transformer)
    return [x for part in parts for x in (*part.parameters(), *part.buffers())]


def allocated_peak(pipeline, row, seeds, max_batch, output_type) -> int:
    """The most that the CPU's allocator had handed out during a real call, beyond the weights."""
    arguments = call_arguments([row], [seeds])
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        pipeline(**arguments, max_batch=max_batch, output_type=output_type)
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    alive, peak = 0, 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "num", "max_batch"), [((128, 128), 3, None), ((96, 64), 2, 3), ((192, 192), 2, 1)]
)
def test_the_peak_is_what_the_allocator_hands_out(meta, real, size, num, max_batch):
    row, seeds = row_of(meta, height=size[0], width=size[1]), tuple(range(num))
    planned = activation_peaks(meta, [row], [seeds], max_batch)
    assert list(planned) == [ENCODING, PROMPTS, DENOISING, DECODING]
    found = allocated_peak(real, row, seeds, max_batch, "pt")
    assert max(planned.values()) == pytest.approx(found, rel=0.05)


@pytest.mark.slow
def test_the_peak_of_the_steps_is_what_the_allocator_hands_out(meta, real):
    row, seeds = row_of(meta, conditions={"mask": "mmface:examples/mask_1.png"}), tuple(range(5))
    planned = activation_peaks(meta, [row], [seeds])
    assert planned[DENOISING] > 2 * max(planned[ENCODING], planned[PROMPTS])
    found = allocated_peak(real, row, seeds, None, "latent")
    assert planned[DENOISING] == pytest.approx(found, rel=0.1)


@pytest.mark.slow
def test_on_real_tensors_each_phase_is_the_same(meta, real):
    row = row_of(meta)
    planned = activation_peaks(meta, [row], [(0, 1)])
    live = LiveBytes("cpu", weights_of(real))
    with measured(real, live), KernelRules(real.transformer, None), live:
        real(**call_arguments([row], [(0, 1)]), output_type="pt")
    for name, size in planned.items():
        assert live.peaks[name] == pytest.approx(size, rel=0.1), name
    assert "denoise" not in vars(real.transformer)
    assert "encode" not in vars(real.vae)


def test_live_bytes_follow_what_is_made_kept_and_freed():
    known = torch.zeros(1000)
    live = LiveBytes("cpu", [known])
    live.begin("one")
    with live:
        kept = torch.zeros(10)  # 40 bytes
        assert live.live == 40
        view = kept.view(2, 5).t()
        own = known[:5]  # a view of what is known
        assert live.live == 40
        torch.zeros(100)
        assert (live.live, live.peaks) == (40, {"one": 440})
        del kept, own
        assert live.live == 40
        del view
        live.begin("two")
        assert (live.live, live.peaks) == (0, {"one": 440, "two": 0})
        double = live.once_a_shape(lambda x: (x + 1) * 2)
        for _ in range(2):
            made = double(torch.empty(10, device="cpu"))
            assert live.live == 40
            del made
        assert live.peaks["two"] == 120


@pytest.mark.slow
def test_memory_follows_what_is_asked_for(small):
    def peaks(num, max_batch=None, **options):
        return activation_peaks(small, [row_of(small, **options)], [tuple(range(num))], max_batch)

    one, four, split = peaks(1), peaks(4), peaks(4, 2)
    assert four[DECODING] / one[DECODING] == pytest.approx(4, rel=0.1)
    assert four[ENCODING] == pytest.approx(one[ENCODING], rel=0.1)  # one mask for all of them
    assert split[DENOISING] < 0.5 * four[DENOISING]
    assert split[DECODING] < 0.7 * four[DECODING]
    assert peaks(4, guidance=1.0)[DENOISING] < 0.7 * four[DENOISING]
    # Modulations of 50 steps less 2, of two texts, in float32: 12 D a block of two, and 2 D.
    tables = 48 * 2 * 4 * (2 * 12 * 16 + 2 * 16)
    assert peaks(1, steps=50)[DENOISING] - one[DENOISING] > 0.99 * tables


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "solver"),
    [
        ("rectified_flow", "euler"),
        ("rectified_flow", "unipc"),
        ("min_snr_diffusion", "dpm++"),
        ("min_snr_diffusion", "heun"),
    ],
)
def test_all_that_can_be_asked_for_can_be_planned(objective, solver, tmp_path):
    pipeline = build_pipeline(objective).to("meta", torch.bfloat16)
    for file in ("image", "region"):
        Image.new("RGB", (32, 32), "white").save(tmp_path / f"{file}.png")
    row = row_of(
        pipeline,
        conditions={**ASKED.conditions, "sketch": "mmface:examples/sketch_0.png"},
        image=str(tmp_path / "image.png"),
        region=str(tmp_path / "region.png"),
        strength=0.5,
        steps=4,
        condition_guidance=1.5,
        condition_strength=0.7,
        solver=solver,
    )
    peaks = activation_peaks(pipeline, [row], [(0, 1)])
    assert all(size > 10_000 for size in peaks.values())


@pytest.mark.slow
def test_offloading_leaves_weights_on_the_cpu_and_a_limit_is_found(small):
    row, seeds = row_of(small), [(0, 1, 2)]
    plain = plan_sampling(small, [row], seeds)
    assert all(phase.weights == sum(plain.weights.values()) for phase in plain.phases.values())
    away = plan_sampling(small, [row], seeds, offload=True)
    assert away.phases[DECODING].weights == plain.weights["VAE"]
    assert away.phases[DENOISING].weights == plain.weights["VAE"] + plain.weights["transformer"]

    two = plan_sampling(small, [row], seeds, max_batch=2).peak
    tight = plan_sampling(small, [row], seeds, device_memory=two + 1)
    assert tight.fitting_batch == 2
    assert "DOES NOT FIT; --max-batch 2 does" in tight.table()
    hopeless = plan_sampling(small, [row], seeds, device_memory=int(DEVICE_CONTEXT))
    assert "no --max-batch does" in hopeless.table()
    roomy = plan_sampling(small, [row], seeds, device_memory=10**12)
    assert roomy.table().endswith("1000.000 GB: fits")
    assert "3 pictures of 32 x 32, 2 steps, float32, all at once" in roomy.table()


def test_quantized_weights_have_the_size_that_bitsandbytes_gives_them():
    linear = torch.nn.Linear(192, 256)
    import bitsandbytes.functional as bnb

    packed, state = bnb.quantize_4bit(linear.weight.data, quant_type="nf4")
    whole, rows, _ = bnb.int8_vectorwise_quant(linear.weight.data.half())
    bias = linear.bias.nbytes
    assert stored_bytes(linear, "4bit") == packed.nbytes + state.absmax.nbytes + bias
    assert stored_bytes(linear, "8bit") == whole.nbytes + rows.nbytes + bias
    assert stored_bytes(linear) == linear.weight.nbytes + bias


@pytest.mark.parametrize(
    ("bits", "extra"), [(None, 0), ("4bit", 4 * 64 * 32), ("8bit", (2 + 1) * 8 * 32 + 4 * 8 * 64)]
)
def test_a_quantized_layer_holds_copies_while_it_computes(bits, extra):
    with torch.device("meta"):
        layer, inputs = torch.nn.Linear(32, 64, bias=False), torch.empty(8, 32)
    live = LiveBytes("meta", [layer.weight, inputs])
    live.begin("product")
    with torch.no_grad(), KernelRules(layer, bits), live:
        result = layer(inputs)
    assert (live.live, live.peaks["product"]) == (result.nbytes, result.nbytes + extra)


def test_the_papers_model_has_the_published_sizes():
    with torch.device("meta"):
        network = MMFaceDiT()
    assert stored_bytes(network.bfloat16()) == 2 * 1_345_298_624
    four_bit = stored_bytes(network, "4bit")
    assert 0.25 * 2 * 1_345_298_624 < four_bit < 0.3 * 2 * 1_345_298_624
    assert isinstance(meta_vae("flux"), AutoencoderKL)
    assert stored_bytes(meta_text_model(1024)) == pytest.approx(4 * 340_387_840, rel=1e-5)


@pytest.mark.slow
def test_the_authors_folder_is_planned_by_its_shapes(tmp_path):
    source = build_pipeline()
    source.vae.save_pretrained(tmp_path / "VAE")
    text = tmp_path / "stable-diffusion-2-1-base"
    source.text_encoder.save_pretrained(text / "text_encoder")
    source.tokenizer.save_pretrained(text / "tokenizer")
    checkpoint = tmp_path / "dit-256-rfm"
    checkpoint.mkdir()
    network = MMFaceDiT(hidden_size=64, depth=2, mlp_ratio=2.0, text_dim=12)
    save_file(network.to_released(), checkpoint / WEIGHTS_NAME)
    pipeline = meta_pipeline(ModelChoice(released=str(tmp_path), dtype="bfloat16"))
    assert pipeline.config.image_size == 256
    assert stored_bytes(pipeline.transformer) == stored_bytes(network) / 2
    plan = plan_sampling(pipeline, [row_of(pipeline)], [(0,)])
    assert "256 x 256, 2 steps, bfloat16" in plan.title


def test_no_weights_are_read(tmp_path):
    """A folder that holds configs and a tokenizer is enough."""
    source = builtin("tiny-flow")
    for path in (*source.rglob("*.json"), *source.rglob("*.txt")):
        target = tmp_path / path.relative_to(source)
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(path.read_bytes())
    pipeline = meta_pipeline(ModelChoice(pipeline=str(tmp_path), vae_tiling=True))
    assert all(x.is_meta for x in weights_of(pipeline))
    assert pipeline.vae.use_tiling


def test_what_is_no_pipeline_is_said(tmp_path):
    with pytest.raises(ValueError, match="cannot be read"):
        meta_pipeline(ModelChoice(pipeline=str(tmp_path)))
    index = json.loads((builtin("tiny-flow") / "model_index.json").read_text())
    index["transformer"] = ["os", "system"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="cannot be read"):
        meta_pipeline(ModelChoice(pipeline=str(tmp_path)))


@pytest.mark.slow
def test_the_command_line_plans_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loaded = "mmface.generation.sample.open_model"
    monkeypatch.setattr(loaded, lambda *_: pytest.fail("weights were loaded"))
    choice, draws = ModelChoice(pipeline="tiny-flow"), Draws(num=3)
    run = Run(plan=True, memory=16.0)
    printed = plan_command(Settings(steps=2), draws, choice, run)
    num = 3 * len(read_examples())
    assert f"{num} pictures of 128 x 128, 2 steps, float32" in printed
    assert "the device has                       16.000 GB: fits" in printed
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ({"memory": 16.0}, "--memory is for --plan"),
        ({"plan": True, "memory": -1.0}, "memory"),
        ({"plan": True, "rerun": "face.png"}, "not for --rerun"),
        ({"plan": True, "jobs": "faces.jsonl"}, "not for --jobs"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(run, message):
    with pytest.raises(ValueError, match=message):
        plan_command(Settings(steps=2), Draws(), ModelChoice(), Run(**run))
