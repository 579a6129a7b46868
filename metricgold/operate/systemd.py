"""A user unit by which systemd does `metricgold up` at boot and `metricgold down` at its end."""

import sys
from pathlib import Path

from metricgold.storage import write_aside

UNIT = """\
[Unit]
Description=MetricGold in {root}: Prefect, MLflow and workers
After=network.target

[Service]
Type=oneshot
RemainAfterExit=yes
WorkingDirectory={root}
# Credentials of S3 and databases: KEY=VALUE lines, readable by you alone. Workers inherit them.
EnvironmentFile=-%h/.config/metricgold/environment
ExecStart={command} up
ExecStop={command} down
ExecReload={command} up
TimeoutStartSec=600
TimeoutStopSec=180
KillMode=mixed

[Install]
WantedBy=default.target
"""


def write_units(root: Path, folder: Path) -> Path:
    """Write metricgold.service into a folder, such as ~/.config/systemd/user; returns its path.

    ValueError for a path that a unit cannot hold.
    """
    words = {"root": str(root.resolve()), "command": str(Path(sys.executable).with_name("metricgold"))}
    for word in words.values():
        if not word.isprintable() or set(word) & set(" %\"'\\$"):
            raise ValueError(f"{word!r}: a unit of systemd cannot hold a path with spaces, quotes, % or $")
    path = folder / "metricgold.service"
    folder.mkdir(parents=True, exist_ok=True)
    with write_aside(path) as aside:
        aside.write_text(UNIT.format(**words))
    return path
