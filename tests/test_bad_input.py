"""Files that people bring, broken in thousands of ways: read, or refused with a clear error."""

import contextlib
import io
import json
import resource
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mmface.conditions import colorize, load_mask, load_sketch
from mmface.generation.jobs import read_jobs
from mmface.generation.settings import ModelChoice, Provenance, Settings, read_provenance
from mmface.sampling.blending import load_image, load_region

SIZE = (16, 16)
PICTURES_PER_FORMAT = 170
JOB_FILES = 1000
SLOWEST_S = 5.0  # of processor time, for one file
MOST_MORE_MEMORY_KB = 700_000

READERS: dict[str, Callable[[Path], object]] = {
    "mask": lambda path: load_mask(path, SIZE),
    "sketch": lambda path: load_sketch(path, SIZE),
    "image": lambda path: load_image(path, SIZE),
    "region": lambda path: load_region(path, SIZE, "The region"),
    "recipe": read_provenance,
}


def recipe() -> Provenance:
    settings = Settings(prompt="a face", height=24, width=24, steps=2, guidance=3.0)
    return Provenance(ModelChoice(), "0", (settings,), (1,), 0, {}, {"torch": "2"})


def sources() -> dict[str, bytes]:
    """Small sound pictures of many formats and modes."""
    labels = np.zeros((24, 24), np.uint8)
    labels[6:20, 6:18] = 1
    labels[3:8] = 13
    color = Image.fromarray(colorize(labels))
    sketch = Image.new("L", (24, 24), 255)
    sketch.paste(0, (5, 5, 19, 7))
    info = PngInfo()
    info.add_itxt("mmface", recipe().json)
    exif = Image.Exif()
    exif[0x0112] = 6
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0" + recipe().json.encode()
    made: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "color.png": (color, {"pnginfo": info}),
        "grey.png": (sketch, {}),
        "palette.png": (color.quantize(8), {}),
        "alpha.png": (color.convert("RGBA"), {}),
        "deep.png": (sketch.convert("I;16"), {}),
        "bits.png": (sketch.convert("1"), {}),
        "color.jpg": (color, {"exif": exif}),
        "cmyk.jpg": (color.convert("CMYK"), {}),
        "color.webp": (color, {"exif": exif}),
        "moving.gif": (color.quantize(8), {"save_all": True, "append_images": [color.quantize(4)]}),
        "color.bmp": (color, {}),
        "float.tiff": (sketch.convert("F"), {}),
        "color.tga": (color, {}),
        "color.ppm": (color, {}),
        "color.ico": (color, {}),
    }
    found = {}
    for name, (picture, options) in made.items():
        stream = io.BytesIO()
        kind = {"jpg": "JPEG"}.get(name.split(".")[1], name.split(".")[1].upper())
        picture.save(stream, format=kind, **options)
        found[name] = stream.getvalue()
    return found


