"""The registry: which model is current, what it scored and where it came from.

One registered model, `metricgold`, whose versions move through three aliases: `register` sets `candidate`,
`promote` moves `champion` if the gate holds and leaves the old one as `previous`, `rollback` swaps the two.
A version is keyed by the digest of its checkpoint: registering the same bytes twice gives the same version.
`track` follows a training live, and the version of its checkpoint belongs to the same run.

The only module that knows MLflow. Tracking goes to MLFLOW_TRACKING_URI, else to mlflow.db and mlruns/ in the
working folder. A version is a pyfunc made of a diffusers folder and this package's source; nothing is pickled.
"""

import logging
import os
import re
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import yaml

from metricgold.params import Params, Promote
from metricgold.registry.lineage import _flat, _git_tags, _lineage, _score_tags
from metricgold.storage import digest_folder, digest_json, read_json, read_rows, write_aside, write_json

if TYPE_CHECKING:
    import numpy as np
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

logger = logging.getLogger(__name__)

NAME = "metricgold"
CURVE_POINTS = 200  # of the loss curve kept in MLflow; the whole one stays in metrics.jsonl
BATCH_LIMIT = 1000  # metrics that MLflow takes at once
ROWS_AT_ONCE = 50  # rows of a training sent together, each with fewer than 20 figures
SEND_EVERY_S = 5.0
END_S, STOPPED_S = 60.0, 8.0  # patience with MLflow at the end; a job told to stop is killed 30 s later
# What a training reads itself or has behind it; the other sections may still change before `register`.
TRAINED_WITH = ("datasets", "log_depth", "synthesize", "download", "backbone", "encode", "depth_vae", "train")

Row = dict[str, float]


def register(params: Params, model: Path, metrics: Path) -> dict[str, Any]:
    """Log one run and register its checkpoint; the version gets the alias `candidate`.

    model    diffusers folder of MetricGoldPipeline; beside it <model>.state/metrics.jsonl, if it was trained here
    metrics  JSON of `metricgold evaluate`
    Answers name, version, run_id, model_uri, model_digest, alias and created (False: these bytes had a version).
    Raises ValueError when checkpoint or metrics are missing, or MLflow refuses.
    """
    for path, stage in ((model / "model_index.json", "train"), (metrics, "evaluate")):
        if not path.is_file():
            raise ValueError(f"{path}: no such file; `dvc repro {stage}` makes it")
    scores = read_json(metrics)
    digest = digest_folder(model)
    with _client() as client:
        version = _version_of(client, digest)
        created = version is None
        if version is None:
            version = _create_version(client, params, model, scores, digest)
        elif version.tags.get("scores_digest") != digest_json(scores):
            _log_scores(client, version.run_id, scores)
            for key, value in _score_tags(scores).items():
                client.set_model_version_tag(NAME, version.version, key, value)
        client.set_registered_model_alias(NAME, "candidate", version.version)
    return {
        "name": NAME,
        "version": str(version.version),
        "run_id": version.run_id,
        "model_uri": f"models:/{NAME}/{version.version}",
        "model_digest": digest,
        "alias": "candidate",
        "created": created,
    }


def promote(gate: Promote, *, version: str | None = None, dry_run: bool = False) -> dict[str, Any]:
    """Check a version (the candidate if not given) against the gate and make it champion if every check holds.

    Answers passed, checks [{name, value, bound, passed}], version, alias (what the version is now, or would be)
    and previous (the champion before). AbsRel is compared with the champion's only where both were measured by
    the same evaluation. Raises ValueError when there is no such version.
    """
    with _client() as client:
        candidate = _find(client, version or "candidate")
        champion = _find_alias(client, "champion")
        checks = _checks(gate, client, candidate, champion)
        passed = all(check["passed"] for check in checks)
        is_new = champion is None or champion.version != candidate.version
        if passed and is_new and not dry_run:
            if champion is not None:
                client.set_registered_model_alias(NAME, "previous", champion.version)
            client.set_registered_model_alias(NAME, "champion", candidate.version)
    return {
        "passed": passed,
        "checks": checks,
        "version": str(candidate.version),
        "alias": "champion" if passed or not is_new else "candidate",
        "previous": str(champion.version) if champion else None,
        "dry_run": dry_run,
    }


def rollback() -> dict[str, Any]:
    """Make the previous champion champion again; the two change places, so a second rollback undoes the first."""
    with _client() as client:
        previous, champion = _find(client, "previous"), _find(client, "champion")
        client.set_registered_model_alias(NAME, "champion", previous.version)
        client.set_registered_model_alias(NAME, "previous", champion.version)
    return {"version": str(previous.version), "alias": "champion", "previous": str(champion.version)}


