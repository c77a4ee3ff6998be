"""The released model and scripts, written plainly: network, training, sampling, loading.

Everything here does what the authors' release does, operator by operator, and in none of the ways
that this package makes it faster; `tests/test_operator_counts.py` fixes the operators of each
script, counted from the published code. It is the other half of every parity test, and the
denominator of every ratio of `scripts/benchmark.py`. It shares no code with `mmface`; tensors carry
the released names (`blocks.0.attn.to_q.weight`). Each published script has a class of its own in
`TRAINING` or `SAMPLING`; only what leaves the numbers alone is left out: logs, progress bars,
checkpoints, and the frozen text encoder in training, which costs both sides the same.

    B batch    D width    H heads    d = D / H    N image tokens    L text tokens    S = N + L
"""

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset


def at_least_float32(x: Tensor) -> Tensor:
    """The release calls `float()`; float64 stays, so that parity can be exact."""
    return x if x.dtype == torch.float64 else x.float()


def rotation_matrices(positions: Tensor, dim: int) -> Tensor:
    """2 x 2 matrices for positions [B, S] along one axis: float32 [B, S, dim / 2, 2, 2]."""
    scale = torch.arange(0, dim, 2, dtype=torch.float64, device=positions.device) / dim
    angle = torch.einsum("...n,d->...nd", positions, 1.0 / (10000**scale))
    cos, sin = torch.cos(angle), torch.sin(angle)
    entries = torch.stack([cos, -sin, sin, cos], dim=-1)
    return entries.view(positions.shape[0], -1, dim // 2, 2, 2).float()


def token_positions(batch: int, rows: int, columns: int, num_text: int, x: Tensor) -> Tensor:
    """Positions [B, S, 2]: image tokens row by row, then text tokens, all at (0, 0)."""
    grid = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    image = torch.stack(grid, dim=-1).reshape(-1, 2).expand(batch, -1, -1).to(x.device)
    text = torch.zeros((batch, num_text, 2), device=x.device, dtype=torch.long)
    return torch.cat([image, text], dim=1)


def turn(query: Tensor, key: Tensor, matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Multiply each neighbouring pair of [B, S, H, d] by its matrix."""
    q = at_least_float32(query).reshape(*query.shape[:-1], -1, 1, 2)
    k = at_least_float32(key).reshape(*key.shape[:-1], -1, 1, 2)
    q = matrices[..., 0] * q[..., 0] + matrices[..., 1] * q[..., 1]
    k = matrices[..., 0] * k[..., 0] + matrices[..., 1] * k[..., 1]
    return q.reshape(*query.shape).type_as(query), k.reshape(*key.shape).type_as(key)


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
            return x.view(x.shape[0], -1, self.num_heads, x.shape[-1] // self.num_heads)

        q, k, v = heads(self.to_q(image)), heads(self.to_k(image)), heads(self.to_v(image))
        q_t, k_t, v_t = heads(self.to_q_t(text)), heads(self.to_k_t(text)), heads(self.to_v_t(text))
        query, key = torch.cat([q, q_t], dim=1), torch.cat([k, k_t], dim=1)
        value = torch.cat([v, v_t], dim=1)
        query, key = turn(query, key, matrices)
        query, key, value = (x.permute(0, 2, 1, 3) for x in (query, key, value))
        attended = F.scaled_dot_product_attention(query, key, value)
        attended = attended.permute(0, 2, 1, 3).flatten(-2)
        image, text = torch.split(attended, [image.shape[1], text.shape[1]], dim=1)
        return self.to_out(image), self.to_out_t(text)


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
        steps = torch.arange(start=0, end=128, dtype=torch.float32)
        frequency = torch.exp(-math.log(10000) * steps / 128).to(device=time.device)
        angle = time[:, None].float() * frequency[None]
        features = torch.cat((angle.cos(), angle.sin()), dim=1)
        return self.mlp(features.to(next(self.mlp.parameters()).dtype))


class PooledEmbedder(nn.Module):
    """One linear layer; in training it puts the null vector for a share of the captions."""

    def __init__(self, text_dim: int, width: int) -> None:
        super().__init__()
        self.null_feature_pooled = nn.Parameter(torch.zeros(text_dim))
        self.proj = nn.Linear(text_dim, width)
        self.dropout = 0.0

    def forward(self, pooled: Tensor) -> Tensor:
        if self.training and self.dropout > 0:
            dropped = torch.rand(pooled.shape[0], device=pooled.device) < self.dropout
            pooled = torch.where(dropped[:, None], self.null_feature_pooled, pooled)
        return self.proj(pooled)


class PlainMMFaceDiT(nn.Module):
    """The released network for diffusion; text tokens have no rotary position."""

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

    def embedder_time(self, time: Tensor) -> Tensor:
        """The time as the embedder reads it, 0 to 999."""
        return time

    def forward(
        self, x: Tensor, time: Tensor, tokens: Tensor, pooled: Tensor, modality: Tensor
    ) -> Tensor:
        """Predict from x [B, 2 C, h, w], time [B], the text's features and modality."""
        batch, _, height, width = x.shape
        size = self.patch_size
        rows, columns = height // size, width // size
        image = self.x_embedder["proj"](x).flatten(2).transpose(1, 2)
        time_features = self.t_embedder(self.embedder_time(time))
        modality_features = self.modality_embedder(modality)
        text = self.clip_seq_proj(tokens)
        condition = self.c_embedder(pooled) + time_features + modality_features
        positions = token_positions(batch, rows, columns, text.shape[1], x)
        axes = [rotation_matrices(positions[..., i], self.head_dim // 2) for i in range(2)]
        matrices = torch.cat(axes, dim=-3).unsqueeze(2)
        for block in self.blocks:
            if self.checkpointing and self.training:
                args = (image, text, condition, matrices)
                image, text = checkpoint(block, *args, use_reentrant=False)
            else:
                image, text = block(image, text, condition, matrices)
        shift, scale = self.final_layer["adaLN_modulation"](condition).chunk(2, dim=1)
        image = F.layer_norm(image, image.shape[-1:], eps=1e-6)
        patches = self.final_layer["linear"](modulate(image, shift, scale))
        patches = patches.reshape(batch, rows, columns, size, size, -1)
        return torch.einsum("nhwpqc->nchpwq", patches).reshape(batch, -1, height, width)


class PlainFlowDiT(PlainMMFaceDiT):
    """The released network for rectified flow: the host looks whether time is in [0, 1]."""

    def embedder_time(self, time: Tensor) -> Tensor:
        time = time.clone()
        return time * 999.0 if time.max() <= 1.0 else time


class Corrupted(NamedTuple):
    """What the network reads and must predict: latents [B, C, h, w], time [B], target."""

    latents: Tensor
    time: Tensor
    target: Tensor


class PlainTraining(ABC):
    """One optimizer step of a published training script, on one process.

    A batch may hold `noise` and `uniform`, as parity needs; else they are drawn, as the scripts do.
    """

    network: type[PlainMMFaceDiT] = PlainFlowDiT
    average_every = 1

    def __init__(
        self,
        model: PlainMMFaceDiT,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        ema_decay: float = 0.9999,
        gradient_clip: float = 0.5,
    ) -> None:
        self.model, self.gradient_clip = model.train(), gradient_clip
        model.checkpointing = True  # in every published config
        self.average = EMAModel(model.parameters(), decay=ema_decay)
        self.optimizer = optimizer(model.parameters())
        self.steps = 0

    @abstractmethod
    def corrupt(self, data: Tensor, batch: Mapping[str, Tensor]) -> Corrupted:
        """Mix latents with noise at a random time."""

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(prediction.float(), target.float(), reduction="mean")

    def predict(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The network's prediction and its target."""
        corrupted = self.corrupt(batch["latents"], batch)
        x = torch.cat([corrupted.latents, batch["condition"]], dim=1)
        text = (batch["text_tokens"], batch["pooled_text"], batch["modality"])
        return self.model(x, corrupted.time, *text), corrupted.target

    def update(self, loss: Tensor) -> None:
        """Go backwards, clip, and let the optimizer step."""
        (loss / 1).backward()  # accelerate divides by the number of accumulated batches
        nn.utils.clip_grad_norm_(self.model.parameters(), self.gradient_clip)
        self.optimizer.step()

    def step(self, batch: Mapping[str, Tensor]) -> float:
        """Make one optimizer step and return the loss."""
        self.optimizer.zero_grad(set_to_none=True)  # after the step there, which keeps no gradients
        loss = self.loss(*self.predict(batch))
        value = loss.detach().item()
        self.update(loss)
        self.steps += 1
        if self.steps % self.average_every == 0:
            self.average.step(self.model.parameters())
        return value


class TrainFlow256(PlainTraining):
    """`train_flow_256.py`."""

    def corrupt(self, data: Tensor, batch: Mapping[str, Tensor]) -> Corrupted:
        noise = batch["noise"] if "noise" in batch else torch.randn_like(data)
        time = batch["uniform"] if "uniform" in batch else torch.rand((len(data),)).to(data.device)
        t = time.reshape(-1, 1, 1, 1)
        return Corrupted((1 - t) * noise + t * data, time, data - noise)


class TrainFlow512(PlainTraining):
    """`train_flow_512.py`: another order of the mixture, an average every tenth step."""

    average_every = 10

    def corrupt(self, data: Tensor, batch: Mapping[str, Tensor]) -> Corrupted:
        noise = batch["noise"] if "noise" in batch else torch.randn_like(data)
        time = batch["uniform"] if "uniform" in batch else torch.rand((len(data),)).to(data.device)
        t = time.view(-1, 1, 1, 1)
        return Corrupted(noise.add(data.sub(noise).mul(t)), time, data - noise)


def is_sound(x: Tensor) -> bool:
    """Look for NaN, then for infinity; the host waits for both."""
    return not torch.isnan(x).any() and not torch.isinf(x).any()


class TrainFlow512Optimized(TrainFlow512):
    """`train_flow_512_optimized.py`: the same between truth tests, of each gradient, too.

    A step with anything that is not finite is left out.
    """

    def corrupt(self, data: Tensor, batch: Mapping[str, Tensor]) -> Corrupted:
        return super().corrupt(torch.clamp(data, -10, 10), batch)

    def step(self, batch: Mapping[str, Tensor]) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        if not all(is_sound(batch[n]) for n in ("latents", "condition", "pooled_text")):
            return math.nan
        prediction, target = self.predict(batch)
        if not is_sound(target) or not is_sound(prediction):
            return math.nan
        loss = self.loss(prediction, target)
        if torch.isnan(loss) or torch.isinf(loss):
            return math.nan
        if loss.item() > 100.0:
            loss = torch.clamp(loss, max=100.0)
        (loss / 1).backward()
        for parameter in self.model.parameters():
            gradient = parameter.grad
            if gradient is not None and (
                torch.isnan(gradient).any() or torch.isinf(gradient).any()
            ):
                self.optimizer.zero_grad(set_to_none=True)
                return math.nan
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.gradient_clip)
        if norm > 10.0:
            pass  # it writes a warning
        self.optimizer.step()
        self.steps += 1
        if self.steps % self.average_every == 0:
            self.average.step(self.model.parameters())
        return loss.detach().item()


class TrainDiffusion256(PlainTraining):
    """`train_diffusion_256.py`: noise is predicted; no published config weighs by Min-SNR."""

    network = PlainMMFaceDiT

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.scheduler = DDPMScheduler(beta_schedule="scaled_linear", **SD21_BETAS)

    def corrupt(self, data: Tensor, batch: Mapping[str, Tensor]) -> Corrupted:
        noise = batch["noise"] if "noise" in batch else torch.randn_like(data)
        time = torch.randint(0, 1000, (len(data),), device=data.device).long()
        if "uniform" in batch:
            time = (batch["uniform"] * 1000).long()
        return Corrupted(self.scheduler.add_noise(data, noise, time), time, noise)

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        each = F.mse_loss(prediction.float(), target.float(), reduction="none")
        return each.mean(dim=[1, 2, 3]).mean()


class TrainDiffusion512(TrainDiffusion256):
    """`train_diffusion_512.py`, which has the step of `train_diffusion_256.py`."""


SD21_BETAS = {"beta_start": 0.00085, "beta_end": 0.012}
"""The noise of the Stable Diffusion 2.1 base model, whose scheduler the scripts load."""

TRAINING: dict[str, type[PlainTraining]] = {
    "train_flow_256": TrainFlow256,
    "train_flow_512": TrainFlow512,
    "train_flow_512_optimized": TrainFlow512Optimized,
    "train_diffusion_256": TrainDiffusion256,
    "train_diffusion_512": TrainDiffusion512,
}


class Encoded(NamedTuple):
    """What a command encodes once: condition [1, C, h, w], then features of "" and the prompt."""

    condition: Tensor
    pooled: Tensor
    tokens: Tensor
    modality: Tensor


class PlainSampling(ABC):
    """One sampling command: one prompt and one condition, picture after picture."""

    network: type[PlainMMFaceDiT] = PlainFlowDiT

    def __init__(self, model: PlainMMFaceDiT, vae: Any, tokenizer: Any, text_encoder: Any) -> None:
        self.model, self.vae = model, vae
        self.tokenizer, self.text_encoder = tokenizer, text_encoder

    @torch.no_grad()
    def encode(self, prompt: str, condition: Tensor, modality: int, negative: str = "") -> Encoded:
        """Encode prompt, negative prompt and the condition's pixels [1, 3, H, W]."""
        pooled, tokens = zip(*map(self._text, (prompt, negative)), strict=True)
        latents = self.vae.encode(condition).latent_dist.sample() * self.vae.config.scaling_factor
        return Encoded(
            latents, torch.cat(pooled[::-1]), torch.cat(tokens[::-1]), torch.tensor(modality)
        )

    def _text(self, prompt: str) -> tuple[Tensor, Tensor]:
        length = self.tokenizer.model_max_length
        options = {"padding": "max_length", "max_length": length, "truncation": True}
        ids = self.tokenizer([prompt], **options, return_tensors="pt").input_ids
        output = self.text_encoder(ids.to(self.vae.device), output_hidden_states=True)
        return output.pooler_output, output.hidden_states[-2]

    def guided(self, latents: Tensor, time: Tensor, encoded: Encoded, scale: float) -> Tensor:
        """One guided prediction: one batch of both branches, the unwanted one first."""
        both = torch.cat([latents] * 2)
        times = time.expand(both.shape[0]).to(latents.device)
        condition = encoded.condition.repeat(both.shape[0], 1, 1, 1)
        modality = encoded.modality.repeat(both.shape[0]).to(latents.device, dtype=torch.long)
        x = torch.cat([both, condition], dim=1)
        predicted = self.model(x, times, encoded.tokens, encoded.pooled, modality)
        predicted = predicted[:, : latents.shape[1], :, :]
        unwanted, wanted = predicted.chunk(2)
        return unwanted + scale * (wanted - unwanted)

    @abstractmethod
    def solve(self, noise: Tensor, encoded: Encoded, num_steps: int, scale: float) -> Tensor:
        """Latents [1, C, h, w] of one picture from its noise."""

    @torch.no_grad()
    def latents(self, noises: Sequence[Tensor], encoded: Encoded, *steps: Any) -> Tensor:
        """Latents of a command's pictures [B, C, h, w], one after the other."""
        return torch.cat([self.solve(noise, encoded, *steps) for noise in noises])

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pixels in [0, 1] of one picture's latents."""
        pixels = self.vae.decode(latents / self.vae.config.scaling_factor).sample
        return (pixels / 2 + 0.5).clamp(0, 1)


class SampleFlow(PlainSampling):
    """`sample_flow.py`: uniform Euler steps from time 0 to 1."""

    def solve(self, noise: Tensor, encoded: Encoded, num_steps: int, scale: float) -> Tensor:
        times = torch.linspace(0, 1, num_steps + 1, device=noise.device)
        z = noise.clone()
        for step in range(num_steps):
            z = z + self.guided(z, times[step], encoded, scale) * (1.0 / num_steps)
        return z


class SampleDiffusion(PlainSampling):
    """`sample_diffusion.py`: DPM-Solver++ of diffusers, made anew for each picture."""

    network = PlainMMFaceDiT

    def solve(self, noise: Tensor, encoded: Encoded, num_steps: int, scale: float) -> Tensor:
        scheduler = DPMSolverMultistepScheduler(
            beta_schedule="scaled_linear", steps_offset=1, **SD21_BETAS
        )
        scheduler.set_timesteps(num_steps, device=noise.device)
        latents = noise * scheduler.init_noise_sigma
        for time in scheduler.timesteps:
            predicted = self.guided(latents, time, encoded, scale)
            latents = scheduler.step(predicted, time, latents).prev_sample
        return latents


SAMPLING: dict[str, type[PlainSampling]] = {
    "sample_flow": SampleFlow,
    "sample_diffusion": SampleDiffusion,
}


@torch.no_grad()
def encode_one_by_one(vae: Any, pictures: Iterable[Tensor]) -> Tensor:
    """Latents [B, C, h, w] by the posterior's mean, one picture [3, H, W] a pass, not shifted."""
    latents = [vae.encode(p.unsqueeze(0)).latent_dist.mean for p in pictures]
    return torch.cat(latents) * vae.config.scaling_factor


def write_files(folder: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write latents as the release keeps them: a .pt file [1, C, h, w] each, a text file a face."""
    for index, row in enumerate(rows):
        for kind in ("image", "mask", "sketch"):
            (folder / "Faces" / f"{kind}_latents").mkdir(parents=True, exist_ok=True)
            latents = torch.from_numpy(row[kind]).to(torch.bfloat16).unsqueeze(0)
            torch.save(latents, folder / "Faces" / f"{kind}_latents" / f"{index:05}.pt")
        (folder / "Faces" / "text").mkdir(exist_ok=True)
        (folder / "Faces" / "text" / f"{index:05}.txt").write_text("\n".join(row["captions"]))


class PlainLatents(Dataset[dict[str, Any]]):
    """The release's data class: a condition, dropouts, a caption and its tokens for a face."""

    def __init__(self, folder: Path, tokenizer: Any, dropout: float = 0.05) -> None:
        self.tokenizer, self.dropout = tokenizer, dropout
        self.faces = [
            {
                "dataset": each.name,
                "base_name": path.stem,
                **{
                    kind: str(each / f"{kind}_latents" / f"{path.stem}.pt")
                    for kind in ("image", "mask", "sketch")
                },
                "text": str(each / "text" / f"{path.stem}.txt"),
            }
            for each in folder.iterdir()
            for path in sorted((each / "image_latents").glob("*.pt"))
        ]

    def __len__(self) -> int:
        return len(self.faces)

    def __getitem__(self, index: int) -> dict[str, Any]:
        face = self.faces[index]
        image = torch.load(face["image"]).squeeze().to(dtype=torch.float32)
        use_mask = random.choice([True, False])
        modality = torch.tensor(0) if use_mask else torch.tensor(1)
        condition = torch.load(face["mask" if use_mask else "sketch"])
        condition = condition.squeeze().to(dtype=torch.float32)
        if random.random() < self.dropout:
            condition = torch.zeros_like(condition)
        caption = ""
        if random.random() >= self.dropout:
            with Path(face["text"]).open(encoding="utf-8") as file:
                captions = [line.strip() for line in file if line.strip()]
            caption = random.choice(captions)
        tokens = self.tokenizer(
            caption,
            padding="max_length",
            truncation=True,
            max_length=self.tokenizer.model_max_length,
            return_tensors="pt",
        )
        return {
            "image_latent": image,
            "conditioning_latent": condition,
            "clip_input_ids": tokens.input_ids.squeeze(0),
            "dataset": face["dataset"],
            "base_name": face["base_name"],
            "modality": modality,
        }


def plain_loader(dataset: PlainLatents, batch_size: int) -> DataLoader[dict[str, Any]]:
    """The scripts' loader, in this process, so that its work can be counted and timed."""
    return DataLoader(dataset, batch_size=batch_size, shuffle=True, drop_last=True)
