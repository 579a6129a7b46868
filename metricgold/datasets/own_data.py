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
         first_pixel: 0        # where the centre of the first pixel lies: 0 (OpenCV) or 0.5 (COLMAP)
         fx: 525.0             # pixels of the rgb; leave out all four where frames.csv has them row by row
         fy: 525.0
         cx: 319.5
         cy: 239.5
       splits:                 # globs over scenes; a scene belongs to one split at most
         train: ["house_*"]
         test: [barn]

   `exclude: [{frames: barn/00*, reason: blurred}]` leaves frames out by their names.
3. Write frames.csv: columns rgb, depth (paths below the folder) and scene; fx, fy, cx, cy if they differ from row
   to row; name if a frame is not to be called like its rgb without the suffix. Not needed where the files lie as
   <scene>/rgb/<id>.* and <scene>/depth/<id>.*.
4. `metricgold inspect <name>`, look at the page, and put the name under `datasets` in params.yaml.

Depth may be a 16-bit grey PNG, .npy, .npz (one array, or `array: its name` under depth) or TIFF (float or 16-bit
grey), of the same size as the rgb. NaN, infinity, zero and below are never valid. An rgb may be any photograph that
metricgold.images.photo reads, but one whose EXIF turns it is refused: nobody can know whether the depth was turned too.
"""

import csv
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, NamedTuple

import numpy as np
import yaml
from pydantic import BeforeValidator, Field, ValidationError, model_validator

from metricgold.datasets.arrays import expect_shape, naming, read_npy, read_pixels
from metricgold.datasets.frame import Frame
from metricgold.datasets.listing import FrameRef, Listing, no_gaps, paired_ids
from metricgold.datasets.splits import ClosedModel, Exclusion, split_of_scene
from metricgold.images import planar_from_ray_distance, rays_from_intrinsics, read_rgb
from metricgold.storage import digest_file, digest_json, write_json

STATEMENT = "dataset.yaml"
FRAMES = "frames.csv"
METRES = {"metre": 1.0, "centimetre": 0.01, "millimetre": 0.001}
CAMERA = ("fx", "fy", "cx", "cy")
MAX_PIXELS = 100_000_000
DEPTH_SUFFIXES = (".png", ".npy", ".npz", ".tif", ".tiff")
_ORIENTATION_TAG = 0x0112


Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Positive = Annotated[Number, Field(gt=0)]
Numbers = Annotated[tuple[Number, ...], BeforeValidator(lambda value: value if isinstance(value, list) else [value])]


class StoredDepth(ClosedModel):
    """What a number in a depth file means. invalid and far are stored values, before any unit."""

    unit: Literal["metre", "centimetre", "millimetre"] | Positive
    kind: Literal["planar", "ray distance"]
    invalid: Numbers
    far: Number | None
    array: str | None = None  # which one of an .npz

    @property
    def metres_per_unit(self) -> float:
        return METRES[self.unit] if isinstance(self.unit, str) else self.unit


class Intrinsics(ClosedModel):
    """Of all frames; without fx, fy, cx, cy they stand in frames.csv."""

    first_pixel: Literal[0, 0.5]
    fx: Positive | None = None
    fy: Positive | None = None
    cx: Number | None = None
    cy: Number | None = None

    @model_validator(mode="after")
    def _all_or_none(self) -> "Intrinsics":
        missing = [name for name in CAMERA if getattr(self, name) is None]
        if missing and len(missing) < len(CAMERA):
            raise ValueError(f"lacks {', '.join(missing)}: give all of {', '.join(CAMERA)} or none")
        return self

    @property
    def camera(self) -> tuple[float, ...] | None:
        """fx, fy, cx, cy as stated, or None where every row has its own."""
        return None if self.fx is None else (self.fx, self.fy, self.cx, self.cy)


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


class Recording(NamedTuple):
    """FrameRef.camera of this reader: all that turns a depth file into planar metres."""

    fx: float
    fy: float
    cx: float  # the centre of the first pixel lies at 0.5
    cy: float
    metres_per_unit: float
    is_ray_distance: bool
    invalid: tuple[float, ...]
    far: float  # inf: no such value
    array: str | None


def has_statement(raw: Path) -> bool:
    """Whether a raw folder is described by a dataset.yaml."""
    return (Path(raw) / STATEMENT).is_file()


def read_statement(raw: Path) -> Statement:
    """Read and check dataset.yaml. ValueError lists every fault as `file: key: what`."""
    path = Path(raw) / STATEMENT
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error
    try:
        return Statement.model_validate({} if values is None else values)
    except ValidationError as error:
        raise ValueError("\n".join(f"{path}: {fault}" for fault in _faults(error))) from error


def digest(raw: Path) -> str:
    """What is stated, for the identity of what is made from it: sha256 over dataset.yaml and frames.csv."""
    files = [path for path in (Path(raw) / STATEMENT, Path(raw) / FRAMES) if path.is_file()]
    return digest_json({path.name: digest_file(path) for path in files})


def write_ledger(dataset: str, raw: Path) -> Path:
    """What lies here by scene, in the form that downloaded data have; answers the path of ledger.json.

    It changes with names, sizes and the statement, not with bytes alone: no terabyte is hashed for it.
    """
    files: dict[str, dict[str, int]] = {}
    for ref in list_frames(dataset, raw).frames:
        sizes = {path.relative_to(raw).as_posix(): path.stat().st_size for path in (ref.rgb_path, ref.depth_path)}
        files.setdefault(ref.scene, {}).update(sizes)
    archives = {
        scene: {
            "scenes": [scene],
            "members": len(sizes),
            "bytes": sum(sizes.values()),
            "members_sha256": digest_json(sizes),
        }
        for scene, sizes in files.items()
    }
    write_json(Path(raw) / "ledger.json", {"dataset": dataset, "archives": archives, "stated_sha256": digest(raw)})
    return Path(raw) / "ledger.json"


def _faults(error: ValidationError) -> Iterator[str]:
    """One line for each key; a key that may be of two kinds has one."""
    said: dict[str, list[str]] = {}
    for fault in error.errors():
        key = ".".join(str(part) for part in fault["loc"] if not str(part).startswith(("literal[", "constrained-")))
        text = "missing, and it is never guessed" if fault["type"] == "missing" else fault["msg"]
        if fault["type"] not in ("missing", "value_error"):
            text += f", found {fault['input']!r:.80}"
        said.setdefault(key.removesuffix(".float") or "the file", []).append(text.removeprefix("Value error, "))
    yield from (f"{key}: {' or '.join(texts)}" for key, texts in said.items())


# Listing


def list_frames(dataset: str, raw: Path) -> Listing:
    """Frames of frames.csv, or of <scene>/{rgb,depth}/ without one; FrameRef.camera is a Recording.

    Raises ValueError naming file and key for everything that is not stated as it should be.
    """
    statement, gaps = read_statement(raw), no_gaps()
    has_csv = (raw / FRAMES).exists()
    rows = _rows_of_csv(raw, statement, gaps) if has_csv else _rows_of_folders(raw, statement, gaps)
    return Listing.of([FrameRef(dataset, *row) for row in rows], gaps)


# Scene, name, rgb, depth, None, recording: the fields of a FrameRef behind its data set
_Row = tuple[str, str, Path, Path, None, Recording]


def _recording(statement: Statement, camera: tuple[float, ...]) -> Recording:
    depth, (fx, fy, cx, cy) = statement.depth, camera
    to_half = 0.5 - statement.intrinsics.first_pixel
    return Recording(
        fx,
        fy,
        cx + to_half,
        cy + to_half,
        metres_per_unit=depth.metres_per_unit,
        is_ray_distance=depth.kind == "ray distance",
        invalid=depth.invalid,
        far=np.inf if depth.far is None else depth.far,
        array=depth.array,
    )


def _rows_of_csv(raw: Path, statement: Statement, gaps: Mapping[str, Counter]) -> Iterator[_Row]:
    names_in = lru_cache(maxsize=1024)(_names_in)
    for line, row in _read_rows(raw / FRAMES, statement):
        where = f"{raw / FRAMES}: line {line}"
        files = {kind: _below(raw, row[kind], f"{where}: {kind}") for kind in ("rgb", "depth")}
        missing = [kind for kind, file in files.items() if file.name not in names_in(file.parent)]
        if missing:
            gaps[row["scene"]][f"{' and '.join(missing)} missing"] += 1
            continue
        camera = statement.intrinsics.camera or _camera_of_row(row, where)
        name = row.get("name") or PurePosixPath(row["rgb"]).with_suffix("").as_posix()
        yield row["scene"], name, files["rgb"], files["depth"], None, _recording(statement, camera)


def _read_rows(path: Path, statement: Statement) -> list[tuple[int, dict[str, str]]]:
    """(line, row) pairs, every cell that must be filled being so."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True, restkey="")
            needed = _check_columns(path, reader.fieldnames or (), statement)
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


