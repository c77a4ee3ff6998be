"""UniF2ace's model: who attends to whom, which experts work and learn, and foreign weights."""

from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import PhiConfig, PhiForCausalLM

from mmface.core.sources import UnusableModelError
from mmface.model.experts import (
    GroupedTokenMoE,
    Routing,
    SequenceMoE,
    balance_loss,
    top_weights,
)
from mmface.model.unified import SPECIAL, UnifiedConfig, UnifiedPhi, start_from

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
}
OWN: dict[str, Any] = {
    "num_words": 20,
    "num_codes": 8,
    "num_image_tokens": 4,
    "max_words": 6,
    "num_routed_experts": 4,
    "num_chosen_experts": 2,
    "expert_width": 6,
    "feature_dims": {"clip": 5, "face": 3},
    "resampler_width": 8,
    "resampler_heads": 2,
}
WORDS = [[3, 4, 5], [6, 7]]


def build(seed=0, **options):
    torch.manual_seed(seed)
    model = UnifiedPhi(UnifiedConfig(**(SIZES | OWN | options))).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture(scope="module")
def codes():
    return torch.tensor([[1, 2, 3, 4], [7, 6, 5, 0]])


@pytest.fixture(scope="module")
def features():
    generator = torch.Generator().manual_seed(3)
    return {
        "clip": torch.randn(2, 5, 5, generator=generator),
        "face": torch.randn(2, 2, 3, generator=generator),
    }


def test_the_vocabulary_is_show_os():
    with torch.device("meta"):
        known = UnifiedPhi(UnifiedConfig()).vocabulary
    assert len(known) == 58498
    assert known.mask == 58497
    assert known.special("pad") == 50295
    assert known.first_code == 50305


def test_layouts(model, codes):
    known = model.vocabulary
    drawing = model.drawing(WORDS, torch.where(codes > 5, -1, codes))
    pad, t2i, mmu, soi, eoi = (known.special(n) for n in ("pad", "t2i", "mmu", "soi", "eoi"))
    first = known.first_code
    assert drawing.ids[1].tolist() == [
        *[pad, pad, pad, t2i, 6, 7, soi, known.mask, known.mask, first + 5, first, eoi]
    ]
    assert drawing.ids[:, drawing.picture].shape == (2, 4)
    assert drawing.attended[1].tolist() == [False] * 3 + [True] * 9
    reading = model.understanding(WORDS, codes)
    assert reading.ids[1, :2].tolist() == [mmu, soi]
    assert reading.ids[1, 6:].tolist() == [eoi, 6, 7, pad]
    assert reading.words == 7
    long = model.drawing([[1] * 50, []], codes)
    assert long.ids.shape == (2, 12)
    assert len(SPECIAL) == 10


def test_the_omni_masks_truth_table(model, codes):
    drawing = model.drawing(WORDS, codes)
    seen = drawing.attention[1, 0] == 0
    picture = range(6, 12)  # soi to eoi
    for row in range(12):
        for column in range(12):
            is_padding = column < 3
            both_in_picture = row in picture and column in picture
            wanted = row == column or (not is_padding and (column < row or both_in_picture))
            assert bool(seen[row, column]) == wanted, (row, column)
    reading = model.understanding(WORDS, codes)
    seen = reading.attention[1, 0] == 0
    assert seen[1:7, 1:7].all()  # the picture sees itself
    assert seen[7:9, :7].all()  # words see all of the picture
    assert not seen[:7, 7:].any()  # and it sees no word
    assert seen[7:9, 7:9].tolist() == [[True, False], [True, True]]
    assert not seen[:9, 9].any()  # padding is seen by nobody


def test_what_changes_what(model, codes, features):
    def drawn(words, own):
        layout = model.drawing(words, own)
        return model.states(layout, model.routed(layout, level=torch.tensor([0.5, 0.5])))

    plain = drawn(WORDS, codes)
    changed = codes.clone()
    changed[:, 3] = 2
    other = drawn(WORDS, changed)
    assert torch.equal(plain[:, :6], other[:, :6])  # words precede the picture
    assert (plain[:, 7] != other[:, 7]).any()  # its first code sees its last
    later = drawn([[3, 4, 9], [6, 9]], codes)
    torch.testing.assert_close(plain[:, :5], later[:, :5])
    assert (plain[:, 5] != later[:, 5]).any()

    def read(words):
        layout = model.understanding(words, codes)
        return model.states(layout, model.routed(layout, features=features))

    padded, alone = read(WORDS), read([[3, 4, 5], [6, 7, 1]])
    torch.testing.assert_close(padded[:, :9], alone[:, :9])


