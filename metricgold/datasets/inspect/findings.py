"""What is suspicious about a data set, and why.

A frame is suspicious, which is not a verdict, when

    unreadable       its files cannot be read
    wrong camera     its principal point is outside the image, its field of view outside 10 to 150 degrees over the
                     long side, or frames of several sizes have this camera
    wrong size       rgb and depth differ in size, or the rgb from the most frequent size of its scene
    all invalid      no pixel has depth
    constant depth   nearest and farthest depth differ by less than 0.1 %
    constant rgb     the photograph is of one colour
    out of range     more than 0.1 % of the pixels are nearer or farther than plausible, or the median depth is
                     far from those of the other frames (another unit)
    duplicate rgb    the photograph is, byte for byte or to the eye, that of another frame
    duplicate depth  so is the depth map, within a folder; over folders a scene may be rendered in many weathers
    misaligned       depth edges fit better elsewhere than on the photograph's (see edge_alignment)
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from math import log
from pathlib import Path
from typing import Any

import numpy as np

from metricgold.datasets.arrays import Size, format_size
from metricgold.datasets.inspect.edge_alignment import MISALIGNED
from metricgold.datasets.inspect.histogram import EDGES_M, percentiles
from metricgold.datasets.inspect.summary import THUMB, FrameSummary, Head, UnreadableFrame
from metricgold.datasets.listing import FrameRef, Listing
from metricgold.datasets.own_data import camera_faults, is_resized
from metricgold.datasets.own_statement import camera_fault
from metricgold.images import format_metres
from metricgold.storage import digest_file

KINDS = (
    "unreadable",
    "wrong camera",
    "wrong size",
    "all invalid",
    "constant depth",
    "constant rgb",
    "out of range",
    "duplicate rgb",
    "duplicate depth",
    "misaligned",
)
MAX_IMPLAUSIBLE = 1e-3  # share of valid pixels
OTHER_UNIT = 8.0  # a median depth so many times off the data set's, and off four times its spread
MIN_SPREAD = 1e-3  # relative, of depth
SAME_RGB = 0.9  # levels of 255, root mean square: another JPEG differs by 0.1 to 0.8, a move by a pixel by 1 and more
SAME_LN_DEPTH = 1e-3
MIN_CONTRAST = {"rgb": 2.0, "depth": 0.02}  # of thumbs: two black pictures prove nothing

Suspicion = tuple[str, str, str]  # frame, kind, what exactly


class Findings:
    """Everything found in one data set.

    decoded     the summaries of frames that could be read
    counts      int64, valid pixels by bin of EDGES_M over all of them
    suspicious  frame name -> {kind: what exactly}, by name
    """

    def __init__(
        self, listing: Listing, heads: Sequence[Head], summaries: Sequence[FrameSummary | UnreadableFrame]
    ) -> None:
        self.listing = listing
        self.decoded = [summary for summary in summaries if isinstance(summary, FrameSummary)]
        zero = np.zeros(len(EDGES_M) - 1, dtype=np.int64)
        self.counts: np.ndarray = sum((summary.counts for summary in self.decoded), zero)
        sizes = [head.rgb_size for head in heads]
        undecoded = [(bad.ref.name, "unreadable", bad.error) for bad in summaries if isinstance(bad, UnreadableFrame)]
        kinds_of: dict[str, dict[str, str]] = defaultdict(dict)
        for name, kind, what in (
            *size_suspicions(listing.frames, heads),
            *((name, "wrong camera", what) for name, what in camera_faults(listing.frames, sizes)),
            *equal_file_suspicions(listing.frames, heads),
            *undecoded,
            *pixel_suspicions(self.decoded),
            *lookalike_suspicions(self.decoded),
        ):
            if kind != "unreadable" or not kinds_of[name]:  # two sizes are why it could not be read
                kinds_of[name].setdefault(kind, what)
        self.suspicious = {name: kinds_of[name] for name in sorted(kinds_of)}

    def count_by_kind(self) -> dict[str, int]:
        """Suspicious frames by kind, all kinds; a frame may count for several."""
        counts = Counter(kind for kinds in self.suspicious.values() for kind in kinds)
        return {kind: counts[kind] for kind in KINDS}

    def figures(self) -> dict[str, Any]:
        """The flat JSON that DVC compares; six digits, so that a last bit changes nothing."""
        scores = [summary.alignment.score for summary in self.decoded if summary.alignment is not None]
        fovs = [summary.fov_deg[0] for summary in self.decoded]
        figures = {
            "frames": len(self.listing.frames),
            "frames_decoded": len(self.decoded),
            "frames_left_out": sum(self.listing.gaps.values()),
            "scenes": len({ref.scene for ref in self.listing.frames}),
            "valid_ratio": np.mean([summary.valid_ratio for summary in self.decoded]),
            "fov_deg_min": min(fovs),
            "fov_deg_max": max(fovs),
            "alignment_scored": len(scores),
            "alignment_median": np.median(scores) if scores else 0.0,
            "suspicious": len(self.suspicious),
        }
        figures |= {f"depth_m_p{share:02d}": depth_m for share, depth_m in percentiles(self.counts).items()}
        figures |= {f"suspicious_{kind.replace(' ', '_')}": count for kind, count in self.count_by_kind().items()}
        return {key: value if isinstance(value, int) else float(f"{value:.6g}") for key, value in figures.items()}


def size_suspicions(frames: Sequence[FrameRef], heads: Sequence[Head]) -> Iterator[Suspicion]:
    """By their heads: frames whose files cannot be read, or whose sizes differ from each other or their scene's."""
    sizes_of_scene: dict[str, Counter[Size | None]] = defaultdict(Counter)
    for ref, head in zip(frames, heads, strict=True):
        sizes_of_scene[ref.scene][head.rgb_size] += 1
    usual = {
        scene: max(sizes.items(), key=lambda item: (item[1], item[0] or ()))[0]
        for scene, sizes in sizes_of_scene.items()
    }
    for ref, head in zip(frames, heads, strict=True):
        if head.error:
            yield ref.name, "unreadable", head.error
        elif head.depth_size and head.depth_size != head.rgb_size and not is_resized(ref):
            yield ref.name, "wrong size", f"depth is {format_size(head.depth_size)}, rgb {format_size(head.rgb_size)}"
        elif head.rgb_size != usual[ref.scene]:
            most = format_size(usual[ref.scene])
            yield ref.name, "wrong size", f"{format_size(head.rgb_size)}, most of {ref.scene} {most}"


