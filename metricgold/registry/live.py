"""A training, live in MLflow: a thread sends its rows, pictures and the machine's load while it runs."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metricgold.model import digest_model
from metricgold.params import Params
from metricgold.registry.lineage import flat
from metricgold.registry.mlflow_client import NAME, MetricRow, log_params, log_rows, open_client, without_passwords
from metricgold.storage import git_commit, read_json, read_rows, write_json

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

SEND_EVERY_S = 5.0
END_S, STOPPED_S = 60.0, 8.0  # patience with MLflow at the end; a job that gets SIGTERM is killed 30 s later
# Sections that a training reads or that come before it; the others may still change before `register`.
TRAINED_WITH = (
    "datasets",
    "log_depth",
    "canonical_depth",
    "synthesize",
    "download",
    "backbone",
    "encode",
    "depth_vae",
    "train",
)


@contextmanager
def track(params: Params, state: Path) -> Iterator[Callable[[MetricRow], None]]:
    """Follow a training in MLflow; yields the function to which train() is to `report` its rows.

    state  the trainer's `<model>.state`. mlflow.json in it names the run, so that a resumed training continues in its
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
        self.rows: deque[MetricRow] = deque()  # not in MLflow yet
        self.run_id: str | None = None
        self.last_step: int | None = None  # in MLflow; None: not known
        self.load: Any = None  # MLflow's monitor of the machine
        self.status = ""
        self.ending, self.warned = threading.Event(), False
        # A daemon: a server that never answers must not keep the process.
        self.thread = threading.Thread(target=self.follow, name="mlflow", daemon=True)

    def report(self, row: MetricRow) -> None:
        """Take a row; returns at once."""
        self.rows.append(row)
        if self.thread.ident is None:
            self.thread.start()

    def end(self, status: str, patience_s: float) -> None:
        """Send what is left and close the run, if there is one."""
        self.status = status
        self.ending.set()
        if self.thread.ident is None:
            # Without a row it may have been refused, and the run be that of a training that lives.
            if status != "FINISHED" or not self.mark.is_file():
                return
            self.thread.start()
        self.thread.join(patience_s)
        if self.thread.is_alive():
            self.warn(f"no answer within {patience_s:.0f} s")

    def follow(self) -> None:
        """Send rows until the training has ended and the rest is sent."""
        while True:
            last = self.ending.is_set()
            try:
                with open_client() as client:
                    self.send(client)
                    if last:
                        self.close_run(client)
            except Exception as error:  # no fault of MLflow may end a training
                self.warn(str(error))
                self.last_step = None
            if last:
                return
            self.ending.wait(SEND_EVERY_S)

    def warn(self, reason: str) -> None:
        if not self.warned:
            self.warned = True
            logger.warning("%s; metrics.jsonl holds the rows that MLflow lacks", without_passwords(reason))

    def send(self, client: "MlflowClient") -> None:
        """Send the rows that wait, and the pictures of their steps, to the run of this folder."""
        run_id = self.run_id = self.run_id or self.open_run(client)
        if self.last_step is None:
            self.last_step = self.catch_up(client, run_id)
        count = len(self.rows)  # more may come meanwhile
        rows = [self.rows[i] for i in range(count)]
        self.last_step = log_rows(client, run_id, rows, after=self.last_step)
        for row in rows:
            picture = self.state / "samples" / f"step-{int(row['step']):06d}.png"
            if picture.is_file():
                client.log_artifact(run_id, str(picture), "samples")
        for _ in range(count):
            self.rows.popleft()

    def open_run(self, client: "MlflowClient") -> str:
        """Start the run that mlflow.json names again, or a new one where this MLflow does not hold it."""
        import mlflow

        known = read_json(self.mark)["run_id"] if self.mark.is_file() else None
        experiment = mlflow.set_experiment(NAME).experiment_id
        known = known if known and is_active(client, known) else None
        commit = git_commit(Path())
        tags = {"commit": commit[0], "dirty": str(commit[1]).lower()} if commit else {}
        run = mlflow.start_run(known, experiment, run_name="train", tags=None if known else tags)
        write_json(self.mark, {"run_id": run.info.run_id})
        where = without_passwords(mlflow.get_tracking_uri())
        logger.info("MLflow at %s: run %s of experiment %s", where, run.info.run_id, NAME)
        return str(run.info.run_id)

    def catch_up(self, client: "MlflowClient", run_id: str) -> int:
        """Log the params, queue rows of metrics.jsonl that MLflow lacks, watch the machine; the last step in MLflow."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        sections = self.params.model_dump(mode="json", include=set(TRAINED_WITH))
        log_params(client, run_id, flat(sections))
        last_step = max((metric.step for metric in client.get_metric_history(run_id, "train/loss")), default=0)
        first = self.rows[0]["step"] if self.rows else float("inf")
        missed = [row for row in read_rows(self.state / "metrics.jsonl") if last_step < row["step"] < first]
        self.rows.extendleft(reversed(missed))
        # Its lines would show an address with its password.
        logging.getLogger("mlflow.system_metrics").setLevel(logging.CRITICAL)
        if self.load is not None:
            self.load.finish()  # it gives up for good where a server is away for a moment
        self.load = SystemMetricsMonitor(run_id, samples_before_logging=3, resume_logging=True)
        self.load.start()
        return last_step

    def close_run(self, client: "MlflowClient") -> None:
        """End the run; that of a finished training is tagged with the digest by which `register` finds it."""
        import mlflow

        self.load.finish()
        model = self.state.with_name(self.state.name.removesuffix(".state"))
        if self.status == "FINISHED" and model.is_dir():
            client.set_tag(self.run_id, "model_digest", digest_model(model))
        mlflow.end_run(self.status)


def is_active(client: "MlflowClient", run_id: str) -> bool:
    """Whether MLflow holds this run and it is not deleted; another server does not hold it."""
    from mlflow.exceptions import MlflowException

    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
