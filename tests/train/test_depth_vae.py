"""The decoder fine-tuned on log depth: what must not change, what gets better, what survives a kill."""

import json
import shutil
import signal
import subprocess
import sys
from contextlib import suppress

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from metricgold.datasets.readers import list_frames, read_frame
from metricgold.encode.stage import encode
from metricgold.images import relative_focal
from metricgold.images.network_grid import TrainingSize
from metricgold.model.backbone import load_depth_vae, load_vae, vae_digest
from metricgold.model.vae import decode_log_depth, encode_log_depth
from metricgold.params.sections import CanonicalRange, DepthVae, LogDepthRange
from metricgold.storage.files import digest_folder, read_rows
from metricgold.train.decoder_run import log_depth_loss
from metricgold.train.depth_vae import train_depth_vae
from metricgold.train.optimizer import linear_rate
from tests.support.power_cut import PowerCut, below
from tests.support.waiting import wait_until

WEIGHTS = "vae/diffusion_pytorch_model.safetensors"
PARAMS = DepthVae(num_steps=12, batch_size=4, crop=16, lr=2e-3, warmup_steps=2, checkpoint_every=4)


def run(tiny, raw, backbone, out, *, size=(32, 48), **changes):
    raws = {tiny.datasets[0]: raw}
    params = PARAMS.model_copy(update=changes)
    return train_depth_vae(params, tiny.log_depth, raws, backbone, out, out.with_suffix(".json"), size=size)


@pytest.fixture(scope="module")
def tuned(tiny, tiny_raw, tiny_backbone, tmp_path_factory):
    return run(tiny, tiny_raw, tiny_backbone, tmp_path_factory.mktemp("depth") / "depth-vae", num_steps=150)


def test_canonical_depth_is_learnt_over_each_frame_s_relative_focal_length(tiny, tiny_raw, tiny_backbone, tmp_path):
    """With both metres and lens doubled nothing changes: the frames of one set have one lens."""
    (frame, *_) = (read_frame(ref) for ref in list_frames(tiny.datasets[0], tiny_raw, split="train").frames)
    focal = relative_focal(frame.intrinsics, *frame.valid_mask.shape)
    ranges = LogDepthRange(near_m=0.3 * focal, far_m=90 * focal), CanonicalRange(near_m=0.3, far_m=90.0)
    folders = []
    for range_m in ranges:
        out, params = tmp_path / type(range_m).__name__, PARAMS.model_copy(update={"num_steps": 3})
        raws, metrics = {tiny.datasets[0]: tiny_raw}, out.with_suffix(".json")
        folders.append(train_depth_vae(params, range_m, raws, tiny_backbone, out, metrics, size=(32, 48)))
    one, other = (load_file(folder / WEIGHTS) for folder in folders)
    for name, weight in one.items():
        torch.testing.assert_close(other[name], weight, rtol=0, atol=1e-5)
    assert json.loads((folders[1] / "depth_vae.json").read_text())["log_depth"]["canonical"] is True
    floors = [json.loads(folder.with_suffix(".json").read_text())["mean/after/abs_rel"] for folder in folders]
    assert floors[0] == pytest.approx(floors[1], rel=1e-3)


# -- the loss ---------------------------------------------------------------------------------------------


def test_invalid_pixels_never_count():
    output, target = torch.zeros(2, 4, 5), torch.full((2, 4, 5), 0.5)
    valid = torch.ones(2, 4, 5, dtype=torch.bool)
    valid[0, 1, 2] = False
    target[0, 1, 2] = 1e6
    assert log_depth_loss(output, target, valid, 1.0).item() == 0.5
    assert log_depth_loss(output, target, torch.zeros_like(valid), 1.0).item() == 0


def test_the_gradient_term_is_the_error_s_slope():
    """An error of 0.1 a column and 0.2 a row: its slopes are added with their weight."""
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(5.0), indexing="ij")
    error = (0.1 * columns + 0.2 * rows)[None]
    valid = torch.ones(1, 4, 5, dtype=torch.bool)
    found = log_depth_loss(error, torch.zeros_like(error), valid, 2.0)
    torch.testing.assert_close(found, error.mean() + 2 * (0.1 + 0.2))


def test_an_output_out_of_range_is_pulled_back():
    output = torch.tensor([[[3.0]]], requires_grad=True)
    log_depth_loss(output, torch.tensor([[[1.0]]]), torch.ones(1, 1, 1, dtype=torch.bool), 0.0).backward()
    assert output.grad.item() == 1


