"""Captions: filters on artefacts, engines and rewriter on tiny models, the cap, and the whole."""

import re

import numpy as np
import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTokenizer,
    GotOcr2ImageProcessorPil,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    ProcessorMixin,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from mmface.annotation import caption_filters as rules
from mmface.annotation.caption_engines import (
    Answer,
    CaptionerSettings,
    CaptionRequest,
    TransformersCaptioner,
    VllmCaptioner,
)
from mmface.annotation.caption_prompts import PROMPTS
from mmface.annotation.captions import PictureCaptioner
from mmface.annotation.rewriting import (
    Rewriter,
    RewriterSettings,
    cap_to_tokens,
    num_tokens,
    only_takes_away,
)

GOOD = "A young woman with long red hair smiles."
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<v>"]
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{{ '<IMG_CONTEXT>\n' if part['type'] == 'image' else part['text'] }}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.mark.parametrize(
    ("rule", "before", "after"),
    [
        ("without_control_text", "<think>Hm, red.</think>A man.<|im_end|>", " A man. "),
        ("without_control_text", "A man. See https://x.org/a now.", "A man. See  now."),
        (
            "without_markdown",
            "## Hair\n- **Brown** hair.\n2. `Blue` eyes.",
            "Hair\nBrown hair.\nBlue eyes.",
        ),
        ("without_odd_spacing", " A  man’s beard , grey .\n😀", "A man's beard, grey."),
        ("without_quotes", '"A man in a "blue" hat."', "A man in a blue hat."),
        ("without_opener", "Sure! Here is the caption: The image shows a man.", "A man."),
        ("without_opener", "In this photo, there is a woman.", "A woman."),
        (
            "without_opener",
            "This is a close-up portrait of a man.",
            "A close-up portrait of a man.",
        ),
        ("without_opener", "The woman shows a smile.", "The woman shows a smile."),
        ("without_refusal", "I'm sorry, but I can't help with that.", ""),
        ("without_refusal", "As an AI, I see a man.", ""),
        ("without_talk", "A man smiles. Let me know if you need more.", "A man smiles."),
        ("without_identity", "A man smiles. He looks like Jon Doe.", "A man smiles."),
        ("without_identity", "Jon Doe smiles. He has a beard.", "He has a beard."),
        ("without_identity", "A famous actor. He has a beard.", "He has a beard."),
        ("without_identity", "A young African American woman.", "A young African American woman."),
        ("without_hedges", "She appears to be young. It might be cold.", "She is young."),
        ("without_hedges", "A man smiles, suggesting joy.", "A man smiles."),
        ("without_hedges", "He is wearing what appears to be a hat.", "He is wearing a hat."),
        ("without_photo_quality", "An 8k photo of a man. The image is sharp.", "A photo of a man."),
        ("without_photo_quality", "A man with a beard, high quality.", "A man with a beard."),
        ("without_foreign_script", "A man 微笑 smiles warmly.", "A man smiles warmly."),
        ("without_foreign_script", "一个男人 smiles", ""),
        ("without_repetition", "A man smiles. A man smiles.", "A man smiles."),
        ("without_repetition", "A man with a hat, with a hat, with a hat.", "A man with a hat."),
        ("without_unfinished_end", "A man smiles. He wears a", "A man smiles."),
        ("without_unfinished_end", "A man with long hair", "A man with long hair."),
        ("without_unfinished_end", "A man, smiling, with a", "A man, smiling."),
        ("without_short_text", "A man.", ""),
    ],
)
def test_each_rule_removes_its_artefact(rule, before, after):
    assert getattr(rules, rule)(before) == after


@pytest.mark.parametrize("rule", [*rules.FILTERS, rules.without_markdown], ids=lambda r: r.__name__)
def test_no_rule_touches_a_good_caption(rule):
    assert rule(GOOD) == GOOD


def test_half_a_word_is_not_kept():
    assert rules.without_unfinished_end("A man, in a blu", finished=False) == "A man."


def test_repeating_the_prompt_is_leakage():
    prompt = "Describe the hair of this person. Say only what can be seen here."
    text = f"{GOOD} Say only what can be seen here."
    assert rules.without_prompt(text, prompt) == GOOD
    assert rules.without_prompt(GOOD, prompt) == GOOD


