"""Training: the loss, what a run leaves behind, and exact resume."""

import json
import multiprocessing
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from diffusers import UNet2DConditionModel
from safetensors import SafetensorError
from safetensors.torch import load_file

from metricgold.encode.stage import encode
from metricgold.model.backbone import load_backbone
from metricgold.params.sections import LogDepthRange, load_params
from metricgold.shards import LatentCache
from metricgold.storage.checkout import git_commit
from metricgold.storage.files import digest_folder, read_rows
from metricgold.storage.progress import PROGRESS_FILE, StageProgress, read_progress
from metricgold.train.checkpoints import flat_state, load_flat_state
from metricgold.train.run import TrainingRun, frames_drawn, mixture_of
from metricgold.train.sessions import state_of_model
from metricgold.train.stage import _fingerprint, train
from tests.support.power_cut import PowerCut, below
from tests.support.tries import tries
from tests.support.waiting import wait_until


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
    assert index["trained_aspects"] == [1.5, 1.5]  # width over height of the narrowest and the widest frames
    lineage = json.loads((tiny_model / "lineage.json").read_text())
    assert lineage["step"] == 12 and lineage["train"]["lr"] == 1e-3
    assert lineage["backbone"]["source"] == "stand-in"
    rows = read_rows(state_of(tiny_model) / "metrics.jsonl")
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10, 12]
    assert not list(tiny_model.parent.rglob("*.bin")) and not list(tiny_model.parent.rglob("*.pt"))


def test_a_state_says_what_was_worked_at_each_checkpoint_and_what_it_has_become(
    tiny, tiny_latents, tiny_backbone, tmp_path
):
    out = run(tiny, tiny_latents, tiny_backbone, tmp_path / "model")
    state = state_of(out)
    rows = read_rows(state / "sessions.jsonl")
    assert [row["step"] for row in rows] == [4, 8, 12] and all(row["seconds"] > 0 for row in rows)
    assert {(row["commit"], row["dirty"]) for row in rows} == {git_commit(Path()) or (None, None)}
    assert state_of_model(out, digest_folder(out)) == state and state_of_model(out, "of another") is None
    shutil.rmtree(state / "step-000012")
    run(tiny, tiny_latents, tiny_backbone, out)
    assert [row["step"] for row in read_rows(state / "sessions.jsonl")] == [4, 8, 12]  # what was done twice counts once


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


def test_a_finished_run_started_again_gives_the_same_bytes(tiny, tiny_latents, tiny_backbone, tmp_path):
    out = run(tiny, tiny_latents, tiny_backbone, tmp_path / "model")
    digest, metrics = digest_folder(out), (state_of(out) / "metrics.jsonl").read_bytes()
    run(tiny, tiny_latents, tiny_backbone, out)
    assert digest_folder(out) == digest and (state_of(out) / "metrics.jsonl").read_bytes() == metrics


def test_another_threshold_of_sky_trains_nothing(tiny, tiny_latents, tiny_backbone, tmp_path):
    out = run(tiny, tiny_latents, tiny_backbone, tmp_path / "model")
    rows, weights = (state_of(out) / "metrics.jsonl").read_bytes(), digest_folder(out / "unet")
    run(tiny, tiny_latents, tiny_backbone, out, changes={"no_surface_from": 0.5})
    assert json.loads((out / "model_index.json").read_text())["no_surface_from"] == 0.5
    assert (state_of(out) / "metrics.jsonl").read_bytes() == rows and digest_folder(out / "unet") == weights


def test_a_foreign_checkpoint_is_never_resumed(tiny, tiny_latents, tiny_backbone, tiny_model, tmp_path):
    out = tmp_path / "model"
    run(tiny, tiny_latents, tiny_backbone, out, changes={"lr": 5e-3})
    run(tiny, tiny_latents, tiny_backbone, out)
    assert digest_folder(out) == digest_folder(tiny_model)


