"""Twins of the benchmarks: worlds that no model of this project was trained on, seen by each benchmark's own camera.

Everything is drawn from (branch, seed, data set, scene), and archives carry neither dates nor owners, so that equal
params give equal bytes.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from metricgold.datasets.synthetic import benchmark_worlds as worlds, off_domain_worlds as off_domain
from metricgold.datasets.synthetic.benchmark_archives import (
    write_diode,
    write_eth3d,
    write_flsea,
    write_ibims1,
    write_kitti,
    write_nyuv2,
)
from metricgold.datasets.synthetic.benchmark_recipe import BenchmarkRecipe
from metricgold.datasets.synthetic.raycast import Floats
from metricgold.datasets.synthetic.sensors import exposed_by_night
from metricgold.datasets.synthetic.world import Rng, World
from metricgold.images import resize_intrinsics
from metricgold.params import SynthesizeBenchmark
from metricgold.storage import only_writer, write_aside

# Each benchmark's kinds of places, which its scenes take in turn, under its own names.
Kinds = tuple[tuple[str, Callable[[Rng], World]], ...]
NYUV2: Kinds = (
    ("bedroom", worlds.draw_bedroom),
    ("kitchen", worlds.draw_kitchen),
    ("living_room", worlds.draw_lounge),
    ("office", worlds.draw_office),
)
KITTI: Kinds = (
    ("2011_09_26", worlds.draw_village_street),
    ("2011_09_30", worlds.draw_country_road),
    ("2011_10_03", worlds.draw_town_road),
)
ETH3D: Kinds = (
    ("courtyard", worlds.draw_courtyard),
    ("office", worlds.draw_office),
    ("meadow", worlds.draw_park),
    ("delivery_area", worlds.draw_workshop),
)
DIODE: Kinds = (
    ("indoors", worlds.draw_meeting_room),
    ("outdoor", worlds.draw_car_park),
    ("indoors", worlds.draw_corridor),
    ("outdoor", worlds.draw_courtyard),
    ("indoors", worlds.draw_workshop),
    ("outdoor", worlds.draw_park),
)
IBIMS1: Kinds = (
    ("corridor", worlds.draw_corridor),
    ("office", worlds.draw_office),
    ("meetingroom", worlds.draw_meeting_room),
    ("livingroom", worlds.draw_lounge),
    ("kitchen", worlds.draw_kitchen),
)
FLSEA: Kinds = (
    ("canyons/canyon", off_domain.draw_canyon),
    ("red_sea/site", off_domain.draw_dive_site),
)
NIGHT: Kinds = (
    ("outdoor", off_domain.draw_night_road),
    ("indoors", off_domain.draw_dark_room),
    ("outdoor", off_domain.draw_night_car_park),
    ("outdoor", off_domain.draw_night_court),
)
AERIAL: Kinds = (
    ("outdoor", off_domain.draw_suburb_from_above),
    ("outdoor", off_domain.draw_works_from_above),
    ("outdoor", off_domain.draw_fields_from_above),
)
# Width, height and camera (fx, fy, cx, cy) as published, pixel centres at +0.5. KITTI's cameras differ by date; its
# sizes do too, by some pixels, but frames of one size go through a model together.
KITTI_CAMERAS = {
    "2011_09_26": (1242, 375, (721.5377, 721.5377, 610.0593, 173.354)),
    "2011_09_30": (1242, 375, (707.0912, 707.0912, 602.3873, 183.6104)),
    "2011_10_03": (1242, 375, (718.856, 718.856, 607.6928, 185.7157)),
}
NYUV2_CAMERA = (640, 480, (518.857901174502, 519.469611121275, 326.082449411190, 254.236166334005))
DIODE_CAMERA = (1024, 768, (886.81, 927.06, 512.0, 384.0))
FLSEA_CAMERAS = {
    "canyons/canyon": (968, 608, (1175.3913431656817, 1174.2805075232263, 466.7595428966926, 271.7116633091501)),
    "red_sea/site": (968, 608, (1296.666758476217, 1300.831316354508, 502.00386149846, 276.661712082695)),
}
Published = tuple[int, int, tuple[float, float, float, float]]


def synthesize_benchmark(dataset: str, params: SynthesizeBenchmark, out: Path) -> Path:
    """Render `dataset` (`nyuv2-synthetic`, ...) into the folder `out` as archives of the benchmark's kind.

    The folder is either complete or absent. Returns `out`. Raises ValueError for an unknown data set.
    """
    out = Path(out)
    if dataset not in BENCHMARK_RECIPES:
        raise ValueError(f"cannot synthesize {dataset!r}; known benchmarks are {', '.join(BENCHMARK_RECIPES)}")
    recipe = BENCHMARK_RECIPES[dataset]
    with only_writer(out), write_aside(out, marks=["SHA256SUMS"]) as folder:
        folder.mkdir(parents=True)
        recipe.write(recipe, params, folder)
    return out


def kitti_camera(scene_index: int) -> Published:
    """That of the scene's date."""
    return KITTI_CAMERAS[kind_of(KITTI, scene_index)]


