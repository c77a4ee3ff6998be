"""Tables from generated pictures: stages, folders, controls, processes, and what is missing."""

import json
import os
import shutil
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from conftest import IMAGE_SIZE, MAX_TOKENS, TEXT_DIM, build_text_model, build_tokenizer, build_vae
from dead_writers import killed_as_it_writes
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionControlNetPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from safetensors.torch import save_file
from training_runs import FORK, in_two_processes
from transformers import CLIPConfig, CLIPModel

from mmface.conditions import colorize
from mmface.evaluation.controls import OtherFaces, RealPictures, ShuffledPrompts, VaeReconstruction
from mmface.evaluation.methods import (
    FolderMethod,
    PipelineMethod,
    ScribbleControlNet,
    SegmentationControlNet,
)
from mmface.evaluation.publishing import read_run, render
from mmface.evaluation.references import HeldOutPictures, References
from mmface.evaluation.reports import as_plain, results_table
from mmface.evaluation.scoring import Scores
from mmface.evaluation.table_evaluation import Protocol, TableEvaluation, folder_name
from mmface.evaluation.tables import TABLES, Measured
from mmface.metrics.backbones import (
    BackboneSource,
    ClipBackbone,
    ClipStatesBackbone,
    InceptionBackbone,
)
from mmface.metrics.metric import Skipped, build_metrics

ROOT = Path(__file__).parent.parent
ASSETS = ROOT / "mmface/assets"
NUM_FACES = 5  # odd, in parts of two: no number of processes divides it


@pytest.fixture(autouse=True)
def fresh_state():
    """Let every run find out anew how many processes there are."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def tiny_clip(kind=ClipBackbone):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = build_tokenizer()
        vision = {"image_size": 32, "patch_size": 16}
        sizes = {"hidden_size": TEXT_DIM, "intermediate_size": 16, "num_hidden_layers": 1}
        sizes |= {"num_attention_heads": 2}
        text = {"vocab_size": len(tokenizer), "max_position_embeddings": MAX_TOKENS}
        text |= {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
        config = CLIPConfig(
            text_config=sizes | text, vision_config=sizes | vision, projection_dim=8
        )
        return kind(CLIPModel(config), tokenizer, "untrained:clip")


def protocol(num_faces=NUM_FACES, size_px=IMAGE_SIZE, parser=True):
    names = ["fid", "kid", "neighbourhoods", "clean_fid", "ssim", "ms_ssim", "edges", "clip"]
    states = BackboneSource(partial(tiny_clip, ClipStatesBackbone), "build it")
    absent = BackboneSource(partial(InceptionBackbone.from_file, "absent.pth"), "download it")
    backbones = {"inception": states, "clean-inception": absent}
    backbones["clip"] = BackboneSource(tiny_clip, "build it")
    settings = {"masks": {"parser": ASSETS / "tiny-parser"}} if parser else {}
    metrics = build_metrics([*names, *settings], backbones, settings)
    return Protocol(HeldOutPictures(num_faces, size_px), metrics, notes=["TINY"])


def evaluation(folder, methods, modality="mask", **changes):
    settings = {"table": 1 if modality == "mask" else 2, "batch_size": 2, "num_examples": 2}
    settings |= {"protocol": changes.pop("protocol", None) or protocol()}
    return TableEvaluation(
        modality=modality,
        methods={str(i): method for i, method in enumerate(methods)},
        output_dir=folder,
        **settings | changes,
    )


def sampled(folder, name="MMFace-DiT (F)", **settings):
    return PipelineMethod(name, folder, **{"num_inference_steps": 1} | settings)


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def cells(folder, name):
    return Scores.read(folder / folder_name(name) / "scores.json").cells


def whole_run(folder, pipeline):
    missing = sampled("no/such", "MMFace-DiT (D)", how="python scripts/train.py")
    evaluation(folder, [sampled(pipeline), missing], controls={"others": OtherFaces()}).run()


@pytest.fixture(scope="module")
def done(tiny_pipeline_folder, tmp_path_factory):
    """One whole run in one process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    folder = tmp_path_factory.mktemp("evaluation") / "done"
    whole_run(folder, tiny_pipeline_folder)
    return folder


