"""Worlds beyond what models are trained on: streets and rooms at night, the sea bed, towns from a drone.

They are built of the things and materials of the benchmarks' worlds. x and y on the ground, z up, metres. Colours are
sRGB values in [0, 1]; one above 1 glows.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from metricgold.datasets.synthetic.benchmark_worlds import (
    COATS,
    GREENS,
    LACQUERS,
    OAK,
    SLATE,
    Room,
    draw_block,
    draw_broadleaf,
    draw_car_park,
    draw_conifer,
    draw_courtyard,
    draw_dwelling,
    draw_lounge,
    draw_street_light,
    draw_town_road,
    draw_vehicle,
    open_sky,
)
from metricgold.datasets.synthetic.raycast import Box, Cylinder, Ground, Point, Solid, Solids, Sphere
from metricgold.datasets.synthetic.shading import Air, Light
from metricgold.datasets.synthetic.world import SUN_M, Pose, Rng, World, pick

GLOW = ((7.0, 6.2, 4.6), (6.0, 6.4, 7.0))
LAMP_COLOURS = ((2.6, 1.9, 1.0), (1.9, 2.1, 2.3))  # sodium, LED
NO_LIGHT = (0.0, 0.0, 0.0)
SAND, REEF = (0.66, 0.60, 0.46), ((0.46, 0.40, 0.32), (0.52, 0.44, 0.38), (0.36, 0.34, 0.32))
CORALS = ((0.62, 0.30, 0.34), (0.60, 0.46, 0.20), (0.40, 0.30, 0.52), (0.36, 0.48, 0.30))

Lamp = tuple[list[Solid], Light]

# Night


def draw_mast(x: float, y: float, towards: float, kind: int) -> Lamp:
    """A street light whose head glows, with the light below it."""
    head_x = x + 1.0 * towards
    head = Box((head_x, y, 4.86), (0.22, 0.12, 0.03), 0.0, "lacquer", GLOW[kind])
    light = Light((head_x, y, 4.78), LAMP_COLOURS[kind], NO_LIGHT, fade_m=3.6)
    return [*draw_street_light(x, y, towards), head], light


def by_night(day: World, lamps: Sequence[Lamp]) -> World:
    """The same place under a thin moon and a dark sky, with lamps in it."""
    moon = Light((0.4 * SUN_M, -0.5 * SUN_M, 0.8 * SUN_M), (0.012, 0.014, 0.019), (0.008, 0.009, 0.013))
    air = Air(0.003, (0.011, 0.011, 0.015), (0.003, 0.004, 0.007))
    solids = Solids((*day.solids.solids, *(solid for things, _ in lamps for solid in things)))
    return replace(day, solids=solids, light=moon, air=air, lamps=tuple(light for _, light in lamps))


def draw_night_road(rng: Rng) -> World:
    """A town's road with a street light every 24 m on alternate sides."""
    day, kind = draw_town_road(rng), int(rng.integers(2))
    sides = [1 if number % 2 else -1 for number in range(6)]
    lamps = [draw_mast(side * 4.2, -20 + 24.0 * number, -side, kind) for number, side in enumerate(sides)]
    return by_night(day, lamps)


def draw_night_car_park(rng: Rng) -> World:
    """A car park of which some lamps are on."""
    day, kind = draw_car_park(rng), int(rng.integers(2))
    lamps = [
        draw_mast(side * 8.2, y, -side, kind) for side in (-1, 1) for y in (-10.0, 14.0, 38.0) if rng.random() < 0.7
    ]
    return by_night(day, lamps or [draw_mast(8.2, 10.0, -1, kind)])


def draw_night_court(rng: Rng) -> World:
    """A courtyard with three lamps on low posts."""
    lamps: list[Lamp] = []
    for angle in rng.uniform(0, 2) + np.arange(3) * 2.1:
        x, y, kind = 5.5 * np.cos(angle), 5.5 * np.sin(angle), int(rng.integers(2))
        post = Cylinder((x, y, 0), 0.06, 2.6, "lacquer", SLATE)
        ball = Sphere((x, y, 2.78), 0.16, "lacquer", GLOW[kind])
        lamps.append(([post, ball], Light((x, y, 3.05), LAMP_COLOURS[kind], NO_LIGHT, fade_m=2.8)))
    return by_night(draw_courtyard(rng), lamps)


def draw_dark_room(rng: Rng) -> World:
    """A living room in which one floor lamp is on."""
    day = draw_lounge(rng)
    x, y = rng.uniform(-1.2, 1.2, 2)
    post = Cylinder((x, y, 0), 0.03, 1.5, "lacquer", SLATE)
    shade = Cylinder((x, y, 1.5), 0.16, 0.22, "lacquer", GLOW[0])
    lamp = Light((x, y, 1.8), (0.75, 0.55, 0.32), NO_LIGHT, fade_m=1.8)
    return by_night(day, [([post, shade], lamp)])


# Under water


