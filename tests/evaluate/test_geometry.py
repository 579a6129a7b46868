"""Encode, validation, evaluation and batch jobs show the network the same pixels of a frame, at the same focal length.

With as many levels as Stable Diffusion v2 has, in VAE and U-Net, and few channels: an eighth of its frames' sides.
"""

import tarfile
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image

from metricgold import MetricGoldPipeline
from metricgold.datasets.frame import Frame
from metricgold.datasets.readers import list_frames, read_frame
from metricgold.datasets.synthetic.synthesize import RECIPES
from metricgold.encode.crops import read_crops
from metricgold.evaluate import stage as evaluation, validation
from metricgold.evaluate.baselines import Baselines
from metricgold.evaluate.depth_ranges import ByDepth, range_edges_m
from metricgold.images.camera import pinhole, rays_from_intrinsics
from metricgold.images.network_grid import TrainingSize
from metricgold.model.backbone import EmptyPrompt
from metricgold.model.parts import SCHEDULE, widen_conv_in
from metricgold.model.stand_in import new_unet, new_vae
from metricgold.params.sections import Encode, Evaluate, Predict, StandIn, Synthesize, Validation

SIZE = TrainingSize(120, 160, 8)  # whose latents, 15 x 20, do not halve three times either
SHAPES = {"4:3": (192, 256), "16:9": (108, 192), "3:4": (128, 96), "1:1": (125, 125), "KITTI": (75, 248)}


@pytest.fixture(scope="module")
def pipe():
    torch.manual_seed(0)
    params = StandIn(vae_channels=[8] * 4, unet_channels=[8] * 4, text_width=8)
    scheduler = DDIMScheduler(**SCHEDULE)
    prompt, unet = EmptyPrompt(2, 8), widen_conv_in(new_unet(params), params.latent_channels)
    aspects = [min(w / h for h, w in SHAPES.values()), max(w / h for h, w in SHAPES.values())]  # of what training saw
    numbers = {"near_m": 0.5, "far_m": 80.0, "processing_height": SIZE.height, "processing_width": SIZE.width}
    return MetricGoldPipeline(unet, new_vae(params), scheduler, prompt, **numbers, trained_aspects=aspects)


@pytest.fixture
def seen(pipe, monkeypatch):
    """What the U-Net's VAE is shown of photographs, in order."""
    shown, run_members = [], MetricGoldPipeline.run_members
    monkeypatch.setattr(
        MetricGoldPipeline,
        "run_members",
        lambda self, rgb, *options: shown.extend(rgb) or run_members(self, rgb, *options),
    )
    return shown


def make_frame(height, width):
    rng = np.random.default_rng(height)
    rgb = np.asarray(Image.fromarray(rng.integers(0, 255, (9, 13, 3), dtype=np.uint8)).resize((width, height)))
    depth_m = np.broadcast_to(np.geomspace(40, 2, height)[:, None], (height, width))
    return Frame.from_arrays(rgb, depth_m, depth_m < 39, pinhole(0.8 * max(height, width), height, width), "s", "n")


