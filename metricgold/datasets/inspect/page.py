"""Look at a data set before training on it: a page for people, a JSON and a csv for DVC.

The heads of all frames are read, and all files compared by their bytes where a first look says they may be equal;
an evenly spaced sample of every scene is decoded. A frame is suspicious, which is no verdict, when

    unreadable       its files cannot be read
    wrong size       rgb and depth differ in size, or the rgb from the most frequent size of its scene
    all invalid      no pixel has depth
    constant depth   nearest and farthest depth differ by less than 0.1 %
    constant rgb     the photograph is of one colour
    out of range     more than 0.1 % of the pixels are nearer or farther than plausible, or the median depth lies
                     far from those of the other frames (another unit)
    duplicate rgb    the photograph is, byte for byte or to the eye, that of another frame
    duplicate depth  so is the depth map, within a folder; over folders a scene may be rendered in many weathers
    misaligned       depth edges fit better elsewhere than on the photograph's (see edge_alignment)
"""

import csv
import io
import logging
import os
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from math import atan, ceil, degrees, log
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from metricgold.datasets.arrays import naming
from metricgold.datasets.frame import Frame
from metricgold.datasets.inspect.edge_alignment import MISALIGNED, align, depth_edges
from metricgold.datasets.listing import FrameRef, Listing
from metricgold.datasets.readers import list_frames, read_frame
from metricgold.datasets.sampling import evenly_spaced
from metricgold.images import (
    RANGE_WITHOUT_DEPTH_M,
    colour_depth,
    data_uri,
    depth_scale,
    format_metres,
    load_template,
    png_bytes,
    widen_range,
)
from metricgold.storage import digest_file, write_aside, write_json

logger = logging.getLogger(__name__)

KINDS = (
    "unreadable",
    "wrong size",
    "all invalid",
    "constant depth",
    "constant rgb",
    "out of range",
    "duplicate rgb",
    "duplicate depth",
    "misaligned",
)
PLAUSIBLE_M = (0.01, 1000.0)
MAX_IMPLAUSIBLE = 1e-3  # share of valid pixels
OTHER_UNIT = 8.0  # a median depth so many times off the data set's, and off four times its spread
MIN_SPREAD = 1e-3  # relative, of depth
PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
MIN_PER_SCENE = 4  # frames decoded
MARK_BYTES = 4096
THUMB = 32  # pixels, of what is compared for equality
SAME_RGB = 0.9  # levels of 255, root mean square: another JPEG differs by 0.1 to 0.8, a move by a pixel by 1 and more
SAME_LN_DEPTH = 1e-3
MIN_CONTRAST = {"rgb": 2.0, "depth": 0.02}  # of thumbs: two black pictures say nothing

BINS_PER_DECADE, DECADES = 200, (-3, 5)  # of the histogram percentiles are read from, metres
COARSER = 10  # of these bins make one that is drawn
MAX_CARDS, MAX_SHEET, MAX_ROWS, MAX_CAMERAS = 60, 80, 1000, 40
SHOWN_PX = 240
MAX_TICKS = 6  # on a phone there is no room for more


def inspect_dataset(
    dataset: str,
    raw: Path,
    out: Path,
    metrics: Path,
    plot: Path,
    *,
    split: str | None = None,
    num_frames: int = 1000,
    plausible_m: tuple[float, float] = PLAUSIBLE_M,
    pool: Executor | None = None,
) -> dict[str, Any]:
    """Write the page `out`, the metrics JSON and the histogram csv `plot`; answer what the JSON holds.

    Decodes about `num_frames`, at least MIN_PER_SCENE of each scene, in `pool` or one process for each core. Equal
    data give equal bytes. The JSON is written last. Raises ValueError as list_frames does, and where no frame
    could be read.
    """
    listing = list_frames(dataset, raw, split=split)
    if not listing.frames:
        raise ValueError(f"{raw}: no frame of {dataset} to look at; left out: {listing.gaps}")
    heads = read_heads(listing.frames)
    with nullcontext(pool) if pool else ProcessPoolExecutor(mp_context=get_context("spawn")) as workers:
        seen = partial(look, plausible_m=plausible_m)
        looks = _ordered(workers, seen, sample(listing.frames, num_frames), f"look at {dataset}")
        found = Findings(listing, heads, looks)
        if not found.seen:
            raise ValueError(f"{raw}: none of {len(looks)} frames of {dataset} could be read: {looks[0].error}")
        page = _render(dataset, split, found, workers)
    with write_aside(out) as aside:
        aside.write_text(page)
    _write_histogram(plot, dataset, found.counts)
    write_json(metrics, found.figures())
    for kind, count in found.count_by_kind().items():
        if count:
            logger.warning("%s: %d frames are suspicious: %s", dataset, count, kind)
    return found.figures()


