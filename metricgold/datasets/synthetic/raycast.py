"""Exact ray casting against planes, boxes, spheres and cylinders, in float64.

World: x and y on the ground, z up, metres. All rays of a call start at the same point, so a solid is only
tried on the rays which pass through its bounding sphere. A light is a point too: shadows use the same call.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Point = tuple[float, float, float]

NOTHING = -1
TINY = 1e-300  # stands for a direction component of 0: its inverse stays finite


@dataclass(frozen=True, slots=True)
class Box:
    """Upright box, turned by `yaw` about its vertical axis; seen from outside."""

    centre_m: Point
    half_size_m: Point
    yaw: float = 0.0
    material: str = "plain"
    colour: Point = (0.5, 0.5, 0.5)

    @property
    def bound(self) -> tuple[Point, float]:
        return self.centre_m, float(np.linalg.norm(self.half_size_m))

    def distances(self, origin: Floats, directions: Floats) -> Floats:
        """Multiples [N] of the directions [3, N] at which the box is entered, inf where it is not."""
        local_origin, local = _turn(np.asarray(origin) - self.centre_m, -self.yaw), _turn(directions, -self.yaw)
        enter, leave = 0.0, np.inf
        for start, slope, half_m in zip(local_origin, local, self.half_size_m, strict=True):
            inverse = 1 / np.where(slope == 0, TINY, slope)
            middle, reach = -start * inverse, np.abs(inverse) * half_m
            enter, leave = np.maximum(enter, middle - reach), np.minimum(leave, middle + reach)
        return np.where((enter <= leave) & (enter > 0), enter, np.inf)

    def surface(self, points: Floats) -> tuple[Floats, Floats, NDArray[np.int64]]:
        """Normals [N, 3], points in the box's own frame [N, 3] and the axis [N] of the face of surface points."""
        local = _turn((points - self.centre_m).T, -self.yaw).T
        axis = np.argmax(np.abs(local) - self.half_size_m, axis=1)
        normals = np.zeros_like(local)
        rows = np.arange(len(local))
        normals[rows, axis] = np.sign(local[rows, axis])
        return _turn(normals.T, self.yaw).T, local, axis


@dataclass(frozen=True, slots=True)
class Sphere:
    """A ball; seen from outside."""

    centre_m: Point
    radius_m: float
    material: str = "plain"
    colour: Point = (0.5, 0.5, 0.5)

    @property
    def bound(self) -> tuple[Point, float]:
        return self.centre_m, self.radius_m

    def distances(self, origin: Floats, directions: Floats) -> Floats:
        """Multiples [N] of the directions [3, N] at which the sphere is entered, inf where it is not."""
        return _enter_round(np.asarray(origin) - self.centre_m, directions, self.radius_m)

    def surface(self, points: Floats) -> tuple[Floats, Floats, NDArray[np.int64]]:
        """Normals, points from the centre, and the axis 2, as for a box."""
        local = points - self.centre_m
        return local / self.radius_m, local, np.full(len(local), 2)


@dataclass(frozen=True, slots=True)
class Cylinder:
    """Upright cylinder with a flat top."""

    base_m: Point
    radius_m: float
    height_m: float
    material: str = "plain"
    colour: Point = (0.5, 0.5, 0.5)

    @property
    def bound(self) -> tuple[Point, float]:
        x, y, z = self.base_m
        return (x, y, z + self.height_m / 2), float(np.hypot(self.radius_m, self.height_m / 2))

    def distances(self, origin: Floats, directions: Floats) -> Floats:
        """Multiples [N] of the directions [3, N] at which side or top are met, inf where neither is."""
        origin = np.asarray(origin) - self.base_m
        side = _enter_round(origin[:2], directions[:2], self.radius_m)
        top = _plane_distances(origin[2] - self.height_m, directions[2])
        with np.errstate(invalid="ignore"):
            z = origin[2] + side * directions[2]
            from_axis_m = np.hypot(origin[0] + top * directions[0], origin[1] + top * directions[1])
        side = np.where((z >= 0) & (z <= self.height_m), side, np.inf)
        return np.minimum(side, np.where(from_axis_m <= self.radius_m, top, np.inf))

    def surface(self, points: Floats) -> tuple[Floats, Floats, NDArray[np.int64]]:
        """Normals, points from the base, and the axis (2 on the top, else 0), as for a box."""
        local = points - self.base_m
        on_top = local[:, 2] > self.height_m - 1e-6
        normals = np.where(on_top[:, None], (0, 0, 1), local * (1, 1, 0) / self.radius_m)
        return normals, local, np.where(on_top, 2, 0)


