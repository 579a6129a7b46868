"""Lights with shadows on materials, and what air or water does to what is seen through it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from metricgold.datasets.synthetic.benchmark_materials import BENCHMARK_MATERIALS
from metricgold.datasets.synthetic.patterns import Surface
from metricgold.datasets.synthetic.raycast import NOTHING, Floats, Hits, Point, Solids
from metricgold.datasets.synthetic.training_materials import TRAINING_MATERIALS

MATERIALS = TRAINING_MATERIALS | BENCHMARK_MATERIALS


@dataclass(frozen=True, slots=True)
class Light:
    """A point that shines; a sun is a point far away. `fade_m` is the distance of half strength, None for a sun."""

    position_m: Point
    colour: Point
    ambient: Point
    fade_m: float | None = None


@dataclass(frozen=True, slots=True)
class Air:
    """Haze between eye and surface, and the sky behind everything. Linear colours.

    haze_per_m  how fast light from a surface fades: one number, or one for each channel, as of water
    veil_per_m  how fast the horizon's colour comes in its place, where that is another number (Akkaynak, Treibitz, A
                Revised Underwater Image Formation Model, CVPR 2018)
    """

    haze_per_m: float | Point
    horizon: Point
    zenith: Point
    veil_per_m: Point | None = None


def shade(
    solids: Solids, lights: Sequence[Light], origin: Floats, directions: Floats, hits: Hits, pixel_angle: float
) -> Floats:
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
    radiance[rows] = albedo * sum(illumination(solids, one, origin + offsets, surface.normals) for one in lights)
    return radiance


def through_air(air: Air, radiance: Floats, directions: Floats, ray_distance_m: Floats) -> Floats:
    """Radiance [N, 3] seen through haze or water; the sky where the distance [N] is infinite."""
    distance_m = np.minimum(ray_distance_m, 1e9)[:, None]
    clear = np.exp(-np.asarray(air.haze_per_m) * distance_m)
    veil = 1 - (clear if air.veil_per_m is None else np.exp(-np.asarray(air.veil_per_m) * distance_m))
    hazy: Floats = radiance * clear + np.asarray(air.horizon) * veil
    is_sky = np.isinf(ray_distance_m)
    upwards = directions[is_sky]
    height = np.clip(upwards[:, 2] / _length(upwards), 0, 1)[:, None] ** 0.6
    hazy[is_sky] = np.asarray(air.horizon) * (1 - height) + np.asarray(air.zenith) * height
    return hazy


def _dot(a: Floats, b: Floats) -> Floats:
    return a[:, 0] * b[:, 0] + a[:, 1] * b[:, 1] + a[:, 2] * b[:, 2]


def _length(vectors: Floats) -> Floats:
    return np.sqrt(_dot(vectors, vectors))


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