def _check_columns(path: Path, columns: tuple[str, ...], statement: Statement) -> list[str]:
    """The columns that must be filled. ValueError for one that is missing, unknown, or states a thing twice."""
    in_rows = statement.intrinsics.camera is None
    needed = ["rgb", "depth", "scene", *(CAMERA if in_rows else ())]
    hint = f", and {STATEMENT} states no intrinsics.fx" if in_rows else ""
    if missing := [column for column in needed if column not in columns]:
        raise ValueError(f"{path}: lacks the columns {', '.join(missing)}{hint}")
    if twice := [column for column in columns if column in CAMERA and not in_rows]:
        raise ValueError(
            f"{path}: has the columns {', '.join(twice)}, which {STATEMENT} states too; expected one of both"
        )
    if unknown := sorted(set(columns) - {*needed, "name"}):
        raise ValueError(f"{path}: unknown columns {', '.join(unknown)}; known: {', '.join([*needed, 'name'])}")
    return needed


def _below(raw: Path, text: str, where: str) -> Path:
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts or "\\" in text:
        raise ValueError(f"{where}: {text} must be a path below {raw}, with / and without '..'")
    return raw / path


def _names_in(folder: Path) -> frozenset[str]:
    # One look into each folder: a call for every file would be slow on a network disk.
    return frozenset(file.name for file in folder.iterdir()) if folder.is_dir() else frozenset()


