"""Data for training: encoding pictures to latents, and loading latents from disk."""

import copy
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from mmface.benchmarks.measuring import relative_error
from mmface.benchmarks.subjects import TEXT_TOKENS, Bench, byte_tokenizer
from mmface.data.mixed import keyed_loader
from mmface.data.samples import LatentSamples
from mmface.data.store import ArraySpec, StoreSpec, write_store
from mmface.encoders import LatentCodec

ENCODED_BATCH = 8
NUM_ROWS = 256
LOADED_BATCH = 32
"""The published configs' batch at 256 px."""


def measure_encoding(bench: Bench) -> None:
    """The VAE on a batch, beside the VAE on one picture after the other, both ways."""

    @torch.no_grad()
    def encode() -> dict[str, float]:
        vae, side = bench.vae(), 8 * bench.size.sides[0]
        codec = LatentCodec(vae)
        shape = (ENCODED_BATCH, 3, side, side)
        pictures = torch.rand(shape, device=bench.device, dtype=bench.dtype) * 2 - 1
        reference = partial(bench.reference.encode_one_by_one, vae, list(pictures))
        values = bench.compare("encode", reference, lambda: codec.encode(pictures))
        error = relative_error(codec.encode(pictures), reference())
        rate = 1e3 * ENCODED_BATCH / values["own_ms"]
        return {**values, "pictures_per_s": rate, "relative_error": error}

    case = f"{8 * bench.size.sides[0]} px batch {ENCODED_BATCH}"
    bench.report.measure("encode", case, encode)
    bench.report.measure("encode", f"decode {case}, channels last", partial(_decoding, bench))


@torch.no_grad()
def _decoding(bench: Bench) -> dict[str, float]:
    """The VAE on a batch, weights laid out as convolutions read them, against single latents."""
    vae, side = bench.vae(), bench.size.sides[0]
    plain, codec = LatentCodec(copy.deepcopy(vae)), LatentCodec(vae)
    codec.vae.to(memory_format=torch.channels_last)
    latents = torch.randn(ENCODED_BATCH, codec.channels, side, side, device=bench.device)

    def reference() -> torch.Tensor:
        return torch.cat([plain.decode(each) for each in latents.split(1)])

    values = bench.compare("decode", reference, lambda: codec.decode(latents))
    error = relative_error(codec.decode(latents), reference())
    rate = 1e3 * ENCODED_BATCH / values["own_ms"]
    return {**values, "pictures_per_s": rate, "relative_error": error}


def latent_rows(num: int, side: int) -> list[dict[str, Any]]:
    """Rows of a latent store, of values that float16 and bfloat16 both hold."""
    draws = np.random.default_rng(0)
    return [
        {
            "id": str(index),
            "captions": [f"face {index}", "a face"],
            **{
                kind: draws.integers(-64, 65, (16, side, side)).astype(np.float16) / 16
                for kind in ("image", "mask", "sketch")
            },
        }
        for index in range(num)
    ]


def write_latents(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as a store of this package."""
    array = ArraySpec(rows[0]["image"].shape, "float16")
    arrays = dict.fromkeys(("image", "mask", "sketch"), array)
    spec = StoreSpec(len(rows), arrays, ("captions",), made_by={})
    write_store(folder, spec, partial(map, lambda items: [rows[i] for i in items]))


def own_loader(
    folder: Path, num: int, batch_size: int, dropout: float = 0.05
) -> DataLoader[dict[str, Any]]:
    """Load `num` samples of a store as the trainer does, in this process."""
    samples = LatentSamples(folder, text_dropout=dropout, condition_dropout=dropout)
    return keyed_loader(samples, 0, batch_size, batch_size, range(num // batch_size), 0, 1)


def measure_loading(bench: Bench) -> None:
    """An epoch of whole batches, beside the release's; all on the CPU, from a warm page cache."""
    for side in bench.size.sides:
        for case, tokenizing in (("", False), (" and tokenizing", True)):
            bench.report.measure(
                "data",
                f"loading{case}, {8 * side} px, batches of {LOADED_BATCH}",
                partial(_loading, bench, side, tokenizing),
            )


def _loading(bench: Bench, side: int, tokenizing: bool) -> dict[str, float]:
    """Time both loaders; the release tokenizes in its loader, this package in the training step."""
    tokenizer = byte_tokenizer()
    with tempfile.TemporaryDirectory() as scratch:
        folder, rows = Path(scratch), latent_rows(NUM_ROWS, side)
        write_latents(folder / "store", rows)
        bench.reference.write_files(folder / "files", rows)
        dataset = bench.reference.PlainLatents(folder / "files", tokenizer)
        theirs = bench.reference.plain_loader(dataset, LOADED_BATCH)
        ours = own_loader(folder / "store", NUM_ROWS, LOADED_BATCH)

        def plain() -> None:
            for _ in theirs:
                pass

        def own() -> None:
            for batch in ours:
                if tokenizing:
                    tokenizer(
                        batch["caption"],
                        padding="max_length",
                        truncation=True,
                        max_length=TEXT_TOKENS,
                        return_tensors="pt",
                    )

        error = _loading_error(bench, folder, tokenizer)
        values = bench.compare(f"data {8 * side} px {tokenizing}", plain, own)
    return {
        **values,
        "own_us_per_sample": 1e3 * values["own_ms"] / NUM_ROWS,
        "relative_error": error,
    }


def _loading_error(bench: Bench, folder: Path, tokenizer: Any) -> float:
    """Largest difference of the faces' latents, sorted, since both loaders shuffle."""
    dataset = bench.reference.PlainLatents(folder / "files", tokenizer, dropout=0.0)
    (theirs,) = bench.reference.plain_loader(dataset, NUM_ROWS)
    (ours,) = own_loader(folder / "store", NUM_ROWS, NUM_ROWS, dropout=0.0)
    images = (ours["latents"].float(), theirs["image_latent"])
    return relative_error(*(torch.tensor(sorted(x.flatten(1).tolist())) for x in images))
