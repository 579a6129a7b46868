"""What is kept of a frame: of its files' heads, read for every frame, and of its pixels, decoded for a sample."""

import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from math import atan, ceil, degrees
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from metricgold.datasets.arrays import Size, read_size
from metricgold.datasets.inspect.edge_alignment import Alignment, align
from metricgold.datasets.inspect.histogram import count_depths
from metricgold.datasets.listing import FrameRef
from metricgold.datasets.readers import read_frame
from metricgold.datasets.sampling import evenly_spaced
from metricgold.storage import Progress

PLAUSIBLE_M = (0.01, 1000.0)
MIN_PER_SCENE = 4  # frames decoded
BLOCK_BYTES = 4096
THUMB = 32  # pixels, of what is compared for equality


class _OfScene(Protocol):
    @property
    def scene(self) -> str: ...


T = TypeVar("T")
R = TypeVar("R")
OfScene = TypeVar("OfScene", bound=_OfScene)


def by_scene(items: Iterable[OfScene]) -> dict[str, list[OfScene]]:
    """Frames or their summaries by scene, scenes sorted, each in the order given."""
    return {
        scene: list(of_one) for scene, of_one in groupby(sorted(items, key=attrgetter("scene")), attrgetter("scene"))
    }


def sample(frames: Sequence[FrameRef], num_frames: int) -> list[FrameRef]:
    """Evenly spaced frames of every scene, about num_frames in all and at least MIN_PER_SCENE of each."""
    scenes = by_scene(sorted(frames, key=attrgetter("name"))).values()
    each = max(MIN_PER_SCENE, ceil(num_frames / len(scenes)))
    return [refs[index] for refs in scenes for index in evenly_spaced(len(refs), each)]


def map_frames(pool: Executor, work: Callable[[T], R], items: Sequence[T], name: str) -> list[R]:
    """`work` of each item, done in the pool, in the order of the items; progress is shown under `name`."""
    results = []
    with Progress(name, len(items), "frame") as progress:
        for future in [pool.submit(work, item) for item in items]:
            results.append(future.result())
            progress.advance()
    return results


class Head(NamedTuple):
    """Sizes of a frame's files, None where only decoding tells; marks that equal files share; why it is unreadable."""

    rgb_size: Size | None = None
    depth_size: Size | None = None
    rgb_mark: tuple[int, int] = (0, 0)
    depth_mark: tuple[int, int] = (0, 0)
    error: str | None = None


def read_heads(frames: Sequence[FrameRef]) -> list[Head]:
    """One for each frame, read by threads: this is waiting for a disk."""
    with ThreadPoolExecutor(4 * (os.cpu_count() or 1)) as threads:
        return map_frames(threads, read_head, frames, "heads")


def read_head(ref: FrameRef) -> Head:
    """Sizes and marks of a frame's two files, without decoding them; none of a file that holds many frames."""
    if ref.index is not None:
        return Head()
    try:
        rgb_size, depth_size = read_size(ref.rgb_path), read_size(ref.depth_path)
        return Head(rgb_size, depth_size, read_mark(ref.rgb_path), read_mark(ref.depth_path))
    except (ValueError, OSError) as error:
        return Head(error=str(error))


def read_mark(path: Path) -> tuple[int, int]:
    """Length, and CRC-32 of a block in the middle: equal files have equal marks."""
    with path.open("rb") as file:
        num_bytes = file.seek(0, os.SEEK_END)
        file.seek(max(0, num_bytes // 2 - BLOCK_BYTES // 2))
        return num_bytes, zlib.crc32(file.read(BLOCK_BYTES))


@dataclass(frozen=True, slots=True, eq=False)
class FrameSummary:
    """What is kept of a decoded frame."""

    ref: FrameRef
    size: Size
    camera: tuple[float, float, float, float]  # fx, fy, cx, cy
    valid_ratio: float
    counts: np.ndarray  # int64, valid pixels by bin of EDGES_M
    implausible: float  # share of valid pixels
    range_m: tuple[float, float, float] | None  # nearest, median, farthest; None without a valid pixel
    thumbs: dict[str, np.ndarray]  # rgb: grey; depth: its logarithm; float32 [THUMB, THUMB]
    alignment: Alignment | None

    @property
    def scene(self) -> str:
        return self.ref.scene

    @property
    def fov_deg(self) -> tuple[float, float]:
        """Horizontal and vertical field of view."""
        (height, width), (fx, fy, cx, cy) = self.size, self.camera
        return degrees(atan(cx / fx) + atan((width - cx) / fx)), degrees(atan(cy / fy) + atan((height - cy) / fy))


@dataclass(frozen=True, slots=True)
class UnreadableFrame:
    """A frame that cannot be decoded, and why."""

    ref: FrameRef
    error: str


def summarise(ref: FrameRef, plausible_m: tuple[float, float] = PLAUSIBLE_M) -> FrameSummary | UnreadableFrame:
    """Decode one frame and keep what the page needs."""
    try:
        frame = read_frame(ref)
    except (ValueError, OSError) as error:
        return UnreadableFrame(ref, str(error))
    depth_m = frame.planar_depth_m[frame.valid_mask].astype(np.float64)
    (fx, _, cx), (_, fy, cy), _ = frame.intrinsics.tolist()
    near_m, far_m = plausible_m
    ln_depth = np.log(np.where(frame.valid_mask, frame.planar_depth_m, 1))
    height, width = frame.valid_mask.shape
    return FrameSummary(
        ref,
        size=(height, width),
        camera=(fx, fy, cx, cy),
        valid_ratio=float(frame.valid_mask.mean()),
        counts=count_depths(depth_m),
        implausible=float(((depth_m < near_m) | (depth_m > far_m)).mean()) if depth_m.size else 0.0,
        range_m=(float(depth_m.min()), float(np.median(depth_m)), float(depth_m.max())) if depth_m.size else None,
        thumbs={"rgb": shrink(frame.rgb.mean(axis=2)), "depth": shrink(ln_depth)},
        alignment=align(frame.rgb, frame.planar_depth_m, frame.valid_mask),
    )


def shrink(image: np.ndarray) -> np.ndarray:
    """Means over a grid of THUMB x THUMB, float32."""
    from PIL import Image

    return np.asarray(Image.fromarray(image.astype(np.float32)).resize((THUMB, THUMB), Image.Resampling.BOX))
