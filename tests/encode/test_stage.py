"""Frames to latents: what is kept, what is dropped and why, and what survives a kill."""

import errno
import multiprocessing
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from metricgold.datasets.readers import list_frames, open_dataset
from metricgold.encode import scene_encoder as module
from metricgold.encode.crops import open_processes
from metricgold.encode.scene_encoder import TOO_FEW, open_encoder
from metricgold.encode.stage import encode, source_digest
from metricgold.log_depth import LogDepth
from metricgold.model.backbone import load_vae
from metricgold.model.vae import encode_log_depth, encode_rgb, filled_log_depth, rgb_to_tensor
from metricgold.params.sections import load_params
from metricgold.shards import LatentCache
from metricgold.storage.files import read_json, write_json
from tests.support.power_cut import PowerCut
from tests.support.tries import tries
from tests.support.waiting import wait_until


def run(tiny, raw, backbone, out, **changes):
    params = tiny.encode.model_copy(update=changes)
    encode(tiny.datasets[0], params, tiny.log_depth, raw, backbone, out)
    return LatentCache(out)


def test_latents_are_the_vae_s_of_the_training_frames(tiny, tiny_raw, tiny_backbone, tiny_latents):
    cache, vae = LatentCache(tiny_latents), load_vae(tiny_backbone).eval()
    frames = list(open_dataset(tiny.datasets[0], tiny_raw, split="train"))
    assert len(cache) == len(frames) == 8
    assert [cache[i].name for i in range(8)] == [frame.name for frame in frames]
    log_depth = LogDepth(0.5, 80.0)
    for i in (0, 5):
        depth = filled_log_depth(log_depth, frames[i].planar_depth_m, frames[i].valid_mask)
        with torch.no_grad():
            rgb_latent = encode_rgb(vae, rgb_to_tensor(frames[i].rgb[None]))[0]
            depth_latent = encode_log_depth(vae, torch.from_numpy(depth[None]))[0]
        np.testing.assert_allclose(cache[i].rgb_latent, rgb_latent, atol=2e-3)
        np.testing.assert_allclose(cache[i].depth_latent, depth_latent, atol=2e-3)
        # The sky is not measured, so the latents above the horizon are not valid.
        assert not cache[i].latent_mask[0].any() and cache[i].latent_mask[-1].all()
        # All of it is known to be sky, the latents on the horizon included.
        np.testing.assert_array_equal(cache[i].no_surface_mask, ~cache[i].latent_mask)
        np.testing.assert_array_equal(cache.valid_mask(i), frames[i].valid_mask)
        np.testing.assert_array_equal(cache[i].intrinsics, frames[i].intrinsics)


def test_the_identity_names_all_that_a_latent_depends_on(tiny, tiny_latents):
    identity = LatentCache(tiny_latents).identity
    assert identity["log_depth"] == {"near_m": 0.5, "far_m": 80.0}
    assert identity["encode"]["height"] == 32 and len(identity["vae"]) == 64
    assert identity["dataset"] == tiny.datasets[0] and identity["split"] == "train"


def test_broken_frames_are_dropped_and_counted(tiny, tiny_raw, tiny_backbone, tmp_path, caplog):
    raw = shutil.copytree(tiny_raw, tmp_path / "raw")
    folder = raw / "env101" / "Easy" / "P000"
    (folder / "image_left" / "000001_left.png").write_bytes(b"no png")
    (folder / "depth_left" / "000002_left_depth.npy").unlink()
    np.save(folder / "depth_left" / "000003_left_depth.npy", np.full((32, 48), 5000, np.float32))
    cache = run(tiny, raw, tiny_backbone, tmp_path / "out")
    assert len(cache) == 5
    assert cache.index["dropped"] == {"unreadable": 1, "depth missing": 1, "too few valid latents": 1}
    assert "000001_left.png" in caplog.text


