"""Caches of blocks: exact where nothing is left out, near where something is, gone after a call."""

from typing import Any

import numpy as np
import pytest
import torch
from conftest import build_pipeline, build_transformer, latents_of

from mmface import builtin
from mmface.model.ablations import SingleStreamDiT
from mmface.model.transformer import MMFaceDiT
from mmface.sampling.guidance import ConditionControl, Guidance
from mmface.sampling.pipeline import MMFacePipeline
from mmface.sampling.step_cache import (
    CACHES,
    ComputedBlocks,
    FirstBlockCache,
    MagCache,
    StepCache,
    TaylorSeer,
    cache_named,
)

STEPS = 8
FAST: dict[str, Any] = {
    "num_inference_steps": STEPS,
    "output_type": "latent",
    "seed": 3,
    "guidance_scale": 3.0,
}
IDLE = (FirstBlockCache(0.0), TaylorSeer(interval=1), MagCache([0.9], threshold=0.0))
BUSY = (FirstBlockCache(1.2), TaylorSeer(2, 2, 1), MagCache([0.98], 0.2, 2, 0.25))
NEAR = (FirstBlockCache(0.08), TaylorSeer(2, 3, 2), MagCache([0.92], 0.1, 1, 0.25))  # if trained


def name_of(cache: StepCache) -> str:
    return type(cache).__name__


@pytest.fixture(scope="module")
def pipeline() -> MMFacePipeline:
    return build_pipeline()


@pytest.fixture(scope="module")
def trained() -> MMFacePipeline:
    pipeline = MMFacePipeline.from_pretrained(builtin("tiny-flow"))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def block_calls(monkeypatch):
    """Count the rows that the blocks of each call of the network compute."""
    counted = []

    def denoise(model, noisy, *rest, original=MMFaceDiT.denoise):
        rows = []
        handles = [
            block.image.mlp.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
            for block in model.blocks
        ]
        prediction = original(model, noisy, *rest)
        for handle in handles:
            handle.remove()
        counted.append(rows)
        return prediction

    monkeypatch.setattr(MMFaceDiT, "denoise", denoise)
    return counted


def hooks(model: torch.nn.Module) -> list[str]:
    """Name the modules around whose forward something is run."""
    return [
        name
        for name, module in model.named_modules()
        if "forward" in vars(module)
        or module._forward_hooks
        or module._forward_pre_hooks
        or getattr(getattr(module, "_diffusers_hook", None), "hooks", None)
    ]


@pytest.mark.parametrize("cache", IDLE, ids=name_of)
def test_a_cache_that_leaves_nothing_out_changes_no_bit(pipeline, face_mask, cache):
    plain = pipeline("a", face_mask, num_images_per_prompt=2, **FAST)
    cached = pipeline("a", face_mask, num_images_per_prompt=2, cache=cache, **FAST)
    assert torch.equal(cached.images, plain.images)
    assert cached.evaluations == plain.evaluations == 2 * STEPS


@pytest.fixture(scope="module")
def faces(trained):
    """Sample the face of a seed with 12 steps: pictures in [0, 1], and the call's output."""

    def sample(seed, mask, cache=None):
        settings = {"num_inference_steps": 12, "output_type": "np", "seed": seed}
        return trained("a woman with red hair", mask, cache=cache, **settings)

    return sample


@pytest.fixture(scope="module")
def uncached(faces):
    mask = np.kron(np.tri(8, dtype=np.uint8), np.ones((16, 16), np.uint8))
    return mask, faces(3, mask), faces(4, mask)


@pytest.mark.slow
@pytest.mark.parametrize("cache", NEAR, ids=name_of)
def test_blocks_are_left_out_and_counted_and_the_picture_stays_near(
    faces, uncached, block_calls, cache
):
    mask, plain, other = uncached
    cached = faces(3, mask, cache)
    computed = [sum(rows) for rows in block_calls]
    assert len(computed) == 12
    # 6 blocks of 2 rows; the first one still runs where FirstBlockCache leaves out the rest
    left_out = {"FirstBlockCache": 2, "TaylorSeer": 0, "MagCache": 0}[name_of(cache)]
    assert set(computed) == {12, left_out}
    assert cached.evaluations == pytest.approx(sum(computed) / 6)
    assert cached.evaluations < 0.85 * plain.evaluations == 0.85 * 24
    difference = abs(cached.images - plain.images).mean()
    assert 0 < difference < 0.25 * abs(other.images - plain.images).mean()


