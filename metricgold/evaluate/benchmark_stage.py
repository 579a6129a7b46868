"""The stage that measures methods on a benchmark: every frame, under each of its protocols, one row for each.

    frames ── estimate, once for all protocols ──▶ fitted to the truth ──▶ figures of the pixels that count ──▶ a row

Rows go into a journal as they are made. A run that is stopped resumes by it, and a method that has been measured is
not measured again: a row counts as done where ruler, method and data are the same by their digests, and rows of
others are never mixed in. Tables, figures for DVC and the page are then computed from rows alone, so that `report`
makes the same without a model. Memory does not grow with the number of images but by their rows.
"""

import logging
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import nan
from pathlib import Path
from typing import Any

from metricgold.datasets import (
    Frame,
    FrameRef,
    contents_by_scene,
    evenly_spaced,
    frame_batches,
    list_frames,
    own_data,
    readable_frames,
)
from metricgold.download import refuse_edited
from metricgold.evaluate.baselines import mean_depth_map
from metricgold.evaluate.methods import Estimate, FrameMethod, Method, SeesImages
from metricgold.evaluate.ours import BestConstant, Map, OurModel, VaeFloor
from metricgold.evaluate.predictions import Predictions, open_predictions
from metricgold.evaluate.protocols import WITH_CAMERA, Protocol, load_protocol, protocols_of
from metricgold.evaluate.report.pictures import SCALE, frames_to_picture, picture_folder, write_pictures
from metricgold.evaluate.rows import (
    NUMBERS,
    TEXTS,
    Journal,
    Row,
    read_journal,
    require_parquet,
    to_rows,
    write_rows_file,
)
from metricgold.evaluate.scoring import fit, in_metres, score
from metricgold.evaluate.summary import BenchmarkOutputs, write_results
from metricgold.images import Example, crop_intrinsics
from metricgold.metrics import ALIGNMENTS, depth_metrics, uncertainty_figures
from metricgold.params import Benchmark, LogDepthRange
from metricgold.storage import digest_file, digest_json, only_writer, remove

ALL = "all"  # in place of names of protocols

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ruler:
    """One protocol on the frames that were asked for. The digest decides which rows compare."""

    protocol: Protocol
    frames: Mapping[str, FrameRef]  # by name
    digest: str


@dataclass(frozen=True, slots=True)
class Job:
    """A method and the rulers by which it is measured."""

    method: FrameMethod
    rulers: Sequence[Ruler]


@dataclass(slots=True)
class Run:
    """What a call measures, and for each (ruler, method) by digest its name here and the frames that have a row."""

    benchmark: str
    rulers: Sequence[Ruler]
    batch_size: int
    names: dict[tuple[str, str], str] = field(default_factory=dict)
    done: defaultdict[tuple[str, str], set[str]] = field(default_factory=lambda: defaultdict(set))
    left_out: dict[str, str] = field(default_factory=dict)  # frame -> why it cannot be read

    def missing(self, job: Job) -> list[FrameRef]:
        """The frames that lack a row of this job, in the order of their names."""
        digest = job.method.digest
        missing = [
            (name, ref)
            for ruler in job.rulers
            for name, ref in ruler.frames.items()
            if name not in self.done[ruler.digest, digest]
        ]
        return [ref for _, ref in sorted(dict(missing).items())]


