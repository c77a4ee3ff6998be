"""Subjects: what the network hears of reference faces, after MM-Diff (arXiv 2403.15059).

Each reference of a person becomes N subject tokens, to which the image tokens of every block
attend beside the two streams. The word that names the person in the prompt, and the global
condition, carry the reference, too. `ReferenceAdapter` holds what precedes the blocks,
`SubjectAttention` what lies in each; `mmface.model.reference_adapter` puts them into a network.

Everything starts as nothing: with any reference, a fresh adapter leaves the network's output as it
is. So does a strength of 0, or a person without a valid reference, of a trained one. MM-Diff
replaces the word's features; here they are added to, so that this holds.

    E people of a picture      R references of a person      N tokens of a reference      T = E R N
    P patches of a reference   c, v widths of its class feature and its patches
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from diffusers.models.embeddings import IPAdapterFaceIDPlusImageProjection
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmface.core.command_line import check_whole
from mmface.model.transformer import Heads, Rotation, Tokens, rotate

FUSIONS = ("post", "pre", "none")
IDENTITY_DIM = 512
"""Width of a face-recognition embedding, such as ArcFace's."""


class Faces(NamedTuple):
    """The references of a batch, as an encoder reads them.

    Attributes:
        cls: the class feature of each reference, [B, E, R, c].
        patches: its patch features, [B, E, R, P, v].
        valid: which references are there, [B, E, R].
        positions: place of the word that names each person among the text tokens, [B, E]; -1 is
            none.
        strength: how much the references count, lambda, [B].
        identity: face-recognition embeddings, [B, E, R, 512], for adapters that read them.
        words: places of further words whose attention is wanted, [B, W].
    """

    cls: Float[Tensor, "batch people references cls_dim"]
    patches: Float[Tensor, "batch people references patches patch_dim"]
    valid: Bool[Tensor, "batch people references"]
    positions: Int[Tensor, "batch people"]
    strength: Float[Tensor, " batch"]
    identity: Float[Tensor, "batch people references 512"] | None = None
    words: Int[Tensor, "batch words"] | None = None


class Added(NamedTuple):
    """What `SubjectAttention` reads, in every block.

    Attributes:
        tokens: subject tokens, person by person, [B, T, D].
        usable: those of valid references, [B, T]; all of them where none is, with a strength of 0.
        strength: factor of the result, [B].
        words: places of words among the text tokens, the people's own first, [B, W], if their
            attention maps are wanted.
        num_people: E.
    """

    tokens: Tokens
    usable: Bool[Tensor, "batch tokens"]
    strength: Float[Tensor, " batch"]
    words: Int[Tensor, "batch words"] | None
    num_people: int

    def unmapped(self) -> "Added":
        """The same for a block whose maps are not wanted."""
        return self._replace(words=None)

    def rows(self, places: Int[Tensor, " rows"]) -> "Added":
        """Those of some samples of the batch, for sampling."""
        parts = (self.tokens[places], self.usable[places], self.strength[places])
        return Added(*parts, None, self.num_people)


