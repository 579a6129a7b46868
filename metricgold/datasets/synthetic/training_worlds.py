"""Training worlds drawn from a seed: rooms, streets, gardens and halls, with furniture of its usual size.

x and y on the ground, z up, metres. Colours are sRGB values in [0, 1].
"""

import numpy as np

from metricgold.datasets.synthetic.raycast import Box, Cylinder, Ground, Point, Shell, Solid, Solids, Sphere
from metricgold.datasets.synthetic.shading import Air, Light
from metricgold.datasets.synthetic.world import SUN_M, Pose, Rng, World, pick

WOOD = (0.55, 0.36, 0.20)
WHITE = (0.85, 0.85, 0.82)
PAINTS = ((0.80, 0.15, 0.12), (0.12, 0.30, 0.75), (0.90, 0.70, 0.10), (0.12, 0.55, 0.25), (0.85, 0.85, 0.85))
FABRICS = ((0.45, 0.20, 0.20), (0.20, 0.30, 0.50), (0.35, 0.42, 0.30), (0.50, 0.45, 0.40))
FACADES = ((0.72, 0.60, 0.45), (0.62, 0.35, 0.27), (0.70, 0.70, 0.66), (0.75, 0.68, 0.50), (0.50, 0.55, 0.60))


def _sun(rng: Rng, haze_per_m: float) -> tuple[Light, Air]:
    azimuth, height = rng.uniform(0, 2 * np.pi), rng.uniform(0.6, 1.0)
    level = SUN_M * np.cos(height)
    position_m = (level * np.cos(azimuth), level * np.sin(azimuth), SUN_M * np.sin(height))
    light = Light(position_m, colour=(1.3, 1.2, 1.0), ambient=(0.55, 0.60, 0.68))
    return light, Air(haze_per_m, horizon=(0.62, 0.70, 0.80), zenith=(0.20, 0.38, 0.75))


def _lamp(position_m: Point, fade_m: float) -> Light:
    return Light(position_m, colour=(1.9, 1.7, 1.4), ambient=(0.40, 0.40, 0.42), fade_m=fade_m)


# Things


def _car(x: float, y: float, colour: Point) -> list[Solid]:
    # 4.5 x 1.8 x 1.5 m, along y. Boxes are long along their own x so that wheels sit on the long faces.
    body = Box((x, y, 0.50), (2.25, 0.90, 0.40), np.pi / 2, "car body", colour)
    return [body, Box((x, y - 0.2, 1.20), (1.20, 0.80, 0.30), np.pi / 2, "car cabin", colour)]


def _tree(x: float, y: float, rng: Rng) -> list[Solid]:
    crown_m = rng.uniform(1.3, 1.8)
    trunk = Cylinder((x, y, 0), 0.15, 3.0, "plain", (0.35, 0.25, 0.18))
    return [trunk, Sphere((x, y, 2.6 + crown_m), crown_m, "leaves", (0.25, 0.45, 0.18))]


def _post(x: float, y: float) -> Solid:
    return Cylinder((x, y, 0), 0.15, 1.7, "plain", (0.85, 0.25, 0.10))


def _table(x: float, y: float, yaw: float) -> list[Solid]:
    across = np.array([np.cos(yaw), np.sin(yaw)]) * 0.6
    top = Box((x, y, 0.72), (0.75, 0.40, 0.03), yaw, "plain", WOOD)
    legs = [
        Box((x + s * across[0], y + s * across[1], 0.345), (0.04, 0.35, 0.345), yaw, "plain", WOOD) for s in (-1, 1)
    ]
    return [top, *legs]


def _seat(x: float, y: float, yaw: float, half_size_m: Point, back_m: Point, colour: Point) -> list[Solid]:
    """A block with a back along its rear edge; back_m: how far behind the middle, half its depth, half its height."""
    behind_m, half_depth_m, half_height_m = back_m
    rear_x, rear_y = np.array([-np.sin(yaw), np.cos(yaw)]) * behind_m
    back = (half_size_m[0], half_depth_m, half_height_m)
    return [
        Box((x, y, half_size_m[2]), half_size_m, yaw, "plain", colour),
        Box((x + rear_x, y + rear_y, half_height_m), back, yaw, "plain", colour),
    ]


