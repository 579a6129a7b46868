"""The pipeline: metres out of an image, whatever it is batched with; the folder round trip."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image
from safetensors.torch import load_file, save_file
from torch._dynamo.testing import CompileCounterWithBackend

from metricgold import MetricGoldPipeline
from metricgold.images.camera import focal_px_from_fov, points_from_depth
from metricgold.log_depth import LogDepth
from metricgold.model.ensemble import median_and_deviation, standard_error
from metricgold.model.inputs import CalibratedImage
from metricgold.model.pipeline import load_pipeline
from metricgold.params.sections import Predict

OPTIONS = {"num_inference_steps": 2, "ensemble_size": 3, "seed": 7}


@pytest.fixture(scope="module")
def pipe(tiny_model):
    return MetricGoldPipeline.from_pretrained(tiny_model)


def image(height=32, width=48, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


def test_metres_and_uncertainty_at_the_input_s_size(pipe):
    for height, width in [(32, 48), (45, 31), (200, 300), (1, 1), (3, 400)]:
        prediction = pipe(image(height, width), **OPTIONS)
        for array in (prediction.planar_depth_m, prediction.uncertainty):
            assert array.shape == (height, width) and array.dtype == np.float32 and np.isfinite(array).all()
        assert prediction.planar_depth_m.min() >= 0.5 * (1 - 1e-6)
        assert prediction.planar_depth_m.max() <= 80 * (1 + 1e-6)
        assert (prediction.uncertainty >= 0).all()


def test_a_prediction_does_not_depend_on_what_else_is_in_the_list(pipe):
    images = [image(seed=1), image(45, 31, seed=2), image(seed=3)]
    together = pipe(images, **OPTIONS)
    for one, other in zip(images, together, strict=True):
        alone = pipe(one, **OPTIONS)
        np.testing.assert_allclose(alone.planar_depth_m, other.planar_depth_m, rtol=1e-4)
    small = pipe(images, **OPTIONS, batch_size=1)
    np.testing.assert_allclose(small[2].planar_depth_m, together[2].planar_depth_m, rtol=1e-4)


def test_members_differ_and_seeds_repeat(pipe):
    one = image()
    again = pipe(one, **OPTIONS)
    np.testing.assert_array_equal(pipe(one, **OPTIONS).planar_depth_m, again.planar_depth_m)
    assert again.uncertainty.max() > 0
    assert not np.array_equal(pipe(one, **(OPTIONS | {"seed": 8})).planar_depth_m, again.planar_depth_m)
    assert np.isnan(pipe(one, num_inference_steps=2, ensemble_size=1).uncertainty).all()


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_each_image_has_its_own_of_a_list_of_seeds(pipe, batch_size):
    images, seeds = [image(seed=1), image(45, 31, seed=2), image(seed=3), image(seed=1)], [3, 7, 7, 4]
    together = pipe(images, **OPTIONS | {"seed": seeds}, batch_size=batch_size)
    for one, seed, other in zip(images, seeds, together, strict=True):
        alone = pipe(one, **OPTIONS | {"seed": seed})
        np.testing.assert_allclose(alone.planar_depth_m, other.planar_depth_m, rtol=1e-4)
    assert not np.allclose(together[0].planar_depth_m, together[3].planar_depth_m, rtol=1e-3)


@pytest.mark.parametrize("seed", [[1], [1, 2, 3], [1, -2], [1, None], [[1, 2]]])
def test_a_list_of_seeds_has_one_for_each_image(pipe, seed):
    with pytest.raises(ValueError, match=r"seed must be an integer from 0, or a list of 2 of them, one for each"):
        pipe([image(), image()], **OPTIONS | {"seed": seed})


def test_the_merge_is_the_median_in_log_space_with_its_mad(pipe):
    """Three members at 1, 2 and 8 m: median 2 m, deviations of ln depth 0, ln 2, ln 4, so their median is ln 2."""
    members = torch.from_numpy(LogDepth(0.5, 80.0).normalize(np.float32([1, 2, 8])))
    median, deviation = median_and_deviation(members[:, None, None].expand(3, 4, 5))
    np.testing.assert_allclose(pipe.log_depth.denormalize(median), 2.0, rtol=1e-5)
    np.testing.assert_allclose(deviation * pipe.log_depth.ln_range / 2, np.log(2), rtol=1e-5)


def test_ddim_equals_diffusers_step_by_step(pipe):
    """One member by hand, with a scheduler of its own, against the pipeline's answer."""
    from metricgold.model.vae import decode_log_depth, encode_rgb, rgb_to_tensor

    rgb = image(seed=5)
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    scheduler.set_timesteps(3)
    assert scheduler.timesteps[0] == 999
    scaling = pipe.vae.config.scaling_factor
    with torch.no_grad():
        rgb_latent = encode_rgb(pipe.vae, rgb_to_tensor(rgb[None])) * scaling
        latent = pipe.draw_noise(rgb_latent.shape[1:], 1, seed=7)
        prompt = pipe.empty_prompt.embedding[None]
        for timestep in scheduler.timesteps:
            output = pipe.unet(torch.cat([rgb_latent, latent], 1), timestep, encoder_hidden_states=prompt).sample
            latent = scheduler.step(output, timestep, latent).prev_sample
        expected_m = pipe.log_depth.denormalize(decode_log_depth(pipe.vae, latent / scaling))[0]
    found = pipe(rgb, num_inference_steps=3, ensemble_size=1, seed=7)
    np.testing.assert_allclose(found.planar_depth_m, expected_m, rtol=1e-5)


