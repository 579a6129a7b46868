"""The VAE floor: true depth through the VAE and back, without a U-Net. No prediction can be much better.

How much the VAE loses depends on how depth is laid onto [-1, 1] (first experiment of arXiv 2411.10886): by logarithm,
in which the U-Net is trained by default, or by another Encoding (metricgold.log_depth).

One protocol for all of them: frames at the size at which `encode` reads them, figures per image, then the mean over
images, then over data sets. Every valid pixel inside the widest of all ranges counts: what a narrower range
clips counts with its error, so that no range wins by ignoring pixels. The ruler of `metricgold evaluate` would hide
what the widest range is for. The best range is the one with the smallest AbsRel of the encoding in use; of equals the
first. (Encodings compare fairly by a VAE that was trained on photographs, or by a stand-in that has seen equal shares
of them, backbone.stand_in.encodings.)
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from diffusers import AutoencoderKL

from metricgold.datasets import Frame, frame_batches
from metricgold.download import unedited_frames
from metricgold.evaluate.depth_ranges import (
    ByDepth,
    RangeRow,
    cells,
    dress_depth_axis,
    middle_m,
    range_edges_m,
    range_index,
    save_figure,
    write_table,
)
from metricgold.images import TrainingSize, metre_ticks
from metricgold.log_depth import Encoding, EncodingName, LogDepth
from metricgold.model import (
    check_size,
    decode_log_depth,
    default_device,
    encode_log_depth,
    encode_rgb,
    load_vae,
    rgb_to_tensor,
    vae_factor,
)
from metricgold.params import CanonicalRange, LogDepthRange, VaeFloor
from metricgold.storage import digest_folder, write_json

log = logging.getLogger(__name__)


def measure_vae_floor(
    params: VaeFloor,
    range_m: LogDepthRange,
    raw_folders: dict[str, Path],
    backbone: Path,
    metrics: Path,
    plots: Path,
    *,
    size: tuple[int, int],
    view_shares: Sequence[float] = (1.0,),
    device: str = "",
) -> dict[str, Any]:
    """Measure depth in every encoding over `range_m` and every range of the params; write the JSON `metrics`.

    Up to params.frames_per_dataset frames of each data set's split, evenly spaced over the sorted names, as a network
    of `size`, height and width, sees them. `plots` receives vae_floor.csv (every encoding by range of true depth) and
    vae_floor.png. The JSON is flat, for DVC: `<data set>/<encoding>/<near>-<far>/abs_rel` and `delta1`, the same
    under `mean`, by depth for the range of the params (`.../abs_rel/2-4`), `best/near_m` and `best/far_m`, and for
    each data set what mirroring latents costs (flip_asymmetry). canonical_depth/near_m and far_m are the percentiles by
    which a range of canonical depth is chosen, over frames and their views (Encode.view_shares); with a CanonicalRange
    all ranges are of canonical depth. `backbone_vae` is the digest of the VAE that was measured. The JSON is written
    last. Raises ValueError when the size does not suit the VAE, or naming a data set without a frame to measure.
    """
    facts = {"backbone_vae": digest_folder(Path(backbone) / "vae")}
    vae = load_vae(backbone, dtype=getattr(torch, params.dtype)).to(device or default_device()).eval()
    check_size(vae, size)
    seen = TrainingSize(*size, vae_factor(vae))
    ranges = list(dict.fromkeys((one.near_m, one.far_m) for one in (range_m, *params.ranges_m)))
    encodings = [Encoding(name, *one) for name in get_args(EncodingName) for one in ranges]
    edges_m = range_edges_m(LogDepth(min(near_m for near_m, _ in ranges), max(far_m for _, far_m in ranges)))
    measured, flips, spread = {}, {}, CanonicalSpread(seen, view_shares)
    for name, raw in raw_folders.items():
        refs = unedited_frames(name, raw, params.split, params.frames_per_dataset)
        flip = FlipAsymmetry(range_m.to_encoding(), edges_m)
        batches = frame_batches(refs, seen, params.batch_size, f"vae-floor {name}")
        batches = frames_in_range(spread.noting(batches), range_m, seen)
        measured[name] = measure_floor(vae, batches, encodings, edges_m, beside=flip.add)
        flips[name] = flip.report()
    present, best = range_m.to_encoding(), best_range(measured, range_m.encoding)
    report = _report(measured, flips, present, best) | spread.report()
    floors = {encoding: report[f"mean/{encoding}/abs_rel"] for encoding in (present, best)}
    log.info("VAE floor of %s m: AbsRel %.4f; smallest: %s m, %.4f", present, floors[present], best, floors[best])
    _plot(Path(plots), measured, present)
    write_json(metrics, report | facts)
    return report | facts


def frames_in_range(
    batches: Iterable[list[Frame]], range_m: LogDepthRange, size: TrainingSize
) -> Iterator[list[Frame]]:
    """Frames as a network sees them, with their depth in the metres of the range: canonical ones for a CanonicalRange.

    Relative errors are the same in either.
    """
    for frames in batches:
        yield [canonical_frame(one, size) for one in frames] if isinstance(range_m, CanonicalRange) else frames


def canonical_frame(frame: Frame, size: TrainingSize) -> Frame:
    """A frame in a grid of the network, with canonical depth in place of its own."""
    focal = np.float32(size.relative_focal(frame.intrinsics))
    return replace(frame, planar_depth_m=frame.planar_depth_m / focal)


class CanonicalSpread:
    """The distribution of canonical depth over all valid pixels of frames and their views, by its logarithm.

    A view that sees a share of a frame's sides is by a longer lens, so that its canonical depth is that share.

    Its PERCENTILES are the rule for canonical_depth: the range holds all but one pixel of a hundred, and no far end of
    a few skies or backdrops costs all others their precision.
    """

    PERCENTILES = (0.5, 99.5)

    def __init__(self, size: TrainingSize, view_shares: Sequence[float]) -> None:
        self.size, self.view_shares = size, view_shares
        self.edges_m = np.geomspace(1e-3, 1e5, 8001)  # bins of 0.23 %
        self.counts = np.zeros(8000)

    def noting(self, batches: Iterable[list[Frame]]) -> Iterator[list[Frame]]:
        """The batches as they come, each counted."""
        for frames in batches:
            for frame in frames:
                depth_m = canonical_frame(frame, self.size).planar_depth_m[frame.valid_mask]
                for share in self.view_shares:
                    of_view_m = (share * depth_m).clip(self.edges_m[0], self.edges_m[-1])
                    self.counts += np.histogram(of_view_m, self.edges_m)[0]
            yield frames

    def report(self) -> dict[str, float]:
        """The range by the rule, in metres, as flat metrics."""
        shares = np.concatenate([[0], np.cumsum(self.counts) / self.counts.sum()])
        near_m, far_m = np.exp(np.interp(np.array(self.PERCENTILES) / 100, shares, np.log(self.edges_m)))
        log.info("canonical depth: %.3g to %.4g m from percentile %g to %g", near_m, far_m, *self.PERCENTILES)
        lowest, highest = self.PERCENTILES
        return {
            "canonical_depth/near_m": float(near_m),
            "canonical_depth/far_m": float(far_m),
            "canonical_depth/from_percentile": lowest,
            "canonical_depth/to_percentile": highest,
        }


def best_range(measured: Mapping[str, Mapping[Encoding, "Floor"]], name: EncodingName) -> Encoding:
    """The encoding of that name with the smallest AbsRel, mean over data sets; of equals the first."""
    candidates = [encoding for encoding in next(iter(measured.values())) if encoding.name == name]
    return min(candidates, key=lambda encoding: np.mean([floors[encoding].abs_rel for floors in measured.values()]))


class Truth:
    """True depth of a batch, and which of its pixels count: the valid ones from edges_m[0] to edges_m[-1]."""

    def __init__(self, frames: Sequence[Frame], edges_m: np.ndarray) -> None:
        depth_m, self.valid = (
            np.stack([getattr(f, field) for f in frames]) for field in ("planar_depth_m", "valid_mask")
        )
        self.counted = self.valid & (depth_m >= edges_m[0]) & (depth_m <= edges_m[-1])  # [B, H, W]
        self.depth_m = depth_m
        self.counted_m = depth_m[self.counted].astype(np.float64)  # [N]
        self.image = np.nonzero(self.counted)[0]  # [N], position in the batch
        self.ranges = range_index(self.counted_m, edges_m)

    def normalized(self, log_depth: LogDepth, device: torch.device) -> torch.Tensor:
        """Log depth [B, H, W]; invalid pixels are filled with far_m, as in every cache."""
        d: torch.Tensor = log_depth.normalize(torch.from_numpy(self.depth_m).to(device))
        return d.masked_fill(~torch.from_numpy(self.valid).to(device), 1.0)


class Floor:
    """AbsRel and delta1 of one encoding on one data set: per image, and by range of true depth."""

    def __init__(self, edges_m: np.ndarray) -> None:
        self.images: list[tuple[float, float]] = []  # AbsRel and delta1 of each
        self.by_depth = ByDepth(edges_m)

    def add(self, decoded_m: np.ndarray, truth: Truth) -> None:
        """Score a batch [B, H, W] in metres; an image without a pixel that counts is left out."""
        p, g = decoded_m[truth.counted].astype(np.float64), truth.counted_m
        errors, hits = np.abs(p - g) / g, (np.maximum(p / g, g / p) < 1.25).astype(np.float64)
        self.by_depth.add(truth.ranges, abs_rel=errors, delta1=hits)
        per_image = (np.bincount(truth.image, weights, len(decoded_m)) for weights in (errors, hits, None))
        self.images += [(error / pixels, hit / pixels) for error, hit, pixels in zip(*per_image, strict=True) if pixels]

    @property
    def abs_rel(self) -> float:
        """Mean over images."""
        return float(np.mean([image[0] for image in self.images]))

    @property
    def delta1(self) -> float:
        """Mean over images."""
        return float(np.mean([image[1] for image in self.images]))

    def figures(self, prefix: str, *, by_depth: bool = False) -> dict[str, float]:
        """The figures as flat metrics, each key below `prefix`."""
        flat = {f"{prefix}/{key}": getattr(self, key) for key in ("abs_rel", "delta1")}
        for row in self.by_depth.rows() if by_depth else ():
            range_m = f"{row['from_m']:g}-{row['to_m']:g}"
            flat |= {f"{prefix}/{key}/{range_m}": row[key] for key in ("abs_rel", "delta1")}
        return flat


@torch.no_grad()
def measure_floor(
    vae: AutoencoderKL,
    batches: Iterator[list[Frame]],
    encodings: Sequence[Encoding],
    edges_m: np.ndarray,
    *,
    beside: Any = None,
) -> dict[Encoding, Floor]:
    """Each encoding's floor over the frames. `beside(vae, frames, truth)` sees every batch too.

    Raises ValueError when no frame has depth between the outer edges.
    """
    floors = {encoding: Floor(edges_m) for encoding in encodings}
    for frames in batches:
        truth = Truth(frames, edges_m)
        for encoding, floor in floors.items():
            d = truth.normalized(encoding.log_depth, vae.device)
            decoded = decode_log_depth(vae, encode_log_depth(vae, d, encoding), encoding)
            floor.add(encoding.log_depth.denormalize(decoded).cpu().numpy(), truth)
        if beside is not None:
            beside(vae, frames, truth)
    if not all(floor.images for floor in floors.values()):
        raise ValueError(f"no frame with valid depth between {edges_m[0]:g} and {edges_m[-1]:g} m to measure")
    return floors


class FlipAsymmetry:
    """What it costs to mirror latents instead of images: a VAE's convolutions are not symmetric.

    image_rms, depth_rms  RMS of encode(flip x) - flip(encode x) over the RMS of encode x, in latents
    abs_rel               of depth decoded from mirrored latents, mirrored back: compare with the floor itself
    """

    def __init__(self, encoding: Encoding, edges_m: np.ndarray) -> None:
        self.encoding, self.mirrored = encoding, Floor(edges_m)
        self.squares: dict[str, np.ndarray] = {}  # of differences and of latents

    def add(self, vae: AutoencoderKL, frames: Sequence[Frame], truth: Truth) -> None:
        """Measure a batch."""
        rgb = rgb_to_tensor(np.stack([frame.rgb for frame in frames])).to(vae.device)
        self._compare("image_rms", encode_rgb(vae, rgb), encode_rgb(vae, rgb.flip(-1)))
        d = truth.normalized(self.encoding.log_depth, vae.device)
        latent = encode_log_depth(vae, d, self.encoding)
        self._compare("depth_rms", latent, encode_log_depth(vae, d.flip(-1), self.encoding))
        decoded = decode_log_depth(vae, latent.flip(-1), self.encoding).flip(-1)
        self.mirrored.add(self.encoding.log_depth.denormalize(decoded).cpu().numpy(), truth)

    def report(self) -> dict[str, float]:
        """The figures above, over all frames."""
        ratios = {name: float(np.sqrt(difference / whole)) for name, (difference, whole) in self.squares.items()}
        return ratios | {"abs_rel": self.mirrored.abs_rel}

    def _compare(self, name: str, latent: torch.Tensor, of_mirrored: torch.Tensor) -> None:
        """Add the squares of a batch to the sums behind a ratio."""
        squares = [tensor.double().square().sum().item() for tensor in (of_mirrored - latent.flip(-1), latent)]
        self.squares[name] = self.squares.get(name, 0) + np.array(squares)


def _report(
    measured: Mapping[str, Mapping[Encoding, Floor]],
    flips: Mapping[str, Mapping[str, float]],
    present: Encoding,
    best: Encoding,
) -> dict[str, float]:
    """The flat JSON of measure_vae_floor."""
    report = {"best/near_m": best.near_m, "best/far_m": best.far_m}
    for name, floors in measured.items():
        report[f"{name}/num_frames"] = len(floors[present].images)
        report |= {f"{name}/flip/{key}": value for key, value in flips[name].items()}
        for encoding, floor in floors.items():
            of_present = (encoding.near_m, encoding.far_m) == (present.near_m, present.far_m)
            report |= floor.figures(f"{name}/{encoding}", by_depth=of_present)
    for encoding in next(iter(measured.values())):
        for key in ("abs_rel", "delta1"):
            values = [getattr(floors[encoding], key) for floors in measured.values()]
            report[f"mean/{encoding}/{key}"] = float(np.mean(values))
    return report


def _plot(plots: Path, measured: Mapping[str, Mapping[Encoding, Floor]], present: Encoding) -> None:
    """The table of all encodings, and a figure with a column for each data set.

    On top the encodings over the present range, below the present encoding over every range.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    header = ["dataset", "encoding", "range", "interval", "depth_m", "abs_rel", "delta1", "num_pixels"]
    rows = [
        [
            name,
            encoding.name,
            f"{encoding.near_m:g}-{encoding.far_m:g} m",
            *cells(row, "abs_rel", "delta1"),
            row["num_pixels"],
        ]
        for name, of_dataset in measured.items()
        for encoding, floor in of_dataset.items()
        for row in floor.by_depth.rows()
    ]
    write_table(plots / "vae_floor.csv", header, rows)
    figure = Figure(figsize=(1.5 + 3.5 * len(measured), 6.5), dpi=100, layout="constrained")
    axes = figure.subplots(2, len(measured), squeeze=False, sharex=True, sharey="row")
    for (top, bottom), (name, floors) in zip(axes.T, measured.items(), strict=True):
        top.set_title(name, size=10)
        for encoding, floor in floors.items():
            range_m = f"{encoding.near_m:g} to {encoding.far_m:g} m"
            if (encoding.near_m, encoding.far_m) == (present.near_m, present.far_m):
                _draw_line(top, floor.by_depth.rows(), f"{encoding.name}, {range_m}")
            if encoding.name == present.name:
                _draw_line(bottom, floor.by_depth.rows(), f"{present.name}, {range_m}")
        bottom.set_xlabel("true planar depth, m")
    for ax in axes.flat:
        edges_m = next(iter(measured.values()))[present].by_depth.edges_m
        dress_depth_axis(ax, edges_m, metre_ticks((edges_m[0], edges_m[-1])))
        ax.set(yscale="log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
        ax.tick_params(labelsize=8)
    for ax in axes[:, 0]:
        ax.set_ylabel("AbsRel of the VAE alone")
    for ax in axes[:, -1]:
        ax.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    save_figure(plots / "vae_floor.png", figure)


def _draw_line(ax: Any, rows: list[RangeRow], label: str) -> None:
    """AbsRel of each range at its middle."""
    # A logarithmic axis cannot show an error of 0.
    errors = [max(row["abs_rel"], 1e-4) for row in rows]
    ax.plot([middle_m(row) for row in rows], errors, "o-", ms=3, lw=1.2, label=label)
