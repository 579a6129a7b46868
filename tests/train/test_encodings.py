"""log_depth.encoding, from latents to metres: what a cache holds, what a folder says, and that metres stay metres."""

import json
import shutil

import numpy as np
import pytest
import torch

from metricgold import LatentCache, MetricGoldPipeline, open_dataset
from metricgold.encode.stage import encode
from metricgold.export.one_step import export_onnx
from metricgold.log_depth import LOG
from metricgold.model.vae import decode_log_depth
from metricgold.params.sections import CanonicalRange, DepthVae, LogDepthRange
from metricgold.train.depth_vae import train_depth_vae
from metricgold.train.stage import train
from tests.conftest import DATASET, HALF_ULP, HEIGHT, TINY, WIDTH

POWERS = {"linear": 1.0, "inverse": -1.0, "sqrt": 0.5}
ENCODINGS = ["log", *POWERS]
NEAR_M, FAR_M = 0.5, 80.0


def encoded(name, depth_m):
    """The formula of the manual."""
    if name == "log":
        return 2 * np.log(depth_m / NEAR_M) / np.log(FAR_M / NEAR_M) - 1
    near, z, far = (value ** POWERS[name] for value in (NEAR_M, depth_m, FAR_M))
    return 2 * (z - near) / (far - near) - 1


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_raw, pixels_backbone):
    """A function from encoding to range, cache and checkpoint, made once."""
    made = {}

    def of(name):
        if name not in made:
            folder, range_m = tmp_path_factory.mktemp(name), LogDepthRange(encoding=name)
            cache = encode(DATASET, TINY.encode, range_m, tiny_raw, pixels_backbone, folder / DATASET).parent
            few = {"objective": "one-step", "loss": "l1", "num_steps": 2, "decay_steps": 2}
            params = TINY.train.model_validate(TINY.train.model_dump() | few)
            made[name] = range_m, cache, train(params, range_m, {DATASET: cache}, pixels_backbone, folder / "model")
        return made[name]

    return of


@pytest.fixture(scope="module")
def frames(tiny_raw):
    return {frame.name: frame for frame in open_dataset(DATASET, tiny_raw, split="train")}


@pytest.mark.parametrize("name", ENCODINGS)
def test_a_cache_holds_the_formula_and_sky_is_far(trained, frames, name):
    cache = LatentCache(trained(name)[1])
    for one in (cache[i] for i in range(len(cache))):
        frame = frames[one.name]
        expected = np.where(frame.valid_mask, encoded(name, frame.planar_depth_m.clip(NEAR_M, FAR_M)), 1)
        np.testing.assert_allclose(one.depth_latent, np.stack([expected] * 3), rtol=0, atol=HALF_ULP + 1e-5)


@pytest.mark.parametrize("name", ENCODINGS)
def test_a_network_that_is_right_predicts_the_true_metres(trained, frames, name, monkeypatch):
    """A whole run; then the U-Net says what the cache holds, by all members, so that every view is merged."""
    _, cache, folder = trained(name)
    pipe, one = MetricGoldPipeline.from_pretrained(folder), LatentCache(cache)[0]
    frame, latent = frames[one.name], torch.from_numpy(one.depth_latent.astype(np.float32))
    seen = [latent, latent.flip(-1)]  # as it is and mirrored, the first two views
    scale = pipe.vae.config.scaling_factor
    monkeypatch.setattr(pipe, "denoise", lambda rgb, *_: scale * torch.stack([seen.pop(0) for _ in rgb]))
    found = pipe(frame.rgb, num_inference_steps=1, ensemble_size=2, batch_size=1)
    true_m = frame.planar_depth_m.clip(NEAR_M, FAR_M)
    step = 1e-3  # an encoding's slope, by which float16's rounding becomes a relative error
    slopes = (encoded(name, true_m * (1 + step)) - encoded(name, true_m * (1 - step))) / (2 * step)
    off = np.abs(found.planar_depth_m / true_m - 1)[frame.valid_mask]
    assert (off <= 1.5 * (HALF_ULP + 1e-5) / slopes[frame.valid_mask]).all()
    assert (found.log_depth.near_m, found.log_depth.far_m, found.num_members) == (NEAR_M, FAR_M, 2)
    sky = ~frame.valid_mask
    assert sky.any() and not found.valid_mask[sky].any()
    assert np.median(found.uncertainty[frame.valid_mask]) < 1e-3  # in nats, whatever the encoding


@pytest.mark.parametrize("name", ENCODINGS)
def test_the_vae_alone_gives_depth_back(trained, frames, name):
    pipe = MetricGoldPipeline.from_pretrained(trained(name)[2])
    depth_m = np.geomspace(NEAR_M, FAR_M, HEIGHT * WIDTH, dtype=np.float32).reshape(1, HEIGHT, WIDTH)
    np.testing.assert_allclose(pipe.encode_decode_depth(depth_m), depth_m, rtol=1e-3)


def test_a_folder_states_its_encoding_and_one_of_log_depth_says_nothing(trained, tmp_path):
    stated = {name: json.loads((trained(name)[2] / "model_index.json").read_text()) for name in ENCODINGS}
    assert "encoding" not in stated["log"] and {stated[name]["encoding"] for name in POWERS} == set(POWERS)
    assert "encoding" not in LatentCache(trained("log")[1]).identity["log_depth"]
    pipe = MetricGoldPipeline.from_pretrained(trained("sqrt")[2])
    pipe.save_pretrained(tmp_path / "copy")
    assert MetricGoldPipeline.from_pretrained(tmp_path / "copy").encoding == pipe.encoding
    assert pipe.encoding.name == "sqrt" and (pipe.encoding.near_m, pipe.encoding.far_m) == (NEAR_M, FAR_M)


