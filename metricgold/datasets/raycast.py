"""Exact ray casting against planes, boxes, spheres and cylinders, in float64.

World: x and y on the ground, z up, metres. All rays of a call start in one point, so a solid is only
tried on the rays which pass through its bounding sphere. A light is a point too: shadows use the same call.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

NOTHING = -1
TINY = 1e-300  # stands for a direction component of 0: its inverse stays finite


@dataclass(frozen=True, slots=True)
class Box:
    """Upright box, turned by `yaw` about its vertical axis; seen from outside."""

    centre_m: tuple[float, float, float]
    half_size_m: tuple[float, float, float]
    yaw: float = 0.0
    material: str = "plain"
    colour: tuple[float, float, float] = (0.5, 0.5, 0.5)

    @property
    def bound(self) -> tuple[tuple[float, float, float], float]:
        return self.centre_m, float(np.linalg.norm(self.half_size_m))

    def distances(self, origin: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """Multiples [N] of the directions [N, 3] at which the box is entered, inf where it is not."""
        origin = _turn(np.asarray(origin) - self.centre_m, -self.yaw)
        directions = _turn(directions, -self.yaw)
        inverse = 1 / np.where(directions == 0, TINY, directions)
        middle, reach = -origin * inverse, np.abs(inverse) * self.half_size_m
        enter, leave = (middle - reach).max(axis=1), (middle + reach).min(axis=1)
        return np.where((enter <= leave) & (enter > 0), enter, np.inf)

    def surface(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Normals [N, 3], points in the box's own frame [N, 3] and the axis [N] of the face of surface points."""
        local = _turn(points - self.centre_m, -self.yaw)
        axis = np.argmax(np.abs(local) - self.half_size_m, axis=1)
        normals = np.zeros_like(local)
        rows = np.arange(len(local))
        normals[rows, axis] = np.sign(local[rows, axis])
        return _turn(normals, self.yaw), local, axis


