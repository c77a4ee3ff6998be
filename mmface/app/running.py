"""Runs of the model for the page: progress, previews, a stop that works, and tidy files."""

import math
import queue
import secrets
import shutil
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32
from PIL import Image
from torch import Tensor

from mmface.app.guard import FileQuota
from mmface.app.turns import Turns
from mmface.conditions import Parser, condition_kind, condition_kinds, kinds_in_words
from mmface.core.command_line import check_number, check_whole
from mmface.encoders import LatentCodec
from mmface.encoders.vae import image_pixels, to_uint8
from mmface.generation.adherence import Adherence, measure_adherence
from mmface.generation.requests import (
    PreparedRequest,
    prepare_request,
    sample_requests,
    seeds_from,
)
from mmface.generation.sample import OpenedModel, provenance_of
from mmface.generation.settings import Settings, check_text, write_pictures
from mmface.objectives.solvers import RECTIFIED_FLOW
from mmface.rendered import render_face
from mmface.sampling.pipeline import checked_strength

MAX_PICTURES = 4
MAX_STEPS = 100
MAX_GUIDANCE = 20.0
MAX_STRENGTH = 2.0
MAX_SEED = 2**32 - 1
MAX_PROMPT = 2000
MAX_RUN_BYTES = 256 * 2**20
"""Of all runs' files; the oldest runs go first."""

NUM_PREVIEWS = 8


class StoppedRunError(Exception):
    """A run was stopped by the person who asked for it."""


@dataclass(frozen=True, eq=False)
class FaceRequest:
    """What a person asks of the page.

    Guidance of None takes the model's. `image` is a picture to start from; `strength`, above 0 to
    1, is how far to go from it; `region` is the part that is made anew, None for all of it.
    """

    prompt: str
    conditions: Mapping[str, np.ndarray] = field(default_factory=dict)
    negative: str = ""
    steps: int = 25
    guidance: float | None = None
    condition_strength: float = 1.0
    seed: int = 0
    num: int = 1
    image: Image.Image | None = None
    strength: float | None = None
    region: Bool[np.ndarray, "_ _"] | None = None

    def __post_init__(self) -> None:
        """Raise ValueError unless this can be sampled, and is not too much for a shared page."""
        if not check_text("The prompt", self.prompt).strip():
            raise ValueError("The prompt is empty; say what the face should look like.")
        if (
            max(len(self.prompt), len(check_text("The negative prompt", self.negative)))
            > MAX_PROMPT
        ):
            raise ValueError(f"The prompt is longer than {MAX_PROMPT} characters; shorten it.")
        if not self.conditions:
            raise ValueError(f"There is neither {kinds_in_words(' nor ')}; give one at least.")
        check_whole("Steps", self.steps, 1, MAX_STEPS)
        check_whole("The number of pictures", self.num, 1, MAX_PICTURES)
        check_whole("Seed", self.seed, 0, MAX_SEED)
        check_number("Condition strength", self.condition_strength, 0, MAX_STRENGTH)
        if self.guidance is not None:
            check_number("Guidance", self.guidance, 0, MAX_GUIDANCE)

    @property
    def kinds(self) -> str:
        """The kinds of its conditions, in words."""
        return " and ".join(self.conditions)

    def write(self, folder: Path) -> Settings:
        """Write the conditions as files and give the request with paths relative to the folder."""
        files = {name: condition_kind(name).draw(each) for name, each in self.conditions.items()}
        start: dict[str, Any] = {}
        if self.image is not None:
            files["image"], start["image"] = self.image, "image.png"
            start["strength"] = self.strength
            if self.region is not None:
                files["region"] = Image.fromarray(self.region.astype(np.uint8) * 255)
                start["region"] = "region.png"
        for name, picture in files.items():
            picture.save(folder / f"{name}.png")
        return Settings(
            prompt=self.prompt,
            conditions={name: f"{name}.png" for name in self.conditions},
            negative=self.negative,
            steps=self.steps,
            guidance=self.guidance,
            condition_strength=self.condition_strength,
            **start,
        )


