"""Stores, keyed draws, and the order of data."""

import json
import os
import pickle
import random
import shutil
import subprocess
from collections import namedtuple
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from dead_writers import killed_while_writing

from mmface.conditions import LABELS, flip_labels
from mmface.core.files import values_sha256
from mmface.data.keyed import (
    GlobalBatchSampler,
    KeyedDataset,
    ShuffledEpochs,
    keyed_generator,
)
from mmface.data.latents import LatentEncoding
from mmface.data.pictures import RenderedPictures, StoredPictures
from mmface.data.samples import (
    AutoencoderSamples,
    CaptionedPictures,
    LatentSamples,
    ParsingSamples,
    small_part_weights,
)
from mmface.data.store import (
    ArraySpec,
    Skipped,
    Store,
    StoreSpec,
    close_store,
    shard_path,
    write_store,
)
from mmface.encoders import LatentCodec
from mmface.rendered.attributes import HELD_OUT_SEED


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    RenderedPictures(num_faces=6, size_px=64).write(folder)
    return folder


@pytest.fixture(scope="module")
def latents(pictures, tiny_pipeline_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("latents")
    source = StoredPictures(pictures)
    LatentEncoding(source, tiny_pipeline_folder / "vae", batch_size=4).write(folder)
    return folder


def number_spec(num_items=10, shard_size=3, **made_by):
    arrays = {"numbers": ArraySpec((2,), "int64")}
    return StoreSpec(num_items, arrays, ("words",), made_by, shard_size)


def number_row(i):
    return {"id": str(i), "numbers": np.array([i, i * i]), "words": ("a", str(i))}


def number_rows(shards):
    for items in shards:
        yield [number_row(i) for i in items]


def shard_bytes(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("shard-*"))}


def test_store_returns_what_was_written(tmp_path):
    write_store(tmp_path, number_spec(), number_rows)
    store = Store(tmp_path)
    assert len(store) == 10
    for item in range(10):
        row = store.row(item, ("id", "numbers", "words"))
        assert row["id"] == str(item)
        assert row["words"] == ["a", str(item)]
        np.testing.assert_array_equal(row["numbers"], [item, item * item])


def test_store_is_the_same_whoever_writes_it(tmp_path):
    write_store(tmp_path / "one", number_spec(), number_rows)
    for process in (1, 0, 2):
        write_store(tmp_path / "three", number_spec(), number_rows, process, 3)
    assert shard_bytes(tmp_path / "one") == shard_bytes(tmp_path / "three")


def test_interrupted_store_is_continued(tmp_path):
    write_store(tmp_path / "whole", number_spec(), number_rows)

    def failing_rows(shards):
        yield from number_rows(shards[:2])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_store(tmp_path / "part", number_spec(), failing_rows)
    with pytest.raises(ValueError, match="2 of 4 shards are missing"):
        Store(tmp_path / "part")
    written: list[range] = []

    def noted_rows(samples):
        written.extend(samples)
        return number_rows(samples)

    write_store(tmp_path / "part", number_spec(), noted_rows)
    assert written == [range(6, 9), range(9, 10)]
    assert shard_bytes(tmp_path / "part") == shard_bytes(tmp_path / "whole")


def test_store_made_otherwise_is_refused(tmp_path):
    write_store(tmp_path, number_spec(vae="one"), number_rows)
    with pytest.raises(ValueError, match=r"made otherwise.*'one'.*'two'"):
        write_store(tmp_path, number_spec(vae="two"), number_rows)


def some_skipped(shards):
    for items in shards:
        yield [Skipped(str(i), "torn") if i in (1, 4, 9) else number_row(i) for i in items]


