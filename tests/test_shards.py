import errno
import json
import multiprocessing
import os
import textwrap
import time
import tracemalloc
import zlib
from dataclasses import replace
from io import FileIO
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, strategies as st

from metricgold import shards
from metricgold.shards import (
    LatentCache,
    LatentFrame,
    find_shard,
    is_part_of,
    is_whole,
    read_record,
    record_path,
    shard_names,
    shard_path,
    write_index,
    write_record,
    write_shard,
)
from metricgold.storage.files import digest_folder, read_json, write_json
from tests.support.workers import sent

COMMON = {"vae": "abc", "log_depth": {"near_m": 0.5, "far_m": 80.0}}


def frame(scene, i):
    rng = np.random.default_rng(i)
    latent = rng.normal(size=(2, 4, 3, 5)).astype(np.float16)
    masks = rng.random((3, 5)) > 0.5, rng.random((6, 10)) > 0.5  # of latents, of pixels: no whole number of bytes
    return LatentFrame(*latent, masks[0], rng.normal(size=(3, 3)), scene, f"ä/{i}", masks[1])


def write_scene(folder, scene, frames_of_shards, dropped=(), gaps=None):
    identity = COMMON | {"scene": scene, "source": f"source of {scene}"}
    found = [
        write_shard(shard_path(folder, scene, number), [frame(scene, i) for i in numbers], dropped, identity)
        for number, numbers in enumerate(frames_of_shards)
    ]
    return write_record(folder, scene, identity, gaps or {}, found)


def write_cache(folder):
    """Frames 0, 1 | 2 of one scene, none of the second, 3 of the third."""
    records = {
        "out of order": write_scene(folder, "out of order", [[3]]),
        "a": write_scene(folder, "a", [[0, 1], [2]], ["unreadable"]),
        "b/c": write_scene(folder, "b/c", [[]], ["too few valid latents"], {"depth missing": 1}),
        "d": write_scene(folder, "d", []),
    }
    write_index(folder, COMMON, records)
    return LatentCache(folder)


def assert_same(one, other):
    for field in ("rgb_latent", "depth_latent", "latent_mask", "intrinsics"):
        array, expected = getattr(one, field), getattr(other, field)
        assert array.dtype == expected.dtype
        np.testing.assert_array_equal(array, expected)
    assert (one.scene, one.name) == (other.scene, other.name)


def test_what_is_written_is_read_in_any_order(tmp_path):
    cache = write_cache(tmp_path / "cache")
    expected = [frame("a", 0), frame("a", 1), frame("a", 2), frame("out of order", 3)]
    assert len(cache) == 4
    for i in (2, 0, 3, 1, 0):
        assert_same(cache[i], expected[i])
        assert cache[i].valid_mask is None
        np.testing.assert_array_equal(cache.valid_mask(i), expected[i].valid_mask)
        assert cache.valid_mask(i).dtype == bool
    with pytest.raises(IndexError, match="frame 4 of 4"):
        cache[4]


def test_a_shard_holds_frames_of_several_sizes(tmp_path):
    """A portrait among landscapes: in one file, each read at its own size, wherever it was in the list."""

    def portrait(i):
        one = frame("a", i)
        fields = {name: getattr(one, name).swapaxes(-1, -2) for name in ("rgb_latent", "depth_latent")}
        masks = {name: np.ascontiguousarray(getattr(one, name).T) for name in ("latent_mask", "valid_mask")}
        return replace(one, **fields, **masks)

    frames = [frame("a", 0), portrait(1), frame("a", 2), portrait(3)]
    shard = write_shard(shard_path(tmp_path, "a", 0), frames, [], COMMON)
    assert shard["sizes"] == {"6x10": 2, "10x6": 2} and find_shard(shard_path(tmp_path, "a", 0), COMMON) == shard
    records = {"a": write_record(tmp_path, "a", COMMON | {"source": None}, {}, [shard])}
    write_index(tmp_path, COMMON, records | {"b": write_scene(tmp_path, "b", [[5]])})
    cache = LatentCache(tmp_path)
    assert cache.index["sizes"] == {"6x10": 3, "10x6": 2} and len(cache) == 5
    for i, expected in enumerate([frames[0], frames[2], frames[1], frames[3], frame("b", 5)]):
        assert_same(cache[i], expected)
        np.testing.assert_array_equal(cache.valid_mask(i), expected.valid_mask)
    assert shard_names(shard_path(tmp_path, "a", 0)) == [cache[i].name for i in range(4)]
    content = shard_path(tmp_path, "a", 0).read_bytes()
    time.sleep(1.1)  # HDF5 counts times in seconds, if it writes any
    write_shard(shard_path(tmp_path, "a", 0), frames, [], COMMON)
    assert shard_path(tmp_path, "a", 0).read_bytes() == content