def test_learning_rate_warms_up_and_ends_at_zero():
    rates = [linear_rate(step, PARAMS) for step in range(12)]
    assert rates[0] == pytest.approx(1e-3) and rates[6] == pytest.approx(1e-3) and 0 < rates[-1] < 2e-4


# -- what must not change ---------------------------------------------------------------------------------


def test_the_encoder_is_bit_equal_and_what_decodes_has_changed(tuned, tiny_backbone):
    before, after = load_file(tiny_backbone / WEIGHTS), load_file(tuned / WEIGHTS)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith(("decoder.", "post_quant_conv.")) for name in changed)
    assert "post_quant_conv.weight" in changed and "decoder.conv_out.weight" in changed
    assert vae_digest(tuned) == vae_digest(tiny_backbone)


def test_every_latent_is_bit_equal(tuned, tiny, tiny_raw, tiny_latents, tmp_path):
    """A cache encoded by the fine-tuned VAE is the cache, byte for byte, its identity included."""
    encode(tiny.datasets[0], tiny.encode, tiny.log_depth, tiny_raw, tuned, tmp_path / "latents")
    assert digest_folder(tmp_path / "latents") == digest_folder(tiny_latents)


def test_no_steps_hand_the_backbone_s_vae_on(tiny, tiny_raw, tiny_backbone, tmp_path, caplog):
    with caplog.at_level("INFO"):
        out = run(tiny, tiny_raw, tiny_backbone, tmp_path / "depth-vae", num_steps=0)
    assert digest_folder(out / "vae") == digest_folder(tiny_backbone / "vae")
    assert "num_steps is 0" in caplog.text
    figures = json.loads((tmp_path / "depth-vae.json").read_text())
    assert figures["num_steps"] == 0
    assert figures["mean/before/abs_rel"] == figures["mean/after/abs_rel"] > 0


def test_portraits_and_frames_smaller_than_the_crop_are_learnt_from_too(tiny, mixed_raw, tiny_backbone, tmp_path):
    out = run(tiny, mixed_raw, tiny_backbone, tmp_path / "depth-vae", num_steps=2, crop=40)
    before, after = load_file(tiny_backbone / WEIGHTS), load_file(out / WEIGHTS)
    assert not torch.equal(before["decoder.conv_out.weight"], after["decoder.conv_out.weight"])
    # A crop of the decoder's is a part of what the network sees, beside an edge its copies.
    (ref, *_) = list_frames(tiny.datasets[0], mixed_raw, split="train").frames
    depth_m, size = read_frame(ref).planar_depth_m, TrainingSize(32, 48, 2)
    assert depth_m.shape == (48, 32)
    window = size.grid(48, 32).window(8, 0, 32, 40)
    expected = np.pad(depth_m[8:40], ((0, 0), (0, 8)), mode="edge")
    np.testing.assert_array_equal(window.sample(depth_m), expected)


# -- what gets better -------------------------------------------------------------------------------------


def test_the_floor_of_held_out_frames_falls(tuned, tiny):
    figures = json.loads(tuned.with_suffix(".json").read_text())
    assert figures["mean/after/abs_rel"] < 0.8 * figures["mean/before/abs_rel"]
    assert figures[f"{tiny.datasets[0]}/after/abs_rel"] == figures["mean/after/abs_rel"]
    assert f"{tiny.datasets[0]}/before/delta1/4-8" in figures
    made_from = json.loads((tuned / "depth_vae.json").read_text())
    assert made_from["depth_vae"]["num_steps"] == 150 and made_from["log_depth"] == {"near_m": 0.5, "far_m": 80.0}


def test_the_pipeline_takes_it(tuned, tiny_backbone, tiny_model):
    """The same pipeline with the fine-tuned decoder: images encode as before, depth decodes otherwise."""
    from metricgold import MetricGoldPipeline

    pipe = MetricGoldPipeline.from_pretrained(tiny_model)
    depth_m = np.geomspace(0.6, 70, 32 * 48).reshape(1, 32, 48).astype(np.float32)
    before_m = pipe.encode_decode_depth(depth_m)
    pipe.vae = load_depth_vae(tuned, tiny_backbone).eval()
    assert not np.array_equal(pipe.encode_decode_depth(depth_m), before_m)
    image = np.random.default_rng(0).integers(0, 255, (32, 48, 3), dtype=np.uint8)
    assert np.isfinite(pipe(image, num_inference_steps=1, ensemble_size=1).planar_depth_m).all()


