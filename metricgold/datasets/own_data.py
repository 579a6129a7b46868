"""A team's own data, described by two files instead of code. Four steps:

1. Put images and depth files below data/raw/<name>/, where <name> is any that no other reader has.
2. Beside them write dataset.yaml, which states what the numbers mean. Nothing is guessed: a key that is missing
   or unknown is an error.

       depth:
         unit: millimetre      # metre, centimetre, millimetre, or metres in one stored unit: 0.00390625
         kind: planar          # along the optical axis; or ray distance: along the ray of the pixel
         invalid: 0            # stored value that means no depth; several: [0, 65535]; none: []
         far: null             # from this stored value on it is sky, or beyond what was measured; null: no such value
       intrinsics:
         first_pixel: 0        # where the centre of the first pixel is: 0 (OpenCV) or 0.5 (COLMAP)
         fx: 525.0             # pixels of the rgb; leave out all four where frames.csv has them row by row
         fy: 525.0
         cx: 319.5
         cy: 239.5
         width: 640          # only where the camera is that of images of another size: K is scaled from it to the rgb
         height: 480
       splits:                 # globs over scenes; a scene belongs to one split at most
         train: ["house_*"]
         test: [barn]

   `exclude: [{frames: barn/00*, reason: blurred}]` leaves frames out by their names.
3. Write frames.csv: columns rgb, depth (paths below the folder) and scene; fx, fy, cx, cy if they differ from row
   to row, and width, height of the image that they belong to if that is not the rgb; name if a frame is not to be
   called like its rgb without the suffix. Not needed where the files are called <scene>/rgb/<id>.* and
   <scene>/depth/<id>.*. For recordings of some apps and sensors `metricgold import-frames` writes both files.
4. `metricgold inspect <name>`, look at the page, and put the name under `datasets` in params.yaml.

Depth may be a 16-bit grey PNG or PGM, .npy, .npz (one array, or `array: its name` under depth), TIFF (float or 16-bit
grey), EXR (one channel, or `array: its name`) or PFM. NaN, infinity, zero and below are never valid. More keys of
depth, all optional: `coding` for a PNG whose pixels are no plain numbers (metricgold.datasets.stored_depth has a list),
`resize: nearest` for depth of another size than its rgb, and `mask: valid` or `mask: invalid`, what a pixel other than
0 means in <scene>/mask/<id>.* or in the files of the column mask. An rgb may be any photograph that
metricgold.images.photo reads, but a file that says that it is to be turned is refused: nothing says whether the others
were turned too.
"""

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from metricgold.datasets.arrays import Size, expect_shape, format_size, naming, read_size
from metricgold.datasets.content import contents_by_scene
from metricgold.datasets.frame import NO_SURFACE, Frame
from metricgold.datasets.listing import FrameRef, Gaps, Listing, folders_below, is_clutter, no_gaps, paired_ids
from metricgold.datasets.own_statement import (
    CAMERA,
    CAMERA_SIZE,
    STATEMENT,
    Recording,
    Statement,
    is_stretched,
    read_statement,
)
from metricgold.datasets.stored_depth import read_mask, read_stored_depth
from metricgold.datasets.turns import expect_upright
from metricgold.images import planar_from_ray_distance, rays_from_intrinsics, read_rgb
from metricgold.storage import digest_file, digest_json, write_json

FRAMES = "frames.csv"
MAX_PIXELS = 100_000_000


def has_statement(raw: Path) -> bool:
    """Whether a raw folder is described by a dataset.yaml."""
    return (Path(raw) / STATEMENT).is_file()


def digest(raw: Path) -> str:
    """Identity of what is stated, for everything made from it: sha256 over dataset.yaml and frames.csv."""
    files = [path for path in (Path(raw) / STATEMENT, Path(raw) / FRAMES) if path.is_file()]
    return digest_json({path.name: digest_file(path) for path in files})


