"""What all HTML pages share: the template's environment, pictures inside the page, scales of colours."""

import base64
from collections.abc import Callable, Mapping
from math import log
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from metricgold.images.colours import DEPTH_COLOURS, metre_ticks

if TYPE_CHECKING:
    from jinja2 import Template


def load_template(
    path: Path, filters: Mapping[str, Callable[..., Any]] | None = None, constants: Mapping[str, object] | None = None
) -> "Template":
    """The Jinja template at `path`: it escapes every value and refuses names that are not defined.

    `filters` and `constants` are known to the template under their names.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(filters or {})
    environment.globals.update(constants or {})
    return environment.from_string(path.read_text(encoding="utf-8"))


def data_uri(content: bytes, media_type: str) -> str:
    """A file as a URI that holds it, for pages that need no other file; media_type such as image/png."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def css_gradient(colours: str, num_stops: int = 17) -> str:
    """One of matplotlib's colour maps as the stops of a CSS linear-gradient."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return ", ".join(to_hex(colormaps[colours](stop / (num_stops - 1))) for stop in range(num_stops))


class ColourScale(TypedDict):
    """A scale below a picture: the stops of its gradient, and (place in per cent, label) of each tick."""

    gradient: str
    ticks: list[tuple[float, str]]


def depth_scale(range_m: tuple[float, float], max_ticks: int = 8) -> ColourScale:
    """The scale of depth coloured between range_m."""
    near_m, far_m = range_m
    ticks = [(100 * log(m / near_m) / log(far_m / near_m), format_metres(m)) for m in metre_ticks(range_m, max_ticks)]
    return {"gradient": css_gradient(DEPTH_COLOURS), "ticks": ticks}


def format_metres(depth_m: float) -> str:
    """Three digits, never an exponent: 0.82 m, 8090 m."""
    return f"{depth_m:.3g} m" if depth_m < 1000 else f"{depth_m:.0f} m"