def test_bf16_fine_tunes_too(tiny, tiny_raw, tiny_backbone, tmp_path):
    out = run(tiny, tiny_raw, tiny_backbone, tmp_path / "depth-vae", num_steps=3, mixed_precision="bf16")
    weights = load_file(out / WEIGHTS)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert all(tensor.isfinite().all() for tensor in weights.values())


# -- wrong use --------------------------------------------------------------------------------------------


def test_a_vae_of_another_encoder_is_refused(tuned, tiny_backbone, tmp_path):
    other = shutil.copytree(tiny_backbone, tmp_path / "backbone")
    vae = load_vae(other)
    with torch.no_grad():
        vae.encoder.conv_in.bias[0] += 1e-3
    vae.save_pretrained(other / "vae")
    with pytest.raises(ValueError, match=r"another encoder than .*backbone; run `metricgold depth-vae` again"):
        load_depth_vae(tuned, other)
    with pytest.raises(ValueError, match=r"not a VAE for depth: depth_vae\.json is missing"):
        load_depth_vae(other, other)


def test_wrong_sizes_and_empty_splits_are_named(tiny, tiny_raw, tiny_backbone, tmp_path):
    out, raw = tmp_path / "out" / "depth-vae", shutil.copytree(tiny_raw, tmp_path / "raw")
    with pytest.raises(ValueError, match="multiples of the VAE's 2, got 32 x 47"):
        run(tiny, raw, tiny_backbone, out, size=(32, 47))
    with pytest.raises(ValueError, match=r"depth_vae\.crop 1 is smaller than one latent of 2 pixels"):
        run(tiny, raw, tiny_backbone, out, crop=1)
    for scene in ("env101", "env102"):
        shutil.rmtree(raw / scene)
    with pytest.raises(ValueError, match="no frame of split 'train'"):
        run(tiny, raw, tiny_backbone, out)
    assert not out.exists() and not out.with_suffix(".json").exists()


def test_unreadable_training_frames_are_passed_over(tiny, tiny_raw, tiny_backbone, tmp_path):
    raw = shutil.copytree(tiny_raw, tmp_path / "raw")
    broken = sorted(raw.glob("env10*/Easy/P000/image_left/*.png"))
    for path in broken[1:]:
        path.write_bytes(b"no png")
    assert run(tiny, raw, tiny_backbone, tmp_path / "depth-vae", num_steps=2).is_dir()
    broken[0].write_bytes(b"no png")
    with pytest.raises(ValueError, match="not one of 8 training frames can be read"):
        run(tiny, raw, tiny_backbone, tmp_path / "other", num_steps=2)


# -- kills ------------------------------------------------------------------------------------------------

CHILD = """
import sys, torch
from pathlib import Path
from metricgold.params.sections import DepthVae, LogDepthRange
from metricgold.train.depth_vae import train_depth_vae
params, raw, backbone, out = DepthVae.model_validate_json(sys.argv[1]), *map(Path, sys.argv[2:])
raws, metrics = {"tartanair-synthetic": raw}, out.with_suffix(".json")
train_depth_vae(params, LogDepthRange(), raws, backbone, out, metrics, size=(32, 48))
"""


def test_a_finished_run_started_again_gives_the_same_bytes(tiny, tiny_raw, tiny_backbone, tmp_path):
    digests = set()
    for out in (tmp_path / "one" / "depth-vae", tmp_path / "two" / "depth-vae", tmp_path / "one" / "depth-vae"):
        digests.add(digest_folder(run(tiny, tiny_raw, tiny_backbone, out)))
    assert len(digests) == 1


def test_another_run_s_checkpoint_is_never_resumed(tiny, tiny_raw, tiny_backbone, tmp_path):
    run(tiny, tiny_raw, tiny_backbone, tmp_path / "one", lr=5e-3)
    run(tiny, tiny_raw, tiny_backbone, tmp_path / "one")
    run(tiny, tiny_raw, tiny_backbone, tmp_path / "two")
    assert digest_folder(tmp_path / "one") == digest_folder(tmp_path / "two")


def test_another_run_s_state_is_moved_aside_and_taken_back(tiny, tiny_raw, tiny_backbone, tmp_path, caplog):
    digest = digest_folder(run(tiny, tiny_raw, tiny_backbone, tmp_path / "depth-vae"))
    run(tiny, tiny_raw, tiny_backbone, tmp_path / "depth-vae", lr=5e-3)
    assert "a run with other params or data is moved to" in caplog.text
    with caplog.at_level("INFO"):
        assert digest_folder(run(tiny, tiny_raw, tiny_backbone, tmp_path / "depth-vae")) == digest
    assert "resuming at step 12 of 12" in caplog.text


