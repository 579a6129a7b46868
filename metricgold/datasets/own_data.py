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
   <scene>/depth/<id>.*.
4. `metricgold inspect <name>`, look at the page, and put the name under `datasets` in params.yaml.

Depth may be a 16-bit grey PNG, .npy, .npz (one array, or `array: its name` under depth) or TIFF (float or 16-bit
grey), of the same size as the rgb. NaN, infinity, zero and below are never valid. An rgb may be any photograph that
metricgold.images.photo reads, but a file that says that it is to be turned is refused, rgb or depth: nothing says
whether the other was turned too.
"""

import csv
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from math import atan, degrees
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from metricgold.datasets.arrays import Size, expect_shape, format_size, naming, read_size
from metricgold.datasets.content import contents_by_scene
from metricgold.datasets.frame import Frame
from metricgold.datasets.listing import FrameRef, Gaps, Listing, folders_below, is_clutter, no_gaps, paired_ids
from metricgold.datasets.splits import ClosedModel, Exclusion, split_of_scene
from metricgold.datasets.stored_depth import read_stored_depth
from metricgold.datasets.turns import expect_upright
from metricgold.images import planar_from_ray_distance, rays_from_intrinsics, read_rgb
from metricgold.storage import digest_file, digest_json, faults_of, read_yaml, write_json

STATEMENT = "dataset.yaml"
FRAMES = "frames.csv"
METRES = {"metre": 1.0, "centimetre": 0.01, "millimetre": 0.001}
CAMERA = ("fx", "fy", "cx", "cy")
CAMERA_SIZE = ("width", "height")
MAX_PIXELS = 100_000_000
MAX_STRETCH = 0.02  # of one axis against the other, by rounding: ScanNet's 640 x 480 of 1296 x 968 are 0.4 % off
FIELD_OF_VIEW_DEG = (10.0, 150.0)  # over the long side


Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Positive = Annotated[Number, Field(gt=0)]
Pixels = Annotated[int, Field(strict=True, gt=0)]
Numbers = Annotated[tuple[Number, ...], BeforeValidator(lambda value: value if isinstance(value, list) else [value])]


def require_pixel_convention(first_pixel: float) -> float:
    """One of the two places that the centre of an image's first pixel has."""
    if first_pixel not in (0, 0.5):
        raise ValueError(f"must be 0 (OpenCV) or 0.5 (COLMAP), found {first_pixel:g}")
    return first_pixel


class StoredDepth(ClosedModel):
    """What a number in a depth file means. invalid and far are stored values, before any unit."""

    unit: Literal["metre", "centimetre", "millimetre"] | Positive
    kind: Literal["planar", "ray distance"]
    invalid: Numbers
    far: Number | None
    array: str | None = None  # of an .npz with several

    @property
    def metres_per_unit(self) -> float:
        """What a stored value is multiplied by."""
        return METRES[self.unit] if isinstance(self.unit, str) else self.unit


class Intrinsics(ClosedModel):
    """Of all frames; without fx, fy, cx, cy they are in frames.csv. width, height: of the image that they belong to."""

    first_pixel: Annotated[Number, AfterValidator(require_pixel_convention)]
    fx: Positive | None = None
    fy: Positive | None = None
    cx: Number | None = None
    cy: Number | None = None
    width: Pixels | None = None
    height: Pixels | None = None

    @model_validator(mode="after")
    def _all_or_none(self) -> "Intrinsics":
        missing = [name for name in CAMERA if getattr(self, name) is None]
        if missing and len(missing) < len(CAMERA):
            raise ValueError(f"lacks {', '.join(missing)}: give all of {', '.join(CAMERA)} or none")
        if (self.width is None) != (self.height is None) or (self.width and missing):
            raise ValueError(
                "width and height are the size of the image that fx, fy, cx, cy belong to: give all or none"
            )
        return self

    @property
    def camera(self) -> tuple[float, ...] | None:
        """fx, fy, cx, cy, and width, height where they are stated; None where every row has its own."""
        stated = (self.fx, self.fy, self.cx, self.cy, self.width, self.height)
        return tuple(value for value in stated if value is not None) or None


class Recording(NamedTuple):
    """FrameRef.camera of this reader: all that turns a depth file into planar metres."""

    fx: float
    fy: float
    cx: float  # the centre of the first pixel is at 0.5
    cy: float
    metres_per_unit: float
    is_ray_distance: bool
    invalid: tuple[float, ...]
    far: float  # inf: no such value
    array: str | None
    camera_size: Size | None  # of the image that the camera is stated for; None: the rgb

    def intrinsics(self, size: Size) -> np.ndarray:
        """K in pixels of an image of this size, float64 [3, 3]. ValueError for one that it cannot belong to."""
        height, width = size
        rows, columns = self.camera_size or size
        sx, sy = width / columns, height / rows
        if abs(sx / sy - 1) > MAX_STRETCH:
            raise ValueError(f"{format_size(size)} is not {format_size((rows, columns))}, its camera's image, scaled")
        fx, fy, cx, cy = self.fx * sx, self.fy * sy, self.cx * sx, self.cy * sy
        if fault := camera_fault((fx, fy, cx, cy), size):
            raise ValueError(
                f"{fault}; expected a camera in pixels of the rgb, or with width and height of its own image"
            )
        return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


