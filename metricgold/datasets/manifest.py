"""Data manifests: what exists upstream, where, under which licence, and which scenes are held out."""

import csv
import hashlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from metricgold.datasets.splits import ClosedModel, Exclusion, split_of_scene, splits_of_scene
from metricgold.params import MANIFESTS, DatasetName, DistanceKind, Folders
from metricgold.storage import Lines, digest_json, read_yaml

SCHEMES = ("file", "http", "https", "s3")
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".7z")
ALGORITHMS = ("md5", "sha256", "sha512")
OF_NO_BYTES = {hashlib.new(name, usedforsecurity=False).hexdigest() for name in ALGORITHMS}


def require_path_below(path: str) -> str:
    """A path that cannot leave the folder it is put into."""
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts or "\\" in path:
        raise ValueError("must be a relative path without '..'")
    return path


def require_url(url: str) -> str:
    """An address of a scheme that can be fetched, without credentials."""
    if urlsplit(url).scheme not in SCHEMES:
        raise ValueError(f"must start with one of {', '.join(f'{scheme}://' for scheme in SCHEMES)}")
    if "@" in urlsplit(url).netloc:
        raise ValueError("must not carry credentials, which belong in the environment")
    return url


def require_digest_of_bytes(digest: str) -> str:
    """A digest of more than an empty file."""
    if digest in OF_NO_BYTES:
        raise ValueError("is the digest of an empty file, expected that of the archive")
    return digest


RelativePath = Annotated[str, Field(min_length=1), AfterValidator(require_path_below)]
Url = Annotated[str, AfterValidator(require_url)]
NumBytes = Annotated[int, Field(strict=True, gt=0, lt=10**14)]
Md5 = Annotated[str, Field(pattern="^[0-9a-f]{32}$"), AfterValidator(require_digest_of_bytes)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$"), AfterValidator(require_digest_of_bytes)]
Sha512 = Annotated[str, Field(pattern="^[0-9a-f]{128}$"), AfterValidator(require_digest_of_bytes)]


class Licence(ClosedModel):
    """Terms of a data set, and whether a user must accept them before it is fetched."""

    name: str
    url: str
    terms: str  # what passes on to caches and models, in a sentence
    needs_acceptance: bool = True  # once, before the first byte


class Depth(ClosedModel):
    """How depth is stored upstream; readers return planar metres."""

    unit: str
    kind: DistanceKind
    invalid: str
    far: str | None = None


class Checksums(ClosedModel):
    """A published list in md5sum's form beside the archives."""

    path: RelativePath
    algorithm: Literal["md5", "sha256"]


class Source(ClosedModel):
    """One file to fetch: from `url`, or from `path` below each mirror."""

    path: RelativePath
    url: Url | None = None
    bytes: NumBytes | None = None
    md5: Md5 | None = None
    sha256: Sha256 | None = None
    sha512: Sha512 | None = None


class Archive(Source):
    """A zip, 7z, tar or tar.gz, extracted below `into`."""

    scenes: tuple[str, ...] = ()  # that have members here; empty: not known, or none
    into: RelativePath = "."
    members: tuple[str, ...] | None = None  # globs as in the manifest, for this archive alone; None: the manifest's


class Splits(ClosedModel):
    """Which scene belongs to which split: HyperSim's csv at the top of the raw folder, or globs over scenes."""

    csv: RelativePath | None = None
    scenes: dict[str, tuple[str, ...]] | None = None

    @model_validator(mode="after")
    def _one_way(self) -> "Splits":
        if (self.csv is None) == (self.scenes is None):
            raise ValueError("needs exactly one of csv and scenes")
        return self


class Manifest(ClosedModel):
    """A data set as it exists upstream. Made by read_manifest or load_manifest."""

    name: DatasetName
    role: Literal["train", "evaluate"]
    title: str
    source: str
    licence: Licence
    citation: str
    depth: Depth
    mirrors: tuple[Url, ...] = ()  # in order of preference; none only where each source has its url
    checksums: Checksums | None = None
    archives: tuple[Archive, ...] = ()  # empty: all in the list of checksums
    files: tuple[Source, ...] = ()  # fetched as they are
    members: tuple[str, ...] = ()  # globs of members to extract; empty: all
    splits: Splits | None = None
    exclude: tuple[Exclusion, ...] = ()

    @model_validator(mode="after")
    def _something_to_fetch(self) -> "Manifest":
        files_will_do = self.role == "evaluate" and self.files
        if not self.archives and self.checksums is None and not files_will_do:
            raise ValueError("needs archives, or checksums that name them; files alone will do for role evaluate")
        sources = (*self.archives, *self.files)
        if not self.mirrors and (self.checksums or not all(source.url for source in sources)):
            raise ValueError("needs mirrors, or a url for each archive and file and no list of checksums")
        paths = [source.path for source in sources]
        twice = sorted({path for path in paths if paths.count(path) > 1}) if len(set(paths)) < len(paths) else []
        if twice:
            raise ValueError(f"names {twice} twice")
        return self

    @property
    def decisive_digest(self) -> str:
        """Digest of what decides which members of the archives are here, and in which split; not of where they lie."""
        return digest_json(self.model_dump(mode="json", include={"name", "members", "splits", "exclude"}))

    def splitter(self, raw: Path, split: str) -> Callable[[str, str], str | None]:
        """A function (scene, frame name) -> split or None. ValueError names the known splits if `split` is not one."""
        if self.splits is None:
            raise ValueError(f"data set {self.name} has no splits; {split!r} was wanted")
        globs_of_split = self.splits.scenes or {}
        split_of_frame = read_split_csv(raw / self.splits.csv) if self.splits.csv is not None else {}
        known = list(globs_of_split) or sorted(set(split_of_frame.values()))
        if split not in known:
            raise ValueError(f"data set {self.name} has no split {split!r}; known: {', '.join(known)}")
        if self.splits.csv is not None:
            return lambda _scene, name: split_of_frame.get(name)
        return lambda scene, _name: split_of_scene(scene, globs_of_split, f"data set {self.name}")


def scene_splits(manifest: Manifest, raw: Path) -> Callable[[str], set[str]]:
    """A function scene -> splits that its frames are in."""
    if manifest.splits is None:
        return lambda _scene: set()
    if manifest.splits.csv is None:
        globs_of_split = manifest.splits.scenes or {}
        return lambda scene: set(splits_of_scene(scene, globs_of_split))
    of_scene: dict[str, set[str]] = {}
    for frame, split in read_split_csv(raw / manifest.splits.csv).items():
        of_scene.setdefault(frame.split("/")[0], set()).add(split)
    return lambda scene: of_scene.get(scene, set())


def read_split_csv(path: Path) -> dict[str, str]:
    """Frame name -> split of HyperSim's csv; rows outside the public release are left out."""
    split_of_frame = {}
    try:
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                if row["included_in_public_release"] == "True":
                    frame = f"{row['scene_name']}/{row['camera_name']}/frame.{int(row['frame_id']):04d}"
                    split_of_frame[frame] = row["split_partition_name"]
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file, and it decides the splits") from error
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} is not HyperSim's split csv: {error!r}") from error
    return split_of_frame


