"""The page's server without a browser: its endpoints, its queue, and what is out of reach."""

import gc
import time
from pathlib import Path

import gradio_client as gradio
import httpx
import numpy as np
import psutil
import pytest
from bad_uploads import bad_files
from PIL import Image

from mmface.app import server
from mmface.encoders.face_parser import FaceParser
from mmface.generation.requests import prepare_request, sample_requests
from mmface.generation.sample import OpenedModel, open_model
from mmface.generation.settings import ModelChoice, Settings, read_provenance

PROMPT = "a woman with red hair"


@pytest.fixture(scope="module")
def model(tiny_pipeline_folder) -> OpenedModel:
    return open_model(ModelChoice(pipeline=str(tiny_pipeline_folder)))


@pytest.fixture(scope="module")
def parser() -> FaceParser:
    return FaceParser.from_pretrained("tiny-parser")


@pytest.fixture(scope="module")
def address(model, parser):
    with server.served(model, parser) as address:
        yield address


@pytest.fixture(scope="module")
def client(address, tmp_path_factory) -> "gradio.Client":
    return gradio.Client(address, verbose=False, download_files=str(tmp_path_factory.mktemp("got")))


@pytest.fixture
def mask_file(face_mask, tmp_path) -> Path:
    path = tmp_path / "mask.png"
    Image.fromarray(face_mask).save(path)
    return path


@pytest.mark.slow
def test_the_endpoint_gives_the_pipelines_own_pixels(client, model, mask_file):
    faces, adherence = client.predict(
        prompt=PROMPT, mask=gradio.handle_file(mask_file), sketch=None, steps=3, seed=7, num=2,
        guidance=3, api_name="/sample",
    )  # fmt: skip
    settings = Settings(prompt=PROMPT, conditions={"mask": "mask.png"}, steps=3, guidance=3.0)
    row = prepare_request(settings, model.pipeline, lambda _, path: mask_file.parent / path)
    wanted = sample_requests(model.pipeline, [row], [[7, 8]])[0]
    for path, picture in zip(faces, wanted, strict=True):
        assert (np.array(Image.open(path)) == np.array(picture)).all()
    recipe, _ = read_provenance(faces[0])
    assert recipe.rows[0].prompt == PROMPT
    assert 0 <= adherence[0]["mean_iou"] <= 1


@pytest.mark.slow
def test_queued_requests_are_answered_in_order_and_memory_does_not_grow(
    client, mask_file, monkeypatch
):
    process = psutil.Process()
    # Noted where the page samples: the client's threads hear of their answers in any order.
    order: list[int] = []

    def noted(pipeline, requests, seeds, *rest, **options):
        order.extend(seed for own in seeds for seed in own)
        return sample_requests(pipeline, requests, seeds, *rest, **options)

    monkeypatch.setattr("mmface.app.running.sample_requests", noted)

    def submit(seed):
        options = {"prompt": PROMPT, "mask": gradio.handle_file(mask_file), "sketch": None}
        return client.submit(**options, steps=1, seed=seed, num=1, guidance=1, api_name="/sample")

    for seed in range(3):
        submit(seed).result()
    gc.collect()
    before = process.memory_info().rss
    order.clear()
    jobs = []
    for seed in range(20):
        job = submit(seed)
        jobs.append(job)
        # The client sends from several threads: wait until this one is in the queue.
        while job.status().code == gradio.utils.Status.STARTING:
            time.sleep(0.002)
    named = [Path(job.result(timeout=120)[0][0]).stem for job in jobs]
    assert named == [f"seed_{seed}" for seed in range(20)]
    gc.collect()
    grown = process.memory_info().rss - before
    assert order == list(range(20))
    assert grown < 48 * 2**20, f"{grown / 2**20:.0f} MiB"


@pytest.mark.slow
def test_cancel_stops_the_running_call(parser, mask_file):
    with server.served(open_model(ModelChoice()), parser) as address:
        check_cancel(gradio.Client(address, verbose=False), mask_file)


