"""Scenes encoded by a Dask cluster on this machine: two workers over one, a thread each."""

from concurrent.futures import wait
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from metricgold.cluster import open_executor
from metricgold.encode import encode
from metricgold.params import Encode, LogDepthRange
from metricgold.storage import remove

from . import CannotRun, least_seconds

DATASET = "tartanair-synthetic"
NUM_SCENES, FRAMES_PER_SCENE = 16, 6
HEIGHT, WIDTH = 120, 160
MANIFEST = """\
{name: tartanair-synthetic, role: train, title: Noise, source: "file://nowhere", citation: none,
 licence: {name: none, url: "file://nowhere", terms: made for benchmarks},
 depth: {unit: m, kind: planar, invalid: none}, mirrors: ["file://nowhere"],
 checksums: {path: SHA256SUMS, algorithm: sha256}, splits: {scenes: {train: ["*"]}}}
"""


def speedup(folder: Path) -> dict[str, float]:
    """Both clusters run all the time, with torch loaded, and take turns; the work includes opening the cache."""
    if not find_spec("distributed"):
        raise CannotRun("the extra dask is not installed")
    _write_raw(folder / "raw")
    _write_vae(folder / "backbone")
    params = Encode(height=HEIGHT, width=WIDTH, batch_size=FRAMES_PER_SCENE)

    def run(executor) -> None:
        remove(folder / "out")
        out = folder / "out" / DATASET
        encode(DATASET, params, LogDepthRange(), folder / "raw", folder / "backbone", out, executor=executor)

    with open_executor("local:1") as one, open_executor("local:2") as two:
        for executor in (one, two):
            wait([executor.submit(_warm_up, number) for number in range(4)])
        one_s, two_s = least_seconds(lambda: run(one), lambda: run(two), rounds=2)
    return {"dask.speedup_2": one_s / two_s, "dask.frames_per_s": NUM_SCENES * FRAMES_PER_SCENE / two_s}


def _warm_up(_number: int) -> None:
    import metricgold.encode  # noqa: F401


def _write_raw(raw: Path) -> None:
    rng = np.random.default_rng(0)
    for scene in range(NUM_SCENES):
        trajectory = raw / f"env{scene:02d}" / "Easy" / "P000"
        for folder in ("image_left", "depth_left"):
            (trajectory / folder).mkdir(parents=True)
        for i in range(FRAMES_PER_SCENE):
            rgb = rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            Image.fromarray(rgb).save(trajectory / "image_left" / f"{i:06d}_left.png")
            depth_m = rng.uniform(1, 50, (HEIGHT, WIDTH)).astype(np.float32)
            np.save(trajectory / "depth_left" / f"{i:06d}_left_depth.npy", depth_m)
    (raw / "manifest.yaml").write_text(MANIFEST)


def _write_vae(backbone: Path) -> None:
    from diffusers import AutoencoderKL

    kinds = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    vae = AutoencoderKL(**kinds, block_out_channels=[32, 32, 64, 64], latent_channels=4)
    vae.save_pretrained(backbone / "vae")
