"""What a study will cost before anything starts: runs, hours and disk.

Operations are counted, those of training as `metricgold plan` counts them. Hours are theirs over how fast this machine
takes training steps, which is measured now, or over the assumed share of a card's peak. What several runs share, or is
in the store, counts once, or not at all. Left out are rendering, reading and decoding of images, and the start of
processes.
"""

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from metricgold.evaluate import chosen_protocols
from metricgold.params import Folders, Params, Synthesize
from metricgold.study.definition import FOLDER, TWIN, Run, World, load_study, runs_of
from metricgold.study.results import Results
from metricgold.study.store import Store, names_of, world_name
from metricgold.train import (
    ASSUMED_MFU,
    GPUS,
    flops_per_sample,
    forward_flops,
    latent_shape,
    measured_flops_per_s,
    model_configs,
    num_training_frames,
    plan_training,
    refusal,
    step_flops,
    vae_flops,
)

KINDS = {"backbone": "backbones", "latents": "caches", "depth-vae": "decoders", "model": "trainings"}
WIDEST = 3.4  # width over height of the widest benchmark's images
BYTES_OF_PIXEL = 10  # of the largest format
GENERATED_AT_ONCE = 16  # images in a step of the stand-in's own pre-training


def plan_study(name: str, params: Params, *, card: str | None = None, folders: Folders | None = None) -> dict[str, Any]:
    """Count a study's runs, what they share, operations, hours and disk; nothing is made.

    card  of `metricgold plan`; this machine if none is named

    Raises ValueError for a fault of the study, for an unknown card, and where a run does not fit it.
    """
    folders = folders or Folders()
    if card is not None and card not in GPUS:
        raise ValueError(f"no card {card!r}; known: {', '.join(GPUS)}")
    study, store = load_study(name, folders.root / FOLDER), Store(folders)
    runs = runs_of(study, params, name)
    if_there = [one for one in study.measures.if_there if store.is_there(one)]
    results = Results(name, study, folders.root / FOLDER / "results", if_there)
    missing = [run for run in runs if not results.has(run)]
    flops, disk = _of_stages(runs, store, card)
    needed, _ = _of_stages(missing, store, card) if missing else ({}, {})
    rendered = {
        world_name(dataset, world): _rendered_bytes(world) for run in runs for dataset, world in run.worlds.items()
    }
    left = {one: amount for one, amount in needed.items() if not store.path(one).exists()}
    speed = _flops_per_s(runs[0].params, card, store)
    in_all = sum(flops.values()) + sum(_of_measuring(run, store) for run in runs)
    still = sum(left.values()) + sum(_of_measuring(run, store) for run in missing)
    return {
        "study": name,
        "runs": len(runs),
        "measured": len(runs) - len(missing),
        **{word: sum(one.startswith(f"{kind}-") for one in flops) for kind, word in KINDS.items()},
        "rendered": len(rendered),
        "tflop": _short(in_all / 1e12),
        "tflop_per_s": _short(speed / 1e12),
        "on": GPUS[card].title if card else "this machine, as busy as it is now",
        "hours": _short(in_all / speed / 3600),
        "hours_left": _short(still / speed / 3600),
        "calls_left": int(-(-still / speed // study.budget_s(params))),
        "disk_gb": _short((sum(disk.values()) + sum(rendered.values())) / 1e9),
    }


def _short(value: float) -> float:
    return float(f"{value:.3g}")


def _contents(run: Run, store: Store) -> dict[str, str]:
    """Digests of the raw data that a run trains on; where they are not there, the folder's name stands for them."""
    try:
        return store.contents(run)
    except (ValueError, OSError):
        return {name: raw.name for name, raw in store.raws(run).items()}


def _rendered_bytes(world: World) -> int:
    """Of a rendered data set, at most; while it is rendered, its archives take as much again."""
    width = world.width if isinstance(world, Synthesize) else WIDEST * world.height
    return int(2 * world.num_scenes * world.frames_per_scene * world.height * width * BYTES_OF_PIXEL)


def _flops_per_s(params: Params, card: str | None, store: Store) -> float:
    if card is not None:
        gpu = GPUS[card]
        return ASSUMED_MFU * (gpu.fp32_flops if params.train.mixed_precision == "no" else gpu.bf16_flops)
    unet, vae = model_configs(params.backbone, store.folders.backbone)
    return measured_flops_per_s(unet, latent_shape(params, vae, store.path("none"), params.datasets[0]), params.train)


def _of_stages(runs: Iterable[Run], store: Store, card: str | None) -> tuple[dict[str, float], dict[str, float]]:
    """Operations and bytes of each output that the runs need, by its name in the store."""
    flops: dict[str, float] = {}
    disk: dict[str, float] = {}
    for run in runs:
        params, names = run.params, names_of(run.params, _contents(run, store))
        if names.training in flops:
            continue
        backbone, nowhere = store.folders.backbone, store.path("none")
        plan = plan_training(params, backbone, nowhere, card=card)
        if why_not := refusal(plan):
            raise ValueError(f"{run}: {why_not}")
        sizes = plan["disk_bytes"]
        flops[names.training] = params.train.num_steps * step_flops(params, backbone, nowhere)
        disk[names.training] = sizes["models/metricgold"]
        disk["state"] = max(disk.get("state", 0), sizes["models/metricgold.state"])  # of one training at a time
        flops[names.backbone], disk[names.backbone] = _of_backbone(params), sizes["models/backbone"]
        encoding = _vae_flops(params)[0]
        for dataset, cache in names.caches.items():
            num_frames = num_training_frames(params, dataset) or 0
            flops[cache] = 2 * encoding * num_frames * params.encode.views
            disk[cache] = sizes[f"latents of {dataset}"] or 0
        if names.depth_vae:
            flops[names.depth_vae], disk[names.depth_vae] = _of_decoder(params), sizes["models/depth-vae"]
    return flops, disk


def _vae_flops(params: Params, height: int = 0, width: int = 0) -> tuple[int, int]:
    """Of encoding and decoding an image, of the size of training if no other is named."""
    _, vae = model_configs(params.backbone, Folders().backbone)
    return vae_flops(vae, height or params.encode.height, width or params.encode.width)


def _of_backbone(params: Params) -> float:
    """Of the stand-in's training; another backbone is only copied. A backward pass is two forward passes."""
    if params.backbone.source != "stand-in":
        return 0
    stand_in = params.backbone.stand_in
    unet, vae = model_configs(params.backbone, Folders().backbone)
    shape = latent_shape(params, vae, Path("none"), params.datasets[0])
    of_vae = 3 * sum(_vae_flops(params, stand_in.vae_crop, stand_in.vae_crop))
    vae_steps = stand_in.vae_steps if stand_in.vae == "trained" else 0
    of_unet = flops_per_sample(unet, shape, False)
    return vae_steps * stand_in.vae_batch_size * of_vae + stand_in.unet_steps * GENERATED_AT_ONCE * of_unet


def _of_decoder(params: Params) -> float:
    height, width = (min(params.depth_vae.crop, side) for side in (params.encode.height, params.encode.width))
    encoding, decoding = _vae_flops(params, height, width)
    return params.depth_vae.num_steps * params.depth_vae.batch_size * (encoding + 3 * decoding)


def _of_measuring(run: Run, store: Store) -> float:
    """Of all predictions of a run: the image through the VAE, the U-Net, and the VAE for each member."""
    params, total = run.params, 0.0
    unet, vae = model_configs(params.backbone, store.folders.backbone)
    encoding, decoding = _vae_flops(params)
    step = forward_flops(unet, latent_shape(params, vae, Path("none"), params.datasets[0]))
    measured = [(name, params.benchmark) for name in store.measured(run)]
    for name, inference in [*((name, params.evaluate) for name in run.tested), *measured]:
        most = inference.max_ensemble_size
        members = most if inference.ensemble_size == "auto" else inference.ensemble_size
        passes = inference.num_inference_steps * members
        total += _num_test_frames(params, name) * (encoding + passes * step + members * decoding)
    return total


def _num_test_frames(params: Params, name: str) -> int:
    """Of a set: as params render a twin, as the protocol pins a benchmark, or as many as are asked for."""
    if name in params.datasets:
        rendered = params.synthesize.num_test_scenes * params.synthesize.frames_per_scene
        asked = params.evaluate.frames_per_dataset
        there = rendered if name.endswith(TWIN) else num_training_frames(params, name) or 0
        return min(asked or there, there or asked or 0)
    if name.endswith(TWIN):
        there = params.synthesize_benchmark.num_scenes * params.synthesize_benchmark.frames_per_scene
    else:
        there = _num_pinned(name) or params.benchmark.frames or 0
    return min(there, params.benchmark.frames or there)


@functools.cache
def _num_pinned(benchmark: str) -> int:
    """Frames of a benchmark's default protocol; its file is read once for all runs."""
    return chosen_protocols(benchmark, ())[0].frames.count or 0


def describe_plan(plan: Mapping[str, Any]) -> str:
    """The plan as lines for people."""
    made = ", ".join(f"{word} {plan[word]}" for word in (*KINDS.values(), "rendered"))
    return "\n".join(
        [
            f"runs     {plan['runs']}, of which {plan['measured']} are measured; made once: {made}",
            f"work     {plan['tflop']:g} TFLOP, at {plan['tflop_per_s']:g} TFLOP/s on {plan['on']}",
            f"time     {plan['hours']:g} h in all, {plan['hours_left']:g} h left: calls {plan['calls_left']}",
            f"disk     {plan['disk_gb']:g} GB",
        ]
    )