def test_the_index_tells_identity_and_why_frames_are_missing(tmp_path):
    cache = write_cache(tmp_path / "cache")
    # A scene without a frame in the split changes nothing that is trained on.
    sources = {scene: f"source of {scene}" for scene in ("a", "b/c", "out of order")}
    assert cache.identity == COMMON | {"scenes": sources}
    assert cache.index["dropped"] == {"unreadable": 2, "too few valid latents": 1, "depth missing": 1}
    files = ["a-000.h5", "a-001.h5", "b%2Fc-000.h5", "out%20of%20order-000.h5"]
    assert [shard["file"] for shard in cache.index["shards"]] == files


def test_equal_inputs_equal_bytes(tmp_path):
    one, two = write_cache(tmp_path / "one"), write_cache(tmp_path / "two")
    assert one.digest == two.digest
    assert digest_folder(one.path) == digest_folder(two.path)


@given(st.lists(st.text(min_size=1, max_size=20), min_size=2, max_size=5, unique=True))
def test_scenes_never_share_a_file_or_leave_the_folder(scenes):
    folder = Path("cache")
    scenes = dict.fromkeys([*scenes, f"{scenes[0]}-000", "index", "..", ".", "a/b", "%2E."])
    paths = [path for scene in scenes for path in (record_path(folder, scene), shard_path(folder, scene, 0))]
    paths.append(folder / "index.json")
    assert len(set(paths)) == len(paths)
    assert all(path.parent == folder and not path.name.startswith(".") for path in paths)


def test_no_index_no_cache(tmp_path):
    write_scene(tmp_path, "a", [[0]])
    with pytest.raises(ValueError, match=r"index\.json is missing"):
        LatentCache(tmp_path)


def test_no_frame_no_index(tmp_path):
    record = write_scene(tmp_path, "a", [[]], ["unreadable"])
    with pytest.raises(ValueError, match=r"no frame left to train on.*unreadable"):
        write_index(tmp_path, COMMON, {"a": record})
    assert not (tmp_path / "index.json").exists()


def test_h5py_alone_reads_a_shard_as_the_page_says(tmp_path):
    lines = shards.__doc__.split("of a shard:\n\n")[1].split("\n\n")[0]
    for i in (0, 1):
        with h5py.File(shard_path(write_cache(tmp_path).path, "a", 0)) as file:
            names = {"file": file, "i": i, "json": json, "np": np, "zlib": zlib}
            exec(textwrap.dedent(lines), names)
            assert file["6x10"]["frame"].chunks is None
        record, expected = names["record"], frame("a", i)
        np.testing.assert_array_equal(names["valid_mask"], expected.valid_mask)
        np.testing.assert_array_equal(record["depth_latent"], expected.depth_latent)
        assert record["name"].decode() == expected.name


def _cut(content):
    return content[: len(content) // 3]


def _cut_tail(content):
    return content[:-40]


def _spoil_masks(content):
    at = content.rindex(zlib.compress(np.packbits(frame("a", 2).valid_mask), 1))
    return content[:at] + b"no stream" + content[at + 9 :]


@pytest.mark.parametrize("damage", [_cut, _cut_tail, _spoil_masks, lambda _: b"", lambda _: b"no HDF5"])
def test_a_broken_shard_is_named(tmp_path, damage):
    cache = write_cache(tmp_path / "cache")
    path = shard_path(cache.path, "a", 1)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"a-001\.h5 cannot be read as a shard: .*; encode it again"):
        cache[2], cache.valid_mask(2)


def test_a_shard_that_is_not_there_is_named(tmp_path):
    cache = write_cache(tmp_path / "cache")
    shard_path(cache.path, "a", 1).unlink()
    with pytest.raises(ValueError, match=r"a-001\.h5 cannot be read as a shard: .*No such file"):
        cache[2]


def test_a_shard_that_is_cut_while_it_is_open_is_named(tmp_path):
    cache = write_cache(tmp_path / "cache")
    cache[2]
    os.truncate(shard_path(cache.path, "a", 1), 2100)
    with pytest.raises(ValueError, match=r"a-001\.h5 .*ends \d+ bytes too early"):
        cache[2]