def encoded(frame, monkeypatch):
    """A frame as `encode` hands it to the VAE."""
    monkeypatch.setattr("metricgold.encode.crops.read_frame", lambda ref: frame)
    (one,) = read_crops(SimpleNamespace(), SIZE, Encode(height=SIZE.height, width=SIZE.width))
    return one


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_all_see_what_training_saw(pipe, seen, monkeypatch, tmp_path, shape):
    frame = make_frame(*shape)
    trained = encoded(frame, monkeypatch)
    baselines = Baselines(5.0, np.full((2, 2), 5.0))
    measured = evaluation.Measured("d", ByDepth(range_edges_m(pipe.log_depth)), [])
    options = {"num_inference_steps": 1, "ensemble_size": 1}
    list(evaluation.score([frame], Evaluate(**options), pipe, baselines, measured))
    validation._predict(pipe, [frame], Validation())
    Image.fromarray(frame.rgb).save(tmp_path / "photo.png")
    pipe(tmp_path / "photo.png", **options)
    pipe(Image.fromarray(frame.rgb), **options)
    assert len(seen) == 4
    for rgb in seen:
        np.testing.assert_array_equal(rgb, trained.rgb)
    grid = pipe.grid(*shape)
    np.testing.assert_array_equal(grid.intrinsics(frame.intrinsics), trained.intrinsics)
    # Evenly scaled, to the area of training: the focal length follows from the frame alone.
    scale = (SIZE.height * SIZE.width / (shape[0] * shape[1])) ** 0.5
    np.testing.assert_allclose(trained.intrinsics[[0, 1], [0, 1]], scale * frame.intrinsics[[0, 1], [0, 1]])
    assert pipe.processing_size(*shape) == trained.rgb.shape[:2]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_batch_job_sees_what_training_saw(pipe, seen, monkeypatch, tmp_path, shape):
    from metricgold.predict.entries import predict_entries
    from metricgold.predict.job import BatchJob

    frame = make_frame(*shape)
    (tmp_path / "in").mkdir()
    Image.fromarray(frame.rgb).save(tmp_path / "in" / "a.png")
    params = Predict(num_inference_steps=1, ensemble_size=1, outputs=["json"])
    job = BatchJob(params, str(tmp_path / "in"), str(tmp_path / "out"), tmp_path, "model", "0" * 64)
    (row,) = predict_entries(job, job.open_source().entries(), pipe=pipe)
    assert row["status"] == "done" and len(seen) == 1
    np.testing.assert_array_equal(seen[0], encoded(frame, monkeypatch).rgb)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_vae_floor_sees_the_depth_of_training(pipe, monkeypatch, shape):
    frame = make_frame(*shape)
    frame = replace(frame, valid_mask=np.ones(shape, bool), planar_depth_m=np.maximum(frame.planar_depth_m, 1))
    shown = []
    monkeypatch.setattr(
        "metricgold.model.pipeline.encode_log_depth",
        lambda vae, d, encoding: shown.append(d) or torch.zeros(len(d), 4, *(side // 8 for side in d.shape[1:])),
    )
    assert pipe.encode_decode_depth(frame.planar_depth_m[None]).shape == (1, *shape)
    trained = encoded(frame, monkeypatch)
    np.testing.assert_allclose(shown[0][0], pipe.log_depth.normalize(trained.planar_depth_m), rtol=1e-6)


def test_a_world_at_kitti_s_aspect_is_whole_in_training_and_prediction(pipe, seen, monkeypatch, tmp_path):
    """Rendered and packed as Virtual KITTI: once the middle 4:3 was cut out and enlarged for training alone."""
    raw = render_vkitti2(tmp_path, height=75, width=248)
    refs = list_frames("vkitti2-synthetic", raw).frames[:3]
    for ref in refs:
        frame = read_frame(ref)
        (trained,) = read_crops(ref, SIZE, Encode(height=SIZE.height, width=SIZE.width))
        pipe(frame.rgb, num_inference_steps=1, ensemble_size=1)
        np.testing.assert_array_equal(seen[-1], trained.rgb)
        # The outermost rays of the frame are there: nothing of it was cut away.
        rays, of_frame = (rays_from_intrinsics(one.intrinsics, *one.valid_mask.shape) for one in (trained, frame))
        assert (rays.min(axis=(0, 1)) <= of_frame.min(axis=(0, 1))).all()
        assert (rays.max(axis=(0, 1)) >= of_frame.max(axis=(0, 1))).all()
        # And each pixel has the depth that the frame has where it looks.
        x, y, _ = np.moveaxis(rays @ frame.intrinsics.T, -1, 0)
        inside = (x > 0) & (x < 248) & (y > 0) & (y < 75)
        rows, columns = y[inside].astype(int), x[inside].astype(int)
        np.testing.assert_array_equal(trained.planar_depth_m[inside], frame.planar_depth_m[rows, columns])


def render_vkitti2(folder, height, width):
    """A raw folder with one scene of a rendered Virtual KITTI."""
    params = Synthesize(height=height, width=width, num_train_scenes=1, num_test_scenes=1, frames_per_scene=3)
    (folder / "archives").mkdir()
    recipe = RECIPES["vkitti2-synthetic"]
    recipe.write(recipe, params, folder / "archives")
    for path in (folder / "archives").glob("*.tar*"):
        with tarfile.open(path) as archive:
            archive.extractall(folder / "raw", filter="data")
    return folder / "raw"
