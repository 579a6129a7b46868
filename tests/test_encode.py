"""Frames to latents: what is kept, what is dropped and why, and what survives a kill."""

import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from metricgold.backbone import load_vae
from metricgold.datasets import open_dataset
from metricgold.encode import encode
from metricgold.latents import encode_log_depth, encode_rgb, filled_log_depth, rgb_to_tensor
from metricgold.log_depth import LogDepth
from metricgold.params import load_params
from metricgold.shards import LatentCache
from metricgold.storage import digest_folder


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
        assert not cache[i].valid_mask[0].any() and cache[i].valid_mask[-1].all()
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


def test_whole_shards_are_kept_and_foreign_ones_are_not(tiny, tiny_raw, tiny_backbone, tmp_path):
    out = tmp_path / "out"
    digest = run(tiny, tiny_raw, tiny_backbone, out).digest
    kept, lost = out / "shard-00000.h5", out / "shard-00001.h5"
    before = kept.stat().st_mtime_ns
    lost.unlink()
    (out / "shard-00009.h5").write_bytes(b"of another run")
    assert run(tiny, tiny_raw, tiny_backbone, out).digest == digest
    assert kept.stat().st_mtime_ns == before and lost.exists() and not (out / "shard-00009.h5").exists()
    assert run(tiny, tiny_raw, tiny_backbone, out, version=2).digest != digest
    assert kept.stat().st_mtime_ns != before


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
        while child.poll() is None and len(list(out.glob("shard-*"))) < want:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.05))
        child.kill()
        child.wait()
    assert not (out / "index.json").exists(), "the kills came too late to mean anything"
    subprocess.run(command, cwd=project, check=True, capture_output=True)
    assert digest_folder(out) == undisturbed
