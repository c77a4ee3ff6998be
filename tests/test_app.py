"""The web page without a browser: canvases, runs, the endpoint, and what is refused."""

import base64
import gc
import io
import threading
import time
import zipfile
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

gradio = pytest.importorskip("gradio", reason="the page needs gradio: pip install -e '.[app]'")
psutil = pytest.importorskip("psutil")

from gradio_client import Client, handle_file  # noqa: E402
from gradio_client.utils import Status  # noqa: E402

from mmface.annotation.masks import PictureParser  # noqa: E402
from mmface.app import painting, reporting, running  # noqa: E402
from mmface.app.canvas import CANVAS_PX  # noqa: E402
from mmface.app.handlers import Handlers  # noqa: E402
from mmface.app.running import FaceMaker, FaceRequest, FaceRun, LatentPreview  # noqa: E402
from mmface.app.server import credentials, served  # noqa: E402
from mmface.conditions import image_pixels, load_mask  # noqa: E402
from mmface.data.rendered import render_face  # noqa: E402
from mmface.label_formats import label_format_named  # noqa: E402
from mmface.model_loading import OpenedModel, open_model  # noqa: E402
from mmface.palette import LABEL_INDEX, LABELS, PALETTE, colorize  # noqa: E402
from mmface.sampling_recipe import read_recipe  # noqa: E402
from mmface.sampling_rows import ready_row, sample_rows  # noqa: E402
from mmface.sampling_settings import ModelChoice, Settings  # noqa: E402

SIZE = (64, 64)
PROMPT = "a woman with red hair"


@pytest.fixture(scope="module")
def model(tiny_pipeline_folder) -> OpenedModel:
    return open_model(ModelChoice(pipeline=str(tiny_pipeline_folder)))


@pytest.fixture(scope="module")
def parser() -> PictureParser:
    return PictureParser.from_pretrained("tiny-parser")


@pytest.fixture
def maker(model, parser, tmp_path) -> FaceMaker:
    return FaceMaker(model, parser, tmp_path / "runs")


@pytest.fixture
def request_(face_labels) -> FaceRequest:
    small = load_mask(face_labels, (32, 32)).labels
    return FaceRequest(PROMPT, labels=small, steps=4, seed=5, num=2, guidance=3.0)


@pytest.fixture(scope="module")
def address(model, parser):
    with served(model, parser) as address:
        yield address


@pytest.fixture(scope="module")
def client(address, tmp_path_factory) -> Client:
    return Client(address, verbose=False, download_files=str(tmp_path_factory.mktemp("got")))


@pytest.fixture
def mask_file(face_mask, tmp_path) -> Path:
    path = tmp_path / "mask.png"
    Image.fromarray(face_mask).save(path)
    return path


def url_of(array: np.ndarray) -> str:
    return painting.to_data_url(Image.fromarray(array))


# Painting


def test_a_painted_mask_comes_back_class_by_class(face_labels):
    for label_map in (face_labels, np.arange(64 * 64).reshape(64, 64).astype(np.uint8) % 19):
        found = painting.painted_labels(url_of(colorize(label_map)), SIZE)
        assert (found == label_map).all()
        assert (painting.painted_labels(painting.mask_url(label_map), SIZE) == label_map).all()


def test_soft_strokes_are_snapped_to_a_class_that_was_painted(face_labels):
    soft = Image.fromarray(colorize(face_labels)).resize((256, 256), Image.Resampling.BICUBIC)
    found = painting.painted_labels(painting.to_data_url(soft), SIZE)
    assert set(np.unique(found)) <= set(np.unique(face_labels))
    assert (found == face_labels).mean() > 0.98


def test_every_class_has_one_named_colour_of_the_palette():
    assert set(painting.CLASS_TITLES) == set(LABELS)
    colors = painting.class_colors()
    assert len(colors) == 19
    assert set(colors.values()) == {f"#{bytes(color.tolist()).hex()}" for color in PALETTE}
    assert colors["hair"] == "#0000cc"