def test_the_processing_size_keeps_area_and_aspect(pipe):
    assert pipe.processing_size(32, 48) == (32, 48)
    assert pipe.processing_size(480, 640) == (34, 46)
    assert pipe.processing_size(1, 1000)[0] == 2
    for height, width in [(37, 91), (1080, 1920), (640, 480)]:
        h, w = pipe.processing_size(height, width)
        assert h % 2 == 0 == w % 2 and h * w == pytest.approx(32 * 48, rel=0.1)


def test_from_a_share_of_far_on_there_is_no_surface(pipe, tiny_model, tmp_path):
    """A member of 0.5, 2, 39, 41 and 80 m, of a range to 80 m; without a share only what saturates has none."""
    far = MetricGoldPipeline.from_pretrained(tiny_model, no_surface_from=0.5)
    far.save_pretrained(tmp_path)
    far = MetricGoldPipeline.from_pretrained(tmp_path)
    depth_m = np.tile(np.repeat(np.float32([0.5, 2, 39, 41, 80, 80]), 8), (32, 1))
    members = [torch.from_numpy(LogDepth(0.5, 80.0).normalize(depth_m))]
    photo = CalibratedImage(image(32, 48), np.eye(3), "argument")
    for model, valid in ((pipe, [0, 1, 1, 1, 0, 0]), (far, [0, 1, 1, 0, 0, 0])):
        prediction = model.merge_members(members, photo)
        np.testing.assert_array_equal(prediction.valid_mask, np.tile(np.repeat(np.bool_(valid), 8), (32, 1)))
        np.testing.assert_allclose(prediction.planar_depth_m, depth_m, rtol=1e-5)  # whatever is valid


def test_pil_images_are_taken_and_other_arrays_refused(pipe):
    rgb = image()
    from_pil = pipe(Image.fromarray(rgb), **OPTIONS)
    np.testing.assert_array_equal(from_pil.planar_depth_m, pipe(rgb, **OPTIONS).planar_depth_m)
    for bad in (rgb.astype(np.float32), rgb[..., 0], rgb[..., :2], rgb[:0]):
        with pytest.raises(ValueError, match=r"uint8 \[H, W, 3\], got"):
            pipe(bad, **OPTIONS)


