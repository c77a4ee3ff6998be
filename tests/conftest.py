"""Shared fixtures: a tiny pipeline of real classes with random weights, built without a download.

Importing the package under jaxtyping's hook makes beartype check every annotated shape and dtype
in all tests. The hook breaks `torch.compile(fullgraph=True)`: a test of that runs in a subprocess.
"""

import gc
import os

gc.disable()  # what is imported stays: no collection of garbage until all tests are collected
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test asks the hub for anything

import lazy_checks  # noqa: E402, F401
from jaxtyping import install_import_hook  # noqa: E402

install_import_hook("mmface", "lazy_checks.checked")

from light_imports import import_lazily, optional_libraries_left_out  # noqa: E402

import_lazily("gradio_client")
import_lazily(*(f"mmface.app.{name}" for name in ("canvas", "handlers", "page", "server")))

import threading  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import NamedTuple  # noqa: E402

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from tokenizers.pre_tokenizers import ByteLevel  # noqa: E402
from tqdm import tqdm  # noqa: E402

with optional_libraries_left_out():
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from mmface.conditions import LABEL_INDEX, colorize
    from mmface.metrics.condition_agreement import Masks, confusion_matrices
    from mmface.model.transformer import MMFaceDiT
    from mmface.sampling.pipeline import MMFacePipeline, MMFacePipelineOutput

TEXT_DIM = 12
MAX_TOKENS = 16
IMAGE_SIZE = 32


def pytest_collection_finish() -> None:
    """Look for garbage again, among what the tests make."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def progress_of_one_process():
    """Keep tqdm's lock in each process: a forked one that a test kills may hold the shared one."""
    tqdm.monitor_interval = 0  # no thread that could hold it at a fork
    tqdm.set_lock(threading.RLock())


@pytest.fixture(scope="session", autouse=True)
def single_thread():
    """Keep a test's floating-point sums in one order, and the machine free for others."""
    torch.set_num_threads(1)


def build_tokenizer() -> CLIPTokenizer:
    """Build a CLIP tokenizer of single bytes, without merges."""
    pieces = sorted(ByteLevel.alphabet())
    names = [*pieces, *(piece + "</w>" for piece in pieces), "<|startoftext|>", "<|endoftext|>"]
    vocab = {name: index for index, name in enumerate(names)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=MAX_TOKENS)


def build_text_model(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Build a two-layer CLIP text tower that fits the tokenizer."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_DIM,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        projection_dim=TEXT_DIM,
    )
    return CLIPTextModel(config).eval()


def build_vae(latent_channels: int = 16, **config) -> AutoencoderKL:
    """Build a VAE that makes pictures 8 times smaller."""
    sizes = {
        "block_out_channels": (4, 4, 4, 4),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "norm_num_groups": 2,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
    }
    return AutoencoderKL(latent_channels=latent_channels, **sizes | config).eval()


def build_transformer(**config) -> MMFaceDiT:
    """Build a two-block model with random weights in every layer, the zero ones included."""
    model = MMFaceDiT(
        hidden_size=16, depth=2, num_heads=2, mlp_ratio=2.0, text_dim=TEXT_DIM, **config
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def build_pipeline(objective: str = "rectified_flow") -> MMFacePipeline:
    """Build a whole pipeline for pictures of `IMAGE_SIZE` pixels; always the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = build_tokenizer()
        pipeline = MMFacePipeline(
            vae=build_vae(),
            text_encoder=build_text_model(tokenizer),
            tokenizer=tokenizer,
            transformer=build_transformer(objective=objective),
            scheduler=None,
            image_size=IMAGE_SIZE,
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def latents_of(result: MMFacePipelineOutput) -> torch.Tensor:
    """Give the latents of a call with `output_type="latent"`."""
    assert isinstance(result.images, torch.Tensor)
    return result.images


@pytest.fixture(scope="session")
def tiny_pipeline() -> MMFacePipeline:
    """Give a rectified-flow pipeline; tests must not change it."""
    return build_pipeline()


@pytest.fixture(scope="session")
def tiny_pipeline_folder(tiny_pipeline, tmp_path_factory) -> Path:
    """Give the folder of that pipeline, saved."""
    folder = tmp_path_factory.mktemp("tiny_pipeline")
    tiny_pipeline.save_pretrained(folder)
    return folder


class MaskAgreement(NamedTuple):
    """The columns of the metric of masks, in per cent."""

    accuracy: float
    mean_iou: float
    mean_iou_of_pictures: float
    mean_iou_absent_zero: float


def agreement_of(parsed: torch.Tensor, truth: torch.Tensor) -> MaskAgreement:
    """Measure label maps, uint8 [B, H, W], as the metric of masks does."""
    # Twice each, since an interval needs two pictures; no average changes by that.
    tables = confusion_matrices(truth, parsed).flatten(1).tolist() * 2
    ids = [str(number) for number in range(len(tables))]
    found = Masks("parser").intervals(ids, [{"confusion": table} for table in tables])
    return MaskAgreement(**{name: one.estimate for name, one in found.items()})


@pytest.fixture
def face_labels() -> np.ndarray:
    """Draw a label map of a face in four classes: uint8 [64, 64]."""
    rows, columns = np.mgrid[:64, :64]
    labels = np.zeros((64, 64), dtype=np.uint8)
    labels[(rows - 28) ** 2 + (columns - 32) ** 2 < 26**2] = LABEL_INDEX["hair"]
    labels[(rows - 36) ** 2 + (columns - 32) ** 2 < 20**2] = LABEL_INDEX["skin"]
    labels[44:48, 24:40] = LABEL_INDEX["l_lip"]
    return labels


@pytest.fixture
def face_mask(face_labels) -> np.ndarray:
    """Draw that face in the palette's colours: uint8 [64, 64, 3]."""
    return colorize(face_labels)


@pytest.fixture
def face_sketch() -> np.ndarray:
    """Draw a circle in dark lines on white: uint8 [64, 64]."""
    rows, columns = np.mgrid[:64, :64]
    radius = np.hypot(rows - 32, columns - 32)
    return np.where(abs(radius - 24) < 1.5, 0, 255).astype(np.uint8)