@pytest.mark.slow
def test_two_processes_leave_the_bytes_of_one(done, tiny_pipeline_folder, tmp_path):
    def work():
        whole_run(tmp_path / "two", tiny_pipeline_folder)
        assert PartialState().num_processes == 2

    in_two_processes(work)
    assert contents(tmp_path / "two") == contents(done)


def killed_run(folder, pipeline, at):
    """A whole run that is killed when it is about to give a file its name."""
    from mmface.core import journal as parted_work

    replace = Path.replace

    def dying(self, target):
        if target.as_posix().endswith(at):
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(self, target)

    setattr(parted_work.Path, "replace", dying)  # noqa: B010
    whole_run(folder, pipeline)


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bytes(done, tiny_pipeline_folder, tmp_path):
    folder = tmp_path / "killed"
    for at in (
        "MMFace-DiT_F/seed_0/images/rendered/1000002.png",
        "Real_pictures/seed_0/scores/masks/part-000001.jsonl",
        "class_iou.png",
    ):
        process = FORK.Process(target=killed_run, args=(folder, tiny_pipeline_folder, at))
        process.start()
        process.join(120)
        assert process.exitcode == -signal.SIGKILL
        assert not (folder / at).exists()
    whole_run(folder, tiny_pipeline_folder)
    assert contents(folder) == contents(done)


@pytest.mark.slow
def test_a_run_that_is_killed_at_random_leaves_the_same_bytes(done, tiny_pipeline_folder, tmp_path):
    kills, whole = int(os.environ.get("MMFACE_KILLS", "3")), contents(done)
    work = partial(whole_run, tmp_path / "killed", tiny_pipeline_folder)
    assert killed_as_it_writes(work, tmp_path / "killed", len(whole), kills, seed=0) == kills
    assert contents(tmp_path / "killed") == whole


def cut(path, share=0.5):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


