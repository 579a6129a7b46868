"""Generated blocks in files that people write: what stands between two markers."""

from pathlib import Path

from metricgold.storage.files import write_aside


def fill_between(page: Path, name: str, text: str) -> None:
    """Replace what stands between <!-- name --> and <!-- /name -->. ValueError where they are missing."""
    opening, closing = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, found, rest = page.read_text(encoding="utf-8").partition(opening)
    _, closed, after = rest.partition(closing)
    if not (found and closed):
        raise ValueError(f"{page}: expected the markers {opening} and {closing}")
    with write_aside(page) as aside:
        aside.write_text(f"{before}{opening}\n{text}\n{closing}{after}", encoding="utf-8")