def test_skipped_items_have_no_row_and_are_listed(tmp_path):
    for process in (1, 0):
        write_store(tmp_path / "two", number_spec(), some_skipped, process, 2)
    store = close_store(tmp_path / "two")
    ids = [store.row(i, ("id",))["id"] for i in range(len(store))]
    assert ids == ["0", "2", "3", "5", "6", "7", "8"]
    assert store.skipped == [Skipped(str(i), "torn") for i in (1, 4, 9)]
    lines = (tmp_path / "two" / "skipped.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["1", "4", "9"]
    write_store(tmp_path / "one", number_spec(), some_skipped)
    assert shard_bytes(tmp_path / "one") == shard_bytes(tmp_path / "two")


def test_a_store_may_lack_all_items(tmp_path):
    spec = number_spec(num_items=4)
    write_store(tmp_path, spec, lambda s: ([Skipped(str(i), "torn") for i in r] for r in s))
    assert len(close_store(tmp_path)) == 0


def test_leftovers_of_a_killed_writer_are_dropped(tmp_path):
    elsewhere = tmp_path / ".shard-00007.arrow.aside-elsewhere-1"
    elsewhere.write_bytes(b"torn")
    leftovers = [killed_while_writing(tmp_path / "shard-00001.arrow"), elsewhere]
    stale = tmp_path / "shard-00001.skipped.jsonl"
    stale.write_text('{"id": "3", "reason": "torn"}\n')
    write_store(tmp_path, number_spec(), number_rows)
    assert not leftovers[0].exists()
    assert not stale.exists()
    assert len(close_store(tmp_path)) == 10
    assert not leftovers[1].exists()


@pytest.mark.parametrize("kept", [0, 100, 0.5, 0.999])
def test_a_damaged_shard_is_named(tmp_path, kept):
    write_store(tmp_path, number_spec(), number_rows)
    path = shard_path(tmp_path, 2)
    content = path.read_bytes()
    path.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    with pytest.raises(ValueError, match=r"shard-00002\.arrow is damaged.*delete it"):
        Store(tmp_path)


def test_a_flipped_byte_is_found_wherever_it_is(tmp_path):
    write_store(tmp_path, number_spec(), number_rows)
    path = shard_path(tmp_path, 1)
    sound = path.read_bytes()
    for place in random.Random(0).sample(range(len(sound)), 40):
        flipped = bytearray(sound)
        flipped[place] ^= 1
        path.write_bytes(flipped)
        os.utime(path, ns=(place, place))  # a file of the same time and size is read once
        with pytest.raises(ValueError, match=r"shard-00001\.arrow is damaged.*delete it"):
            Store(tmp_path)
    path.unlink()
    write_store(tmp_path, number_spec(), number_rows)
    assert path.read_bytes() == sound
    assert len(close_store(tmp_path)) == 10


def test_digests_are_those_of_sha256sum_and_older_stores_have_none(tmp_path):
    write_store(tmp_path, number_spec(), number_rows)
    checked = subprocess.run(
        ["sha256sum", "-c", *(p.name for p in tmp_path.glob("*.sha256"))],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert checked.stdout.count("OK") == 4
    for digest in tmp_path.glob("*.sha256"):
        digest.unlink()
    assert len(Store(tmp_path)) == 10


@pytest.mark.parametrize("content", ["", "[]", '{"num_items": 10}', '{"num_it'])
def test_a_damaged_description_is_named(tmp_path, content):
    write_store(tmp_path, number_spec(), number_rows)
    (tmp_path / "store.json").write_text(content)
    with pytest.raises(ValueError, match=r"store\.json"):
        Store(tmp_path)


def test_a_store_that_does_not_fit_is_refused_before_it_is_begun(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 50, 50))
    with pytest.raises(OSError, match=rf"{tmp_path} has no room: 0\.0 MB are needed, 0\.0 MB are"):
        write_store(tmp_path, number_spec(), number_rows)
    assert not list(tmp_path.glob("shard*"))


MIXED = {
    "halves": ArraySpec((3, 5), "float16"),
    "coarse": ArraySpec((7,), "bfloat16"),
    "bytes": ArraySpec((2, 2, 3), "uint8"),
    "one": ArraySpec((), "int64"),
}


def mixed_row(i):
    draws = np.random.default_rng(i)
    return {
        "id": f"face {i}",
        "halves": draws.normal(size=(3, 5)).astype(np.float16),
        "coarse": draws.integers(-99, 99, 7).astype(np.float32),
        "bytes": draws.integers(0, 256, (2, 2, 3), np.uint8),
        "one": np.array(i * 10**12),
        "words": ["", "d\u00e9j\u00e0 vu", str(i)][: i % 4],
    }


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Shards of 250, none, 249 and 30 rows, and several of Arrow's batches in each."""
    folder = tmp_path_factory.mktemp("mixed")
    spec = StoreSpec(780, MIXED, ("words",), {}, 250)
    lacking = {*range(250, 500), 600}
    write_store(
        folder,
        spec,
        lambda shards: (
            [Skipped(str(i), "torn") if i in lacking else mixed_row(i) for i in items]
            for items in shards
        ),
    )
    return folder


def assert_same_rows(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], strict=name in MIXED)