@dataclass(frozen=True)
class SubjectSettings:
    """The sizes of an adapter.

    Attributes:
        cls_dim: width c of the encoder's class feature.
        patch_dim: width v of its patch features.
        num_tokens: subject tokens N of a reference.
        refiner_depth: layers that refine the tokens by the patches; 0 leaves them out.
        rank: of the LoRA on the blocks' text keys and values, for subject tokens.
        lora_rank: of the LoRA on the blocks' query, key, value and output layers; 0 for none.
        fusion: where the person's word takes up the reference: "post", on the text encoder's
            tokens, "pre", on its input embeddings, or "none".
        reads_identity: whether tokens are made of face-recognition embeddings instead of the
            class feature.
    """

    cls_dim: int
    patch_dim: int
    num_tokens: int = 4
    refiner_depth: int = 4
    rank: int = 64
    lora_rank: int = 64
    fusion: str = "post"
    reads_identity: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError for sizes that are none."""
        for name in ("cls_dim", "patch_dim", "num_tokens", "rank"):
            check_whole(name, getattr(self, name), 1, 100_000)
        check_whole("refiner_depth", self.refiner_depth, 0, 1000)
        check_whole("lora_rank", self.lora_rank, 0, 100_000)
        if self.fusion not in FUSIONS:
            raise ValueError(f"fusion must be {', '.join(FUSIONS)}, got {self.fusion!r}.")


class SubjectTokenizer(nn.Module):
    """A reference to N tokens: queries of its class feature, refined by its patches.

    The SE-Refiner is diffusers' `IPAdapterFaceIDPlusImageProjection`, with keys and values of
    [patches; queries], feed-forward layers of twice the width, and a shortcut: 149.5 M parameters
    at MM-Diff's sizes.
    """

    def __init__(self, width: int, num_heads: int, settings: SubjectSettings) -> None:
        super().__init__()
        self.projection = IPAdapterFaceIDPlusImageProjection(
            embed_dims=width,
            output_dims=width,
            hidden_dims=settings.patch_dim,
            id_embeddings_dim=IDENTITY_DIM if settings.reads_identity else settings.cls_dim,
            depth=settings.refiner_depth,
            dim_head=width // num_heads,
            heads=num_heads,
            num_tokens=settings.num_tokens,
            ffn_ratio=2,
            ffproj_ratio=2,
        )
        self.projection.shortcut = True
        self.refines = settings.refiner_depth > 0
        if not self.refines:
            for name in ("proj_in", "layers", "proj_out", "norm_out"):
                delattr(self.projection, name)

    def forward(
        self, queries: Float[Tensor, "faces query_dim"], patches: Float[Tensor, "faces _ patch_dim"]
    ) -> Float[Tensor, "faces tokens width"]:
        """Give the tokens of each reference."""
        if not self.refines:
            made = self.projection.proj(queries)
            width = self.projection.embed_dim
            return self.projection.norm(made.unflatten(-1, (self.projection.num_tokens, width)))
        self.projection.clip_embeds = patches.unsqueeze(1)
        try:
            return self.projection(queries)
        finally:
            self.projection.clip_embeds = None


class TextFusion(nn.Module):
    """Adds to a word's features what a reference says: MLP([word; class feature]).

    It acts on the text encoder's tokens ("post") or, inside `before`, on its input embeddings
    ("pre"). The last layer starts at zero.
    """

    def __init__(self, text_dim: int, cls_dim: int) -> None:
        super().__init__()
        both = text_dim + cls_dim
        layers = (nn.Linear(both, text_dim), nn.GELU(), nn.Linear(text_dim, text_dim))
        self.mlp = nn.Sequential(nn.LayerNorm(both), *layers)
        nn.init.zeros_(layers[-1].weight)
        nn.init.zeros_(layers[-1].bias)

    def forward(
        self, tokens: Float[Tensor, "batch length text_dim"], faces: Faces
    ) -> Float[Tensor, "batch length text_dim"]:
        """Give the tokens with the people's words fused; all others are equal to the bit."""
        person = mean_of_valid(faces.cls, faces.valid)  # [B, E, c]
        named = faces.valid.any(-1) & (faces.positions >= 0)
        places = faces.positions.clamp(min=0).unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
        words = tokens.gather(1, places)
        update = self.mlp(torch.cat((words, person.to(words.dtype)), dim=-1))
        factor = named * faces.strength.unsqueeze(-1).to(update.dtype)
        return tokens.scatter_add(1, places, update * factor.unsqueeze(-1))

    @contextmanager
    def before(self, text_model: nn.Module, faces: Faces) -> Iterator[None]:
        """Fuse the input embeddings of a text encoder's prompts, one a sample, inside this block.

        After it the text encoder is as it was; inside, it may encode nothing else.
        """
        embedding: Any = text_model.get_submodule("embeddings.token_embedding")
        handle = embedding.register_forward_hook(lambda module, inputs, out: self(out, faces))
        try:
            yield
        finally:
            handle.remove()


