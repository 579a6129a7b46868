"""Worlds of the benchmarks' twins: dwellings, offices, halls, courtyards, streets and parks, drawn from a seed.

None of the training worlds' recipes, things or materials is used here, so that a model which was trained on those has
seen nothing of these; they are built of the same solids, in the sizes that such things have. x and y on the ground,
z up, metres. Colours are sRGB values in [0, 1].
"""

from typing import NamedTuple

import numpy as np

from metricgold.datasets.synthetic.benchmark_materials import GLASS, TABLETOP
from metricgold.datasets.synthetic.raycast import Box, Cylinder, Ground, Point, Shell, Solid, Solids, Sphere
from metricgold.datasets.synthetic.shading import Air, Light
from metricgold.datasets.synthetic.world import SUN_M, Pose, Rng, World, pick

OAK, WALNUT, BEECH = (0.62, 0.47, 0.30), (0.36, 0.25, 0.17), (0.74, 0.60, 0.42)
WOODS = (OAK, WALNUT, BEECH)
CHALK, STEEL, SLATE = (0.88, 0.87, 0.84), (0.55, 0.57, 0.60), (0.27, 0.29, 0.32)
UPHOLSTERY = ((0.26, 0.36, 0.35), (0.55, 0.35, 0.25), (0.42, 0.42, 0.48), (0.62, 0.56, 0.44))
WALL_COLOURS = ((0.90, 0.88, 0.83), (0.80, 0.84, 0.80), (0.86, 0.80, 0.72), (0.74, 0.78, 0.84))
COATS = ((0.86, 0.80, 0.66), (0.80, 0.66, 0.55), (0.78, 0.80, 0.80), (0.66, 0.70, 0.62), (0.88, 0.86, 0.82))
LACQUERS = ((0.55, 0.57, 0.60), (0.14, 0.15, 0.17), (0.70, 0.71, 0.72), (0.30, 0.10, 0.12), (0.10, 0.22, 0.36))
GREENS = ((0.24, 0.36, 0.14), (0.32, 0.40, 0.16), (0.17, 0.28, 0.15))


class Room(NamedTuple):
    """Half the inner size of a room around the origin, and its height."""

    half_x_m: float
    half_y_m: float
    height_m: float

    def at_wall(
        self,
        side: int,
        along_m: float,
        half_size_m: Point,
        z_m: float,
        material: str,
        colour: Point,
        off_m: float = 0.0,
    ) -> Box:
        """A box with its back to wall `side` (0: +y, then anticlockwise); half_size_m: along, out of the wall, up."""
        x, y = self._on_wall(side, along_m, half_size_m[1] + off_m)
        return Box((x, y, z_m), half_size_m, side * np.pi / 2, material, colour)

    def opening(
        self, side: int, along_m: float, half_width_m: float, low_m: float, high_m: float
    ) -> tuple[Point, Point]:
        """Corners of a hole in wall `side`."""
        ends = [self._on_wall(side, along_m + sign * half_width_m, 0.02 * sign) for sign in (-1, 1)]
        (low_x, low_y), (high_x, high_y) = np.min(ends, axis=0), np.max(ends, axis=0)
        return (low_x, low_y, low_m), (high_x, high_y, high_m)

    def half_length_m(self, side: int) -> float:
        """Half the length of wall `side`."""
        return self.half_y_m if side % 2 else self.half_x_m

    def _on_wall(self, side: int, along_m: float, out_m: float) -> tuple[float, float]:
        reach_m = (self.half_x_m if side % 2 else self.half_y_m) - out_m
        sine, cosine = np.sin(side * np.pi / 2), np.cos(side * np.pi / 2)
        return cosine * along_m - sine * reach_m, sine * along_m + cosine * reach_m

    def spots(self, rng: Rng, number: int, apart_m: float, margin_m: float) -> list[tuple[float, float]]:
        """At most `number` places on the floor, `apart_m` or more from each other, `margin_m` from the walls."""
        reach = np.maximum((self.half_x_m - margin_m, self.half_y_m - margin_m), 0.1)
        found: list[tuple[float, float]] = []
        for x, y in rng.uniform(-1, 1, (12 * number, 2)) * reach:
            if len(found) < number and all(np.hypot(x - a, y - b) >= apart_m for a, b in found):
                found.append((x, y))
        return found


# Light


def ceiling_light(room: Room, rng: Rng) -> Light:
    """A lamp under the ceiling, warm or cold."""
    colour = pick(rng, ((1.7, 1.6, 1.45), (1.5, 1.6, 1.7)))
    position_m = (rng.uniform(-0.3, 0.3), rng.uniform(-0.3, 0.3), room.height_m - 0.25)
    return Light(position_m, colour, (0.46, 0.46, 0.47), fade_m=3.2 + 0.25 * (room.half_x_m + room.half_y_m))


def open_sky(rng: Rng, haze_per_m: float) -> tuple[Light, Air]:
    """A low sun or an overcast sky."""
    azimuth, height = rng.uniform(0, 2 * np.pi), rng.uniform(0.35, 0.8)
    level_m = SUN_M * np.cos(height)
    position_m = (level_m * np.cos(azimuth), level_m * np.sin(azimuth), SUN_M * np.sin(height))
    if rng.random() < 0.4:
        light = Light(position_m, (0.35, 0.35, 0.36), (0.80, 0.82, 0.86))
        return light, Air(haze_per_m, (0.74, 0.76, 0.78), (0.56, 0.60, 0.66))
    light = Light(position_m, (1.35, 1.15, 0.88), (0.48, 0.54, 0.64))
    return light, Air(haze_per_m, (0.72, 0.72, 0.74), (0.28, 0.46, 0.78))


