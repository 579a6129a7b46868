"""What one process of a study is asked to do."""

from dataclasses import dataclass

from metricgold.study.definition import Run
from metricgold.study.results import Results
from metricgold.study.store import Names, Store


@dataclass(frozen=True, slots=True)
class Job:
    """The runs of one trained model: they differ in inference, or in what they are called."""

    runs: list[Run]
    names: Names
    results: Results
    store: Store
    waits: bool = True  # while another call has this model; without it, the model is left to that call