@dataclass(frozen=True, slots=True)
class Sphere:
    centre_m: tuple[float, float, float]
    radius_m: float
    material: str = "plain"
    colour: tuple[float, float, float] = (0.5, 0.5, 0.5)

    @property
    def bound(self) -> tuple[tuple[float, float, float], float]:
        return self.centre_m, self.radius_m

    def distances(self, origin: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """Multiples [N] of the directions [N, 3] at which the sphere is entered, inf where it is not."""
        return _enter_round(np.asarray(origin) - self.centre_m, directions, self.radius_m)

    def surface(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Normals, points from the centre, and the axis 2, as for a box."""
        local = points - self.centre_m
        return local / self.radius_m, local, np.full(len(local), 2)


@dataclass(frozen=True, slots=True)
class Cylinder:
    """Upright cylinder with a flat top."""

    base_m: tuple[float, float, float]
    radius_m: float
    height_m: float
    material: str = "plain"
    colour: tuple[float, float, float] = (0.5, 0.5, 0.5)

    @property
    def bound(self) -> tuple[tuple[float, float, float], float]:
        x, y, z = self.base_m
        return (x, y, z + self.height_m / 2), float(np.hypot(self.radius_m, self.height_m / 2))

    def distances(self, origin: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """Multiples [N] of the directions [N, 3] at which side or top are met, inf where neither is."""
        origin = np.asarray(origin) - self.base_m
        side = _enter_round(origin[:2], directions[:, :2], self.radius_m)
        with np.errstate(invalid="ignore"):
            z = origin[2] + side * directions[:, 2]
            side = np.where((z >= 0) & (z <= self.height_m), side, np.inf)
        top = _plane_distances(origin[2] - self.height_m, directions[:, 2])
        with np.errstate(invalid="ignore"):
            from_axis = np.hypot(*(origin[:2] + top[:, None] * directions[:, :2]).T)
        return np.minimum(side, np.where(from_axis <= self.radius_m, top, np.inf))

    def surface(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Normals, points from the base, and the axis (2 on the top, else 0), as for a box."""
        local = points - self.base_m
        on_top = local[:, 2] > self.height_m - 1e-6
        normals = np.where(on_top[:, None], (0, 0, 1), local * (1, 1, 0) / self.radius_m)
        return normals, local, np.where(on_top, 2, 0)


@dataclass(frozen=True, slots=True)
class Ground:
    """The plane z = 0, without end."""

    material: str = "plain"
    colour: tuple[float, float, float] = (0.5, 0.5, 0.5)
    bound = None

    def distances(self, origin: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """Multiples [N] of the directions [N, 3] at which the plane is met from above, inf where it is not."""
        return _plane_distances(origin[2], directions[:, 2])

    def surface(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Normals, the points themselves, and the axis 2, as for a box."""
        return np.broadcast_to((0.0, 0.0, 1.0), points.shape), points, np.full(len(points), 2)


@dataclass(frozen=True, slots=True)
class Shell:
    """The inside of an upright, axis-aligned room from `low_m` to `high_m`, seen only through `sides`.

    `sides` are the faces this solid has: "floor", "wall" and "ceiling" may be solids of their own.
    `openings` are pairs (low, high) of corners: where the shell lies inside one, it is not there.
    """

    low_m: tuple[float, float, float]
    high_m: tuple[float, float, float]
    sides: frozenset[str] = frozenset({"floor", "wall", "ceiling"})
    openings: tuple[tuple[tuple[float, float, float], tuple[float, float, float]], ...] = ()
    material: str = "plain"
    colour: tuple[float, float, float] = (0.5, 0.5, 0.5)
    bound = None

    def distances(self, origin: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """Multiples [N] of the directions [N, 3] at which the room is left, inf through other sides and openings."""
        inverse = 1 / np.where(directions == 0, TINY, directions)
        walls = np.where(directions > 0, self.high_m, self.low_m)
        per_axis = (walls - origin) * inverse  # [N, 3], each > 0 for an origin inside
        axis = per_axis.argmin(axis=1)
        leave = np.take_along_axis(per_axis, axis[:, None], axis=1)[:, 0]
        is_side = np.isin(_side_codes(axis, directions[:, 2] > 0), [_SIDE_CODES[side] for side in self.sides])
        points = origin + leave[:, None] * directions
        for low, high in self.openings:
            is_side &= ~((points >= low) & (points <= high)).all(axis=1)
        return np.where(is_side, leave, np.inf)

    def surface(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Normals into the room, the points themselves and the axis of the face, as for a box."""
        centre, half = np.add(self.low_m, self.high_m) / 2, np.subtract(self.high_m, self.low_m) / 2
        axis = np.argmax(np.abs(points - centre) - half, axis=1)
        normals = np.zeros_like(points)
        rows = np.arange(len(points))
        normals[rows, axis] = -np.sign((points - centre)[rows, axis])
        return normals, points, axis


Solid = Box | Sphere | Cylinder | Ground | Shell


class Hits(NamedTuple):
    """What N rays met. `distances` count in lengths of the rays' directions; inf and solid -1 where nothing was met."""

    distances: np.ndarray  # float64 [N]
    solid: np.ndarray  # int32 [N], index into the list of solids


@dataclass(frozen=True, eq=False)
class Solids:
    """Solids with their bounding spheres, ready for casting."""

    solids: tuple[Solid, ...]
    _bounded: np.ndarray = field(init=False, repr=False)
    _centres_m: np.ndarray = field(init=False, repr=False)
    _radii_m: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        bounds = {index: solid.bound for index, solid in enumerate(self.solids) if solid.bound is not None}
        centres = np.array([centre for centre, _ in bounds.values()], dtype=np.float64).reshape(-1, 3)
        object.__setattr__(self, "_bounded", np.array(list(bounds), dtype=int))
        object.__setattr__(self, "_centres_m", centres)
        object.__setattr__(self, "_radii_m", np.array([radius for _, radius in bounds.values()], dtype=np.float64))

    def cast(self, origin: np.ndarray, directions: np.ndarray, *, bounded_only: bool = False) -> Hits:
        """First hit of each ray origin + s * direction, s > 0; origin [3], directions [N, 3] of any length."""
        nearest = np.full(len(directions), np.inf)
        solid = np.full(len(directions), NOTHING, dtype=np.int32)
        if not bounded_only:
            for index, candidate in enumerate(self.solids):
                if candidate.bound is None:
                    _keep_nearer(nearest, solid, slice(None), candidate.distances(origin, directions), index)
        for index, rows in self._candidates(origin, directions):
            _keep_nearer(nearest, solid, rows, self.solids[index].distances(origin, directions[rows]), index)
        return Hits(nearest, solid)

    def _candidates(self, origin: np.ndarray, directions: np.ndarray):
        # A ray meets a ball of radius r at distance c when its angle to the centre is at most asin(r / c).
        if not len(self._bounded):
            return
        to_centre = self._centres_m - origin
        distance_m = np.linalg.norm(to_centre, axis=1)
        sine = np.minimum(self._radii_m / np.maximum(distance_m, 1e-9), 1)
        limit = np.where(sine < 1, np.sqrt(1 - sine**2) * distance_m, -np.inf)
        unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
        near = to_centre @ unit.T >= (limit - 1e-9 * (1 + distance_m))[:, None]  # [solids, N]
        for row, index in enumerate(self._bounded):
            rows = np.flatnonzero(near[row])
            if len(rows):
                yield index, rows


def _keep_nearer(nearest: np.ndarray, solid: np.ndarray, rows, distances: np.ndarray, index: int) -> None:
    is_nearer = distances < nearest[rows]
    nearest[rows] = np.where(is_nearer, distances, nearest[rows])
    solid[rows] = np.where(is_nearer, index, solid[rows])


def _turn(vectors: np.ndarray, yaw: float) -> np.ndarray:
    if yaw == 0:
        return vectors
    cosine, sine = np.cos(yaw), np.sin(yaw)
    return vectors @ np.array([[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1]])


def _enter_round(origin: np.ndarray, directions: np.ndarray, radius_m: float) -> np.ndarray:
    # |origin + s d|^2 = r^2 in as many dimensions as are given; the smaller root if it lies ahead.
    squared = np.einsum("ni,ni->n", directions, directions)
    half_slope = directions @ origin
    discriminant = half_slope**2 - squared * (origin @ origin - radius_m**2)
    with np.errstate(invalid="ignore", divide="ignore"):
        enter = (-half_slope - np.sqrt(discriminant)) / squared
        return np.where((discriminant >= 0) & (enter > 0), enter, np.inf)


def _plane_distances(height_m: float, slopes: np.ndarray) -> np.ndarray:
    falls = (slopes < 0) & (height_m > 0)
    return np.where(falls, -height_m / np.where(falls, slopes, -1), np.inf)


_SIDE_CODES = {"wall": 0, "floor": 1, "ceiling": 2}


def _side_codes(axis: np.ndarray, is_up: np.ndarray) -> np.ndarray:
    return np.where(axis < 2, _SIDE_CODES["wall"], np.where(is_up, _SIDE_CODES["ceiling"], _SIDE_CODES["floor"]))
