"""UniF2ace (arXiv 2503.08120): one language model that answers about a face and draws faces.

Phi reads words and the codes of an image tokenizer as one sequence. Words see what precedes them,
the picture's tokens see each other as well, and nothing sees padding ("omni attention"). Drawing
fills in masked codes; answering goes on word by word. Every block has two groups of experts, see
`mmface.model.experts`. Vocabulary and layouts are those of Show-o (arXiv 2408.12528).

    drawing        [padding ... t2i words] soi code ... code eoi
    understanding  mmu soi code ... code eoi [words ... padding]
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import IPAdapterPlusImageProjection, Timesteps
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from transformers import DynamicCache, PhiConfig, PhiForCausalLM
from transformers.models.phi.modeling_phi import PhiDecoderLayer

from mmface.core.sources import BrokenModelError, load_network, opened, read_weights
from mmface.model.experts import GroupedTokenMoE, Routing, SequenceMoE, States, Task

SPECIAL = ("pad", "soi", "eoi", "sov", "eov", "t2i", "mmu", "t2v", "v2v", "lvg")
"""Special tokens in Show-o's order, after the words; the codes follow, and one mask token is last.
Those of videos (sov, eov, t2v, v2v, lvg) are not used here."""
CACHE = "cache" if "cache" in inspect.signature(PhiForCausalLM.forward).parameters else (
    "past_key_values"
)  # fmt: skip
"""What transformers calls its key/value cache; it was renamed."""

_OF_VOCABULARY = ("lm_head.", "model.embed_tokens.")
"""Tensors with a row a token."""

Ids = Int64[Tensor, "batch tokens"]
Codes = Int64[Tensor, "batch codes"]


@dataclass(frozen=True)
class Vocabulary:
    """Which number means what: words, `SPECIAL`, codes, the mask."""

    num_words: int
    num_codes: int

    def special(self, name: str) -> int:
        """The id of a special token."""
        return self.num_words + SPECIAL.index(name)

    @property
    def first_code(self) -> int:
        """The id of code 0."""
        return self.num_words + len(SPECIAL)

    @property
    def mask(self) -> int:
        """The id that stands for a code which is not known yet."""
        return self.first_code + self.num_codes

    def __len__(self) -> int:
        """How many ids there are."""
        return self.mask + 1


class Layout(NamedTuple):
    """Sequences of one task, as the model takes them.

    Attributes:
        ids: [B, S].
        attention: Added to attention's logits, 0 or very negative, [B, 1, S, S].
        picture: Places of the codes.
        attended: Tokens that are no padding, [B, S].
        words: Where the words begin.
    """

    ids: Ids
    attention: Float[Tensor, "batch 1 tokens tokens"]
    picture: slice
    attended: Bool[Tensor, "batch tokens"]
    words: int


def omni_mask(
    attended: Bool[Tensor, "batch tokens"], full: slice
) -> Bool[Tensor, "batch 1 tokens tokens"]:
    """Who attends to whom: [i, j] is true if token i sees token j.

    Every token sees those before it and itself, tokens in `full` see all of that, too, and padding
    is seen by nobody but itself (a row must not be empty).
    """
    num = attended.shape[1]
    places = torch.arange(num, device=attended.device)
    inside = (places >= full.start) & (places < full.stop)
    seen = (places[:, None] >= places) | (inside[:, None] & inside)
    own = torch.eye(num, dtype=torch.bool, device=attended.device)
    return ((seen & attended[:, None]) | own)[:, None]


def additive(seen: Bool[Tensor, "batch 1 rows columns"], dtype: torch.dtype) -> Tensor:
    """A mask as it is added to logits."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(
        ~seen, torch.finfo(dtype).min
    )


class UnifiedConfig(PhiConfig):
    """Phi's config with the sizes of vocabulary, pictures and experts; `vocab_size` follows.

    `feature_dims` gives the width of the features that the experts `clip` and `face` mix in. With
    `num_routed_experts=0` or `has_sequence_experts=False` these experts are left out.
    """

    model_type = "unified_phi"

    def __init__(
        self,
        num_words: int = 50295,
        num_codes: int = 8192,
        num_image_tokens: int = 256,
        max_words: int = 128,
        num_routed_experts: int = 8,
        num_chosen_experts: int = 4,
        expert_width: int = 256,
        has_sequence_experts: bool = True,
        feature_dims: dict[str, int] | None = None,
        resampler_width: int = 512,
        resampler_heads: int = 8,
        **options: Any,
    ) -> None:
        """Describe a model; `options` are PhiConfig's, whose defaults are phi-1_5's sizes."""
        self.num_words, self.num_codes = num_words, num_codes
        self.num_image_tokens, self.max_words = num_image_tokens, max_words
        self.num_routed_experts, self.num_chosen_experts = num_routed_experts, num_chosen_experts
        self.expert_width = expert_width
        self.has_sequence_experts = has_sequence_experts
        self.feature_dims = dict(feature_dims or {"clip": 1024, "face": 1024})
        self.resampler_width, self.resampler_heads = resampler_width, resampler_heads
        options["vocab_size"] = len(Vocabulary(num_words, num_codes))
        super().__init__(**options)


