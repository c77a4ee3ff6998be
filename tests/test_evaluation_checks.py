"""What a user gets wrong, said at once and in one line; and what the charts of a table show."""

import runpy
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from PIL import Image
from training_runs import FORK

if TYPE_CHECKING:
    from matplotlib.container import BarContainer
    from matplotlib.patches import Patch
from mmface.conditions import LABELS, PALETTE
from mmface.core.command_line import check_different, check_whole
from mmface.core.files import locked
from mmface.evaluation.controls import RealPictures
from mmface.evaluation.figures import class_iou_bars, sweep_plot, write_figure
from mmface.evaluation.held_out import HeldOutEvaluation
from mmface.evaluation.methods import FolderMethod
from mmface.evaluation.references import HeldOutPictures, References
from mmface.evaluation.table_evaluation import Protocol, TableEvaluation
from mmface.evaluation.tables import TABLES
from mmface.metrics.metric import SetMetric, build_metrics
from mmface.rendered import distribution
from mmface.rendered.attributes import HELD_OUT_SEED

ROOT = Path(__file__).parent.parent
FACES = HeldOutPictures(3, 32)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"table": 4}, "no table '4'; take 1, 2, 3, vae or answers"),
        ({"stages": ["scores"]}, r"stages are some of \[generate,features,score,table\]"),
        ({"stages": []}, "stages are"),
        ({"seeds": []}, "seeds is empty"),
        ({"seeds": [0, 0]}, r"seeds must be a list of different numbers .*\[0,1,2\], got \[0, 0\]"),
        ({"seeds": [-1]}, "seeds must be"),
        ({"guidance_scales": [3, 3.0]}, "guidance_scales must be"),
        ({"batch_size": 0}, "batch_size must be a whole number from 1 up, got 0"),
        ({"num_examples": -1}, "num_examples must be"),
        ({"modality": "masks"}, "no condition 'masks'; known are mask, sketch"),
        ({"methods": {}}, "^there is no method to measure; name one, such as method=ours$"),
        ({}, r"no row of the table can be measured: CD is .*; give it with folder=DIR$"),
    ],
)
def test_settings_that_cannot_be_are_refused_at_once(settings, said, tmp_path):
    given: dict[str, Any] = {"table": 1, "modality": "mask", "protocol": Protocol(FACES, {})}
    given |= {"methods": {"a": FolderMethod("CD", None)}} | settings
    with pytest.raises(ValueError, match=said):
        TableEvaluation(output_dir=tmp_path, **given).run()
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["guidance_scales=[]"], "error: guidance_scales is empty; give at least one"),
        (["guidance_scales=[1,1]"], "error: guidance_scales must be a list of different numbers"),
        (["protocol=none"], "Could not find 'protocol/none'"),
        (["nope=1"], "Could not override 'nope'"),
        (["protocol=tiny", "method=[]"], "there is no method to measure"),
        (["protocol=tiny", "method=folder"], "no row of the table can be measured: Folder is"),
        (["protocol=tiny", "pipelines={flow: a, ddpm: b}"], "tiny-ddpm is skipped: not made"),
    ],
)
def test_what_cannot_be_measured_ends_with_one_line_and_status_2(
    arguments, said, monkeypatch, capsys, tmp_path
):
    monkeypatch.chdir(ROOT)
    places = [f"output_dir={tmp_path}"] if "protocol=tiny" in arguments else []
    logs = f"hydra.run.dir={tmp_path}"
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments, *places, logs])
    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "scripts/evaluate.py"), run_name="__main__")
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "job" not in line
    assert said in line


@pytest.mark.parametrize("kind", ["table", "held out"])
def test_a_second_evaluation_in_one_folder_ends_with_a_line_that_names_the_first(kind, tmp_path):
    ready, over = FORK.Event(), FORK.Event()
    output = tmp_path / "report.json"
    work = "" if kind == "table" else output.name

    def first():
        with locked(tmp_path, work):
            ready.set()
            over.wait(60)

    process = FORK.Process(target=first)
    process.start()
    assert ready.wait(60)
    methods = {"a": RealPictures("truth")}
    evaluations: dict[str, TableEvaluation | HeldOutEvaluation] = {
        "table": TableEvaluation(1, "mask", Protocol(FACES, {}), methods, tmp_path),
        "held out": HeldOutEvaluation(ROOT, ROOT, output),
    }
    named = rf"is in use by process {process.pid} on {socket.gethostname()}"
    with pytest.raises(BlockingIOError, match=named):
        evaluations[kind].run()
    over.set()
    process.join(60)


