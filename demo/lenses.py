"""What the camera is worth: ways to train with it, on held-out scenes through five lenses and on the benchmarks' twins.

python -m demo.lenses          trains what is not trained yet, measures, and refreshes the manual's tables and picture
python -m demo.lenses --again  refreshes them from the rows, without a model

A variant is what it changes in params.yaml; all have one objective, budget and seeds. Each model that was measured has
a line in ROWS, so that a run that was stopped continues, and the tables can be made again without training. Means are
over scenes and seeds; intervals are paired by scene.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from metricgold.datasets import Frame, frames_through_lens
from metricgold.encode import encode
from metricgold.evaluate import WITH_CAMERA, BenchmarkOutputs, benchmark, in_range, protocols_of, read_rows_files
from metricgold.metrics import Interval, depth_metrics, interval_by_scene, mean_by_scene, paired_interval
from metricgold.model import MetricGoldPipeline, load_pipeline
from metricgold.params import Folders, Params, load_params
from metricgold.storage import digest_json, fill_between, read_rows, row_line, write_aside
from metricgold.train import train, train_depth_vae

FOLDER = Path("models/lenses")
ROWS = Path("demo/lenses.jsonl")
PAGE = Path("docs/training.md")
PICTURE = Path("docs/lenses.png")
FACTORS = (0.5, 0.7, 1.0, 1.4, 2.0)  # extent of the image plane, 1 for the lens of training; 0.5 is twice as long
SEEDS = (0, 1, 2)
FIGURES = ("abs_rel", "delta1", "ratio")  # ratio: of median predicted to median true depth

Changes = Mapping[str, Mapping[str, Any]]  # section -> key -> value
COMMON: Changes = {
    "train": {
        "objective": "one-step",
        "loss": "l1",
        "timestep_shift": 1.0,
        "mixed_precision": "no",  # the table must not depend on the processor
        "num_steps": 1200,
        "decay_steps": 1200,
        "validation": None,
        "uncertainty": None,
        "whole_weight": 1,
    },
    "evaluate": {"num_inference_steps": 1, "ensemble_size": 1},
    "benchmark": {"num_inference_steps": 1, "ensemble_size": 1},
}
# Percentiles 0.5 and 99.5 of canonical depth over training frames, which `metricgold vae-floor` reports, and of views.
WHOLE: Changes = {"encode": {"views": 1}, "canonical_depth": {"near_m": 1.2, "far_m": 93.0}}
VIEWS: Changes = {"encode": {"views": 2, "min_crop": 0.5}, "canonical_depth": {"near_m": 1.0, "far_m": 90.0}}
VARIANTS: dict[str, Sequence[Changes]] = {
    "none": [WHOLE, {"train": {"camera": "none"}}],
    "none, views": [VIEWS, {"train": {"camera": "none"}}],
    "canonical": [WHOLE, {"train": {"camera": "canonical"}}],
    "canonical, views": [VIEWS, {"train": {"camera": "canonical"}}],
    "token, views": [VIEWS, {"train": {"camera": "token"}}],
    "canonical+token, views": [VIEWS, {"train": {"camera": "canonical+token"}}],
    "canonical+token, few views": [VIEWS, {"train": {"camera": "canonical+token", "whole_weight": 3}}],
}
BASELINE, SCALED, CHOSEN = "none", "none, scaled afterwards", "canonical+token, few views"
METHODS = (BASELINE, SCALED, *[name for name in VARIANTS if name != BASELINE])
LENSES = [f"{factor:g}" for factor in FACTORS]
AT_ONE = "1"
DECIDING = {"datasets", "synthesize", "backbone", "encode", "depth_vae", "train", "log_depth", "canonical_depth"}
Row = dict[str, Any]


def changed(params: Params, changes: Iterable[Changes]) -> Params:
    """Params with other values of some keys, later changes over earlier ones."""
    values = params.model_dump()
    for change in changes:
        values |= {section: values[section] | dict(keys) for section, keys in change.items()}
    return Params.model_validate(values)


# --- models ---------------------------------------------------------------------------------------------------


def trained(params: Params, name: str, folder: Path = FOLDER) -> Path:
    """The model of a variant and seed; caches and decoders that several of them share are made once."""
    folders, encoding = Folders(), params.encode.model_dump() | params.depth_range.model_dump()
    shared = folder / f"encoded-{digest_json(encoding)[:12]}"
    size = params.encode.height, params.encode.width
    caches = {dataset: shared / dataset for dataset in params.datasets}
    for dataset, cache in caches.items():
        encode(dataset, params.encode, params.depth_range, folders.raw(dataset), folders.backbone, cache)
    depth_vae = shared / "depth-vae"
    if not depth_vae.exists():
        raw_folders, metrics = folders.raw_of(params.datasets), shared / "depth_vae.json"
        options = params.depth_vae, params.depth_range, raw_folders, folders.backbone, depth_vae, metrics
        train_depth_vae(*options, size=size)
    return train(params.train, params.depth_range, caches, folders.backbone, folder / name, depth_vae=depth_vae)


# --- figures --------------------------------------------------------------------------------------------------


def through_lenses(pipe: MetricGoldPipeline, params: Params, lenses: Mapping[float, Sequence[Frame]]) -> Iterator[Row]:
    """For each lens the figures by scene: of the model, and of its depth times f / f of training."""
    for factor, frames in lenses.items():
        images: dict[str, list[dict[str, float]]] = {"": [], SCALED: []}
        for start in range(0, len(frames), params.evaluate.batch_size):
            batch = frames[start : start + params.evaluate.batch_size]
            cameras = [frame.intrinsics for frame in batch]
            for frame, prediction in zip(batch, pipe([one.rgb for one in batch], intrinsics=cameras), strict=True):
                valid = in_range(frame, params.evaluate.ruler)
                for name, scale in {"": 1.0, SCALED: 1 / factor}.items():
                    pred_m = prediction.planar_depth_m * np.float32(scale)
                    images[name].append(figures_of(pred_m, frame.planar_depth_m, valid))
        for name, figures in images.items():
            method = {"method": name} if name else {}
            yield method | {"set": f"{factor:g}", **by_scene(figures, [frame.scene for frame in frames])}


def figures_of(pred_m: np.ndarray, true_m: np.ndarray, valid: np.ndarray) -> dict[str, float]:
    """FIGURES of one image; NaN where no pixel counts."""
    if not valid.any():
        return dict.fromkeys(FIGURES, float("nan"))
    figures = depth_metrics(pred_m, true_m, valid)
    return {
        "abs_rel": figures["abs_rel"],
        "delta1": figures["delta1"],
        "ratio": float(np.median(pred_m[valid]) / np.median(true_m[valid])),
    }


def by_scene(images: Sequence[Mapping[str, float]], scenes: Sequence[str]) -> dict[str, list[float]]:
    """The mean of each figure over a scene's images, in the order of the scenes' names; four digits."""
    return {
        key: [float(f"{mean:.4g}") for _, mean in sorted(mean_by_scene([one[key] for one in images], scenes).items())]
        for key in FIGURES
    }


def on_twins(params: Params, models: Mapping[str, Path], folder: Path = FOLDER) -> Iterator[Row]:
    """For each benchmark and model the figures by scene, by its default protocol with the camera given."""
    for name in params.benchmarks:
        protocol, out = f"{protocols_of(name)[0].name}{WITH_CAMERA}", BenchmarkOutputs.of(Folders(folder), name)
        benchmark(params.benchmark, name, Folders().benchmark(name), out, models=models, protocols=[protocol])
        rows = read_rows_files([out.rows])
        for model in models:
            own = rows.where(method=model)
            columns = own["metric/abs_rel"], own["metric/delta1"], own["median_pred_m"] / own["median_true_m"]
            images = [dict(zip(FIGURES, values, strict=True)) for values in zip(*columns, strict=True)]
            yield {"set": name, "method": model, **by_scene(images, own["scene"].tolist())}


# --- rows -----------------------------------------------------------------------------------------------------


def measure_variants(params: Params, variants: Sequence[str], seeds: Sequence[int], folder: Path = FOLDER) -> None:
    """Train and measure each variant and seed that ROWS lacks; its rows are there once all of them are measured."""
    lenses: dict[float, list[Frame]] = {}
    for seed in seeds:
        for variant in variants:
            own = changed(params, [COMMON, *VARIANTS[variant], {"train": {"seed": seed}}])
            keys = {"seed": seed, "digest": digest_of(own)}
            if is_measured(keys | {"method": variant}):
                continue
            pipe = load_pipeline(trained(own, model_name(variant, seed), folder))
            lenses = lenses or {factor: held_out(own, factor) for factor in FACTORS}
            rows = [keys | {"method": variant} | row for row in through_lenses(pipe, own, lenses)]
            add_rows(row for row in rows if row["method"] == variant or variant == BASELINE)
            click.echo(f"{variant}, seed {seed}: measured")


def measure_twins(params: Params, seeds: Sequence[int], folder: Path = FOLDER) -> None:
    """Measure BASELINE and CHOSEN on the benchmarks, as far as both are trained."""
    own = changed(params, [COMMON])
    models = {
        model_name(variant, seed): {"method": variant, "seed": seed} for seed in seeds for variant in (BASELINE, CHOSEN)
    }
    there = {name: folder / name for name in models if (folder / name).exists()}
    add_rows(row | models[row["method"]] for row in on_twins(own, there, folder))


def digest_of(params: Params) -> str:
    """Of all that decides a model's figures. Defaults do not count, so that a new key leaves rows valid."""
    return digest_json(params.model_dump(mode="json", include=DECIDING, exclude_defaults=True))[:12]


