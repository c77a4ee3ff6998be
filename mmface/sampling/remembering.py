"""A pipeline that caches encoded prompts and pictures, for calls that repeat them."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from jaxtyping import Float32
from torch import Tensor

from mmface.encoders import TextFeatures
from mmface.sampling.pipeline import MMFacePipeline

Key = TypeVar("Key")
Value = TypeVar("Value")
MAX_REMEMBERED = 32


class Remembered(Generic[Key, Value]):
    """A cache of the most recently used values; counts hits and misses."""

    def __init__(self, max_values: int = MAX_REMEMBERED) -> None:
        self.max_values, self.hits, self.misses = max_values, 0, 0
        self._values: OrderedDict[Key, Value] = OrderedDict()

    def get(self, key: Key, compute: Callable[[], Value]) -> Value:
        """Return the value of a key; compute it if it is missing."""
        if key in self._values:
            self.hits += 1
        else:
            self.misses += 1
            self._values[key] = compute()
            if len(self._values) > self.max_values:
                self._values.popitem(last=False)
        self._values.move_to_end(key)
        return self._values[key]


class RememberingPipeline(MMFacePipeline):
    """A pipeline that encodes each distinct picture and prompt once.

    Each is encoded alone, so results can differ from those of an `MMFacePipeline` by rounding. Not
    for several threads at once.
    """

    @classmethod
    def sharing(cls, pipeline: MMFacePipeline) -> "RememberingPipeline":
        """Share another pipeline's networks, with a scheduler of its own."""
        config = dict(pipeline.config)
        own = {
            name: config[name] for name in ("image_size", "guidance_scale", "num_inference_steps")
        }
        parts = dict(pipeline.components)
        scheduler = parts["scheduler"]
        made = cls(**parts | {"scheduler": scheduler.from_config(scheduler.config)}, **own)
        made.set_progress_bar_config(disable=True)
        made.pictures = Remembered[bytes, Tensor]()
        made.prompts = Remembered[str, TextFeatures]()
        return made

    pictures: Remembered[bytes, Tensor]
    prompts: Remembered[str, TextFeatures]

    def _read(self, words: Sequence[str]) -> TextFeatures:
        found = [self.prompts.get(text, lambda: self.text([text])) for text in words]  # noqa: B023
        return TextFeatures(*(torch.cat(parts) for parts in zip(*found, strict=True)))

    def _encode(
        self, pixels: Float32[Tensor, "batch 3 _ _"], max_batch: int | None
    ) -> Float32[Tensor, "batch channels height width"]:
        encode = super()._encode
        found = []
        for one in pixels.split(1):
            content = one.cpu().numpy()
            key = hashlib.sha256(str(content.shape).encode() + content.tobytes()).digest()
            found.append(self.pictures.get(key, lambda: encode(one, max_batch)))  # noqa: B023
        return torch.cat(found)
