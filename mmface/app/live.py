"""Live painting: a rough face for each change, the newest first, on a thread of its own."""

import base64
import io
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPTokenizer

from mmface.app.running import FaceRequest, StoppedRunError
from mmface.app.turns import Turns
from mmface.conditions import CONTROL_SUFFIX
from mmface.sampling.guidance import ConditionControl, Guidance
from mmface.sampling.pipeline import MMFacePipeline
from mmface.sampling.remembering import RememberingPipeline

STUDENT = "tiny-flow-live"
"""The built-in model that paints live where there is one."""

MAX_LIVE_STEPS = 8
"""A model that recommends more steps is not made for few: it paints live by one, unguided."""

MAX_OWN_WORDS = 8192
"""A tokenizer with more words has seen all of English, one with fewer only its own captions."""

MAX_VISITORS = 256


@dataclass(frozen=True, eq=False)
class LiveFace:
    """A live face, and how long its computation took in milliseconds."""

    picture: Image.Image
    compute_ms: float


class LivePainter:
    """Paints one face at a time; of each visitor's wishes only the newest is worth its time.

    It computes on one thread: with more, a busy program beside it would hold all of them up.
    """

    def __init__(self, pipeline: MMFacePipeline, turns: Turns | None = None) -> None:
        """Paint by a pipeline; `turns` are those of its networks, None if nobody else uses them."""
        self.turns = turns or Turns()
        self.pipeline = RememberingPipeline.sharing(pipeline)
        config = pipeline.config
        is_student = config.num_inference_steps <= MAX_LIVE_STEPS
        self.steps: int = config.num_inference_steps if is_student else 1
        self.guidance: float = config.guidance_scale if is_student else 1.0
        self._newest: dict[str, int] = {}
        self._lock = threading.Lock()
        threads = torch.get_num_threads()
        self._worker = ThreadPoolExecutor(1, "mmface-live")
        self._worker.submit(_use_one_thread).result()
        torch.set_num_threads(threads)  # of all other threads

    def paint(self, request: FaceRequest, visitor: str = "") -> LiveFace:
        """Paint a request's first face; its steps and guidance are the painter's own.

        StoppedRunError as soon as the visitor has a newer wish.
        """
        with self._lock:
            number = self._newest.pop(visitor, 0) + 1
            self._newest[visitor] = number
            while len(self._newest) > MAX_VISITORS:
                self._newest.pop(next(iter(self._newest)))
        try:
            return self._worker.submit(self._paint, request, visitor, number).result()
        except RuntimeError as error:
            if "shutdown" in str(error):
                raise StoppedRunError from None
            raise

    def close(self) -> None:
        """Stop what is painted, and paint nothing more."""
        with self._lock:
            self._newest.clear()
        self._worker.shutdown()

    def _paint(self, request: FaceRequest, visitor: str, number: int) -> LiveFace:
        def check(*_: object) -> dict[str, Tensor]:
            if self._newest.get(visitor) != number:
                raise StoppedRunError
            return {}

        control = ConditionControl(request.condition_strength)
        given: dict[str, Any] = dict(request.conditions)
        given |= {name + CONTROL_SUFFIX: control for name in request.conditions}
        with self.turns.taken():
            check()
            started = time.perf_counter()
            output = self.pipeline(
                request.prompt,
                negative_prompt=request.negative,
                num_inference_steps=self.steps,
                guidance=Guidance(self.guidance),
                seed=request.seed,
                callback_on_step_end=lambda *_: check(),
                **given,
            )
            took = 1000 * (time.perf_counter() - started)
        return LiveFace(cast(Image.Image, output.images[0]), took)


def _use_one_thread() -> None:
    torch.get_num_threads()  # sets this thread up, which would undo a number set before
    torch.set_num_threads(1)


def unseen_words(prompt: str, tokenizer: CLIPTokenizer) -> list[str]:
    """List the words of a prompt that a model has not seen in its captions, as far as can be told.

    A small tokenizer was learnt from the captions and holds their words whole; a word that it
    spells in pieces was in none, or in very few. A large one tells nothing.
    """
    if len(tokenizer) > MAX_OWN_WORDS:
        return []
    words = dict.fromkeys(re.findall(r"[^\W\d_]+", prompt.lower()))
    vocabulary = tokenizer.get_vocab()
    return [word for word in words if f"{word}</w>" not in vocabulary]


def picture_url(picture: Image.Image) -> str:
    """Write a picture as a PNG data URL, quickly rather than small."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
