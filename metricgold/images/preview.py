"""A batch job's picture of depth: colours with a scale in metres."""

from functools import cache
from math import floor, log, log10

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_PREVIEW_SHORT_PX, _PREVIEW_LONG_PX = 240, 1280


_PAPER, _INK, _NO_DEPTH_GREY = (255, 255, 255), (40, 40, 40), (128, 128, 128)


def draw_preview(planar_depth_m: np.ndarray) -> Image.Image:
    """Draw planar depth [H, W] in metres as a colour image with a logarithmic scale in metres at its right.

    Colours span the image's own 1st to 99th percentile; pixels without depth are grey. Small images are
    enlarged and large ones reduced, so that the figures can be read.
    """
    height, width = planar_depth_m.shape
    low_m, high_m = _colour_range(planar_depth_m)
    picture = Image.fromarray(_colour(planar_depth_m, low_m, high_m))
    scale = min(max(1.0, _PREVIEW_SHORT_PX / min(height, width)), _PREVIEW_LONG_PX / max(height, width))
    if scale != 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        picture = picture.resize(size, Image.Resampling.BILINEAR if scale < 1 else Image.Resampling.NEAREST)
    panel = _scale_panel(max(picture.height, 96), low_m, high_m)
    sheet = Image.new("RGB", (picture.width + panel.width, panel.height), _PAPER)
    sheet.paste(picture, (0, (panel.height - picture.height) // 2))
    sheet.paste(panel, (picture.width, 0))
    return sheet


def _colour_range(planar_depth_m: np.ndarray) -> tuple[float, float]:
    step = max(1, int((planar_depth_m.size / 5_000) ** 0.5))  # a sample is as good as all
    sample = planar_depth_m[::step, ::step]
    sample = sample[np.isfinite(sample) & (sample > 0)]
    if not sample.size:
        return 1.0, 10.0
    low_m, high_m = (float(z) for z in np.percentile(sample, [1, 99]))
    middle_m = (low_m * high_m) ** 0.5
    return min(low_m, middle_m / 1.1), max(high_m, middle_m * 1.1)  # a flat wall is not stretched to a rainbow


@cache
def _colours() -> np.ndarray:
    from matplotlib import colormaps

    table = colormaps["Spectral"](np.linspace(0, 1, 255))[:, :3]  # near red, far blue
    return np.vstack([np.uint8(np.round(table * 255)), np.array([_NO_DEPTH_GREY], np.uint8)])


def _colour(planar_depth_m: np.ndarray, low_m: float, high_m: float) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        ln = np.log(np.asarray(planar_depth_m, np.float32) / np.float32(low_m))
        index = np.clip(ln * np.float32(254 / log(high_m / low_m)) + 0.5, 0, 254)
        index = np.where(planar_depth_m > 0, index, 255).astype(np.uint8)
    return np.take(_colours(), index, axis=0)  # [H, W, 3]


def _scale_panel(height: int, low_m: float, high_m: float) -> Image.Image:
    font_px = max(11, min(28, height // 22))
    font, pad, bar = _font(font_px), font_px // 2, font_px
    panel = Image.new("RGB", (pad * 2 + bar + font_px * 4, height), _PAPER)
    top, bottom = font_px, height - font_px
    ramp = _colours()[np.linspace(254, 0, bottom - top).round().astype(int)]  # far on top
    panel.paste(Image.fromarray(np.repeat(ramp[:, None], bar, axis=1)), (pad, top))
    draw = ImageDraw.Draw(panel)
    for tick_m in _ticks(low_m, high_m, room=max(2, min(8, (bottom - top) // (font_px * 2)))):
        y = bottom - round(log(tick_m / low_m) / log(high_m / low_m) * (bottom - top))
        draw.line([(pad + bar, y), (pad + bar + pad, y)], fill=_INK)
        draw.text((pad * 2 + bar + 3, y), f"{tick_m:g} m", fill=_INK, font=font, anchor="lm")
    return panel


@cache
def _font(size_px: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size_px)


def _ticks(low_m: float, high_m: float, room: int) -> list[float]:
    """Round metres in [low_m, high_m]: the densest series of which at most `room` fall there."""
    decades = range(floor(log10(low_m)) - 1, floor(log10(high_m)) + 2)
    fine = tuple(n / 10 for n in range(10, 100))
    for digits in (fine, fine[::5], (1, 1.5, 2, 3, 4, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = (float(f"{digit * 10.0**decade:.4g}") for decade in decades for digit in digits)
        ticks = [tick for tick in ticks if low_m <= tick <= high_m]
        if len(ticks) <= room:
            break
    return ticks[:: max(1, -(-len(ticks) // room))] or [float(f"{(low_m * high_m) ** 0.5:.2g}")]