def sample(frames: Sequence[FrameRef], num_frames: int) -> list[FrameRef]:
    """Evenly spaced frames of every scene, about num_frames in all and at least MIN_PER_SCENE of each."""
    scenes = [list(refs) for _, refs in groupby(sorted(frames, key=lambda ref: (ref.scene, ref.name)), _scene)]
    each = max(MIN_PER_SCENE, ceil(num_frames / len(scenes)))
    return [refs[index] for refs in scenes for index in evenly_spaced(len(refs), each)]


def _scene(of: Any) -> str:
    return of.scene


def _ordered(pool: Executor, work: Callable, items: Sequence, said: str) -> list:
    futures = [pool.submit(work, item) for item in items]
    return [future.result() for future in tqdm(futures, desc=said, unit="frame", disable=None)]


# --- what a head says ---------------------------------------------------------------------------------------


class Head(NamedTuple):
    """Sizes [H, W] of a frame's files, None where only decoding tells; marks that equal files share; a fault."""

    rgb_size: tuple[int, int] | None = None
    depth_size: tuple[int, int] | None = None
    rgb_mark: tuple[int, int] = (0, 0)
    depth_mark: tuple[int, int] = (0, 0)
    error: str | None = None


def read_heads(frames: Sequence[FrameRef]) -> list[Head]:
    """One for each frame, read by threads: this is waiting for a disk."""
    with ThreadPoolExecutor(4 * (os.cpu_count() or 1)) as threads:
        return list(tqdm(threads.map(read_head, frames), total=len(frames), desc="heads", unit="frame", disable=None))


def read_head(ref: FrameRef) -> Head:
    """Look at a frame's two files without decoding them."""
    try:
        return Head(read_size(ref.rgb_path), read_size(ref.depth_path), _mark(ref.rgb_path), _mark(ref.depth_path))
    except (ValueError, OSError) as error:
        return Head(error=str(error))


def read_size(path: Path) -> tuple[int, int] | None:
    """Rows and columns by the head of an image, .npy or HDF5; None for .npz. ValueError names a broken file."""
    if path.suffix == ".npz":
        return None
    read = {".npy": _npy_shape, ".hdf5": _hdf5_shape}.get(path.suffix, _image_shape)
    with naming(path):
        return read(path)


def _npy_shape(path: Path) -> tuple[int, int]:
    # Opened as a map: the length of the file is checked against its head, and nothing is read.
    return np.load(path, mmap_mode="r", allow_pickle=False).shape[:2]


def _hdf5_shape(path: Path) -> tuple[int, int]:
    import h5py

    with h5py.File(path, "r") as file:
        return file["dataset"].shape[:2]


def _image_shape(path: Path) -> tuple[int, int]:
    from PIL import Image

    with Image.open(path) as image:
        return image.height, image.width


