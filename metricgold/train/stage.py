"""The stage train: fine-tune the U-Net on latent caches (MetricGold, arXiv 2411.10886; Marigold, arXiv 2312.02145).

    models/metricgold/          the result: a diffusers pipeline folder with lineage.json
    models/metricgold.state/    what it resumes from (metricgold.train.resumable); besides: best/, the weights with the
                                best validation; samples/, its pictures; bad_batches.jsonl, updates that were left out
                                and their frames

Started by `accelerate launch`, all processes share each batch; only the first one holds the lock and writes.
"""

import csv
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from diffusers import AutoencoderKL

from metricgold.model import backbone_digest, load_backbone, load_depth_vae, made_from, vae_digest
from metricgold.params import CanonicalRange, LogDepthRange, Train
from metricgold.shards import LatentCache
from metricgold.storage import digest_json, only_writer, read_json, read_rows, require_ours, write_aside
from metricgold.train.precision import with_precision
from metricgold.train.resumable import Report, state_folder
from metricgold.train.run import Calibrate, TrainingRun, Validate


def train(
    params: Train,
    range_m: LogDepthRange,
    caches: dict[str, Path],
    backbone: Path,
    out: Path,
    *,
    depth_vae: Path | None = None,
    resume: str = "auto",
    plot: Path | None = None,
    report: Report | None = None,
    validate: Validate | None = None,
    calibrate: Calibrate | None = None,
) -> Path:
    """Train and write the pipeline folder `out`; what a later run resumes from is stored in `<out>.state`.

    depth_vae: what `metricgold depth-vae` made; the result decodes depth with it, and so does decoded_loss_weight.
    resume: "auto" continues from a checkpoint of exactly these params and data, "fresh" starts over. `report`
    receives every row of metrics.jsonl once the row is in the file; `plot` receives the same rows as CSV. `validate` is
    called as params.validation says: its figures join the row as val_<name>, and the weights with the best figure
    become the result. `calibrate` is asked, as params.uncertainty says, for the uncertainty_scale of the result.

    SIGTERM saves a checkpoint and exits 143; exit code 0 would tell DVC and Prefect that the model exists.
    Raises ValueError when the caches do not fit the backbone or each other, or when too many updates in a row had to
    be left out; BlockingIOError when another run writes here.
    """
    params, out, state = with_precision(params), Path(out), state_folder(out)
    require_ours(out, ["lineage.json"])  # now, not after the last step
    if params.validation and validate is None:
        raise ValueError("train.validation is set, but this run was given nothing to validate with")
    if params.uncertainty and calibrate is None:
        raise ValueError("train.uncertainty is set, but this run was given nothing to calibrate with")
    if ("canonical" in params.camera) != isinstance(range_m, CanonicalRange):
        raise ValueError(f"train.camera {params.camera} does not go with a range of {type(range_m).__name__}")
    opened = {name: LatentCache(path) for name, path in caches.items()}
    processing = _check_caches(opened, range_m, backbone)
    digest = backbone_digest(backbone)  # gigabytes for the real one: read once
    accelerator = Accelerator(mixed_precision=params.mixed_precision)
    with only_writer(state) if accelerator.is_main_process else nullcontext():
        parts = load_backbone(backbone) | ({"vae": _decoder(depth_vae, backbone, range_m)} if depth_vae else {})
        config = processing | {"near_m": range_m.near_m, "far_m": range_m.far_m, "encoding": range_m.encoding}
        config |= {name: getattr(params, name) for name in ("objective", "camera", "no_surface_from")}
        run = TrainingRun(params, opened, parts, config, state, accelerator, validate)
        run.start(_fingerprint(params, range_m, opened, digest, depth_vae), fresh=resume == "fresh")
        run.run(report)
        lineage = {
            "train": params.model_dump(),
            "log_depth": range_m.model_dump(),
            "backbone": made_from(backbone) | {"digest": digest},
            "depth_vae": read_json(depth_vae / "depth_vae.json") if depth_vae else None,
            "latents": {name: {"index": cache.digest, "num_frames": len(cache)} for name, cache in opened.items()},
        }
        run.export(out, lineage, calibrate if params.uncertainty else None)
        if plot is not None and accelerator.is_main_process:
            _write_plot(state / "metrics.jsonl", plot)
        accelerator.wait_for_everyone()
    return out


