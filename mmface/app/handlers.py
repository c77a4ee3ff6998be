"""What the page's buttons do. Mistakes become one sentence in the page, never a stack trace."""

import functools
import inspect
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import gradio as gr
from PIL import Image, ImageOps

from mmface.app import painting, reporting
from mmface.app.live import LivePainter, picture_url, unseen_words
from mmface.app.running import (
    MAX_GUIDANCE,
    MAX_SEED,
    MAX_STRENGTH,
    FaceMaker,
    FaceRequest,
    FaceRun,
    StoppedRunError,
)
from mmface.conditions import condition_kind, condition_kinds, doubts_of, flat_rgb
from mmface.core.command_line import check_number
from mmface.encoders.face_parser import FaceParser
from mmface.rendered.examples import read_examples

REMEMBERED_RUNS = 8
"""Runs of one visitor that can be compared."""

_CANVAS = (painting.CANVAS_PX, painting.CANVAS_PX)
_log = logging.getLogger(__name__)


@contextmanager
def _in_words() -> Iterator[None]:
    """Turn a failure into a sentence for the page; unexpected ones go to the log."""
    try:
        yield
    except gr.Error:
        raise
    except StoppedRunError:
        raise gr.Error("The run was stopped.", print_exception=False) from None
    except (ValueError, FileNotFoundError) as error:
        raise gr.Error(str(error), print_exception=False) from None
    except Exception as error:
        _log.exception("A request of the page failed.")
        raise gr.Error(
            f"The server could not do this ({type(error).__name__}); its log says more.",
            print_exception=False,
        ) from None


