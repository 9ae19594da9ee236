"""Settings of every process of this package: rare garbage collection, and private new files.

`python -m capacity_assets.base.process MODULE ...` runs another module with the former. Processes that it spawns have
it too, because each loads the main module of its parent first. Dagster's processes start in half the time.
"""

from __future__ import annotations

import atexit
import gc
import runpy
import sys

PRIVATE_UMASK = 0o077
"""Only their owner can access files in the data folder; files that a user names follow the caller's umask."""


def collect_garbage_rarely() -> None:
    """Let this process collect garbage less often than by default, and not at its end.

    Loading the modules of a command creates hundreds of thousands of objects and no garbage. Collecting during the work
    and at the end took a third of the time of a short command. A process that serves pages takes 91 MB instead of 90 MB
    after 3,000 pages. A higher threshold that is already set is kept.
    """
    gc.set_threshold(max(10_000, gc.get_threshold()[0]), 20, 50)
    # Frozen objects are not collected.
    atexit.register(gc.freeze)


if __name__ in {"__main__", "__mp_main__"}:
    collect_garbage_rarely()
if __name__ == "__main__":
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__")