def model_name(variant: str, seed: int) -> str:
    """Of the folder of a variant's model, and of what benchmarks measure."""
    return f"{variant.replace(', ', '-')}-{seed}"


def held_out(params: Params, factor: float) -> list[Frame]:
    """The test scenes of all data sets that train, through one lens."""
    return [frame for name in params.datasets for frame in frames_through_lens(name, params.synthesize, factor)]


def is_measured(keys: Row) -> bool:
    """Whether ROWS has rows with all of these keys."""
    return any(keys.items() <= row.items() for row in read_rows(ROWS))


def add_rows(rows: Iterable[Row]) -> None:
    """Append rows in one write, so that those of several processes do not mix; they survive a kill."""
    lines = "".join(map(row_line, rows))
    with ROWS.open("a", encoding="utf-8") as file:
        file.write(lines)


# --- tables and picture -----------------------------------------------------------------------------------------


class Measured:
    """The figures of ROWS: for each set and method those of every scene, [seeds, scenes]."""

    def __init__(self, rows: Iterable[Row]) -> None:
        latest = {(row["set"], row["method"], row["seed"]): row for row in rows}
        seeds: dict[tuple[str, str], list[Row]] = defaultdict(list)
        for (of_set, method, _), row in sorted(latest.items()):
            seeds[of_set, method].append(row)
        self._rows = seeds

    def sets(self) -> list[str]:
        """Lenses and benchmarks that were measured."""
        return sorted({of_set for of_set, _ in self._rows})

    def methods(self, of_set: str) -> list[str]:
        """Those that were measured on a set, in the order of VARIANTS."""
        return [name for name in METHODS if (of_set, name) in self._rows]

    def num_seeds(self, of_set: str, method: str) -> int:
        """How many models of a method were measured."""
        return len(self._rows[of_set, method])

    def scenes(self, of_set: str, method: str, figure: str) -> np.ndarray:
        """A figure of each scene, the mean over seeds, [scenes]."""
        mean: np.ndarray = np.mean([row[figure] for row in self._rows[of_set, method]], axis=0)
        return mean

    def mean(self, of_set: str, method: str, figure: str) -> Interval:
        """Over scenes and seeds, with the interval over scenes."""
        values = self.scenes(of_set, method, figure)
        return interval_by_scene(values, names(values))

    def difference(self, of_set: str, method: str, figure: str = "abs_rel") -> Interval:
        """Of a method minus BASELINE on the same scenes."""
        values = self.scenes(of_set, method, figure)
        return paired_interval(values, self.scenes(of_set, BASELINE, figure), names(values))


