"""The model at sampling time, with all that depends on time and text alone computed once."""

from collections.abc import Sequence

import torch
from jaxtyping import Float32
from torch import Tensor

from mmface.conditions import Modality
from mmface.encoders import TextFeatures
from mmface.guidance import Rows
from mmface.transformer import MMFaceDiT


class Denoiser:
    """Predicts for the pictures of a call, at each of its steps."""

    def __init__(
        self,
        transformer: MMFaceDiT,
        text: TextFeatures,
        modalities: Sequence[Modality],
        timesteps: Float32[Tensor, " calls"],
        conditions: Float32[Tensor, "conditions channels height width"],
        max_batch: int | None,
    ) -> None:
        """Embed each text once, and compute the modulations of all calls as one batch.

        Args:
            transformer: The model.
            text: The features of each text that some row has.
            modalities: The modality with which each of them is heard.
            timesteps: What the model hears as time at each call, in [0, 1000).
            conditions: The latents of each condition that some row has; row 0 is none.
            max_batch: The most rows that are computed at once; None for no limit.
        """
        if hasattr(transformer, "_hf_hook"):
            # Model offloading waits for `forward`, which is not called here.
            transformer._hf_hook.pre_forward(transformer)
        dtype, sizes = transformer.dtype, (len(timesteps), len(modalities))
        modality = torch.tensor([int(each) for each in modalities], device=timesteps.device)
        global_condition = transformer.global_condition(
            timesteps.repeat_interleave(sizes[1]),
            text.pooled.to(dtype).repeat(sizes[0], 1),
            modality.repeat(sizes[0]),
        )
        self.transformer = transformer
        self.max_batch = max_batch
        self.conditions = conditions.to(dtype)
        self.text = transformer.text_embedder(text.tokens.to(dtype))  # [texts, L, D]
        self.modulations = [  # [calls, texts, 12 D] each
            table.unflatten(0, sizes) for table in transformer.modulations(global_condition)
        ]

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
        noisy_latents, predictions = noisy_latents.to(self.transformer.dtype), []
        numbers = torch.arange(len(rows.pictures), device=noisy_latents.device)
        for part in numbers.split(self.max_batch or len(numbers)):
            texts = rows.texts[part]
            prediction = self.transformer.denoise(
                noisy_latents[rows.pictures[part]],
                self.conditions[rows.conditions[part]],
                self.text[texts],
                [table[call, texts] for table in self.modulations],
            )
            predictions.append(prediction.float())
        return rows.combine(torch.cat(predictions))
