"""Reference faces in the network: nothing where none is, exact sums where one is."""

import json
import math
from typing import Any

import pytest
import torch
from conftest import TEXT_DIM, build_text_model, build_tokenizer
from diffusers.models.embeddings import IPAdapterFaceIDPlusImageProjection
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from mmface.encoders.text import TextEncoder
from mmface.model.lora import load_lora
from mmface.model.reference_adapter import (
    LORA,
    adapter_tensors,
    add_reference_adapter,
    load_reference_adapter,
    save_reference_adapter,
    train_adapter_alone,
    unload_reference_adapter,
    use_reference_lora,
)
from mmface.model.subjects import (
    Faces,
    SubjectAttention,
    SubjectSettings,
    SubjectTokenizer,
    TextFusion,
)
from mmface.model.transformer import MMFaceDiT

WIDTH, HEADS, LENGTH = 16, 2, 6
SETTINGS: dict[str, Any] = {
    **{"cls_dim": 5, "patch_dim": 7, "rank": 2, "refiner_depth": 1},
    "num_tokens": 3,
}


def network(seed=0, objective="rectified_flow"):
    torch.manual_seed(seed)
    model = MMFaceDiT(
        hidden_size=WIDTH,
        depth=2,
        num_heads=HEADS,
        mlp_ratio=2.0,
        text_dim=TEXT_DIM,
        objective=objective,
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1 + 0.05 * seed)
    return model.eval()


def inputs(batch=3, rows=4, columns=4):
    torch.manual_seed(1)
    latents = torch.randn(2, batch, 16, rows, columns)
    text = torch.randn(batch, LENGTH, TEXT_DIM), torch.randn(batch, TEXT_DIM)
    return (*latents, torch.rand(batch) * 999, *text, torch.zeros(batch, dtype=torch.long))


def faces(batch=3, people=2, references=2, valid=True, strength=1.0, words=None):
    torch.manual_seed(2)
    shape = (batch, people, references)
    return Faces(
        torch.randn(*shape, 5),
        torch.randn(*shape, 4, 7),
        torch.full(shape, valid),
        torch.tensor([[1, 3]]).expand(batch, 2)[:, :people].contiguous(),
        torch.full((batch,), strength),
        words=words,
    )


def with_adapter(trained=True, **settings):
    model = network()
    add_reference_adapter(model, SubjectSettings(**{**SETTINGS, "lora_rank": 0, **settings}))
    if trained:
        torch.manual_seed(3)
        for name, parameter in adapter_tensors(model).items():
            nn.init.normal_(parameter, std=0.3 if "gate" in name else 0.2)
    return model.eval()


@pytest.fixture(scope="module")
def adapted():
    return with_adapter()


