"""The command line: one word per stage or action. Exit codes are those of docs/first-run.md."""

import json
import logging
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial, wraps
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import click

from metricgold.extras import hide_unused, naming_the_extra, show_unused
from metricgold.params import DISTANCE_KINDS, OUTPUTS, PRESETS, WINDOWS, Folders, require_dataset_name
from metricgold.storage import log_formatter, message_of, one_line

if TYPE_CHECKING:
    from metricgold.evaluate import BenchmarkOutputs
    from metricgold.params import DistanceKind, Download, Params, Predict

# Wings are imported inside the commands: torch alone costs two seconds, which --help should not pay.

FOLDERS = Folders()  # the working folder is the project


class _Group(click.Group):
    """Turns a user's mistake, the world's, or a missing extra into one message without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with naming_the_extra():
                return super().invoke(ctx)
        except SystemExit as leaving:
            # DVC exits with 255 whatever code its stage has: the progress file carries that code past it.
            from metricgold.storage import write_exit_code

            write_exit_code(leaving.code)
            raise
        except click.UsageError as error:
            error.message = one_line(error.message)  # type: ignore[misc]  # it may quote what was typed
            raise
        except click.ClickException as error:
            raise _Failure(error) from error
        except (ValueError, OSError) as error:
            if os.environ.get("METRICGOLD_TRACEBACK"):
                raise
            raise _Failure(error) from error


class _Failure(click.ClickException):
    """An error's message, and the exit code that its kind has of its own."""

    def __init__(self, error: Exception) -> None:
        super().__init__(message_of(error))
        self.exit_code: int = getattr(error, "exit_code", 1)  # type: ignore[misc]

    def show(self, file: IO[Any] | None = None) -> None:
        """As the last line on stderr; as a record where logs are JSON."""
        if os.environ.get("METRICGOLD_LOG") == "json":
            logging.getLogger(__name__).error("%s", self.message)
        else:
            super().show(file)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="metricgold")