def test_a_causal_mask_gives_phis_own_logits():
    torch.manual_seed(0)
    phi = PhiForCausalLM(PhiConfig(vocab_size=39, **SIZES)).eval()
    model = build(num_routed_experts=0, has_sequence_experts=False)
    model.load_state_dict(phi.state_dict())
    ids = torch.randint(39, (2, 7))
    mask = torch.full((7, 7), torch.finfo(torch.float32).min).triu(1).expand(2, 1, 7, 7)
    with torch.no_grad():
        torch.testing.assert_close(model(ids, attention_mask=mask).logits, phi(ids).logits)
        assert torch.equal(model(ids).logits, phi(ids).logits)


def test_chosen_weights_add_up_to_one_and_even_routing_has_the_least_balance_loss():
    logits = torch.randn(5, 3, 8, dtype=torch.float64)
    _, weights = top_weights(logits, 4)
    assert (weights > 0).sum(-1).eq(4).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(5, 3))
    assert weights.argmax(-1).equal(logits.argmax(-1))
    even = torch.eye(4).roll(1, 0) * 1e-4 + 0.25
    assert balance_loss(even / even.sum(-1, keepdim=True), torch.eye(4)).item() == pytest.approx(1)
    one = torch.tensor([[0.7, 0.1, 0.1, 0.1]] * 4)
    assert balance_loss(one, (one > 0.5).float()).item() == pytest.approx(2.8)
    counted = torch.tensor([True, False, False, False])
    assert balance_loss(one, torch.eye(4), counted).item() == pytest.approx(2.8)


@pytest.mark.parametrize("task", ["generation", "understanding"])
def test_a_task_leaves_the_other_ones_experts_alone(task, codes, features):
    model = build()
    if task == "generation":
        layout = model.drawing(WORDS, codes)
        routing = model.routed(layout, level=torch.tensor([0.2, 0.9]))
    else:
        layout = model.understanding(WORDS, codes)
        routing = model.routed(layout, features=features)
    (model.states(layout, routing).square().sum() + sum(routing.balance)).backward()
    assert len(routing.balance) == 2
    theirs = {"generation": ("noise",), "understanding": ("clip", "face")}
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        if own := {"generation", "understanding"} & set(parts):
            has = parameter.grad is not None and bool((parameter.grad != 0).any())
            router_of_pictures = "sequence" in parts
            assert has == (task in own) or (router_of_pictures and task in own), name
        for group, experts in theirs.items():
            if group != task and set(experts) & set(parts):
                assert parameter.grad is None or not parameter.grad.any(), name


def test_experts_that_add_nothing_leave_the_dense_network_to_the_bit():
    config = UnifiedConfig(**SIZES, **OWN)
    experts = GroupedTokenMoE(config)
    groups: Any = experts.groups
    for group in groups.values():
        torch.nn.init.zeros_(group.down.weight)
    states = torch.randn(2, 5, 16)
    dense = experts.fc2(experts.activation_fn(experts.fc1(states)))
    for task in ("generation", "understanding"):
        assert torch.equal(experts(states, Routing(task)), dense)
    layers: Any = UnifiedPhi(config).model.layers
    assert not any(g.down.weight.any() for x in layers for g in x.mlp.groups.values())


def test_gated_experts_equal_those_computed_one_by_one():
    torch.manual_seed(0)
    group: Any = GroupedTokenMoE(UnifiedConfig(**SIZES, **OWN)).groups["generation"]
    states = torch.randn(2, 5, 16)
    _, weights = top_weights(group.router(states), 2)
    expected = torch.zeros_like(states)
    for expert in range(4):
        rows = slice(expert * 6, expert * 6 + 6)
        hidden = torch.relu(states @ group.up.weight[rows].T + group.up.bias[rows])
        expected += weights[..., expert, None] * (hidden @ group.down.weight[:, rows].T)
    torch.testing.assert_close(group(states, torch.relu, Routing("generation")), expected)


def forced(experts: SequenceMoE, task, first, second):
    """Make the router choose two experts for tokens whose mean is positive."""
    router: Any = experts.routers[task]
    weight = torch.full_like(router.weight, -1.0)
    weight[[first, second]] = torch.tensor([[1.0], [0.7]])
    with torch.no_grad():
        router.weight.copy_(weight)


