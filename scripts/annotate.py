"""Annotate photographs: masks, sketches or captions, and a manifest that points to them.

python scripts/annotate.py masks photos --out runs/masks
python scripts/annotate.py sketches runs/masks/manifest.jsonl --out runs/sketches
python scripts/annotate.py captions runs/sketches/manifest.jsonl --out runs/captions --shard 0/4
"""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mmface.core.command_line import run_app

Kind = StrEnum("Kind", ["masks", "sketches", "captions"])


def main(
    kind: Annotated[Kind, typer.Argument(help="What to make.")],
    source: Annotated[Path, typer.Argument(help="Manifest, or folder of pictures.")],
    out: Annotated[Path, typer.Option(help="Folder of the annotations and their manifest.")],
    shard: Annotated[str | None, typer.Option(help="i/n; else by the launcher.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures or answers at a time.")] = 8,
    device: Annotated[str | None, typer.Option(help="cpu, cuda:1; else what is there.")] = None,
    model: Annotated[str | None, typer.Option(help="Hub id@revision, folder or weights.")] = None,
    rewriter: Annotated[
        str, typer.Option(help="Hub id@revision or folder; none.")
    ] = "Qwen/Qwen3-8B",
    tokenizer: Annotated[
        str, typer.Option(help="Of the text encoder: id@revision or folder.")
    ] = "openai/clip-vit-large-patch14",
    engine: Annotated[
        str, typer.Option(help="Of captions: transformers or vllm.")
    ] = "transformers",
    seed: Annotated[int, typer.Option(help="Of sampled captions.")] = 0,
) -> int:
    """Annotate photographs; a stopped run goes on where it was when it is started again."""
    # Loading torch takes seconds, which `--help` need not wait for.
    from mmface.annotation import jobs

    models = jobs.Models(model, None if rewriter == "none" else rewriter, tokenizer, engine, seed)
    return jobs.annotate(kind.value, jobs.Work(source, out, shard, batch_size, device), models)


def run(arguments: list[str] | None = None) -> int:
    """Run the command line; a mistake of the user's is one line on stderr and status 2."""
    app = typer.Typer(add_completion=False)
    app.command()(main)
    return run_app(app, arguments)


if __name__ == "__main__":
    sys.exit(run())