class LowRank(nn.Module):
    """A LoRA's update up(down(x)); `up` starts at zero."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, width, bias=False)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tokens) -> Tokens:
        """Give the update."""
        return self.up(self.down(x))


class SubjectAttention(nn.Module):
    """Attention of a block's image tokens to the subject tokens.

    The query is the image's own before its rotation, since a place on the grid has no distance to
    a subject token. Keys and values are the block's own text projections plus a LoRA. The gate
    starts at zero.
    """

    def __init__(self, width: int, num_heads: int, rank: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.key, self.value = LowRank(width, rank), LowRank(width, rank)
        self.gate = nn.Parameter(torch.zeros(width))

    def forward(
        self, query: Heads, text_key: Heads, rotation: Rotation, text_qkv: nn.Module, added: Added
    ) -> tuple[Tensor, ...]:
        """Give what is added before the output layer, [B, N, D], and the maps that are wanted.

        These are averages over the heads: how much each image token attends to each of the words
        among the text tokens alone, [B, N, W], and to each person among the subject tokens,
        [B, N, E].
        """
        tokens = added.tokens
        base = getattr(text_qkv, "base_layer", text_qkv)  # without a LoRA of peft's
        _, key, value = base(tokens).chunk(3, dim=-1)
        key = (key + self.key(tokens)).unflatten(-1, (self.num_heads, -1))
        value = (value + self.value(tokens)).unflatten(-1, (self.num_heads, -1))
        attention = attention_map(query, key, added.usable)  # [B, H, N, T]
        attended = torch.einsum("bhnt,bthd->bnhd", attention.to(value.dtype), value).flatten(2)
        update = attended * (self.gate * added.strength[:, None, None]).to(attended.dtype)
        if added.words is None:
            return (update,)
        num_image = query.shape[1]
        rotated = rotate(query, rotation[:, :num_image]), rotate(text_key, rotation[:, num_image:])
        places = added.words.clamp(min=0)[:, None].expand(-1, num_image, -1)
        of_words = attention_map(*rotated).mean(1).gather(-1, places)
        of_people = attention.mean(1).unflatten(-1, (added.num_people, -1)).sum(-1)
        return update, of_words, of_people


def attention_map(
    query: Heads, key: Heads, usable: Bool[Tensor, "batch keys"] | None = None
) -> Float[Tensor, "batch heads queries keys"]:
    """How each query's attention is shared among the usable keys, float32 or wider."""
    scores = torch.einsum("bnhd,bthd->bhnt", query, key) / math.sqrt(query.shape[-1])
    scores = scores.float() if scores.dtype.itemsize < 4 else scores
    if usable is not None:
        scores = scores.masked_fill(~usable[:, None, None], -math.inf)
    return scores.softmax(-1)


class ReferenceAdapter(nn.Module):
    """The part of an adapter that precedes the blocks."""

    def __init__(
        self, width: int, num_heads: int, text_dim: int, settings: SubjectSettings
    ) -> None:
        super().__init__()
        self.settings = settings
        self.tokenizer = SubjectTokenizer(width, num_heads, settings)
        self.fusion = None if settings.fusion == "none" else TextFusion(text_dim, settings.cls_dim)
        self.pooled = nn.Linear(settings.cls_dim, width, bias=False)
        nn.init.zeros_(self.pooled.weight)

    def forward(
        self, text_tokens: Float[Tensor, "batch length text_dim"], faces: Faces
    ) -> tuple[Tensor, Tensor, Added]:
        """Give the fused text tokens, what is added to the global condition, and to the blocks."""
        dtype = self.pooled.weight.dtype
        faces = faces._replace(cls=faces.cls.to(dtype), patches=faces.patches.to(dtype))
        shape, valid = faces.valid.shape, faces.valid.flatten(1)  # [B, E R]
        queries = faces.identity if self.settings.reads_identity else faces.cls
        if queries is None:
            raise ValueError(
                "This adapter reads face-recognition embeddings of the references, and none is "
                "given; bring them, or take an adapter that reads pictures."
            )
        tokens = self.tokenizer(queries.to(dtype).flatten(0, 2), faces.patches.flatten(0, 2))
        each = tokens.shape[1]
        is_there = valid.any(-1)
        usable = (valid | ~is_there[:, None]).repeat_interleave(each, dim=1)
        strength = (faces.strength * is_there).to(dtype)
        words = None
        if faces.words is not None:
            words = torch.cat((faces.positions, faces.words), dim=1)
        tokens = tokens.unflatten(0, (shape[0], -1)).flatten(1, 2)  # [B, T, D]
        added = Added(tokens, usable, strength, words, shape[1])
        mean = mean_of_valid(faces.cls.flatten(1, 2)[:, None], valid[:, None])[:, 0]
        shift = self.pooled(mean) * strength[:, None]
        if self.fusion is not None and self.settings.fusion == "post":
            text_tokens = self.fusion(text_tokens, faces)
        return text_tokens, shift, added


def mean_of_valid(
    values: Float[Tensor, "batch people references dim"],
    valid: Bool[Tensor, "batch people references"],
) -> Float[Tensor, "batch people dim"]:
    """Average over the valid references of each person; zeros where there is none."""
    weights = valid.to(values.dtype).unsqueeze(-1)
    return (values * weights).sum(2) / weights.sum(2).clamp(min=1)
