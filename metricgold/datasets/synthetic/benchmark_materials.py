"""What surfaces of the benchmarks' worlds look like; none of the training worlds' materials is among them.

Sizes are those of real building materials, and no more alike to the training worlds' than those are.
"""

import numpy as np

from metricgold.datasets.synthetic.patterns import Material, Surface, band, cell_tone, mix, pulse
from metricgold.datasets.synthetic.raycast import Floats

GLASS = "glass"  # seen as a surface; lasers pass through it
TABLETOP = "tabletop"


# Indoors


def lacquer(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """A little lighter where it faces up."""
    return (0.94 + 0.06 * surface.normals[:, 2])[:, None] * colour


def plaster(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """Faint blotches of 0.18 and 0.7 m."""
    fine, coarse = (cell_tone(surface.u + 3, surface.v, footprint_m, size_m, size_m) for size_m in (0.18, 0.7))
    return (0.93 + 0.08 * fine + 0.06 * coarse)[:, None] * colour


def wallpaper(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """Upright stripes of 0.09 m, every 0.27 m, above a light base board of 0.07 m."""
    striped = mix(pulse(surface.u, 0.27, 0.09, footprint_m), 0.72 * colour, colour)
    return mix(band(surface.v, -1, 0.07, footprint_m), (0.75, 0.73, 0.68), striped)


def ceramic(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """Glazed tiles of 0.3 x 0.2 m between light joints of 8 mm."""
    joint = 1 - (1 - pulse(surface.u, 0.3, 0.008, footprint_m)) * (1 - pulse(surface.v, 0.2, 0.008, footprint_m))
    shade = 0.92 + 0.12 * cell_tone(surface.u, surface.v, footprint_m, 0.3, 0.2)
    return mix(joint, 0.62 * colour, shade[:, None] * colour)


def parquet(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """Squares of 0.42 m of six strips each, the strips of neighbouring squares crossing."""
    is_across = (np.floor(surface.u / 0.42) + np.floor(surface.v / 0.42)) % 2 == 0
    along, over = np.where(is_across, surface.u, surface.v), np.where(is_across, surface.v, surface.u)
    strip = 0.75 + 0.5 * cell_tone(over, np.floor(along / 0.42), footprint_m, 0.07, 1.0)
    return strip[:, None] * colour


def carpet(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """Tiles of 0.5 m, all alike, with a nap of 4 cm."""
    nap = cell_tone(surface.u, surface.v, footprint_m, 0.04, 0.04)
    tile = cell_tone(surface.u, surface.v, footprint_m, 0.5, 0.5)
    return (0.8 + 0.25 * nap + 0.12 * tile)[:, None] * colour


def terrazzo(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """Chips of 5 cm in fields of 1.2 m between thin strips of brass."""
    chips = cell_tone(surface.u + 11, surface.v, footprint_m, 0.05, 0.05)
    strip = 1 - (1 - pulse(surface.u, 1.2, 0.012, footprint_m)) * (1 - pulse(surface.v, 1.2, 0.012, footprint_m))
    return mix(strip, (0.35, 0.26, 0.10), (0.72 + 0.5 * chips)[:, None] * colour)


def veneer(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """Upright grain of 2 cm."""
    return (0.82 + 0.36 * cell_tone(surface.u + 31, surface.v, footprint_m, 0.02, 1.6))[:, None] * colour


def tabletop(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """Long grain of 6 cm, dark at the edge."""
    grain = (0.85 + 0.3 * cell_tone(surface.v, surface.u + 17, footprint_m, 0.06, 0.9))[:, None] * colour
    return np.where((surface.axis == 2)[:, None], grain, 0.6 * colour)


def cupboard(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """Fronts 0.6 m wide with thin gaps and a bar to hold at 0.8 m."""
    gap = pulse(surface.u - 0.3, 0.6, 0.012, footprint_m)
    bar = pulse(surface.u - 0.08, 0.6, 0.14, footprint_m) * band(surface.v, 0.78, 0.81, footprint_m)
    front = mix(np.clip(gap + bar, 0, 1), 0.2 * colour, colour)
    return np.where((surface.axis == 2)[:, None], 0.5 * colour, front)


def binders(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """Rows of binders 8 cm wide and 0.32 m high, grey or dark, each with a white label."""
    binder = 0.03 + 0.3 * np.rint(cell_tone(surface.u, surface.v, footprint_m, 0.08, 0.36))
    label = pulse(surface.u - 0.02, 0.08, 0.04, footprint_m) * pulse(surface.v - 0.16, 0.36, 0.09, footprint_m)
    spines = mix(label, (0.7, 0.7, 0.68), binder[:, None] * np.ones(3))
    return mix(pulse(surface.v, 0.36, 0.03, footprint_m), colour, spines)


def textile(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """Checks of 9 cm, woven of two shades."""
    across, up = (pulse(x, 0.18, 0.09, footprint_m) for x in (surface.u, surface.v))
    return (0.7 + 0.15 * across + 0.15 * up)[:, None] * colour


def screen(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """A dark pane that is a little lighter towards its top."""
    return (0.6 + 0.5 * np.clip(surface.v - 0.7, 0, 1))[:, None] * (0.03, 0.035, 0.045)


def glass(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """Bluish, with the slanting streaks of a reflection."""
    streak = pulse(surface.u + surface.v, 0.9, 0.22, footprint_m)
    return mix(streak, (0.62, 0.70, 0.74), (0.30, 0.40, 0.45))


def ribs(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """The ribs of a radiator, every 6 cm."""
    return mix(pulse(surface.u, 0.06, 0.02, footprint_m), 0.45 * colour, colour)


# Outdoors


def render_coat(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """Houses: storeys of 2.75 m with framed windows of 1.1 x 1.35 m every 2.4 m above a grey base."""
    outer = pulse(surface.u, 2.4, 1.3, footprint_m) * pulse(surface.v - 0.85, 2.75, 1.55, footprint_m)
    pane = pulse(surface.u - 0.1, 2.4, 1.1, footprint_m) * pulse(surface.v - 0.95, 2.75, 1.35, footprint_m)
    upright = surface.axis != 2
    wall = mix(band(surface.v, -1, 0.6, footprint_m) * upright, (0.22, 0.22, 0.23), colour)
    return mix(pane * upright, (0.06, 0.07, 0.09), mix(outer * upright, (0.70, 0.69, 0.66), wall))


def timber_frame(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """Light fields between dark beams of 0.18 m, every 1.25 m across and 1.4 m up; every third field is a window."""
    beam = 1 - (1 - pulse(surface.u, 1.25, 0.18, footprint_m)) * (1 - pulse(surface.v, 1.4, 0.18, footprint_m))
    window = pulse(surface.u - 0.3, 3.75, 0.75, footprint_m) * pulse(surface.v - 0.5, 1.4, 0.7, footprint_m)
    upright = surface.axis != 2
    return mix(beam * upright, (0.10, 0.06, 0.04), mix(window * upright, (0.05, 0.06, 0.07), colour))


def curtain_wall(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """Offices: bands of windows 1.9 m high every 3.6 m, with posts every 1.35 m."""
    window = pulse(surface.v - 1.0, 3.6, 1.9, footprint_m) * (1 - pulse(surface.u, 1.35, 0.08, footprint_m))
    sky = 0.06 + 0.10 * cell_tone(surface.u, surface.v - 1.0, footprint_m, 1.35, 3.6)
    return mix(window * (surface.axis != 2), sky[:, None] * np.array((0.8, 1.0, 1.2)), colour)


def ashlar(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """Stones of 0.8 x 0.4 m, moved by a third of a stone from row to row."""
    u = surface.u + 0.27 * np.floor(surface.v / 0.4)
    joint = 1 - (1 - pulse(u, 0.8, 0.015, footprint_m)) * (1 - pulse(surface.v, 0.4, 0.015, footprint_m))
    stone = 0.8 + 0.4 * cell_tone(u, surface.v, footprint_m, 0.8, 0.4)
    return mix(joint, 0.4 * colour, stone[:, None] * colour)


def concrete(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """Panels of 2.4 x 1.2 m with dark joints, and stains of 0.6 m."""
    joint = 1 - (1 - pulse(surface.u, 2.4, 0.02, footprint_m)) * (1 - pulse(surface.v, 1.2, 0.02, footprint_m))
    panel = cell_tone(surface.u, surface.v, footprint_m, 2.4, 1.2)
    stain = cell_tone(surface.u + 5, surface.v, footprint_m, 0.6, 0.6)
    return mix(joint, 0.45 * colour, (0.82 + 0.18 * panel + 0.16 * stain)[:, None] * colour)


def setts(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """Paving stones of 0.16 x 0.1 m, in runs of 2 m that differ a little."""
    v = surface.v + 0.05 * (np.floor(surface.u / 0.16) % 2)
    joint = 1 - (1 - pulse(surface.u, 0.16, 0.012, footprint_m)) * (1 - pulse(v, 0.1, 0.012, footprint_m))
    stone = cell_tone(surface.u, v, footprint_m, 0.16, 0.1)
    run = cell_tone(surface.u + 9, surface.v, footprint_m, 2.0, 2.0)
    return mix(joint, 0.45 * colour, (0.65 + 0.5 * stone + 0.2 * run)[:, None] * colour)


def gravel(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """Stones of 6 cm and puddles of shade of 0.9 m."""
    stone, patch = (cell_tone(surface.u + 23, surface.v, footprint_m, size_m, size_m) for size_m in (0.06, 0.9))
    return (0.62 + 0.45 * stone + 0.3 * patch)[:, None] * colour


def meadow(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """Tall grass: blades of 0.12 m, clumps of 0.8 m, fields of 6 m."""
    sizes_m = (0.12, 0.8, 6.0)
    blade, clump, field = (cell_tone(surface.u - 13, surface.v, footprint_m, size_m, size_m) for size_m in sizes_m)
    return (0.5 + 0.35 * blade + 0.4 * clump + 0.35 * field)[:, None] * (0.13, 0.17, 0.05)


def country_road(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """Two lanes of 3.25 m along y: 4 m dashes every 10 m, thin lines at the edges, gravel, then meadow."""
    u, v = surface.u, surface.v
    tar = (0.8 + 0.4 * cell_tone(u + 40, v, footprint_m, 0.5, 2.5))[:, None] * (0.085, 0.085, 0.085)
    marks = band(u, -0.06, 0.06, footprint_m) * pulse(v, 10.0, 4.0, footprint_m)
    marks = np.clip(marks + band(np.abs(u), 2.98, 3.1, footprint_m), 0, 1)
    road = mix(marks, (0.68, 0.68, 0.65), tar)
    verge = gravel(surface, np.broadcast_to((0.28, 0.26, 0.22), colour.shape), footprint_m)
    beside = mix(band(np.abs(u), -1, 4.1, footprint_m), verge, meadow(surface, colour, footprint_m))
    return mix(band(np.abs(u), -1, 3.25, footprint_m), road, beside)


def paved_lane(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """A lane of setts 5.5 m wide along y with gutters, then gravel yards."""
    lane = setts(surface, np.broadcast_to((0.20, 0.19, 0.185), colour.shape), footprint_m)
    gutter = band(np.abs(surface.u), 2.6, 2.75, footprint_m)
    yard = gravel(surface, np.broadcast_to((0.33, 0.30, 0.25), colour.shape), footprint_m)
    return mix(band(np.abs(surface.u), -1, 2.75, footprint_m), mix(gutter, (0.36, 0.35, 0.33), lane), yard)


def car_park(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """Tar with bays 2.5 m wide and 5 m deep on both sides of a lane of 6 m along y."""
    u, v = surface.u, surface.v
    tar = (0.8 + 0.4 * cell_tone(u, v + 7, footprint_m, 1.6, 1.6))[:, None] * (0.10, 0.10, 0.105)
    bays = band(np.abs(u), 3.0, 8.0, footprint_m) * pulse(v, 2.5, 0.1, footprint_m)
    return mix(bays, (0.70, 0.70, 0.66), tar)


def foliage(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """Leaves of 0.11 m in clusters of 0.55 m."""
    leaf, cluster = (cell_tone(surface.u + 61, surface.v + 8, footprint_m, size_m, size_m) for size_m in (0.11, 0.55))
    return (0.4 + 0.5 * leaf + 0.6 * cluster)[:, None] * colour


def bark(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """Upright furrows of 5 cm."""
    return (0.55 + 0.9 * cell_tone(surface.u, surface.v, footprint_m, 0.05, 0.35))[:, None] * colour


def boards(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """Upright boards of 0.12 m with dark gaps of 1.5 cm."""
    board = 0.8 + 0.4 * cell_tone(surface.u, 0 * surface.v, footprint_m, 0.12, 1.0)
    return mix(pulse(surface.u, 0.12, 0.015, footprint_m), 0.15 * colour, board[:, None] * colour)


def sheet_metal(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """Corrugated sheet, a wave every 0.2 m."""
    return mix(pulse(surface.u, 0.2, 0.1, footprint_m), 0.72 * colour, 1.08 * colour)


def van_side(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """A dark sill up to 0.4 m, wheel arches 3 m apart, windows from 1.15 to 1.75 m."""
    upright = surface.axis != 2
    arch = band(np.abs(np.abs(surface.u) - 1.5), -1, 0.36, footprint_m) * band(surface.v, -1, 0.74, footprint_m)
    sill = band(surface.v, -1, 0.4, footprint_m)
    window = band(surface.v, 1.15, 1.75, footprint_m) * (1 - pulse(surface.u - 0.05, 1.25, 0.12, footprint_m))
    dark = np.clip(arch + sill, 0, 1) * upright
    return mix(dark, (0.02, 0.02, 0.02), mix(window * upright, (0.05, 0.06, 0.07), colour))


def awning(surface: Surface, colour: Floats, footprint_m: Floats) -> Floats:
    """Stripes of 0.22 m in colour and white."""
    return mix(pulse(surface.u, 0.44, 0.22, footprint_m), (0.75, 0.74, 0.70), colour)


BENCHMARK_MATERIALS: dict[str, Material] = {
    "lacquer": lacquer,
    "plaster": plaster,
    "wallpaper": wallpaper,
    "ceramic": ceramic,
    "parquet": parquet,
    "carpet": carpet,
    "terrazzo": terrazzo,
    "veneer": veneer,
    TABLETOP: tabletop,
    "cupboard": cupboard,
    "binders": binders,
    "textile": textile,
    "screen": screen,
    GLASS: glass,
    "ribs": ribs,
    "render coat": render_coat,
    "timber frame": timber_frame,
    "curtain wall": curtain_wall,
    "ashlar": ashlar,
    "concrete": concrete,
    "setts": setts,
    "gravel": gravel,
    "meadow": meadow,
    "country road": country_road,
    "paved lane": paved_lane,
    "car park": car_park,
    "foliage": foliage,
    "bark": bark,
    "boards": boards,
    "sheet metal": sheet_metal,
    "van side": van_side,
    "awning": awning,
}
