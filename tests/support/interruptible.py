"""Children that Ctrl-C reaches, however the run of the tests was started."""

import sys

AS_IN_THE_FOREGROUND = """
import runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv[:] = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def interruptible(module: str, *words: str) -> list[str]:
    """The command `python -m module words`, with SIGINT as a terminal leaves it.

    A script's background job inherits it as ignored, and so do all its children; a Prefect worker, which turns
    SIGTERM into SIGINT, then ends half a minute late or not at all.
    """
    return [sys.executable, "-c", AS_IN_THE_FOREGROUND, module, *words]
