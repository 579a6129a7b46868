"""What lies in a raw folder, found by names alone: references to frames, and the gaps beside them."""

from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path


@dataclass(frozen=True, slots=True)
class FrameRef:
    """Where one frame lies and which camera took it; small, picklable, nothing decoded.

    camera holds the numbers the data set's own reader needs (see there), None where the size says all.
    """

    dataset: str
    scene: str
    name: str  # unique within the data set
    rgb_path: Path
    depth_path: Path
    entity_path: Path | None = None  # HyperSim's ids of what each pixel shows
    camera: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """Frames sorted by name, and how many were left out for which reason."""

    frames: list[FrameRef]
    gaps: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, frames: list[FrameRef], gaps: Counter) -> "Listing":
        """Sort; ValueError when two frames share a name."""
        frames = sorted(frames, key=lambda ref: ref.name)
        for one, other in pairwise(frames):
            if one.name == other.name:
                raise ValueError(f"frame {one.name} lies twice: {one.rgb_path} and {other.rgb_path}")
        return cls(frames, dict(sorted((+gaps).items())))  # + leaves out what was counted 0 times


def member_ids(folder: Path, prefix: str, suffix: str) -> set[str]:
    """The middle parts of all files `prefix…suffix` in a folder; empty when there is no folder."""
    try:
        names = [file.name for file in folder.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return set()
    # AppleDouble side-cars `._x` end like their file and are none.
    names = (name for name in names if name.startswith(prefix) and name.endswith(suffix) and name[0] != ".")
    return {name[len(prefix) : len(name) - len(suffix)] for name in names}


def paired_ids(rgb_ids: set[str], depth_ids: set[str], gaps: Counter) -> list[str]:
    """Ids that have both, sorted; the others are counted as gaps."""
    for reason, missing in (("depth missing", rgb_ids - depth_ids), ("rgb missing", depth_ids - rgb_ids)):
        if missing:
            gaps[reason] += len(missing)
    return sorted(rgb_ids & depth_ids)


def missing_numbers(ids: set[str]) -> int:
    """How many of the numbers from 0 to the greatest of these ids are not among them."""
    numbers = {int(one) for one in ids if one.isdecimal()}
    return max(numbers, default=-1) + 1 - len(numbers)
