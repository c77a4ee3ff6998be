"""Data for training: encoding pictures to latents, and loading latents from disk."""

import copy
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmface.benchmarks.measuring import relative_error
from mmface.benchmarks.subjects import Bench
from mmface.data.store import ArraySpec, Store, StoreSpec, write_store
from mmface.encoders import LatentCodec

ENCODED_BATCH = 8
NUM_ROWS = 256


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


def measure_loading(bench: Bench) -> None:
    """Rows of a latent store, beside one file a sample; all on the CPU, from a warm page cache."""
    for side in bench.size.sides:
        bench.report.measure(
            "data", f"{8 * side} px, {NUM_ROWS} samples", partial(_loading, bench, side)
        )


def _loading(bench: Bench, side: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as scratch:
        folder, rows = Path(scratch), latent_rows(NUM_ROWS, side)
        array = ArraySpec((16, side, side), "float16")
        arrays = dict.fromkeys(("image", "mask", "sketch"), array)
        spec = StoreSpec(NUM_ROWS, arrays, ("captions",), made_by={})
        write_store(folder / "store", spec, partial(map, lambda items: [rows[i] for i in items]))
        bench.reference.write_files(folder / "files", rows)
        store = Store(folder / "store")
        order = np.random.default_rng(1).permutation(NUM_ROWS).tolist()

        def own() -> Iterator[Any]:
            return (_sample(store, index) for index in order)

        def plain() -> Iterator[Any]:
            return bench.reference.read_files(folder / "files", order, "mask")

        def consumed(samples: Callable[[], Iterator[Any]]) -> None:
            deque(samples(), maxlen=0)  # kept together, they would cost the kernel's fresh pages

        error = max(
            max(relative_error(a, b) for a, b in zip(ours[:2], theirs[:2], strict=True))
            for ours, theirs in zip(own(), plain(), strict=True)
        )
        values = bench.compare(
            f"data {8 * side} px", partial(consumed, plain), partial(consumed, own)
        )
    return {
        **values,
        "own_us_per_sample": 1e3 * values["own_ms"] / NUM_ROWS,
        "relative_error": error,
    }


def _sample(store: Store, index: int) -> tuple[torch.Tensor, torch.Tensor, str]:
    row = store.row(index, ("image", "mask", "captions"))
    image, mask = (torch.from_numpy(row[kind]) for kind in ("image", "mask"))
    return image, mask, row["captions"][0]  # as LatentSamples gives them: the device makes floats