@pytest.mark.slow
def test_files_that_a_full_disk_left_broken_are_made_again(done, tiny_pipeline_folder, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(done, folder)
    run = folder / "MMFace-DiT_F/seed_0"
    cut(run / "scores/ssim/part-000000.jsonl")  # ends inside its first row
    lines = (run / "scores/clip/part-000000.jsonl").read_bytes().splitlines(keepends=True)
    (run / "scores/clip/part-000000.jsonl").write_bytes(b"".join([*lines, lines[0]]))
    cut(run / "scores/masks/part-000001.jsonl", 0.9)  # whole but for its last row
    (run / "scores/masks/part-000002.jsonl").write_bytes(b"")
    cut(run / "scores/masks/made_by.json")
    cut(run / "features/inception/part-000000.safetensors", 0.9)
    cut(run / "images/rendered/1000001.png")
    (run / "images/rendered/1000004.png").unlink()
    cut(folder / "Real_pictures/scores.json")
    with pytest.raises(ValueError, match=r"add generate"):
        evaluation(folder, [sampled(tiny_pipeline_folder)], stages=["score"]).run()
    with pytest.raises(ValueError, match=r"scores\.json is broken .*; add score to the stages"):
        evaluation(folder, [sampled(tiny_pipeline_folder)], stages=["table"]).run()
    whole_run(folder, tiny_pipeline_folder)
    assert contents(folder) == contents(done)
    cut(run / "parts/made_by.json")
    with pytest.raises(ValueError, match=r"made_by\.json cannot be read .*give another folder"):
        whole_run(folder, tiny_pipeline_folder)


@pytest.mark.slow
def test_pictures_of_another_protocol_are_refused_by_the_settings_name(done, tiny_pipeline_folder):
    methods = [sampled(tiny_pipeline_folder)]
    with pytest.raises(ValueError, match=r"\(references\.modality: 'mask' -> 'sketch'\)"):
        evaluation(done, methods, "sketch").run()
    with pytest.raises(ValueError, match=r"references\.num_faces: 5 -> 4"):
        evaluation(done, methods, protocol=protocol(4)).run()


@pytest.mark.slow
def test_a_table_says_what_is_measured_missing_and_skipped(done):
    table = json.loads((done / "table.json").read_text())
    rows = {row["method"]: row["cells"] for row in table["rows"]}
    flow = rows["MMFace-DiT (F)"]
    assert flow["fid"]["published"] == 16.63
    assert flow["fid"]["measured"]["pictures"] == NUM_FACES
    accuracy = flow["accuracy"]["measured"]
    assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
    assert flow["clip_distance"]["measured"]["value"] == pytest.approx(
        1 - flow["clip"]["measured"]["value"] / 100
    )
    assert "161 px" in flow["ms_ssim"]["skipped"]["reason"]
    assert flow["clean_fid"]["skipped"]["remedy"] == "download it"
    assert rows["MMFace-DiT (D)"]["fid"]["skipped"]["remedy"] == "python scripts/train.py"
    assert rows["CD"]["fid"] == {"published": 49.0, "measured": None}
    footer = "\n".join(table["footer"])
    assert "UNTRAINED" in footer
    assert f"{NUM_FACES} of {NUM_FACES} captions are longer than {MAX_TOKENS} tokens" in footer
    assert "FID between two halves of real pictures" in footer
    assert f"FID of {NUM_FACES} pictures says little, as its features are 12 wide" in footer
    assert "Network evaluations a picture: MMFace-DiT (F) 2" in footer  # one step, with guidance
    assert {"table.txt", "table.md", "table.tex", "table.csv", "controls.txt"} <= contents(
        done
    ).keys()
    with Image.open(done / "examples.png") as examples, Image.open(done / "class_iou.png") as bars:
        assert examples.width > 4 * 224
        assert bars.height > 300


@pytest.mark.parametrize("table", TABLES, ids=lambda table: f"table {table.number}")
def test_published_numbers_stand_in_their_table_as_printed(table):
    lines = as_plain(results_table(str(table.number), {}, [])).splitlines()
    for row in table.rows:
        (line,) = [line for line in lines if line.startswith(f"{row.method} ")]
        printed = line.removeprefix(row.method).split()[::3]
        assert printed == [str(row.values[metric]) for metric in table.metrics]


@pytest.mark.slow
def test_stages_take_up_what_is_there(done, tiny_pipeline_folder, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(done, folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("part-*")}
    removed = folder / "MMFace-DiT_F/seed_0/scores/masks/part-000001.jsonl"
    removed.unlink()
    methods = [sampled(tiny_pipeline_folder)]
    controls = {"others": OtherFaces()}
    evaluation(folder, methods, controls=controls, stages=["score", "table"]).run()
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("part-*")}
    assert [path for path in after if after[path] != before[path]] == [removed]
    scored = folder / "MMFace-DiT_F/scores.json"
    scored.unlink()
    evaluation(folder, methods, stages=["table"]).run()
    assert "not scored" in (folder / "table.txt").read_text()
    with pytest.raises(ValueError, match="num_inference_steps: 1 -> 2"):
        evaluation(folder, [sampled(tiny_pipeline_folder, num_inference_steps=2)]).run()
    with pytest.raises(ValueError, match="add generate"):
        evaluation(tmp_path / "new", methods, stages=["score"]).run()
    with pytest.raises(ValueError, match="stages are"):
        evaluation(folder, methods, stages=["scores"])


@pytest.mark.slow
def test_a_folder_of_pictures_scores_as_the_method_that_made_them(done, tmp_path):
    images = done / "MMFace-DiT_F/seed_0/images/rendered"
    named = FolderMethod("CD", images)
    listed = FolderMethod("UaC", done / "MMFace-DiT_F/seed_0")
    evaluation(tmp_path, [named, listed]).run()
    assert cells(tmp_path, "CD") == cells(tmp_path, "UaC") == cells(done, "MMFace-DiT (F)")


@pytest.mark.slow
def test_missing_pictures_are_listed_and_refused(done, tmp_path):
    folder = tmp_path / "pictures"
    shutil.copytree(done / "MMFace-DiT_F/seed_0/images/rendered", folder)
    (folder / "1000003.png").rename(folder / "other.png")
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"1 of 5 ids: rendered/1000003\. Files of no id: other\."):
        evaluation(out, [FolderMethod("CD", folder)]).run()
    evaluation(out, [FolderMethod("CD", folder, allow_missing=True)]).run()
    scores = cells(out, "CD")
    assert scores["ssim"].pictures == 4
    assert isinstance(scores["fid"], Skipped)
    assert "1 of 5 pictures of CD are missing" in scores["fid"].reason
    results = folder / "results.jsonl"
    results.write_text('{"id": "a", "image": "a.png"}\n{"id": "a", "image": "b.png"}\n')
    with pytest.raises(ValueError, match=r"results\.jsonl:2 has a second picture of 'a'"):
        FolderMethod("CD", folder).pictures(["a"])


