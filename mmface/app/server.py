"""Serves the page to this machine alone, with a folder of its own that goes with it."""

import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gradio as gr
from starlette.middleware import Middleware

from mmface.app.guard import FileQuota, Guard
from mmface.app.handlers import Handlers
from mmface.app.live import STUDENT, LivePainter
from mmface.app.page import MAX_WAITING, STYLE, Page, theme
from mmface.app.running import FaceMaker
from mmface.core.sources import builtin_pipelines
from mmface.encoders.face_parser import FaceParser
from mmface.generation.requests import open_parser
from mmface.generation.sample import OpenedModel, open_model, quiet
from mmface.generation.settings import ModelChoice
from mmface.sampling.pipeline import MMFacePipeline

HOST = "127.0.0.1"
MAX_UPLOAD = "10mb"


def credentials(password: str | None) -> tuple[str, str] | None:
    """Split `USER:PASS`, or raise ValueError if one of them is missing; None is an open page."""
    if password is None:
        return None
    user, _, secret = password.partition(":")
    if not user or not secret:
        raise ValueError("The password must be USER:PASS, as in --password anna:rose-garden-7.")
    return user, secret


@contextmanager
def served(
    model: OpenedModel,
    parser: FaceParser,
    port: int | None = None,
    password: str | None = None,
    live: MMFacePipeline | None = None,
) -> Iterator[str]:
    """Serve the page while the context lasts, and yield its address.

    `password` is `USER:PASS`, or None for an open page; without a port, a free one from 7860 on.
    `live` paints live; None is the model itself.
    """
    auth = credentials(password)
    with tempfile.TemporaryDirectory(prefix="mmface_page_", ignore_cleanup_errors=True) as folder:
        before = os.environ.get("GRADIO_TEMP_DIR")
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder) / "cache")
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        blocks: gr.Blocks | None = None
        handlers: Handlers | None = None
        try:
            maker = FaceMaker(model, parser, Path(folder) / "runs")
            name = Path(model.choice.released or model.choice.pipeline).name
            painter = None if live is None else LivePainter(live)
            handlers = Handlers(maker, parser, painter)
            blocks = Page(handlers, name).blocks
            blocks.queue(max_size=MAX_WAITING, status_update_rate=1, api_open=False)
            quota = FileQuota(Path(folder) / "cache")
            _, address, _ = blocks.launch(
                server_name=HOST,
                server_port=port,
                auth=auth,
                max_file_size=MAX_UPLOAD,
                share=False,
                prevent_thread_lock=True,
                quiet=True,
                ssr_mode=False,
                enable_monitoring=False,
                footer_links=["api"],
                theme=theme(),
                css_paths=STYLE,
                app_kwargs={"middleware": [Middleware(Guard, quota=quota)]},
            )
            yield address
        finally:
            if blocks is not None:
                blocks.close(verbose=False)
            if handlers is not None:
                handlers.close()
            os.environ.pop("GRADIO_TEMP_DIR")
            if before is not None:
                os.environ["GRADIO_TEMP_DIR"] = before


def serve(
    pipeline: str,
    released: str | None,
    checkpoint: str | None,
    parser: str,
    port: int | None,
    password: str | None,
    live_model: str | None = None,
) -> None:
    """Open a model and serve the page until a signal; the arguments are `scripts/app.py`'s."""
    credentials(password)
    quiet()
    choice = ModelChoice(pipeline=pipeline, released=released, checkpoint=checkpoint)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    is_builtin = released is None and pipeline in builtin_pipelines()
    if live_model is None and is_builtin and STUDENT in builtin_pipelines():
        live_model = STUDENT
    model = open_model(choice)
    live = None if live_model is None else open_model(ModelChoice(pipeline=live_model)).pipeline
    if live is not None and live.config.image_size != model.pipeline.config.image_size:
        raise ValueError(
            f"{live_model} makes pictures of {live.config.image_size} pixels, the model of "
            f"{model.pipeline.config.image_size}; choose a --live-model of the same size."
        )
    with served(model, open_parser(parser), port, password, live) as address:
        print(f"The page is at {address} (Ctrl+C ends it).", flush=True)
        threading.Event().wait()


def _end(number: int, _: object) -> None:
    """End the process by an exception, so that its folder is removed on the way out."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    sys.exit(0 if number == signal.SIGINT else 128 + number)