def test_shards_are_on_the_disk_before_their_record_and_records_before_the_index(
    tiny, tiny_raw, tiny_backbone, tmp_path, monkeypatch
):
    out = tmp_path / "out"

    def vouched(source, target):
        if target.name == "index.json":
            return [*out.glob("*.h5"), *out.glob("*.scene.json")]
        is_record = target.name.endswith(".scene.json")
        return [out / shard["file"] for shard in read_json(source)["shards"]] if is_record else []

    cut = PowerCut(monkeypatch, out, vouched)
    run(tiny, tiny_raw, tiny_backbone, out)
    assert set(cut.seen) == {"env101.scene.json", "env102.scene.json", "index.json"} and cut.lost == []


@pytest.mark.parametrize("views", [1, 2])
def test_a_frame_that_was_unreadable_once_is_tried_again(tiny, tiny_raw, tiny_backbone, tmp_path, caplog, views):
    whole = run(tiny, tiny_raw, tiny_backbone, tmp_path / "whole", views=views).path
    raw, out = shutil.copytree(tiny_raw, tmp_path / "raw"), tmp_path / "out"
    folder = raw / "env101" / "Easy" / "P000"
    broken = [folder / "image_left" / f"00000{n}_left.png" for n in (1, 2)]
    contents = [path.read_bytes() for path in broken]
    for path in broken:
        path.write_bytes(b"no png")
    with caplog.at_level("INFO"):
        assert len(run(tiny, raw, tiny_backbone, out, views=views)) == 6 * views
    assert f"{6 * views} frames of 2 scenes in the cache" in caplog.text
    assert "2 frames left out: unreadable 2" in caplog.text
    before = files(out)
    run(tiny, raw, tiny_backbone, out, views=views)
    after = files(out)
    assert all(after[name] == before[name] for name in before if name != "index.json")  # tried, and nothing encoded
    broken[0].write_bytes(contents[0])
    assert run(tiny, raw, tiny_backbone, out, views=views).index["dropped"] == {"unreadable": 1}
    broken[1].write_bytes(contents[1])
    caplog.clear()
    assert run(tiny, raw, tiny_backbone, out, views=views).index["dropped"] == {}
    assert bytes_of(out) == bytes_of(whole) and "left out" not in caplog.text


def test_what_no_repair_can_change_is_not_encoded_again(tiny, tiny_raw, tiny_backbone, tmp_path):
    """A frame without a valid latent beside one that stays unreadable."""
    raw, out = shutil.copytree(tiny_raw, tmp_path / "raw"), tmp_path / "out"
    folder = raw / "env101" / "Easy" / "P000"
    (folder / "image_left" / "000001_left.png").write_bytes(b"no png")
    np.save(folder / "depth_left" / "000000_left_depth.npy", np.full((32, 48), 5000, np.float32))
    run(tiny, raw, tiny_backbone, out)
    before = files(out)
    run(tiny, raw, tiny_backbone, out)
    after = files(out)
    assert all(after[name] == before[name] for name in before if name != "index.json")


def test_every_frame_keeps_its_own_shape(tiny, mixed_raw, mixed_latents, tiny_backbone):
    """Portraits among landscapes, also in one scene: whole, at the scale of all others, in batches of one shape."""
    cache, vae = LatentCache(mixed_latents), load_vae(tiny_backbone).eval()
    assert cache.index["sizes"] == {"32x48": 2, "48x32": 6} and not cache.index["dropped"]
    frames = {frame.name: frame for frame in open_dataset(tiny.datasets[0], mixed_raw, split="train")}
    assert sorted(cache[i].name for i in range(len(cache))) == sorted(frames)
    for i in range(len(cache)):
        frame = frames[cache[i].name]
        with torch.no_grad():
            rgb_latent = encode_rgb(vae, rgb_to_tensor(frame.rgb[None]))[0]
        np.testing.assert_allclose(cache[i].rgb_latent, rgb_latent, atol=2e-3)
        np.testing.assert_array_equal(cache.valid_mask(i), frame.valid_mask)
        np.testing.assert_array_equal(cache[i].intrinsics, frame.intrinsics)


