"""Frames to latents: what is kept, what is dropped and why, and what survives a kill."""

import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from metricgold.backbone import load_vae
from metricgold.datasets import list_frames, open_dataset
from metricgold.encode import encode, open_encoder, source_digest
from metricgold.latents import encode_log_depth, encode_rgb, filled_log_depth, rgb_to_tensor
from metricgold.log_depth import LogDepth
from metricgold.params import load_params
from metricgold.shards import LatentCache
from metricgold.storage import digest_folder, write_json


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
    assert cache.index["dropped"] == {"unreadable": 1, "depth missing": 1, "no valid latent": 1}
    assert "000001_left.png" in caplog.text


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
    for scene in order:
        one = shutil.copytree(raw, tmp_path / "one")
        for other in {*order, "env901"} - {scene}:
            shutil.rmtree(one / other)
        with opened(tiny, tiny_backbone, out) as encoder:
            done = [name for name in order if encoder.has_scene(name, None)]
            assert done == list(order[: order.index(scene)])
            encoder.encode_scene(scene, refs_of(tiny, one)[scene][::-1], None)
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
    run(tiny, tiny_raw, tiny_backbone, out)
    before, damaged = files(out), out / "env102-000.h5"
    content = bytearray(damaged.read_bytes())
    content[-100] ^= 1
    damaged.write_bytes(content)
    with opened(tiny, tiny_backbone, out) as encoder:
        assert encoder.has_scene("env101", None) and not encoder.has_scene("env102", None)
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
    (out / ".env101-001.h5.1.part").write_bytes(b"half a shard")
    (out / "env999-000.h5").write_bytes(b"of another run")
    run(tiny, tiny_raw, tiny_backbone, out)
    assert bytes_of(out) == whole and files(out)["env101-000.h5"] == kept


def test_other_params_or_another_source_encode_anew(tiny, tiny_raw, tiny_backbone, tmp_path):
    out = tmp_path / "out"
    digest = run(tiny, tiny_raw, tiny_backbone, out).digest
    before = files(out)
    assert run(tiny, tiny_raw, tiny_backbone, out, version=2).digest != digest
    assert not {name: stat for name, stat in files(out).items() if before.get(name) == stat}
    with opened(tiny, tiny_backbone, out, version=2) as encoder:
        assert encoder.has_scene("env101", None) and not encoder.has_scene("env101", "another archive")
    with opened(tiny, tiny_backbone, out) as encoder:
        assert not list(out.iterdir()), "what other params made takes room and is of no use"
        assert not encoder.has_scene("env101", None)


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


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_bytes(project, tiny):
    """`metricgold encode` in child processes, killed -9; the last one is left alone."""
    out, rng = project / "data" / "latents" / tiny.datasets[0], np.random.default_rng()
    command = [sys.executable, "-m", "metricgold.cli", "encode", tiny.datasets[0]]
    params = load_params(project / "params.yaml")
    raw = project / "data" / "raw" / tiny.datasets[0]
    encode(tiny.datasets[0], params.encode, params.log_depth, raw, project / "models" / "backbone", out)
    undisturbed = digest_folder(out)
    shutil.rmtree(out)
    for want in np.sort(rng.integers(0, 70, size=3)):
        child = subprocess.Popen(command, cwd=project, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while child.poll() is None and len(list(out.glob("*.h5"))) < want:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.05))
        child.kill()
        child.wait()
    assert not (out / "index.json").exists(), "the kills came too late to mean anything"
    subprocess.run(command, cwd=project, check=True, capture_output=True)
    assert digest_folder(out) == undisturbed
