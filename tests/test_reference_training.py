"""Training an adapter for reference faces: samples, the term on maps, the task."""

import math

import numpy as np
import pytest
import torch
from conftest import TEXT_DIM, build_text_model, build_tokenizer
from safetensors import safe_open
from torch import nn
from training_runs import face_trainer

from mmface.conditions.reference import NO_SPAN, Subject, person_span, read_subjects, subject_spans
from mmface.data.latents import COVER, class_cover
from mmface.data.mixed import SeparateStreams
from mmface.data.people import PairedReferenceSamples, ReferenceSamples, RenderedPeople
from mmface.data.pictures import IDENTITY
from mmface.data.store import ArraySpec, Store, StoreSpec, write_store
from mmface.encoders.text import TextEncoder
from mmface.model.reference_adapter import load_reference_adapter
from mmface.model.subjects import SubjectSettings
from mmface.model.transformer import MMFaceDiT
from mmface.objectives.attention_map import AttentionMapLoss, balanced, own_share
from mmface.rendered.people import (
    HELD_OUT_IDENTITY,
    TRAITS,
    identity,
    is_held_out,
    read_traits,
    render_pair,
    render_person,
)
from mmface.training.personalization import ADAPTER_FILE, Personalization

# --- words ---------------------------------------------------------------------------------------


def test_words_are_found_and_missing_ones_said():
    prompt = "A Woman with red  hair and a man"
    people = read_subjects((), ("woman=her.png", "man = him.png", "woman=also.png"))
    assert people == (Subject("woman", ("her.png", "also.png")), Subject("man", ("him.png",)))
    assert subject_spans(prompt, people) == [(2, 7), (29, 32)]
    assert person_span("red hair") is None
    assert subject_spans("red hair", read_subjects(("a.png",), ())) == [NO_SPAN]
    assert subject_spans(prompt, (Subject("red hair", ()),)) == [(13, 22)]
    with pytest.raises(ValueError, match="has no 'child'"):
        subject_spans(prompt, (Subject("child", ()),))
    for bad in ("woman", "=a.png", "woman="):
        with pytest.raises(ValueError, match="WORD=FILE"):
            read_subjects((), (bad,))
    with pytest.raises(ValueError, match="one person"):
        read_subjects(("a.png",), ("woman=b.png",))


def test_a_words_last_piece_is_its_place():
    tokenizer = build_tokenizer()  # of single bytes: a word is as many pieces as letters
    text = TextEncoder(build_text_model(tokenizer), tokenizer)
    assert text.word_positions("ab man", [(3, 6), NO_SPAN, (0, 2)]) == [5, -1, 2]
    assert text.word_positions("a " * 20 + "man", [(40, 43)]) == [-1]  # cut off
    assert text.word_positions("", [NO_SPAN]) == [-1]


# --- rendered people -----------------------------------------------------------------------------


def test_a_quarter_of_the_combinations_is_held_out_and_every_colour_is_seen():
    numbers = range(100)
    seen = [identity(number) for number in numbers]
    unseen = [identity(HELD_OUT_IDENTITY + number) for number in numbers]
    assert not any(is_held_out(p.skin, p.hair, p.eyes) for p in seen)
    assert all(is_held_out(p.skin, p.hair, p.eyes) for p in unseen)
    total = math.prod(len(palette) for palette in TRAITS.values())
    every = [
        is_held_out(s, h, e) for s in TRAITS["skin"] for h in TRAITS["hair"] for e in TRAITS["eyes"]
    ]
    assert sum(every) == total / 4
    for people in (seen, unseen):
        for name, palette in TRAITS.items():
            assert {p.traits[name] for p in people} == set(palette)
    assert identity(7) == identity(7)


