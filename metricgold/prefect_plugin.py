"""Lets Prefect's command line take our deployments by their short names. Prefect loads this file, nothing else does.

Prefect wants `flow/deployment`. Each of our deployments has its flow's name, so that
`prefect deployment run train-metricgold` can only mean train-metricgold/train-metricgold. Prefect loads this
hook at start where plugins are enabled: in a project's folder, by prefect.toml; elsewhere with
PREFECT_PLUGINS_ENABLED=true. An entry point must name a module that every installation has, and a project's flows/ is
none: so it is part of the package.
"""

import sys
from typing import Any

from prefect.plugins import register_hook

DEPLOYMENTS = frozenset(
    {"train-metricgold", "batch-depth", "prepare-data", "promote-model", "rollback-model", "benchmark", "study"}
)


@register_hook
def setup_environment(*, ctx: Any) -> None:
    """Write the short name out in sys.argv, for `prefect deployment run` and our own names only."""
    for position in range(3, len(sys.argv)):
        if sys.argv[1:3] == ["deployment", "run"] and sys.argv[position] in DEPLOYMENTS:
            sys.argv[position] += "/" + sys.argv[position]
            return
