"""What every pipeline of diffusers has beside its call: text, LoRAs, memory, saving, sharing.

Code that drives pipelines of diffusers finds these members by their names.
"""

import json
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from diffusers import DiffusionPipeline

# Of the loaders of pipelines in which the transformer alone takes LoRAs; they are all the same.
from diffusers.loaders import AuraFlowLoraLoaderMixin
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from mmface.core.files import write_text
from mmface.encoders import TextFeatures
from mmface.model.packed_modulations import unfuse_modulations
from mmface.sampling.guidance import EncodedPrompt, Prompt

if TYPE_CHECKING:
    from mmface.sampling.callbacks import CallbackTexts

CLASS_NAME = "MMFacePipeline"
CODE = "pipeline"
"""Name of the file of code in an export, by which diffusers' own class finds the pipeline."""

TEXT_TENSORS = (
    "prompt_embeds",
    "negative_prompt_embeds",
    "pooled_prompt_embeds",
    "negative_pooled_prompt_embeds",
)
"""What `encode_prompt` gives, and a call takes instead of prompts; in this order."""

_FILE = """# By this file, diffusers' own class finds the code of the pipeline that lies here:
# DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True). The code is in the package
# mmface, which must be installed: pip install -e . in its folder.
from {module} import {names}
"""
_CARD = """---
library_name: diffusers
pipeline_tag: text-to-image
tags:
- mmface
- faces
- image-to-image
---

# {repo_id}

Faces of {side} pixels from a segmentation mask or a sketch, plus a prompt
(MMFace-DiT, [arXiv 2603.29029](https://arxiv.org/abs/2603.29029); {network}, {objective}). The
pictures are synthetic: say so where they are shown, and make none of a living person without
consent.

```python
from mmface import MMFacePipeline

pipe = MMFacePipeline.from_pretrained("{repo_id}")
pipe("a man with black hair", mask="mask.png", seed=0).images[0].save("face.png")
```

With the package `mmface` installed, diffusers' own class loads it, too:
`DiffusionPipeline.from_pretrained("{repo_id}", trust_remote_code=True)`.
"""


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


# A tuple where a call asks for one, which a checker of types need not think of elsewhere.
if TYPE_CHECKING:
    Output = MMFacePipelineOutput
else:
    Output = MMFacePipelineOutput | tuple


