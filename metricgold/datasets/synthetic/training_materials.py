"""What surfaces of the training worlds look like.

Pattern sizes never vary (a floor tile is always 0.5 m, a storey 3 m, a lane mark 3 m), so that an image tells metres.
"""

import numpy as np

from metricgold.datasets.synthetic.patterns import Material, Surface, band, cell_tone, mix, pulse
from metricgold.datasets.synthetic.raycast import Floats


def plain(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """One colour."""
    return colour


def tiles(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """A checker of 0.5 m in two shades."""
    across, up = (pulse(x, 1.0, 0.5, footprint_m) for x in (surface.u, surface.v))
    return mix(across + up - 2 * across * up, colour, 0.45 * colour)


def slabs(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """Slabs of 1 m, each with its own tone, between seams of 8 cm."""
    seam = 1 - (1 - pulse(surface.u, 1.0, 0.08, footprint_m)) * (1 - pulse(surface.v, 1.0, 0.08, footprint_m))
    tone = 0.75 + 0.5 * cell_tone(surface.u, surface.v, footprint_m, 1.0, 1.0)
    return mix(seam, 0.35 * colour, tone[:, None] * colour)


def planks(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """Planks of 0.25 x 1.5 m, each with its own tone."""
    tone = 0.6 + 0.8 * cell_tone(surface.u, surface.v, footprint_m, 0.25, 1.5)
    return mix(pulse(surface.u, 0.25, 0.02, footprint_m), 0.3 * colour, tone[:, None] * colour)


def wall(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """A dark skirting board of 0.12 m, a dado up to 1 m, paint above."""
    dado = np.clip((1.0 - surface.v) / footprint_m + 0.5, 0, 1)
    skirting = np.clip((0.12 - surface.v) / footprint_m + 0.5, 0, 1)
    painted = mix(dado, colour * (0.50, 0.55, 0.62), colour)
    return mix(skirting, (0.05, 0.035, 0.025), painted)


def brick(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """Bricks of 0.5 x 0.25 m, every other course moved by half a brick."""
    course = np.floor(surface.v / 0.25)
    u = surface.u + 0.25 * (course % 2)
    mortar = 1 - (1 - pulse(u, 0.5, 0.03, footprint_m)) * (1 - pulse(surface.v, 0.25, 0.03, footprint_m))
    tone = 0.7 + 0.6 * cell_tone(u, surface.v, footprint_m, 0.5, 0.25)
    return mix(mortar, (0.45, 0.43, 0.40), tone[:, None] * colour)


def facade(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """Storeys of 3 m with windows 1.4 m wide every 3 m, a ledge between storeys."""
    window = pulse(surface.u, 3.0, 1.4, footprint_m) * pulse(surface.v - 0.9, 3.0, 1.5, footprint_m)
    ledge = pulse(surface.v, 3.0, 0.2, footprint_m)
    upright = np.where(surface.axis == 2, 0, 1)
    walls = mix(ledge * upright, 1.5 * colour, colour)
    return mix(window * upright, (0.03, 0.05, 0.08), walls)


def grass(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """Two sizes of tufts."""
    small, large = (cell_tone(surface.u, surface.v, footprint_m, size_m, size_m) for size_m in (0.3, 2))
    tone = 0.5 * small + 0.5 * large
    return (0.6 + 0.8 * tone)[:, None] * (0.09, 0.19, 0.05)


def street(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """Two lanes of 3.5 m along y; 3 m dashes every 6 m, solid lines at the edges, lawn beyond the pavements."""
    u, v = surface.u, surface.v
    asphalt = (0.85 + 0.3 * cell_tone(u, v, footprint_m, 1.0, 1.0))[:, None] * (0.065, 0.065, 0.07)
    dashes = band(u, -0.1, 0.1, footprint_m) * pulse(v, 6.0, 3.0, footprint_m)
    edges = band(np.abs(u), 3.1, 3.3, footprint_m)
    road = mix(np.clip(dashes + edges, 0, 1), (0.75, 0.75, 0.72), asphalt)
    return mix(band(np.abs(u), -1, 3.5, footprint_m), road, grass(surface, colour, footprint_m))


def garden(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """A path of 1 m slabs, 3 m wide, along y through a lawn."""
    path = slabs(surface, np.broadcast_to((0.42, 0.39, 0.34), colour.shape), footprint_m)
    return mix(band(np.abs(surface.u), -1, 1.5, footprint_m), path, grass(surface, colour, footprint_m))


def shelf(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """Boards every 0.4 m, with books of many colours between them."""
    board = pulse(surface.v, 0.4, 0.06, footprint_m)
    tone = cell_tone(surface.u, surface.v, footprint_m, 0.12, 0.4)
    hue = cell_tone(surface.u + 7, surface.v, footprint_m, 0.12, 0.4)
    books = np.stack([0.04 + 0.5 * tone, 0.06 + 0.3 * hue, 0.03 + 0.25 * (1 - tone)], axis=1)
    filled = mix(board, colour, books)
    return np.where((surface.axis == 2)[:, None], colour, filled)


def crate(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """Boards of 0.25 m."""
    seam = pulse(surface.v, 0.25, 0.03, footprint_m)
    tone = 0.75 + 0.5 * cell_tone(surface.u + 100, surface.v, footprint_m, 4.0, 0.25)
    return mix(seam, 0.25 * colour, tone[:, None] * colour)


def car_body(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """Wheels at +-1.35 m of the middle, 0.6 m across; dark below the sill."""
    wheel = (np.abs(np.abs(surface.u) - 1.35) < 0.32) & (surface.v < 0.65)
    dark = (wheel | (surface.v < 0.3)) & (surface.axis != 2)
    return mix(dark.astype(float), (0.015, 0.015, 0.015), colour)


def car_cabin(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """Dark windows on all sides, paint on the roof."""
    return np.where((surface.axis == 2)[:, None], colour, (0.03, 0.04, 0.05))


def leaves(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """Tufts of 0.4 m."""
    tone = cell_tone(surface.u + 50, surface.v + 50, footprint_m, 0.4, 0.4)
    return (0.5 + tone)[:, None] * colour


def door(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """Two panels, one above the other."""
    panel = band(np.abs(surface.u), -1, 0.3, footprint_m) * pulse(surface.v - 0.2, 0.9, 0.7, footprint_m)
    return mix(panel, 0.55 * colour, colour)


TRAINING_MATERIALS: dict[str, Material] = {
    "plain": plain,
    "tiles": tiles,
    "slabs": slabs,
    "planks": planks,
    "wall": wall,
    "brick": brick,
    "facade": facade,
    "street": street,
    "garden": garden,
    "shelf": shelf,
    "crate": crate,
    "car body": car_body,
    "car cabin": car_cabin,
    "leaves": leaves,
    "door": door,
}
