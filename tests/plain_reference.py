"""The released model, its training step, its sampler and its loader, written plainly.

Everything here is done step by step, the way the authors' release does it and in none of the ways
that this package makes it faster: three projections a stream, one modulation product a block,
rotation matrices made anew on the CPU in every forward pass, the last block's text computed in
full, checkpointing of every block, one truth test a gradient, one average a parameter, one picture
at a time with two half-batches, one file a sample. It is the other half of every parity test, and
the denominator of every ratio of `scripts/benchmark.py`. It shares no code with `mmface`; tensors
carry the released names (`blocks.0.attn.to_q.weight`).

    B batch    D width    H heads    d = D / H    N image tokens    L text tokens    S = N + L
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def rotation_matrices(positions: Tensor, head_dim: int) -> Tensor:
    """2 x 2 matrices for tokens at (row, column), positions [S, 2]: float32 [S, 1, d/2, 2, 2]."""
    half = head_dim // 2
    frequency = 1.0 / 10000 ** (torch.arange(0, half, 2, dtype=torch.float64) / half)
    row, column = positions.double().unbind(1)
    angle = torch.cat((torch.outer(row, frequency), torch.outer(column, frequency)), dim=1)
    entries = torch.stack((angle.cos(), -angle.sin(), angle.sin(), angle.cos()), dim=-1)
    return entries.reshape(len(positions), 1, half, 2, 2).float()


def token_rotations(rows: int, columns: int, num_text: int, head_dim: int) -> Tensor:
    """Matrices of the image tokens row by row, then of the text tokens, all at (0, 0)."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    image = torch.stack((row.flatten(), column.flatten()), dim=1)
    return rotation_matrices(torch.cat((image, torch.zeros(num_text, 2).long())), head_dim)


def turn(x: Tensor, matrices: Tensor) -> Tensor:
    """Multiply each neighbouring pair of x [B, S, H, d] by its matrix, at least in float32."""
    pairs = x.to(torch.promote_types(x.dtype, torch.float32)).reshape(*x.shape[:-1], -1, 1, 2)
    turned = matrices[..., 0] * pairs[..., 0] + matrices[..., 1] * pairs[..., 1]
    return turned.reshape(x.shape).to(x.dtype)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (1 + scale) + shift, one shift and scale a sample."""
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class JointAttention(nn.Module):
    """Eight projections without bias around one attention over image and text."""

    to_q: nn.Linear
    to_k: nn.Linear
    to_v: nn.Linear
    to_out: nn.Linear
    to_q_t: nn.Linear
    to_k_t: nn.Linear
    to_v_t: nn.Linear
    to_out_t: nn.Linear

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        for name in ("to_q", "to_k", "to_v", "to_out"):
            setattr(self, name, nn.Linear(width, width, bias=False))
            setattr(self, f"{name}_t", nn.Linear(width, width, bias=False))

    def forward(self, image: Tensor, text: Tensor, matrices: Tensor) -> tuple[Tensor, Tensor]:
        def heads(x: Tensor) -> Tensor:
            return x.reshape(x.shape[0], x.shape[1], self.num_heads, -1)

        query = torch.cat((heads(self.to_q(image)), heads(self.to_q_t(text))), dim=1)
        key = torch.cat((heads(self.to_k(image)), heads(self.to_k_t(text))), dim=1)
        value = torch.cat((heads(self.to_v(image)), heads(self.to_v_t(text))), dim=1)
        query, key = turn(query, matrices), turn(key, matrices)
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        attended = F.scaled_dot_product_attention(query, key, value)
        attended = attended.transpose(1, 2).reshape(image.shape[0], -1, image.shape[2])
        num_image = image.shape[1]
        return self.to_out(attended[:, :num_image]), self.to_out_t(attended[:, num_image:])


class PlainBlock(nn.Module):
    """A dual-stream block that computes all of itself, each part on its own."""

    mlp_i: nn.Sequential
    mlp_t: nn.Sequential

    def __init__(self, width: int, num_heads: int, mlp_width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(
            nn.LayerNorm(width, elementwise_affine=False, eps=1e-6) for _ in range(4)
        )
        self.attn = JointAttention(width, num_heads)
        for name in ("mlp_i", "mlp_t"):
            gelu = nn.GELU(approximate="tanh")
            mlp = nn.Sequential(nn.Linear(width, mlp_width), gelu, nn.Linear(mlp_width, width))
            setattr(self, name, mlp)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 12 * width))

    def forward(
        self, image: Tensor, text: Tensor, condition: Tensor, matrices: Tensor
    ) -> tuple[Tensor, Tensor]:
        parts = self.adaLN_modulation(condition).chunk(12, dim=1)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = parts[:6]
        t_shift, t_scale, t_gate, t_mlp_shift, t_mlp_scale, t_mlp_gate = parts[6:]
        from_image, from_text = self.attn(
            modulate(self.norms[0](image), shift, scale),
            modulate(self.norms[1](text), t_shift, t_scale),
            matrices,
        )
        image = image + gate.unsqueeze(1) * from_image
        text = text + t_gate.unsqueeze(1) * from_text
        image = image + mlp_gate.unsqueeze(1) * self.mlp_i(
            modulate(self.norms[2](image), mlp_shift, mlp_scale)
        )
        text = text + t_mlp_gate.unsqueeze(1) * self.mlp_t(
            modulate(self.norms[3](text), t_mlp_shift, t_mlp_scale)
        )
        return image, text


class TimeEmbedder(nn.Module):
    """Sines and cosines of the time, made on the CPU in each call, then an MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, time: Tensor) -> Tensor:
        frequency = torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float32) / 128)
        angle = time.float()[:, None] * frequency.to(time.device)
        features = torch.cat((angle.cos(), angle.sin()), dim=1)
        return self.mlp(features.to(next(self.mlp.parameters()).dtype))