class Statement(ClosedModel):
    """dataset.yaml. Made by read_statement."""

    depth: StoredDepth
    intrinsics: Intrinsics
    splits: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    exclude: tuple[Exclusion, ...] = ()

    def splitter(self, raw: Path, split: str) -> Callable[[str, str], str | None]:
        """A function (scene, frame name) -> split or None. ValueError where `split` is not among splits."""
        if split not in self.splits:
            known = ", ".join(self.splits) or "none"
            raise ValueError(f"{raw / STATEMENT}: splits: has no {split!r}, known: {known}")
        return lambda scene, _name: split_of_scene(scene, self.splits, f"{raw / STATEMENT}: splits")

    def recording(self, camera: tuple[float, ...]) -> Recording:
        """What is stated of a frame with this camera, which is as Intrinsics.camera has it."""
        fx, fy, cx, cy, *camera_size = camera
        to_half = 0.5 - self.intrinsics.first_pixel
        return Recording(
            fx,
            fy,
            cx + to_half,
            cy + to_half,
            metres_per_unit=self.depth.metres_per_unit,
            is_ray_distance=self.depth.kind == "ray distance",
            invalid=self.depth.invalid,
            far=np.inf if self.depth.far is None else self.depth.far,
            array=self.depth.array,
            camera_size=(int(camera_size[1]), int(camera_size[0])) if camera_size else None,
        )


def has_statement(raw: Path) -> bool:
    """Whether a raw folder is described by a dataset.yaml."""
    return (Path(raw) / STATEMENT).is_file()


def read_statement(raw: Path) -> Statement:
    """Read and check dataset.yaml. ValueError lists every fault as `file: key: what`."""
    path = Path(raw) / STATEMENT
    values = read_yaml(path)
    try:
        return Statement.model_validate({} if values is None else values)
    except ValidationError as error:
        raise ValueError(faults_of(path, ((fault["loc"], describe(fault)) for fault in error.errors()))) from error


def describe(fault: ErrorDetails) -> str:
    """What pydantic found wrong with one value, in a few words."""
    if fault["type"] == "missing":
        return "missing, and it is never guessed"
    text = fault["msg"].removeprefix("Value error, ")
    return text if fault["type"] == "value_error" else f"{text}, found {fault['input']!r:.80}"


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
        for kind in ("rgb", "depth"):
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
        yield FrameRef(dataset, row["scene"], name, paths["rgb"], paths["depth"], camera=recording)


def refs_of_folders(dataset: str, raw: Path, statement: Statement, gaps: Mapping[str, Gaps]) -> Iterator[FrameRef]:
    """A frame for each id that is in both folders of a scene; the other ids are counted as gaps."""
    scenes = sorted({folder.parent for kind in ("rgb", "depth") for folder in folders_below(raw, f"*/{kind}")})
    camera = statement.intrinsics.camera
    if camera is None:
        if scenes:
            reason = f"missing, and there is no {FRAMES} that has it row by row"
            raise ValueError(f"{raw / STATEMENT}: intrinsics.fx: {reason}")
        return
    recording = statement.recording(camera)
    for folder in scenes:
        scene, rgbs, depths = folder.name, files_by_id(folder / "rgb"), files_by_id(folder / "depth")
        for number in paired_ids(set(rgbs), set(depths), gaps[scene]):
            yield FrameRef(dataset, scene, f"{scene}/{number}", rgbs[number], depths[number], camera=recording)


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
    needed = ["rgb", "depth", "scene", *(CAMERA if in_rows else ()), *sizes]
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


def camera_fault(camera: tuple[float, ...], size: Size) -> str:
    """Why fx, fy, cx, cy, in pixels with centres at +0.5, cannot belong to an image of this size; empty if they can."""
    (fx, fy, cx, cy), (height, width) = camera, size
    if not (0 < cx < width and 0 < cy < height):
        return f"its principal point {cx:.6g}, {cy:.6g} is outside the image of {format_size(size)}"
    focal_px, centre, side = (fx, cx, width) if width >= height else (fy, cy, height)
    fov_deg = degrees(atan(centre / focal_px) + atan((side - centre) / focal_px))
    low, high = FIELD_OF_VIEW_DEG
    if not low <= fov_deg <= high:
        return f"its field of view over the long side, {side} pixels, is {fov_deg:.3g} degrees, not {low:g} to {high:g}"
    return ""


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
    with naming(ref.rgb_path):
        intrinsics = recording.intrinsics(rgb.shape[:2])
    stored = read_stored_depth(ref.depth_path, recording.array)
    expect_shape(ref.depth_path, stored, rgb.shape[:2])
    depth_m = stored.astype(np.float64) * recording.metres_per_unit
    if recording.is_ray_distance:
        depth_m *= cosines(*intrinsics[[0, 1, 0, 1], [0, 1, 2, 2]].tolist(), *stored.shape)
    # Written as 32 bits, -0.1 is another number than in 64.
    invalid = np.array(recording.invalid, stored.dtype if stored.dtype.kind == "f" else np.float64)
    valid_mask = ~np.isin(stored, invalid) & (stored < recording.far)
    return Frame.from_arrays(rgb, depth_m, valid_mask, intrinsics, ref.scene, ref.name)


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
