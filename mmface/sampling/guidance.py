"""Guidance: how predictions with and without text and conditions are combined in a step.

With a text x (the prompt t, or the negative prompt n) and a condition c (or zeros, as in training
with condition dropout), the model predicts e(x, c). A call combines such predictions linearly:

    E(x) = e(x, 0) + sum over conditions k of  S_k (e(x, c_k) - e(x, 0))
    prediction = e(n, 0) + s_c (E(n) - e(n, 0)) + s_t (E(t) - E(n))

S_k is the strength of a condition: a number, or a map over the latents if the condition binds only
in a region; it is 0 outside the condition's steps. The model itself receives what it was trained
on: one whole condition or none. Terms whose factor is 0 are not computed, so a step takes one
prediction without guidance, and two with guidance on the text alone.
"""

import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from mmface.conditions import (
    CONTROL_SUFFIX,
    AnyPicture,
    Picture,
    as_pictures,
    condition_kind,
    condition_kinds,
    kinds_in_words,
    one_each,
)
from mmface.core.command_line import check_interval, check_number, check_whole
from mmface.encoders import TextFeatures
from mmface.encoders.vae import image_pixels
from mmface.model.transformer import MMFaceDiT
from mmface.objectives.solvers import NUM_TRAIN_TIMESTEPS
from mmface.sampling.blending import VARIATION_STRENGTH, covered, load_region
from mmface.sampling.step_cache import ComputedBlocks, StepCache

Weights = Float32[Tensor, "rows 1 _ _"]
Predictions = Float32[Tensor, "rows channels height width"]
_NEGLIGIBLE = 1e-9  # what is left of 1 - s + s in floating point


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance (arXiv 2207.12598) on the text and on the condition.

    `scale` on the text and `condition_scale` (as arXiv 2211.09800) are 0 or more, 1 for none; a
    scale of None takes the model's. Both are 1 outside of `start` to `end`, fractions of the steps
    (arXiv 2404.07724). `rescale`, in [0, 1], is how far the guided prediction is brought back to
    the standard deviation of the prediction without guidance (arXiv 2305.08891, section 3.4).
    """

    scale: float | None = None
    condition_scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    rescale: float = 0.0

    def __post_init__(self) -> None:
        """Raise ValueError unless these are numbers that can be sampled with."""
        if self.scale is not None:
            check_number("guidance_scale", self.scale, 0)
        check_number("condition_scale", self.condition_scale, 0)
        check_number("guidance rescale", self.rescale, 0, 1)
        check_interval("guidance", self.start, self.end)

    @classmethod
    def merged(
        cls, scale: float | None, guidance: "Guidance | None", default_scale: float
    ) -> "Guidance":
        """Merge a scale into guidance that may have one; ValueError if both are given."""
        guidance = guidance or cls()
        if scale is not None and guidance.scale is not None:
            raise ValueError(
                f"guidance_scale is {scale} and guidance.scale {guidance.scale}; give one of them."
            )
        own = guidance.scale if scale is None else scale
        return replace(guidance, scale=default_scale if own is None else own)


@dataclass(frozen=True, eq=False)
class ConditionControl:
    """How strongly a condition binds, when and where.

    `strength` is 0 for no condition, 1 as trained, and above 1 exaggerated. The condition is left
    out before `start` and from `end` on, fractions of the steps. `region` is a picture, white where
    the condition binds; None for everywhere.
    """

    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0
    region: AnyPicture | None = None

    def __post_init__(self) -> None:
        """Raise ValueError unless these are numbers that can be sampled with."""
        check_number("condition strength", self.strength, 0)
        check_interval("condition", self.start, self.end)


@dataclass(frozen=True, eq=False, repr=False)
class EncodedPrompt:
    """A prompt that a caller encoded: the text encoder's features stand for the words."""

    pooled: Float[Tensor, " text_dim"]
    tokens: Float[Tensor, "length text_dim"]


Prompt = str | EncodedPrompt


class ConditionedPrompt(NamedTuple):
    """One prompt of a call with its negative prompt and conditions, the latter by kind."""

    prompt: Prompt
    negative_prompt: Prompt
    conditions: Mapping[str, Picture]