def eth3d_camera(scene_index: int) -> Published:
    """A full-frame DSLR at 20 mm; lens and principal point of each scene are a little different."""
    rng = np.random.default_rng([3, scene_index])
    focal_px = 3410 * rng.uniform(0.985, 1.015)
    return 6048, 4032, (focal_px, focal_px, 3024 + rng.uniform(-30, 30), 2016 + rng.uniform(-30, 30))


def ibims1_camera(scene_index: int) -> Published:
    """A DSLR scaled to 640 x 480, each scene with its own focal length."""
    rng = np.random.default_rng([1, scene_index])
    focal_px = rng.uniform(530, 590)
    return 640, 480, (focal_px, focal_px, 320 + rng.uniform(-6, 6), 240 + rng.uniform(-6, 6))


def kind_of(kinds: Kinds, scene_index: int) -> str:
    """The name of the scene's kind."""
    return kinds[scene_index % len(kinds)][0]


def recipe_of(
    benchmark: str,
    kinds: Kinds,
    camera_of: Callable[[int], Published],
    name_scene: Callable[[int], str],
    write: Callable[[BenchmarkRecipe, SynthesizeBenchmark, Path], None],
    expose: Callable[[Floats, Rng], Floats] | None = None,
) -> BenchmarkRecipe:
    """The twin of a benchmark, whose kinds of scenes take turns."""

    def aspect(scene_index: int) -> float:
        width, height, _ = camera_of(scene_index)
        return width / height

    def intrinsics(scene_index: int, height: int, width: int) -> np.ndarray:
        full_width, full_height, (fx, fy, cx, cy) = camera_of(scene_index)
        published = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
        return resize_intrinsics(published, width / full_width, height / full_height)

    return BenchmarkRecipe(
        f"{benchmark}-synthetic",
        draw_world=lambda rng, scene_index: kinds[scene_index % len(kinds)][1](rng),
        aspect=aspect,
        intrinsics=intrinsics,
        name_scene=name_scene,
        write=write,
        expose=expose,
    )


BENCHMARK_RECIPES: dict[str, BenchmarkRecipe] = {
    recipe.dataset: recipe
    for recipe in (
        recipe_of(
            "nyuv2",
            NYUV2,
            camera_of=lambda scene_index: NYUV2_CAMERA,
            name_scene=lambda scene_index: f"{kind_of(NYUV2, scene_index)}_{9001 + scene_index}",
            write=write_nyuv2,
        ),
        recipe_of(
            "kitti",
            KITTI,
            kitti_camera,
            name_scene=lambda scene_index: f"{kind_of(KITTI, scene_index)}_drive_{9001 + scene_index}_sync",
            write=write_kitti,
        ),
        recipe_of(
            "eth3d",
            ETH3D,
            eth3d_camera,
            name_scene=lambda scene_index: f"{kind_of(ETH3D, scene_index)}_{scene_index + 1}",
            write=write_eth3d,
        ),
        recipe_of(
            "diode",
            DIODE,
            camera_of=lambda scene_index: DIODE_CAMERA,
            name_scene=lambda scene_index: f"{kind_of(DIODE, scene_index)}/scene_{90001 + scene_index}",
            write=write_diode,
        ),
        recipe_of(
            "ibims1",
            IBIMS1,
            ibims1_camera,
            name_scene=lambda scene_index: f"{kind_of(IBIMS1, scene_index)}{scene_index + 1}",
            write=write_ibims1,
        ),
        recipe_of(
            "flsea",
            FLSEA,
            camera_of=lambda scene_index: FLSEA_CAMERAS[kind_of(FLSEA, scene_index)],
            name_scene=lambda scene_index: f"{kind_of(FLSEA, scene_index)}_{9001 + scene_index}",
            write=write_flsea,
        ),
        recipe_of(
            "night",
            NIGHT,
            camera_of=lambda scene_index: DIODE_CAMERA,
            name_scene=lambda scene_index: f"{kind_of(NIGHT, scene_index)}/scene_{91001 + scene_index}",
            write=write_diode,
            expose=exposed_by_night,
        ),
        recipe_of(
            "aerial",
            AERIAL,
            camera_of=lambda scene_index: DIODE_CAMERA,
            name_scene=lambda scene_index: f"{kind_of(AERIAL, scene_index)}/scene_{92001 + scene_index}",
            write=write_diode,
        ),
    )
}