# Things in rooms


def draw_hull(rng: Rng, room: Room, floor: str, walls: str, window_side: int) -> list[Solid]:
    """Floor, walls and ceiling, a window with its pane on one side, a radiator below it."""
    low, high = (-room.half_x_m, -room.half_y_m, 0.0), (room.half_x_m, room.half_y_m, room.height_m)
    along_m = rng.uniform(-0.4, 0.4) * room.half_length_m(window_side)
    half_width_m = min(rng.uniform(0.6, 1.1), 0.5 * room.half_length_m(window_side))
    hole = room.opening(window_side, along_m, half_width_m, 0.95, 2.15)
    floors = {"parquet": pick(rng, WOODS), "carpet": pick(rng, UPHOLSTERY), "terrazzo": (0.72, 0.70, 0.66)}
    return [
        Shell(low, high, frozenset({"floor"}), (), floor, floors.get(floor, (0.70, 0.72, 0.72))),
        Shell(low, high, frozenset({"wall"}), (hole,), walls, pick(rng, WALL_COLOURS)),
        Shell(low, high, frozenset({"ceiling"}), (), "plaster", CHALK),
        room.at_wall(window_side, along_m, (half_width_m, 0.01, 0.6), 1.55, GLASS, CHALK, off_m=-0.015),
        room.at_wall(window_side, along_m, (0.5, 0.06, 0.3), 0.45, "ribs", CHALK),
    ]


def draw_leaf(rng: Rng, room: Room, side: int) -> list[Solid]:
    """A door of 0.86 x 2.1 m with a frame, its handle at 1.05 m."""
    along_m = rng.uniform(-0.5, 0.5) * room.half_length_m(side)
    return [
        room.at_wall(side, along_m, (0.53, 0.02, 1.08), 1.08, "lacquer", CHALK),
        room.at_wall(side, along_m, (0.43, 0.03, 1.05), 1.05, "veneer", pick(rng, WOODS)),
        room.at_wall(side, along_m + 0.36, (0.06, 0.05, 0.012), 1.05, "lacquer", STEEL),
    ]


def draw_bed(rng: Rng, room: Room, side: int) -> list[Solid]:
    """A bed of 1.4 x 2.05 m with its head to the wall, a mattress and a pillow, a night stand."""
    along_m, wood = rng.uniform(-0.3, 0.3), pick(rng, WOODS)
    return [
        room.at_wall(side, along_m, (0.72, 1.03, 0.15), 0.15, "veneer", wood),
        room.at_wall(side, along_m, (0.68, 0.98, 0.11), 0.41, "textile", pick(rng, UPHOLSTERY), off_m=0.04),
        room.at_wall(side, along_m, (0.35, 0.2, 0.07), 0.58, "lacquer", CHALK, off_m=0.12),
        room.at_wall(side, along_m, (0.72, 0.03, 0.5), 0.5, "veneer", wood),
        room.at_wall(side, along_m + 1.05, (0.22, 0.2, 0.25), 0.25, "veneer", wood),
    ]


def draw_round_table(x: float, y: float, rng: Rng) -> list[Solid]:
    """A round table of 1 m on one foot, with two to four stools."""
    things: list[Solid] = [
        Cylinder((x, y, 0), 0.05, 0.72, "lacquer", STEEL),
        Cylinder((x, y, 0), 0.26, 0.03, "lacquer", STEEL),
        Cylinder((x, y, 0.72), 0.5, 0.035, TABLETOP, pick(rng, WOODS)),
    ]
    for angle in np.arange(rng.integers(2, 5)) * 2.1 + rng.uniform(0, 6):
        stool = (x + 0.72 * np.cos(angle), y + 0.72 * np.sin(angle), 0.0)
        things.append(Cylinder(stool, 0.17, 0.46, "veneer", BEECH))
    return things


def draw_desk(x: float, y: float, yaw: float, rng: Rng) -> list[Solid]:
    """A desk of 1.6 x 0.8 m with a monitor, drawers, and a swivel chair in front."""

    def at(across_m: float, behind_m: float, z_m: float) -> Point:
        sine, cosine = np.sin(yaw), np.cos(yaw)
        return (x + cosine * across_m - sine * behind_m, y + sine * across_m + cosine * behind_m, z_m)

    seat_x, seat_y, _ = at(rng.uniform(-0.2, 0.2), -0.75, 0.0)
    return [
        Box(at(0, 0, 0.725), (0.8, 0.4, 0.015), yaw, TABLETOP, pick(rng, WOODS)),
        Box(at(0.55, 0, 0.35), (0.21, 0.36, 0.35), yaw, "lacquer", pick(rng, (STEEL, CHALK))),
        Box(at(-0.77, 0, 0.355), (0.02, 0.36, 0.355), yaw, "lacquer", STEEL),
        Box(at(-0.1, 0.15, 0.80), (0.03, 0.08, 0.06), yaw, "lacquer", SLATE),
        Box(at(-0.1, 0.17, 1.02), (0.28, 0.02, 0.17), yaw, "screen", SLATE),
        Cylinder((seat_x, seat_y, 0.0), 0.28, 0.08, "lacquer", SLATE),
        Cylinder((seat_x, seat_y, 0.08), 0.03, 0.36, "lacquer", STEEL),
        Cylinder((seat_x, seat_y, 0.44), 0.24, 0.07, "textile", pick(rng, UPHOLSTERY)),
    ]