def test_save_and_load_give_the_same_depth(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "copy")
    copy = MetricGoldPipeline.from_pretrained(tmp_path / "copy")
    assert copy.log_depth == LogDepth(0.5, 80.0)
    one = image()
    np.testing.assert_array_equal(copy(one, **OPTIONS).planar_depth_m, pipe(one, **OPTIONS).planar_depth_m)


def test_near_and_far_must_be_known(pipe):
    parts = {name: getattr(pipe, name) for name in ("unet", "vae", "scheduler", "empty_prompt")}
    with pytest.raises(ValueError, match="needs near_m, far_m"):
        MetricGoldPipeline(**parts, near_m=0.5)


def test_the_vae_floor_is_a_round_trip_in_metres(pipe):
    depth_m = np.geomspace(0.6, 70, 32 * 48).reshape(1, 32, 48).astype(np.float32)
    decoded_m = pipe.encode_decode_depth(depth_m)
    assert decoded_m.shape == depth_m.shape and decoded_m.min() >= 0.5 * (1 - 1e-6)
    assert pipe.encode_decode_depth(np.full((2, 50, 60), 3, np.float32)).shape == (2, 50, 60)


# Against diffusers


def test_members_equal_diffusers_marigold(pipe, monkeypatch):
    """Same weights, same noise: every member's log depth before they are merged, to 1e-3."""
    from diffusers import MarigoldDepthPipeline

    rgb, seen = image(seed=6), []
    parts = {"unet": pipe.unet, "vae": pipe.vae, "scheduler": pipe.scheduler}
    marigold = MarigoldDepthPipeline(**parts, text_encoder=None, tokenizer=None, prediction_type="depth")
    marigold.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    marigold.empty_text_embedding = pipe.empty_prompt.embedding[None]
    marigold.set_progress_bar_config(disable=True)
    monkeypatch.setattr(marigold, "ensemble_depth", lambda members, *_: (seen.append(members), (members[:1],) * 2)[1])
    noise = pipe.draw_noise((4, 16, 24), 5, seed=3)
    options = {"num_inference_steps": 4, "ensemble_size": 5, "batch_size": 2, "processing_resolution": 0}
    with torch.no_grad():
        marigold(Image.fromarray(rgb), latents=noise, **options)
    found = members(pipe, [rgb], ensemble_size=5, num_inference_steps=4, seed=3)[0]
    torch.testing.assert_close(found, 2 * seen[0][:, 0] - 1, rtol=0, atol=1e-3)
    expected = found.quantile(0.5, dim=0)
    answer = pipe(rgb, 4, 5, seed=3)
    np.testing.assert_allclose(answer.planar_depth_m, pipe.log_depth.denormalize(expected), rtol=1e-4)


# How many members


def members(pipe, images, num_inference_steps=2, **options):
    """Log depth [E, H, W] of each image's members, before they are merged."""
    seen, merge = [], pipe.merge_members
    pipe.merge_members = lambda found, *rest: (seen.append(torch.stack(found)), merge(found, *rest))[1]
    try:
        pipe(images, num_inference_steps, **options)
    finally:
        del pipe.merge_members
    return seen


def test_auto_stops_at_the_first_round_that_is_certain_enough(pipe):
    images = [image(seed=seed) for seed in range(4)]
    errors = [
        {n: standard_error(all_ten[:n], pipe.log_depth) for n in (3, 5, 7, 9, 10)}
        for all_ten in members(pipe, images, ensemble_size=10, seed=2)
    ]
    target = float(np.median([error for one in errors for error in one.values()]))
    found = pipe(images, 2, "auto", seed=2, uncertainty_target=target)
    expected = [next((n for n, error in one.items() if error <= target), 10) for one in errors]
    assert [one.num_members for one in found] == expected
    for one, rgb in zip(found, images, strict=True):  # and is then what that many members always are
        same = pipe(rgb, 2, one.num_members, seed=2)
        np.testing.assert_allclose(one.planar_depth_m, same.planar_depth_m, rtol=1e-5)
        np.testing.assert_allclose(one.uncertainty, same.uncertainty, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("target", "most", "expected"), [(100, 10, 3), (1e-9, 10, 10), (1e-9, 4, 4), (1e-9, 2, 2)])
