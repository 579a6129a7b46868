"""Raw archives -> frames: one file per data set, one table, one form.

A synthetic twin `<name>-synthetic` is laid out like its original and goes through the same reader.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from metricgold.datasets import hypersim, tartanair, tartanair2, vkitti2
from metricgold.datasets.listing import FrameRef, Listing
from metricgold.frame import Frame
from metricgold.manifest import Manifest, load_manifest, read_manifest

log = logging.getLogger(__name__)


class Reader(NamedTuple):
    list_frames: Callable[[str, Path], Listing]  # looks at names only
    read_frame: Callable[[FrameRef], Frame]


READERS: dict[str, Reader] = {
    module.__name__.rpartition(".")[2]: Reader(module.list_frames, module.read_frame)
    for module in (hypersim, vkitti2, tartanair, tartanair2)
}


def open_dataset(name: str, raw: Path, *, split: str | None = None) -> Iterator[Frame]:
    """All frames of a data set in the order of their names. Errors as in list_frames and read_frame."""
    return map(read_frame, list_frames(name, raw, split=split).frames)


def list_frames(name: str, raw: Path, *, split: str | None = None) -> Listing:
    """What open_dataset would read, without decoding, and what is left out for which reason.

    split=None takes everything that lies in `raw` and needs no manifest. A split is decided by
    raw/manifest.yaml, which download writes, else by the project's own manifest of that name, and drops
    what the manifest excludes. Raises ValueError for an unknown data set or split, for a raw folder without
    frames, and where a reader needs a file that is not there.
    """
    raw = Path(raw)
    listing = _reader(name).list_frames(name, raw)
    if not listing.frames and not listing.gaps:
        raise ValueError(f"{raw}: no frames of {name}; metricgold download {name} fills it")
    if split is not None:
        listing = _select(listing, _manifest(name, raw), raw, split)
    for reason, count in listing.gaps.items():
        log.info("%s: %d frames left out: %s", name, count, reason)
    return listing


def read_frame(ref: FrameRef) -> Frame:
    """Decode one frame. Raises ValueError naming the member that is missing or broken."""
    return _reader(ref.dataset).read_frame(ref)


def _reader(name: str) -> Reader:
    reader = READERS.get(name.removesuffix("-synthetic"))
    if reader is None:
        raise ValueError(f"unknown data set {name!r}; known: {', '.join(READERS)}, each also with -synthetic")
    return reader


def _manifest(name: str, raw: Path) -> Manifest:
    recorded = raw / "manifest.yaml"
    return read_manifest(recorded) if recorded.exists() else load_manifest(name)


def _select(listing: Listing, manifest: Manifest, raw: Path, split: str) -> Listing:
    split_of = manifest.splitter(raw, split)
    frames, gaps = [], Counter(listing.gaps)
    for ref in listing.frames:
        found = split_of(ref.scene, ref.name)
        reason = "in no split" if found is None else manifest.exclusion(ref.name)
        if reason and found in (None, split):
            gaps[reason] += 1
        elif found == split:
            frames.append(ref)
    return Listing.of(frames, gaps)
