"""What the page's server refuses: strangers' requests, too many bytes, and odd values in a call."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from PIL import Image

from mmface.app import guard, painting, server
from mmface.app.guard import FileQuota
from mmface.conditions import load_mask
from mmface.encoders.face_parser import FaceParser
from mmface.generation.sample import open_model
from mmface.generation.settings import ModelChoice

MB = 2**20


@pytest.fixture(scope="module")
def address(tiny_pipeline_folder):
    model = open_model(ModelChoice(pipeline=str(tiny_pipeline_folder)))
    with server.served(model, FaceParser.from_pretrained("tiny-parser")) as address:
        yield address


def upload(address: str, content: bytes, **headers: str) -> httpx.Response:
    files = {"files": ("a.png", content)}
    return httpx.post(f"{address}gradio_api/upload", files=files, headers=headers)


@pytest.mark.slow
@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost@evil.example",
             "", "192.168.0.2", "127.0.0.1:port", "[::1"],
)  # fmt: skip
def test_other_host_names_are_not_answered(address, host):
    for answer in (
        httpx.get(f"{address}config", headers={"Host": host}),
        upload(address, b"a", Host=host),
    ):
        assert answer.status_code in (400, 403)
        assert "127.0.0.1 and localhost alone" in answer.text or answer.status_code == 400


@pytest.mark.slow
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:1", "LOCALHOST:8080", "[::1]:7860"])
def test_loopback_names_are_answered(address, host):
    assert httpx.get(f"{address}config", headers={"Host": host}).status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "file://", "http://localhost.evil.example",
               "http://localhost@evil.example", "http://192.168.0.2:7860", "x"],
)  # fmt: skip
def test_other_sites_give_no_orders(address, origin):
    body = {"data": [], "session_hash": "x"}
    for answer in (
        httpx.post(f"{address}gradio_api/call/sample", json=body, headers={"Origin": origin}),
        httpx.post(f"{address}gradio_api/queue/join", json=body, headers={"Origin": origin}),
        upload(address, b"a", Origin=origin),
    ):
        assert answer.status_code == 403
        assert answer.text == "This page takes nothing from other sites; use it in its own tab."


@pytest.mark.slow
def test_the_live_face_is_painted_for_this_machines_own_page_alone(address, face_mask):
    calls = httpx.get(f"{address}config").json()["dependencies"]
    (live,) = (each for each in calls if each["api_name"] == "live")
    mask = painting.mask_url(load_mask(face_mask, (512, 512)).labels)
    body = {"data": ["mask", mask, "", "a woman", 1, 0], "fn_index": live["id"]}
    body |= {"session_hash": "x"}

    def answer(**headers):
        return httpx.post(f"{address}gradio_api/run/predict", json=body, headers=headers)

    found = answer(Origin=address.rstrip("/")).json()["data"]
    assert found[0].startswith("data:image/png;base64,")
    for headers, words in (
        ({"Origin": "https://evil.example"}, "takes nothing from other sites"),
        ({"Origin": "null"}, "takes nothing from other sites"),
        ({"Host": "evil.example"}, "127.0.0.1 and localhost alone"),
    ):
        refused = answer(**headers)
        assert refused.status_code == 403, headers
        assert words in refused.text


@pytest.mark.slow
def test_the_page_itself_gives_orders(address):
    for origin in (address.rstrip("/"), "http://localhost:9999"):
        assert upload(address, b"a", Origin=origin).status_code == 200


@pytest.mark.slow
def test_a_body_of_unknown_or_immense_length_is_refused(address):
    url = f"{address}gradio_api/queue/join"
    assert httpx.post(url, content=iter([b"{}"])).status_code == 411
    assert httpx.post(url, content=b"0" * (17 * MB)).status_code == 413


@pytest.mark.slow
def test_uploads_have_a_total(address, monkeypatch):
    answers = [upload(address, os.urandom(9 * MB)) for _ in range(8)]
    assert [each.status_code for each in answers] == [200] * 7 + [413]
    assert "try again in 10 minutes" in answers[-1].text
    monkeypatch.setattr(guard, "MIN_KEPT_SECONDS", 0)
    held = [Path(path) for each in answers[:7] for path in each.json()]
    for place, path in enumerate(held):  # the first is the oldest
        os.utime(path, (time.time() - 3000 + place,) * 2)
        os.utime(path.parent, (time.time() - 3000 + place,) * 2)
    assert upload(address, os.urandom(9 * MB)).status_code == 200
    assert [path.exists() for path in held] == [False] + [True] * 6


def test_a_quota_keeps_what_was_there_and_drops_what_is_old(tmp_path):
    (tmp_path / "example").mkdir()
    (tmp_path / "example" / "a.png").write_bytes(b"0" * 100)
    quota = FileQuota(tmp_path, max_bytes=100)
    (tmp_path / "new.png").write_bytes(b"0" * 60)
    assert not quota.make_room(60)
    assert quota.make_room(40)
    os.utime(tmp_path / "new.png", (0, 0))
    assert quota.make_room(0)
    assert [path.name for path in tmp_path.iterdir()] == ["example"]


ODD = [
    "NaN",
    "Infinity",
    "-Infinity",
    "1e400",
    "9" * 400,
    '"seven"',
    "true",
    "[]",
    "{}",
    "-1",
    "[1]",
]
NUMBERS = {"steps": "1", "guidance": "3", "condition_strength": "1", "seed": "0", "num": "1"}


@pytest.mark.slow
@pytest.mark.parametrize("name", NUMBERS)
def test_an_odd_number_in_a_call_is_a_sentence(address, face_mask, tmp_path, name):
    Image.fromarray(face_mask).save(tmp_path / "mask.png")
    path = upload(address, (tmp_path / "mask.png").read_bytes()).json()[0]
    mask = json.dumps({"path": path, "meta": {"_type": "gradio.FileData"}})
    for odd in ODD:
        numbers = ",".join((NUMBERS | {name: odd}).values())
        body = f'{{"data": ["a woman", {mask}, null, "", {numbers}], "session_hash": "x"}}'
        url, json_type = f"{address}gradio_api/call/sample", {"Content-Type": "application/json"}
        event = httpx.post(url, content=body, headers=json_type).json()["event_id"]
        with httpx.stream("GET", f"{url}/{event}", timeout=60) as answer:
            lines = [line for line in answer.iter_lines() if line]
        assert lines[-2] == "event: error", odd
        assert re.search(r"must be (a whole number|in \d|0 or more)", lines[-1]), (odd, lines)
        assert len(lines[-1]) < 250
    direct = httpx.post(f"{address}gradio_api/run/sample", content=body, headers=json_type)
    assert direct.status_code == 404  # the queue is the one way in


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("is_serving", [True, False])
def test_signals_leave_no_folder(tmp_path, number, is_serving):
    script = Path(__file__).parent.parent / "scripts" / "app.py"
    process = subprocess.Popen(
        [sys.executable, script], env=os.environ | {"TMPDIR": str(tmp_path)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("mmface_page_*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    if is_serving:
        assert process.stdout
        assert "The page is at" in process.stdout.readline()
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == (0 if number == signal.SIGINT else 128 + number)
    assert "Traceback" not in told
    assert not list(tmp_path.iterdir())
