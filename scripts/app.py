"""Serve the web page: paint a mask or a sketch, write a prompt, see the faces come.

python scripts/app.py
python scripts/app.py --pipeline mmface-512-flow --port 7861 --password anna:rose-garden-7
"""

import sys
from typing import Annotated

import typer

USAGE_ERRORS: tuple[type[Exception], ...] = typer.BadParameter.__bases__


def main(
    pipeline: Annotated[str, typer.Option(help="Built-in name, folder or hub id.")] = "tiny-flow",
    released: Annotated[str | None, typer.Option(help="Copy of the authors' repository.")] = None,
    checkpoint: Annotated[str | None, typer.Option(help="Checkpoint folder in it.")] = None,
    parser: Annotated[str, typer.Option(help="Face parser: folder or hub id.")] = "tiny-parser",
    port: Annotated[int | None, typer.Option(help="Port; 7860 or the next free one.")] = None,
    password: Annotated[str | None, typer.Option(help="USER:PASS to ask visitors for.")] = None,
) -> int:
    """Serve the web page to this machine, until Ctrl+C; a mistake is one line and status 2."""
    try:
        from mmface.app.server import serve  # seconds, which `--help` need not wait for

        serve(pipeline, released, checkpoint, parser, port, password)
    except (ValueError, OSError, ImportError) as error:
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        return 2
    return 0


if __name__ == "__main__":
    app = typer.Typer(add_completion=False)
    app.command()(main)
    sys.exit(app(standalone_mode=False))
