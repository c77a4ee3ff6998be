"""diffusers' own tests of pipelines, of memory and of LoRA pass with ours."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = os.environ.get("DIFFUSERS_SOURCE", "")
HAS_TESTS = bool(SOURCE) and Path(SOURCE, "tests/pipelines/testing_utils/common.py").is_file()
RUN = "import diffusers.loaders.lora_base, pytest, sys; sys.exit(pytest.main(sys.argv[1:]))"


@pytest.mark.slow
@pytest.mark.skipif(
    not HAS_TESTS,
    reason="diffusers' wheel has no tests: set DIFFUSERS_SOURCE to a copy of its repository, 0.40+",
)
def test_they_pass():
    """Skipped inside are what needs an accelerator, and LoRAs of text encoders."""
    folder = Path(__file__).parent
    options = ["-q", "-c", os.devnull, "--rootdir", str(folder), "-p", "no:cacheprovider"]
    run = subprocess.run(
        [sys.executable, "-c", RUN, *options, str(folder / "diffusers_mixins.py")],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-4000:]
    passed = re.search(r"(\d+) passed", run.stdout)
    assert passed is not None
    assert int(passed[1]) >= 40