def test_a_frame_with_too_little_depth_is_left_out_and_counted(tiny, tiny_raw, tiny_backbone, tmp_path):
    """16 x 24 latents: a frame with depth in one of them, one in 19 (4.9 %), one in 20 (5.2 %)."""
    raw = shutil.copytree(tiny_raw, tmp_path / "raw")
    for number, pixels in enumerate([(2, 2), (2, 38), (2, 40)]):
        depth_m = np.full((32, 48), 5000, np.float32)
        depth_m[: pixels[0], : pixels[1]] = 5
        np.save(raw / "env101" / "Easy" / "P000" / "depth_left" / f"{number:06d}_left_depth.npy", depth_m)

    def names_with(min_valid):
        cache = run(tiny, raw, tiny_backbone, tmp_path / str(min_valid), min_valid=min_valid)
        names = [cache[i].name.rpartition("/")[2] for i in range(4 - cache.index["dropped"].get(TOO_FEW, 0))]
        return names, cache.index["dropped"]

    assert names_with(0.0) == (["000000", "000001", "000002", "000003"], {})
    assert names_with(0.05) == (["000002", "000003"], {TOO_FEW: 2})
    assert names_with(0.06) == (["000003"], {TOO_FEW: 3})


def files(out):
    """Name -> (inode, time of writing, bytes) of everything in a cache."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()) for path in out.iterdir()}


def bytes_of(out):
    return {name: content for name, (_, _, content) in files(out).items()}


def refs_of(tiny, raw):
    """Scene -> its training frames."""
    refs = {}
    for ref in list_frames(tiny.datasets[0], raw, split="train").frames:
        refs.setdefault(ref.scene, []).append(ref)
    return refs


def opened(tiny, backbone, out, **changes):
    params = tiny.encode.model_copy(update=changes)
    return open_encoder(tiny.datasets[0], params, tiny.log_depth, backbone, out)


@pytest.mark.parametrize("order", [("env101", "env102"), ("env102", "env101")])
def test_scene_by_scene_in_any_order_gives_the_bytes_of_all_at_once(
    tiny, tiny_raw, tiny_backbone, tiny_latents, tmp_path, order
):
    out, raw = tmp_path / "out", shutil.copytree(tiny_raw, tmp_path / "raw")
    sources = LatentCache(tiny_latents).identity["scenes"]
    for scene in order:
        one = shutil.copytree(raw, tmp_path / "one")
        for other in {*order, "env901"} - {scene}:
            shutil.rmtree(one / other)
        with opened(tiny, tiny_backbone, out) as encoder:
            done = [name for name in order if encoder.has_scene(name, sources[name])]
            assert done == list(order[: order.index(scene)])
            encoder.encode_scene(scene, refs_of(tiny, one)[scene][::-1], sources[scene])
            shutil.rmtree(one)  # nothing of a scene is needed once it is encoded
            encoder.finish()
    assert bytes_of(out) == bytes_of(tiny_latents)


def test_a_new_scene_touches_no_other(tiny, tiny_raw, tiny_backbone, tiny_latents, tmp_path):
    raw = shutil.copytree(tiny_raw, tmp_path / "raw")
    (raw / "env102").rename(tmp_path / "env102")
    out = tmp_path / "out"
    run(tiny, raw, tiny_backbone, out)
    before = files(out)
    (tmp_path / "env102").rename(raw / "env102")
    run(tiny, raw, tiny_backbone, out)
    assert bytes_of(out) == bytes_of(tiny_latents)
    after = files(out)
    assert len(before) == 4 and all(after[name] == before[name] for name in before if name != "index.json")
    shutil.rmtree(raw / "env102")
    run(tiny, raw, tiny_backbone, out)
    assert bytes_of(out) == {name: content for name, (_, _, content) in before.items()}


def test_a_damaged_shard_alone_is_encoded_again(tiny, tiny_raw, tiny_backbone, tmp_path):
    out = tmp_path / "out"
    sources = run(tiny, tiny_raw, tiny_backbone, out).identity["scenes"]
    before, damaged = files(out), out / "env102-000.h5"
    content = bytearray(damaged.read_bytes())
    content[-100] ^= 1
    damaged.write_bytes(content)
    with opened(tiny, tiny_backbone, out) as encoder:
        assert encoder.has_scene("env101", sources["env101"]) and not encoder.has_scene("env102", sources["env102"])
    run(tiny, tiny_raw, tiny_backbone, out)
    after = files(out)
    assert bytes_of(out) == {name: content for name, (_, _, content) in before.items()}
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"env102-000.h5", "env102.scene.json", "index.json"}


@pytest.mark.parametrize("lost", ["env101-001.h5", "env101.scene.json", "index.json"])
def test_a_run_that_ended_too_early_goes_on(tiny, tiny_raw, tiny_backbone, tmp_path, lost):
    """Beside what a kill and a larger data set of before may leave."""
    out = tmp_path / "out"
    run(tiny, tiny_raw, tiny_backbone, out)
    whole, kept = bytes_of(out), files(out)["env101-000.h5"]
    (out / lost).unlink()
    (out / ".env101-001.h5.1-00000000.part").write_bytes(b"half a shard")
    (out / "env999-000.h5").write_bytes(b"of another run")
    run(tiny, tiny_raw, tiny_backbone, out)
    assert bytes_of(out) == whole and files(out)["env101-000.h5"] == kept


THEIRS = {
    "index.json": "{}",
    "a-000.h5": "measured",
    "b.scene.json": '{"scene": "b"}',
    "notes.txt": "",
    "deep/a.h5": "",
}


@pytest.mark.parametrize("name", THEIRS)
def test_a_folder_of_others_is_never_cleared(tiny, tiny_raw, tiny_backbone, tmp_path, name):
    """A name that is a path once made the raw folder the cache: all of it was deleted."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(THEIRS[name])
    with pytest.raises(ValueError, match=f"{tmp_path} is not a latent cache, .*{name.partition('/')[0]} is not of one"):
        run(tiny, tiny_raw, tiny_backbone, tmp_path)
    assert (tmp_path / name).read_text() == THEIRS[name] and len(list(tmp_path.iterdir())) == 1


