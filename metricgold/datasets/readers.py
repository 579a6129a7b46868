"""Raw archives -> frames: each data set has a file of its own, a table names them all.

A synthetic twin `<name>-synthetic` is laid out like its original and goes through the same reader; rendered worlds
without an original have the formats of one of them. Any other name is a team's own data, described by the dataset.yaml
in its raw folder (metricgold.datasets.own_data).
"""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from metricgold.datasets import (
    diode,
    eth3d,
    flsea,
    hypersim,
    ibims1,
    kitti,
    nyuv2,
    own_data,
    sunrgbd,
    tartanair,
    tartanair2,
    vkitti2,
)
from metricgold.datasets.frame import Frame
from metricgold.datasets.listing import FrameRef, Listing, no_gaps
from metricgold.datasets.manifest import Manifest, load_manifest, read_manifest
from metricgold.datasets.own_statement import STATEMENT, Statement, read_statement
from metricgold.datasets.splits import exclusion_reason

log = logging.getLogger(__name__)

IN_NO_SPLIT = "in no split"  # the reason for which such frames are gaps


class NoFramesError(ValueError):
    """A raw folder has neither frames nor gaps."""


class Reader(NamedTuple):
    """What lists and what decodes the frames of a raw folder."""

    list_frames: Callable[[str, Path], Listing]  # looks at names only
    read_frame: Callable[[FrameRef], Frame]


READERS: dict[str, Reader] = {
    module.__name__.rpartition(".")[2]: Reader(module.list_frames, module.read_frame)
    for module in (hypersim, vkitti2, tartanair, tartanair2, nyuv2, kitti, sunrgbd, eth3d, diode, ibims1, flsea)
}
# Rendered worlds that are no twin of a data set, and whose formats they have.
FORMATS = {
    "night-synthetic": "diode",
    "aerial-synthetic": "diode",
    "ranges-synthetic": "tartanair2",
    "hypersim-sensor-synthetic": "hypersim",
}
OWN = Reader(own_data.list_frames, own_data.read_frame)  # of every name that has no reader of its own


def open_dataset(name: str, raw: Path, *, split: str | None = None) -> Iterator[Frame]:
    """All frames of a data set in the order of their names, decoded one after the other.

    name   as in data_manifests/, such as hypersim or hypersim-synthetic, or a team's own data set
    raw    its raw folder, data/raw/<name>
    split  train, val or test; None: every frame in the folder

    Each Frame holds uint8 [H, W, 3] rgb and float32 [H, W] planar depth in metres. Raises ValueError for an unknown
    data set or split, a raw folder without frames, and a frame whose files are missing or broken.
    """
    return map(read_frame, list_frames(name, raw, split=split).frames)


def list_frames(name: str, raw: Path, *, split: str | None = None) -> Listing:
    """What open_dataset would read, without decoding, and what is left out for which reason.

    split=None takes everything in `raw` and needs no manifest. A split is decided by
    raw/manifest.yaml, which download writes, else by the project's own manifest of that name, and drops
    what the manifest excludes; for a team's own data raw/dataset.yaml says both. Raises ValueError for an
    unknown data set or split and where a reader needs a file that is not there, NoFramesError
    for a raw folder without frames. With a split, gaps are those of its scenes and of frames in no split.
    """
    raw = Path(raw)
    reader = _reader_of(name, raw)
    listing = reader.list_frames(name, raw)
    if not listing.frames and not listing.gaps:
        hint = own_data.looked_for(raw) if reader is OWN else f"metricgold download {name} fills it"
        raise NoFramesError(f"{raw}: no frames of {name}; {hint}")
    if split is not None:
        recorded = raw / "manifest.yaml"
        rules: Manifest | Statement
        if reader is OWN:
            rules = read_statement(raw)
        else:
            rules = read_manifest(recorded) if recorded.exists() else load_manifest(name)
        listing = select_split(listing, rules, raw, split)
    for reason, count in listing.gaps.items():
        log.info("%s: %d frames left out: %s", name, count, reason)
    return listing


def read_frame(ref: FrameRef) -> Frame:
    """Decode one frame. Raises ValueError naming the member that is missing or broken."""
    return _known_reader(ref.dataset).read_frame(ref)


def _known_reader(name: str) -> Reader:
    return READERS.get(FORMATS.get(name) or name.removesuffix("-synthetic"), OWN)


def _reader_of(name: str, raw: Path) -> Reader:
    """The reader that goes with a name and a raw folder. ValueError where they contradict each other."""
    reader, is_own = _known_reader(name), own_data.has_statement(raw)
    if reader is OWN and not is_own:
        known = f"{', '.join(READERS)}, each also with -synthetic, {', '.join(FORMATS)}"
        raise ValueError(f"unknown data set {name!r}; known: {known}; any other name needs {raw / STATEMENT}")
    if reader is not OWN and is_own:
        raise ValueError(f"{raw / STATEMENT}: {name} has a reader of its own; give your data another name")
    return reader


def select_split(listing: Listing, rules: Manifest | Statement, raw: Path, split: str) -> Listing:
    """The frames of a split that are not excluded; gaps are those of its scenes and of frames in no split."""
    split_of = rules.splitter(raw, split)
    frames, gaps, scenes = [], no_gaps(), {scene for scene in listing.scenes if split_of(scene, "") == split}
    for ref in listing.frames:
        its_split = split_of(ref.scene, ref.name)
        if its_split == split:
            scenes.add(ref.scene)
        reason = IN_NO_SPLIT if its_split is None else exclusion_reason(ref.name, rules.exclude)
        if reason and its_split in (None, split):
            gaps[ref.scene][reason] += 1
        elif its_split == split:
            frames.append(ref)
    for scene in scenes:
        gaps[scene].update(listing.gaps_of(scene))
    return Listing.of(frames, gaps)
