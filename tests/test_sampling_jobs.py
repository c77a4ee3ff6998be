"""Jobs: the same files for any number of processes and after a kill; faults are one line each."""

import json
import os
import random
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dead_writers import held_by_another, killed_as_it_writes
from PIL import Image
from script_runs import load_script
from training_runs import FORK, in_two_processes

from mmface.core.files import written_aside
from mmface.generation import jobs as sampling_jobs
from mmface.generation.jobs import MAX_LINE_BYTES, read_jobs
from mmface.generation.settings import Draws, Settings, options_of, read_provenance

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
    done = {name for name in before if not Path(name).name.startswith(".")}
    times = {name: Path("killed", name).stat().st_mtime_ns for name in done}
    assert run(arguments(tiny_pipeline_folder, "killed")) == 0
    after = contents("killed")
    assert after == whole
    assert {name: Path("killed", name).stat().st_mtime_ns for name in done} == times


def killed_while_writing(pipeline):
    write_pictures, calls = sampling_jobs.write_pictures, []

    def write_then_die(pictures):
        calls.append(1)
        if len(calls) == 4:
            path = next(iter(pictures))
            with written_aside(path) as aside:
                aside.write_bytes(b"half")
                os.kill(os.getpid(), signal.SIGKILL)
        write_pictures(pictures)

    sampling_jobs.write_pictures = write_then_die
    run(arguments(pipeline, "killed"))


@pytest.mark.slow
def test_jobs_that_are_killed_at_random_leave_the_same_files(folder, tiny_pipeline_folder):
    kills = int(os.environ.get("MMFACE_KILLS", "3"))
    faces = [
        {"id": f"more{k}", "prompt": "c", "mask": "mask.png", "seed": k} for k in range(2 * kills)
    ]
    write(folder, *good_rows(), *faces, b"{")
    assert run(arguments(tiny_pipeline_folder, "whole")) == 1  # for the line that is no job
    whole = contents("whole")

    def work():
        assert run(arguments(tiny_pipeline_folder, "killed")) == 1

    assert killed_as_it_writes(work, Path("killed"), len(whole), kills, seed=0) == kills
    assert contents("killed") == whole


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
def test_only_what_changed_is_made_again_if_it_may_be_replaced(folder, tiny_pipeline_folder):
    rows = good_rows()[:4]
    write(folder, *rows)
    assert run(arguments(tiny_pipeline_folder, "out")) == 0
    times = {p.name: p.stat().st_mtime_ns for p in Path("out/images").iterdir()}
    rows[1]["prompt"] = "another face"
    Path("out/images/m3.png").write_bytes(b"broken")
    times["m3.png"] = Path("out/images/m3.png").stat().st_mtime_ns
    write(folder, *rows)
    assert run(arguments(tiny_pipeline_folder, "out")) == 1
    assert times == {p.name: p.stat().st_mtime_ns for p in Path("out/images").iterdir()}
    failures = [json.loads(line) for line in Path("out/failures.jsonl").read_text().splitlines()]
    assert [each["id"] for each in failures] == ["m1", "m3"]
    assert all("is there and was made of something else" in each["error"] for each in failures)
    assert run(arguments(tiny_pipeline_folder, "out", "--overwrite")) == 0
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
        good | {"id": "\ud800"},
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
        (8, "?"),
    ]
    messages = ["gone.png does not exist", "cannot be read as a picture", "not JSON"]
    messages += ["choose one of euler", "multiples of 16", "a character that no text has"]
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("failed: ")]
    for failure, message, note in zip(failures, messages, notes, strict=True):
        assert message in failure["error"]
        assert note == f"failed: line {failure['line']}: {failure['error']}"
    write(folder, good)
    assert run(arguments(tiny_pipeline_folder, "out")) == 0
    assert not Path("out/failures.jsonl").exists()


ODD: list[Any] = [None, True, -1, 0, 1, 2.5, 1e308, 10**30, "", "x", "\ud800", [], [0, 1], [1, 0]]
ODD += [{}, [None], ["a"], "mask.png", "../given/sketch.png", "given", float("nan"), "1", "\0"]
LINES = int(os.environ.get("MMFACE_MUTATIONS", "40"))


def odd_line(number: int) -> bytes:
    """A line of which one or two keys have an odd value, or that is torn."""
    draw = random.Random(number)
    row: dict[str, Any] = {"id": f"r{number}", "prompt": "a", "mask": "mask.png"}
    known = [option.name for group in (Settings, Draws) for option in options_of(group)]
    keys = [*row, *known, "sketch", "unknown"]
    for key in draw.sample(keys, draw.choice([1, 1, 2])):
        row[key] = draw.choice(ODD)
    line = json.dumps(row).encode()
    if draw.random() < 0.1:
        place = draw.randrange(len(line))
        line = line[:place] + draw.choice([b"", b"\xff", b"}", b"\x00"])
    return line


