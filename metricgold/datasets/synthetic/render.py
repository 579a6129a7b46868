"""A world and a pose to exact images: radiance, planar depth, ray distance, and which solid each pixel shows."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import numpy as np

from metricgold.datasets.synthetic.raycast import NOTHING, Floats, Hits
from metricgold.datasets.synthetic.shading import Air, shade, through_air
from metricgold.datasets.synthetic.world import Pose, World
from metricgold.params import Synthesize

FOG_PER_M = 0.035
GAMMA = 2.2
SUBPIXELS = ((0.25, 0.25), (0.75, 0.75))  # beside the centre, where two solids meet


@dataclass(frozen=True, slots=True, eq=False)
class RenderedFrame:
    """One frame before it is encoded, exact in float64.

    radiance        float64 [H, W, 3], linear, 1 is about white
    planar_depth_m  float64 [H, W], along the optical axis; inf where nothing was met
    ray_distance_m  float64 [H, W], along the ray; inf where nothing was met
    entity          int32   [H, W], 1.. per solid; -1 where nothing was met
    rays            float64 [H, W, 3], x right, y down, z = 1, through pixel centres
    """

    scene: str
    number: int
    pose_number: int
    variation: str
    pose: Pose
    radiance: np.ndarray
    planar_depth_m: np.ndarray
    ray_distance_m: np.ndarray
    entity: np.ndarray
    rays: np.ndarray

    @property
    def srgb(self) -> np.ndarray:
        """The picture, uint8 [H, W, 3], with gamma 2.2."""
        srgb: np.ndarray = np.rint(255 * np.clip(self.radiance, 0, 1) ** (1 / GAMMA)).astype(np.uint8)
        return srgb


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the scenes of one data set are drawn, photographed, named and packed.

    draw_world        (rng, scene index) -> World
    rays_from_pixels  (scene index, height, width) -> float64 [3, 3] that maps (x, y, 1) in pixels to a ray
    name_scene        (number within its split, split) -> name, in the data set's own manner
    write             (recipe, params, folder): renders every scene and packs it as the publisher does
    variations        the weathers of each pose
    worlds_of         the data set whose worlds these are, where they are not its own
    measure           (frame, rng) -> the frame with what a depth sensor makes of its exact depth; None: as it is
    """

    dataset: str
    draw_world: Callable[[np.random.Generator, int], World]
    rays_from_pixels: Callable[[int, int, int], np.ndarray]
    name_scene: Callable[[int, str], str]
    write: Callable[["Recipe", Synthesize, Path], None]
    variations: tuple[str, ...] = ("clone",)
    worlds_of: str = ""
    measure: Callable[[RenderedFrame, np.random.Generator], RenderedFrame] | None = None

    def scene_name(self, params: Synthesize, scene_index: int) -> str:
        """The name of a scene, which says what split it is in."""
        split, number = params.place(scene_index)
        return self.name_scene(number, split)


