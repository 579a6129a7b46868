"""Prefect's limit of jobs on GPUs: one slot for each GPU, for all flows together."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TypeVar

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectNotFound

from flows.child_processes import ChildFailed, is_ending
from metricgold.train import free_gpu, gpu_names

T = TypeVar("T")

LIMIT = "metricgold-gpu"
LEASE_S = 120.0  # a killed flow's slot is free after it; renewed while the flow lives
SECONDS_BETWEEN_LOOKS = 10.0  # whether a flow that waits is ending


@contextmanager
def gpu_slot(log: Callable[[str], None]) -> Iterator[dict[str, str]]:
    """Hold a slot of the limit and a GPU of this machine; waits for them. Yields variables that name the GPU.

    Nothing is limited on a machine without a GPU. A server without the limit gets it, with as many slots as there
    are GPUs here.
    """
    names = gpu_names()
    if not names:
        yield {}
        return
    create_limit(len(names), log)

    def slot() -> AbstractContextManager[None]:
        # A lease that cannot be renewed, the server being away, must not cost days of training.
        options = {"lease_duration": LEASE_S, "raise_on_lease_renewal_failure": False}
        return concurrency(LIMIT, occupy=1, timeout_seconds=SECONDS_BETWEEN_LOOKS, **options)

    with ExitStack() as stack:
        enter_when_free(stack, slot)
        name = enter_when_free(stack, lambda: free_gpu(names, timeout_s=SECONDS_BETWEEN_LOOKS))
        yield {"CUDA_VISIBLE_DEVICES": name}


def enter_when_free(stack: ExitStack, resource: Callable[[], AbstractContextManager[T]]) -> T:
    """Enter a resource, tried again after each TimeoutError. ChildFailed once the flow is ending."""
    while True:
        try:
            return stack.enter_context(resource())
        except TimeoutError:
            if is_ending():
                raise ChildFailed("the flow ended while it waited for a GPU") from None


def create_limit(number: int, log: Callable[[str], None]) -> None:
    """Make the limit where the server has none; where that is refused the flow continues without it."""
    try:
        with get_client(sync_client=True) as client:
            try:
                client.read_global_concurrency_limit_by_name(LIMIT)
            except ObjectNotFound:
                client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=LIMIT, limit=number))
                log(f"the server had no limit {LIMIT}: created, {number} at a time")
    except Exception as error:  # another task made it at this moment, or we may not
        log(f"no limit {LIMIT} created: {error}")