def draw_furniture(x: float, y: float, rng: Rng) -> list[Solid]:
    """A table, sofa, chair, ball, box or lamp."""
    yaw = rng.choice([0, np.pi / 2]) + rng.uniform(-0.3, 0.3)
    kind = rng.integers(6)
    if kind == 0:
        return _table(x, y, yaw)
    if kind == 1:
        return _seat(x, y, yaw, (0.95, 0.42, 0.22), (0.35, 0.12, 0.45), pick(rng, FABRICS))  # a sofa
    if kind == 2:
        return _seat(x, y, yaw, (0.22, 0.22, 0.23), (0.2, 0.03, 0.47), pick(rng, FABRICS))  # a chair
    if kind == 3:
        return [Sphere((x, y, 0.3), 0.3, "plain", PAINTS[0])]
    if kind == 4:
        return [Box((x, y, 0.25), (0.25, 0.25, 0.25), yaw, "plain", pick(rng, PAINTS[1:4]))]
    return [
        Cylinder((x, y, 0), 0.04, 1.5, "plain", (0.2, 0.2, 0.2)),
        Sphere((x, y, 1.6), 0.18, "plain", (1, 0.95, 0.8)),
    ]


def _against_wall(
    side: int,
    along_m: float,
    half_x_m: float,
    half_y_m: float,
    half_size_m: Point,
    z: float,
    material: str = "plain",
    colour: Point = WHITE,
) -> Box:
    """A box with its back to wall `side` (0: -x, 1: +x, 2: -y, 3: +y); half_size_m = along, out of the wall, up."""
    along, out, up = half_size_m
    sign = 1 if side % 2 else -1
    if side < 2:
        return Box((sign * (half_x_m - out), along_m, z), (out, along, up), 0.0, material, colour)
    return Box((along_m, sign * (half_y_m - out), z), (along, out, up), 0.0, material, colour)


# Worlds


def draw_room(rng: Rng) -> World:
    """A furnished room of 3-15 m, 2.7 m high, with a door and a window through which nothing is seen."""
    scale = np.exp(rng.uniform(0, np.log(3)))  # from a bedroom to a loft
    half_x_m, half_y_m, height_m = scale * rng.uniform(1.6, 2.2), scale * rng.uniform(1.8, 2.5), 2.7
    window_side, door_side = rng.permutation(4)[:2]
    shell = draw_shell(rng, half_x_m, half_y_m, height_m, window_side)
    solids: list[Solid] = [*shell, *draw_wall_pieces(rng, half_x_m, half_y_m, window_side, door_side)]
    for _ in range(round(scale * rng.integers(3, 6))):
        x, y = rng.uniform(-0.75, 0.75, 2) * (half_x_m, half_y_m)
        solids += draw_furniture(x, y, rng)
    lamp_x, lamp_y = rng.uniform(-0.3, 0.3, 2) * (half_x_m, half_y_m)
    solids.append(Sphere((lamp_x, lamp_y, height_m - 0.1), 0.15, "plain", (1, 1, 1)))

    def draw_pose(rng: Rng) -> Pose:
        x, y = rng.uniform(-0.85, 0.85, 2) * (half_x_m - 0.4, half_y_m - 0.4)
        towards = np.arctan2(x, -y) if np.hypot(x, y) > 1e-6 else 0.0  # yaw that looks at the middle
        return Pose((x, y, rng.uniform(1.35, 1.55)), towards + rng.uniform(-0.7, 0.7), rng.uniform(-0.35, -0.05))

    light = _lamp((lamp_x, lamp_y, height_m - 0.3), fade_m=4.0 * scale)
    return World(Solids(tuple(solids)), light, Air(0.0, (2.2, 2.4, 2.6), (2.2, 2.4, 2.6)), draw_pose)