@pytest.mark.slow
def test_a_person_stays_the_same_and_all_else_changes():
    right, pictures = [], []
    for number in range(8):
        person = identity(HELD_OUT_IDENTITY + number)
        for picture in range(2):
            face = render_person(person, picture, 128)
            read = read_traits(face.image, face.labels)
            right += [read[name] == person.traits[name] for name in TRAITS]
            assert face.attributes.gender == person.gender
            assert len(face.captions) == 5
            assert (
                person.hair
                not in " ".join(face.captions[:2] + face.captions[4:]).split(" hair")[:-1]
            )
        pictures.append(face.attributes)
    assert np.mean(right) > 0.9
    first, second = (render_person(identity(3), picture, 64) for picture in (0, 1))
    assert not np.array_equal(first.image, second.image)
    again = render_person(identity(3), 0, 64)
    assert np.array_equal(first.image, again.image)
    assert first.captions == again.captions


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_people_share_a_canvas_and_a_caption(order):
    people = [(identity(0), 1), (identity(1), 0)]
    pair = render_pair(people, order, 64)
    assert pair.image.shape == (64, 128, 3)
    assert pair.labels.shape == pair.sketch.shape == (64, 128)
    words = [pair.caption[start:end] for start, end in pair.spans]
    assert words == [people[side][0].gender for side in order]
    said = ("on the left", "on the right")
    places = [pair.caption.index(said[side]) for side in order]
    assert places == sorted(places)
    right = render_person(*people[1], 64)
    assert np.array_equal(pair.image[:, 64:], right.image)


# --- the term on attention maps ------------------------------------------------------------------


def test_the_term_is_nothing_for_uniform_maps_and_least_inside_the_mask():
    mask = torch.zeros(1, 1, 8)
    mask[..., :2] = 1
    uniform, inside = torch.full((1, 8, 1), 0.25), (mask / 2).transpose(1, 2)
    assert balanced(uniform, mask).abs() < 1e-5
    assert torch.allclose(balanced(inside, mask), torch.tensor([[-0.5]]), atol=1e-4)
    outside = ((1 - mask) / 6).transpose(1, 2)
    assert balanced(outside, mask) > 0
    assert balanced(inside, torch.zeros_like(mask)) == 0
    loss = AttentionMapLoss(weight=1.0)
    none = loss([(inside, inside)], mask, torch.tensor([[False]]), 1)
    assert none == 0
    logits = torch.zeros(1, 8, 1, requires_grad=True)
    loss([(logits.softmax(1),) * 2], mask, torch.tensor([[True]]), 1).sum().backward()
    assert logits.grad is not None
    assert (logits.grad[0, :2] < 0).all()
    assert (logits.grad[0, 2:] > 0).all()
    both = torch.cat((mask, mask.flip(-1)), 1)
    assert own_share(torch.cat((inside, inside), -1), both).tolist() == [[1.0, 0.0]]


def test_the_middle_blocks_are_taken():
    assert [*AttentionMapLoss(share=0.7).blocks(28)] == [*range(4, 24)]
    assert [*AttentionMapLoss(share=0.5).blocks(2)] == [1]
    assert not AttentionMapLoss(weight=0.0).blocks(28)


# --- samples and the task ------------------------------------------------------------------------