def test_auto_ends_with_three_or_with_the_most(pipe, target, most, expected):
    found = pipe(image(), 1, "auto", uncertainty_target=target, max_ensemble_size=most)
    assert found.num_members == expected


def test_auto_does_not_depend_on_company_order_or_batches(pipe):
    images = [image(seed=1), image(45, 31, seed=2), image(seed=3), image(60, 20, seed=4)]
    options = {"num_inference_steps": 2, "ensemble_size": "auto", "uncertainty_target": 0.02, "seed": 5}
    alone = [pipe(one, **options) for one in images]
    backwards = pipe(images[::-1], **options)[::-1]
    small = pipe(images, **options, batch_size=2)
    for one, other, third in zip(alone, backwards, small, strict=True):
        assert one.num_members == other.num_members == third.num_members
        np.testing.assert_allclose(one.planar_depth_m, other.planar_depth_m, rtol=1e-4)
        np.testing.assert_allclose(one.planar_depth_m, third.planar_depth_m, rtol=1e-4)


@pytest.mark.parametrize("count", [3, 5, 7, 9, 10, 41])
def test_the_standard_error_is_that_of_a_median(count):
    """Of normal members with a known spread: what the median of many draws really scatters by."""
    log_depth, draws = LogDepth(0.5, 80.0), torch.randn(count, 200, 200, generator=torch.Generator().manual_seed(0))
    spread = draws * (2 / log_depth.ln_range) * 0.1  # a tenth of a nat
    scatter = (spread.quantile(0.5, dim=0) * log_depth.ln_range / 2).std().item()
    assert standard_error(spread, log_depth) == pytest.approx(scatter, rel=0.08)


# Merged latents


def test_merged_latents_are_their_mean_decoded_once(pipe, monkeypatch):
    rgb, decoded = image(seed=8), []
    latents = members(pipe, [rgb], ensemble_size=4, seed=1, merge="latent")[0]
    expected = pipe.log_depth.denormalize(pipe.decode(latents.mean(dim=0, keepdim=True)))[0].detach()
    decode = pipe.vae.decode
    monkeypatch.setattr(pipe.vae, "decode", lambda latent: (decoded.append(len(latent)), decode(latent))[1])
    found = pipe(rgb, 2, 4, seed=1, merge="latent")
    np.testing.assert_allclose(found.planar_depth_m, expected, rtol=1e-5)
    assert decoded == [1] and found.num_members == 4 and np.isnan(found.uncertainty).all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"merge": "mean"}, "merge must be depth or latent, got 'mean'"),
        ({"merge": "latent", "ensemble_size": "auto"}, "auto needs merge depth"),
        ({"ensemble_size": "auto", "uncertainty_target": 0}, "uncertainty_target must be positive, got 0"),
        ({"ensemble_size": "many"}, "ensemble_size must be an integer from 1, got 'many'"),
        ({"ensemble_size": 0}, "ensemble_size must be an integer from 1, got 0"),
        ({"num_inference_steps": 0}, "num_inference_steps must be an integer from 1 to 1000, got 0"),
        ({"num_inference_steps": 2000}, "num_inference_steps must be an integer from 1 to 1000, got 2000"),
        ({"max_ensemble_size": 0}, "max_ensemble_size must be an integer from 1, got 0"),
        ({"batch_size": 0}, "batch_size must be an integer from 1, got 0"),
        ({"intrinsics": np.eye(4)}, r"intrinsics must be a finite \[3, 3\] that can be inverted, got"),
        ({"intrinsics": np.zeros((3, 3))}, r"intrinsics must be a finite \[3, 3\] that can be inverted, got"),
        ({"focal_px": -3}, "focal_px must be a positive number of pixels, got -3"),
        ({"focal_px": 40, "fov_deg": 60}, "a camera is stated in one way, got focal_px and fov_deg"),
        ({"fov_deg": 180}, "fov_deg must be between 0 and 180, got 180"),
        ({"timestep_spacing": "even"}, "timestep_spacing must be one of trailing, leading, linspace, got 'even'"),
    ],
)
def test_options_out_of_range_are_named(pipe, options, said):
    with pytest.raises(ValueError, match=said):
        pipe(image(), **options)