def draw_shell(rng: Rng, half_x_m: float, half_y_m: float, height_m: float, window_side: int) -> list[Solid]:
    """Floor, walls with a window, and ceiling."""
    low, high = (-half_x_m, -half_y_m, 0.0), (half_x_m, half_y_m, height_m)
    floor_material, floor_colour = (
        pick(rng, ("tiles", "planks")),
        pick(rng, ((0.75, 0.70, 0.62), (0.62, 0.42, 0.25))),
    )
    paint = pick(rng, ((0.85, 0.82, 0.72), (0.72, 0.80, 0.82), (0.82, 0.76, 0.78), (0.78, 0.83, 0.74)))
    pane = _against_wall(window_side, rng.uniform(-0.8, 0.8), half_x_m, half_y_m, (0.7, 0.05, 0.6), 1.5)
    (x, y, z), (half_width_m, half_depth_m, half_height_m) = pane.centre_m, pane.half_size_m
    opening = (
        (x - half_width_m - 0.01, y - half_depth_m - 0.01, z - half_height_m - 0.01),
        (x + half_width_m + 0.01, y + half_depth_m + 0.01, z + half_height_m + 0.01),
    )
    return [
        Shell(low, high, frozenset({"floor"}), (), floor_material, floor_colour),
        Shell(low, high, frozenset({"wall"}), (opening,), "wall", paint),
        Shell(low, high, frozenset({"ceiling"}), (), "plain", WHITE),
    ]


def draw_wall_pieces(rng: Rng, half_x_m: float, half_y_m: float, window_side: int, door_side: int) -> list[Solid]:
    """A door of 0.9 x 2 m, and shelves and pictures on the walls that have neither door nor window."""
    room = (half_x_m, half_y_m)
    pieces: list[Solid] = [_against_wall(door_side, rng.uniform(-1, 1), *room, (0.45, 0.03, 1.0), 1.0, "door", WOOD)]
    for side in set(range(4)) - {window_side, door_side}:
        if rng.random() < 0.7:
            pieces.append(_against_wall(side, rng.uniform(-1.2, 1.2), *room, (0.6, 0.18, 1.0), 1.0, "shelf", WOOD))
        else:
            paint = pick(rng, PAINTS[:4])
            pieces.append(_against_wall(side, rng.uniform(-1, 1), *room, (0.5, 0.02, 0.35), 1.6, "plain", paint))
    return pieces


def draw_street(rng: Rng) -> World:
    """A straight street along y between rows of houses, with parked and driving cars, trees, posts and lamps."""
    solids: list[Solid] = [Ground("street")]
    for side in (-1, 1):
        pavement = Box((side * 4.75, 100, 0.07), (1.25, 160, 0.07), 0.0, "slabs", (0.62, 0.60, 0.57))
        solids += [pavement, *draw_houses(rng, side), *draw_pavement(rng, side)]
    for y in np.arange(-30, 160, 25):
        if rng.random() < 0.7:
            lane = rng.choice([-1.75, 1.75])
            solids += _car(lane, y + rng.uniform(0, 12), pick(rng, PAINTS))
    light, air = _sun(rng, haze_per_m=0.006)

    def draw_pose(rng: Rng) -> Pose:
        position_m = (1.75 + rng.uniform(-0.4, 0.4), rng.uniform(-30, 30), rng.uniform(1.55, 1.65))
        return Pose(position_m, rng.uniform(-0.2, 0.2), rng.uniform(-0.06, 0.0))

    return World(Solids(tuple(solids)), light, air, draw_pose)


def draw_houses(rng: Rng, side: int) -> list[Solid]:
    """A row along the street, with gaps here and there."""
    houses: list[Solid] = []
    y = -40.0
    while y < 190:
        length_m, height_m = 3.0 * rng.integers(3, 7), 3.0 * rng.integers(2, 6)
        x = side * (6.5 + rng.uniform(0, 1.5) + 5)
        half_size_m = (5, length_m / 2, height_m / 2)
        houses.append(Box((x, y + length_m / 2, height_m / 2), half_size_m, 0.0, "facade", pick(rng, FACADES)))
        y += length_m + rng.choice([0.0, 0.0, 4.0, 9.0])
    return houses