def draw_settee(room: Room, side: int, along_m: float, rng: Rng) -> list[Solid]:
    """A settee of 2.1 m at the wall: seat, back, two arms, and two cushions."""
    cloth = pick(rng, UPHOLSTERY)
    settee: list[Solid] = [
        room.at_wall(side, along_m, (0.85, 0.45, 0.21), 0.21, "textile", cloth),
        room.at_wall(side, along_m, (1.05, 0.13, 0.41), 0.41, "textile", cloth),
    ]
    for sign in (-1, 1):
        settee.append(room.at_wall(side, along_m + 0.95 * sign, (0.1, 0.45, 0.3), 0.3, "textile", cloth))
        pillow = room.at_wall(side, along_m + 0.5 * sign, (0.22, 0.07, 0.2), 0.62, "lacquer", pick(rng, COATS), 0.24)
        settee.append(pillow)
    return settee


def draw_pot_plant(x: float, y: float, rng: Rng) -> list[Solid]:
    """A pot of 0.4 m with a plant of about a metre."""
    return [
        Cylinder((x, y, 0), 0.18, 0.38, "lacquer", pick(rng, COATS)),
        Cylinder((x, y, 0.38), 0.025, 0.3, "bark", WALNUT),
        Sphere((x, y, 0.88), rng.uniform(0.24, 0.34), "foliage", pick(rng, GREENS)),
    ]


def draw_cabinet(room: Room, side: int, along_m: float, rng: Rng) -> list[Solid]:
    """A wardrobe, a rack of binders, a sideboard with a screen, or a glass case with figures in it."""
    kind = rng.integers(4)
    if kind == 0:
        return [room.at_wall(side, along_m, (0.8, 0.3, 1.05), 1.05, "cupboard", pick(rng, WOODS))]
    if kind == 1:
        return [room.at_wall(side, along_m, (0.55, 0.17, 0.9), 0.9, "binders", BEECH)]
    if kind == 2:
        return [
            room.at_wall(side, along_m, (0.9, 0.22, 0.25), 0.25, "veneer", pick(rng, WOODS)),
            room.at_wall(side, along_m, (0.6, 0.02, 0.35), 0.95, "screen", SLATE, off_m=0.15),
        ]
    case: list[Solid] = [
        room.at_wall(side, along_m, (0.5, 0.02, 0.9), 0.9, "veneer", WALNUT),
        room.at_wall(side, along_m, (0.5, 0.22, 0.03), 0.03, "veneer", WALNUT),
        room.at_wall(side, along_m, (0.5, 0.22, 0.02), 1.82, "veneer", WALNUT),
        room.at_wall(side, along_m, (0.49, 0.005, 0.87), 0.93, GLASS, CHALK, off_m=0.42),
    ]
    for z_m in (0.5, 0.95, 1.4):
        case.append(room.at_wall(side, along_m, (0.48, 0.17, 0.012), z_m, "veneer", WALNUT, off_m=0.04))
        figure = room.at_wall(
            side, along_m + rng.uniform(-0.3, 0.3), (0.07, 0.07, 0.13), z_m + 0.14, "lacquer", OAK, 0.12
        )
        case.append(figure)
    return case


def draw_kitchen_row(room: Room, side: int, rng: Rng) -> list[Solid]:
    """A row of cupboards 0.9 m high with a worktop, cupboards above, a fridge at its end."""
    half_m, front = room.half_length_m(side) - 0.5, pick(rng, (CHALK, BEECH, (0.50, 0.58, 0.60)))
    return [
        room.at_wall(side, -0.45, (half_m, 0.29, 0.43), 0.43, "cupboard", front),
        room.at_wall(side, -0.45, (half_m, 0.31, 0.02), 0.88, TABLETOP, pick(rng, WOODS)),
        room.at_wall(side, -0.45, (half_m, 0.17, 0.35), 1.75, "cupboard", front),
        room.at_wall(side, half_m + 0.1, (0.3, 0.32, 0.92), 0.92, "lacquer", pick(rng, (STEEL, CHALK))),
    ]


# Rooms


def room_world(
    rng: Rng, room: Room, solids: list[Solid], eye_m: tuple[float, float], pitch: tuple[float, float]
) -> World:
    """A closed room that is photographed from anywhere in it, more or less towards its middle."""

    def draw_pose(rng: Rng) -> Pose:
        x, y = rng.uniform(-0.9, 0.9, 2) * (room.half_x_m - 0.35, room.half_y_m - 0.35)
        towards_middle = np.arctan2(x, -y)
        return Pose((x, y, rng.uniform(*eye_m)), towards_middle + rng.uniform(-0.6, 0.6), rng.uniform(*pitch))

    bright = (1.9, 2.0, 2.1)
    return World(Solids(tuple(solids)), ceiling_light(room, rng), Air(0.0, bright, bright), draw_pose)


def draw_bedroom(rng: Rng) -> World:
    """A bedroom of 3.2-5 m: bed, cabinets, a plant."""
    room = Room(rng.uniform(1.6, 2.4), rng.uniform(1.8, 2.5), 2.45)
    window, bed, door, rest = rng.permutation(4)
    solids = draw_hull(rng, room, pick(rng, ("parquet", "carpet")), pick(rng, ("wallpaper", "plaster")), window)
    solids += draw_bed(rng, room, bed) + draw_leaf(rng, room, door)
    solids += draw_cabinet(room, rest, rng.uniform(-0.5, 0.5), rng)
    for x, y in room.spots(rng, 1, 1.0, 0.5):
        solids += draw_pot_plant(x, y, rng)
    return room_world(rng, room, solids, (1.2, 1.65), (-0.4, -0.05))


