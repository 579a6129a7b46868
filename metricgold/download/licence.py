"""A data set's licence, accepted once for a raw folder and recorded there with the date."""

import logging
from datetime import UTC, datetime
from pathlib import Path

from metricgold.datasets import Manifest
from metricgold.storage import read_json, user_name, write_json

log = logging.getLogger(__name__)


def check_licence(manifest: Manifest, into: Path, *, accept: bool = False) -> None:
    """ValueError unless the data set's licence was accepted for this folder, now or earlier.

    With `accept` it is accepted now, and that is recorded.
    """
    licence = manifest.licence
    if is_accepted(manifest, into):
        return
    if not accept:
        raise ValueError(
            f"{manifest.name} is under {licence.name} ({licence.url}): {licence.terms} "
            f"Accept it once: metricgold download {manifest.name} --accept-licence"
        )
    now = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(_record(into), {"name": licence.name, "url": licence.url, "accepted": now, "by": user_name()})
    log.info("%s: licence %s accepted", manifest.name, licence.name)


def is_accepted(manifest: Manifest, into: Path) -> bool:
    """Whether the licence needs no consent, or a user has given it for this folder."""
    licence, record = manifest.licence, _record(into)
    known = read_json(record) if licence.needs_acceptance and record.exists() else {}
    accepted = (known.get("name"), known.get("url")) if isinstance(known, dict) else None
    return not licence.needs_acceptance or accepted == (licence.name, licence.url)


def _record(into: Path) -> Path:
    return Path(into) / ".ledger" / "licence.json"
