"""All versions at a glance: who has which alias, how good each is, and what it was made of."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from metricgold.registry.mlflow_client import NAME, open_client
from metricgold.registry.promotion import read_history

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion


def list_versions() -> dict[str, Any]:
    """versions, the newest first, and moves, the history of the aliases, the oldest first.

    A version has version, aliases, abs_rel with abs_rel_low and abs_rel_high (None where not known), benchmarks (AbsRel
    by name), date (UTC), commit, dirty and licences.
    """
    with open_client() as client:
        found = client.search_model_versions(f"name = '{NAME}'", max_results=10_000)
        history = read_history(client)
        aliases: dict[str, list[str]] = {}
        if found:
            for alias, version in sorted(client.get_registered_model(NAME).aliases.items()):
                aliases.setdefault(str(version), []).append(alias)
        newest_first = sorted(found, key=lambda version: -int(version.version))
        rows = [describe_version(client, version, aliases) for version in newest_first]
    return {"versions": rows, "moves": [asdict(move) for move in history]}


def describe_version(
    client: "MlflowClient", version: "ModelVersion", aliases: Mapping[str, list[str]]
) -> dict[str, Any]:
    """One row of list_versions."""
    metrics, tags = client.get_run(version.run_id).data.metrics, version.tags
    benchmarks = {key.split("/")[1]: value for key, value in metrics.items() if key.startswith("benchmark/")}
    return {
        "version": str(version.version),
        "aliases": aliases.get(str(version.version), []),
        "abs_rel": metrics.get("abs_rel"),
        "abs_rel_low": metrics.get("interval95/abs_rel/low"),
        "abs_rel_high": metrics.get("interval95/abs_rel/high"),
        "benchmarks": {name: metrics.get(f"benchmark/{name}/abs_rel") for name in sorted(benchmarks)},
        "date": datetime.fromtimestamp(version.creation_timestamp / 1000, UTC).isoformat(timespec="seconds"),
        "commit": tags.get("commit"),
        "dirty": tags.get("dirty") == "true",
        "licences": tags.get("licences"),
    }


def table_lines(rows: list[dict[str, Any]]) -> list[str]:
    """The rows of list_versions as a table for a terminal."""
    titles = ("version", "aliases", "AbsRel (95 %)", "benchmarks", "date", "commit", "licences")
    return _aligned([titles, *map(_cells, rows)])


def history_lines(moves: list[dict[str, Any]]) -> list[str]:
    """The moves of list_versions as a table for a terminal."""
    titles = ("when", "what", "alias", "version", "instead of", "who", "why")
    keys = ("when", "command", "alias", "version", "instead_of", "who", "why")
    return _aligned([titles, *([str(move[key] or "-") for key in keys] for move in moves)])


def _cells(row: dict[str, Any]) -> list[str]:
    ends = (row["abs_rel_low"], row["abs_rel_high"])
    interval = "" if None in ends else " ({:.4g} to {:.4g})".format(*ends)
    benchmarks = ", ".join(f"{name} {_number(value)}" for name, value in row["benchmarks"].items())
    commit = (row["commit"] or "-")[:10] + ("+" if row["dirty"] else "")  # +: tracked files differed
    cells = [row["version"], ", ".join(row["aliases"]), _number(row["abs_rel"]) + interval, benchmarks]
    return [cell or "-" for cell in (*cells, row["date"][:16].replace("T", " "), commit, row["licences"])]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _aligned(rows: Iterable[Sequence[str]]) -> list[str]:
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