def draw_kitchen(rng: Rng) -> World:
    """A kitchen of 3-5 m: a row of cupboards, a fridge, a round table with stools."""
    room = Room(rng.uniform(1.5, 2.3), rng.uniform(1.8, 2.6), 2.5)
    window, row, door, rest = rng.permutation(4)
    solids = draw_hull(rng, room, pick(rng, ("ceramic", "parquet")), pick(rng, ("ceramic", "plaster")), window)
    solids += draw_kitchen_row(room, row, rng) + draw_leaf(rng, room, door)
    solids.append(room.at_wall(rest, rng.uniform(-0.5, 0.5), (0.3, 0.02, 0.4), 1.55, "lacquer", pick(rng, COATS)))
    for x, y in room.spots(rng, 1, 1.0, 0.9):
        solids += draw_round_table(x, y, rng)
    return room_world(rng, room, solids, (1.2, 1.65), (-0.4, -0.05))


def draw_lounge(rng: Rng) -> World:
    """A living room of 4-7 m: settees, a low table, cabinets, plants."""
    room = Room(rng.uniform(2.0, 3.3), rng.uniform(2.2, 3.6), 2.6)
    window, sofa, door, rest = rng.permutation(4)
    solids = draw_hull(rng, room, pick(rng, ("parquet", "carpet")), pick(rng, ("wallpaper", "plaster")), window)
    solids += draw_settee(room, sofa, rng.uniform(-0.4, 0.4), rng) + draw_leaf(rng, room, door)
    solids += draw_cabinet(room, rest, rng.uniform(-0.8, 0.8), rng)
    low_table = room.at_wall(sofa, 0.0, (0.5, 0.3, 0.02), 0.40, TABLETOP, pick(rng, WOODS), off_m=1.25)
    foot = room.at_wall(sofa, 0.0, (0.42, 0.22, 0.19), 0.19, "lacquer", SLATE, off_m=1.33)
    solids += [low_table, foot]
    for x, y in room.spots(rng, 3, 1.2, 0.6):
        solids += draw_pot_plant(x, y, rng) if rng.random() < 0.6 else draw_round_table(x, y, rng)
    return room_world(rng, room, solids, (1.2, 1.65), (-0.35, -0.03))


def draw_office(rng: Rng) -> World:
    """An office of 5-10 m: desks with monitors and chairs, cabinets along the walls."""
    room = Room(rng.uniform(2.4, 4.0), rng.uniform(2.6, 5.2), 2.9)
    window, door, *rest = rng.permutation(4)
    solids = draw_hull(rng, room, pick(rng, ("carpet", "terrazzo")), "plaster", window) + draw_leaf(rng, room, door)
    for side in rest:
        solids += draw_cabinet(room, side, rng.uniform(-0.6, 0.6) * room.half_length_m(side), rng)
    for x, y in room.spots(rng, int(rng.integers(2, 6)), 2.1, 1.2):
        solids += draw_desk(x, y, pick(rng, (0.0, np.pi / 2, np.pi)) + rng.uniform(-0.1, 0.1), rng)
    return room_world(rng, room, solids, (1.3, 1.65), (-0.3, 0.0))


def draw_meeting_room(rng: Rng) -> World:
    """A room of 6-12 m with a long table, chairs, a white board, a screen, and a glass wall across a corner."""
    room = Room(rng.uniform(2.6, 3.8), rng.uniform(3.4, 6.0), 3.0)
    window, door, board, rest = rng.permutation(4)
    solids = draw_hull(rng, room, pick(rng, ("terrazzo", "parquet")), pick(rng, ("plaster", "concrete")), window)
    solids += draw_leaf(rng, room, door) + draw_cabinet(room, rest, 0.6 * room.half_length_m(rest), rng)
    solids.append(room.at_wall(board, 0.0, (1.0, 0.02, 0.6), 1.5, "lacquer", (0.93, 0.94, 0.95)))
    half_m = room.half_y_m * 0.4
    solids.append(Box((0, 0, 0.725), (0.65, half_m, 0.02), 0.0, TABLETOP, pick(rng, WOODS)))
    solids.append(Box((0, 0, 0.35), (0.2, half_m - 0.4, 0.35), 0.0, "lacquer", SLATE))
    for y in np.arange(-half_m + 0.4, half_m, 0.8):
        for sign in (-1, 1):
            x, cloth = sign * rng.uniform(0.75, 0.95), pick(rng, UPHOLSTERY)
            solids.append(Cylinder((x, y, 0.0), 0.04, 0.42, "lacquer", STEEL))
            solids.append(Box((x, y, 0.45), (0.22, 0.22, 0.03), 0.0, "textile", cloth))
            solids.append(Box((x + 0.21 * sign, y, 0.72), (0.02, 0.2, 0.24), 0.0, "textile", cloth))
    sign = pick(rng, (-1, 1))
    pane = Box((sign * room.half_x_m * 0.62, room.half_y_m * 0.6, 1.1), (0.012, room.half_y_m * 0.25, 1.1), 0.0, GLASS)
    return room_world(rng, room, [*solids, pane], (1.35, 1.6), (-0.25, 0.0))


