"""From the choice of a model on a command line to a pipeline that is ready to sample."""

from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import BitsAndBytesConfig

from mmface.core.files import model_sha256
from mmface.core.sources import builtin_pipelines, opened
from mmface.generation.settings import ModelChoice
from mmface.model.lora import load_lora
from mmface.model.transformer import MMFaceDiT
from mmface.sampling.acceleration import accelerate_pipeline, check_compiler
from mmface.sampling.pipeline import MMFacePipeline
from mmface.sampling.released_folder import RELEASED_TEXT, released_checkpoint


class OpenedModel(NamedTuple):
    """A pipeline, and what identifies it.

    Attributes:
        pipeline: Ready to sample.
        choice: What it was opened by.
        weights: Digest of its files.
    """

    pipeline: MMFacePipeline
    choice: ModelChoice
    weights: str


def open_model(
    choice: ModelChoice,
    offload: bool = False,
    device: torch.device | None = None,
    weights: str | None = None,
) -> OpenedModel:
    """Load a pipeline as it was chosen, on the GPU if there is one.

    Args:
        choice: Which weights, in which arithmetic.
        offload: Whether to keep on the GPU only the component that computes.
        device: Where to compute; None takes the GPU if there is one.
        weights: What the digest of its files must be; None takes any.

    Returns:
        The pipeline with its digest.

    Raises:
        FileNotFoundError: If there is no such pipeline.
        ValueError: If it cannot be loaded so, or is another one than `weights` says.
    """
    _check_gpu(choice, offload)
    folder, digest = _locate(choice)
    if weights is not None and digest != weights:
        raise ValueError(
            f"The weights of {choice.released or choice.pipeline} have the digest "
            f"{digest[:16]}..., not {weights[:16]}...: the picture was made by others. Say where "
            "those lie (--pipeline or --released)."
        )
    device = device or default_device()
    if choice.fast:
        check_compiler(device)
    pipeline = _load(choice, folder)
    if choice.lora is not None:
        load_lora(pipeline.transformer, choice.lora, choice.lora_scale)
    if choice.vae_tiling:
        if not hasattr(pipeline.vae, "enable_tiling"):
            raise ValueError(f"The VAE {type(pipeline.vae).__name__} cannot decode in tiles.")
        pipeline.vae.enable_tiling()
    if offload:
        pipeline.enable_model_cpu_offload(device=device)
        return OpenedModel(pipeline, choice, digest)
    pipeline.to(device)
    if choice.fast:
        accelerate_pipeline(pipeline)
    return OpenedModel(pipeline, choice, digest)


def default_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _check_gpu(choice: ModelChoice, offload: bool) -> None:
    """Raise ValueError if something is asked for that this machine or model cannot do."""
    for asked, name in ((offload, "--offload"), (choice.quantize, "--quantize")):
        if asked and not torch.cuda.is_available():
            raise ValueError(f"{name} needs a CUDA GPU, and this machine shows none; leave it out.")
    if choice.fast and offload:
        raise ValueError("--fast keeps all weights on the GPU: leave --offload or --fast out.")
    if choice.quantize and choice.released:
        raise ValueError(
            "The authors' weights are quantized from a saved pipeline: save one first "
            "(MMFacePipeline.from_released, save_pretrained), then give it as --pipeline."
        )


def _locate(choice: ModelChoice) -> tuple[Path, str]:
    """Find the folder of the weights, downloading a hub id, and digest its files."""
    if choice.released is not None:
        folder = Path(choice.released)
        found = released_checkpoint(folder, choice.checkpoint, None, None)
        text = [f"{RELEASED_TEXT}/{part}" for part in ("text_encoder", "tokenizer")]
        return folder, model_sha256(folder, [str(found.weights.relative_to(folder)), "VAE", *text])
    name = choice.pipeline
    with opened("pipeline", name, builtin_pipelines()) as source:
        folder = Path(source)
        if not folder.exists():
            try:
                folder = Path(MMFacePipeline.download(name, use_safetensors=True))
            except (ValueError, AttributeError) as error:
                raise _unloadable(name, error) from error
    if not (folder / "model_index.json").is_file():
        raise ValueError(
            f"{name} is not a saved pipeline: it has no model_index.json. Give a folder that "
            "save_pretrained wrote, or the authors' weights as --released."
        )
    return folder, model_sha256(folder)


def _load(choice: ModelChoice, folder: Path) -> MMFacePipeline:
    """Load the components from where they lie."""
    dtype = getattr(torch, choice.dtype)
    if choice.released is not None:
        return MMFacePipeline.from_released(folder, choice.checkpoint, dtype=dtype)
    options = {}
    try:
        if choice.quantize:
            options["transformer"] = MMFaceDiT.from_pretrained(
                folder,
                subfolder="transformer",
                quantization_config=_quantization(choice.quantize, dtype),
                dtype=dtype,
            )
        return MMFacePipeline.from_pretrained(folder, dtype=dtype, **options)
    except (OSError, ValueError, AttributeError) as error:
        raise _unloadable(choice.pipeline, error) from error


def _quantization(bits: str, dtype: torch.dtype) -> BitsAndBytesConfig:
    """Give bitsandbytes' config: LLM.int8 (arXiv 2208.07339) or NF4 (arXiv 2305.14314)."""
    if bits == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
    )


def _unloadable(name: str, error: Exception) -> ValueError:
    reason = " ".join(str(error).split())[:300]
    return ValueError(f"The pipeline {name} cannot be loaded: {reason}")