@pytest.mark.slow
def test_controls_stand_in_their_order(tmp_path):
    reconstruction = VaeReconstruction(ASSETS / "tiny-flow", "vae")
    controls = {"reconstruction": reconstruction, "others": OtherFaces()}
    methods = [RealPictures("CD"), FolderMethod("UaC", None)]
    evaluation(tmp_path, methods, protocol=protocol(4, 128), controls=controls).run()
    names = ("Real pictures", "VAE reconstruction", "Real pictures of other faces")
    for column in ("accuracy", "mean_iou", "ssim"):
        values = [cells(tmp_path, name)[column].value for name in names]
        assert values[0] > values[1] > values[2] + 5 * (column != "ssim"), column
    assert cells(tmp_path, names[0])["fid"].value < cells(tmp_path, names[1])["fid"].value
    assert "Real pictures of other faces" in (tmp_path / "controls.md").read_text()


@pytest.mark.slow
def test_seeds_and_scales_of_guidance_are_rows_and_spreads(tiny_pipeline_folder, tmp_path):
    method = sampled(tiny_pipeline_folder, "tiny")
    settings = {
        "seeds": [0, 1],
        "guidance_scales": [1.0, 2.0],
        "protocol": protocol(3, parser=False),
    }
    evaluation(tmp_path, [method], "sketch", **settings).run()
    fid, edges = (cells(tmp_path, "tiny")[name] for name in ("fid", "edges"))
    assert fid.seeds == 2
    assert fid.spread > 0
    assert edges.pictures == 3
    assert "accuracy" not in cells(tmp_path, "tiny")
    assert "tiny, guidance 2" in (tmp_path / "table.txt").read_text()
    with Image.open(tmp_path / "guidance.png") as chart:
        assert chart.width > 500
    first, second = (
        np.asarray(Image.open(tmp_path / f"tiny/seed_{seed}/images/rendered/1000000.png"))
        for seed in (0, 1)
    )
    assert (first != second).any()


