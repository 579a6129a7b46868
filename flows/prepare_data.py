"""Flow `prepare-data`: the archives, verified and extracted, and nothing after them."""

from pathlib import Path

from prefect import flow

from flows.dvc_stages import check_licences, run_stages
from flows.forms import Name
from flows.hooks import HOOKS
from flows.run_watch import watched
from metricgold.params import load_params


@flow(name="prepare-data", **HOOKS)
@watched
def prepare_data(datasets: list[Name] | None = None, accept_licence: bool = False) -> dict[str, float]:
    """Fetch, verify and extract data sets; returns seconds per stage.

    Command: prefect deployment run prepare-data -p 'datasets=["hypersim-synthetic"]' (or: metricgold download)
    Reads:   params.yaml, data_manifests/, the archives where the manifests say
    Writes:  data/raw/<data set>/ with its ledger, of benchmarks data/benchmarks/<data set>/ (synthetic ones:
             data/synthetic/<data set>/ too)
    Hours:   seconds for the demo profile; for terabytes as long as the network takes

    A download that fails is retried after a minute, ten minutes and an hour; each attempt resumes the one before.

    Args:
        datasets: Names that params.yaml lists as datasets or benchmarks; all of them if not given.
        accept_licence: Accepts the data sets' licences, once for each raw folder.
    """
    params = load_params(Path("params.yaml"))
    names = datasets or [*params.datasets, *params.benchmarks]
    if unlisted := sorted({*names} - {*params.datasets, *params.benchmarks}):
        raise ValueError(f"params.yaml lists no data set {', '.join(unlisted)} in datasets or benchmarks")
    check_licences(names, accept=accept_licence)
    word = {name: "benchmark-data" if name in params.benchmarks else "download" for name in names}
    return run_stages([f"{word[name]}@{name}" for name in names])


if __name__ == "__main__":
    prepare_data()
