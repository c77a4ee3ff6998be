"""The paper's training: MMFace-DiT under its objective, with frozen neighbours."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmface.data.examples import EXAMPLES, read_examples
from mmface.encoders import LatentCodec, TextEncoder
from mmface.grid import labelled_grid
from mmface.objectives import objective_named
from mmface.pipeline import MMFacePipeline
from mmface.sampling import Settings, sample_rows
from mmface.training import TrainingTask, cast_copy
from mmface.transformer import MMFaceDiT

PREVIEW_SEEDS = (0, 1)
PREVIEW_STEPS = 25


class FaceDiffusion(TrainingTask):
    """MMFace-DiT under its objective, with the frozen text encoder in the loop."""

    trained: MMFaceDiT

    def __init__(
        self,
        transformer: MMFaceDiT,
        vae: str | Path,
        text: str | Path,
        image_size: int,
        guidance_scale: float = 7.5,
        examples: str | Path | None = None,
        gradient_checkpointing: bool = False,
        compile_blocks: bool = False,
        export_dtype: str = "float32",
    ) -> None:
        """Set up the model and its neighbours.

        Args:
            transformer: the model to train; its config names the objective.
            vae: folder or name (see `encoders.VAES`) of the frozen VAE; only previews and the
                exported pipeline need it.
            text: folder with the frozen CLIP text tower in `text_encoder/` and its tokenizer in
                `tokenizer/`, as in a saved pipeline.
            image_size: edge of the pictures in pixels, the exported pipeline's default.
            guidance_scale: the exported pipeline's default scale of guidance.
            examples: folder of `examples.jsonl` with the conditions that previews are sampled
                from; None takes the built-in ones.
            gradient_checkpointing: recompute each block in the backward pass.
            compile_blocks: run each block through torch.compile; the first step takes a minute.
            export_dtype: torch dtype name that exported weights are stored in.
        """
        super().__init__()
        self.trained = transformer
        self.vae = LatentCodec.from_pretrained(str(vae)).vae
        self.text = TextEncoder.from_pretrained(text)
        # A sub-module, so that it moves to the run's device with the task.
        self.text_model = self.text.text_model
        self.image_size = image_size
        self.guidance_scale = guidance_scale
        self.examples = read_examples(examples or EXAMPLES)
        self.objective = objective_named(transformer.config.objective)
        self.export_dtype = getattr(torch, export_dtype)
        if gradient_checkpointing:
            transformer.enable_gradient_checkpointing()
        if compile_blocks:
            transformer.compile_repeated_blocks()

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Float[Tensor, " batch"]]:
        """Corrupt the latents, predict, and compare (paper, the two objectives)."""
        text = self.text(batch["caption"])
        corrupted = self.objective.corrupt(batch["latents"], batch["noise"], batch["uniform"])
        prediction = self.trained(
            corrupted.noisy_latents,
            batch["condition"],
            corrupted.timestep,
            text.tokens,
            text.pooled,
            batch["modality"],
        )
        return {"loss": self.objective.loss(prediction, corrupted)}

    def preview(self, trained: MMFaceDiT, folder: Path, step: int) -> None:
        """Sample every example with two fixed seeds into one labelled grid."""
        pipeline = self._pipeline(trained)
        pipeline.set_progress_bar_config(disable=True)
        rows = sample_rows(pipeline, self.examples, PREVIEW_SEEDS, Settings(steps=PREVIEW_STEPS))
        titles = [f"step {step}, seed {seed}" for seed in PREVIEW_SEEDS]
        labelled_grid(rows, titles).save(folder / f"step-{step:08d}.png")

    def export(self, trained: MMFaceDiT, folder: Path) -> None:
        """Save a complete MMFacePipeline folder, every component in the export dtype."""
        pipeline = self._pipeline(trained)
        models = {n: m for n, m in pipeline.components.items() if isinstance(m, nn.Module)}
        pipeline.register_modules(**{n: cast_copy(m, self.export_dtype) for n, m in models.items()})
        pipeline.save_pretrained(folder)

    def _pipeline(self, transformer: MMFaceDiT) -> MMFacePipeline:
        return MMFacePipeline(
            vae=self.vae,
            text_encoder=self.text_model,
            tokenizer=self.text.tokenizer,
            transformer=transformer,
            scheduler=self.objective.scheduler(),
            image_size=self.image_size,
            guidance_scale=self.guidance_scale,
        )
