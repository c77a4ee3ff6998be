"""The checks see what they are for: a name that nobody defined, and warnings in tests."""

import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError

from mmface.objectives.objective import objective_named

ROOT = Path(__file__).parents[1]
SNIPPET = '''"""A module."""


def count(rows: list[int]) -> int:
    """Count rows."""
    return len(rowz)
'''


def test_ruff_finds_undefined_names():
    command = ["ruff", "check", "--no-cache", "--stdin-filename", "mmface/counting.py", "-"]
    run = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, input=SNIPPET, capture_output=True, text=True
    )
    assert run.returncode == 1
    assert "F821" in run.stdout
    assert "rowz" in run.stdout


def test_mypy_finds_undefined_names(tmp_path):
    mypy = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    assert "disable_error_code" not in mypy
    assert {"mmface", "scripts"} <= set(mypy["files"])
    (tmp_path / "counting.py").write_text(SNIPPET)
    command = [sys.executable, "-m", "mypy", "--no-incremental", tmp_path / "counting.py"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert 'Name "rowz" is not defined' in run.stdout


@pytest.mark.parametrize("kind", [DeprecationWarning, FutureWarning, UserWarning])
def test_warnings_are_errors(kind):
    with pytest.raises(kind):
        warnings.warn("a thing of the past", kind, stacklevel=1)


def test_shapes_are_checked_when_a_function_is_called():
    with pytest.raises(TypeCheckError):
        objective_named("rectified_flow").signal_share(torch.zeros(2, 3))