def draw_corridor(rng: Rng) -> World:
    """A corridor of 16-30 m, 2-3 m wide, with doors, beams, benches, lockers and a glass door across it."""
    room = Room(rng.uniform(1.0, 1.6), rng.uniform(8, 15), 2.8)
    solids = draw_hull(rng, room, pick(rng, ("terrazzo", "ceramic")), pick(rng, ("plaster", "concrete")), 0)
    for y in np.arange(-room.half_y_m + 1.2, room.half_y_m - 1, 2.7):
        solids.append(Box((0, y + 1.3, 2.72), (room.half_x_m, 0.1, 0.08), 0.0, "lacquer", CHALK))
        for side in (1, 3):
            kind, along_m = rng.integers(4), y if side == 1 else -y
            if kind < 2:
                solids.append(room.at_wall(side, along_m, (0.45, 0.03, 1.03), 1.03, "veneer", pick(rng, WOODS)))
            elif kind == 2:
                solids.append(room.at_wall(side, along_m, (0.6, 0.2, 0.9), 0.9, "cupboard", pick(rng, COATS)))
            else:
                solids.append(room.at_wall(side, along_m, (0.7, 0.18, 0.22), 0.22, "veneer", BEECH))
    solids.append(Box((0, rng.uniform(0.2, 0.6) * room.half_y_m, 1.1), (room.half_x_m, 0.012, 1.1), 0.0, GLASS))

    def draw_pose(rng: Rng) -> Pose:
        x, y = rng.uniform(-0.4, 0.4) * room.half_x_m, rng.uniform(-0.9, 0.4) * room.half_y_m
        return Pose((x, y, rng.uniform(1.35, 1.6)), rng.uniform(-0.3, 0.3), rng.uniform(-0.15, 0.02))

    light = Light((0.0, 0.0, 2.5), (1.5, 1.5, 1.45), (0.52, 0.52, 0.53), fade_m=6.0)
    return World(Solids(tuple(solids)), light, Air(0.0, (1.9, 2.0, 2.1), (1.9, 2.0, 2.1)), draw_pose)


def draw_workshop(rng: Rng) -> World:
    """A workshop of 12-22 m, 6 m high: racks, workbenches, barrels, pallets, girders under the roof."""
    room = Room(rng.uniform(5.5, 8), rng.uniform(7, 11), 6.0)
    solids = draw_hull(rng, room, "concrete", "sheet metal", int(rng.integers(4)))
    for y in np.arange(-room.half_y_m + 2, room.half_y_m - 1, 3.6):
        solids.append(Box((0, y, 5.5), (room.half_x_m, 0.12, 0.2), 0.0, "lacquer", (0.30, 0.42, 0.50)))
        for sign in (-1, 1):
            upright = Box(
                (sign * (room.half_x_m - 0.15), y, 3.0), (0.12, 0.12, 3.0), 0.0, "lacquer", (0.30, 0.42, 0.50)
            )
            solids.append(upright)
    for x, y in room.spots(rng, int(rng.integers(7, 12)), 2.4, 1.2):
        solids += draw_workshop_thing(x, y, rng)
    return room_world(rng, room, solids, (1.4, 1.65), (-0.15, 0.03))


def draw_workshop_thing(x: float, y: float, rng: Rng) -> list[Solid]:
    """A rack of three decks, a workbench with a vice, two barrels, or a pallet with sacks."""
    yaw, kind = pick(rng, (0.0, np.pi / 2)), rng.integers(4)
    if kind == 0:
        decks = [Box((x, y, z), (1.2, 0.4, 0.04), yaw, "lacquer", (0.75, 0.45, 0.15)) for z in (0.3, 1.3, 2.3)]
        goods = [Box((x, y, z + 0.3), (rng.uniform(0.5, 1.0), 0.3, 0.24), yaw, "boards", OAK) for z in (0.3, 1.3, 2.3)]
        return [*decks, *goods]
    if kind == 1:
        return [
            Box((x, y, 0.85), (0.95, 0.38, 0.04), yaw, TABLETOP, BEECH),
            Box((x, y, 0.4), (0.85, 0.3, 0.4), yaw, "cupboard", SLATE),
            Box((x, y, 0.98), (0.12, 0.2, 0.09), yaw, "lacquer", STEEL),
        ]
    if kind == 2:
        colour = pick(rng, COATS)
        return [Cylinder((x + d, y, 0), 0.29, 0.88, "sheet metal", colour) for d in (-0.32, 0.32)]
    sacks = [Box((x, y, 0.25 + 0.22 * n), (0.5, 0.38, 0.1), yaw + 0.08 * n, "textile", OAK) for n in range(3)]
    return [Box((x, y, 0.07), (0.6, 0.4, 0.07), yaw, "boards", BEECH), *sacks]


# Things outdoors


def draw_vehicle(x: float, y: float, rng: Rng, yaw: float = np.pi / 2) -> list[Solid]:
    """A van of 5.3 x 2 x 2.2 m, a hatchback of 3.9 x 1.7 x 1.5 m or a lorry of 8.5 x 2.5 x 3.6 m."""
    colour, kind = pick(rng, LACQUERS), rng.integers(5)

    def along(forward_m: float, z_m: float) -> Point:
        return (x + forward_m * np.cos(yaw), y + forward_m * np.sin(yaw), z_m)

    if kind < 2:
        nose = Box(along(2.4, 0.75), (0.3, 0.95, 0.45), yaw, "lacquer", colour)
        return [Box(along(-0.25, 1.2), (2.4, 1.0, 1.0), yaw, "van side", colour), nose]
    if kind < 4:
        upper = Box(along(-0.25, 1.25), (1.35, 0.75, 0.25), yaw, "screen", SLATE)
        roof = Box(along(-0.25, 1.5), (1.2, 0.74, 0.02), yaw, "lacquer", colour)
        return [Box(along(0, 0.62), (1.95, 0.85, 0.4), yaw, "van side", colour), upper, roof]
    cab = Box(along(3.4, 1.6), (0.85, 1.2, 1.2), yaw, "van side", colour)
    wheels = Box(along(0, 0.55), (4.0, 1.0, 0.35), yaw, "lacquer", SLATE)
    return [Box(along(-1.1, 2.2), (3.2, 1.25, 1.35), yaw, "sheet metal", pick(rng, COATS)), cab, wheels]


