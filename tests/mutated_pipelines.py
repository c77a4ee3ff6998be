"""Saved pipelines that somebody broke, one fault each, and what a command makes of them.

`python tests/mutated_pipelines.py 300` samples from that many and prints how they end.
"""

import contextlib
import io
import json
import random
import shutil
import struct
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from script_runs import load_script

ODD_VALUES: tuple[Any, ...] = (
    "abc",
    [],
    {},
    float("nan"),
    -1,
    10**12,
    None,
    "",
    [1, 2],
    True,
    -0.5,
)
ODD_DTYPES = ("int8", "int64", "bool", "float64", "float16", "bfloat16", "float8_e4m3fn")
ODD_CLASSES = (["diffusers", "UNet2DModel"], ["os", "system"], ["evil", "Evil"], [None, None], 5,
               ["transformers", "CLIPModel"], "AutoencoderKL", ["diffusers", "X"])  # fmt: skip
MAX_DIFFERENCE = 6
"""Mean difference of pictures, of 255, that half precision in a weights file may make."""


def copy_of(folder: Path, target: Path) -> Path:
    """Link a folder's files; a mutation replaces a file and never writes into one."""

    def link(one: str, two: str) -> None:
        Path(two).symlink_to(Path(one).resolve())

    return Path(shutil.copytree(folder, target, copy_function=link))


def replace(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def mutate(folder: Path, draw: random.Random) -> str:
    """Break one thing in a linked copy of a pipeline; give its description."""
    kind = draw.choice(
        (mutate_weights, mutate_weights, mutate_json, mutate_json, mutate_file, mutate_class)
    )
    return kind(folder, draw)


def mutate_weights(folder: Path, draw: random.Random) -> str:
    path = draw.choice(sorted(folder.rglob("*.safetensors")))
    tensors = safetensors.torch.load(path.read_bytes())
    name = draw.choice(sorted(tensors))
    does = draw.choice(
        ("drop", "rename", "nan", "inf", "reshape", "grow", "dtype", "dtypes", "add")
    )
    if does == "drop":
        tensors.pop(name)
    elif does == "rename":
        tensors[name + "_"] = tensors.pop(name)
    elif does in ("nan", "inf"):
        tensors[name].view(-1)[draw.randrange(tensors[name].numel())] = float(does)
    elif does == "reshape":
        tensors[name] = tensors[name].reshape(1, -1)
    elif does == "grow":
        tensors[name] = torch.cat([tensors[name], tensors[name]])
    elif does == "add":
        tensors["odd.weight"] = torch.zeros(3)
    else:
        own, dtype = [name] if does == "dtype" else list(tensors), draw.choice(ODD_DTYPES)
        tensors |= {each: tensors[each].to(getattr(torch, dtype)) for each in own}
        does = f"{does} {dtype}"
    replace(path, safetensors.torch.save(tensors, {"format": "pt"}))
    return f"{does} of {name} in {path.relative_to(folder)}"


def mutate_file(folder: Path, draw: random.Random) -> str:
    path = draw.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    content = path.read_bytes()
    does = draw.choice(("delete", "empty", "truncate", "header", "noise", "pickle", "folder"))
    if does == "delete":
        path.unlink()
    elif does == "empty":
        replace(path, b"")
    elif does == "truncate":
        replace(path, content[: draw.randrange(len(content))])
    elif does == "header":
        replace(path, struct.pack("<Q", draw.choice((2**60, len(content), 0))) + content[8:])
    elif does == "noise":
        replace(path, draw.randbytes(1000))
    elif does == "pickle":
        path.unlink()
        torch.save({"a": torch.zeros(2)}, path.with_suffix(".bin"))
    else:
        path.unlink()
        path.mkdir()
    return f"{does} of {path.relative_to(folder)}"


def mutate_json(folder: Path, draw: random.Random) -> str:
    path = draw.choice(sorted(p for p in folder.rglob("*.json") if p.name != "tokenizer.json"))
    values = json.loads(path.read_text())
    does = draw.choice(("value", "value", "value", "value", "whole"))
    if does == "whole":
        values = draw.choice((None, [], {}, "text", 3, [values]))
        description = f"{values!r:.20} in place of"
    else:
        key = draw.choice(sorted(values))
        values[key] = draw.choice(
            [value for value in ODD_VALUES if value is None or value != values[key]]
        )
        description = f"{key} = {values[key]!r} in"
    replace(path, json.dumps(values).encode())
    return f"{description} {path.relative_to(folder)}"


def mutate_class(folder: Path, draw: random.Random) -> str:
    path = folder / "model_index.json"
    values = json.loads(path.read_text())
    key = draw.choice(
        ("_class_name", "scheduler", "text_encoder", "tokenizer", "transformer", "vae")
    )
    values[key] = draw.choice(ODD_CLASSES)
    if draw.random() < 0.2:
        values.pop(key)
    replace(path, json.dumps(values).encode())
    return f"{key} = {values.get(key, 'nothing')!r} in model_index.json"


def sampled(folder: Path, out: Path) -> tuple[str, str]:
    """Sample from a pipeline as the command does; give the ending and its line."""
    run = load_script("sample")
    mask = Path(__file__).parent.parent / "mmface/assets/examples/mask_0.png"
    arguments = ["--pipeline", str(folder), "--out", str(out), "--prompt", "a woman with red hair"]
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
            status = run([*arguments, "--mask", str(mask), "--steps", "2"])
    except BaseException as error:
        return "traceback", f"{type(error).__name__}: {error}"
    lines = told.getvalue().strip().splitlines()
    if status == 2 and len(lines) == 1 and lines[0].startswith("error: "):
        return "refused", lines[0]
    if status == 0 and out.is_file():
        return "picture", ""
    return "odd ending", f"status {status}: {told.getvalue()}"


def ending_of(pipeline: Path, seed: int, folder: Path, right: np.ndarray) -> tuple[str, str]:
    """Break a pipeline by a seed and sample from it; give the ending and what was done."""
    broken, out = copy_of(pipeline, folder / f"broken_{seed}"), folder / f"{seed}.png"
    did = mutate(broken, random.Random(seed))
    ending, line = sampled(broken, out)
    if ending == "picture":
        found = np.array(Image.open(out)).astype(float)
        same = found.shape == right.shape and abs(found - right).mean() <= MAX_DIFFERENCE
        ending = "right picture" if same else "false success"
    shutil.rmtree(broken)
    out.unlink(missing_ok=True)
    return ending, f"{did}: {line}"


def right_picture(pipeline: Path, folder: Path) -> np.ndarray:
    """Sample from the whole pipeline."""
    ending, line = sampled(pipeline, folder / "right.png")
    assert ending == "picture", line
    return np.array(Image.open(folder / "right.png")).astype(float)


def main(num: int) -> None:
    """Print how each of so many broken pipelines ends, and the counts."""
    import tempfile

    pipeline, counts = Path(__file__).parent.parent / "mmface/assets/tiny-flow", Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        right = right_picture(pipeline, Path(folder))
        for seed in range(num):
            ending, line = ending_of(pipeline, seed, Path(folder), right)
            counts[ending] += 1
            print(f"{seed} {ending}: {' '.join(line.split())[:400]}", flush=True)
    print(dict(counts))


if __name__ == "__main__":
    main(int(sys.argv[1]))