def conditioned_prompts(
    prompts: Sequence[Prompt],
    negative_prompt: Prompt | Sequence[Prompt | None] | None,
    conditions: Mapping[str, Any],
) -> list[ConditionedPrompt]:
    """Match each prompt of a call with its negative prompt and conditions.

    `conditions` are by kind, a picture for all prompts or one each; in lists, None marks the
    prompts without. A negative prompt of None is the empty one. ValueError if a list has another
    length, or a prompt has no condition.
    """
    count = len(prompts)
    negatives = one_each("negative_prompt", negative_prompt, count)
    columns = {name: one_each(name, as_pictures(x), count) for name, x in conditions.items()}
    found = []
    for place, (prompt, negative) in enumerate(zip(prompts, negatives, strict=True)):
        own = {
            kind.name: columns[kind.name][place]
            for kind in condition_kinds()
            if kind.name in columns and columns[kind.name][place] is not None
        }
        if not own:
            raise ValueError(
                f"The prompt {prompt!r:.200} has neither {kinds_in_words(' nor ')}; give each "
                "prompt one at least."
            )
        found.append(ConditionedPrompt(prompt, "" if negative is None else negative, own))
    return found


def distinct_pixels(
    prompts: Sequence[ConditionedPrompt], size: tuple[int, int]
) -> tuple[Float32[Tensor, "distinct 3 height width"], list[list[int]]]:
    """Load each distinct condition once, in [-1, 1]; also list the rows that each prompt has."""
    pixels: dict[tuple[str, str | int], Tensor] = {}
    keys: list[list[tuple[str, str | int]]] = []
    for prompt in prompts:
        keys.append([])
        for name, source in prompt.conditions.items():
            key = (name, str(source) if isinstance(source, str | Path) else id(source))
            keys[-1].append(key)
            if key not in pixels:
                kind = condition_kind(name)
                pixels[key] = image_pixels(kind.rgb(kind.load(source, size).values))
    order = list(pixels)
    return torch.stack(list(pixels.values())), [[order.index(key) for key in own] for own in keys]


def check_numbers(
    num_inference_steps: SupportsIndex,
    num_images_per_prompt: SupportsIndex,
    max_batch: SupportsIndex | None,
) -> None:
    """Raise ValueError unless the whole numbers of a call are ones that can be sampled with."""
    check_whole("num_inference_steps", num_inference_steps, 1, NUM_TRAIN_TIMESTEPS)
    check_whole("num_images_per_prompt", num_images_per_prompt, 1, 10_000)
    if max_batch is not None:
        check_whole("max_batch", max_batch, 1, 1_000_000)


def checked_strength(image: object | None, strength: float | None, region: object | None) -> float:
    """Give the fraction of the steps that a call runs, in (0, 1]; ValueError if it does not fit.

    Without a picture to start from it is 1, and neither a strength nor a region may be given.
    """
    if image is None:
        for name, value in (("strength", strength), ("region", region)):
            if value is not None:
                raise ValueError(f"{name} is given without an image; give the image too.")
        return 1.0
    if strength is None:
        return VARIATION_STRENGTH if region is None else 1.0
    check_number("strength", strength, 0, 1)
    if strength == 0:
        raise ValueError("strength must be above 0: at 0 the image would come back as it is.")
    return strength


def check_latents(
    latents: Tensor, shape: tuple[int, ...]
) -> Float32[Tensor, "batch channels height width"]:
    """Give the latents that stand in for a call's noise in float32; ValueError if unfit."""
    if tuple(latents.shape) != shape:
        raise ValueError(f"latents must be {list(shape)}, got {list(latents.shape)}.")
    if not torch.isfinite(latents).all():
        raise ValueError("latents hold values that are not finite.")
    return latents.float()


def picture_generators(
    seed: SupportsIndex | Sequence[SupportsIndex] | np.ndarray | None,
    generator: torch.Generator | Sequence[torch.Generator] | None,
    count: int,
    latents: Tensor | None = None,
) -> tuple[list[torch.Generator], list[int] | None]:
    """Give each picture its generator, and its seed where it has one.

    Only one of `seed` (the first picture's, or one a picture; None draws one at random),
    `generator` (one for all, or one a picture) and `latents` may be given; with latents, the
    generators are unused. ValueError if numbers do not fit `count`, or a seed is out of range.
    """
    if latents is not None:
        if seed is not None or generator is not None:
            raise ValueError("latents are the noise itself: drop them, or the seed or generator.")
        return [torch.Generator() for _ in range(count)], None
    if generator is not None:
        if seed is not None:
            raise ValueError("Both seed and generator are given; give one of them.")
        own = [generator] * count if isinstance(generator, torch.Generator) else list(generator)
        if len(own) != count:
            raise ValueError(f"{len(own)} generators are given for {count} pictures.")
        return own, None
    if seed is None:
        seed = torch.Generator().seed() % 2**32
    given = seed.tolist() if isinstance(seed, np.ndarray | Tensor) else seed
    if not isinstance(given, Sequence):
        check_whole("seed", given, 0, 2**63 - 1)
        given = range(operator.index(given), operator.index(given) + count)
    for each in given:
        check_whole("seed", each, 0, 2**63 - 1)
    seeds = [operator.index(each) for each in given]
    if len(seeds) != count:
        raise ValueError(
            f"{len(seeds)} seeds are given for {count} pictures; give one a picture, or the first."
        )
    return [torch.Generator().manual_seed(each) for each in seeds], seeds