@pytest.mark.slow
def test_odd_lines_are_made_or_said(folder, tiny_pipeline_folder, capsys):
    lines = [odd_line(number) for number in range(LINES)]
    write(folder, *lines, {"id": "last", "prompt": "a", "mask": "mask.png"})
    assert run(arguments(tiny_pipeline_folder, "out", "--max-batch", "8")) == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    failed = [json.loads(line) for line in Path("out/failures.jsonl").read_text().splitlines()]
    made = [json.loads(line) for line in Path("out/results.jsonl").read_text().splitlines()]
    assert all(each["error"] and "\n" not in each["error"] for each in failed)
    blank = sum(not line.strip() for line in lines)
    done = {each["id"] for each in made}
    assert len({each["line"] for each in failed}) + len(done) + blank == LINES + 1
    assert {f"images/{p.name}" for p in Path("out/images").iterdir()} == {
        each["image"] for each in made
    }
    for path in Path("out/images").iterdir():
        assert np.ptp(np.array(Image.open(path))) > 0, path


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


def test_two_runs_do_not_share_a_folder(folder, tiny_pipeline_folder, capsys):
    write(folder, good_rows()[0])
    with held_by_another("out") as holder:
        assert run(arguments(tiny_pipeline_folder, "out")) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.search(rf"error: out is in use by process {holder} on \S+;", error)
    Path("out/.part_00003.json").write_text("{}")  # of a killed run of more processes
    assert run(arguments(tiny_pipeline_folder, "out")) == 0
    assert contents("out").keys() == {"results.jsonl", "images/m0.png"}


def test_a_folder_may_have_a_dot(folder, tiny_pipeline_folder):
    write(folder, good_rows()[0])
    for out in ("v1.5", "faces.png/"):
        assert run(arguments(tiny_pipeline_folder, out)) == 0
        assert Path(out, "images/m0.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize("max_batch", [1, 4, 8])
def test_pictures_of_jobs_are_made_again(folder, tiny_pipeline_folder, capsys, max_batch):
    """To the bit, where the jobs of a batch have conditions of one kind and different prompts."""
    write(folder, *good_rows()[:6])
    assert run(arguments(tiny_pipeline_folder, "out", "--max-batch", str(max_batch))) == 0
    for name in ("m0", "m3", "m4", "s_1"):
        picture = f"out/images/{name}.png"
        computed = read_provenance(picture)[0].computed
        if name == "m3":
            assert computed is not None
            call = {1: (1, 0), 4: (4, 3), 8: (5, 3)}[max_batch]
            assert (computed.requests, computed.place) == call
        capsys.readouterr()
        again = ["--rerun", picture, "--out", f"{name}.png", "--overwrite"]
        where = ["--mask", "given/mask.png"] if name != "s_1" else ["--sketch", "given/sketch.png"]
        assert run([*again, *where]) == 0
        assert f"bit-equal to {picture}" in capsys.readouterr().err


def mutated(row: dict, draw: random.Random) -> bytes:
    """Damage a job's values, or the bytes of its line."""
    row = dict(row)
    odd: list[Any] = [None, True, -1, 0.5, 1e30, "", "\ud800", "mask.png", [0, 1], {}]
    fitting: dict = {
        "negative": "x",
        "guidance": 2,
        "height": 64,
        "seed": 9,
        "solver": "heun",
        "cache": "taylor-seer",
        "condition_window": [0, 0.5],
        "image": "mask.png",
        "strength": 0.5,
        "region": "mask.png",
        "sketch": "sketch.png",
    }
    for _ in range(draw.randint(1, 2)):
        name = draw.choice([*fitting])
        row[name] = fitting[name]
    if draw.random() < 0.3:
        row[draw.choice([*row, "unknown"])] = draw.choice(odd)
    if draw.random() < 0.15:
        row.pop(draw.choice([*row]))
    line = bytearray(json.dumps(row).encode())
    if draw.random() < 0.25:
        for _ in range(draw.randint(1, 3)):
            line[draw.randrange(len(line))] = draw.choice([*range(32, 127), 0, 10, 200, 255])
    return bytes(line).replace(b"\n", b" ")


def check_mutated(folder, pipeline, number: int, seed: int) -> tuple[int, int]:
    """Run damaged lines; gives how many were done and how many failed."""
    draw = random.Random(seed)
    rows = good_rows()
    lines = [mutated(rows[k % len(rows)] | {"id": f"j{k}"}, draw) for k in range(number)]
    write(folder, *lines)
    assert run(arguments(pipeline, "out", "--steps", "1")) in (0, 1)
    failures = Path("out/failures.jsonl").read_text().splitlines()
    failed = {json.loads(line)["line"] for line in failures}
    results = [json.loads(line) for line in Path("out/results.jsonl").read_text().splitlines()]
    for each in results:
        recipe, picture = read_provenance(f"out/{each['image']}")
        assert json.loads(recipe.json) == each["recipe"]
        assert np.array(picture).std() > 0
    done = {each["id"] for each in results}
    for place, line in enumerate(lines, start=1):
        try:
            name = json.loads(line)["id"]
        except (ValueError, KeyError, TypeError):
            name = None
        # A line without a readable id must have failed; any other is done or has failed.
        assert (place in failed) or (isinstance(name, str) and name in done), line
    assert {each["image"] for each in results} == {
        path.relative_to("out").as_posix() for path in Path("out/images").iterdir()
    }
    return len(lines) - len(failed), len(failed)


@pytest.mark.slow
def test_damaged_lines_fail_by_name_or_are_done(folder, tiny_pipeline_folder):
    done, failed = check_mutated(folder, tiny_pipeline_folder, 60, seed=0)
    assert done > 10
    assert failed > 10
