"""Trainings with settings that no run can have: python tests/mutated_settings.py [NUMBER] [SEED].

Each must end with one line and status 2. Run in a process of its own, because the tests' checks of
annotated types would find many of the mistakes before ours do. Prints a line for each that does
not, and how many there were.
"""

import contextlib
import io
import os
import random
import runpy
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before it is read

import jaxtyping
from hydra.core.global_hydra import GlobalHydra
from transformers.utils import logging

SCRIPT = Path(__file__).parent.parent / "scripts" / "train.py"
TINY = (
    "experiment=tiny_flow",
    "run_name=mutated",
    "trainer.recipe.total_steps=1",
    "trainer.recipe.global_batch_size=2",
    "trainer.recipe.micro_batch_size=1",
    "trainer.cadence.checkpoint_every=0",
    "model.hidden_size=16",
    "model.depth=2",
    "model.num_heads=2",
    "model.text_dim=12",
    "task.image_size=32",
    "task.compile_blocks=false",
    "task.export_dtype=float32",
    "task.init_from=null",
    "task.vae=pipeline/vae",
    "task.text=pipeline",
    "data.store=latents",
)
WHOLE = ("abc", "-1", "2.5", "nan", "true", "[1]", "null", "{a: 1}", "''")
NUMBER = ("abc", "-1", "nan", "inf", "true", "[1]", "{a: 1}", "''")
SHARE = (*NUMBER, "9", "1.0001", "-0.1")
FLAG = ("abc", "2", "[1]", "null", "{a: 1}")
FOLDER = ("no/such", "a_file", "3", "[1]", "true", "{a: 1}", "''")
MISTAKES = {
    "trainer.recipe.total_steps": (*WHOLE, "0"),
    "trainer.recipe.global_batch_size": (*WHOLE, "0", "3.5"),
    "trainer.recipe.micro_batch_size": (*WHOLE, "0", "3"),
    "trainer.recipe.gradient_clip": (*NUMBER, "0"),
    "trainer.recipe.ema_decay": (*NUMBER, "1"),
    "trainer.recipe.ema_every": (*WHOLE, "0"),
    "trainer.recipe.seed": WHOLE,
    "trainer.recipe.max_skipped_steps": WHOLE,
    "trainer.cadence.log_every": WHOLE,
    "trainer.cadence.preview_every": WHOLE,
    "trainer.cadence.checkpoint_every": WHOLE,
    "trainer.cadence.checkpoint_limit": (*WHOLE, "0"),
    "trainer.cadence.gradients_every": WHOLE,
    "trainer.hardware.timeout_s": (*NUMBER, "0"),
    "trainer.hardware.num_workers": WHOLE,
    "trainer.hardware.mixed_precision": ("abc", "fp16", "3", "true", "null", "[1]"),
    "trainer.hardware.average_on_cpu": FLAG,
    "trainer.hardware.peak_flops": ("abc", "-1", "nan", "[1]"),
    "trainer.resume": ("no/such", "3", "true", "[1]", "{a: 1}", "null"),
    "trainer.trackers": ("abc", "[abc]", "3", "{a: 1}", "true"),
    "trainer.allow_changes": ("3", "true", "abc"),
    "trainer.output_dir": ("a_file", "a_file/below"),
    "trainer.task": ("3", "null", "abc"),
    "trainer.samples": ("3", "null", "abc"),
    "trainer.optimizer": ("3", "null", "abc"),
    "trainer.schedule": ("3", "null", "abc"),
    "data.store": FOLDER,
    "data.text_dropout": SHARE,
    "data.mask_dropout": SHARE,
    "data.sketch_dropout": SHARE,
    "+data.modalities": ("abc", "[abc]", "[]", "3", "[mask,mask]"),
    "optimizer.lr": NUMBER,
    "optimizer.betas": ("abc", "[0.9]", "[0.9,1.5]", "[-1,0.9]", "0.9", "null", "[a,b]"),
    "optimizer.weight_decay": NUMBER,
    "optimizer.eps": NUMBER,
    "optimizer._target_": ("torch.optim.Nope", "nowhere.at.all", "3"),
    "schedule.num_warmup_steps": NUMBER,
    "schedule.num_training_steps": NUMBER,
    "schedule._target_": ("transformers.nope", "abc"),
    "model.hidden_size": (*WHOLE, "0", "18"),
    "model.depth": (*WHOLE, "0"),
    "model.num_heads": (*WHOLE, "0", "3"),
    "model.text_dim": (*WHOLE, "0", "7"),
    "model._target_": ("mmface.model.transformer.Nope", "abc"),
    "+model.patch_size": (*WHOLE, "0", "3"),
    "+model.latent_channels": (*WHOLE, "0", "4"),
    "+model.mlp_ratio": (*NUMBER, "0"),
    "+model.num_modalities": (*WHOLE, "0", "1"),
    "+model.text_rope": ("abc", "3"),
    "+model.rope_theta": ("abc", "-1", "nan", "[1]", "0"),
    "model.objective": ("min_snr_diffusion", "abc", "3"),
    "objective": ("abc", "min_snr"),
    "objective.name": ("min_snr_diffusion", "abc", "3"),
    "objective.terms": ("3", "abc"),
    "objective.terms.velocity.weight": ("abc", "nan", "[1]", "inf", "true"),
    "objective.terms.velocity.weighting": ("3", "abc"),
    "objective.time": ("3", "abc", "null"),
    "task.vae": FOLDER,
    "task.text": FOLDER,
    "task.image_size": (*WHOLE, "0", "64"),
    "task.guidance_scale": NUMBER,
    "task.export_dtype": ("abc", "nn", "int32", "3", "[1]"),
    "task.gradient_checkpointing": ("abc", "9", "-1", "nan", "[1]"),
    "task.compile_blocks": ("abc", "3", "[1]"),
    "task.init_from": FOLDER[:3],
    "+task.examples": FOLDER[:3],
    "trainer.recipe.stepz": ("3",),
    "experiment": ("no_such", "3"),
    "hardware": ("no_such",),
}


