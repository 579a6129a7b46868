"""The latent cache at 480 x 640: random reads, opening, and what it saves in every training step."""

from pathlib import Path

import numpy as np

from metricgold.datasets.frame import fit_frame
from metricgold.datasets.hypersim import read_frame
from metricgold.images.network_grid import TrainingSize
from metricgold.model.vae import encode_rgb, rgb_to_tensor
from metricgold.shards import (
    FORMAT,
    INDEX,
    LatentCache,
    LatentFrame,
    shard_path,
    write_index,
    write_record,
    write_shard,
)
from metricgold.storage.files import write_json

from . import least_seconds
from .containers import make_shards
from .frames import write_frame

HEIGHT, WIDTH, FACTOR = 480, 640, 8
NUM_SHARDS, FRAMES_PER_SHARD = 600, 4  # far more than are kept open
NUM_INDEXED = 400_000
FRAMES_PER_INDEXED_SHARD = 256


def reading(folder: Path) -> dict[str, float]:
    """The shards were just written, so the kernel has them in memory; a disk is not measured.

    They are many, so nearly every read opens one; the figures without and with pixel masks are of the same reads.
    """
    cache = _write_cache(folder / "latents")
    order = np.random.default_rng(1).permutation(len(cache)).tolist()
    latents_s, pixels_s = least_seconds(
        lambda: [cache[i] for i in order],
        lambda: [(cache[i], cache.valid_mask(i)) for i in order],
        rounds=3,
    )
    samples_per_s = len(cache) / latents_s
    return {
        "cache.samples_per_s_core": samples_per_s,
        "cache.samples_per_s_core_with_pixel_masks": len(cache) / pixels_s,
        "cache.speedup_vs_encode": _encoding_seconds(folder / "raw") * samples_per_s,
    }


def _write_cache(folder: Path) -> LatentCache:
    records = {}
    (samples,) = make_shards(1, FRAMES_PER_SHARD)
    for scene in (f"scene{number}" for number in range(NUM_SHARDS)):
        frames = [
            LatentFrame(
                one.rgb_latent, one.depth_latent, one.latent_mask, one.intrinsics, scene, one.name, one.valid_mask
            )
            for one in samples
        ]
        shard = write_shard(shard_path(folder, scene, 0), frames, [], {})
        records[scene] = write_record(folder, scene, {"source": None}, {}, [shard])
    write_index(folder, {}, records)
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
        frame = read_frame(ref)
        frame = fit_frame(frame, TrainingSize(HEIGHT, WIDTH, FACTOR).grid(*frame.valid_mask.shape))
        encode_rgb(vae, rgb_to_tensor(np.stack([frame.rgb])))

    return least_seconds(encode, rounds=1)[0]


def opening(folder: Path) -> dict[str, float]:
    """Of an index over 400,000 samples; shards are opened when they are read."""
    shards = [
        {
            "scene": f"scene{number}",
            "file": shard_path(folder, f"scene{number}", 0).name,
            "num_frames": FRAMES_PER_INDEXED_SHARD,
            "sha256": f"{number:064x}",
        }
        for number in range(-(-NUM_INDEXED // FRAMES_PER_INDEXED_SHARD))
    ]
    index = {"format": FORMAT, "identity": {}, "dropped": {}, "shards": shards}
    write_json(folder / INDEX, index | {"num_frames": FRAMES_PER_INDEXED_SHARD * len(shards)})
    (seconds,) = least_seconds(lambda: len(LatentCache(folder)), rounds=5)
    return {"cache.index_open_s": seconds}