PEOPLE, EACH, SIDE = 3, 3, 28


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Latents of people as `LatentEncoding` stores them, filled by number."""
    folder = tmp_path_factory.mktemp("people") / "store"
    arrays = {n: ArraySpec((16, 4, 4), "float32") for n in ("image", "mask", "sketch")}
    arrays |= {
        "reference": ArraySpec((3, SIDE, SIDE), "uint8"),
        COVER: ArraySpec((19, 2, 2), "uint8"),
    }
    made_by = {"encoders": {"reference": {"source": "pixels", "reference_side": SIDE}}}
    spec = StoreSpec(PEOPLE * EACH, arrays, ("captions", IDENTITY), made_by)
    rng = np.random.default_rng(0)

    def row(item):
        person, picture = divmod(item, EACH)
        return {
            "id": f"{person}/{picture}",
            "captions": ("man, hair", "man in red"),
            IDENTITY: (f"p{person}",),
            "reference": np.full((3, SIDE, SIDE), 20 * person + picture, np.uint8),
            COVER: np.full((19, 2, 2), 10, np.uint8),
            **{
                n: rng.normal(size=(16, 4, 4)).astype(np.float32)
                for n in ("image", "mask", "sketch")
            },
        }

    write_store(folder, spec, lambda shards: [[row(i) for i in items] for items in shards])
    return folder


def test_references_are_other_pictures_of_the_same_person(store):
    samples = ReferenceSamples(store, max_references=2, reference_dropout=0.2, both_dropout=0.2)
    counts, dropped = set(), 0
    for item in range(len(samples)):
        for seed in range(8):
            drawn = samples.sample(item, torch.Generator().manual_seed(seed))
            person, picture = divmod(item, EACH)
            shown = set(drawn["reference"][0, :, 0, 0, 0].tolist())
            assert shown <= {20 * person + k for k in range(EACH) if k != picture}
            counts.add(int(drawn["reference_valid"].sum()))
            dropped += not drawn["reference_valid"].any()
            has_words = bool(drawn["caption"])
            assert (drawn["spans"].tolist() == [[0, 3]]) == has_words
            hair = "hair" in drawn["caption"]
            assert (drawn["word_spans"][0].tolist() == [5, 9]) == hair
    assert counts == {0, 1, 2}
    assert 0 < dropped < 40


def test_two_people_lie_beside_each_other_in_the_order_of_their_references(store):
    samples = PairedReferenceSamples(store, both_dropout=0, reference_dropout=0, text_dropout=0)
    orders = set()
    for seed in range(8):
        drawn = samples.sample(0, torch.Generator().manual_seed(seed))
        assert drawn["latents"].shape == drawn["noise"].shape == (16, 4, 8)
        first_is_left = bool(drawn["cover"][0, :, :, :2].any())
        orders.add(first_is_left)
        assert bool(drawn["cover"][1, :, :, 2:].any()) == first_is_left
        left = 0 if first_is_left else 1
        assert drawn["reference"][left, 0, 0, 0, 0] < 20  # item 0 is the first person
        assert drawn["reference"][1 - left, 0, 0, 0, 0] >= 20
        words = [drawn["caption"][a:b] for a, b in drawn["spans"].tolist()]
        assert words == ["man", "man,"[:3]]
    assert orders == {True, False}


def test_a_store_without_people_is_refused(tmp_path, store):
    spec = StoreSpec(
        1, {"image": ArraySpec((1,), "uint8"), "mask": ArraySpec((1,), "uint8")}, ("captions",), {}
    )
    one = {"id": "a", "image": np.zeros(1), "mask": np.zeros(1), "captions": ("x",)}
    write_store(tmp_path / "plain", spec, lambda shards: [[one]])
    with pytest.raises(ValueError, match="has no identities"):
        ReferenceSamples(tmp_path / "plain")


def test_cells_of_the_grid_say_what_covers_them():
    labels = np.zeros((4, 4), np.uint8)
    labels[:2, :1] = 13
    cover = class_cover(labels, 2)
    assert cover[13].tolist() == [[128, 0], [0, 0]]
    assert (cover.sum(0) >= 254).all()
    assert not class_cover(None, 2).any()
    with pytest.raises(ValueError, match="does not divide"):
        class_cover(labels, 3)


def test_rendered_people_are_a_store_that_says_who_they_are(tmp_path):
    RenderedPeople(num_faces=4, size_px=32, pictures_each=2).write(tmp_path / "people")
    people = Store(tmp_path / "people")
    assert [people.row(i, (IDENTITY,))[IDENTITY] for i in range(4)] == [["rendered/0"]] * 2 + [
        ["rendered/1"]
    ] * 2
    with pytest.raises(ValueError, match="held-out"):
        RenderedPeople(4, 32, HELD_OUT_IDENTITY - 1, pictures_each=2).write(tmp_path / "other")


def tiny_tower(folder):
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=2,
        image_size=SIDE, patch_size=14,
    )  # fmt: skip
    Dinov2Model(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def base(tiny_pipeline_folder, tmp_path_factory):
    return tiny_pipeline_folder


def reference_task(base, encoder, fusion="post", objective="rectified_flow", **options):
    torch.manual_seed(1)
    config = MMFaceDiT.load_config(base / "transformer")
    transformer = MMFaceDiT.from_config({**config, "objective": objective})
    subjects = SubjectSettings(
        cls_dim=8, patch_dim=8, num_tokens=2, refiner_depth=1, rank=2, lora_rank=2, fusion=fusion
    )
    return Personalization(
        transformer,
        base=base,
        subjects=subjects,
        encoder=encoder,
        vae=base / "vae",
        text=base,
        image_size=32,
        map_loss=AttentionMapLoss(weight=0.1),
        **options,
    )


def unchecked(task):
    """The store of these tests was made by no VAE."""
    task.check_samples = lambda samples: None
    return task


def streams(store):
    both = {"one": ReferenceSamples(store), "two": PairedReferenceSamples(store)}
    return SeparateStreams(both, {"one": 1, "two": 1})


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return tiny_tower(tmp_path_factory.mktemp("tower"))


@pytest.mark.slow
def test_one_and_two_people_train_an_adapter_that_loads_on_the_base(base, store, encoder, tmp_path):
    task = unchecked(reference_task(base, encoder))
    before = {n: p.clone() for n, p in task.trained.transformer.named_parameters()}
    trainer = face_trainer(tmp_path / "run", task, steps=2, micro=4, samples=streams(store))
    exported = trainer.train()
    logged = (tmp_path / "run/metrics.jsonl").read_text()
    for name in ("loss/velocity", "loss/attention_map", "own_share", "two_people"):
        assert name in logged
    for name, parameter in task.trained.transformer.named_parameters():
        if not parameter.requires_grad:
            assert torch.equal(parameter, before[name])
    path = exported / ADAPTER_FILE
    with safe_open(path, framework="pt") as file:
        assert any(name.startswith("encoder.") for name in file.keys())  # noqa: SIM118
    network = MMFaceDiT.from_pretrained(base / "transformer")
    loaded = load_reference_adapter(network, path)
    assert loaded.encoder["source"] == encoder
    assert network.blocks[0].added_attention.gate.abs().max() > 0


@pytest.mark.parametrize("objective", ["rectified_flow", "min_snr_diffusion"])
@pytest.mark.parametrize("fusion", ["post", "pre", "none"])
def test_the_losses_of_a_batch_in_every_variant(base, store, encoder, objective, fusion):
    task = reference_task(base, encoder, fusion, objective, gradient_checkpointing=True)
    samples = ReferenceSamples(store, reference_dropout=0, both_dropout=0, text_dropout=0)
    drawn = [samples.sample(i, torch.Generator().manual_seed(i)) for i in range(4)]
    batch = torch.utils.data.default_collate(drawn)
    task.train()
    nn.init.normal_(task.trained.transformer.blocks[0].added_attention.gate)
    losses = task(batch)
    losses["loss"].sum().backward()
    assert losses["loss"].shape == (4,)
    missing = [n for n, p in task.trained.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing


def test_a_loss_inside_the_people_is_a_mean_inside_their_mask(base, encoder):
    task = reference_task(base, encoder, masked_share=1.0)
    from mmface.objectives.losses import Corrupted

    ones = torch.ones(2)
    target = torch.randn(2, 16, 4, 4)
    people = torch.zeros(2, 1, 2, 2)
    people[0, 0, 0, 0] = 1
    corrupted = Corrupted(target, target, ones, ones)
    prediction = torch.randn(2, 16, 4, 4)
    made, changed = task._inside(prediction, corrupted, people, ones * 0.3)
    error = (made - changed.target).square().mean((1, 2, 3))
    plain = (prediction - target).square()
    assert torch.allclose(error[0], plain[0, :, :2, :2].mean())
    assert torch.allclose(error[1], plain[1].mean())  # nobody to look at
    task.masked_share = 0.0
    assert torch.equal(task._inside(prediction, corrupted, people, ones)[0], prediction)


def test_a_wrong_encoder_or_store_is_refused(base, store, encoder):
    with pytest.raises(ValueError, match="features of widths"):
        reference_task(base, "tiny-clip")
    task = reference_task(base, None)
    with pytest.raises(ValueError, match="does not hold features"):
        task.check_samples(ReferenceSamples(store))


def test_the_planner_knows_the_adapter():
    with torch.device("meta"):
        network = MMFaceDiT(hidden_size=16, depth=2, num_heads=2, text_dim=TEXT_DIM)
    count = sum(p.numel() for p in network.parameters())
    sizes = {"_target_": "x", "cls_dim": 8, "patch_dim": 8, "rank": 2, "lora_rank": 2}
    Personalization.planned(network, {"subjects": sizes})
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert sum(p.numel() for p in network.parameters()) == count + trained
    assert isinstance(network.reference, nn.Module)