class ExpertLayer(PhiDecoderLayer):
    """Phi's layer with experts in place of its network, and experts for the picture after it."""

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.mlp = GroupedTokenMoE(config)
        self.sequence = SequenceMoE(config.hidden_size) if config.has_sequence_experts else None

    def forward(
        self, hidden_states: States, *args: Any, routing: Routing | None = None, **kwargs: Any
    ) -> States:
        """Attention and token experts side by side, as in Phi, then the sequence experts."""
        routing = routing or Routing()
        normed = self.input_layernorm(hidden_states)
        attended, _ = self.self_attn(normed, *args, **kwargs)
        states = self.resid_dropout(attended) + self.resid_dropout(self.mlp(normed, routing))
        states = states + hidden_states
        return states if self.sequence is None else self.sequence(states, routing)


class UnifiedPhi(PhiForCausalLM):
    """The model; `generate` of transformers answers, `mmface.sampling.unified` does both."""

    config_class = UnifiedConfig
    config: Any
    _no_split_modules = ("ExpertLayer",)

    def __init__(self, config: UnifiedConfig) -> None:
        """Build it with random weights; routed experts start as nothing."""
        super().__init__(config)
        layers = range(config.num_hidden_layers)
        self.model.layers = nn.ModuleList([ExpertLayer(config, number) for number in layers])
        width = config.hidden_size
        self.resamplers = nn.ModuleDict()
        if config.has_sequence_experts:
            self.level = Timesteps(width, flip_sin_to_cos=True, downscale_freq_shift=0)
            for name, dim in {**config.feature_dims, "noise": width}.items():
                self.resamplers[name] = IPAdapterPlusImageProjection(
                    embed_dims=dim,
                    output_dims=width,
                    hidden_dims=config.resampler_width,
                    depth=1,
                    dim_head=config.resampler_width // config.resampler_heads,
                    heads=config.resampler_heads,
                    num_queries=config.num_image_tokens,
                    ffn_ratio=2,
                )
        self.post_init()
        for layer in self.model.layers:
            for group in layer.mlp.groups.values():
                nn.init.zeros_(group.down.weight)

    def forward(self, *args: Any, routing: Routing | None = None, **kwargs: Any) -> Any:
        """PhiForCausalLM's call; without `routing` the sequence is words to be understood."""
        return super().forward(*args, routing=routing, **kwargs)

    @property
    def vocabulary(self) -> Vocabulary:
        """Which number means what."""
        return Vocabulary(self.config.num_words, self.config.num_codes)

    def start_codes_by_bits(self, bits: Float[Tensor, "codes bits"], seed: int = 0) -> None:
        """Give codes that differ in few signs like embeddings, and like weights of the output."""
        generator = torch.Generator().manual_seed(seed)
        width, first = self.config.hidden_size, self.vocabulary.first_code
        std = self.config.initializer_range
        basis = torch.randn(bits.shape[1], width, generator=generator) * std
        rows = bits @ basis / bits.shape[1] ** 0.5
        weights = {id(w): w for w in (self.model.embed_tokens.weight, self.lm_head.weight)}
        with torch.no_grad():
            for weight in weights.values():
                weight[first : first + len(bits)] += rows.to(weight)

    def drawing(self, words: Sequence[Sequence[int]], codes: Codes) -> Layout:
        """Lay out prompts, cut to `max_words`, with codes of which unknown ones are -1."""
        known, width = self.vocabulary, self.config.max_words
        pad, t2i = known.special("pad"), known.special("t2i")
        texts = [[t2i, *each][:width] for each in words]
        left = [[pad] * (width - len(each)) + each for each in texts]
        ids = self._ids(left, codes, before=[known.special("soi")], after=[known.special("eoi")])
        return self._laid_out(ids, slice(width, width + codes.shape[1] + 2), words=1)

    def understanding(self, words: Sequence[Sequence[int]], codes: Codes) -> Layout:
        """Lay out codes and what is said of them, padded to the longest."""
        known = self.vocabulary
        pad, width = known.special("pad"), max((len(each) for each in words), default=0)
        right = [[*each, *[pad] * (width - len(each))] for each in words]
        start = [[known.special("mmu")]] * len(codes)
        soi, eoi = known.special("soi"), known.special("eoi")
        ids = self._ids(start, codes, before=[soi], after=[eoi])
        texts = torch.tensor(right, dtype=torch.long, device=ids.device).reshape(len(codes), width)
        full = slice(1, 3 + codes.shape[1])
        return self._laid_out(torch.cat((ids, texts), dim=1), full, words=full.stop)

    def _ids(
        self, start: list[list[int]], codes: Codes, before: list[int], after: list[int]
    ) -> Ids:
        known = self.vocabulary
        codes = torch.where(codes < 0, known.mask, codes + known.first_code)
        columns = [start, [before] * len(codes), codes, [after] * len(codes)]
        return torch.cat([torch.as_tensor(each).to(codes) for each in columns], dim=1)

    def _laid_out(self, ids: Ids, full: slice, words: int) -> Layout:
        attended = ids != self.vocabulary.special("pad")
        mask = additive(omni_mask(attended, full), self.dtype)
        return Layout(ids, mask, slice(full.start + 1, full.stop - 1), attended, words)

    def routed(
        self,
        layout: Layout,
        level: Float[Tensor, " batch"] | None = None,
        features: dict[str, Tensor] | None = None,
    ) -> Routing:
        """What the experts are told of a layout: of drawing with a `level`, else of understanding.

        `level` is the share of codes that are masked; `features` are those of the frozen towers by
        their experts' names, [B, any number, width of the feature].
        """
        found: dict[str, Tensor] = {}
        if self.config.has_sequence_experts and level is not None:
            waves = self.level(1000 * level).to(self.dtype)[:, None]
            found = {"noise": self.resamplers["noise"](waves)}
        elif self.config.has_sequence_experts:
            given = features or {}
            if lacking := self.config.feature_dims.keys() - given.keys():
                raise ValueError(f"features of {', '.join(sorted(lacking))} are not given")
            found = {n: self.resamplers[n](given[n].to(self.dtype)) for n in given}
        task: Task = "understanding" if level is None else "generation"
        return Routing(task, layout.picture, found, layout.attended)

    def states(self, layout: Layout, routing: Routing, **options: Any) -> States:
        """Run the blocks over a layout: [B, S, D]."""
        found: Tensor = self.model(
            input_ids=layout.ids, attention_mask=layout.attention, routing=routing, **options
        ).last_hidden_state
        return found

    def code_logits(self, states: States) -> Float[Tensor, "batch tokens codes"]:
        """Logits of the codes alone, as a sum of scores over codes needs them, float32."""
        first, num = self.vocabulary.first_code, self.config.num_codes
        rows = slice(first, first + num)
        return F.linear(states, self.lm_head.weight[rows], self.lm_head.bias[rows]).float()

    def word_logits(self, states: States) -> Float[Tensor, "batch tokens words"]:
        """Logits of the words alone, float32."""
        rows = slice(0, self.config.num_words)
        return F.linear(states, self.lm_head.weight[rows], self.lm_head.bias[rows]).float()

    def read(self, codes: Codes, features: dict[str, Tensor] | None) -> tuple[Any, int]:
        """Read pictures before anything is asked: a key/value cache, and how long it is."""
        layout = self.understanding([[]] * len(codes), codes)
        cache = DynamicCache(config=self.config)
        self.states(
            layout, self.routed(layout, features=features), use_cache=True, **{CACHE: cache}
        )
        return cache, layout.words


