"""D3Diff: masked tokens and discrete score matching in one loss (UniF2ace, arXiv 2503.08120).

A picture's tokens are masked one by one with probability m, which grows from 0 to 1 with the noise
level. The model gives a distribution p over the codes of each masked token. The loss is

    mean over masked tokens of -log p(x0)  +  alpha * score entropy of s = p / m,

where the score entropy is a sum over tokens (SEDD, arXiv 2310.16834, absorbing state). With
r = (1 - m) / m and y over all codes it is, at a masked token,

    dsigma/dt * (sum_y s(y) - r log s(x0) + r (log r - 1)).

As p sums to 1 over the codes, that is dsigma/dt * (1 + r (-log p(x0) + log(1 - m))): a weighted
cross-entropy and a constant. `direct_score_entropy` and `closed_score_entropy` are these two; they
are each other's test, and training takes the second, which needs no score of every code.
"""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from mmface.core.command_line import check_number

Level = Float[Tensor, " batch"]
Logits = Float[Tensor, "batch tokens codes"]
Tokens = Int64[Tensor, "batch tokens"]
Masked = Bool[Tensor, "batch tokens"]


@runtime_checkable
class MaskSchedule(Protocol):
    """How likely a token is masked at a noise level t in [0, 1]."""

    def masked(self, level: Level) -> Level:
        """The probability m(t), above 0 and below 1."""
        ...

    def rate(self, level: Level) -> Level:
        """The derivative of m(t)."""
        ...


@dataclass(frozen=True)
class LinearMask:
    """m = (1 - eps) t: the log-linear noise of SEDD. Levels below `floor` count as `floor`."""

    eps: float = 1e-3
    floor: float = 1e-3

    def masked(self, level: Level) -> Level:
        """(1 - eps) t."""
        return (1 - self.eps) * level.clamp(self.floor, 1.0)

    def rate(self, level: Level) -> Level:
        """1 - eps."""
        return torch.full_like(level, 1 - self.eps)


@dataclass(frozen=True)
class CosineMask:
    """m = (1 - eps) cos(pi (1 - t) / 2): the masks of MaskGIT and Show-o."""

    eps: float = 1e-3
    floor: float = 1e-3

    def masked(self, level: Level) -> Level:
        """(1 - eps) cos(pi (1 - t) / 2)."""
        return (1 - self.eps) * torch.cos(math.pi / 2 * (1 - level.clamp(self.floor, 1.0)))

    def rate(self, level: Level) -> Level:
        """(1 - eps) pi / 2 sin(pi (1 - t) / 2)."""
        angle = math.pi / 2 * (1 - level.clamp(self.floor, 1.0))
        return (1 - self.eps) * math.pi / 2 * torch.sin(angle)


def chosen(draws: Float[Tensor, "batch tokens"], masked: Level) -> Masked:
    """Choose the tokens to mask: round(m N) of each picture, one at least, those of least draws."""
    num = draws.shape[1]
    wanted = (masked * num).round().clamp(1, num).long()
    ranks = draws.argsort(1).argsort(1)
    return ranks < wanted[:, None]


def _surprise(logits: Logits, codes: Tokens) -> Float[Tensor, "batch tokens"]:
    """-log p of the true code; the logits are of codes alone, not of words."""
    return -logits.log_softmax(-1).gather(-1, codes[..., None])[..., 0]


def direct_score_entropy(
    logits: Logits, codes: Tokens, where: Masked, masked: Level, rate: Level
) -> Level:
    """Score entropy as it is defined, from the score of every code; a sum over masked tokens.

    `masked` is m and `rate` dm/dt of each picture.
    """
    m, ratio = masked[:, None], ((1 - masked) / masked)[:, None]
    scores = logits.softmax(-1) / m[..., None]
    of_truth = scores.gather(-1, codes[..., None])[..., 0]
    entropy = scores.sum(-1) - ratio * of_truth.log() + ratio * (ratio.log() - 1)
    dsigma = (rate / (1 - masked))[:, None]  # sigma = -log(1 - m)
    return (dsigma * entropy * where).sum(1)


def closed_score_entropy(
    logits: Logits, codes: Tokens, where: Masked, masked: Level, rate: Level
) -> Level:
    """The same as a weighted cross-entropy and a constant."""
    ratio = ((1 - masked) / masked)[:, None]
    constant = (1 - masked).log()[:, None]
    dsigma = (rate / (1 - masked))[:, None]
    entropy = 1 + ratio * (_surprise(logits, codes) + constant)
    return (dsigma * entropy * where).sum(1)


def masked_cross_entropy(logits: Logits, codes: Tokens, where: Masked) -> Level:
    """Mean -log p of the true codes over masked tokens."""
    return (_surprise(logits, codes) * where).sum(1) / where.sum(1).clamp(min=1)


@dataclass(frozen=True)
class D3Diff:
    """The loss of drawing, as named terms.

    Attributes:
        schedule: How tokens are masked.
        alpha: Factor of the score entropy; 0 leaves masked cross-entropy alone.
        cross_entropy: Factor of masked cross-entropy; 0 leaves the score alone, as an ablation.
        is_direct: Whether the score entropy is computed as it is defined, with the same result.
    """

    schedule: MaskSchedule = LinearMask()
    alpha: float = 0.01
    cross_entropy: float = 1.0
    is_direct: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError for factors that are none, and for a schedule that is none."""
        check_number("alpha", self.alpha, 0)
        check_number("cross_entropy", self.cross_entropy, 0)
        if not isinstance(self.schedule, MaskSchedule):
            raise ValueError(f"schedule must be one of masks, got {self.schedule!r}.")

    def __call__(
        self, logits: Logits, codes: Tokens, where: Masked, level: Level
    ) -> dict[str, Level]:
        """Weighted terms of each picture: `masked` and, unless `alpha` is 0, `score`.

        Tokens that are not masked get no gradient.
        """
        terms = {"masked": self.cross_entropy * masked_cross_entropy(logits, codes, where)}
        if self.alpha:
            masked, rate = self.schedule.masked(level), self.schedule.rate(level)
            # One token of N is masked at least, so that m is no smaller and its weight is bounded.
            floor = 1 / where.shape[1]
            entropy = direct_score_entropy if self.is_direct else closed_score_entropy
            score = entropy(logits, codes, where, masked.clamp(min=floor), rate)
            terms["score"] = self.alpha * score
        return terms