def draw_pavement(rng: Rng, side: int) -> list[Solid]:
    """Trees, posts, lamps and parked cars on one side of the street."""
    things: list[Solid] = []
    for y in np.arange(-40, 140, 12.0):
        kind = rng.integers(5)
        if kind == 0:
            things += _tree(side * 5.5, y, rng)
        elif kind == 1:
            things.append(_post(side * 4.0, y))
        elif kind == 2:
            things.append(Cylinder((side * 3.8, y, 0), 0.10, 6.0, "plain", (0.45, 0.45, 0.48)))
        elif side > 0 or rng.random() < 0.5:
            things += _car(side * 4.6, y, pick(rng, PAINTS))
    return things


def draw_garden(rng: Rng) -> World:
    """A path through lawns with trees, brick walls, crates, boulders and a house or two under the sky."""
    solids: list[Solid] = [Ground("garden")]
    for y in np.arange(-12, 48, 3.0):
        x = rng.choice([-1, 1]) * rng.uniform(2.0, 9.0)
        solids += draw_garden_thing(x, y + rng.uniform(0, 3), rng)
    for side in (-1, 1):
        if rng.random() < 0.7:
            y = rng.uniform(0, 30)
            solids.append(Box((side * rng.uniform(3.5, 8), y, 0.75), (0.15, 8, 0.75), 0.0, "brick", (0.62, 0.33, 0.25)))
        for y in (rng.uniform(0, 12), rng.uniform(28, 45)):
            x, storeys = side * rng.uniform(14, 18), rng.integers(1, 4)
            solids.append(Box((x, y, 1.5 * storeys), (4.5, 6.0, 1.5 * storeys), 0.0, "facade", pick(rng, FACADES)))
    solids += [Box((0, 62, 1.5), (30, 0.2, 1.5), 0.0, "brick", (0.62, 0.33, 0.25))]
    light, air = _sun(rng, haze_per_m=0.010)

    def draw_pose(rng: Rng) -> Pose:
        position_m = (rng.uniform(-1.2, 1.2), rng.uniform(-12, 25), rng.uniform(1.4, 1.6))
        return Pose(position_m, rng.uniform(-0.5, 0.5), rng.uniform(-0.15, -0.05))

    return World(Solids(tuple(solids)), light, air, draw_pose)


def draw_garden_thing(x: float, y: float, rng: Rng) -> list[Solid]:
    """A tree, crate, boulder or post."""
    kind = rng.integers(4)
    if kind == 0:
        return _tree(x, y, rng)
    if kind == 1:
        return [Box((x, y, 0.5), (0.5, 0.5, 0.5), rng.uniform(0, 1.5), "crate", WOOD)]
    if kind == 2:
        return [Sphere((x, y, 0.4), 0.7, "plain", (0.5, 0.5, 0.48))]
    return [_post(x, y)]


