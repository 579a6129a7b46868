"""The command line as a light install runs it: what only extras bring cannot be imported.

python -m tests.support.without_extras predict --help
"""

import sys
from collections.abc import Iterable
from importlib.machinery import PathFinder
from importlib.metadata import distribution, packages_distributions

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from metricgold.extras import EXTRA_OF


def distributions_of(*names: str) -> set[str]:
    """Canonical names of what an installation of these brings, directly or not."""
    seen, waiting = set(), {(canonicalize_name(name), "") for name in names}
    while waiting:
        name, extra = waiting.pop()
        seen.add((name, extra))
        for line in distribution(name).requires or ():
            wanted = Requirement(line)
            if wanted.marker is None or wanted.marker.evaluate({"extra": extra}):
                waiting |= {(canonicalize_name(wanted.name), more) for more in ("", *wanted.extras)} - seen
    return {name for name, _ in seen}


def hide_all_but(distributions: set[str], extras: Iterable[str] = EXTRA_OF) -> None:
    """Let the import system find no other package, as if it were not installed; modules of extras in no case."""
    owners = packages_distributions()
    hidden = {module for module, names in owners.items() if distributions.isdisjoint(map(canonicalize_name, names))}
    hidden |= set(extras)
    find_spec = PathFinder.find_spec

    def find_others(name, path=None, target=None):
        return None if name.partition(".")[0] in hidden else find_spec(name, path, target)

    PathFinder.find_spec = staticmethod(find_others)
    for loaded in [name for name in sys.modules if name.partition(".")[0] in hidden | {"metricgold"}]:
        del sys.modules[loaded]


if __name__ == "__main__":
    hide_all_but(distributions_of("metricgold"))
    from metricgold.cli import run

    run()
