"""The page to look at after a batch job: a sample of its images with depth under the pointer, in one HTML file.

The file needs no other one and no network: pictures are data URIs, depth is a small grid of codes.
"""

import base64
import hashlib
import heapq
import io
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import islice
from math import floor, log, log10
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

import numpy as np

from metricgold.images import (
    DEPTH_COLOURS,
    colour_depth,
    colour_range,
    css_gradient,
    data_uri,
    has_depth,
    load_template,
)
from metricgold.predict.receipt import ReceiptRow
from metricgold.predict.row_blocks import sample_rank

if TYPE_CHECKING:
    from jinja2 import Template
    from PIL import Image

GALLERY = "gallery.html"
MAX_TROUBLES = 1_000  # failed and skipped images on the page
_THUMBNAIL_PIXELS, _GRID_CELLS = 320 * 240, 64 * 48
_PHOTOGRAPH_BYTES, _DEPTH_BYTES = 7_000, 4_500  # 200 thumbnails stay below 5 MB
_QUALITIES = (80, 65, 50, 35, 20, 10, 1)
_MAX_SIDE = 1_024  # of both, for strips
_CODES = 65535  # code 1 is near_m, code 65535 far_m, 0 no depth

_JOINER = "\u200d"  # holds the parts of an emoji together


# --- one image ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """What the page shows of an image of `height` x `width` pixels; some 15 kB.

    `codes` are uint16, little-endian, [num_rows, num_columns]: depth = near_m * (far_m / near_m) ** ((code - 1) /
    65534), 0 = none, at the pixel in the middle of each cell (see `middles`).
    """

    height: int
    width: int
    photograph: bytes  # JPEG
    depth: bytes  # JPEG, coloured from range_m[0] to range_m[1]
    range_m: tuple[float, float]
    num_rows: int
    num_columns: int
    near_m: float
    far_m: float
    codes: bytes


def make_thumbnail(rgb: np.ndarray, planar_depth_m: np.ndarray) -> Thumbnail:
    """The thumbnail of a photograph, uint8 [H, W, 3], and its planar depth [H, W] in metres (none: not finite or <= 0).

    Raises ValueError where the two differ in size.
    """
    from PIL import Image

    height, width = planar_depth_m.shape
    if rgb.shape != (height, width, 3):
        raise ValueError(f"a thumbnail needs rgb [H, W, 3] of the depth's size {height}x{width}, got {list(rgb.shape)}")
    depth_m, range_m = _sampled(planar_depth_m, _THUMBNAIL_PIXELS), colour_range(planar_depth_m)
    size = depth_m.shape[1], depth_m.shape[0]
    photograph = Image.fromarray(rgb).resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    grid_m = _sampled(planar_depth_m, _GRID_CELLS)
    near_m, far_m, codes = encode_grid(grid_m)
    return Thumbnail(
        height=height,
        width=width,
        photograph=_jpeg(photograph, _PHOTOGRAPH_BYTES),
        depth=_jpeg(Image.fromarray(colour_depth(depth_m, range_m)), _DEPTH_BYTES, "4:4:4"),
        range_m=range_m,
        num_rows=grid_m.shape[0],
        num_columns=grid_m.shape[1],
        near_m=near_m,
        far_m=far_m,
        codes=codes.tobytes(),
    )


def middles(length: int, num: int) -> np.ndarray:
    """Index of the pixel in the middle of each of `num` equal parts of `length` pixels."""
    return (2 * np.arange(num) + 1) * length // (2 * num)


def _sampled(planar_depth_m: np.ndarray, max_pixels: int) -> np.ndarray:
    """Depth at the middles of at most max_pixels equal cells; an average would mix near and far."""
    height, width = planar_depth_m.shape
    scale = min(1.0, (max_pixels / (height * width)) ** 0.5)
    rows, columns = (max(1, min(_MAX_SIDE, floor(side * scale))) for side in (height, width))
    return planar_depth_m[middles(height, rows)[:, None], middles(width, columns)]


def encode_grid(grid_m: np.ndarray) -> tuple[float, float, np.ndarray]:
    """near_m, far_m and codes, uint16 [num_rows, num_columns] little-endian, of a grid of depths: see Thumbnail."""
    known = has_depth(grid_m)
    if not known.any():
        return 1.0, 1.0, np.zeros(grid_m.shape, "<u2")
    near_m, far_m = float(grid_m[known].min()), float(grid_m[known].max())
    share = np.log(np.where(known, grid_m, near_m) / near_m) / (log(far_m / near_m) or 1.0)
    return near_m, far_m, np.where(known, np.round(share * (_CODES - 1)) + 1, 0).clip(0, _CODES).astype("<u2")


def _jpeg(image: "Image.Image", max_bytes: int, subsampling: str = "4:2:0") -> bytes:
    """An image as JPEG of the best quality that fits, or of the worst there is."""
    for quality in _QUALITIES:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality, subsampling=subsampling)
        if buffer.tell() <= max_bytes:
            break
    return buffer.getvalue()


# --- which images -------------------------------------------------------------------------------------------


class ThumbnailSample(Protocol):
    """Collects thumbnails: every image of a job is offered to it while its pixels are at hand."""

    def wants(self, key: str) -> bool:
        """Whether the thumbnail of this key would be kept by now."""

    def keep(self, key: str, thumbnail: Thumbnail) -> None:
        """Take the thumbnail in if its key is wanted."""


class GallerySample:
    """Thumbnails of the `limit` keys whose hash is smallest: the same ones in whatever order images are finished.

    May be used from several threads.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._thumbnails: dict[str, Thumbnail] = {}
        self._last: list[tuple[int, str]] = []  # heap of (-hash, key), the largest hash on top
        self._lock = threading.Lock()

    def wants(self, key: str) -> bool:
        """Whether the thumbnail of this key would be kept by now; costs one hash."""
        with self._lock:
            return len(self._last) < self.limit or (self.limit > 0 and -sample_rank(key) >= self._last[0][0])

    def keep(self, key: str, thumbnail: Thumbnail) -> None:
        """Take the thumbnail in if its key is wanted, in place of the one that is wanted least."""
        with self._lock:
            if key not in self._thumbnails:
                heapq.heappush(self._last, (-sample_rank(key), key))
            self._thumbnails[key] = thumbnail
            if len(self._last) > self.limit:
                del self._thumbnails[heapq.heappop(self._last)[1]]

    @property
    def thumbnails(self) -> dict[str, Thumbnail]:
        """Thumbnails by key, in the order of the keys."""
        with self._lock:
            return dict(sorted(self._thumbnails.items()))