def _camera_of_row(row: dict[str, str], where: str) -> tuple[float, ...]:
    camera = []
    for column in CAMERA:
        try:
            value = float(row[column])
        except ValueError:
            value = np.nan
        if not np.isfinite(value) or (column[0] == "f" and value <= 0):
            raise ValueError(
                f"{where}: {column}: {row[column]} is no {'focal length' if column[0] == 'f' else 'place'}"
            )
        camera.append(value)
    return tuple(camera)


def _rows_of_folders(raw: Path, statement: Statement, gaps: Mapping[str, Counter]) -> Iterator[_Row]:
    camera = statement.intrinsics.camera
    scenes = sorted({folder.parent for kind in ("rgb", "depth") for folder in raw.glob(f"*/{kind}")})
    if camera is None and scenes:
        raise ValueError(f"{raw / STATEMENT}: intrinsics.fx: missing, and there is no {FRAMES} that has it row by row")
    for scene in scenes:
        rgbs, depths = _files_by_id(scene / "rgb"), _files_by_id(scene / "depth")
        for one in paired_ids(set(rgbs), set(depths), gaps[scene.name]):
            name = f"{scene.name}/{one}"
            yield scene.name, name, rgbs[one], depths[one], None, _recording(statement, camera)


def _files_by_id(folder: Path) -> dict[str, Path]:
    """Files by their name without suffix. ValueError for two that differ in nothing else."""
    found: dict[str, Path] = {}
    for name in sorted(_names_in(folder)):
        if name.startswith("."):  # side-cars of file managers
            continue
        one = Path(name).stem
        if one in found:
            raise ValueError(f"{folder}: {found[one].name} and {name} have one name; {FRAMES} can tell which is meant")
        found[one] = folder / name
    return found