def names(values: np.ndarray) -> list[str]:
    """A name for each scene."""
    return [str(number) for number in range(len(values))]


def lens_table(measured: Measured) -> str:
    """AbsRel and delta1 by variant and lens as Markdown, and how much the worst lens costs."""
    heads = " | ".join(f"{factor:g}" for factor in FACTORS)
    lines = [f"| training | {heads} | worst lens over 1 | seeds |", "|---" * (len(FACTORS) + 3) + "|"]
    for method in measured.methods(AT_ONE):
        means = {one: [measured.mean(lens, method, one).mean for lens in LENSES] for one in ("abs_rel", "delta1")}
        cells = [f"{error:.3f} / {share:.2f}" for error, share in zip(*means.values(), strict=True)]
        worst = max(means["abs_rel"]) / measured.mean(AT_ONE, method, "abs_rel").mean
        lines.append(f"| {method} | {' | '.join(cells)} | {worst:.2f} | {measured.num_seeds(AT_ONE, method)} |")
    return "\n".join(lines)


def difference_table(measured: Measured, sets: Sequence[str], title: str, methods: Sequence[str]) -> str:
    """AbsRel minus that of BASELINE, paired by scene, with the 95 % interval, as Markdown."""
    lines = [f"| {title} | {' | '.join(methods)} |", "|---" * (len(methods) + 1) + "|"]
    for of_set in sets:
        cells = [with_sign(measured.difference(of_set, method)) for method in methods]
        lines.append(f"| {of_set} | {' | '.join(cells)} |")
    return "\n".join(lines)


