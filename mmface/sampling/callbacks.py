"""What a call's callback sees of the texts and may replace, as diffusers' own callbacks do."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmface.encoders import TextFeatures
from mmface.sampling.diffusers_members import TEXT_TENSORS, DiffusersMembers
from mmface.sampling.guidance import Composition, Prompt


class CallbackTexts:
    """The texts of a call's pictures as the tensors named in `TEXT_TENSORS`.

    As in Stable Diffusion 3, the prompts' tensors have the negative ones first while text guides.
    """

    def __init__(self, pipeline: DiffusersMembers) -> None:
        self.pipeline = pipeline
        self._of: Composition | None = None
        self._texts: list[tuple[Prompt, Prompt]] = []
        self._tensors: dict[str, Tensor] = {}
        self._versions: dict[str, int] = {}

    def shown(self, composition: Composition) -> Mapping[str, Tensor]:
        """Give the tensors by name; the same ones until the texts or the guidance change."""
        if composition is not self._of:
            self._of, each = composition, composition.num_images_per_prompt
            self._texts = [asked[:2] for asked in composition.prompts for _ in range(each)]
            positive, negative = map(self.pipeline.encode_texts, zip(*self._texts, strict=True))
            both = TextFeatures(*map(torch.cat, zip(negative, positive, strict=True)))
            first = both if self.pipeline.do_classifier_free_guidance else positive
            tensors = (first.tokens, negative.tokens, first.pooled, negative.pooled)
            self._tensors = dict(zip(TEXT_TENSORS, tensors, strict=True))
        self._versions = {name: tensor._version for name, tensor in self._tensors.items()}
        return self._tensors

    def changed(
        self, returned: Mapping[str, Any], composition: Composition
    ) -> list[tuple[Prompt, Prompt]]:
        """Give each picture's prompt and negative one, if a callback replaced or changed some.

        ValueError if there are not as many as pictures.
        """
        now = {name: returned.get(name, tensor) for name, tensor in self._tensors.items()}
        new = {
            name
            for name, tensor in self._tensors.items()
            if now[name] is not tensor or tensor._version != self._versions[name]
        }
        sides = [[text[side] for text in self._texts] for side in (0, 1)]
        count = len(self._texts)
        for side in (0, 1):
            names = TEXT_TENSORS[side], TEXT_TENSORS[side + 2]
            if not new & set(names):
                continue
            found: list[Prompt] = []
            found += self.pipeline.encoded_prompts(now[names[0]], now[names[1]], *names)
            if side == 0 and len(found) == 2 * count:
                sides[1], found = found[:count], found[count:]
            found = found * count if len(found) == 1 else found
            if len(found) != count:
                raise ValueError(
                    f"A callback gave {names[0]} of {len(found)} prompts for {count} pictures; "
                    "give one, one a picture, or the negative ones first and then the others."
                )
            sides[side] = found
        return list(zip(*sides, strict=True)) if new else []