@pytest.mark.parametrize("cache", BUSY, ids=name_of)
def test_nothing_is_remembered_from_call_to_call(pipeline, face_mask, cache):
    first = pipeline("a", face_mask, cache=cache, **FAST)
    pipeline("b", face_mask, cache=cache, **FAST | {"seed": 9, "num_inference_steps": 5})
    again = pipeline("a", face_mask, cache=cache, **FAST)
    assert torch.equal(again.images, first.images)
    assert again.evaluations == first.evaluations < 2 * STEPS
    assert hooks(pipeline.transformer) == []
    assert not pipeline.transformer.is_cache_enabled


@pytest.mark.parametrize("cache", BUSY, ids=name_of)
def test_a_call_that_fails_leaves_no_hook(face_mask, cache):
    pipeline = build_pipeline()
    plain = pipeline("a", face_mask, **FAST)

    def cancel(pipe, index, timestep, tensors):
        if index == 4:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        pipeline("a", face_mask, cache=cache, callback_on_step_end=cancel, **FAST)
    assert hooks(pipeline.transformer) == []
    assert not pipeline.transformer.is_cache_enabled
    assert torch.equal(latents_of(pipeline("a", face_mask, **FAST)), latents_of(plain))


@pytest.mark.parametrize("cache", IDLE, ids=name_of)
def test_parts_have_memories_of_their_own(pipeline, face_mask, cache):
    """Three pictures with guidance are six rows; five at once, and then one."""
    several = {"num_images_per_prompt": 3, "cache": cache} | FAST
    whole = pipeline("a", face_mask, **several)
    parts = pipeline("a", face_mask, max_batch=5, **several)
    torch.testing.assert_close(parts.images, whole.images, atol=1e-4, rtol=1e-4)
    assert parts.evaluations == whole.evaluations == 2 * STEPS


def test_a_part_takes_its_own_decision(pipeline, face_mask):
    """Two pictures in parts of one are, without guidance, the two of calls of their own."""
    settings = FAST | {"guidance_scale": 1.0, "cache": FirstBlockCache(0.9)}
    masks = [face_mask, face_mask[::-1].copy()]
    alone = [
        pipeline(text, mask, **settings | {"seed": 3 + place})
        for place, (text, mask) in enumerate(zip("ab", masks, strict=True))
    ]
    parts = pipeline(["a", "b"], masks, max_batch=1, **settings)
    expected = torch.cat([each.images for each in alone])
    torch.testing.assert_close(parts.images, expected, atol=1e-4, rtol=1e-4)
    assert parts.evaluations == sum(each.evaluations for each in alone) / 2 < STEPS
    together = pipeline(["a", "b"], masks, **settings)  # one decision for both
    assert (together.images - expected).abs().max() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("cache", [*IDLE, *BUSY], ids=name_of)
