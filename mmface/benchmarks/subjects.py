"""What is measured: models of three sizes with random weights, their inputs, and the reference."""

import contextlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from mmface.benchmarks.measuring import Report, Work, flops, in_turn, write_trace
from mmface.encoders import VAES
from mmface.model.packed_modulations import fuse_modulations
from mmface.model.transformer import MMFaceDiT
from mmface.sampling.pipeline import MMFacePipeline

TEXT_TOKENS = 77


@dataclass(frozen=True)
class Size:
    """The sizes of everything that is measured; the VAE makes pictures 8 times smaller.

    `sides` are of square latents; `training` is side and number of samples; `growth_depth` is the
    number of blocks whose growth with tokens and batch is measured.
    """

    model: Mapping[str, int]
    sides: Sequence[int]
    batches: Sequence[int]
    training: Sequence[tuple[int, int]]
    sampling_steps: int
    pictures: int
    text_layers: int
    vae_channels: Sequence[int]
    growth_depth: int


SIZES: dict[str, Size] = {
    "tiny": Size(
        model={"hidden_size": 64, "depth": 3, "num_heads": 4, "text_dim": 64},
        sides=(8,),
        batches=(1, 2),
        training=((8, 2),),
        sampling_steps=2,
        pictures=2,
        text_layers=2,
        vae_channels=(8, 8, 8, 8),
        growth_depth=1,
    ),
    "small": Size(
        model={"hidden_size": 384, "depth": 12, "num_heads": 6},
        sides=(32,),
        batches=(1, 8),
        training=((32, 2),),
        sampling_steps=10,
        pictures=4,
        text_layers=2,
        vae_channels=(16, 16, 32, 32),
        growth_depth=1,
    ),
    "paper": Size(
        model={},
        sides=(32, 64),
        batches=(2, 8, 32),
        training=((32, 32), (64, 16)),
        sampling_steps=10,
        pictures=16,
        text_layers=23,
        vae_channels=(128, 256, 512, 512),
        growth_depth=4,
    ),
}
"""The sizes by name; "paper" is the published model with a VAE as large as FLUX's."""


