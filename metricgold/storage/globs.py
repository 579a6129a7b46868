"""Globs over keys: `*`, `?`, `[...]` within a segment, `**` as a segment for any depth, a final `/` for all below."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from unicodedata import normalize

_MAGIC = re.compile(r"[*?\[]")


def split(pattern: str) -> tuple[str, str]:
    """The folder before the first segment with magic (empty or ending in `/`), and the pattern from there on."""
    cut = literal_head(pattern).rfind("/") + 1
    return pattern[:cut], pattern[cut:]


def literal_head(pattern: str) -> str:
    """What every match begins with."""
    magic = _MAGIC.search(pattern)
    return pattern[: magic.start()] if magic else pattern


def depth(pattern: str) -> int | None:
    """How many folders deep a match is; None for any number."""
    return None if pattern.endswith("/") or "**" in pattern.split("/") else pattern.count("/")


def matches(pattern: str, key: str) -> bool:
    """Whether the pattern matches the complete key; one letter with an accent is the same as a letter and an accent."""
    pattern, key = normalize("NFC", pattern), normalize("NFC", key)
    return _match((pattern + "**" * pattern.endswith("/")).split("/"), key.split("/"))


def _match(patterns: Sequence[str], names: Sequence[str]) -> bool:
    """Segment by segment; ** stands for any number of names, a final ** for all that follow, one at least.

    Where what follows the last ** does not fit, that one takes a name more; earlier ones need no second look. So many
    of them take no time to speak of, whoever wrote them.
    """
    at = number = 0  # of the pattern and the name that are looked at
    retry: tuple[int, int] | None = None  # where they are next, once the last ** takes a name more
    while number < len(names):
        pattern = patterns[at] if at < len(patterns) else None
        if pattern == "**":
            if at == len(patterns) - 1:
                return True
            at, retry = at + 1, (at + 1, number + 1)
        elif pattern is not None and fnmatchcase(names[number], pattern):
            at, number = at + 1, number + 1
        elif retry is None:
            return False
        else:
            at, number = retry
            retry = (at, number + 1)
    return at == len(patterns)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which keys to list: those of `pattern` and of any of `include`, but of none of `exclude`; empty is all.

    A pattern of `include` or `exclude` without `/` matches names, in any folder.
    """

    pattern: str = ""
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __contains__(self, key: str) -> bool:
        if self.pattern and not matches(self.pattern, key):
            return False
        return (not self.include or _any(self.include, key)) and not (self.exclude and _any(self.exclude, key))


EVERYTHING = Wanted()


def _any(patterns: Iterable[str], key: str) -> bool:
    name = key.rpartition("/")[2]
    return any(matches(pattern, key if "/" in pattern else name) for pattern in patterns)
