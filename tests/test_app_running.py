"""The page's runs and what it tells of them: steps, previews, a stop, tidy files, reports."""

import threading
import zipfile

import numpy as np
import pytest
from depth_plugin import DepthKind
from PIL import Image

from mmface.app import handlers as page_handlers
from mmface.app import page as whole_page
from mmface.app import reporting, running
from mmface.app.guard import FileQuota
from mmface.app.running import FaceMaker, FaceRequest, FaceRun, LatentPreview
from mmface.conditions import (
    LABEL_INDEX,
    load_mask,
    load_sketch,
    registered,
)
from mmface.encoders.face_parser import FaceParser
from mmface.encoders.vae import image_pixels
from mmface.generation.sample import OpenedModel, open_model
from mmface.generation.settings import ModelChoice, read_provenance
from mmface.rendered import render_face

PROMPT = "a woman with red hair"


@pytest.fixture(scope="module")
def model(tiny_pipeline_folder) -> OpenedModel:
    return open_model(ModelChoice(pipeline=str(tiny_pipeline_folder)))


@pytest.fixture(scope="module")
def parser() -> FaceParser:
    return FaceParser.from_pretrained("tiny-parser")


@pytest.fixture
def maker(model, parser, tmp_path) -> FaceMaker:
    return FaceMaker(model, parser, tmp_path / "runs")


@pytest.fixture
def request_(face_labels) -> FaceRequest:
    small = load_mask(face_labels, (32, 32)).labels
    return FaceRequest(PROMPT, conditions={"mask": small}, steps=4, seed=5, num=2, guidance=3.0)


@pytest.mark.slow
def test_a_run_writes_its_pictures_with_their_recipes_and_packs_them(maker, request_):
    run = maker.run(request_)
    for place, path in enumerate(run.pictures):
        recipe, picture = read_provenance(path)
        assert (recipe.seeds, recipe.picture) == ((5, 6), place)
        assert (recipe.rows[0].prompt, recipe.rows[0].guidance) == (PROMPT, 3.0)
        assert picture.size == (32, 32)
    with zipfile.ZipFile(run.archive) as packed:
        assert sorted(packed.namelist()) == ["mask.png", "seed_5.png", "seed_6.png"]


@pytest.mark.slow
def test_strength_sketch_and_start_reach_the_pipeline(maker, request_, face_sketch):
    small = load_sketch(face_sketch, (32, 32))
    plain = maker.run(request_)
    start = Image.open(plain.pictures[0]).convert("RGB")
    region = np.zeros((32, 32), dtype=bool)
    region[8:24, 8:24] = True
    base = dict(vars(request_))
    others = {
        "weak": maker.run(FaceRequest(**base | {"condition_strength": 0.3})),
        "both": maker.run(
            FaceRequest(**base | {"conditions": {**request_.conditions, "sketch": small}})
        ),
        "varied": maker.run(FaceRequest(**base | {"image": start, "strength": 0.5})),
    }
    for name, run in others.items():
        assert not np.array_equal(picture_of(run), picture_of(plain)), name
    assert others["both"].adherence[0].by_kind["sketch"]["edges"] > 0
    edited = maker.run(FaceRequest(**base | {"image": start, "strength": 1.0, "region": region}))
    same = (picture_of(edited) == np.array(start)).all(-1)
    assert same[~region].all()
    assert not same[region].all()


def picture_of(run: FaceRun) -> np.ndarray:
    return np.array(Image.open(run.pictures[0]))


@pytest.mark.slow
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


@pytest.mark.slow
def test_old_runs_are_cleaned_away(maker, request_, monkeypatch):
    short = FaceRequest(**dict(vars(request_)) | {"steps": 1, "num": 1})
    size = sum(file.stat().st_size for file in maker.run(short).archive.parent.iterdir())
    monkeypatch.setattr(maker, "quota", FileQuota(maker.folder, int(2.5 * size)))
    runs = [maker.run(short) for _ in range(4)]
    assert [each.archive.exists() for each in runs] == [False, False, True, True]
    handlers = page_handlers.Handlers(maker, maker.parser)
    from gradio import Error

    with pytest.raises(Error, match="cleaned away"):
        handlers.compare(runs, 0, 3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt": "  "}, "prompt is empty"),
        ({"prompt": "a" * 3000}, "longer than 2000"),
        ({"conditions": {}}, "neither a mask nor a sketch"),
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


@pytest.mark.slow
def test_previews_look_like_the_faces_of_the_built_in_vae():
    codec = open_model(ModelChoice()).pipeline.codec
    preview = LatentPreview(codec)
    faces = [render_face(seed, 128).image for seed in (2_000_001, 2_000_002)]
    for face in faces:
        latents = codec.encode(image_pixels(face)[None])[0]
        rough = np.array(preview(latents, (16, 16)), dtype=np.float64)
        small = np.array(Image.fromarray(face).resize((16, 16), Image.Resampling.BOX), np.float64)
        assert np.corrcoef(rough.ravel(), small.ravel())[0, 1] > 0.7


@pytest.mark.slow
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
    labels = run.request.conditions["mask"].repeat(scale, 0).repeat(scale, 1)
    inside = np.zeros(labels.shape, dtype=bool)
    inside[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    inside[1:] |= labels[1:] != labels[:-1]
    assert ((drawn == (255, 0, 170)).all(-1) == inside).mean() > 0.999


def test_all_classes_of_the_mask_are_on_the_palette(face_labels):
    page = reporting.legend_html(face_labels)
    for name in ("background", "skin", "hair", "lower lip"):
        assert name in page
    assert "hat" not in page.replace("that", "")
    assert LABEL_INDEX["hat"] not in face_labels


@pytest.mark.slow
def test_a_further_kind_is_uploaded(maker, tmp_path, face_sketch):
    Image.fromarray(face_sketch).save(tmp_path / "depth.png")
    with registered(DepthKind()):
        handlers = page_handlers.Handlers(maker, maker.parser)
        page = whole_page.Page(handlers, "test")
        assert list(page.given) == ["mask", "sketch", "depth"]
        assert page.mode.choices[-1] == ("Depth", "depth")
        endpoint = next(
            each for each in page.blocks.get_api_info()["named_endpoints"].values()
            if each["parameters"][0]["parameter_name"] == "prompt"
        )  # fmt: skip
        named = [each["parameter_name"] for each in endpoint["parameters"]]
        assert named[:5] == ["prompt", "mask", "sketch", "depth", "negative"]
        given = {"mask": None, "sketch": None, "depth": str(tmp_path / "depth.png")}
        request = handlers.request("depth", given, {"prompt": "a"}, None, None)
        assert list(request.conditions) == ["depth"]
        assert request.conditions["depth"].shape == (32, 32)
        with pytest.raises(ValueError, match="depth is missing"):
            handlers.request("depth", dict.fromkeys(given), {"prompt": "a"}, None, None)
