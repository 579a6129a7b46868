"""A model's figures by set and scene: the test scenes of the data sets that train, and benchmarks.

Of an image as of `evaluate` and of a benchmark's default protocol; the camera is given, no prediction is aligned.
"""

import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import nan
from pathlib import Path
from typing import Any

import numpy as np

from metricgold.datasets import FrameRef, evenly_spaced, list_frames, read_frame
from metricgold.download import unedited_frames
from metricgold.evaluate import (
    OurModel,
    Protocol,
    SeesImages,
    VaeFloor,
    chosen_protocols,
    score_frames,
)
from metricgold.params import Inference, Params
from metricgold.study.definition import Run
from metricgold.study.results import FIGURES, STATED
from metricgold.study.store import Store
from metricgold.train import flop_counter

Row = dict[str, Any]
SOURCES = {"stated": "mean_uncertainty", "within": "coverage68"}  # figures that rows call otherwise


@dataclass(frozen=True, slots=True)
class MeasuredSet:
    """Frames that are measured by one protocol."""

    name: str
    protocol: Protocol
    refs: list[FrameRef]
    in_domain: bool

    def inference(self, params: Params) -> Inference:
        """How the model predicts here."""
        return params.evaluate if self.in_domain else params.benchmark


class Sets:
    """What a trained model is measured on. The VAE floor is measured once: no inference changes it."""

    def __init__(self, run: Run, model: Path, store: Store) -> None:
        self.run, self.model, self.sets = run, model, list(sets_of(run, store))
        self.batch_size = run.params.evaluate.batch_size
        self.models: dict[str, OurModel] = {}

    def ours(self, inference: Inference) -> OurModel:
        """The model with these options; evaluate and benchmark often have the same."""
        options = Inference.model_validate(inference.model_dump(include=set(Inference.model_fields)))
        return self.models.setdefault(options.model_dump_json(), OurModel(self.model, "model", options))

    @cached_property
    def floors(self) -> dict[str, dict[str, float]]:
        """AbsRel of the truth through the VAE and back, by set and frame."""
        return {
            one.name: {
                frame.name: figures["abs_rel"]
                for frame, figures in score_frames(
                    one.protocol,
                    one.refs,
                    VaeFloor(self.ours(one.inference(self.run.params)), one.protocol.truth),
                    self.batch_size,
                    f"floor {one.name}",
                )
            }
            for one in self.sets
        }

    def measure(self, run: Run) -> tuple[list[Row], float]:
        """A row for each set and scene, means over its images, and the seconds of an image."""
        floors, rows, num_images, began = self.floors, list[Row](), 0, time.perf_counter()
        names = [*FIGURES, *(STATED if run.measures.uncertainty else ())]
        for one in self.sets:
            images: defaultdict[str, list[list[float]]] = defaultdict(list)
            method = SeesImages(self.ours(one.inference(run.params)))
            for frame, figures in score_frames(one.protocol, one.refs, method, self.batch_size, f"measure {one.name}"):
                values = figures | {"vae_floor": floors[one.name][frame.name]}
                images[frame.scene].append([values.get(SOURCES.get(name, name), nan) for name in names])
                num_images += 1
            for scene, values_of_images in images.items():
                means = {
                    name: f"{mean:.4g}" for name, mean in zip(names, np.mean(values_of_images, axis=0), strict=True)
                }
                rows.append({"set": one.name, "scene": scene, **means})
        return rows, (time.perf_counter() - began) / max(1, num_images)


def sets_of(run: Run, store: Store) -> Iterator[MeasuredSet]:
    """The sets of a run, with the frames of each."""
    evaluate, raws = run.params.evaluate, store.raws(run)
    for name in run.tested:
        refs = unedited_frames(name, raws[name], evaluate.split, evaluate.frames_per_dataset)
        facts = {"name": "in-domain", "benchmark": name, "title": "as `evaluate`", "source": ["`metricgold evaluate`"]}
        limits = {"min_m": evaluate.min_m, "max_m": evaluate.max_m, "camera": "given"}
        yield MeasuredSet(name, Protocol.model_validate(facts | limits), refs, True)
    for name in store.measured(run):
        protocol = chosen_protocols(name, ())[0].model_copy(update={"camera": "given"})
        refs = list_frames(name, store.benchmark(run, name), split="test").frames
        protocol.check_frames(refs)
        selected = protocol.select(refs)
        kept = [selected[i] for i in evenly_spaced(len(selected), run.params.benchmark.frames)]
        yield MeasuredSet(name, protocol, kept, False)


def cost_of_image(run: Run, model: Path, sets: Sets) -> dict[str, Any]:
    """Passes of the U-Net and operations for an image, counted while one is predicted; `auto` counts as its most."""
    one = sets.sets[0]
    inference, frame = one.inference(run.params), read_frame(one.refs[0])
    runs = inference.max_ensemble_size if inference.ensemble_size == "auto" else inference.ensemble_size
    ours = sets.ours(inference)
    with flop_counter() as counter:
        ours.estimate([frame.rgb], [frame.intrinsics])
    return {"passes": inference.num_inference_steps * runs, "image_gflop": counter.get_total_flops() / 1e9}
