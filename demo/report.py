"""The demo's images, and what it shows at its end: one self-contained page and one flat JSON."""

import io
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from metricgold.datasets import evenly_spaced, list_frames, read_frame
from metricgold.images import (
    ERROR_COLOURS,
    WORST_SHOWN,
    ColourScale,
    Example,
    colour_depth,
    colour_error,
    colour_share,
    css_gradient,
    data_uri,
    depth_scale,
    load_template,
    png_bytes,
    read_log_depth_png,
    read_rgb,
    read_uncertainty_png,
)
from metricgold.metrics import depth_metrics
from metricgold.params import Folders
from metricgold.registry import dvc_outputs
from metricgold.storage import git_commit, read_json, read_rows, write_aside, write_json

IMAGES = Path("data/demo/images")  # what the demo predicts on
TRUTH = Path("data/demo/truth")  # true depth of those that have one
DEPTH = Path("data/demo/depth")  # what it predicts
PICTURE = Path(".github/picture.png")

MAX_SHOWN = 40  # images on the page
SHOWN_PX = 480  # long side of each
MAX_PIXELS = 100_000_000
WORST_UNCERTAINTY_SHOWN = 0.25
UNCERTAINTY_COLOURS = "viridis"


# --- images for the demo ------------------------------------------------------------------------------------


def collect_demo_images(
    raw_folders: dict[str, Path], out: Path, extra: Sequence[Path], num_per_dataset: int = 4
) -> list[Path]:
    """Fill `out` with held-out frames of every data set as PNG, and with copies of the user's own images.

    True depth goes into the sibling folder `truth` as <name>.npz (planar_depth_m float32 [H, W], valid_mask,
    intrinsics, frame), so that `out` holds nothing but images. A folder in `extra` stands for all its files.
    Both folders are replaced. Returns the images in order. Raises FileNotFoundError for a missing file in
    `extra`, ValueError for a data set without held-out frames.
    """
    own: list[Path] = []
    for path in map(Path, extra):
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such image or folder")
        own += sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    names: list[str] = []
    truth_folder = Path(out).with_name(TRUTH.name)
    with write_aside(out, marks=["*-00.png"]) as images, write_aside(truth_folder, marks=["*-00.npz"]) as truth:
        images.mkdir()
        truth.mkdir()
        for dataset, raw in raw_folders.items():
            names += write_held_out(dataset, raw, images, truth, num_per_dataset)
        for file in own:
            name, number = f"yours-{file.name}", 1
            while (images / name).exists():
                number += 1
                name = f"yours-{number}-{file.name}"
            shutil.copyfile(file, images / name)
            names.append(name)
    return [Path(out) / name for name in names]


def write_held_out(dataset: str, raw: Path, images: Path, truth: Path, num: int) -> list[str]:
    """Write `num` held-out frames, evenly spaced, as <name>.png and <name>.npz; returns the names of the images."""
    from PIL import Image

    frames = list_frames(dataset, raw, split="test").frames
    if not frames:
        raise ValueError(f"{raw}: {dataset} has no held-out frame to show")
    names = []
    for number, index in enumerate(evenly_spaced(len(frames), num)):
        frame = read_frame(frames[index])
        stem = f"{dataset}-{number:02d}"
        Image.fromarray(frame.rgb).save(images / f"{stem}.png")
        np.savez_compressed(
            truth / f"{stem}.npz",
            planar_depth_m=frame.planar_depth_m,
            valid_mask=frame.valid_mask,
            intrinsics=frame.intrinsics,
            frame=np.array(frame.name),
        )
        names.append(f"{stem}.png")
    return names


# --- the page -----------------------------------------------------------------------------------------------


