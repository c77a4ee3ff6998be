"""Make and check manifests: one JSON-lines file of pictures, masks, sketches and captions.

python scripts/dataset.py import celebamask-hq CelebAMask-HQ --out celebahq.jsonl
python scripts/dataset.py merge celebahq.jsonl ffhq.jsonl --out faces.jsonl
python scripts/dataset.py doctor faces.jsonl --report report.json --sheet worst.png
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from mmface.core.command_line import run_app

Out = Annotated[Path, typer.Option(help="The manifest to write.")]
app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.command("import")
def import_(
    layout: Annotated[str, typer.Argument(help="Layout of the folder; a wrong one lists all.")],
    folder: Annotated[str, typer.Argument(help="Where the data set lies, or its hub name.")],
    out: Out,
    label_format: Annotated[str | None, typer.Option(help="Of the masks; else guessed.")] = None,
    sketch_polarity: Annotated[str | None, typer.Option(help="Else guessed.")] = None,
    split: Annotated[list[str] | None, typer.Option(help="train, or test=names.txt.")] = None,
    prefix: Annotated[str | None, typer.Option(help="What the ids begin with.")] = None,
    reading: Annotated[
        list[str] | None, typer.Option(help="Of other conditions, as label_format=facer.")
    ] = None,
    column: Annotated[list[str] | None, typer.Option(help="Such as image=photo.")] = None,
) -> None:
    """Describe a data set in its own folders; no picture is copied."""
    from mmface.data import importers

    named = dict(each.partition("=")[::2] for each in column or ())
    rule = importers.parse_split(split or ())
    importer = importers.importer_of(layout, folder, rule, prefix, named)
    said = {"label_format": label_format, "sketch_polarity": sketch_polarity}
    said |= dict(each.partition("=")[::2] for each in reading or ())
    manifest = importers.import_faces(importer, out, said)
    typer.echo(f"{importer.report}\n{manifest.path}")


@app.command()
def merge(manifests: list[Path], out: Out) -> None:
    """Make one manifest of several."""
    from mmface.data.manifest import Manifest
    from mmface.data.manifest import merge as merged

    written = merged([Manifest.read(path) for path in manifests], out).write(out)
    typer.echo(f"{len(written.records)} faces\n{written.path}")


@app.command()
def doctor(
    manifest: Annotated[Path | None, typer.Argument(help="The manifest to examine.")] = None,
    fix: Annotated[Path | None, typer.Option(help="A mended manifest to write.")] = None,
    report: Annotated[Path | None, typer.Option(help="JSON of all findings to write.")] = None,
    sheet: Annotated[Path | None, typer.Option(help="PNG of the worst faces to write.")] = None,
    store: Annotated[Path | None, typer.Option(help="Latents made of it: are they stale?")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Folder; captions in tokens.")] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Pixels that are wanted.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Else one a processor.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="Say what it can find.")] = False,
) -> int:
    """Say what is wrong with a data set; status 1 if training would fail or learn wrong."""
    from mmface import doctor

    if list_:
        typer.echo(doctor.kinds_table())
        return 0
    if manifest is None:
        raise typer.BadParameter("give the manifest to examine")
    diagnosis = doctor.examine(manifest, size, tokenizer, store, workers)
    typer.echo(doctor.write_results(diagnosis, report, sheet, fix))
    return int(diagnosis.has_errors)


def run(arguments: list[str] | None = None) -> int:
    """Run the command line; a mistake of the user's is one line on stderr and status 2."""
    return run_app(app, arguments)


if __name__ == "__main__":
    sys.exit(run())
