"""MMFacePipeline: faces from a mask, a sketch or another condition plus a prompt.

A call checks its inputs, encodes prompts and conditions once each, draws the noise of each picture
from its own seed, follows a solver with guidance, and decodes. `mmface.sampling.guidance` explains
the predictions of a step and how they add up.
"""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from logging import getLogger
from pathlib import Path
from typing import Any, ClassVar, SupportsIndex

import numpy as np
import torch
from diffusers import AutoencoderKL, SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Float32
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

# diffusers loads the classes that a folder names only from modules that are imported already.
import mmface.ablations
import mmface.transformer  # noqa: F401
from mmface.conditions import AnyPicture, as_pictures, condition_kind, one_each, split_keywords
from mmface.core.command_line import check_number, check_whole
from mmface.core.files import shared_parts
from mmface.core.sources import (
    BrokenModelError,
    builtin_pipelines,
    load_network,
    opened,
    read_object,
)
from mmface.encoders import LatentCodec, TextEncoder, TextFeatures, Vae
from mmface.encoders.vae import OUTPUT_TYPES, as_output_type
from mmface.model.ablations import NETWORKS
from mmface.model.transformer import MMFaceDiT
from mmface.objectives.solvers import (
    NUM_TRAIN_TIMESTEPS,
    Trajectory,
    Translation,
    load_scheduler,
    translation_named,
)
from mmface.sampling.blending import KeptPicture
from mmface.sampling.diffusers_members import (
    CLASS_NAME,
    CODE,
    TEXT_TENSORS,
    DiffusersMembers,
    MMFacePipelineOutput,
    Output,
)
from mmface.sampling.guidance import (
    Composition,
    ConditionedPrompt,
    Denoiser,
    Guidance,
    Prompt,
    check_finite,
    check_latents,
    check_numbers,
    checked_strength,
    conditioned_prompts,
    distinct_pixels,
    picture_generators,
)
from mmface.sampling.released_folder import released_checkpoint, released_components
from mmface.sampling.step_cache import StepCache

_logger = getLogger("diffusers.pipelines.pipeline_utils")
AfterCall = Callable[[int, Tensor, Composition], tuple[Tensor, Composition]]


