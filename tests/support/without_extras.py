"""The command line as a light install runs it: what only extras bring cannot be imported.

python -m tests.support.without_extras predict --help
"""

import sys
from importlib.machinery import PathFinder
from importlib.metadata import distribution, packages_distributions

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from metricgold.extras import EXTRA_OF


def core_distributions() -> set[str]:
    """Canonical names of what an installation without extras brings, directly or not."""
    seen, waiting = set(), {("metricgold", "")}
    while waiting:
        name, extra = waiting.pop()
        seen.add((name, extra))
        for line in distribution(name).requires or ():
            wanted = Requirement(line)
            if wanted.marker is None or wanted.marker.evaluate({"extra": extra}):
                waiting |= {(canonicalize_name(wanted.name), more) for more in ("", *wanted.extras)} - seen
    return {name for name, _ in seen}


def modules_of_extras() -> set[str]:
    """Top-level modules that no distribution of the core holds; those of EXTRA_OF whether installed or not."""
    core, owners = core_distributions(), packages_distributions()
    return {module for module, names in owners.items() if core.isdisjoint(map(canonicalize_name, names))} | {*EXTRA_OF}


def hide_extras() -> None:
    """Let the import system find none of them, as if they were not installed."""
    find_spec, hidden = PathFinder.find_spec, modules_of_extras()

    def find_others(name, path=None, target=None):
        return None if name.partition(".")[0] in hidden else find_spec(name, path, target)

    PathFinder.find_spec = staticmethod(find_others)


if __name__ == "__main__":
    hide_extras()
    from metricgold.cli import main

    main(sys.argv[1:])
