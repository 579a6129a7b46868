"""How much of a job one run does; the next run continues where it ended."""

import time
from dataclasses import dataclass, field


@dataclass
class Quota:
    """What a run may begin: so many images, or images for so many seconds; None: all of them.

    The seconds count from the first image on: else a run that looks through its kept rows for longer than that would
    never come to a new image.

    ended_by  what was used up when a further image was to begin, in words
    """

    max_images: int | None = None
    max_seconds: float | None = None
    ended_by: str | None = field(default=None, init=False)
    num_begun: int = field(default=0, init=False)
    began_at: float = field(default=0.0, init=False)

    @property
    def is_limited(self) -> bool:
        """Whether there is anything that may end the run early."""
        return self.max_images is not None or self.max_seconds is not None

    def takes_one(self) -> bool:
        """Whether one more image may begin, which is then counted."""
        now = time.monotonic()
        if not self.num_begun:
            self.began_at = now
        if self.max_images is not None and self.num_begun >= self.max_images:
            self.ended_by = f"max_images {self.max_images}; the next run goes on"
        elif self.max_seconds is not None and self.num_begun and now - self.began_at >= self.max_seconds:
            self.ended_by = f"max_seconds {self.max_seconds:g}; the next run goes on"
        else:
            self.num_begun += 1
        return self.ended_by is None