def _mark(path: Path) -> tuple[int, int]:
    """Length, and CRC-32 of a block in the middle: equal files have equal marks."""
    with path.open("rb") as file:
        num_bytes = file.seek(0, os.SEEK_END)
        file.seek(max(0, num_bytes // 2 - MARK_BYTES // 2))
        return num_bytes, zlib.crc32(file.read(MARK_BYTES))


# --- what decoding says -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """What is kept of a decoded frame. Nothing but ref and error where it could not be read."""

    ref: FrameRef
    error: str | None = None
    size: tuple[int, int] = (0, 0)
    camera: tuple[float, ...] = ()  # fx, fy, cx, cy
    valid_ratio: float = 0.0
    counts: np.ndarray | None = None  # int64, valid pixels by bin of EDGES_M
    implausible: float = 0.0  # share of valid pixels
    range_m: tuple[float, float, float] | None = None  # nearest, median, farthest
    thumbs: dict[str, np.ndarray] | None = None  # float32 [THUMB, THUMB]
    alignment: Any = None

    @property
    def scene(self) -> str:
        return self.ref.scene


EDGES_M = np.logspace(*DECADES, (DECADES[1] - DECADES[0]) * BINS_PER_DECADE + 1)


def look(ref: FrameRef, plausible_m: tuple[float, float] = PLAUSIBLE_M) -> Look:
    """Decode one frame and keep what the page needs."""
    try:
        frame = read_frame(ref)
    except (ValueError, OSError) as error:
        return Look(ref, str(error))
    depth_m = frame.planar_depth_m[frame.valid_mask].astype(np.float64)
    intrinsics = frame.intrinsics
    near_m, far_m = plausible_m
    return Look(
        ref,
        size=frame.valid_mask.shape,
        camera=tuple(float(intrinsics[at]) for at in ((0, 0), (1, 1), (0, 2), (1, 2))),
        valid_ratio=float(frame.valid_mask.mean()),
        counts=np.histogram(depth_m.clip(EDGES_M[0], EDGES_M[-1]), EDGES_M)[0],
        implausible=float(((depth_m < near_m) | (depth_m > far_m)).mean()) if depth_m.size else 0.0,
        range_m=(float(depth_m.min()), float(np.median(depth_m)), float(depth_m.max())) if depth_m.size else None,
        thumbs=_thumbs(frame),
        alignment=align(frame.rgb, frame.planar_depth_m, frame.valid_mask),
    )


def _thumbs(frame: Frame) -> dict[str, np.ndarray]:
    ln_depth = np.log(np.where(frame.valid_mask, frame.planar_depth_m, 1))
    return {"rgb": _thumb(frame.rgb.mean(axis=2)), "depth": _thumb(ln_depth)}


def _thumb(image: np.ndarray) -> np.ndarray:
    from PIL import Image

    small = Image.fromarray(image.astype(np.float32)).resize((THUMB, THUMB), Image.Resampling.BOX)
    return np.asarray(small)


# --- what is suspicious -------------------------------------------------------------------------------------


class Findings:
    """Everything found in one data set.

    seen        the looks at frames that could be read
    counts      int64, valid pixels by bin of EDGES_M over all of them
    suspicious  frame name -> {kind: what exactly}, by name
    """

    def __init__(self, listing: Listing, heads: Sequence[Head], looks: Sequence[Look]) -> None:
        self.listing, self.looks = listing, looks
        self.seen = [one for one in looks if one.error is None]
        self.counts = sum((one.counts for one in self.seen), np.zeros(len(EDGES_M) - 1, dtype=np.int64))
        found: dict[str, dict[str, str]] = defaultdict(dict)
        for name, kind, what in (*_of_heads(listing.frames, heads), *_of_looks(looks), *_of_pairs(self.seen)):
            if kind != "unreadable" or not found[name]:  # two sizes are why it could not be read
                found[name].setdefault(kind, what)
        self.suspicious = {name: found[name] for name in sorted(found)}

    @property
    def scenes(self) -> list[str]:
        return sorted({ref.scene for ref in self.listing.frames})

    def count_by_kind(self) -> dict[str, int]:
        """Suspicious frames by kind, all kinds; a frame may count for several."""
        counts = Counter(kind for kinds in self.suspicious.values() for kind in kinds)
        return {kind: counts[kind] for kind in KINDS}

    def figures(self) -> dict[str, Any]:
        """The flat JSON that DVC compares; six digits, so that a last bit changes nothing."""
        scores = [one.alignment.score for one in self.seen if one.alignment is not None]
        fovs = [fov_deg(one) for one in self.seen]
        figures = {
            "frames": len(self.listing.frames),
            "frames_decoded": len(self.seen),
            "frames_left_out": sum(self.listing.gaps.values()),
            "scenes": len(self.scenes),
            "valid_ratio": np.mean([one.valid_ratio for one in self.seen]),
            "fov_deg_min": min(fovs),
            "fov_deg_max": max(fovs),
            "alignment_scored": len(scores),
            "alignment_median": np.median(scores) if scores else 0.0,
            "suspicious": len(self.suspicious),
        }
        figures |= {f"depth_m_p{share:02d}": depth_m for share, depth_m in percentiles(self.counts).items()}
        figures |= {f"suspicious_{kind.replace(' ', '_')}": count for kind, count in self.count_by_kind().items()}
        return {key: value if isinstance(value, int) else float(f"{value:.6g}") for key, value in figures.items()}


def percentiles(counts: np.ndarray) -> dict[int, float]:
    """Metres below which so many per cent of the counted pixels lie, to the 0.6 % of half a bin; 0 without any."""
    below = np.concatenate([[0], np.cumsum(counts)])
    if not below[-1]:
        return dict.fromkeys(PERCENTILES, 0.0)
    at = np.log(EDGES_M)
    return {share: float(np.exp(np.interp(share / 100 * below[-1], below, at))) for share in PERCENTILES}


def fov_deg(one: Look) -> float:
    """Horizontal field of view."""
    fx, _, cx, _ = one.camera
    return degrees(atan(cx / fx) + atan((one.size[1] - cx) / fx))


_Found = Iterator[tuple[str, str, str]]  # frame, kind, what exactly


def _of_heads(frames: Sequence[FrameRef], heads: Sequence[Head]) -> _Found:
    pairs = list(zip(frames, heads, strict=True))
    usual: dict[str, Counter] = defaultdict(Counter)
    for ref, head in pairs:
        usual[ref.scene][head.rgb_size] += 1
    for ref, head in pairs:
        if head.error:
            yield ref.name, "unreadable", head.error
            continue
        scenes_size = max(usual[ref.scene].items(), key=lambda item: (item[1], item[0] or ()))[0]
        if head.depth_size and head.depth_size != head.rgb_size:
            yield ref.name, "wrong size", f"depth is {_size(head.depth_size)}, rgb {_size(head.rgb_size)}"
        elif head.rgb_size != scenes_size:
            yield ref.name, "wrong size", f"{_size(head.rgb_size)}, most of {ref.scene} {_size(scenes_size)}"
    fine = [(ref, head) for ref, head in pairs if not head.error]
    yield from _equal_files("duplicate rgb", [(ref.name, ref.rgb_path, head.rgb_mark) for ref, head in fine])
    depths = [(ref.name, ref.depth_path, (ref.depth_path.parent, head.depth_mark)) for ref, head in fine]
    yield from _equal_files("duplicate depth", depths)


def _size(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]}"


def _equal_files(kind: str, files: Iterable[tuple[str, Path, Any]]) -> _Found:
    """Of files whose marks are equal, those whose bytes are."""
    by_mark = defaultdict(list)
    for name, path, mark in files:
        by_mark[mark].append((name, path))
    for alike in by_mark.values():
        first: dict[str, str] = {}
        for name, path in alike if len(alike) > 1 else ():
            other = first.setdefault(digest_file(path), name)
            if other != name:
                yield name, kind, f"the same bytes as {other}"


def _of_looks(looks: Sequence[Look]) -> _Found:
    medians = np.log([one.range_m[1] for one in looks if one.range_m])
    usual = float(np.median(medians)) if medians.size else 0.0
    spread = 1.4826 * float(np.median(np.abs(medians - usual))) if medians.size else 0.0
    for one in looks:
        if one.error is not None:
            yield one.ref.name, "unreadable", one.error
            continue
        if np.std(one.thumbs["rgb"]) < MIN_CONTRAST["rgb"]:
            yield one.ref.name, "constant rgb", "the photograph is of one colour"
        if one.range_m is None:
            yield one.ref.name, "all invalid", "no pixel has depth"
            continue
        yield from _of_depth(one, usual, max(log(OTHER_UNIT), 4 * spread))
        if one.alignment is not None and one.alignment.score < MISALIGNED:
            yield one.ref.name, "misaligned", _displacement(one.alignment)


def _of_depth(one: Look, usual: float, far_off: float) -> _Found:
    nearest_m, median_m, farthest_m = one.range_m
    if farthest_m - nearest_m < MIN_SPREAD * nearest_m:
        yield one.ref.name, "constant depth", f"{format_metres(nearest_m)} everywhere"
    if one.implausible > MAX_IMPLAUSIBLE:
        text = f"{one.implausible:.1%} of the pixels; {format_metres(nearest_m)} to {format_metres(farthest_m)}"
        yield one.ref.name, "out of range", text
    elif abs(log(median_m) - usual) > far_off:
        yield (
            one.ref.name,
            "out of range",
            f"median {format_metres(median_m)}, that of the data set {format_metres(np.exp(usual))}",
        )


def _displacement(alignment: Any) -> str:
    if alignment.mirrored:
        where = "correlates better mirrored or turned"
    else:
        rows, columns = alignment.shift
        parts = [f"{abs(rows)} px {'down' if rows > 0 else 'up'}"] if rows else []
        parts += [f"{abs(columns)} px {'right' if columns > 0 else 'left'}"] if columns else []
        where = f"correlates better moved {' and '.join(parts)}"
    return f"score {alignment.score:.1f}; {where}"


def _of_pairs(seen: Sequence[Look]) -> _Found:
    """Frames that look the same although their bytes differ."""
    yield from _same("duplicate rgb", seen, "rgb", SAME_RGB)
    folders = groupby(sorted(seen, key=lambda one: (str(one.ref.depth_path.parent), one.ref.name)), _folder)
    for _, group in folders:
        yield from _same("duplicate depth", list(group), "depth", SAME_LN_DEPTH)


def _folder(one: Look) -> Path:
    return one.ref.depth_path.parent


def _same(kind: str, looks: Sequence[Look], of: str, tolerance: float) -> _Found:
    """Each frame whose thumb is that of an earlier one, to a root mean square of `tolerance`."""
    looks = sorted((one for one in looks if np.std(one.thumbs[of]) >= MIN_CONTRAST[of]), key=lambda one: one.ref.name)
    thumbs = np.array([one.thumbs[of].ravel() for one in looks], dtype=np.float64).reshape(len(looks), THUMB**2)
    squares = (thumbs**2).sum(axis=1)
    for index, one in enumerate(looks[1:], 1):
        off = squares[:index] + squares[index] - 2 * thumbs[:index] @ thumbs[index]
        nearest = int(off.argmin())
        if off[nearest] <= tolerance**2 * THUMB**2:
            yield one.ref.name, kind, f"looks like {looks[nearest].ref.name}"


# --- the csv ------------------------------------------------------------------------------------------------


def coarse(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Middles in metres and shares of COARSER bins each, without the empty ones at both ends."""
    shares = counts.reshape(-1, COARSER).sum(axis=1) / max(1, counts.sum())
    middles = np.sqrt(EDGES_M[:-1:COARSER] * EDGES_M[COARSER::COARSER])
    filled = np.flatnonzero(shares)
    held = slice(filled[0], filled[-1] + 1) if filled.size else slice(0)
    return middles[held], shares[held]


def _write_histogram(path: Path, dataset: str, counts: np.ndarray) -> None:
    with write_aside(path) as aside, aside.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["depth_m", "share", "dataset"])
        writer.writerows(
            [f"{depth_m:.4g}", f"{share:.6g}", dataset] for depth_m, share in zip(*coarse(counts), strict=True)
        )


# --- the page -----------------------------------------------------------------------------------------------


def _render(dataset: str, split: str | None, found: Findings, pool: Executor) -> str:
    range_m = _colour_range(found)
    decoded = {one.ref.name: one for one in found.seen}
    bad = [ref for ref in found.listing.frames if ref.name in found.suspicious]
    shown_bad = [bad[index] for index in evenly_spaced(len(bad), MAX_CARDS)]
    sheet = _sheet(found)
    refs = {ref.name: ref for ref in (*shown_bad, *sheet)}
    drawn = _ordered(pool, partial(views, range_m=range_m), list(refs.values()), f"draw {dataset}")
    pictures = dict(zip(refs, drawn, strict=True))
    card = lambda ref: {  # noqa: E731
        "name": ref.name,
        "views": pictures[ref.name],
        "said": found.suspicious.get(ref.name, {}),
        "facts": _facts(decoded.get(ref.name)),
    }
    filters = {"percent": "{:.1%}".format, "metres": format_metres}
    return load_template(Path(__file__).with_name("page.html.j2"), filters).render(
        dataset=dataset,
        split=split,
        figures=found.figures(),
        kinds=found.count_by_kind(),
        gaps=found.listing.gaps,
        scale=depth_scale(range_m, MAX_TICKS),
        bad=[card(ref) for ref in shown_bad],
        not_shown=_not_shown(found, {ref.name for ref in shown_bad}),
        sheet=[card(ref) for ref in sheet],
        chart=_chart(found.counts),
        rows=_scene_rows(found),
        axis=_axis(found.counts),
        cameras=_cameras(found.seen),
        num_cameras=len({_camera_key(one) for one in found.seen}),
    )


def _colour_range(found: Findings) -> tuple[float, float]:
    """Metres at both ends of the colours, one range for the page; a frame of another unit does not stretch it."""
    fine = [one.counts for one in found.seen if one.ref.name not in found.suspicious]
    low_m, high_m = (percentiles(sum(fine) if fine else found.counts)[share] for share in (1, 99))
    return widen_range(low_m, high_m) if high_m else RANGE_WITHOUT_DEPTH_M


def _sheet(found: Findings) -> list[FrameRef]:
    """The middle one of the frames decoded, of evenly spaced scenes."""
    by_scene = [list(looks) for _, looks in groupby(sorted(found.seen, key=_scene), _scene)]
    middles = [looks[len(looks) // 2].ref for looks in by_scene]
    return [middles[index] for index in evenly_spaced(len(middles), MAX_SHEET)]


def _not_shown(found: Findings, shown: set[str]) -> list[tuple[str, str]]:
    rest = [(name, kinds) for name, kinds in found.suspicious.items() if name not in shown]
    return [(name, "; ".join(f"{kind}: {what}" for kind, what in kinds.items())) for name, kinds in rest[:MAX_ROWS]]


def _facts(one: Look | None) -> str:
    """A line under a picture."""
    if one is None or one.range_m is None:
        return "" if one is None else _size(one.size)
    near_m, median_m, far_m = one.range_m
    score = "" if one.alignment is None else f", alignment {one.alignment.score:.1f}"
    return (
        f"{_size(one.size)}, {near_m:.3g} to {far_m:.3g} m, median {median_m:.3g} m, {one.valid_ratio:.1%} valid{score}"
    )


def views(ref: FrameRef, range_m: tuple[float, float]) -> dict[str, str] | None:
    """Small pictures of a frame as data URIs: rgb, depth, invalid, edges. None where it cannot be read."""
    try:
        frame = read_frame(ref)
    except (ValueError, OSError):
        return None
    step = max(1, -(-max(frame.valid_mask.shape) // SHOWN_PX))
    rgb, depth_m, valid = (
        np.ascontiguousarray(image[::step, ::step]) for image in (frame.rgb, frame.planar_depth_m, frame.valid_mask)
    )
    depth = colour_depth(depth_m, range_m, valid)
    edges = depth_edges(depth_m, valid)[..., None]
    grey = rgb.mean(axis=2, keepdims=True) * 0.6 + 40
    overlay = (grey * (1 - edges) + np.array([255, 40, 40]) * edges).astype(np.uint8)
    invalid = np.where(valid[..., None], np.uint8([245, 247, 250]), np.uint8([179, 38, 30]))
    return {
        "photograph": _jpeg_uri(rgb),
        "planar depth": data_uri(png_bytes(depth), "image/png"),
        "invalid pixels": data_uri(png_bytes(invalid), "image/png"),
        "depth edges on it": _jpeg_uri(overlay),
    }


def _jpeg_uri(rgb: np.ndarray) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG", quality=82)
    return data_uri(buffer.getvalue(), "image/jpeg")


# Histograms are SVG paths over one logarithmic axis, 1000 wide and 100 high


def _axis(counts: np.ndarray) -> list[tuple[float, str]]:
    low_m, high_m = _axis_range(counts)
    ticks = [tick for tick in (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0, 10_000.0) if low_m <= tick <= high_m]
    return [(_place(tick, counts) / 10, f"{tick:g} m") for tick in ticks]


def _axis_range(counts: np.ndarray) -> tuple[float, float]:
    """Whole decades around all that was counted."""
    filled = np.flatnonzero(counts)
    if not filled.size:
        return 0.1, 100.0
    low, high = np.log10(EDGES_M[filled[0]]), np.log10(EDGES_M[filled[-1] + 1])
    return float(10 ** np.floor(low + 1e-9)), float(10 ** np.ceil(high - 1e-9))


def _place(depth_m: float, counts: np.ndarray) -> float:
    low_m, high_m = _axis_range(counts)
    return 1000 * log(depth_m / low_m) / log(high_m / low_m)


def _path(counts: np.ndarray, all_counts: np.ndarray) -> str:
    """Area under a histogram, as high as its own highest bin."""
    depths_m, shares = coarse(counts)
    if not depths_m.size:
        return ""
    half = 10 ** (COARSER / BINS_PER_DECADE / 2)
    places = [_place(depth_m / half, all_counts) for depth_m in (*depths_m, depths_m[-1] * half**2)]
    steps = "".join(
        f"V{100 - 100 * share / shares.max():.1f}H{right:.0f}" for share, right in zip(shares, places[1:], strict=True)
    )
    return f"M{places[0]:.0f} 100{steps}V100Z"


def _chart(counts: np.ndarray) -> str:
    return _path(counts, counts)


def _scene_rows(found: Findings) -> list[dict[str, Any]]:
    """A row for each scene: frames, valid ratio, depth, histogram, suspicious frames."""
    num_frames = Counter(ref.scene for ref in found.listing.frames)
    num_bad = Counter(ref.scene for ref in found.listing.frames if ref.name in found.suspicious)
    rows = []
    for scene, looks in groupby(sorted(found.seen, key=_scene), _scene):
        looks = list(looks)
        counts = sum(one.counts for one in looks)
        rows.append(
            {
                "scene": scene,
                "frames": num_frames[scene],
                "decoded": len(looks),
                "valid": float(np.mean([one.valid_ratio for one in looks])),
                "depths": [percentiles(counts)[share] for share in (1, 50, 99)],
                "path": _path(counts, found.counts),
                "bad": num_bad[scene],
            }
        )
    return rows


def _camera_key(one: Look) -> tuple:
    """What the table tells apart: size, fov to 0.1 degree, focal lengths and principal point to 0.1 %."""
    (height, width), (fx, fy, cx, cy) = one.size, one.camera
    return (height, width), tuple(round(value, 3) for value in (fx / width, fy / width, cx / width, cy / height))


def _cameras(seen: Sequence[Look]) -> list[dict[str, Any]]:
    """Distinct cameras, the most frequent first."""
    by_key: dict[tuple, list[Look]] = defaultdict(list)
    for one in seen:
        by_key[_camera_key(one)].append(one)
    groups = sorted(by_key.values(), key=lambda looks: (-len(looks), looks[0].ref.name))
    return [_camera_row(looks) for looks in groups[:MAX_CAMERAS]]


def _camera_row(looks: Sequence[Look]) -> dict[str, Any]:
    one = looks[0]
    (height, width), (fx, fy, cx, cy) = one.size, one.camera
    scenes = sorted({look.scene for look in looks})
    more = f" and {len(scenes) - 3} more" if len(scenes) > 3 else ""
    return {
        "size": _size(one.size),
        "fov": f"{fov_deg(one):.1f}° x {degrees(atan(cy / fy) + atan((height - cy) / fy)):.1f}°",
        "focal": f"{fx:.1f}, {fy:.1f}",
        "principal": f"{cx:.1f}, {cy:.1f}",
        "offset": ", ".join(f"{round(at - 0.5, 3) + 0.0:+.1%}" for at in (cx / width, cy / height)),  # never -0.0 %
        "frames": len(looks),
        "scenes": ", ".join(scenes[:3]) + more,
    }
