"""A batch job as plain values that travel to other machines, and what it needs of a model."""

import logging
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from metricgold.params import FIRST_ROUND, Inference, Output, Predict
from metricgold.predict.calibration import Calibration
from metricgold.predict.cameras import Cameras
from metricgold.predict.outputs import DEFAULT
from metricgold.storage import Folder, Holder, Lease, S3Prefix, digest_json, open_bucket

if TYPE_CHECKING:
    from metricgold.model import Prediction

log = logging.getLogger(__name__)

FILES_VERSION = 4  # of the output files; a person raises it when their meaning changes


class DepthModel(Protocol):
    """What a batch job needs of a model; metricgold.MetricGoldPipeline is one."""

    @property
    def max_steps(self) -> int:
        """The largest num_inference_steps that the model takes."""

    @property
    def needs_camera(self) -> bool:
        """Whether the scale of its depth follows from the focal length."""

    @property
    def is_one_step(self) -> bool:
        """Whether it was trained for one step: then it takes num_inference_steps 1 only."""

    def processing_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width at which the model sees an image; images of one such size share a batch."""

    def __call__(self, image: list[np.ndarray], **options: Any) -> "list[Prediction]":
        """A prediction for each image, uint8 [H, W, 3]; options are those of BatchJob.options."""


@dataclass(frozen=True)
class BatchJob:
    """What every image of a job has in common.

    lease        of the output, once the job holds it; without one nothing is asked before a write
    calibration  by which depth is corrected; images of other cameras than its own then fail
    cameras      that people state for images; they come before EXIF
    """

    params: Predict
    input: str
    output: str
    model: Path
    model_name: str
    model_digest: str
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    lease: Lease | Holder | None = None
    calibration: Calibration | None = None
    cameras: Cameras | None = None

    def open_source(self) -> Folder | S3Prefix:
        return open_bucket(self.input, include=self.include, exclude=self.exclude)

    def open_sink(self) -> Folder | S3Prefix:
        """The output; a write into it raises OutputLost once another job has taken it."""
        sink = open_bucket(self.output, create=True)
        return self.lease.fence(sink) if self.lease else sink

    def load_model(self) -> DepthModel:
        """The pipeline in the folder `model`.

        Raises ValueError where it is not a complete checkpoint, or not the one whose digest every row will name.
        """
        from metricgold.model import load_pipeline

        params = self.params
        return load_pipeline(self.model, dtype=params.dtype, compile=params.compile, digest=self.model_digest)

    def check_model(self, model: DepthModel) -> None:
        """Raise ValueError where the model cannot do what the params ask: every image would fail for that reason."""
        num_steps = self.params.num_inference_steps
        if num_steps > model.max_steps:
            raise ValueError(f"{self.model_name} takes num_inference_steps up to {model.max_steps}, got {num_steps}")
        if model.is_one_step and num_steps != 1:
            raise ValueError(
                f"{self.model_name} was trained for one step: it takes num_inference_steps 1 (--preset one-step), "
                f"got {num_steps}"
            )

    def fitted_to(self, model: DepthModel) -> "BatchJob":
        """The same job, with the preset one-step where the params are those of models of more steps than this one's."""
        params = self.params.fitted_to(is_one_step=model.is_one_step)
        return self if params is self.params else replace(self, params=params)

    def check_calibration(self) -> None:
        """Raise ValueError for a calibration of another model; a warning says where it was fitted to other params."""
        calibration = self.calibration
        if calibration is None:
            return
        if calibration.model_digest != self.model_digest:
            raise ValueError(
                f"the calibration is of the model {calibration.model} with digest {calibration.model_digest[:12]}, "
                f"not of {self.model_name} with {self.model_digest[:12]}: calibrate again"
            )
        for name in sorted(calibration.params.keys() | self.inference.keys()):
            was, now = calibration.params.get(name), self.inference.get(name)
            if was != now:
                log.warning("the calibration was fitted to predictions with %s %s, these have %s", name, was, now)

    def elsewhere(self) -> "BatchJob":
        """The same job for a worker: paths that hold in any working folder, and a lease that it can only look at."""

        def absolute(location: str) -> str:
            return location if "://" in location else str(Path.cwd() / Path(location).expanduser())

        return replace(
            self,
            input=absolute(self.input),
            output=absolute(self.output),
            model=Path.cwd() / self.model,
            lease=self.lease.me if isinstance(self.lease, Lease) else self.lease,
        )

    @property
    def kinds(self) -> tuple[Output, ...]:
        """The kinds of files to write for each image."""
        return tuple(self.params.outputs or DEFAULT)

    @property
    def inference(self) -> dict[str, Any]:
        """The params that decide the numbers; batch size and threads do not."""
        names = set(Inference.model_fields)
        if self.params.ensemble_size != "auto":
            names -= {"max_ensemble_size", "uncertainty_target"}
        return {name: getattr(self.params, name) for name in sorted(names)}

    @property
    def options(self) -> dict[str, Any]:
        """The options that the model is called with."""
        names = set(Inference.model_fields) - {"dtype"} | {"batch_size"}
        return {name: getattr(self.params, name) for name in names}

    @property
    def images_at_once(self) -> int:
        """Images of a batch: batch_size counts images x runs."""
        num_runs = self.params.ensemble_size
        return max(1, self.params.batch_size // (FIRST_ROUND if num_runs == "auto" else num_runs))

    def identity_of(self, key: str) -> str:
        """Digest of what decides an image's output besides its bytes; where its camera is stated does not."""
        stated = self.cameras.of_image(key) if self.cameras else None
        return digest_json([self.identity, stated.camera.stated]) if stated else self.identity

    @cached_property
    def identity(self) -> str:
        """Digest of what decides every output."""
        model = {"name": self.model_name, "sha256": self.model_digest}  # its word of before: outputs keep theirs
        decisive: dict[str, Any] = {"params": self.inference, "fov_deg": self.params.fov_deg}
        decisive["drop_edges"] = self.params.drop_edges
        if self.calibration:
            decisive["calibration"] = self.calibration.sha256
        return digest_json({"files": FILES_VERSION, "model": model, **decisive})
