"""Weight decay groups, 8-bit AdamW, and the average of the weights."""

import contextlib
import io
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import AdamW, Optimizer

DECAYED_MODULES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


RATE = "rate"
"""Of a parameter group: the factor of the optimizer's learning rate."""


def parameter_groups(
    module: nn.Module, rates: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Trainable parameters in at most two groups: with the optimizer's weight decay, and without.

    Weights of linear and convolution layers decay; biases, norms and embedding tables do not. With
    `rates` for children of the module by their names, those have two groups of their own.
    """
    if rates:
        return [
            group | {RATE: rates.get(name, 1.0)}
            for name, child in module.named_children()
            for group in parameter_groups(child)
        ]
    decayed = {
        id(layer.weight)
        for layer in module.modules()
        if isinstance(layer, DECAYED_MODULES) and layer.weight.ndim > 1
    }
    trainable = [p for p in module.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trainable if id(p) in decayed]},
        {"params": [p for p in trainable if id(p) not in decayed], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def apply_rates(optimizer: Optimizer) -> None:
    """Multiply the learning rate of each parameter group by its `RATE`, before a schedule does."""
    for group in optimizer.param_groups:
        group["lr"] *= group.get(RATE, 1.0)


def check_master_weights(module: nn.Module) -> None:
    """Refuse to train weights of less than 32 bits."""
    small = {p.dtype for p in module.parameters() if p.requires_grad and p.element_size() < 4}
    if small:
        raise ValueError(
            f"weights under training are {', '.join(map(str, small))}; load them as float32 and "
            "set mixed_precision=bf16: an update is often smaller than bf16 can hold."
        )


def adamw_8bit(
    params: Iterable[Any],
    lr: float = 1e-4,
    betas: Sequence[float] = (0.9, 0.999),
    weight_decay: float = 0.01,
    eps: float = 1e-8,
) -> Optimizer:
    """Make AdamW with 8-bit moments (arXiv 2110.02861), or torch's AdamW where that cannot run.

    A trial step decides, and a line on stderr reports the fallback, whose moments need 8 bytes a
    parameter instead of about 2.
    """
    groups = list(params)
    first = groups[0]["params"][0] if isinstance(groups[0], dict) else groups[0]
    options: dict[str, Any] = {
        "lr": lr,
        "betas": tuple(betas),
        "weight_decay": weight_decay,
        "eps": eps,
    }
    try:
        # Its import reports missing CPU kernels of other functions on stdout.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            from bitsandbytes.optim import AdamW8bit

            trial = nn.Parameter(torch.ones(4096, device=first.device))
            trial.grad = torch.ones_like(trial)
            AdamW8bit([trial]).step()
    except Exception as error:  # whatever its native library raises, training can go on
        reason = " ".join(str(error).split())
        print(
            f"8-bit AdamW cannot run on {first.device.type} ({type(error).__name__}: {reason}); "
            "torch.optim.AdamW is used instead, with 32-bit moments.",
            file=sys.stderr,
        )
        return AdamW(groups, **options, fused=True)
    return AdamW8bit(groups, **options)


def num_bytes(module: nn.Module) -> int:
    """Bytes of a module's weights and buffers, whole if they are sharded."""
    return sum(t.numel() * t.element_size() for t in module.state_dict().values())


def optimizer_bytes(optimizer: Optimizer) -> int:
    """Bytes that an Adam's two moments take once they are there."""
    settings = getattr(optimizer, "args", None)
    eight_bit = getattr(settings, "optim_bits", 32) == 8
    smallest = getattr(settings, "min_8bit_size", 0)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return sum(
        2 * p.numel() * (1 if eight_bit and p.numel() >= smallest else p.element_size())
        for p in parameters
    )


class ExponentialAverage:
    """The average of a module's trainable weights over the steps, in the weights' own float32.

    Step n moves it by 1 - d, where d is the decay, or (1 + n) / (10 + n) where that is smaller, so
    that an early average is not mostly the first weights. Of a sharded module each process
    averages its own shards.
    """

    def __init__(
        self, module: nn.Module, decay: float, every: int = 1, on_cpu: bool = False
    ) -> None:
        """Start from the weights of a module that is already sharded, if it is to be.

        `decay` is that of one step, also if the average is only updated `every` so many.
        """
        self.decay = decay
        self.every = every
        self.num_averaged = 0
        self._current = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self._device = torch.device("cpu") if on_cpu else None
        self._averaged = {name: self._local(p).clone() for name, p in self._current.items()}

    def _local(self, parameter: Tensor) -> Tensor:
        tensor = parameter.detach()
        tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        return tensor if self._device is None else tensor.to(self._device)

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step."""
        self.num_averaged += 1
        if self.num_averaged % self.every:
            return
        n = self.num_averaged - 1
        decay = min(self.decay, (1 + n) / (10 + n)) ** self.every
        if self.num_averaged == self.every:
            decay = 0.0  # the first weights are random, or another run's
        averaged = list(self._averaged.values())
        current = [self._local(p) for p in self._current.values()]
        if decay == 0.0:
            torch._foreach_copy_(averaged, current)
        else:
            torch._foreach_lerp_(averaged, current, 1 - decay)

    def state(self) -> dict[str, Tensor]:
        """The averaged weights by name, whole and on the CPU; every process takes part."""
        whole = {}
        for name, averaged in self._averaged.items():
            parameter = self._current[name]
            if isinstance(parameter, DTensor):
                averaged = DTensor.from_local(
                    averaged.to(parameter.device),
                    parameter.device_mesh,
                    parameter.placements,
                    shape=parameter.shape,
                    stride=parameter.stride(),
                ).full_tensor()
            whole[name] = averaged.to("cpu")
        return whole

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor], num_averaged: int) -> None:
        """Continue from `state()`, after `num_averaged` steps; untrained names are ignored."""
        self.num_averaged = num_averaged
        for name, parameter in self._current.items():
            value = state[name].to(parameter.dtype)
            if isinstance(parameter, DTensor):
                value = value.to(parameter.device)
                mesh, placements = parameter.device_mesh, parameter.placements
                value = distribute_tensor(value, mesh, placements).to_local()
            self._averaged[name].copy_(value)