def twins_table(measured: Measured, twins: Sequence[str]) -> str:
    """AbsRel and delta1 of BASELINE and CHOSEN on each benchmark, and the paired difference, as Markdown."""
    lines = [
        f"| data set | {BASELINE}: AbsRel / δ1 | {CHOSEN}: AbsRel / δ1 | difference of AbsRel |",
        "|---|---|---|---|",
    ]
    for name in twins:
        cells = [
            f"{measured.mean(name, method, 'abs_rel').mean:.3f} / {measured.mean(name, method, 'delta1').mean:.2f}"
            for method in (BASELINE, CHOSEN)
        ]
        lines.append(f"| {name} | {' | '.join(cells)} | {with_sign(measured.difference(name, CHOSEN))} |")
    return "\n".join(lines)


def with_sign(interval: Interval) -> str:
    """A difference and the ends of its interval."""
    return f"{interval.mean:+.3f} ({interval.low:+.3f} to {interval.high:+.3f})"


def draw(measured: Measured, path: Path) -> Path:
    """AbsRel by lens, a line for each variant with its interval by scene as a band."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    figure = Figure(figsize=(8, 3.6), dpi=72, layout="constrained")
    ax = figure.subplots()
    for method in measured.methods(AT_ONE):
        mean, low, high = zip(*(measured.mean(lens, method, "abs_rel") for lens in LENSES), strict=True)
        (line,) = ax.plot(FACTORS, mean, "o-", ms=4, lw=1.2, label=method)
        ax.fill_between(FACTORS, low, high, color=line.get_color(), alpha=0.12, lw=0)
    ax.set(xscale="log", yscale="log", ylabel="AbsRel, held-out scenes")
    ax.set(xlabel="extent of the image plane, 1 for the lens of training; 0.5 is twice as long")
    ax.set_xticks(FACTORS, LENSES, minor=False)
    ax.set_xticks([], minor=True)
    for axis in (ax.yaxis.set_major_formatter, ax.yaxis.set_minor_formatter):
        axis(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    with write_aside(path) as aside:
        figure.savefig(aside, format="png", metadata={"Software": None})
    return path


def refresh() -> None:
    """Tables and picture from ROWS."""
    measured = Measured(read_rows(ROWS))
    others = [method for method in measured.methods(AT_ONE) if method != BASELINE]
    differences = difference_table(measured, LENSES, "extent of the image plane", others)
    fill_between(PAGE, "lenses", f"{lens_table(measured)}\n\n{differences}")
    if twins := [name for name in measured.sets() if name not in LENSES]:
        fill_between(PAGE, "lenses-twins", twins_table(measured, twins))
    click.echo(draw(measured, PICTURE))


@click.command()
@click.option("--again", is_flag=True, help=f"From {ROWS}; train and measure nothing.")
@click.option("--variant", "variants", multiple=True, type=click.Choice(list(VARIANTS)), help="Only this; repeatable.")
@click.option("--seed", "seeds", multiple=True, type=int, default=SEEDS, help="Only this; repeatable.")
def main(again: bool, variants: tuple[str, ...], seeds: tuple[int, ...]) -> None:
    """Train and measure every variant in the project's root, after a demo, and refresh the manual."""
    try:
        if not again:
            params = load_params()
            measure_variants(params, variants or list(VARIANTS), seeds)
            measure_twins(params, seeds)
        refresh()
    except (ValueError, OSError) as error:  # such as no params, frames or rows here
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