def fetch_model(model: str) -> tuple[Path, str]:
    """Local folder and name of a checkpoint given as a folder or as models:/metricgold@champion, models:/metricgold/3.

    A registered version that lies on this machine is used in place, else it is downloaded once into
    ~/.cache/metricgold. Raises ValueError when there is no such folder or version.
    """
    if not model.startswith("models:/"):
        folder = Path(model)
        if not (folder / "model_index.json").is_file():
            raise ValueError(f"{model} is neither a checkpoint folder (no model_index.json) nor models:/name@alias")
        return folder, folder.resolve().name
    name, _, which = model.removeprefix("models:/").replace("@", "/").partition("/")
    if not which:
        raise ValueError(f"{model}: expected models:/name@alias or models:/name/version")
    with _client() as client:
        version = _find(client, which, name)
        folder = _download(client.get_model_version_download_uri(name, version.version))
    return _data_folder(folder), f"{name}/{version.version}"


# A training, live ----------------------------------------------------------------------------------------------


@contextmanager
def track(params: Params, state: Path) -> Iterator[Callable[[Row], None]]:
    """Follow a training in MLflow; yields what train() is to `report` its rows to.

    state  the trainer's `<model>.state`. mlflow.json in it names the run, so that a resumed training goes on in its
           own run, and one with other params, which clears the folder, starts another

    The run, `train` in the experiment `metricgold`, holds params, rows of metrics.jsonl at their steps (none twice),
    pictures of validation and the machine's load. It ends FINISHED, KILLED when stopped, FAILED on an error. A
    thread sends all of it: a server that is slow, down or refuses costs one warning and no step.
    """
    follower = _Follower(params, state)
    try:
        yield follower.report
    except BaseException as error:
        stopped = isinstance(error, SystemExit | KeyboardInterrupt)
        follower.end("KILLED" if stopped else "FAILED", STOPPED_S)
        raise
    follower.end("FINISHED", END_S)


class _Follower:
    """The thread behind `track`. It starts with the first row: by then the trainer has cleared or kept its folder."""

    def __init__(self, params: Params, state: Path) -> None:
        self.params, self.state, self.mark = params, Path(state), Path(state) / "mlflow.json"
        self.rows: deque[Row] = deque()  # not in MLflow yet
        self.run_id: str | None = None
        self.last_step: int | None = None  # in MLflow; None: to be asked
        self.load: Any = None  # MLflow's monitor of the machine
        self.status = ""
        self.ending, self.warned = threading.Event(), False
        # A daemon: a server that never answers must not keep the process.
        self.thread = threading.Thread(target=self._follow, name="mlflow", daemon=True)

    def report(self, row: Row) -> None:
        """Take a row; returns at once."""
        self.rows.append(row)
        if self.thread.ident is None:
            self.thread.start()

    def end(self, status: str, patience_s: float) -> None:
        """Send what is left and close the run, if there is one."""
        self.status = status
        self.ending.set()
        if self.thread.ident is None:
            if not self.mark.is_file():
                return
            self.thread.start()
        self.thread.join(patience_s)
        if self.thread.is_alive():
            self._warn(f"no answer within {patience_s:.0f} s")

    def _follow(self) -> None:
        while True:
            last = self.ending.is_set()
            try:
                self._send(last)
            except Exception as error:  # nothing that MLflow does may end a training
                self._warn(str(error))
                self.last_step = None
            if last:
                return
            self.ending.wait(SEND_EVERY_S)

    def _warn(self, reason: str) -> None:
        if not self.warned:
            self.warned = True
            logger.warning("%s; what MLflow lacks stands in metrics.jsonl", _without_password(reason))

    def _send(self, last: bool) -> None:
        with _client() as client:
            if self.run_id is None:
                self._open(client)
            if self.last_step is None:
                self._go_on(client)
            count = len(self.rows)  # more may come meanwhile
            rows = [self.rows[i] for i in range(count)]
            self.last_step = _log_rows(client, self.run_id, rows, after=self.last_step)
            for row in rows:
                self._log_picture(client, row["step"])
            for _ in range(count):
                self.rows.popleft()
            if last:
                self._close(client)

    def _open(self, client: "MlflowClient") -> None:
        """The run of this folder, or a new one."""
        import mlflow

        known = read_json(self.mark)["run_id"] if self.mark.is_file() else None
        experiment = mlflow.set_experiment(NAME).experiment_id
        known = known if known and _is_there(client, known) else None
        run = mlflow.start_run(known, experiment, run_name="train", tags=_git_tags())
        self.run_id = run.info.run_id
        write_json(self.mark, {"run_id": self.run_id})
        where = _without_password(mlflow.get_tracking_uri())
        logger.info("MLflow at %s: run %s of experiment %s", where, self.run_id, NAME)

    def _go_on(self, client: "MlflowClient") -> None:
        """Find out what MLflow has, and take up what it lacks and the trainer has written; watch the machine."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        sections = self.params.model_dump(mode="json", include=set(TRAINED_WITH))
        _log_params(client, self.run_id, _flat(sections))
        self.last_step = _last_step(client, self.run_id)
        first = self.rows[0]["step"] if self.rows else float("inf")
        missed = [row for row in _rows_of(self.state) if self.last_step < row["step"] < first]
        self.rows.extendleft(reversed(missed))
        # Its lines would show an address with its password.
        logging.getLogger("mlflow.system_metrics").setLevel(logging.CRITICAL)
        if self.load is not None:
            self.load.finish()  # it gives up for good where a server is away for a moment
        self.load = SystemMetricsMonitor(self.run_id, samples_before_logging=3, resume_logging=True)
        self.load.start()

    def _log_picture(self, client: "MlflowClient", step: float) -> None:
        picture = self.state / "samples" / f"step-{int(step):06d}.png"
        if picture.is_file():
            client.log_artifact(self.run_id, str(picture), "samples")

    def _close(self, client: "MlflowClient") -> None:
        import mlflow

        self.load.finish()
        model = self.state.with_name(self.state.name.removesuffix(".state"))
        if self.status == "FINISHED" and model.is_dir():
            # By which `register` finds the run of a checkpoint.
            client.set_tag(self.run_id, "model_digest", digest_folder(model))
        mlflow.end_run(self.status)


def _is_there(client: "MlflowClient", run_id: str) -> bool:
    """Whether MLflow holds a run that nobody deleted; another server holds none of them."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


