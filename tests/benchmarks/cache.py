"""The latent cache at 480 x 640: random reads, opening, and what it saves in every training step."""

from pathlib import Path

import numpy as np

from metricgold.datasets.hypersim import read_frame
from metricgold.latents import LatentFrame, encode_rgb, fit_frame, rgb_to_tensor
from metricgold.shards import INDEX, LatentCache, shard_path, write_index, write_record, write_shard
from metricgold.storage import write_json

from . import least_seconds
from .frames import write_frame

HEIGHT, WIDTH, FACTOR = 480, 640, 8
NUM_SHARDS, FRAMES_PER_SHARD = 4, 256


def reading(folder: Path) -> dict[str, float]:
    """The shards were just written, so the kernel has them in memory; a disk is not measured."""
    cache = _write_cache(folder / "latents")
    order = np.random.default_rng(1).permutation(len(cache))
    (seconds,) = least_seconds(lambda: [cache[i] for i in order], rounds=3)
    samples_per_s = len(cache) / seconds
    encoding_s = _encoding_seconds(folder / "raw")
    return {"cache.samples_per_s_core": samples_per_s, "cache.speedup_vs_encode": encoding_s * samples_per_s}


def _write_cache(folder: Path) -> LatentCache:
    rng = np.random.default_rng(0)
    size = (HEIGHT // FACTOR, WIDTH // FACTOR)
    records = {}
    for scene in (f"scene{number}" for number in range(NUM_SHARDS)):
        latents = rng.standard_normal((FRAMES_PER_SHARD, 2, 4, *size), np.float32).astype(np.float16)
        frames = [
            LatentFrame(rgb, depth, np.ones(size, bool), np.eye(3), scene, f"{scene}/{n:04d}")
            for n, (rgb, depth) in enumerate(latents)
        ]
        shard = write_shard(shard_path(folder, scene, 0), frames, [], {})
        records[scene] = write_record(folder, scene, {"source": None}, {}, [shard])
    write_index(folder, {}, records, {})
    return LatentCache(folder)


def _encoding_seconds(folder: Path) -> float:
    """Decode a HyperSim frame and encode its image with a VAE of SD2's size, in float32 on one core.

    Without the second encoding, of the depth, so the saving is understated.
    """
    import torch
    from diffusers import AutoencoderKL

    torch.set_num_threads(1)
    ref = write_frame(folder)
    kinds = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    vae = AutoencoderKL(**kinds, block_out_channels=[128, 256, 512, 512], layers_per_block=2, latent_channels=4)
    vae.eval()

    @torch.no_grad()
    def encode() -> None:
        frame = fit_frame(read_frame(ref), HEIGHT, WIDTH)
        encode_rgb(vae, rgb_to_tensor(np.stack([frame.rgb])))

    return least_seconds(encode, rounds=1)[0]


def opening(folder: Path) -> dict[str, float]:
    """Of an index over 400,000 samples; shards are opened when they are read."""
    shards = [
        {
            "scene": f"scene{number}",
            "file": shard_path(folder, f"scene{number}", 0).name,
            "num_frames": FRAMES_PER_SHARD,
            "sha256": f"{number:064x}",
        }
        for number in range(-(-400_000 // FRAMES_PER_SHARD))
    ]
    num_frames = FRAMES_PER_SHARD * len(shards)
    write_json(folder / INDEX, {"identity": {}, "num_frames": num_frames, "dropped": {}, "shards": shards})
    (seconds,) = least_seconds(lambda: len(LatentCache(folder)), rounds=5)
    return {"cache.index_open_s": seconds}