@pytest.mark.parametrize("solver", ["euler", "heun", "unipc"])
def test_memory_begins_anew_where_the_rows_change(pipeline, face_mask, block_calls, cache, solver):
    """Guidance ends and the condition's window closes within the way; so do the rows."""
    settings = FAST | {"guidance_scale": None, "solver": solver, "cache": cache}
    settings |= {"guidance": Guidance(3.0, end=0.5), "mask_control": ConditionControl(0.5, 0, 0.75)}
    made = pipeline("a", face_mask, **settings)
    calls = [rows for rows in block_calls if rows]
    assert torch.isfinite(made.images).all()
    assert max(map(max, calls)) == 4  # two texts, with and without the condition
    order = 2 if solver == "heun" else 1
    whole = [
        [rows] * 2 for rows in [4] * 4 * order + [2] * 2 * order + [1] * (2 * order - order // 2)
    ]
    changes = (0, 4 * order, 6 * order)
    if cache in IDLE:
        assert block_calls == whole
        plain = pipeline("a", face_mask, **settings | {"cache": None})
        assert torch.equal(made.images, plain.images)
    else:
        assert [block_calls[call] for call in changes] == [whole[call] for call in changes]
        assert sum(map(sum, block_calls)) < sum(map(sum, whole))


def test_the_curve_of_a_mag_cache_is_read_at_the_calls_place(pipeline):
    cache = MagCache([1.0, 0.9, 0.8, 0.7], retention=0.5)
    whole = cache.config(2, [0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875])
    assert whole.mag_ratios.tolist() == pytest.approx([1, 1, 0.9, 0.9, 0.8, 0.8, 0.7, 0.7])
    assert (whole.num_inference_steps, whole.retention_ratio) == (8, 0.5)
    rest = cache.config(2, [0.625, 0.75, 0.875])
    assert rest.mag_ratios.tolist() == pytest.approx([0.8, 0.7, 0.7])
    assert (rest.num_inference_steps, rest.retention_ratio) == (3, 0.0)


@pytest.mark.slow
def test_the_single_stream_has_caches_too(face_mask):
    pipeline = build_pipeline("min_snr_diffusion")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "depth": 3, "num_heads": 2, "mlp_ratio": 2.0, "text_dim": 12}
    model = SingleStreamDiT(latent_channels=16, **sizes)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    pipeline.transformer = model.eval()
    plain = pipeline("a", face_mask, **FAST)
    idle = pipeline("a", face_mask, cache=FirstBlockCache(0.0), **FAST)
    assert torch.equal(latents_of(idle), latents_of(plain))
    for cache in (FirstBlockCache(10.0), *BUSY[1:]):
        busy = pipeline("a", face_mask, cache=cache, **FAST)
        assert busy.evaluations < 0.8 * plain.evaluations
        assert torch.isfinite(latents_of(busy)).all()


def test_what_cannot_be_cached_is_refused(face_mask):
    own = build_pipeline()
    own.transformer.enable_cache(FirstBlockCache().config(2, [0.0]))
    with pytest.raises(ValueError, match="cache of its own"):
        own("a", face_mask, cache=FirstBlockCache(), **FAST)
    assert own.transformer.is_cache_enabled
    one = build_pipeline()
    one.transformer = MMFaceDiT(**{**own.transformer.config, "depth": 1}).eval()
    with pytest.raises(ValueError, match="two blocks or more"):
        one("a", face_mask, cache=FirstBlockCache(), **FAST)
    compiled = build_pipeline()
    compiled.transformer.compile_repeated_blocks()
    with pytest.raises(ValueError, match="call restore_pipeline first"):
        compiled("a", face_mask, cache=FirstBlockCache(), **FAST)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: FirstBlockCache(-0.1), "cache threshold must be"),
        (lambda: FirstBlockCache(float("nan")), "cache threshold must be"),
        (lambda: TaylorSeer(interval=0), "cache interval must be"),
        (lambda: TaylorSeer(warmup=0), "cache warmup must be"),
        (lambda: TaylorSeer(order=9), "cache order must be"),
        (lambda: MagCache([]), "ratios of a MagCache are missing"),
        (lambda: MagCache([1.0, -1.0]), "cache ratio must be"),
        (lambda: MagCache([1.0], retention=2.0), "cache retention must be"),
        (lambda: cache_named("none"), "no cache 'none'; choose one of first-block, taylor-seer"),
    ],
)
def test_settings_that_make_no_cache_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_names_and_plain_values():
    assert cache_named("first-block") == FirstBlockCache()
    assert cache_named("taylor-seer") == TaylorSeer()
    assert all(isinstance(build(), StepCache) for build in CACHES.values())
    assert FirstBlockCache(0.2).made_by() == {"class": "FirstBlockCache", "threshold": 0.2}


def test_counting_counts_half_a_network_as_half():
    model = build_transformer()
    computed = ComputedBlocks(model)
    image, text = torch.zeros(3, 4, 16), torch.zeros(3, 2, 16)
    rotation = torch.ones(2, 6, 1, 4)
    model.blocks[0](image, text, torch.zeros(3, 12 * 16), rotation)
    assert computed.evaluations == 1.5
    computed.close()
    model.blocks[1](image, text, torch.zeros(3, 12 * 16), rotation)
    assert computed.evaluations == 1.5
    assert hooks(model) == []