class PooledEmbedder(nn.Module):
    """One linear layer, and the null vector that nothing here reads."""

    def __init__(self, text_dim: int, width: int) -> None:
        super().__init__()
        self.null_feature_pooled = nn.Parameter(torch.zeros(text_dim))
        self.proj = nn.Linear(text_dim, width)


class PlainMMFaceDiT(nn.Module):
    """The released network; text tokens have no rotary position."""

    def __init__(
        self,
        latent_channels: int,
        patch_size: int,
        width: int,
        depth: int,
        num_heads: int,
        mlp_width: int,
        text_dim: int,
        num_modalities: int = 2,
    ) -> None:
        super().__init__()
        self.patch_size, self.head_dim = patch_size, width // num_heads
        self.checkpointing = False
        patch = nn.Conv2d(2 * latent_channels, width, patch_size, patch_size)
        self.x_embedder = nn.ModuleDict({"proj": patch})
        self.t_embedder = TimeEmbedder(width)
        self.c_embedder = PooledEmbedder(text_dim, width)
        self.clip_seq_proj = nn.Linear(text_dim, width)
        self.modality_embedder = nn.Embedding(num_modalities, width)
        self.blocks = nn.ModuleList(PlainBlock(width, num_heads, mlp_width) for _ in range(depth))
        self.final_layer = nn.ModuleDict(
            {
                "linear": nn.Linear(width, patch_size**2 * latent_channels),
                "adaLN_modulation": nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width)),
            }
        )

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], num_heads: int) -> "PlainMMFaceDiT":
        """Load a released state dict; its tensors are copied, in the dtype they have."""
        width, channels, patch_size, _ = state["x_embedder.proj.weight"].shape
        depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
        with torch.device("meta"):
            model = cls(
                latent_channels=channels // 2,
                patch_size=patch_size,
                width=width,
                depth=depth,
                num_heads=num_heads,
                mlp_width=state["blocks.0.mlp_i.0.weight"].shape[0],
                text_dim=state["clip_seq_proj.weight"].shape[1],
                num_modalities=state["modality_embedder.weight"].shape[0],
            )
        model.load_state_dict({k: v.detach().clone() for k, v in state.items()}, assign=True)
        return model

    def forward(
        self, x: Tensor, time: Tensor, tokens: Tensor, pooled: Tensor, modality: Tensor
    ) -> Tensor:
        """Predict from x [B, 2 C, h, w], time in [0, 1000), the text's features and modality."""
        batch, _, height, width = x.shape
        size = self.patch_size
        rows, columns = height // size, width // size
        image = self.x_embedder["proj"](x).flatten(2).transpose(1, 2)
        text = self.clip_seq_proj(tokens)
        condition = self.t_embedder(time) + self.c_embedder.proj(pooled)
        condition = condition + self.modality_embedder(modality)
        matrices = token_rotations(rows, columns, text.shape[1], self.head_dim).to(x.device)
        matrices = matrices.unsqueeze(0).repeat(batch, 1, 1, 1, 1, 1)
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                args = (image, text, condition, matrices)
                image, text = checkpoint(block, *args, use_reentrant=False)
            else:
                image, text = block(image, text, condition, matrices)
        shift, scale = self.final_layer["adaLN_modulation"](condition).chunk(2, dim=1)
        image = F.layer_norm(image, image.shape[-1:], eps=1e-6)
        patches = self.final_layer["linear"](modulate(image, shift, scale))
        patches = patches.reshape(batch, rows, columns, size, size, -1)
        return torch.einsum("nhwpqc->nchpwq", patches).reshape(batch, -1, height, width)


