"""The CLIP text tower, which turns prompts into the model's text features."""

from collections.abc import Iterable, Sequence
from logging import getLogger
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from mmface.core.command_line import check_number
from mmface.core.files import values_sha256
from mmface.core.sources import load_network, opened, read_object
from mmface.encoders.encoder import Feature, count_flops
from mmface.encoders.vae import execution_device

_logger = getLogger(__name__)


class TextFeatures(NamedTuple):
    """The text features that the model receives, in the text encoder's dtype.

    `pooled` is the final layer's normalised state at the end-of-text token; `tokens` are the states
    before the last layer, padding included.
    """

    pooled: Float[Tensor, "batch text_dim"]
    tokens: Float[Tensor, "batch length text_dim"]


class TextEncoder:
    """Prompts to `TextFeatures`, through a frozen CLIP text tower (paper section 3.2)."""

    def __init__(
        self, text_model: CLIPTextModel, tokenizer: CLIPTokenizer, source: str = ""
    ) -> None:
        """Wrap a frozen tower and its tokenizer, loaded from `source`."""
        self.source = source
        self.text_model = text_model
        self.tokenizer = tokenizer
        # A tokenizer saved without its limit claims 1e30 tokens; the tower's positions are a fact.
        positions = text_model.config.max_position_embeddings
        self.max_length: int = min(tokenizer.model_max_length, positions)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, dtype: torch.dtype = torch.float32, **options: Any
    ) -> "TextEncoder":
        """Load the `text_encoder` and `tokenizer` of a saved pipeline or hub id, frozen."""
        with opened("text encoder", folder) as source:
            text_model = load_network(CLIPTextModel, source, "text_encoder", dtype=dtype, **options)
            tokenizer = load_tokenizer(source, "tokenizer")
            _check_tokens(tokenizer, text_model.config)
            return cls(text_model.requires_grad_(False), tokenizer, str(folder))

    def __call__(self, prompts: Sequence[str]) -> TextFeatures:
        """Encode at least one prompt, padded and cut to `max_length`; "" is unconditional."""
        tokens = self.tokenizer(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
        ).to(execution_device(self.text_model))
        # Stable Diffusion's rule: padding takes part unless the tower's config asks for a mask.
        use_mask = getattr(self.text_model.config, "use_attention_mask", False)
        output = self.text_model(
            tokens.input_ids,
            attention_mask=tokens.attention_mask if use_mask else None,
            output_hidden_states=True,
        )
        return TextFeatures(pooled=output.pooler_output, tokens=output.hidden_states[-2])

    def truncated(self, prompt: str) -> str:
        """Return the end of a prompt that is truncated to the token limit; empty if it fits."""
        encoded = self.tokenizer(
            prompt, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        room = self.max_length - self.tokenizer.num_special_tokens_to_add()
        if len(encoded.input_ids) <= room:
            return ""
        return prompt[encoded.offset_mapping[room][0] :]

    def warn_of_cuts(self, prompts: Iterable[Any]) -> None:
        """Warn once of each prompt of words that is longer than what is read."""
        for prompt in dict.fromkeys(prompts):
            if prompt and isinstance(prompt, str) and (cut := self.truncated(prompt)):
                _logger.warning(
                    "A prompt is longer than the %d tokens that the text encoder reads; this is "
                    "cut: %r",
                    self.max_length,
                    cut,
                )

    def word_positions(self, prompt: str, spans: Sequence[tuple[int, int]]) -> list[int]:
        """Give the place of each word's last piece among the tokens of a prompt.

        A span is the word's first character and the one after its last. -1 for words that are cut
        off, or spans of nothing.
        """
        encoded = self.tokenizer(
            prompt, truncation=True, max_length=self.max_length, return_offsets_mapping=True
        )
        pieces = [(place, *each) for place, each in enumerate(encoded.offset_mapping)]
        found = []
        for start, end in spans:
            inside = [place for place, first, last in pieces if first < min(end, last) > start]
            whole = any(last >= end for _, _, last in pieces)
            found.append(inside[-1] if inside and whole else -1)
        return found

    @property
    def module(self) -> CLIPTextModel:
        """The frozen text tower."""
        return self.text_model

    def gives(self, size: tuple[int, int] = (0, 0)) -> dict[str, Feature]:
        """The fields of `TextFeatures`."""
        width, dtype = self.text_model.config.hidden_size, self.text_model.dtype
        return {
            "pooled": Feature((width,), dtype),
            "tokens": Feature((self.max_length, width), dtype),
        }

    def identity(self) -> dict[str, Any]:
        """The weights' hash, the tokens' limit, and whether padding is masked."""
        return {
            "text_weights": values_sha256(self.text_model.state_dict())[:16],
            "max_length": self.max_length,
            "use_attention_mask": getattr(self.text_model.config, "use_attention_mask", False),
        }

    def flops(self, size: tuple[int, int] = (0, 0)) -> int:
        """FLOPs of encoding one prompt."""
        ids = torch.zeros(1, self.max_length, dtype=torch.long, device=self.text_model.device)
        return count_flops(lambda: self.text_model(ids))

    def activation_bytes(self, size: tuple[int, int], dtype: torch.dtype) -> int:
        """Bytes of all layers' states, which are returned, and of the widest layer."""
        config = self.text_model.config
        states = (config.num_hidden_layers + 2) * config.hidden_size
        return self.max_length * (states + 2 * config.intermediate_size) * dtype.itemsize

    def features(self, inputs: Sequence[str]) -> dict[str, Tensor]:
        """Encode prompts; see `TextFeatures`."""
        return self(inputs)._asdict()


def load_tokenizer(source: str, subfolder: str = "") -> CLIPTokenizer:
    """Load a tokenizer from a folder or hub id; ValueError if its files are missing."""
    folder = Path(source, subfolder)
    if Path(source).is_dir():
        names = {path.name for path in folder.glob("*") if path.is_file()}
        if "tokenizer.json" not in names and not {"vocab.json", "merges.txt"} <= names:
            raise ValueError(f"{folder} has no tokenizer.json; copy the whole folder again")
        for name in {"tokenizer.json", "tokenizer_config.json", "vocab.json"} & names:
            read_object(folder / name)
    return CLIPTokenizer.from_pretrained(source, **({"subfolder": subfolder} if subfolder else {}))


def _check_tokens(tokenizer: CLIPTokenizer, config: CLIPTextConfig) -> None:
    """Raise ValueError unless a tokenizer fits a tower's vocabulary."""
    limit, ends = tokenizer.model_max_length, (tokenizer.bos_token, tokenizer.eos_token)
    check_number("model_max_length", limit, 3)
    if not all(ends) or len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} words and the ends {ends}, the text encoder "
            f"{config.vocab_size} words; use the one that it was trained with"
        )
    # 2 stands in the configs of old towers, which then look for the highest token.
    if config.eos_token_id not in (2, tokenizer.eos_token_id):
        raise ValueError(
            f"the text encoder ends a prompt at token {config.eos_token_id!r:.30}, the tokenizer "
            f"at {tokenizer.eos_token_id}; use the one that it was trained with"
        )


def meta_text_model(text_dim: int, max_length: int = 77) -> CLIPTextModel:
    """Build the text tower of Stable Diffusion 2.1, of any width, on the meta device."""
    with torch.device("meta"):
        return CLIPTextModel(
            CLIPTextConfig(
                vocab_size=49408,
                hidden_size=text_dim,
                intermediate_size=4 * text_dim,
                num_hidden_layers=23,
                num_attention_heads=max(1, text_dim // 64),
                max_position_embeddings=max_length,
                hidden_act="gelu",
            )
        )