def equal_file_suspicions(frames: Sequence[FrameRef], heads: Sequence[Head]) -> Iterator[Suspicion]:
    """Photographs, and depth maps within a folder, whose bytes are those of another; only equal marks are compared."""
    by_mark: dict[tuple[Any, ...], list[tuple[str, Path]]] = defaultdict(list)
    for kind in ("duplicate rgb", "duplicate depth"):
        for ref, head in zip(frames, heads, strict=True):
            if head.error or ref.index is not None:
                continue
            if kind == "duplicate rgb":
                by_mark[kind, head.rgb_mark].append((ref.name, ref.rgb_path))
            else:
                by_mark[kind, ref.depth_path.parent, head.depth_mark].append((ref.name, ref.depth_path))
    for (kind, *_), files in by_mark.items():
        first: dict[str, str] = {}
        for name, path in files if len(files) > 1 else ():
            other = first.setdefault(digest_file(path), name)
            if other != name:
                yield name, kind, f"the same bytes as {other}"


def pixel_suspicions(decoded: Sequence[FrameSummary]) -> Iterator[Suspicion]:
    """By their pixels: frames of one colour, without depth, of one depth, out of range or misaligned."""
    medians = np.log([summary.range_m[1] for summary in decoded if summary.range_m])
    usual = float(np.median(medians)) if medians.size else 0.0
    spread = 1.4826 * float(np.median(np.abs(medians - usual))) if medians.size else 0.0
    far_off = max(log(OTHER_UNIT), 4 * spread)
    for summary in decoded:
        name = summary.ref.name
        if fault := camera_fault(summary.camera, summary.size):
            yield name, "wrong camera", fault
        if np.std(summary.thumbs["rgb"]) < MIN_CONTRAST["rgb"]:
            yield name, "constant rgb", "the photograph is of one colour"
        if summary.range_m is None:
            yield name, "all invalid", "no pixel has depth"
            continue
        nearest_m, median_m, farthest_m = summary.range_m
        if farthest_m - nearest_m < MIN_SPREAD * nearest_m:
            yield name, "constant depth", f"{format_metres(nearest_m)} everywhere"
        if summary.implausible > MAX_IMPLAUSIBLE:
            span = f"{format_metres(nearest_m)} to {format_metres(farthest_m)}"
            yield name, "out of range", f"{summary.implausible:.1%} of the pixels; {span}"
        elif abs(log(median_m) - usual) > far_off:
            both = f"median {format_metres(median_m)}, that of the data set {format_metres(float(np.exp(usual)))}"
            yield name, "out of range", both
        if summary.alignment is not None and summary.alignment.score < MISALIGNED:
            yield name, "misaligned", summary.alignment.describe()


def lookalike_suspicions(decoded: Sequence[FrameSummary]) -> Iterator[Suspicion]:
    """Photographs, and depth maps within a folder, that look the same although their bytes differ."""
    for name, other in lookalikes(decoded, "rgb", SAME_RGB):
        yield name, "duplicate rgb", f"looks like {other}"
    by_folder: dict[Path, list[FrameSummary]] = defaultdict(list)
    for summary in decoded:
        by_folder[summary.ref.depth_path.parent].append(summary)
    for summaries in by_folder.values():
        for name, other in lookalikes(summaries, "depth", SAME_LN_DEPTH):
            yield name, "duplicate depth", f"looks like {other}"


def lookalikes(summaries: Iterable[FrameSummary], image: str, tolerance: float) -> Iterator[tuple[str, str]]:
    """Each frame, in the order of names, whose thumb is that of an earlier one to a root mean square of `tolerance`."""
    contrasty = [summary for summary in summaries if np.std(summary.thumbs[image]) >= MIN_CONTRAST[image]]
    contrasty.sort(key=lambda summary: summary.ref.name)
    thumbs = np.array([summary.thumbs[image].ravel() for summary in contrasty], dtype=np.float64)
    thumbs = thumbs.reshape(len(contrasty), THUMB**2)
    squares = (thumbs**2).sum(axis=1)
    for index, summary in enumerate(contrasty[1:], 1):
        distances = squares[:index] + squares[index] - 2 * thumbs[:index] @ thumbs[index]
        nearest = int(distances.argmin())
        if distances[nearest] <= tolerance**2 * THUMB**2:
            yield summary.ref.name, contrasty[nearest].ref.name
