"""Training of the second family: the image tokenizer, and the model that answers and draws."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mmface.core.command_line import check_number
from mmface.data.attributes import ATTRIBUTES
from mmface.data.keyed import Samples, keyed_generator
from mmface.data.mixed import SeparateStreams
from mmface.data.questions import DESCRIBE, description, wordings
from mmface.data.store import Store
from mmface.encoders.image_tokens import ImageTokenizer, LookupFreeTokenizer
from mmface.encoders.vision import VisionTower
from mmface.encoders.words import ANSWER, QUESTION, WordTokenizer, train_words
from mmface.model.unified import UnifiedConfig, UnifiedPhi, start_from
from mmface.objectives.discrete import D3Diff, chosen
from mmface.objectives.losses import summed
from mmface.objectives.pictures import PictureTerm
from mmface.sampling.unified import UnifiedPipeline
from mmface.training.components import reconstruction_errors
from mmface.training.task import TrainingTask, cast_copy, export_dtype_named


class ImageTokenizing(TrainingTask):
    """A look-up-free tokenizer: reconstruction, commitment, and sure tokens of many codes."""

    trained: LookupFreeTokenizer

    def __init__(
        self,
        network: LookupFreeTokenizer,
        edge_weight: float = 1.0,
        commitment_weight: float = 0.025,
        entropy_weight: float = 0.1,
        export_dtype: str = "float32",
        terms: Mapping[str, PictureTerm] | None = None,
    ) -> None:
        """Set up the network and its loss.

        Args:
            network: the model to train.
            edge_weight: weight of the L1 error of neighbouring pixels' differences.
            commitment_weight: weight of the squared distance of values from their signs.
            entropy_weight: weight of the tokens' mean entropy minus the codebook's, in nats a bit.
            export_dtype: torch dtype name that exported weights are stored in.
            terms: further terms of the loss by name.
        """
        super().__init__()
        weights = {"edge_weight": edge_weight, "commitment_weight": commitment_weight}
        for name, weight in (weights | {"entropy_weight": entropy_weight}).items():
            check_number(name, weight, 0)
        self.trained = network
        self.terms = nn.ModuleDict(terms or {})
        self.edge_weight, self.commitment_weight = edge_weight, commitment_weight
        self.entropy_weight = entropy_weight
        self.export_dtype = export_dtype_named(export_dtype)

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Float[Tensor, " batch"]]:
        """Reconstruct `pixels`, errors weighted by `weights` [B, H, W]."""
        pixels: Tensor = batch["pixels"]
        decoded, quantised = self.trained(pixels)
        num_bits = quantised.signs.shape[1]
        unsure = quantised.token_entropy - quantised.codebook_entropy
        terms = {
            **reconstruction_errors(decoded, pixels, batch["weights"][:, None], self.edge_weight),
            "commitment": self.commitment_weight * quantised.commitment,
            "entropy": self.entropy_weight / num_bits * unsure,
            **{name: term(decoded, pixels) for name, term in self.terms.items()},
        }
        used = quantised.codebook_entropy.detach().expand(len(pixels))
        error = (decoded - pixels).abs().mean((1, 2, 3)).detach()
        return summed(terms) | {"l1": error, "codebook_entropy": used}

    def export(self, product: LookupFreeTokenizer, folder: Path) -> None:
        """Save a folder that `ImageTokenizer.from_pretrained` loads."""
        cast_copy(product, self.export_dtype).save_pretrained(folder)


STREAMS = ("drawing", "understanding")
"""Names of the two streams of samples, see `mmface.data.conversations`."""


class UnifiedTraining(TrainingTask):
    """One model that draws by D3Diff and answers word by word, with its experts in balance."""

    trained: UnifiedPhi

    def __init__(
        self,
        image_tokenizer: str | Path,
        words: WordTokenizer | str | Path,
        towers: Mapping[str, str | Path],
        config: Mapping[str, Any],
        image_size: int,
        loss: D3Diff,
        understanding_weight: float = 1.0,
        balance_weight: float = 0.01,
        init_from: str | Path | None = None,
        previews: Sequence[str] = (),
        export_dtype: str = "float32",
    ) -> None:
        """Build the model around its frozen neighbours.

        Args:
            image_tokenizer: folder of pictures' tokenizer.
            words: a tokenizer, or the folder or hub id of one.
            towers: vision towers by their experts' names, clip and face.
            config: arguments of `UnifiedConfig` beside those that the neighbours decide.
            image_size: side of pictures in pixels.
            loss: loss of drawing.
            understanding_weight: factor of the answers' cross-entropy.
            balance_weight: factor of the groups' balance losses, lambda.
            init_from: folder of phi-1_5, or of Show-o.
            previews: prompts that are drawn while it trains.
            export_dtype: torch dtype name that exported weights are stored in.
        """
        super().__init__()
        check_number("understanding_weight", understanding_weight, 0)
        check_number("balance_weight", balance_weight, 0)
        tokenizer = ImageTokenizer.from_pretrained(image_tokenizer)
        words = words if isinstance(words, WordTokenizer) else WordTokenizer.from_pretrained(words)
        found = {name: VisionTower.from_pretrained(each) for name, each in towers.items()}
        rows, columns = tokenizer.grid((image_size, image_size))
        end = words.end
        self.trained = UnifiedPhi(
            UnifiedConfig(
                **{
                    "num_words": len(words),
                    "num_codes": tokenizer.num_codes,
                    "num_image_tokens": rows * columns,
                    "feature_dims": {name: each.width for name, each in found.items()},
                    "bos_token_id": end,
                    "eos_token_id": end,
                    "pad_token_id": None,
                    **config,
                }
            )
        )
        if (bits := tokenizer.bits()) is not None:
            self.trained.start_codes_by_bits(bits)
        self.init_from = init_from
        self.pipeline = UnifiedPipeline(self.trained, tokenizer, words, found, image_size)
        self.frozen = nn.ModuleList([tokenizer.network, *(each.network for each in found.values())])
        self.loss = loss
        self.understanding_weight, self.balance_weight = understanding_weight, balance_weight
        self.previews = tuple(previews)
        self.export_dtype = export_dtype_named(export_dtype)

    def check_samples(self, samples: Samples) -> None:
        """Refuse samples without the two streams."""
        if not isinstance(samples, SeparateStreams) or set(samples.streams) != set(STREAMS):
            raise ValueError(
                f"samples must be SeparateStreams of {' and '.join(STREAMS)}, got {samples!r}."
            )

    def initialize(self) -> None:
        """Take over the language model's weights, if there are any."""
        if self.init_from is not None:
            start_from(self.trained, self.init_from)

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Float[Tensor, " batch"]]:
        """Both tasks' losses; `loss` holds the drawn pictures first."""
        drawn = self._drawing(batch[STREAMS[0]])
        asked = self._understanding(batch[STREAMS[1]])
        terms = {**drawn, **asked}
        total = [torch.stack(list(each.values())).sum(0) for each in (drawn, asked)]
        return {"loss": torch.cat(total)} | {f"loss/{k}": v.detach() for k, v in terms.items()}

    def subsets(self, batch: Mapping[str, Any]) -> dict[str, Bool[Tensor, " batch"]]:
        """The two tasks."""
        sizes = [len(batch[name]["pixels"]) for name in STREAMS]
        is_drawn = torch.arange(sum(sizes)) < sizes[0]
        return {STREAMS[0]: is_drawn, STREAMS[1]: ~is_drawn}

    def _drawing(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        pixels: Tensor = batch["pixels"]
        codes = self.pipeline.image_tokenizer.encode(pixels).flatten(1)
        draws = torch.stack(
            [
                torch.rand(codes.shape[1], generator=keyed_generator(int(s)))
                for s in batch["noise_seed"]
            ]
        )
        where = chosen(draws, self.loss.schedule.masked(batch["uniform"].cpu())).to(codes.device)
        model, width = self.trained, self.trained.config.max_words - 1
        texts = [self.pipeline.words.prompt(each, width) for each in batch["caption"]]
        layout = model.drawing(texts, torch.where(where, -1, codes))
        routing = model.routed(layout, where.float().mean(1))
        states = model.states(layout, routing)[:, layout.picture]
        terms = self.loss(model.code_logits(states), codes, where, batch["uniform"].float())
        return terms | self._balance("drawing_balance", routing.balance, len(pixels))

    def _understanding(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        pixels: Tensor = batch["pixels"]
        codes = self.pipeline.image_tokenizer.encode(pixels).flatten(1)
        texts, wanted = zip(*map(self._turns, batch["turns"]), strict=True)
        model = self.trained
        layout = model.understanding(texts, codes)
        routing = model.routed(layout, features=self.pipeline.features(pixels))
        states = model.states(layout, routing)
        logits = model.word_logits(states[:, layout.words : -1])
        width = logits.shape[1] + 1
        rows = [[*each, *[-100] * (width - len(each))][1:] for each in wanted]
        truth = torch.tensor(rows, device=logits.device)
        surprise = F.cross_entropy(logits.mT, truth, reduction="none", ignore_index=-100)
        mean = surprise.sum(1) / (truth >= 0).sum(1).clamp(min=1)
        terms = {"answers": self.understanding_weight * mean}
        return terms | self._balance("understanding_balance", routing.balance, len(pixels))

    def _balance(self, name: str, found: list[Tensor], num: int) -> dict[str, Tensor]:
        if not found:
            return {}
        return {name: self.balance_weight * torch.stack(found).mean().expand(num)}

    def _turns(self, turns: str) -> tuple[list[int], list[int]]:
        """Words of a conversation, and those of its answers with -100 elsewhere."""
        ids: list[int] = []
        wanted: list[int] = []
        for question, answer in json.loads(turns):
            asked, said = self.pipeline.words.question(question), self.pipeline.words.answer(answer)
            ids += asked + said
            wanted += [-100] * len(asked) + said
        return ids, wanted

    def _pipeline_of(self, product: Any) -> UnifiedPipeline:
        own = self.pipeline
        return UnifiedPipeline(product, own.image_tokenizer, own.words, own.towers, own.image_size)

    def preview(self, product: UnifiedPhi, folder: Path, step: int) -> None:
        """Draw the prompts with the averaged weights."""
        if self.previews:
            drawn = self._pipeline_of(product.eval()).draw(self.previews, range(len(self.previews)))
            for number, image in enumerate(drawn.images):
                image.save(folder / f"{step:07d}_{number}.png")

    def export(self, product: UnifiedPhi, folder: Path) -> None:
        """Save a folder that `UnifiedPipeline.from_pretrained` loads."""
        own = self._pipeline_of(cast_copy(product, self.export_dtype))
        networks: list[Any] = [own.image_tokenizer, *own.towers.values()]
        for each in networks:
            each.network = cast_copy(each.network, self.export_dtype)
        own.save_pretrained(folder)


def words_of_faces(store: str | Path, vocab_size: int, num_faces: int = 4000) -> WordTokenizer:
    """Learn words from the captions of a store's first faces and from all questions."""
    faces = Store(store)

    def texts() -> Iterable[str]:
        for item in range(min(num_faces, len(faces))):
            yield from faces.row(item, ("captions",))["captions"]
        for name, attribute in ATTRIBUTES.items():
            for value in attribute.values:
                yield from [f" {value}", description({name: value})] * 20
            for asked in (*wordings(name), *DESCRIBE):
                yield from [QUESTION.format(asked) + ANSWER] * 20

    return train_words(texts(), vocab_size)