def test_a_shard_that_was_replaced_is_not_read_in_old_places(tmp_path, monkeypatch):
    cache = write_cache(tmp_path / "cache")
    monkeypatch.setattr(shards, "MAX_OPEN_SHARDS", 1)
    assert cache[2].name == "ä/2"
    cache[3]  # closes the other
    identity = {"padding": "x" * 5000}  # moves all that lies behind it
    write_shard(shard_path(cache.path, "a", 1), [frame("a", 7)], [], identity)
    assert_same(cache[2], frame("a", 7))
    np.testing.assert_array_equal(cache.valid_mask(2), frame("a", 7).valid_mask)
    cache[3]
    write_shard(shard_path(cache.path, "a", 1), [frame("a", 7), frame("a", 8)], [], identity)
    with pytest.raises(ValueError, match=r"2 frames, index\.json lists another number; encode it again"):
        cache[2]


@pytest.mark.parametrize("found", [1, None])
def test_another_format_is_refused(tmp_path, found):
    cache = write_cache(tmp_path)
    path = record_path(tmp_path, "a")
    for file in (tmp_path / "index.json", path):
        write_json(file, read_json(file) | {"format": found})
    with pytest.raises(ValueError, match=rf"index\.json: format is {found}, expected 3; encode it again"):
        LatentCache(tmp_path)
    assert read_record(tmp_path, "a") is None and not is_part_of(path, {})
    with h5py.File(shard_path(tmp_path, "a", 1), "r+") as file:
        file.attrs["format"] = found or 0
        identity = json.loads(file.attrs["identity"])
    assert find_shard(shard_path(tmp_path, "a", 1), identity) is None
    assert not is_part_of(shard_path(tmp_path, "a", 1), {})
    with pytest.raises(ValueError, match=r"format is .*, expected 3; encode it again"):
        cache[2]


def test_a_disk_that_is_full_leaves_nothing_behind(tmp_path, monkeypatch):
    path = shard_path(tmp_path, "a", 0)
    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_shard(path, [frame("a", 0)], [], COMMON)
    assert not list(tmp_path.iterdir())


