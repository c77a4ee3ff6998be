"""Jobs: the same files for any number of processes and after a kill; faults are one line each."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from script_runs import load_script
from training_runs import FORK, in_two_processes

from mmface.generation import jobs as sampling_jobs
from mmface.generation.jobs import MAX_LINE_BYTES, read_jobs
from mmface.generation.provenance import read_provenance

run = load_script("sample")


@pytest.fixture
def folder(tmp_path, monkeypatch, face_mask, face_sketch):
    """A folder `given` with conditions; the work's own folder is above it."""
    monkeypatch.chdir(tmp_path)
    Path("given").mkdir()
    Image.fromarray(face_mask).save("given/mask.png")
    Image.fromarray(face_sketch).save("given/sketch.png")
    return tmp_path / "given"


def write(folder, *rows) -> Path:
    path = folder / "jobs.jsonl"
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def good_rows():
    rows = [{"id": f"m{k}", "prompt": f"face {k}", "mask": "mask.png", "seed": k} for k in range(5)]
    rows += [
        {"id": "s", "prompt": "b", "sketch": "sketch.png", "num": 2, "seed": 7},
        {"id": "wide", "prompt": "b", "mask": "mask.png", "width": 64, "guidance": 2},
        {"id": "both", "prompt": "b", "mask": "mask.png", "sketch": "sketch.png"},
        {"id": "photo", "prompt": "b", "photo": "mask.png", "from_photo": "sketch"},
    ]
    return rows


NAMES = [
    "both.png",
    *(f"m{k}.png" for k in range(5)),
    "photo.png",
    "s_0.png",
    "s_1.png",
    "wide.png",
]


def arguments(pipeline, out, *more):
    base = ["--jobs", "given/jobs.jsonl", "--out", str(out), "--pipeline", str(pipeline)]
    return [*base, "--steps", "2", "--max-batch", "2", *more]


def contents(out) -> dict[str, bytes]:
    paths = (p for p in Path(out).rglob("*") if p.is_file())
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in paths}


@pytest.mark.slow
def test_one_process_two_and_a_killed_one_leave_the_same_files(
    folder, tiny_pipeline_folder, capsys
):
    write(folder, *good_rows())
    assert run(arguments(tiny_pipeline_folder, "one")) == 0
    assert capsys.readouterr().out == "one/results.jsonl\n"
    whole = contents("one")
    assert sorted(whole) == sorted(["results.jsonl", *(f"images/{name}" for name in NAMES)])

    def in_both():
        assert run(arguments(tiny_pipeline_folder, "two")) == 0

    in_two_processes(in_both)
    assert contents("two") == whole

    process = FORK.Process(target=killed_while_writing, args=(tiny_pipeline_folder,))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    before = contents("killed")
    assert 0 < len([name for name in before if name.startswith("images/")]) < len(NAMES)
    assert any(name.startswith("images/.") for name in before), "it was killed while writing"
    done = {name for name in before if not name.startswith("images/.")}
    times = {name: Path("killed", name).stat().st_mtime_ns for name in done}
    assert run(arguments(tiny_pipeline_folder, "killed")) == 0
    after = contents("killed")
    assert {name: after[name] for name in whole} == whole
    assert {name: Path("killed", name).stat().st_mtime_ns for name in done} == times


def killed_while_writing(pipeline):
    write_pictures, calls = sampling_jobs.write_pictures, []

    def write_then_die(pictures):
        calls.append(1)
        if len(calls) == 4:
            path = next(iter(pictures))
            path.with_name(f".{os.getpid()}_{path.name}").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        write_pictures(pictures)

    sampling_jobs.write_pictures = write_then_die
    run(arguments(pipeline, "killed"))


@pytest.mark.slow
def test_results_say_what_was_made_of_what(folder, tiny_pipeline_folder, tiny_pipeline):
    write(folder, *good_rows()[4:7])
    assert run(arguments(tiny_pipeline_folder, "out")) == 0
    lines = [json.loads(line) for line in Path("out/results.jsonl").read_text().splitlines()]
    assert [(line["id"], line["seed"], line["image"]) for line in lines] == [
        ("m4", 4, "images/m4.png"),
        ("s", 7, "images/s_0.png"),
        ("s", 8, "images/s_1.png"),
        ("wide", 0, "images/wide.png"),
    ]
    assert (lines[0]["mask"], lines[0]["prompt"]) == ("mask.png", "face 4")
    for line in lines:
        recipe, picture = read_provenance(f"out/{line['image']}")
        assert json.loads(recipe.json) == line["recipe"]
        assert picture.size == (line["recipe"]["rows"][0]["width"], 32)
    expected = tiny_pipeline(
        "b", "given/mask.png", seed=0, width=64, guidance_scale=2.0, num_inference_steps=2
    )
    found = np.array(Image.open("out/images/wide.png")).astype(int)
    assert np.abs(found - np.array(expected.images[0])).max() <= 1


