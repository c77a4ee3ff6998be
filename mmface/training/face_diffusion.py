"""The paper's training: MMFace-DiT under its objective, with frozen neighbours."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mmface.conditions import condition_kinds
from mmface.core.command_line import check_flag, check_number, check_whole
from mmface.data.keyed import Samples
from mmface.data.latents import check_store
from mmface.data.mixed import MixedSamples
from mmface.data.samples import LatentSamples, PairSamples
from mmface.encoders import LatentCodec, TextEncoder, TextFeatures
from mmface.generation.grid import labelled_grid, sample_examples
from mmface.model.initial_weights import load_initial_weights
from mmface.model.recomputation import recompute_blocks
from mmface.model.transformer import MMFaceDiT
from mmface.objectives.objective import Objective, objective_named
from mmface.objectives.solvers import translation_named
from mmface.rendered.examples import EXAMPLES, read_examples
from mmface.sampling.pipeline import MMFacePipeline
from mmface.training.metering import time_buckets, training_flops
from mmface.training.model_card import PIPELINE_USAGE, model_card
from mmface.training.starting_points import starting_point
from mmface.training.task import (
    RunFacts,
    TrainingTask,
    cast_copy,
    export_dtype_named,
    frozen_dtype_named,
)

PREVIEW_SEEDS = (0, 1)
PREVIEW_STEPS = 25


class FaceDiffusion(TrainingTask):
    """MMFace-DiT under its objective, with the frozen text encoder in the loop."""

    def __init__(
        self,
        transformer: MMFaceDiT,
        vae: str | Path,
        text: str | Path,
        image_size: int,
        objective: Objective | None = None,
        init_from: str | Path | None = None,
        guidance_scale: float = 7.5,
        num_inference_steps: int = 50,
        examples: str | Path | None = None,
        gradient_checkpointing: float | str = False,
        compile_blocks: bool = False,
        export_dtype: str = "float32",
        push_to_hub: str | None = None,
        frozen_dtype: str = "float32",
    ) -> None:
        """Set up the model and its neighbours.

        Args:
            transformer: the model to train; its config names the objective.
            vae: folder or name (see `encoders.VAES`) of the frozen VAE; only previews and the
                exported pipeline need it.
            text: folder with the frozen CLIP text tower in `text_encoder/` and its tokenizer in
                `tokenizer/`, as in a saved pipeline.
            image_size: edge of the pictures in pixels, the exported pipeline's default.
            objective: times and loss; None takes the defaults of the one that the model's config
                names.
            init_from: weights to start from instead of random ones: a built-in pipeline's name,
                the folder of a pipeline or of a saved MMFaceDiT of the same sizes, or a file of
                the authors' layout. Its objective may be another one. A resumed run does not
                read it.
            guidance_scale: the exported pipeline's default scale of guidance.
            num_inference_steps: the exported pipeline's default number of steps.
            examples: folder of `examples.jsonl` with the conditions that previews are sampled
                from; None takes the built-in ones.
            gradient_checkpointing: share of the blocks that are recomputed in the backward pass,
                in [0, 1]; true is all of them; "selective" recomputes all but the matrix products
                and attention of every block.
            compile_blocks: run each block through torch.compile; the first step takes a minute.
            export_dtype: torch dtype name that exported weights are stored in.
            push_to_hub: hub repository that the exported pipeline is uploaded to, with the
                credentials of `hf auth login`; None keeps it here.
            frozen_dtype: torch dtype name of the VAE and the text encoder.

        Raises:
            ValueError: if the model's config names another objective.
        """
        super().__init__()
        check_whole("image_size", image_size, 8)
        check_number("guidance_scale", guidance_scale, 0)
        check_whole("num_inference_steps", num_inference_steps, 1)
        check_flag("compile_blocks", compile_blocks)
        self.trained = transformer
        self.init_from = init_from
        self.push_to_hub = push_to_hub
        frozen = frozen_dtype_named(frozen_dtype)
        self.vae = LatentCodec.from_pretrained(str(vae), dtype=frozen).vae
        self.text = TextEncoder.from_pretrained(text, dtype=frozen)
        # A sub-module, so that it moves to the run's device with the task.
        self.text_model = self.text.text_model
        self.image_size = image_size
        self.guidance_scale = guidance_scale
        self.num_inference_steps = num_inference_steps
        self.examples = read_examples(examples or EXAMPLES)
        named = transformer.config.objective
        self.objective = objective or objective_named(named)
        if self.objective.name != named:
            raise ValueError(
                f"The model's config names the objective {named!r}, but {self.objective.name!r} is "
                f"trained; choose it by objective={named}, and leave model.objective to it."
            )
        self.export_dtype = export_dtype_named(export_dtype)
        prepare_blocks(transformer, gradient_checkpointing, compile_blocks)

    @property
    def network(self) -> Any:
        """The MMFaceDiT that predicts: the product, or what has the product inside."""
        return self.product

    def check_samples(self, samples: Samples) -> None:
        """Refuse latents of another VAE or size, and conditions that the model has no row for."""
        parts = samples.streams.values() if isinstance(samples, MixedSamples) else [samples]
        known = self.network.config.get("num_modalities", math.inf)
        for part in parts:
            for kind in getattr(part, "kinds", ()):
                if kind.index >= known:
                    raise ValueError(
                        f"model.num_modalities is {known}, but training on {kind.name} latents "
                        f"needs {kind.index + 1}; set it, or leave {kind.name} out of "
                        "data.modalities."
                    )
            if isinstance(part, LatentSamples | PairSamples):
                check_store(part.store, self.vae, self.image_size)

    def initialize(self) -> None:
        """Load the weights to start from, if there are any; see `load_initial_weights`."""
        if self.init_from is not None:
            load_initial_weights(self.product, starting_point(self.init_from).weights)

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Float[Tensor, " batch"]]:
        """Corrupt the latents, predict, and compare (paper, the two objectives)."""
        latents = batch["latents"].float()
        corrupted = self.objective.corrupt(latents, batch["noise"], batch["uniform"])
        text = self.text(list(batch["caption"]))
        noisy_latents, timestep = corrupted.noisy_latents, corrupted.timestep
        text = TextFeatures(*(each.float() for each in text))
        prediction = self.predict(self.network, noisy_latents, timestep, text, batch)
        return self.objective.losses(prediction, corrupted)

    def predict(
        self,
        network: nn.Module,
        noisy_latents: Float[Tensor, "batch channels height width"],
        timestep: Float[Tensor, " batch"],
        text: TextFeatures,
        batch: Mapping[str, Any],
    ) -> Float[Tensor, "batch channels height width"]:
        """Call a network with a batch's conditions."""
        condition, modality = batch["condition"].float(), batch["modality"]
        return network(noisy_latents, condition, timestep, text.tokens, text.pooled, modality)

    def subsets(self, batch: Mapping[str, Any]) -> dict[str, Bool[Tensor, " batch"]]:
        """Ten equal parts of the time's draw, and the kinds of condition."""
        kinds = {kind.name: batch["modality"] == kind.index for kind in condition_kinds()}
        return time_buckets(batch["uniform"]) | kinds

    def flops_per_sample(self, batch: Mapping[str, Any]) -> float | None:
        """FLOPs of MMFace-DiT's forward and backward pass on latents of the batch's size."""
        config: Any = self.network.config
        latents = torch.empty(1, *batch["latents"].shape[1:], device="meta")
        tokens = torch.empty(1, self.text.max_length, config.text_dim, device="meta")
        time, modality = torch.empty(1, device="meta"), torch.zeros(1, device="meta").long()
        with torch.device("meta"):
            network = type(self.network).from_config(config)
        inputs = (latents, latents, time, tokens, tokens[:, 0], modality)
        return training_flops(network, inputs)

    def preview(self, product: MMFaceDiT, folder: Path, step: int) -> None:
        """Sample every example with two fixed seeds into one labelled grid."""
        pipeline = self._pipeline(product)
        pipeline.set_progress_bar_config(disable=True)
        steps = min(PREVIEW_STEPS, self.num_inference_steps)
        rows = sample_examples(pipeline, self.examples, PREVIEW_SEEDS, steps)
        titles = [f"step {step}, seed {seed}" for seed in PREVIEW_SEEDS]
        labelled_grid(rows, titles).save(folder / f"step-{step:08d}.png")

    def check_export(self, product: MMFaceDiT) -> None:
        """Put the pipeline together, and write every config of it and the card into memory."""
        for component in self._pipeline(product).components.values():
            # diffusers' models write their own config, transformers' have one that does.
            writers: list[Any] = [component, getattr(component, "config", None)]
            for writer in writers:
                if hasattr(writer, "to_json_string"):
                    writer.to_json_string()
        self._card(RunFacts(steps=0, global_batch_size=1, num_items=1))

    def export(self, product: MMFaceDiT, folder: Path) -> None:
        """Save a complete MMFacePipeline folder, every component in the export dtype."""
        pipeline = self._pipeline(product)
        models = {n: m for n, m in pipeline.components.items() if isinstance(m, nn.Module)}
        pipeline.register_modules(**{n: cast_copy(m, self.export_dtype) for n, m in models.items()})
        pipeline.save_pretrained(folder)

    def usage(self, folder: Path) -> str | None:
        """The command that samples with the pipeline."""
        return f"python scripts/sample.py --pipeline {folder}"

    def describe(self, folder: Path, facts: RunFacts) -> None:
        """Write the pipeline's README."""
        (folder / "README.md").write_text(self._card(facts), encoding="utf-8")

    def publish(self, folder: Path) -> None:
        """Upload the pipeline's folder, if a repository was named."""
        if self.push_to_hub is not None:
            from huggingface_hub import HfApi  # most runs never ask for it

            api = HfApi()
            api.create_repo(self.push_to_hub, private=True, exist_ok=True)
            api.upload_folder(repo_id=self.push_to_hub, folder_path=folder)

    def _card(self, facts: RunFacts) -> str:
        scale, steps = self.guidance_scale, self.num_inference_steps
        sampling = f"guidance scale {scale:g}, {steps} steps"
        sizes, usage = self.network.config, self._usage_in_python()
        return model_card(
            self._title(), sizes, self.objective, self.image_size, sampling, facts, usage
        )

    def _title(self) -> str:
        return self.push_to_hub or "MMFace-DiT pipeline"

    def _usage_in_python(self) -> str:
        return PIPELINE_USAGE

    def _pipeline(self, transformer: MMFaceDiT) -> MMFacePipeline:
        return MMFacePipeline(
            vae=self.vae,
            text_encoder=self.text_model,
            tokenizer=self.text.tokenizer,
            transformer=transformer,
            scheduler=translation_named(self.objective.name).scheduler(),
            image_size=self.image_size,
            guidance_scale=self.guidance_scale,
            num_inference_steps=self.num_inference_steps,
        )


def prepare_blocks(network: Any, gradient_checkpointing: float | str, compile_blocks: bool) -> None:
    """Recompute and compile the blocks of a network under training; see `FaceDiffusion`."""
    recompute_blocks(network, gradient_checkpointing, compiled=compile_blocks)
    if compile_blocks:
        network.compile_repeated_blocks()
