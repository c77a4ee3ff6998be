"""MMFacePipeline: faces from a mask or a sketch plus a prompt.

A call checks its inputs, encodes prompts and conditions once each, draws the noise of each picture
from its own seed, follows the scheduler with guidance, and decodes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Float, Float32
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from mmface.conditions import Picture, to_uint8
from mmface.encoders import VAES, LatentCodec, TextEncoder, TextFeatures, Vae
from mmface.inputs import (
    RELEASED_TEXT,
    Request,
    check_numbers,
    distinct_pixels,
    one_each,
    picture_generators,
    released_checkpoint,
)
from mmface.objectives import objective_named
from mmface.transformer import MMFaceDiT

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


@dataclass
class MMFacePipelineOutput(BaseOutput):
    """What a call of the pipeline returns.

    Attributes:
        images: "pil": a list of pictures; "np": float32 [N, H, W, 3] in [0, 1]; "pt": float32
            [N, 3, H, W] in [0, 1]; "latent": normalised float32 latents [N, C, h, w].
        seeds: The seed of each picture; None where generators were given.
    """

    images: list[Image.Image] | np.ndarray | Tensor
    seeds: list[int] | None


class MMFacePipeline(DiffusionPipeline):
    """Sample faces from a mask or a sketch plus a prompt (MMFace-DiT, arXiv 2603.29029)."""

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _callback_tensor_inputs: ClassVar[list[str]] = ["latents"]

    def __init__(
        self,
        vae: Vae,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        transformer: MMFaceDiT,
        scheduler: SchedulerMixin | None,
        image_size: int = 256,
        guidance_scale: float = 7.5,
    ) -> None:
        """Put a pipeline together.

        Args:
            vae: The frozen VAE; its config carries the normalisation of its latents.
            text_encoder: The frozen CLIP text tower.
            tokenizer: Its tokenizer.
            transformer: The model; its config names the objective that it was trained with.
            scheduler: A diffusers scheduler for that objective; None takes the objective's own.
            image_size: Side in pixels of the square pictures that the model was trained on.
            guidance_scale: The scale of guidance that suits the model; a call's default.

        Raises:
            ValueError: If the sizes of the components do not fit together.
        """
        super().__init__()
        codec_channels, text_dim = LatentCodec(vae).channels, text_encoder.config.hidden_size
        config = transformer.config
        if (config.latent_channels, config.text_dim) != (codec_channels, text_dim):
            raise ValueError(
                f"The transformer was built for {config.latent_channels} latent channels and text "
                f"of width {config.text_dim}, but the VAE has {codec_channels} channels and the "
                f"text encoder width {text_dim}; use the ones that it was trained with."
            )
        if scheduler is None:
            scheduler = objective_named(config.objective).scheduler()
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            transformer=transformer,
            scheduler=scheduler,
        )
        self.register_to_config(image_size=image_size, guidance_scale=guidance_scale)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, **kwargs: Any
    ) -> "MMFacePipeline":
        """Load a saved pipeline from a folder or by its hub id; weights as safetensors only.

        Args:
            pretrained_model_name_or_path: What `save_pretrained` wrote, or a hub id.
            **kwargs: As for `DiffusionPipeline.from_pretrained`; `torch_dtype` is float32 if not
                given, whatever the files hold.

        Returns:
            The pipeline.
        """
        # Said in so many words, or each component comes in the dtype of its own file.
        options = {"use_safetensors": True, "torch_dtype": torch.float32} | kwargs
        return super().from_pretrained(str(pretrained_model_name_or_path), **options)

    @classmethod
    def from_released(
        cls,
        folder: str | Path,
        checkpoint: str | None = None,
        objective: str | None = None,
        image_size: int | None = None,
        num_heads: int = 16,
        torch_dtype: torch.dtype = torch.float32,
    ) -> "MMFacePipeline":
        """Load the authors' weights from a copy of their hub repository.

        Args:
            folder: The copy: `VAE/`, `stable-diffusion-2-1-base/` and checkpoint folders, as
                `hf download BharathK333/MMFace-DiT-Models --local-dir FOLDER` makes it.
            checkpoint: The checkpoint's folder inside it; None if there is one only.
            objective: Name of the objective; None reads it from the folder's name (`-rfm`).
            image_size: Side of the pictures in pixels; None reads it from the folder's name.
            num_heads: Number of attention heads, which the weights do not tell.
            torch_dtype: The dtype of all weights.

        Returns:
            The pipeline.
        """
        released = released_checkpoint(Path(folder), checkpoint)
        text = TextEncoder.from_pretrained(Path(folder) / RELEASED_TEXT, torch_dtype=torch_dtype)
        vae = AutoencoderKL.from_pretrained(
            Path(folder) / "VAE", torch_dtype=torch_dtype, use_safetensors=True
        )
        return cls(
            vae=VAES["flux_released"].configure(vae),
            text_encoder=text.text_model,
            tokenizer=text.tokenizer,
            transformer=MMFaceDiT.from_released(
                released.weights,
                num_heads=num_heads,
                objective=objective or released.objective,
                torch_dtype=torch_dtype,
            ),
            scheduler=None,
            image_size=image_size or released.image_size,
        )

    @property
    def codec(self) -> LatentCodec:
        """The VAE with its normalisation."""
        return LatentCodec(self.vae)

    @property
    def text(self) -> TextEncoder:
        """The text encoder with its tokenizer."""
        return TextEncoder(self.text_encoder, self.tokenizer)

    def check_inputs(
        self,
        prompt: str | Sequence[str],
        mask: Picture | Sequence[Picture | None] | None,
        sketch: Picture | Sequence[Picture | None] | None,
        negative_prompt: str | Sequence[str],
        size: tuple[int, int],
        num_inference_steps: int,
        guidance_scale: float,
        num_images_per_prompt: int,
        output_type: str,
    ) -> list[Request]:
        """Check what a call was given, and sort it into one request a prompt.

        Args:
            prompt: As for a call.
            mask: As for a call.
            sketch: As for a call.
            negative_prompt: As for a call.
            size: Height and width in pixels.
            num_inference_steps: As for a call.
            guidance_scale: As for a call.
            num_images_per_prompt: As for a call.
            output_type: As for a call.

        Returns:
            One request a prompt.

        Raises:
            ValueError: If anything does not fit; the message names it and the remedy.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts or not all(isinstance(text, str) for text in prompts):
            raise ValueError("prompt must be a string or a non-empty list of strings.")
        check_numbers(num_inference_steps, guidance_scale, num_images_per_prompt)
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type must be in {OUTPUT_TYPES}, got {output_type!r}.")
        multiple = self.codec.downscale_factor * self.transformer.config.patch_size
        if any(side < 1 or side % multiple for side in size):
            raise ValueError(
                f"height and width must be positive multiples of {multiple}, got {size}."
            )
        negatives = one_each("negative_prompt", negative_prompt, len(prompts))
        masks = one_each("mask", mask, len(prompts))
        sketches = one_each("sketch", sketch, len(prompts))
        return [
            Request.sorted(*row) for row in zip(prompts, negatives, masks, sketches, strict=True)
        ]

    def encode_prompt(self, prompts: Sequence[str]) -> TextFeatures:
        """Encode prompts, each distinct one once.

        Args:
            prompts: Any number of prompts; the empty one is the unconditional one.

        Returns:
            The features of each prompt.
        """
        distinct = list(dict.fromkeys(prompts))
        index = [distinct.index(text) for text in prompts]
        pooled, tokens = self.text(distinct)
        return TextFeatures(pooled[index], tokens[index])

    def encode_condition(
        self, requests: Sequence[Request], size: tuple[int, int]
    ) -> Float32[Tensor, "batch channels height width"]:
        """Encode masks and sketches, each distinct one once, by the VAE's posterior mean.

        Args:
            requests: The requests whose conditions are wanted.
            size: Height and width in pixels.

        Returns:
            Normalised latents, one a request.
        """
        pixels, index = distinct_pixels(requests, size)
        return self.codec.encode(pixels)[index]

    def prepare_latents(
        self, generators: Sequence[torch.Generator], size: tuple[int, int]
    ) -> Float32[Tensor, "batch channels height width"]:
        """Draw each picture's noise from its own generator, on the generator's device.

        Args:
            generators: One a picture; on the CPU the noise is the same on every machine.
            size: Height and width in pixels.

        Returns:
            Standard normal noise.
        """
        codec, device = self.codec, self._execution_device
        shape = (codec.channels, *(side // codec.downscale_factor for side in size))
        noise = [randn_tensor(shape, one, device, torch.float32) for one in generators]
        return torch.stack(noise)

    def _embed(
        self, requests: Sequence[Request], num_branches: int, timesteps: Tensor
    ) -> tuple[list[int], Float[Tensor, "rows tokens dim"], list[Float[Tensor, "steps rows _"]]]:
        """Compute everything that depends on time, prompt and modality alone, once each.

        Gives the row of each branch and request, each row's text, each step's modulations of rows.
        """
        wanted = [(each.prompt, each.modality) for each in requests]
        if num_branches == 2:
            wanted += [(each.negative_prompt, each.modality) for each in requests]
        distinct = list(dict.fromkeys(wanted))
        text = self.encode_prompt([prompt for prompt, _ in distinct])
        model, num_steps = self.transformer, len(timesteps)
        if hasattr(model, "_hf_hook"):
            # Model offloading waits for `forward`, which is not called here.
            model._hf_hook.pre_forward(model)
        modality = torch.tensor([modality for _, modality in distinct], device=timesteps.device)
        global_condition = model.global_condition(
            timesteps.repeat_interleave(len(distinct)),
            text.pooled.to(model.dtype).repeat(num_steps, 1),
            modality.repeat(num_steps),
        )
        modulations = [
            table.unflatten(0, (num_steps, len(distinct)))
            for table in model.modulations(global_condition)
        ]
        embedded = model.text_embedder(text.tokens.to(model.dtype))
        return [distinct.index(each) for each in wanted], embedded, modulations

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        mask: Picture | Sequence[Picture | None] | None = None,
        sketch: Picture | Sequence[Picture | None] | None = None,
        negative_prompt: str | Sequence[str] = "",
        num_inference_steps: int = 50,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        height: int | None = None,
        width: int | None = None,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: str = "pil",
        callback_on_step_end: Callable[..., dict[str, Tensor]] | None = None,
    ) -> MMFacePipelineOutput:
        """Sample faces; all of a call's pictures are one batch.

        Picture k of the call, counted through all pictures of the first prompt, then those of the
        second, has the seed `seed + k`. A seed gives the same picture in whatever batch it is.

        Args:
            prompt: One prompt or several.
            mask: One mask for all prompts or one a prompt, as `load_mask` takes it. Each prompt has
                a mask or a sketch: in lists, None marks the places that the other one fills.
            sketch: The same for sketches, as `load_sketch` takes them.
            negative_prompt: What guidance leads away from; one for all prompts or one a prompt.
            num_inference_steps: Steps of the scheduler, at least 1.
            guidance_scale: Scale of classifier-free guidance, 1 for none; None takes the model's.
            num_images_per_prompt: Pictures of each prompt.
            height: Height in pixels; None takes the model's `image_size`.
            width: Width in pixels; None takes the model's `image_size`.
            seed: The first picture's seed, or one a picture; None draws one at random.
            generator: Instead of a seed: one generator for all pictures, or one a picture.
            output_type: "pil", "np", "pt" or "latent"; see `MMFacePipelineOutput`.
            callback_on_step_end: Called after each step with the pipeline, the step's index, its
                timestep and `{"latents": ...}`; returns a dict that may hold other latents.

        Returns:
            The pictures and their seeds.
        """
        side = self.config.image_size
        size = (side if height is None else height, side if width is None else width)
        if guidance_scale is None:
            guidance_scale = self.config.guidance_scale
        requests = self.check_inputs(
            prompt,
            mask,
            sketch,
            negative_prompt,
            size,
            num_inference_steps,
            guidance_scale,
            num_images_per_prompt,
            output_type,
        )
        num_pictures = len(requests) * num_images_per_prompt
        generators, seeds = picture_generators(seed, generator, num_pictures)
        objective = objective_named(self.transformer.config.objective)
        device, dtype = self._execution_device, self.transformer.dtype

        num_branches = 1 if guidance_scale == 1 else 2
        condition = self.encode_condition(requests, size).to(dtype)  # [prompts, C, h, w]
        condition = condition.repeat_interleave(num_images_per_prompt, dim=0)
        condition = condition.repeat(num_branches, 1, 1, 1)  # [branches * pictures, C, h, w]
        timesteps = objective.set_timesteps(self.scheduler, num_inference_steps, device)
        rows, text, modulations = self._embed(
            requests, num_branches, objective.model_timestep(timesteps)
        )
        row = torch.tensor(rows, device=device).repeat_interleave(num_images_per_prompt)
        text = text[row]  # [branches * pictures, L, D]
        latents = self.prepare_latents(generators, size)  # [pictures, C, h, w]

        with self.progress_bar(total=len(timesteps)) as progress:
            for index, timestep in enumerate(timesteps):
                noisy = latents.to(dtype).repeat(num_branches, 1, 1, 1)
                step_modulations = [table[index, row] for table in modulations]
                output = self.transformer.denoise(noisy, condition, text, step_modulations).float()
                if num_branches == 2:
                    wanted, unwanted = output.chunk(2)
                    output = unwanted + guidance_scale * (wanted - unwanted)
                output = objective.scheduler_output(output)
                latents = self.scheduler.step(output, timestep, latents, return_dict=False)[0]
                if callback_on_step_end is not None:
                    changed = callback_on_step_end(self, index, timestep, {"latents": latents})
                    latents = changed.get("latents", latents)
                progress.update()

        images = self._finish(latents, output_type)
        self.maybe_free_model_hooks()
        return MMFacePipelineOutput(images=images, seeds=seeds)

    def _finish(
        self, latents: Float32[Tensor, "batch channels height width"], output_type: str
    ) -> list[Image.Image] | np.ndarray | Tensor:
        """Decode latents into the wanted type."""
        if output_type == "latent":
            return latents
        pixels = self.codec.decode(latents)
        if output_type == "pil":
            return [Image.fromarray(picture) for picture in to_uint8(pixels)]
        pixels = (pixels + 1) / 2
        return pixels if output_type == "pt" else pixels.movedim(1, -1).cpu().numpy()
