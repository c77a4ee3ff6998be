"""MMFacePipeline: faces from a mask, a sketch or another condition plus a prompt.

A call checks its inputs, encodes prompts and conditions once each, draws the noise of each picture
from its own seed, follows a solver with guidance, and decodes. `mmface.sampling.guidance` explains
the predictions of a step and how they add up.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Float32
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

# diffusers loads the classes that a folder names only from modules that are imported already.
import mmface.ablations
import mmface.transformer  # noqa: F401
from mmface.conditions import Picture, condition_kind
from mmface.core.command_line import check_number, check_whole
from mmface.core.sources import (
    BrokenModelError,
    builtin_pipelines,
    load_network,
    opened,
    read_object,
)
from mmface.encoders import LatentCodec, TextEncoder, TextFeatures, Vae
from mmface.encoders.vae import to_uint8
from mmface.model.ablations import NETWORKS
from mmface.model.transformer import MMFaceDiT
from mmface.objectives.solvers import (
    NUM_TRAIN_TIMESTEPS,
    Trajectory,
    Translation,
    load_scheduler,
    translation_named,
)
from mmface.sampling.blending import VARIATION_STRENGTH, KeptPicture
from mmface.sampling.guidance import (
    Composition,
    ConditionedPrompt,
    Denoiser,
    Guidance,
    conditioned_prompts,
    distinct_pixels,
    one_each,
    split_keywords,
)
from mmface.sampling.released_folder import released_checkpoint, released_components
from mmface.sampling.step_cache import StepCache

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


@dataclass
class MMFacePipelineOutput(BaseOutput):
    """What a call of the pipeline returns.

    Images are for "pil" a list of pictures, for "np" float32 [N, H, W, 3] in [0, 1], for "pt"
    float32 [N, 3, H, W] in [0, 1], and for "latent" normalised float32 latents [N, C, h, w]. Seeds
    are None where generators were given. `evaluations` is how often the network was evaluated for a
    picture, on average; where a cache skipped blocks, the computed fraction counts.
    """

    images: list[Image.Image] | np.ndarray | Tensor
    seeds: list[int] | None
    evaluations: float


def as_output_type(
    pixels: Float32[Tensor, "batch 3 height width"], output_type: str
) -> list[Image.Image] | np.ndarray | Tensor:
    """Turn pixels in [-1, 1] into an output of type "pil", "np" or "pt"."""
    if output_type == "pil":
        return [Image.fromarray(picture) for picture in to_uint8(pixels)]
    pixels = (pixels + 1) / 2
    return pixels if output_type == "pt" else pixels.movedim(1, -1).cpu().numpy()


class MMFacePipeline(DiffusionPipeline):
    """Sample faces from a mask, a sketch or both plus a prompt (MMFace-DiT, arXiv 2603.29029)."""

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
        num_inference_steps: int = 50,
    ) -> None:
        """Put a pipeline together.

        The VAE's config carries the normalisation of its latents, the transformer's the objective,
        whose own scheduler None takes. `image_size` is the side in pixels of the square pictures
        that the model was trained on; `guidance_scale` and `num_inference_steps` are a call's
        defaults. ValueError if the components do not fit together.
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
            scheduler = translation_named(config.objective).scheduler()
        if isinstance(vae, AutoencoderKL) and vae.tile_sample_min_size < image_size:
            # Tiles smaller than what the VAE was trained on would each have colours of their own.
            vae.tile_sample_min_size = image_size
            vae.tile_latent_min_size = image_size // LatentCodec(vae).downscale_factor
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            transformer=transformer,
            scheduler=scheduler,
        )
        self.register_to_config(
            image_size=image_size,
            guidance_scale=guidance_scale,
            num_inference_steps=num_inference_steps,
        )

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, **kwargs: Any
    ) -> "MMFacePipeline":
        """Load a saved pipeline from a folder or by its hub id; weights as safetensors only.

        Its arguments are those of `DiffusionPipeline.from_pretrained`; `dtype` is float32 if not
        given, whatever the files hold.
        """
        # Said in so many words, or each component comes in the dtype of its own file.
        dtype = kwargs.pop("torch_dtype", torch.float32)
        options = {"dtype": dtype} | kwargs | {"use_safetensors": True}
        with opened("pipeline", pretrained_model_name_or_path, builtin_pipelines()) as source:
            if not Path(source).is_dir():
                source = cls.download(source, **options)
            options |= saved_components(
                Path(source), options["dtype"], options, options.get("variant")
            )
            return super().from_pretrained(source, **options)

    @classmethod
    def from_released(
        cls,
        folder: str | Path,
        checkpoint: str | None = None,
        objective: str | None = None,
        image_size: int | None = None,
        num_heads: int = 16,
        dtype: torch.dtype = torch.float32,
    ) -> "MMFacePipeline":
        """Load the authors' weights from a copy of their hub repository.

        `hf download BharathK333/MMFace-DiT-Models --local-dir FOLDER` makes the copy. None takes
        the only `checkpoint`, and objective and image size from its folder's name (`-rfm`). The
        weights do not tell the number of heads.
        """
        found = released_checkpoint(Path(folder), checkpoint, objective, image_size)
        components = released_components(Path(folder), found, num_heads, dtype)
        return cls(**components, scheduler=None, image_size=found.image_size)

    @property
    def codec(self) -> LatentCodec:
        """The VAE with its normalisation."""
        return LatentCodec(self.vae)

    @property
    def text(self) -> TextEncoder:
        """The text encoder with its tokenizer."""
        return TextEncoder(self.text_encoder, self.tokenizer)

    @property
    def translation(self) -> Translation:
        """What translates between the transformer, by its objective, and a scheduler."""
        return translation_named(self.transformer.config.objective)

    def check_inputs(
        self,
        prompt: str | Sequence[str],
        conditions: Mapping[str, Picture | Sequence[Picture | None] | None],
        negative_prompt: str | Sequence[str],
        size: tuple[int, int],
        output_type: str,
    ) -> list[ConditionedPrompt]:
        """Check what a call was given, `size` in pixels, and sort it by its prompts.

        ValueError names what does not fit and the remedy.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts or not all(isinstance(text, str) for text in prompts):
            raise ValueError("prompt must be a string or a non-empty list of strings.")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type must be in {OUTPUT_TYPES}, got {output_type!r}.")
        multiple = self.codec.downscale_factor * self.transformer.config.patch_size
        if any(side < 1 or side % multiple for side in size):
            raise ValueError(
                f"height and width must be positive multiples of {multiple}, got {size}."
            )
        num_modalities = self.transformer.config.get("num_modalities", math.inf)
        for name in conditions:
            if (index := condition_kind(name).index) >= num_modalities:
                raise ValueError(
                    f"The model was not trained with a {name}: its modality table has "
                    f"{num_modalities} rows, and a {name} needs row {index}."
                )
        return conditioned_prompts(prompts, negative_prompt, conditions)

    def encode_prompt(self, prompts: Sequence[str]) -> TextFeatures:
        """Encode prompts, each distinct one once; the empty one is the unconditional one."""
        distinct = list(dict.fromkeys(prompts))
        index = [distinct.index(text) for text in prompts]
        pooled, tokens = self.text(distinct)
        return TextFeatures(pooled[index], tokens[index])

    def encode_condition(
        self,
        prompts: Sequence[ConditionedPrompt],
        size: tuple[int, int],
        max_batch: int | None = None,
    ) -> tuple[Float32[Tensor, "conditions channels height width"], list[list[int]]]:
        """Encode conditions, each distinct one once, by the VAE's posterior mean.

        Gives a table of normalised latents whose row 0 is zeros, which is no condition; and the
        rows that each prompt has.
        """
        pixels, rows = distinct_pixels(prompts, size)
        latents = self._encode(pixels, max_batch)
        table = torch.cat((torch.zeros_like(latents[:1]), latents))
        return table, [[row + 1 for row in own] for own in rows]

    def prepare_latents(
        self,
        generators: Sequence[torch.Generator],
        size: tuple[int, int],
        latents: Tensor | None = None,
    ) -> Float32[Tensor, "batch channels height width"]:
        """Draw each picture's noise from its own generator, on the generator's device.

        Given `latents` are taken instead, if they are finite and of the right shape. On the CPU the
        noise is the same on every machine.
        """
        codec, device = self.codec, self._execution_device
        shape = (codec.channels, *(side // codec.downscale_factor for side in size))
        if latents is not None:
            return check_latents(latents, (len(generators), *shape)).to(device)
        noise = [randn_tensor(shape, one, device, torch.float32) for one in generators]
        return torch.stack(noise)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        mask: Picture | Sequence[Picture | None] | None = None,
        sketch: Picture | Sequence[Picture | None] | None = None,
        negative_prompt: str | Sequence[str] = "",
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        height: int | None = None,
        width: int | None = None,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: str = "pil",
        callback_on_step_end: Callable[..., dict[str, Tensor]] | None = None,
        *,
        guidance: Guidance | None = None,
        image: Picture | Sequence[Picture] | None = None,
        strength: float | None = None,
        region: Picture | Sequence[Picture] | None = None,
        latents: Tensor | None = None,
        solver: str | None = None,
        max_batch: int | None = None,
        cache: StepCache | None = None,
        **conditions: Any,
    ) -> MMFacePipelineOutput:
        """Sample faces; all of a call's pictures are one batch.

        Picture k of the call, counted through all pictures of the first prompt, then those of the
        second, has the seed `seed + k`. In another batch a seed gives the
        same picture up to rounding (1 of 255 in a few pixels of 10,000), if there is no cache.

        Args:
            prompt: One prompt or several.
            mask: One mask for all prompts or one a prompt, as `load_mask` takes it. Each prompt has
                one condition at least: in lists, None marks the places without.
            sketch: The same for sketches, as `load_sketch` takes them.
            negative_prompt: What guidance leads away from; one for all prompts or one a prompt.
            num_inference_steps: Steps of the solver, at least 1; None takes the model's.
            guidance_scale: Scale of guidance on the text, 1 for none; None takes the model's.
            num_images_per_prompt: Pictures of each prompt.
            height: Height in pixels; None takes the model's `image_size`.
            width: Width in pixels; None takes the model's `image_size`.
            seed: The first picture's seed, or one a picture; None draws one at random.
            generator: Instead of a seed: one generator for all pictures, or one a picture.
            output_type: "pil", "np", "pt" or "latent"; see `MMFacePipelineOutput`.
            callback_on_step_end: Called after each step with the pipeline, the step's index, its
                timestep and `{"latents": ...}`; returns a dict that may hold other latents.
            guidance: More of guidance than its scale.
            image: A picture to start from; one for all prompts or one a prompt.
            strength: Fraction of the steps that are taken from the picture on, in (0, 1]; 1 starts
                from noise alone. None is 1 with a region and `VARIATION_STRENGTH` without.
            region: The part of the picture that is made anew, in white; outside, every pixel stays
                as it is. One for all prompts or one a prompt.
            latents: Instead of a seed: standard normal noise, one a picture.
            solver: One of `Translation.solvers`; None takes the pipeline's scheduler.
            max_batch: The most predictions, or pictures to encode or decode, that are computed at
                once; None for no limit. It changes the memory that is needed, and the
                pictures by rounding only.
            cache: Skips blocks whose result has changed little since an earlier step; a picture
                then depends on the batch that it is in. None computes all.
            **conditions: Conditions of other registered kinds by the kind's name; and by
                `mask_control`, `sketch_control` and so on a `ConditionControl`: how strongly the
                conditions of a kind bind, when and where.

        Returns:
            The pictures, their seeds, and how often the network was evaluated.
        """
        side = self.config.image_size
        size = (side if height is None else height, side if width is None else width)
        if num_inference_steps is None:
            num_inference_steps = self.config.num_inference_steps
        check_numbers(num_inference_steps, num_images_per_prompt, max_batch)
        given, controls = split_keywords({"mask": mask, "sketch": sketch, **conditions})
        prompts = self.check_inputs(prompt, given, negative_prompt, size, output_type)
        strength = checked_strength(image, strength, region)
        scheduler = self.translation.fitting(solver, self.scheduler)
        guidance = Guidance.merged(guidance_scale, guidance, self.config.guidance_scale)
        count = len(prompts) * num_images_per_prompt
        generators, seeds = picture_generators(seed, generator, count, latents)
        noise = self.prepare_latents(generators, size, latents)
        table, owned = self.encode_condition(prompts, size, max_batch)
        each, factor = num_images_per_prompt, self.codec.downscale_factor
        composition = Composition(prompts, each, guidance, controls, owned, size, factor)
        kept, original = None, None
        if image is not None:
            own = None if region is None else one_each("region", region, len(prompts))
            kept = KeptPicture.load(one_each("image", image, len(prompts)), own, size)
            original = self._encode(kept.pixels, max_batch).repeat_interleave(each, dim=0)

        way = Trajectory(self.translation, scheduler, num_inference_steps, strength, noise.device)

        def after_call(index: int, latents: Tensor) -> Tensor:
            if kept is not None and original is not None:
                latents = kept.blend(latents, way.noisy(original, noise, index + 1))
            if callback_on_step_end is not None:
                timestep = way.timesteps[index]
                changed = callback_on_step_end(self, index, timestep, {"latents": latents})
                latents = changed.get("latents", latents)
            return latents

        start = way.start(noise, original)
        latents, evaluations = self.follow(
            way, start, composition, table, max_batch, cache, after_call
        )
        images = self._finish(latents, output_type, kept, max_batch)
        self.maybe_free_model_hooks()
        return MMFacePipelineOutput(images, seeds, evaluations / count)

    @torch.no_grad()
    def follow(
        self,
        way: Trajectory,
        latents: Float32[Tensor, "pictures channels height width"],
        composition: Composition,
        table: Float32[Tensor, "conditions channels height width"],
        max_batch: int | None = None,
        cache: StepCache | None = None,
        after_call: Callable[[int, Tensor], Tensor] | None = None,
    ) -> tuple[Float32[Tensor, "pictures channels height width"], float]:
        """Bring latents to the end of a trajectory whose conditions are latents already.

        Row 0 of `table` is no condition. `after_call` may change the latents after each call of the
        model. Gives the last latents, and how many evaluations they took in all.
        """
        rows = [composition.rows(share, latents.device) for share in way.shares]
        denoiser = Denoiser(
            self.transformer,
            self.encode_prompt([text for text, _ in composition.texts]),
            [modality for _, modality in composition.texts],
            way.model_timesteps,
            table,
            max_batch,
            way.shares,
            cache,
        )
        with denoiser.caching(), self.progress_bar(total=len(rows)) as progress:
            for index in range(len(rows)):
                prediction = denoiser(index, rows[index], way.model_input(latents, index))
                latents = way.step(prediction, latents, index)
                latents = latents if after_call is None else after_call(index, latents)
                progress.update()
        return latents, denoiser.evaluations

    def _encode(
        self, pixels: Float32[Tensor, "batch 3 _ _"], max_batch: int | None
    ) -> Float32[Tensor, "batch channels height width"]:
        """Encode pictures by the VAE's posterior mean, `max_batch` at once."""
        parts = pixels.split(max_batch or len(pixels))
        return torch.cat([self.codec.encode(part) for part in parts])

    def _finish(
        self,
        latents: Float32[Tensor, "batch channels height width"],
        output_type: str,
        kept: KeptPicture | None,
        max_batch: int | None,
    ) -> list[Image.Image] | np.ndarray | Tensor:
        """Decode latents, `max_batch` at once, into the wanted type; ValueError if not finite."""
        check_finite("The transformer's latents", latents, self.transformer)
        if output_type == "latent":
            return latents
        parts = latents.split(max_batch or len(latents))
        pixels = torch.cat([self.codec.decode(part) for part in parts])
        check_finite("The VAE's pictures", pixels, self.vae)
        if kept is not None:
            pixels = kept.composite(pixels)
        return as_output_type(pixels, output_type)


