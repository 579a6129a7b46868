"""frames.csv and dataset.yaml for recordings that state their frames and cameras in files of their own.

    tum         rgb.txt and depth.txt, or associations.txt, of the TUM RGB-D benchmark and of what is stored like it
    polycam     keyframes/{images,depth,cameras} of Polycam's raw data, or what it calls corrected of them
    arkit       frame_<n>.json beside frame_<n>.jpg and depth_<n>.png, as 3D Scanner App writes what ARKit gives it
    nerfstudio  transforms.json with a depth_file_path for each frame

Poses are not read: OpenGL's axes or OpenCV's make no difference to a depth map. Whether depth is planar or lies along
the ray does: the first three are planar, a transforms.json does not say it, so whoever imports it does.
"""

import csv
import io
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from metricgold.datasets.arrays import read_size
from metricgold.datasets.listing import folders_below
from metricgold.datasets.own_data import FRAMES, list_frames
from metricgold.datasets.own_statement import CAMERA, STATEMENT
from metricgold.storage import read_json, remove, write_aside

ASSOCIATIONS = ("associations.txt", "associate.txt", "associated.txt")
MAX_CAMERA_PX = 1e7  # of a focal length, a place or a side
MAX_APART_S = 0.02  # of a photograph and its depth: the benchmark's own associate.py


class Found(NamedTuple):
    """A frame of a recording; paths are as its files give them, below the recording's folder."""

    rgb: Path
    depth: Path
    camera: tuple[float, ...] | None = None  # fx, fy, cx, cy
    size: tuple[int, int] | None = None  # width, height that the camera belongs to; None: those of the rgb
    mask: Path | None = None


class Layout(NamedTuple):
    """How a kind of recording is found and read, and what is known of its numbers."""

    marks: tuple[str, ...]  # globs; a recording has a match of one
    find: Callable[[Path], Iterator[Found]]
    unit: float | str
    kind: str | None  # None: not known
    first_pixel: float
    with_camera: bool


class Imported(NamedTuple):
    """What import_frames has written."""

    layout: str
    frames: int
    scenes: int
    incomplete: int  # frames that lack a file
    unit: float | str
    kind: str


def import_frames(
    folder: Path,
    *,
    camera: tuple[float, float, float, float] | None = None,
    unit: float | str | None = None,
    kind: str | None = None,
) -> Imported:
    """Write frames.csv and dataset.yaml into a raw folder that holds one recording, or some in folders of their own.

    camera  fx, fy, cx, cy in pixels of the rgb, for recordings that state none
    unit    metres in one stored unit, or its name, where the layout's own is not right
    kind    planar or ray distance, where the layout does not say it

    Each recording is a scene. Raises ValueError for a folder without a known layout or with two kinds of it, for what
    is neither in the files nor given, and where one of the two files is there already.
    """
    folder = Path(folder).absolute()
    if taken := [name for name in (STATEMENT, FRAMES) if (folder / name).exists()]:
        raise ValueError(f"{folder / taken[0]}: exists; move it away to import anew")
    name, recordings = find_recordings(folder)
    layout = LAYOUTS[name]
    stated_kind = kind or layout.kind
    if stated_kind is None:
        raise ValueError(f"{folder}: {name} does not say whether depth is planar or ray distance; give --kind")
    if layout.with_camera == (camera is not None):
        says = "states its cameras" if layout.with_camera else "states no camera"
        raise ValueError(f"{folder}: {name} {says}; {'leave out' if camera else 'give'} --camera")
    found = [(scene, frame) for scene, place in recordings.items() for frame in layout.find(place)]
    whole = [(scene, frame) for scene, frame in found if all(path.is_file() for path in paths_of(frame))]
    if not whole:
        raise ValueError(f"{folder}: {name} names {len(found)} frames, and none of them has its files")
    stated_unit = unit or layout.unit
    with_mask = all(frame.mask for _, frame in whole)
    is_resized = any(
        read_size(frame.rgb) != read_size(frame.depth) for _, frame in {s: (s, f) for s, f in whole}.values()
    )
    statement = write_statement(stated_unit, stated_kind, layout.first_pixel, camera, is_resized, with_mask)
    with write_aside(folder / FRAMES) as table, write_aside(folder / STATEMENT) as stated:
        table.write_text(frames_table(folder, whole, layout, with_mask), encoding="utf-8", newline="")
        stated.write_text(statement, encoding="utf-8")
    try:
        frames = list_frames(folder.name, folder).frames
    except ValueError:  # a unit that is none, two frames of one name
        remove(folder / FRAMES)
        remove(folder / STATEMENT)
        raise
    return Imported(name, len(frames), len(recordings), len(found) - len(whole), stated_unit, stated_kind)


