"""One request from words to picture files: what `scripts/sample.py` does where it is asked once."""

import json
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import diffusers
import numpy as np
import torch
import transformers
from diffusers import BitsAndBytesConfig
from PIL import Image

from mmface.conditions import condition_kind, draw_conditions
from mmface.core.command_line import check_whole
from mmface.core.files import (
    check_output,
    check_unused,
    file_sha256,
    model_sha256,
    sweep,
    unused,
    write_text,
)
from mmface.core.sources import (
    AUTO,
    allow_tf32,
    builtin_pipelines,
    default_device,
    dtype_name,
    dtype_named,
    has_bfloat16,
    opened,
)
from mmface.generation.adherence import Adherence, check_measurable, measure_adherence
from mmface.generation.grid import GridRow, labelled_grid
from mmface.generation.requests import (
    BUILTIN_PREFIX,
    PreparedRequest,
    check_asked,
    located,
    open_parser,
    prepare_request,
    sample_requests,
    say,
    seeds_from,
)
from mmface.generation.settings import (
    Computation,
    Draws,
    ModelChoice,
    Provenance,
    Run,
    Settings,
    current_versions,
    write_pictures,
)
from mmface.model.lora import load_loras, lora_file
from mmface.model.transformer import MMFaceDiT
from mmface.rendered.examples import EXAMPLES, read_examples
from mmface.sampling.acceleration import accelerate_pipeline, check_compiler
from mmface.sampling.pipeline import MMFacePipeline
from mmface.sampling.released_folder import RELEASED_TEXT, released_checkpoint

DEMO_STEPS = 25
DEMO_NUM = 3


def quiet() -> None:
    """Leave the terminal to sampling: no progress of loading, no warnings of libraries."""
    warnings.filterwarnings("ignore")
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


class OpenedModel(NamedTuple):
    """A pipeline, and what identifies it.

    Attributes:
        pipeline: Ready to sample.
        choice: What it was opened by, with the dtype that was decided.
        weights: Digest of its files.
    """

    pipeline: MMFacePipeline
    choice: ModelChoice
    weights: str


def open_model(
    choice: ModelChoice,
    offload: bool = False,
    device: torch.device | None = None,
    weights: str | None = None,
) -> OpenedModel:
    """Load a pipeline as it was chosen, on the GPU if there is one.

    Args:
        choice: Which weights, in which arithmetic; what it leaves open is decided.
        offload: Whether to keep on the GPU only the component that computes.
        device: Where to compute; None takes the GPU if there is one.
        weights: What the digest of its files must be; None takes any.

    Returns:
        The pipeline with its digest.

    Raises:
        FileNotFoundError: If there is no such pipeline.
        ValueError: If it cannot be loaded so, or is another one than `weights` says.
    """
    _check_gpu(choice, offload)
    folder, digest = _locate(choice)
    if weights is not None and digest != weights:
        raise ValueError(
            f"The weights of {choice.released or choice.pipeline} have the digest "
            f"{digest[:16]}..., not {weights[:16]}...: the picture was made by others. Say where "
            "those lie (--pipeline or --released)."
        )
    device = device or default_device()
    is_auto = choice.dtype == AUTO
    choice = replace(choice, dtype=dtype_name(choice.dtype, device))
    if device.type == "cuda":
        allow_tf32(is_auto or choice.dtype != "float32")
    elif choice.dtype == "bfloat16" and not has_bfloat16(device):
        say("--dtype bfloat16: this processor emulates it, which is slower than float32")
    if choice.fast:
        check_compiler(device)
        say("--fast: the first faces of each batch size and picture size take longer, to compile")
    pipeline = _load(choice, folder)
    if choice.lora:
        load_loras(pipeline.transformer, choice.loras)
        files = [(lora_file(path), weight) for path, weight in choice.loras]
        choice = replace(choice, lora=tuple(f"{path}:{weight}" for path, weight in files))
    if choice.vae_tiling:
        if not hasattr(pipeline.vae, "enable_tiling"):
            raise ValueError(f"The VAE {type(pipeline.vae).__name__} cannot decode in tiles.")
        pipeline.vae.enable_tiling()
    if offload:
        pipeline.enable_model_cpu_offload(device=device)
        return OpenedModel(pipeline, choice, digest)
    pipeline.to(device)
    if choice.fast:
        accelerate_pipeline(pipeline)
    return OpenedModel(pipeline, choice, digest)