# --- the page -----------------------------------------------------------------------------------------------


def render_gallery(
    summary: Mapping[str, Any],
    thumbnails: Mapping[str, Thumbnail],
    done: Mapping[str, ReceiptRow],
    troubles: Iterable[ReceiptRow],
) -> str:
    """The page as HTML that holds everything it shows and can be encoded as UTF-8.

    summary     the answer of predict_all
    thumbnails  by input, those of a GallerySample
    done        rows of the receipt by input, at least those of the thumbnails; a thumbnail without a row is left out
    troubles    rows of failed and skipped images; the first MAX_TROUBLES of them are listed
    """
    listed = list(islice(troubles, MAX_TROUBLES))
    computed = summary["images_done"] - summary["images_kept"]
    return page_template().render(
        summary=summary,
        time=clock_time(summary["seconds"]),
        images_per_s=computed / summary["seconds"] if summary["seconds"] else 0.0,
        shown=[_shown(name, thumbnail, done[name]) for name, thumbnail in sorted(thumbnails.items()) if name in done],
        listed=[
            {
                "status": row["status"],
                "name": row["input"],
                "reason": (row["reason"] or "").removeprefix(f"{row['input']}: "),
            }
            for row in listed
        ],
        num_unlisted=summary["images_failed"] + summary["images_skipped"] - len(listed),
    )


def _shown(name: str, thumbnail: Thumbnail, row: ReceiptRow) -> dict[str, Any]:
    """What the template needs of an image that is done."""
    return {
        "name": name,
        "card": thumbnail,
        "files": list(_files(row)),
        "photograph": data_uri(thumbnail.photograph, "image/jpeg"),
        "depth": data_uri(thumbnail.depth, "image/jpeg"),
        "codes": base64.b64encode(thumbnail.codes).decode(),
        "metres": [row["min_m"], row["median_m"], row["max_m"]],
        "uncertainty": row["uncertainty_median"],
        "scale_assumed": row.get("scale_assumed", False),
        "num_members": row.get("num_members"),  # rows of earlier versions have none
    }


def _files(row: ReceiptRow) -> Iterator[tuple[str, str]]:
    """Kind and URL of each file of the image that a URL can reach, depth first."""
    keys: dict[str, str | None] = {kind: file["key"] for kind, file in row.get("outputs", {}).items()}
    for kind, key in sorted((keys or {"depth": row["output"]}).items(), key=lambda item: item[1] != row["output"]):
        if key and (url := relative_url(key)):
            yield kind, url


def relative_url(key: str) -> str | None:
    """The key as URL relative to the page; None for one that browsers would take for another."""
    if not {".", ".."}.isdisjoint(key.split("/")):
        return None  # resolved away, percent-encoded or not
    try:
        return "./" + quote(key.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        return None


@cache
def page_template() -> "Template":
    """gallery.html.j2 with its filters."""
    filters: dict[str, Callable[..., str]] = {"metres": metres, "visible": visible, "digest": csp_digest}
    return load_template(
        Path(__file__).with_name("gallery.html.j2"), filters, {"gradient": css_gradient(DEPTH_COLOURS)}
    )


# --- how values are written ---------------------------------------------------------------------------------


def metres(depth_m: float | None) -> str:
    """Three digits, as the page's own script writes them."""
    if depth_m is None:
        return "none"
    return f"{depth_m:.{max(0, 2 - floor(log10(depth_m)))}f} m"


def clock_time(seconds: float) -> tuple[str, str]:
    """Figures and their unit."""
    if seconds < 60:
        return f"{seconds:.1f}", "s"
    minutes, rest = divmod(round(seconds), 60)
    return (f"{minutes}:{rest:02d}", "min") if minutes < 60 else (f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}", "h")


def visible(text: str, max_chars: int = 2_000) -> str:
    """The text with escapes for characters without a shape (control characters, surrogates, overrides)."""
    cut = text if len(text) <= max_chars else text[:max_chars] + "…"
    return "".join(c if c.isprintable() or c == _JOINER else c.encode("unicode_escape").decode() for c in cut)


def csp_digest(text: str) -> str:
    """sha256 by which the Content-Security-Policy names the one script that may run."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
