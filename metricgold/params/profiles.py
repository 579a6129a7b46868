"""Profiles: complete params files for known machines, one of which is copied to params.yaml and may then be edited."""

from pathlib import Path
from typing import Any

from metricgold.params.paths import PROFILES
from metricgold.params.sections import load_params
from metricgold.storage import read_yaml, write_aside


def list_profiles(path: Path = Path("params.yaml"), profiles: Path = PROFILES) -> dict[str, str]:
    """Name of each profile -> its first line of comment; the one that params.yaml equals is marked as in use."""
    used = _read(path) if path.is_file() else None
    titles = {}
    for name, file in _files(profiles).items():
        title = file.read_text().partition("\n")[0].removeprefix("#").strip()
        titles[name] = title + (" (in use)" if _read(file) == used else "")
    return titles


def use_profile(
    name: str, path: Path = Path("params.yaml"), *, force: bool = False, profiles: Path = PROFILES
) -> list[str]:
    """Copy a profile over params.yaml with its comments; returns what changed, as `train.lr: 0.0015 -> 3e-05`.

    A params.yaml that differs from all profiles, comments and order aside, was edited, and is only replaced with
    `force`. Raises ValueError for that, for an unknown name, and for a profile that is not a valid params file.
    """
    known = _files(profiles)
    if name not in known:
        raise ValueError(f"no profile {name!r}; known: {', '.join(known)}")
    load_params(known[name])
    old, new = (_read(path) if path.is_file() else {}), _read(known[name])
    if old and not force and all(old != _read(file) for file in known.values()):
        nearest = min(known, key=lambda other: len(differences(_read(known[other]), old)))
        changes = "; ".join(differences(_read(known[nearest]), old))
        raise ValueError(f"{path} was edited, and is kept without --force: it is {nearest} with {changes}")
    with write_aside(path) as aside:
        aside.write_bytes(known[name].read_bytes())
    return differences(old, new)


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What differs between two params files, a line for each key; a missing key is `unset`."""
    before, after = _flat(old), _flat(new)
    keys = [*before, *(key for key in after if key not in before)]
    pairs = [(key, before.get(key, "unset"), after.get(key, "unset")) for key in keys]
    return [f"{key}: {was} -> {becomes}" for key, was, becomes in pairs if was != becomes]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _files(profiles: Path) -> dict[str, Path]:
    return {file.stem: file for file in sorted(Path(profiles).glob("*.yaml"), key=lambda file: file.stem)}


def _read(path: Path) -> dict[str, Any]:
    values = read_yaml(path) or {}
    if not isinstance(values, dict):
        raise ValueError(f"{path}: holds {values!r:.80}, expected sections by name")
    return values