def told(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a handler so that its failures are sentences in the page."""
    if inspect.isgeneratorfunction(inspect.unwrap(function)):

        @functools.wraps(function)
        def stream(*args: Any, **kwargs: Any) -> Iterator[Any]:
            with _in_words():
                yield from function(*args, **kwargs)

        return stream

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with _in_words():
            return function(*args, **kwargs)

    return call


class Handlers:
    """The page's handlers, around one model for all visitors."""

    def __init__(
        self, maker: FaceMaker, parser: FaceParser, painter: LivePainter | None = None
    ) -> None:
        """Answer with a maker, a parser to measure with, and what paints live: None is the maker's.

        The painter is closed with the handlers.
        """
        self.maker, self.parser = maker, parser
        self.painter = painter or LivePainter(maker.model.pipeline, maker.turns)
        self.examples = read_examples()
        self._stops: dict[str, threading.Event] = {}

    def close(self) -> None:
        """Stop all runs, and wait until none writes files any more."""
        for stop in list(self._stops.values()):
            stop.set()
        self.painter.close()
        self.maker.close()

    @told
    def take_example(self, event: gr.SelectData) -> tuple[Any, ...]:
        """Give mode, conditions and prompt of the example that was clicked."""
        example = self.examples[int(event.index)]
        kind = condition_kind(example.kind)
        url = painting.example_value(example)
        taken = example.path if kind.name not in painting.PAINTED else url
        names = [each.name for each in condition_kinds()]
        values = [str(taken) if name == kind.name else gr.skip() for name in names]
        return kind.name, *values, example.prompt

    @told
    def upload_mask(self, path: str) -> tuple[str, str]:
        """Give an uploaded mask's canvas value, and as what it was read."""
        found = painting.read_mask(path)
        return painting.mask_url(found.labels), reporting.note_html(found.note)

    @told
    def upload_sketch(self, path: str) -> str:
        """Give an uploaded sketch's canvas value."""
        return painting.sketch_url(painting.read_sketch(path))

    @told
    def upload_photo(self, path: str, mode: str) -> tuple[Any, ...]:
        """Give canvas values of the mask and sketch of a photo, and a note."""
        labels, sketch = painting.from_photo(path, self.parser, mode)
        source = self.parser.source
        note = f"The mask was read off the photo by {source}." if labels is not None else ""
        return (
            gr.skip() if labels is None else painting.mask_url(labels),
            gr.skip() if sketch is None else painting.sketch_url(sketch),
            reporting.note_html(note),
        )

    @told
    def show_classes(self, mask: str | None) -> str:
        """Show the painted mask as the model sees it."""
        if painting.from_data_url(mask) is None:
            return ""
        try:
            size = (self.maker.size, self.maker.size)
            return reporting.legend_html(painting.painted_labels(mask, size))
        except ValueError:
            return reporting.note_html("The mask is all background.")

    @told
    def upload_start(self, path: str) -> tuple[Image.Image, str]:
        """Take an uploaded picture as start, at the model's size and as a backdrop to paint on."""
        picture = Image.fromarray(flat_rgb(painting.open_upload(path), "white"))
        size = (self.maker.size, self.maker.size)
        return self._start(ImageOps.fit(picture, size, Image.Resampling.LANCZOS))

    @told
    def start_from_face(self, runs: list[FaceRun], place: int) -> tuple[Image.Image, str]:
        """Take the chosen face of the newest run as start."""
        if not runs:
            raise ValueError("There is no face yet: generate one, or upload a picture.")
        pictures = runs[-1].pictures
        return self._start(Image.open(pictures[min(place, len(pictures) - 1)]).convert("RGB"))

    def _start(self, picture: Image.Image) -> tuple[Image.Image, str]:
        shown = picture.resize(_CANVAS, Image.Resampling.BICUBIC)
        return picture, "backdrop:" + painting.to_data_url(shown)

    def request(
        self,
        mode: str,
        given: Mapping[str, str | None],
        values: dict[str, Any],
        start: Image.Image | None,
        region: str | None,
    ) -> FaceRequest:
        """Make a request of the controls' values; ValueError for an empty canvas or a bad number.

        `mode` is a kind of condition, or `both`; `given` has each kind's canvas or uploaded file;
        `values` are further fields of `FaceRequest`.
        """
        size = (self.maker.size, self.maker.size)
        names = painting.kinds_of(mode)
        return FaceRequest(
            conditions={name: painting.given_condition(name, given[name], size) for name in names},
            image=start,
            region=None if start is None else painting.painted_region(region),
            **values,
        )

    def live(
        self,
        mode: str,
        given: Mapping[str, str | None],
        prompt: str,
        condition_strength: Any,
        seed: Any,
        visitor: str,
    ) -> tuple[Any, str]:
        """Give a live face of the controls' values, as a data URL, and a note on it.

        A visitor's older wish is dropped: its picture stays as it was. An empty canvas is a note,
        since it is one on the way to a painting.
        """
        try:
            numbers = _numbers(1, None, condition_strength, 0 if seed is None else seed, 1)
            values = numbers | {"prompt": prompt}
            wanted = self.request(mode, given, values, None, None)
            face = self.painter.paint(wanted, visitor)
        except StoppedRunError:
            return gr.skip(), gr.skip()
        except ValueError as error:
            return gr.skip(), reporting.note_html(str(error))
        except Exception:
            _log.exception("A live face failed.")
            return gr.skip(), reporting.note_html("The server could not paint this; see its log.")
        unseen = unseen_words(prompt, self.painter.pipeline.tokenizer)
        return picture_url(face.picture), reporting.live_html(face.compute_ms, unseen)

    @told
    def generate(
        self,
        mode: str,
        given: Mapping[str, str | None],
        prompt: str,
        negative: str,
        numbers: tuple[Any, ...],
        start: tuple[Image.Image | None, float, str | None],
        runs: list[FaceRun],
        request: gr.Request,
    ) -> Iterator[dict[str, Any]]:
        """Run the model, and yield values of the page's parts, by name, at each step.

        `numbers` are steps, guidance, condition strength, pictures, seed, and how to seed; `start`
        is the picture to start from or None, how far to go, and the region canvas's value; `runs`
        are the visitor's earlier ones.
        """
        steps, guidance, condition_strength, num, seed, seeding = numbers
        if seeding == "random":
            seed = secrets.randbelow(MAX_SEED)
        values = {
            "prompt": prompt,
            "negative": negative,
            "strength": start[1] if start[0] is not None else None,
        } | _numbers(steps, guidance, condition_strength, 0 if seed is None else seed, num)
        wanted = self.request(mode, given, values, start[0], start[2])
        if cut := self.maker.truncated(prompt):
            gr.Warning(f"The prompt is too long; the model does not receive its end: {cut}")
        for name, doubt in doubts_of(wanted.conditions, prompt or ""):
            gr.Warning(f"The {name}: {doubt}.")
        preview, started = "", 0.0
        yield {
            "status": reporting.note_html("Starting ..."),
            "cancel": gr.update(interactive=True),
        }
        with self._stoppable(request) as stop:
            for each in self.maker.stream(wanted, stop):
                if isinstance(each, FaceRun):
                    yield self._finished(each, [*runs, each][-REMEMBERED_RUNS:])
                    return
                if each.preview is not None:
                    preview = painting.to_data_url(each.preview)
                started = started if each.done > 1 else time.monotonic()
                pace = (time.monotonic() - started) / max(1, each.done - 1)
                left = pace * (each.total - each.done) if each.done > 1 else None
                yield {"status": reporting.progress_html(each, preview, left)}

    def _finished(self, run: FaceRun, runs: list[FaceRun]) -> dict[str, Any]:
        titles = [(reporting.run_title(k + 1, each), k) for k, each in enumerate(runs)]
        seeds = ", ".join(map(str, run.seeds))
        return {
            "status": reporting.note_html(f"Done: seed {seeds}. Each PNG says how it was made."),
            "gallery": [
                (str(path), f"seed {seed}")
                for path, seed in zip(run.pictures, run.seeds, strict=True)
            ],
            "report": reporting.adherence_html(run, 0, self.parser.source),
            "runs": runs,
            "chosen": 0,
            "cancel": gr.update(interactive=False),
            "seed": run.seeds[0],
            "download": gr.update(value=str(run.archive), interactive=True),
            "left": gr.update(choices=titles, value=max(0, len(runs) - 2)),
            "right": gr.update(choices=titles, value=len(runs) - 1),
        }

    @contextmanager
    def _stoppable(self, request: gr.Request) -> Iterator[threading.Event]:
        """Let a visitor stop the run inside."""
        stop, visitor = threading.Event(), str(request.session_hash)
        self._stops[visitor] = stop
        try:
            yield stop
        finally:
            self._stops.pop(visitor, None)

    def cancel(self, request: gr.Request) -> str:
        """Stop the visitor's run within a step; one that is still waiting leaves the queue."""
        stop = self._stops.get(str(request.session_hash))
        if stop is None:
            return reporting.note_html("Nothing of yours is running.")
        stop.set()
        return reporting.note_html("Cancelled.")

    def leave(self, request: gr.Request) -> None:
        """Stop the run of a visitor who closed the page."""
        if stop := self._stops.get(str(request.session_hash)):
            stop.set()

    @told
    def choose_face(self, runs: list[FaceRun], event: gr.SelectData) -> tuple[int, str]:
        """Show how the face that was clicked follows its conditions."""
        place = int(event.index)
        if not runs or place >= len(runs[-1].pictures):
            return 0, ""
        return place, reporting.adherence_html(runs[-1], place, self.parser.source)

    @told
    def compare(
        self, runs: list[FaceRun], left: int | None, right: int | None
    ) -> tuple[list[str], list[str], str]:
        """Show two runs side by side, and what was asked for differently."""
        if left is None or right is None or not max(left, right) < len(runs):
            raise ValueError("There are no two runs to compare yet; generate some faces first.")
        one, other = runs[left], runs[right]
        for run in (one, other):
            if not all(path.exists() for path in run.pictures):
                raise ValueError("The pictures of that run were cleaned away; generate them anew.")
        return (
            [str(path) for path in one.pictures],
            [str(path) for path in other.pictures],
            reporting.differences_html(one.request, other.request),
        )

    @told
    def sample(
        self,
        prompt: str,
        files: Mapping[str, str | None],
        negative: str,
        steps: Any,
        guidance: Any,
        condition_strength: Any,
        seed: Any,
        num: Any,
        request: gr.Request,
    ) -> tuple[list[str], list[dict[str, Any] | None]]:
        """Sample faces from a mask, a sketch or another condition plus a prompt.

        Numbers come as a caller wrote them, of any type, and are checked here.

        Args:
            prompt: What the face should look like.
            files: Of each kind of condition, its file or None.
            negative: What the face should not look like.
            steps: Sampling steps, 1 to 100.
            guidance: Guidance scale on the prompt, 0 to 20; None takes the model's.
            condition_strength: How strongly the conditions bind, 0 to 2.
            seed: Seed of the first picture; the next ones follow it.
            num: Number of pictures, 1 to 4.
            request: Who asks.

        Returns:
            The PNG files, and how each follows its conditions.
        """
        size = (self.maker.size, self.maker.size)
        wanted = FaceRequest(
            prompt=prompt,
            conditions={
                name: painting.uploaded_condition(name, path, size)
                for name, path in files.items()
                if path is not None
            },
            negative=negative,
            **_numbers(steps, guidance, condition_strength, seed, num),
        )
        with self._stoppable(request) as stop:
            run = self.maker.run(wanted, stop)
        found = [None if each is None else each.to_json() for each in run.adherence]
        return [str(path) for path in run.pictures], found


def _numbers(
    steps: Any, guidance: Any, condition_strength: Any, seed: Any, num: Any
) -> dict[str, Any]:
    """Check numbers that came over the wire, of any type; whole ones may be written as 7.0."""
    check_number("Condition strength", condition_strength, 0, MAX_STRENGTH)
    if guidance is not None:
        check_number("Guidance", guidance, 0, MAX_GUIDANCE)
    whole = {"Steps": steps, "Seed": seed, "The number of pictures": num}
    for name, value in whole.items():
        check_number(name, value, 0)
        if value != int(value):
            raise ValueError(f"{name} must be a whole number, got {value!r:.60}.")
    return {
        "steps": int(steps),
        "guidance": guidance,
        "condition_strength": condition_strength,
        "seed": int(seed),
        "num": int(num),
    }
