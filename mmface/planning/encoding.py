"""What encoding faces takes: FLOPs, memory, disk and time, counted or measured."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmface.core.processes import joined_processes
from mmface.core.sources import dtype_named
from mmface.data.latents import LatentEncoding
from mmface.data.pictures import PictureSource
from mmface.encoders import LatentCodec, meta_vae
from mmface.encoders.encoder import peak_bytes

PAPER_FACES = 94_000
"""Faces that the paper trains on: 24,000 of CelebA-HQ and 70,000 of FFHQ."""
ASSUMED_FLOPS = 40e12
"""FLOP/s a device is taken to reach in a VAE's convolutions, where they cannot be measured."""
CAPTION_BYTES = 10 * 200
"""Captions of a face, where they cannot be read: the paper's ten, of 200 letters."""


@dataclass(frozen=True)
class EncodingSpeed:
    """Faces per second, each with all its pictures: in batches, and one picture at a time."""

    batched: float
    one_at_a_time: float

    def __str__(self) -> str:
        """Say both, and their ratio."""
        return (
            f"{self.batched:.2f} faces/s batched, {self.one_at_a_time:.2f} faces/s one picture at "
            f"a time, ratio {self.batched / self.one_at_a_time:.2f}"
        )


def encoding_speed(
    codec: LatentCodec,
    size: tuple[int, int],
    batch_size: int,
    pictures_per_face: int,
    num_batches: int = 3,
) -> EncodingSpeed:
    """Measure the VAE on noise, on its own device; reading pictures is not included.

    The median of `num_batches` counts, after one that is not timed; `size` is height and width.
    """
    pictures = torch.rand(batch_size * pictures_per_face, 3, *size) * 2 - 1
    batched = _median_seconds(lambda: codec.encode(pictures).cpu(), num_batches)

    def singly() -> None:
        for picture in pictures.split(1):
            codec.encode(picture).cpu()

    single = _median_seconds(singly, num_batches)
    return EncodingSpeed(batch_size / batched, batch_size / single)


@torch.no_grad()
def _median_seconds(work: Callable[[], object], times: int) -> float:
    work()
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[len(seconds) // 2]


@dataclass(frozen=True)
class EncodingPlan:
    """What encoding a set of faces takes; memory is the peak of each device.

    `seconds` is over all processes; `notes` says what was measured and what assumed.
    """

    num_faces: int
    disk_bytes: int
    free_bytes: int
    flops: float
    memory_bytes: int
    seconds: float
    notes: tuple[str, ...]

    def __str__(self) -> str:
        """Say it as a table, with the notes below."""
        short = " (NOT ENOUGH)" if self.free_bytes < self.disk_bytes else ""
        rows = [
            ("faces", f"{self.num_faces:,}"),
            ("disk", f"{self.disk_bytes / 1e9:.2f} GB, {self.free_bytes / 1e9:.1f} GB free{short}"),
            ("memory a device", f"{self.memory_bytes / 1e9:.2f} GB"),
            ("FLOPs", f"{self.flops:.3e}"),
            ("time", f"{self.seconds / 3600:.2f} h"),
        ]
        table = [f"{name:<16} {value}" for name, value in rows]
        return "\n".join([*table, *(f"note: {note}" for note in self.notes)])


def plan_precompute(job: Any, folder: str | Path, num_processes: int = 1) -> EncodingPlan | str:
    """Say what a job of `scripts/precompute.py` would take, each process with its own device.

    A job that encodes nothing says it itself, by its `plan`.
    """
    if isinstance(job, LatentEncoding):
        return plan_encoding(job, folder, num_processes)
    return job.plan(folder, num_processes)


def plan_encoding(job: LatentEncoding, folder: str | Path, num_processes: int = 1) -> EncodingPlan:
    """Count what encoding would take; what is there is measured, what is not is assumed."""
    pictures, batch_size = job.pictures, job.batch_size
    codec, encoders = LatentCodec(meta_vae(str(job.vae)), str(job.vae)), list(job.encoders.values())
    vae_dtype = dtype_named(job.vae_dtype)
    bytes_per_face = sum(array.num_bytes for array in job.arrays(codec).values())
    size = pictures.size()
    encoded = " and ".join(["of a face: its photo", *(kind.name for kind in pictures.kinds())])
    num_faces, caption_bytes, notes = _faces_of(pictures, job.num_workers)
    pictures_per_face = 1 + len(pictures.kinds())
    other_flops = num_faces * sum(each.flops(size) for each in encoders)
    flops = float(num_faces * pictures_per_face * codec.flops(size)) + other_flops
    speed, note = _measured_speed(codec.source, size, batch_size, pictures_per_face, vae_dtype)
    seconds = num_faces / speed + other_flops / ASSUMED_FLOPS if speed else flops / ASSUMED_FLOPS
    batches = [(codec, batch_size * pictures_per_face), *((each, batch_size) for each in encoders)]
    weights = sum(peak_bytes(each, 0, size, vae_dtype) for each, _ in batches)
    activations = max(num * each.activation_bytes(size, vae_dtype) for each, num in batches)
    existing = next(
        p for p in (Path(folder).resolve(), *Path(folder).resolve().parents) if p.exists()
    )
    return EncodingPlan(
        num_faces=num_faces,
        disk_bytes=num_faces * (bytes_per_face + caption_bytes),
        free_bytes=shutil.disk_usage(existing).free,
        flops=flops,
        memory_bytes=weights + activations,
        seconds=seconds / num_processes,
        notes=(*notes, encoded, note, f"{num_processes} process(es), a device each"),
    )


def _faces_of(pictures: PictureSource, num_workers: int) -> tuple[int, int, tuple[str, ...]]:
    """Number of faces, bytes of captions each, and notes; measures how fast faces are read."""
    try:
        num_faces = len(pictures)
    except FileNotFoundError as error:
        note = f"{error} Assumed: the paper's {PAPER_FACES:,} faces."
        return PAPER_FACES, CAPTION_BYTES, (note,)
    readable, caption_bytes = 0, 0
    start = time.perf_counter()
    for item in range(0, num_faces, max(1, num_faces // 8)):
        try:
            face = pictures.face(item)
        except (ValueError, FileNotFoundError):
            continue
        readable += 1
        caption_bytes += sum(len(caption.encode()) for caption in face.captions)
    seconds = time.perf_counter() - start
    if not readable:
        return num_faces, CAPTION_BYTES, ("none of the faces that were tried can be read",)
    note = (
        f"reading pictures, measured: {readable / seconds:.1f} faces/s in one process, "
        f"job.num_workers={num_workers}"
    )
    return num_faces, caption_bytes // readable, (note,)


def _measured_speed(
    vae: str, size: tuple[int, int], batch_size: int, pictures_per_face: int, vae_dtype: torch.dtype
) -> tuple[float | None, str]:
    """Faces per second of the VAE on this machine, or None if it is not at hand."""
    try:
        codec = LatentCodec.from_pretrained(vae, dtype=vae_dtype)
    except OSError:
        return None, (
            f"the VAE {vae} is not here: time from its FLOPs, assumed to pass at "
            f"{ASSUMED_FLOPS / 1e12:.0f} TFLOP/s a device"
        )
    device = joined_processes().device
    codec.vae.to(device)
    speed = encoding_speed(codec, size, batch_size, pictures_per_face)
    return speed.batched, f"measured on this {device.type}: {speed}"