def full_disk(path, content):
    with path.open("wb") as file:
        file.write(content[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def test_a_shard_is_found_by_its_own_identity_only(tmp_path):
    path = shard_path(tmp_path, "a", 0)
    assert find_shard(path, COMMON) is None
    written = write_shard(path, [frame("a", 0)], ["unreadable"], COMMON)
    assert find_shard(path, COMMON) == find_shard(path, COMMON, written["sha256"]) == written
    assert (written["num_frames"], written["dropped"]) == (1, {"unreadable": 1})
    assert find_shard(path, COMMON | {"vae": "xyz"}) is None
    assert is_part_of(path, {"vae": "abc"}) and not is_part_of(path, {"vae": "xyz"})
    assert find_shard(path, COMMON, "0" * 64) is None
    path.write_bytes(path.read_bytes()[:100])
    assert find_shard(path, COMMON) is None and not is_part_of(path, {})


def test_a_record_tells_a_damaged_shard_from_a_whole_one(tmp_path):
    record = write_scene(tmp_path, "a", [[0], [1]])
    assert read_record(tmp_path, "a") == record and is_whole(tmp_path, record)
    path = shard_path(tmp_path, "a", 1)
    whole = path.read_bytes()
    for broken in (whole[:-1], whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]):
        path.write_bytes(broken)
        assert not is_whole(tmp_path, record)
    path.unlink()
    assert not is_whole(tmp_path, record)
    record_path(tmp_path, "a").write_text("{")
    assert read_record(tmp_path, "a") is None and not is_part_of(record_path(tmp_path, "a"), COMMON)


def _names(cache):
    return [cache[i].name for i in range(len(cache))]


def test_workers_get_handles_of_their_own(tmp_path):
    cache = write_cache(tmp_path / "cache")
    expected = _names(cache)  # handles are open here
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(_names, [cache, cache]) == [expected, expected]
    assert _names(sent(cache)) == expected


def test_few_shards_are_open_at_once_and_all_are_read(tmp_path, monkeypatch):
    write_index(tmp_path, COMMON, {"a": write_scene(tmp_path, "a", [[i] for i in range(5)])})
    cache, opened, asked = LatentCache(tmp_path), [], []
    monkeypatch.setattr(shards, "MAX_OPEN_SHARDS", 2)
    monkeypatch.setattr(shards, "FileIO", lambda path: opened.append(FileIO(path)) or opened[-1])
    read_layout = shards.read_layout
    monkeypatch.setattr(shards, "read_layout", lambda *args: asked.append(args) or read_layout(*args))
    for i in (0, 1, 0, 2, 0, 3, 4, 1):
        assert cache[i].name == f"ä/{i}"
        assert sum(not file.closed for file in opened) <= 2
    # What was used last stays: the first shard was opened once for its three reads. HDF5 was asked once for each.
    assert len(opened) == 6 and len(asked) == 5


def test_an_index_over_many_small_scenes_opens_fast(tmp_path):
    """400,000 frames, six to a scene as in the demo: the most shards there can be."""
    scenes = [f"scene{number}" for number in range(66_667)]
    entries = [{"scene": scene, "file": f"{scene}-000.h5", "num_frames": 6, "sha256": "0" * 64} for scene in scenes]
    identity = COMMON | {"scenes": dict.fromkeys(scenes, "0" * 64)}
    index = {"format": 3, "identity": identity, "num_frames": 400_002, "dropped": {}, "shards": entries}
    write_json(tmp_path / "index.json", index)
    tracemalloc.start()
    try:
        assert len(LatentCache(tmp_path)) == 400_002
        assert tracemalloc.get_traced_memory()[1] < 200e6
    finally:
        tracemalloc.stop()
    started = time.process_time()
    LatentCache(tmp_path)
    assert time.process_time() - started < 1


def test_a_shard_never_reads_another_file(tmp_path):
    write_cache(tmp_path / "cache")
    secret, shard = tmp_path / "secret", tmp_path / "cache" / "a-000.h5"
    secret.write_bytes(bytes(range(256)))
    with h5py.File(shard, "a") as file:
        (size,) = file
        del file[size]["valid_mask_begin"]
        file[size].create_dataset("valid_mask_begin", (3,), np.int64, external=[(str(secret), 0, 24)])
    with pytest.raises(ValueError, match=r"a-000\.h5 cannot be read as a shard: .*in another file"):
        LatentCache(tmp_path / "cache")[0]


def test_a_record_never_leads_out_of_the_cache(tmp_path):
    record = write_scene(tmp_path / "cache", "a", [[0]])
    (tmp_path / "cache" / "a-000.h5").rename(tmp_path / "outside.h5")
    for name in ("../outside.h5", str(tmp_path / "outside.h5"), None):
        record["shards"][0]["file"] = name
        assert not is_whole(tmp_path / "cache", record)
    assert not is_whole(tmp_path / "cache", {"shards": [{}]})


def test_an_index_never_leads_out_of_the_cache(tmp_path):
    write_cache(tmp_path / "cache")
    (tmp_path / "cache" / "a-000.h5").rename(tmp_path / "outside.h5")
    index = read_json(tmp_path / "cache" / "index.json")
    index["shards"][0]["file"] = "../outside.h5"
    write_json(tmp_path / "cache" / "index.json", index)
    with pytest.raises(ValueError, match=r"cache/outside\.h5 cannot be read"):
        LatentCache(tmp_path / "cache")[0]


def test_where_no_surface_is_known_is_kept_and_shards_without_it_are_read(tmp_path, monkeypatch):
    one = frame("a", 0)
    sky = ~one.latent_mask
    write_index(tmp_path, COMMON, {"a": write_frames(tmp_path, [replace(one, no_surface_mask=sky)])})
    np.testing.assert_array_equal(LatentCache(tmp_path)[0].arrays["no_surface_mask"], sky)
    without = {field: array for field, array in one.arrays.items() if field != "no_surface_mask"}
    with monkeypatch.context() as earlier:  # as an earlier version wrote it
        earlier.setattr(shards, "_ARRAYS", tuple(without))
        earlier.setattr(LatentFrame, "arrays", without)
        write_index(tmp_path, COMMON, {"a": write_frames(tmp_path, [one])})
    old = LatentCache(tmp_path)[0]
    assert old.no_surface_mask is None and not old.arrays["no_surface_mask"].any()
    np.testing.assert_array_equal(old.latent_mask, one.latent_mask)


def write_frames(folder, frames):
    identity = COMMON | {"scene": "a", "source": "source of a"}
    return write_record(folder, "a", identity, {}, [write_shard(shard_path(folder, "a", 0), frames, (), identity)])