def _check_gpu(choice: ModelChoice, offload: bool) -> None:
    """Raise ValueError if something is asked for that this machine or model cannot do."""
    for asked, name in ((offload, "--offload"), (choice.quantize, "--quantize")):
        if asked and not torch.cuda.is_available():
            raise ValueError(f"{name} needs a CUDA GPU, and this machine shows none; leave it out.")
    if choice.fast and offload:
        raise ValueError("--fast keeps all weights on the GPU: leave --offload or --fast out.")
    if choice.quantize and choice.released:
        raise ValueError(
            "The authors' weights are quantized from a saved pipeline: save one first "
            "(MMFacePipeline.from_released, save_pretrained), then give it as --pipeline."
        )


def _locate(choice: ModelChoice) -> tuple[Path, str]:
    """Find the folder of the weights, downloading a hub id, and digest its files."""
    if choice.released is not None:
        folder = Path(choice.released)
        found = released_checkpoint(folder, choice.checkpoint, None, None)
        text = [f"{RELEASED_TEXT}/{part}" for part in ("text_encoder", "tokenizer")]
        return folder, model_sha256(folder, [str(found.weights.relative_to(folder)), "VAE", *text])
    name = choice.pipeline
    with opened("pipeline", name, builtin_pipelines()) as source:
        folder = Path(source)
        if not folder.exists():
            folder = Path(MMFacePipeline.download(name, use_safetensors=True))
    if not (folder / "model_index.json").is_file():
        raise ValueError(
            f"{name} is not a saved pipeline: it has no model_index.json. Give a folder that "
            "save_pretrained wrote, or the authors' weights as --released."
        )
    return folder, model_sha256(folder)


def _load(choice: ModelChoice, folder: Path) -> MMFacePipeline:
    """Load the components from where they lie."""
    dtype = dtype_named(choice.dtype)
    if choice.released is not None:
        return MMFacePipeline.from_released(folder, choice.checkpoint, dtype=dtype)
    options = {}
    with opened("pipeline", choice.pipeline, builtin_pipelines()):
        if choice.quantize:
            options["transformer"] = MMFaceDiT.from_pretrained(
                folder,
                subfolder="transformer",
                quantization_config=_quantization(choice.quantize, dtype),
                dtype=dtype,
            )
        return MMFacePipeline.from_pretrained(folder, dtype=dtype, **options)


def _quantization(bits: str, dtype: torch.dtype) -> BitsAndBytesConfig:
    """Give bitsandbytes' config: LLM.int8 (arXiv 2208.07339) or NF4 (arXiv 2305.14314)."""
    if bits == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
    )


class Asked(NamedTuple):
    """What one command asks for.

    Attributes:
        settings: Each face; the built-in examples where nothing is asked.
        seeds: Those that each face is sampled with.
        steps: The most sampling steps where the settings say none; None takes the model's.
        is_demo: Whether these are the built-in examples.
    """

    settings: Sequence[Settings]
    seeds: tuple[int, ...]
    steps: int | None
    is_demo: bool


def asked_of(settings: Settings, draws: Draws, run: Run) -> Asked:
    """Sort what a command asks for, or raise ValueError if it cannot be sampled."""
    is_demo = settings.prompt is None and not settings.paths
    num = (DEMO_NUM if is_demo else 1) if draws.num is None else draws.num
    if run.best_of is not None:
        check_whole("best_of", run.best_of, 2, 1000)
        if is_demo or num != 1:
            raise ValueError("--best-of keeps one face of one request: leave --num out.")
        num = run.best_of
    faces = _demo(settings) if is_demo else [settings]
    for each in faces:
        check_asked(each)
    return Asked(faces, seeds_from(draws.seed, num), DEMO_STEPS if is_demo else None, is_demo)


def provenance_of(
    model: OpenedModel,
    requests: Sequence[PreparedRequest],
    seeds: Sequence[int],
    max_batch: int | None = None,
    call: tuple[int, int] | None = None,
) -> Provenance:
    """Record what all faces of some requests are made from; `of_picture` gives that of one.

    Where the requests were part of a larger call, `call` is its number of requests, and how many
    of them came first.
    """
    files: dict[str, str] = {}
    for one in requests:
        files |= one.files.sha256
    files |= {lora: file_sha256(lora) for lora, _ in model.choice.loras}
    asked = tuple(one.settings for one in requests)
    num, place = call or (len(asked), 0)
    device = model.pipeline._execution_device
    computed = Computation.here(device, num, place, max_batch)
    return Provenance(
        model.choice, model.weights, asked, tuple(seeds), None, files, current_versions(), computed
    )