@pytest.mark.parametrize(("share", "scenes"), [(1.0, {"env101", "env102"}), (0.5, {"env102"}), (0.01, {"env102"})])
def test_a_share_of_the_scenes_is_all_that_is_drawn(tiny, tiny_latents, share, scenes):
    cache = LatentCache(tiny_latents)
    frames = frames_drawn(cache, tiny.train.model_copy(update={"scenes_share": share}))
    assert {cache[i].scene for i in frames} == scenes and len(frames) == 4 * len(scenes)
    drawn = mixture_of(tiny.train, {"tiny": len(frames)}).draw(0, 50)
    assert {draw.frame for draw in drawn} == set(range(len(frames)))


def test_whole_frames_are_drawn_so_many_times_as_often_as_crops(tiny, tiny_raw, tiny_backbone, tmp_path):
    params = tiny.encode.model_copy(update={"views": 3})
    encode(tiny.datasets[0], params, tiny.log_depth, tiny_raw, tiny_backbone, tmp_path / "latents")
    cache = LatentCache(tmp_path / "latents")
    drawn = frames_drawn(cache, tiny.train.model_copy(update={"whole_weight": 3}))
    times = {cache[i].name: list(drawn).count(i) for i in range(len(cache))}
    assert len(times) == len(cache) == 24 and set(times.values()) == {1, 3}
    assert all(number == (1 if "#" in name else 3) for name, number in times.items())


def test_keys_at_their_defaults_leave_the_fingerprint_of_before_there_were_any(tiny, tiny_latents, monkeypatch):
    monkeypatch.setattr("metricgold.train.stage.digest_json", lambda facts: facts)

    def learnt(**changes):
        params = tiny.train.model_copy(update=changes)
        return _fingerprint(params, tiny.log_depth, {"tiny": LatentCache(tiny_latents)}, "", None)["train"]

    assert not {"scenes_share", "num_timesteps", "whole_weight"} & learnt().keys()
    assert learnt(scenes_share=0.5)["scenes_share"] == 0.5 and learnt(num_timesteps=10)["num_timesteps"] == 10
    assert learnt(whole_weight=3)["whole_weight"] == 3


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


def test_rows_are_reported_when_they_are_in_the_file(tiny, tiny_latents, tiny_backbone, tmp_path):
    rows, out = [], tmp_path / "model"

    def report(row):
        rows.append(row)
        assert read_rows(state_of(out) / "metrics.jsonl") == rows

    run(tiny, tiny_latents, tiny_backbone, out, report=report, plot=tmp_path / "train.csv")
    assert len(rows) == 6
    lines = (tmp_path / "train.csv").read_text().splitlines()
    assert lines[0] == "step,loss,lr,grad_norm" and len(lines) == len(rows) + 1


