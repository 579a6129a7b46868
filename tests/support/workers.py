"""What a value becomes on its way to a worker process."""

from concurrent.futures import ThreadPoolExecutor
from multiprocessing import Pipe
from typing import TypeVar

T = TypeVar("T")


def sent(value: T) -> T:
    """A value as a worker receives it, through a pipe of multiprocessing. TypeError for one that cannot be sent."""
    receiver, sender = Pipe(duplex=False)
    with receiver, ThreadPoolExecutor(1) as pool, sender:
        received = pool.submit(receiver.recv)  # beside the sender: a pipe takes 64 KiB before it blocks
        sender.send(value)
        return received.result()