def test_sequence_experts():
    torch.manual_seed(0)
    experts, picture = SequenceMoE(6), slice(2, 5)
    states = torch.rand(2, 7, 6) + 0.1
    features = {name: torch.randn(2, 3, 6) for name in ("noise", "clip", "face")}
    forced(experts, "generation", 0, 1)
    routing = Routing("generation", picture, features)
    assert torch.equal(experts(states, routing), states)  # copy + copy
    forced(experts, "understanding", 1, 3)
    told = Routing("understanding", picture, features)
    mixed = experts(states, told)
    assert torch.equal(mixed[:, :2], states[:, :2])
    assert torch.equal(mixed[:, 5:], states[:, 5:])
    own, other = torch.tensor([1.0, 0.0]).softmax(0)
    logits = experts.routers["understanding"](states[:, picture].mean(1))
    copy, face = logits[:, [1, 3]].softmax(-1)[..., None, None].unbind(1)
    tokens = states[:, picture]
    expected = copy * tokens + face * (own * tokens + other * features["face"])
    torch.testing.assert_close(mixed[:, picture], expected)
    without = experts(states, Routing("understanding", picture, features | {"clip": 0 * tokens}))
    assert torch.equal(without, mixed)  # CLIP was not chosen
    forced(experts, "generation", 2, 2)
    alone = SequenceMoE(6, num_chosen=1)
    alone.load_state_dict(experts.state_dict())
    assert not alone(states, routing)[:, picture].any()  # zero
    assert torch.equal(experts(states, Routing("understanding")), states)  # no picture


def test_a_forced_face_expert_makes_words_depend_on_the_picture(codes, features):
    model = build()
    for layer in model.model.layers:
        with torch.no_grad():
            weight = layer.sequence.routers["understanding"].weight
            weight.zero_()
            layer.sequence.routers["understanding"].register_forward_hook(
                lambda _, inputs, out: out + torch.tensor([5.0, 0.0, 0.0, 9.0])
            )

    def words(given):
        layout = model.understanding(WORDS, codes)
        return model.states(layout, model.routed(layout, features=given))[:, layout.words :]

    plain = words(features)
    assert not torch.equal(plain, words(features | {"face": features["face"] + 1}))
    assert torch.equal(plain, words(features | {"clip": features["clip"] + 1}))
    with pytest.raises(ValueError, match="features of clip are not given"):
        words({"face": features["face"]})


def test_it_loads_again_with_equal_weights(model, codes, tmp_path):
    model.save_pretrained(tmp_path)
    again = UnifiedPhi.from_pretrained(tmp_path).eval()
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert again.vocabulary == model.vocabulary


def test_it_starts_from_phi_by_path(tmp_path, codes):
    torch.manual_seed(1)
    phi = PhiForCausalLM(PhiConfig(vocab_size=22, **SIZES))  # more rows than its tokenizer has
    phi.save_pretrained(tmp_path)
    model = build()
    before = model.model.embed_tokens.weight.clone()
    start_from(model, tmp_path)
    assert torch.equal(model.model.embed_tokens.weight[:20], phi.model.embed_tokens.weight[:20])
    assert torch.equal(model.model.embed_tokens.weight[20:], before[20:])
    assert torch.equal(model.model.layers[1].mlp.fc1.weight, phi.model.layers[1].mlp.fc1.weight)
    assert torch.equal(model.lm_head.bias[:20], phi.lm_head.bias[:20])
    small = build(num_words=12)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        start_from(small, tmp_path / "nothing")


def test_it_starts_from_show_o_by_path(tmp_path):
    torch.manual_seed(1)
    show_o = PhiForCausalLM(PhiConfig(vocab_size=39, qk_layernorm=True, **SIZES))
    weights = {f"showo.{name}": each.contiguous() for name, each in show_o.state_dict().items()}
    save_file(weights, tmp_path / "model.safetensors")
    model = build(qk_layernorm=True)
    start_from(model, tmp_path)
    for name, tensor in show_o.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    with pytest.raises(UnusableModelError, match=r"is \(39, 16\), not \(39, 24\)"):
        start_from(build(qk_layernorm=True, hidden_size=24), tmp_path)


def test_codes_alike_start_alike(model):
    fresh = UnifiedPhi(UnifiedConfig(**SIZES, **OWN))
    bits = torch.tensor([[1.0, 1, 1], [1, 1, -1], [-1, -1, -1]])
    first = fresh.vocabulary.first_code
    before = fresh.model.embed_tokens.weight.detach().clone()
    fresh.start_codes_by_bits(bits)
    added = (fresh.model.embed_tokens.weight - before)[first : first + 3].detach()
    near, far = (added[0] - added[1]).norm(), (added[0] - added[2]).norm()
    assert near < far
    assert not (fresh.model.embed_tokens.weight - before)[:first].any()