def test_other_params_or_another_source_encode_anew(tiny, tiny_raw, tiny_backbone, tmp_path):
    out = tmp_path / "out"
    cache = run(tiny, tiny_raw, tiny_backbone, out)
    digest, source = cache.digest, cache.identity["scenes"]["env101"]
    before = files(out)
    assert run(tiny, tiny_raw, tiny_backbone, out, version=2).digest != digest
    assert not {name: stat for name, stat in files(out).items() if before.get(name) == stat}
    with opened(tiny, tiny_backbone, out, version=2) as encoder:
        assert encoder.has_scene("env101", source) and not encoder.has_scene("env101", "another archive")
    with opened(tiny, tiny_backbone, out) as encoder:
        assert not list(out.iterdir()), "what other params made takes room and is of no use"
        assert not encoder.has_scene("env101", source)


def test_the_ledger_tells_which_scenes_an_archive_changes(tiny, tiny_raw, tiny_backbone, tmp_path):
    def ledger(env101):
        entries = {"a.zip": (["env101"], env101), "b.zip": (["env102"], "2"), "cameras.csv": ([], "3")}
        archives = {path: {"scenes": scenes, "members_sha256": sha} for path, (scenes, sha) in entries.items()}
        write_json(raw / "ledger.json", {"archives": archives})
        return archives

    raw, out = shutil.copytree(tiny_raw, tmp_path / "raw"), tmp_path / "out"
    archives = ledger("1")
    sources = {scene: source_digest(archives, scene) for scene in ("env101", "env102")}
    assert run(tiny, raw, tiny_backbone, out).identity["scenes"] == sources
    before = files(out)
    ledger("another")
    cache, after = run(tiny, raw, tiny_backbone, out), files(out)
    assert {scene for scene in sources if cache.identity["scenes"][scene] != sources[scene]} == {"env101"}
    assert {name for name in after if after[name] == before[name] and name.startswith("env")} == {
        "env102-000.h5", "env102-001.h5", "env102.scene.json"
    }  # fmt: skip
    archives["cameras.csv"]["members_sha256"] = "another"
    assert all(source_digest(archives, scene) != sources[scene] for scene in sources)