def test_a_drawn_sketch_and_a_region_come_back(face_sketch):
    found = painting.painted_sketch(url_of(face_sketch), SIZE)
    assert (found == face_sketch).all()
    layer = np.zeros((8, 8, 4), dtype=np.uint8)
    assert painting.painted_region(url_of(layer)) is None
    layer[2:4, 2:4] = (255, 61, 154, 255)
    region = painting.painted_region(url_of(layer))
    assert region is not None
    assert region.sum() == 4
    assert region[2:4, 2:4].all()


@pytest.mark.parametrize("value", [None, "", "backdrop:data:image/png;base64,AAAA"])
def test_an_empty_canvas_says_what_to_do(value):
    with pytest.raises(ValueError, match="mask is empty: paint one"):
        painting.painted_labels(value, SIZE)
    with pytest.raises(ValueError, match="sketch is empty: draw one"):
        painting.painted_sketch(value, SIZE)
    assert painting.painted_region(value) is None


def test_an_all_background_or_blank_canvas_counts_as_empty():
    with pytest.raises(ValueError, match="mask is empty"):
        painting.painted_labels(url_of(np.zeros((64, 64, 3), np.uint8)), SIZE)
    with pytest.raises(ValueError, match="sketch is empty"):
        painting.painted_sketch(url_of(np.full((64, 64, 3), 255, np.uint8)), SIZE)


def jpeg_url() -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.parametrize(
    "value",
    [
        "hello",
        "file:///etc/passwd",
        "data:image/png;base64,####",
        "data:image/png;base64,AAAA",
        "data:image/svg+xml;base64,AAAA",
        "data:image/png;base64," + "A" * painting.MAX_CANVAS_CHARACTERS,
        jpeg_url(),
        url_of(np.zeros((2, CANVAS_PX + 1, 3), np.uint8)),
    ],
    ids=["words", "path", "characters", "bytes", "svg", "huge", "jpeg", "wide"],
)
def test_a_forged_canvas_value_is_refused_in_words(value):
    with pytest.raises(ValueError, match="reload the page"):
        painting.from_data_url(value)


def test_an_uploaded_mask_is_read_in_its_own_format_with_evidence(tmp_path):
    face = render_face(1_000_003, 128)
    bisenet = np.argsort(label_format_named("bisenet").to_labels)
    for name, array in (("colour", colorize(face.labels)), ("bisenet", bisenet[face.labels])):
        path = tmp_path / f"{name}.png"
        Image.fromarray(array.astype(np.uint8)).save(path)
        found = painting.read_mask(path, (128, 128))
        assert (found.labels == face.labels).all(), name
        assert found.evidence.startswith("Read as ")
        assert len(found.evidence) > 40


def test_a_light_on_dark_sketch_is_turned_round(face_sketch, tmp_path):
    Image.fromarray(255 - face_sketch).save(tmp_path / "sketch.png")
    assert (painting.read_sketch(tmp_path / "sketch.png", SIZE) == face_sketch).all()


def bad_files(folder: Path) -> dict[str, Path]:
    """Write files that are no masks: each is a mistake that a visitor can make."""
    files = {name: folder / name for name in ("text.png", "cut.png", "bomb.png", "photo.png")}
    files["text.png"].write_text("I am no picture")
    Image.fromarray(colorize(render_face(1, 64).labels)).save(files["cut.png"])
    files["cut.png"].write_bytes(files["cut.png"].read_bytes()[:200])
    Image.new("1", (5000, 5000)).save(files["bomb.png"])
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(files["photo.png"])
    return files


def test_bad_uploads_are_one_sentence_without_the_servers_paths(tmp_path, parser):
    for name, path in bad_files(tmp_path).items():
        readers = [painting.read_mask, painting.read_sketch]
        if name != "photo.png":
            readers.append(painting.open_upload)
            readers.append(lambda given: painting.from_photo(given, parser, "sketch"))
        for reader in readers:
            with pytest.raises(ValueError, match=r"\w") as caught:
                reader(path)
            assert str(tmp_path) not in str(caught.value)
            assert "\n" not in str(caught.value)