@dataclass(frozen=True, eq=False)
class StepReport:
    """How far a run is, at some steps with a rough picture of the first face."""

    done: int
    total: int
    preview: Image.Image | None


@dataclass(frozen=True, eq=False)
class FaceRun:
    """A finished run.

    Each picture has its provenance; `adherence` is None where it cannot be measured; `archive` is a
    ZIP of the pictures and the files that their provenance names.
    """

    request: FaceRequest
    pictures: tuple[Path, ...]
    seeds: tuple[int, ...]
    adherence: tuple[Adherence | None, ...]
    archive: Path


class LatentPreview:
    """Rough colours of latents by a linear map, which costs little beside a step.

    The map is fitted by least squares to a few rendered faces and their latents, so that it fits
    the VAE of any pipeline.
    """

    def __init__(self, codec: LatentCodec, num_faces: int = 6, size_px: int = 128) -> None:
        faces = [render_face(seed, size_px).image for seed in range(num_faces)]
        pixels = torch.stack([image_pixels(face) for face in faces])
        with torch.no_grad():
            latents = codec.encode(pixels).cpu()
        small = torch.nn.functional.interpolate(pixels, latents.shape[-2:], mode="area")
        known, wanted = (values.movedim(1, -1).flatten(0, -2) for values in (latents, small))
        self.channels = known.shape[1]
        known = torch.cat([known, torch.ones(len(known), 1)], dim=1)
        # A little damping: a channel that says nothing of colour must not be amplified.
        square = known.T @ known + 1e-2 * len(known) * torch.eye(known.shape[1])
        self.map = torch.linalg.solve(square, known.T @ wanted)

    def __call__(
        self, latents: Float32[Tensor, "channels height width"], size: tuple[int, int]
    ) -> Image.Image:
        """Draw latents, resized to a width and a height in pixels."""
        values = latents.detach().float().cpu().movedim(0, -1)
        colors = (values @ self.map[:-1] + self.map[-1]).movedim(-1, 0)
        return Image.fromarray(to_uint8(colors)).resize(size, Image.Resampling.BICUBIC)


