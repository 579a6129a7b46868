"""A batch job's picture of depth: colours with a scale in metres."""

from functools import cache
from math import log

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from metricgold.images.colours import colour_depth, colour_range, metre_ticks

_SHORT_PX, _LONG_PX = 240, 1280
_PAPER, _INK = (255, 255, 255), (40, 40, 40)


def draw_preview(planar_depth_m: np.ndarray) -> Image.Image:
    """Draw planar depth [H, W] in metres as a colour image with a logarithmic scale in metres at its right.

    Range, colours and ticks follow the rules of images.colours. Small images are enlarged and large ones reduced, so
    that the figures can be read.
    """
    height, width = planar_depth_m.shape
    range_m = colour_range(planar_depth_m)
    picture = Image.fromarray(colour_depth(planar_depth_m, range_m))
    scale = min(max(1.0, _SHORT_PX / min(height, width)), _LONG_PX / max(height, width))
    if scale != 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        picture = picture.resize(size, Image.Resampling.BILINEAR if scale < 1 else Image.Resampling.NEAREST)
    panel = draw_scale(max(picture.height, 96), range_m)
    sheet = Image.new("RGB", (picture.width + panel.width, panel.height), _PAPER)
    sheet.paste(picture, (0, (panel.height - picture.height) // 2))
    sheet.paste(panel, (picture.width, 0))
    return sheet


def draw_scale(height: int, range_m: tuple[float, float]) -> Image.Image:
    """A bar of the colours between range_m, far on top, with ticks and their metres at its right."""
    near_m, far_m = range_m
    font_px = max(11, min(28, height // 22))
    font, pad, bar_px = _font(font_px), font_px // 2, font_px
    panel = Image.new("RGB", (pad * 2 + bar_px + font_px * 4, height), _PAPER)
    top, bottom = font_px, height - font_px
    ramp = colour_depth(np.geomspace(far_m, near_m, bottom - top)[:, None], range_m)
    panel.paste(Image.fromarray(np.repeat(ramp, bar_px, axis=1)), (pad, top))
    draw = ImageDraw.Draw(panel)
    for tick_m in metre_ticks(range_m, max_ticks=max(2, min(8, (bottom - top) // (font_px * 2)))):
        y = bottom - round(log(tick_m / near_m) / log(far_m / near_m) * (bottom - top))
        draw.line([(pad + bar_px, y), (pad + bar_px + pad, y)], fill=_INK)
        draw.text((pad * 2 + bar_px + 3, y), f"{tick_m:g} m", fill=_INK, font=font, anchor="lm")
    return panel


@cache
def _font(size_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size_px)
