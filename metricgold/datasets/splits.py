"""Which split a scene belongs to, and which frames are left out: globs over names, for manifests and a team's own data.

A name of a scene, a frame or an archive's member is one word to these globs, slashes included: `*` matches `/` too, so
that `ai_004_009/*` takes in all cameras and `*/rgb/*.png` any depth of folders. Keys in buckets go by
metricgold.storage.globs, in which `*` ends at a `/`, as in a shell.
"""

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from pydantic import BaseModel, ConfigDict


class ClosedModel(BaseModel):
    """Base of what a person writes in YAML: an unknown key is an error, and nothing changes after reading."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Exclusion(ClosedModel):
    """Frames that must not be used."""

    frames: str  # glob over frame names, e.g. ai_004_009/cam_01/*
    reason: str


def matches_name(name: str, glob: str) -> bool:
    """Whether the glob matches the complete name; `*` and `?` match `/` too."""
    return fnmatchcase(name, glob)


def plain_start(glob: str) -> str:
    """What every match begins with: everything before the first wildcard, all of the glob if it has none."""
    return re.split(r"[*?[]", glob, maxsplit=1)[0]


def splits_of_scene(scene: str, globs_of_split: Mapping[str, Iterable[str]]) -> list[str]:
    """Every split that has a glob for this scene."""
    return [split for split, globs in globs_of_split.items() if any(matches_name(scene, glob) for glob in globs)]


def split_of_scene(scene: str, globs_of_split: Mapping[str, Iterable[str]], where: str) -> str | None:
    """The scene's one split, or None. A scene in several leaks from training into tests: ValueError, led by `where`."""
    splits = splits_of_scene(scene, globs_of_split)
    if len(splits) > 1:
        raise ValueError(f"{where}: scene {scene} is in {' and '.join(splits)}, expected in one split")
    return splits[0] if splits else None


def exclusion_reason(frame_name: str, exclude: Iterable[Exclusion]) -> str | None:
    """Why a frame must not be used, or None."""
    for exclusion in exclude:
        if matches_name(frame_name, exclusion.frames):
            return f"excluded: {exclusion.reason}"
    return None