def test_a_folder_with_an_unknown_encoding_is_refused(trained, tmp_path):
    folder = shutil.copytree(trained("linear")[2], tmp_path / "model")
    index = json.loads((folder / "model_index.json").read_text()) | {"encoding": "disparity"}
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"model is not a complete checkpoint: encoding is 'disparity', expected one"):
        MetricGoldPipeline.from_pretrained(folder)


@pytest.mark.parametrize("of_cache, needed", [("log", "linear"), ("linear", "log"), ("linear", "inverse")])
def test_caches_of_another_encoding_are_refused(trained, pixels_backbone, tmp_path, of_cache, needed):
    said = "log_depth is .*'encoding': 'linear'" if of_cache == "linear" else "this run needs .*'encoding': 'linear'"
    with pytest.raises(ValueError, match=f"{said}.*encode {DATASET} again"):
        train(
            TINY.train, LogDepthRange(encoding=needed), {DATASET: trained(of_cache)[1]}, pixels_backbone, tmp_path / "m"
        )


def test_a_decoder_of_another_encoding_is_refused_and_an_untrained_one_fits_all(
    trained, tiny_raw, pixels_backbone, tmp_path
):
    folders = []
    for num_steps in (0, 1):
        params = DepthVae(num_steps=num_steps, crop=16, batch_size=2, frames_per_dataset=1)
        raws, out = {DATASET: tiny_raw}, tmp_path / f"vae-{num_steps}"
        train_depth_vae(params, TINY.log_depth, raws, pixels_backbone, out, tmp_path / "f.json", size=(HEIGHT, WIDTH))
        folders.append(out)
    range_m, cache, _ = trained("inverse")
    few = TINY.train.model_copy(update={"num_steps": 1})
    with pytest.raises(ValueError, match=r"vae-1 was fine-tuned on encoding log, this run needs inverse.*depth-vae"):
        train(few, range_m, {DATASET: cache}, pixels_backbone, tmp_path / "a", depth_vae=folders[1])
    train(few, range_m, {DATASET: cache}, pixels_backbone, tmp_path / "b", depth_vae=folders[0])


@pytest.mark.parametrize("name", ["linear", "inverse"])
def test_a_decoder_learns_the_encoding_and_its_floor_is_in_metres(name, tiny_raw, pixels_backbone, tmp_path):
    """The identity loses nothing, so that the floor before is 0 only if all of it is in one encoding."""
    params = DepthVae(num_steps=1, crop=16, batch_size=2, frames_per_dataset=2, lr=1e-9)
    range_m, raws, metrics = LogDepthRange(encoding=name), {DATASET: tiny_raw}, tmp_path / "f.json"
    train_depth_vae(params, range_m, raws, pixels_backbone, tmp_path / "vae", metrics, size=(HEIGHT, WIDTH))
    figures = json.loads(metrics.read_text())
    assert figures["mean/before/abs_rel"] < 1e-3 and figures["mean/after/abs_rel"] < 1e-2
    rows = (tmp_path / "vae.state" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(rows[0])["loss"] < 1e-3


def test_canonical_depth_is_encoded_too(tiny_raw, pixels_backbone, frames, tmp_path):
    """Metres of each image's own range, by its lens."""
    range_m = CanonicalRange(near_m=0.3, far_m=90.0, encoding="linear")
    cache = encode(DATASET, TINY.encode, range_m, tiny_raw, pixels_backbone, tmp_path / DATASET).parent
    assert LatentCache(cache).identity["log_depth"] == range_m.model_dump() == {
        "near_m": 0.3, "far_m": 90.0, "encoding": "linear", "canonical": True
    }  # fmt: skip
    few = TINY.train.model_copy(update={"num_steps": 1, "camera": "canonical"})
    pipe = MetricGoldPipeline.from_pretrained(
        train(few, range_m, {DATASET: cache}, pixels_backbone, tmp_path / "model")
    )
    one = LatentCache(cache)[0]
    frame, latent = frames[one.name], torch.from_numpy(one.depth_latent.astype(np.float32))[None]
    with torch.no_grad():
        d = decode_log_depth(pipe.vae, latent, pipe.encoding)[0]
    focal = pipe.relative_focal(pipe.grid(HEIGHT, WIDTH), frame.intrinsics)
    found_m = pipe.log_depth_of(focal).denormalize(d).numpy()[frame.valid_mask]
    np.testing.assert_allclose(found_m, frame.planar_depth_m[frame.valid_mask], atol=90 * focal * HALF_ULP)


def test_a_graph_decodes_the_encoding(trained, tmp_path):
    """The export compares the graph with the pipeline."""
    assert export_onnx(trained("inverse")[2], tmp_path / "graph.onnx")["max_difference"] < 1e-3


def test_without_an_encoding_the_vae_sees_log_depth(pixels_backbone):
    from metricgold.model.backbone import load_vae
    from metricgold.model.vae import encode_log_depth

    vae, d = load_vae(pixels_backbone).eval(), torch.linspace(-1, 1, HEIGHT * WIDTH).reshape(1, HEIGHT, WIDTH)
    with torch.no_grad():
        assert torch.equal(encode_log_depth(vae, d), encode_log_depth(vae, d, LOG))
        torch.testing.assert_close(encode_log_depth(vae, d)[:, 0], d, rtol=0, atol=1e-6)
