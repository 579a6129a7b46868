"""Prefect's limit of jobs on graphics cards: one slot for each card, for all flows together."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectNotFound

from flows.child_processes import ChildFailed, is_ending
from metricgold.train import free_gpu, gpu_names

LIMIT = "metricgold-gpu"
LEASE_S = 120.0  # a killed flow's slot is free after it; renewed while the flow lives
LOOK_S = 10.0  # how often one that waits looks whether its flow is ending


@contextmanager
def card(log: Callable[[str], None]) -> Iterator[dict[str, str]]:
    """Hold a slot of the limit and a card of this machine; waits for them. Yields variables that name the card.

    Where the machine has no card nothing is limited. A server without the limit gets it, with as many slots as there
    are cards here.
    """
    names = gpu_names()
    if not names:
        yield {}
        return
    _create_limit(len(names), log)
    # A lease that cannot be renewed, the server being away, must not cost days of training.
    options = {"lease_duration": LEASE_S, "raise_on_lease_renewal_failure": False}
    with ExitStack() as stack:
        _enter(stack, lambda: concurrency(LIMIT, occupy=1, timeout_seconds=LOOK_S, **options))
        yield {"CUDA_VISIBLE_DEVICES": _enter(stack, lambda: free_gpu(names, timeout_s=LOOK_S))}


def _enter(stack: ExitStack, take: Callable[[], AbstractContextManager]) -> Any:
    """Enter what `take` makes; one that waits looks now and then whether its flow is ending."""
    while True:
        try:
            return stack.enter_context(take())
        except TimeoutError:
            if is_ending():
                raise ChildFailed("the flow ended while it waited for a card") from None


def _create_limit(number: int, log: Callable[[str], None]) -> None:
    """Make the limit where the server has none; where that is refused the flow goes on without it."""
    try:
        with get_client(sync_client=True) as client:
            try:
                client.read_global_concurrency_limit_by_name(LIMIT)
            except ObjectNotFound:
                client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=LIMIT, limit=number))
                log(f"the server had no limit {LIMIT}: created, {number} at a time")
    except Exception as error:  # made by another task at this moment, or not ours to make
        log(f"no limit {LIMIT} created: {error}")
