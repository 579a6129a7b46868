"""A model that is loaded, and the jobs that requests make of it."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from metricgold.model import digest_model
from metricgold.params import OUTPUTS, PRESETS, Output, Predict, Preset
from metricgold.predict import BatchJob, Calibration, DepthModel, check_kinds

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A pipeline with its name and digest.

    jobs  by the presets that it can do; of None what the server's own params say. Requests of one job share a batch
    """

    name: str
    digest: str
    pipe: DepthModel
    jobs: Mapping[Preset | None, BatchJob]

    @classmethod
    def load(cls, params: Predict, folder: Path, name: str, calibration: Calibration | None = None) -> "ServedModel":
        """The checkpoint in a folder, whose depth a calibration corrects.

        ValueError where it is none or another one than the calibration's, or cannot do what the params ask.
        """
        digest = digest_model(folder) if folder.is_dir() else ""
        job = BatchJob(params, "", "", folder, name, digest, calibration=calibration)
        job.check_calibration()
        return cls.of(job, job.load_model())

    @classmethod
    def of(cls, job: BatchJob, pipe: DepthModel) -> "ServedModel":
        """That of a job. A one-step model does not need to be told: where the params fit no such model, it takes one.

        Raises ValueError where no preset is left.
        """
        jobs: dict[Preset | None, BatchJob] = {}
        preset: Preset
        for preset in get_args(Preset):
            values = job.params.model_dump() | PRESETS[preset]
            of_preset = replace(job, params=Predict.model_validate(values))
            if _fits(of_preset, pipe):
                jobs[preset] = of_preset
        fitted = job.fitted_to(pipe)
        if fitted is not job:
            log.info("%s was trained for one step: it is served with the preset one-step", job.model_name)
        fitted.check_model(pipe)
        return cls(job.model_name, job.model_digest, pipe, {None: fitted} | jobs)

    def job(self, preset: Preset | None) -> BatchJob:
        """What is asked of the model under a preset. ValueError for one that it cannot do."""
        if preset not in self.jobs:
            raise ValueError(f"preset {preset} is none of this model's: {', '.join(filter(None, self.jobs))}")
        return self.jobs[preset]

    def warm_up(self) -> None:
        """Predict a grey image, so that no request waits for what a first call costs."""
        job = self.jobs[None]
        self.pipe([np.full((64, 96, 3), 128, np.uint8)], intrinsics=[None], **job.options)

    @property
    def facts(self) -> dict[str, Any]:
        """What GET /v1/model says of it."""
        return {
            "name": self.name,
            "digest": self.digest,
            "one_step": self.pipe.is_one_step,
            "needs_camera": self.pipe.needs_camera,
            "params": self.jobs[None].inference,
            "calibration": calibration.facts if (calibration := self.jobs[None].calibration) else None,
            "presets": [preset for preset in self.jobs if preset],
        }


def _fits(job: BatchJob, pipe: DepthModel) -> bool:
    try:
        job.check_model(pipe)
    except ValueError:
        return False
    return True


def kinds_here() -> tuple[Output, ...]:
    """The kinds of output that can be made on this machine: an extra that is missing takes one away."""
    kinds = []
    for kind in OUTPUTS:
        try:
            check_kinds([kind])
        except ValueError:
            continue
        kinds.append(kind)
    return tuple(kinds)
