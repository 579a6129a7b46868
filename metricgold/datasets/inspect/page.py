"""Look at a data set before training on it: a page for people, a JSON and a csv for DVC.

The heads of all frames are read, and all files compared by their bytes where their heads leave open that they are
equal; an evenly spaced sample of every scene is decoded. What makes a frame suspicious is defined in findings.
"""

import csv
import io
import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import nullcontext
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from metricgold.datasets.arrays import format_size
from metricgold.datasets.inspect.edge_alignment import depth_edge_map
from metricgold.datasets.inspect.findings import Findings
from metricgold.datasets.inspect.histogram import DepthAxis, coarse, percentiles
from metricgold.datasets.inspect.summary import (
    PLAUSIBLE_M,
    FrameSummary,
    UnreadableFrame,
    by_scene,
    map_frames,
    read_heads,
    sample,
    summarise,
)
from metricgold.datasets.listing import FrameRef
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
    quieten_image_libraries,
    widen_range,
)
from metricgold.storage import write_aside, write_json

log = logging.getLogger(__name__)

MAX_CARDS, MAX_SHEET, MAX_ROWS, MAX_CAMERAS = 60, 80, 1000, 40
SHOWN_PX = 240
MAX_TICKS = 6  # a phone has room for no more


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
    """Write the page `out`, the metrics JSON and the histogram csv `plot`; return what the JSON holds.

    Decodes about `num_frames`, at least MIN_PER_SCENE of each scene, in `pool` or one process for each core. Equal
    data give equal bytes. The JSON is written last. Raises ValueError as list_frames does, and where no frame
    could be read.
    """
    listing = list_frames(dataset, raw, split=split)
    if not listing.frames:
        raise ValueError(f"{raw}: no frame of {dataset} to look at; left out: {listing.gaps}")
    heads = read_heads(listing.frames)
    with (
        nullcontext(pool)
        if pool
        else ProcessPoolExecutor(mp_context=get_context("spawn"), initializer=quieten_image_libraries) as workers
    ):
        refs = sample(listing.frames, num_frames)
        summaries = map_frames(workers, partial(summarise, plausible_m=plausible_m), refs, f"look at {dataset}")
        findings = Findings(listing, heads, summaries)
        first = summaries[0]
        if not findings.decoded and isinstance(first, UnreadableFrame):
            raise ValueError(f"{raw}: none of {len(summaries)} frames of {dataset} could be read: {first.error}")
        page = render_page(dataset, split, findings, workers)
    with write_aside(out) as aside:
        aside.write_text(page)
    with write_aside(plot) as aside, aside.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["depth_m", "share", "dataset"])
        for depth_m, share in zip(*coarse(findings.counts), strict=True):
            writer.writerow([f"{depth_m:.4g}", f"{share:.6g}", dataset])
    write_json(metrics, findings.figures())
    for kind, count in findings.count_by_kind().items():
        if count:
            log.warning("%s: %d frames are suspicious: %s", dataset, count, kind)
    return findings.figures()