# Reading


def read_frame(ref: FrameRef) -> Frame:
    """Stored numbers to planar metres. ValueError names a file that is missing, broken or not as stated."""
    rgb, recording = _read_rgb(ref.rgb_path), ref.camera
    stored = read_depth(ref.depth_path, recording.array)
    expect_shape(ref.depth_path, stored, rgb.shape[:2])
    depth_m = stored.astype(np.float64) * recording.metres_per_unit
    intrinsics = np.array([[recording.fx, 0, recording.cx], [0, recording.fy, recording.cy], [0, 0, 1]])
    if recording.is_ray_distance:
        depth_m *= _cosines(recording[:4], *rgb.shape[:2])
    valid_mask = ~_is_any(stored, recording.invalid) & (stored < recording.far)
    return Frame.from_arrays(rgb, depth_m, valid_mask, intrinsics, ref.scene, ref.name)


def read_depth(path: Path, array: str | None = None) -> np.ndarray:
    """Stored depth as it lies, integer or floating point [H, W]. ValueError names the file."""
    readers = {".npy": read_npy, ".npz": lambda path: _read_npz(path, array), ".png": lambda p: read_pixels(p, "I;16")}
    read = readers.get(path.suffix.lower(), _read_tiff)
    if path.suffix.lower() not in DEPTH_SUFFIXES:
        raise ValueError(f"{path}: depth is read from {', '.join(DEPTH_SUFFIXES)}")
    stored = read(path)
    if stored.ndim == 3 and stored.shape[2] == 1:
        stored = stored[..., 0]
    if stored.dtype.kind not in "fui" or stored.ndim != 2:
        raise ValueError(f"{path}: expected numbers [H, W], got {stored.dtype} {list(stored.shape)}")
    return stored


def _read_npz(path: Path, array: str | None) -> np.ndarray:
    with naming(path), np.load(path, allow_pickle=False) as arrays:
        if array is None and len(arrays.files) != 1:
            raise ValueError(f"holds {', '.join(arrays.files)}; depth.array in {STATEMENT} must say which is meant")
        return arrays[array or arrays.files[0]]


def _read_tiff(path: Path) -> np.ndarray:
    from PIL import Image

    with naming(path), Image.open(path, formats=["TIFF"]) as image:
        if image.mode not in ("F", "I;16", "I;16B"):
            raise ValueError(f"expected floating point or 16-bit grey, got mode {image.mode}")
        return np.array(image)


def _read_rgb(path: Path) -> np.ndarray:
    from PIL import Image

    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    rgb = read_rgb(path, max_pixels=MAX_PIXELS)
    with naming(path), Image.open(path) as image:
        turn = image.getexif().get(_ORIENTATION_TAG, 1)
        if turn not in (0, 1):
            raise ValueError(f"its EXIF orientation {turn} turns it; expected pixels stored upright, like the depth's")
    return rgb


def _is_any(stored: np.ndarray, values: tuple[float, ...]) -> np.ndarray:
    # Written as 32 bits, -0.1 is another number than in 64.
    wanted = np.array(values, stored.dtype if stored.dtype.kind == "f" else np.float64)
    return np.isin(stored, wanted)


@lru_cache(maxsize=8)
def _cosines(camera: tuple[float, ...], height: int, width: int) -> np.ndarray:
    # Frames come scene by scene, so the last few cameras are all that is asked for.
    fx, fy, cx, cy = camera
    rays = rays_from_intrinsics(np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]), height, width)
    return planar_from_ray_distance(1.0, rays)  # [H, W]
