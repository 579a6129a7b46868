"""How the twin of a benchmark is drawn and photographed: a branch of its own beside the training worlds'."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from zlib import crc32

import numpy as np

from metricgold.datasets.synthetic.raycast import Floats
from metricgold.datasets.synthetic.render import CameraRays, Capture
from metricgold.datasets.synthetic.sensors import Shot
from metricgold.datasets.synthetic.world import Rng, World
from metricgold.params import SynthesizeBenchmark

BRANCH = crc32(b"benchmark")  # joins every seed: no draw is one of a training world


@dataclass(frozen=True, slots=True)
class BenchmarkRecipe:
    """How the scenes of one twin are drawn, photographed, named and packed.

    draw_world  (rng, scene index) -> World
    aspect      (scene index) -> width over height
    intrinsics  (scene index, height, width) -> float64 [3, 3]
    name_scene  (scene index) -> name, in the benchmark's own manner
    write       (recipe, params, folder): renders every scene and packs it as the publisher does
    expose      (radiance, rng) -> the radiance as a noisy camera takes it; None: as it is
    """

    dataset: str
    draw_world: Callable[[Rng, int], World]
    aspect: Callable[[int], float]
    intrinsics: Callable[[int, int, int], np.ndarray]
    name_scene: Callable[[int], str]
    write: Callable[["BenchmarkRecipe", SynthesizeBenchmark, Path], None]
    expose: Callable[[Floats, Rng], Floats] | None = None

    def size(self, scene_index: int, params: SynthesizeBenchmark) -> tuple[int, int]:
        """Height and width of the scene's frames."""
        return params.height, round(params.height * self.aspect(scene_index))


def take_shots(recipe: BenchmarkRecipe, params: SynthesizeBenchmark, scene_index: int) -> Iterator[Shot]:
    """The frames of one scene, exact, each from a place of its own."""
    seed = [BRANCH, params.seed, crc32(recipe.dataset.encode()), scene_index]
    world = recipe.draw_world(np.random.default_rng(seed), scene_index)
    height, width = recipe.size(scene_index, params)
    intrinsics = recipe.intrinsics(scene_index, height, width)
    camera = CameraRays(np.linalg.inv(intrinsics), height, width)
    for number in range(params.frames_per_scene):
        pose = world.pose(np.random.default_rng([*seed, number]))
        frame = Capture.take(world, camera, pose).frame(world.air, recipe.name_scene(scene_index), number, number)
        if recipe.expose is not None:
            rng = np.random.default_rng([*seed, number, 2])
            frame = replace(frame, radiance=recipe.expose(frame.radiance, rng))
        yield Shot(frame, world, intrinsics, np.random.default_rng([*seed, number, 1]))
