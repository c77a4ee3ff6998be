"""Measure speed, memory and exactness beside a plain reference, in the same run.

python scripts/benchmark.py all --device cuda
python scripts/benchmark.py train --size small --device cpu
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from mmface.core.command_line import run_app


def main(
    family: Annotated[
        str,
        typer.Argument(
            help="forward, train, sample, fewer, encode, data, attention, growth, count, "
            "parity, phases, all"
        ),
    ],
    size: Annotated[str | None, typer.Option(help="tiny, small or paper.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    out: Annotated[Path | None, typer.Option(help="JSON file.")] = None,
    trace: Annotated[Path | None, typer.Option(help="Folder for profiler traces.")] = None,
    minutes: Annotated[float, typer.Option(help="Begin no measurement after these.")] = 9.5,
    only: Annotated[str, typer.Option(help="Expression that the cases must contain.")] = "",
    reference: Annotated[Path | None, typer.Option(help="tests/plain_reference.py.")] = None,
) -> None:
    """Measure one family, or all of them."""
    # Loading torch takes seconds, which `--help` need not wait for.
    from mmface.benchmarks.suite import FAMILIES, REFERENCE, run_suite

    families = list(FAMILIES) if family == "all" else [family]
    size = size or ("paper" if device == "cuda" else "small")
    out = out or Path("runs") / "benchmark" / f"{family}-{size}-{device}.json"
    report = run_suite(families, size, device, out, trace, minutes, reference or REFERENCE, only)
    typer.echo(report.table())
    typer.echo(out)


def run(arguments: list[str] | None = None) -> int:
    """Run the command line; a mistake of the user's is one line on stderr and status 2."""
    app = typer.Typer(add_completion=False)
    app.command()(main)
    return run_app(app, arguments)


if __name__ == "__main__":
    sys.exit(run())
