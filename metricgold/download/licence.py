"""A data set's licence, accepted once for a raw folder and recorded there with the date."""

import getpass
import logging
from datetime import UTC, datetime
from pathlib import Path

from metricgold.datasets import Manifest
from metricgold.storage import read_json, write_json

log = logging.getLogger(__name__)


def check_licence(manifest: Manifest, into: Path, *, accept: bool = False) -> None:
    """ValueError unless the data set's licence was accepted for this folder, now or earlier."""
    licence = manifest.licence
    if not is_accepted(manifest, into, accept=accept):
        raise ValueError(
            f"{manifest.name} is under {licence.name} ({licence.url}): {licence.terms} "
            f"Accept it once: metricgold download {manifest.name} --accept-licence"
        )


def is_accepted(manifest: Manifest, into: Path, *, accept: bool = False) -> bool:
    """Whether a user has accepted the licence for this folder; with `accept` that is recorded now."""
    record, licence = Path(into) / ".ledger" / "licence.json", manifest.licence
    known = read_json(record) if record.exists() else {}
    if not licence.needs_acceptance or (known.get("name"), known.get("url")) == (licence.name, licence.url):
        return True
    if accept:
        try:
            user = getpass.getuser()
        except (KeyError, OSError):  # a container's user may have no name
            user = "unknown"
        now = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(record, {"name": licence.name, "url": licence.url, "accepted": now, "by": user})
        log.info("%s: licence %s accepted", manifest.name, licence.name)
    return accept
