"""What every Python process that a test starts does first: search for garbage rarely, and fork the workers of runs.

Loading Dagster leaves no garbage, and looking for it took a tenth to a fifth of the time of hundreds of processes. And
code servers start an interpreter for each run, which imports for two seconds; here each run is still a process of its
own. Two stacks go without both: that of the deployment's programs, and that of the user's own databases.
"""

import gc
import sys

gc.set_threshold(50_000, 20, 50)

if {"api", "grpc"} <= set(sys.orig_argv):
    import multiprocessing

    of_method = multiprocessing.get_context
    forking = of_method("forkserver")
    forking.set_forkserver_preload(
        ["capacity_assets.definitions", "dagster_postgres", "dagster._grpc.server", "psycopg"]
    )
    multiprocessing.get_context = lambda method=None: forking if method == "spawn" else of_method(method)
