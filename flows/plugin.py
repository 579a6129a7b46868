"""Lets Prefect's command line take our deployments by their short names.

Prefect wants `flow/deployment`. Each of our deployments bears its flow's name, so that
`prefect deployment run train-metricgold` can only mean train-metricgold/train-metricgold. Prefect loads this
hook at start where plugins are enabled: in the project's folder, by [tool.prefect] in pyproject.toml;
elsewhere with PREFECT_PLUGINS_ENABLED=true.
"""

import sys
from typing import Any

from prefect.plugins import register_hook

DEPLOYMENTS = frozenset({"train-metricgold", "batch-depth", "prepare-data", "promote-model"})


@register_hook
def setup_environment(*, ctx: Any) -> None:
    """Write the short name out in sys.argv, for `prefect deployment run` and our own names only."""
    for position in range(3, len(sys.argv)):
        if sys.argv[1:3] == ["deployment", "run"] and sys.argv[position] in DEPLOYMENTS:
            sys.argv[position] += "/" + sys.argv[position]
            return