# What goes in


def test_tensors_paths_and_arrays_are_the_same_photograph(pipe, tmp_path):
    rgb = image(seed=9)
    expected = pipe(rgb, **OPTIONS).planar_depth_m
    Image.fromarray(rgb).save(tmp_path / "a.png")
    whole = torch.from_numpy(rgb).permute(2, 0, 1)
    forms = [rgb, Image.fromarray(rgb), whole, whole.float() / 255, tmp_path / "a.png", str(tmp_path / "a.png")]
    for one in (*(pipe(form, **OPTIONS) for form in forms), *pipe(forms, **OPTIONS)):
        np.testing.assert_allclose(one.planar_depth_m, expected, rtol=1e-5)
    many = pipe(torch.stack([whole, whole.flip(0)]), **OPTIONS)
    assert len(many) == 2
    np.testing.assert_allclose(many[0].planar_depth_m, expected, rtol=1e-5)
    assert len(pipe(whole[None], **OPTIONS)) == 1 and pipe([], **OPTIONS) == []


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (torch.zeros(32, 48, 3), r"float \[3, H, W\], got torch.float32 \[32, 48, 3\]"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), "must be uint8 or float"),
        (torch.full((3, 4, 4), 255.0), "between 0 and 1, got 255 to 255"),
        (torch.full((3, 4, 4), torch.nan), "between 0 and 1, got nan"),
        (torch.zeros(3, 0, 4), r"uint8 \[H, W, 3\], got"),
        (None, "an image must be"),
        (3, "an image must be"),
    ],
)
def test_what_is_no_image_is_refused(pipe, bad, said):
    with pytest.raises(ValueError, match=said):
        pipe(bad, **OPTIONS)


