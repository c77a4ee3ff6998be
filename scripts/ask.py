"""Ask about a face, or have it described.

python scripts/ask.py face.png "What colour is her hair?" --pipeline runs/tiny_unified/export
python scripts/ask.py face.png --pipeline runs/tiny_unified/export
python scripts/ask.py face.png --pipeline runs/tiny_unified/export --json
"""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from mmface.core.command_line import run_app


def main(
    picture: Annotated[Path, typer.Argument(help="A picture of a face.")],
    question: Annotated[str | None, typer.Argument(help="Else the face is described.")] = None,
    pipeline: Annotated[str, typer.Option(help="Folder of a unified model.")] = ...,  # type: ignore[assignment]
    as_json: Annotated[bool, typer.Option("--json", help="Give attributes as JSON.")] = False,
) -> int:
    """Answer a question about a face, describe it, or say its attributes."""
    # Loading torch takes seconds, which `--help` need not wait for.
    from mmface.data.attributes import ATTRIBUTES
    from mmface.data.questions import DESCRIBE, read_answer, wordings
    from mmface.sampling.unified import UnifiedPipeline

    if question is not None and not question.strip():
        raise ValueError("the question is no text; ask something, or leave it out")
    if not picture.is_file():
        raise FileNotFoundError(f"the picture {picture} does not exist")
    model = UnifiedPipeline.from_pretrained(pipeline)
    if as_json and question is None:
        asked = [wordings(name)[0] for name in ATTRIBUTES]
        said = model.answer([str(picture)] * len(asked), asked)
        pairs = zip(ATTRIBUTES, said, strict=True)
        typer.echo(json.dumps({name: read_answer(name, text) for name, text in pairs}, indent=1))
        return 0
    asked_once = question or DESCRIBE[0]
    answer = model.answer([str(picture)], [asked_once])[0]
    typer.echo(json.dumps({"q": asked_once, "a": answer}) if as_json else answer)
    return 0


def run(arguments: list[str] | None = None) -> int:
    """Run the command line; a mistake of the user's is one line on stderr and status 2."""
    app = typer.Typer(add_completion=False)
    app.command()(main)
    return run_app(app, arguments)


if __name__ == "__main__":
    sys.exit(run())
