"""The reference runs as many operators as the published scripts, phase by phase.

The numbers of the scripts were counted by running the authors' code itself at this size: 28 blocks,
encoders of the published depth, float32 on a CPU. They hold for torch 2.14 and diffusers 0.42.
"""

import plain_reference
import pytest

from mmface.benchmarks.phases import OWN, Phases, count_phases

SAMPLING = {
    "forward pass": {
        OWN: (2521, 1053),
        "sample_flow": (3627, 1514),
        "sample_diffusion": (3622, 1509),
    },
    "guided step": {
        OWN: (2469, 1026),
        "sample_flow": (3640, 1523),
        "sample_diffusion": (3695, 1575),
    },
    "before the first step": {
        OWN: (1363, 631),
        "sample_flow": (2063, 782),
        "sample_diffusion": (2045, 759),
    },
    "decoding a picture": {
        OWN: (188, 157),
        "sample_flow": (163, 137),
        "sample_diffusion": (163, 137),
    },
}
TRAINING = {
    OWN: (8268, 3646),
    f"{OWN}, checkpointed": (12924, 4615),
    "train_flow_256": (18126, 7262),
    "train_flow_512": (16565, 5701),
    "train_flow_512_optimized": (19693, 8829),
    "train_diffusion_256": (18139, 7265),
    "train_diffusion_512": (18139, 7265),
}
"""Operators of each script, and those of them that compute: the rest only renames memory."""


@pytest.fixture(scope="module")
def phases() -> Phases:
    return count_phases(plain_reference)


@pytest.mark.slow
def test_operators_of_each_phase_are_those_of_the_published_scripts(phases):
    found = {name: {s: tuple(one) for s, one in phases[name].items()} for name in SAMPLING}
    assert found == SAMPLING
    assert {script: tuple(one) for script, one in phases["training step"].items()} == TRAINING
    loading = {script: tuple(one) for script, one in phases["loading a sample"].items()}
    assert loading == {OWN: (15, 12), **dict.fromkeys(plain_reference.TRAINING, (14, 8))}


@pytest.mark.slow
def test_a_guided_step_of_the_release_is_one_pass_of_both_branches(phases):
    step, forward = (phases[name]["sample_flow"] for name in ("guided step", "forward pass"))
    assert step.computing == forward.computing + 9  # joins, and guides
    assert phases["guided step"][OWN].computing < 0.7 * step.computing


def test_each_published_script_has_a_class_of_its_own():
    for scripts in (plain_reference.TRAINING, plain_reference.SAMPLING):
        assert len(set(scripts.values())) == len(scripts)
        for script, made in scripts.items():
            assert f"`{script}.py`" in (made.__doc__ or "")