@pytest.mark.slow
def test_checkpoints_of_a_run_are_rows_and_a_curve_beside_a_yardstick(
    tiny_pipeline_folder, tmp_path
):
    run = tmp_path / "run"
    shutil.copytree(tiny_pipeline_folder, run / "export")
    method = sampled(run / "export", "tiny")
    for step in (1, 2):
        weights = {
            name: parameter.detach() * (step - 1)
            for name, parameter in method.pipeline.transformer.named_parameters()
        }
        folder = run / f"checkpoints/step-{step:08d}"
        folder.mkdir(parents=True)
        save_file(weights, folder / "ema.safetensors")
    edges = Protocol(HeldOutPictures(2, IMAGE_SIZE), build_metrics(["edges"]))
    settings = {"checkpoints": [1, 2], "yardstick": "0", "protocol": edges, "num_examples": 0}
    done = tmp_path / "done"
    methods = [method, sampled(run / "export", "coarse", guidance_scale=1.0)]
    evaluation(done, methods, "sketch", **settings).run()
    pictures = [
        (done / f"{name}/seed_0/results.jsonl").read_text().split("sha256")[1]
        for name in ("tiny_step_1", "tiny_step_2", "tiny")
    ]
    assert pictures[0] != pictures[1] == pictures[2]  # of nought, and of all the weights
    assert (done / "checkpoints.png").is_file()
    rows = {
        row["method"]: row["cells"] for row in json.loads((done / "table.json").read_text())["rows"]
    }
    measured = {name: cells["pixels"]["measured"] for name, cells in rows.items()}
    assert measured["tiny"]["value"] == 0 < measured["coarse"]["value"]
    assert rows["coarse"]["evaluations"]["measured"]["value"] == 1
    assert measured["tiny, step 1"] is None
    missing = method.at_checkpoint(3).unavailable()
    assert "step-00000003" in missing.reason
    assert "checkpoint_limit" in missing.remedy
    save_file({"other": torch.zeros(1)}, folder / "ema.safetensors")
    with pytest.raises(ValueError, match="is of another network"):
        _ = method.at_checkpoint(2).pipeline
    with pytest.raises(ValueError, match="yardstick is one of the methods, 0, not 'euler'"):
        evaluation(done, [method], yardstick="euler")


def test_shuffled_prompts_ask_for_the_next_face(tiny_pipeline_folder):
    references = References(HeldOutPictures(3, IMAGE_SIZE), "mask")
    method = ShuffledPrompts("shuffled", tiny_pipeline_folder)
    asked = [method.order(references, item, seed=0) for item in range(3)]
    own = [references.order(item, seed=0) for item in range(3)]
    assert [a.prompt for a in asked] == [own[i].prompt for i in (1, 2, 0)]
    assert all(np.array_equal(a.condition, o.condition) for a, o in zip(asked, own, strict=True))
    with pytest.raises(ValueError, match="num_faces is 4, but there are 3 faces"):
        References(HeldOutPictures(3, IMAGE_SIZE), "mask", num_faces=4)


@pytest.fixture(scope="module")
def controlnet_folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("controlnet")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=4,
            block_out_channels=(4, 8),
            layers_per_block=1,
            norm_num_groups=2,
            attention_head_dim=2,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=TEXT_DIM,
        )
        controlnet = ControlNetModel.from_unet(
            unet, conditioning_embedding_out_channels=(4, 4, 8, 8)
        )
        for parameter in controlnet.parameters():  # the zero convolutions too
            torch.nn.init.normal_(parameter, std=0.2)
        tokenizer = build_tokenizer()
        StableDiffusionControlNetPipeline(
            vae=build_vae(4),
            text_encoder=build_text_model(tokenizer),
            tokenizer=tokenizer,
            unet=unet,
            controlnet=controlnet,
            scheduler=DDIMScheduler(),
            safety_checker=None,
            feature_extractor=None,
        ).save_pretrained(folder / "base")
        controlnet.save_pretrained(folder / "controlnet")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", [SegmentationControlNet, ScribbleControlNet])
def test_controlnet_samples_by_seed(controlnet_folders, kind):
    modality = "mask" if kind is SegmentationControlNet else "sketch"
    references = References(HeldOutPictures(3, IMAGE_SIZE), modality)
    folders = (controlnet_folders / "controlnet", controlnet_folders / "base")
    method = kind("ControlNet", *folders, num_inference_steps=1, size_px=IMAGE_SIZE)
    assert method.unavailable() is None
    orders = [references.order(item, seed=0) for item in range(3)]
    pictures = method.generate(orders, torch.device("cpu"))
    assert len(pictures) == 3
    again = kind("ControlNet", *folders, num_inference_steps=1, size_px=IMAGE_SIZE)
    for one, other in zip(pictures, again.generate(orders, torch.device("cpu")), strict=True):
        np.testing.assert_array_equal(one, other)
    condition = np.asarray(method.condition_picture(orders[0]))
    if kind is ScribbleControlNet:  # white lines on black
        np.testing.assert_array_equal(condition[..., 0], 255 - orders[0].condition)
        assert np.median(condition) < 128 < condition.max()
    else:
        np.testing.assert_array_equal(condition, colorize(orders[0].condition))
    absent = kind("ControlNet", "no/such/controlnet", "no/such/base").unavailable()
    assert isinstance(absent, Skipped)
    assert "hf download" in absent.remedy


