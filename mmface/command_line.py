"""How the plain command lines end: a result, or a user's mistake in one line."""

from collections.abc import Sequence

import typer

# typer's own UsageError (a base of BadParameter), which newer versions no longer share with click.
MISTAKES: tuple[type[Exception], ...] = (ValueError, OSError, *typer.BadParameter.__bases__)


def run_app(app: typer.Typer, arguments: Sequence[str] | None = None) -> int:
    """Run a command line; a mistake of the user's is one line on stderr.

    Args:
        app: The commands.
        arguments: What was typed after the script's name; None reads it from the process.

    Returns:
        The exit status: what the command returned, 0 if nothing, or 2 for a mistake.
    """
    try:
        given = None if arguments is None else list(arguments)
        return app(given, standalone_mode=False) or 0
    except MISTAKES as error:
        message = getattr(error, "format_message", error.__str__)()
        typer.echo(f"error: {' '.join(message.split())}", err=True)
        return 2
