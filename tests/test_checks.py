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
TEST = """from counting import count


def test_count(tmp_path):
    assert count([1]) == expectation
    assert count([1], 2).many
    assert count(rows="ab").real
"""


def test_ruff_finds_undefined_names():
    command = ["ruff", "check", "--no-cache", "--stdin-filename", "mmface/counting.py", "-"]
    run = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, input=SNIPPET, capture_output=True, text=True
    )
    assert run.returncode == 1
    assert "F821" in run.stdout
    assert "rowz" in run.stdout


@pytest.mark.slow
def test_mypy_finds_undefined_names_and_wrong_calls_in_tests_too(tmp_path):
    mypy = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    for section in (mypy, *mypy["overrides"]):
        assert not {"disable_error_code", "ignore_errors"} & section.keys()
    assert {"mmface", "scripts", "tests"} <= set(mypy["files"])
    assert mypy["check_untyped_defs"]
    (tmp_path / "counting.py").write_text(SNIPPET)
    (tmp_path / "test_counting.py").write_text(TEST)
    files = [tmp_path / "counting.py", tmp_path / "test_counting.py"]
    command = [sys.executable, "-m", "mypy", "--no-incremental", *files]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert 'Name "rowz" is not defined' in run.stdout
    assert 'Name "expectation" is not defined' in run.stdout
    assert 'Too many arguments for "count"' in run.stdout
    assert '"int" has no attribute "many"' in run.stdout
    assert 'incompatible type "str"; expected "list[int]"' in run.stdout
    assert "Function is missing a type annotation" not in run.stdout


def test_the_package_and_every_script_are_typed_throughout():
    mypy = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    (typed,) = (each for each in mypy["overrides"] if each.get("disallow_untyped_defs"))
    scripts = {path.stem for path in (ROOT / "scripts").glob("*.py")}
    assert set(typed["module"]) == {"mmface.*", *scripts}


@pytest.mark.parametrize("kind", [DeprecationWarning, FutureWarning, UserWarning])
def test_warnings_are_errors(kind):
    with pytest.raises(kind):
        warnings.warn("a thing of the past", kind, stacklevel=1)


def test_shapes_are_checked_when_a_function_is_called():
    with pytest.raises(TypeCheckError):
        objective_named("rectified_flow").signal_share(torch.zeros(2, 3))