def render_page(dataset: str, split: str | None, findings: Findings, pool: Executor) -> str:
    """The page: suspicious frames, depth by scene, cameras, and one frame of each scene."""
    suspicious = [ref for ref in findings.listing.frames if ref.name in findings.suspicious]
    shown = [suspicious[index] for index in evenly_spaced(len(suspicious), MAX_CARDS)]
    others = {name: kinds for name, kinds in findings.suspicious.items() if name not in {ref.name for ref in shown}}
    middles = [summaries[len(summaries) // 2].ref for summaries in by_scene(findings.decoded).values()]
    sheet = [middles[index] for index in evenly_spaced(len(middles), MAX_SHEET)]

    range_m = colour_range_of(findings)
    refs = {ref.name: ref for ref in (*shown, *sheet)}
    drawn = map_frames(pool, partial(pictures_of, range_m=range_m), list(refs.values()), f"draw {dataset}")
    pictures = dict(zip(refs, drawn, strict=True))
    summary_of = {summary.ref.name: summary for summary in findings.decoded}

    def card(ref: FrameRef) -> dict[str, Any]:
        return {
            "name": ref.name,
            "pictures": pictures[ref.name],
            "suspicions": findings.suspicious.get(ref.name, {}),
            "facts": facts_of(summary_of[ref.name]) if ref.name in summary_of else "",
        }

    axis, cameras = DepthAxis(findings.counts), camera_rows(findings.decoded)
    filters = {"percent": "{:.1%}".format, "metres": format_metres}
    return load_template(Path(__file__).with_name("page.html.j2"), filters).render(
        dataset=dataset,
        split=split,
        figures=findings.figures(),
        kinds=findings.count_by_kind(),
        gaps=findings.listing.gaps,
        scale=depth_scale(range_m, MAX_TICKS),
        bad=[card(ref) for ref in shown],
        not_shown=[
            (name, "; ".join(f"{kind}: {what}" for kind, what in kinds.items())) for name, kinds in others.items()
        ][:MAX_ROWS],
        sheet=[card(ref) for ref in sheet],
        chart=axis.area(findings.counts),
        rows=scene_rows(findings, axis),
        axis=axis.ticks(),
        cameras=cameras[:MAX_CAMERAS],
        num_cameras=len(cameras),
    )


def colour_range_of(findings: Findings) -> tuple[float, float]:
    """Metres at both ends of the colours, one range for the page; a frame of another unit does not stretch it."""
    sound = [summary.counts for summary in findings.decoded if summary.ref.name not in findings.suspicious]
    low_m, high_m = (percentiles(np.sum(sound, axis=0) if sound else findings.counts)[share] for share in (1, 99))
    return widen_range(low_m, high_m) if high_m else RANGE_WITHOUT_DEPTH_M


def pictures_of(ref: FrameRef, range_m: tuple[float, float]) -> dict[str, str] | None:
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
    edges = depth_edge_map(depth_m, valid)[..., None]
    grey = rgb.mean(axis=2, keepdims=True) * 0.6 + 40
    overlay = (grey * (1 - edges) + np.array([255, 40, 40]) * edges).astype(np.uint8)
    invalid = np.where(valid[..., None], (245, 247, 250), (179, 38, 30)).astype(np.uint8)
    return {
        "photograph": jpeg_uri(rgb),
        "planar depth": data_uri(png_bytes(depth), "image/png"),
        "invalid pixels": data_uri(png_bytes(invalid), "image/png"),
        "depth edges on it": jpeg_uri(overlay),
    }


def jpeg_uri(rgb: np.ndarray) -> str:
    """A small photograph as a data URI."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG", quality=82)
    return data_uri(buffer.getvalue(), "image/jpeg")


def facts_of(summary: FrameSummary) -> str:
    """A line under a picture."""
    size = format_size(summary.size)
    if summary.range_m is None:
        return size
    near_m, median_m, far_m = summary.range_m
    depth = f"{near_m:.3g} to {far_m:.3g} m, median {median_m:.3g} m, {summary.valid_ratio:.1%} valid"
    score = "" if summary.alignment is None else f", alignment {summary.alignment.score:.1f}"
    return f"{size}, {depth}{score}"


def scene_rows(findings: Findings, axis: DepthAxis) -> list[dict[str, Any]]:
    """A row for each scene: frames, valid ratio, depth, histogram, suspicious frames."""
    num_frames = Counter(ref.scene for ref in findings.listing.frames)
    num_bad = Counter(ref.scene for ref in findings.listing.frames if ref.name in findings.suspicious)
    rows = []
    for scene, summaries in by_scene(findings.decoded).items():
        counts = np.sum([summary.counts for summary in summaries], axis=0)
        rows.append(
            {
                "scene": scene,
                "frames": num_frames[scene],
                "decoded": len(summaries),
                "valid": float(np.mean([summary.valid_ratio for summary in summaries])),
                "depths": [percentiles(counts)[share] for share in (1, 50, 99)],
                "path": axis.area(counts),
                "bad": num_bad[scene],
            }
        )
    return rows


def camera_rows(decoded: Sequence[FrameSummary]) -> list[dict[str, Any]]:
    """Distinct cameras, the most frequent first; distinguished by size, focal lengths and principal point to 0.1 %."""
    by_camera: dict[tuple[Any, ...], list[FrameSummary]] = defaultdict(list)
    for summary in decoded:
        (height, width), (fx, fy, cx, cy) = summary.size, summary.camera
        relative = tuple(round(value, 3) for value in (fx / width, fy / width, cx / width, cy / height))
        by_camera[summary.size, relative].append(summary)
    rows = []
    for summaries in sorted(by_camera.values(), key=lambda group: (-len(group), group[0].ref.name)):
        (height, width), (fx, fy, cx, cy) = summaries[0].size, summaries[0].camera
        fov_x_deg, fov_y_deg = summaries[0].fov_deg
        scenes = sorted({summary.scene for summary in summaries})
        rows.append(
            {
                "size": format_size(summaries[0].size),
                "fov": f"{fov_x_deg:.1f}° x {fov_y_deg:.1f}°",
                "focal": f"{fx:.1f}, {fy:.1f}",
                "principal": f"{cx:.1f}, {cy:.1f}",
                # never -0.0 %
                "offset": ", ".join(f"{round(at - 0.5, 3) + 0.0:+.1%}" for at in (cx / width, cy / height)),
                "frames": len(summaries),
                "scenes": ", ".join(scenes[:3]) + (f" and {len(scenes) - 3} more" if len(scenes) > 3 else ""),
            }
        )
    return rows