def manifest_paths() -> dict[str, Path]:
    """Manifest of each data set: those in the working folder's data_manifests/ come before those of the package."""
    return {path.stem: path for folder in (MANIFESTS, Path("data_manifests")) for path in sorted(folder.glob("*.yaml"))}


def raw_folder(name: str, folders: Folders) -> Path:
    """The raw folder of a data set: among the benchmarks where it is there already or its manifest's role is evaluate.

    Raises ValueError for a name that cannot be one, for a manifest that is not right, and for a benchmark that is still
    among the data that train.
    """
    raw, benchmark, manifest = folders.raw(name), folders.benchmark(name), manifest_paths().get(name)
    if (raw / "dataset.yaml").is_file():
        return raw
    only_measures = manifest is not None and read_manifest(manifest).role == "evaluate"
    if only_measures and raw.is_dir() and not benchmark.is_dir():
        raise ValueError(f"{raw}: data that only measure are in {benchmark} now; move the folder there")
    return benchmark if only_measures or benchmark.is_dir() else raw


def load_manifest(name: str) -> Manifest:
    """The manifest of a data set, the project's own if it has one. ValueError lists the known ones."""
    paths = manifest_paths()
    if name not in paths:
        raise ValueError(f"there is no manifest of data set {name!r}; known: {', '.join(sorted(paths))}")
    return read_manifest(paths[name])


def read_manifest(path: Path) -> Manifest:
    """Read and check a manifest. ValueError lists every fault as `file: key: what`."""
    values = read_yaml(path)
    try:
        return Manifest.model_validate({} if values is None else values)
    except ValidationError as error:
        faults = (f"{path}: {'.'.join(map(str, e['loc'])) or 'manifest'}: {describe_fault(e)}" for e in error.errors())
        raise ValueError(Lines(faults)) from error


def describe_fault(error: ErrorDetails) -> str:
    """What pydantic found wrong with one value, in a few words."""
    if error["type"] == "extra_forbidden":
        nested: dict[str, type[ClosedModel]] = {
            "licence": Licence,
            "depth": Depth,
            "checksums": Checksums,
            "archives": Archive,
            "files": Source,
            "splits": Splits,
            "exclude": Exclusion,
        }
        model = nested[str(error["loc"][0])] if len(error["loc"]) > 1 else Manifest
        return f"unknown key; known: {', '.join(model.model_fields)}"
    text = error["msg"].removeprefix("Value error, ")
    # A missing key has no value, and what our own rules refuse may be long or a secret.
    return text if error["type"] in ("missing", "value_error") else f"{text}, found {error['input']!r:.80}"


def is_archive(path: str) -> bool:
    """Whether the name says zip, tar or 7z."""
    return path.endswith(ARCHIVE_SUFFIXES)