def find_recordings(folder: Path) -> tuple[str, dict[str, Path]]:
    """Layout and scene -> folder of the recordings in a folder: itself, or those directly below it."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: is not a folder")
    for places in ([folder], [path for path in folders_below(folder, "*") if path.is_dir()]):
        kinds = {
            place: kind
            for place in places
            for kind, layout in LAYOUTS.items()
            if any(map(any, map(place.glob, layout.marks)))
        }
        if len(set(kinds.values())) > 1:
            both = ", ".join(f"{place.name} is {kind}" for place, kind in list(kinds.items())[:20])
            raise ValueError(f"{folder}: recordings of one kind were expected; {both}")
        if kinds:
            return next(iter(kinds.values())), {place.name: place for place in kinds}
    marks = ", ".join(f"{layout.marks[0]} ({kind})" for kind, layout in LAYOUTS.items())
    raise ValueError(f"{folder}: neither it nor a folder in it holds one of {marks}")


def paths_of(frame: Found) -> list[Path]:
    """All files of a frame."""
    return [path for path in (frame.rgb, frame.depth, frame.mask) if path is not None]


def frames_table(folder: Path, frames: list[tuple[str, Found]], layout: Layout, with_mask: bool) -> str:
    """The text of frames.csv. ValueError for a file that is not below the folder."""
    columns = ["rgb", "depth", *(["mask"] if with_mask else []), "scene"]
    columns += [*CAMERA, "width", "height"] if layout.with_camera else []
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for scene, frame in frames:
        paths = [frame.rgb, frame.depth, *([frame.mask] if with_mask and frame.mask else [])]
        outside = [path for path in paths if not path.resolve().is_relative_to(folder.resolve())]
        if outside:
            raise ValueError(f"{outside[0]}: is not below {folder}, and no frame may be")
        row: list[Any] = [path.resolve().relative_to(folder.resolve()).as_posix() for path in paths] + [scene]
        if frame.camera is not None:
            rows, width = read_size(frame.rgb) or (0, 0)
            row += [*map(repr, frame.camera), *(frame.size or (width, rows))]
        writer.writerow(row)
    return text.getvalue()


def write_statement(
    unit: float | str,
    kind: str,
    first_pixel: float,
    camera: tuple[float, ...] | None,
    is_resized: bool,
    with_mask: bool,
) -> str:
    """The text of dataset.yaml, to be read and corrected by a person."""
    lines = ["depth:", f"  unit: {unit}", f"  kind: {kind}", "  invalid: 0", "  far: null"]
    lines += ["  resize: nearest  # depth has another size than the rgb"] if is_resized else []
    lines += ["  mask: valid"] if with_mask else []
    lines += ["intrinsics:", f"  first_pixel: {first_pixel:g}"]
    lines += [f"  {name}: {value!r}" for name, value in zip(CAMERA, camera or (), strict=False)]
    lines += ["splits:  # each recording is a scene; keep some for tests", '  train: ["*"]']
    return "\n".join(lines) + "\n"


# Layouts


def find_tum(folder: Path) -> Iterator[Found]:
    """Pairs of a list of associations, or of the two lists: each photograph and the depth nearest in time."""
    for path in (folder / name for name in ASSOCIATIONS):
        if path.is_file():
            yield from pairs_of_associations(folder, path)
            return
    rgbs, depths = (timed_names(folder / f"{kind}.txt") for kind in ("rgb", "depth"))
    times_s = [time_s for time_s, _ in depths]
    for time_s, rgb in rgbs:
        place = bisect_left(times_s, time_s)
        near = [(abs(other_s - time_s), depth) for other_s, depth in depths[max(0, place - 1) : place + 1]]
        apart_s, depth = min(near, default=(MAX_APART_S, ""))
        if apart_s < MAX_APART_S:
            yield Found(folder / rgb, folder / depth)


def pairs_of_associations(folder: Path, path: Path) -> Iterator[Found]:
    """Rows `time rgb time depth`, in either order of the two: the folder of a path says which it is."""
    for line, words in rows_of(path):
        names = [word for word in words if not re.fullmatch(r"[-+0-9.eE]+", word)]
        depths = [name for name in names if "depth" in name]
        rgbs = [name for name in names if "depth" not in name]
        if len(names) != 2 or len(depths) != 1:
            raise ValueError(f"{path}: line {line}: expected a time and a file, twice, one of them of depth")
        yield Found(folder / rgbs[0], folder / depths[0])


def timed_names(path: Path) -> list[tuple[float, str]]:
    """(seconds, file) of a list with a frame in each line, in the order of time."""
    rows = []
    for line, words in rows_of(path):
        try:
            time_s, name = float(words[0]), words[1]
        except (ValueError, IndexError):
            raise ValueError(f"{path}: line {line}: expected a time in seconds and a file") from None
        rows.append((time_s, name))
    return sorted(rows)


def rows_of(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, words) of a text file without its comments."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not a text file: {error}") from error
    for number, line in enumerate(text.splitlines(), start=1):
        if words := line.partition("#")[0].replace(",", " ").split():
            yield number, words


def find_polycam(folder: Path) -> Iterator[Found]:
    """Keyframes, by choice those that Polycam has corrected."""
    keyframes = folder / "keyframes"
    is_corrected = all((keyframes / f"corrected_{kind}").is_dir() for kind in ("images", "cameras"))
    prefix = "corrected_" if is_corrected else ""
    for path in sorted((keyframes / f"{prefix}cameras").glob("*.json")):
        values = keys_of(path)
        rgb = with_a_suffix(keyframes / f"{prefix}images" / path.stem, (".jpg", ".jpeg", ".png"))
        yield Found(rgb, keyframes / f"depth/{path.stem}.png", camera_of(values, CAMERA, path), size_of(values, path))


def find_arkit(folder: Path) -> Iterator[Found]:
    """Frames of 3D Scanner App; intrinsics are nine numbers, or three lists of three, by rows or as simd has them."""
    for path in sorted(folder.glob("frame_*.json")):
        given = keys_of(path).get("intrinsics")
        rows = given if isinstance(given, list) else []
        k = [number for row in rows for number in (row if isinstance(row, list) else [row])]
        if len(k) != 9:
            raise ValueError(f"{path}: intrinsics: expected nine numbers, found {given!r:.80}")
        values = dict(zip(CAMERA, (k[0], k[4], k[2] or k[6], k[5] or k[7]), strict=True))
        rgb = with_a_suffix(path.with_suffix(""), (".jpg", ".jpeg", ".png"))
        depth = folder / f"depth_{path.stem.removeprefix('frame_')}.png"
        yield Found(rgb, depth, camera_of(values, CAMERA, path))


def find_nerfstudio(folder: Path) -> Iterator[Found]:
    """Frames of transforms.json; what a frame does not say of its camera, the file says for all."""
    path = folder / "transforms.json"
    common = keys_of(path)
    frames = common.get("frames")
    if not isinstance(frames, list) or not all(isinstance(frame, dict) for frame in frames):
        raise ValueError(f"{path}: frames: expected a list of frames")
    for number, frame in enumerate(frames):
        where, values = f"{path}: frames.{number}", common | frame
        if (model := values.get("camera_model", "OPENCV")) not in ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE"):
            raise ValueError(f"{where}: camera_model: expected a pinhole, found {model!r:.80}")
        bent = [key for key in ("k1", "k2", "k3", "k4", "p1", "p2") if values.get(key)]
        if bent:
            raise ValueError(
                f"{where}: {bent[0]}: expected images without distortion; undistort them and their depth first"
            )
        if not isinstance(values.get("depth_file_path"), str) or not isinstance(values.get("file_path"), str):
            raise ValueError(f"{where}: expected file_path and depth_file_path")
        mask = values.get("mask_path")
        yield Found(
            folder / values["file_path"],
            folder / values["depth_file_path"],
            camera_of(values, ("fl_x", "fl_y", "cx", "cy"), where),
            size_of(values, where, ("w", "h")),
            folder / mask if isinstance(mask, str) else None,
        )


def keys_of(path: Path) -> dict[str, Any]:
    """A JSON file that holds keys."""
    values = read_json(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected keys and values, found {type(values).__name__}")
    return values


def camera_of(values: dict[str, Any], keys: tuple[str, ...], where: object) -> tuple[float, ...]:
    """The numbers under these keys. ValueError, led by `where`, for one that is none."""
    for key in keys:
        is_number = isinstance(values.get(key), int | float) and not isinstance(values[key], bool)
        if not is_number or not abs(values[key]) <= MAX_CAMERA_PX:
            raise ValueError(f"{where}: {key}: expected a number of pixels, found {values.get(key)!r:.80}")
    return tuple(float(values[key]) for key in keys)


def size_of(
    values: dict[str, Any], where: object, keys: tuple[str, str] = ("width", "height")
) -> tuple[int, int] | None:
    """Width and height under these keys; None where neither is given."""
    if all(values.get(key) is None for key in keys):
        return None
    width, height = camera_of(values, keys, where)
    return int(width), int(height)


def with_a_suffix(path: Path, suffixes: tuple[str, ...]) -> Path:
    """The file of that name with the first of these suffixes that exists."""
    named = [path.with_name(path.name + suffix) for suffix in suffixes]
    return next((file for file in named if file.is_file()), named[0])


# ARKit and nerfstudio count from the corner of the image; the benchmark's cameras are OpenCV's.
LAYOUTS = {
    "nerfstudio": Layout(("transforms.json",), find_nerfstudio, 0.001, None, first_pixel=0.5, with_camera=True),
    "polycam": Layout(("keyframes/cameras",), find_polycam, "millimetre", "planar", first_pixel=0.5, with_camera=True),
    "arkit": Layout(("frame_*.json",), find_arkit, "millimetre", "planar", first_pixel=0.5, with_camera=True),
    "tum": Layout(("rgb.txt", *ASSOCIATIONS), find_tum, 0.0002, "planar", first_pixel=0, with_camera=False),
}