def build_inputs() -> None:
    """Lay a pipeline's frozen parts and a latent store of it into the working directory."""
    from conftest import build_pipeline

    from mmface.data.latents import LatentEncoding
    from mmface.data.pictures import RenderedPictures, StoredPictures
    from mmface.data.store import close_store

    build_pipeline().save_pretrained("pipeline")
    RenderedPictures(num_faces=4, size_px=32).write("pictures", 0, 1)
    close_store("pictures")
    LatentEncoding(StoredPictures("pictures"), "pipeline/vae").write("latents", 0, 1)
    close_store("latents")
    Path("a_file").write_text("no folder")


def ended(*arguments: str) -> tuple[object, str]:
    """Run the script here: its exit status, or what it raised, and its stderr."""
    GlobalHydra.instance().clear()
    shutil.rmtree("runs", ignore_errors=True)
    err = io.StringIO()
    status: Any = 0
    sys.argv = [str(SCRIPT), *TINY, *arguments]
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        try:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        except SystemExit as end:
            status = end.code
        except BaseException as error:
            status = repr(error)
    return status, err.getvalue()


def main(number: int, seed: int) -> int:
    """Try this many different mistakes, all there are at most; give how many went wrong."""
    logging.disable_progress_bar()
    every = [f"{key}={value}" for key, values in MISTAKES.items() for value in values]
    chosen = random.Random(seed).sample(every, min(number, len(every)))
    wrong = 0
    build_inputs()
    jaxtyping.config.update("jaxtyping_disable", True)  # which a test's configuration turned on
    status, err = ended()
    if status != 0:
        print(f"the settings as they are: {status}: {err}")
        wrong += 1
    for argument in chosen:
        status, err = ended(argument)
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        if status != 2 or len(lines) != 1 or "Traceback" in err:
            print(f"{argument}: {status}: {err[-600:]}")
            wrong += 1
        elif number > 100:
            print(f"    {argument}: {lines[0][:160]}")
    print(f"{len(chosen)} of {len(every)} mistakes tried, {wrong} ended wrongly")
    return wrong


if __name__ == "__main__":
    number, seed = (int(x) for x in (*sys.argv[1:], *("300", "0")[len(sys.argv) - 1 :]))
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        wrong = main(number, seed)
        os.chdir("/")
    sys.exit(1 if wrong else 0)