def test_steps_are_written_to_the_progress_file(tiny, tiny_latents, tiny_backbone, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv(PROGRESS_FILE, str(tmp_path / "progress.json"))
    with caplog.at_level("INFO"):
        out = run(tiny, tiny_latents, tiny_backbone, tmp_path / "model")
    assert read_progress(tmp_path / "progress.json") == StageProgress(12, 12, "steps")
    assert re.search(r"train: 12 of 12 steps, loss \d\.\d{4}", caplog.text)
    shutil.rmtree(state_of(out) / "step-000012")
    caplog.clear()
    with caplog.at_level("INFO"):
        run(tiny, tiny_latents, tiny_backbone, out)
    assert "resuming at step 8 of 12" in caplog.text and "train: 12 of 12 steps" in caplog.text


def test_a_run_with_other_params_moves_the_old_state_aside_and_back(
    tiny, tiny_latents, tiny_backbone, tiny_model, tmp_path, caplog
):
    out = run(tiny, tiny_latents, tiny_backbone, tmp_path / "model")
    run(tiny, tiny_latents, tiny_backbone, out, changes={"lr": 2e-3})
    assert digest_folder(out) != digest_folder(tiny_model)
    assert "a run with other params or data is moved to" in caplog.text
    caplog.clear()
    with caplog.at_level("INFO"):
        run(tiny, tiny_latents, tiny_backbone, out)
    assert "resuming at step 12 of 12" in caplog.text and digest_folder(out) == digest_folder(tiny_model)


# -- updates left out -------------------------------------------------------------------------------------


@pytest.fixture
def faults(monkeypatch):
    """Losses of chosen steps times a number; a step is known by its first draw of the objective."""
    from metricgold.train.objective import Objective

    def spoil(factors):
        draws, loss = Objective.draws, Objective.loss

        def listen(self, shapes, step):
            self.at_step = step + 1
            return draws(self, shapes, step)

        monkeypatch.setattr(Objective, "draws", listen)
        monkeypatch.setattr(Objective, "loss", lambda self, *args: loss(self, *args) * factors.get(self.at_step, 1.0))

    return spoil


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_an_update_that_is_not_finite_is_left_out_and_its_frames_are_named(
    tiny, tiny_latents, tiny_backbone, tmp_path, faults, factor
):
    faults({3: factor, 4: factor, 7: factor})
    out = run(tiny, tiny_latents, tiny_backbone, tmp_path / "model", changes={"max_skipped": 2})
    rows = read_rows(state_of(out) / "metrics.jsonl")
    assert [row["step"] for row in rows] == [2, 6, 8, 10, 12]  # nothing to say of steps 3 and 4
    assert [row.get("skipped", 0) for row in rows] == [0, 2, 3, 3, 3]
    assert np.isfinite([value for row in rows for value in row.values()]).all()
    bad = read_rows(state_of(out) / "bad_batches.jsonl")
    assert [row["step"] for row in bad] == [3, 4, 7] and "loss is" in bad[0]["fault"]
    assert len(bad[0]["frames"]) == 4 and bad[0]["frames"][0].startswith(f"{tiny.datasets[0]}: env1")
    weights = load_file(out / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.isfinite(weight).all() for weight in weights.values())


def test_too_many_in_a_row_end_the_run_and_the_checkpoint_stands(tiny, tiny_latents, tiny_backbone, tmp_path, faults):
    faults({step: float("nan") for step in range(6, 13)})
    out = tmp_path / "model"
    with pytest.raises(ValueError, match=r"step 8: 3 updates in a row .*max_skipped is 2.*bad_batches.jsonl"):
        run(tiny, tiny_latents, tiny_backbone, out, changes={"max_skipped": 2})
    assert not out.exists() and position(state_of(out)) == 4
    assert [row["step"] for row in read_rows(state_of(out) / "bad_batches.jsonl")] == [6, 7, 8]


def test_a_spike_far_above_the_median_is_left_out(tiny, tiny_latents, tiny_backbone, tmp_path, faults):
    faults({2: 1e4, 25: 1e4})  # of step 2 nothing is known yet
    out = run(tiny, tiny_latents, tiny_backbone, tmp_path / "model", changes={"num_steps": 30, "spike_factor": 50.0})
    bad = read_rows(state_of(out) / "bad_batches.jsonl")
    assert [row["step"] for row in bad] == [25] and "over 50 times the median of late" in bad[0]["fault"]


# -- what happens to disks, caches and packages -----------------------------------------------------------


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("I/O error: os error 28")])
def test_a_full_disk_keeps_the_checkpoint_before_and_says_so(
    tiny, tiny_latents, tiny_backbone, tiny_model, tmp_path, monkeypatch, caplog, error
):
    from metricgold.train import checkpoints

    save_file = checkpoints.save_file

    def full(tensors, path):
        if "step-000008" in str(path) and path.name == "optimizer.safetensors":
            raise error
        save_file(tensors, path)

    monkeypatch.setattr(checkpoints, "save_file", full)
    out = run(tiny, tiny_latents, tiny_backbone, tmp_path / "model")
    assert sorted(path.name for path in state_of(out).glob("step-*")) == ["step-000004", "step-000012"]
    assert not list(state_of(out).glob(".*")) and "step-000008 not saved" in caplog.text
    assert digest_folder(out) == digest_folder(tiny_model)


def test_a_checkpoint_that_a_power_cut_broke_is_passed_over(
    tiny, tiny_latents, tiny_backbone, tiny_model, tmp_path, caplog
):
    out = run(tiny, tiny_latents, tiny_backbone, tmp_path / "model")
    broken = state_of(out) / "step-000012" / "optimizer.safetensors"
    broken.write_bytes(broken.read_bytes()[:-100])
    shutil.rmtree(out)
    run(tiny, tiny_latents, tiny_backbone, out)
    assert "step-000012 is broken" in caplog.text and digest_folder(out) == digest_folder(tiny_model)