@pytest.mark.slow
def test_only_what_changed_is_made_again(folder, tiny_pipeline_folder):
    rows = good_rows()[:4]
    write(folder, *rows)
    assert run(arguments(tiny_pipeline_folder, "out")) == 0
    times = {p.name: p.stat().st_mtime_ns for p in Path("out/images").iterdir()}
    rows[1]["prompt"] = "another face"
    Path("out/images/m3.png").write_bytes(b"broken")
    times["m3.png"] = Path("out/images/m3.png").stat().st_mtime_ns
    write(folder, *rows)
    assert run(arguments(tiny_pipeline_folder, "out")) == 0
    now = {p.name: p.stat().st_mtime_ns for p in Path("out/images").iterdir()}
    assert {name for name in now if now[name] != times[name]} == {"m1.png", "m3.png"}
    assert read_provenance("out/images/m1.png")[0].rows[0].prompt == "another face"


@pytest.mark.slow
def test_a_bad_line_is_reported_and_does_not_stop_the_rest(folder, tiny_pipeline_folder, capsys):
    (folder / "text.png").write_text("no picture")
    good = {"id": "good", "prompt": "a", "mask": "mask.png"}
    write(
        folder,
        good,
        good | {"id": "gone", "mask": "gone.png"},
        good | {"id": "text", "mask": "text.png"},
        b"{",
        good | {"id": "solver", "solver": "magic"},
        good | {"id": "odd", "height": 33},
        good | {"id": "last", "prompt": "b"},
    )
    assert run(arguments(tiny_pipeline_folder, "out", "--max-batch", "8")) == 1
    assert sorted(p.name for p in Path("out/images").iterdir()) == ["good.png", "last.png"]
    failures = [json.loads(line) for line in Path("out/failures.jsonl").read_text().splitlines()]
    assert [(each["line"], each["id"]) for each in failures] == [
        (2, "gone"),
        (3, "text"),
        (4, None),
        (5, "solver"),
        (6, "odd"),
    ]
    messages = ["gone.png does not exist", "cannot be read as a picture", "not JSON"]
    messages += ["choose one of euler", "multiples of 16"]
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("failed: ")]
    for failure, message, note in zip(failures, messages, notes, strict=True):
        assert message in failure["error"]
        assert note == f"failed: line {failure['line']}: {failure['error']}"
    write(folder, good)
    assert run(arguments(tiny_pipeline_folder, "out")) == 0
    assert not Path("out/failures.jsonl").exists()


def test_faults_of_lines_are_named(folder):
    row: dict[str, Any] = {"id": "a", "prompt": "a", "mask": "mask.png"}
    faults = {
        b'{"id": "\xff"}': "not UTF-8",
        b"[]": "must be a JSON object",
        b"{" + b" " * MAX_LINE_BYTES + b"}": "longer than",
        b'{"id": "a"}': "prompt is empty",
    }
    odd = [row | change for change in ({"id": "../a"}, {"id": "a\\b"}, {"id": ".a"}, {"id": ""})]
    odd += [row | {"id": "a\n"}, row | {"id": 3}, row | {"id": "x" * 300}]
    ids = ["cannot be a file's name"] * 5 + ["id must be a text", "cannot be a file's name"]
    more: dict[str, dict[str, Any]] = {
        "unknown key 'stepz'": {"id": "b", "stepz": 3},
        "steps must be a whole number": {"id": "b", "steps": 2.5},
        "Neither mask nor sketch": {"id": "b", "mask": None},
        "give either": {"id": "b", "photo": "p.png"},
        "number of pictures": {"id": "b", "num": 0},
        "guidance must be a number": {"id": "b", "guidance": "7"},
        "is the picture of line 1 already": {},
    }
    rows = [row, *faults, *odd, *(row | change for change in more.values())]
    jobs, failures = read_jobs(write(folder, *rows))
    assert [job.id for job in jobs] == ["a"]
    wanted = [*faults.values(), *ids, *more]
    assert [failure.line for failure in failures] == list(range(2, 2 + len(wanted)))
    for failure, message in zip(failures, wanted, strict=True):
        assert message in failure.error
        assert "\n" not in failure.error
    clash = [row | {"id": "x", "num": 2}, row | {"id": "x_1"}]
    assert "x_1.png is the picture of line 1" in read_jobs(write(folder, *clash))[1][0].error


def test_no_jobs_is_a_mistake(folder, tiny_pipeline_folder, capsys):
    (folder / "jobs.jsonl").write_bytes(b"\n \n")
    for more, message in (
        (["--out", "out"], "has no jobs"),
        (["--jobs", "none.jsonl"], "does not exist"),
        (["--best-of", "2"], "for one request"),
        (["--out", "a.png"], "jobs need a folder"),
    ):
        assert run([*arguments(tiny_pipeline_folder, "out"), *more]) == 2
        assert message in capsys.readouterr().err
    assert not Path("out").exists()