def draw_hall(rng: Rng) -> World:
    """A hall of 12-24 m with 1 m floor slabs, crates of 1 m, racks, columns and a gate to the open."""
    half_x_m, half_y_m, height_m = rng.uniform(5, 8), rng.uniform(7, 12), 5.0
    gate = ((-2.0, half_y_m - 0.1, -0.1), (2.0, half_y_m + 0.1, 3.5))
    low, high = (-half_x_m, -half_y_m, -1.0), (half_x_m, half_y_m, height_m)
    solids: list[Solid] = [
        Ground("slabs", (0.62, 0.61, 0.58)),
        Shell(low, high, frozenset({"wall"}), (gate,), "brick", (0.68, 0.52, 0.42)),
        Shell(low, high, frozenset({"ceiling"}), (), "plain", (0.6, 0.62, 0.65)),
    ]
    for side in (-1, 1):
        for y in np.arange(-half_y_m + 2, half_y_m - 1, 4.0):
            solids.append(Cylinder((side * 0.55 * half_x_m, y, 0), 0.25, height_m, "plain", (0.75, 0.72, 0.2)))
        solids.append(
            Box((side * (half_x_m - 0.5), rng.uniform(-2, 2), 1.2), (0.5, 3.0, 1.2), 0.0, "shelf", (0.2, 0.35, 0.6))
        )
    for _ in range(rng.integers(5, 10)):
        x, y = rng.uniform(-0.85, 0.85, 2) * (half_x_m, half_y_m)
        solids += [Box((x, y, 0.5), (0.5, 0.5, 0.5), rng.uniform(0, 1.5), "crate", WOOD)]
    for _ in range(2):
        x, y = rng.uniform(-0.7, 0.7, 2) * (half_x_m, half_y_m)
        solids.append(_post(x, y))

    def draw_pose(rng: Rng) -> Pose:
        x, y = rng.uniform(-0.9, 0.9) * (half_x_m - 1), rng.uniform(-0.9, 0.2) * (half_y_m - 1)
        return Pose(
            (x, y, rng.uniform(1.4, 1.6)), np.arctan2(x, 4.0) + rng.uniform(-0.5, 0.5), rng.uniform(-0.15, -0.05)
        )

    air = Air(0.010, horizon=(0.62, 0.70, 0.80), zenith=(0.20, 0.38, 0.75))
    return World(Solids(tuple(solids)), _lamp((0.0, 0.0, height_m - 0.2), fade_m=9.0), air, draw_pose)


# Extreme ranges


def draw_tabletop(rng: Rng) -> World:
    """A table with things of 3-20 cm on it, seen from 0.2 m on, in a room of 4-6 m."""
    half_x_m, half_y_m, top_m = rng.uniform(2.0, 3.0), rng.uniform(2.0, 3.0), 0.75
    solids: list[Solid] = [
        *draw_shell(rng, half_x_m, half_y_m, 2.7, window_side=int(rng.integers(4))),
        Box((0, 0.3, top_m - 0.02), (0.8, 0.7, 0.02), 0.0, "planks", pick(rng, (WOOD, WHITE))),
        *(Box((x, y, 0.36), (0.03, 0.03, 0.36), 0.0, "plain", WOOD) for x in (-0.75, 0.75) for y in (-0.35, 0.95)),
    ]
    for x, y in rng.uniform((-0.7, -0.15), (0.7, 0.9), (14, 2)):
        solids.append(draw_small_thing(x, y, top_m, rng))
    light = _lamp((rng.uniform(-0.5, 0.5), rng.uniform(-0.5, 0.5), 2.4), fade_m=4.0)

    def draw_pose(rng: Rng) -> Pose:
        position_m = (rng.uniform(-0.4, 0.4), rng.uniform(-0.7, -0.35), top_m + rng.uniform(0.10, 0.35))
        return Pose(position_m, rng.uniform(-0.35, 0.35), rng.uniform(-0.6, -0.2))

    bright = (2.2, 2.4, 2.6)
    air = Air(0.0, bright, bright)
    return World(Solids(tuple(solids)), light, air, draw_pose, clear_m=(0.15, 0.4), flies=True)


def draw_small_thing(x: float, y: float, z: float, rng: Rng) -> Solid:
    """A ball, a can, a box or a row of books, standing at a height of z."""
    size_m, colour, kind = rng.uniform(0.015, 0.07), pick(rng, PAINTS), rng.integers(4)
    if kind == 0:
        return Sphere((x, y, z + size_m), size_m, "plain", colour)
    if kind == 1:
        return Cylinder((x, y, z), 0.6 * size_m, 2.2 * size_m, "plain", colour)
    if kind == 2:
        return Box((x, y, z + size_m), (size_m, 0.7 * size_m, size_m), rng.uniform(0, 3), "crate", WOOD)
    return Box((x, y, z + 0.1), (0.12, 0.07, 0.1), rng.uniform(-0.6, 0.6), "shelf", WOOD)