def _rows_of(state: Path) -> list[Row]:
    """Complete rows of <state>/metrics.jsonl."""
    return read_rows(state / "metrics.jsonl")


def _last_step(client: "MlflowClient", run_id: str) -> int:
    return max((metric.step for metric in client.get_metric_history(run_id, "train/loss")), default=0)


def _log_rows(client: "MlflowClient", run_id: str, rows: list[Row], *, after: int = 0) -> int:
    """Log rows beyond a step as train/<name> and val/<name>; the last step that is logged now."""
    rows = [row for row in rows if row["step"] > after]
    for start in range(0, len(rows), ROWS_AT_ONCE):
        _log_batch(client, run_id, [(row["step"], _named(row)) for row in rows[start : start + ROWS_AT_ONCE]])
    return rows[-1]["step"] if rows else after


def _named(row: Row) -> Row:
    named = {key: value for key, value in row.items() if key != "step"}
    return {f"val/{k[4:]}" if k.startswith("val_") else f"train/{k}": value for k, value in named.items()}


# What MLflow holds ---------------------------------------------------------------------------------------------


@contextmanager
def _client() -> Iterator["MlflowClient"]:
    # Only the word "true" counts; MLflow reads both when it is imported.
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # It would print the address, password and all, into the answer of `register --json`.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    import mlflow
    from filelock import FileLock
    from mlflow.exceptions import MlflowException

    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path.cwd() / 'mlflow.db'}"
    try:
        mlflow.set_tracking_uri(uri)
        if uri.startswith("sqlite:///"):
            database = Path(uri.removeprefix("sqlite:///"))
            # Processes that create the tables at the same moment crash: one after the other.
            with FileLock(f"{database}.lock"):
                if not database.exists():
                    # A kill in the middle would leave half the tables for ever.
                    with write_aside(database) as aside:
                        mlflow.MlflowClient(f"sqlite:///{aside}").search_experiments(max_results=1)
                mlflow.MlflowClient().search_experiments(max_results=1)
        yield mlflow.MlflowClient()
    except MlflowException as error:
        # `from None`: the cause would show the address with its password again.
        raise ValueError(_without_password(f"MLflow at {uri}: {error}")) from None


def _without_password(text: str) -> str:
    return re.sub(r"(\w://)[^/@\s]*@", r"\1", text)


def _find(client: "MlflowClient", which: str, name: str = NAME) -> "ModelVersion":
    if which.isdigit():
        return client.get_model_version(name, which)
    version = _find_alias(client, which, name)
    if version is None:
        raise ValueError(f"no version of {name} has the alias {which}")
    return version


def _find_alias(client: "MlflowClient", alias: str, name: str = NAME) -> "ModelVersion | None":
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # no model; no such alias
            return None
        raise


