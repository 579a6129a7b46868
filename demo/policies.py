"""What accuracy costs: both objectives of training, and ways to run each, on the same data and the same budget.

python -m demo.policies   trains what is not trained yet, measures, and refreshes the README's table and picture

A policy is a number of steps, of runs, and how runs are merged; its cost is what passes through the U-Net for one
image, counted and not computed. Both models are trained by params.yaml but for what the objective changes.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from metricgold.evaluate import evaluate
from metricgold.model import MetricGoldPipeline, load_pipeline
from metricgold.params import PRESETS, Evaluate, Folders, Params, load_params
from metricgold.storage import fill_between, read_json, write_aside, write_json
from metricgold.train import train

MODELS = Path("models/policies")
METRICS = Folders().metrics("policies")
PICTURE = Path(".github/policies.png")
FRAMES_PER_DATASET = 24

# What differs between the objectives' profiles for real hardware differs here.
OBJECTIVES: dict[str, dict[str, Any]] = {
    "diffusion": {"objective": "diffusion"},
    "one-step": {"objective": "one-step", "loss": "l1", "timestep_shift": 1.0},
}
ONE_STEP = {"one-step": PRESETS["one-step"]}
POLICIES: dict[str, dict[str, dict[str, Any]]] = {
    "diffusion": {
        **PRESETS,
        "balanced, until certain": {"num_inference_steps": 10, "ensemble_size": "auto"},
        "balanced, latents merged": PRESETS["balanced"] | {"merge": "latent"},
    },
    "one-step": ONE_STEP,
}


def train_objective(name: str, params: Params, out: Path) -> Path:
    """Train on the latent caches by params, but for the objective; a finished model is taken as it is."""
    folders = Folders()
    changed = OBJECTIVES[name] | {"validation": None, "uncertainty": None}
    train_params = params.train.model_validate(params.train.model_dump() | changed)
    depth_vae = folders.depth_vae if folders.depth_vae.exists() else None
    caches = folders.latents_of(params.datasets)
    return train(train_params, params.depth_range, caches, folders.backbone, out, depth_vae=depth_vae)


def measure(pipe: MetricGoldPipeline, evaluate_params: Evaluate, raw_folders: dict[str, Path]) -> dict[str, float]:
    """AbsRel and delta1 of one policy, and what passes through the U-Net for one image."""
    passes = 0

    def count(_module: Any, args: Any) -> None:
        nonlocal passes
        passes += len(args[0])

    hook = pipe.unet.register_forward_pre_hook(count)
    try:
        with TemporaryDirectory() as scratch:
            metrics = Path(scratch) / "metrics.json"
            scores = evaluate(evaluate_params, raw_folders, Path(), metrics, Path(scratch), pipe=pipe)
    finally:
        hook.remove()
    figures = {key: scores[key] for key in ("abs_rel", "delta1", "num_frames")}
    return figures | {"passes": passes / scores["num_frames"]}


def measure_all(params: Params, models: Path = MODELS) -> list[dict[str, Any]]:
    """A row for each objective and policy."""
    raw_folders = Folders().raw_of(params.datasets)
    frames = min(params.evaluate.frames_per_dataset or FRAMES_PER_DATASET, FRAMES_PER_DATASET)
    common = params.evaluate.model_dump() | {"frames_per_dataset": frames}
    rows = []
    for objective, policies in POLICIES.items():
        pipe = load_pipeline(train_objective(objective, params, models / objective))
        for name, policy in policies.items():
            figures = measure(pipe, Evaluate.model_validate(common | policy), raw_folders)
            rows.append({"objective": objective, "policy": name, "asked": policy} | figures)
            click.echo(f"{objective}, {name}: {figures}")
    return rows


# --- for the README -----------------------------------------------------------------------------------------


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, dearest first within an objective."""
    lines = [
        "| trained for | policy | steps x runs | passes an image | AbsRel ↓ | δ1 ↑ |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        policy = row["asked"]
        runs = f"{policy['num_inference_steps']} x {policy['ensemble_size']}"
        figures = f"{row['passes']:.3g} | {row['abs_rel']:.3f} | {row['delta1']:.3f}"
        lines.append(f"| {row['objective']} | {row['policy']} | {runs} | {figures} |")
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], path: Path) -> Path:
    """AbsRel against passes through the U-Net, a mark for each policy."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    figure = Figure(figsize=(8, 3.6), dpi=100, layout="constrained")
    ax = figure.subplots()
    for objective, mark in (("diffusion", "o"), ("one-step", "D")):
        own = [row for row in rows if row["objective"] == objective]
        ax.plot([row["passes"] for row in own], [row["abs_rel"] for row in own], mark, ms=8, label=f"{objective} model")
        for row in own:
            is_under_another = any(o["passes"] == row["passes"] and o["abs_rel"] > row["abs_rel"] for o in own)
            place = (6, -11 if is_under_another else 5)  # two points of equal cost: one label above, one below
            ax.annotate(row["policy"], (row["passes"], row["abs_rel"]), place, textcoords="offset points", size=8)
    ax.set(xscale="log", xlabel="passes through the U-Net for one image", ylabel="AbsRel, held-out scenes")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.margins(x=0.14, y=0.18)
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    with write_aside(path) as aside:
        figure.savefig(aside, format="png", metadata={"Software": None})
    return path


@click.command()
@click.option("--again", is_flag=True, help="Draw from metrics/policies.json; measure nothing.")
def main(again: bool) -> None:
    """Measure every policy in the project's root and refresh the README's table and picture."""
    try:
        if not again:
            write_json(METRICS, {"rows": measure_all(load_params())})
        rows = read_json(METRICS)["rows"]
        fill_between(Path("README.md"), "policies", table(rows))
        click.echo(draw(rows, PICTURE))
    except (ValueError, OSError) as error:  # such as no params, caches or figures here
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
