"""What the sensors of the benchmarks measure of an exact frame, with the habits that leave pixels without depth.

Depth is the ray caster's own wherever a sensor gives some. Lasers and infrared light pass through glass, whose pixels
therefore show another depth than the photograph, or none.
"""

from dataclasses import dataclass, replace

import numpy as np

from metricgold.datasets.synthetic.benchmark_materials import GLASS, TABLETOP
from metricgold.datasets.synthetic.raycast import Floats, Shell, Solids
from metricgold.datasets.synthetic.render import RenderedFrame
from metricgold.datasets.synthetic.world import Rng, World

KINECT_M = (0.5, 9.9)
KINECT_PROJECTOR = (-0.075, 0.0, 0.0)  # metres beside the camera; its light does not reach what something hides
BORDER = 8 / 480  # of the image's height, without depth on all four sides
LIDAR = (0.0, -0.08, -0.27)  # above and behind the camera
LIDAR_TOP, LIDAR_STEP, LIDAR_BEAMS = np.radians(2.0), np.radians(0.42), 64
LIDAR_M = (2.0, 84.0)
LIDAR_KEPT = 0.55  # of the points on its rows; the others disagree with the stereo camera
SCANNER = (0.12, -0.05, 0.0)  # a tripod beside the camera's
SCANNER_M = 50.0
JUMP = 1.05  # ratio of neighbouring depths that is an edge
# An RGB-D camera: standard error 1.2 mm + 1.9 mm (z / m - 0.4)^2 (Nguyen, Izadi, Lovell, Modeling Kinect Sensor Noise
# for Improved 3D Reconstruction and Tracking, 3DIMPVT 2012, section 3), no depth near, far, at edges and on dark
# surfaces, and a scale that its calibration has 3 % too large.
RGBD_M = (0.4, 7.0)
RGBD_NOISE_M = (0.0012, 0.0019)
RGBD_BIAS = 1.03
RGBD_DARKEST = 0.03  # luminance, linear
LUMINANCE = (0.2126, 0.7152, 0.0722)
# A camera in the dark: photons are counted one by one, and reading them adds noise.
NIGHT_GAIN = 1.6
NIGHT_ELECTRONS = 500.0  # of white
NIGHT_READ_NOISE = 3.0  # electrons


@dataclass(frozen=True, slots=True, eq=False)
class Shot:
    """An exact frame, the world that it shows, its camera [3, 3], and the chance by which its sensor misses points."""

    frame: RenderedFrame
    world: World
    intrinsics: Floats
    rng: Rng

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.frame.entity.shape
        return height, width

    @property
    def is_glass(self) -> np.ndarray:
        """bool [H, W]."""
        return self.shows([solid.material == GLASS for solid in self.world.solids.solids])

    @property
    def without_glass(self) -> Solids:
        """What stops light that passes through glass."""
        return Solids(tuple(solid for solid in self.world.solids.solids if solid.material != GLASS))

    def shows(self, of_solid: list[bool]) -> np.ndarray:
        """bool [H, W]: pixels of solids for which `of_solid` is true."""
        chosen: np.ndarray = np.array([False, *of_solid])[np.maximum(self.frame.entity, 0)]
        return chosen

    def directions(self, rows: np.ndarray) -> Floats:
        """Rays [N, 3] in the world of the pixels bool [H, W], of which planar depth counts the multiples."""
        directions: Floats = self.frame.rays[rows] @ self.frame.pose.world_from_camera().T
        return directions

    def depth_behind_glass_m(self) -> np.ndarray:
        """Planar depth float64 [H, W] as if there were no glass; inf where nothing is met."""
        depth_m, glass = self.frame.planar_depth_m.copy(), self.is_glass
        depth_m[glass] = self.without_glass.cast(np.array(self.frame.pose.position_m), self.directions(glass)).distances
        return depth_m

    def is_seen_from(self, offset_m: tuple[float, float, float], planar_depth_m: np.ndarray) -> np.ndarray:
        """bool [H, W]: the point of a pixel is in sight from this place in the camera's axes; False without depth."""
        seen: np.ndarray = np.isfinite(planar_depth_m)
        pose = self.frame.pose
        from_m = np.array(pose.position_m) + pose.world_from_camera() @ offset_m
        to_points = np.array(pose.position_m) + planar_depth_m[seen][:, None] * self.directions(seen) - from_m
        reached = self.without_glass.cast(from_m, to_points, bounded_only=True).distances
        seen[seen] = reached >= 1 - 0.01 / np.linalg.norm(to_points, axis=1)
        return seen


def border_px(height: int) -> int:
    """Pixels of NYU's border."""
    return max(1, round(BORDER * height))


def kinect_depth_m(shot: Shot) -> np.ndarray:
    """A structured-light camera: none on glass, near and far, in its projector's shade, and along the border."""
    depth_m, border = shot.frame.planar_depth_m, border_px(shot.size[0])
    measured = np.zeros(shot.size, dtype=bool)
    measured[border:-border, border:-border] = True
    measured &= (depth_m >= KINECT_M[0]) & (depth_m <= KINECT_M[1]) & ~shot.is_glass
    measured &= shot.is_seen_from(KINECT_PROJECTOR, depth_m)
    return np.where(measured, depth_m, 0)


