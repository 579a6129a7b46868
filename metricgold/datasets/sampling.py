"""Which frames of a data set are looked at, and how they are read where a broken file must not end the stage."""

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from metricgold.datasets.frame import Frame, fit_frame
from metricgold.datasets.listing import FrameRef
from metricgold.datasets.readers import list_frames, read_frame
from metricgold.images import TrainingSize
from metricgold.storage import Progress

log = logging.getLogger(__name__)


def some_frames(name: str, raw: Path, split: str, limit: int | None) -> list[FrameRef]:
    """At most `limit` frames of a split, evenly spaced. ValueError naming data set and split when there is none."""
    refs = list_frames(name, raw, split=split).frames
    if not refs:
        raise ValueError(f"{name}: {raw} holds no frame of split {split!r}; choose another or download its scenes")
    return [refs[i] for i in evenly_spaced(len(refs), limit)]


def evenly_spaced(count: int, limit: int | None) -> list[int]:
    """At most `limit` indices into `count` things, spread evenly; all of them for None."""
    if limit is None or limit >= count:
        return list(range(count))
    return [(2 * i + 1) * count // (2 * limit) for i in range(limit)]


def readable(ref: FrameRef, size: TrainingSize | None = None, left_out: dict[str, str] | None = None) -> Frame | None:
    """One frame, as a network of `size` sees it if given; None, with a warning, when it cannot be read.

    `left_out`, if given, receives the reason under the frame's name.
    """
    try:
        frame = read_frame(ref)
    except (ValueError, OSError) as error:
        log.warning("%s left out: %s", ref.name, error)
        if left_out is not None:
            left_out[ref.name] = str(error)
        return None
    return fit_frame(frame, size.grid(*frame.valid_mask.shape)) if size else frame


def readable_frames(refs: Sequence[FrameRef], left_out: dict[str, str]) -> Iterator[tuple[FrameRef, Frame]]:
    """The readable ones of these frames, one by one at their own size; reasons of the others as in `readable`."""
    for ref in refs:
        if (frame := readable(ref, left_out=left_out)) is not None:
            yield ref, frame


def frame_batches(
    refs: Sequence[FrameRef],
    size: TrainingSize | None,
    batch_size: int,
    desc: str,
    left_out: dict[str, str] | None = None,
) -> Iterator[list[Frame]]:
    """Batches of the readable ones of these frames, as in `readable`, while progress is shown under `desc`.

    All frames of a batch have one shape: those of it among `batch_size` that follow each other.
    """
    with Progress(desc, len(refs), "frame") as progress:
        for start in range(0, len(refs), batch_size):
            batch = refs[start : start + batch_size]
            of_shape: defaultdict[tuple[int, ...], list[Frame]] = defaultdict(list)
            for frame in (readable(ref, size, left_out) for ref in batch):
                if frame is not None:
                    of_shape[frame.valid_mask.shape].append(frame)
            yield from of_shape.values()
            progress.advance(len(batch))