@torch.no_grad()
def test_a_fresh_adapter_with_any_reference_changes_nothing():
    asked, base = inputs(), network()
    plain = base(*asked)
    fresh = with_adapter(trained=False, lora_rank=2)
    use_reference_lora(fresh, True)
    assert torch.allclose(fresh(*asked, faces()), plain, atol=1e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("nothing", [{"strength": 0.0}, {"valid": False}], ids=str)
def test_nothing_to_hear_is_the_base_to_the_bit(adapted, nothing):
    asked = inputs()
    plain = network()(*asked)
    assert torch.equal(adapted(*asked), plain)
    assert torch.equal(adapted(*asked, faces(**nothing)), plain)
    assert not torch.allclose(adapted(*asked, faces()), plain, atol=1e-3)


@torch.no_grad()
def test_a_row_without_a_person_hears_nothing_beside_one_that_has_one(adapted):
    asked, given = inputs(), faces()
    given.valid[1] = False
    made, plain = adapted(*asked, given), network()(*asked)
    _, shift, added = adapted.reference(asked[3], given)
    assert torch.equal(shift[1], torch.zeros(WIDTH))
    query = torch.randn(3, 4, HEADS, WIDTH // HEADS)
    block = adapted.blocks[0]
    (update,) = block.added_attention(query, query, torch.zeros(2, 8, 1, 4), block.text.qkv, added)
    assert torch.equal(update[1], torch.zeros_like(update[1]))
    assert update[0].abs().min() > 0
    assert torch.allclose(made[1], plain[1], atol=1e-6)
    assert not torch.allclose(made[0], plain[0], atol=1e-3)


@torch.no_grad()
def test_an_invalid_reference_and_an_absent_person_count_nothing(adapted):
    asked, given = inputs(), faces()
    given.valid[:, 0, 1] = False
    given.valid[:, 1] = False
    first = adapted(*asked, given)
    one: Any = [each[:, :1, :1] for each in given[:3]]
    alone = Faces(one[0], one[1], one[2], given.positions[:, :1], given.strength)
    assert torch.allclose(adapted(*asked, alone), first, atol=1e-5)
    noisy = given._replace(patches=given.patches.clone(), cls=given.cls.clone())
    noisy.patches[:, 1], noisy.cls[:, 0, 1] = 1e4, -1e4
    assert torch.equal(adapted(*asked, noisy), first)


@torch.no_grad()
def test_the_order_of_people_and_of_references_means_nothing(adapted):
    asked, given = inputs(), faces()
    made = adapted(*asked, given)
    flipped: Any = [each.flip(1) for each in given[:4]]
    swapped = given._replace(**dict(zip(Faces._fields, flipped, strict=False)))
    turned = Faces(*(each.flip(2) for each in given[:3]), *given[3:])
    for other in (swapped, turned):
        assert torch.allclose(adapted(*asked, other), made, atol=1e-5)
    crossed = given._replace(positions=given.positions.flip(1))
    assert (adapted(*asked, crossed) - made).abs().max() > 1e-5


@torch.no_grad()
def test_attention_is_the_sum_that_the_paper_writes(adapted):
    given = faces(batch=1)
    given.valid[0, 1, 1] = False
    asked = inputs(batch=1)
    _, _, added = adapted.reference(asked[3], given)
    block = adapted.blocks[0]
    attention = block.added_attention
    query = torch.randn(1, 4, HEADS, WIDTH // HEADS)
    (update,) = attention(query, query, torch.zeros(2, 8, 1, 4), block.text.qkv, added)
    tokens = added.tokens[0, added.usable[0]]
    assert len(tokens) == 3 * 3
    weight_k, weight_v = block.text.qkv.weight[WIDTH : 2 * WIDTH], block.text.qkv.weight[-WIDTH:]
    weight_k = weight_k + attention.key.up.weight @ attention.key.down.weight
    weight_v = weight_v + attention.value.up.weight @ attention.value.down.weight
    size = WIDTH // HEADS
    expected = torch.cat(
        [
            torch.softmax(
                query[0, :, h] @ (tokens @ weight_k.T)[:, h * size : (h + 1) * size].T
                / math.sqrt(size),
                -1,
            )
            @ (tokens @ weight_v.T)[:, h * size : (h + 1) * size]
            for h in range(HEADS)
        ],
        -1,
    )  # fmt: skip
    assert torch.allclose(update[0], expected * attention.gate, atol=1e-5)


def test_the_refiner_is_the_layout_of_the_release_to_the_number():
    with torch.device("meta"):
        sizes = SubjectSettings(768, 1024, reads_identity=True)
        tokenizer = SubjectTokenizer(2048, 8, sizes)
    assert isinstance(tokenizer.projection, IPAdapterFaceIDPlusImageProjection)
    count = sum(parameter.numel() for parameter in tokenizer.parameters())
    # Queries: 512 -> 1024 -> 4 x 2048 and a norm. In and out: 1024 -> 2048, 2048 -> 2048, a norm.
    queries = 512 * 1024 + 1024 + 1024 * 8192 + 8192 + 2 * 2048
    ends = 1024 * 2048 + 2048 + 2048 * 2048 + 2048 + 2 * 2048
    # A layer: two norms, four projections without bias; a norm, 2048 -> 4096 -> 2048 without bias.
    layer = 4 * 2048 + 4 * 2048**2 + 2 * 2048 + 2 * 2048 * 4096
    assert count == queries + ends + 4 * layer == 149_492_736


@torch.no_grad()
def test_the_refiner_is_its_formula_and_has_no_state():
    torch.manual_seed(0)
    tokenizer = SubjectTokenizer(WIDTH, HEADS, SubjectSettings(**SETTINGS)).double().eval()
    cls, patches = torch.randn(2, 5).double(), torch.randn(2, 4, 7).double()
    projection = tokenizer.projection
    start = projection.norm(projection.proj(cls).view(2, 3, WIDTH))
    dense, layer = projection.proj_in(patches), projection.layers[0]
    queries = layer.ln1(start)
    keys = torch.cat((layer.ln0(dense), queries), 1)
    attention, size = layer.attn, WIDTH // HEADS

    def heads(x):
        return x.view(2, -1, HEADS, size).transpose(1, 2)

    q, k, v = (
        heads(attention.to_q(queries)),
        heads(attention.to_k(keys)),
        heads(attention.to_v(keys)),
    )
    mixed = (q @ k.mT / math.sqrt(size)).softmax(-1) @ v
    state = attention.to_out[0](mixed.transpose(1, 2).reshape(2, 3, WIDTH)) + start
    state = layer.ff(state) + state
    expected = start + projection.norm_out(projection.proj_out(state))
    assert torch.allclose(tokenizer(cls, patches), expected, atol=1e-12)
    assert projection.clip_embeds is None
    plain = SubjectTokenizer(WIDTH, HEADS, SubjectSettings(**{**SETTINGS, "refiner_depth": 0}))
    assert plain(cls.float(), patches.float()).shape == (2, 3, WIDTH)
    assert not any("layers" in name for name, _ in plain.named_parameters())


@torch.no_grad()
def test_fusion_changes_the_named_words_alone():
    torch.manual_seed(0)
    fusion, given, tokens = TextFusion(TEXT_DIM, 5), faces(), inputs()[3]
    assert torch.equal(fusion(tokens, given), tokens)
    last: Any = fusion.mlp[-1]
    nn.init.normal_(last.weight)
    given.positions[1] = -1
    changed = (fusion(tokens, given) != tokens).any(-1)
    assert changed.tolist() == [[i in (1, 3) for i in range(LENGTH)], [False] * LENGTH] + [
        [i in (1, 3) for i in range(LENGTH)]
    ]


@torch.no_grad()
def test_fusion_before_the_encoder_leaves_no_trace():
    tokenizer = build_tokenizer()
    text = TextEncoder(build_text_model(tokenizer).eval(), tokenizer)
    given = faces(batch=1)
    fusion = TextFusion(TEXT_DIM, 5)
    last: Any = fusion.mlp[-1]
    nn.init.normal_(last.weight)
    plain = text(["ab cd"])
    with fusion.before(text.text_model, given):
        fused = text(["ab cd"])
    assert torch.equal(fused.tokens[:, 0], plain.tokens[:, 0])  # causal: before the word
    assert not torch.allclose(fused.tokens[:, 1], plain.tokens[:, 1])
    assert not torch.allclose(fused.pooled, plain.pooled)
    after = text(["ab cd"])
    assert all(torch.equal(a, b) for a, b in zip(after, plain, strict=True))
    with pytest.raises(ZeroDivisionError), fusion.before(text.text_model, given):
        raise ZeroDivisionError
    assert torch.equal(text(["ab cd"]).tokens, plain.tokens)


@pytest.mark.parametrize("objective", ["rectified_flow", "min_snr_diffusion"])
def test_only_the_adapter_learns(objective):
    model = network(objective=objective)
    add_reference_adapter(model, SubjectSettings(**SETTINGS, lora_rank=2))
    train_adapter_alone(model)
    use_reference_lora(model, True)
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    asked = inputs(rows=4, columns=8)  # rectangular
    for _ in range(3):
        optimizer.zero_grad()
        model(*asked, faces()).square().mean().backward()
        optimizer.step()
    own = adapter_tensors(model)
    assert any(".lora_B." in name for name in own)
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (name in own), name
        if name not in own or "up" in name:  # the first gradients of others may round to nothing
            assert torch.equal(parameter, before[name]) == (name not in own), name


def test_recomputation_and_maps_change_no_number(adapted):
    asked, given = inputs(), faces(words=torch.tensor([[2], [4], [-1]]))
    results = []
    for recomputes in (False, True):
        adapted.train()
        if recomputes:
            adapted.enable_gradient_checkpointing()
        adapted.requires_grad_(True).zero_grad()
        maps: dict[int, Any] = {1: None}
        made = adapted(*asked, given, maps)
        (made.square().mean() + maps[1][0].square().mean()).backward()
        gradients = {n: p.grad.clone() for n, p in adapted.named_parameters() if p.grad is not None}
        results.append((made, *maps[1], *gradients.values()))
        assert maps.keys() == {1}
    adapted.disable_gradient_checkpointing()
    adapted.zero_grad(set_to_none=True)
    adapted.requires_grad_(False).eval()
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
    of_words, of_people = results[0][1:3]
    assert of_words.shape == (3, 4, 3)
    assert torch.allclose(of_people.sum(-1), torch.ones(3, 4))


def test_maps_are_those_of_the_rotated_text_keys(adapted):
    """The map over the text alone is the joint attention's, renormalised."""
    from mmface.model import transformer as room

    asked, given = inputs(batch=1), faces(batch=1, strength=0.0, words=torch.tensor([[0]]))
    seen: dict[str, Any] = {}
    real = room.dispatch_attention_fn

    def spied(query, key, value):
        seen.setdefault("qk", (query, key))
        return real(query, key, value)

    room.dispatch_attention_fn = spied
    try:
        maps: dict[int, Any] = {0: None}
        with torch.no_grad():
            adapted(*asked, given, maps)
    finally:
        room.dispatch_attention_fn = real
    query, key = seen["qk"]
    scores = torch.einsum("bnhd,bthd->bhnt", query[:, :4], key[:, 4:]) / math.sqrt(WIDTH // HEADS)
    expected = scores.softmax(-1).mean(1)[..., [1, 3, 0]]
    assert torch.allclose(maps[0][0], expected, atol=1e-6)


# --- files -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapter_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("adapter") / "adapter.safetensors"
    save_reference_adapter(with_adapter(lora_rank=2), path, {"source": "nowhere"})
    return path


@torch.no_grad()
def test_a_file_gives_the_adapter_and_unloading_the_base(adapter_file):
    asked, given = inputs(), faces()
    original = with_adapter(lora_rank=2)
    use_reference_lora(original, True)
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for _ in range(2):
        loaded = load_reference_adapter(model, adapter_file)
        assert loaded.encoder == {"source": "nowhere"}
        assert torch.equal(model(*asked), network()(*asked))  # its LoRA waits for a reference
        use_reference_lora(model, True)
        assert torch.allclose(model(*asked, given), original(*asked, given), atol=1e-6)
        assert not torch.equal(model(*asked), network()(*asked))
        unload_reference_adapter(model)
        after = model.state_dict()
        assert list(after) == list(before)
        assert all(torch.equal(after[name], before[name]) for name in before)


@torch.no_grad()
def test_two_adapters_in_turn_and_a_second_at_once(adapter_file, tmp_path):
    other = tmp_path / "other.safetensors"
    model = with_adapter(num_tokens=2)
    save_reference_adapter(model, other, {})
    asked, given = inputs(), faces()
    expected = model(*asked, given)
    turn = network()
    for path in (adapter_file, other):
        load_reference_adapter(turn, path)
        with pytest.raises(ValueError, match="already"):
            load_reference_adapter(turn, adapter_file)
        made = turn(*asked, given)
        unload_reference_adapter(turn)
    assert torch.equal(made, expected)


@torch.no_grad()
def test_a_lora_beside_an_adapter_in_either_order(adapter_file, tmp_path):
    torch.manual_seed(5)
    lora = {
        "blocks.0.image.qkv.lora_A.weight": torch.randn(2, WIDTH),
        "blocks.0.image.qkv.lora_B.weight": torch.randn(3 * WIDTH, 2),
    }
    path = tmp_path / "lora.safetensors"
    save_file(lora, path)
    asked, given, made = inputs(), faces(), []
    alone = network()
    load_lora(alone, path, 0.5)
    for first in ("lora", "adapter"):
        model = network()
        for part in (first, {"lora": "adapter", "adapter": "lora"}[first]):
            if part == "lora":
                load_lora(model, path, 0.5)
            else:
                load_reference_adapter(model, adapter_file)
        use_reference_lora(model, False)
        assert torch.equal(model(*asked), alone(*asked))
        use_reference_lora(model, True)
        made.append(model(*asked, given))
        unload_reference_adapter(model)
        assert LORA not in model.peft_config
        assert torch.equal(model(*asked), alone(*asked))
    first, second = made
    assert torch.allclose(first, second, atol=1e-6)


def test_what_is_no_adapter_for_this_model_is_refused_in_one_line(adapter_file, tmp_path):
    broken = {}
    content = adapter_file.read_bytes()
    broken["torn"] = content[: len(content) // 2]
    broken["empty"] = b""
    for name, data in broken.items():
        (tmp_path / name).write_bytes(data)
    with safe_open(adapter_file, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, tmp_path / "plain")
    fewer = dict(list(tensors.items())[1:])
    save_file(fewer, tmp_path / "fewer", metadata)
    nan = {name: each * math.nan for name, each in tensors.items()}
    save_file(nan, tmp_path / "nan", metadata)
    for key, value in (("settings", {"cls_dim": -1}), ("base", {}), ("version", 9)):
        (described,) = metadata.values()
        changed = json.loads(described) | {key: value}
        save_file(tensors, tmp_path / key, {next(iter(metadata)): json.dumps(changed)})
    model = network()
    before = list(model.state_dict())
    for name in ("torn", "empty", "plain", "fewer", "nan", "settings", "base", "version"):
        with pytest.raises(ValueError, match=name) as error:
            load_reference_adapter(model, tmp_path / name)
        assert "\n" not in str(error.value)
        assert list(model.state_dict()) == before
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_reference_adapter(model, tmp_path / "absent")
    with pytest.raises(ValueError, match="trained on another model"):
        load_reference_adapter(network(seed=1), adapter_file)
    wide = MMFaceDiT(hidden_size=32, depth=2, num_heads=HEADS, text_dim=TEXT_DIM)
    with pytest.raises(ValueError, match="hidden_size 16, not 32"):
        load_reference_adapter(wide, adapter_file)


def test_the_attention_lies_in_the_blocks_that_are_wrapped_and_compiled():
    model = with_adapter()
    for block in model.blocks:
        assert type(block).__name__ in model._no_split_modules
        assert type(block).__name__ in model._repeated_blocks
        assert isinstance(block.added_attention, SubjectAttention)
