"""A twin of a benchmark is a zero-shot test only as long as it shares nothing with the worlds that train."""

import ast
import inspect
import sys
from pathlib import Path

import numpy as np
import pytest

from metricgold.datasets.synthetic import benchmark_worlds, off_domain_worlds, training_worlds
from metricgold.datasets.synthetic.benchmark_materials import BENCHMARK_MATERIALS
from metricgold.datasets.synthetic.synthesize import RECIPES
from metricgold.datasets.synthetic.synthesize_benchmark import BENCHMARK_RECIPES
from metricgold.datasets.synthetic.training_materials import TRAINING_MATERIALS
from metricgold.params.sections import Synthesize

TRAINING_FILES = (training_worlds.__file__, inspect.getfile(TRAINING_MATERIALS["plain"]))
BENCHMARK_FILES = (
    benchmark_worlds.__file__,
    off_domain_worlds.__file__,
    inspect.getfile(BENCHMARK_MATERIALS["plaster"]),
)


def worlds_of(recipes, num_scenes=12):
    for recipe in recipes.values():
        for index in range(num_scenes):
            yield recipe.draw_world(np.random.default_rng([7, index]), index)


def files_run_by(work) -> set[str]:
    """Every Python file of which a line ran."""
    files = set()
    sys.setprofile(lambda frame, event, arg: files.add(frame.f_code.co_filename))
    try:
        work()
    finally:
        sys.setprofile(None)
    return files


def test_no_recipe_of_one_branch_runs_while_the_other_draws():
    twins = files_run_by(lambda: list(worlds_of(BENCHMARK_RECIPES)))
    training = files_run_by(lambda: list(worlds_of(RECIPES)))
    assert {benchmark_worlds.__file__, off_domain_worlds.__file__} <= twins and not twins & set(TRAINING_FILES)
    assert training_worlds.__file__ in training and not training & set(BENCHMARK_FILES)


def test_no_module_of_one_branch_names_the_other():
    for files, other in ((BENCHMARK_FILES, "training_"), (TRAINING_FILES, "benchmark_")):
        for file in files:
            tree = ast.parse(Path(file).read_text())
            imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
            assert not [node.module for node in imports if other in (node.module or "")]


def test_materials_are_disjoint_by_name_by_function_and_as_drawn():
    assert not TRAINING_MATERIALS.keys() & BENCHMARK_MATERIALS.keys()
    assert not set(TRAINING_MATERIALS.values()) & set(BENCHMARK_MATERIALS.values())
    twins, training = (
        {solid.material for world in worlds_of(recipes) for solid in world.solids.solids}
        for recipes in (BENCHMARK_RECIPES, RECIPES)
    )
    assert twins <= BENCHMARK_MATERIALS.keys() and training <= TRAINING_MATERIALS.keys()
    assert twins == BENCHMARK_MATERIALS.keys()  # none is idle


def test_no_solid_and_no_light_is_in_both():
    def parts(recipes):
        worlds = list(worlds_of(recipes))
        return {solid for world in worlds for solid in world.solids.solids}, {
            one.colour for world in worlds for one in (world.light, *world.lamps)
        }

    (twin_solids, twin_lights), (solids, lights) = parts(BENCHMARK_RECIPES), parts(RECIPES)
    assert not twin_solids & solids and not twin_lights & lights


def test_no_scene_has_the_name_of_a_training_scene():
    params = Synthesize()
    training = {recipe.scene_name(params, i) for recipe in RECIPES.values() for i in range(params.num_scenes)}
    twins = {recipe.dataset: [recipe.name_scene(i) for i in range(900)] for recipe in BENCHMARK_RECIPES.values()}
    assert all(len(set(names)) == 900 for names in twins.values())
    assert not training & {name for names in twins.values() for name in names}


@pytest.mark.parametrize("dataset", BENCHMARK_RECIPES)
def test_worlds_are_drawn_from_the_seed_and_have_room_for_a_camera(dataset):
    recipe = BENCHMARK_RECIPES[dataset]
    for index in range(12):
        first, again, other = (recipe.draw_world(np.random.default_rng(seed), index) for seed in (3, 3, 4))
        assert first.solids.solids == again.solids.solids != other.solids.solids
        for number in range(3):
            assert first.has_room_at(first.pose(np.random.default_rng(number)))


@pytest.mark.parametrize("name", BENCHMARK_MATERIALS)
def test_a_material_reflects_less_than_it_gets_and_blurs_with_distance(name):
    from metricgold.datasets.synthetic.patterns import Surface

    rng = np.random.default_rng(0)
    u, v = rng.uniform(-20, 20, 4000), rng.uniform(0, 8, 4000)
    axis = rng.integers(0, 3, 4000)
    normals = np.eye(3)[axis]
    colour = np.full((4000, 3), 0.6)
    near, far = (
        BENCHMARK_MATERIALS[name](Surface(normals, u, v, axis), colour, np.full(4000, m)) for m in (0.003, 30.0)
    )
    assert near.shape == far.shape == (4000, 3)
    assert np.isfinite(near).all() and (near >= 0).all() and near.max() < 1.3
    assert far.std() <= near.std() + 1e-9
