"""MMFaceDiT: the dual-stream diffusion transformer of MMFace-DiT (arXiv 2603.29029, section 3).

The noisy latents and the latents of the spatial condition (such as a mask) become one sequence
of image tokens, the prompt a sequence of text tokens. Each block runs both streams side by side;
they meet in one attention over all tokens. Time, pooled prompt and modality steer every block
through shifts, scales and gates (AdaLN-Zero, as in DiT, arXiv 2212.09748).

    B batch       C latent channels       h, w latent height and width      p patch size
    D width       H heads                 d = D / H head dim
    N = h/p * w/p image tokens            L text tokens                     S = N + L
    latents [B, C, h, w]     image [B, N, D]     text [B, L, D]     condition [B, D]
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from operator import index
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from diffusers import CacheMixin, ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import Timesteps
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mmface.model import released

Latents = Float[Tensor, "batch channels height width"]
Tokens = Float[Tensor, "batch tokens dim"]
Image = Float[Tensor, "batch image_tokens dim"]
Text = Float[Tensor, "batch text_tokens dim"]
Heads = Float[Tensor, "batch _ heads head_dim"]
Vector = Float[Tensor, "batch dim"]
Rotation = Float[Tensor, "2 tokens 1 pairs"]
Time = Float[Tensor, " batch"]
Pooled = Float[Tensor, "batch text_dim"]
Index = Int[Tensor, " batch"]

HAS_WIDE_ONEDNN = (
    torch.backends.mkldnn.is_available()
    and torch.backends.cpu.get_cpu_capability() == "AVX512"
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
"""Whether oneDNN is faster on this CPU, and torch was built with its linear operator."""
WORTH_IT = 2**21
"""Multiplications above which oneDNN is faster despite 17 us more per call."""

TEXT_POSITIONS: dict[str, Callable[[int], tuple[int, ...]]] = {
    "sequential": lambda length: tuple(range(length)),  # the paper: a token's place in the prompt
    "none": lambda length: (0,) * length,  # the released weights: position 0 rotates by nothing
}


def rotary_angles(positions: Tensor, dim: int, theta: str) -> Float[Tensor, "tokens pairs"]:
    """Return each position's angle for `dim / 2` pairs: position * theta^(-2k / dim)."""
    frequencies = float(theta) ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    return positions.double()[:, None] * frequencies


@torch.compiler.assume_constant_result  # a compiled graph holds the finished table
def joint_rotation(*key: int | str | tuple[int, ...] | torch.device) -> Rotation:
    """Cached `make_rotation`."""
    return make_rotation(*key)


