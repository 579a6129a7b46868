"""All figures of cached predictions, against the loop that is usually written for them, and memory over many images.

The script is put together from what public evaluation scripts do: predictions and truth in float32 as they are stored;
the valid pixels taken once for each image; each alignment by numpy's own lstsq; each figure an expression of its own,
as in ZoeDepth and Marigold; the sparsification curves as in Poggi et al.'s code, which measures each of fifty subsets
of pixels anew; and a mask for each range of depth. Both sides read the same files, and their figures agree.
"""

import multiprocessing
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from metricgold.evaluate.rows import NUMBERS, TEXTS, Journal
from metricgold.metrics import image_figures, range_figures, range_sums

from . import CannotRun, least_seconds

HEIGHT, WIDTH, NUM_IMAGES, ROUNDS = 480, 640, 8, 3
SMALL = 48, 64
EDGES_M = [0, 2, 4, 6, 8, 10]
Z = {
    "coverage50": 0.6744897501960817,
    "coverage68": 1.0,
    "coverage80": 1.2815515655446004,
    "coverage95": 1.959963984540054,
}
DELTAS = {"delta_half": 1.25**0.5, "delta1": 1.25, "delta2": 1.25**2, "delta3": 1.25**3}


def speed(folder: Path) -> dict[str, float]:
    """Of a thousand images the time is a thousand times that of one; a few of them take turns here."""
    paths = [write_image(folder / f"{number}.npz", number) for number in range(NUM_IMAGES)]
    check(paths[0])
    script_s, ours_s, script_plain_s, ours_plain_s = least_seconds(
        lambda: [script(*read(path)) for path in paths],
        lambda: [ours(*read(path)) for path in paths],
        lambda: [script(*read(path)[:3]) for path in paths],
        lambda: [ours(*read(path)[:3]) for path in paths],
        rounds=ROUNDS,
    )
    return {
        "evaluate.speedup_vs_script": script_s / ours_s,
        "evaluate.speedup_vs_script_without_uncertainty": script_plain_s / ours_plain_s,
        "evaluate.images_per_s_core": NUM_IMAGES / ours_s,
    }


def rss_growth(folder: Path) -> dict[str, float]:
    """Peak memory of a process that measures 10,000 images and keeps their rows in a journal, over that of 100."""
    if not Path("/proc/self/status").exists():
        raise CannotRun("this system does not tell a process's peak memory")
    few_mb, many_mb = (_in_a_process(measure_many, folder / f"{num}.jsonl", num) for num in (100, 10_000))
    return {"evaluate.rss_growth_mb": many_mb - few_mb}


def measure_many(path: Path, num: int) -> float:
    """Peak memory in MB after measuring `num` images."""
    texts = dict.fromkeys(TEXTS, "x") | dict.fromkeys(NUMBERS, 1.0)
    with Journal(path) as journal:
        for number in range(num):
            pred_m, true_m, valid, uncertainty = image(number, *SMALL)
            journal.add([texts | {"frame": str(number)} | ours(pred_m, true_m, valid, uncertainty)[0]])
    # Not ru_maxrss, which a child takes over from the process that started it.
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def _in_a_process(function: Callable[..., float], *arguments: object) -> float:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


# Images


