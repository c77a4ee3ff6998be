"""What encoding faces takes: FLOPs, memory, disk and time, counted or measured."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderKLQwenImage
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmface.data.pictures import PictureSource
from mmface.encoders import VAES, LatentCodec
from mmface.processes import joined_processes

PICTURES_PER_FACE = 3
PAPER_FACES = 94_000
"""Faces that the paper trains on: 24,000 of CelebA-HQ and 70,000 of FFHQ."""
ASSUMED_FLOPS = 40e12
"""FLOP/s a device is taken to reach in a VAE's convolutions, where they cannot be measured."""
CAPTION_BYTES = 10 * 200
"""Captions of a face, where they cannot be read: the paper's ten, of 200 letters."""
LIVE_ACTIVATIONS = {"AutoencoderKL": 5, "AutoencoderKLQwenImage": 10}
"""How many activations of the first level are alive at the encoder's peak, without gradients;
counted with torch's MemTracker on fake tensors. What cuDNN takes beside them is not in it."""


def unbuilt_vae(name_or_path: str) -> nn.Module:
    """Build a VAE on the meta device, for counting.

    Args:
        name_or_path: a name in `encoders.VAES`, which needs no download, or a folder.

    Returns:
        The VAE without weights.

    Raises:
        FileNotFoundError: if it is neither.
    """
    with torch.device("meta"):
        spec = VAES.get(name_or_path)
        if spec is not None and spec.class_name == "AutoencoderKLQwenImage":
            return AutoencoderKLQwenImage()
        if spec is not None:  # the KL VAEs of the paper differ in their latents alone
            return AutoencoderKL(
                block_out_channels=(128, 256, 512, 512),
                layers_per_block=2,
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                latent_channels=spec.channels,
            )
        if not (Path(name_or_path) / "config.json").exists():
            raise FileNotFoundError(
                f"{name_or_path} is no folder of a VAE, nor one of {', '.join(VAES)}"
            )
        config = AutoencoderKL.load_config(name_or_path)
        classes = (AutoencoderKL, AutoencoderKLQwenImage)
        kinds: dict[str, Any] = {each.__name__: each for each in classes}
        return kinds[config["_class_name"]].from_config(config)


def encoder_flops(vae: Any, height: int, width: int) -> int:
    """FLOPs of encoding one picture, 2 a multiply-add; a VAE on the meta device will do."""
    frame = (1,) if isinstance(vae, AutoencoderKLQwenImage) else ()
    pixels = torch.empty(1, 3, *frame, height, width, device=vae.device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        vae.encode(pixels)
    return counter.get_total_flops()


def encoder_bytes(vae: Any, num_pictures: int, height: int, width: int, dtype: torch.dtype) -> int:
    """Peak memory of encoding a batch: the weights, and the first level's activations."""
    weights = sum(parameter.numel() for parameter in vae.parameters())
    config = vae.config
    channels = config["base_dim"] if "base_dim" in config else config["block_out_channels"][0]
    activation = num_pictures * channels * height * width
    return (weights + LIVE_ACTIVATIONS[type(vae).__name__] * activation) * dtype.itemsize


@dataclass(frozen=True)
class EncodingSpeed:
    """How fast faces are encoded, each with its image, mask and sketch.

    Attributes:
        batched: faces per second in batches of all kinds.
        one_at_a_time: faces per second in a loop over single pictures.
    """

    batched: float
    one_at_a_time: float

    def __str__(self) -> str:
        """Say both, and their ratio."""
        return (
            f"{self.batched:.2f} faces/s batched, {self.one_at_a_time:.2f} faces/s one picture at "
            f"a time, ratio {self.batched / self.one_at_a_time:.2f}"
        )


def encoding_speed(
    codec: LatentCodec, height: int, width: int, batch_size: int, num_batches: int = 3
) -> EncodingSpeed:
    """Measure the VAE on noise, on the device where it is; reading pictures is not in it.

    Args:
        codec: the codec; its device and dtype are what is measured.
        height: of the pictures in pixels.
        width: of the pictures in pixels.
        batch_size: faces in a batch.
        num_batches: batches to time, after one that is not; the median counts.

    Returns:
        The speeds of batches and of single pictures.
    """
    pictures = torch.rand(batch_size * PICTURES_PER_FACE, 3, height, width) * 2 - 1
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
    """What encoding a set of faces takes.

    Attributes:
        num_faces: faces.
        disk_bytes: size of the store.
        free_bytes: free on the disk where it is to be.
        flops: of encoding all faces.
        memory_bytes: peak on each device.
        seconds: of encoding, over all processes.
        notes: what was measured, and what was assumed.
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


def plan_encoding(
    pictures: PictureSource,
    vae: str,
    folder: str | Path,
    *,
    batch_size: int,
    num_processes: int,
    num_workers: int,
    bytes_per_value: int,
    num_arrays: int,
    vae_dtype: torch.dtype,
) -> EncodingPlan:
    """Count what encoding would take; what is there is measured, what is not is assumed.

    Args:
        pictures: where the faces are read from; it may be missing yet.
        vae: folder or name of the VAE; its weights may be missing yet.
        folder: where the store is to be.
        batch_size: faces in one pass of the VAE.
        num_processes: processes that encode together, each with a device of its own.
        num_workers: processes that read pictures for each of them.
        bytes_per_value: size of a stored number.
        num_arrays: latents stored of a face.
        vae_dtype: what the VAE computes in.

    Returns:
        The plan.

    Raises:
        FileNotFoundError: if the VAE is neither a folder nor a name that is known.
    """
    height, width = pictures.size()
    num_faces, caption_bytes, notes = _faces_of(pictures, num_workers)
    counted = unbuilt_vae(vae)
    codec = LatentCodec(counted)
    values = codec.channels * height * width // codec.downscale_factor**2
    flops = float(num_faces * PICTURES_PER_FACE * encoder_flops(counted, height, width))
    speed, note = _measured_speed(vae, height, width, batch_size, vae_dtype)
    seconds = num_faces / speed if speed else flops / ASSUMED_FLOPS
    existing = next(
        p for p in (Path(folder).resolve(), *Path(folder).resolve().parents) if p.exists()
    )
    return EncodingPlan(
        num_faces=num_faces,
        disk_bytes=num_faces * (num_arrays * values * bytes_per_value + caption_bytes),
        free_bytes=shutil.disk_usage(existing).free,
        flops=flops,
        memory_bytes=encoder_bytes(
            counted, batch_size * PICTURES_PER_FACE, height, width, vae_dtype
        ),
        seconds=seconds / num_processes,
        notes=(*notes, note, f"{num_processes} process(es), a device each"),
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
    vae: str, height: int, width: int, batch_size: int, vae_dtype: torch.dtype
) -> tuple[float | None, str]:
    """Faces per second of the VAE on this machine, or None if it is not at hand."""
    try:
        codec = LatentCodec.from_pretrained(vae, torch_dtype=vae_dtype)
    except OSError:
        return None, (
            f"the VAE {vae} is not here: time from its FLOPs, assumed to pass at "
            f"{ASSUMED_FLOPS / 1e12:.0f} TFLOP/s a device"
        )
    device = joined_processes().device
    codec.vae.to(device)
    speed = encoding_speed(codec, height, width, batch_size)
    return speed.batched, f"measured on this {device.type}: {speed}"
