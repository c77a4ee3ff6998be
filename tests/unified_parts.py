"""A unified pipeline of real classes at a tiny size, with random weights, for several tests."""

from typing import Any

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, SegformerConfig, SegformerModel

from mmface.encoders.image_tokens import ImageTokenizer, LookupFreeTokenizer
from mmface.encoders.vision import VisionTower
from mmface.encoders.words import WordTokenizer, train_words
from mmface.model.unified import UnifiedConfig, UnifiedPhi
from mmface.sampling.unified import UnifiedPipeline

SIZE = 32
CONFIG = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
    "max_words": 12,
    "num_routed_experts": 4,
    "num_chosen_experts": 2,
    "expert_width": 6,
    "resampler_width": 8,
    "resampler_heads": 2,
}


def tiny_words() -> WordTokenizer:
    texts = ["a woman with red hair", "USER: What colour is the hair?\nASSISTANT: red"] * 3
    return train_words(texts, 290)


def tiny_image_tokenizer() -> ImageTokenizer:
    return ImageTokenizer(LookupFreeTokenizer(5, (8, 16), 1, patch_px=4, norm_num_groups=4).eval())


def tiny_towers() -> dict[str, VisionTower]:
    clip = CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    face = SegformerConfig(
        depths=[1, 1],
        num_encoder_blocks=2,
        hidden_sizes=[4, 6],
        strides=[4, 4],
        sr_ratios=[1, 1],
        num_attention_heads=[1, 2],
        mlp_ratios=[1, 1],
    )
    return {
        "clip": VisionTower(CLIPVisionModel(clip).eval()),
        "face": VisionTower(SegformerModel(face).eval()),
    }


def tiny_unified(**options) -> UnifiedPipeline:
    """Always the same weights, random in every layer."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        words, tokenizer, towers = tiny_words(), tiny_image_tokenizer(), tiny_towers()
        own: dict[str, Any] = {
            "num_words": len(words),
            "num_codes": tokenizer.num_codes,
            "num_image_tokens": 16,
            "feature_dims": {name: tower.width for name, tower in towers.items()},
            "bos_token_id": words.end,
            "eos_token_id": words.end,
            "pad_token_id": None,
        }
        model = UnifiedPhi(UnifiedConfig(**(own | CONFIG | options))).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        model.requires_grad_(False)
        return UnifiedPipeline(model, tokenizer, words, towers, SIZE)