@pytest.mark.parametrize("broken", ["decoder.safetensors", "state.json"])
def test_a_broken_checkpoint_is_named_and_trained_again(tiny, tiny_raw, tiny_backbone, tmp_path, caplog, broken):
    digest = digest_folder(run(tiny, tiny_raw, tiny_backbone, tmp_path / "depth-vae"))
    (checkpoint,) = (tmp_path / "depth-vae.state").glob("step-*")
    (checkpoint / broken).write_bytes((checkpoint / broken).read_bytes()[:-50])
    assert digest_folder(run(tiny, tiny_raw, tiny_backbone, tmp_path / "depth-vae")) == digest
    assert "step-000012 is broken" in caplog.text


def test_weights_are_on_the_disk_before_a_folder_vouches_for_them(tiny, tiny_raw, tiny_backbone, tmp_path, monkeypatch):
    cut = PowerCut(monkeypatch, tmp_path, lambda source, target: below(source) if source.is_dir() else [])
    run(tiny, tiny_raw, tiny_backbone, tmp_path / "depth-vae")
    assert {"depth-vae", "depth-vae.state/step-000012"} <= set(cut.seen) and cut.lost == []


def test_a_state_file_of_an_earlier_version_is_deleted_with_a_warning(tiny, tiny_raw, tiny_backbone, tmp_path, caplog):
    digest, state = (
        digest_folder(run(tiny, tiny_raw, tiny_backbone, tmp_path / "depth-vae")),
        tmp_path / "depth-vae.state",
    )
    for checkpoint in state.glob("step-*"):
        shutil.rmtree(checkpoint)
    old = state / "checkpoint.safetensors"
    save_file({"weight/decoder.conv_out.bias": torch.zeros(3)}, old, metadata={"step": "8"})
    assert digest_folder(run(tiny, tiny_raw, tiny_backbone, tmp_path / "depth-vae")) == digest
    assert not old.exists() and "checkpoint.safetensors was written by an earlier version" in caplog.text


def test_rows_say_step_loss_and_learning_rate_and_are_never_written_twice(tiny, tiny_raw, tiny_backbone, tmp_path):
    for _ in range(2):
        run(tiny, tiny_raw, tiny_backbone, tmp_path / "depth-vae")
        rows = read_rows(tmp_path / "depth-vae.state" / "metrics.jsonl")
        assert [row["step"] for row in rows] == [12] and rows[0].keys() == {"step", "loss", "lr"}


LONG = {"num_steps": 150, "checkpoint_every": 3}


@pytest.fixture(scope="module")
def undisturbed(tiny, tiny_raw, tiny_backbone, tmp_path_factory):
    return run(tiny, tiny_raw, tiny_backbone, tmp_path_factory.mktemp("left_alone") / "depth-vae", **LONG)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_stopped_it_resumes_and_ends_with_the_same_bytes(tiny, tiny_raw, tiny_backbone, undisturbed, tmp_path, how):
    params, out = PARAMS.model_copy(update=LONG), tmp_path / "depth-vae"
    state = tmp_path / "depth-vae.state"
    command = [sys.executable, "-c", CHILD, params.model_dump_json(), tiny_raw, tiny_backbone, out]
    child = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    wait_until(lambda: child.poll() is not None or list(state.glob("step-*")))
    with suppress(subprocess.TimeoutExpired):  # anywhere in a step
        child.wait(timeout=np.random.default_rng().uniform(0, 0.3))
    child.send_signal(how)
    assert child.wait(timeout=60) == (128 + how if how == signal.SIGTERM else -how)
    assert not out.exists(), "the stop came too late to mean anything"
    run(tiny, tiny_raw, tiny_backbone, out, **LONG)
    assert digest_folder(out) == digest_folder(undisturbed)
    assert out.with_suffix(".json").read_bytes() == undisturbed.with_suffix(".json").read_bytes()


def test_a_decoder_that_counts_what_shows_no_surface_decodes_it_farther(tiny, tiny_raw, tiny_backbone, tmp_path):
    """The same steps with and without it: log depth of a sky alone, through the VAE and back."""
    skies = []
    for weight in (0.0, 1.0):
        vae = load_vae(run(tiny, tiny_raw, tiny_backbone, tmp_path / str(weight), no_surface_weight=weight)).eval()
        with torch.no_grad():
            skies.append(decode_log_depth(vae, encode_log_depth(vae, torch.ones(1, 32, 48))).mean().item())
    assert skies[1] > skies[0]