def rgbd_measured(frame: RenderedFrame, rng: Rng) -> RenderedFrame:
    """The frame as an RGB-D camera measures it: noise that grows with the square of depth, a bias, and holes (inf)."""
    exact_m = frame.planar_depth_m
    luminance = frame.radiance @ LUMINANCE
    seen = (exact_m >= RGBD_M[0]) & (exact_m <= RGBD_M[1]) & ~depth_edges(exact_m) & (luminance >= RGBD_DARKEST)
    noise = rng.standard_normal(exact_m.shape)
    depth_m = np.full_like(exact_m, np.inf)
    depth_m[seen] = RGBD_BIAS * exact_m[seen] + rgbd_error_m(exact_m[seen]) * noise[seen]
    return replace(frame, planar_depth_m=depth_m, ray_distance_m=depth_m * np.linalg.norm(frame.rays, axis=-1))


def rgbd_error_m(planar_depth_m: Floats) -> Floats:
    """Standard error in metres of an RGB-D camera at these depths."""
    fixed_m, growing = RGBD_NOISE_M
    return fixed_m + growing * (planar_depth_m - 0.4) ** 2


def exposed_by_night(radiance: Floats, rng: Rng) -> Floats:
    """Linear radiance [H, W, 3] as a sensor counts it in little light; white is still 1."""
    electrons = rng.poisson(np.clip(NIGHT_GAIN * radiance, 0, 4) * NIGHT_ELECTRONS)
    read: Floats = electrons + rng.normal(0, NIGHT_READ_NOISE, radiance.shape)
    return read / NIGHT_ELECTRONS


def lidar_depth_m(shot: Shot) -> np.ndarray:
    """A spinning LiDAR of 64 beams on a car's roof: rows of points, none above 2 degrees and on what it cannot see."""
    depth_m = shot.depth_behind_glass_m()
    points = np.where(np.isfinite(depth_m), depth_m, 0)[..., None] * shot.frame.rays - LIDAR  # camera's axes
    range_m = np.maximum(np.linalg.norm(points, axis=-1), 1e-9)
    beam = (LIDAR_TOP + np.arcsin(np.clip(points[..., 1] / range_m, -1, 1))) / LIDAR_STEP  # from the top one down
    pixel = abs(shot.frame.rays[1, 0, 1] - shot.frame.rays[0, 0, 1]) / LIDAR_STEP
    on_row = (np.abs(beam - np.rint(beam)) <= pixel / 2) & (beam > -0.5) & (beam < LIDAR_BEAMS - 0.5)
    kept = on_row & (shot.rng.random(shot.size) < LIDAR_KEPT)
    kept &= (range_m > LIDAR_M[0]) & (range_m < LIDAR_M[1]) & shot.is_seen_from(LIDAR, depth_m)
    return np.where(kept, depth_m, 0)


def scanner_depth_m(shot: Shot) -> np.ndarray:
    """A laser scanner beside the camera: dense up to 50 m, none on what it cannot see."""
    depth_m = shot.depth_behind_glass_m()
    measured = (depth_m < SCANNER_M) & shot.is_seen_from(SCANNER, depth_m)
    return np.where(measured, depth_m, 0)


def sparse_scan_m(shot: Shot) -> np.ndarray:
    """Points of a laser scanner in a photograph that is finer than they are: the farther, the fewer."""
    depth_m = scanner_depth_m(shot)
    share = np.clip(2.5 / np.maximum(depth_m, 1e-9), 0.12, 0.75)
    return np.where(shot.rng.random(shot.size) < share, depth_m, 0)


def depth_edges(planar_depth_m: np.ndarray) -> np.ndarray:
    """bool [H, W]: pixels beside, above or below which depth is farther by 5 % or more."""
    edges = np.zeros(planar_depth_m.shape, dtype=bool)
    near, far = planar_depth_m * JUMP, planar_depth_m
    edges[:, :-1] |= far[:, 1:] > near[:, :-1]
    edges[:, 1:] |= far[:, :-1] > near[:, 1:]
    edges[:-1] |= far[1:] > near[:-1]
    edges[1:] |= far[:-1] > near[1:]
    return edges


def plane_ids(shot: Shot) -> dict[str, np.ndarray]:
    """uint8 [H, W] for `wall`, `floor` and `table`: the planes of that kind from 1 on, 0 for everything else."""
    solids = shot.world.solids.solids
    normals = surface_normals(shot)
    walls = [isinstance(solid, Shell) and solid.sides == {"wall"} for solid in solids]
    floors = [isinstance(solid, Shell) and solid.sides == {"floor"} for solid in solids]
    tables = [solid.material == TABLETOP for solid in solids]
    # The four walls of a room are one solid: its normals tell them apart.
    facing = np.rint(normals[..., 0]).astype(int) + 3 * np.rint(normals[..., 1]).astype(int) + 5
    level = normals[..., 2] > 0.99
    return {
        "wall": numbered(np.where(shot.shows(walls), facing, 0)),
        "floor": numbered(np.where(shot.shows(floors), 1, 0)),
        "table": numbered(np.where(shot.shows(tables) & level, shot.frame.entity, 0)),
    }


def numbered(ids: np.ndarray) -> np.ndarray:
    """The same planes, uint8, numbered from 1 on without gaps; 0 stays 0."""
    known = np.unique(ids[ids > 0])
    return np.where(ids > 0, np.searchsorted(known, ids) + 1, 0).astype(np.uint8)


def surface_normals(shot: Shot) -> np.ndarray:
    """Normals [H, W, 3] in the world of what pixels show; 0 where they show nothing."""
    normals, entity = np.zeros((*shot.size, 3)), shot.frame.entity
    for number in np.unique(entity[entity > 0]):
        of_solid = entity == number
        points = np.array(shot.frame.pose.position_m) + shot.frame.planar_depth_m[of_solid][:, None] * shot.directions(
            of_solid
        )
        normals[of_solid] = shot.world.solids.solids[number - 1].surface(points)[0]
    return normals
