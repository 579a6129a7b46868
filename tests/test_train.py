"""Training: the loss, what a run leaves behind, and exact resume."""

import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from metricgold.backbone import load_backbone
from metricgold.checkpoints import read_rows
from metricgold.params import LogDepthRange, load_params
from metricgold.storage import digest_folder
from metricgold.train import train


def run(tiny, latents, backbone, out, *, changes=None, **options):
    params = tiny.train.model_validate(tiny.train.model_dump() | (changes or {}))
    return train(params, tiny.log_depth, {tiny.datasets[0]: latents}, backbone, out, **options)


def state_of(model):
    return model.with_name(model.name + ".state")


# -- whole runs -------------------------------------------------------------------------------------------


def test_a_run_leaves_a_pipeline_lineage_and_metrics(tiny, tiny_model, tiny_latents):
    assert {path.name for path in tiny_model.iterdir()} == {
        "model_index.json", "unet", "vae", "scheduler", "empty_prompt", "lineage.json",
    }  # fmt: skip
    index = json.loads((tiny_model / "model_index.json").read_text())
    assert (index["near_m"], index["far_m"]) == (0.5, 80.0)
    assert (index["processing_height"], index["processing_width"]) == (32, 48)
    lineage = json.loads((tiny_model / "lineage.json").read_text())
    assert lineage["step"] == 12 and lineage["train"]["lr"] == 1e-3
    assert lineage["backbone"]["source"] == "stand-in"
    rows = read_rows(state_of(tiny_model) / "metrics.jsonl")
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10, 12]
    assert not list(tiny_model.parent.rglob("*.bin")) and not list(tiny_model.parent.rglob("*.pt"))


def test_only_the_unet_changes(tiny_model, tiny_backbone):
    same = ("vae", "empty_prompt")
    for part in same:
        name = "diffusion_pytorch_model.safetensors"
        assert (tiny_model / part / name).read_bytes() == (tiny_backbone / part / name).read_bytes()
    before, after = load_backbone(tiny_backbone)["unet"], load_file(tiny_model / "unet" / name)
    assert not torch.equal(before.conv_in.weight, after["conv_in.weight"])


def test_it_learns_a_few_frames_by_heart(tiny, tiny_latents, tiny_backbone, tmp_path):
    """On eight frames, seen again and again, the loss falls by half."""
    out = tmp_path / "model"
    run(tiny, tiny_latents, tiny_backbone, out, changes={"num_steps": 120, "decay_steps": 120, "lr": 4e-3})
    losses = [row["loss"] for row in read_rows(state_of(out) / "metrics.jsonl")]
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:3])


def test_accumulation_does_not_change_what_is_learnt(tiny, tiny_latents, tiny_backbone, tmp_path):
    weights = []
    for micro in (1, 4):
        out = tmp_path / str(micro)
        run(tiny, tiny_latents, tiny_backbone, out, changes={"micro_batch_size": micro, "num_steps": 3})
        weights.append(load_file(out / "unet" / "diffusion_pytorch_model.safetensors"))
    for name, one in weights[0].items():
        torch.testing.assert_close(one, weights[1][name], atol=2e-4, rtol=0)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample"])