def test_all_rules_together():
    answer = (
        "Sure! **The image shows a young woman with long red hair.** She appears to be smiling.\n"
        "- The photo is of high quality.\n- She resembles Jon Doe. She wears a"
    )
    found = rules.filter_caption(answer)
    assert found.text == "A young woman with long red hair. She is smiling."
    assert {"without_markdown", "without_opener", "without_identity"} <= set(found.changed_by)
    assert rules.filter_caption(GOOD) == rules.Filtered(GOOD, ())


def test_there_are_ten_prompts_of_two_kinds_with_names_of_their_own():
    names = [prompt.name for prompt in PROMPTS]
    assert len(set(names)) == len({prompt.text for prompt in PROMPTS}) == 10
    assert sum(name.startswith("describe") for name in names) == 5


class PictureProcessor(InternVLProcessor):
    """InternVL's processor without its videos, for which it imports torchvision."""

    def __init__(self, image_processor, tokenizer, image_seq_length, chat_template):
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)
        self.image_seq_length = image_seq_length
        self.start_image_token = tokenizer.start_image_token
        self.end_image_token = tokenizer.end_image_token
        self.image_token = tokenizer.context_image_token
        self.image_token_id = tokenizer.context_image_token_id
        self.start_image_token_id = tokenizer.start_image_token_id
        self.end_image_token_id = tokenizer.end_image_token_id
        self.multimodal_pattern = re.compile("(?P<image><IMG_CONTEXT>)|(?P<video><v>)")


def qwen_tokenizer():
    vocab = {name: i for i, name in enumerate([*sorted(ByteLevel.alphabet()), *SPECIAL])}
    names = ("start_image_token", "end_image_token", "context_image_token", "video_token")
    return Qwen2Tokenizer(
        vocab=vocab,
        merges=[],
        unk_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=SPECIAL,
        extra_special_tokens=dict(zip(names, SPECIAL[3:], strict=True)),
        chat_template=TEMPLATE,
    )


def text_sizes(tokenizer):
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
    }


def randomize(model):
    """Weights large enough that what goes in decides what comes out."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(std=0.5, generator=generator)
    return model


@pytest.fixture(scope="module")
def captioner():
    tokenizer = qwen_tokenizer()
    vision = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "image_size": [28, 28],
        "patch_size": [7, 7],
    }
    config = InternVLConfig(
        vision_config=vision,
        text_config={"model_type": "qwen2"} | text_sizes(tokenizer),
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=4,
    )
    images = GotOcr2ImageProcessorPil(size={"height": 28, "width": 28})
    settings = CaptionerSettings("tiny", "abc", "float32", max_new_tokens=12)
    model = randomize(InternVLForConditionalGeneration(config))
    return TransformersCaptioner(model, PictureProcessor(images, tokenizer, 4, TEMPLATE), settings)


def requests():
    pictures = np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), dtype=np.uint8)
    asked = ("Hair?", "Say what there is to be seen, with all of its colours.", "Hat?")
    return [CaptionRequest(pictures[i % 2], prompt, seed=i) for i, prompt in enumerate(asked)]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_batch_is_answered_like_each_request_alone(captioner, temperature):
    together = captioner.answer(requests(), temperature)
    alone = [captioner.answer([one], temperature)[0] for one in requests()]
    assert together == alone
    assert len({answer.text for answer in together}) > 1


def test_the_picture_and_the_seed_decide_the_answer(captioner):
    one = requests()[1]
    other_seed = one._replace(seed=99)
    assert captioner.answer([one], 1.0) == captioner.answer([one], 1.0)
    assert captioner.answer([one], 1.0) != captioner.answer([other_seed], 1.0)
    assert captioner.answer([one]) == captioner.answer([other_seed])
    darker = one._replace(picture=one.picture // 4)
    assert captioner.answer([one], 1.0) != captioner.answer([darker], 1.0)


def test_sampling_follows_the_softmax():
    from mmface.annotation.caption_engines import KeyedSampling

    scores = torch.tensor([[1.0, 0.0, -1.0]]).expand(4000, 3)
    drawn = KeyedSampling(range(4000), 0.5)(torch.zeros(4000, 1, dtype=torch.long), scores).argmax(
        1
    )
    shares = torch.bincount(drawn, minlength=3) / 4000
    torch.testing.assert_close(shares, (scores[0] / 0.5).softmax(0), rtol=0, atol=0.03)


def test_missing_engines_are_named(monkeypatch):
    monkeypatch.setattr("mmface.annotation.caption_engines.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="torchvision"):
        TransformersCaptioner.from_pretrained(CaptionerSettings())
    with pytest.raises(ValueError, match="pip install vllm"):
        VllmCaptioner(CaptionerSettings())


@pytest.fixture(scope="module")
def rewriter():
    tokenizer = qwen_tokenizer()
    model = randomize(Qwen3ForCausalLM(Qwen3Config(head_dim=8, **text_sizes(tokenizer))))
    return Rewriter(model, tokenizer, RewriterSettings("tiny", "def", "float32", max_new_tokens=8))


def test_a_rewriter_of_random_weights_changes_nothing(rewriter):
    captions = [GOOD, "A man with a beard wears a hat."]
    rewrites = rewriter.rewrite(captions)
    assert [one.text for one in rewrites] == captions
    assert {one.outcome for one in rewrites} == {"refused"}
    assert rewriter._answers(captions) == [rewriter._answers([one])[0] for one in captions]


def test_a_rewrite_may_only_take_away():
    source = "A happy woman with long red hair smiles, remembering her youth."
    assert only_takes_away(source, "A woman with long red hair smiles.")
    assert not only_takes_away(source, "A woman with long blond hair smiles.")
    assert not only_takes_away(source, "A woman with red long hair smiles.")
    assert not only_takes_away(source, "A woman with no long red hair.")
    judged = Rewriter._judged(source, ("A woman with long red hair smiles.", True))
    assert judged == ("A woman with long red hair smiles.", "shortened")
    assert Rewriter._judged(source, (source, True)).outcome == "unchanged"
    assert Rewriter._judged(source, ("A woman with long red hair", False)) == (source, "refused")


@pytest.fixture(scope="module")
def tokenizer():
    """The built-in tokenizer, of CLIP's class."""
    from mmface import builtin

    return CLIPTokenizer.from_pretrained(builtin("tiny-flow") / "tokenizer")


