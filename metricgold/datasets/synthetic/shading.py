"""What surfaces look like: patterns of fixed real-world size, one light with shadows, haze.

Pattern sizes never vary (a floor tile is always 0.5 m, a storey 3 m, a lane mark 3 m), so that an image
tells metres. Every pattern is averaged over the footprint of a pixel, which keeps distance free of aliasing.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metricgold.datasets.synthetic.raycast import NOTHING, Floats, Hits, Point, Solids


@dataclass(frozen=True, slots=True)
class Light:
    """A point that shines; a sun is a point far away. `fade_m` is the distance of half strength, None for a sun."""

    position_m: Point
    colour: Point
    ambient: Point
    fade_m: float | None = None


@dataclass(frozen=True, slots=True)
class Air:
    """Haze between eye and surface, and the sky behind everything. Linear colours."""

    haze_per_m: float
    horizon: Point
    zenith: Point


def shade(solids: Solids, light: Light, origin: Floats, directions: Floats, hits: Hits, pixel_angle: float) -> Floats:
    """Linear radiance [N, 3] of what rays from `origin` met, before the air; 0 where they met nothing.

    `pixel_angle` is the angle a pixel covers, in radians.
    """
    radiance = np.zeros((len(directions), 3))
    rows = np.flatnonzero(hits.solid != NOTHING)
    solid = hits.solid[rows]
    offsets = hits.distances[rows, None] * directions[rows]
    lengths_m = _length(offsets)
    surface = Surface.gather(solids, origin + offsets, solid)
    facing = np.abs(_dot(surface.normals, offsets)) / lengths_m
    footprint_m = lengths_m * pixel_angle / np.maximum(facing, 0.15)
    materials = np.array([item.material for item in solids.solids])[solid]
    colours = np.array([item.colour for item in solids.solids])[solid] ** 2.2
    albedo = np.empty((len(solid), 3))
    for name in np.unique(materials):
        of_name = np.flatnonzero(materials == name)
        albedo[of_name] = MATERIALS[name](surface[of_name], colours[of_name], footprint_m[of_name])
    radiance[rows] = albedo * illumination(solids, light, origin + offsets, surface.normals)
    return radiance


def through_air(air: Air, radiance: Floats, directions: Floats, ray_distance_m: Floats) -> Floats:
    """Radiance [N, 3] seen through haze; the sky where the distance [N] is infinite."""
    clear = np.exp(-air.haze_per_m * np.minimum(ray_distance_m, 1e9))[:, None]
    hazy: Floats = radiance * clear + np.asarray(air.horizon) * (1 - clear)
    is_sky = np.isinf(ray_distance_m)
    upwards = directions[is_sky]
    height = np.clip(upwards[:, 2] / _length(upwards), 0, 1)[:, None] ** 0.6
    hazy[is_sky] = np.asarray(air.horizon) * (1 - height) + np.asarray(air.zenith) * height
    return hazy


def _dot(a: Floats, b: Floats) -> Floats:
    return a[:, 0] * b[:, 0] + a[:, 1] * b[:, 1] + a[:, 2] * b[:, 2]


def _length(vectors: Floats) -> Floats:
    return np.sqrt(_dot(vectors, vectors))


@dataclass(frozen=True, slots=True)
class Surface:
    """Where rays met solids, as materials see it."""

    normals: Floats  # [N, 3]
    u: Floats  # [N] metres along the surface
    v: Floats  # [N] metres along the surface; height above the ground on upright faces
    axis: NDArray[np.int64]  # [N] 2 on level faces

    @classmethod
    def gather(cls, solids: Solids, points: Floats, solid: NDArray[np.int32]) -> "Surface":
        """The surface at points [N, 3] of the solids with these indices [N]."""
        normals, local, axis = np.empty_like(points), np.empty_like(points), np.empty(len(points), dtype=int)
        for index in np.unique(solid):
            rows = np.flatnonzero(solid == index)
            normals[rows], local[rows], axis[rows] = solids.solids[index].surface(points[rows])
        is_level = axis == 2
        u = np.where(axis == 0, local[:, 1], local[:, 0])
        return cls(normals, u, np.where(is_level, local[:, 1], points[:, 2]), axis)

    def __getitem__(self, rows: NDArray[np.int64]) -> "Surface":
        return Surface(self.normals[rows], self.u[rows], self.v[rows], self.axis[rows])


def illumination(solids: Solids, light: Light, points: Floats, normals: Floats) -> Floats:
    """Light [N, 3] that falls on points [N, 3]: the lamp or the sun where nothing blocks it, and the ambient light."""
    to_light = np.asarray(light.position_m) - points
    length_m = _length(to_light)
    lambert = np.maximum(_dot(normals, to_light) / length_m, 0)
    if light.fade_m is not None:
        lambert = lambert / (1 + (length_m / light.fade_m) ** 2)
    rows = np.flatnonzero(lambert > 1e-3)
    blocked = solids.cast(np.asarray(light.position_m), -to_light[rows], bounded_only=True).distances
    lambert[rows] *= blocked >= 1 - 0.02 / length_m[rows]  # 2 cm: a surface does not shade itself
    # Faces that look down get little of the sky's or the ceiling's light; the foot of things is darker.
    is_upright = np.abs(normals[:, 2]) < 0.9
    foot = 0.35 * np.exp(-np.maximum(points[:, 2], 0) / 0.25) * is_upright
    openness = (0.75 + 0.25 * normals[:, 2]) * (1 - foot)
    return lambert[:, None] * light.colour + openness[:, None] * light.ambient


# Patterns


def _pulse(x: Floats, period_m: float, width_m: float, footprint_m: Floats) -> Floats:
    """Share of the footprint around x that is in [0, width) of each period: exactly box-filtered."""

    def integral(x: Floats) -> Floats:
        whole = np.floor(x / period_m)
        return whole * width_m + np.minimum(x - whole * period_m, width_m)

    half = footprint_m / 2
    return (integral(x + half) - integral(x - half)) / footprint_m


def _tone(u: Floats, v: Floats, footprint_m: Floats, width_m: float, height_m: float) -> Floats:
    """A random number in [0, 1] per cell, fading to its mean as cells get smaller than the footprint."""
    x, y = np.floor(u / width_m).astype(np.int64), np.floor(v / height_m).astype(np.int64)
    mixed = (x * 73856093) ^ (y * 19349663)
    mixed = (mixed ^ (mixed >> 13)) * 1274126177
    fade: Floats = np.clip(1.5 - footprint_m / min(width_m, height_m), 0, 1)
    return 0.5 + (((mixed >> 8) & 255) / 255 - 0.5) * fade


def _mix(share: Floats, there: ArrayLike, here: ArrayLike) -> Floats:
    mixed: Floats = share[:, None] * np.asarray(there) + (1 - share[:, None]) * np.asarray(here)
    return mixed


def plain(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """One colour."""
    return colour


def tiles(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """A checker of 0.5 m in two shades."""
    across, up = (_pulse(x, 1.0, 0.5, footprint_m) for x in (surface.u, surface.v))
    return _mix(across + up - 2 * across * up, colour, 0.45 * colour)


def slabs(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """Slabs of 1 m, each with its own tone, between seams of 8 cm."""
    seam = 1 - (1 - _pulse(surface.u, 1.0, 0.08, footprint_m)) * (1 - _pulse(surface.v, 1.0, 0.08, footprint_m))
    tone = 0.75 + 0.5 * _tone(surface.u, surface.v, footprint_m, 1.0, 1.0)
    return _mix(seam, 0.35 * colour, tone[:, None] * colour)


def planks(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """Planks of 0.25 x 1.5 m, each with its own tone."""
    tone = 0.6 + 0.8 * _tone(surface.u, surface.v, footprint_m, 0.25, 1.5)
    return _mix(_pulse(surface.u, 0.25, 0.02, footprint_m), 0.3 * colour, tone[:, None] * colour)


def wall(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """A dark skirting board of 0.12 m, a dado up to 1 m, paint above."""
    dado = np.clip((1.0 - surface.v) / footprint_m + 0.5, 0, 1)
    skirting = np.clip((0.12 - surface.v) / footprint_m + 0.5, 0, 1)
    painted = _mix(dado, colour * (0.50, 0.55, 0.62), colour)
    return _mix(skirting, (0.05, 0.035, 0.025), painted)


def brick(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """Bricks of 0.5 x 0.25 m, every other course moved by half a brick."""
    course = np.floor(surface.v / 0.25)
    u = surface.u + 0.25 * (course % 2)
    mortar = 1 - (1 - _pulse(u, 0.5, 0.03, footprint_m)) * (1 - _pulse(surface.v, 0.25, 0.03, footprint_m))
    tone = 0.7 + 0.6 * _tone(u, surface.v, footprint_m, 0.5, 0.25)
    return _mix(mortar, (0.45, 0.43, 0.40), tone[:, None] * colour)


def facade(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """Storeys of 3 m with windows 1.4 m wide every 3 m, a ledge between storeys."""
    window = _pulse(surface.u, 3.0, 1.4, footprint_m) * _pulse(surface.v - 0.9, 3.0, 1.5, footprint_m)
    ledge = _pulse(surface.v, 3.0, 0.2, footprint_m)
    upright = np.where(surface.axis == 2, 0, 1)
    walls = _mix(ledge * upright, 1.5 * colour, colour)
    return _mix(window * upright, (0.03, 0.05, 0.08), walls)


def grass(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """Two sizes of tufts."""
    small, large = (_tone(surface.u, surface.v, footprint_m, size_m, size_m) for size_m in (0.3, 2))
    tone = 0.5 * small + 0.5 * large
    return (0.6 + 0.8 * tone)[:, None] * (0.09, 0.19, 0.05)


def street(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """Two lanes of 3.5 m along y; 3 m dashes every 6 m, solid lines at the edges, lawn beyond the pavements."""
    u, v = surface.u, surface.v
    asphalt = (0.85 + 0.3 * _tone(u, v, footprint_m, 1.0, 1.0))[:, None] * (0.065, 0.065, 0.07)
    dashes = _band(u, -0.1, 0.1, footprint_m) * _pulse(v, 6.0, 3.0, footprint_m)
    edges = _band(np.abs(u), 3.1, 3.3, footprint_m)
    road = _mix(np.clip(dashes + edges, 0, 1), (0.75, 0.75, 0.72), asphalt)
    return _mix(_band(np.abs(u), -1, 3.5, footprint_m), road, grass(surface, colour, footprint_m))


def garden(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """A path of 1 m slabs, 3 m wide, along y through a lawn."""
    path = slabs(surface, np.broadcast_to((0.42, 0.39, 0.34), colour.shape), footprint_m)
    return _mix(_band(np.abs(surface.u), -1, 1.5, footprint_m), path, grass(surface, colour, footprint_m))


def shelf(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """Boards every 0.4 m, with books of many colours between them."""
    board = _pulse(surface.v, 0.4, 0.06, footprint_m)
    tone = _tone(surface.u, surface.v, footprint_m, 0.12, 0.4)
    hue = _tone(surface.u + 7, surface.v, footprint_m, 0.12, 0.4)
    books = np.stack([0.04 + 0.5 * tone, 0.06 + 0.3 * hue, 0.03 + 0.25 * (1 - tone)], axis=1)
    filled = _mix(board, colour, books)
    return np.where((surface.axis == 2)[:, None], colour, filled)


def crate(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """Boards of 0.25 m."""
    seam = _pulse(surface.v, 0.25, 0.03, footprint_m)
    tone = 0.75 + 0.5 * _tone(surface.u + 100, surface.v, footprint_m, 4.0, 0.25)
    return _mix(seam, 0.25 * colour, tone[:, None] * colour)


def car_body(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """Wheels at +-1.35 m of the middle, 0.6 m across; dark below the sill."""
    wheel = (np.abs(np.abs(surface.u) - 1.35) < 0.32) & (surface.v < 0.65)
    dark = (wheel | (surface.v < 0.3)) & (surface.axis != 2)
    return _mix(dark.astype(float), (0.015, 0.015, 0.015), colour)


def car_cabin(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """Dark windows on all sides, paint on the roof."""
    return np.where((surface.axis == 2)[:, None], colour, (0.03, 0.04, 0.05))


def leaves(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """Tufts of 0.4 m."""
    tone = _tone(surface.u + 50, surface.v + 50, footprint_m, 0.4, 0.4)
    return (0.5 + tone)[:, None] * colour


def door(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """Two panels, one above the other."""
    panel = _band(np.abs(surface.u), -1, 0.3, footprint_m) * _pulse(surface.v - 0.2, 0.9, 0.7, footprint_m)
    return _mix(panel, 0.55 * colour, colour)


def _band(x: Floats, low_m: float, high_m: float, footprint_m: Floats) -> Floats:
    """Share of the footprint around x that is in [low, high)."""
    half = footprint_m / 2
    inside = np.minimum(x + half, high_m) - np.maximum(x - half, low_m)
    return np.clip(inside / footprint_m, 0, 1)


MATERIALS: dict[str, Callable[[Surface, Floats, Floats], Floats]] = {
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
