"""train.camera, from latents to metres: what the network is told of the lens, what a folder holds, what a scale is."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from metricgold import MetricGoldPipeline
from metricgold.datasets import Frame, fit_frame
from metricgold.encode.crops import crop_frame
from metricgold.encode.stage import encode
from metricgold.images import TrainingSize, pinhole
from metricgold.model.camera_token import CameraToken, new_camera_token
from metricgold.model.pipeline import load_pipeline
from metricgold.params.sections import CanonicalRange
from metricgold.shards import LatentCache
from metricgold.storage.files import digest_folder
from metricgold.train.stage import train

ONE_STEP = {"objective": "one-step", "loss": "l1", "num_steps": 8, "decay_steps": 8}
CANONICAL = CanonicalRange(near_m=0.3, far_m=90.0)
SIZE = TrainingSize(32, 48, 8)


@pytest.fixture(scope="module")
def canonical_latents(tiny, tiny_raw, tiny_backbone, tmp_path_factory):
    out = tmp_path_factory.mktemp("canonical") / tiny.datasets[0]
    return encode(tiny.datasets[0], tiny.encode, CANONICAL, tiny_raw, tiny_backbone, out).parent


@pytest.fixture(scope="module")
def trained(tiny, tiny_latents, canonical_latents, tiny_backbone, tmp_path_factory):
    """A function from camera to the checkpoint folder, trained once."""
    made = {}

    def model_of(camera):
        if camera not in made:
            is_canonical = "canonical" in camera
            cache = canonical_latents if is_canonical else tiny_latents
            params = tiny.train.model_validate(tiny.train.model_dump() | ONE_STEP | {"camera": camera})
            out = tmp_path_factory.mktemp("camera") / "model"
            range_m = CANONICAL if is_canonical else tiny.log_depth
            made[camera] = train(params, range_m, {tiny.datasets[0]: cache}, tiny_backbone, out)
        return made[camera]

    return model_of


def picture(height=32, width=48, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("camera", ["none", "canonical", "token", "canonical+token"])
def test_every_camera_trains_and_its_folder_says_which(trained, camera):
    folder = trained(camera)
    pipe = MetricGoldPipeline.from_pretrained(folder)
    assert pipe.config.camera == camera and pipe.needs_camera == ("canonical" in camera)
    assert (folder / "camera_token").is_dir() == ("token" in camera)
    assert pipe.config.near_m == (0.3 if "canonical" in camera else 0.5)
    prediction = pipe(picture(), focal_px=60.0)
    assert np.isfinite(prediction.planar_depth_m).all() and prediction.focal_from == "argument"
    assert set(load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")) == set(
        load_file(trained("none") / "unet" / "diffusion_pytorch_model.safetensors")
    )
    if "token" in camera:
        told, before = pipe.camera_token.state_dict(), new_camera_token(32, 0).state_dict()
        assert all(not torch.equal(told[name], before[name]) for name in told), "all of it learns, unknown too"


@pytest.mark.parametrize("camera", ["token", "canonical"])
def test_a_run_with_a_camera_resumes_to_the_same_bytes(
    trained, tiny, canonical_latents, tiny_latents, tiny_backbone, camera
):
    folder = trained(camera)
    digest, state = digest_folder(folder), folder.with_name("model.state")
    shutil.rmtree(state / "step-000008")
    shutil.rmtree(folder)
    params = tiny.train.model_validate(tiny.train.model_dump() | ONE_STEP | {"camera": camera})
    cache, range_m = (tiny_latents, tiny.log_depth) if camera == "token" else (canonical_latents, CANONICAL)
    train(params, range_m, {tiny.datasets[0]: cache}, tiny_backbone, folder)
    assert digest_folder(folder) == digest


def test_a_folder_of_before_is_one_that_is_told_nothing(tiny_model, tmp_path):
    old = shutil.copytree(tiny_model, tmp_path / "old")
    index = json.loads((old / "model_index.json").read_text())
    assert index.pop("camera") == "none" and index.pop("camera_token") == [None, None]
    (old / "model_index.json").write_text(json.dumps(index))
    options = {"num_inference_steps": 2, "ensemble_size": 2}
    expected = MetricGoldPipeline.from_pretrained(tiny_model)(picture(), **options, focal_px=30)
    found = MetricGoldPipeline.from_pretrained(old)(picture(), **options)
    np.testing.assert_array_equal(found.planar_depth_m, expected.planar_depth_m)
    assert found.log_depth == expected.log_depth


@pytest.mark.parametrize("camera", ["token", "canonical+token"])
def test_a_folder_without_its_token_is_refused(trained, tmp_path, camera):
    folder = shutil.copytree(trained(camera), tmp_path / "model")
    shutil.rmtree(folder / "camera_token")
    with pytest.raises(ValueError, match=r"model is not a complete checkpoint: camera_token/ is missing"):
        MetricGoldPipeline.from_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"camera_token": [None, None]}))
    with pytest.raises(ValueError, match=r"model .*camera \S+ needs part camera_token"):
        MetricGoldPipeline.from_pretrained(folder)
    (folder / "model_index.json").write_text(json.dumps(index | {"camera": "lens"}))
    with pytest.raises(ValueError, match=r"model is not a complete checkpoint: .*camera"):
        MetricGoldPipeline.from_pretrained(folder)


def test_caches_of_another_camera_are_refused(tiny, tiny_latents, canonical_latents, tiny_backbone, tmp_path):
    canonical = tiny.train.model_copy(update={"camera": "canonical"})
    with pytest.raises(ValueError, match=r"log_depth is .*this run needs .*'canonical': True.*encode .* again"):
        train(canonical, CANONICAL, {tiny.datasets[0]: tiny_latents}, tiny_backbone, tmp_path / "a")
    with pytest.raises(ValueError, match=r"log_depth is .*'canonical': True.*this run needs .*encode .* again"):
        train(tiny.train, tiny.log_depth, {tiny.datasets[0]: canonical_latents}, tiny_backbone, tmp_path / "b")
    with pytest.raises(ValueError, match=r"train.camera canonical does not go with a range of LogDepthRange"):
        train(canonical, tiny.log_depth, {tiny.datasets[0]: tiny_latents}, tiny_backbone, tmp_path / "c")


# -- metres -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.3, 1.7, 4])
def test_with_canonical_depth_a_longer_lens_is_a_larger_scale(trained, factor):
    pipe = MetricGoldPipeline.from_pretrained(trained("canonical"))
    one, other = pipe(picture(), focal_px=50.0), pipe(picture(), focal_px=50.0 * factor)
    np.testing.assert_allclose(other.planar_depth_m, factor * one.planar_depth_m, rtol=1e-5)
    np.testing.assert_array_equal(other.valid_mask, one.valid_mask)
    assert other.log_depth.far_m == pytest.approx(factor * one.log_depth.far_m)
    assert one.log_depth.near_m == pytest.approx(0.3 * 50 / np.sqrt(32 * 48))


def test_beside_canonical_depth_the_token_tells_long_lenses_alone(trained):
    """A wide lens is a scale and nothing else; of a long one the network is told."""
    pipe, root = MetricGoldPipeline.from_pretrained(trained("canonical+token")), np.sqrt(32 * 48)
    one, wide, long = (pipe(picture(), focal_px=focal * root).planar_depth_m for focal in (1.0, 0.4, 2.0))
    np.testing.assert_allclose(wide, 0.4 * one, rtol=1e-5)
    assert not np.allclose(long, 2 * one, rtol=1e-3)


def test_a_token_of_before_tells_every_lens():
    """Folders of before say nothing of a shortest lens, and their network learnt what the token said of wide ones."""
    before, now = CameraToken(32), new_camera_token(32, 0, "canonical+token")
    now.load_state_dict(before.state_dict())
    assert not torch.equal(before.of(0.5), before.of(1.0))
    assert torch.equal(now.of(0.5), before.of(1.0)) and torch.equal(now.of(2.0), before.of(2.0))


def test_focal_length_and_image_scaled_together_leave_metres_as_they_are(trained):
    """The large image is one that the network sees as the small one, pixel for pixel."""
    pipe = MetricGoldPipeline.from_pretrained(trained("canonical"))
    large, grid = picture(64, 96), pipe.grid(64, 96)
    small = grid.see(large)
    expected, found = pipe(small, focal_px=40.0), pipe(large, focal_px=80.0)
    assert found.log_depth.near_m == pytest.approx(expected.log_depth.near_m, rel=1e-12)
    d = torch.from_numpy(expected.log_depth.normalize(expected.planar_depth_m))
    expected_m = expected.log_depth.denormalize(grid.to_image(d[None])[0])
    np.testing.assert_allclose(found.planar_depth_m, expected_m, rtol=1e-5)


def test_a_token_is_of_its_own_image_and_of_no_other(trained):
    pipe = MetricGoldPipeline.from_pretrained(trained("token"))
    images = [picture(seed=1), picture(seed=1), picture(40, 60, seed=2)]
    told = pipe(images, focal_px=[30.0, 90.0, None])
    assert not np.allclose(told[0].planar_depth_m, told[1].planar_depth_m, rtol=1e-4)
    assert [one.focal_from for one in told] == ["argument", "argument", "fov_deg"]
    alone = [pipe(one, focal_px=focal) for one, focal in zip(images, (30.0, 90.0, None), strict=True)]
    for one, other in zip(told, alone, strict=True):
        np.testing.assert_allclose(one.planar_depth_m, other.planar_depth_m, rtol=1e-4)
    with torch.no_grad():
        unknown, empty = pipe.prompts([None])[0], pipe.prompts([1.0])[0, :-1]
    torch.testing.assert_close(unknown, torch.cat([empty, pipe.camera_token.unknown[None]]))


# -- the relative focal length ----------------------------------------------------------------------------


def frame_of(height, width, focal_px):
    depth_m = np.linspace(1, 20, height * width, dtype=np.float32).reshape(height, width)
    rgb, valid = np.zeros((height, width, 3), np.uint8), np.ones((height, width), bool)
    return Frame(rgb, depth_m, valid, pinhole(focal_px, height, width), "scene", "frame")


@pytest.mark.parametrize("shape", [(32, 48), (45, 31), (480, 640), (20, 200)])
@pytest.mark.parametrize("scale", [1, 0.25, 3])
def test_it_is_that_of_the_lens_whatever_the_size(shape, scale):
    height, width = (max(1, round(side * scale)) for side in shape)
    grid = SIZE.grid(height, width)
    focal = SIZE.relative_focal(grid.intrinsics(pinhole(0.8 * np.sqrt(height * width), height, width)))
    assert focal == pytest.approx(0.8, rel=1e-12)
    zoomed = grid.zoomed(1.7, (0.2, 0.9)).intrinsics(pinhole(0.8 * np.sqrt(height * width), height, width))
    assert SIZE.relative_focal(zoomed) == pytest.approx(0.8 * 1.7, rel=1e-12)


def test_views_carry_their_lens_along_and_keep_their_metres():
    frame = frame_of(64, 96, 80.0)
    whole = fit_frame(frame, SIZE.grid(64, 96))
    assert SIZE.relative_focal(whole.intrinsics) == pytest.approx(80 / np.sqrt(64 * 96))
    for number in range(1, 8):
        view = crop_frame(frame, number, SIZE, 0.5)
        focal = SIZE.relative_focal(view.intrinsics)
        assert 80 / np.sqrt(64 * 96) < focal < 2.01 * 80 / np.sqrt(64 * 96)
        log_depth = CANONICAL.to_log_depth(focal)
        d = log_depth.normalize(view.planar_depth_m)
        np.testing.assert_allclose(d, CANONICAL.to_log_depth().normalize(view.planar_depth_m / focal), atol=1e-5)
        np.testing.assert_allclose(log_depth.denormalize(d), view.planar_depth_m, rtol=1e-4)


def test_a_canonical_cache_holds_depth_over_the_relative_focal_length(tiny, tiny_latents, canonical_latents):
    plain, canonical = LatentCache(tiny_latents), LatentCache(canonical_latents)
    assert "canonical" not in plain.identity["log_depth"]
    assert canonical.identity["log_depth"] == {"near_m": 0.3, "far_m": 90.0, "canonical": True}
    assert len(plain) == len(canonical)
    np.testing.assert_array_equal(plain[0].rgb_latent, canonical[0].rgb_latent)
    assert not np.array_equal(plain[0].depth_latent, canonical[0].depth_latent)


@pytest.mark.slow
def test_a_compiled_unet_sees_each_image_s_token(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    compiled, plain = load_pipeline(trained("token"), compile=True), load_pipeline(trained("token"))
    for focals in ([30.0, 90.0], [None, 45.0]):
        pairs = zip(
            *(pipe([picture(), picture()], focal_px=focals, batch_size=2) for pipe in (compiled, plain)), strict=True
        )
        for found, expected in pairs:
            np.testing.assert_allclose(found.planar_depth_m, expected.planar_depth_m, rtol=1e-4)