def test_the_cap_is_exact_and_cuts_at_the_largest_joint(tokenizer):
    first, second = "A man, old and tall, with a grey beard.", "He smiles."
    both, one = (num_tokens(text, tokenizer) for text in (f"{first} {second}", first))
    assert cap_to_tokens(f"{first} {second}", tokenizer, both) == f"{first} {second}"
    assert cap_to_tokens(f"{first} {second}", tokenizer, both - 1) == first
    assert cap_to_tokens(f"{first} {second}", tokenizer, one) == first
    assert cap_to_tokens(f"{first} {second}", tokenizer, one - 1) == "A man, old and tall."
    few = num_tokens("A man.", tokenizer)
    assert cap_to_tokens(first, tokenizer, few) == "A man."
    assert cap_to_tokens(first, tokenizer, few - 1) == "A."
    with pytest.raises(ValueError, match="not one word"):
        cap_to_tokens(first, tokenizer, 2)
    long = " ".join([first] * 40)
    assert num_tokens(cap_to_tokens(long, tokenizer), tokenizer) <= 77


class Scripted:
    """A captioner that says what it is given, in turn."""

    made_by = {"model": "scripted", "revision": "1"}  # noqa: RUF012

    def __init__(self, answers):
        self.answers, self.temperatures = iter(answers), []

    def answer(self, requests, temperature=0.0):
        self.temperatures.append(temperature)
        return [Answer(next(self.answers), True) for _ in requests]


def test_rejected_answers_are_asked_for_again_and_counted(tokenizer):
    other = "A man with a grey beard smiles."
    scripted = Scripted([GOOD, "I'm sorry, I cannot.", GOOD, other, "No.", "No.", "No."])
    maker = PictureCaptioner(scripted, tokenizer, prompts=PROMPTS[:3])
    record = maker.caption(["face"], [np.zeros((8, 8, 3), np.uint8)])[0]
    assert record["captions"] == [GOOD, other]
    assert scripted.temperatures == [0.0, 0.7, 0.7]
    assert record["counts"]["rejected_by_without_refusal"] == 1
    assert record["counts"]["rejected_by_said_already"] == 1
    assert [draft["attempts"] for draft in record["drafts"]] == [1, 2, 3]
    assert record["made_by"]["captioner"]["revision"] == "1"
    assert record["drafts"][0]["prompt"] == PROMPTS[0].name


def test_captions_of_tiny_models_do_not_depend_on_the_batch(captioner, rewriter, tokenizer):
    pictures = [request.picture for request in requests()[:2]]
    found = []
    for batch_size in (1, 3):
        maker = PictureCaptioner(
            captioner, tokenizer, rewriter, PROMPTS[:2], num_attempts=2, batch_size=batch_size
        )
        found.append(maker.caption(["a", "b"], pictures))
    assert found[0] == found[1]