def benchmark(
    params: Benchmark,
    name: str,
    raw: Path,
    out: BenchmarkOutputs,
    *,
    models: Mapping[str, Path] | None = None,
    predictions: Sequence[Path] = (),
    methods: Sequence[Method] = (),
    protocols: Sequence[str] = (),
    training: Mapping[str, Path] | None = None,
    range_m: LogDepthRange | None = None,
) -> dict[str, Any]:
    """Measure methods on the benchmark `name`, whose frames are in `raw`, and write all of `out`; returns the summary.

    models       checkpoint folders by the name that tables have; each brings its VAE floor
    predictions  folders of depth files, see metricgold.evaluate.predictions
    methods      anything else that gives depth for an image
    protocols    their names, or all; if none is named as params say. The summary is that of the first
    training     raw folders of the sets that train, for the mean depth map; without one there is none
    range_m      metres that count in that map

    Every frame of split test, or params.frames of them for each protocol, evenly spaced. Raises ValueError for an
    unknown protocol, for frames that a protocol names and that are not there, and for a prediction that is missing or
    cannot be used.
    """
    require_parquet()
    run = Run(name, rulers_of(params, name, raw, protocols), params.batch_size)
    ours = [OurModel(folder, called, params) for called, folder in (models or {}).items()]
    refs = {one: ref for ruler in run.rulers for one, ref in ruler.frames.items()}
    journal_path = out.journal(data_digest(raw, list(refs.values())))
    theirs = [open_predictions(folder, list(refs.values())) for folder in predictions]
    with only_writer(out.rows), Journal(journal_path) as journal:
        if not journal_path.stat().st_size:
            remove(out.pictures / name)  # of other data
        for row in read_journal(journal_path):
            run.done[row["ruler_digest"], row["method_digest"]].add(sys.intern(row["frame"]))
        (out.pictures / name).mkdir(parents=True, exist_ok=True)
        drawn: set[Path] = set()
        for job in jobs(run, ours, theirs, methods, training or {}, range_m):
            measure(run, job, journal)
            drawn |= picture(run, job, journal_path, out.pictures)
        for left in set((out.pictures / name).glob("*")) - drawn:
            remove(left)
        write_rows_file(out.rows, rows_of(run, journal_path))
        facts = {"model_digest": ours[0].model_digest} if ours else {}
        return write_results(out, run.rulers[0].protocol.name, next(iter(run.names))[1], facts)


def data_digest(raw: Path, refs: Sequence[FrameRef]) -> str:
    """Of what is measured: of the ledger, or, where none vouches for the files, of their bytes and what is stated.

    Raises ValueError for a file that is not what was downloaded.
    """
    if refuse_edited(raw, refs) is not None:
        return digest_file(raw / "ledger.json")
    return digest_json([contents_by_scene(raw, refs), own_data.digest(raw)])


def rulers_of(params: Benchmark, name: str, raw: Path, wanted: Sequence[str]) -> list[Ruler]:
    """The protocols that are measured, each with its frames. ValueError where protocol or frames are not there."""
    refs = list_frames(name, raw, split="test").frames
    if not refs:
        raise ValueError(f"{name}: {raw} holds no frame of split 'test' to measure")
    rulers = []
    for protocol in chosen_protocols(name, wanted, every=params.all_protocols):
        protocol.check_frames(refs)
        selected = protocol.select(refs)
        frames = {selected[i].name: selected[i] for i in evenly_spaced(len(selected), params.frames)}
        facts = {"benchmark": name, "version": params.version, "frames": list(frames), "protocol": protocol.digest}
        rulers.append(Ruler(protocol, frames, digest_json(facts)))
    return rulers


def chosen_protocols(name: str, wanted: Sequence[str], *, every: bool = False) -> list[Protocol]:
    """The protocols with these names; if none is named the benchmark's default, or every one that it has.

    `all` names every one. A data set without protocols is measured whole. Raises ValueError for a name that the
    benchmark does not have.
    """
    own = Protocol(name="whole", benchmark=name, title="Every valid pixel", source=["the data set itself"])
    known = protocols_of(name) or [own]
    if not wanted or ALL in wanted:
        return known if every or wanted else known[:1]
    by_name = {protocol.name: protocol for protocol in known}
    for one in wanted:
        if one.removesuffix(WITH_CAMERA) not in by_name:
            raise ValueError(f"{name} has no protocol {one!r}; it has {', '.join(by_name)}")
    return [by_name[one] if one in by_name else load_protocol(one) for one in dict.fromkeys(wanted)]