def draw_valley(rng: Rng) -> list[Solid]:
    """A valley along y with houses, trees and towers, closed by hills and woods before 500 m."""
    solids: list[Solid] = [
        Ground("garden"),
        Shell((-330, -60, -1), (330, 400, rng.uniform(12, 26)), frozenset({"wall"}), (), "leaves", (0.20, 0.34, 0.16)),
    ]
    for _ in range(7):
        x, y, radius_m = rng.uniform(-300, 300), rng.uniform(200, 330), rng.uniform(80, 160)
        solids.append(Sphere((x, y + 0.4 * radius_m, -0.72 * radius_m), radius_m, "leaves", (0.24, 0.38, 0.18)))
    for _ in range(40):
        y = np.exp(rng.uniform(np.log(18), np.log(350)))
        x, storeys = rng.uniform(-0.9, 0.9) * y + rng.choice([-1, 1]) * 4, rng.integers(1, 5)
        half_m = (rng.uniform(4, 9), rng.uniform(4, 9), 1.5 * storeys)
        solids.append(Box((x, y, half_m[2]), half_m, rng.uniform(0, 1.5), "facade", pick(rng, FACADES)))
    for _ in range(40):
        y = np.exp(rng.uniform(np.log(7), np.log(200)))
        solids += _tree(rng.uniform(-0.9, 0.9) * y + rng.choice([-1, 1]) * 2.5, y, rng)
    tower = (rng.uniform(-60, 60), rng.uniform(80, 300), 0)
    return [*solids, Cylinder(tower, 4.0, rng.uniform(30, 60), "brick", (0.62, 0.33, 0.25))]


def draw_vista(rng: Rng) -> World:
    """A valley seen from a hillside of 2-40 m, up to 500 m away."""
    light, air = _sun(rng, haze_per_m=0.0012)

    def draw_pose(rng: Rng) -> Pose:
        height_m = np.exp(rng.uniform(np.log(2), np.log(40)))
        position_m = (rng.uniform(-3, 3), rng.uniform(-20, 5), height_m)
        return Pose(position_m, rng.uniform(-0.3, 0.3), rng.uniform(-0.12, 0.0))

    return World(Solids(tuple(draw_valley(rng))), light, air, draw_pose, flies=True)


def draw_balcony(rng: Rng) -> World:
    """The same valley behind a balcony's rail with pots of flowers, 0.2-1 m before the camera."""
    light, air = _sun(rng, haze_per_m=0.0012)
    height_m = rng.uniform(5, 25)
    rail_m = height_m - rng.uniform(0.18, 0.3)
    solids = draw_valley(rng)
    solids.append(Box((0, 0.0, rail_m), (2.5, 0.025, 0.025), 0.0, "planks", WOOD))
    solids += [
        Cylinder((x, 0.0, rail_m - 1.0), 0.012, 1.0, "plain", (0.3, 0.3, 0.32)) for x in np.arange(-2.4, 2.5, 0.14)
    ]
    for x in rng.uniform(-1.2, 1.2, 4):
        solids += [
            Box((x, 0.1, rail_m - 0.02), (0.16, 0.08, 0.08), 0.0, "crate", (0.60, 0.32, 0.22)),
            Sphere((x, 0.1, rail_m + 0.13), rng.uniform(0.07, 0.13), "leaves", (0.25, 0.45, 0.18)),
        ]
    solids.append(Box((0, -0.4, height_m - 1.6), (2.6, 0.5, 0.1), 0.0, "slabs", (0.62, 0.60, 0.57)))

    def draw_pose(rng: Rng) -> Pose:
        position_m = (rng.uniform(-0.9, 0.9), rng.uniform(-0.75, -0.3), height_m)
        return Pose(position_m, rng.uniform(-0.35, 0.35), rng.uniform(-0.25, 0.0))

    return World(Solids(tuple(solids)), light, air, draw_pose, clear_m=(0.15, 0.5), flies=True)