def draw_conifer(x: float, y: float, rng: Rng) -> list[Solid]:
    """A conifer of 5-9 m: five rounds of branches on a trunk."""
    height_m, green = rng.uniform(5, 9), pick(rng, GREENS)
    rounds = [
        Cylinder(
            (x, y, height_m * (0.15 + 0.17 * n)), 0.2 * height_m * (1 - 0.17 * n), 0.17 * height_m, "foliage", green
        )
        for n in range(5)
    ]
    return [Cylinder((x, y, 0), 0.16, 0.2 * height_m, "bark", WALNUT), *rounds]


def draw_broadleaf(x: float, y: float, rng: Rng) -> list[Solid]:
    """A broad-leaved tree of 6-10 m, its crown of three balls."""
    height_m, green = rng.uniform(6, 10), pick(rng, GREENS)
    crown = [
        Sphere((x + dx * height_m, y + dy * height_m, z * height_m), 0.2 * height_m, "foliage", green)
        for dx, dy, z in ((-0.12, 0.05, 0.58), (0.12, -0.04, 0.62), (0.0, 0.06, 0.78))
    ]
    return [Cylinder((x, y, 0), 0.22, 0.5 * height_m, "bark", WALNUT), *crown]


def draw_street_light(x: float, y: float, towards: float) -> list[Solid]:
    """A mast of 5 m with an arm over the road."""
    return [
        Cylinder((x, y, 0), 0.07, 5.0, "lacquer", SLATE),
        Box((x + 0.6 * towards, y, 4.95), (0.65, 0.06, 0.05), 0.0, "lacquer", SLATE),
    ]


def draw_sign(x: float, y: float, rng: Rng) -> list[Solid]:
    """A road sign: a plate of 0.6 m on a pole of 2.4 m."""
    colour = pick(rng, ((0.70, 0.12, 0.10), (0.10, 0.28, 0.62), (0.88, 0.88, 0.85)))
    return [
        Cylinder((x, y, 0), 0.035, 2.4, "lacquer", STEEL),
        Box((x, y - 0.05, 2.2), (0.3, 0.015, 0.3), 0.0, "lacquer", colour),
    ]


def draw_bench(x: float, y: float, yaw: float) -> list[Solid]:
    """A bench of 1.8 m on two blocks."""
    ends = [(x + d * np.cos(yaw), y + d * np.sin(yaw), 0.2) for d in (-0.7, 0.7)]
    blocks = [Box(end, (0.09, 0.22, 0.2), yaw, "concrete", STEEL) for end in ends]
    return [Box((x, y, 0.43), (0.9, 0.25, 0.03), yaw, "boards", OAK), *blocks]


def draw_shelter(x: float, y: float, side: int) -> list[Solid]:
    """A bus shelter: a roof on posts, a glass back, a bench."""
    back_m = x + side * 0.7
    return [
        Box((x, y, 2.4), (0.8, 2.0, 0.05), 0.0, "lacquer", SLATE),
        Box((back_m, y, 1.15), (0.012, 1.9, 1.0), 0.0, GLASS),
        Box((back_m - side * 0.35, y, 0.45), (0.2, 1.5, 0.03), 0.0, "boards", OAK),
        *(Cylinder((back_m, y + end, 0), 0.05, 2.4, "lacquer", SLATE) for end in (-1.9, 1.9)),
    ]


def draw_dwelling(x: float, y: float, half_x_m: float, half_y_m: float, rng: Rng) -> list[Solid]:
    """A house of one to three storeys of 2.75 m under a hipped roof of three steps, with a chimney."""
    height_m = 2.75 * rng.integers(1, 4) + 0.3
    roof = pick(rng, ((0.40, 0.20, 0.15), (0.30, 0.30, 0.33), (0.45, 0.28, 0.20)))
    coat = pick(rng, ("render coat", "render coat", "timber frame", "ashlar"))
    steps = [
        Box(
            (x, y, height_m + 0.35 + 0.7 * n),
            (half_x_m + 0.4 - 1.2 * n, half_y_m + 0.4 - 1.2 * n, 0.35),
            0.0,
            "boards",
            roof,
        )
        for n in range(3)
        if min(half_x_m, half_y_m) - 1.2 * n > 0.3
    ]
    chimney = Box((x + 0.5 * half_x_m, y, height_m + 1.2), (0.3, 0.3, 1.2), 0.0, "ashlar", (0.45, 0.33, 0.28))
    return [Box((x, y, height_m / 2), (half_x_m, half_y_m, height_m / 2), 0.0, coat, pick(rng, COATS)), *steps, chimney]


def draw_block(x: float, y: float, half_x_m: float, half_y_m: float, rng: Rng) -> list[Solid]:
    """An office block of three to six storeys of 3.6 m with a set-back top."""
    height_m = 3.6 * rng.integers(3, 7)
    top = Box((x, y, height_m + 1.5), (0.6 * half_x_m, 0.6 * half_y_m, 1.5), 0.0, "sheet metal", STEEL)
    material, colour = pick(rng, ("curtain wall", "concrete")), pick(rng, ((0.62, 0.63, 0.64), (0.50, 0.46, 0.42)))
    return [Box((x, y, height_m / 2), (half_x_m, half_y_m, height_m / 2), 0.0, material, colour), top]


# Streets