def _version_of(client: "MlflowClient", digest: str) -> "ModelVersion | None":
    found = client.search_model_versions(f"name = '{NAME}' and tags.model_digest = '{digest}'")
    return max(found, key=lambda version: int(version.version), default=None)


def _create_version(
    client: "MlflowClient", params: Params, model: Path, scores: dict[str, Any], digest: str
) -> "ModelVersion":
    import mlflow

    tags = {**_lineage(params, model), **_score_tags(scores), "model_digest": digest}
    experiment = mlflow.set_experiment(NAME).experiment_id
    trained = _training_of(client, experiment, digest)
    with mlflow.start_run(trained, tags=tags) as run:
        run_id = run.info.run_id
        _log_params(client, run_id, _flat(params.model_dump(mode="json")))
        _log_scores(client, run_id, scores)
        if "train/loss" not in client.get_run(run_id).data.metrics:  # trained elsewhere, or while MLflow was away
            _log_curve(client, run_id, model.with_name(model.name + ".state"))
        mlflow.log_dict(scores, "evaluate.json")
        for file in filter(Path.is_file, (Path("dvc.lock"), Path("params.yaml"))):
            mlflow.log_artifact(str(file))
        logged = _log_model(params, model)
    if not client.search_registered_models(f"name = '{NAME}'"):
        client.create_registered_model(NAME, description="Depth in metres from one image.")
    # Tags go in with the version: a kill in between leaves a run behind, never a version without its digest.
    return client.create_model_version(NAME, logged.model_uri, run_id=run_id, tags=tags, model_id=logged.model_id)


def _training_of(client: "MlflowClient", experiment: str, digest: str) -> str | None:
    """The run that trained a checkpoint, or one that began to register it and was killed."""
    found = client.search_runs([experiment], f"tags.model_digest = '{digest}'", max_results=1)
    return found[0].info.run_id if found else None


def _log_params(client: "MlflowClient", run_id: str, values: dict[str, Any]) -> None:
    """Params that the run has not got yet: MLflow refuses to change one, and what a training had stays true."""
    from mlflow.entities import Param

    known = client.get_run(run_id).data.params
    client.log_batch(run_id, params=[Param(key, str(value)) for key, value in values.items() if key not in known])


def _log_model(params: Params, model: Path) -> Any:
    import mlflow
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec

    asked = params.predict
    options = ParamSchema(
        [
            ParamSpec("num_inference_steps", "integer", asked.num_inference_steps),
            ParamSpec("ensemble_size", "integer", asked.ensemble_size),
            ParamSpec("seed", "integer", asked.seed),
        ]
    )
    # An input schema would fix the number of dimensions: one image and a batch are both welcome, and
    # _Depth.predict checks them itself.
    outputs = Schema([TensorSpec(np.dtype("float32"), (-1, -1, -1))])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*input example was not provided.*")
        return mlflow.pyfunc.log_model(
            name=NAME,
            loader_module="metricgold.registry.versions",
            data_path=str(model),
            code_paths=[str(Path(__file__).parents[1])],
            signature=ModelSignature(outputs=outputs, params=options),
            pip_requirements=_requirements(),
            metadata={"input": "uint8 [H, W, 3] or [N, H, W, 3]", "output": "planar depth in metres, float32"},
        )


def _requirements() -> list[str]:
    from importlib.metadata import version

    needed = (
        "torch",
        "diffusers",
        "transformers",
        "accelerate",
        "safetensors",
        "numpy",
        "pillow",
        "pydantic",
        "pyyaml",
    )
    return [f"{name}=={version(name).partition('+')[0]}" for name in needed]


def _log_scores(client: "MlflowClient", run_id: str, scores: dict[str, Any]) -> None:
    """Metrics under their own names; those of one data set as <data set>/<name>."""
    overall = {key: value for key, value in scores.items() if key != "datasets"}
    _log_batch(client, run_id, [(0, overall), (0, _flat(scores.get("datasets", {}), "/"))])