def test_a_scene_without_frames_is_remembered_with_its_gaps(tiny, tiny_raw, tiny_backbone, tmp_path):
    out, refs = tmp_path / "out", refs_of(tiny, tiny_raw)
    with opened(tiny, tiny_backbone, out) as encoder:
        encoder.encode_scene("empty", [], "source", {"depth missing": 2})
        with pytest.raises(ValueError, match=r"no frame left to train on.*depth missing"):
            encoder.finish()
    with opened(tiny, tiny_backbone, out) as encoder:
        assert encoder.has_scene("empty", "source")
        encoder.encode_scene("env101", refs["env101"], None, {"rgb missing": 1})
        encoder.finish()
    cache = LatentCache(out)
    assert cache.index["dropped"] == {"depth missing": 2, "rgb missing": 1}
    assert cache.identity["scenes"] == {"env101": None} and len(cache) == 4


def test_two_encoders_do_not_share_a_folder(tiny, tiny_backbone, tmp_path):
    with (
        opened(tiny, tiny_backbone, tmp_path / "out"),
        pytest.raises(BlockingIOError, match="being written by another"),
        opened(tiny, tiny_backbone, tmp_path / "out"),
    ):
        pass


def test_a_size_that_does_not_suit_the_vae_is_refused(tiny, tiny_raw, tiny_backbone, tmp_path):
    with pytest.raises(ValueError, match="multiples of the VAE's 2, got 31 x 48"):
        run(tiny, tiny_raw, tiny_backbone, tmp_path / "out", height=31)


def test_nothing_left_is_refused_and_leaves_no_index(tiny, tiny_raw, tiny_backbone, tmp_path):
    raw = shutil.copytree(tiny_raw, tmp_path / "raw")
    for path in raw.rglob("*.png"):
        path.write_bytes(b"no png")
    with pytest.raises(ValueError, match=r"no frame left to train on.*unreadable"):
        run(tiny, raw, tiny_backbone, tmp_path / "out")
    assert not (tmp_path / "out" / "index.json").exists()


@pytest.mark.parametrize("views", [1, 3])
def test_processes_and_threads_give_the_same_bytes(tiny, tiny_raw, tiny_backbone, tmp_path, monkeypatch, views):
    threads = run(tiny, tiny_raw, tiny_backbone, tmp_path / "threads", views=views)
    opened = []
    monkeypatch.setattr(module, "WORTH_PROCESSES_BYTES", 0)
    monkeypatch.setattr(module, "num_cores", lambda: 3)
    monkeypatch.setattr(module, "open_processes", lambda number: opened.append(number) or open_processes(1))
    run(tiny, tiny_raw, tiny_backbone, tmp_path / "processes", views=views)
    assert opened == [3], "opened once for all shards"
    assert bytes_of(tmp_path / "processes") == bytes_of(threads.path)


