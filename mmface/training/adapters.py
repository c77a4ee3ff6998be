"""LoRA and DoRA of a frozen base: trained alone, checkpointed alone, exported as diffusers does."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from torch import nn

from mmface.model.adapters import (
    BLOCKS,
    AdapterWeights,
    adapter_config,
    add_lora,
    quantize,
    save_adapter,
)
from mmface.model.initial_weights import load_initial_weights
from mmface.model.transformer import MMFaceDiT
from mmface.training.face_diffusion import FaceDiffusion
from mmface.training.model_card import adapter_usage
from mmface.training.optimization import num_bytes
from mmface.training.starting_points import starting_point
from mmface.training.task import Companions, RunFacts, frozen_dtype_named


class LoraTraining(FaceDiffusion):
    """LoRA (arXiv 2106.09685) of a base under either objective; its product is the LoRA's file."""

    dora: ClassVar = False

    def __init__(
        self,
        transformer: MMFaceDiT,
        init_from: str | Path,
        rank: int = 16,
        alpha: int | None = None,
        targets: Sequence[str] = BLOCKS,
        dropout: float = 0.0,
        base_bits: int | None = None,
        frozen_dtype: str = "float32",
        **options: Any,
    ) -> None:
        """Load the base and add the LoRA.

        Args:
            transformer: of the base's sizes and objective.
            init_from: the base: a built-in name, a pipeline's folder, or weights alone. It is read
                at every start, since checkpoints hold the LoRA alone.
            rank: of the LoRA.
            alpha: its update is scaled by alpha / rank; None takes the rank.
            targets: which linear layers have one, see `model.adapters.add_lora`.
            dropout: share of a layer's inputs that the LoRA does not see in training.
            base_bits: 8 or 4 stores the base's linear layers so, by bitsandbytes; None as they are.
            frozen_dtype: of what is not trained; less than float32 needs mixed_precision=bf16.
            **options: further arguments of `FaceDiffusion`.
        """
        dtype = frozen_dtype_named(frozen_dtype)
        start = starting_point(init_from)
        load_initial_weights(transformer, start.weights, translated=False)
        nn.Module.to(transformer, dtype)
        if base_bits is not None:
            quantize(transformer, base_bits, dtype)
        add_lora(transformer, rank, alpha, targets, dropout, self.dora)
        super().__init__(transformer, init_from=None, frozen_dtype=frozen_dtype, **options)
        self.base_name = str(start.pipeline or start.weights)
        self.base = transformer
        self.trained = AdapterWeights(transformer)

    @classmethod
    def planned(cls, network: Any, settings: Mapping[str, Any]) -> Companions:
        """Add the LoRA to the network, frozen as the settings say."""
        nn.Module.to(network, frozen_dtype_named(settings.get("frozen_dtype", "float32")))
        names = ("alpha", "targets", "dropout")
        chosen = {n: settings[n] for n in names if settings.get(n) is not None}
        add_lora(network, settings.get("rank", 16), dora=cls.dora, **chosen)
        return Companions(is_adapter=True, base_bits=settings.get("base_bits"))

    @property
    def network(self) -> Any:
        """The base with the LoRA in it."""
        return self.base

    @property
    def exported_bytes(self) -> int:
        """Bytes of the LoRA's file."""
        return num_bytes(self.trained)

    def initialize(self) -> None:
        """Do nothing: the base is there, and the LoRA begins as no change."""

    def train(self, mode: bool = True) -> "LoraTraining":
        """Put the base's dropout of the LoRA into training mode, too."""
        super().train(mode)
        self.base.train(mode)
        return self

    def flops_per_sample(self, batch: Mapping[str, Any]) -> float | None:
        """Two thirds of a full training's: the base's weights have no gradient."""
        whole = super().flops_per_sample(batch)
        return None if whole is None else whole * 2 / 3

    @contextlib.contextmanager
    def wearing(self, product: AdapterWeights) -> Iterator[MMFaceDiT]:
        """The base with other weights of the LoRA than those under training."""
        own = {name: tensor.clone() for name, tensor in self.trained.state_dict().items()}
        self.trained.load_state_dict(product.state_dict())
        try:
            yield self.base
        finally:
            self.trained.load_state_dict(own)

    def preview(self, product: AdapterWeights, folder: Path, step: int) -> None:
        """Sample the examples with the averaged LoRA."""
        with self.wearing(product) as network:
            super().preview(network, folder, step)

    def check_export(self, product: AdapterWeights) -> None:
        """Write the LoRA's settings and the card into memory."""
        json.dumps(adapter_config(self.base), default=str)
        self._card(RunFacts(steps=0, global_batch_size=1, num_items=1))

    def export(self, product: AdapterWeights, folder: Path) -> None:
        """Write `pytorch_lora_weights.safetensors`, in the export dtype, into a folder."""
        folder.mkdir()
        weights = {n: t.to(self.export_dtype) for n, t in product.state_dict().items()}
        base = {"name": self.base_name, "objective": self.objective.name}
        save_adapter(folder / LORA_WEIGHT_NAME_SAFE, weights, adapter_config(self.base), base)

    def usage(self, folder: Path) -> str:
        """The command that samples with the LoRA."""
        return f"python scripts/sample.py --pipeline {self.base_name} --lora {folder}"

    def _title(self) -> str:
        return self.push_to_hub or f"{'DoRA' if self.dora else 'LoRA'} for MMFace-DiT"

    def _usage_in_python(self) -> str:
        return adapter_usage(self.base_name)


class DoraTraining(LoraTraining):
    """DoRA (arXiv 2402.09353): a LoRA of the weights' directions, and their norms beside it."""

    dora: ClassVar = True