def test_rows_are_those_that_datasets_reads(mixed):
    store = Store(mixed)
    assert len({len(store.rows.data.table), *store._mapped.ends}) > 4
    assert len(store) == 529
    for index, found in enumerate(store.rows):
        known = {k: MIXED[k].from_bytes(v) if k in MIXED else v for k, v in found.items()}
        assert_same_rows(store.row(index, tuple(known)), known)
        assert_same_rows(known, mixed_row(int(found["id"].removeprefix("face "))))
    assert_same_rows(store.row(-529, ("id", "halves")), store.row(0, ("id", "halves")))
    for beyond in (529, -530):
        with pytest.raises(IndexError, match=f"no row {beyond} among 529"):
            store.row(beyond, ("id",))
    with pytest.raises(KeyError, match="hair"):
        store.row(0, ("hair",))


def test_a_row_is_a_copy_and_the_rest_stays_in_the_file(mixed):
    store = Store(mixed)
    before = pa.total_allocated_bytes()
    for index in range(len(store)):
        row = store.row(index, tuple(MIXED))
        for name in MIXED:
            row[name][...] = 0
    assert_same_rows(store.row(7, ("bytes",)), {"bytes": mixed_row(7)["bytes"]})
    assert pa.total_allocated_bytes() == before
    for looked_up, batch in zip(store._mapped.looked_up, store._mapped.batches, strict=True):
        for name in MIXED:
            stored = batch.column(name).buffers()[2]
            assert looked_up[name].ctypes.data == stored.address
            assert not looked_up[name].flags.writeable
    mapped = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    held = [line[0].split("-") for line in mapped if line[-1] == str(shard_path(mixed, 0))]
    address = store._mapped.looked_up[0]["bytes"].ctypes.data
    assert any(int(first, 16) <= address < int(last, 16) for first, last in held)


def test_a_store_travels_without_its_bytes(mixed):
    store = Store(mixed)
    packed = len(pickle.dumps(store))
    expected = [store.row(i, ("id", *MIXED)) for i in range(len(store))]
    again = pickle.dumps(store)
    assert len(again) == packed
    travelled = pickle.loads(again)
    for index, row in enumerate(expected):
        assert_same_rows(travelled.row(index, ("id", *MIXED)), row)


@pytest.mark.slow
def test_latent_samples_are_the_same_from_workers(latents):
    dataset = KeyedDataset(LatentSamples(latents), seed=3)
    keys = [(0, place, place) for place in range(6)]
    here = [dataset[key] for key in keys]  # the parent has looked its columns up by now
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, sampler=keys, num_workers=2)
    for known, found in zip(here, loader, strict=True):
        assert known["caption"] == found["caption"]
        assert all(torch.equal(known[k], found[k]) for k in known if k != "caption")