def check_numbers(
    num_inference_steps: int, num_images_per_prompt: int, max_batch: int | None
) -> None:
    """Raise ValueError unless the whole numbers of a call are ones that can be sampled with."""
    check_whole("num_inference_steps", num_inference_steps, 1, NUM_TRAIN_TIMESTEPS)
    check_whole("num_images_per_prompt", num_images_per_prompt, 1, 10_000)
    if max_batch is not None:
        check_whole("max_batch", max_batch, 1, 1_000_000)


def checked_strength(image: object | None, strength: float | None, region: object | None) -> float:
    """Give the fraction of the steps that a call runs, in (0, 1]; ValueError if it does not fit.

    Without a picture to start from it is 1, and neither a strength nor a region may be given.
    """
    if image is None:
        for name, value in (("strength", strength), ("region", region)):
            if value is not None:
                raise ValueError(f"{name} is given without an image; give the image too.")
        return 1.0
    if strength is None:
        return VARIATION_STRENGTH if region is None else 1.0
    check_number("strength", strength, 0, 1)
    if strength == 0:
        raise ValueError("strength must be above 0: at 0 the image would come back as it is.")
    return strength


def check_latents(
    latents: Tensor, shape: tuple[int, ...]
) -> Float32[Tensor, "batch channels height width"]:
    """Give the latents that stand in for a call's noise in float32; ValueError if unfit."""
    if tuple(latents.shape) != shape:
        raise ValueError(f"latents must be {list(shape)}, got {list(latents.shape)}.")
    if not torch.isfinite(latents).all():
        raise ValueError("latents hold values that are not finite.")
    return latents.float()