def _log_curve(client: "MlflowClient", run_id: str, state: Path) -> None:
    """A sparse copy of metrics.jsonl."""
    rows = _rows_of(state)
    chosen = rows[:: len(rows) // CURVE_POINTS + 1]
    if rows and chosen[-1] is not rows[-1]:
        chosen.append(rows[-1])
    _log_rows(client, run_id, chosen)


def _log_batch(client: "MlflowClient", run_id: str, rows: list[tuple[int, dict[str, Any]]]) -> None:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    metrics = [
        Metric(key, float(value), now, step)
        for step, row in rows
        for key, value in row.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    for start in range(0, len(metrics), BATCH_LIMIT):
        client.log_batch(run_id, metrics=metrics[start : start + BATCH_LIMIT])


# The gate ------------------------------------------------------------------------------------------------------


def _checks(
    gate: Promote, client: "MlflowClient", candidate: "ModelVersion", champion: "ModelVersion | None"
) -> list[dict[str, Any]]:
    scores = client.get_run(candidate.run_id).data.metrics
    abs_rel = scores.get("abs_rel")
    checks = [
        _check("abs_rel", abs_rel, at_most=gate.max_abs_rel),
        _check("delta1", scores.get("delta1"), at_least=gate.min_delta1),
        _check("constant_ratio", _ratio(abs_rel, scores.get("constant_abs_rel")), at_most=gate.max_constant_ratio),
        _check("vae_floor_abs_rel", scores.get("vae_floor_abs_rel"), at_most=gate.max_vae_floor_abs_rel),
    ]
    if champion is not None and champion.version != candidate.version:
        if champion.tags.get("evaluation_digest") == candidate.tags.get("evaluation_digest"):
            ratio = _ratio(abs_rel, client.get_run(champion.run_id).data.metrics.get("abs_rel"))
            worse_by = None if ratio is None else ratio - 1
            checks.append(_check("regression", worse_by, at_most=gate.max_regression))
        else:
            logger.warning(
                "champion %s was measured by another evaluation: no comparison with it, evaluate it again for one",
                champion.version,
            )
    return [check for check in checks if check["bound"] is not None]


def _check(
    name: str, value: float | None, *, at_most: float | None = None, at_least: float | None = None
) -> dict[str, Any]:
    """One named check; a value that is missing or not a number fails."""
    bound = at_most if at_least is None else at_least
    passed = value is not None and (at_most is None or value <= at_most) and (at_least is None or value >= at_least)
    return {"name": name, "value": value, "bound": bound, "passed": passed}


def _ratio(value: float | None, reference: float | None) -> float | None:
    return None if value is None or not reference else value / reference


# Lineage -------------------------------------------------------------------------------------------------------


# Files of a version --------------------------------------------------------------------------------------------


def _download(uri: str) -> Path:
    """MLflow's folder of a version: in place when it is on this disk, else a copy made once."""
    from mlflow.artifacts import download_artifacts

    if uri.startswith("models:/"):
        import mlflow

        uri = mlflow.get_logged_model(uri.removeprefix("models:/")).artifact_location
    if urlsplit(uri).scheme in ("", "file"):
        return Path(download_artifacts(artifact_uri=uri))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "metricgold"
    folder = cache / digest_json(uri)[:32]
    if not folder.is_dir():
        with write_aside(folder) as aside:
            aside.mkdir()
            download_artifacts(artifact_uri=uri, dst_path=str(aside))
    return folder


def _data_folder(folder: Path) -> Path:
    """The diffusers folder inside MLflow's folder of a model."""
    found = sorted(folder.rglob("MLmodel"))
    if not found:
        raise ValueError(f"{folder} holds no MLmodel file: not a registered MetricGold model")
    flavors = yaml.safe_load(found[0].read_text())["flavors"]
    return found[0].parent / flavors["python_function"]["data"]


class _Depth:
    """What MLflow calls: images in, metres out."""

    def __init__(self, folder: Path) -> None:
        from metricgold.model import load_pipeline

        self.pipeline = load_pipeline(folder)

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> "np.ndarray":
        """uint8 [H, W, 3] to planar depth in metres, float32 [H, W]; a batch [N, H, W, 3] to [N, H, W].

        Raises ValueError for anything but whole numbers from 0 to 255 of that shape.
        """
        import numpy as np

        images = np.asarray(model_input)
        if images.ndim not in (3, 4) or images.shape[-1] != 3 or images.dtype.kind not in "iu":
            raise ValueError(f"expected uint8 [H, W, 3] or [N, H, W, 3], got {images.dtype} {list(images.shape)}")
        if images.size and (images.min() < 0 or images.max() > 255):
            raise ValueError(f"expected values from 0 to 255, got {images.min()} to {images.max()}")
        images = images.astype(np.uint8, copy=False)
        batch = images if images.ndim == 4 else images[None]
        depth_m = np.stack([found.planar_depth_m for found in self.pipeline(list(batch), **(params or {}))])
        return depth_m if images.ndim == 4 else depth_m[0]


def _load_pyfunc(path: str) -> _Depth:
    """MLflow's door (`loader_module`): the model whose diffusers folder is `path`."""
    return _Depth(Path(path))