def check_cancel(client, mask_file):
    job = client.submit(
        prompt=PROMPT, mask=gradio.handle_file(mask_file), sketch=None, steps=100, num=4,
        guidance=5, api_name="/sample",
    )  # fmt: skip
    answer, deadline = "", time.monotonic() + 60
    while "Cancelled" not in answer and time.monotonic() < deadline and not job.done():
        answer = client.predict(api_name="/cancel")
        time.sleep(0.01)
    assert "Cancelled" in answer
    started = time.monotonic()
    with pytest.raises(Exception, match="stopped"):
        job.result(timeout=60)
    assert time.monotonic() - started < 20


@pytest.mark.slow
def test_bad_requests_are_one_sentence(client, tmp_path, mask_file):
    for name, path in bad_files(tmp_path).items():
        with pytest.raises(Exception, match=r"[Tt]he file|larger|mask|sketch") as caught:
            client.predict(
                prompt=PROMPT, mask=gradio.handle_file(path), sketch=None, api_name="/sample"
            )
        assert "Traceback" not in str(caught.value), name
    for options, words in (
        ({"mask": None}, "neither a mask nor a sketch"),
        ({"mask": gradio.handle_file(mask_file), "steps": 1.5}, "whole number"),
        ({"mask": gradio.handle_file(mask_file), "num": 400}, "number of pictures"),
    ):
        with pytest.raises(Exception, match=words):
            client.predict(prompt=PROMPT, sketch=None, **options, api_name="/sample")


@pytest.mark.slow
def test_only_the_wanted_endpoints_are_open(client):
    assert set(client.view_api(return_format="dict")["named_endpoints"]) == {"/sample", "/cancel"}


@pytest.mark.slow
def test_files_of_the_machine_are_out_of_reach(address, client, tmp_path):
    secret = tmp_path / "secret.png"
    Image.new("RGB", (8, 8)).save(secret)
    for path in ("/etc/passwd", str(Path(__file__)), str(secret), "../../../../etc/passwd"):
        for route in ("gradio_api/file=", "file=", "gradio_api/proxy=", "static/"):
            assert httpx.get(f"{address}{route}{path}").status_code in (400, 403, 404), path
    forged = {"path": str(secret), "meta": {"_type": "gradio.FileData"}}
    body = {"data": [PROMPT, forged, None, "", 1, 1, 1, 0, 1], "session_hash": "x"}
    event = httpx.post(f"{address}gradio_api/call/sample", json=body).json()["event_id"]
    with httpx.stream("GET", f"{address}gradio_api/call/sample/{event}", timeout=60) as answer:
        lines = list(answer.iter_lines())
    assert "event: error" in lines
    assert "event: complete" not in lines


@pytest.mark.slow
def test_an_upload_that_is_too_large_is_refused(address):
    content = b"0" * (11 * 2**20)
    answer = httpx.post(f"{address}gradio_api/upload", files={"files": ("a.png", content)})
    assert answer.status_code == 413


@pytest.mark.slow
def test_the_page_listens_on_this_machine_alone_and_says_nothing_to_others(address):
    assert address.startswith("http://127.0.0.1:")
    config = httpx.get(f"{address}config").json()
    assert config["analytics_enabled"] is False
    listening = [
        each.laddr.ip for each in psutil.Process().net_connections("tcp") if each.status == "LISTEN"
    ]
    assert set(listening) <= {"127.0.0.1"}


@pytest.mark.slow
def test_a_password_shuts_the_page(model, parser):
    with server.served(model, parser, password="anna:rose-garden-7") as address:
        assert httpx.get(f"{address}config").status_code == 401
        wrong = httpx.post(f"{address}login", data={"username": "anna", "password": "x"})
        assert wrong.status_code == 400
        right = {"username": "anna", "password": "rose-garden-7"}
        assert httpx.post(f"{address}login", data=right).status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize("word", ["anna", ":secret", "anna:", ""])
def test_a_malformed_password_is_refused(word):
    with pytest.raises(ValueError, match="USER:PASS"):
        server.credentials(word)


@pytest.mark.slow
def test_the_pages_folder_goes_with_it(model, parser, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with server.served(model, parser):
        assert list(tmp_path.glob("mmface_page_*"))
    assert not list(tmp_path.glob("mmface_page_*"))
