"""The model at sampling time, with all that depends on time and text alone computed once."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from jaxtyping import Float32
from torch import Tensor

from mmface.encoders import TextFeatures
from mmface.guidance import Rows
from mmface.model.transformer import MMFaceDiT
from mmface.step_cache import ComputedBlocks, StepCache


class Denoiser:
    """Predicts for the pictures of a call, at each of its steps."""

    def __init__(
        self,
        transformer: MMFaceDiT,
        text: TextFeatures,
        modalities: Sequence[int],
        timesteps: Float32[Tensor, " calls"],
        conditions: Float32[Tensor, "conditions channels height width"],
        max_batch: int | None,
        shares: Sequence[float],
        cache: StepCache | None,
    ) -> None:
        """Embed each text once, and compute the modulations of all calls as one batch.

        Args:
            transformer: The model.
            text: The features of each text that some row has.
            modalities: The index of the kind of condition with which each of them is heard.
            timesteps: What the model hears as time at each call, in [0, 1000).
            conditions: The latents of each condition that some row has; row 0 is none.
            max_batch: The most rows that are computed at once; None for no limit.
            shares: Of each call, the share of the way's steps before it, in [0, 1).
            cache: What leaves blocks out of the calls inside `caching`; None computes all.
        """
        if hasattr(transformer, "_hf_hook"):
            # Model offloading waits for `forward`, which is not called here.
            transformer._hf_hook.pre_forward(transformer)
        dtype, sizes = transformer.dtype, (len(timesteps), len(modalities))
        modality = torch.tensor(list(modalities), device=timesteps.device)
        global_condition = transformer.global_condition(
            timesteps.repeat_interleave(sizes[1]),
            text.pooled.to(dtype).repeat(sizes[0], 1),
            modality.repeat(sizes[0]),
        )
        self.transformer = transformer
        self.max_batch = max_batch
        self.shares = shares
        self.cache = cache
        self.conditions = conditions.to(dtype)
        self.text = transformer.text_embedder(text.tokens.to(dtype))  # [texts, L, D]
        tables = transformer.modulations(global_condition)
        self.widths = [table.shape[-1] for table in tables]
        # One table, from which a step takes its rows in one kernel: [calls, texts, 12 D of all].
        self.modulations = torch.cat(tables, dim=-1).unflatten(0, sizes)
        self._num_rows = 0
        self._cached: Rows | None = None  # what the cache's memory is of
        self._computed: ComputedBlocks | None = None

    @property
    def evaluations(self) -> float:
        """Rows computed so far; one that went through some of the blocks only counts for less."""
        return self._num_rows if self._computed is None else self._computed.evaluations

    @contextmanager
    def caching(self) -> Iterator[None]:
        """Let the cache, if there is one, leave blocks out of the calls that are made inside."""
        if self.cache is None:
            yield
            return
        with self.cache.enabled(self.transformer) as self._computed:
            yield

    def __call__(
        self,
        call: int,
        rows: Rows,
        noisy_latents: Float32[Tensor, "pictures channels height width"],
    ) -> Float32[Tensor, "pictures channels height width"]:
        """Predict the velocity or the noise, whichever the model was trained for.

        Args:
            call: Number of the call.
            rows: What to compute, and how it adds up.
            noisy_latents: At unit variance.

        Returns:
            One prediction a picture.
        """
        if self.cache is not None and rows is not self._cached:
            # Guidance or a condition began or ended: what is remembered is of other rows.
            self.cache.restart(self.transformer, self.shares[call:])
            self._cached = rows
        noisy_latents, predictions = noisy_latents.to(self.transformer.dtype), []
        numbers = torch.arange(len(rows.pictures), device=noisy_latents.device)
        self._num_rows += len(numbers)
        for place, part in enumerate(numbers.split(self.max_batch or len(numbers))):
            texts = rows.texts[part]
            with self._context(place):
                prediction = self.transformer.denoise(
                    noisy_latents[rows.pictures[part]],
                    self.conditions[rows.conditions[part]],
                    self.text[texts],
                    list(self.modulations[call, texts].split(self.widths, dim=-1)),
                )
            predictions.append(prediction.float())
        return rows.combine(torch.cat(predictions))

    def _context(self, part: int) -> AbstractContextManager[None]:
        """Say to the cache which part of the rows is computed: each has a memory of its own."""
        return nullcontext() if self.cache is None else self.transformer.cache_context(str(part))
