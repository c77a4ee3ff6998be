"""The second family's pipeline: draws a face from words, and answers questions about a face.

`UnifiedPipeline` holds the language model with its image tokenizer, words and vision towers, in one
folder. Drawing fills in masked codes in a few steps, the surest first; codes that are given stay.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from PIL import Image
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from mmface.conditions import flat_rgb, open_picture
from mmface.core.command_line import check_number, check_whole
from mmface.core.sources import (
    BrokenModelError,
    builtin_pipelines,
    load_network,
    opened,
    read_object,
)
from mmface.encoders.image_tokens import ImageTokenizer
from mmface.encoders.vae import image_pixels
from mmface.encoders.vision import VisionTower
from mmface.encoders.words import WordTokenizer
from mmface.model.unified import CACHE, UnifiedPhi

CLASS_NAME = "UnifiedPipeline"
INDEX = "model_index.json"
TOWERS = ("clip", "face")

Codes = Int64[Tensor, "batch codes"]
Picture = Image.Image | UInt8[np.ndarray, "height width 3"] | str | Path


class Drawn(NamedTuple):
    """Drawn faces with their codes, [batch, rows, columns]."""

    images: list[Image.Image]
    codes: Int64[Tensor, "batch rows columns"]


def fill_in(
    logits_of: Callable[[Codes, float], Float[Tensor, "batch codes kinds"]],
    codes: Codes,
    num_steps: int,
    generators: Sequence[torch.Generator],
    temperature: float = 2.0,
) -> Codes:
    """Masked parallel decoding (MaskGIT, arXiv 2202.04200), as diffusers' AmusedScheduler does it.

    Every unknown code is drawn from its distribution; then the least sure ones are masked again,
    by log probability plus Gumbel noise, until after step k of K floor(n cos(pi k / 2 K)) of n are
    masked. The noise falls from `temperature` to 0.

    Args:
        logits_of: Gives logits of all codes, from codes with -1 for masked ones and the share of
            the masked.
        codes: What is given; -1 is to be filled in.
        num_steps: K.
        generators: One a picture, so that its draws do not depend on its batch.
        temperature: Of the noise at the first step.

    Returns:
        The codes, with given ones as they were.
    """
    unknown_at_first = codes < 0
    num_unknown = unknown_at_first.sum(1)
    for step in range(num_steps):
        unknown = codes < 0
        if not unknown.any():
            break
        chances = logits_of(codes, float(unknown.float().mean())).float().softmax(-1)
        drawn = _drawn(chances, generators)
        filled = torch.where(unknown, drawn, codes)
        if step == num_steps - 1:
            return filled
        left = (num_unknown * math.cos(math.pi / 2 * (step + 1) / num_steps)).floor().long()
        left = torch.minimum(left, unknown.sum(1) - 1).clamp(min=1)
        sure = chances.gather(-1, filled[..., None])[..., 0].clamp(min=1e-20).log()
        noise = torch.stack([torch.rand(codes.shape[1], generator=g) for g in generators])
        gumbel = -torch.log(-torch.log(noise.clamp(1e-20, 1 - 1e-7))).to(sure)
        fall = temperature * (1 - step / max(num_steps - 1, 1))
        sure = torch.where(unknown, sure + fall * gumbel, math.inf)
        ranks = sure.argsort(1).argsort(1)
        codes = torch.where((ranks < left[:, None]) & unknown, -1, filled)
    return codes


def _drawn(
    chances: Float[Tensor, "batch codes kinds"], generators: Sequence[torch.Generator]
) -> Codes:
    rows = [
        torch.multinomial(own.cpu(), 1, generator=generator)[:, 0]
        for own, generator in zip(chances, generators, strict=True)
    ]
    return torch.stack(rows).to(chances.device)


class _WordsAlone(LogitsProcessor):
    """Lets an answer have no codes and no special tokens of pictures."""

    def __init__(self, num_words: int) -> None:
        self.num_words = num_words

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        scores[:, self.num_words :] = -math.inf
        return scores


class _Stop(StoppingCriteria):
    """Ends an answer when somebody asks for it."""

    def __init__(self, is_wanted: Callable[[], bool]) -> None:
        self.is_wanted = is_wanted

    def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Tensor:
        return torch.full((len(input_ids),), self.is_wanted(), device=input_ids.device)


class UnifiedPipeline:
    """Draws and answers; `from_pretrained` takes a folder or the built-in "tiny-unified"."""

    def __init__(
        self,
        model: UnifiedPhi,
        image_tokenizer: ImageTokenizer,
        words: WordTokenizer,
        towers: Mapping[str, VisionTower],
        image_size: int,
    ) -> None:
        """Put the parts together; ValueError if they do not fit each other."""
        rows, columns = image_tokenizer.grid((image_size, image_size))
        config = model.config
        facts = {
            "codes": (image_tokenizer.num_codes, config.num_codes),
            "codes of a picture": (rows * columns, config.num_image_tokens),
        }
        if config.has_sequence_experts:
            facts |= {n: (towers[n].width, config.feature_dims[n]) for n in config.feature_dims}
        for name, (found, wanted) in facts.items():
            if found != wanted:
                raise ValueError(f"the model wants {wanted} {name}, and the part has {found}")
        if len(words) > config.num_words:
            raise ValueError(f"the model knows {config.num_words} words of {len(words)}")
        self.model, self.image_tokenizer, self.words = model, image_tokenizer, words
        self.towers, self.image_size, self.grid = dict(towers), image_size, (rows, columns)

    @classmethod
    def from_pretrained(cls, source: str | Path) -> "UnifiedPipeline":
        """Load a folder or a built-in pipeline; UnusableModelError for another kind of model."""
        with opened("unified model", source, builtin_pipelines()) as found:
            folder = Path(found)
            index = read_object(folder / INDEX)
            if index.get("_class_name") != CLASS_NAME:
                raise BrokenModelError(
                    f"it is a {index.get('_class_name')}, which answers no questions; give "
                    "tiny-unified, or a folder that experiment=tiny_unified made"
                )
            model = load_network(UnifiedPhi, str(folder), "language_model").float()
            model.requires_grad_(False)
            image_tokenizer = ImageTokenizer.from_pretrained(folder / "image_tokenizer")
            words = WordTokenizer.from_pretrained(folder / "tokenizer")
            there = [name for name in TOWERS if (folder / name).is_dir()]
            towers = {name: VisionTower.from_pretrained(folder / name) for name in there}
            return cls(model, image_tokenizer, words, towers, int(index["image_size"]))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that `from_pretrained` reads."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.model.save_pretrained(folder / "language_model")
        self.image_tokenizer.network.save_pretrained(folder / "image_tokenizer")
        self.words.save_pretrained(folder / "tokenizer")
        for name, tower in self.towers.items():
            tower.network.save_pretrained(folder / name)
        index = {"_class_name": CLASS_NAME, "image_size": self.image_size}
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        found: torch.device = self.model.device
        return found

    def to(self, device: torch.device | str) -> "UnifiedPipeline":
        """Move all parts."""
        for each in (self.model, self.image_tokenizer.network):
            each.to(device)
        for tower in self.towers.values():
            tower.network.to(device)
        return self

    def pixels(self, pictures: Sequence[Picture]) -> Float[Tensor, "batch 3 height width"]:
        """Read pictures, cut to the middle square and made `image_size`; values in [-1, 1]."""
        size, found = (self.image_size, self.image_size), []
        for picture in pictures:
            if isinstance(picture, np.ndarray):
                image = Image.fromarray(picture)
            else:
                given = picture if isinstance(picture, Image.Image) else open_picture(picture)
                image = Image.fromarray(flat_rgb(given, "white"))
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            square = image.crop((left, top, left + side, top + side))
            if square.size != size:
                square = square.resize(size, Image.Resampling.LANCZOS)
            found.append(image_pixels(np.array(square)))
        return torch.stack(found).to(self.device)

    def encode(self, pictures: Sequence[Picture]) -> Codes:
        """The codes of pictures."""
        return self.image_tokenizer.encode(self.pixels(pictures)).flatten(1)

    def features(self, pixels: Float[Tensor, "batch 3 height width"]) -> dict[str, Tensor]:
        """What the experts of understanding mix in."""
        return {name: tower.features(pixels)["states"] for name, tower in self.towers.items()}

    def images(self, codes: Codes) -> list[Image.Image]:
        """The pictures of codes."""
        pixels = self.image_tokenizer.decode(codes.unflatten(1, self.grid))
        values = ((pixels.cpu() + 1) * 127.5).round().to(torch.uint8).movedim(1, -1).numpy()
        return [Image.fromarray(each) for each in values]

    @torch.no_grad()
    def draw(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        num_steps: int = 12,
        guidance_scale: float = 2.0,
        temperature: float = 2.0,
        given: Codes | None = None,
        on_step: Callable[[int], None] | None = None,
    ) -> Drawn:
        """Draw a face for each prompt; its seed decides it, whatever its batch.

        Args:
            prompts: What to draw.
            seeds: One a prompt.
            num_steps: Steps of decoding.
            guidance_scale: g of logits (1 + g) given the prompt - g without it; 0 is none.
            temperature: Noise of which codes are kept.
            given: Codes to keep, -1 where a face is to be drawn; None draws everything.
            on_step: Called with the number of each step before it.

        Returns:
            The faces.

        Raises:
            ValueError: If a number is out of range.
        """
        check_whole("num_steps", num_steps, 1, 1000)
        check_number("guidance_scale", guidance_scale, 0, 100)
        check_number("temperature", temperature, 0, 1000)
        if len(seeds) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts need as many seeds, got {len(seeds)}")
        num_codes = self.grid[0] * self.grid[1]
        if given is None:
            given = torch.full((len(prompts), num_codes), -1)
        given = given.to(self.device)
        width = self.model.config.max_words - 1
        conditional = [self.words.prompt(text, width) for text in prompts]
        texts = conditional
        if guidance_scale:
            texts = conditional + [self.words.prompt("", width)] * len(prompts)
        steps = iter(range(num_steps))

        def logits_of(codes: Codes, share: float) -> Tensor:
            if on_step is not None:
                on_step(next(steps))
            both = torch.cat([codes] * (len(texts) // len(codes)))
            layout = self.model.drawing(texts, both)
            level = (both < 0).float().mean(1)
            states = self.model.states(layout, self.model.routed(layout, level))
            logits = self.model.code_logits(states[:, layout.picture])
            if not guidance_scale:
                return logits
            told, untold = logits.chunk(2)
            return (1 + guidance_scale) * told - guidance_scale * untold

        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        codes = fill_in(logits_of, given, num_steps, generators, temperature)
        return Drawn(self.images(codes), codes.unflatten(1, self.grid))

    def kept(
        self, picture: Picture, region: Bool[np.ndarray, "height width"]
    ) -> Int64[Tensor, "1 codes"]:
        """The codes of a picture with -1 where `region` is: each code that it touches is new.

        `region` has the size of the picture's middle square; ValueError if it touches no code.
        """
        codes = self.encode([picture])
        share = (
            Image.fromarray(region)
            .convert("L")
            .resize((self.image_size, self.image_size), Image.Resampling.NEAREST)
        )
        pixels = np.array(share) > 0
        rows, columns = self.grid
        cells = pixels.reshape(rows, self.image_size // rows, columns, -1).any((1, 3))
        if not cells.any():
            raise ValueError("the region is empty; mark what is to be drawn anew")
        return torch.where(torch.from_numpy(cells).flatten().to(codes.device), -1, codes)

    @torch.no_grad()
    def answer(
        self,
        pictures: Sequence[Picture],
        questions: Sequence[str],
        max_new_words: int = 96,
        is_stopped: Callable[[], bool] | None = None,
    ) -> list[str]:
        """Answer a question about each picture, word by word, taking the likeliest one."""
        found = [""] * len(questions)
        for places in self._alike(questions):
            own = [pictures[place] for place in places]
            texts = [questions[place] for place in places]
            said = self.answered(self.pixels(own), texts, max_new_words, is_stopped)
            for place, text in zip(places, said, strict=True):
                found[place] = text
        return found

    def _alike(self, questions: Sequence[str]) -> Iterator[list[int]]:
        """Questions of equal length: no padding lies between a picture and its answer."""
        lengths = [len(self.words.question(text)) for text in questions]
        for length in dict.fromkeys(lengths):
            yield [place for place, own in enumerate(lengths) if own == length]

    @torch.no_grad()
    def answered(
        self,
        pixels: Float[Tensor, "batch 3 height width"],
        questions: Sequence[str],
        max_new_words: int = 96,
        is_stopped: Callable[[], bool] | None = None,
        streamer: Any = None,
        processors: Sequence[LogitsProcessor] = (),
    ) -> list[str]:
        """Answer questions of equal length; `streamer` is one of transformers', for one picture.

        The picture is read once into a key/value cache; transformers' `generate` does the rest.
        """
        codes = self.image_tokenizer.encode(pixels).flatten(1)
        cache, length = self.model.read(codes, self.features(pixels))
        asked = torch.tensor([self.words.question(text) for text in questions])
        # What was read stands for itself in the cache; these numbers only say how long it is.
        before = self.model.understanding([[]] * len(codes), codes).ids
        ids = torch.cat((before, asked.to(before)), dim=1)
        assert before.shape[1] == length
        limit = self.model.config.max_position_embeddings - ids.shape[1]
        stops = [] if is_stopped is None else [_Stop(is_stopped)]
        output = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=min(max_new_words, limit),
            do_sample=False,
            eos_token_id=self.words.end,
            pad_token_id=self.words.end,
            logits_processor=LogitsProcessorList(
                [_WordsAlone(self.model.config.num_words), *processors]
            ),
            stopping_criteria=StoppingCriteriaList(stops),
            streamer=streamer,
            **{CACHE: cache},
        )
        return [self.words.text(row) for row in output[:, ids.shape[1] :].tolist()]
