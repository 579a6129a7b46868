"""The model card of a version: what was measured of it, on which data, at which cost, and how to make it again.

Every figure is read from the files that measured it; what was not measured is not mentioned, or said to be missing.
"""

from collections.abc import Callable, Iterator, Mapping
from math import atan, degrees, isnan
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from huggingface_hub import EvalResult, ModelCardData

from metricgold.datasets import manifest_paths, read_manifest
from metricgold.evaluate import Rows, read_rows_files
from metricgold.images import load_template
from metricgold.metrics import Interval, interval_by_scene
from metricgold.model import digest_model
from metricgold.params import Params
from metricgold.registry.lineage import collect_lineage, notes_of
from metricgold.registry.measured import Measured, read_measured
from metricgold.registry.mlflow_client import find_version, named_version, open_client
from metricgold.storage import read_json

if TYPE_CHECKING:
    from mlflow import MlflowClient

Lineage = Mapping[str, Any]
FOLDER = "card"  # of the two files among a run's artifacts

CARD, LICENCES = "README.md", "LICENSE.md"  # as the hub calls them
FOV_STEP_DEG = 15  # of a row of the table of lenses
NOT_MEASURED = "\N{EN DASH}"
WORST = 5  # scenes and ranges of depth that are named
# The hub's word of a licence.
HUB_WORDS = {
    "Apache-2.0": "apache-2.0",
    "MIT": "mit",
    "CC BY 4.0": "cc-by-4.0",
    "CC BY-SA 3.0": "cc-by-sa-3.0",
    "CC BY-NC-SA 3.0": "cc-by-nc-sa-3.0",
    "CC BY-NC-SA 4.0": "cc-by-nc-sa-4.0",
    "CreativeML Open RAIL++-M": "openrail++",
}
WEIGHTS_LICENCE = "CreativeML Open RAIL++-M"  # of Stable Diffusion v2, and of what is made from it


class Terms(NamedTuple):
    """Under which licence something went into a model, where its text is, and what it asks in a sentence."""

    what: str
    licence: str
    url: str
    terms: str
    citation: str


def log_card(client: "MlflowClient", run_id: str, model: Path, lineage: Lineage, measured: Measured) -> None:
    """Leave the card and the licences of a checkpoint with its run."""
    for file, text in model_card(model, lineage, measured).items():
        client.log_text(run_id, text, f"{FOLDER}/{file}")


def card_of_version(model: str) -> dict[str, str]:
    """The card and the licences that were made with models:/name@alias; ValueError for one that has none."""
    name, which = named_version(model)
    with open_client() as client, TemporaryDirectory(prefix="metricgold-") as scratch:
        run_id = find_version(client, which, name).run_id
        if not client.list_artifacts(run_id, FOLDER):
            raise ValueError(f"{model} was registered without a card; `metricgold register` its checkpoint again")
        card = Path(client.download_artifacts(run_id, FOLDER, scratch))
        return {file: (card / file).read_text(encoding="utf-8") for file in (CARD, LICENCES)}


def card_of_folder(params: Params, model: Path, metrics: Path) -> dict[str, str]:
    """The card and the licences of a checkpoint that `metrics`, of `metricgold evaluate`, is about; else ValueError."""
    digest = digest_model(model)
    measured = read_measured(metrics, digest, (notes_of(model).get("depth_vae") or {}).get("backbone_vae"))
    return model_card(model, collect_lineage(params, model, digest, measured, {}), measured)


def model_card(model: Path, lineage: Lineage, measured: Measured) -> dict[str, str]:
    """The card and the licences of a checkpoint, by the names of their files.

    lineage  lineage.json of its version, or what it would be
    """
    terms = list(terms_of(lineage))
    config, rows = read_json(model / "model_index.json"), frames_of(measured)
    facts: dict[str, Any] = {
        "digest": lineage["model"]["digest"],
        "config": config,
        "lineage": lineage,
        "scores": measured.scores,
        "benchmarks": measured.benchmarks,
        "terms": terms,
        "lenses": list(by_lens(rows)) if rows else [],
        "worst_scenes": worst_scenes(rows) if rows else [],
        "worst_ranges": worst_ranges(measured.scores),
        "size": size_of(model),
    }
    filters: dict[str, Callable[..., Any]] = {
        "figure": format_figure,
        "interval": format_interval,
        "share": lambda value: f"{100 * value:.1f} %",
    }
    folder = Path(__file__).parent
    card = load_template(folder / "model_card.md.j2", filters).render(facts)
    licences = load_template(folder / "licences.md.j2").render(terms=terms)
    return {CARD: f"---\n{metadata(measured, terms).to_yaml()}\n---\n{card}", LICENCES: licences}


def metadata(measured: Measured, terms: list[Terms]) -> ModelCardData:
    """What the hub reads: licence, library, task, and the figures with the data that they are of."""
    licences = {one.licence for one in terms}
    word = HUB_WORDS.get(next(iter(licences)), "other") if len(licences) == 1 else "other"
    is_other = word == "other"
    figures = [
        EvalResult("depth-estimation", dataset, dataset, figure, float(values[figure]), metric_name=figure)
        for dataset, values in {**measured.scores.get("datasets", {}), **measured.benchmarks}.items()
        for figure in ("abs_rel", "delta1")
        if isinstance(values.get(figure), int | float)
    ]
    return ModelCardData(
        license=word,
        library_name="diffusers",
        pipeline_tag="depth-estimation",
        tags=["metric-depth", "monocular-depth", "metricgold"],
        model_name="metricgold",
        eval_results=figures or None,
        license_name="several" if is_other else None,
        license_link=LICENCES if is_other else None,
    )