def write_ledger(dataset: str, raw: Path) -> Path:
    """Write what is here by scene, in the form that downloaded data have; return the path of ledger.json.

    It changes with the statement and with the name or content of any file, see metricgold.datasets.content.
    """
    scenes = contents_by_scene(Path(raw), list_frames(dataset, raw).frames)
    archives = {
        scene: {
            "scenes": [scene],
            "members": len(files),
            "bytes": sum(content.bytes for content in files.values()),
            "members_sha256": digest_json(files),
        }
        for scene, files in scenes.items()
    }
    write_json(Path(raw) / "ledger.json", {"dataset": dataset, "archives": archives, "stated_sha256": digest(raw)})
    return Path(raw) / "ledger.json"


# Listing


def list_frames(dataset: str, raw: Path) -> Listing:
    """Frames of frames.csv, or of <scene>/{rgb,depth}/ without one; FrameRef.camera is a Recording.

    Raises ValueError naming file and key for everything that is not stated as it should be.
    """
    statement, gaps = read_statement(raw), no_gaps()
    list_refs = refs_of_csv if (raw / FRAMES).exists() else refs_of_folders
    return Listing.of(list(list_refs(dataset, raw, statement, gaps)), gaps)


def looked_for(raw: Path) -> str:
    """Where frames were looked for in a raw folder that has none."""
    if (raw / FRAMES).exists():
        return f"{raw / FRAMES} names none"
    hint = f"; {raw}/rgb and /depth belong into the folder of a scene" if (raw / "rgb").is_dir() else ""
    return f"there is neither {raw / FRAMES} nor a folder <scene>/rgb or <scene>/depth in {raw}{hint}"


def refs_of_csv(dataset: str, raw: Path, statement: Statement, gaps: Mapping[str, Gaps]) -> Iterator[FrameRef]:
    """A frame for each row of frames.csv whose two files exist; the other rows are counted as gaps."""
    names_in = lru_cache(maxsize=1024)(_names_in)
    for line, row in read_csv_rows(raw / FRAMES, statement):
        where, paths = f"{raw / FRAMES}: line {line}", {}
        for kind in kinds_of(statement):
            path = PurePosixPath(row[kind])
            if path.is_absolute() or ".." in path.parts or "\\" in row[kind]:
                raise ValueError(f"{where}: {kind}: {row[kind]} must be a path below {raw}, with / and without '..'")
            paths[kind] = raw / path
        missing = [kind for kind, path in paths.items() if path.name not in names_in(path.parent)]
        if missing:
            gaps[row["scene"]][f"{' and '.join(missing)} missing"] += 1
            continue
        camera = statement.intrinsics.camera or camera_of_row(row, where)
        name = row.get("name") or PurePosixPath(row["rgb"]).with_suffix("").as_posix()
        recording = statement.recording(camera)
        mask_path = paths.get("mask")
        yield FrameRef(dataset, row["scene"], name, paths["rgb"], paths["depth"], mask_path=mask_path, camera=recording)


def refs_of_folders(dataset: str, raw: Path, statement: Statement, gaps: Mapping[str, Gaps]) -> Iterator[FrameRef]:
    """A frame for each id that is in all folders of a scene; the other ids are counted as gaps."""
    scenes = sorted({folder.parent for kind in ("rgb", "depth") for folder in folders_below(raw, f"*/{kind}")})
    camera = statement.intrinsics.camera
    if camera is None:
        if scenes:
            reason = f"missing, and there is no {FRAMES} that has it row by row"
            raise ValueError(f"{raw / STATEMENT}: intrinsics.fx: {reason}")
        return
    recording = statement.recording(camera)
    for folder in scenes:
        scene, files = folder.name, {kind: files_by_id(folder / kind) for kind in kinds_of(statement)}
        for number in paired_ids(set(files["rgb"]), set(files["depth"]), gaps[scene]):
            if any(number not in by_id for by_id in files.values()):
                gaps[scene]["mask missing"] += 1
                continue
            rgb_path, depth_path = files["rgb"][number], files["depth"][number]
            mask_path = files["mask"][number] if "mask" in files else None
            name = f"{scene}/{number}"
            yield FrameRef(dataset, scene, name, rgb_path, depth_path, mask_path=mask_path, camera=recording)


def kinds_of(statement: Statement) -> tuple[str, ...]:
    """The files that a frame has: folders of a scene, and columns of frames.csv."""
    return ("rgb", "depth", "mask") if statement.depth.mask else ("rgb", "depth")


