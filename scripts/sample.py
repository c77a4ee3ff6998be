"""Sample faces from a mask or a sketch plus a prompt; without arguments, a built-in demo.

python scripts/sample.py
python scripts/sample.py --prompt "a man with a red beard" --mask mask.png --out face.png
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

# typer's own UsageError, which newer versions no longer share with click.
USAGE_ERRORS: tuple[type[Exception], ...] = typer.BadParameter.__bases__


def main(
    prompt: Annotated[str | None, typer.Option(help="What the face should look like.")] = None,
    mask: Annotated[Path | None, typer.Option(help="Segmentation mask.")] = None,
    sketch: Annotated[Path | None, typer.Option(help="Sketch, dark lines on white.")] = None,
    pipeline: Annotated[str, typer.Option(help="Built-in name, folder or hub id.")] = "tiny-flow",
    seed: Annotated[int, typer.Option(help="Seed of the first picture.")] = 0,
    num: Annotated[int | None, typer.Option(help="Number of pictures.")] = None,
    steps: Annotated[int | None, typer.Option(help="Sampling steps.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale.")] = None,
    negative: Annotated[str, typer.Option(help="What the face should not look like.")] = "",
    height: Annotated[int | None, typer.Option(help="Height in pixels.")] = None,
    width: Annotated[int | None, typer.Option(help="Width in pixels.")] = None,
    out: Annotated[Path | None, typer.Option(help="Picture file, or folder.")] = None,
) -> None:
    """Sample faces from a mask or a sketch plus a prompt; without arguments, a built-in demo."""
    # Loading torch takes seconds, which `--help` need not wait for.
    from mmface import sampling

    sampling.quiet()
    example = sampling.example_of(prompt, mask, sketch)
    settings = sampling.Settings(seed, num, steps, guidance, negative, height, width)
    for path in sampling.sample_to(out, pipeline, example, settings):
        typer.echo(path)


def run(arguments: list[str] | None = None) -> int:
    """Run the command line; a mistake of the user's is one line on stderr and status 2."""
    app = typer.Typer(add_completion=False)
    app.command()(main)
    try:
        app(arguments, standalone_mode=False)
    except (ValueError, OSError, *USAGE_ERRORS) as error:
        message = getattr(error, "format_message", error.__str__)()
        typer.echo(f"error: {' '.join(message.split())}", err=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(run())