def check_finite(name: str, values: Tensor, module: torch.nn.Module) -> None:
    """Raise ValueError if what a module computed is not finite; on the meta device nothing is."""
    if not values.is_meta and not torch.isfinite(values).all():
        dtype = str(getattr(module, "dtype", "")).removeprefix("torch.")
        remedy = "" if dtype == "float32" else f", or {dtype} is too narrow for them: take float32"
        raise ValueError(
            f"{name} are not finite (NaN or infinite): the weights are broken{remedy}. "
            "No picture is made."
        )


class Term(NamedTuple):
    """One prediction for a picture: its text and its condition."""

    prompt: Prompt
    modality: int  # index of the condition's kind
    condition: int  # row of the table of conditions; row 0 is none


@dataclass(frozen=True)
class Rows:
    """The rows of a batch that the model computes at a step, and how they are summed up.

    Each row has a picture, an index into `Composition.texts`, a condition (0 is none), and factors
    in the guided prediction and in the one without guidance. `starts` separates runs of rows in
    which every picture occurs at most once.
    """

    pictures: Int[Tensor, " rows"]
    texts: Int[Tensor, " rows"]
    conditions: Int[Tensor, " rows"]
    weights: Weights
    plain_weights: Weights
    starts: tuple[int, ...]
    rescale: float

    def combine(
        self, predictions: Predictions
    ) -> Float32[Tensor, "pictures channels height width"]:
        """Sum the rows up to one prediction for each picture, always in the same order."""
        guided = self._sum(self.weights * predictions)
        if not self.rescale:
            return guided
        plain = self._sum(self.plain_weights * predictions)
        axes = (1, 2, 3)
        ratio = plain.std(axes, keepdim=True) / guided.std(axes, keepdim=True).clamp(min=1e-12)
        return guided * (self.rescale * ratio + (1 - self.rescale))

    def _sum(self, weighted: Predictions) -> Float32[Tensor, "pictures channels height width"]:
        total = torch.zeros_like(weighted[: self.starts[1]])
        for first, last in pairwise(self.starts):
            total[self.pictures[first:last]] += weighted[first:last]
        return total


