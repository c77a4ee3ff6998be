"""D3Diff: its two forms are each other's test, and what is not masked gets no gradient."""

import math

import pytest
import torch

from mmface.objectives.discrete import (
    CosineMask,
    D3Diff,
    LinearMask,
    chosen,
    closed_score_entropy,
    direct_score_entropy,
    masked_cross_entropy,
)

SCHEDULES = [LinearMask(), CosineMask()]


@pytest.fixture
def drawn():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 10, 50, generator=generator, dtype=torch.float64)
    codes = torch.randint(50, (3, 10), generator=generator)
    level = torch.tensor([0.15, 0.5, 0.97], dtype=torch.float64)
    where = torch.rand(3, 10, generator=generator) < 0.6
    return logits, codes, where, level


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_closed_form_is_the_direct_one_in_value_and_gradient(schedule, drawn):
    logits, codes, where, level = drawn
    weights = schedule.masked(level), schedule.rate(level)
    found = []
    for form in (direct_score_entropy, closed_score_entropy):
        own = logits.clone().requires_grad_()
        values = form(own, codes, where, *weights)
        values.sum().backward()
        found.append((values.detach(), own.grad))
    assert (found[0][0] - found[1][0]).abs().max() < 1e-9
    assert (found[0][1] - found[1][1]).abs().max() < 1e-9


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_its_gradient_is_that_of_weighted_cross_entropy(schedule, drawn):
    logits, codes, where, level = drawn
    masked, rate = schedule.masked(level), schedule.rate(level)
    own = logits.clone().requires_grad_()
    closed_score_entropy(own, codes, where, masked, rate).sum().backward()
    other = logits.clone().requires_grad_()
    surprise = -other.log_softmax(-1).gather(-1, codes[..., None])[..., 0]
    (rate / masked * (surprise * where).sum(1)).sum().backward()
    assert (own.grad - other.grad).abs().max() < 1e-9


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_knows_its_own_derivative(schedule):
    level = torch.linspace(0.01, 0.99, 9, dtype=torch.float64)
    slope = (schedule.masked(level + 1e-6) - schedule.masked(level - 1e-6)) / 2e-6
    torch.testing.assert_close(schedule.rate(level), slope, rtol=1e-6, atol=1e-6)
    ends = schedule.masked(torch.tensor([0.0, 1.0]))
    assert 0 < ends[0] < 0.01
    assert 0.99 < ends[1] < 1


def test_without_the_score_it_is_masked_cross_entropy(drawn):
    logits, codes, where, level = drawn
    terms = D3Diff(alpha=0.0)(logits, codes, where, level)
    assert list(terms) == ["masked"]
    by_torch = torch.stack(
        [
            torch.nn.functional.cross_entropy(one[there], own[there])
            for one, own, there in zip(logits, codes, where, strict=True)
        ]
    )
    torch.testing.assert_close(terms["masked"], by_torch)


@pytest.mark.parametrize("is_direct", [False, True])
def test_tokens_that_are_not_masked_get_no_gradient(is_direct, drawn):
    logits, codes, where, level = drawn
    logits.requires_grad_()
    terms = D3Diff(is_direct=is_direct)(logits, codes, where, level)
    torch.stack([term.sum() for term in terms.values()]).sum().backward()
    assert (logits.grad[~where] == 0).all()
    assert (logits.grad[where] != 0).any(-1).all()


def test_a_number_of_tokens_is_masked_exactly_and_one_at_least():
    draws = torch.rand(4, 8)
    where = chosen(draws, torch.tensor([0.0, 0.25, 0.5, 1.0]))
    assert where.sum(1).tolist() == [1, 2, 4, 8]
    assert (draws[2][where[2]].max() < draws[2][~where[2]].min()).item()


def test_the_mean_over_noise_levels_bounds_the_likelihood():
    """Two tokens of two codes, every mask enumerated: NLL <= the integral of the score entropy."""
    joint = torch.tensor([[0.5, 0.1], [0.1, 0.3]], dtype=torch.float64)
    given = joint / joint.sum(0, keepdim=True), joint / joint.sum(1, keepdim=True)
    levels = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    schedule = LinearMask(eps=1e-6, floor=1e-6)
    masked, rate = schedule.masked(levels), schedule.rate(levels)
    for first, second in ((0, 0), (0, 1), (1, 1)):
        # An exact model's cross-entropies when both tokens are masked, or one of them.
        both = -(joint.sum(1)[first].log() + joint.sum(0)[second].log())
        one = -(given[0][first, second].log() + given[1][first, second].log())
        integrand = rate / masked * (masked**2 * both + masked * (1 - masked) * one)
        assert -joint[first, second].log() <= integrand.mean() + 1e-3


def test_score_and_cross_entropy_differ_as_sum_and_mean():
    """Published: about 200 times; here for 256 tokens and evenly drawn noise levels."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(64, 256, 32, generator=generator)
    codes = torch.randint(32, (64, 256), generator=generator)
    level = (torch.arange(64) + 0.5) / 64
    schedule = LinearMask()
    masked = schedule.masked(level)
    where = chosen(torch.rand(64, 256, generator=generator), masked)
    sure = 1e4 * torch.nn.functional.one_hot(codes, 32).float()
    score, constant = (
        closed_score_entropy(each, codes, where, masked, schedule.rate(level)).mean()
        for each in (logits, sure)
    )
    ratio = (score - constant) / masked_cross_entropy(logits, codes, where).mean()
    assert 200 < ratio < 320


@pytest.mark.parametrize("wrong", [-1.0, math.nan])
def test_a_factor_that_is_none_is_refused(wrong):
    with pytest.raises(ValueError, match="alpha"):
        D3Diff(alpha=wrong)