@lru_cache(maxsize=64)
def make_rotation(
    rows: int, columns: int, text: tuple[int, ...], head_dim: int, theta: str, device: torch.device
) -> Rotation:
    """Compute cosine and sine, float32, of all tokens: image tokens by row, then text (3.2).

    The first half of the head dim rotates by an image token's row, the second half by its column;
    all of it rotates by a text token's position.
    """
    # So that a table made under inference_mode can be used in training later.
    with torch.inference_mode(False), torch.device("cpu"):
        row, column = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).unbind(1)
        axes = [rotary_angles(positions, head_dim // 2, theta) for positions in (row, column)]
        text_angles = rotary_angles(torch.tensor(text), head_dim, theta)
        angles = torch.cat((torch.cat(axes, dim=1), text_angles)).unsqueeze(1)  # [S, 1, d/2]
        return torch.stack((angles.cos(), angles.sin())).to(device, torch.float32)


def rotate(x: Heads, rotation: Rotation) -> Heads:
    """Rotate each pair (2k, 2k+1) of `x` by its angle, in float32 or wider; the dtype is kept."""
    pairs = (x.float() if x.dtype.itemsize < 4 else x).unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # the compiler fuses real numbers, and not complex ones
        (cos, sin), (even, odd) = rotation, pairs.unbind(-1)
        turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    else:  # one kernel instead of seven
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.complex(*rotation))
    return turned.flatten(-2).to(x.dtype)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute x W^T + b by oneDNN, without a gradient."""
    if torch.compiler.is_compiling():
        return opaque_product(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


# The compiler would treat the weights of torch's own operator as constants.
@torch.library.custom_op("mmface::product", mutates_args=())
def opaque_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same as one operator, which the compiler does not look into."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@opaque_product.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


class OneDnnLinear(torch.autograd.Function):
    """x W^T + b whose three products, forward and backward, are oneDNN's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Compute the product."""
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradients of input, weight and bias that are needed."""
        x, weight = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1])
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        return (
            product(gradient, weight.t()) if wants_x else None,
            product(rows.t(), x.reshape(-1, x.shape[-1]).t()) if wants_weight else None,
            rows.sum(0) if wants_bias else None,
        )


class Linear(nn.Linear):
    """`nn.Linear`, computed by oneDNN where that is faster.

    On a CPU torch hands float32 products to MKL, which gives processors that are not Intel's the
    narrower AVX2 code: on an AMD EPYC with AVX-512, 93 GFLOP/s a core, where oneDNN reaches 213.
    Elsewhere, and in any other dtype, this is `nn.Linear`.
    """

    def forward(self, input: Float[Tensor, "*batch in_features"]) -> Tensor:
        """Compute input W^T + b, [*batch, out_features]."""
        x, weight, bias = input, self.weight, self.bias
        if not (
            HAS_WIDE_ONEDNN
            and x.device.type == weight.device.type == "cpu"
            and x.dtype == weight.dtype == torch.float32
            and x.numel() * self.out_features >= WORTH_IT
            and not torch.is_autocast_enabled("cpu")
        ):
            return F.linear(x, weight, bias)
        if torch.is_grad_enabled():
            return OneDnnLinear.apply(x, weight, bias)
        return product(x, weight, bias)


class Modulation(NamedTuple):
    """Shift, scale and gate at one site of a block, each [B, 1, D]."""

    shift: Tensor
    scale: Tensor
    gate: Tensor

    @classmethod
    def split(cls, modulation: Vector, sites: int = 4) -> "list[Modulation]":
        """Split a block's 12 D numbers: image attention, image MLP, text attention, text MLP."""
        return [cls(*x.unbind(1)) for x in modulation.unflatten(-1, (sites, 3, 1, -1)).unbind(1)]


def modulated_norm(x: Tokens, shift: Tensor, scale: Tensor) -> Tokens:
    """LayerNorm(x) * (1 + scale) + shift; the norm has no parameters."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale)


def joint_attention(
    queries: Sequence[Heads], keys: Sequence[Heads], values: Sequence[Heads], rotation: Rotation
) -> tuple[Tensor, ...]:
    """Attend over all tokens: softmax(RoPE(Q) RoPE(K)^T / sqrt(d)) V (section 3.2).

    Each argument holds the image's part, then the text's; `queries` may hold the image's alone.
    Returns [B, tokens, D] for each stream in `queries`.
    """
    query, key, value = (torch.cat(tuple(streams), 1) for streams in (queries, keys, values))
    query, key = rotate(query, rotation[:, : query.shape[1]]), rotate(key, rotation)  # image first
    # diffusers' dispatcher: torch's attention, or what `attention_backend` names.
    attended = dispatch_attention_fn(query, key, value).flatten(2)
    return attended.split([x.shape[1] for x in queries], dim=1)


class Stream(nn.Module):
    """One stream's part of a block: its projections around the shared attention, and its MLP."""

    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        mlp_size = round(hidden_size * mlp_ratio)
        self.num_heads = num_heads
        self.qkv = Linear(hidden_size, 3 * hidden_size, bias=False)
        self.out = Linear(hidden_size, hidden_size, bias=False)
        up, down = Linear(hidden_size, mlp_size), Linear(mlp_size, hidden_size)
        self.mlp = nn.Sequential(up, nn.GELU(approximate="tanh"), down)

    def project(self, tokens: Tokens, attention: Modulation) -> tuple[Tensor, ...]:
        """Return query, key and value, each [B, tokens, H, d]."""
        qkv = self.qkv(modulated_norm(tokens, attention.shift, attention.scale))
        return qkv.unflatten(-1, (3, self.num_heads, -1)).unbind(2)

    def update(
        self, tokens: Tokens, attended: Tokens, attention: Modulation, mlp: Modulation
    ) -> Tokens:
        """Add attention's result and the MLP's, each times its gate."""
        tokens = torch.addcmul(tokens, attention.gate, self.out(attended))
        normed = modulated_norm(tokens, mlp.shift, mlp.scale)
        return torch.addcmul(tokens, mlp.gate, self.mlp(normed))


class Block(nn.Module):
    """A dual-stream block: two symmetric streams that share one attention (section 3.2).

    `added_attention`, None unless an adapter puts one there, gives what image tokens attend to
    beside the two streams, as `mmface.model.subjects` does; its `added` is what the network's
    `reference` made. It may give maps, too, which follow the two streams.
    """

    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.image = Stream(hidden_size, num_heads, mlp_ratio)
        self.text = Stream(hidden_size, num_heads, mlp_ratio)
        self.added_attention: nn.Module | None
        self.register_module("added_attention", None)

    def forward(
        self, image: Image, text: Text, modulation: Tensor, rotation: Rotation, added: Any = None
    ) -> tuple[Any, ...]:
        """Update both streams; `modulation` is [B, 12 D]."""
        image_attention, image_mlp, text_attention, text_mlp = Modulation.split(modulation)
        qkv = self.image.project(image, image_attention), self.text.project(text, text_attention)
        queries, keys, values = zip(*qkv, strict=True)
        attended, text_attended = joint_attention(queries, keys, values, rotation)
        attended, *maps = self.with_added(attended, queries[0], keys[1], rotation, added)
        image = self.image.update(image, attended, image_attention, image_mlp)
        text = self.text.update(text, text_attended, text_attention, text_mlp)
        return image, text, *maps

    def with_added(
        self, attended: Image, query: Heads, text_key: Heads, rotation: Rotation, added: Any
    ) -> tuple[Any, ...]:
        """Add to what the image tokens attended to what `added_attention` gives, if it is asked."""
        if added is None:
            return (attended,)
        assert self.added_attention is not None, "there is nothing to add without an adapter"
        qkv = self.text.qkv
        update, *maps = self.added_attention(query, text_key, rotation, qkv, added)
        return attended + update, *maps


class FinalBlock(Block):
    """The last block: it attends to the text but skips the unused text update.

    The text's output projection and MLP exist to fit the released weights and never run. They are
    frozen, because data parallel training needs a gradient for every trainable parameter. The
    text's query and last four modulations are rows of tensors in use: their gradient is 0.
    """

    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__(hidden_size, num_heads, mlp_ratio)
        self.text.out.requires_grad_(False)
        self.text.mlp.requires_grad_(False)

    def forward(
        self, image: Image, text: Text, modulation: Tensor, rotation: Rotation, added: Any = None
    ) -> tuple[Any, ...]:
        """Update the image; the text is returned unchanged."""
        image_attention, image_mlp, text_attention, _ = Modulation.split(modulation)
        query, *image_kv = self.image.project(image, image_attention)
        _, *text_kv = self.text.project(text, text_attention)  # the query costs 0.06 % of a step
        keys, values = zip(image_kv, text_kv, strict=True)
        (attended,) = joint_attention((query,), keys, values, rotation)
        attended, *maps = self.with_added(attended, query, text_kv[0], rotation, added)
        return self.image.update(image, attended, image_attention, image_mlp), text, *maps


class BlockModulations(nn.ModuleList):
    """A linear layer for each block, outside the blocks: a sampler can run all steps as one batch.

    `packed_modulations` holds the fast form, one layer for all blocks.
    """

    def forward(self, activated: Vector) -> list[Tensor]:
        """Return each block's modulation, in order."""
        return [linear(activated) for linear in self]


def unpatchify(patches: Tokens, grid: tuple[int, ...], size: int) -> Latents:
    """Turn tokens into latents; a patch is ordered row, column, channel, the channel fastest."""
    layout, (rows, columns) = "b (rows columns) (p q c) -> b c (rows p) (columns q)", grid
    return rearrange(patches, layout, rows=rows, columns=columns, p=size, q=size)


class MMFaceDiT(ModelMixin, PeftAdapterMixin, CacheMixin, ConfigMixin):
    """The MMFace-DiT network; without arguments, the paper's 1,345,298,624 parameters.

    `null_pooled` is the release's learned pooled embedding of dropped text. `forward` does not read
    it, so it is frozen (see `FinalBlock`); a training that puts it into `pooled_text` can set
    `requires_grad_(True)`. Sizes that do not fit raise ValueError.

    Args:
        latent_channels: Channels C of the VAE's latents.
        patch_size: Side p of a patch, in latent pixels.
        hidden_size: Width D of both streams.
        depth: Number of blocks.
        num_heads: Number of attention heads; the head dim D / H must be divisible by 4.
        mlp_ratio: Hidden width of the MLPs over D.
        text_dim: Width of the text encoder.
        num_modalities: Rows of the modality table, one a kind of condition.
        text_rope: Positions of the text tokens: "sequential" (the paper) or "none" (the release).
        objective: Name of the objective that the weights were trained with, stored for samplers.
        rope_theta: Base of the rotary frequencies.
    """

    __module__ = "mmface.transformer"  # the name in saved pipelines, wherever this file lies
    _supports_gradient_checkpointing = True
    _no_split_modules: ClassVar = ["Block", "FinalBlock"]
    _repeated_blocks: ClassVar = ["Block", "FinalBlock"]
    block_classes: ClassVar[tuple[Any, Any]] = (Block, FinalBlock)  # all but the last, and the last
    sites: ClassVar = 4  # of modulation, in a block

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 16,
        patch_size: int = 2,
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        text_dim: int = 1024,
        num_modalities: int = 2,
        text_rope: str = "sequential",
        objective: str = "rectified_flow",
        rope_theta: float = 10000.0,
    ) -> None:
        super().__init__()
        self._check_config()
        if text_rope not in TEXT_POSITIONS:
            raise ValueError(f"text_rope must be in {[*TEXT_POSITIONS]}, got {text_rope!r}.")
        self.gradient_checkpointing = False
        self.head_dim, self.patch_size = hidden_size // num_heads, patch_size
        self.theta = repr(rope_theta)  # text: torch.compile may vary a float
        width, modulation_size = hidden_size, 3 * self.sites * hidden_size
        self.patch_embedder = nn.Conv2d(2 * latent_channels, width, patch_size, patch_size)
        self.text_embedder = Linear(text_dim, width)
        self.frequencies = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_mlp = nn.Sequential(Linear(256, width), nn.SiLU(), Linear(width, width))
        self.pooled_embedder = Linear(text_dim, width)
        self.modality_embedder = nn.Embedding(num_modalities, width)
        self.null_pooled = nn.Parameter(torch.empty(text_dim), requires_grad=False)
        kinds = [self.block_classes[0]] * (depth - 1) + [self.block_classes[1]]
        self.block_modulations = BlockModulations(Linear(width, modulation_size) for _ in kinds)
        self.final_modulation = Linear(width, 2 * width)
        self.blocks = nn.ModuleList(kind(width, num_heads, mlp_ratio) for kind in kinds)
        self.final_linear = Linear(width, patch_size**2 * latent_channels)
        self.register_module("reference", None)  # an adapter's, see `mmface.model.subjects`
        self.initialize_weights()

    def initialize_weights(self) -> None:
        """Initialize as DiT does, so that every block starts as the identity (AdaLN-Zero)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
            if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for stream in (module for module in self.modules() if isinstance(module, Stream)):
            for part in stream.qkv.weight.chunk(3):  # three projections, not one wide one
                nn.init.xavier_uniform_(part)
        nn.init.xavier_uniform_(self.patch_embedder.weight.flatten(1))  # a linear over the patch
        for name in ("time_mlp.0.weight", "time_mlp.2.weight", "modality_embedder.weight"):
            nn.init.normal_(self.get_parameter(name), std=0.02)
        nn.init.normal_(self.null_pooled, std=0.02)
        for linear in (*self.block_modulations, self.final_modulation, self.final_linear):
            nn.init.zeros_(linear.weight)

    def global_condition(self, timestep: Time, pooled_text: Pooled, modality: Index) -> Vector:
        """C_global = E_time(t) + E_caption(c_pooled) + E_modality(m) (section 3.1)."""
        # In float32 whatever the model's dtype: bfloat16 cannot tell neighbouring steps apart.
        time = self.time_mlp(self.frequencies(timestep.float()).to(self.null_pooled.dtype))
        return time + self.pooled_embedder(pooled_text) + self.modality_embedder(modality)

    def modulations(self, condition: Vector) -> list[Tensor]:
        """Return [B, 12 D] for each block, in order, then [B, 2 D] for the final layer."""
        activated = F.silu(condition)
        return [*self.block_modulations(activated), self.final_modulation(activated)]

    def place(self, image: Image, grid: tuple[int, ...], num_text: int) -> tuple[Image, Rotation]:
        """Give tokens their positions: here by rotating queries and keys only (3.2)."""
        text = TEXT_POSITIONS[self.config["text_rope"]](index(num_text))
        return image, joint_rotation(*grid, text, index(self.head_dim), self.theta, image.device)

    def denoise(
        self,
        noisy_latents: Latents,
        condition_latents: Latents,
        text: Text,
        modulations: list[Tensor],
        added: Any = None,
        maps: dict[int, Any] | None = None,
    ) -> Latents:
        """Run the network on embedded text and the result of `modulations`; see `forward`.

        `added` is what `reference` gave for the blocks' added attention.
        """
        image = self.patch_embedder(torch.cat((noisy_latents, condition_latents), dim=1))
        # index() makes compiled code specialize on the sizes, for which the table is made.
        grid = tuple(index(x) // self.patch_size for x in noisy_latents.shape[2:])
        # Contiguous: torch 2.13 compiles wrong gradients for strided tokens on a CPU.
        image = rearrange(image, "b d rows columns -> b (rows columns) d").contiguous()
        image, rotation = self.place(image, grid, text.shape[1])
        *block_modulations, final_modulation = modulations
        recompute = torch.is_grad_enabled() and self.gradient_checkpointing
        for number, block in enumerate(self.blocks):
            inputs: tuple[Any, ...] = (image, text, block_modulations[number], rotation)
            is_mapped = maps is not None and number in maps
            if added is not None:
                inputs += (added if is_mapped else added.unmapped(),)
            if recompute:
                image, text, *own = self._gradient_checkpointing_func(block, *inputs)
            else:
                image, text, *own = block(*inputs)
            if maps is not None and is_mapped:
                maps[number] = own
        shift, scale = final_modulation.unsqueeze(1).chunk(2, dim=-1)  # [B, 1, D] each
        patches = self.final_linear(modulated_norm(image, shift, scale))  # [B, N, p * p * C]
        return unpatchify(patches, grid, self.patch_size)  # [B, C, h, w]

    def forward(
        self,
        noisy_latents: Latents,
        condition_latents: Latents,
        timestep: Time,
        text_tokens: Float[Tensor, "batch text_tokens text_dim"],
        pooled_text: Pooled,
        modality: Index,
        faces: Any = None,
        maps: dict[int, Any] | None = None,
    ) -> Latents:
        """Predict the velocity or the noise, whichever the weights were trained for.

        Latents are scaled as the VAE's config says, with height and width divisible by p; zeros
        stand for no condition. The timestep is float32 in [0, 1000), a diffusion step or 999 t of
        the flow; text tokens are the text encoder's last but one hidden states; the modality is
        int64. `faces` are what a loaded adapter's `reference` reads, and `maps` receives the
        attention maps of the blocks whose numbers are its keys.
        """
        self._check(noisy_latents, condition_latents, timestep, text_tokens, pooled_text, modality)
        condition = self.global_condition(timestep, pooled_text, modality)  # [B, D]
        added = None
        if faces is not None:
            assert self.reference is not None, "faces are for a network with a reference adapter"
            text_tokens, shift, added = self.reference(text_tokens, faces)
            condition = condition + shift
        modulations = self.modulations(condition)  # [B, 12 D] a block, and [B, 2 D]
        text = self.text_embedder(text_tokens)  # [B, L, D]
        return self.denoise(noisy_latents, condition_latents, text, modulations, added, maps)

    @classmethod
    def from_released(
        cls,
        path_or_state_dict: str | Path | Mapping[str, Tensor],
        num_heads: int = 16,
        objective: str = "rectified_flow",
        dtype: torch.dtype = torch.float32,
    ) -> "MMFaceDiT":
        """Load the authors' weights, on the CPU and in eval mode.

        The tensors tell every size but the number of heads, and not the objective: folders named
        `-rfm` are "rectified_flow", the others "min_snr_diffusion". See `released.from_released`.
        """
        sizes, state = released.from_released(path_or_state_dict)
        with torch.device("meta"):  # skips the initialization of weights that are replaced below
            model = cls(**sizes, num_heads=num_heads, text_rope="none", objective=objective)
        own = {name: tensor.to("cpu", dtype, copy=True) for name, tensor in state.items()}
        model.load_state_dict(own, assign=True)
        return model.eval()

    def to_released(self) -> dict[str, Tensor]:
        """Give the weights under the released names; the released code has text_rope="none"."""
        return released.to_released(self.state_dict(), len(self.blocks))

    def _check_config(self) -> None:
        for name, value in self.config.items():
            if isinstance(value, int | float) and not (value > 0 and value is not True):
                raise ValueError(f"{name} must be positive, got {value}.")
        if self.config.hidden_size % (4 * self.config.num_heads):
            head_dim = f"{self.config.hidden_size} / {self.config.num_heads}"
            raise ValueError(f"2D RoPE: hidden_size / num_heads must divide by 4, got {head_dim}.")

    def _check(self, *inputs: Tensor) -> None:
        config, latents, batch = self.config, inputs[0].shape, inputs[0].shape[:1]
        expected = {
            "noisy_latents": (*batch, config.latent_channels, "height", "width"),
            "condition_latents": latents,
            "timestep": batch,
            "text_tokens": (*batch, "tokens", config.text_dim),
            "pooled_text": (*batch, config.text_dim),
            "modality": batch,
        }
        for (name, shape), tensor in zip(expected.items(), inputs, strict=True):
            fits = (isinstance(x, str) or x == y for x, y in zip(shape, tensor.shape, strict=False))
            if len(shape) != tensor.ndim or not all(fits):
                sizes = ", ".join(map(str, shape))
                raise ValueError(f"{name} must be [{sizes}], got {list(tensor.shape)}.")
        if any(size % config.patch_size for size in latents[2:]):
            sizes = f"{config.patch_size}, got {latents[2]} x {latents[3]}"
            raise ValueError(f"Latents must divide by the patch size {sizes}; crop or pad.")