def test_weights_and_rows_are_on_the_disk_before_a_folder_vouches_for_them(
    tiny, tiny_latents, tiny_backbone, tmp_path, monkeypatch
):
    """Checkpoints, best weights and the model; a checkpoint vouches for the rows before it too."""
    out = tmp_path / "model"

    def vouched(source, target):
        rows = [state_of(out) / "metrics.jsonl"] if target.name.startswith("step-") else []
        return [*below(source), *rows] if source.is_dir() and target.name[0] != "." else []

    cut = PowerCut(monkeypatch, tmp_path, vouched)
    run(tiny, tiny_latents, tiny_backbone, out, changes=LOOK, validate=scripted([0.5, 0.4, 0.3, 0.4, 0.4, 0.4]))
    assert {"model", "model.state/best", *(f"model.state/step-{step:06d}" for step in (4, 8, 12))} <= set(cut.seen)
    assert cut.lost == []


def test_a_foreign_folder_in_the_place_of_the_result_is_refused_before_training(
    tiny, tiny_latents, tiny_backbone, tmp_path
):
    out = tmp_path / "model"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"model holds none of lineage\.json: it was not made here"):
        run(tiny, tiny_latents, tiny_backbone, out)
    assert not state_of(out).exists() and (out / "thesis.tex").exists()


def test_a_checkpoint_is_kept_for_each_that_may_be(tiny, tiny_latents, tiny_backbone, tmp_path):
    out = run(tiny, tiny_latents, tiny_backbone, tmp_path / "model", changes={"keep_checkpoints": 1})
    assert [path.name for path in state_of(out).glob("step-*")] == ["step-000012"]


def test_a_shard_that_breaks_on_the_way_is_one_clear_error(tiny, tiny_latents, tiny_backbone, tmp_path):
    latents, out = shutil.copytree(tiny_latents, tmp_path / "latents"), tmp_path / "model"
    for shard in latents.glob("*.h5"):
        shard.write_bytes(shard.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"\.h5 cannot be read as a shard.*encode it again"):
        run(tiny, latents, tiny_backbone, out)