def read_csv_rows(path: Path, statement: Statement) -> list[tuple[int, dict[str, str]]]:
    """(line, row) pairs. ValueError for a cell that is empty and must not be, and for cells beyond the columns."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True, restkey="")
            needed = check_columns(path, reader.fieldnames or (), statement)
            rows = [(reader.line_num, row) for row in reader]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: is not a csv file: {error}") from error
    for line, row in rows:
        if "" in row:
            raise ValueError(f"{path}: line {line}: has more cells than the first line has columns")
        for column in needed:
            if not (row[column] or "").strip():
                raise ValueError(f"{path}: line {line}: {column}: is empty")
    return [(line, {key: (cell or "").strip() for key, cell in row.items()}) for line, row in rows]


def check_columns(path: Path, columns: Sequence[str], statement: Statement) -> list[str]:
    """The columns that must be filled. ValueError for one that is missing, unknown, or states a thing twice."""
    in_rows = statement.intrinsics.camera is None
    sizes = CAMERA_SIZE if in_rows and any(column in columns for column in CAMERA_SIZE) else ()
    needed = [*kinds_of(statement), "scene", *(CAMERA if in_rows else ()), *sizes]
    hint = f", and {STATEMENT} states no intrinsics.fx" if in_rows else ""
    if missing := [column for column in needed if column not in columns]:
        raise ValueError(f"{path}: lacks the columns {', '.join(missing)}{hint}")
    if twice := [column for column in columns if column in (*CAMERA, *CAMERA_SIZE) and not in_rows]:
        raise ValueError(
            f"{path}: has the columns {', '.join(twice)}, which {STATEMENT} states too; expected one of both"
        )
    if unknown := sorted(set(columns) - {*needed, "name"}):
        raise ValueError(f"{path}: unknown columns {', '.join(unknown)}; known: {', '.join([*needed, 'name'])}")
    return needed


def _names_in(folder: Path) -> frozenset[str]:
    # One look into each folder: a call for every file would be slow on a network disk.
    return frozenset(file.name for file in folder.iterdir()) if folder.is_dir() else frozenset()


def camera_of_row(row: dict[str, str], where: str) -> tuple[float, ...]:
    """fx, fy, cx, cy of a row of frames.csv, and width, height if it has them. ValueError, led by `where`."""
    camera = []
    for column in (*CAMERA, *(column for column in CAMERA_SIZE if column in row)):
        try:
            value = float(row[column])
        except ValueError:
            value = np.nan
        if not np.isfinite(value) or (column[0] in "fwh" and value <= 0):
            expected = {"f": "a focal length", "c": "a place in pixels"}.get(column[0], "a number of pixels")
            raise ValueError(f"{where}: {column}: {row[column]} is not {expected}")
        camera.append(value)
    return tuple(camera)


def files_by_id(folder: Path) -> dict[str, Path]:
    """Files by their name without suffix. ValueError for two that differ in nothing else."""
    files: dict[str, Path] = {}
    for name in sorted(_names_in(folder)):
        if name.startswith(".") or is_clutter(name):
            continue
        first = files.setdefault(Path(name).stem, folder / name)
        if first.name != name:
            raise ValueError(f"{folder}: {first.name} and {name} have one name; {FRAMES} can tell which is meant")
    return files


# Cameras


def camera_faults(frames: Sequence[FrameRef], sizes: Sequence[Size | None]) -> Iterator[tuple[str, str]]:
    """(frame, what is wrong) of cameras that cannot belong to an rgb of this size, or belong to several sizes."""
    size_of_camera: dict[tuple[Any, ...], tuple[Size, str]] = {}
    for ref, size in zip(frames, sizes, strict=True):
        if size is None or not isinstance(ref.camera, Recording):
            continue
        camera = ref.camera
        try:
            camera.intrinsics(size)
        except ValueError as error:
            yield ref.name, str(error)
            continue
        if camera.camera_size is None:
            first, name = size_of_camera.setdefault(camera[:4], (size, ref.name))
            if first != size:
                sizes_of_both = f"it is {format_size(size)} and {name}, with the same camera, {format_size(first)}"
                yield (
                    ref.name,
                    f"{sizes_of_both}; expected one size, or a camera with width and height of its own image",
                )


def is_resized(ref: FrameRef) -> bool:
    """Whether a frame's depth may have another size than its rgb."""
    return isinstance(ref.camera, Recording) and ref.camera.is_resized