@dataclass(frozen=True, slots=True)
class Ground:
    """The endless plane z = 0."""

    material: str = "plain"
    colour: Point = (0.5, 0.5, 0.5)
    bound = None

    def distances(self, origin: Floats, directions: Floats) -> Floats:
        """Multiples [N] of the directions [3, N] at which the plane is met from above, inf where it is not."""
        return _plane_distances(origin[2], directions[2])

    def surface(self, points: Floats) -> tuple[Floats, Floats, NDArray[np.int64]]:
        """Normals, the points themselves, and the axis 2, as for a box."""
        return np.broadcast_to((0.0, 0.0, 1.0), points.shape), points, np.full(len(points), 2)


@dataclass(frozen=True, slots=True)
class Shell:
    """The inside of an upright, axis-aligned room from `low_m` to `high_m`, seen only through `sides`.

    `sides` are the faces this solid has: "floor", "wall" and "ceiling" may be solids of their own.
    `openings` are pairs (low, high) of corners of boxes; inside one the shell is open.
    """

    low_m: Point
    high_m: Point
    sides: frozenset[str] = frozenset({"floor", "wall", "ceiling"})
    openings: tuple[tuple[Point, Point], ...] = ()
    material: str = "plain"
    colour: Point = (0.5, 0.5, 0.5)
    bound = None

    def distances(self, origin: Floats, directions: Floats) -> Floats:
        """Multiples [N] of the directions [3, N] at which the room is left, inf through other sides and openings."""
        low, high, start = (np.reshape(corner, (3, 1)) for corner in (self.low_m, self.high_m, origin))
        walls = np.where(directions > 0, high, low)
        is_along = directions == 0  # of this axis' walls: never met
        per_axis = np.where(is_along, np.inf, (walls - start) / np.where(is_along, 1, directions))  # [3, N]
        leave = np.minimum(np.minimum(per_axis[0], per_axis[1]), per_axis[2])
        points = start + leave * directions
        wall, ceiling, floor = (side in self.sides for side in ("wall", "ceiling", "floor"))
        is_here = np.where(per_axis[2] <= leave, np.where(directions[2] > 0, ceiling, floor), wall)
        for opening in self.openings:
            first, last = (np.reshape(corner, (3, 1)) for corner in opening)
            is_here &= ~((points >= first) & (points <= last)).all(axis=0)
        return np.where(is_here, leave, np.inf)

    def surface(self, points: Floats) -> tuple[Floats, Floats, NDArray[np.int64]]:
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

    distances: Floats  # [N]
    solid: NDArray[np.int32]  # [N], index into the list of solids