def write_demo_report(
    root: Path,
    seconds: dict[str, float],
    *,
    registered: dict[str, Any],
    promoted: dict[str, Any],
    predict_summary: dict[str, Any],
    benchmarks: Mapping[str, dict[str, Any]],
) -> Path:
    """Write reports/demo.html, which needs no other file, and reports/demo.json below the project's root.

    seconds          wall time of each stage
    registered       answer of `metricgold register --json`
    promoted         answer of `metricgold promote --json`
    predict_summary  answer of `metricgold predict --json` over IMAGES into DEPTH
    benchmarks       what `metricgold benchmark` wrote to metrics/benchmark, by the benchmark's name

    Reads metrics/evaluate.json, plots/evaluate.png, models/metricgold.state/metrics.jsonl, dvc.lock and the demo's
    images, truth and depth below `root`. Raises ValueError where the metrics or the receipt are missing.
    """
    root = Path(root)
    folders = Folders(root)
    metrics = read_metrics(root)
    summary = {
        **{key: metrics[key] for key in ("abs_rel", "delta1", "constant_abs_rel", "vae_floor_abs_rel")},
        **{f"abs_rel_{end}": value for end, value in (metrics["interval95"]["abs_rel"] or {}).items()},
        **{key: predict_summary[key] for key in ("images_done", "images_failed")},
        "model_version": registered["version"],
        "alias": promoted["alias"],
        "benchmarks": {name: zero_shot_row(scores) for name, scores in benchmarks.items()},
        "seconds": {stage: round(float(value), 1) for stage, value in seconds.items()},
    }
    receipt = read_receipt(root)
    done = [row for row in receipt if row["status"] == "done"]
    done.sort(key=lambda row: not row["input"].startswith("yours-"))  # the user's own images first
    shown = [image_card(read_predicted(root, row, metrics)) for row in done[:MAX_SHOWN]]
    by_depth = folders.plots / "evaluate.png"
    page = load_template(
        Path(__file__).with_name("report.html.j2"), {"percent": "{:.1%}".format, "with_interval": with_interval}
    ).render(
        summary=summary,
        metrics=metrics,
        rows=metric_rows(metrics),
        shown=shown,
        failed=[row for row in receipt if row["status"] == "failed"],
        not_shown=max(0, predict_summary["images_done"] - len(shown)),
        scales=share_scales(),
        loss_curve=loss_curve(folders.training_rows),
        by_depth=data_uri(by_depth.read_bytes(), "image/png") if by_depth.exists() else None,
        bars=time_bars(summary["seconds"]),
        checks=promoted.get("checks", []),
        lineage=lineage_pairs(root, metrics, registered),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    path = folders.reports / "demo.html"
    with write_aside(path) as aside:
        aside.write_text(page)
    write_json(folders.reports / "demo.json", summary)
    return path


def read_metrics(root: Path) -> dict[str, Any]:
    """Figures of `evaluate` in the project at `root`. ValueError where they are missing."""
    path = Folders(root).metrics("evaluate")
    if not path.exists():
        raise ValueError(f"{path}: no such file; `dvc repro evaluate` writes it")
    return read_json(path)


def read_receipt(root: Path) -> list[dict[str, Any]]:
    """Rows of the demo's receipt, one for each image. ValueError where it is missing."""
    path = root / DEPTH / "receipt.jsonl"
    if not path.exists():
        raise ValueError(f"{path}: no such file; metricgold predict {IMAGES} {DEPTH} writes it")
    return read_rows(path)


# --- one image and what became of it ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Predicted:
    """An image of the demo with its prediction and its truth; no pixel of `example` is valid where there is none."""

    example: Example
    uncertainty: np.ndarray  # [H, W], relative to depth
    frame: str | None  # the data set's own name of the image


def read_predicted(root: Path, row: dict[str, Any], metrics: dict[str, Any]) -> Predicted:
    """One `done` row of the demo's receipt with its files.

    Truth counts as in the figures of `evaluate`, but for pixels that the model calls sky: a file has no metres there.
    """
    name, output = row["input"], row["output"].removesuffix(".depth.png")
    rgb = read_rgb(root / IMAGES / name, max_pixels=MAX_PIXELS)
    depth_m, _ = read_log_depth_png(root / DEPTH / f"{output}.depth.png")
    uncertainty, _ = read_uncertainty_png(root / DEPTH / f"{output}.uncertainty.png")
    truth = root / TRUTH / f"{Path(name).stem}.npz"
    if not truth.exists():
        nowhere = np.zeros(depth_m.shape, dtype=bool)
        return Predicted(Example(name, rgb, depth_m, depth_m, nowhere), uncertainty, None)
    with np.load(truth, allow_pickle=False) as stored:
        true_m = stored["planar_depth_m"]
        valid = (
            stored["valid_mask"] & (true_m >= metrics["min_m"]) & (true_m <= metrics["max_m"]) & np.isfinite(depth_m)
        )
        return Predicted(Example(name, rgb, depth_m, true_m, valid), uncertainty, str(stored["frame"]))


def image_card(predicted: Predicted) -> dict[str, Any]:
    """One image as the page shows it: its pictures as small PNGs, and its figures where it has a true depth."""
    example, frame = predicted.example, predicted.frame
    height, width = example.pred_m.shape
    centre_m = float(example.pred_m[height // 2, width // 2])
    step = max(1, -(-max(height, width) // SHOWN_PX))

    def small(picture: np.ndarray) -> str:
        return data_uri(png_bytes(np.ascontiguousarray(picture[::step, ::step])), "image/png")

    uncertainty = predicted.uncertainty
    share = colour_share(uncertainty / WORST_UNCERTAINTY_SHOWN, UNCERTAINTY_COLOURS, np.isfinite(uncertainty))
    card = {
        "name": frame or example.name.removeprefix("yours-"),
        "source": example.name.rpartition("-")[0] if frame else "your image",
        "size": f"{width} x {height}",
        "centre_m": centre_m if np.isfinite(centre_m) else None,
        "photograph": small(example.rgb),
        "depth": small(colour_depth(example.pred_m, example.range_m)),
        "depth_scale": depth_scale(example.range_m),
        "uncertainty": small(share),
        "error": None,
        "abs_rel": None,
    }
    if example.valid_mask.any():
        card["error"] = small(colour_error(example.relative_error))
        card["abs_rel"] = depth_metrics(example.pred_m, example.true_m, example.valid_mask)["abs_rel"]
    return card


def share_scales() -> dict[str, ColourScale]:
    """Scales of the pictures that show a share; colours no longer change above the worst one shown."""
    worst = {"error": WORST_SHOWN, "uncertainty": WORST_UNCERTAINTY_SHOWN}
    colours = {"error": ERROR_COLOURS, "uncertainty": UNCERTAINTY_COLOURS}
    half = {"error": f"{WORST_SHOWN / 2:.0%}", "uncertainty": f"{WORST_UNCERTAINTY_SHOWN / 2:.1%}"}
    return {
        name: {"gradient": css_gradient(colours[name]), "ticks": [(0, "0 %"), (50, half[name]), (100, f"{end:.0%}+")]}
        for name, end in worst.items()
    }


# --- figures, tables, lineage -------------------------------------------------------------------------------


def loss_curve(path: Path) -> str | None:
    """Loss and its running mean against steps, as SVG; None without rows."""
    if not (rows := read_rows(path)):
        return None
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator

    steps, losses = [row["step"] for row in rows], np.array([row["loss"] for row in rows])
    window = max(1, len(rows) // 20)
    running = np.convolve(losses, np.ones(window) / window, mode="valid")
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    ax = figure.subplots()
    ax.plot(steps, losses, color="#b9c6d8", lw=1)
    ax.plot(steps[window - 1 :], running, color="#1f4e8c", lw=2)
    ax.set(yscale="log", xlabel="optimiser step", ylabel="masked latent loss")
    for place, digits in ((ax.yaxis.set_major_locator, (1.0,)), (ax.yaxis.set_minor_locator, (2.0, 3.0, 5.0))):
        place(LogLocator(subs=digits))
    for label in (ax.yaxis.set_major_formatter, ax.yaxis.set_minor_formatter):
        label(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.grid(alpha=0.3, which="both")
    ax.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return data_uri(buffer.getvalue(), "image/svg+xml")


def metric_rows(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """For each data set the model, both baselines and the floor, ready for the table."""
    titles = {"constant": "best constant depth", "mean_map": "mean depth map", "vae_floor": "VAE floor"}
    rows = []
    for name, scores in metrics["datasets"].items():
        row = {"dataset": name, "num_frames": scores["num_frames"], "abs_rel": in_domain_abs_rel(scores)}
        rows.append(row | {"method": "model", "figures": scores})
        rows += [
            {"dataset": name, "num_frames": None, "abs_rel": with_interval(scores[key]["abs_rel"])}
            | {"method": title, "figures": scores[key]}
            for key, title in titles.items()
        ]
    return rows


def in_domain_abs_rel(scores: dict[str, Any]) -> str:
    """AbsRel of metrics/evaluate.json, of all or of one data set, with its interval."""
    ends = scores["interval95"]["abs_rel"] or {}
    return with_interval(scores["abs_rel"], ends.get("low"), ends.get("high"))


def zero_shot_row(scores: dict[str, Any]) -> dict[str, Any]:
    """Figures of one benchmark by its default protocol: the model's with their intervals, the AbsRel of what bounds it.

    `scores` is metrics/benchmark/<name>.json; what it does not hold, such as the interval of a single scene, is None.
    """
    protocol = scores["protocol"]
    floor = next((key for key in scores if re.fullmatch(rf"{re.escape(protocol)}/vae_floor.*/abs_rel", key)), "")
    figures = ("abs_rel", "abs_rel_low", "abs_rel_high", "delta1", "delta1_low", "delta1_high")
    return {
        "protocol": protocol,
        "num_frames": scores["num_frames"],
        **{key: scores.get(key) for key in figures},
        "constant_abs_rel": scores.get(f"{protocol}/best_constant/abs_rel"),
        "vae_floor_abs_rel": scores.get(floor),
    }


def with_interval(value: float | None, low: float | None = None, high: float | None = None) -> str:
    """A figure and its interval, 0.146 (0.138 to 0.156); as much of it as there is."""
    if value is None:
        return "none"
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} ({low:.3f} to {high:.3f})"


def time_bars(seconds: dict[str, float]) -> list[dict[str, Any]]:
    """Stages with their seconds, and their share of the longest in per cent."""
    longest = max(seconds.values(), default=0) or 1
    return [{"stage": stage, "seconds": value, "share": 100 * value / longest} for stage, value in seconds.items()]


def lineage_pairs(root: Path, metrics: dict[str, Any], registered: dict[str, Any]) -> list[tuple[str, str]]:
    """What this model is made of, as (what, which) pairs."""
    commit = git_commit(root)
    state = " with changes" if commit and commit[1] else ""
    pairs = [("git commit", commit[0] + state if commit else "not in a git checkout")]
    pairs += [(key.replace("_", " "), str(registered[key])) for key in ("model_digest", "run_id") if key in registered]
    pairs.append(("evaluation digest", metrics["digest"]))
    made = Folders(root).model / "lineage.json"
    if made.exists():
        lineage = read_json(made)
        pairs += [(f"index of {name}", str(one.get("index"))) for name, one in lineage.get("latents", {}).items()]
        pairs.append(("backbone", str(lineage.get("backbone", {}).get("digest"))))
    return pairs + [(f"DVC {path}", md5) for path, md5 in dvc_outputs(root / "dvc.lock").items()]