def test_a_photo_in_which_nothing_is_skin_is_refused(tmp_path):
    def parser(pictures):
        return [np.full(each.shape[:2], LABEL_INDEX["hair"], np.uint8) for each in pictures]

    Image.new("RGB", (64, 64), "white").save(tmp_path / "white.png")
    with pytest.raises(ValueError, match="No face was found"):
        painting.from_photo(tmp_path / "white.png", parser, "mask")


def test_a_photo_gives_mask_and_sketch(tmp_path, parser):
    face = render_face(1_000_006, 256)
    Image.fromarray(face.image).save(tmp_path / "photo.jpg", quality=95)
    labels, sketch = painting.from_photo(tmp_path / "photo.jpg", parser, "both")
    assert labels is not None
    assert sketch is not None
    wanted = load_mask(face.labels, (CANVAS_PX, CANVAS_PX)).labels
    assert (labels == wanted).mean() > 0.9
    assert (sketch < 128).any()
    assert painting.from_photo(tmp_path / "photo.jpg", parser, "sketch")[0] is None


# Running


def test_a_run_makes_the_pictures_that_sampling_makes(maker, model, request_, tmp_path):
    run = maker.run(request_)
    folder = run.pictures[0].parent
    recipe, _ = read_recipe(run.pictures[1])
    assert recipe.seeds == (5, 6)
    assert recipe.picture == 1
    settings = recipe.rows[0]
    row = ready_row(settings, model.pipeline, lambda _, path: folder / path)
    wanted = sample_rows(model.pipeline, [row], [[5, 6]])[0]
    for path, picture in zip(run.pictures, wanted, strict=True):
        assert (np.array(Image.open(path)) == np.array(picture)).all()
    with zipfile.ZipFile(run.archive) as packed:
        assert sorted(packed.namelist()) == ["mask.png", "seed_5.png", "seed_6.png"]


def test_strength_sketch_and_start_reach_the_pipeline(maker, request_, face_sketch):
    small = painting.painted_sketch(url_of(face_sketch), (32, 32))
    plain = maker.run(request_)
    start = Image.open(plain.pictures[0]).convert("RGB")
    region = np.zeros((32, 32), dtype=bool)
    region[8:24, 8:24] = True
    base = dict(vars(request_))
    others = {
        "weak": maker.run(FaceRequest(**base | {"condition_strength": 0.3})),
        "both": maker.run(FaceRequest(**base | {"sketch": small})),
        "varied": maker.run(FaceRequest(**base | {"image": start, "strength": 0.5})),
    }
    for name, run in others.items():
        assert not np.array_equal(picture_of(run), picture_of(plain)), name
    assert others["both"].adherence[0].edges is not None
    edited = maker.run(FaceRequest(**base | {"image": start, "strength": 1.0, "region": region}))
    same = (picture_of(edited) == np.array(start)).all(-1)
    assert same[~region].all()
    assert not same[region].all()


def picture_of(run: FaceRun) -> np.ndarray:
    return np.array(Image.open(run.pictures[0]))


def test_a_run_tells_of_each_step_and_shows_previews(maker, request_):
    *steps, run = list(maker.stream(request_, threading.Event()))
    assert [each.done for each in steps] == [1, 2, 3, 4]
    assert {each.total for each in steps} == {4}
    assert isinstance(run, FaceRun)
    assert steps[-1].preview.size == (32, 32)


def test_a_stop_ends_the_run_within_a_step_and_leaves_nothing(maker, request_):
    stop, seen = threading.Event(), []
    long = FaceRequest(**dict(vars(request_)) | {"steps": 100})
    stream = maker.stream(long, stop)
    seen.append(next(stream).done)
    stop.set()
    with pytest.raises(running.StoppedRunError):
        seen.extend(each.done for each in stream)
    assert seen[-1] < 10
    assert list(maker.folder.iterdir()) == []


def test_closing_a_stream_ends_its_run(maker, request_):
    stream = maker.stream(FaceRequest(**dict(vars(request_)) | {"steps": 100}), threading.Event())
    next(stream)
    stream.close()
    assert not [each for each in threading.enumerate() if each.name == "mmface-run"]
    assert len(maker.run(request_).pictures) == 2