def test_too_few_pictures_for_their_features_are_warned_of():
    inception: Any = None  # its features are given
    fid = build_metrics(["fid"], {"inception": inception})["fid"]
    assert isinstance(fid, SetMetric)
    (line,) = fid.shortage(torch.zeros(8, 8))
    assert line.startswith("FID of 8 pictures says little, as its features are 8 wide")
    assert fid.shortage(torch.zeros(9, 8)) == []


@pytest.mark.parametrize("kind", [int, float])
@pytest.mark.parametrize("values", [3, "3", ["a"], [True], [None]])
def test_what_is_no_list_of_numbers_is_refused(values, kind):
    with pytest.raises(ValueError, match=r"such as \[1\], got"):
        check_different("seeds", values, kind, "[1]")


def test_held_out_faces_are_of_the_distribution_that_was_chosen():
    studio, candid = (HeldOutPictures(2, 64, distribution=name) for name in ("studio", "candid"))
    assert "distribution" not in studio.made_by()  # older results go on
    assert candid.made_by()["distribution"] == "candid"
    drawn, face = distribution("candid").render(HELD_OUT_SEED + 1, 64), candid.face(1)
    assert (face.image == drawn.image).all()
    assert (face.conditions["mask"] == drawn.labels).all()
    assert (face.image != studio.face(1).image).any()


def test_faces_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="num_faces must be a whole number from 1 up, got -1"):
        HeldOutPictures(-1)
    with pytest.raises(ValueError, match="distribution is 'attic'; choose from studio, candid"):
        HeldOutPictures(3, distribution="attic")
    with pytest.raises(ValueError, match="num_faces must be a whole number from 2 up, got 1"):
        References(HeldOutPictures(3), "mask", num_faces=1)
    with pytest.raises(ValueError, match="caption_index must be a whole number from 0 up, got -9"):
        References(HeldOutPictures(3), "mask", caption_index=-9)
    with pytest.raises(ValueError, match=r"got 'many'"):
        check_whole("num_faces", "many", 1)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_faces": 0}, "num_faces must be a whole number from 1 up, got 0"),
        ({"modalities": ["masks"]}, r"modalities are some of \[mask,sketch\]"),
        ({"modalities": []}, r"modalities are some of \[mask,sketch\], not \[\]"),
        ({"guidance_scales": []}, "guidance_scales is empty; give at least one, such as"),
        ({"guidance_scales": [1.0, 1.0]}, "guidance_scales must be"),
        ({"output": "."}, "is a folder; give a file with output=FILE"),
        ({"pipeline": "no/such"}, "no/such does not exist; give pipeline=DIR"),
        ({"parser": "no/such"}, "no/such does not exist; give parser=DIR"),
    ],
)
def test_settings_of_the_held_out_evaluation_are_refused_at_once(settings, said, tmp_path):
    given = {"pipeline": tmp_path, "parser": tmp_path, "output": tmp_path / "a.json"}
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        HeldOutEvaluation(**given | settings)


