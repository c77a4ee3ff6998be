"""Serve the web page: paint a mask or a sketch, write a prompt, see the faces come.

python scripts/app.py
python scripts/app.py --pipeline mmface-512-flow --port 7861 --password anna:rose-garden-7
python scripts/app.py --pipeline mmface-512-flow --space my_space
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from mmface.core.command_line import run_app


def main(
    pipeline: Annotated[str, typer.Option(help="Built-in name, folder or hub id.")] = "tiny-flow",
    released: Annotated[str | None, typer.Option(help="Copy of the authors' repository.")] = None,
    checkpoint: Annotated[str | None, typer.Option(help="Checkpoint folder in it.")] = None,
    parser: Annotated[str, typer.Option(help="Face parser: folder or hub id.")] = "tiny-parser",
    port: Annotated[int | None, typer.Option(help="Port; 7860 or the next free one.")] = None,
    live_model: Annotated[
        str | None,
        typer.Option(
            help="Few-step model that paints live, by the steps and guidance that it recommends; "
            "the built-in student if there is one, else the pipeline in one unguided step."
        ),
    ] = None,
    password: Annotated[str | None, typer.Option(help="USER:PASS to ask visitors for.")] = None,
    space: Annotated[
        Path | None,
        typer.Option(help="Write a Space of the hub with --pipeline into this folder instead."),
    ] = None,
) -> None:
    """Serve the web page to this machine, until Ctrl+C."""
    if space is not None:
        from mmface.app.space import write_space

        typer.echo(write_space(space, pipeline))
        return
    try:
        from mmface.app.server import serve  # seconds, which `--help` need not wait for
    except ModuleNotFoundError as error:
        raise ValueError(f"{error}; the page needs pip install -e '.[app]'.") from error
    serve(pipeline, released, checkpoint, parser, port, password, live_model)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False)
    app.command()(main)
    sys.exit(run_app(app))
