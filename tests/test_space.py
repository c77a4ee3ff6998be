"""A Space that is written runs where it lies, without the package being installed."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

RUN = """
import runpy, sys
sys.path.insert(0, sys.argv[1])
space = runpy.run_path("app.py")
import mmface
from gradio_client import Client, handle_file
_, address, _ = space["demo"].launch(prevent_thread_lock=True, quiet=True)
found = Client(address, verbose=False).predict(
    "a man", handle_file("examples/mask_0.png"), None, 1, 1, 2, api_name="/sample"
)
print(len(found), mmface.__file__)
"""


@pytest.mark.slow
def test_a_space_starts_and_samples(tmp_path):
    pytest.importorskip("gradio")
    from mmface.app.space import write_space

    folder = tmp_path / "space"
    script = Path(__file__).parent.parent / "scripts" / "app.py"
    runpy.run_path(str(script))["main"](space=folder)
    needed = (folder / "requirements.txt").read_text().split()
    assert any(each.startswith("torch>=") for each in needed)
    assert not any("extra" in each for each in needed)
    card = (folder / "README.md").read_text()
    assert re.search(r"^sdk_version: [\d.]+$", card, re.MULTILINE)
    with pytest.raises(ValueError, match="not empty"):
        write_space(folder, "tiny-flow")
    with pytest.raises(FileNotFoundError, match="no folder"):
        write_space(tmp_path / "other", "tiny-nothing")
    env = {**os.environ, "PYTHONPATH": "", "GRADIO_ANALYTICS_ENABLED": "False"}
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUN, str(folder)],
        cwd=folder,
        env=env | {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_TEMP_DIR": str(tmp_path / "files")},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    number, package = run.stdout.split()[-2:]
    assert number == "2"
    assert package.startswith(str(folder))