@pytest.mark.slow
def test_controlnet_has_a_row_of_its_own(controlnet_folders, tmp_path):
    folders = (controlnet_folders / "controlnet", controlnet_folders / "base")
    method = SegmentationControlNet("ControlNet", *folders, 1, size_px=IMAGE_SIZE)
    evaluation(tmp_path, [method]).run()
    scores = cells(tmp_path, "ControlNet")
    for column in ("fid", "ssim", "accuracy", "clip"):
        measured = scores[column]
        assert isinstance(measured, Measured)
        assert measured.pictures == NUM_FACES
    assert "palette mismatch" in (tmp_path / "table.txt").read_text()


@pytest.mark.slow
def test_sets_are_compared_with_faces_that_no_row_is_made_from(tmp_path, capsys):
    states = BackboneSource(partial(tiny_clip, ClipStatesBackbone), "build it")
    metrics = build_metrics(["frechet_states"], {"clip-states": states})
    given = HeldOutPictures(4, IMAGE_SIZE)
    apart = [HeldOutPictures(4, IMAGE_SIZE, first_face=first) for first in (4, 8)]
    run = partial(evaluation, methods=[RealPictures("CD")])
    controls = {"others": OtherFaces(source=apart[1])}
    protocols = [Protocol(given, metrics, compared=one) for one in (apart[0], None)]
    run(tmp_path / "apart", protocol=protocols[0], controls=controls).run()
    names = ("Real pictures", "CD", "Real pictures of other faces")
    real, row, others = (cells(tmp_path / "apart", name)["frechet_states"] for name in names)
    assert real.value == row.value > 0.01  # the floor
    assert others.value not in (0, real.value)
    assert f"{TEXT_DIM} features" in real.protocol
    table = (tmp_path / "apart/table.txt").read_text()
    assert (
        f"disjoint sets of real pictures, the least that means anything: {real.value:.2f}" in table
    )
    plain, written = (tmp_path / "apart/table.txt").read_text(), read_run(tmp_path / "apart")
    warned = "FD of CLIP states of CD, "
    for shown in (plain, render(written), capsys.readouterr().err):
        assert f"{warned}{row.value:.2f}, is below or near its floor of {real.value:.2f}" in shown
    assert f"{row.value:.2f} (at the floor)" in plain
    assert f"| {row.value:.2f} (at the floor) |" in render(written)
    assert (tmp_path / "apart/controls.txt").read_text().count("(at the floor)") == 0
    run(tmp_path / "same", protocol=protocols[1], controls={"others": OtherFaces()}).run()
    assert cells(tmp_path / "same", "CD")["frechet_states"].value == pytest.approx(0, abs=1e-3)
    assert not cells(tmp_path / "same", names[2])  # the same set in another order
    shared = Protocol(given, metrics, compared=HeldOutPictures(4, IMAGE_SIZE, first_face=3))
    with pytest.raises(ValueError, match="1 faces are evaluated and compared with"):
        run(tmp_path / "shared", protocol=shared).run()


def test_scores_are_read_as_they_were_written(tmp_path):
    measured = Measured(1.5, 4, "p", 1.0, 2.0)
    scores = Scores({"fid": measured, "kid": Skipped("a", "b")}, ["note"], {"hair": None})
    scores.write(tmp_path / "scores.json")
    assert Scores.read(tmp_path / "scores.json") == scores
