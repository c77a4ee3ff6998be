"""Writes a Space for the Hugging Face hub: a small public page that runs where it is uploaded."""

import shutil
from importlib.metadata import requires, version
from pathlib import Path

from mmface.core.files import write_text
from mmface.core.sources import builtin_pipelines

_PACKAGE = Path(__file__).parent.parent
_README = """---
title: MMFace
emoji: 🙂
colorFrom: indigo
colorTo: pink
sdk: gradio
sdk_version: {gradio}
app_file: app.py
license: mit
---

Synthetic faces from a segmentation mask or a sketch, plus a prompt.
"""
_APP = '''"""Faces from a mask or a sketch plus a prompt; a Space starts this file."""

import gradio as gr

from mmface import MMFacePipeline

pipe = MMFacePipeline.from_pretrained({model!r})
pipe.set_progress_bar_config(disable=True)


def sample(prompt, mask, sketch, seed, steps, number):
    """Sample faces; what does not fit is said on the page."""
    try:
        faces = pipe(
            prompt,
            mask=mask,
            sketch=sketch,
            seed=int(seed),
            num_inference_steps=int(steps),
            num_images_per_prompt=int(number),
        )
    except ValueError as error:
        raise gr.Error(str(error)) from error
    return faces.images


demo = gr.Interface(
    sample,
    [
        gr.Textbox("a woman with long, wavy red hair", label="Prompt", max_length=1000),
        gr.Image(label="Mask in the 19 classes' colours", type="pil", image_mode=None),
        gr.Image(label="Sketch, dark lines on white", type="pil", image_mode=None),
        gr.Number(0, label="Seed", precision=0),
        gr.Slider(1, 50, value=20, step=1, label="Steps"),
        gr.Slider(1, 4, value=1, step=1, label="Faces"),
    ],
    gr.Gallery(label="Synthetic faces", format="png"),
    title="MMFace",
    description="The faces are synthetic. Make none of a living person without consent.",
    examples=[["a woman with long, wavy red hair", "examples/mask_0.png", None, 0, 20, 1]],
    cache_examples=False,
    flagging_mode="never",
    api_name="sample",
)

if __name__ == "__main__":
    demo.launch()
'''


def write_space(folder: str | Path, pipeline: str) -> Path:
    """Write a Space with the package's code, and the pipeline if it is a folder; gives its folder.

    It is uploaded with `hf upload USER/NAME FOLDER --repo-type space`. ValueError if the folder
    is not empty.
    """
    made = Path(folder)
    if made.exists() and any(made.iterdir()):
        raise ValueError(f"{made} is not empty; give another --space.")
    source, model = Path(pipeline), pipeline
    if source.is_dir():
        shutil.copytree(source, made / "model")
        model = "model"
    elif pipeline not in builtin_pipelines() and "/" not in pipeline:
        raise FileNotFoundError(
            f"{pipeline} is no folder, built-in name or hub id; give one as --pipeline."
        )
    shutil.copytree(
        _PACKAGE, made / "mmface", ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
    )
    shutil.copytree(_PACKAGE / "assets" / "examples", made / "examples")
    needed = [each for each in requires("mmface") or [] if "extra ==" not in each]
    write_text(made / "requirements.txt", "\n".join(needed) + "\n")
    write_text(made / "README.md", _README.format(gradio=version("gradio")))
    write_text(made / "app.py", _APP.format(model=model))
    return made