def test_other_targets_train_and_are_recorded(tiny, tiny_latents, tiny_backbone, tmp_path, prediction_type):
    changes = {"prediction_type": prediction_type, "zero_terminal_snr": False, "num_steps": 2}
    out = run(tiny, tiny_latents, tiny_backbone, tmp_path / "model", changes=changes)
    scheduler = json.loads((out / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["prediction_type"] == prediction_type


def test_a_finished_run_asked_again_gives_the_same_bytes(tiny, tiny_latents, tiny_backbone, tmp_path):
    out = run(tiny, tiny_latents, tiny_backbone, tmp_path / "model")
    digest, metrics = digest_folder(out), (state_of(out) / "metrics.jsonl").read_bytes()
    run(tiny, tiny_latents, tiny_backbone, out)
    assert digest_folder(out) == digest and (state_of(out) / "metrics.jsonl").read_bytes() == metrics


def test_a_foreign_checkpoint_is_never_resumed(tiny, tiny_latents, tiny_backbone, tiny_model, tmp_path):
    out = tmp_path / "model"
    run(tiny, tiny_latents, tiny_backbone, out, changes={"lr": 5e-3})
    run(tiny, tiny_latents, tiny_backbone, out)
    assert digest_folder(out) == digest_folder(tiny_model)


def test_two_checkpoints_are_kept(tiny_model):
    assert sorted(path.name for path in state_of(tiny_model).glob("step-*")) == ["step-000008", "step-000012"]


def test_a_cache_of_another_vae_or_range_is_refused(tiny, tiny_latents, tiny_backbone, tmp_path):
    caches = {tiny.datasets[0]: tiny_latents}
    with pytest.raises(ValueError, match=r"log_depth is .*'near_m': 0.5.*this run needs .*'near_m': 0.3"):
        train(tiny.train, LogDepthRange(near_m=0.3), caches, tiny_backbone, tmp_path / "model")
    other = shutil.copytree(tiny_backbone, tmp_path / "backbone")
    vae = load_backbone(other)["vae"]
    with torch.no_grad():
        vae.encoder.conv_in.bias[0] += 1e-3
    vae.save_pretrained(other / "vae")
    with pytest.raises(ValueError, match=r"vae is [0-9a-f]{64}, this run needs [0-9a-f]{64}"):
        train(tiny.train, tiny.log_depth, caches, other, tmp_path / "model")


def test_rows_are_reported_as_they_are_written(tiny, tiny_latents, tiny_backbone, tmp_path):
    rows = []
    out = run(tiny, tiny_latents, tiny_backbone, tmp_path / "model", report=rows.append, plot=tmp_path / "train.csv")
    assert rows == read_rows(state_of(out) / "metrics.jsonl")
    lines = (tmp_path / "train.csv").read_text().splitlines()
    assert lines[0] == "step,loss,lr,grad_norm" and len(lines) == len(rows) + 1


# -- kills ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_bytes(project, trained_in_project):
    """`metricgold train` in child processes, killed -9; the last one is left alone."""
    out, state, rng = (
        project / "models" / "metricgold",
        project / "models" / "metricgold.state",
        np.random.default_rng(),
    )
    command = [sys.executable, "-m", "metricgold.cli", "train"]
    undisturbed, metrics = trained_in_project
    for want in np.sort(rng.integers(0, 60, size=3)):
        child = start(command, project)
        while child.poll() is None and position(state) < want:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.1))
        child.kill()
        child.wait()
    assert not out.exists(), "the kills came too late to mean anything"
    subprocess.run(command, cwd=project, check=True, capture_output=True)
    assert digest_folder(out) == undisturbed
    assert (state / "metrics.jsonl").read_bytes() == metrics


@pytest.mark.slow
def test_sigterm_saves_where_it_is(project, trained_in_project):
    out, state = project / "models" / "metricgold", project / "models" / "metricgold.state"
    command = [sys.executable, "-m", "metricgold.cli", "train"]
    child = start(command, project)
    while child.poll() is None and position(state) < 7:
        time.sleep(0.01)
    child.send_signal(signal.SIGTERM)
    assert child.wait(timeout=60) == 128 + signal.SIGTERM
    assert position(state) >= 7 and not out.exists()
    subprocess.run(command, cwd=project, check=True, capture_output=True)
    assert digest_folder(out) == trained_in_project[0]


def start(command, project):
    return subprocess.Popen(command, cwd=project, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def position(state):
    """The step of the newest whole checkpoint."""
    return max((int(path.name[5:]) for path in state.glob("step-*")), default=0)


@pytest.fixture
def trained_in_project(project):
    """Bytes of an undisturbed run, which is then forgotten."""
    params = load_params(project / "params.yaml")
    out, state = project / "models" / "metricgold", project / "models" / "metricgold.state"
    caches = {name: project / "data" / "latents" / name for name in params.datasets}
    train(params.train, params.log_depth, caches, project / "models" / "backbone", out)
    digest, metrics = digest_folder(out), (state / "metrics.jsonl").read_bytes()
    shutil.rmtree(out)
    shutil.rmtree(state)
    return digest, metrics