def check_finite(name: str, values: Tensor, module: torch.nn.Module) -> None:
    """Raise ValueError if what a module computed is not finite; on the meta device nothing is."""
    if not values.is_meta and not torch.isfinite(values).all():
        dtype = str(getattr(module, "dtype", "")).removeprefix("torch.")
        remedy = "" if dtype == "float32" else f", or {dtype} is too narrow for them: take float32"
        raise ValueError(
            f"{name} are not finite (NaN or infinite): the weights are broken{remedy}. "
            "No picture is made."
        )


def picture_generators(
    seed: int | Sequence[int] | None,
    generator: torch.Generator | Sequence[torch.Generator] | None,
    count: int,
    latents: Tensor | None = None,
) -> tuple[list[torch.Generator], list[int] | None]:
    """Give each picture its generator, and its seed where it has one.

    Only one of `seed` (the first picture's, or one a picture; None draws one at random),
    `generator` (one for all, or one a picture) and `latents` may be given; with latents, the
    generators are unused. ValueError if numbers do not fit `count`, or a seed is out of range.
    """
    if latents is not None:
        if seed is not None or generator is not None:
            raise ValueError("latents are the noise itself: drop them, or the seed or generator.")
        return [torch.Generator() for _ in range(count)], None
    if generator is not None:
        if seed is not None:
            raise ValueError("Both seed and generator are given; give one of them.")
        own = [generator] * count if isinstance(generator, torch.Generator) else list(generator)
        if len(own) != count:
            raise ValueError(f"{len(own)} generators are given for {count} pictures.")
        return own, None
    if seed is None:
        seed = torch.Generator().seed() % 2**32
    seeds = list(seed) if isinstance(seed, Sequence) else [seed + k for k in range(count)]
    if len(seeds) != count:
        raise ValueError(
            f"{len(seeds)} seeds are given for {count} pictures; give one a picture, or the first."
        )
    for each in seeds:
        check_whole("seed", each, 0, 2**63 - 1)
    return [torch.Generator().manual_seed(each) for each in seeds], seeds