def image(seed: int, height: int, width: int) -> tuple[np.ndarray, ...]:
    """Prediction, truth, mask and uncertainty of a room with boxes; a tenth of it has no truth."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    true_m = 8 - 5 * y + np.sin(9 * x + seed)
    for _ in range(12):
        top, left = rng.integers(0, height - 8), rng.integers(0, width - 8)
        true_m[top : top + height // 4, left : left + width // 4] = rng.uniform(0.6, 7)
    uncertainty = 0.03 + 0.1 * rng.random((height, width))
    pred_m = 1.1 * true_m**0.95 * np.exp(uncertainty * rng.standard_normal((height, width)))
    valid = rng.random((height, width)) < 0.9
    return pred_m.astype(np.float32), true_m.astype(np.float32), valid, uncertainty.astype(np.float32)


def write_image(path: Path, seed: int) -> Path:
    np.savez(path, *image(seed, HEIGHT, WIDTH))
    return path


def read(path: Path) -> list[np.ndarray]:
    with np.load(path) as file:
        return [file[name] for name in file.files]


# The contestants


def ours(
    pred_m: np.ndarray, true_m: np.ndarray, valid: np.ndarray, uncertainty: np.ndarray | None = None
) -> tuple[dict[str, float], np.ndarray]:
    figures = image_figures(pred_m, true_m, valid, uncertainty=uncertainty)
    return figures, range_figures(range_sums(pred_m, true_m, valid, EDGES_M))["abs_rel"]


def script(
    pred_m: np.ndarray, true_m: np.ndarray, valid: np.ndarray, uncertainty: np.ndarray | None = None
) -> tuple[dict[str, float], np.ndarray]:
    p, g = pred_m[valid], true_m[valid]
    figures = {"num_pixels": len(g), "median_true_m": np.median(g), "median_pred_m": np.median(p)}
    for alignment, aligned_m in _alignments(p, g):
        figures |= {f"{alignment}/{name}": figure(aligned_m, g) for name, figure in FIGURES.items()}
    if uncertainty is not None:
        figures |= _calibration(p, g, uncertainty[valid])
    ranges = [valid & (near_m <= true_m) & (true_m < far_m) for near_m, far_m in pairwise(EDGES_M)]
    return figures, np.array([FIGURES["abs_rel"](pred_m[within], true_m[within]) for within in ranges])


def _alignments(p: np.ndarray, g: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    yield "metric", p
    yield "scale", p * (np.median(g) / np.median(p))
    yield "affine_depth", np.clip(_fitted(p, g), g.min(), None)
    yield "affine_disparity", 1 / np.clip(_fitted(1 / p, 1 / g), 1 / g.max(), None)
    yield "affine_log_depth", np.exp(_fitted(np.log(p), np.log(g)))


def _fitted(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    scale, shift = np.linalg.lstsq(np.stack([x, np.ones_like(x)], axis=-1), y, rcond=None)[0]
    return x * scale + shift


def _silog(p: np.ndarray, g: np.ndarray) -> float:
    e = np.log(p) - np.log(g)
    return 100 * np.sqrt(np.mean(e**2) - np.mean(e) ** 2)


def _silog_dav2(p: np.ndarray, g: np.ndarray) -> float:
    e = np.log(p) - np.log(g)
    return np.sqrt(np.mean(e**2) - 0.5 * np.mean(e) ** 2)


def _delta(threshold: float) -> Callable[[np.ndarray, np.ndarray], float]:
    return lambda p, g: np.mean(np.maximum(p / g, g / p) < threshold)


FIGURES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "abs_rel": lambda p, g: np.mean(np.abs(p - g) / g),
    "sq_rel": lambda p, g: np.mean((p - g) ** 2 / g),
    "rmse_m": lambda p, g: np.sqrt(np.mean((p - g) ** 2)),
    "mae_m": lambda p, g: np.mean(np.abs(p - g)),
    "rmse_log": lambda p, g: np.sqrt(np.mean((np.log(p) - np.log(g)) ** 2)),
    "log10": lambda p, g: np.mean(np.abs(np.log10(p) - np.log10(g))),
    "silog": _silog,
    "silog_unidepth": lambda p, g: 100 * np.std(np.log(p) - np.log(g), ddof=1),
    "silog_dav2": _silog_dav2,
    **{name: _delta(threshold) for name, threshold in DELTAS.items()},
}


def _calibration(p: np.ndarray, g: np.ndarray, u: np.ndarray) -> dict[str, float]:
    figures = {}
    shares = np.linspace(0, 100, 50, endpoint=False)
    kept = [u <= np.percentile(u, 100 - share) for share in shares]
    for key, figure, errors in (("abs_rel", "abs_rel", np.abs(p - g) / g), ("rmse", "rmse_m", (p - g) ** 2)):
        best = [errors <= np.percentile(errors, 100 - share) for share in shares]
        curve, oracle = ([FIGURES[figure](p[some], g[some]) for some in subsets] + [0] for subsets in (kept, best))
        figures[f"ause_{key}"] = np.trapezoid(curve, dx=0.02) - np.trapezoid(oracle, dx=0.02)
        if key == "abs_rel":
            figures |= {f"sparsification/{step / 50:g}": curve[step] for step in range(0, 50, 5)}
    for key, z in Z.items():
        figures[key] = np.mean(np.abs(np.log(p) - np.log(g)) <= z * u)
    return figures


def check(path: Path) -> None:
    """ValueError unless both sides answer the same, as far as float32 goes."""
    (figures, ranges), (theirs, their_ranges) = ours(*read(path)), script(*read(path))
    shared = figures.keys() & theirs.keys()  # the script has no mean of what a model states
    wrong = [key for key in shared if not np.isclose(figures[key], theirs[key], rtol=1e-3, atol=1e-4)]
    if wrong or not np.allclose(ranges, their_ranges, rtol=1e-3):
        raise ValueError(f"ours and the script's figures differ: {wrong}")
