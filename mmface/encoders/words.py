"""Words of a language model: prompts, questions and answers as numbers, and back."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mmface.core.sources import BrokenModelError, opened

END = "<|endoftext|>"
QUESTION, ANSWER = "USER: {}\n", "ASSISTANT:"


class WordTokenizer:
    """A tokenizer of transformers with the forms in which the unified model reads words."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Wrap a tokenizer; ValueError if it has no token that ends a text."""
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer of words has no token that ends a text")
        self.tokenizer = tokenizer
        self.end: int = tokenizer.eos_token_id

    @classmethod
    def from_pretrained(cls, source: str | Path) -> "WordTokenizer":
        """Load a folder or hub id, such as microsoft/phi-1_5."""
        with opened("tokenizer", source) as found:
            if Path(found).is_dir() and not any(Path(found).glob("*token*.json")):
                raise BrokenModelError("it holds no tokenizer")
            return cls(AutoTokenizer.from_pretrained(found))

    def __len__(self) -> int:
        """Number of words, ends included."""
        return len(self.tokenizer)

    def _ids(self, text: str) -> list[int]:
        found: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    def prompt(self, text: str, max_words: int) -> list[int]:
        """A prompt to draw from: start, words, end; at most `max_words`."""
        return [self.end, *self._ids(text)[: max_words - 2], self.end]

    def question(self, text: str) -> list[int]:
        """A question, up to where the answer begins."""
        return self._ids(QUESTION.format(text) + ANSWER)

    def answer(self, text: str) -> list[int]:
        """An answer and its end."""
        return [*self._ids(f" {text}"), self.end]

    def text(self, ids: Sequence[int]) -> str:
        """The words of an answer."""
        found: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return found.strip()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the tokenizer's files."""
        self.tokenizer.save_pretrained(folder)


def train_words(texts: Iterable[str], vocab_size: int) -> WordTokenizer:
    """Learn a byte-pair vocabulary of GPT-2's form, as Phi has; at least 257 words."""
    if vocab_size < 257:
        raise ValueError(f"vocab_size {vocab_size} is smaller than 256 bytes and an end")
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return WordTokenizer(
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, bos_token=END)
    )
