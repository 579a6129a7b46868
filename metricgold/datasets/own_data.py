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
       splits:                 # globs over scenes; a scene belongs to one split at most
         train: ["house_*"]
         test: [barn]

   `exclude: [{frames: barn/00*, reason: blurred}]` leaves frames out by their names.
3. Write frames.csv: columns rgb, depth (paths below the folder) and scene; fx, fy, cx, cy if they differ from row
   to row; name if a frame is not to be called like its rgb without the suffix. Not needed where the files are called
   <scene>/rgb/<id>.* and <scene>/depth/<id>.*.
4. `metricgold inspect <name>`, look at the page, and put the name under `datasets` in params.yaml.

Depth may be a 16-bit grey PNG, .npy, .npz (one array, or `array: its name` under depth) or TIFF (float or 16-bit
grey), of the same size as the rgb. NaN, infinity, zero and below are never valid. An rgb may be any photograph that
metricgold.images.photo reads, but one whose EXIF turns it is refused: the depth may or may not have been turned too.
"""

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, NamedTuple

import numpy as np
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from metricgold.datasets.arrays import expect_shape, naming, read_npy, read_pixels
from metricgold.datasets.content import contents_by_scene
from metricgold.datasets.frame import Frame
from metricgold.datasets.listing import FrameRef, Gaps, Listing, is_clutter, no_gaps, paired_ids
from metricgold.datasets.splits import ClosedModel, Exclusion, split_of_scene
from metricgold.images import planar_from_ray_distance, rays_from_intrinsics, read_rgb
from metricgold.storage import Lines, digest_file, digest_json, read_yaml, write_json

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
    """Of all frames; without fx, fy, cx, cy they are in frames.csv."""

    first_pixel: Annotated[Number, AfterValidator(require_pixel_convention)]
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
        stated = [value for value in (self.fx, self.fy, self.cx, self.cy) if value is not None]
        return tuple(stated) or None


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
        """What is stated of a frame with this camera, fx, fy, cx, cy in the statement's own count of pixels."""
        fx, fy, cx, cy = camera
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
        # One line for each key, also for a key that may be of two kinds.
        texts_of: dict[str, list[str]] = {}
        for fault in error.errors():
            key = ".".join(str(part) for part in fault["loc"] if not str(part).startswith(("literal[", "constrained-")))
            text = "missing, and it is never guessed" if fault["type"] == "missing" else fault["msg"]
            if fault["type"] not in ("missing", "value_error"):
                text += f", found {fault['input']!r:.80}"
            texts_of.setdefault(key.removesuffix(".float") or "the file", []).append(text.removeprefix("Value error, "))
        raise ValueError(Lines(f"{path}: {key}: {' or '.join(texts)}" for key, texts in texts_of.items())) from error


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
    folders = (folder.parent for kind in ("rgb", "depth") for folder in raw.glob(f"*/{kind}"))
    scenes = sorted({folder for folder in folders if not is_clutter(folder.name)})
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


def _names_in(folder: Path) -> frozenset[str]:
    # One look into each folder: a call for every file would be slow on a network disk.
    return frozenset(file.name for file in folder.iterdir()) if folder.is_dir() else frozenset()


def camera_of_row(row: dict[str, str], where: str) -> tuple[float, ...]:
    """fx, fy, cx, cy of a row of frames.csv. ValueError, led by `where`, for one that is not."""
    camera = []
    for column in CAMERA:
        try:
            value = float(row[column])
        except ValueError:
            value = np.nan
        if not np.isfinite(value) or (column[0] == "f" and value <= 0):
            expected = "a focal length" if column[0] == "f" else "a place in pixels"
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


# Reading


def read_frame(ref: FrameRef) -> Frame:
    """Stored numbers to planar metres. ValueError names a file that is missing, broken or not as stated."""
    rgb, recording = read_upright_rgb(ref.rgb_path), Recording(*ref.camera)
    stored = read_stored_depth(ref.depth_path, recording.array)
    expect_shape(ref.depth_path, stored, rgb.shape[:2])
    depth_m = stored.astype(np.float64) * recording.metres_per_unit
    if recording.is_ray_distance:
        depth_m *= cosines(recording.fx, recording.fy, recording.cx, recording.cy, *stored.shape)
    # Written as 32 bits, -0.1 is another number than in 64.
    invalid = np.array(recording.invalid, stored.dtype if stored.dtype.kind == "f" else np.float64)
    valid_mask = ~np.isin(stored, invalid) & (stored < recording.far)
    intrinsics = np.array([[recording.fx, 0, recording.cx], [0, recording.fy, recording.cy], [0, 0, 1]])
    return Frame.from_arrays(rgb, depth_m, valid_mask, intrinsics, ref.scene, ref.name)


def read_upright_rgb(path: Path) -> np.ndarray:
    """A photograph, uint8 [H, W, 3]. ValueError where its EXIF turns it."""
    from PIL import Image

    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    rgb = read_rgb(path, max_pixels=MAX_PIXELS)
    with naming(path), Image.open(path) as image:
        turn = image.getexif().get(_ORIENTATION_TAG, 1)
        if turn not in (0, 1):
            raise ValueError(f"its EXIF orientation {turn} turns it; expected pixels stored upright, like the depth's")
    return rgb


def read_stored_depth(path: Path, array: str | None = None) -> np.ndarray:
    """Depth in the file's own numbers, integer or floating point [H, W]. ValueError names the file."""
    match path.suffix.lower():
        case ".npy":
            stored = read_npy(path)
        case ".npz":
            with naming(path), np.load(path, allow_pickle=False) as arrays:
                if array is None and len(arrays.files) != 1:
                    names = ", ".join(arrays.files)
                    raise ValueError(f"holds {names}; depth.array in {STATEMENT} must say which is meant")
                stored = arrays[array or arrays.files[0]]
        case ".png":
            stored = read_pixels(path, "I;16")
        case ".tif" | ".tiff":
            stored = read_tiff(path)
        case _:
            raise ValueError(f"{path}: depth is read from {', '.join(DEPTH_SUFFIXES)}")
    if stored.ndim == 3 and stored.shape[2] == 1:
        stored = stored[..., 0]
    if stored.dtype.kind not in "fui" or stored.ndim != 2:
        raise ValueError(f"{path}: expected numbers [H, W], got {stored.dtype} {list(stored.shape)}")
    return stored


def read_tiff(path: Path) -> np.ndarray:
    """Numbers of a TIFF of floats or 16-bit grey, [H, W]."""
    from PIL import Image

    with naming(path), Image.open(path, formats=["TIFF"]) as image:
        if image.mode not in ("F", "I;16", "I;16B"):
            raise ValueError(f"expected floating point or 16-bit grey, got mode {image.mode}")
        return np.array(image)


@lru_cache(maxsize=8)  # frames come scene by scene
def cosines(fx: float, fy: float, cx: float, cy: float, height: int, width: int) -> np.ndarray:
    """Planar depth of one metre along each ray, float64 [H, W]."""
    rays = rays_from_intrinsics(np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]), height, width)
    return planar_from_ray_distance(np.ones((height, width)), rays)
