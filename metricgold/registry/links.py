"""A link of the chain that leads to a model or a depth file, and what it was made from."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from metricgold.download import Fault

State = Literal["whole", "recorded", "broken"]


@dataclass
class Link:
    """One thing in the chain.

    kind, name    such as cache and data/latents/vkitti2
    digest        by which the link after it knows it; None where nothing does
    facts         what is known of it, for people and programs
    notes         what to know of the way it was looked at, such as that it is not here
    num_compared  digests that were computed again or looked up, and are as expected
    fault         the first that is not: why, what was expected, what was found; also where the records end
    made_from     the links before it
    """

    kind: str
    name: str
    digest: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    num_compared: int = 0
    fault: Fault | None = None
    made_from: list["Link"] = field(default_factory=list)

    @property
    def state(self) -> State:
        """broken; or whole, as far as it was compared; or known by records alone."""
        return "broken" if self.fault else "whole" if self.num_compared else "recorded"

    def add(self, kind: str, name: str, digest: str | None = None, **facts: Any) -> "Link":
        """A link that this one was made from."""
        self.made_from.append(Link(kind, name, digest, {key: fact for key, fact in facts.items() if fact is not None}))
        return self.made_from[-1]

    def expect(self, expected: Any, found: Any, why: str) -> bool:
        """Compare a record with what is found; the first difference is the fault. None on a side: not known."""
        if expected is None or found is None:
            return True
        if expected == found:
            self.num_compared += 1
        else:
            self.breaks(why, str(expected), str(found))
        return bool(expected == found)

    def breaks(self, why: str, expected: str, found: str = "nothing") -> None:
        """The chain is broken here."""
        self.fault = self.fault or Fault(why, expected, found)

    def walk(self, way: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], "Link"]]:
        """This link and all before it, each with the way to it."""
        way = (*way, f"{self.kind} {self.name}")
        yield way, self
        for link in self.made_from:
            yield from link.walk(way)

    def as_json(self) -> dict[str, Any]:
        """The link and all before it as plain values."""
        values = {"kind": self.kind, "name": self.name, "digest": self.digest, "state": self.state}
        return values | {
            "compared": self.num_compared,
            "facts": self.facts,
            "notes": self.notes,
            "fault": self.fault._asdict() if self.fault else None,
            "made_from": [link.as_json() for link in self.made_from],
        }
