"""diffusers' own tests of pipelines, held against ours; run by `test_diffusers_own_tests.py`.

They come from a copy of diffusers' repository, `DIFFUSERS_SOURCE`, since its wheel has no tests.
"""

import os
import sys

import diffusers.pipelines
import numpy as np
from conftest import IMAGE_SIZE, build_pipeline

from mmface.conditions import colorize
from mmface.sampling.pipeline import MMFacePipeline

sys.path.insert(0, os.environ["DIFFUSERS_SOURCE"])

from tests.pipelines.testing_utils import common, lora, memory

# Where their test of `encode_prompt` looks for its source.
diffusers.pipelines.MMFacePipeline = MMFacePipeline


class MMFaceConfig(common.BasePipelineTesterConfig):
    pipeline_class = MMFacePipeline
    required_input_params_in_call_signature = frozenset(
        ("prompt", "mask", "height", "width", "guidance_scale", "negative_prompt", "prompt_embeds")
    )
    batch_input_params = frozenset(("prompt", "mask"))
    callback_cfg_params = frozenset(("prompt_embeds", "pooled_prompt_embeds"))
    output_shape = (3, IMAGE_SIZE, IMAGE_SIZE)

    def get_dummy_components(self):
        return dict(build_pipeline().components)

    def get_dummy_inputs(self):
        labels = np.random.default_rng(0).integers(0, 3, (32, 32)).astype(np.uint8)
        return {
            "prompt": "a face",
            "mask": colorize(labels),
            "generator": self.get_generator(0),
            "num_inference_steps": 2,
            "guidance_scale": 3.0,
            "height": IMAGE_SIZE,
            "width": IMAGE_SIZE,
            "output_type": "pt",
        }


class TestPipeline(MMFaceConfig, common.PipelineTesterMixin):
    pass


class TestMemory(MMFaceConfig, memory.LayerwiseCastingTesterMixin, memory.GroupOffloadTesterMixin):
    pass


class TestLora(MMFaceConfig, lora.LoraTesterMixin):
    denoiser_target_modules = {"transformer": ["qkv", "mlp.0", "mlp.2"]}  # noqa: RUF012