def mutated(content: bytes, random: np.random.Generator) -> bytes:
    """Flip bytes, cut off, drop, repeat or overwrite with extremes; headers most of all."""
    data, kind = bytearray(content), random.integers(6)
    if kind == 0:
        return bytes(data[: random.integers(len(data))])
    for _ in range(random.integers(1, 9)):
        limit = 64 if kind == 1 else len(data)
        place = int(random.integers(min(limit, len(data))))
        if kind in (1, 2):
            data[place] ^= int(random.integers(1, 256))
        elif kind == 3:
            data[place : place + 4] = random.choice([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"])
        elif kind == 4:
            del data[place : place + int(random.integers(1, 16))]
        else:
            data[place:place] = data[place : place + int(random.integers(1, 64))]
        if not data:
            return b""
    if kind == 3 and data.startswith(b"\x89PNG") and random.random() < 0.7:
        fix_checksums(data)
    return bytes(data)


def fix_checksums(data: bytearray) -> None:
    """Make a PNG's checksums right again, so that what was changed in it is read."""
    place = 8
    while place + 12 <= len(data):
        length = struct.unpack(">I", data[place : place + 4])[0]
        end = place + 8 + length
        if end + 4 > len(data):
            return
        data[end : end + 4] = struct.pack(">I", zlib.crc32(data[place + 4 : end]))
        place = end + 4


def of_declared_size(width: int, height: int) -> bytes:
    """Give a PNG of a few bytes that claims to be so large."""
    stream = io.BytesIO()
    Image.new("L", (4, 4)).save(stream, "PNG")
    data = bytearray(stream.getvalue())
    data[16:24] = struct.pack(">II", width, height)
    fix_checksums(data)
    return bytes(data)


def read(path: Path, readers: dict[str, Callable[[Path], object]]) -> set[str]:
    """Read a file in all ways; names those that took it. Anything but two errors is a failure."""
    taken = set()
    for name, reader in readers.items():
        start, said = time.process_time(), "it was taken"
        try:
            reader(path)
            taken.add(name)
        except (ValueError, FileNotFoundError) as error:
            said = str(error).strip()
        assert said, f"{name} refused {path} without a word"
        took = time.process_time() - start
        assert took < SLOWEST_S, f"{name} took {took:.1f} s"
    return taken


@pytest.fixture
def bounded_memory():
    """Fail if a test took up much more memory than there was before."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert more < MOST_MORE_MEMORY_KB, f"{more} kB more"


def test_sound_sources_are_read(tmp_path):
    for name, content in sources().items():
        path = tmp_path / name
        path.write_bytes(content)
        taken = read(path, READERS)
        assert "image" in taken, name
        assert ("recipe" in taken) == (name in ("color.png", "color.jpg", "color.webp")), name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns of what it skips
@pytest.mark.parametrize("name", sources())
def test_broken_pictures_are_read_or_refused(tmp_path, bounded_memory, name):
    random = np.random.default_rng([7, *name.encode()])
    content, path, num_taken = sources()[name], tmp_path / name, 0
    for number in range(PICTURES_PER_FORMAT):
        path.write_bytes(mutated(content, random))
        try:
            num_taken += bool(read(path, READERS))
        except Exception as error:
            kept = path.read_bytes().hex()
            raise AssertionError(f"mutation {number} of {name}: {error!r}: {kept}") from error
    assert num_taken < PICTURES_PER_FORMAT, "nothing was broken"


@pytest.mark.parametrize(
    ("width", "height"),
    [(1, 2**31 - 1), (2**31 - 1, 2**31 - 1), (100_000, 100_000), (7000, 7000), (0, 4), (2**31, 4)],
)
def test_declared_sizes_are_not_believed(tmp_path, bounded_memory, width, height):
    path = tmp_path / "huge.png"
    path.write_bytes(of_declared_size(width, height))
    assert read(path, READERS) == set()


def test_what_is_no_file_is_refused(tmp_path):
    empty = tmp_path / "empty.png"
    empty.write_bytes(b"")
    for path in (tmp_path, empty, tmp_path / "none.png"):
        assert read(path, READERS) == set()


@pytest.mark.slow
def test_broken_job_files_are_read_or_refused(tmp_path, bounded_memory):
    random = np.random.default_rng(11)
    row = {
        "id": "a",
        "prompt": "caf\u00e9 \U0001f600",
        "mask": "m.png",
        "guidance_interval": [0, 1],
    }
    rows = [row, row | {"id": "b", "seed": 3, "num": 2, "region": None}]
    content = "\n".join(json.dumps(each, ensure_ascii=False) for each in rows).encode()
    words = [b"NaN", b"1e999", b"[" * 3000, b'"\\ud800"', b"null", b"-1", b"\x00", b"9" * 5000]
    words += [b'{"id":{}}', b"true", b"\xef\xbb\xbf", b"\r", b'"id":"a",', b"\n"]
    path, faults = tmp_path / "jobs.jsonl", 0
    for number in range(JOB_FILES):
        data = mutated(content, random)
        if random.random() < 0.5:
            place, word = random.integers(len(data) + 1), words[random.integers(len(words))]
            data = data[:place] + word + data[place:]
        path.write_bytes(data)
        start = time.process_time()
        if not data.strip():
            with pytest.raises(ValueError, match="has no jobs"):
                read_jobs(path)
            continue
        try:
            jobs, failures = read_jobs(path)
        except Exception as error:
            raise AssertionError(f"mutation {number}: {error!r}: {data!r}") from error
        assert time.process_time() - start < SLOWEST_S
        faults += len(failures)
        for job in jobs:
            assert not set(job.id) & set("/\\\0")
            assert (job.settings.prompt or "").strip()
        assert all(each.error and each.line >= 1 for each in failures)
    assert faults > JOB_FILES / 2


def test_recipes_of_broken_json_are_refused():
    random, sound, taken = np.random.default_rng(5), recipe().json.encode(), 0
    for _ in range(600):
        with contextlib.suppress(ValueError):
            Provenance.from_json(mutated(sound, random).decode("latin-1"))
            taken += 1
    assert taken < 200


def test_broken_exif_is_not_followed(tmp_path):
    path = tmp_path / "a.webp"
    path.write_bytes(sources()["color.webp"].replace(b"MM\x00*", b"MM\x00\x14"))
    assert "image" in read(path, READERS)