class FaceMaker:
    """Makes faces for all visitors of a page, one run at a time."""

    def __init__(self, model: OpenedModel, parser: Parser, folder: Path) -> None:
        """Take over a model, a parser to measure faces with, and a folder of the page's own.

        Whoever else computes with the model's networks takes turns in `turns`.
        """
        self.model, self.parser, self.folder = model, parser, folder
        self.size: int = model.pipeline.config.image_size
        model.pipeline.set_progress_bar_config(disable=True)
        self.preview = LatentPreview(model.pipeline.codec)
        self.quota = FileQuota(folder, MAX_RUN_BYTES)
        self.turns = Turns()
        self._lock = threading.Lock()
        self._closed = False

    def truncated(self, prompt: str) -> str:
        """Give the end of a prompt that is beyond what the text encoder reads, or ""."""
        with self.turns.taken():
            return self.model.pipeline.text.truncated(prompt)

    def run(
        self,
        request: FaceRequest,
        stop: threading.Event | None = None,
        on_step: Callable[[StepReport], None] | None = None,
    ) -> FaceRun:
        """Make the faces of a request; `on_step` is called after each step.

        Setting `stop` ends the run within a step: StoppedRunError, and no files are left.
        """
        folder = self.folder / f"run_{secrets.token_hex(8)}"
        try:
            with self._lock:
                if self._closed:
                    raise StoppedRunError
                folder.mkdir(parents=True)
                settings = request.write(folder)
                prepared = prepare_request(
                    settings, self.model.pipeline, lambda _, path: folder / path, request.steps
                )
                seeds = seeds_from(request.seed, request.num)
                faces = self._sample(prepared, seeds, stop or threading.Event(), on_step)
                finished = self._finish(folder, request, prepared, seeds, faces)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self.quota.make_room(0, min_age=0)
        return finished

    def close(self) -> None:
        """Wait for the run that works, and refuse any other."""
        self._closed = True
        with self._lock:
            pass

    def stream(self, request: FaceRequest, stop: threading.Event) -> Iterator[StepReport | FaceRun]:
        """Make faces; yields a report a step, then the finished run.

        Setting `stop`, or closing the iterator, ends it within a step, as for `run`.
        """
        told: queue.SimpleQueue[StepReport | FaceRun | BaseException] = queue.SimpleQueue()

        def work() -> None:
            try:
                told.put(self.run(request, stop, told.put))
            except BaseException as error:
                told.put(error)

        worker = threading.Thread(target=work, name="mmface-run")
        worker.start()
        try:
            while True:
                each = told.get()
                if isinstance(each, BaseException):
                    raise each
                yield each
                if isinstance(each, FaceRun):
                    return
        finally:
            stop.set()
            worker.join()

    def _sample(
        self,
        prepared: PreparedRequest,
        seeds: tuple[int, ...],
        stop: threading.Event,
        on_step: Callable[[StepReport], None] | None,
    ) -> list[Image.Image]:
        settings = prepared.settings
        share = checked_strength(settings.image, settings.strength, settings.region)
        assert settings.steps is not None  # prepared settings are filled in
        total = math.ceil(share * settings.steps - 1e-9)
        every = max(1, total // NUM_PREVIEWS)
        previous: list[Tensor] = []

        def after_step(done: int, all_latents: Tensor) -> None:
            self.turns.give_way()
            if stop.is_set():
                raise StoppedRunError
            if on_step is None:
                return
            shown, latents = None, all_latents[0]
            if done % every == 0:
                ahead = self._ahead(latents, previous, total - done)
                shown = self.preview(ahead, (self.size, self.size))
            previous[:] = [latents]
            on_step(StepReport(done, total, shown))

        if stop.is_set():
            raise StoppedRunError
        pipeline = self.model.pipeline
        with self.turns.taken():
            (faces,) = sample_requests(pipeline, [prepared], [seeds], on_step_end=after_step)
        return faces

    def _ahead(self, latents: Tensor, previous: list[Tensor], steps_left: int) -> Tensor:
        """Guess the final latents: a rectified flow moves nearly straight, in equal steps."""
        if not previous or self.model.pipeline.translation.objective != RECTIFIED_FLOW:
            return latents
        return latents + steps_left * (latents - previous[0])

    def _finish(
        self,
        folder: Path,
        request: FaceRequest,
        prepared: PreparedRequest,
        seeds: tuple[int, ...],
        faces: list[Image.Image],
    ) -> FaceRun:
        provenance = provenance_of(self.model, [prepared], seeds)
        files = {folder / f"seed_{seed}.png": face for seed, face in zip(seeds, faces, strict=True)}
        write_pictures(
            {path: (face, provenance.of_picture(k)) for k, (path, face) in enumerate(files.items())}
        )
        archive = folder / f"mmface_seed_{seeds[0]}.zip"
        with zipfile.ZipFile(archive, "w") as packed:
            given = prepared.settings.paths.values()
            for path in [*files, *(folder / path for path in given)]:
                packed.write(path, path.name)
        adherence = tuple(self._measured(face, prepared.files.conditions) for face in faces)
        return FaceRun(request, tuple(files), seeds, adherence, archive)

    def _measured(
        self, face: Image.Image, conditions: Mapping[str, np.ndarray]
    ) -> Adherence | None:
        measurable = {}
        for kind in condition_kinds():
            with suppress(ValueError):
                if kind.name in conditions:
                    kind.check_measurable(conditions[kind.name])
                    measurable[kind.name] = conditions[kind.name]
        if not measurable:
            return None
        return measure_adherence(np.array(face.convert("RGB")), measurable, self.parser)
