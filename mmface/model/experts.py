"""Experts of the unified model: groups of small networks by token, and by picture (UniF2ace).

B batch    S tokens of the sequence    N of them are the picture's    D width    E experts
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers.models.phi.modeling_phi import PhiMLP

States = Float[Tensor, "batch tokens width"]

Task = Literal["generation", "understanding"]
TASKS: tuple[Task, ...] = ("generation", "understanding")
SEQUENCE_EXPERTS: Mapping[Task, tuple[str, ...]] = {
    "generation": ("copy", "copy", "zero", "noise"),
    "understanding": ("copy", "copy", "clip", "face"),
}
"""What each group's experts do with a picture's tokens; the last ones mix features in."""


@dataclass
class Routing:
    """What the experts are told of a sequence; all sequences of a batch have one task.

    Attributes:
        task: Which group of experts works.
        picture: Places of the picture's tokens; None where there are none, as in what follows one.
        features: What the experts of features mix in by their names, [B, N, D] each.
        attended: Tokens that are no padding, [B, S]; None is all.
        balance: Balance losses, one a layer, that a forward pass adds.
    """

    task: Task = "understanding"
    picture: slice | None = None
    features: Mapping[str, Tensor] = field(default_factory=dict)
    attended: Bool[Tensor, "batch tokens"] | None = None
    balance: list[Tensor] = field(default_factory=list)


def top_weights(
    logits: Float[Tensor, "*shape experts"], num_chosen: int
) -> tuple[Float[Tensor, "*shape experts"], Float[Tensor, "*shape experts"]]:
    """Softmax over experts, and the weights of the most likely ones: their sum is 1, others' 0."""
    chances = logits.float().softmax(-1)
    top = chances.topk(num_chosen, dim=-1)
    kept = torch.zeros_like(chances).scatter(-1, top.indices, top.values)
    return chances, kept / kept.sum(-1, keepdim=True)


def balance_loss(
    chances: Float[Tensor, "*shape experts"],
    weights: Float[Tensor, "*shape experts"],
    counted: Bool[Tensor, "*shape"] | None = None,
) -> Float[Tensor, ""]:
    """E times the sum of the experts' shares of choices by mean probabilities; 1 if even."""
    chances, chosen = chances.flatten(0, -2), (weights > 0).flatten(0, -2).to(chances)
    if counted is not None:
        chances, chosen = chances[counted.flatten()], chosen[counted.flatten()]
    share = chosen.sum(0) / chosen.sum()
    return chances.shape[-1] * (share * chances.mean(0)).sum()


class RoutedExperts(nn.Module):
    """One group: a router and E small networks of two layers, which lie in one matrix.

    All of them are computed and weighted, those not chosen by 0: with small experts two large
    products are faster than many small ones. They begin as nothing.
    """

    def __init__(self, width: int, num_experts: int, expert_width: int, num_chosen: int) -> None:
        """Build it; ValueError if more experts are to be chosen than there are."""
        super().__init__()
        if not 1 <= num_chosen <= num_experts:
            raise ValueError(f"{num_chosen} of {num_experts} experts cannot be chosen.")
        self.num_chosen, self.expert_width = num_chosen, expert_width
        self.router = nn.Linear(width, num_experts, bias=False)
        self.up = nn.Linear(width, num_experts * expert_width)
        self.down = nn.Linear(num_experts * expert_width, width, bias=False)

    def forward(self, states: States, activation: Any, routing: Routing) -> States:
        """Give what the chosen experts add."""
        chances, weights = top_weights(self.router(states), self.num_chosen)
        routing.balance.append(balance_loss(chances, weights, routing.attended))
        hidden = activation(self.up(states)).unflatten(-1, (-1, self.expert_width))
        hidden = hidden * weights[..., None].to(hidden.dtype)
        added: Tensor = self.down(hidden.flatten(-2))
        return added


class GroupedTokenMoE(PhiMLP):
    """Phi's network of two layers as the shared expert, and a group of routed experts a task."""

    def __init__(self, config: Any) -> None:
        """Build it by a `UnifiedConfig`; the shared expert's weights have their names of Phi."""
        super().__init__(config)
        sizes = (config.num_routed_experts, config.expert_width, config.num_chosen_experts)
        self.groups = nn.ModuleDict()
        if config.num_routed_experts:
            self.groups.update({t: RoutedExperts(config.hidden_size, *sizes) for t in TASKS})

    def forward(self, hidden_states: States, routing: Routing | None = None) -> States:
        """Give the shared expert's output and what the task's group adds."""
        routing = routing or Routing()
        shared: Tensor = super().forward(hidden_states)
        if not self.groups:
            return shared
        return shared + self.groups[routing.task](hidden_states, self.activation_fn, routing)


class SequenceMoE(nn.Module):
    """Experts for all tokens of a picture at once, two of four for each sequence.

    The router sees the mean of the tokens. `copy` gives them back, `zero` gives zeros, the others
    mix features in: w x + (1 - w) f, with w of two weights through a softmax.
    """

    def __init__(self, width: int, num_chosen: int = 2) -> None:
        super().__init__()
        self.num_chosen = num_chosen
        self.routers = nn.ModuleDict()
        self.mixtures = nn.ParameterDict()
        for task, names in SEQUENCE_EXPERTS.items():
            self.routers[task] = nn.Linear(width, len(names), bias=False)
            for name in names:
                if name not in ("copy", "zero"):
                    self.mixtures[name] = nn.Parameter(torch.tensor([1.0, 0.0]))

    def forward(self, states: States, routing: Routing) -> States:
        """Change the picture's tokens; all others stay to the bit."""
        if routing.picture is None:
            return states
        tokens = states[:, routing.picture]
        _, weights = top_weights(self.routers[routing.task](tokens.mean(1)), self.num_chosen)
        return torch.cat(
            (
                states[:, : routing.picture.start],
                self._mixed(tokens, weights.to(tokens.dtype), routing),
                states[:, routing.picture.stop :],
            ),
            dim=1,
        )

    def _mixed(self, tokens: States, weights: Tensor, routing: Routing) -> States:
        """w_1 E_1(x) + ... as a factor of x and one of each expert's features."""
        factor, added = torch.zeros_like(weights[:, 0]), torch.zeros_like(tokens)
        for place, name in enumerate(SEQUENCE_EXPERTS[routing.task]):
            weight = weights[:, place]
            if name == "copy":
                factor = factor + weight
            elif name != "zero":
                own, other = self.mixtures[name].softmax(0).to(tokens.dtype)
                factor = factor + weight * own
                added = added + (weight * other)[:, None, None] * routing.features[name]
        copied_alone = weights[:, :2].sum(1) == weights.sum(1)  # no rounding of w_1 + w_2
        factor = torch.where(copied_alone & (factor.round() == 1), factor.round(), factor)
        return factor[:, None, None] * tokens + added