def sea_world(rng: Rng, solids: list[Solid], draw_pose: Callable[[Rng], Pose]) -> World:
    """A sea bed in some metres of coastal water: red fades first, and the veil is greenish blue."""
    turbidity = rng.uniform(0.6, 1.5)
    sun = Light((0.3 * SUN_M, 0.2 * SUN_M, SUN_M), (0.45, 0.95, 0.98), (0.22, 0.50, 0.55))
    fades: Point = (0.42 * turbidity, 0.14 * turbidity, 0.12 * turbidity)
    veils: Point = (0.32 * turbidity, 0.12 * turbidity, 0.11 * turbidity)
    colour = rng.uniform(0.8, 1.2)
    water = Air(fades, (0.03, 0.22 * colour, 0.30), (0.10, 0.48 * colour, 0.58), veil_per_m=veils)
    bed: list[Solid] = [Ground("gravel", SAND), *solids]
    return World(Solids(tuple(bed)), sun, water, draw_pose, clear_m=(0.4, 1.5), flies=True)


def dive_pose(half_width_m: float, reach_m: tuple[float, float]) -> Callable[[Rng], Pose]:
    """A diver's view along y, a little down."""

    def draw_pose(rng: Rng) -> Pose:
        position_m = (rng.uniform(-half_width_m, half_width_m), rng.uniform(*reach_m), rng.uniform(0.7, 2.0))
        return Pose(position_m, rng.uniform(-0.35, 0.35), rng.uniform(-0.35, -0.02))

    return draw_pose


def draw_reef(rng: Rng, number: int, reach_m: tuple[float, float], half_width_m: float) -> list[Solid]:
    """Rocks that are sunk into the bed, with corals between."""
    things: list[Solid] = []
    for _ in range(number):
        x, y, radius_m = rng.uniform(-half_width_m, half_width_m), rng.uniform(*reach_m), rng.uniform(0.15, 0.7)
        if rng.random() < 0.5:
            things.append(Sphere((x, y, 0.2 * radius_m), radius_m, "concrete", pick(rng, REEF)))
        elif rng.random() < 0.6:
            half_m = (radius_m, 0.7 * radius_m, 0.5 * radius_m)
            things.append(Box((x, y, 0.3 * radius_m), half_m, rng.uniform(0, 3), "ashlar", pick(rng, REEF)))
        else:
            stem = Cylinder((x, y, 0), 0.05, radius_m, "bark", pick(rng, CORALS))
            things += [stem, Sphere((x, y, radius_m + 0.1), 0.4 * radius_m, "foliage", pick(rng, CORALS))]
    return things


def draw_canyon(rng: Rng) -> World:
    """A canyon of 3-6 m between walls of boulders, with rocks on its bed."""
    half_m, solids = rng.uniform(1.6, 3.0), list[Solid]()
    for side in (-1, 1):
        for y in np.arange(-4, 34, 1.9):
            radius_m = rng.uniform(1.3, 2.4)
            x = side * (half_m + 0.75 * radius_m + rng.uniform(0, 0.5))
            for z in (0.3, 0.3 + 1.4 * radius_m):
                where = (x + side * rng.uniform(0, 0.6), y + rng.uniform(-0.5, 0.5), z)
                solids.append(Sphere(where, radius_m, pick(rng, ("concrete", "ashlar")), pick(rng, REEF)))
    solids += draw_reef(rng, 26, (1.0, 30.0), half_m)
    return sea_world(rng, solids, dive_pose(0.5 * half_m, (-3.0, 8.0)))


def draw_dive_site(rng: Rng) -> World:
    """A bed of sand with what divers put there: a stepped pyramid, dice, tables for corals, a pier's pillars."""
    solids = draw_reef(rng, 40, (-2.0, 26.0), 8.0)
    x, y = rng.uniform(-2, 2), rng.uniform(5, 10)
    solids += [
        Box((x, y, 0.25 + 0.5 * n), (1.5 - 0.4 * n, 1.5 - 0.4 * n, 0.25), 0.4, "concrete", OAK) for n in range(4)
    ]
    for _ in range(3):
        x, y, half_m = rng.uniform(-4, 4), rng.uniform(2.5, 12), rng.uniform(0.25, 0.5)
        solids.append(Box((x, y, half_m), (half_m, half_m, half_m), rng.uniform(0, 1.5), "ceramic", pick(rng, COATS)))
    for _ in range(3):
        x, y = rng.uniform(-4, 4), rng.uniform(2.5, 12)
        solids += [Cylinder((x, y, 0), 0.12, 0.8, "concrete", SLATE), Cylinder((x, y, 0.8), 0.7, 0.1, "foliage", OAK)]
        solids.append(Sphere((x, y, 1.0), 0.25, "foliage", pick(rng, CORALS)))
    for side in (-1, 1):
        for y in np.arange(4.0, 26, 4.5):
            solids.append(Cylinder((side * 4.8, y, 0), 0.3, 9.0, "ashlar", SLATE))
    return sea_world(rng, solids, dive_pose(2.0, (-3.0, 4.0)))


# From above


