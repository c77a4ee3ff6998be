"""One training step of the paper's own sizes, on the meta device: all shapes, and no memory."""

import pytest
import torch
from conftest import build_tokenizer

from mmface.encoders import LatentCodec, TextEncoder, meta_text_model, meta_vae
from mmface.model.transformer import MMFaceDiT
from mmface.planning.training import TEXT_TOKENS
from mmface.training.face_diffusion import FaceDiffusion

BATCH, SIDE = 2, 256
FROZEN = {
    "null_pooled": 1024,
    "blocks.27.text.out.weight": 1152 * 1152,
    "blocks.27.text.mlp.0.weight": 4608 * 1152,
    "blocks.27.text.mlp.0.bias": 4608,
    "blocks.27.text.mlp.2.weight": 1152 * 4608,
    "blocks.27.text.mlp.2.bias": 1152,
}
"""What takes no part in a step (see `FinalBlock` and `MMFaceDiT`), with its number of values."""


@pytest.fixture
def task(tiny_pipeline_folder) -> FaceDiffusion:
    """Make the paper's task; its neighbours, loaded small, change places with full-size ones."""
    with torch.device("meta"):
        transformer = MMFaceDiT()
    folder = tiny_pipeline_folder
    task = FaceDiffusion(transformer, vae=folder / "vae", text=folder, image_size=SIDE)
    tokenizer = build_tokenizer()
    tokenizer.model_max_length = TEXT_TOKENS
    task.text = TextEncoder(meta_text_model(1024).requires_grad_(False).eval(), tokenizer)
    task.text_model = task.text.text_model
    task.vae = meta_vae("flux").requires_grad_(False).eval()
    return task


@pytest.mark.slow
def test_a_step_reaches_every_trained_parameter_and_no_other(task):
    codec = LatentCodec(task.vae)
    pictures = torch.empty(BATCH, 3, SIDE, SIDE, device="meta")
    latents = codec.encode(pictures)
    assert latents.shape == (BATCH, 16, SIDE // 8, SIDE // 8)
    batch = {
        "latents": latents,
        "condition": torch.empty_like(latents),
        "noise": torch.empty_like(latents),
        "uniform": torch.empty(BATCH, device="meta"),
        "modality": torch.zeros(BATCH, dtype=torch.long, device="meta"),
        "caption": ["a man", ""],
    }
    losses = task(batch)["loss"]
    assert losses.shape == (BATCH,)
    losses.mean().backward()

    network = dict(task.trained.named_parameters())
    assert sum(p.numel() for p in network.values()) == 1_345_298_624
    without = {name: p.numel() for name, p in network.items() if p.grad is None}
    assert without == FROZEN
    for name, parameter in network.items():
        assert parameter.is_meta, name
        if name not in FROZEN:
            gradient = parameter.grad
            assert (gradient.shape, gradient.dtype) == (parameter.shape, torch.float32), name
    neighbours = [*task.text_model.named_parameters(), *task.vae.named_parameters()]
    assert sum(p.numel() for _, p in neighbours) == 340_387_840 + 83_819_683
    assert [name for name, p in neighbours if p.grad is not None or not p.is_meta] == []
