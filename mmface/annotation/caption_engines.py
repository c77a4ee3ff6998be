"""Captioners: vision-language models that answer a prompt about a picture, behind one protocol."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    ProcessorMixin,
)

from mmface.core.sources import opened
from mmface.data.keyed import keyed_generator

CAPTIONER = "OpenGVLab/InternVL3-8B-hf"
"""The paper captions with InternVL3; it does not say which size."""


class CaptionRequest(NamedTuple):
    """One prompt about one picture; the seed decides a sampled answer, whatever its batch."""

    picture: UInt8[np.ndarray, "height width 3"]
    prompt: str
    seed: int


class Answer(NamedTuple):
    """What a model said; `finished` unless it came to the limit of tokens."""

    text: str
    finished: bool


@runtime_checkable
class Captioner(Protocol):
    """Answers prompts about pictures."""

    @property
    def made_by(self) -> dict[str, Any]:
        """What decides the answers, for a record of them: at least `model` and `revision`."""
        ...

    def answer(self, requests: Sequence[CaptionRequest], temperature: float = 0.0) -> list[Answer]:
        """Answer requests as one batch, greedily at temperature 0."""
        ...


@dataclass(frozen=True)
class CaptionerSettings:
    """Which captioner, and how it is run.

    `max_patches` is the number of 448-pixel tiles that a picture is cut into; 1 shows it whole,
    once.
    """

    model: str = CAPTIONER
    revision: str | None = None
    dtype: str = "bfloat16"
    device: str = "cpu"
    max_new_tokens: int = 128
    max_patches: int = 4

    @property
    def image_options(self) -> dict[str, Any]:
        """How the processor of InternVL cuts a picture."""
        return {"crop_to_patches": self.max_patches > 1, "max_patches": self.max_patches}


class KeyedSampling(LogitsProcessor):
    """Samples each row from its own generator, so that a batch's other rows do not matter.

    The largest of logits / temperature + Gumbel noise is a draw from their softmax (Gumbel-max).
    """

    def __init__(self, seeds: Sequence[int], temperature: float) -> None:
        self.generators = [keyed_generator(seed) for seed in seeds]
        self.temperature = temperature

    def __call__(
        self, input_ids: Int[Tensor, "batch length"], scores: Float[Tensor, "batch vocabulary"]
    ) -> Float[Tensor, "batch vocabulary"]:
        """Add noise to the scores of the next token."""
        width = scores.shape[1]
        uniform = torch.stack([torch.rand(width, generator=one) for one in self.generators])
        gumbel = -torch.log(-torch.log(uniform.clamp(1e-20, 1 - 1e-7)))
        return scores.float() / self.temperature + gumbel.to(scores.device)


def generate(
    model: PreTrainedModel,
    inputs: Mapping[str, Tensor],
    max_new_tokens: int,
    seeds: Sequence[int] = (),
    temperature: float = 0.0,
) -> tuple[Int[Tensor, "batch length"], list[bool]]:
    """Continue left-padded texts; gives new tokens and which rows ended before the limit.

    Temperature 0 takes the likeliest token; above 0, `seeds` holds one number a row.
    """
    noise = LogitsProcessorList([KeyedSampling(seeds, temperature)] if temperature > 0 else [])
    # A model's saved preference for sampling would draw from the global generator.
    output = model.generate(
        **inputs,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        logits_processor=noise,
    )
    new = output[:, inputs["input_ids"].shape[1] :].cpu()
    ends = model.generation_config.eos_token_id
    ends = torch.tensor(ends if isinstance(ends, list) else [ends])
    return new, torch.isin(new, ends).any(1).tolist()


class TransformersCaptioner:
    """InternVL3 by transformers, or another model of the same auto classes."""

    def __init__(
        self, model: PreTrainedModel, processor: ProcessorMixin, settings: CaptionerSettings
    ) -> None:
        self.model = model.eval().to(settings.device)
        self.processor = processor
        # Texts are continued at their right end, which padding there would separate.
        self.processor.tokenizer.padding_side = "left"
        self.settings = settings

    @classmethod
    def from_pretrained(cls, settings: CaptionerSettings) -> "TransformersCaptioner":
        """Load model and processor; ValueError without torchvision, which InternVL's needs."""
        if find_spec("torchvision") is None:
            raise ValueError(
                "captions need torchvision, which InternVL's processor imports: install the "
                "build that fits your torch"
            )
        where = {"revision": settings.revision}
        with opened("captioner", settings.model) as source:
            processor = AutoProcessor.from_pretrained(source, **where)
            model = AutoModelForImageTextToText.from_pretrained(
                source, **where, dtype=getattr(torch, settings.dtype)
            )
        return cls(model, processor, settings)

    @property
    def made_by(self) -> dict[str, Any]:
        """Model, the commit that was read, and the settings that decide the answers."""
        commit = getattr(self.model.config, "_commit_hash", None) or self.settings.revision
        return {
            "model": self.settings.model,
            "revision": commit,
            "dtype": self.settings.dtype,
            "max_new_tokens": self.settings.max_new_tokens,
            "max_patches": self.settings.max_patches,
        }

    @torch.no_grad()
    def answer(self, requests: Sequence[CaptionRequest], temperature: float = 0.0) -> list[Answer]:
        """Answer requests as one batch; temperature 0 is greedy."""
        texts = [
            self.processor.apply_chat_template(
                chat(request.prompt), tokenize=False, add_generation_prompt=True
            )
            for request in requests
        ]
        inputs = self.processor(
            images=[[Image.fromarray(request.picture)] for request in requests],
            text=texts,
            padding=True,
            return_tensors="pt",
            **self.settings.image_options,
        ).to(self.settings.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        seeds = [request.seed for request in requests]
        new, finished = generate(
            self.model, inputs, self.settings.max_new_tokens, seeds, temperature
        )
        said = self.processor.tokenizer.batch_decode(new, skip_special_tokens=True)
        return [Answer(*pair) for pair in zip(said, finished, strict=True)]


def chat(prompt: str) -> list[dict[str, Any]]:
    """A conversation of one turn: a picture and a prompt about it."""
    content = [{"type": "image"}, {"type": "text", "text": prompt}]
    return [{"role": "user", "content": content}]


class VllmCaptioner:
    """The same models by vLLM, which keeps a GPU busier; an extra that is installed apart."""

    def __init__(self, settings: CaptionerSettings) -> None:
        """Load the model; vLLM chooses the device. ValueError if vLLM is not installed."""
        if find_spec("vllm") is None:
            raise ValueError(
                "vLLM is not installed: pip install vllm, or take the transformers engine"
            )
        from vllm import LLM

        self.settings = settings
        with opened("captioner", settings.model) as source:
            self.processor = AutoProcessor.from_pretrained(source, revision=settings.revision)
        self.engine = LLM(
            model=settings.model,
            revision=settings.revision,
            dtype=settings.dtype,
            limit_mm_per_prompt={"image": 1},
            mm_processor_kwargs=settings.image_options,
        )

    @property
    def made_by(self) -> dict[str, Any]:
        """Model, revision as asked for, and the settings that decide the answers."""
        return {
            "engine": "vllm",
            "model": self.settings.model,
            "revision": self.settings.revision,
            "dtype": self.settings.dtype,
            "max_new_tokens": self.settings.max_new_tokens,
            "max_patches": self.settings.max_patches,
        }

    def answer(self, requests: Sequence[CaptionRequest], temperature: float = 0.0) -> list[Answer]:
        """Answer requests; vLLM makes its own batches of them."""
        from vllm import SamplingParams

        limit = self.settings.max_new_tokens
        prompts = [
            {
                "prompt": self.processor.apply_chat_template(
                    chat(request.prompt), tokenize=False, add_generation_prompt=True
                ),
                "multi_modal_data": {"image": Image.fromarray(request.picture)},
            }
            for request in requests
        ]
        # vLLM takes 64-bit signed seeds.
        sampling = [
            SamplingParams(temperature=temperature, max_tokens=limit, seed=one.seed % 2**63)
            for one in requests
        ]
        outputs = self.engine.generate(prompts, sampling, use_tqdm=False)
        chosen = [output.outputs[0] for output in outputs]
        return [Answer(one.text, one.finish_reason == "stop") for one in chosen]