def test_old_runs_are_cleaned_away(maker, request_, monkeypatch):
    monkeypatch.setattr(running, "KEPT_RUNS", 2)
    short = FaceRequest(**dict(vars(request_)) | {"steps": 1, "num": 1})
    runs = [maker.run(short) for _ in range(4)]
    assert [each.archive.exists() for each in runs] == [False, False, True, True]
    handlers = Handlers(maker, maker.parser)
    with pytest.raises(gradio.Error, match="cleaned away"):
        handlers.compare(runs, 0, 3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt": "  "}, "prompt is empty"),
        ({"prompt": "a" * 3000}, "longer than 2000"),
        ({"labels": None}, "neither a mask nor a sketch"),
        ({"steps": 0}, "Steps must be"),
        ({"steps": 1000}, "Steps must be"),
        ({"num": 5}, "number of pictures"),
        ({"seed": -1}, "Seed must be"),
        ({"guidance": float("nan")}, "Guidance must be"),
        ({"condition_strength": 9.0}, "Condition strength must be"),
    ],
)
def test_a_request_that_is_too_much_is_refused(request_, change, words):
    with pytest.raises(ValueError, match=words):
        FaceRequest(**dict(vars(request_)) | change)


def test_previews_look_like_the_faces_of_the_built_in_vae():
    codec = open_model(ModelChoice()).pipeline.codec
    preview = LatentPreview(codec)
    faces = [render_face(seed, 128).image for seed in (2_000_001, 2_000_002)]
    for face in faces:
        latents = codec.encode(image_pixels(face)[None])[0]
        rough = np.array(preview(latents, (16, 16)), dtype=np.float64)
        small = np.array(Image.fromarray(face).resize((16, 16), Image.Resampling.BOX), np.float64)
        assert np.corrcoef(rough.ravel(), small.ravel())[0, 1] > 0.7


# Reports


def test_the_report_shows_every_wanted_class_and_escapes_words(maker, request_):
    run = maker.run(FaceRequest(**dict(vars(request_)) | {"prompt": "<b>bold</b>"}))
    page = reporting.adherence_html(run, 0, "tiny-parser")
    for name in ("background", "skin", "hair", "lower lip", "mean IoU"):
        assert f"aria-label='{name}'" in page
    other = maker.run(request_)
    table = reporting.differences_html(run.request, other.request)
    assert "&lt;b&gt;bold&lt;/b&gt;" in table
    assert "<b>" not in table
    assert [row[0] for row in reporting.differences(run.request, other.request)] == ["prompt"]


