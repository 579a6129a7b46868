"""What a raw folder holds, by names alone: references to frames, and the gaps beside them."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

# What macOS, Windows and Linux desktops leave beside data, anywhere in a path.
_CLUTTER = re.compile(
    r"(?:.*/)?(?:__MACOSX|\._[^/]*|\.DS_Store|\.Trash(?:es|-[^/]*)|Thumbs\.db|desktop\.ini|[^/]*:Zone\.Identifier)(?:/.*)?",
    re.IGNORECASE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class FrameRef:
    """Where one frame is stored and which camera took it; small, picklable, nothing decoded.

    camera holds what the data set's own reader needs of it (see there), nothing where the image's size is enough.
    """

    dataset: str
    scene: str
    name: str  # unique within the data set
    rgb_path: Path
    depth_path: Path
    entity_path: Path | None = None  # HyperSim's ids of what each pixel shows
    mask_path: Path | None = None  # where it is kept apart which depth is valid
    layer_paths: tuple[tuple[str, Path], ...] = ()  # a benchmark's images beside, each with its layer's name
    camera: tuple[Any, ...] = ()
    index: int | None = None  # of the frame, from 0, where its files hold many: NYU Depth v2

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files that it is decoded from."""
        paths = (self.rgb_path, self.depth_path, self.entity_path, self.mask_path)
        return tuple(path for path in (*paths, *(path for _, path in self.layer_paths)) if path)


Gaps = Counter[str]  # of one scene: reason -> frames left out


def no_gaps() -> defaultdict[str, Gaps]:
    """For readers to count into: [scene][reason] += 1."""
    return defaultdict(Counter)


@dataclass(frozen=True, slots=True)
class Listing:
    """Frames sorted by name, and how many were left out of which scene for which reason."""

    frames: list[FrameRef]
    gaps_by_scene: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def gaps(self) -> dict[str, int]:
        """By reason, over all scenes."""
        total: Gaps = Counter()
        for gaps in self.gaps_by_scene.values():
            total.update(gaps)
        return dict(sorted(total.items()))

    def gaps_of(self, scene: str) -> dict[str, int]:
        """By reason, of one scene."""
        return self.gaps_by_scene.get(scene, {})

    @property
    def scenes(self) -> list[str]:
        """All that have a frame or a gap, sorted."""
        return sorted({ref.scene for ref in self.frames} | self.gaps_by_scene.keys())

    @classmethod
    def of(cls, frames: list[FrameRef], gaps: Mapping[str, Gaps]) -> "Listing":
        """Sort; ValueError when two frames share a name. gaps: by scene."""
        frames = sorted(frames, key=lambda ref: ref.name)
        for ref, following in pairwise(frames):
            if ref.name == following.name:
                raise ValueError(f"frame {ref.name} is there twice: {ref.rgb_path} and {following.rgb_path}")
        # + leaves out what was counted 0 times.
        counted = {scene: dict(sorted((+reasons).items())) for scene, reasons in sorted(gaps.items())}
        return cls(frames, {scene: reasons for scene, reasons in counted.items() if reasons})


def is_clutter(path: str) -> bool:
    """Whether a file, or a folder that it is in, was added by an operating system: never a scene or a frame."""
    return _CLUTTER.fullmatch(path) is not None


def folders_below(folder: Path, glob: str) -> list[Path]:
    """Matches of a glob, sorted, without clutter."""
    return [path for path in sorted(folder.glob(glob)) if not is_clutter(path.relative_to(folder).as_posix())]


def member_ids(folder: Path, prefix: str, suffix: str) -> set[str]:
    """The middle parts of all files `prefix…suffix` in a folder; empty without the folder."""
    try:
        names = [file.name for file in folder.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return set()
    # AppleDouble side-cars `._x`, like all hidden files, end like their file, and are not frames.
    members = [name for name in names if name.startswith(prefix) and name.endswith(suffix) and name[0] != "."]
    return {name[len(prefix) : len(name) - len(suffix)] for name in members}


def paired_ids(rgb_ids: set[str], depth_ids: set[str], gaps: Gaps) -> list[str]:
    """Ids that have both, sorted; the others are counted as gaps."""
    for reason, missing in (("depth missing", rgb_ids - depth_ids), ("rgb missing", depth_ids - rgb_ids)):
        if missing:
            gaps[reason] += len(missing)
    return sorted(rgb_ids & depth_ids)


def missing_numbers(ids: set[str]) -> int:
    """How many of the numbers from 0 to the greatest of these ids are not among them."""
    numbers = {int(number) for number in ids if number.isdecimal()}
    return max(numbers, default=-1) + 1 - len(numbers)
