"""Which frames of a data set are looked at, and how they are read in batches."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from metricgold.datasets.frame import Frame, fit_frame
from metricgold.datasets.readers import FrameRef, list_frames, read_frame

log = logging.getLogger(__name__)


def some_frames(name: str, raw: Path, split: str, limit: int | None) -> list[FrameRef]:
    """At most `limit` frames of a split, evenly spaced. ValueError naming data set and split when there is none."""
    found = list_frames(name, raw, split=split).frames
    if not found:
        raise ValueError(f"{name}: {raw} holds no frame of split {split!r}; choose another or download its scenes")
    return [found[i] for i in evenly_spaced(len(found), limit)]


def frame_batches(refs: Sequence[FrameRef], size: tuple[int, int], batch_size: int, desc: str) -> Iterator[list[Frame]]:
    """Frames fitted to `size`, with a progress bar; one that cannot be read is warned of and left out."""
    with tqdm(total=len(refs), desc=desc, unit="frame", disable=None) as bar:
        for start in range(0, len(refs), batch_size):
            part = refs[start : start + batch_size]
            frames = [frame for ref in part if (frame := readable(ref, size)) is not None]
            if frames:
                yield frames
            bar.update(len(part))


def readable(ref: FrameRef, size: tuple[int, int]) -> Frame | None:
    """One frame fitted to `size`; None, with a warning, when it cannot be read."""
    try:
        return fit_frame(read_frame(ref), *size)
    except (ValueError, OSError) as error:
        log.warning("%s left out: %s", ref.name, error)
        return None


def evenly_spaced(count: int, limit: int | None) -> list[int]:
    """At most `limit` indices into `count` things, spread evenly; all of them for None."""
    if limit is None or limit >= count:
        return list(range(count))
    return [(2 * i + 1) * count // (2 * limit) for i in range(limit)]


def readable_frames(refs: Sequence[FrameRef], left_out: dict[str, str]) -> Iterator[tuple[FrameRef, Frame]]:
    """Frames one by one; a broken one is warned of, and its reason kept, instead."""
    for ref in refs:
        try:
            yield ref, read_frame(ref)
        except ValueError as error:
            log.warning("%s left out: %s", ref.name, error)
            left_out[ref.name] = str(error)