def test_crops_follow_their_frames(tiny, tiny_raw, tiny_backbone, tiny_latents, tmp_path):
    whole, cache = LatentCache(tiny_latents), run(tiny, tiny_raw, tiny_backbone, tmp_path / "out", views=3)
    names = [whole[i].name for i in range(8)]
    assert [cache[i].name for i in range(24)] == [f"{name}{crop}" for name in names for crop in ("", "#1", "#2")]
    # Another batch, so the last bit may differ.
    for i in range(8):
        np.testing.assert_allclose(cache[3 * i].rgb_latent, whole[i].rgb_latent, atol=2e-3)
    focal_px = np.array([cache[i].intrinsics[0, 0] for i in range(24)]).reshape(8, 3)
    assert (focal_px[:, 1:] > focal_px[:, :1]).all()
    identity = cache.identity["encode"]
    assert (identity["views"], identity["min_crop"]) == (3, 0.5)


def test_a_name_that_looks_like_a_crop_s_is_refused(tiny, tiny_raw, tiny_backbone, tmp_path):
    ref = replace(refs_of(tiny, tiny_raw)["env101"][0], name="env101/a#1")
    with (
        opened(tiny, tiny_backbone, tmp_path, views=2) as encoder,
        pytest.raises(ValueError, match="frame env101/a#1: #"),
    ):
        encoder.encode_scene("env101", [ref], None)


def test_an_executor_encodes_whole_scenes_to_the_same_bytes(tiny, tiny_raw, tiny_backbone, tiny_latents, tmp_path):
    """Threads here; a cluster in tests/predict/test_dask_cluster.py."""
    args = (tiny.datasets[0], tiny.encode, tiny.log_depth, tiny_raw, tiny_backbone, tmp_path / "out")
    with ThreadPoolExecutor(2) as executor:
        encode(*args, executor=executor)
        assert bytes_of(tmp_path / "out") == bytes_of(tiny_latents)
        (tmp_path / "out" / "env102-001.h5").unlink()
        before = files(tmp_path / "out")["env101-000.h5"]
        encode(*args, executor=executor)
    assert bytes_of(tmp_path / "out") == bytes_of(tiny_latents) and files(tmp_path / "out")["env101-000.h5"] == before


class _ElsewhereExecutor(ThreadPoolExecutor):
    """Says that all is done and leaves nothing here."""

    def submit(self, function, made_by, job):
        return super().submit(lambda: (job[0], {"shards": []}))


def test_workers_that_write_to_another_disk_are_found_out(tiny, tiny_raw, tiny_backbone, tmp_path):
    args = (tiny.datasets[0], tiny.encode, tiny.log_depth, tiny_raw, tiny_backbone, tmp_path / "out")
    with _ElsewhereExecutor(1) as executor, pytest.raises(ValueError, match=r"scene env10\d was encoded elsewhere"):
        encode(*args, executor=executor)
    assert not (tmp_path / "out" / "index.json").exists()


def test_a_smaller_type_is_measured_and_kept_beside_the_identity(tiny, tiny_raw, tiny_backbone, tmp_path):
    cache = run(tiny, tiny_raw, tiny_backbone, tmp_path / "out", dtype="bfloat16", max_dtype_error=0.2)
    assert 0 < cache.index["measured"]["dtype_error"] < 0.2
    assert "max_dtype_error" not in cache.identity["encode"] and "dtype_error" not in cache.identity
    with pytest.raises(ValueError, match=r"encode\.dtype bfloat16 changes depth by .* expected at most .* 1e-06"):
        run(tiny, tiny_raw, tiny_backbone, tmp_path / "strict", dtype="bfloat16", max_dtype_error=1e-6)
    assert not (tmp_path / "strict").exists()


def test_what_is_not_a_number_is_no_small_error(tiny, tiny_backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "dtype_error", lambda *_: float("nan"))
    with (
        pytest.raises(ValueError, match="changes depth by nan"),
        opened(tiny, tiny_backbone, tmp_path, dtype="float16"),
    ):
        pass