def drive_world(rng: Rng, solids: list[Solid], lane_x_m: float) -> World:
    """A street along y that is seen from a car on its right lane."""
    light, air = open_sky(rng, haze_per_m=0.004)

    def draw_pose(rng: Rng) -> Pose:
        position_m = (lane_x_m + rng.uniform(-0.3, 0.3), rng.uniform(-25, 35), 1.65)
        return Pose(position_m, rng.normal(0, 0.04), rng.normal(0, 0.006))

    return World(Solids(tuple(solids)), light, air, draw_pose)


def draw_village_street(rng: Rng) -> World:
    """A paved lane between detached houses, garden fences and hedges, with parked vans, bins and street lights."""
    solids: list[Solid] = [Ground("paved lane")]
    for side in (-1, 1):
        y = -40.0 + rng.uniform(0, 8)
        while y < 170:
            half_y_m = rng.uniform(3.5, 6.5)
            set_back_m = rng.uniform(1.0, 5.0)
            solids += draw_dwelling(side * (3.6 + set_back_m + 4.5), y + half_y_m, 4.5, half_y_m, rng)
            border, colour = pick(rng, (("boards", OAK), ("foliage", GREENS[0]), ("ashlar", STEEL)))
            solids.append(Box((side * 3.7, y + half_y_m, 0.55), (0.15, half_y_m - 0.8, 0.55), 0.0, border, colour))
            y += 2 * half_y_m + pick(rng, (3.0, 5.0, 9.0))
        for y in np.arange(-30, 150, 14.0):
            solids += draw_lane_thing(side, y + rng.uniform(0, 6), rng)
    return drive_world(rng, solids, 1.2)


def draw_lane_thing(side: int, y: float, rng: Rng) -> list[Solid]:
    """A parked vehicle, a tree, bins, a sign or a street light at the edge of the lane."""
    kind = rng.integers(6)
    if kind < 2:
        return draw_vehicle(side * 3.9, y, rng) if side > 0 or rng.random() < 0.6 else []
    if kind == 2:
        return draw_broadleaf(side * 4.6, y, rng)
    if kind == 3:
        colour = pick(rng, GREENS + LACQUERS)
        return [Box((side * 3.2, y + d, 0.53), (0.29, 0.3, 0.53), 0.0, "lacquer", colour) for d in (0, 0.75)]
    return draw_sign(side * 3.1, y, rng) if kind == 4 else draw_street_light(side * 3.2, y, -side)


def draw_country_road(rng: Rng) -> World:
    """A road through fields: guard rails, trees, hedges, barns, traffic, and hills behind."""
    solids: list[Solid] = [Ground("country road")]
    for side in (-1, 1):
        if rng.random() < 0.6:
            rail_y, half_m = rng.uniform(0, 60), rng.uniform(15, 40)
            solids.append(Box((side * 4.3, rail_y, 0.62), (0.05, half_m, 0.16), 0.0, "lacquer", STEEL))
        for y in np.arange(-35, 180, pick(rng, (9.0, 14.0, 22.0))):
            draw_tree = pick(rng, (draw_conifer, draw_broadleaf))
            solids += draw_tree(side * rng.uniform(6, 16), y + rng.uniform(0, 5), rng)
        barn_y = rng.uniform(20, 120)
        solids.append(Box((side * rng.uniform(16, 30), barn_y, 2.6), (5, 9, 2.6), 0.0, "boards", WALNUT))
        hill_y, radius_m = rng.uniform(180, 300), rng.uniform(150, 260)
        hill = (side * rng.uniform(60, 160), hill_y + radius_m, -0.86 * radius_m)
        solids.append(Sphere(hill, radius_m, "meadow", GREENS[0]))
        solids += draw_sign(side * 3.9, rng.uniform(5, 40), rng)
    for y in np.arange(-5, 170, 32):
        if rng.random() < 0.75:
            solids += draw_vehicle(pick(rng, (-1.6, 1.6)), y + rng.uniform(8, 22), rng)
    return drive_world(rng, solids, 1.6)


def draw_town_road(rng: Rng) -> World:
    """A road between office blocks and houses, with bus shelters, street lights, kerbs and traffic."""
    solids: list[Solid] = [Ground("country road")]
    for side in (-1, 1):
        solids.append(Box((side * 6.0, 70, 0.06), (2.4, 120, 0.06), 0.0, "setts", (0.45, 0.43, 0.40)))
        y = -45.0
        while y < 180:
            half_y_m, draw = rng.uniform(6, 14), pick(rng, (draw_block, draw_block, draw_dwelling))
            solids += draw(side * (9.0 + rng.uniform(0, 3) + 6), y + half_y_m, 6.0, half_y_m, rng)
            y += 2 * half_y_m + pick(rng, (0.0, 4.0, 12.0))
        for y in np.arange(-30, 150, 18.0):
            kind = rng.integers(4)
            if kind == 0:
                solids += draw_shelter(side * 6.5, y, side)
            elif kind == 1:
                solids += draw_street_light(side * 4.1, y, -side)
            elif kind == 2:
                solids += draw_broadleaf(side * 7.0, y, rng)
            else:
                solids += draw_sign(side * 4.2, y, rng)
    for y in np.arange(-5.0, 160, 22):
        if rng.random() < 0.8:
            solids += draw_vehicle(pick(rng, (-1.6, 1.6)), y + rng.uniform(7, 16), rng)
    return drive_world(rng, solids, 1.6)


# Yards and parks


def yard_world(rng: Rng, solids: list[Solid], reach_m: tuple[float, float], haze_per_m: float) -> World:
    """An open place that is seen from within `reach_m` of its middle, more or less towards it."""
    light, air = open_sky(rng, haze_per_m)

    def draw_pose(rng: Rng) -> Pose:
        x, y = rng.uniform(-1, 1, 2) * reach_m
        yaw = np.arctan2(x, -y) + rng.uniform(-0.8, 0.8)
        return Pose((x, y, rng.uniform(1.45, 1.7)), yaw, rng.uniform(-0.12, 0.06))

    return World(Solids(tuple(solids)), light, air, draw_pose)