def test_moments_of_eight_bits_need_their_package(tiny, tiny_latents, tiny_backbone, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(
        ValueError, match=r"^bitsandbytes is not installed, which this needs: pip install 'metricgold\[adam8bit\]'$"
    ):
        run(tiny, tiny_latents, tiny_backbone, tmp_path / "model", changes={"optimizer": "adamw8bit"})


def test_an_optimiser_s_state_comes_back_whatever_it_holds():
    """As bitsandbytes keeps it: bytes, plain numbers, a table that all parameters share, memory formats."""
    table, weights = torch.arange(256.0), [torch.nn.Parameter(torch.randn(2, 3, 4, 4)) for _ in range(2)]
    weights[1].data = weights[1].data.to(memory_format=torch.channels_last)

    def optimizer(filled):
        one = torch.optim.AdamW(weights)
        for i, weight in enumerate(weights if filled else ()):
            one.state[weight] = {"step": 7 + i, "qmap1": table, "state1": torch.empty_like(weight).fill_(i)}
        return one

    tensors, numbers = flat_state(optimizer(filled=True))
    assert numbers == {"0.step": 7, "1.step": 8}
    assert len({tensor.data_ptr() for name, tensor in tensors.items() if "qmap" in name}) == 2
    found = optimizer(filled=False)
    load_flat_state(found, {name: tensor.contiguous() for name, tensor in tensors.items()} | numbers)
    for i, weight in enumerate(weights):
        assert found.state[weight]["step"] == 7 + i and torch.equal(found.state[weight]["qmap1"], table)
        assert found.state[weight]["state1"].stride() == weight.stride()
        assert (found.state[weight]["state1"] == i).all()


@pytest.mark.parametrize("changes", [{"channels_last": True}, {"gradient_checkpointing": True}])
def test_what_only_saves_time_or_memory_changes_rounding_alone(tiny, tiny_latents, tiny_backbone, tmp_path, changes):
    weights = []
    for name, more in (("plain", {}), ("changed", changes)):
        out = run(tiny, tiny_latents, tiny_backbone, tmp_path / name, changes={"num_steps": 3} | more)
        weights.append(load_file(out / "unet" / "diffusion_pytorch_model.safetensors"))
    for name, one in weights[0].items():
        torch.testing.assert_close(one, weights[1][name], atol=2e-4, rtol=0)


@pytest.mark.parametrize("changes", [{"channels_last": True}, {"optimizer": "adamw8bit"}])
def test_other_memory_resumes_to_the_same_bytes(tiny, tiny_latents, tiny_backbone, tmp_path, changes):
    if "optimizer" in changes:
        pytest.importorskip("bitsandbytes")
    out = run(tiny, tiny_latents, tiny_backbone, tmp_path / "model", changes=changes)
    digest = digest_folder(out)
    shutil.rmtree(state_of(out) / "step-000012")
    run(tiny, tiny_latents, tiny_backbone, out, changes=changes)
    assert digest_folder(out) == digest


@pytest.mark.slow
def test_compiling_changes_rounding_alone_and_no_name(tiny, tiny_latents, tiny_backbone, tmp_path, monkeypatch):
    """Traced, but not made faster: that takes minutes here."""
    monkeypatch.setattr(UNet2DConditionModel, "compile", lambda self: torch.nn.Module.compile(self, backend="eager"))
    weights = []
    for compiled in (False, True):
        changes = {"num_steps": 2, "compile": compiled, "ema_decay": 0.0}
        out = run(tiny, tiny_latents, tiny_backbone, tmp_path / str(compiled), changes=changes)
        weights.append(load_file(out / "unet" / "diffusion_pytorch_model.safetensors"))
    assert weights[0].keys() == weights[1].keys()
    for name, one in weights[0].items():
        torch.testing.assert_close(one, weights[1][name], atol=2e-4, rtol=0)


def test_frames_of_two_sizes_are_learnt_together_whatever_the_micro_batch(
    tiny, mixed_latents, tiny_backbone, tmp_path, monkeypatch
):
    shapes, weights, loss = [], [], TrainingRun.loss
    monkeypatch.setattr(
        TrainingRun,
        "loss",
        lambda self, inputs, *rest: shapes.append(inputs["depth"].shape) or loss(self, inputs, *rest),
    )
    for micro in (1, 2, 4):
        out = tmp_path / str(micro)
        run(tiny, mixed_latents, tiny_backbone, out, changes={"micro_batch_size": micro, "num_steps": 3})
        weights.append(load_file(out / "unet" / "diffusion_pytorch_model.safetensors"))
        assert {tuple(shape[1:]) for shape in shapes} == {(4, 16, 24), (4, 24, 16)}
        assert sum(shape[0] for shape in shapes) == 3 * 4 and max(shape[0] for shape in shapes) <= micro
        shapes.clear()
    for other in weights[1:]:
        for name, one in weights[0].items():
            torch.testing.assert_close(one, other[name], atol=2e-4, rtol=0)


def test_a_run_on_two_sizes_resumes_to_the_same_bytes(tiny, mixed_latents, tiny_backbone, tmp_path):
    out = run(tiny, mixed_latents, tiny_backbone, tmp_path / "model")
    digest = digest_folder(out)
    shutil.rmtree(state_of(out) / "step-000012")
    run(tiny, mixed_latents, tiny_backbone, out)
    assert digest_folder(out) == digest


@pytest.fixture
def fresh_accelerate():
    """accelerate takes one precision for the life of a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_bf16_keeps_weights_and_moments_in_float32(tiny, tiny_latents, tiny_backbone, tmp_path, fresh_accelerate):
    out = run(tiny, tiny_latents, tiny_backbone, tmp_path / "model", changes={"mixed_precision": "bf16"})
    for name in ("unet", "optimizer", "average"):
        tensors = load_file(state_of(out) / "step-000012" / f"{name}.safetensors")
        assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


@pytest.mark.parametrize(("found", "expected"), [({"avx512_bf16": True}, "bf16"), ({"avx2": True}, "no")])
def test_auto_is_bf16_where_the_processor_has_it_and_lineage_names_it(
    tiny, tiny_latents, tiny_backbone, tmp_path, fresh_accelerate, monkeypatch, found, expected
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    changes = {"mixed_precision": "auto", "num_steps": 2, "decay_steps": 2}
    out = run(tiny, tiny_latents, tiny_backbone, tmp_path / "model", changes=changes)
    assert json.loads((out / "lineage.json").read_text())["train"]["mixed_precision"] == expected
    assert AcceleratorState().mixed_precision == expected


# -- validation -------------------------------------------------------------------------------------------

LOOK = {"validation": {"every": 2, "patience": 3, "metric": "abs_rel"}}


def scripted(values, seen=None):
    """A validation that gives these values in turn, by step."""

    def validate(pipe, step):
        if seen is not None:
            seen[step] = {name: weight.clone() for name, weight in pipe.unet.state_dict().items()}
        return {"abs_rel": values[step // 2 - 1], "delta1": 0.5}

    return validate


def test_the_best_weights_become_the_model_and_patience_ends_the_run(tiny, tiny_latents, tiny_backbone, tmp_path):
    seen = {}
    validate = scripted([0.5, 0.3, 0.4, 0.4, 0.4, 0.1], seen)
    out = run(tiny, tiny_latents, tiny_backbone, tmp_path / "model", changes=LOOK, validate=validate)
    assert sorted(seen) == [2, 4, 6, 8, 10]  # three without a better one after step 4
    found = {row["step"]: row["val_abs_rel"] for row in read_rows(state_of(out) / "metrics.jsonl")}
    assert found == {2: 0.5, 4: 0.3, 6: 0.4, 8: 0.4, 10: 0.4}
    exported = load_file(out / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(exported[name], weight) for name, weight in seen[4].items())
    assert json.loads((out / "lineage.json").read_text())["step"] == 4
    digest = digest_folder(out)
    run(tiny, tiny_latents, tiny_backbone, out, changes=LOOK, validate=validate)  # run again: no step, same bytes
    assert digest_folder(out) == digest and sorted(seen) == [2, 4, 6, 8, 10]


def test_looking_changes_nothing_that_is_learnt_and_resumes(tiny, tiny_latents, tiny_backbone, tiny_model, tmp_path):
    validate = scripted([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])  # the last weights are the best
    out = run(tiny, tiny_latents, tiny_backbone, tmp_path / "model", changes=LOOK, validate=validate)
    name = "unet/diffusion_pytorch_model.safetensors"
    assert (out / name).read_bytes() == (tiny_model / name).read_bytes()
    metrics, digest = (state_of(out) / "metrics.jsonl").read_bytes(), digest_folder(out)
    shutil.rmtree(state_of(out) / "step-000012")
    run(tiny, tiny_latents, tiny_backbone, out, changes=LOOK, validate=validate)
    assert digest_folder(out) == digest and (state_of(out) / "metrics.jsonl").read_bytes() == metrics


def broken_in_each_way(best):
    weights = best / "unet.safetensors"
    yield lambda: weights.write_bytes(weights.read_bytes()[:-100])
    yield lambda: (best / "state.json").write_text("")
    yield lambda: [path.unlink() for path in best.iterdir()]
    yield lambda: shutil.rmtree(best)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_best_weights_that_broke_are_made_again_from_their_checkpoint(
    tiny, tiny_latents, tiny_backbone, tmp_path, caplog, ema
):
    options = {"changes": LOOK | {"ema_decay": ema}, "validate": scripted([0.5, 0.4, 0.4, 0.3, 0.4, 0.4])}
    out = run(tiny, tiny_latents, tiny_backbone, tmp_path / "model", **options)
    assert json.loads((out / "lineage.json").read_text())["step"] == 8  # of which there is a checkpoint
    best, digest = state_of(out) / "best", digest_folder(out)
    for break_it in broken_in_each_way(best):
        break_it()
        caplog.clear()
        run(tiny, tiny_latents, tiny_backbone, out, **options)
        assert "best did not hold the weights of step 8" in caplog.text and "made again" in caplog.text
        assert digest_folder(out) == digest
    caplog.clear()
    run(tiny, tiny_latents, tiny_backbone, out, **options)
    assert "best" not in caplog.text


@pytest.mark.parametrize("way", range(4))
def test_best_weights_that_cannot_be_made_again_are_named_and_end_nothing(
    tiny, tiny_latents, tiny_backbone, tmp_path, caplog, way
):
    seen = {}
    options = {"changes": LOOK, "validate": scripted([0.5, 0.4, 0.2, 0.3, 0.4, 0.25], seen)}
    out = run(tiny, tiny_latents, tiny_backbone, tmp_path / "model", **options)
    assert json.loads((out / "lineage.json").read_text())["step"] == 6
    list(broken_in_each_way(state_of(out) / "best"))[way]()
    shutil.rmtree(state_of(out) / "step-000012")
    run(tiny, tiny_latents, tiny_backbone, out, **options)  # on resume at step 8: the best of the validations to come
    assert "best does not hold the best weights, of step 6" in caplog.text
    assert json.loads((out / "lineage.json").read_text())["step"] == 12
    exported = load_file(out / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(exported[name], weight) for name, weight in seen[12].items())


def test_best_weights_that_break_while_it_runs_cost_no_training(tiny, tiny_latents, tiny_backbone, tmp_path, caplog):
    out, seen = tmp_path / "model", {}
    look = scripted([0.5, 0.4, 0.2, 0.3, 0.4, 0.25], seen)

    def validate(pipe, step):
        if step == 12:
            shutil.rmtree(state_of(out) / "best")
        return look(pipe, step)

    run(tiny, tiny_latents, tiny_backbone, out, changes=LOOK, validate=validate)
    assert "best does not hold the best weights, of step 6" in caplog.text
    assert json.loads((out / "lineage.json").read_text())["step"] == 12
    exported = load_file(out / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(exported[name], weight) for name, weight in seen[12].items())


def test_validation_measures_held_out_frames_in_metres(tiny, tiny_raw, tiny_latents, tiny_backbone, tmp_path):
    from metricgold.evaluate.validation import held_out_validation
    from metricgold.metrics import METRICS

    changes = {"validation": {"every": 6, "split": "test", "frames_per_dataset": 2, "metric": "delta1"}}
    params = tiny.train.model_validate(tiny.train.model_dump() | changes)
    raw_folders = {tiny.datasets[0]: tiny_raw}
    out, pictures = tmp_path / "model", []

    def report(row):
        """The picture is in place when its row is announced."""
        if "val_delta1" in row:
            pictures.append((state_of(out) / "samples" / f"step-{row['step']:06d}.png").is_file())

    validate = held_out_validation(params.validation, tiny.log_depth, raw_folders, state_of(out) / "samples")
    options = {"validate": validate, "report": report, "plot": tmp_path / "train.csv"}
    run(tiny, tiny_latents, tiny_backbone, out, changes=changes, **options)
    assert pictures == [True, True]
    rows = [row for row in read_rows(state_of(out) / "metrics.jsonl") if "val_delta1" in row]
    assert [row["step"] for row in rows] == [6, 12]
    assert all(np.isfinite(row[f"val_{name}"]) for row in rows for name in METRICS)
    assert [path.name for path in sorted((state_of(out) / "samples").iterdir())] == [
        "step-000006.png",
        "step-000012.png",
    ]
    assert (tmp_path / "train.csv").read_text().startswith("step,loss,lr,grad_norm,val_abs_rel")
    missing = params.validation.model_copy(update={"split": "val"})
    with pytest.raises(ValueError, match="no split 'val'; known: train, test"):
        held_out_validation(missing, tiny.log_depth, raw_folders, tmp_path)


def test_validation_without_anything_to_validate_with_is_refused(tiny, tiny_latents, tiny_backbone, tmp_path):
    with pytest.raises(ValueError, match=r"train\.validation is set"):
        run(tiny, tiny_latents, tiny_backbone, tmp_path / "model", changes=LOOK)


# -- kills ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_at_random_steps_it_ends_with_the_same_bytes(project, trained_in_project):
    """Processes killed -9, forked from one that has imported everything; the last one is left alone."""
    out, state, rng = project / "models/metricgold", project / "models/metricgold.state", np.random.default_rng()
    undisturbed, metrics = trained_in_project
    server, killed = multiprocessing.get_context("forkserver"), 0
    server.set_forkserver_preload(["metricgold.train.stage"])
    for want in np.sort(rng.integers(0, 70, size=tries(20))):
        child = server.Process(target=_train_in, args=(project,))
        child.start()
        wait_until(lambda: not child.is_alive() or position(state) >= want, every_s=0.002)  # noqa: B023
        child.join(timeout=rng.uniform(0, 0.05))  # anywhere in a step
        child.kill()
        child.join()
        killed += child.exitcode == -signal.SIGKILL
    assert killed == tries(20) and not out.exists(), "the kills came too late to mean anything"
    _train_in(project)
    assert digest_folder(out) == undisturbed
    assert (state / "metrics.jsonl").read_bytes() == metrics


def _train_in(project):
    params = load_params(project / "params.yaml")
    caches = {name: project / "data" / "latents" / name for name in params.datasets}
    models = project / "models"
    train(params.train, params.log_depth, caches, models / "backbone", models / "metricgold")


@pytest.mark.slow
def test_sigterm_saves_where_it_is(project, trained_in_project):
    out, state = project / "models" / "metricgold", project / "models" / "metricgold.state"
    command = [sys.executable, "-m", "metricgold.cli", "train", "--no-track"]
    log = project / "log"
    with log.open("w") as file:
        child = subprocess.Popen(command, cwd=project, stdout=subprocess.DEVNULL, stderr=file)
    wait_until(lambda: child.poll() is not None or position(state) >= 7)
    child.send_signal(signal.SIGTERM)
    assert child.wait(timeout=60) == 128 + signal.SIGTERM
    assert "and saved; run the same command to resume" in log.read_text()
    assert position(state) >= 7 and not out.exists()
    subprocess.run(command, cwd=project, check=True, capture_output=True)
    assert digest_folder(out) == trained_in_project[0]


@pytest.mark.slow
@pytest.mark.parametrize("latents", ["tiny_latents", "mixed_latents"])
def test_two_processes_learn_what_one_learns_and_one_of_them_writes(tiny, project, latents, request):
    """Started by `accelerate launch`: the same draws in the same order, shared out; gloo on the CPU.

    Of frames of two sizes the processes have micro-batches in different numbers.
    """
    cache = project / "data" / "latents" / tiny.datasets[0]
    shutil.rmtree(cache)
    shutil.copytree(request.getfixturevalue(latents), cache)
    values = yaml.safe_load((project / "params.yaml").read_text())
    values["train"] |= {"num_steps": 6, "decay_steps": 6, "checkpoint_every": 3, "log_every": 1}
    (project / "params.yaml").write_text(yaml.safe_dump(values))
    out, state = project / "models" / "metricgold", project / "models" / "metricgold.state"
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes=2", "--num_machines=1"]
    options = ["--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"]
    command = [sys.executable, *launch, *options, "-m", "metricgold.cli", "train", "--no-track"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    weights = load_file(out / "unet" / "diffusion_pytorch_model.safetensors")
    rows = read_rows(state / "metrics.jsonl")
    shutil.rmtree(out), shutil.rmtree(state)
    _train_in(project)
    for row, alone in zip(rows, read_rows(state / "metrics.jsonl"), strict=True):
        assert row == pytest.approx(alone, rel=1e-3)
    for name, one in load_file(out / "unet" / "diffusion_pytorch_model.safetensors").items():
        torch.testing.assert_close(weights[name], one, atol=2e-4, rtol=0)


def position(state):
    """The step of the newest complete checkpoint."""
    return max((int(path.name[5:]) for path in state.glob("step-*")), default=0)


@pytest.fixture
def trained_in_project(project):
    """Bytes of an undisturbed run, which is then forgotten."""
    out, state = project / "models" / "metricgold", project / "models" / "metricgold.state"
    _train_in(project)
    digest, metrics = digest_folder(out), (state / "metrics.jsonl").read_bytes()
    shutil.rmtree(out)
    shutil.rmtree(state)
    return digest, metrics