def test_files_that_are_no_photographs_are_named(pipe, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff, not really")
    with pytest.raises(ValueError, match=r"broken\.jpg"):
        pipe(tmp_path / "broken.jpg")
    with pytest.raises(OSError, match=r"absent\.jpg"):
        pipe(tmp_path / "absent.jpg")


def test_the_camera_is_the_caller_s_or_the_file_s(pipe, tmp_path):
    options, rgb, camera = {"num_inference_steps": 1, "ensemble_size": 1}, image(48, 64), np.diag([50.0, 50.0, 1.0])
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 35  # focal length in 35 mm film
    Image.fromarray(rgb).save(tmp_path / "a.jpg", exif=exif)
    by_exif = pipe(tmp_path / "a.jpg", **options)
    (focal, _, x), (_, _, y), _ = by_exif.intrinsics
    assert (focal, x, y) == pytest.approx((35 * 80 / 43.2666, 32, 24), rel=1e-4)
    found = pipe(tmp_path / "a.jpg", **options, intrinsics=camera.tolist())
    assert found.intrinsics.dtype == np.float64 and np.array_equal(found.intrinsics, camera)
    stated = pipe(rgb.transpose(1, 0, 2), **options, fov_deg=90)
    np.testing.assert_allclose(stated.intrinsics, [[32, 0, 24], [0, 32, 32], [0, 0, 1]])
    assert pipe(rgb, **options).intrinsics[0, 0] == focal_px_from_fov(Predict().fov_deg, 64)  # as a batch job's
    assert [one.focal_from for one in (by_exif, found, stated, pipe(rgb, **options))] == [
        *("exif", "argument", "argument", "fov_deg")
    ]
    by_focal = pipe([rgb, tmp_path / "a.jpg"], **options, focal_px=[40, None])
    assert [one.intrinsics[0, 0] for one in by_focal] == [40, focal]
    assert [one.intrinsics[1, 1] for one in pipe([rgb, rgb], **options, focal_px=40.5)] == [40.5, 40.5]
    two = pipe([rgb, tmp_path / "a.jpg"], **options, intrinsics=[camera, None])
    assert np.array_equal(two[0].intrinsics, camera) and two[1].intrinsics[0, 0] == focal
    with pytest.raises(ValueError, match="2 images need a list of as many intrinsics, got 1 of them"):
        pipe([rgb, rgb], **options, intrinsics=[camera])


def test_a_panorama_has_no_camera_and_makes_no_points(pipe, tmp_path):
    options, exif = {"num_inference_steps": 1, "ensemble_size": 1}, Image.Exif()
    exif.get_ifd(0x8769).update({0xA405: 26, 0xA401: 6})  # the camera of one of its shots; rendered: panorama
    Image.fromarray(image(32, 64)).save(tmp_path / "pano.jpg", exif=exif)
    prediction = pipe(tmp_path / "pano.jpg", **options)
    assert (prediction.intrinsics, prediction.focal_from) == (None, "none")
    with pytest.raises(ValueError, match=r"intrinsics must be a finite, invertible \[3, 3\], got None"):
        points_from_depth(prediction.planar_depth_m, prediction.intrinsics)
    camera = np.diag([50.0, 50.0, 1.0])
    assert pipe(tmp_path / "pano.jpg", **options, intrinsics=camera).focal_from == "argument"


def test_where_depth_saturates_is_no_answer(pipe):
    photo = CalibratedImage(image(32, 48), np.eye(3), "argument")
    found = pipe.merge_members([torch.tensor([-1, -0.9985, 0.5, 1]).repeat(32, 12)], photo)
    assert found.valid_mask[0, :4].tolist() == [False, True, True, False] and found.valid_mask.dtype == bool


# Precision, compilation, folders


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_of_the_networks_only(pipe, tiny_model, dtype):
    half, one = load_pipeline(tiny_model, dtype=dtype), image()
    assert half.unet.dtype == half.vae.dtype == getattr(torch, dtype)
    found, expected = half(one, **OPTIONS), pipe(one, **OPTIONS)
    assert found.planar_depth_m.dtype == np.float32
    assert np.abs(np.log(found.planar_depth_m / expected.planar_depth_m)).mean() < 0.05
    (latents,) = members(half, [one], ensemble_size=1, merge="latent")
    assert latents.dtype == torch.float32


def test_an_answer_that_is_no_number_is_an_error(tiny_model):
    broken = load_pipeline(tiny_model)
    broken.unet.conv_out.bias.data.fill_(torch.nan)
    for merge in ("depth", "latent"):
        with pytest.raises(ValueError, match=r"NaN or infinity in torch\.float32"):
            broken(image(), **OPTIONS, merge=merge)


def test_a_dtype_and_a_folder_that_are_none(tiny_model, tmp_path):
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, float16, got 'int8'"):
        load_pipeline(tiny_model, dtype="int8")
    with pytest.raises(ValueError, match=r"model_index\.json is missing"):
        load_pipeline(tmp_path)


@pytest.mark.slow
def test_a_compiled_unet_has_one_graph_for_each_processing_size(pipe, tiny_model):
    counter = CompileCounterWithBackend("eager")
    compiled = load_pipeline(tiny_model)
    compiled.compile_unet(counter)
    shapes = [(32, 48), (48, 32), (33, 50)]
    # However few graphs torch allows by itself.
    with torch._dynamo.config.patch(recompile_limit=1):
        for one in (image(*shape) for shape in shapes):
            for num_steps, size in ((2, 3), (1, 2)):
                found = compiled([one, one], num_steps, size, batch_size=4)[1]
                np.testing.assert_allclose(found.planar_depth_m, pipe(one, num_steps, size).planar_depth_m, rtol=1e-4)
    assert counter.frame_count == len({pipe.processing_size(*shape) for shape in shapes}) == 2


@pytest.mark.slow
def test_pipelines_compiled_for_a_cpu_keep_to_their_own_weights_and_folders(pipe, tiny_model, tmp_path, monkeypatch):
    """Graphs hold the weights, and nothing looks at modules any more: two of the same shape must not be mixed up."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    other = load_pipeline(tiny_model)
    other.unet.conv_out.weight.data.mul_(-1)
    other.save_pretrained(tmp_path / "other")
    pairs = [
        (load_pipeline(folder, compile=True), load_pipeline(folder)) for folder in (tiny_model, tmp_path / "other")
    ]
    for photo in (image(48, 64, seed=0), image(48, 64, seed=1)):  # 34 x 46 pixels, whose latents do not halve
        for compiled, plain in pairs:
            found, expected = (one(photo, **OPTIONS, batch_size=3) for one in (compiled, plain))
            np.testing.assert_allclose(found.planar_depth_m, expected.planar_depth_m, rtol=1e-3)
    pairs[1][0].save_pretrained(tmp_path / "again")
    name = "unet/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_a_missing_compiler_is_one_clear_error(tiny_model):
    from torch._inductor import config

    with config.patch({"cpp.cxx": (None, "no-such-compiler")}), pytest.raises(ValueError, match=r"install g\+\+"):
        load_pipeline(tiny_model, compile=True)


def test_folders_know_nothing_of_calls_and_compilation(tiny_model, tmp_path):
    used = load_pipeline(tiny_model)
    used.compile_unet("eager")
    used(image(), 1, 2, timestep_spacing="leading")
    used.save_pretrained(tmp_path / "used")
    load_pipeline(tiny_model).save_pretrained(tmp_path / "fresh")
    names = sorted(path.relative_to(tmp_path / "fresh") for path in (tmp_path / "fresh").rglob("*") if path.is_file())
    assert names == sorted(p.relative_to(tmp_path / "used") for p in (tmp_path / "used").rglob("*") if p.is_file())
    for name in names:
        assert (tmp_path / "fresh" / name).read_bytes() == (tmp_path / "used" / name).read_bytes(), name


def test_the_folder_is_laid_out_as_on_the_hub(tiny_model):
    index = json.loads((tiny_model / "model_index.json").read_text())
    assert (index["near_m"], index["far_m"], index["objective"]) == (0.5, 80.0, "diffusion")
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"] and index["vae"] == ["diffusers", "AutoencoderKL"]
    for part in ("unet", "vae", "empty_prompt"):
        assert (tiny_model / part / "diffusion_pytorch_model.safetensors").is_file()
    assert (tiny_model / "scheduler" / "scheduler_config.json").is_file()


def test_an_opened_photograph_is_read_as_its_file_is(pipe, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    exif.get_ifd(0x8769)[0xA405] = 28  # focal length in 35 mm film
    Image.fromarray(image()).save(tmp_path / "a.jpg", exif=exif)
    with Image.open(tmp_path / "a.jpg") as opened:
        found, of_file = pipe(opened, **OPTIONS), pipe(tmp_path / "a.jpg", **OPTIONS)
    assert found.planar_depth_m.shape == (48, 32)
    assert np.array_equal(found.planar_depth_m, of_file.planar_depth_m)
    assert np.array_equal(found.intrinsics, of_file.intrinsics) and found.intrinsics is not None


def test_transparent_and_16_bit_pictures_follow_the_rules_of_files(pipe):
    rgba = np.dstack([image(), np.zeros((32, 48), np.uint8)])
    white = pipe(np.full((32, 48, 3), 255, np.uint8), **OPTIONS)
    assert np.array_equal(pipe(Image.fromarray(rgba), **OPTIONS).planar_depth_m, white.planar_depth_m)
    grey = Image.fromarray(np.full((32, 48), 128 * 257, np.uint16))
    flat = pipe(np.full((32, 48, 3), 128, np.uint8), **OPTIONS)
    assert np.array_equal(pipe(grey, **OPTIONS).planar_depth_m, flat.planar_depth_m)


@pytest.fixture
def broken(tiny_model, tmp_path):
    """A copy of the checkpoint to break."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def test_a_checkpoint_that_lacks_weights_is_refused(broken):
    path = broken / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    del weights["conv_out.bias"]
    save_file(weights, path)
    for load in (load_pipeline, MetricGoldPipeline.from_pretrained):
        with pytest.raises(ValueError, match=r"lacks 1 of its weights, such as conv_out\.bias"):
            load(broken)


def test_weights_are_never_unpickled(broken):
    path = broken / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()
    with pytest.raises(ValueError, match="is not a complete checkpoint"):
        load_pipeline(broken)


@pytest.mark.parametrize(
    ("name", "text"),
    [("model_index.json", "[]"), ("model_index.json", "{"), ("unet/config.json", "nothing"), ("near_m", "-1")],
)
def test_a_broken_folder_is_named(broken, name, text):
    if name == "near_m":
        index = json.loads((broken / "model_index.json").read_text())
        (broken / "model_index.json").write_text(json.dumps(index | {"near_m": -1.0}))
    else:
        (broken / name).write_text(text)
    with pytest.raises(ValueError, match=f"{broken.name} is not a complete checkpoint"):
        load_pipeline(broken)


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        ("unet/config.json", "layers_per_block", 10**9, r"config\.json: layers_per_block is 1000000000, expected 64"),
        ("unet/config.json", "block_out_channels", [10**12, 8], "block_out_channels is 1000000000000, expected 65536"),
        ("unet/config.json", "block_out_channels", [8] * 100_000, "block_out_channels is 100000, expected 64 at most"),
        ("unet/config.json", "block_out_channels", ["many", 8], "many|str"),
        ("unet/config.json", "in_channels", "8", "."),
        ("vae/config.json", "latent_channels", -(10**9), "latent_channels is -1000000000"),
        ("vae/config.json", "scaling_factor", float("nan"), "scaling_factor is nan"),
        ("empty_prompt/config.json", "width", 10**9, "width is 1000000000, expected 65536 at most"),
        ("scheduler/scheduler_config.json", "num_train_timesteps", 10**12, "num_train_timesteps is 1000000000000"),
        ("scheduler/scheduler_config.json", "num_train_timesteps", "many", "."),
        ("model_index.json", "processing_height", 60_000, "processing_height x processing_width is 60000 x"),
        ("model_index.json", "processing_height", "64", "processing_height x processing_width is 64 x"),
        ("model_index.json", "near_m", "near", "."),
        ("model_index.json", "trained_aspects", [0, 1.5], "trained_aspects must be two widths over heights"),
        ("model_index.json", "trained_aspects", 1.5, "."),
    ],
)
def test_a_config_that_no_model_has_is_refused_before_anything_is_built(broken, name, key, value, message):
    config = json.loads((broken / name).read_text())
    (broken / name).write_text(json.dumps(config | {key: value}))
    with pytest.raises(ValueError, match=rf"{broken.name} is not a complete checkpoint: .*({message})"):
        load_pipeline(broken)


def test_a_config_nested_without_end_is_refused(broken):
    (broken / "unet" / "config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"not a complete checkpoint: .*config\.json is not JSON: nested too deep"):
        load_pipeline(broken)


@pytest.mark.parametrize("options", [{"seed": None}, {"seed": 1.5}, {"seed": -1}, {"uncertainty_target": "x"}])
def test_numbers_that_are_none_are_refused(pipe, options):
    name = next(iter(options))
    with pytest.raises(ValueError, match=f"{name} must be"):
        pipe(image(), 1, "auto", **options)
