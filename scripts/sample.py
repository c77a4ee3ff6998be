"""Sample faces from a mask, a sketch or a photo plus a prompt; without arguments, a built-in demo.

python scripts/sample.py
python scripts/sample.py --prompt "a man with a red beard" --mask mask.png --out face.png
accelerate launch scripts/sample.py --jobs faces.jsonl --out faces
"""

import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from mmface.core.command_line import hide_optional_libraries, run_app
from mmface.generation.settings import (
    Draws,
    ModelChoice,
    Option,
    Run,
    Settings,
    from_options,
    options_of,
)

GROUPS: tuple[Any, ...] = (Settings, Draws, ModelChoice, Run)
PANELS = ("Face", "Output", "Control", "Vary and edit", "Model")


def main(**values: Any) -> int:
    """Sample faces from a mask, a sketch or a photo plus a prompt; without arguments, a demo.

    A picture says how it was made; --rerun makes it again: to the bit with the same versions and
    processor, elsewhere up to rounding.
    """
    # Loading torch takes seconds, which `--help` need not wait for.
    if not any(values[name] for name in ("lora", "quantize", "rerun")):
        hide_optional_libraries()
    from mmface.generation import sample

    settings, draws, choice, asked = (from_options(group, values) for group in GROUPS)
    sample.quiet()
    status = 0
    done: Sequence[str | Path]
    if asked.plan:
        from mmface.planning.sampling import plan_command

        done = [plan_command(settings, draws, choice, asked)]
    elif asked.rerun is not None:
        from mmface.generation.rerun import rerun

        done = rerun(settings, draws, choice, asked)
    elif asked.jobs is not None:
        from mmface.generation.jobs import run_jobs

        done, status = run_jobs(settings, draws, choice, asked)
    else:
        done = sample.sample_one(settings, draws, choice, asked)
    for each in done:
        typer.echo(each)
    return status


def parameter(option: Option) -> inspect.Parameter:
    """Make a parameter of the command line of an option."""
    shown = typer.Option(help=option.help, rich_help_panel=option.panel)
    # typer repeats an option of a list, and knows no tuple of any length.
    hint: Any = Annotated[list[str] if option.type == tuple[str, ...] else option.type, shown]
    keyword = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(option.name, keyword, default=option.default, annotation=hint)


def run(arguments: list[str] | None = None) -> int:
    """Run the command line; a mistake of the user's is one line on stderr and status 2."""
    parameters = [parameter(option) for group in GROUPS for option in options_of(group)]
    parameters.sort(key=lambda one: PANELS.index(one.annotation.__metadata__[0].rich_help_panel))
    main.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    app = typer.Typer(add_completion=False)
    app.command()(main)
    return run_app(app, arguments)


if __name__ == "__main__":
    sys.exit(run())