def _check_caches(caches: dict[str, LatentCache], range_m: LogDepthRange, backbone: Path) -> dict[str, Any]:
    """All caches must come from this VAE, this log depth and one size; returns what the pipeline keeps of it."""
    expected: dict[str, Any] = {"vae": vae_digest(backbone), "log_depth": range_m.model_dump()}
    sizes = {name: [cache.identity["encode"][side] for side in ("height", "width")] for name, cache in caches.items()}
    for name, cache in caches.items():
        for key, needed in expected.items():
            if (present := cache.identity[key]) != needed:
                raise ValueError(f"{cache.path}: {key} is {present}, this run needs {needed}; encode {name} again")
    if len({tuple(size) for size in sizes.values()}) != 1:
        raise ValueError(f"the latent caches differ in size: {sizes}")
    height, width = next(iter(sizes.values()))
    return {"processing_height": height, "processing_width": width, "trained_aspects": _aspects(caches)}


def _decoder(depth_vae: Path, backbone: Path, range_m: LogDepthRange) -> AutoencoderKL:
    """The VAE that decodes depth. ValueError also where it was fine-tuned on another encoding than the caches'."""
    vae, made = load_depth_vae(depth_vae, backbone), read_json(depth_vae / "depth_vae.json")
    learnt = made["log_depth"].get("encoding", "log")
    if made["depth_vae"]["num_steps"] and learnt != range_m.encoding:
        raise ValueError(
            f"{depth_vae} was fine-tuned on encoding {learnt}, this run needs {range_m.encoding}; "
            "run `metricgold depth-vae` again"
        )
    return vae


def _aspects(caches: dict[str, LatentCache]) -> list[float]:
    """Width over height of the narrowest and the widest frames, of those that most of a cache's frames are like."""
    commonest = [max(sizes, key=sizes.__getitem__) for sizes in (cache.index["sizes"] for cache in caches.values())]
    aspects = [int(width) / int(height) for height, width in (size.split("x") for size in commonest)]
    return [min(aspects), max(aspects)]


def _fingerprint(
    params: Train,
    range_m: LogDepthRange,
    caches: dict[str, LatentCache],
    backbone_sha256: str,
    depth_vae: Path | None,
) -> str:
    """Digest of everything that decides what is learnt."""
    # How often a run saves or reports, when it gives up, and what is measured or said once it is done, does not.
    # Camera, shares of scenes and crops and number of timesteps do where they are set: runs of before them resume.
    not_learnt = {"checkpoint_every", "keep_checkpoints", "log_every", "max_skipped", "uncertainty", "no_surface_from"}
    not_learnt |= set() if "token" in params.camera else {"camera_dropout"}
    not_learnt |= {"camera"} if params.camera == "none" else set()
    new_keys = ("scenes_share", "num_timesteps", "whole_weight")
    not_learnt |= {key for key in new_keys if getattr(params, key) == Train.model_fields[key].default}
    learnt = params.model_dump(exclude=not_learnt)
    decoder = read_json(depth_vae / "depth_vae.json") if depth_vae and params.decoded_loss_weight else None
    return digest_json(
        {
            "train": learnt,
            "log_depth": range_m.model_dump(),
            "caches": {name: cache.digest for name, cache in caches.items()},
            "backbone": backbone_sha256,
            "depth_vae": decoder,
        }
    )


def _write_plot(metrics: Path, plot: Path) -> None:
    """The rows of metrics.jsonl as CSV, the columns of every run first."""
    rows = read_rows(metrics)
    columns = ["step", "loss", "lr", "grad_norm"]
    columns += sorted({key for row in rows for key in row} - set(columns))
    with write_aside(plot) as aside, aside.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=columns)
        writer.writeheader()
        writer.writerows(rows)
