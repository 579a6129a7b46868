"""The chain behind a depth file as a tree for the terminal, and as a page with a picture of it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from metricgold.images import load_template
from metricgold.registry.links import Link

MARKS = {"whole": "✓", "recorded": "·", "broken": "✗"}
COLUMN_PX, ROW_PX, BOX_PX = 240, 62, (206, 46)
MAX_CHARS = 28  # of a name in the picture


def broken_links(link: Link) -> list[dict[str, str]]:
    """Where the chain is broken: the way from what was asked to the link, why, what was expected and found there."""
    return [
        {"link": " → ".join(way), **one.fault._asdict()} for way, one in link.walk() if one.fault
    ]  # in the order of the chain


def summary_of(link: Link) -> str:
    """One line: whether the chain is whole, how much of it was compared, and how much is known by records alone."""
    links = [one for _, one in link.walk()]
    counts = {state: sum(one.state == state for one in links) for state in MARKS}
    compared = sum(one.num_compared for one in links)
    verdict = f"broken at {counts['broken']} of {len(links)} links" if counts["broken"] else f"{len(links)} links hold"
    by_record = f", {counts['recorded']} of them by record alone" if counts["recorded"] else ""
    return f"{verdict}{by_record}; {compared} digests compared"


def tree_lines(link: Link, indent: str = "", branch: str = "") -> Iterator[str]:
    """The chain as lines of a tree: a mark, the thing, the digest by which it is known."""
    digest = f"  {link.digest[:12]}" if link.digest else ""
    compared = f"  ({link.num_compared} compared)" if link.num_compared > 1 else ""
    yield f"{indent}{branch}{MARKS[link.state]} {link.kind} {link.name}{digest}{compared}"
    below = indent + {"": "", "├─ ": "│  ", "└─ ": "   "}[branch]
    stem = below + ("│    " if link.made_from else "     ")
    if link.fault:
        yield f"{stem}{link.fault.why}"
        yield f"{stem}expected {link.fault.expected}, found {link.fault.found}"
    yield from (f"{stem}{note}" for note in link.notes)
    for i, before in enumerate(link.made_from, 1):
        yield from tree_lines(before, below, "└─ " if i == len(link.made_from) else "├─ ")


class Box(NamedTuple):
    """A link in the picture: its place in pixels, and the middle of the left side of what it leads to."""

    link: Link
    x: float
    y: float
    joins: tuple[float, float] | None

    @property
    def name(self) -> str:
        """The end of its name, as much as fits."""
        name = self.link.name
        return name if len(name) <= MAX_CHARS else f"…{name[1 - MAX_CHARS :]}"


def place(link: Link) -> list[Box]:
    """Boxes of a chain, the newest link on the left, each beside the middle of what it was made from."""
    boxes: list[Box] = []
    rows = 0

    def add(one: Link, column: int) -> float:
        nonlocal rows
        if one.made_from:
            rows_before = [add(before, column + 1) for before in one.made_from]
            row = (rows_before[0] + rows_before[-1]) / 2
        else:
            row, rows = float(rows), rows + 1
        boxes.append(Box(one, column * COLUMN_PX + 8, row * ROW_PX + 8, None))
        return row

    add(link, 0)
    of_link = {id(box.link): box for box in boxes}
    joined = {id(before): one for _, one in link.walk() for before in one.made_from}

    def side(one: Link | None) -> tuple[float, float] | None:
        return None if one is None else (of_link[id(one)].x + BOX_PX[0], of_link[id(one)].y + BOX_PX[1] / 2)

    return [box._replace(joins=side(joined.get(id(box.link)))) for box in boxes]


def render_page(link: Link, uri: str) -> str:
    """One page that needs no other file: the picture, where the chain is broken, and every link with its facts."""
    boxes = place(link)
    size = max(box.x for box in boxes) + BOX_PX[0] + 8, max(box.y for box in boxes) + BOX_PX[1] + 8
    facts: dict[str, Any] = {"uri": uri, "summary": summary_of(link), "broken": broken_links(link), "boxes": boxes}
    facts |= {"size": size, "box": BOX_PX, "marks": MARKS, "links": list(link.walk())}
    return load_template(Path(__file__).with_name("lineage_page.html.j2")).render(facts)