@click.option("--params", "params_path", default="params.yaml", type=click.Path(path_type=Path), show_default=True)
@click.pass_context
def main(ctx: click.Context, params_path: Path) -> None:
    """Depth in metres from one image: prepare data, train, measure, register, predict."""
    from metricgold.images import quieten_image_libraries

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(log_formatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for chatty in ("httpx", "botocore", "alembic", "mlflow"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    quieten_image_libraries()
    ctx.obj = params_path


def _params(ctx: click.Context) -> "Params":
    from metricgold.datasets import refuse_benchmarks
    from metricgold.params import load_params

    params = load_params(ctx.obj)
    refuse_benchmarks(FOLDERS.raw_of(params.datasets), f"{ctx.obj}: datasets")
    return params


def _training(params: "Params") -> dict[str, Path]:
    """Raw folders of the data sets that train, by name; the others are only measured."""
    from metricgold.datasets import training_sets

    phases = [phase.weights for phase in params.train.curriculum or ()]
    weighted = {name for weights in (params.train.weights, *phases) for name in weights}
    return training_sets(FOLDERS.raw_of(params.datasets), weighted)


def _print(answer: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(answer, sort_keys=True))
    else:
        for key, value in answer.items():
            click.echo(one_line(f"{key}: {value}"))


def dataset_argument(command: Callable[..., None]) -> Callable[..., None]:
    """DATASET; as `--dataset DATASET` too, which is how DVC writes a stage's item, quoted for the shell."""

    @click.argument("dataset", metavar="DATASET", required=False)
    @click.option("--dataset", "item", hidden=True)
    @wraps(command)
    def named(*args: Any, dataset: str | None, item: str | None, **options: Any) -> None:
        if (name := item if dataset is None else dataset) is None:
            raise click.UsageError("Missing argument 'DATASET'.")
        command(*args, dataset=require_dataset_name(name), **options)

    return named


_REPORT_HELP = "Rebuild the page of these rows, without a model; repeatable."

json_option = click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
def init(folder: Path) -> None:
    """Lay out a project in FOLDER, which must not exist yet: params, manifests, DVC's stages, Prefect's flows."""
    from metricgold.params import lay_out_project

    lay_out_project(folder)
    click.echo(f"{folder} is ready. Next:")
    click.echo(f"  cd {folder}")
    click.echo("  metricgold profile list    # params for real hardware; params.yaml holds the demo's")
    click.echo("  dvc repro                  # every stage that is not up to date; needs metricgold[pipeline]")


@main.command()
@dataset_argument
@click.pass_context
def synthesize(ctx: click.Context, dataset: str) -> None:
    """Render DATASET-synthetic and pack it into the data set's own archives; a real data set leaves a note."""
    from metricgold.datasets import load_manifest, synthesize, synthesize_benchmark
    from metricgold.storage import write_json

    out = FOLDERS.synthetic(dataset)
    manifest = None if FOLDERS.has_own_data(dataset) else load_manifest(dataset)
    if manifest and manifest.name.endswith("-synthetic"):
        if manifest.role == "evaluate":
            synthesize_benchmark(dataset, _params(ctx).synthesize_benchmark, out)
        else:
            synthesize(dataset, _params(ctx).synthesize, out)
    else:
        # DVC has the same stages for every data set, whether there is something to render or not.
        write_json(out / "note.json", {"dataset": dataset, "note": "real data: nothing to render"})


@main.command()
@dataset_argument
@click.option("--plan", "action", flag_value="plan", help="Say what would be fetched and its needs; fetch nothing.")
@click.option("--verify", "action", flag_value="verify", help="Read every file that is here, fetch broken ones again.")
@click.option("--accept-licence", is_flag=True, help="Accept the data set's licence; recorded with the date.")
@click.option("--scenes", multiple=True, metavar="GLOB", help="Only these scenes; repeatable.")
@click.option(
    "--limit-gb", type=click.FloatRange(min=0, min_open=True), help="Whole scenes, up to so much extracted data."
)
@json_option
@click.pass_context
def download(
    ctx: click.Context,
    dataset: str,
    action: str | None,
    accept_licence: bool,
    scenes: tuple[str, ...],
    limit_gb: float | None,
    as_json: bool,
) -> None:
    """Fetch DATASET's archives, verify and extract them; of own data only list what is there.

    Into data/raw/DATASET, or data/benchmarks/DATASET for what only measures.
    """
    from metricgold.datasets import raw_folder

    raw = raw_folder(dataset, FOLDERS)
    if FOLDERS.has_own_data(dataset):
        from metricgold.datasets import write_ledger

        if action or scenes or limit_gb:
            raise click.UsageError(f"{raw} is your own: there is nothing to fetch")
        write_ledger(dataset, raw)
        return

    from metricgold.datasets import load_manifest
    from metricgold.download import stage

    manifest, params = load_manifest(dataset), _selected(_params(ctx).download, dataset, scenes, limit_gb)
    if action == "plan":
        _print(stage.plan(manifest, raw, params=params, accept_licence=accept_licence), as_json)
    elif action == "verify":
        _print(stage.verify(manifest, raw, params=params, accept_licence=accept_licence), as_json)
    else:
        stage.download(manifest, raw, params=params, accept_licence=accept_licence)


def _selected(params: "Download", dataset: str, scenes: tuple[str, ...], limit_gb: float | None) -> "Download":
    """The section download, with the scenes and the limit that the command line names for this call."""
    changes: dict[str, Any] = {}
    if scenes:
        changes["scenes"] = (params.scenes or {}) | {dataset: list(scenes)}
    if limit_gb is not None:
        changes["limit_gb"] = (params.limit_gb or {}) | {dataset: limit_gb}
    return params.model_copy(update=changes)


@main.group()
def manifest() -> None:
    """Data manifests: what exists upstream, where, under which licence."""


@manifest.command()
@click.argument("names", nargs=-1, metavar="[NAME|FILE]...")
def check(names: tuple[str, ...]) -> None:
    """Say what is wrong with manifests and where; all of the project's if none is named."""
    from metricgold.datasets import WARNING, check_manifests, manifest_paths

    known = manifest_paths()
    paths = [known.get(name, Path(name)) for name in names] or sorted(known.values())
    faults = check_manifests(paths)
    for line in faults:
        click.echo(one_line(line))
    if any(not line.startswith(WARNING) for line in faults):
        raise click.exceptions.Exit(1)
    click.echo(f"{len(paths)} manifests are right" if len(paths) != 1 else f"{paths[0]} is right")


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--camera", metavar="FX,FY,CX,CY", help="Pixels of the rgb, for recordings that state no camera.")
@click.option("--unit", help="metre, centimetre, millimetre, or metres in one stored unit, if not the layout's own.")
@click.option("--kind", type=click.Choice(DISTANCE_KINDS), help="Of depth, where the layout does not say.")
@json_option
def import_frames(folder: Path, camera: str | None, unit: str | None, kind: str | None, as_json: bool) -> None:
    """Write frames.csv and dataset.yaml for recordings in FOLDER: TUM's lists, Polycam, ARKit, transforms.json."""
    from metricgold.datasets import import_frames

    try:
        numbers = tuple(map(float, camera.split(","))) if camera else None
    except ValueError:
        numbers = ()
    if numbers is not None and len(numbers) != 4:
        raise click.UsageError(f"--camera {camera}: expected four numbers, FX,FY,CX,CY")
    _print(import_frames(folder, camera=numbers, unit=unit, kind=kind)._asdict(), as_json)


@main.command()
@dataset_argument
@json_option
@click.pass_context
def inspect(ctx: click.Context, dataset: str, as_json: bool) -> None:
    """Look at DATASET's frames: a page in reports/inspect, figures in metrics/inspect, a histogram in plots/inspect."""
    from metricgold.datasets import inspect_dataset, raw_folder

    params = _params(ctx).inspect
    page = FOLDERS.reports / f"inspect/{dataset}.html"
    metrics, plot = FOLDERS.metrics(f"inspect/{dataset}"), FOLDERS.plots / f"inspect/{dataset}.csv"
    raw, num_frames = raw_folder(dataset, FOLDERS), params.num_frames
    _print(inspect_dataset(dataset, raw, page, metrics, plot, split=params.split, num_frames=num_frames), as_json)


@main.command()
@click.pass_context
def backbone(ctx: click.Context) -> None:
    """Prepare VAE, U-Net, schedule and empty prompt in models/backbone."""
    show_unused()  # the text encoder is one of transformers' models
    from metricgold.model import prepare_backbone

    params = _params(ctx)
    prepare_backbone(params.backbone, params.log_depth, _training(params), FOLDERS.backbone)


@main.command()
@dataset_argument
@click.option("--from-remote", is_flag=True, help="Scene by scene: fetch, encode, delete. For small disks.")
@click.option("--accept-licence", is_flag=True, help="With --from-remote: as in download.")
@click.option("--dask", metavar="ADDRESS", help="Scenes on a Dask cluster: tcp://host:port, or local:N processes here.")
@click.pass_context
def encode(ctx: click.Context, dataset: str, from_remote: bool, accept_licence: bool, dask: str | None) -> None:
    """Stream DATASET's frames through the VAE into data/latents/DATASET; nothing of own data that have no train."""
    from metricgold.datasets import why_only_measured

    params = _params(ctx)
    raw, backbone, out = FOLDERS.raw(dataset), FOLDERS.backbone, FOLDERS.latents(dataset)
    from_remote = from_remote or dataset in (params.download.streamed or ())
    if from_remote and dask:
        raise click.UsageError(f"--dask needs the raw data of {dataset} on a shared disk, which --from-remote deletes")
    if from_remote:
        from metricgold.datasets import load_manifest
        from metricgold.encode import encode_from_remote

        encode_from_remote(load_manifest(dataset), params, raw, backbone, out, accept_licence=accept_licence)
    elif FOLDERS.has_own_data(dataset) and (reason := why_only_measured(dataset, raw)):
        from metricgold.encode import leave_empty

        leave_empty(out)
        logging.getLogger(__name__).info("%s is only measured, nothing to encode: %s", dataset, reason)
    else:
        from metricgold.encode import encode
        from metricgold.predict import open_executor

        with open_executor(dask) if dask else nullcontext() as executor:
            encode(dataset, params.encode, params.depth_range, raw, backbone, out, executor=executor)


@main.command("vae-floor")
@click.pass_context
def vae_floor(ctx: click.Context) -> None:
    """Measure what the VAE alone loses, by encoding, range and depth, into metrics/vae_floor.json and plots/."""
    from metricgold.evaluate import measure_vae_floor

    params = _params(ctx)
    raw_folders, size = _training(params), (params.encode.height, params.encode.width)
    metrics, plots = FOLDERS.metrics("vae_floor"), FOLDERS.plots
    measure_vae_floor(
        params.vae_floor,
        params.depth_range,
        raw_folders,
        FOLDERS.backbone,
        metrics,
        plots,
        size=size,
        view_shares=params.encode.view_shares,
    )


@main.command("depth-vae")
@click.pass_context
def depth_vae(ctx: click.Context) -> None:
    """Fine-tune the decoder of depth into models/depth-vae; with num_steps 0 the backbone's decoder is copied."""
    from metricgold.train import train_depth_vae

    params = _params(ctx)
    raw_folders, size = _training(params), (params.encode.height, params.encode.width)
    backbone, out, metrics = FOLDERS.backbone, FOLDERS.depth_vae, FOLDERS.metrics("depth_vae")
    train_depth_vae(params.depth_vae, params.depth_range, raw_folders, backbone, out, metrics, size=size)


@main.group()
def profile() -> None:
    """Complete params files for real hardware."""


@profile.command("list")
@click.pass_context
def list_(ctx: click.Context) -> None:
    """Name the profiles and what they are for."""
    from metricgold.params import list_profiles

    for name, title in list_profiles(ctx.obj).items():
        click.echo(f"{name}: {title}")


@profile.command()
@click.argument("name")
@click.option("--force", is_flag=True, help="Replace a params.yaml that was edited.")
@click.pass_context
def use(ctx: click.Context, name: str, force: bool) -> None:
    """Copy the profile NAME to params.yaml and say what changes."""
    from metricgold.params import use_profile

    for line in use_profile(name, ctx.obj, force=force) or ["nothing to change"]:
        click.echo(line)


@main.command()
@click.option("--card", help="Refuse, with advice, a run that does not fit: rtx3090, h100, ...")
@json_option
@click.pass_context
def plan(ctx: click.Context, card: str | None, as_json: bool) -> None:
    """Count parameters, operations, memory, hours and disk of `metricgold train` before it starts."""
    from metricgold.train import plan as counting

    params = _params(ctx)
    training = params.model_copy(update={"datasets": list(_training(params))})
    answer = counting.plan_training(training, FOLDERS.backbone, FOLDERS.caches, card=card)
    click.echo(json.dumps(answer, sort_keys=True) if as_json else counting.describe(answer))
    if reason := counting.refusal(answer):
        raise click.ClickException(reason)


@main.command()
@click.option("--resume", type=click.Choice(["auto", "fresh"]), default="auto", show_default=True)
@click.option("--no-track", is_flag=True, help="Do not send this training to MLflow.")
@click.pass_context
def train(ctx: click.Context, resume: str, no_track: bool) -> None:
    """Fine-tune the U-Net on the latent caches into models/metricgold; MLflow follows it live."""
    from metricgold.evaluate import held_out_calibration, held_out_validation
    from metricgold.registry import track
    from metricgold.train import only_job, train

    params = _params(ctx)
    training = _training(params)
    # Without steps the depth VAE is the backbone's own decoder, and a training by hand needs no copy of it.
    depth_vae = FOLDERS.depth_vae if FOLDERS.depth_vae.exists() or params.depth_vae.num_steps else None
    validate = None
    if params.train.validation:
        validate = held_out_validation(params.train.validation, params.depth_range, training, FOLDERS.samples)
    uncertainty = params.train.uncertainty
    calibrate = held_out_calibration(uncertainty, training) if uncertainty else None
    device, is_first = _device_and_first()
    with only_job(device), track(params, FOLDERS.state) if is_first and not no_track else nullcontext() as report:
        train(
            params.train,
            params.depth_range,
            FOLDERS.latents_of(training),
            FOLDERS.backbone,
            FOLDERS.model,
            depth_vae=depth_vae,
            resume=resume,
            plot=FOLDERS.plots / "train.csv",
            report=report,
            validate=validate,
            calibrate=calibrate,
        )


def _device_and_first() -> tuple[str, bool]:
    """Device of this process, and whether it is the first of those that `accelerate launch` started."""
    import torch

    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    return device, os.environ.get("RANK", "0") == "0"


@main.command()
@click.pass_context
def evaluate(ctx: click.Context) -> None:
    """Measure models/metricgold on held-out scenes into metrics/evaluate.json and plots/."""
    from metricgold.evaluate import evaluate

    params = _params(ctx)
    raw_folders, metrics = FOLDERS.raw_of(params.datasets), FOLDERS.metrics("evaluate")
    evaluate(params.evaluate, raw_folders, FOLDERS.model, metrics, FOLDERS.plots)


@main.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--dataset", "item", hidden=True)  # which is how DVC writes a stage's item, quoted for the shell
@click.option("--protocol", "protocols", multiple=True, metavar="PROTOCOL", help="By its name, or all; repeatable.")
@click.option("--model", "models", multiple=True, help="A folder or models:/name@alias; repeatable.")
@click.option("--predictions", multiple=True, type=click.Path(path_type=Path), help="A folder of depth files.")
@click.option("--peer", "peers", multiple=True, metavar="KIND:FOLDER", help="Another model from a local folder.")
@click.option("--frames", type=click.IntRange(1), metavar="N", help="Only so many of each protocol, evenly spaced.")
@click.option("--report", "rows", multiple=True, type=click.Path(path_type=Path), metavar="ROWS", help=_REPORT_HELP)
@json_option
@click.pass_context
def benchmark(
    ctx: click.Context,
    names: tuple[str, ...],
    item: str | None,
    models: tuple[str, ...],
    rows: tuple[Path, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Measure models on benchmarks: their protocols, intervals, baselines, a page with tables and pictures.

    NAME is a data set that only measures; if none is named, all of `benchmarks` in params. models/metricgold is
    measured where nothing else is named. Figures go to metrics/benchmark, rows and the page to reports/benchmark.
    """
    from metricgold.evaluate import BenchmarkOutputs, every_figure, rebuild_report

    if rows:
        are_rows = all(
            name.endswith((".parquet", ".jsonl")) for name in names
        )  # --report *.parquet: the others are here
        if item or models or any(options.values()) or not are_rows:
            raise click.UsageError("--report computes from rows alone: no NAME and no other option goes with it")
        rows += tuple(map(Path, names))
        figures = {"figures": every_figure(rows)} if as_json else {}
        _print(rebuild_report(rows, FOLDERS.plots / "benchmark") | figures, as_json)
        return
    params = _params(ctx)
    named = [require_dataset_name(name) for name in dict.fromkeys([*names, *([item] if item else [])])]
    if not (named := named or params.benchmarks):
        raise click.UsageError(f"no NAME, and {ctx.obj} lists no benchmarks")
    others = options["predictions"] or options["peers"]
    folders = _named_models(models or (() if others else (str(FOLDERS.model),)))
    for name in named:
        out = BenchmarkOutputs.of(FOLDERS, name)
        figures = {"benchmark": name} | _measure(params, name, out, folders, **options)
        # For people what stands on top; the rest is on the page.
        if as_json:
            _print(figures | {"figures": every_figure([out.rows])}, as_json)
        else:
            _print({key: value for key, value in figures.items() if "/" not in key}, as_json)
            click.echo(f"page: {out.html}")


@main.command()
@click.pass_context
def headline(ctx: click.Context) -> None:
    """Pick the few figures that commits are compared by out of metrics/ into reports/headline.json."""
    from metricgold.evaluate import write_headline

    params = _params(ctx)
    write_headline(FOLDERS, params.datasets, params.benchmarks)


def _named_models(models: tuple[str, ...]) -> dict[str, Path]:
    """Checkpoint folders by the names of tables; where two share a name, the second is called as it was typed."""
    from metricgold.registry import fetch_model

    folders: dict[str, Path] = {}
    for model in dict.fromkeys(models):
        folder, name = fetch_model(model)
        folders[model if name in folders else name] = folder
    return folders


def _measure(
    params: "Params",
    name: str,
    out: "BenchmarkOutputs",
    models: dict[str, Path],
    *,
    protocols: tuple[str, ...],
    predictions: tuple[Path, ...],
    peers: tuple[str, ...],
    frames: int | None,
) -> dict[str, Any]:
    """Measure what the command line names on one benchmark; returns its figures."""
    if peers:
        show_unused()  # diffusers' own pipelines have text encoders, and peers are transformers' models themselves
    from metricgold.datasets import raw_folder
    from metricgold.evaluate import benchmark, open_peer

    return benchmark(
        params.benchmark if frames is None else params.benchmark.model_copy(update={"frames": frames}),
        name,
        raw_folder(name, FOLDERS),
        out,
        models=models,
        predictions=predictions,
        methods=[open_peer(peer) for peer in peers],
        protocols=protocols,
        training=FOLDERS.raw_of(params.datasets),
        range_m=params.log_depth,
    )


class _EnsembleType(click.ParamType):
    name = "N|auto"

    def convert(self, value: Any, param: Any, ctx: Any) -> int | str:
        if str(value) == "auto" or (str(value).isdecimal() and int(value) > 0):
            return value if value == "auto" else int(value)
        return self.fail(f"{value!r} is neither a number of runs nor auto", param, ctx)


class _FailedType(click.ParamType):
    name = "SHARE|N"

    def convert(self, value: Any, param: Any, ctx: Any) -> float | int:
        if str(value).isdecimal():
            return int(value)
        try:
            share = float(value[:-1]) / 100 if value.endswith("%") else float(value)
        except ValueError:
            share = -1.0
        if not 0 <= share <= 1:
            self.fail(f"{value!r} is neither a share (1% or 0.01) nor a number of images", param, ctx)
        return share


@main.command()
@click.argument("images", metavar="INPUT")
@click.argument("output")
@click.option("--model", default=str(FOLDERS.model), show_default=True, help="A folder or models:/name@alias.")
@click.option("--preset", type=click.Choice(list(PRESETS)), help="Steps and runs; --steps and --ensemble override it.")
@click.option("--steps", "num_inference_steps", type=click.IntRange(1), metavar="N", help="Denoising steps.")
@click.option("--ensemble", "ensemble_size", type=_EnsembleType(), help="Runs; auto: until depth is certain.")
@click.option("--seed", type=click.IntRange(0), help="Of the noise that the runs start from.")
@click.option("--windows", type=click.Choice(WINDOWS), help="Whether very wide or tall images are seen by windows too.")
@click.option("--write", "outputs", type=click.Choice(OUTPUTS), multiple=True, help="A kind of output; repeatable.")
@click.option("--drop-edges", is_flag=True, default=None, help="No points between two surfaces, at blurred edges.")
@click.option("--include", multiple=True, metavar="GLOB", help="Only these keys; repeatable.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="None of these keys; repeatable.")
@click.option("--first", multiple=True, metavar="PREFIX", help="Keys that begin so come first; repeatable.")
@click.option("--max-images", type=click.IntRange(1), metavar="N", help="Begin N images; the next run continues.")
@click.option("--max-seconds", type=click.FloatRange(0, min_open=True), metavar="S", help="Begin images for S seconds.")
@click.option("--max-failed", type=_FailedType(), help="Images that may fail: 1%, 0.01 or 20; beyond, exit 1.")
@click.option("--allow-truncated", is_flag=True, default=None, help="Use the readable part of images that end early.")
@click.option(
    "--compile",
    is_flag=True,
    default=None,
    help="Compile the U-Net: half a minute or more for each shape, faster then.",
)
@click.option(
    "--calibration", type=click.Path(path_type=Path), metavar="FILE", help="Correct depth by a file of `calibrate`."
)
@click.option("--intrinsics", type=click.Path(path_type=Path), metavar="FILE", help="The camera of all images, JSON.")
@click.option("--focal-px", type=float, metavar="F", help="Its focal length, in pixels of each image.")
@click.option("--focal-35mm", "focal_35mm", type=float, metavar="F", help="Its focal length on 35 mm film.")
@click.option("--fov-deg", type=float, metavar="D", help="Its field of view over the longer side, in degrees.")
@click.option("--dask", metavar="ADDRESS", help="Slices on a Dask cluster: tcp://host:port, or local:N processes here.")
@click.option(
    "--metrics-file", type=click.Path(path_type=Path), metavar="FILE", help="The run's figures for Prometheus."
)
@json_option
@click.pass_context
def predict(
    ctx: click.Context,
    images: str,
    output: str,
    model: str,
    calibration: Path | None,
    intrinsics: Path | None,
    focal_px: float | None,
    focal_35mm: float | None,
    fov_deg: float | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    first: tuple[str, ...],
    max_images: int | None,
    max_seconds: float | None,
    dask: str | None,
    metrics_file: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Depth in metres for INPUT (file, folder, glob or s3://bucket/prefix) into OUTPUT (folder or s3://).

    Options override the section predict of params.yaml; without that file the defaults hold. Exit 1 if more images
    fail than --max-failed allows; without it if all do.
    """
    from metricgold.predict import (
        MetricsFile,
        Quota,
        open_client,
        over_budget,
        predict_all,
        predict_on,
        read_calibration,
        stated_for_all,
    )
    from metricgold.registry import fetch_model
    from metricgold.storage import exit_on_sigterm

    params = _overridden(_predict_params(ctx), **options)
    cameras = stated_for_all(intrinsics=intrinsics, focal_px=focal_px, focal_35mm=focal_35mm, fov_deg=fov_deg)
    metrics = MetricsFile(metrics_file) if metrics_file else None
    folder, model_name = fetch_model(model)
    with exit_on_sigterm(), open_client(dask) if dask else nullcontext() as client:
        summary = predict_all(
            params,
            folder,
            images,
            output,
            model_name=model_name,
            include=include,
            exclude=exclude,
            calibration=read_calibration(calibration) if calibration else None,
            cameras=cameras,
            first=first,
            quota=Quota(max_images, max_seconds),
            metrics=metrics,
            run_entries=partial(predict_on, client) if client else None,
        )
    if metrics:
        metrics.write(summary)
    _print(summary, as_json)
    if reason := over_budget(summary, params.max_failed):
        raise click.ClickException(reason)


@main.command()
@click.option("--model", default=str(FOLDERS.model), show_default=True, help="A folder or models:/name@alias.")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Others than loopback need METRICGOLD_SERVE_TOKEN."
)
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any that is free.")
@click.option("--preset", type=click.Choice(list(PRESETS)), help="Steps and runs of requests that name no preset.")
@click.option(
    "--calibration", type=click.Path(path_type=Path), metavar="FILE", help="Correct depth by a file of `calibrate`."
)
@click.option("--batch-size", type=click.IntRange(1), metavar="N", help="Images x runs through the U-Net at once.")
@click.option("--window-ms", type=click.FloatRange(0), default=10, show_default=True, help="To wait for a batch.")
@click.option("--queue", type=click.IntRange(1), default=64, show_default=True, help="Requests at once; else 429.")
@click.option("--timeout-s", type=click.FloatRange(0, min_open=True), default=120, show_default=True)
@click.option("--max-mb", type=click.FloatRange(0, min_open=True), default=32, show_default=True, help="Of a file.")
@click.option("--follow-alias", is_flag=True, help="Serve another version as soon as the alias moves to it.")
@click.option("--follow-s", type=click.FloatRange(0, min_open=True), default=10, show_default=True, help="How often.")
@click.option("--max-pixels", type=click.IntRange(1), default=50_000_000, show_default=True, help="Of a photograph.")
@click.pass_context
def serve(
    ctx: click.Context,
    model: str,
    host: str,
    port: int,
    window_ms: float,
    queue: int,
    timeout_s: float,
    max_mb: float,
    follow_alias: bool,
    follow_s: float,
    calibration: Path | None,
    **options: Any,
) -> None:
    """Depth over HTTP: POST /v1/depth, and a page to look at photographs. On this machine only, unless told."""
    from metricgold.predict import read_calibration
    from metricgold.registry import fetch_model
    from metricgold.serve import Limits, serve

    if follow_alias and calibration:
        raise click.UsageError("--calibration is of one model, --follow-alias serves another one in time: choose one")
    if follow_alias and not (model.startswith("models:/") and "@" in model):
        raise click.UsageError(f"--follow-alias: {model} is no alias, expected models:/name@alias")
    params = _overridden(_predict_params(ctx), **options)
    limits = Limits(
        max_bytes=round(max_mb * 1_000_000), max_queue=queue, timeout_s=timeout_s, window_s=window_ms / 1000
    )
    follow, corrects = follow_s if follow_alias else None, read_calibration(calibration) if calibration else None
    resolve = partial(fetch_model, model)
    serve(params, resolve, limits, host=host, port=port, follow_s=follow, calibration=corrects)


@main.command()
@click.argument("points", type=click.Path(path_type=Path))
@click.option("--predictions", metavar="FOLDER", help="Depth files with side-cars, or s3://; or predict --images:")
@click.option("--images", metavar="FOLDER", help="The images that POINTS names, or s3://bucket/prefix.")
@click.option("--model", default=str(FOLDERS.model), show_default=True, help="A folder or models:/name@alias.")
@click.option("--preset", type=click.Choice(list(PRESETS)), help="Steps and runs with which they are predicted.")
@click.option("--kind", type=click.Choice(DISTANCE_KINDS), help="Of metres in rows without `kind`.")
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="FILE.json", help="And FILE.png.")
@json_option
@click.pass_context
def calibrate(
    ctx: click.Context,
    points: Path,
    predictions: str | None,
    images: str | None,
    model: str,
    preset: str | None,
    kind: "DistanceKind | None",
    out: Path,
    as_json: bool,
) -> None:
    """Fit scale, or scale and power, to POINTS with known distances, for `predict --calibration`.

    POINTS is a csv: image, x, y, metres, or image, depth (a depth map). Exit 1 where no fit lowers the error beyond
    doubt.
    """
    from metricgold.predict import calibrate
    from metricgold.registry import fetch_model

    if (predictions is None) == (images is None):
        raise click.UsageError("give either --predictions or --images")
    folder, name = fetch_model(model) if images else (None, "")
    options: dict[str, Any] = {"images": images, "model": folder, "model_name": name}
    params = _overridden(_predict_params(ctx), preset)
    calibration = calibrate(points, out, predictions=predictions, params=params, kind=kind, **options)
    _print(calibration.summary | {"calibration": str(out), "picture": str(out.with_suffix(".png"))}, as_json)


def _predict_params(ctx: click.Context) -> "Predict":
    """The section predict, or its defaults where no params file is named and none is in the working folder."""
    from metricgold.params import Predict

    is_default = ctx.find_root().get_parameter_source("params_path") is click.core.ParameterSource.DEFAULT
    return Predict() if is_default and not ctx.obj.exists() else _params(ctx).predict


def _overridden(params: "Predict", preset: str | None, **options: Any) -> "Predict":
    """The section predict with the options of the command line in its place. UsageError where they contradict."""
    from pydantic import ValidationError

    from metricgold.params import Predict

    changes: dict[str, Any] = dict(PRESETS[preset]) if preset else {}
    changes |= {name: value for name, value in options.items() if value not in (None, ())}
    try:
        return Predict.model_validate(params.model_dump() | changes)
    except ValidationError as error:
        raise click.UsageError("; ".join(fault["msg"] for fault in error.errors())) from error


@main.command()
@click.option("--experiment", metavar="NAME", help="The experiment of DVC that made it: a tag of the version.")
@json_option
@click.pass_context
def register(ctx: click.Context, experiment: str | None, as_json: bool) -> None:
    """Log run, metrics, lineage and models/metricgold to MLflow as a new version."""
    from metricgold.registry import register

    _print(register(_params(ctx), FOLDERS.model, FOLDERS.metrics("evaluate"), experiment), as_json)


@main.command()
@click.option("--history", is_flag=True, help="All moves of aliases instead: when, what, who and why.")
@json_option
def versions(history: bool, as_json: bool) -> None:
    """List the registered versions, the newest first: aliases, figures, date, commit, licences."""
    from metricgold.registry import history_lines, list_versions, table_lines

    known = list_versions()
    if as_json:
        click.echo(json.dumps(known, sort_keys=True))
        return
    for line in history_lines(known["moves"]) if history else table_lines(known["versions"]):
        click.echo(one_line(line))


def move_options(command: Callable[..., None]) -> Callable[..., None]:
    """Options of the commands that move an alias."""
    command = click.option("--why", default="", metavar="TEXT", help="A reason, kept with the move.")(command)
    text = "Refuse unless the alias is at this version; none: at no version."
    return click.option("--instead-of", default=None, metavar="VERSION", help=text)(command)


def _print_checks(checks: list[dict[str, Any]]) -> None:
    """One line a check: what was found, what is asked for, whether it holds."""
    words = {True: "holds", False: "FAILS", None: "not made"}
    for check in checks:
        ends = f" ({check['low']:.4g} to {check['high']:.4g})" if "low" in check else ""
        value = check["value"]
        shown = "missing" if value is None else f"{value:.4g}" if isinstance(value, float | int) else value
        note = f"; {check['note']}" if "note" in check else ""
        click.echo(one_line(f"{words[check['passed']]}: {check['name']} {shown}{ends}, bound {check['bound']}{note}"))


@main.command()
@click.option("--to", default="champion", metavar="ALIAS", show_default=True, help="Alias to move.")
@click.option("--version", default=None, help="Registered version; the candidate alias if not given.")
@move_options
@click.option("--dry-run", is_flag=True, help="Print the checks, move nothing.")
@json_option
@click.pass_context
def promote(ctx: click.Context, as_json: bool, **options: Any) -> None:
    """Move the alias champion to a version if the gate in params holds; exit 1 if it does not."""
    from metricgold.registry import promote

    params = _params(ctx)
    outcome = promote(params.promote, predict=params.predict, **options)
    if not as_json:
        _print_checks(outcome.pop("checks"))
    _print(outcome, as_json)
    if not outcome["passed"]:
        ctx.exit(1)


@main.command()
@move_options
@click.option("--dry-run", is_flag=True, help="Print what would move, move nothing.")
@json_option
def rollback(as_json: bool, **options: Any) -> None:
    """Make the previous champion champion again; the present one becomes previous. Exit 1 if there is none."""
    from metricgold.registry import rollback

    _print(rollback(**options), as_json)


@main.command()
@click.option("--model", default=str(FOLDERS.model), show_default=True, help="A folder or models:/name@alias.")
@click.option("--hub", type=click.Path(path_type=Path), metavar="DIR", help="For a model hub: with card and licences.")
@click.option("--onnx", type=click.Path(path_type=Path), metavar="FILE", help="One graph for onnxruntime.")
@click.option(
    "--torch", type=click.Path(path_type=Path), metavar="FILE", help="A one-step model for torch.export.load."
)
@click.option(
    "--dtype", type=click.Choice(["float32", "float16"]), default="float32", show_default=True, help="Of a graph."
)
@json_option
@click.pass_context
def export(
    ctx: click.Context,
    model: str,
    hub: Path | None,
    onnx: Path | None,
    torch: Path | None,
    dtype: Literal["float32", "float16"],
    as_json: bool,
) -> None:
    """Write a model in a form that others take.

    --hub: a diffusers folder with its model card, licences and an example, to be uploaded as it is. --onnx, --torch: a
    one-step model as one graph from image and focal length to metres, compared with the pipeline first.
    """
    from metricgold.export import export_hub, export_onnx, export_torch
    from metricgold.registry import card_of_folder, card_of_version, fetch_model

    if hub is None and onnx is None and torch is None:
        raise click.UsageError("say what to write: --hub DIR, --onnx FILE or --torch FILE")
    written: dict[str, Any] = {}
    folder, _ = fetch_model(model)
    if onnx is not None:
        written |= export_onnx(folder, onnx, dtype=dtype)
    if torch is not None:
        written |= export_torch(folder, torch, dtype=dtype)
    if hub is None:
        return _print(written, as_json)
    if model.startswith("models:/"):
        card = card_of_version(model)
    else:
        card = card_of_folder(_params(ctx), folder, FOLDERS.metrics("evaluate"))
    _print(written | export_hub(folder, card, hub), as_json)


@main.command()
@click.argument("uri")
@click.option("--verify", is_flag=True, help="Compute every digest again whose bytes are here or can be fetched.")
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Write it as one page with a picture.")
@json_option
@click.pass_context
def lineage(ctx: click.Context, uri: str, verify: bool, html: Path | None, as_json: bool) -> None:
    """What made URI: version, checkpoint, params, code, caches, data sets, archives. Exit 1 where the chain is broken.

    URI is an output of predict (a file or s3://), FOLDER/receipt.jsonl#INPUT, models:/name@alias, a checkpoint or a
    latent cache.
    """
    from metricgold.registry import broken_links, render_page, summary_of, trace, tree_lines
    from metricgold.storage import write_aside

    chain = trace(uri, verify=verify)
    broken = broken_links(chain)
    if html is not None:
        with write_aside(html) as aside:
            aside.write_text(render_page(chain, uri), encoding="utf-8")
    if as_json:
        _print({"uri": uri, "whole": not broken, "broken": broken, "chain": chain.as_json()}, as_json)
    else:
        for line in (*tree_lines(chain), summary_of(chain)):
            click.echo(one_line(line))
    if broken:
        ctx.exit(1)


@main.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--plan", "action", flag_value="plan", help="Count runs, hours and disk; start nothing.")
@click.option("--report", "action", flag_value="report", help="Make tables and pictures of the rows that are there.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Trainings at a time.")
@click.option("--card", help="With --plan, hours on it and not here: rtx3090, h100, ...")
@click.option("--page", type=click.Path(path_type=Path), help="With --report, the page to fill.  [docs/studies.md]")
@click.option("--no-track", is_flag=True, help="Do not send the runs to MLflow.")
@json_option
@click.pass_context
def study(
    ctx: click.Context,
    names: tuple[str, ...],
    action: str | None,
    jobs: int,
    card: str | None,
    page: Path | None,
    no_track: bool,
    as_json: bool,
) -> None:
    """Answer the question of studies/NAME.yaml: train and measure its runs into studies/results, or continue.

    With the stand-in a call starts no training once the study's budget_minutes are over; the same command continues.
    --plan and --report take all studies where none is named.
    """
    from metricgold.study import load_study, study_names

    if (card and action != "plan") or (page and action != "report"):
        raise click.UsageError("--card goes with --plan, --page with --report")
    if not names and action is None:
        raise click.UsageError("Missing argument 'NAME'.")
    for name in names or study_names():
        if action == "report":
            from metricgold.study import write_report

            _print({"study": name, "written": [str(path) for path in write_report(name, page)]}, as_json)
        elif action == "plan":  # it loads torch, and so does a run
            from metricgold.study import describe_plan, plan_study

            plan = plan_study(name, _params(ctx), card=card)
            click.echo(json.dumps(plan, sort_keys=True) if as_json else f"{name}\n{describe_plan(plan)}")
        else:
            from metricgold.registry import track_study
            from metricgold.study import run_study

            follow = None if no_track else partial(track_study, name, load_study(name).question)
            _print(run_study(name, _params(ctx), jobs=jobs, follow=follow), as_json)


@main.command()
@click.option("--systemd", type=click.Path(path_type=Path), metavar="DIR", help="Only write a user unit into DIR.")
@json_option
def up(systemd: Path | None, as_json: bool) -> None:
    """Start what is not running: Prefect's server, MLflow's, pools, limits, deployments, workers. On loopback only.

    Ends when all of it is well. After a reboot: the same command.
    """
    from metricgold.operate import up, write_units

    if systemd is not None:
        _print({"unit": str(write_units(FOLDERS.root, systemd))}, as_json)
        return
    _print_services(up(FOLDERS.root, partial(click.echo, err=True)), as_json)


@main.command()
def down() -> None:
    """End what `metricgold up` started in this folder, and nothing else."""
    from metricgold.operate import down

    down(FOLDERS.root, partial(click.echo, err=True))


@main.command()
@json_option
@click.pass_context
def status(ctx: click.Context, as_json: bool) -> None:
    """Say of each program that `metricgold up` starts whether it is well; exit 1 unless all are."""
    from metricgold.operate import status

    rows = status(FOLDERS.root)
    _print_services(rows, as_json)
    if any(row["state"] != "well" for row in rows):
        ctx.exit(1)


def _print_services(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        return _print({"services": rows}, as_json)
    for row in rows:
        click.echo(
            one_line(f"{row['state']:<9}{row['name']:<12}{row['pid'] or '':<9}{row['address']}  log {row['log']}")
        )


@main.command()
@click.argument("name", required=False)
@click.option("--follow", is_flag=True, help="Continue with what comes, until Ctrl-C.")
@click.option("--lines", "number", type=click.IntRange(1), default=20, show_default=True, help="Of each log.")
def logs(name: str | None, follow: bool, number: int) -> None:
    """Show the last lines of what `metricgold up` started: prefect, mlflow, worker-gpu, worker-cpu, deploy; or NAME."""
    from metricgold.operate import follow_logs, last_lines

    root = FOLDERS.root
    for line in follow_logs(root, name, number) if follow else last_lines(root, name, number):
        click.echo(one_line(line))


@main.command()
@click.option("--s3", metavar="S3://BUCKET/PREFIX", help="Write, read, list and delete a small object there.")
@json_option
@click.pass_context
def doctor(ctx: click.Context, s3: str | None, as_json: bool) -> None:
    """Say of what a project needs whether it is well, or what to do; exit 1 if something that is needed is not."""
    from metricgold.operate import diagnose

    datasets = _params(ctx).datasets if ctx.obj.exists() else []
    findings = diagnose(FOLDERS.root, datasets, s3)
    if as_json:
        _print({"findings": [finding._asdict() for finding in findings]}, as_json)
    else:
        for finding in findings:
            click.echo(f"{finding.state:<6}{finding.name:<12}{finding.text}")
    if any(finding.state == "wrong" for finding in findings):
        ctx.exit(1)


def run() -> None:
    """`main` in a process of its own, as the command `metricgold` starts it."""
    hide_unused()
    main()


if __name__ == "__main__":
    run()
