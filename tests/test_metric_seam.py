"""A metric, a kind of condition and a question are plugged in from here, without a change there."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import IMAGE_SIZE, build_pipeline, build_transformer
from depth_plugin import DepthKind

import mmface
from mmface.conditions import condition_kind, confusion_matrix, mean_iou, registered
from mmface.encoders.face_parser import FaceParser
from mmface.evaluation.controls import OtherFaces, RealPictures
from mmface.evaluation.methods import PipelineMethod
from mmface.evaluation.references import HeldOutPictures, References
from mmface.evaluation.table_evaluation import Protocol, TableEvaluation
from mmface.metrics import metric as seam
from mmface.metrics.metric import Column, SampleMetric, SetMetric, build_metrics, register

FACES = HeldOutPictures(4, 32)


@pytest.fixture(autouse=True)
def plugged_in_for_one_test(monkeypatch):
    """Forget what a test registers, and how many processes there were."""
    seam.columns()  # read the room first
    monkeypatch.setattr(seam, "_METRICS", dict(seam._METRICS))
    monkeypatch.setattr(seam, "_COLUMNS", dict(seam._COLUMNS))
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def measure(folder, names, methods, table="vae", ask=None, modality="mask", **controls):
    protocol = Protocol(FACES, build_metrics(names), ask=ask)
    settings: dict[str, Any] = {"controls": controls, "num_examples": 0}
    TableEvaluation(table, modality, protocol, methods, folder, **settings).run()
    return {
        name: json.loads((folder / f"{name}.json").read_text()) for name in ("table", "controls")
    }


def brightness_metric():
    @register
    class Brightness(SampleMetric):
        name = "brightness"
        columns: ClassVar = {"brightness": Column("Brightness", "higher", 1)}
        controls: ClassVar = frozenset({"others"})
        protocol = "mean"

        def read(self, products, orders):
            return [{"brightness": float(picture.float().mean())} for picture in products]

    return Brightness


def test_a_metric_of_a_few_lines_has_its_column_title_direction_and_interval(tmp_path):
    brightness_metric()
    method = RealPictures("mine")
    tables = measure(
        tmp_path,
        ["brightness"],
        {"a": method},
        others=OtherFaces(),
        reconstruction=RealPictures("no"),
    )
    ((row,), controls) = (tables[name]["rows"] for name in ("table", "controls"))
    found = row["cells"]["brightness"]["measured"]
    means = [float(FACES.face(item).image.mean()) for item in range(4)]
    assert found["value"] == pytest.approx(sum(means) / 4, abs=1e-3)
    assert min(means) <= found["low"] < found["value"] < found["high"] <= max(means)
    assert "Brightness ↑" in (tmp_path / "table.txt").read_text()
    assert "Brightness ↑" in (tmp_path / "table.md").read_text()
    names = [one["method"] for one in controls]
    assert names == ["Real pictures", "Real pictures of other faces"]  # it asked for no others
    assert controls[1]["cells"]["brightness"]["measured"]["value"] == pytest.approx(found["value"])


def test_names_and_columns_are_declared_once():
    brightness_metric()
    with pytest.raises(ValueError, match="Brightness: brightness is declared already"):
        brightness_metric()
    with pytest.raises(ValueError, match=r"metrics are some of \[.*ssim.*\], not \['sharpness'\]"):
        build_metrics(["ssim", "sharpness"])
    with pytest.raises(ValueError, match=r"fid reads with the backbone 'inception', but there are"):
        build_metrics(["fid"])


def test_every_metric_of_the_room_declares_what_a_table_needs():
    columns = seam.columns()
    for name, metric in seam._METRICS.items():
        assert metric.name == name
        assert metric.columns.keys() <= columns.keys()
        assert metric.needs & {"picture", "answer"}
        of_sets = {column.of_sets for column in metric.columns.values()}
        assert of_sets == {issubclass(metric, SetMetric)}


def hair_of(face):
    return "What colour is the hair?", face.captions[0]


@pytest.mark.slow
def test_a_method_that_answers_is_measured_by_a_metric_of_answers(tmp_path):
    @register
    class Exact(SampleMetric):
        name = "exact"
        columns: ClassVar = {"exact": Column("Exact", "higher", 2)}
        needs: ClassVar = frozenset({"answer", "truth"})
        protocol = "equal strings"

        def read(self, products, orders):
            pairs = zip(products, orders, strict=True)
            return [{"exact": float(answer == order.truth)} for answer, order in pairs]

    class Halves(RealPictures):
        def generate(self, orders, device):
            assert {order.prompt for order in orders} == {"What colour is the hair?"}
            return [o.truth if int(o.id[-1]) % 2 else "red" for o in orders]

    methods = {"a": Halves("guesses")}
    for _ in range(2):  # the second takes up what is there
        tables = measure(tmp_path, ["exact", "ssim"], methods, table="answers", ask=hair_of)
    (row,) = tables["table"]["rows"]
    assert row["cells"].keys() == {"exact"}  # SSIM needs pictures
    assert row["cells"]["exact"]["measured"]["value"] == 0.5
    assert tables["controls"]["rows"][0]["cells"]["exact"]["measured"]["value"] == 1
    (line, *_) = (tmp_path / "guesses/seed_0/results.jsonl").read_text().splitlines()
    assert json.loads(line).keys() == {"id", "prompt", "seed", "answer"}


def test_a_kind_says_its_own_agreement(tmp_path):
    tables = measure(
        tmp_path, ["agreement", "edges"], {"a": RealPictures("real")}, modality="sketch"
    )
    cells = tables["table"]["rows"][0]["cells"]
    assert cells["agreement"]["measured"]["value"] == cells["edges"]["measured"]["value"]
    masks = measure(tmp_path / "masks", ["agreement"], {"a": RealPictures("real")})
    skipped = masks["table"]["rows"][0]["cells"]["agreement"]["skipped"]
    assert skipped["reason"] == "no parser reads a mask back"


def test_agreement_of_masks_is_read_back_by_the_parser():
    parser = Path(mmface.__file__).parent / "assets/tiny-parser"
    (metric,) = build_metrics(["agreement"], settings={"agreement": {"parser": parser}}).values()
    references = References(HeldOutPictures(2, 64), "mask")
    orders = [references.order(item, seed=0) for item in range(2)]
    assert isinstance(metric, SampleMetric)
    assert metric.check(orders[0]) is None
    metric.load(torch.device("cpu"))
    assert metric.protocol.startswith("agreement/sha256:")
    pictures = torch.stack([torch.from_numpy(o.truth).movedim(-1, 0) for o in orders])
    for order, values in zip(orders, metric.read(pictures, orders), strict=True):
        (labels,) = FaceParser.from_pretrained(parser)([order.truth])
        assert values["agreement"] == mean_iou(confusion_matrix(order.condition, labels))


class NearFaces(HeldOutPictures):
    """Rendered faces that have a depth map: their brightness."""

    def kinds(self):
        return (*super().kinds(), condition_kind("depth"))

    def face(self, item):
        face = super().face(item)
        depth = face.image.mean(axis=-1).astype(np.uint8)
        return replace(face, conditions={**face.conditions, "depth": depth})


@pytest.mark.slow
def test_a_plugged_in_depth_is_made_from_measured_and_drawn(tmp_path):
    with registered(DepthKind()):
        pipeline = build_pipeline()
        pipeline.register_modules(transformer=build_transformer(num_modalities=3))
        pipeline.save_pretrained(tmp_path / "pipeline")
        methods = {"ours": PipelineMethod("ours", tmp_path / "pipeline", num_inference_steps=1)}
        protocol = Protocol(NearFaces(3, IMAGE_SIZE), build_metrics(["ssim", "agreement", "edges"]))
        controls = {"others": OtherFaces()}
        TableEvaluation("vae", "depth", protocol, methods, tmp_path, controls=controls).run()
        with pytest.raises(ValueError, match="have no depth each, but mask, sketch"):
            References(HeldOutPictures(3, IMAGE_SIZE), "depth")
    rows = [
        row
        for name in ("table", "controls")
        for row in json.loads((tmp_path / f"{name}.json").read_text())["rows"]
    ]
    assert [set(row["cells"]) for row in rows] == [{"ssim", "agreement"}] * 3  # edges need a sketch
    ours, real, others = (row["cells"]["agreement"]["measured"]["value"] for row in rows)
    assert real > 0.99
    assert max(ours, others) < real
    lines = (tmp_path / "ours/seed_0/results.jsonl").read_text().splitlines()
    assert {json.loads(line)["modality"] for line in lines} == {"depth"}
    assert (tmp_path / "examples.png").exists()
