"""Rows that are sampled as one batch, and what is told of their steps."""

import numpy as np
import pytest
from PIL import Image

from mmface.encoders.vae import to_uint8
from mmface.generation.requests import prepare_request, sample_requests
from mmface.generation.settings import Settings

SEEDS = [[1, 2], [3, 4]]


@pytest.fixture
def rows(tiny_pipeline, face_mask, tmp_path):
    Image.fromarray(face_mask).save(tmp_path / "mask.png")
    asked = [
        Settings(prompt=text, conditions={"mask": "mask.png"}, steps=3)
        for text in ("one", "another")
    ]
    return [prepare_request(each, tiny_pipeline, lambda _, path: tmp_path / path) for each in asked]


def test_each_step_is_told_with_the_latents_of_all_pictures(tiny_pipeline, rows):
    told = []
    faces = sample_requests(tiny_pipeline, rows, SEEDS, on_step_end=lambda *step: told.append(step))
    assert [number for number, _ in told] == [1, 2, 3]
    decoded = to_uint8(tiny_pipeline.codec.decode(told[-1][1]).detach())
    assert (decoded == np.array([np.array(face) for own in faces for face in own])).all()
    assert sample_requests(tiny_pipeline, rows, SEEDS) == faces


def test_what_the_callback_raises_ends_the_sampling(tiny_pipeline, rows):
    told = []

    def stop(number, latents):
        told.append(number)
        if number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample_requests(tiny_pipeline, rows, SEEDS, on_step_end=stop)
    assert told == [1, 2]
