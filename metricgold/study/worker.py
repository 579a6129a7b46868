"""One process's part of a study: the inputs of a training that are missing, or else the model and its figures.

Never both in one process, so that the memory which is measured is that of training and prediction.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from metricgold.encode import encode
from metricgold.evaluate import held_out_calibration, held_out_validation
from metricgold.model import peak_memory_gb, prepare_backbone, reset_peak_memory
from metricgold.params import Params
from metricgold.storage import git_commit, only_writer, read_json, read_rows, remove, write_json
from metricgold.study.definition import Run
from metricgold.study.job import Job
from metricgold.study.measure import Sets, cost_of_image
from metricgold.study.store import Names, Store
from metricgold.train import SESSIONS, hardware, step_flops, train, train_depth_vae


def advance(job: Job) -> bool:
    """Make the inputs that are missing; where none are, train and measure. False where another call does that."""
    if make_inputs(job.runs[0], job.names, job.store):
        return True
    model, lock_path = job.store.path(job.names.training), job.store.lock_path(job.names.training)
    with ExitStack() as held:
        try:
            held.enter_context(only_writer(model, lock_path, waits=job.waits))
        except BlockingIOError:
            return False
        measure_missing(job, model)
    return True


def measure_missing(job: Job, model: Path) -> None:
    """Train the model, or take it up where it is, and measure the runs that have no rows."""
    params, done = job.runs[0].params, job.store.path(f"{job.names.training}.json")
    if missing := [run for run in job.runs if not job.results.has(run)]:
        reset_peak_memory()
        if not (model / "lineage.json").is_file() or not done.is_file():
            train_model(job.runs[0], job.names, job.store)
            rows = read_rows(_state_of(model) / SESSIONS)
            write_json(done, {"train_s": sum(row["seconds"] for row in rows), "peak_gb": peak_memory_gb()})
        # Gigabytes for a real one. Before the rows: once all are there, no call looks here again.
        remove(_state_of(model))
        facts = read_json(done) | cost_of_training(params, job)
        sets = Sets(missing[0], model, job.names, job.store)
        for run in missing:
            if run.worlds != sets.run.worlds:
                sets = Sets(run, model, job.names, job.store)
            figures, image_s = sets.measure(run)
            costs = facts | cost_of_image(run, model, sets) | {"image_s": image_s}
            costs["peak_gb"] = max(facts["peak_gb"], peak_memory_gb())
            job.results.add(run, {key: _short(value) for key, value in costs.items()}, figures)


def make_inputs(run: Run, names: Names, store: Store) -> bool:
    """Backbone, latent caches and decoder of depth, as far as they are missing; whether any was."""
    params, raws, backbone = run.params, store.raws(run), store.path(names.backbone)

    def make_backbone(out: Path) -> None:
        prepare_backbone(params.backbone, params.log_depth, raws, out)

    def make_decoder(out: Path) -> None:
        size, metrics = (params.encode.height, params.encode.width), out.with_name(f"{out.name}.json")
        train_depth_vae(params.depth_vae, params.depth_range, raws, backbone, out, metrics, size=size)

    made = [store.make_once(names.backbone, "backbone.json", make_backbone)]
    for dataset, name in names.caches.items():

        def make_cache(out: Path, dataset: str = dataset) -> None:
            encode(dataset, params.encode, params.depth_range, raws[dataset], backbone, out)

        made.append(store.make_once(name, "index.json", make_cache))
    if names.depth_vae:
        scratch = _state_of(store.path(names.depth_vae))
        made.append(store.make_once(names.depth_vae, "depth_vae.json", make_decoder, scratch))
    return any(made)


def train_model(run: Run, names: Names, store: Store) -> Path:
    """Train the model of a run, or resume its training."""
    params, out, raws = run.params, store.path(names.training), store.raws(run)
    section, validate = params.train, None
    if section.validation:
        samples = _state_of(out) / "samples"
        validate = held_out_validation(section.validation, params.depth_range, raws, samples)
    return train(
        section,
        params.depth_range,
        {dataset: store.path(name) for dataset, name in names.caches.items()},
        store.path(names.backbone),
        out,
        depth_vae=store.path(names.depth_vae) if names.depth_vae else None,
        validate=validate,
        calibrate=held_out_calibration(section.uncertainty, raws) if section.uncertainty else None,
    )


def cost_of_training(params: Params, job: Job) -> dict[str, Any]:
    """By which code and machine, with how many passes of the U-Net and operations."""
    commit = git_commit(job.store.folders.root)
    flops = step_flops(params, job.store.path(job.names.backbone), job.store.path("none"))
    return {
        "commit": f"{commit[0][:12]}{'+' if commit[1] else ''}" if commit else "none",
        "machine": hardware(),
        "train_passes": params.train.num_steps * params.train.batch_size,
        "train_tflop": params.train.num_steps * flops / 1e12,
    }


def _state_of(model: Path) -> Path:
    return model.with_name(f"{model.name}.state")


def _short(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value