class PlainTraining:
    """Rectified flow on one process, as the release trains it."""

    def __init__(
        self,
        model: PlainMMFaceDiT,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        ema_decay: float = 0.9999,
        gradient_clip: float = 0.5,
    ) -> None:
        self.model, self.decay, self.gradient_clip = model.train(), ema_decay, gradient_clip
        model.checkpointing = True
        self.average = [p.detach().clone() for p in model.parameters()]
        self.optimizer = optimizer(model.parameters())

    def step(self, batch: Mapping[str, Tensor]) -> float:
        """Make one optimizer step, skipped if a gradient is not finite, and return the loss."""
        data, noise = batch["latents"], batch["noise"]
        time = batch["uniform"].reshape(-1, 1, 1, 1)
        x = torch.cat(((1 - time) * noise + time * data, batch["condition"]), dim=1)
        text = (batch["text_tokens"], batch["pooled_text"], batch["modality"])
        self.optimizer.zero_grad()
        velocity = self.model(x, batch["uniform"] * 999, *text)
        loss = F.mse_loss(velocity.float(), data - noise)
        loss.backward()
        sound = True
        for parameter in self.model.parameters():
            gradient = parameter.grad
            if gradient is not None and (gradient.isnan().any() or gradient.isinf().any()):
                sound = False
        if sound:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.gradient_clip, foreach=False)
            self.optimizer.step()
        with torch.no_grad():
            for average, parameter in zip(self.average, self.model.parameters(), strict=True):
                average.sub_((1 - self.decay) * (average - parameter))
        return loss.item()


@torch.no_grad()
def sample(
    model: PlainMMFaceDiT,
    noise: Sequence[Tensor],
    conditions: Sequence[Tensor],
    encode_prompt: Callable[[str], tuple[Tensor, Tensor]],
    prompts: Sequence[str],
    modalities: Sequence[int],
    num_steps: int,
    guidance_scale: float,
) -> Tensor:
    """Follow the flow by Euler steps, one picture after the other, each prompt encoded each time.

    `noise` and `conditions` hold one [C, h, w] a picture; `encode_prompt` gives the pooled [1, d]
    and token [1, L, d] features of a prompt. Returns latents [B, C, h, w].
    """
    finished = []
    for start, condition, prompt, kind in zip(noise, conditions, prompts, modalities, strict=True):
        pooled, tokens = encode_prompt(prompt)
        empty_pooled, empty_tokens = encode_prompt("")
        z, condition = start.unsqueeze(0), condition.unsqueeze(0)
        modality = torch.tensor([kind]).to(z.device)
        for step in range(num_steps):
            x = torch.cat((z, condition), dim=1)
            time = torch.full((1,), 999.0 * step / num_steps).to(z.device)
            wanted = model(x, time, tokens, pooled, modality)
            unwanted = model(x, time, empty_tokens, empty_pooled, modality)
            z = z + (unwanted + guidance_scale * (wanted - unwanted)) / num_steps
        finished.append(z)
    return torch.cat(finished)


@torch.no_grad()
def encode_one_by_one(vae: Any, pictures: Iterable[Tensor]) -> Tensor:
    """Latents [B, C, h, w] by the posterior's mean, one picture [3, H, W] a pass, not shifted."""
    latents = [vae.encode(p.unsqueeze(0)).latent_dist.mean for p in pictures]
    return torch.cat(latents) * vae.config.scaling_factor


def write_files(folder: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one folder a kind of latents with one .pt file a sample, and one text file each."""
    for index, row in enumerate(rows):
        for kind in ("image", "mask", "sketch"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            latents = torch.from_numpy(row[kind]).to(torch.bfloat16)
            torch.save(latents, folder / kind / f"{index}.pt")
        (folder / "captions").mkdir(exist_ok=True)
        (folder / "captions" / f"{index}.txt").write_text("\n".join(row["captions"]))


def read_files(
    folder: Path, indices: Iterable[int], modality: str
) -> Iterator[tuple[Tensor, Tensor, str]]:
    """Read the latents of the picture and of one condition, float32, and the first caption."""
    for index in indices:
        image = torch.load(folder / "image" / f"{index}.pt", weights_only=True).float()
        condition = torch.load(folder / modality / f"{index}.pt", weights_only=True).float()
        captions = (folder / "captions" / f"{index}.txt").read_text().splitlines()
        yield image, condition, captions[0]