def terms_of(lineage: Lineage) -> Iterator[Terms]:
    """Terms of all that went into a model: the data sets that trained it, and the weights it started from."""
    known = manifest_paths()
    for name, dataset in sorted(lineage.get("datasets", {}).items()):
        if dataset.get("role") != "train":
            continue
        licence = dataset.get("licence") or "unstated"
        manifest = read_manifest(known[name]) if name in known else None
        if manifest is None:
            yield Terms(name, licence, "", "the team's own data", "")
        else:
            yield Terms(name, licence, manifest.licence.url, manifest.licence.terms, manifest.citation)
    source = (lineage.get("backbone") or {}).get("source")
    if source == "stand-in":
        terms = "Made by MetricGold's own code on the training images; its licence."
        yield Terms("backbone (stand-in)", "Apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0", terms, "")
    elif source:
        terms = "Its use restrictions pass on to models fine-tuned from it."
        url = "https://huggingface.co/stabilityai/stable-diffusion-2/blob/main/LICENSE-MODEL"
        yield Terms(f"backbone ({Path(source).name})", WEIGHTS_LICENCE, url, terms, "")


# Figures by lens, and the worst


def frames_of(measured: Measured) -> Rows | None:
    """The model's frames with their AbsRel, of evaluation and benchmarks; None without rows."""
    files = [measured.rows] if measured.rows else []
    files += [path for path in measured.reports if path.name.endswith(".rows.parquet")]
    if not files:
        return None
    rows = read_rows_files(files)
    digests = [one["method_digest"] for one in measured.benchmarks.values() if one.get("method_digest")]
    ours = np.isin(rows["method_digest"], digests) | (rows["method"] == "model")
    return rows.where(ours & ~np.isnan(rows.column("metric/abs_rel")))


class Lens(NamedTuple):
    """AbsRel of the frames whose field of view over the longer side is between two angles."""

    from_deg: int
    to_deg: int
    num_frames: int
    datasets: list[str]
    abs_rel: Interval


def by_lens(rows: Rows) -> Iterator[Lens]:
    """AbsRel by field of view, with its interval over scenes; frames without a focal length are left out."""
    longer = np.maximum(rows["width"], rows["height"])
    known = rows["focal_px"] > 0
    fov_deg = np.array(
        [degrees(2 * atan(side / (2 * f))) if f > 0 else 0.0 for side, f in zip(longer, rows["focal_px"], strict=True)]
    )
    step = (fov_deg // FOV_STEP_DEG).astype(int)
    for number in sorted(set(step[known].tolist())):
        of_lens = rows.where(known & (step == number))
        interval = interval_by_scene(of_lens["metric/abs_rel"], of_lens["scene"].tolist())
        yield Lens(
            number * FOV_STEP_DEG, (number + 1) * FOV_STEP_DEG, len(of_lens), of_lens.unique("benchmark"), interval
        )


def worst_scenes(rows: Rows) -> list[tuple[str, str, float, int]]:
    """Data set, scene, AbsRel and number of frames of the scenes in which it is worst."""
    found = []
    for dataset in rows.unique("benchmark"):
        of_dataset = rows.where(benchmark=dataset)
        for scene in of_dataset.unique("scene"):
            abs_rel = of_dataset.where(scene=scene)["metric/abs_rel"]
            found.append((dataset, scene, float(np.mean(abs_rel)), len(abs_rel)))
    return sorted(found, key=lambda row: -row[2])[:WORST]


def worst_ranges(scores: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Data set and row of the ranges of depth in which AbsRel is worst."""
    ranges = [
        (name, row)
        for name, values in scores.get("datasets", {}).items()
        for row in values.get("by_depth", ())
        if row.get("num_pixels") and not isnan(row.get("abs_rel") or float("nan"))
    ]
    return sorted(ranges, key=lambda item: -item[1]["abs_rel"])[:WORST]


# Words


def size_of(model: Path) -> dict[str, Any]:
    """Parameters, and bytes on the disk, of the parts with weights."""
    from safetensors import safe_open

    num_parameters = num_bytes = 0
    for path in sorted(model.rglob("*.safetensors")):
        num_bytes += path.stat().st_size
        with safe_open(path, framework="np") as file:
            num_parameters += sum(int(np.prod(file.get_slice(key).get_shape())) for key in file.keys())  # noqa: SIM118
    return {"parameters": num_parameters, "megabytes": round(num_bytes / 1e6, 1)}


def format_figure(value: Any) -> str:
    """Three digits; a dash for what was not measured."""
    return NOT_MEASURED if value is None or isnan(value) else f"{value:.3f}"


def format_interval(values: Mapping[str, Any] | Interval, figure: str = "") -> str:
    """A figure and its 95 % interval, where it has one: of an Interval, of scores, or of a benchmark's summary."""
    mean: Any
    low: Any
    high: Any
    if isinstance(values, Interval):
        mean, low, high = values
    else:
        ends = (values.get("interval95") or {}).get(figure) or {}
        low, high = (ends.get(end, values.get(f"{figure}_{end}")) for end in ("low", "high"))
        mean = values.get(figure)
    text = format_figure(mean)
    return text if low is None or high is None or isnan(low) else f"{text} [{low:.3f}, {high:.3f}]"