def jobs(
    run: Run,
    models: Sequence[OurModel],
    predictions: Sequence[Predictions],
    methods: Sequence[Method],
    training: Mapping[str, Path],
    range_m: LogDepthRange | None,
) -> Iterator[Job]:
    """What is measured, one after the other, so that one model at a time is in memory; what was asked for first."""
    for model in models:
        yield Job(SeesImages(model), run.rulers)
        for truth in dict.fromkeys(ruler.protocol.truth for ruler in run.rulers):
            floor = VaeFloor(model, truth)
            yield Job(floor, [ruler for ruler in run.rulers if ruler.protocol.truth == truth])
        model.unload()
    for folder in predictions:
        yield Job(folder, run.rulers)
    for method in methods:
        yield Job(SeesImages(method), run.rulers)
        method.unload()
    for ruler in run.rulers:
        yield Job(BestConstant(ruler.protocol, list(ruler.frames.values()), ruler.digest), [ruler])
    if (mean_map := mean_map_of(training, range_m or LogDepthRange())) is not None:
        yield Job(mean_map, run.rulers)


def mean_map_of(training: Mapping[str, Path], range_m: LogDepthRange) -> Map | None:
    """The mean depth map of the sets that train; None, with a line that says so, where there are no such frames."""
    if not training:
        return None
    try:
        return Map("mean_map", mean_depth_map(dict(training), range_m.to_log_depth()))
    except ValueError as error:
        log.warning("mean_map left out: %s", error)
        return None


# Measuring


def measure(run: Run, job: Job, journal: Journal) -> None:
    """Add the rows of a job that are not there yet. ValueError names frame and method where an estimate is unusable."""
    digest = job.method.digest
    names = {run.names.setdefault((ruler.digest, digest), job.method.name) for ruler in job.rulers} - {job.method.name}
    if names:
        log.warning("%s is the same as %s, and measured once, under that name", job.method.name, *names)
    if not (missing := run.missing(job)):
        return
    desc = f"benchmark {run.benchmark}: {job.method.name}"
    for frames in frame_batches(missing, None, run.batch_size, desc, run.left_out):
        made: dict[Any, list[Estimate]] = {}
        for ruler in job.rulers:
            done = run.done[ruler.digest, digest]
            if all(frame.name in done or frame.name not in ruler.frames for frame in frames):
                continue
            for frame, estimate in zip(frames, estimates(job.method, ruler.protocol, frames, made), strict=True):
                if frame.name in ruler.frames and frame.name not in done:
                    journal.add([row_of(run, ruler, job.method, frame, estimate)])
                    done.add(frame.name)


def estimates(
    method: FrameMethod, protocol: Protocol, frames: Sequence[Frame], made: dict[Any, list[Estimate]]
) -> list[Estimate]:
    """One for each of these frames of one size, of the part that the protocol shows, with the camera where it gives it.

    Files of predictions are of whole images, whatever the protocol shows.
    made  those of the same frames so far: protocols that show a method the same share them
    """
    shape = frames[0].valid_mask.shape
    rows, columns = (slice(0, side) for side in shape) if isinstance(method, Predictions) else protocol.window(shape)
    with_camera = method.takes_camera and protocol.camera == "given"
    key = (rows.start, rows.stop, columns.start, columns.stop, with_camera)
    if key not in made:
        made[key] = method.estimate_frames([crop_frame(frame, rows, columns) for frame in frames], with_camera)
    return made[key]


def score_frames(
    protocol: Protocol, refs: Sequence[FrameRef], method: FrameMethod, batch_size: int, desc: str
) -> Iterator[tuple[Frame, dict[str, float]]]:
    """The metric figures of a method on each of these frames, with nothing written; without those that have none.

    Those are frames that cannot be read, and frames of which no pixel counts. An estimate that states an uncertainty
    has the figures of that too. Raises as `benchmark`.
    """
    for frames in frame_batches(refs, None, batch_size, desc):
        for frame, estimate in zip(frames, estimates(method, protocol, frames, {}), strict=True):
            true_m, counted = protocol.counted(frame)
            if counted.any():
                fitted = fit(protocol, estimate, true_m.shape)
                figures = depth_metrics(fitted.depth, true_m, counted)
                if fitted.uncertainty is not None:
                    figures |= uncertainty_figures(fitted.depth, true_m, counted, fitted.uncertainty)
                yield frame, figures