METHODS = sorted(path.stem for path in (ROOT / "configs/method").glob("*.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("table", [1, 2])
@pytest.mark.parametrize("protocol_name", ["tiny", "paper", "paper_judged"])
def test_every_protocol_and_method_composes(protocol_name, table):
    left_out = {1: "released", 2: "ours"}[table]  # two that fill the same row
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config = compose(
            "evaluate",
            [
                f"protocol={protocol_name}",
                f"table={table}",
                f"method=[{','.join(name for name in METHODS if name != left_out)}]",
                *([] if protocol_name == "tiny" else ["manifest=faces.jsonl"]),
            ],
            return_hydra_config=True,
        )
        HydraConfig.instance().set_config(config)
        job = instantiate(config.job, _convert_="all")
    assert job.modality == {1: "mask", 2: "sketch"}[table]
    names = {method.name for method in job.methods.values()}
    assert {"TediGAN", "UaC", "CD", "DDGI", "MM2Latent", "ControlNet"} <= names
    assert {row.method for row in TABLES[2].rows} <= names
    assert ("judge" in job.protocol.metrics) == (protocol_name == "paper_judged")


def test_a_table_that_is_not_there_is_refused_with_those_that_are():
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config = compose("evaluate", ["protocol=tiny", "table=4"], return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        with pytest.raises(InstantiationException) as refused:
            instantiate(config.job, _convert_="all")
    assert str(refused.value.__cause__) == "there is no table '4'; take 1, 2, 3, vae or answers"


def test_the_built_in_vaes_have_a_row_each_and_a_missing_one_its_command(monkeypatch):
    monkeypatch.chdir(ROOT)
    overrides = ["protocol=tiny", "table=vae", "method=vaes_tiny"]
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        changed = "methods.channels_4.vae=no/such/export"
        config = compose("evaluate", [*overrides, changed], return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        job = instantiate(config.job, _convert_="all")
    four, sixteen = job.methods.values()
    assert sixteen.unavailable() is None
    assert four.unavailable().remedy == "python scripts/train.py experiment=tiny_vae_4_channels"


def boxes(figure, artists):
    """Where a figure writes something, in pixels."""
    figure.draw_without_rendering()
    return [artist.get_window_extent() for artist in artists]


def test_every_method_of_a_chart_has_its_colour_and_its_place_in_the_legend():
    names = [f"a method with quite a long name, number {index}" for index in range(9)]
    values = {name: {"hair": 0.05 + index / 10, "hat": None} for index, name in enumerate(names)}
    figure = class_iou_bars(values)
    (axes,), (legend,) = figure.axes, figure.legends
    assert [text.get_text() for text in legend.get_texts()] == names
    bars = [cast("BarContainer", container).patches for container in axes.containers]
    assert [[bar.get_height() for bar in each] for each in bars] == [
        [pytest.approx(values[name]["hair"])] for name in names
    ]
    colours = [each[0].get_facecolor() for each in bars]
    assert len(set(colours)) == 9
    handles = [cast("Patch", handle) for handle in legend.legend_handles]
    assert [handle.get_facecolor() for handle in handles] == colours
    places = boxes(figure, [*legend.get_texts(), legend.get_title(), axes, *axes.get_xticklabels()])
    for index, one in enumerate(places):
        assert one.x0 >= 0
        assert one.x1 <= figure.bbox.x1
        assert one.y0 >= 0
        assert one.y1 <= figure.bbox.y1
        assert not any(one.overlaps(other) for other in places[index + 1 :])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["hair"]  # no hat occurs
    with pytest.raises(ValueError, match="no class to draw"):
        class_iou_bars({"a": {"hat": None}})


def test_bars_of_all_classes_do_not_write_over_each_other():
    ious = dict.fromkeys(LABELS, 0.5)
    figure = class_iou_bars({"a": ious, "b": ious, "c": ious})
    (axes,) = figure.axes
    containers = [cast("BarContainer", container) for container in axes.containers]
    bars = [bar.get_bbox() for container in containers for bar in container.patches]
    for index, one in enumerate(bars):
        assert not any(one.overlaps(other) for other in bars[index + 1 :])
    assert len(bars) == 3 * len(LABELS)
    assert [label.get_text() for label in axes.get_xticklabels()] == list(LABELS)
    swatches = np.asarray(axes.collections[0].get_facecolor())[:, :3]
    np.testing.assert_allclose(swatches * 255, PALETTE, atol=1e-6)


def test_arrows_point_where_a_metric_is_better():
    panels = {column: {"a": [(1.0, 3.0), (2.0, 2.0)]} for column in ("fid", "kid", "clip")}
    titles = [axes.get_title(loc="left") for axes in sweep_plot(panels, "scale").axes]
    assert titles == ["FID ↓", "KID ↓", "CLIP ↑"]


@pytest.mark.slow
def test_a_plot_needs_a_curve_and_draws_it_whole(tmp_path):
    curves = {"fid": {"a": [(2.0, 2.0), (1.0, 3.0)], "b": [(1.0, 4.0), (2.0, 4.0)]}}
    figure = sweep_plot(curves, "scale")
    (axes,), (legend,) = figure.axes, figure.legends
    first, second = axes.get_lines()
    assert np.asarray(first.get_xydata()).tolist() == [[1.0, 3.0], [2.0, 2.0]]
    assert np.asarray(second.get_xydata()).tolist() == [[1.0, 4.0], [2.0, 4.0]]
    assert first.get_color() != second.get_color()
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b"]
    low, high = axes.get_ylim()
    assert low < 2
    assert high > 4
    title, panel, heading = boxes(figure, [legend, axes, vars(axes)["_left_title"]])
    assert not title.overlaps(panel)
    assert not title.overlaps(heading)
    for name in ("one", "two"):
        write_figure(sweep_plot(curves, "scale"), tmp_path / f"{name}.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    blue = (np.asarray(Image.open(tmp_path / "one.png").convert("RGB")) == (31, 119, 180)).all(-1)
    assert blue.sum() > 100
    with pytest.raises(ValueError, match="two or more values of the scale"):
        sweep_plot({}, "scale")