def flown_world(rng: Rng, solids: list[Solid]) -> World:
    """A place of some 200 m that a drone photographs, straight down but for a few degrees, from 20 to 120 m."""
    light, air = open_sky(rng, haze_per_m=0.0008)

    def draw_pose(rng: Rng) -> Pose:
        x, y = rng.uniform(-50, 50, 2)
        height_m = np.exp(rng.uniform(np.log(20), np.log(120)))
        return Pose((x, y, height_m), rng.uniform(-np.pi, np.pi), -np.pi / 2 + rng.normal(0, 0.03))

    return World(Solids(tuple(solids)), light, air, draw_pose, clear_m=(3.0, 8.0), flies=True)


def draw_road_from(x: float, y: float, half_x_m: float, half_y_m: float) -> Solid:
    """A road of small stones, 4 cm high."""
    return Box((x, y, 0.02), (half_x_m, half_y_m, 0.02), 0.0, "setts", (0.33, 0.33, 0.34))


def draw_suburb_from_above(rng: Rng) -> World:
    """Rows of houses in gardens along three roads, with trees, hedges and parked cars."""
    solids: list[Solid] = [Ground("meadow"), draw_road_from(0.0, 0.0, 3.0, 150.0)]
    for road_y in (-70.0, 0.0, 70.0):
        solids.append(draw_road_from(0.0, road_y, 150.0, 2.8))
        for side in (-1, 1):
            for x in np.arange(-125, 126, 22.0):
                half_x_m, half_y_m = rng.uniform(4, 6.5), rng.uniform(3.5, 5.5)
                if abs(x) > 8 and rng.random() < 0.85:
                    solids += draw_dwelling(x + rng.uniform(-3, 3), road_y + side * 13, half_x_m, half_y_m, rng)
                if rng.random() < 0.5:
                    solids += draw_vehicle(x + rng.uniform(-8, 8), road_y + side * 3.9, rng, yaw=0.0)
                hedge = (x + 11, road_y + side * 16, 0.7)
                solids.append(Box(hedge, (0.4, 9.0, 0.7), 0.0, "foliage", pick(rng, GREENS)))
    return flown_world(rng, solids + draw_trees(rng, 60))


def draw_trees(rng: Rng, number: int) -> list[Solid]:
    """Trees anywhere within 120 m."""
    trees: list[Solid] = []
    for x, y in rng.uniform(-120, 120, (number, 2)):
        trees += pick(rng, (draw_conifer, draw_broadleaf))(x, y, rng)
    return trees


def draw_works_from_above(rng: Rng) -> World:
    """Halls and office blocks around a car park, with containers, lorries and a belt of trees."""
    solids: list[Solid] = [Ground("car park")]
    for x, y in Room(105, 105, 0).spots(rng, 14, 42.0, 0.0):
        if abs(x) < 12 and abs(y) < 30:
            continue
        if rng.random() < 0.5:
            solids += draw_block(x, y, rng.uniform(8, 14), rng.uniform(8, 16), rng)
        else:
            half_m = (rng.uniform(10, 16), rng.uniform(10, 18), rng.uniform(2.5, 5.0))
            solids.append(Box((x, y, half_m[2]), half_m, 0.0, "sheet metal", pick(rng, COATS)))
    for x, y in rng.uniform(-100, 100, (70, 2)):
        kind = rng.random()
        if kind < 0.6:
            solids += draw_vehicle(x, y, rng, yaw=pick(rng, (0.0, np.pi / 2)))
        else:
            solids.append(
                Box((x, y, 1.3), (3.0, 1.2, 1.3), pick(rng, (0.0, 0.5, 1.57)), "sheet metal", pick(rng, LACQUERS))
            )
    return flown_world(rng, solids + draw_trees(rng, 25))


def draw_fields_from_above(rng: Rng) -> World:
    """Fields, a country road, a farm and rows of trees."""
    solids: list[Solid] = [Ground("country road")]
    for x in (-95.0, -50.0, 50.0, 95.0):
        for y in (-90.0, -30.0, 30.0, 90.0):
            material = pick(rng, ("gravel", "foliage", "boards", "meadow"))
            colour = pick(rng, (*GREENS, (0.55, 0.47, 0.26), (0.42, 0.31, 0.21)))
            solids.append(Box((x, y, 0.05), (20.0, 28.0, rng.uniform(0.05, 0.5)), 0.0, material, colour))
    for side in (-1, 1):
        for y in np.arange(-110, 111, 14.0):
            solids += draw_broadleaf(side * 9.0, y + rng.uniform(0, 5), rng)
    x, y = rng.uniform(20, 45), rng.uniform(-40, 40)
    solids += draw_dwelling(x, y, 6.0, 8.0, rng)
    solids.append(Box((x + 18, y, 3.5), (6.0, 14.0, 3.5), 0.2, "boards", OAK))
    for road_y in np.arange(-90, 91, 30.0):
        solids += draw_vehicle(pick(rng, (-1.6, 1.6)), road_y + rng.uniform(0, 20), rng)
    return flown_world(rng, solids + draw_trees(rng, 20))
