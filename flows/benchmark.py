"""Flow `benchmark`: the trained model by the rules of published benchmarks, as stages of DVC's graph."""

from pathlib import Path
from typing import Any

from prefect import flow

from flows.dvc_stages import check_licences, run_stages
from flows.figures import show_benchmarks
from flows.forms import Name
from flows.hooks import HOOKS
from flows.run_watch import watched
from metricgold.params import Folders, load_params


@flow(name="benchmark", **HOOKS)
@watched
def benchmark(names: list[Name] | None = None) -> dict[str, Any]:
    """Measure models/metricgold on benchmarks, and show their figures by the default protocol.

    Command: prefect deployment run benchmark -p 'names=["nyuv2"]' (or: metricgold benchmark nyuv2)
    Reads:   params.yaml (benchmarks, benchmark), the model, and what the stages before these two read
    Writes:  data/benchmarks/, metrics/benchmark/, reports/benchmark/, plots/benchmark/
    Hours:   frames x steps x ensemble / (what the device does an hour); stages that are up to date cost nothing

    A stopped run resumes after its last finished image.

    Args:
        names: Benchmarks that params.yaml lists; all of them if not given.
    """
    params = load_params(Path("params.yaml"))
    names = names or params.benchmarks
    if unknown := sorted(set(names) - set(params.benchmarks)) or not names:
        raise ValueError(
            f"params.yaml lists the benchmarks {params.benchmarks}: {unknown or 'none'} cannot be measured"
        )
    check_licences([*params.datasets, *names])
    run_stages([f"benchmark@{name}" for name in names])
    return show_benchmarks(names, Folders())


if __name__ == "__main__":
    benchmark()