def check_cameras(raw: Path, frames: Sequence[FrameRef]) -> None:
    """ValueError naming a frame whose camera cannot be right; the heads of all rgb are read by threads."""

    def size_of(ref: FrameRef) -> Size | None:
        try:
            return read_size(ref.rgb_path)
        except (ValueError, OSError):  # its reader will say so
            return None

    with ThreadPoolExecutor(4 * (os.cpu_count() or 1)) as threads:
        sizes = list(threads.map(size_of, frames))
    faults = list(camera_faults(frames, sizes))
    if faults:
        name, what = faults[0]
        raise ValueError(f"{raw}: frame {name}: {what} ({len(faults)} of {len(frames)} frames)")


# Reading


def read_frame(ref: FrameRef) -> Frame:
    """Stored numbers to planar metres. ValueError names a file that is missing, broken or not as stated."""
    rgb, recording = read_upright_rgb(ref.rgb_path), Recording(*ref.camera)
    size = rgb.shape[0], rgb.shape[1]
    with naming(ref.rgb_path):
        intrinsics = recording.intrinsics(size)
    stored = read_stored_depth(ref.depth_path, recording.array, recording.coding)
    if not recording.is_resized:
        expect_shape(ref.depth_path, stored, size)
    elif is_stretched(stored.shape, size):
        raise ValueError(f"{ref.depth_path}: {format_size(stored.shape)} is not the rgb's {format_size(size)}, scaled")
    depth_m = stored.astype(np.float64) * recording.metres_per_unit
    if recording.is_ray_distance:
        depth_m *= cosines(*camera_for(intrinsics, size, stored.shape), *stored.shape)
    # Written as 32 bits, -0.1 is another number than in 64.
    invalid = np.array(recording.invalid, stored.dtype if stored.dtype.kind == "f" else np.float64)
    known = resize_nearest(~np.isin(stored, invalid), size)
    if ref.mask_path is not None:
        known &= resize_nearest(read_mask(ref.mask_path, (stored.shape, size)), size) == (recording.mask == "valid")
    is_far = resize_nearest(stored >= recording.far, size)
    depth_m, layers = resize_nearest(depth_m, size), {NO_SURFACE: known & is_far}
    return Frame.from_arrays(rgb, depth_m, known & ~is_far, intrinsics, ref.scene, ref.name, layers)


def resize_nearest(image: np.ndarray, size: Size) -> np.ndarray:
    """[H, W] at another size, each pixel from the one that covers its centre: a mean of two depths does not exist."""
    if image.shape == size:
        return image
    rows, columns = ((np.arange(new) + 0.5) * old / new for new, old in zip(size, image.shape, strict=True))
    return image[np.ix_(rows.astype(int), columns.astype(int))]


def camera_for(intrinsics: np.ndarray, size: Size, other: Size) -> tuple[float, float, float, float]:
    """fx, fy, cx, cy of a K for images of this size, in pixels of another size."""
    sy, sx = other[0] / size[0], other[1] / size[1]
    return intrinsics[0, 0] * sx, intrinsics[1, 1] * sy, intrinsics[0, 2] * sx, intrinsics[1, 2] * sy


def read_upright_rgb(path: Path) -> np.ndarray:
    """A photograph, uint8 [H, W, 3]. ValueError where its file turns it."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    expect_upright(path)
    return read_rgb(path, max_pixels=MAX_PIXELS)


@lru_cache(maxsize=8)  # frames come scene by scene
def cosines(fx: float, fy: float, cx: float, cy: float, height: int, width: int) -> np.ndarray:
    """Planar depth of one metre along each ray, float64 [H, W]."""
    rays = rays_from_intrinsics(np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]), height, width)
    return planar_from_ray_distance(np.ones((height, width)), rays)