@dataclass(frozen=True, eq=False)
class Solids:
    """Solids with their bounding spheres, ready for casting."""

    solids: tuple[Solid, ...]
    _endless: tuple[int, ...] = field(init=False, repr=False)
    _bounded: NDArray[np.int64] = field(init=False, repr=False)
    _centres_m: Floats = field(init=False, repr=False)
    _radii_m: Floats = field(init=False, repr=False)

    def __post_init__(self) -> None:
        bounds = {index: solid.bound for index, solid in enumerate(self.solids) if solid.bound is not None}
        centres = np.array([centre for centre, _ in bounds.values()], dtype=np.float64).reshape(-1, 3)
        endless = tuple(index for index, solid in enumerate(self.solids) if solid.bound is None)
        object.__setattr__(self, "_endless", endless)
        object.__setattr__(self, "_bounded", np.array(list(bounds), dtype=int))
        object.__setattr__(self, "_centres_m", centres)
        object.__setattr__(self, "_radii_m", np.array([radius for _, radius in bounds.values()], dtype=np.float64))

    def cast(self, origin: Floats, directions: Floats, *, bounded_only: bool = False) -> Hits:
        """First hit of each ray origin + s * direction, s > 0; origin [3], directions [N, 3] of any length."""
        nearest = np.full(len(directions), np.inf)
        solid = np.full(len(directions), NOTHING, dtype=np.int32)
        directions = np.ascontiguousarray(directions.T)  # [3, N]: numpy is fastest along the rays
        if not bounded_only:
            for index in self._endless:
                _keep_nearer(nearest, solid, slice(None), self.solids[index].distances(origin, directions), index)
        for index, rows in self.candidates(origin, directions):
            _keep_nearer(nearest, solid, rows, self.solids[index].distances(origin, directions[:, rows]), index)
        return Hits(nearest, solid)

    def candidates(self, origin: Floats, directions: Floats) -> Iterator[tuple[int, np.ndarray]]:
        """Solids and the rays that pass through their bounding spheres."""
        if not directions.shape[1]:
            return
        to_centre = self._centres_m - origin
        distance_m = np.sqrt((to_centre**2).sum(axis=1))
        # A ray meets a ball of radius r at distance c when its angle to the centre is at most asin(r / c).
        sine = self._radii_m / np.maximum(distance_m, TINY)
        least_cosine = np.where(sine < 1, np.sqrt(np.maximum(1 - sine**2, 0)) - 1e-9, -1)
        to_centre /= np.maximum(distance_m, TINY)[:, None]
        unit = directions / np.sqrt((directions**2).sum(axis=0))
        axis = unit.mean(axis=1)
        axis /= np.linalg.norm(axis) or 1
        spread = np.arccos(np.clip((axis @ unit).min(initial=1), -1, 1))
        off_axis = np.arccos(np.clip(to_centre @ axis, -1, 1))
        seen = off_axis <= spread + np.arccos(np.clip(least_cosine, -1, 1))
        for row in np.flatnonzero(seen):
            x, y, z = to_centre[row]
            rows = np.flatnonzero(unit[0] * x + unit[1] * y + unit[2] * z >= least_cosine[row])
            if len(rows):
                yield self._bounded[row], rows


def _keep_nearer(
    nearest: Floats, solid: NDArray[np.int32], rows: slice | NDArray[np.int64], distances: Floats, index: int
) -> None:
    is_nearer = distances < nearest[rows]
    solid[rows] = np.where(is_nearer, index, solid[rows])
    nearest[rows] = np.minimum(distances, nearest[rows])


def _turn(vectors: Floats, yaw: float) -> Floats:
    """Vectors [3] or [3, N], turned about the vertical axis."""
    if yaw == 0:
        return vectors
    x, y, z = vectors
    cosine, sine = np.cos(yaw), np.sin(yaw)
    return np.stack([cosine * x - sine * y, sine * x + cosine * y, z])


def _enter_round(origin: Floats, directions: Floats, radius_m: float) -> Floats:
    # |origin + s d|^2 = r^2 in as many dimensions as are given; the smaller root if it is ahead.
    squared = sum(slope * slope for slope in directions)
    half_slope = sum(start * slope for start, slope in zip(origin, directions, strict=True))
    discriminant = half_slope * half_slope - squared * (origin @ origin - radius_m**2)
    with np.errstate(invalid="ignore", divide="ignore"):
        enter = (-half_slope - np.sqrt(discriminant)) / squared
        return np.where((discriminant >= 0) & (enter > 0), enter, np.inf)


def _plane_distances(height_m: float, slopes: Floats) -> Floats:
    falls = (slopes < 0) & (height_m > 0)
    return np.where(falls, -height_m / np.where(falls, slopes, -1), np.inf)