def draw_courtyard(rng: Rng) -> World:
    """A court of 18-32 m with four wings, an arcade, a fountain, benches, planters and a market stall."""
    half_x_m, half_y_m = rng.uniform(9, 14), rng.uniform(10, 16)
    coat, colour = pick(rng, ("ashlar", "render coat", "timber frame")), pick(rng, COATS)
    solids: list[Solid] = [Ground(pick(rng, ("setts", "gravel")), (0.50, 0.47, 0.42))]
    for sign in (-1, 1):
        for centre_m, half_m in (
            ((sign * (half_x_m + 4), 0), (4, half_y_m + 8)),
            ((0, sign * (half_y_m + 4)), (half_x_m, 4)),
        ):
            height_m = 2.75 * rng.integers(2, 5)
            solids.append(Box((*centre_m, height_m / 2), (*half_m, height_m / 2), 0.0, coat, colour))
    for y in np.arange(-half_y_m + 1.5, half_y_m - 1, 3.2):
        solids.append(Cylinder((half_x_m - 2.2, y, 0), 0.28, 3.0, "concrete", CHALK))
    solids.append(Box((half_x_m - 1.2, 0, 3.15), (1.3, half_y_m - 1, 0.15), 0.0, "concrete", CHALK))
    solids += [
        Cylinder((0, 0, 0), 1.7, 0.55, "ashlar", STEEL),
        Cylinder((0, 0, 0.55), 0.25, 1.1, "ashlar", STEEL),
        Sphere((0, 0, 1.9), 0.35, "lacquer", STEEL),
    ]
    for x, y in Room(half_x_m - 3, half_y_m - 1, 0).spots(rng, 6, 3.0, 1.0):
        if np.hypot(x, y) > 3:
            solids += draw_yard_thing(x, y, rng)
    return yard_world(rng, solids, (half_x_m - 4, half_y_m - 2), haze_per_m=0.002)


def draw_yard_thing(x: float, y: float, rng: Rng) -> list[Solid]:
    """A bench, a planter, a market stall or a tree."""
    kind = rng.integers(4)
    if kind == 0:
        return draw_bench(x, y, rng.uniform(0, 3))
    if kind == 1:
        tub = Cylinder((x, y, 0), 0.55, 0.6, "concrete", STEEL)
        return [tub, Sphere((x, y, 0.95), 0.5, "foliage", pick(rng, GREENS))]
    if kind == 2:
        posts = [Cylinder((x + a, y + b, 0), 0.04, 2.3, "lacquer", STEEL) for a in (-1.1, 1.1) for b in (-0.8, 0.8)]
        roof = Box((x, y, 2.36), (1.35, 1.05, 0.06), 0.0, "awning", pick(rng, UPHOLSTERY))
        return [*posts, roof, Box((x, y, 0.45), (1.0, 0.5, 0.45), 0.0, "boards", BEECH)]
    return draw_broadleaf(x, y, rng)


def draw_car_park(rng: Rng) -> World:
    """Two rows of bays with parked cars before office blocks, hedges between, lamps along the lane."""
    solids: list[Solid] = [Ground("car park")]
    for side in (-1, 1):
        for y in np.arange(-28, 60, 2.5):
            if rng.random() < 0.45:
                solids += draw_vehicle(side * 5.6, y + 1.3, rng, yaw=0.0 if side < 0 else np.pi)
        solids.append(Box((side * 8.8, 15, 0.5), (0.5, 50, 0.5), 0.0, "foliage", pick(rng, GREENS)))
        solids += draw_block(side * rng.uniform(20, 28), rng.uniform(-5, 35), 7.0, rng.uniform(10, 20), rng)
        for y in np.arange(-25.0, 60, 20):
            solids += draw_street_light(side * 8.2, y, -side)
    solids += draw_block(rng.uniform(-10, 10), 85.0, 22.0, 6.0, rng)
    return yard_world(rng, solids, (2.0, 20.0), haze_per_m=0.003)


def draw_park(rng: Rng) -> World:
    """Tall grass with trees, benches, a pavilion on columns, a stone wall, and houses far away."""
    solids: list[Solid] = [Ground("meadow")]
    for x, y in Room(32, 32, 0).spots(rng, 26, 5.0, 0.0):
        if np.hypot(x, y) > 5:
            draw = pick(rng, (draw_conifer, draw_broadleaf, draw_yard_thing))
            solids += draw(x, y, rng)
    x, y = rng.uniform(-8, 8), rng.uniform(9, 16)
    columns = [Cylinder((x + a, y + b, 0), 0.18, 3.0, "concrete", CHALK) for a in (-2.5, 2.5) for b in (-2, 0, 2)]
    solids += [*columns, Box((x, y, 3.15), (3.1, 2.7, 0.15), 0.0, "concrete", CHALK)]
    solids.append(Box((rng.uniform(-14, 14), -14, 0.7), (9, 0.25, 0.7), rng.uniform(-0.4, 0.4), "ashlar", STEEL))
    for angle in rng.uniform(0, 2 * np.pi, 5):
        away_m = rng.uniform(45, 110)
        solids += draw_dwelling(away_m * np.cos(angle), away_m * np.sin(angle), 5.5, rng.uniform(4, 8), rng)
    return yard_world(rng, solids, (9.0, 9.0), haze_per_m=0.003)