class Composition:
    """All predictions that the pictures of a call need, at any of its steps."""

    def __init__(
        self,
        prompts: Sequence[ConditionedPrompt],
        num_images_per_prompt: int,
        guidance: Guidance,
        controls: Mapping[str, ConditionControl],
        conditions: Sequence[Sequence[int]],
        size: tuple[int, int],
        downscale_factor: int,
    ) -> None:
        """Prepare the rows of a call.

        `guidance` has a scale; kinds without `controls` bind as trained; `conditions` are each
        prompt's rows in a table of latents, whose row 0 is no condition; `size` is in pixels, and
        latents are `downscale_factor` smaller. ValueError for a control of a condition that no
        prompt has, or an invalid region.
        """
        regions = {}
        given = {name: ConditionControl() for prompt in prompts for name in prompt.conditions}
        for name, control in controls.items():
            title = name + CONTROL_SUFFIX
            if name not in given:
                raise ValueError(f"{title} is given, but no {name}; give the {name} too.")
            if control.region is not None:
                region = load_region(as_pictures(control.region), size, f"The region of {title}")
                regions[name] = covered(region, downscale_factor)
        self.prompts = prompts
        self.num_images_per_prompt = num_images_per_prompt
        self.guidance = guidance
        self.controls = {**given, **controls}
        self.regions = regions
        self.conditions = conditions
        self.texts: dict[tuple[Prompt, int], int] = {}
        """Place of each prompt and modality's index that some row has; filled as rows are made."""
        self._rows: dict[tuple[bool, ...], Rows] = {}

    def changed(self, scale: float, texts: Sequence[tuple[Prompt, Prompt]] = ()) -> "Composition":
        """Give the same with another scale, and with a prompt and a negative one a picture."""
        made, each = copy(self), self.num_images_per_prompt
        made.guidance = replace(self.guidance, scale=scale)
        if texts:
            made.num_images_per_prompt = 1
            made.conditions = [self.conditions[number // each] for number in range(len(texts))]
            made.prompts = [
                self.prompts[number // each]._replace(prompt=text, negative_prompt=negative)
                for number, (text, negative) in enumerate(texts)
            ]
        made.texts, made._rows = {}, {}
        return made

    def rows(self, share: float, device: torch.device) -> Rows:
        """Return the rows of a step; `share` is the fraction of the schedule before it."""
        guided = self.guidance.start <= share < self.guidance.end
        active = {name: each.start <= share < each.end for name, each in self.controls.items()}
        key = (guided, *active.values())
        if key not in self._rows:
            self._rows[key] = self._make_rows(guided, active, device)
        return self._rows[key]

    def _make_rows(self, guided: bool, active: Mapping[str, bool], device: torch.device) -> Rows:
        each = self.num_images_per_prompt
        runs: list[list[tuple[int, Term, Tensor, Tensor]]] = []
        for number, asked in enumerate(self.prompts):
            pictures = range(number * each, (number + 1) * each)
            plain = self._of_text(asked.prompt, number, active)
            for place, (term, weight) in enumerate(self._terms(number, guided, active).items()):
                runs += [[]] if place == len(runs) else []
                plain_weight = plain.get(term, torch.zeros(1, 1))
                runs[place] += [(picture, term, weight, plain_weight) for picture in pictures]
        rows = [row for run in runs for row in run]
        starts = [sum(map(len, runs[:place])) for place in range(len(runs) + 1)]
        texts = [(term.prompt, term.modality) for _, term, _, _ in rows]

        def column(values: Sequence[int]) -> Tensor:
            return torch.tensor(values, device=device)

        def maps(weights: Sequence[Tensor]) -> Tensor:
            return torch.stack(torch.broadcast_tensors(*weights)).unsqueeze(1).to(device)

        return Rows(
            pictures=column([picture for picture, _, _, _ in rows]),
            texts=column([self.texts.setdefault(text, len(self.texts)) for text in texts]),
            conditions=column([term.condition for _, term, _, _ in rows]),
            weights=maps([weight for _, _, weight, _ in rows]),
            plain_weights=maps([weight for _, _, _, weight in rows]),
            starts=tuple(starts),
            rescale=self.guidance.rescale if guided else 0.0,
        )

    def _terms(self, number: int, guided: bool, active: Mapping[str, bool]) -> dict[Term, Tensor]:
        asked, guidance = self.prompts[number], self.guidance
        text_scale = guidance.scale if guided and guidance.scale is not None else 1.0
        condition_scale = guidance.condition_scale if guided else 1.0
        none = Term(asked.negative_prompt, _first_modality(asked), 0)
        total: dict[Term, Tensor] = {}
        for factor, terms in (
            (text_scale, self._of_text(asked.prompt, number, active)),
            (condition_scale - text_scale, self._of_text(asked.negative_prompt, number, active)),
            (1 - condition_scale, {none: torch.ones(1, 1)}),
        ):
            for term, weight in terms.items():
                total[term] = total.get(term, torch.zeros(1, 1)) + factor * weight
        # To be brought back to, the prediction without guidance is needed even at a factor of 0.
        plain = self._of_text(asked.prompt, number, active) if guidance.rescale else {}
        return {term: each for term, each in total.items() if _matters(each) or term in plain}

    def _of_text(self, text: Prompt, number: int, active: Mapping[str, bool]) -> dict[Term, Tensor]:
        """Give the terms of E(x) for the text x of a prompt, with their factors."""
        asked = self.prompts[number]
        rest, terms = torch.ones(1, 1), {}
        for name, condition in zip(asked.conditions, self.conditions[number], strict=True):
            strength = self.controls[name].strength if active[name] else 0.0
            weight = torch.full((1, 1), float(strength))
            weight = weight * self.regions[name] if name in self.regions else weight
            terms[Term(text, condition_kind(name).index, condition)] = weight
            rest = rest - weight
        terms[Term(text, _first_modality(asked), 0)] = rest
        return {term: weight for term, weight in terms.items() if _matters(weight)}


def _first_modality(asked: ConditionedPrompt) -> int:
    return condition_kind(next(iter(asked.conditions))).index


def _matters(weight: Float[Tensor, "_ _"]) -> bool:
    return bool(weight.abs().max() > _NEGLIGIBLE)


class Denoiser:
    """Makes the predictions for the pictures of a call, step by step."""

    def __init__(
        self,
        transformer: MMFaceDiT,
        text: TextFeatures,
        modalities: Sequence[int],
        timesteps: Float32[Tensor, " calls"],
        conditions: Float32[Tensor, "conditions channels height width"],
        max_batch: int | None,
        shares: Sequence[float],
        cache: StepCache | None,
    ) -> None:
        """Embed each text once, and compute the modulations of all calls as one batch.

        `modalities` are the kinds' indices of the texts; `timesteps`, in [0, 1000), are the model's
        time at each call, and `shares` the fraction of the schedule completed before it. Row 0 of
        `conditions` is no condition. At most `max_batch` rows are computed at once. `cache` skips
        blocks in calls inside `caching`.
        """
        # Offloading waits for `forward`, which is not called here.
        if hasattr(transformer, "_hf_hook"):
            transformer._hf_hook.pre_forward(transformer)
        hooks = getattr(transformer, "_diffusers_hook", None)
        self._group = hooks and hooks.get_hook("group_offloading")
        if self._group is not None:
            self._group.pre_forward(transformer)
        self.transformer = transformer
        self.timesteps = timesteps
        self.max_batch = max_batch
        self.shares = shares
        self.cache = cache
        self.conditions = conditions.to(transformer.dtype)
        self.read(text, modalities)
        self._num_rows = 0
        self._cached: Rows | None = None  # what the cache's memory is of
        self._computed: ComputedBlocks | None = None

    def release(self) -> None:
        """Send back what group offloading brought for the calls."""
        if self._group is not None:
            self._group.post_forward(self.transformer, None)

    def read(self, text: TextFeatures, modalities: Sequence[int]) -> None:
        """Take the texts and kinds' indices of the calls to come."""
        dtype, sizes = self.transformer.dtype, (len(self.timesteps), len(modalities))
        modality = torch.tensor(list(modalities), device=self.timesteps.device)
        global_condition = self.transformer.global_condition(
            self.timesteps.repeat_interleave(sizes[1]),
            text.pooled.to(dtype).repeat(sizes[0], 1),
            modality.repeat(sizes[0]),
        )
        self.text = self.transformer.text_embedder(text.tokens.to(dtype))  # [texts, L, D]
        tables = self.transformer.modulations(global_condition)
        self.widths = [table.shape[-1] for table in tables]
        # One table, from which a step takes its rows in one kernel: [calls, texts, 12 D of all].
        self.modulations = torch.cat(tables, dim=-1).unflatten(0, sizes)

    @property
    def evaluations(self) -> float:
        """Rows computed so far; a row that skipped blocks counts as the fraction computed."""
        return self._num_rows if self._computed is None else self._computed.evaluations

    @contextmanager
    def caching(self) -> Iterator[None]:
        """Let the cache, if there is one, skip blocks in the calls inside."""
        if self.cache is None:
            yield
            return
        with self.cache.enabled(self.transformer) as self._computed:
            yield

    def __call__(
        self,
        call: int,
        rows: Rows,
        noisy_latents: Float32[Tensor, "pictures channels height width"],
    ) -> Float32[Tensor, "pictures channels height width"]:
        """Predict the velocity or the noise, whichever the model was trained for.

        Latents are of unit variance; there is one prediction a picture.
        """
        if self.cache is not None and rows is not self._cached:
            # Guidance or a condition began or ended: the cache holds results of other rows.
            self.cache.restart(self.transformer, self.shares[call:])
            self._cached = rows
        noisy_latents, predictions = noisy_latents.to(self.transformer.dtype), []
        numbers = torch.arange(len(rows.pictures), device=noisy_latents.device)
        self._num_rows += len(numbers)
        for place, part in enumerate(numbers.split(self.max_batch or len(numbers))):
            texts = rows.texts[part]
            with self._context(place):
                prediction = self.transformer.denoise(
                    noisy_latents[rows.pictures[part]],
                    self.conditions[rows.conditions[part]],
                    self.text[texts],
                    list(self.modulations[call, texts].split(self.widths, dim=-1)),
                )
            predictions.append(prediction.float())
        return rows.combine(torch.cat(predictions))

    def _context(self, part: int) -> AbstractContextManager[None]:
        """Tell the cache which part of the rows is computed; it remembers each part apart."""
        return nullcontext() if self.cache is None else self.transformer.cache_context(str(part))