@pytest.mark.parametrize("wrong", [{"dtype": "int32"}, {"shape": (3,)}])
def test_a_shard_of_other_sizes_is_named(tmp_path, wrong):
    write_store(tmp_path / "right", number_spec(), number_rows)
    array = ArraySpec(**({"shape": (2,), "dtype": "int64"} | wrong))
    spec = StoreSpec(10, {"numbers": array}, ("words",), {}, 3)
    rows = ([number_row(i) | {"numbers": np.ones(array.shape)} for i in r] for r in (range(6, 9),))
    write_store(tmp_path / "other", spec, lambda shards: rows, 2, 4)
    for name in ("shard-00002.arrow", "digest-00002.sha256"):
        shutil.copy(tmp_path / "other" / name, tmp_path / "right" / name)
    store = Store(tmp_path / "right")
    assert store.row(5, ("numbers",))["numbers"].tolist() == [5, 25]
    assert store.row(7, ("id",)) == {"id": "7"}
    with pytest.raises(ValueError, match=r"shard-00002\.arrow is damaged \(.*numbers.*delete it"):
        store.row(7, ("numbers",))


def test_bfloat16_comes_back_bit_by_bit():
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    values = bits.view(torch.bfloat16)
    spec = ArraySpec((2**16,), "bfloat16")
    assert spec.num_bytes == 2**17
    back = torch.from_numpy(spec.from_bytes(spec.to_bytes(values.float().numpy())))
    known = ~values.isnan()
    assert torch.equal(back.to(torch.bfloat16).view(torch.int16)[known], bits[known])
    assert back.isnan().equal(values.isnan())
    rounded = ArraySpec((1,), "bfloat16")
    third = rounded.from_bytes(rounded.to_bytes(np.array([1 / 3])))
    assert third.item() == torch.tensor(1 / 3).to(torch.bfloat16).item()


def test_missing_store_names_the_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"precompute\.py"):
        Store(tmp_path)


def test_training_faces_never_reach_the_held_out_ones(tmp_path):
    with pytest.raises(ValueError, match="held-out"):
        RenderedPictures(num_faces=10, first_seed=HELD_OUT_SEED - 5).write(tmp_path)


@pytest.mark.slow
def test_latents_match_the_codec_and_do_not_depend_on_the_batch(
    pictures, latents, tiny_pipeline_folder, tmp_path
):
    other = tmp_path / "other"
    vae = tiny_pipeline_folder / "vae"
    LatentEncoding(StoredPictures(pictures), vae, batch_size=1).write(other)
    first, second = Store(latents), Store(other)
    codec = LatentCodec.from_pretrained(str(vae))
    assert first.spec.made_by["vae_weights"] == values_sha256(codec.vae.state_dict())[:16]
    assert tuple(first.spec.arrays["mask"].shape) == (16, 8, 8)
    for item in range(6):
        for column in ("image", "mask", "sketch"):
            a, b = (store.row(item, (column,))[column] for store in (first, second))
            np.testing.assert_allclose(a, b, rtol=2e-2, atol=2e-3)


def test_latent_samples_draw_from_their_generator_alone(latents):
    samples = LatentSamples(latents, text_dropout=0.5, mask_dropout=0.5, sketch_dropout=0.5)
    torch.manual_seed(1)
    one = samples.sample(2, keyed_generator(0, 5, 7))
    torch.manual_seed(2)
    two = samples.sample(2, keyed_generator(0, 5, 7))
    assert one["caption"] == two["caption"]
    assert all(torch.equal(one[k], two[k]) for k in one if k != "caption")
    other = samples.sample(2, keyed_generator(0, 5, 8))
    assert not torch.equal(one["noise"], other["noise"])


