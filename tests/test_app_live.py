"""Live painting: the newest wish wins, nothing is encoded twice, one thread, odd calls."""

import threading
import time
from typing import Any

import numpy as np
import pytest
import torch

from mmface import builtin
from mmface.app import handlers as page_handlers
from mmface.app import painting
from mmface.app.live import LivePainter, unseen_words
from mmface.app.running import FaceMaker, FaceRequest, StoppedRunError
from mmface.conditions import load_mask
from mmface.encoders import TextEncoder
from mmface.encoders.face_parser import FaceParser
from mmface.generation.sample import OpenedModel
from mmface.generation.settings import ModelChoice

PROMPT = "a woman with red hair"


@pytest.fixture
def painter(tiny_pipeline):
    painter = LivePainter(tiny_pipeline)
    yield painter
    painter.close()


@pytest.fixture
def wish(face_labels):
    small = load_mask(face_labels, (32, 32)).labels

    def wish(prompt=PROMPT, **changes) -> FaceRequest:
        settings: dict[str, Any] = {"conditions": {"mask": small}, "seed": 5} | changes
        return FaceRequest(prompt, **settings)

    return wish


def test_a_live_face_is_the_pipelines_in_one_unguided_step(painter, wish, tiny_pipeline):
    found = painter.paint(wish()).picture
    wanted = tiny_pipeline(
        PROMPT, wish().conditions["mask"], num_inference_steps=1, guidance_scale=1.0, seed=5
    ).images[0]
    assert abs(np.array(found, int) - np.array(wanted, int)).max() <= 1


def test_a_model_of_few_steps_paints_by_its_own(tiny_pipeline):
    student = type(tiny_pipeline)(
        **tiny_pipeline.components, image_size=32, guidance_scale=1.5, num_inference_steps=2
    )
    painter = LivePainter(student)
    assert (painter.steps, painter.guidance) == (2, 1.5)
    painter.close()


def test_a_changed_word_encodes_no_mask_and_a_changed_mask_no_text(painter, wish):
    pipeline = painter.pipeline
    painter.paint(wish())
    painter.paint(wish("a man"))
    assert (pipeline.pictures.misses, pipeline.prompts.misses) == (1, 2)
    other = wish().conditions["mask"][::-1].copy()
    painter.paint(wish("a man", conditions={"mask": other}))
    assert (pipeline.pictures.misses, pipeline.prompts.misses) == (2, 2)
    painter.paint(wish(conditions={"mask": wish().conditions["mask"].copy()}))
    assert (pipeline.pictures.misses, pipeline.prompts.misses) == (2, 2)


def test_of_a_visitors_wishes_only_the_newest_is_painted(painter, wish):
    begun, go_on, told = threading.Event(), threading.Event(), {}
    call = painter.pipeline.transformer.global_condition

    def slow(*values):
        begun.set()
        go_on.wait(20)
        return call(*values)

    def ask(name, visitor="one"):
        try:
            told[name] = painter.paint(wish(name), visitor)
        except StoppedRunError:
            told[name] = None

    def start(name, *visitor):
        thread = threading.Thread(target=ask, args=(name, *visitor))
        thread.start()
        return thread

    painter.pipeline.transformer.global_condition = slow
    try:
        threads = [start("running")]
        assert begun.wait(20)
        threads.append(start("other", "two"))
        for name in ("waiting", "newest"):
            threads.append(start(name))
            while painter._newest["one"] < len(threads) - 1:
                pass
        go_on.set()
        for thread in threads:
            thread.join(20)
    finally:
        del painter.pipeline.transformer.global_condition
    assert told["running"] is None
    assert told["waiting"] is None
    assert told["newest"] is not None
    assert told["other"] is not None


@pytest.mark.slow
def test_a_run_and_live_faces_compute_in_turns(tiny_pipeline, tmp_path, wish, monkeypatch):
    """Never two threads in the networks, and a live face waits for a step, not for a run."""
    maker = FaceMaker(OpenedModel(tiny_pipeline, ModelChoice(), ""), lambda _: [], tmp_path)
    monkeypatch.setattr(maker, "_measured", lambda *_: None)
    painter = LivePainter(tiny_pipeline, maker.turns)
    alone = np.array(painter.paint(wish("a man")).picture)
    inside, most, order = [], [], list[str]()
    call = tiny_pipeline.transformer.denoise

    def watched(*values):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.002)
        result = call(*values)
        inside.pop()
        return result

    def on_step(_):
        order.append("step")
        if len(order) == 2:
            painting = [threading.Thread(target=paint, args=(str(k),)) for k in range(3)]
            threads.extend(painting)
            for each in painting:
                each.start()
            while maker.turns._arrived - maker.turns._served < 2:
                pass

    def paint(visitor):
        found.append(painter.paint(wish("a man"), visitor).picture)
        order.append("live")

    threads, found = list[threading.Thread](), list[Any]()
    monkeypatch.setitem(vars(tiny_pipeline.transformer), "denoise", watched)
    finished = maker.run(wish(steps=20, guidance=1.0), on_step=on_step)
    for each in threads:
        each.join(20)
    assert max(most) == 1
    assert order.count("step") == 20
    assert order.index("live") < 10
    assert len(finished.pictures) == 1
    assert all((np.array(each) == alone).all() for each in found)
    assert len(found) == 3
    painter.close()


def test_one_thread_computes_and_the_others_keep_theirs(tiny_pipeline):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        painter = LivePainter(tiny_pipeline)
        assert torch.get_num_threads() == 2
        assert painter._worker.submit(torch.get_num_threads).result() == 1
        painter.close()
    finally:
        torch.set_num_threads(before)


def test_a_closed_painter_stops(tiny_pipeline, wish):
    painter = LivePainter(tiny_pipeline)
    painter.close()
    with pytest.raises(StoppedRunError):
        painter.paint(wish())


def test_words_that_no_caption_has_are_named():
    tokenizer = TextEncoder.from_pretrained(builtin("tiny-flow")).tokenizer
    assert unseen_words("A smiling woman with long, wavy red hair", tokenizer) == []
    assert unseen_words("a TATTOOED woman, tattooed", tokenizer) == ["tattooed"]


@pytest.mark.slow
def test_odd_live_calls_are_a_sentence(tiny_pipeline, tmp_path, face_mask):
    model = OpenedModel(tiny_pipeline, ModelChoice(), "")
    parser = FaceParser.from_pretrained("tiny-parser")
    handlers = page_handlers.Handlers(FaceMaker(model, parser, tmp_path), parser)
    good = painting.mask_url(load_mask(face_mask, (512, 512)).labels)

    def live(mask=good, prompt=PROMPT, strength=1, seed=0):
        return handlers.live("mask", {"mask": mask, "sketch": None}, prompt, strength, seed, "x")

    assert live()[0].startswith("data:image/png;base64,")
    for odd, words in (
        ({"strength": float("nan")}, "Condition strength must be"),
        ({"seed": 1.5}, "whole number"),
        ({"mask": None}, "mask is empty"),
        ({"mask": "file:///etc/passwd"}, "reload the page"),
        ({"prompt": "a" * 3000}, "longer than 2000"),
        ({"prompt": " "}, "prompt is empty"),
    ):
        picture, note = live(**odd)
        assert not isinstance(picture, str)
        assert words in note
    handlers.close()
