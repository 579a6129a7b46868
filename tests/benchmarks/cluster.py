"""Scenes encoded and photographs predicted by a Dask cluster on this machine: two workers over one, a thread each."""

from concurrent.futures import wait
from functools import partial
from importlib.util import find_spec
from itertools import count
from pathlib import Path

import numpy as np
from PIL import Image

from metricgold.encode.stage import encode
from metricgold.params.sections import Encode, LogDepthRange, Predict
from metricgold.predict.dask_cluster import open_client, open_executor
from metricgold.predict.dask_slices import predict_on
from metricgold.predict.stage import predict_all
from metricgold.storage.files import remove

from . import CannotRun, least_seconds

DATASET = "tartanair-synthetic"
NUM_SCENES, FRAMES_PER_SCENE = 16, 6
HEIGHT, WIDTH = 120, 160
NUM_PREDICTED = 128  # in slices of 16 and more
SEEN = 64  # pixels a side that the model sees
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


def predict_speedup(folder: Path) -> dict[str, float]:
    """A job bound by its model; both clusters have it loaded after the first round, which does not count."""
    if not find_spec("distributed"):
        raise CannotRun("the extra dask is not installed")
    source, model, number = _write_photographs(folder / "in"), _write_pipeline(folder / "model"), count()
    params = Predict(num_inference_steps=4, ensemble_size=1, batch_size=8, outputs=["log-png"], gallery=0)

    def run(client) -> None:
        run_entries, out = partial(predict_on, client), folder / f"out{next(number)}"
        predict_all(params, model, str(source), str(out), model_name="random", run_entries=run_entries)

    with open_client("local:1") as one, open_client("local:2") as two:
        one_s, two_s = least_seconds(lambda: run(one), lambda: run(two), rounds=2)
    return {"dask.predict_speedup_2": one_s / two_s, "dask.predict_images_per_s": NUM_PREDICTED / two_s}


def _warm_up(_number: int) -> None:
    import metricgold.encode.stage  # noqa: F401


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


def _write_photographs(folder: Path) -> Path:
    """So small that reading and writing them is next to nothing."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for n in range(NUM_PREDICTED):
        Image.fromarray(rng.integers(0, 255, (SEEN, SEEN, 3), dtype=np.uint8)).save(folder / f"{n:02d}.png")
    return folder


def _write_pipeline(folder: Path) -> Path:
    """Random weights: 0.07 s an image on one thread."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

    from metricgold.model.pipeline import EmptyPrompt, MetricGoldPipeline

    torch.manual_seed(0)
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    vae = AutoencoderKL(**kinds, block_out_channels=(16, 16, 32), norm_num_groups=8)
    unet = UNet2DConditionModel(
        in_channels=8,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(64, 128),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=8,
    )
    scheduler = DDIMScheduler(prediction_type="v_prediction")
    pipe = MetricGoldPipeline(unet, vae, scheduler, EmptyPrompt(2, 32), 0.5, 80.0, SEEN, SEEN)
    pipe.save_pretrained(folder)
    return folder