def render_scene(recipe: Recipe, params: Synthesize, scene_index: int) -> Iterator[RenderedFrame]:
    """The frames of one scene, exact but for a depth sensor. A pose is followed through all weathers first."""
    seed = [params.seed, crc32((recipe.worlds_of or recipe.dataset).encode()), scene_index]
    world = recipe.draw_world(np.random.default_rng(seed), scene_index)
    size = (params.height, params.width)
    camera = CameraRays(recipe.rays_from_pixels(scene_index, *size), *size)
    scene = recipe.scene_name(params, scene_index)
    num_poses = -(-params.frames_per_scene // len(recipe.variations))
    for pose_number in range(num_poses):
        pose = world.pose(np.random.default_rng([*seed, pose_number]))
        capture = Capture.take(world, camera, pose)
        first = pose_number * len(recipe.variations)
        for number, variation in enumerate(recipe.variations[: params.frames_per_scene - first], first):
            air = world.in_fog(FOG_PER_M) if variation == "fog" else world.air
            frame = capture.frame(air, scene, number, pose_number, variation)
            yield recipe.measure(frame, np.random.default_rng([*seed, number, 1])) if recipe.measure else frame


class CameraRays:
    """Rays of a camera with z = 1, so that their multiples are planar depth."""

    def __init__(self, rays_from_pixels: np.ndarray, height: int, width: int) -> None:
        self.size = (height, width)
        y, x = np.mgrid[:height, :width].reshape(2, -1)

        def through(x: Floats, y: Floats) -> Floats:
            rays: Floats = np.stack([x, y, np.ones_like(x)], axis=-1) @ rays_from_pixels.T
            return rays / rays[..., 2:]

        self.centres = through(x + 0.5, y + 0.5)  # [N, 3]
        self.subpixels = np.stack([through(x + dx, y + dy) for dx, dy in SUBPIXELS])  # [2, N, 3]
        self.ray_lengths: Floats = np.linalg.norm(self.centres, axis=1)  # [N]
        self.pixel_angle = float(np.linalg.norm(self.centres[1] - self.centres[0])) if width > 1 else 0.01


class Sighting(NamedTuple):
    """What N rays met, before the air."""

    directions: Floats  # [N, 3]
    hits: Hits
    radiance: Floats  # [N, 3]


@dataclass(frozen=True, slots=True, eq=False)
class Capture:
    """What a camera met from one pose, before the air: at pixel centres, and at subpixels where two solids meet."""

    camera: CameraRays
    pose: Pose
    centres: Sighting  # of N pixels
    edges: np.ndarray  # [E], those of them where two solids meet
    subpixels: Sighting  # of len(SUBPIXELS) * E rays

    @classmethod
    def take(cls, world: World, camera: CameraRays, pose: Pose) -> "Capture":
        """Cast and shade all rays of the camera at this pose."""
        origin, rotation = np.array(pose.position_m), pose.world_from_camera()

        def sight(rays: Floats) -> Sighting:
            directions = rays @ rotation.T
            hits = world.solids.cast(origin, directions)
            radiance = shade(world.solids, (world.light, *world.lamps), origin, directions, hits, camera.pixel_angle)
            return Sighting(directions, hits, radiance)

        centres = sight(camera.centres)
        edges = np.flatnonzero(solid_borders(centres.hits.solid.reshape(camera.size)))
        return cls(camera, pose, centres, edges, sight(camera.subpixels[:, edges].reshape(-1, 3)))

    @property
    def ray_distance_m(self) -> Floats:
        """float64 [N] from the camera's centre; inf where nothing was met."""
        return self.centres.hits.distances * self.camera.ray_lengths

    def radiance(self, air: Air) -> Floats:
        """float64 [N, 3] through the air; where two solids meet, the mean of the centre and the subpixels."""
        radiance = through_air(air, self.centres.radiance, self.centres.directions, self.ray_distance_m)
        edge_distance_m = self.subpixels.hits.distances * np.tile(self.camera.ray_lengths[self.edges], len(SUBPIXELS))
        finer = through_air(air, self.subpixels.radiance, self.subpixels.directions, edge_distance_m)
        samples = np.concatenate([radiance[None, self.edges], finer.reshape(len(SUBPIXELS), -1, 3)])
        radiance[self.edges] = samples.mean(axis=0)
        return radiance

    def frame(self, air: Air, scene: str, number: int, pose_number: int, variation: str = "clone") -> RenderedFrame:
        """What was captured, seen through the air."""
        size, hits = self.camera.size, self.centres.hits
        return RenderedFrame(
            scene,
            number,
            pose_number,
            variation,
            self.pose,
            radiance=self.radiance(air).reshape(*size, 3),
            planar_depth_m=hits.distances.reshape(size),
            ray_distance_m=self.ray_distance_m.reshape(size),
            entity=np.where(hits.solid == NOTHING, -1, hits.solid + 1).astype(np.int32).reshape(size),
            rays=self.camera.centres.reshape(*size, 3),
        )


def solid_borders(solid: np.ndarray) -> np.ndarray:
    """Pixels bool [H, W] that have another solid beside, above or below them."""
    borders = np.zeros(solid.shape, dtype=bool)
    across, along = solid[:, 1:] != solid[:, :-1], solid[1:] != solid[:-1]
    borders[:, 1:] |= across
    borders[:, :-1] |= across
    borders[1:] |= along
    borders[:-1] |= along
    return borders
