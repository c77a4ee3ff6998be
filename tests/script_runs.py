"""Command lines that tests start in their own process."""

import runpy
from collections.abc import Callable
from pathlib import Path


def load_script(name: str) -> Callable[[list[str]], int]:
    """Give the `run` of a script in `scripts/`, which takes arguments and gives the status."""
    path = Path(__file__).parent.parent / "scripts" / f"{name}.py"
    return runpy.run_path(str(path))["run"]
