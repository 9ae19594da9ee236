"""What every Python process that a test starts does first: search for garbage rarely, and fork the workers of runs.

Loading Dagster leaves no garbage, and looking for it took a tenth to a fifth of the time of hundreds of processes, and
as much again when they ended. One stack goes without: in that of the deployment's programs, only what the product does
by itself is done.
"""

import atexit
import gc
import sys

gc.set_threshold(50_000, 20, 50)
# What is frozen is not searched at the end.
atexit.register(gc.freeze)

if {"api", "grpc"} <= set(sys.orig_argv):
    from run_workers import fork_run_workers

    fork_run_workers()
