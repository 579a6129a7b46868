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
    data_digest,
    score_frames,
)
from metricgold.params import Inference, Params
from metricgold.storage import digest_json, read_json, write_json
from metricgold.study.definition import Run
from metricgold.study.results import FIGURES, STATED
from metricgold.study.store import Names, Store, floor_name
from metricgold.train import flop_counter

Row = dict[str, Any]
FLOOR = "floor.json"
SOURCES = {"stated": "mean_uncertainty", "within": "coverage68"}  # figures that rows call otherwise


@dataclass(frozen=True, slots=True)
class MeasuredSet:
    """Frames that are measured by one protocol."""

    name: str
    protocol: Protocol
    refs: list[FrameRef]
    in_domain: bool
    content: str  # digest of the frames' files

    @property
    def digest(self) -> str:
        """Of what is measured, and of the ruler."""
        return digest_json([self.name, self.protocol.digest, [ref.name for ref in self.refs], self.content])

    def inference(self, params: Params) -> Inference:
        """How the model predicts here."""
        return params.evaluate if self.in_domain else params.benchmark


class Sets:
    """What a trained model is measured on."""

    def __init__(self, run: Run, model: Path, names: Names, store: Store) -> None:
        self.run, self.model, self.names, self.store = run, model, names, store
        self.sets = list(sets_of(run, store))
        self.batch_size = run.params.evaluate.batch_size
        self.models: dict[str, OurModel] = {}

    def ours(self, inference: Inference) -> OurModel:
        """The model with these options; evaluate and benchmark often have the same."""
        options = Inference.model_validate(inference.model_dump(include=set(Inference.model_fields)))
        return self.models.setdefault(options.model_dump_json(), OurModel(self.model, "model", options))

    @cached_property
    def floors(self) -> dict[str, dict[str, float]]:
        """AbsRel of the truth through the VAE and back, by set and frame: once for all models with this VAE."""
        return {one.name: self._floor_of(one) for one in self.sets}

    def _floor_of(self, one: MeasuredSet) -> dict[str, float]:
        inference = one.inference(self.run.params)
        name = floor_name(self.names, self.run.params, one.digest, inference.dtype)

        def measure_floor(out: Path) -> None:
            method = VaeFloor(self.ours(inference), one.protocol.truth)
            scored = score_frames(one.protocol, one.refs, method, self.batch_size, f"floor {one.name}")
            write_json(out / FLOOR, {frame.name: figures["abs_rel"] for frame, figures in scored})

        self.store.make_once(name, FLOOR, measure_floor)
        floors: dict[str, float] = read_json(self.store.path(name) / FLOOR)
        return floors

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
        yield MeasuredSet(name, Protocol.model_validate(facts | limits), refs, True, data_digest(raws[name], refs))
    for name in store.measured(run):
        protocol = chosen_protocols(name, ())[0].model_copy(update={"camera": "given"})
        raw = store.benchmark(run, name)
        refs = list_frames(name, raw, split="test").frames
        protocol.check_frames(refs)
        selected = protocol.select(refs)
        kept = [selected[i] for i in evenly_spaced(len(selected), run.params.benchmark.frames)]
        yield MeasuredSet(name, protocol, kept, False, data_digest(raw, kept))


def cost_of_image(run: Run, model: Path, sets: Sets) -> dict[str, Any]:
    """Passes of the U-Net and operations for an image, counted while one is predicted; `auto` counts as its most."""
    one = sets.sets[0]
    inference, frame = one.inference(run.params), read_frame(one.refs[0])
    runs = inference.max_ensemble_size if inference.ensemble_size == "auto" else inference.ensemble_size
    ours = sets.ours(inference)
    with flop_counter() as counter:
        ours.estimate([frame.rgb], [frame.intrinsics])
    return {"passes": inference.num_inference_steps * runs, "image_gflop": counter.get_total_flops() / 1e9}