def start_from(model: UnifiedPhi, source: str | Path) -> None:
    """Give a model the weights of phi-1_5, or of Show-o, from a folder.

    Of phi-1_5 the words are taken, and the special tokens and codes stay as they are; of Show-o all
    tokens are. Experts beside the shared one stay as they are, and routed ones add nothing yet.

    Args:
        model: The model, of the same sizes.
        source: A folder or hub id of a PhiForCausalLM, or a folder of Show-o's weights.

    Raises:
        UnusableModelError: If it cannot be loaded, or sizes differ.
    """
    with opened("language model", source) as found:
        weights = _foreign_weights(Path(found), str(found))
        own = model.state_dict()
        taken = {}
        for name, tensor in weights.items():
            if name not in own:
                raise BrokenModelError(f"it has a tensor {name}, which Phi has not")
            if name.startswith(_OF_VOCABULARY) and tensor.shape[1:] == own[name].shape[1:]:
                is_whole = len(tensor) == len(own[name])
                known = len(tensor) if is_whole else min(len(tensor), model.config.num_words)
                tensor = torch.cat((tensor[:known].to(own[name]), own[name][known:]))
            if tensor.shape != own[name].shape:
                shapes = f"{tuple(tensor.shape)}, not {tuple(own[name].shape)}"
                raise BrokenModelError(f"its tensor {name} is {shapes}; set the model's sizes")
            taken[name] = tensor
        ours = ("groups.", "sequence.", "resamplers.")
        needed = {name for name in own if not any(part in name for part in ours)}
        if lacking := sorted(needed - taken.keys()):
            raise BrokenModelError(f"it lacks {len(lacking)} tensors, {lacking[0]} for one")
        model.load_state_dict(taken, strict=False)


def _foreign_weights(folder: Path, source: str) -> dict[str, Tensor]:
    """Read the weights of a folder by their names in Phi."""
    files = sorted(folder.glob("*.safetensors"))
    if files:
        weights = {name: each for file in files for name, each in read_weights(file).items()}
        if any(name.startswith("showo.") for name in weights):
            return {n.removeprefix("showo."): w for n, w in weights.items() if n[:6] == "showo."}
    return dict(load_network(PhiForCausalLM, source).state_dict())
