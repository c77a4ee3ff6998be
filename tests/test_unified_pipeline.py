"""Drawing and answering: the decoder is diffusers', given codes stay, a cache changes no word."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AmusedScheduler
from PIL import Image
from script_runs import load_script
from unified_parts import CONFIG, SIZE, tiny_image_tokenizer, tiny_towers, tiny_unified, tiny_words

from mmface import builtin
from mmface.core.sources import UnusableModelError
from mmface.data.conversations import ConversationSamples, DrawingSamples, RenderedWords
from mmface.data.keyed import keyed_generator
from mmface.data.mixed import SeparateStreams, collated
from mmface.data.pictures import RenderedPictures, StoredPictures
from mmface.encoders import Encoder
from mmface.encoders.words import WordTokenizer
from mmface.objectives.discrete import D3Diff
from mmface.sampling.unified import UnifiedPipeline, fill_in
from mmface.training.unified import UnifiedTraining


@pytest.fixture(scope="module")
def pipeline():
    return tiny_unified()


@pytest.fixture(scope="module")
def faces():
    rng = np.random.default_rng(0)
    return [rng.integers(256, size=(SIZE, SIZE, 3), dtype=np.uint8) for _ in range(2)]


@pytest.mark.parametrize("given", [0, 5])
def test_decoding_is_amuseds_to_the_number(given):
    table = torch.randn(12, 7, generator=torch.Generator().manual_seed(1)) * 2
    codes = torch.full((1, 12), -1)
    codes[0, :given] = torch.arange(given)
    states = []

    def logits_of(known, share):
        states.append(known.clone())
        return table[None] + 0.1 * (known < 0).sum() + share

    found = fill_in(logits_of, codes, 5, [torch.Generator().manual_seed(3)])
    scheduler = AmusedScheduler(mask_token_id=-1)
    scheduler.set_timesteps(5)
    generator, sample = torch.Generator().manual_seed(3), codes
    for step, timestep in enumerate(scheduler.timesteps):
        assert torch.equal(sample, states[step])
        share = float((sample < 0).float().mean())
        logits = table[None] + 0.1 * (sample < 0).sum() + share
        sample = scheduler.step(
            logits, timestep, sample, starting_mask_ratio=1 - given / 12, generator=generator
        ).prev_sample
    assert torch.equal(found, sample)
    assert (found >= 0).all()
    assert torch.equal(found[:, :given], codes[:, :given])


def test_a_drawn_face_depends_on_its_seed_alone(pipeline):
    prompts = ["a woman with red hair", "red"]
    both = pipeline.draw(prompts, [5, 6], num_steps=3)
    again = pipeline.draw(prompts[1:], [6], num_steps=3)
    assert torch.equal(both.codes[1], again.codes[0])
    assert np.array_equal(np.array(both.images[1]), np.array(again.images[0]))
    assert both.images[0].size == (SIZE, SIZE)
    other = pipeline.draw(prompts[1:], [7], num_steps=3)
    assert not torch.equal(other.codes, again.codes)
    for wrong in ({"num_steps": 0}, {"guidance_scale": -1.0}, {"seeds": [1, 2]}):
        with pytest.raises(ValueError, match=r"num_steps|guidance|seeds"):
            pipeline.draw(**({"prompts": ["x"], "seeds": [1]} | wrong))


def test_in_painting_keeps_what_is_given(pipeline, faces):
    region = np.zeros((SIZE, SIZE), dtype=bool)
    region[:9, :9] = True  # touches four codes of 8 px
    given = pipeline.kept(faces[0], region)
    assert (given < 0).sum() == 4
    drawn = pipeline.draw(["red"], [1], num_steps=4, given=given)
    kept = given >= 0
    assert torch.equal(drawn.codes.flatten(1)[kept], given[kept])
    with pytest.raises(ValueError, match="empty"):
        pipeline.kept(faces[0], region & False)


def plain_answer(pipeline, face, question, num):
    """Answer word by word, each from the whole sequence anew."""
    pixels = pipeline.pixels([face])
    codes = pipeline.image_tokenizer.encode(pixels).flatten(1)
    ids = pipeline.words.question(question)
    start = len(ids)
    while len(ids) < start + num:
        layout = pipeline.model.understanding([ids], codes)
        routing = pipeline.model.routed(layout, features=pipeline.features(pixels))
        logits = pipeline.model.word_logits(pipeline.model.states(layout, routing))
        word = int(logits[0, -1].argmax())
        ids.append(word)
        if word == pipeline.words.end:
            break
    return pipeline.words.text(ids[start:])


def test_answers_are_the_same_without_a_cache_and_in_any_batch(pipeline, faces):
    questions = ["What colour is the hair?", "What is it?"]
    found = pipeline.answer(faces, questions, max_new_words=8)
    assert found == pipeline.answer(faces, questions, max_new_words=8)
    plain = [plain_answer(pipeline, *each, 8) for each in zip(faces, questions, strict=True)]
    assert found == plain
    assert found[:1] == pipeline.answer(faces[:1], questions[:1], max_new_words=8)
    same = pipeline.answer([faces[0]] * 2, [questions[0]] * 2, max_new_words=8)
    assert same == [found[0]] * 2


def test_an_answer_streams_and_stops(pipeline, faces):
    class Streamer:
        def __init__(self):
            self.seen = []

        def put(self, value):
            self.seen.append(value)

        def end(self):
            self.seen.append("end")

    streamer = Streamer()
    pixels = pipeline.pixels(faces[:1])
    whole = pipeline.answered(pixels, ["What?"], 6, streamer=streamer)
    assert streamer.seen[-1] == "end"
    cut = pipeline.answered(pixels, ["What?"], 6, is_stopped=lambda: True)
    assert len(pipeline.words.question(cut[0])) <= len(pipeline.words.question(whole[0]))


def test_it_saves_and_loads(pipeline, faces, tmp_path):
    pipeline.save_pretrained(tmp_path)
    again = UnifiedPipeline.from_pretrained(tmp_path)
    assert torch.equal(again.draw(["red"], [2], 2).codes, pipeline.draw(["red"], [2], 2).codes)
    asked = (faces[:1], ["What?"], 5)
    assert again.answer(*asked) == pipeline.answer(*asked)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index == {"_class_name": "UnifiedPipeline", "image_size": SIZE}
    (tmp_path / "tokenizer" / "tokenizer.json").unlink()
    (tmp_path / "tokenizer" / "tokenizer_config.json").unlink()
    with pytest.raises(UnusableModelError, match="no tokenizer"):
        UnifiedPipeline.from_pretrained(tmp_path)
    with pytest.raises(UnusableModelError, match="MMFacePipeline, which answers no questions"):
        UnifiedPipeline.from_pretrained(builtin("tiny-flow"))


def test_parts_that_do_not_fit_are_named(pipeline):
    own = pipeline
    with pytest.raises(ValueError, match="codes of a picture"):
        UnifiedPipeline(own.model, own.image_tokenizer, own.words, own.towers, 2 * SIZE)


def test_towers_are_encoders():
    for tower in tiny_towers().values():
        assert isinstance(tower, Encoder)
        found = tower.features(torch.zeros(2, 3, SIZE, SIZE))["states"]
        assert found.shape[1:] == tower.gives((SIZE, SIZE))["states"].shape
        assert tower.flops((SIZE, SIZE)) > 0
        assert tower.activation_bytes((SIZE, SIZE), torch.float32) > 0
        assert len(tower.identity()) == 1


def test_words_come_back():
    words = tiny_words()
    assert words.text(words.answer("red")) == "red"
    assert words.prompt("a woman with red hair", 4)[0] == words.end == words.prompt("a b c", 4)[-1]
    assert len(words.prompt("a woman with red hair in a dress", 4)) == 4
    words.tokenizer.eos_token = None
    with pytest.raises(ValueError, match="ends a text"):
        WordTokenizer(words.tokenizer)


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faces")
    RenderedPictures(num_faces=2, size_px=SIZE, distribution="candid").write(folder)
    pictures, words = StoredPictures(folder), RenderedWords()
    streams: dict[str, Any] = {
        "drawing": DrawingSamples(pictures, words, text_dropout=0.2),
        "understanding": ConversationSamples(pictures, words, num_turns=2, kinds=("hair_color",)),
    }
    return SeparateStreams(streams, {"drawing": 1, "understanding": 1})


@pytest.mark.slow
def test_it_learns_both_tasks_and_exports(samples, tmp_path):
    torch.manual_seed(0)
    tiny_image_tokenizer().network.save_pretrained(tmp_path / "codes")
    towers = tiny_towers()
    for name, tower in towers.items():
        tower.network.save_pretrained(tmp_path / name)
    task = UnifiedTraining(
        tmp_path / "codes",
        tiny_words(),
        {name: tmp_path / name for name in towers},
        CONFIG,
        SIZE,
        D3Diff(),
        previews=("red hair",),
        export_dtype="float16",
    )
    task.check_samples(samples)
    with pytest.raises(ValueError, match="SeparateStreams of drawing and understanding"):
        task.check_samples(samples.streams["drawing"])
    batch = collated([samples.sample(item, keyed_generator(item)) for item in range(4)])
    optimizer = torch.optim.Adam(task.trained.parameters(), lr=1e-2)
    losses = []
    for _ in range(25):
        result = task(batch)
        assert result["loss"].shape == (4,)
        parts = task.subsets(batch)
        own = [result[f"loss/{n}"] for n in ("answers", "understanding_balance")]
        torch.testing.assert_close(
            sum(own), result["loss"].detach()[parts["understanding"]], rtol=1e-5, atol=1e-5
        )
        result["loss"].mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append({n: float(v.detach().mean()) for n, v in result.items()})
    for name in ("loss/masked", "loss/answers"):
        assert losses[-1][name] < 0.8 * losses[0][name], name
    task.preview(task.trained, tmp_path, 25)
    assert (tmp_path / "0000025_0.png").exists()
    task.export(task.trained, tmp_path / "export")
    exported = UnifiedPipeline.from_pretrained(tmp_path / "export")
    assert exported.draw(["red"], [0], 1).images[0].size == (SIZE, SIZE)
    assert task.frozen[0].training is False
    assert not any(p.requires_grad for p in task.frozen.parameters())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{face}", " "], "the question is no text"),
        (["none.png"], "none.png does not exist"),
        (["{face}", "--pipeline", "nothing/here/x"], "nothing/here/x"),
    ],
)
def test_a_mistake_in_asking_is_one_line(arguments, said, tmp_path, capsys):
    Image.fromarray(np.zeros((SIZE, SIZE, 3), np.uint8)).save(tmp_path / "face.png")
    given = [each.format(face=tmp_path / "face.png") for each in arguments]
    given += [] if "--pipeline" in given else ["--pipeline", str(tmp_path)]
    assert load_script("ask")(given) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert "\n" not in error


def test_a_face_is_asked_by_its_script(pipeline, tmp_path, capsys):
    pipeline.save_pretrained(tmp_path / "model")
    Image.fromarray(np.zeros((SIZE, SIZE, 3), np.uint8)).save(tmp_path / "face.png")
    given = [str(tmp_path / "face.png"), "What?", "--pipeline", str(tmp_path / "model"), "--json"]
    assert load_script("ask")(given) == 0
    assert json.loads(capsys.readouterr().out)["q"] == "What?"
