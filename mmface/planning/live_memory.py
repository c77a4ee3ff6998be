"""Peak memory of a call, measured with tensors on the meta device.

Meta tensors have shapes but no values, and code allocates and frees the same storages with them as
on a GPU. Thus a model of any size is measured within a second, without its weights.
"""

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmface.planning.training import DeviceRules


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all live storages on a device type, and the peak of each phase."""

    def __init__(self, device_type: str, known: Iterable[Tensor]) -> None:
        """Start at zero bytes; storages of `known` tensors, such as weights, are not counted."""
        super().__init__()
        self.device_type = device_type
        self.live = 0
        self.peaks: dict[str, int] = {}
        self._phase = ""
        self._storages = {id(storage): weakref.ref(storage) for storage in map(_storage, known)}

    def begin(self, phase: str) -> None:
        """Start a phase."""
        self._phase = phase
        self._reach(self.live)

    def _reach(self, size: int) -> None:
        self.peaks[self._phase] = max(self.peaks.get(self._phase, 0), size)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run one operation, and count its new storages."""
        kwargs = kwargs or {}
        result = _without_numbers(func, args, kwargs)
        if result is NotImplemented:
            result = func(*args, **kwargs)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.device.type == self.device_type:
                self._see(_storage(tensor))
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        known = self._storages.get(key)
        if known is not None and known() is storage:
            return

        def freed(_: object) -> None:
            self.live -= size
            self._storages.pop(key, None)

        self._storages[key] = weakref.ref(storage, freed)
        self.live += size
        self._reach(self.live)

    def beginning(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function so that a call starts a phase."""

        def call(*args: Any, **kwargs: Any) -> Any:
            self.begin(phase)
            return function(*args, **kwargs)

        return call

    def once_a_shape(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Wrap a function whose memory depends on its arguments' shapes alone.

        Later calls with the same shapes return an empty tensor and reuse the measured peak.
        """
        found: dict[Any, tuple[int, Any]] = {}

        def call(*args: Any) -> Tensor:
            shapes = tuple(tuple(x.shape) for x in tree_leaves(args))
            if shapes in found:
                needed, made = found[shapes]
                self._reach(self.live + needed)
                return torch.empty(**made)
            before, outer = self.live, self.peaks[self._phase]
            self.peaks[self._phase] = before
            result = function(*args)
            made = {"size": result.shape, "dtype": result.dtype, "device": result.device}
            found[shapes] = (self.peaks[self._phase] - before, made)
            self._reach(outer)
            return result

        return call


def _without_numbers(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
    """Give a placeholder where values of a meta tensor are read, as schedulers do."""
    if not args or not isinstance(args[0], Tensor) or not args[0].is_meta:
        return NotImplemented
    if func is torch.ops.aten._local_scalar_dense.default:
        return 0.5 if args[0].is_floating_point() else 0
    device = torch.device(kwargs.get("device") or "meta")
    if func is torch.ops.aten._to_copy.default and device.type != "meta":
        dtype = kwargs.get("dtype") or args[0].dtype
        return torch.zeros(args[0].shape, dtype=dtype, device=device)
    return NotImplemented


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()


class KernelRules(DeviceRules):
    """A GPU's rules, and the workspace of kernels beyond their inputs and results.

    A convolution copies the larger of input and result into its own layout, as oneDNN does; cuDNN
    depends on the algorithm. A linear layer of bitsandbytes with 4 bits (arXiv 2305.14314) holds
    its weight in the inputs' dtype; with 8 bits (arXiv 2208.07339), the inputs in float16 and int8,
    and the products in int32.
    """

    def __init__(self, quantized: nn.Module, bits: str | None) -> None:
        """Name the network whose linear layers are quantized, and `8bit`, `4bit` or None."""
        super().__init__(bf16=False)
        layers = [module for module in quantized.modules() if isinstance(module, nn.Linear)]
        self.bits, self.weights = bits, {id(layer.weight) for layer in layers}

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run one function of torch, and allocate its workspace for a moment."""
        held: list[Tensor] = []
        if self.bits is not None and func is F.linear and id(args[1]) in self.weights:
            inputs, weight = args[:2]
            if self.bits == "4bit":
                held = [torch.empty_like(weight, dtype=inputs.dtype)]
            else:
                products = inputs.new_empty(*inputs.shape[:-1], len(weight), dtype=torch.int32)
                held = [inputs.to(torch.float16), inputs.to(torch.int8), products]
        result = super().__torch_function__(func, types, args, kwargs)
        if func in (F.conv2d, F.conv3d):
            held = [torch.empty_like(max(args[0], result, key=torch.numel))]
        del held
        return result
