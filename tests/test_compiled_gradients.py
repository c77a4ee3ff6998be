"""A compiled block gives the gradients of the eager one, and not the loss alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

COMPILED = """
import torch
from mmface.benchmarks.measuring import relative_error
from mmface.benchmarks.subjects import make_inputs, randomize
from mmface.model.transformer import MMFaceDiT

torch.set_num_threads(1)
# Compiled code vectorizes widths and numbers of tokens that are multiples of 16.
sizes = {"hidden_size": 64, "num_heads": 2, "text_dim": 16, "latent_channels": 4}
model = randomize(MMFaceDiT(**sizes, depth=1)).train()  # one graph forward, one backward
inputs = make_inputs(model, 16, 2, num_text=16)
inputs["noisy_latents"].requires_grad_()
inputs["text_tokens"].requires_grad_()
target = torch.randn(inputs["noisy_latents"].shape, generator=torch.Generator().manual_seed(1))


def step():
    tensors = (*model.named_parameters(), *inputs.items())
    wanted = {name: tensor for name, tensor in tensors if tensor.requires_grad}
    prediction = model(**inputs)
    loss = (prediction - target).square().mean()
    return prediction, dict(zip(wanted, torch.autograd.grad(loss, list(wanted.values()))))


expected, gradients = step()
model.compile_repeated_blocks(fullgraph=True, dynamic=False)
prediction, compiled = step()
errors = {name: relative_error(compiled[name], gradients[name]) for name in gradients}
errors["the prediction"] = relative_error(prediction, expected)
wrong = {name: error for name, error in errors.items() if not error <= 1e-5}
assert len(errors) > 20, errors
assert not wrong, wrong
"""


@pytest.mark.slow
def test_a_compiled_block_gives_the_gradients_of_the_eager_one():
    # In a process of its own, because the type-checking hook of these tests cannot be compiled.
    # A graph that was compiled on another CPU would be taken as it is, whatever this one has.
    fresh = {"TORCHINDUCTOR_FX_GRAPH_CACHE": "0", "TORCHINDUCTOR_AUTOGRAD_CACHE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILED],
        cwd=ROOT,
        env=os.environ | fresh,
        capture_output=True,
        text=True,
    )
    if "InvalidCxxCompiler" in done.stderr:
        pytest.skip("there is no C++ compiler")
    assert done.returncode == 0, done.stderr
