"""What a user's mistake is, and how a command ends with it."""

import numpy as np
import pytest
import typer

from mmface.core.command_line import check_number, check_whole, ending, run_app


@pytest.mark.parametrize("value", [True, 1.0, "3", None, 0, 11])
def test_what_is_no_whole_number_in_the_range_is_refused(value):
    with pytest.raises(ValueError, match=r"^steps must be a whole number in 1\.\.10, got"):
        check_whole("steps", value, 1, 10)
    check_whole("steps", np.int64(3), 1, 10)
    with pytest.raises(ValueError, match=r"^steps must be a whole number from 2 up, got 1"):
        check_whole("steps", 1, 2)


@pytest.mark.parametrize("value", [True, float("nan"), float("inf"), "3", -1])
def test_what_is_no_number_in_the_range_is_refused(value):
    with pytest.raises(ValueError, match=r"^scale must be 0 or more, got"):
        check_number("scale", value, 0)
    check_number("scale", np.float32(3), 0)


class InstantiationException(Exception):  # noqa: N818
    """Stands for hydra's, which is known by its name."""


class MissingMandatoryValue(Exception):  # noqa: N818
    """Stands for omegaconf's."""

    full_key = "job.method"


def caused(cause):
    error = InstantiationException("Error in call to target")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("odd\n  number"), "odd number"),
        (FileNotFoundError("no such folder"), "no such folder"),
        (caused(TypeError("unexpected keyword 'stepz'")), "unexpected keyword 'stepz'"),
        (InstantiationException("no target"), "no target"),
        (MissingMandatoryValue("???"), "method has no value; give it with method=VALUE"),
    ],
)
def test_a_mistake_ends_a_script_with_one_line_and_status_2(error, line, capsys, monkeypatch):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    with pytest.raises(SystemExit) as ended, ending():
        raise error
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: {line}\n"
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(type(error)), ending():
        raise error


def test_a_fault_of_the_program_shows_its_stack():
    with pytest.raises(ZeroDivisionError), ending():
        raise ZeroDivisionError


def test_a_plain_command_ends_alike(capsys):
    def main(number: int) -> int:
        if number < 0:
            raise ValueError("below\n0")
        return number

    app = typer.Typer(add_completion=False)
    app.command()(main)
    assert [run_app(app, each) for each in (["0"], ["1"], ["--", "-1"], ["one"])] == [0, 1, 2, 2]
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "error: below 0"
    assert told[1].startswith("error: ")
    assert len(told) == 2