_NETWORK_ROOM = ("mmface.model.transformer", "mmface.model.ablations")
_LIBRARIES = {
    "vae": ("diffusers",),
    "text_encoder": ("transformers",),
    "tokenizer": ("transformers",),
    "transformer": ("mmface.transformer", "mmface.ablations", *_NETWORK_ROOM),
    "scheduler": ("diffusers",),
}
_NONE = (None, [None, None])  # how a folder says that a pipeline was saved without a scheduler


def saved_components(
    folder: Path, dtype: torch.dtype, given: dict[str, Any], variant: str | None = None
) -> dict[str, Any]:
    """Load the components of a pipeline that `save_pretrained` wrote, by name.

    Those `given` take the place of the folder's; `variant` is the word in the names of its weights
    files, if they have one. ValueError if something in the folder cannot be used.
    """
    index = read_object(folder / "model_index.json")
    _check_classes(index, folder)
    check_whole(f"{folder}/model_index.json: image_size", index.get("image_size"), 1, 2**14)
    check_number(f"{folder}/model_index.json: guidance_scale", index.get("guidance_scale", 1.0), 0)
    steps = index.get("num_inference_steps", 1)  # older pipelines have none
    check_whole(f"{folder}/model_index.json: num_inference_steps", steps, 1, NUM_TRAIN_TIMESTEPS)
    where: dict[str, Any] = {"dtype": dtype} | ({"variant": variant} if variant else {})
    parts = {name: given[name] for name in _LIBRARIES if name in given}
    if "vae" not in parts:
        parts["vae"] = LatentCodec.from_pretrained(str(folder), "vae", **where).vae
    if not {"text_encoder", "tokenizer"} <= set(parts):
        text = TextEncoder.from_pretrained(folder, **where)
        parts = {"text_encoder": text.text_model, "tokenizer": text.tokenizer} | parts
    for name in ("vae", "text_encoder"):  # frozen by their rooms; as diffusers loads them, here
        if name not in given:
            parts[name].requires_grad_(True)
    if "transformer" not in parts:
        network = NETWORKS[index["transformer"][1]]
        parts["transformer"] = load_network(network, str(folder), "transformer", **where)
    if "scheduler" not in parts and index.get("scheduler") not in _NONE:
        parts["scheduler"] = load_scheduler(index["scheduler"][1], folder)
    return parts


def _check_classes(index: dict[str, Any], folder: Path) -> None:
    """Check the classes that a pipeline names, none of which is imported by its name."""
    if index.get("_class_name") != "MMFacePipeline":
        raise BrokenModelError(
            f"{folder} holds a {index.get('_class_name')!r:.60}, not an MMFacePipeline; give a "
            "folder that MMFacePipeline.save_pretrained wrote"
        )
    named = index.get("transformer")
    if isinstance(named, list) and len(named) == 2 and str(named[1]) not in NETWORKS:
        raise BrokenModelError(
            f"{folder}/model_index.json names the network {named[1]!r:.60}, which is none of "
            f"{', '.join(NETWORKS)}; copy it again"
        )
    for name, libraries in _LIBRARIES.items():
        named = index.get(name)
        if name == "scheduler" and named in _NONE:
            continue
        if not (isinstance(named, list) and len(named) == 2 and named[0] in libraries):
            raise BrokenModelError(
                f"{folder}/model_index.json names {named!r:.60} as {name}, not a class of "
                f"{libraries[0]}; copy it again"
            )