def test_contours_lie_on_the_borders_of_the_mask(maker, request_):
    run = maker.run(request_)
    drawn = np.array(reporting.contours_on(run, 0))
    scale = drawn.shape[0] // 32
    labels = run.request.labels.repeat(scale, 0).repeat(scale, 1)
    inside = np.zeros(labels.shape, dtype=bool)
    inside[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    inside[1:] |= labels[1:] != labels[:-1]
    assert ((drawn == (255, 0, 170)).all(-1) == inside).mean() > 0.999


# The server


def test_the_endpoint_gives_the_pipelines_own_pixels(client, model, mask_file):
    faces, adherence = client.predict(
        prompt=PROMPT, mask=handle_file(mask_file), sketch=None, steps=3, seed=7, num=2,
        guidance=3, api_name="/sample",
    )  # fmt: skip
    settings = Settings(prompt=PROMPT, mask="mask.png", steps=3, guidance=3.0)
    row = ready_row(settings, model.pipeline, lambda _, path: mask_file.parent / path)
    wanted = sample_rows(model.pipeline, [row], [[7, 8]])[0]
    for path, picture in zip(faces, wanted, strict=True):
        assert (np.array(Image.open(path)) == np.array(picture)).all()
    recipe, _ = read_recipe(faces[0])
    assert recipe.rows[0].prompt == PROMPT
    assert 0 <= adherence[0]["mean_iou"] <= 1


def test_queued_requests_are_answered_in_order_and_memory_does_not_grow(client, mask_file):
    process = psutil.Process()

    def submit(seed):
        options = {"prompt": PROMPT, "mask": handle_file(mask_file), "sketch": None}
        return client.submit(**options, steps=1, seed=seed, num=1, guidance=1, api_name="/sample")

    for seed in range(3):
        submit(seed).result()
    gc.collect()
    before = process.memory_info().rss
    jobs, order = [], []
    for seed in range(20):
        job = submit(seed)
        job.future.add_done_callback(lambda _, seed=seed: order.append(seed))
        jobs.append(job)
        while job.status().code == Status.STARTING:  # the client sends from several threads
            time.sleep(0.002)
    named = [Path(job.result(timeout=120)[0][0]).stem for job in jobs]
    assert named == [f"seed_{seed}" for seed in range(20)]
    gc.collect()
    grown = process.memory_info().rss - before
    assert order == list(range(20))
    assert grown < 48 * 2**20, f"{grown / 2**20:.0f} MiB"


def test_cancel_stops_the_running_call(parser, mask_file):
    with served(open_model(ModelChoice()), parser) as address:
        check_cancel(Client(address, verbose=False), mask_file)


def check_cancel(client, mask_file):
    job = client.submit(
        prompt=PROMPT, mask=handle_file(mask_file), sketch=None, steps=100, num=4, guidance=5,
        api_name="/sample",
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


def test_bad_requests_are_one_sentence(client, tmp_path, mask_file):
    for name, path in bad_files(tmp_path).items():
        with pytest.raises(Exception, match=r"[Tt]he file|larger|mask|sketch") as caught:
            client.predict(prompt=PROMPT, mask=handle_file(path), sketch=None, api_name="/sample")
        assert "Traceback" not in str(caught.value), name
    for options, words in (
        ({"mask": None}, "neither a mask nor a sketch"),
        ({"mask": handle_file(mask_file), "steps": 1.5}, "whole number"),
        ({"mask": handle_file(mask_file), "num": 400}, "number of pictures"),
    ):
        with pytest.raises(Exception, match=words):
            client.predict(prompt=PROMPT, sketch=None, **options, api_name="/sample")


def test_only_the_wanted_endpoints_are_open(client):
    assert set(client.view_api(return_format="dict")["named_endpoints"]) == {"/sample", "/cancel"}


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


def test_an_upload_that_is_too_large_is_refused(address):
    content = b"0" * (11 * 2**20)
    answer = httpx.post(f"{address}gradio_api/upload", files={"files": ("a.png", content)})
    assert answer.status_code == 413


def test_the_page_listens_on_this_machine_alone_and_says_nothing_to_others(address):
    assert address.startswith("http://127.0.0.1:")
    config = httpx.get(f"{address}config").json()
    assert config["analytics_enabled"] is False
    listening = [
        each.laddr.ip for each in psutil.Process().net_connections("tcp") if each.status == "LISTEN"
    ]
    assert set(listening) <= {"127.0.0.1"}


def test_a_password_shuts_the_page(model, parser):
    with served(model, parser, password="anna:rose-garden-7") as address:
        assert httpx.get(f"{address}config").status_code == 401
        wrong = httpx.post(f"{address}login", data={"username": "anna", "password": "x"})
        assert wrong.status_code == 400
        right = {"username": "anna", "password": "rose-garden-7"}
        assert httpx.post(f"{address}login", data=right).status_code == 200


@pytest.mark.parametrize("word", ["anna", ":secret", "anna:", ""])
def test_a_malformed_password_is_refused(word):
    with pytest.raises(ValueError, match="USER:PASS"):
        credentials(word)


def test_the_pages_folder_goes_with_it(model, parser, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with served(model, parser):
        assert list(tmp_path.glob("mmface_page_*"))
    assert not list(tmp_path.glob("mmface_page_*"))


def test_all_classes_of_the_mask_are_on_the_palette(face_labels):
    page = reporting.legend_html(face_labels)
    for name in ("background", "skin", "hair", "lower lip"):
        assert name in page
    assert "hat" not in page.replace("that", "")
    assert LABEL_INDEX["hat"] not in face_labels