def crop_frame(frame: Frame, rows: slice, columns: slice) -> Frame:
    """A part of a frame; intrinsics go along."""
    if (rows.stop - rows.start, columns.stop - columns.start) == frame.valid_mask.shape:
        return frame
    return replace(
        frame,
        rgb=frame.rgb[rows, columns],
        planar_depth_m=frame.planar_depth_m[rows, columns],
        valid_mask=frame.valid_mask[rows, columns],
        intrinsics=crop_intrinsics(frame.intrinsics, columns.start, rows.start),
        layers={name: layer[rows, columns] for name, layer in frame.layers.items()},
    )


def row_of(run: Run, ruler: Ruler, method: FrameMethod, frame: Frame, estimate: Estimate) -> Row:
    """A frame's row under one ruler."""
    try:
        reason, figures = score(ruler.protocol, frame, estimate)
    except ValueError as error:
        raise ValueError(f"{frame.name}, {method.name}, {ruler.protocol.name}: {error}") from error
    height, width = frame.valid_mask.shape
    camera = {"focal_px": float(frame.intrinsics[0, 0]), "width": width, "height": height}
    return texts_of(run, ruler, method.digest, frame, reason) | camera | figures


def texts_of(run: Run, ruler: Ruler, method_digest: str, frame: Frame | FrameRef, reason: str) -> Row:
    """The texts of a row."""
    return {
        "benchmark": run.benchmark,
        "protocol": ruler.protocol.name,
        "protocol_digest": ruler.protocol.digest,
        "ruler_digest": ruler.digest,
        "method": run.names[ruler.digest, method_digest],
        "method_digest": method_digest,
        "frame": frame.name,
        "scene": frame.scene,
        "reason": reason,
    }


def rows_of(run: Run, journal: Path) -> Iterator[Row]:
    """The rows of this run: those of its rulers and methods in the journal, and one for each frame left out."""
    rulers = {ruler.digest: ruler for ruler in run.rulers}
    for row in read_journal(journal):
        key = row["ruler_digest"], row["method_digest"]
        if key in run.names and row["frame"] in rulers[key[0]].frames:
            yield row | {"method": run.names[key], "protocol": rulers[key[0]].protocol.name}
    for digest, method_digest in run.names:
        for name, ref in rulers[digest].frames.items():
            if name in run.left_out and name not in run.done[digest, method_digest]:
                texts = texts_of(run, rulers[digest], method_digest, ref, run.left_out[name])
                yield texts | dict.fromkeys(NUMBERS, nan)


# Pictures


def picture(run: Run, job: Job, journal: Path, pictures: Path) -> set[Path]:
    """Draw the images that stand for a method on the page, estimated once more; those that are drawn already stay.

    Returns the folders of all of them.
    """
    rulers = {ruler.digest: ruler for ruler in job.rulers}
    method_digest = job.method.digest
    mine = (row for row in rows_of(run, journal) if row["method_digest"] == method_digest)
    ranking = {*TEXTS, *NUMBERS, *(f"{alignment}/abs_rel" for alignment in ALIGNMENTS)}
    rows = to_rows({name: value for name, value in row.items() if name in ranking} for row in mine)
    folders: set[Path] = set()
    for (digest, _), names in frames_to_picture(rows).items():
        ruler = rulers[digest]
        keys = {"benchmark": run.benchmark, "ruler_digest": digest, "method_digest": method_digest}
        of_names = {name: picture_folder(pictures, keys | {"frame": name}) for name in sorted(names)}
        folders.update(of_names.values())
        missing = [ruler.frames[name] for name, folder in of_names.items() if not (folder / SCALE).is_file()]
        for _, frame in readable_frames(missing, {}):
            (estimate,) = estimates(job.method, ruler.protocol, [frame], {})
            true_m, counted = ruler.protocol.counted(frame)
            pred_m = in_metres(ruler.protocol, estimate, true_m, counted)
            example = Example(frame.name, frame.rgb, pred_m, true_m, counted)
            write_pictures(pictures, keys | {"frame": frame.name}, example)
    return folders
