"""A term that pulls a person's attention maps to where the person is (MM-Diff, FastComposer).

For the map A of a word, or of a person's subject tokens, and the mask M of the person, over the
image tokens p:

    sum_p A(p) (1 - M(p)) / sum_p (1 - M(p))  -  sum_p A(p) M(p) / sum_p M(p)

It is 0 for a uniform map, and lowest for one that lies inside the mask.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmface.core.command_line import check_number

Maps = Float[Tensor, "batch image_tokens words"]
Masks = Float[Tensor, "batch words image_tokens"]
NAME = "attention_map"
_LEAST = 1e-5


@dataclass(frozen=True)
class AttentionMapLoss:
    """The term's weight, and the share of the blocks, in the middle, whose maps it takes."""

    weight: float = 1e-3
    share: float = 0.7

    def __post_init__(self) -> None:
        """Raise ValueError for numbers that are none."""
        check_number("weight", self.weight, 0)
        check_number("share", self.share, 0, 1)

    def blocks(self, depth: int) -> range:
        """The blocks whose maps are taken; none if the weight is 0."""
        count = round(self.share * depth) if self.weight else 0
        first = (depth - count + 1) // 2
        return range(first, first + count)

    def __call__(
        self,
        maps: Iterable[Sequence[Tensor]],
        masks: Masks,
        valid: Bool[Tensor, "batch words"],
        num_people: int,
    ) -> Float[Tensor, " batch"]:
        """Return the weighted term of each sample.

        `maps` are of words and of people, block by block; `masks` and `valid` are of the words, of
        which the first `num_people` name the people.
        """
        terms = []
        for of_words, of_people in maps:
            terms.append(mean_of(balanced(of_words, masks), valid))
            people, there = masks[:, :num_people], valid[:, :num_people]
            terms.append(mean_of(balanced(of_people, people), there))
        return 2 * self.weight * torch.stack(terms).mean(0)


def balanced(maps: Maps, masks: Masks) -> Float[Tensor, "batch words"]:
    """Return the term of each map; 0 where the mask is empty."""
    maps = maps.transpose(1, 2)
    outside = 1 - masks
    spilled = (maps * outside).sum(-1) / (outside.sum(-1) + _LEAST)
    kept = (maps * masks).sum(-1) / (masks.sum(-1) + _LEAST)
    return (spilled - kept) * (masks.sum(-1) > 0)


def mean_of(
    values: Float[Tensor, "batch words"], valid: Bool[Tensor, "batch words"]
) -> Float[Tensor, " batch"]:
    """Average over the valid words of each sample; 0 where there is none."""
    weights = valid.to(values.dtype)
    return (values * weights).sum(-1) / weights.sum(-1).clamp(min=1)


def own_share(maps: Maps, masks: Masks) -> Float[Tensor, "batch words"]:
    """How much of what falls on any of the people falls on the right one, in [0, 1]."""
    maps = maps.transpose(1, 2)
    own = (maps * masks).sum(-1)
    anywhere = (maps * masks.amax(1, keepdim=True)).sum(-1)
    return own / anywhere.clamp(min=_LEAST)