def test_latent_samples_drop_at_their_rates(latents):
    samples = LatentSamples(latents, text_dropout=0.3, mask_dropout=0.2, sketch_dropout=0.0)
    drawn = [samples.sample(0, keyed_generator(0, i)) for i in range(600)]
    dropped = [not s["condition"].any() for s in drawn if s["modality"] == 0]
    assert np.mean([s["caption"] == "" for s in drawn]) == pytest.approx(0.3, abs=0.06)
    assert np.mean([s["modality"].item() for s in drawn]) == pytest.approx(0.5, abs=0.07)
    assert np.mean(dropped) == pytest.approx(0.2, abs=0.08)
    assert all(s["condition"].any() for s in drawn if s["modality"] == 1)
    assert len({s["caption"] for s in drawn}) == 7


def test_picture_samples_are_in_range(pictures):
    for samples in (AutoencoderSamples(pictures), ParsingSamples(pictures)):
        for place in range(8):
            pixels = samples.sample(1, keyed_generator(0, place))["pixels"]
            assert pixels.shape == (3, 64, 64)
            assert pixels.abs().max() <= 1
    assert CaptionedPictures(pictures).sample(0, keyed_generator(0))["caption"]


def test_parsing_flip_keeps_left_and_right_the_subjects(pictures):
    samples = ParsingSamples(pictures, noise=0.0)
    maps = [samples.sample(0, keyed_generator(0, i))["labels"].numpy() for i in range(12)]
    upright = Store(pictures).row(0, ("labels",))["labels"]
    flipped = [labels for labels in maps if not np.array_equal(labels, upright)]
    assert 0 < len(flipped) < 12
    for labels in flipped:
        np.testing.assert_array_equal(labels, flip_labels(upright))
        for part in ("eye", "brow"):
            columns = [np.nonzero(labels == LABELS.index(f"{s}_{part}"))[1].mean() for s in "lr"]
            assert columns[0] > columns[1]  # the subject's left lies on the picture's right


def test_small_parts_weigh_more_and_the_mean_is_one():
    labels = np.zeros((32, 32), np.uint8)
    labels[:8, :8] = 4
    weights = small_part_weights(labels, power=0.5)
    assert weights.mean() == pytest.approx(1, abs=1e-6)
    assert weights[0, 0] / weights[31, 31] == pytest.approx(np.sqrt((1024 - 64) / 64))


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("micro", [1, 2])
def test_global_batches_do_not_depend_on_processes(processes, micro):
    def batches(micro, process, processes, steps=range(9)):
        return list(GlobalBatchSampler(ShuffledEpochs(10, 3), 12, micro, steps, process, processes))

    whole = [sorted(batch) for batch in batches(12, 0, 1)]
    shares = [batches(micro, p, processes) for p in range(processes)]
    per_step = 12 // (micro * processes)
    for step in range(9):
        keys = [k for s in shares for b in s[step * per_step : (step + 1) * per_step] for k in b]
        assert sorted(keys) == whole[step]
    assert batches(12, 0, 1, range(4, 9)) == batches(12, 0, 1)[4:]


def test_an_epoch_has_every_item_once():
    order = ShuffledEpochs(10, 0)
    keys = [k for batch in GlobalBatchSampler(order, 5, 5, range(6)) for k in batch]
    epochs = [[item for *_, item in keys[i : i + 10]] for i in range(0, 30, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_indivisible_batch_is_refused():
    with pytest.raises(ValueError, match="does not divide"):
        GlobalBatchSampler(ShuffledEpochs(10, 0), 6, 4, range(2))


def test_keyed_dataset_gives_each_place_its_own_stream(pictures):
    dataset = KeyedDataset(CaptionedPictures(pictures), seed=0)
    captions = {dataset[(step, 0, 0)]["caption"] for step in range(30)}
    assert len(captions) == 6


def test_spec_survives_json(tmp_path):
    spec = number_spec(vae="abc")
    assert StoreSpec.from_json(json.loads(json.dumps(spec.as_json()))) == StoreSpec.from_json(
        spec.as_json()
    )
    assert shard_path(tmp_path, 3).name == "shard-00003.arrow"
    shutil.rmtree(tmp_path)