def test_gaps_count_where_they_belong(tiny, tiny_raw, tiny_backbone, tmp_path):
    raw, out = shutil.copytree(tiny_raw, tmp_path / "raw"), tmp_path / "out"
    for scene in ("env101", "env901"):  # a test scene's gaps are no business of this cache
        (raw / scene / "Easy" / "P000" / "depth_left" / "000000_left_depth.npy").unlink()
    shutil.copytree(raw / "env101", raw / "env103")
    for path in (raw / "env103").rglob("*.npy"):
        path.unlink()
    shutil.copytree(raw / "env101", raw / "env5")  # in no split
    cache = run(tiny, raw, tiny_backbone, out)
    assert cache.index["dropped"] == {"depth missing": 5}
    records = {path.name: read_json(path)["gaps"] for path in out.glob("*.scene.json")}
    gaps = {"env101": {"depth missing": 1}, "env102": {}, "env103": {"depth missing": 4}}
    assert records == {f"{scene}.scene.json": reasons for scene, reasons in gaps.items()}


def test_a_full_disk_ends_the_run_and_the_next_goes_on(
    tiny, tiny_raw, tiny_backbone, tiny_latents, tmp_path, monkeypatch
):
    out, write_bytes, num_written = tmp_path / "out", Path.write_bytes, 0

    def write(path, content):
        nonlocal num_written
        num_written += path.name.endswith(".part")
        if num_written < 3:
            return write_bytes(path, content)
        write_bytes(path, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", write)
    with pytest.raises(OSError, match=f"disk full; what is finished is kept.*{out}") as caught:
        run(tiny, tiny_raw, tiny_backbone, out)
    assert caught.value.errno == errno.ENOSPC
    assert set(bytes_of(out)) == {"env101-000.h5", "env101-001.h5", "env101.scene.json"}
    monkeypatch.undo()
    before = files(out)
    run(tiny, tiny_raw, tiny_backbone, out)
    assert bytes_of(out) == bytes_of(tiny_latents)
    assert all(files(out)[name] == before[name] for name in before)


def _encode_project(project, raw, out):
    params = load_params(project / "params.yaml")
    encode(params.datasets[0], params.encode, params.log_depth, raw, project / "models" / "backbone", out)


def _is_over_or_has(child, out, num_shards):
    return not child.is_alive() or len(list(out.glob("*.h5"))) >= num_shards


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_bytes(project, tiny):
    """In processes that have torch already, killed -9; the last one is left alone."""
    raw, out, rng = project / "data" / "raw" / tiny.datasets[0], project / "out", np.random.default_rng()
    _encode_project(project, raw, project / "undisturbed")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["metricgold.encode.stage"])
    wanted = np.sort(rng.integers(0, 78, size=tries(30)))  # shards, of 80
    for want in wanted:
        child = context.Process(target=_encode_project, args=(project, raw, out))
        child.start()
        wait_until(partial(_is_over_or_has, child, out, want), every_s=0.001)
        time.sleep(rng.uniform(0, 0.03))
        child.kill()
        child.join()
    assert not (out / "index.json").exists(), "the kills came too late to mean anything"
    _encode_project(project, raw, out)
    assert bytes_of(out) == bytes_of(project / "undisturbed")


@pytest.mark.slow
def test_two_encoders_started_by_mistake(project, tiny):
    """`metricgold encode` twice, side by side: one works, the other says why not, the cache is right."""
    command = [sys.executable, "-m", "metricgold.cli", "encode", tiny.datasets[0]]
    out = project / "data" / "latents" / tiny.datasets[0]
    both = [subprocess.Popen(command, cwd=project, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [one.communicate()[1] for one in both]
    assert sorted(one.returncode for one in both) == [0, 1]
    refused = said[[one.returncode for one in both].index(1)]
    assert "is being written by another process" in refused and "Traceback" not in refused
    _encode_project(project, project / "data" / "raw" / tiny.datasets[0], project / "undisturbed")
    assert bytes_of(out) == bytes_of(project / "undisturbed")