class MMFacePipeline(DiffusersMembers):
    """Sample faces from a mask, a sketch or both plus a prompt (MMFace-DiT, arXiv 2603.29029)."""

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _callback_tensor_inputs: ClassVar[list[str]] = ["latents", *TEXT_TENSORS]

    def __init__(
        self,
        vae: Vae | None,
        text_encoder: CLIPTextModel | None,
        tokenizer: CLIPTokenizer | None,
        transformer: MMFaceDiT | None,
        scheduler: SchedulerMixin | None,
        image_size: int = 256,
        guidance_scale: float = 7.5,
        num_inference_steps: int = 50,
    ) -> None:
        """Assemble a pipeline; ValueError if the components do not fit together.

        The VAE's config carries the normalisation of its latents, the transformer's the objective,
        whose own scheduler None takes. `image_size` is the side in pixels of the square pictures
        that the model was trained on; `guidance_scale` and `num_inference_steps` are a call's
        defaults. Without the text encoder, calls take encoded prompts; with it and the tokenizer
        alone, `encode_prompt` makes them. ValueError if the components do not fit together.
        """
        super().__init__()
        if transformer is not None:
            built = transformer.config.latent_channels, transformer.config.text_dim
            channels = built[0] if vae is None else LatentCodec(vae).channels
            width = built[1] if text_encoder is None else text_encoder.config.hidden_size
            if built != (channels, width):
                raise ValueError(
                    f"The transformer was built for {built[0]} latent channels and text of width "
                    f"{built[1]}, but the VAE has {channels} channels and the text encoder width "
                    f"{width}; use the ones that it was trained with."
                )
            if scheduler is None:
                scheduler = translation_named(transformer.config.objective).scheduler()
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

        Its arguments are those of `DiffusionPipeline.from_pretrained`; `dtype`, also a dict by
        components, is float32 if not given, whatever the files hold. Code in the folder is not run.
        """
        for name in ("device_map", "quantization_config"):
            if kwargs.get(name) is not None:
                raise ValueError(
                    f"{name} is not followed here: give a component that was loaded with it "
                    "(transformer=MMFaceDiT.from_pretrained(...))."
                )
        if None not in (kwargs.get("dtype"), old := kwargs.pop("torch_dtype", None)):
            raise ValueError("Both dtype and torch_dtype are given; give dtype.")
        # Said in so many words, or each component comes in the dtype of its own file.
        dtype = kwargs.pop("dtype", None) or old or torch.float32
        options = {"dtype": dtype} | kwargs | {"use_safetensors": True}
        with opened("pipeline", pretrained_model_name_or_path, builtin_pipelines()) as source:
            if not Path(source).is_dir():
                source = cls.download(source, **options)
            options |= saved_components(Path(source), dtype, options, kwargs.get("variant"))
            _logger.info("Loaded %s from %s.", ", ".join(_LIBRARIES), source)
            return super().from_pretrained(source, **options)

    @classmethod
    def _dict_from_json_file(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read an index without the file of code that it names for other classes than ours."""
        found = super()._dict_from_json_file(*args, **kwargs)
        return found | {"_class_name": CLASS_NAME} if "_class_name" in found else found

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
        if self.text_encoder is None or self.tokenizer is None:
            raise ValueError(
                "The pipeline has no text_encoder or no tokenizer: give encoded prompts "
                f"({', '.join(TEXT_TENSORS)})."
            )
        return TextEncoder(self.text_encoder, self.tokenizer)

    @property
    def translation(self) -> Translation:
        """Converts between the transformer and a scheduler."""
        return translation_named(self.transformer.config.objective)

    def check_inputs(
        self,
        prompt: Prompt | Sequence[Prompt] | None,
        conditions: Mapping[str, Any],
        negative_prompt: Prompt | Sequence[Prompt | None] | None,
        size: tuple[int, int],
        output_type: str,
    ) -> list[ConditionedPrompt]:
        """Check a call's arguments and group them by prompt; `size` is in pixels.

        ValueError names what does not fit and the remedy.
        """
        prompts = [prompt] if isinstance(prompt, Prompt) else list(prompt or [])
        if not prompts or not all(isinstance(text, Prompt) for text in prompts):
            raise ValueError(
                "prompt must be a string or a non-empty list of strings, unless prompt_embeds is "
                "given."
            )
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

    def encode_texts(self, prompts: Sequence[Prompt]) -> TextFeatures:
        """Encode prompts, each distinct one once; the empty one is the unconditional one."""
        distinct = list(dict.fromkeys(prompts))
        words = [text for text in distinct if isinstance(text, str)]
        read = dict(zip(words, zip(*self._read(words), strict=True), strict=True)) if words else {}
        found = [
            read[text] if isinstance(text, str) else (text.pooled, text.tokens) for text in distinct
        ]
        if len({len(tokens) for _, tokens in found}) > 1:
            raise ValueError("Encoded prompts must have equally many tokens; pad the shorter ones.")
        index = [distinct.index(text) for text in prompts]
        return TextFeatures(*(torch.stack(parts)[index] for parts in zip(*found, strict=True)))

    def _read(self, words: Sequence[str]) -> TextFeatures:
        return self.text(words)

    def encode_condition(
        self,
        prompts: Sequence[ConditionedPrompt],
        size: tuple[int, int],
        max_batch: int | None = None,
    ) -> tuple[Float32[Tensor, "conditions channels height width"], list[list[int]]]:
        """Encode conditions, each distinct one once, by the VAE's posterior mean.

        Returns a table of normalised latents, whose row 0 is no condition, and each prompt's rows.
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
        prompt: str | Sequence[str] | None = None,
        mask: AnyPicture | Sequence[AnyPicture | None] | None = None,
        sketch: AnyPicture | Sequence[AnyPicture | None] | None = None,
        negative_prompt: str | Sequence[str | None] | None = None,
        num_inference_steps: SupportsIndex | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: SupportsIndex = 1,
        height: SupportsIndex | None = None,
        width: SupportsIndex | None = None,
        seed: SupportsIndex | Sequence[SupportsIndex] | np.ndarray | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: str = "pil",
        callback_on_step_end: Callable[..., dict[str, Tensor] | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        *,
        guidance: Guidance | None = None,
        image: AnyPicture | Sequence[AnyPicture] | None = None,
        strength: float | None = None,
        region: AnyPicture | Sequence[AnyPicture] | None = None,
        latents: Tensor | None = None,
        solver: str | None = None,
        max_batch: int | None = None,
        cache: StepCache | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        joint_attention_kwargs: Mapping[str, Any] | None = None,
        return_dict: bool = True,
        **conditions: Any,
    ) -> Output:
        """Sample faces; all of a call's pictures are one batch.

        Picture k of the call, counted through all pictures of the first prompt, then those of the
        second, has the seed `seed + k`. In another batch a seed gives the
        same picture up to rounding (1 of 255 in a few pixels of 10,000), if there is no cache.

        Args:
            prompt: One prompt or several.
            mask: One mask for all prompts or one a prompt, as `load_mask` takes it, or as a tensor,
                bytes or an open file. Each prompt has one condition at least: in lists, None marks
                the places without.
            sketch: The same for sketches, as `load_sketch` takes them.
            negative_prompt: What guidance leads away from; one for all prompts or one a prompt.
                None is the empty one.
            num_inference_steps: Steps of the solver, at least 1; None takes the model's.
            guidance_scale: Scale of guidance on the text, 1 for none; None takes the model's.
            num_images_per_prompt: Pictures of each prompt.
            height: Height in pixels; None takes the model's `image_size`.
            width: Width in pixels; None takes the model's `image_size`.
            seed: The first picture's seed, or one a picture; None draws one at random.
            generator: Instead of a seed: one generator for all pictures, or one a picture.
            output_type: "pil", "np", "pt" or "latent"; see `MMFacePipelineOutput`.
            callback_on_step_end: Called after each step with the pipeline, the step's index, its
                timestep and the tensors that it asks for; returns a dict of those that it replaces,
                or None. It may set the pipeline's `_guidance_scale`, and `_interrupt` to True.
            callback_on_step_end_tensor_inputs: The tensors that it asks for, as in Stable Diffusion
                3: while text guides, `prompt_embeds` has the negative ones first.
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
            prompt_embeds: Instead of prompts: their tokens as `encode_prompt` gives them.
            negative_prompt_embeds: The same of negative prompts; None encodes `negative_prompt`.
            pooled_prompt_embeds: What belongs to `prompt_embeds`.
            negative_pooled_prompt_embeds: What belongs to `negative_prompt_embeds`.
            joint_attention_kwargs: `{"scale": 0.5}` scales loaded LoRAs in this call.
            return_dict: False gives the output's three values as a tuple.
            **conditions: Conditions of other registered kinds by the kind's name; and by
                `mask_control`, `sketch_control` and so on a `ConditionControl`: how strongly the
                conditions of a kind bind, when and where.

        Returns:
            The pictures, their seeds, and how often the network was evaluated.
        """
        side = self.config.image_size
        height, width = (side if each is None else each for each in (height, width))
        size = operator.index(height), operator.index(width)
        if num_inference_steps is None:
            num_inference_steps = self.config.num_inference_steps
        check_numbers(num_inference_steps, num_images_per_prompt, max_batch)
        steps, each = operator.index(num_inference_steps), operator.index(num_images_per_prompt)
        embeds = prompt_embeds, negative_prompt_embeds
        pooled = pooled_prompt_embeds, negative_pooled_prompt_embeds
        asked: tuple[Any, Any] = (prompt, negative_prompt)
        if any(tensor is not None for tensor in embeds + pooled):
            asked = self.given_prompts(*asked, *embeds, *pooled)
        given, controls = split_keywords({"mask": mask, "sketch": sketch, **conditions})
        prompts = self.check_inputs(asked[0], given, asked[1], size, output_type)
        if self.text_encoder is not None:
            self.text.warn_of_cuts(text for given in prompts for text in given[:2])
        strength = checked_strength(image, strength, region)
        scheduler = self.translation.fitting(solver, self.scheduler)
        guidance = Guidance.merged(guidance_scale, guidance, self.config.guidance_scale)
        count = len(prompts) * each
        generators, seeds = picture_generators(seed, generator, count, latents)
        noise = self.prepare_latents(generators, size, latents)
        table, owned = self.encode_condition(prompts, size, max_batch)
        factor = self.codec.downscale_factor
        composition = Composition(prompts, each, guidance, controls, owned, size, factor)
        kept, original = None, None
        if image is not None:
            image, region = as_pictures(image), as_pictures(region)
            own = None if region is None else one_each("region", region, len(prompts))
            kept = KeptPicture.load(one_each("image", image, len(prompts)), own, size)
            original = self._encode(kept.pixels, max_batch).repeat_interleave(each, dim=0)

        way = Trajectory(self.translation, scheduler, steps, strength, noise.device)
        self._guidance_scale, self._num_timesteps = guidance.scale, len(way.timesteps)
        self._interrupt, self._joint_attention_kwargs = False, joint_attention_kwargs
        names = callback_on_step_end_tensor_inputs
        if list(names) != ["latents"] or hasattr(callback_on_step_end, "tensor_inputs"):
            names = self.callback_tensors(callback_on_step_end, names)
        texts = self.callback_texts() if set(names) - {"latents"} else None

        def after_call(
            index: int, latents: Tensor, composition: Composition
        ) -> tuple[Tensor, Composition]:
            if kept is not None and original is not None:
                latents = kept.blend(latents, way.noisy(original, noise, index + 1))
            if callback_on_step_end is None:
                return latents, composition
            given = {} if texts is None else dict(texts.shown(composition))
            given = {name: ({"latents": latents} | given)[name] for name in names}
            timestep = way.timesteps[index]
            changed = callback_on_step_end(self, index, timestep, dict(given)) or {}
            new = [] if texts is None else texts.changed(changed, composition)
            scale = self._guidance_scale or 1.0  # diffusers' callbacks set 0 for no guidance
            if new or scale != composition.guidance.scale:
                composition = composition.changed(scale, new)
            return changed.get("latents", latents), composition

        start = way.start(noise, original)
        keywords = joint_attention_kwargs
        with self.lora_scaled(keywords) if keywords else nullcontext():
            latents, evaluations = self.follow(
                way, start, composition, table, max_batch, cache, after_call
            )
        images = self._finish(latents, output_type, kept, max_batch)
        self.maybe_free_model_hooks()
        values: Any = images, seeds, evaluations / count
        return MMFacePipelineOutput(*values) if return_dict else values

    @torch.no_grad()
    def follow(
        self,
        way: Trajectory,
        latents: Float32[Tensor, "pictures channels height width"],
        composition: Composition,
        table: Float32[Tensor, "conditions channels height width"],
        max_batch: int | None = None,
        cache: StepCache | None = None,
        after_call: AfterCall | None = None,
    ) -> tuple[Float32[Tensor, "pictures channels height width"], float]:
        """Follow a trajectory from its first latents to its last, with conditions as latents.

        Row 0 of `table` is no condition. `after_call` may change the latents after each call of the
        model, and what the calls to come ask. Gives the last latents, and how many evaluations they
        took in all.
        """
        device = latents.device
        rows = [composition.rows(share, device) for share in way.shares]
        denoiser = Denoiser(
            self.transformer,
            self.encode_texts([text for text, _ in composition.texts]),
            [modality for _, modality in composition.texts],
            way.model_timesteps,
            table,
            max_batch,
            way.shares,
            cache,
        )
        with denoiser.caching(), self.progress_bar(total=len(rows)) as progress:
            for index in range(len(rows)):
                if self._interrupt:
                    break
                prediction = denoiser(index, rows[index], way.model_input(latents, index))
                latents = way.step(prediction, latents, index)
                progress.update()
                if after_call is None:
                    continue
                latents, changed = after_call(index, latents, composition)
                if changed is not composition and index + 1 < len(rows):
                    composition = changed
                    left = [composition.rows(share, device) for share in way.shares[index + 1 :]]
                    rows[index + 1 :] = left
                    texts = self.encode_texts([text for text, _ in composition.texts])
                    denoiser.read(texts, [modality for _, modality in composition.texts])
        denoiser.release()
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
    folder: Path,
    dtype: torch.dtype | Mapping[str, torch.dtype],
    given: dict[str, Any],
    variant: str | None = None,
) -> dict[str, Any]:
    """Load the components of a pipeline that `save_pretrained` wrote, by name.

    `dtype` may be one of each component and of the `default`. Those `given` take the place of the
    folder's; `variant` is the word in the names of the weights files that are taken where they are
    there. ValueError if something in the folder cannot be used.
    """
    index = read_object(folder / "model_index.json")
    _check_classes(index, folder)
    check_whole(f"{folder}/model_index.json: image_size", index.get("image_size"), 1, 2**14)
    check_number(f"{folder}/model_index.json: guidance_scale", index.get("guidance_scale", 1.0), 0)
    steps = index.get("num_inference_steps", 1)  # older pipelines have none
    check_whole(f"{folder}/model_index.json: num_inference_steps", steps, 1, NUM_TRAIN_TIMESTEPS)
    dtypes = dtype if isinstance(dtype, Mapping) else {"default": dtype}
    varied = {path.parent.name for path in folder.glob(f"*/*.{variant}*.safetensors")}
    if variant is not None and not varied:
        raise ValueError(
            f"You are trying to load the model files of the `variant={variant}`, but no such "
            f"modeling files are available in {folder}."
        )

    def where(name: str) -> dict[str, Any]:
        own = dtypes.get(name, dtypes.get("default", torch.float32))
        return {"dtype": own} | ({"variant": variant} if name in varied else {})

    parts = {name: given[name] for name in _LIBRARIES if name in given}
    shared = shared_parts(folder)
    if "vae" not in parts:
        home = shared.get("vae", folder / "vae").parent
        parts["vae"] = LatentCodec.from_pretrained(str(home), "vae", **where("vae")).vae
    if not {"text_encoder", "tokenizer"} <= set(parts):
        home = shared.get("text_encoder", folder / "text_encoder").parent
        text = TextEncoder.from_pretrained(home, **where("text_encoder"))
        parts = {"text_encoder": text.text_model, "tokenizer": text.tokenizer} | parts
    for name in ("vae", "text_encoder"):  # frozen by their rooms; as diffusers loads them, here
        if name not in given:
            parts[name].requires_grad_(True)
    if "transformer" not in parts:
        network = NETWORKS[index["transformer"][1]]
        options = where("transformer")
        parts["transformer"] = load_network(network, str(folder), "transformer", **options)
    if "scheduler" not in parts and index.get("scheduler") not in _NONE:
        parts["scheduler"] = load_scheduler(index["scheduler"][1], folder)
    return parts


def _check_classes(index: dict[str, Any], folder: Path) -> None:
    """Check the classes that a pipeline names, none of which is imported by its name."""
    if index.get("_class_name") not in (CLASS_NAME, [CODE, CLASS_NAME]):  # the first in older ones
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