def sample_one(settings: Settings, draws: Draws, choice: ModelChoice, run: Run) -> list[Path]:
    """Sample one request, or all built-in ones, and write the faces."""
    asked, seeds, steps, is_demo = asked_of(settings, draws, run)
    default = "mmface_demo.png" if is_demo else "faces.png"
    out = check_output(unused(Path(default)) if run.out is None else run.out)
    is_grid = is_demo or (len(seeds) > 1 and run.best_of is None and not out.is_folder)
    paths = {k: out.file(f"seed_{seed}.png") for k, seed in enumerate(seeds)}
    paths = {0: out.file(default)} if is_grid else paths
    report = out.path / "report.json" if out.is_folder else _report_beside(out.path)
    check_unused([*dict.fromkeys(paths.values()), *([report] if run.report else [])], run.overwrite)
    model = open_model(choice, run.offload)
    requests = [prepare_request(each, model.pipeline, locate_here, steps) for each in asked]
    measured = run.report or run.best_of is not None
    for one in requests if measured else []:
        check_measurable(one.files.conditions)
    faces = sample_requests(model.pipeline, requests, [seeds] * len(requests), run.max_batch)
    recipe = provenance_of(model, requests, seeds, run.max_batch)
    scores = [_adherences(one, own) for one, own in zip(requests, faces, strict=True) if measured]
    kept = [range(len(seeds))] * len(requests)
    if run.best_of is not None:
        kept = [_best(seeds, scores[0])]
    if is_grid:
        files = {paths[0]: (grid_of(requests, seeds, faces), recipe)}
    else:
        files = {paths[k]: (faces[0][k], recipe.of_picture(k)) for k in kept[0]}
    for path in files:
        sweep(path.parent)
    write_pictures(files)
    if not run.report:
        return list(files)
    _write_report(report, requests, seeds, scores, kept)
    return [*files, report]


def _demo(settings: Settings) -> list[Settings]:
    """Give the built-in examples, with what else was asked for."""
    asked = []
    for example in read_examples():
        path = BUILTIN_PREFIX + example.path.relative_to(EXAMPLES.parent).as_posix()
        asked.append(replace(settings, prompt=example.prompt, conditions={example.kind: path}))
    return asked


def locate_here(option: str, path: str) -> Path:
    """Give the file of an option; a relative path lies in the current folder."""
    return located(path, Path())


def _report_beside(picture: Path) -> Path:
    return picture.with_name(f"{picture.stem}_report.json")


def grid_of(
    requests: Sequence[PreparedRequest],
    seeds: Sequence[int],
    faces: Sequence[Sequence[Image.Image]],
) -> Image.Image:
    """Draw the labelled grid of all faces."""
    lines = [
        GridRow(draw_conditions(one.files.conditions), str(one.settings.prompt), own)
        for one, own in zip(requests, faces, strict=True)
    ]
    return labelled_grid(lines, [f"seed {seed}" for seed in seeds])


def _adherences(one: PreparedRequest, faces: Sequence[Image.Image]) -> list[Adherence]:
    """Measure how the faces of a request follow its conditions."""
    conditions = one.files.conditions
    needed = any(condition_kind(name).needs_parser for name in conditions)
    parser = open_parser(one.settings.parser) if needed else None
    return [measure_adherence(np.array(face), conditions, parser) for face in faces]


def _best(seeds: Sequence[int], scores: Sequence[Adherence]) -> range:
    """Find the face that follows its conditions best, the first of equals, and say the scores."""
    best = max(range(len(seeds)), key=lambda k: scores[k].score)
    listed = ", ".join(f"{seed} {each.score:.3f}" for seed, each in zip(seeds, scores, strict=True))
    say(f"adherence by seed: {listed}; seed {seeds[best]} is kept")
    return range(best, best + 1)


def _write_report(
    path: Path,
    requests: Sequence[PreparedRequest],
    seeds: Sequence[int],
    scores: Sequence[Sequence[Adherence]],
    kept: Sequence[Sequence[int]],
) -> None:
    """Print a table a face, and write all of them beside the pictures."""
    entries = []
    for one, own, places in zip(requests, scores, kept, strict=True):
        for k in places:
            prompt = one.settings.prompt
            print(f"seed {seeds[k]}, {prompt!r}\n{own[k].table()}", file=sys.stderr)
            entries.append({"prompt": prompt, "seed": seeds[k], "adherence": own[k].to_json()})
    write_text(path, json.dumps({"pictures": entries}, indent=1) + "\n")
