import json
import multiprocessing

import numpy as np
import pytest

from metricgold.latents import LatentFrame
from metricgold.shards import LatentCache, shard_fits, shard_path, write_index, write_shard

IDENTITY = {"vae": "abc", "log_depth": {"near_m": 0.5, "far_m": 80.0}}


def frame(i):
    rng = np.random.default_rng(i)
    latent = rng.normal(size=(2, 4, 3, 5)).astype(np.float16)
    return LatentFrame(latent[0], latent[1], rng.random((3, 5)) > 0.5, rng.normal(size=(3, 3)), f"scene{i}", f"ä/{i}")


def write_cache(folder):
    write_shard(shard_path(folder, 0), [frame(0), frame(1)], ["unreadable"], IDENTITY)
    write_shard(shard_path(folder, 1), [], ["unreadable", "no valid latent"], IDENTITY)
    write_shard(shard_path(folder, 2), [frame(2)], [], IDENTITY)
    write_index(folder, 3, IDENTITY, gaps={"depth missing": 4})
    return LatentCache(folder)


def assert_same(one, other):
    for field in ("rgb_latent", "depth_latent", "valid_mask", "intrinsics"):
        array, expected = getattr(one, field), getattr(other, field)
        assert array.dtype == expected.dtype
        np.testing.assert_array_equal(array, expected)
    assert (one.scene, one.name) == (other.scene, other.name)


def test_what_is_written_is_read_in_any_order(tmp_path):
    cache = write_cache(tmp_path / "cache")
    assert len(cache) == 3
    for i in (2, 0, 1, 0):
        assert_same(cache[i], frame(i))
    with pytest.raises(IndexError, match="frame 3 of 3"):
        cache[3]


def test_the_index_tells_identity_and_why_frames_are_missing(tmp_path):
    cache = write_cache(tmp_path / "cache")
    assert cache.identity == IDENTITY
    assert cache.index["dropped"] == {"unreadable": 2, "no valid latent": 1, "depth missing": 4}


def test_equal_inputs_equal_bytes(tmp_path):
    one, two = write_cache(tmp_path / "one"), write_cache(tmp_path / "two")
    assert one.digest == two.digest
    for file in ("shard-00000.h5", "shard-00001.h5", "index.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_no_index_no_cache(tmp_path):
    write_shard(shard_path(tmp_path, 0), [frame(0)], [], IDENTITY)
    with pytest.raises(ValueError, match=r"index\.json is missing"):
        LatentCache(tmp_path)


def test_a_broken_shard_is_named(tmp_path):
    cache = write_cache(tmp_path / "cache")
    shard_path(cache.path, 2).write_bytes(b"no HDF5")
    with pytest.raises(ValueError, match="shard-00002"):
        cache[2]


def test_a_shard_fits_its_own_identity_only(tmp_path):
    path = shard_path(tmp_path, 0)
    assert not shard_fits(path, IDENTITY)
    write_shard(path, [frame(0)], [], IDENTITY)
    assert shard_fits(path, json.loads(json.dumps(IDENTITY)))
    assert not shard_fits(path, IDENTITY | {"vae": "xyz"})
    path.write_bytes(path.read_bytes()[:100])
    assert not shard_fits(path, IDENTITY)


def _names(cache):
    return [cache[i].name for i in range(len(cache))]


def test_workers_get_handles_of_their_own(tmp_path):
    cache = write_cache(tmp_path / "cache")
    expected = _names(cache)  # handles are open here
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(_names, [cache, cache]) == [expected, expected]