class DiffusersMembers(AuraFlowLoraLoaderMixin, DiffusionPipeline):
    """The members of `MMFacePipeline` that code written for diffusers expects."""

    _guidance_scale: float | None = None
    _num_timesteps = 0
    _interrupt = False
    _joint_attention_kwargs: Mapping[str, Any] | None = None
    _callback_tensor_inputs: ClassVar[list[str]]

    @property
    def guidance_scale(self) -> float:
        """The scale on the text in the call that runs, or ran last; a callback may change it."""
        return self.config.guidance_scale if self._guidance_scale is None else self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether text guides: unlike most pipelines, a scale below 1 guides as well."""
        return self.guidance_scale not in (0, 1)

    @property
    def num_timesteps(self) -> int:
        """Calls of the model in the call that runs, or ran last."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether the call that runs, or ran last, was told to stop after a step."""
        return self._interrupt

    @property
    def joint_attention_kwargs(self) -> Mapping[str, Any] | None:
        """What the call that runs, or ran last, was given by this name."""
        return self._joint_attention_kwargs

    # Text

    @torch.no_grad()
    def encode_prompt(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """Encode prompts as a call takes them, in the order of `TEXT_TENSORS`.

        Each is repeated for its pictures. Without guidance, the negative ones are None.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        negatives = negative_prompt or ""
        negatives = [negatives] * len(prompts) if isinstance(negatives, str) else list(negatives)
        if len(negatives) != len(prompts):
            raise ValueError(
                f"negative_prompt is a list of {len(negatives)} for {len(prompts)} prompts; give "
                "one for all, or one each."
            )

        pooled_prompt_embeds, prompt_embeds = (
            each.repeat_interleave(num_images_per_prompt, 0) for each in self.encode_texts(prompts)
        )
        negative_pooled_prompt_embeds, negative_prompt_embeds = None, None
        if do_classifier_free_guidance:
            negative_pooled_prompt_embeds, negative_prompt_embeds = (
                each.repeat_interleave(num_images_per_prompt, 0)
                for each in self.encode_texts(negatives)
            )
        return (
            prompt_embeds,
            negative_prompt_embeds,
            pooled_prompt_embeds,
            negative_pooled_prompt_embeds,
        )

    def encode_texts(self, prompts: Sequence[Prompt]) -> TextFeatures:
        """Encode prompts; see `MMFacePipeline`."""
        raise NotImplementedError

    def given_prompts(
        self,
        prompt: str | Sequence[str] | None,
        negative_prompt: str | Sequence[str | None] | None,
        *embeds: Tensor | None,
    ) -> tuple[list[EncodedPrompt], Any]:
        """Give the encoded prompts of a call and its negative ones, encoded or not.

        `embeds` are in the order of `TEXT_TENSORS`. ValueError if they do not fit together.
        """
        for names, words in ((TEXT_TENSORS[::2], prompt), (TEXT_TENSORS[1::2], negative_prompt)):
            given = [embeds[TEXT_TENSORS.index(name)] is not None for name in names]
            if any(given) and not all(given):
                raise ValueError(
                    f"Give both {names[0]} and {names[1]}, as encode_prompt makes them."
                )
            if any(given) and words is not None:
                kind = "prompt" if words is prompt else "negative_prompt"
                raise ValueError(f"Give either {kind} or {names[0]}, not both.")
        tokens, negative_tokens, pooled, negative_pooled = embeds
        if tokens is None or pooled is None:
            raise ValueError("Give prompt or prompt_embeds.")
        prompts = self.encoded_prompts(tokens, pooled, *TEXT_TENSORS[::2])
        if negative_tokens is None or negative_pooled is None:
            return prompts, negative_prompt
        negatives = self.encoded_prompts(negative_tokens, negative_pooled, *TEXT_TENSORS[1::2])
        return prompts, negatives[0] if len(negatives) == 1 else negatives

    def encoded_prompts(
        self, tokens: Tensor, pooled: Tensor, tokens_name: str, pooled_name: str
    ) -> list[EncodedPrompt]:
        """Part tensors into prompts; ValueError, by their names, if the shapes are not right."""
        width, count = self.transformer.config.text_dim, len(tokens)
        if tokens.ndim != 3 or tokens.shape[2] != width:
            raise ValueError(
                f"{tokens_name} must be [prompts, tokens, {width}], got {list(tokens.shape)}."
            )
        if tuple(pooled.shape) != (count, width):
            raise ValueError(f"{pooled_name} must be {[count, width]}, got {list(pooled.shape)}.")
        where = {"device": self._execution_device, "dtype": self.transformer.dtype}
        parts = zip(pooled.to(**where), tokens.to(**where), strict=True)
        return [EncodedPrompt(*part) for part in parts]

    def callback_tensors(self, function: Any, names: Sequence[str]) -> list[str]:
        """Give the tensors that a callback asks for; ValueError for one that there is not."""
        names = list(getattr(function, "tensor_inputs", names))
        for name in names:
            if name not in self._callback_tensor_inputs:
                raise ValueError(
                    f"A callback cannot have {name!r}; there are "
                    f"{', '.join(self._callback_tensor_inputs)}."
                )
        return names

    def callback_texts(self) -> "CallbackTexts":
        """Prepare the texts that a callback sees and may replace."""
        from mmface.sampling.callbacks import CallbackTexts

        return CallbackTexts(self)

    # LoRA

    @classmethod
    def lora_state_dict(cls, source: Any, **options: Any) -> Any:
        """Read a LoRA, whose tensors may be named as peft does or without `transformer.`.

        ValueError for pickled files, which diffusers would open.
        """
        own_name = source if isinstance(source, str | Path) else ""
        for name in (str(own_name), str(options.get("weight_name") or "")):
            if name.endswith((".bin", ".ckpt", ".pt", ".pth")):
                raise ValueError(
                    f"{name} is a pickle, which may run code; save it as .safetensors."
                )
        found = super().lora_state_dict(source, **options | {"use_safetensors": True})
        state, *rest = found if isinstance(found, tuple) else (found,)
        named = {}
        for name, tensor in state.items():
            name = name.removeprefix("base_model.model.")
            is_bare = ".lora_" in name and not name.startswith("transformer.")
            named[f"transformer.{name}" if is_bare else name] = tensor
        return (named, *rest) if rest else named

    def load_lora_weights(
        self, source: Any, adapter_name: str | None = None, **kwargs: Any
    ) -> None:
        """Add a LoRA by a file, a folder, a hub id or a state dict, under a name of its own.

        `set_adapters(["a", "b"], [0.7, 0.3])` chooses and weighs those that are loaded.
        """
        unfuse_modulations(self.transformer)  # a LoRA may be of each block's own
        with warnings.catch_warnings():  # of a second one, which is what is asked for
            warnings.filterwarnings("ignore", "Already found a `peft_config`")
            super().load_lora_weights(source, adapter_name=adapter_name, **kwargs)
        self.transformer.eval()  # or the dropout of its training goes on

    def unload_lora_weights(self) -> None:
        """Remove all LoRAs: weights are as before to the bit, if none was fused.

        `fuse_lora` adds to the weights and `unfuse_lora` subtracts, each with one rounding.
        """
        if self.num_fused_loras:
            self.unfuse_lora(components=["transformer"])
        super().unload_lora_weights()

    @contextmanager
    def lora_scaled(self, keywords: Mapping[str, Any] | None) -> Iterator[None]:
        """Scale the loaded LoRAs by `keywords["scale"]` inside; ValueError for other keywords."""
        unknown = set(keywords or ()) - {"scale"}
        if unknown:
            raise ValueError(
                f"joint_attention_kwargs has {', '.join(sorted(unknown))}; it may have a scale."
            )
        factor = (keywords or {}).get("scale", 1.0)
        layers: list[Any] = []
        if factor != 1:
            layers = [each for each in self.transformer.modules() if hasattr(each, "lora_A")]
        before = [dict(layer.scaling) for layer in layers]
        for layer in layers:
            layer.scaling.update({name: value * factor for name, value in layer.scaling.items()})
        try:
            yield
        finally:
            for layer, scaling in zip(layers, before, strict=True):
                layer.scaling.update(scaling)

    # Memory

    def _vae_that_can(self, method: str) -> Any:
        if not hasattr(self.vae, method):
            raise ValueError(f"The VAE {type(self.vae).__name__} has no {method}.")
        return self.vae

    def enable_vae_slicing(self) -> None:
        """Encode and decode pictures one by one, to need less memory; `max_batch` is finer."""
        self._vae_that_can("enable_slicing").enable_slicing()

    def disable_vae_slicing(self) -> None:
        """Encode and decode all pictures at once again."""
        self._vae_that_can("disable_slicing").disable_slicing()

    def enable_vae_tiling(self) -> None:
        """Encode and decode large pictures in tiles that overlap, to need less memory.

        Pictures up to the size of a tile stay equal; of larger ones, the tiles' edges are blended.
        """
        self._vae_that_can("enable_tiling").enable_tiling()

    def disable_vae_tiling(self) -> None:
        """Encode and decode large pictures in one piece again."""
        self._vae_that_can("disable_tiling").disable_tiling()

    # Saving and sharing

    def to_json_string(self) -> str:
        """Write the index with the file of code that diffusers' own class looks for."""
        index = json.loads(super().to_json_string())
        return json.dumps(index | {"_class_name": [CODE, CLASS_NAME]}, indent=2) + "\n"

    def save_pretrained(
        self,
        save_directory: str | Path,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Save all components, and the code by which diffusers' own class loads them.

        Weights are written as safetensors, also with `safe_serialization=False`. `push_to_hub`
        uploads the folder to `repo_id`, by default named after it, with a model card.
        """
        folder = Path(save_directory)
        super().save_pretrained(str(folder), variant=variant, max_shard_size=max_shard_size)
        write_text(folder / f"{CODE}.py", _FILE.format(module="mmface", names=CLASS_NAME))
        if (network := self.config["transformer"])[0] is not None:
            module, name = network
            code = _FILE.format(module=module, names=f"{name}, ModelMixin")
            write_text(folder / "transformer" / f"{module}.py", code)
        if push_to_hub:
            self._upload(folder, kwargs.pop("repo_id", folder.name), **kwargs)

    def push_to_hub(self, repo_id: str, variant: str | None = None, **options: Any) -> str:
        """Upload the pipeline with a model card; a card that the repository has stays.

        Options are `private`, `token`, `commit_message` and `create_pr`.
        """
        options.pop("safe_serialization", None)
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, variant=variant)
            own = Path(self.name_or_path or "", "README.md")
            if self.name_or_path and own.is_file():
                shutil.copy(own, folder)
            return self._upload(Path(folder), repo_id, **options)

    def _upload(
        self,
        folder: Path,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
    ) -> str:
        import huggingface_hub

        made = huggingface_hub.create_repo(repo_id, private=private, token=token, exist_ok=True)
        card = folder / "README.md"
        if huggingface_hub.file_exists(made.repo_id, card.name, token=token):
            card.unlink(missing_ok=True)
        elif not card.exists():
            config = self.transformer.config
            card.write_text(
                _CARD.format(
                    repo_id=made.repo_id,
                    side=self.config.image_size,
                    network=type(self.transformer).__name__,
                    objective=config.objective.replace("_", " "),
                ),
                encoding="utf-8",
            )
        return self._upload_folder(
            str(folder),
            made.repo_id,
            token=token,
            commit_message=commit_message,
            create_pr=create_pr,
        )