def load_reference(path: str | Path) -> ModuleType:
    """Load the plain reference, which lives with the tests and is not installed."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist. Ratios need the plain reference that lies in tests/ of a "
            "checkout; give its path with --reference."
        )
    spec = importlib.util.spec_from_file_location("plain_reference", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@torch.no_grad()
def randomize(module: Any, seed: int = 0) -> Any:
    """Fill the weights, in place, so that every layer matters and activations are of order one.

    AdaLN-Zero starts at zero, where half of the network would have nothing to do.
    """
    parameters = list(module.parameters())
    generator = torch.Generator(parameters[0].device).manual_seed(seed)
    for parameter in parameters:
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 100
        parameter.normal_(std=0.5 * fan_in**-0.5, generator=generator)
    return module


def twin(model: MMFaceDiT) -> MMFaceDiT:
    """A second model on the same weights, so that one can be compiled and the other not."""
    with torch.device("meta"):
        other = type(model).from_config(model.config)
    other.load_state_dict(model.state_dict(), assign=True)
    return other.train(model.training)


def fused_twin(model: MMFaceDiT) -> MMFaceDiT:
    """A twin whose modulations are one layer, with memory of its own."""
    other = twin(model)
    fuse_modulations(other)
    return other


def compiled_twin(model: MMFaceDiT) -> MMFaceDiT:
    """A fused twin whose blocks run through torch.compile, one graph for all of a kind.

    It keeps three quarters of the gain of compiling the whole network, for a sixth of the time.
    """
    torch._dynamo.reset()  # else the shapes of earlier cases count towards its limit
    other = fused_twin(model)
    other.compile_repeated_blocks(fullgraph=True, dynamic=False)
    return other


def make_inputs(
    model: MMFaceDiT, side: int, batch: int, num_text: int = TEXT_TOKENS
) -> dict[str, Tensor]:
    """Random inputs of `MMFaceDiT.forward` by name, in the model's dtype and on its device.

    `side` is of the square latents; time is float32.
    """
    config, options = model.config, {"device": model.device, "dtype": model.dtype}
    is_meta = model.device.type == "meta"
    generator = None if is_meta else torch.Generator(model.device).manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=model.device).to(**options)

    return {
        "noisy_latents": draw(batch, config.latent_channels, side, side),
        "condition_latents": draw(batch, config.latent_channels, side, side),
        "timestep": torch.rand(batch, generator=generator, device=model.device) * 999,
        "text_tokens": draw(batch, num_text, config.text_dim),
        "pooled_text": draw(batch, config.text_dim),
        "modality": torch.arange(batch, device=model.device) % 2,
    }


def on_meta(model: MMFaceDiT) -> MMFaceDiT:
    """A model of the same sizes without numbers: what it does can be counted at no cost."""
    with torch.device("meta"):
        return type(model).from_config(model.config).eval()


@torch.no_grad()
def forward_flops(model: MMFaceDiT, side: int, batch: int) -> int:
    """Count the FLOPs of a forward pass, the same on every device."""
    network = on_meta(model)
    inputs = make_inputs(network, side, batch)
    return flops(lambda: network(**inputs))


def run_reference(plain: Any, inputs: Mapping[str, Tensor]) -> Float[Tensor, "batch _ _ _"]:
    """Call the reference on the inputs of `MMFaceDiT.forward`."""
    latents = torch.cat((inputs["noisy_latents"], inputs["condition_latents"]), dim=1)
    names = ("timestep", "text_tokens", "pooled_text", "modality")
    return plain(latents, *(inputs[name] for name in names))


def byte_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer of single bytes, without merges."""
    pieces = sorted(ByteLevel.alphabet())
    names = [*pieces, *(piece + "</w>" for piece in pieces), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {name: index for index, name in enumerate(names)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=TEXT_TOKENS)


@dataclass
class Bench:
    """What every family of measurements receives.

    `traces` is a folder for profiler traces, or None; `peak_flops` are the device's measured FLOP/s
    of matrix products by dtype.
    """

    size: Size
    device: torch.device
    reference: ModuleType
    report: Report
    traces: Path | None = None
    peak_flops: dict[torch.dtype, float] = field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a CUDA device."""
        return self.device.type == "cuda"

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of weights outside training: bfloat16 on a GPU, as the release samples."""
        return torch.bfloat16 if self.on_gpu else torch.float32

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The release's mixed precision: bfloat16 autocast on a GPU, nothing on a CPU."""
        if self.on_gpu:
            return torch.autocast("cuda", torch.bfloat16)
        return contextlib.nullcontext()

    def model(self, dtype: torch.dtype | None = None, **overrides: Any) -> MMFaceDiT:
        """A model with random weights in every layer, in eval mode."""
        sizes = {**self.size.model, "text_rope": "none", **overrides}
        with self.device:
            model = randomize(MMFaceDiT(**sizes))
        # torch's own `to`, because diffusers' warns of modules to keep in float32 without any.
        return nn.Module.to(model, dtype or self.dtype).eval()

    def plain(self, model: MMFaceDiT, network: str = "PlainFlowDiT") -> Any:
        """The reference with copies of a model's weights; `network` names its class."""
        plain = getattr(self.reference, network)
        return plain.from_state(model.to_released(), model.config.num_heads).eval()

    def training_script(
        self, script: str, model: MMFaceDiT, optimizer: Any, gradient_clip: float
    ) -> Any:
        """A published training script on copies of a model's weights."""
        made: Any = self.reference.TRAINING[script]
        plain = self.plain(model, made.network.__name__).requires_grad_(True)
        return made(plain, optimizer, gradient_clip=gradient_clip)

    def sampling_script(self, script: str, plain: Any, pipeline: MMFacePipeline) -> Any:
        """A published sampling script with the encoders of a pipeline."""
        made: Any = self.reference.SAMPLING[script]
        return made(plain, pipeline.vae, pipeline.tokenizer, pipeline.text_encoder)

    @cached_property
    def models(self) -> tuple[MMFaceDiT, Any]:
        """A model and the reference with its weights; nothing may change them."""
        model = self.model()
        return model, self.plain(model)

    def compare(self, name: str, reference: Work, own: Work) -> dict[str, float]:
        """Time ours in turn with the reference, and write a trace of ours if traces are wanted."""
        values = in_turn(reference, own, self.device)
        if self.traces is not None:
            write_trace(own, self.traces / f"{name.replace(' ', '-')}.json", self.device)
        return values

    def pipeline(self, transformer: MMFaceDiT) -> MMFacePipeline:
        """A pipeline around a model, with a random VAE and text tower of this size."""
        config: Any = transformer.config
        tokenizer = byte_tokenizer()
        text = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.text_dim,
            intermediate_size=4 * config.text_dim,
            num_hidden_layers=self.size.text_layers,
            num_attention_heads=config.text_dim // 64,
            max_position_embeddings=TEXT_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        with self.device:
            text_model, vae = CLIPTextModel(text), self.vae()
        pipeline = MMFacePipeline(
            vae=vae,
            text_encoder=text_model.to(self.dtype).eval(),
            tokenizer=tokenizer,
            transformer=transformer,
            scheduler=None,
            image_size=8 * self.size.sides[0],
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def vae(self) -> AutoencoderKL:
        """A random VAE of this size, with the normalisation of the released weights."""
        with self.device:
            vae = AutoencoderKL(
                block_out_channels=tuple(self.size.vae_channels),
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                layers_per_block=2,
                latent_channels=16,
                norm_num_groups=min(32, self.size.vae_channels[0] // 4),
                use_quant_conv=False,
                use_post_quant_conv=False,
            )
        # The release samples the posterior, this package takes its mean: let it have no width.
        narrow = vae.encoder.conv_out
        narrow.weight.data[16:], narrow.bias.data[16:] = 0, -60
        return VAES["flux_released"].configure(
            nn.Module.to(vae, self.dtype).requires_grad_(False).eval()
        )
