"""A whole tiny run, made once a session: raw frames -> backbone -> latents -> trained pipeline."""

import os

# Two test workers share two cores: one thread each, or they wait for each other. Set before torch starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from metricgold.params.sections import Params

# A deadline measures how busy the machine is: the first example pays for imports.
settings.register_profile("metricgold", deadline=None)
settings.load_profile("metricgold")

HEIGHT, WIDTH = 32, 48
DATASET = "tartanair-synthetic"

TINY = Params.model_validate(
    {
        "datasets": [DATASET],
        "backbone": {
            "stand_in": {
                "vae_channels": [8, 16],
                "unet_channels": [16, 32],
                "vae_steps": 6,
                "unet_steps": 2,
                "vae_batch_size": 4,
                "vae_crop": 16,
                "num_frames": 6,
                "text_width": 8,
            }
        },
        "encode": {"height": HEIGHT, "width": WIDTH, "batch_size": 4, "frames_per_shard": 3},
        "train": {
            "num_steps": 12,
            "batch_size": 4,
            "micro_batch_size": 2,
            "lr": 1e-3,
            "warmup_steps": 2,
            "decay_steps": 12,
            "checkpoint_every": 4,
            "log_every": 2,
            "ema_decay": 0.9,
        },
        "evaluate": {"num_inference_steps": 2, "ensemble_size": 2},
        "predict": {"num_inference_steps": 2, "ensemble_size": 3},
    }
)


MANIFEST = """\
name: tartanair-synthetic
role: train
title: Sloping ground under a sky
source: file://nowhere
licence: {name: none, url: "file://nowhere", terms: made for tests}
citation: none
depth: {unit: m, kind: planar, invalid: none}
mirrors: ["file://nowhere"]
checksums: {path: SHA256SUMS, algorithm: sha256}
splits:
  scenes:
    train: ["env1*"]
    test: ["env9*"]
"""


def write_tartanair(raw: Path, frames_per_scene: int = 4) -> Path:
    """A raw TartanAir folder: sloping ground under a sky, two training environments and one for tests."""
    for seed, scene in enumerate(("env101", "env102", "env901")):
        rng = np.random.default_rng(seed)
        folder = raw / scene / "Easy" / "P000"
        (folder / "image_left").mkdir(parents=True)
        (folder / "depth_left").mkdir()
        for i in range(frames_per_scene):
            rows = np.arange(HEIGHT)[:, None] + np.zeros((1, WIDTH))
            horizon = rng.integers(8, 14)
            depth_m = np.where(rows > horizon, 40.0 / np.maximum(rows - horizon, 1), 4000.0).astype(np.float32)
            grey = np.where(rows > horizon, 220 - 120 / np.sqrt(np.minimum(depth_m, 100)), 60)
            rgb = np.stack([grey, grey * 0.9, 255 - grey], axis=-1) + rng.normal(0, 4, (HEIGHT, WIDTH, 3))
            rgb = Image.fromarray(rgb.clip(0, 255).astype(np.uint8))
            rgb.save(folder / "image_left" / f"{i:06d}_left.png")
            np.save(folder / "depth_left" / f"{i:06d}_left_depth.npy", depth_m)
    (raw / "manifest.yaml").write_text(MANIFEST)
    return raw


PIXELS = TINY.backbone.model_copy(
    update={"stand_in": TINY.backbone.stand_in.model_copy(update={"vae": "identity", "latent_channels": 3})}
)
HALF_ULP = 2.0**-12  # float16's largest rounding error in [-1, 1]


@pytest.fixture(scope="session")
def tiny() -> Params:
    return TINY


@pytest.fixture(scope="session")
def tiny_raw(tmp_path_factory) -> Path:
    return write_tartanair(tmp_path_factory.mktemp("raw"))


@pytest.fixture(scope="session")
def mixed_raw(tmp_path_factory, tiny_raw) -> Path:
    """The same with portraits: of one training environment every other frame is turned, of the other all are."""
    import shutil

    raw = shutil.copytree(tiny_raw, tmp_path_factory.mktemp("mixed") / "raw")
    for scene, step in (("env101", 2), ("env102", 1)):
        folder = raw / scene / "Easy" / "P000"
        for path in sorted((folder / "image_left").iterdir())[::step]:
            Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path)
        for path in sorted((folder / "depth_left").iterdir())[::step]:
            np.save(path, np.rot90(np.load(path)))
    return raw


@pytest.fixture(scope="session")
def mixed_latents(tmp_path_factory, mixed_raw, tiny_backbone) -> Path:
    """A cache of two sizes: two landscapes, six portraits."""
    from metricgold.encode.stage import encode

    out = tmp_path_factory.mktemp("mixed") / DATASET
    return encode(DATASET, TINY.encode, TINY.log_depth, mixed_raw, tiny_backbone, out).parent


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory, tiny_raw) -> Path:
    from metricgold.model.backbone import prepare_backbone

    out = tmp_path_factory.mktemp("models") / "backbone"
    return prepare_backbone(TINY.backbone, TINY.log_depth, {DATASET: tiny_raw}, out)


@pytest.fixture(scope="session")
def pixels_backbone(tmp_path_factory, tiny_raw) -> Path:
    """Its VAE is the identity: latents are the image itself, and a cache holds encoded depth itself."""
    from metricgold.model.backbone import prepare_backbone

    out = tmp_path_factory.mktemp("pixels") / "backbone"
    return prepare_backbone(PIXELS, TINY.log_depth, {DATASET: tiny_raw}, out)


@pytest.fixture(scope="session")
def tiny_latents(tmp_path_factory, tiny_raw, tiny_backbone) -> Path:
    from metricgold.encode.stage import encode

    out = tmp_path_factory.mktemp("latents") / DATASET
    return encode(DATASET, TINY.encode, TINY.log_depth, tiny_raw, tiny_backbone, out).parent


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory, tiny_latents, tiny_backbone) -> Path:
    from metricgold.train.stage import train

    out = tmp_path_factory.mktemp("models") / "metricgold"
    return train(TINY.train, TINY.log_depth, {DATASET: tiny_latents}, tiny_backbone, out)


@pytest.fixture
def project(tmp_path, tiny_raw, tiny_backbone, tiny_latents) -> Path:
    """A project folder in which `metricgold encode` and `metricgold train` run; many shards, many steps."""
    import shutil

    import yaml

    values = TINY.model_dump(mode="json")
    values["encode"]["frames_per_shard"] = 1
    values["train"] |= {"num_steps": 80, "decay_steps": 80, "checkpoint_every": 3}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    write_tartanair(tmp_path / "data" / "raw" / DATASET, frames_per_scene=40)
    shutil.copytree(tiny_backbone, tmp_path / "models" / "backbone")
    shutil.copytree(tiny_latents, tmp_path / "data" / "latents" / DATASET)
    return tmp_path
