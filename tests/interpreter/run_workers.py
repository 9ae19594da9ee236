"""Workers of runs that are forked from a process that has imported everything already.

Dagster starts an interpreter for each run, which imports for two seconds; here each run is still a process of its own.
"""

import multiprocessing


def fork_run_workers() -> None:
    """Let the code server in this process fork what it would start."""
    of_method = multiprocessing.get_context
    forking = of_method("forkserver")
    forking.set_forkserver_preload(
        ["capacity_assets.definitions", "dagster_postgres", "dagster._grpc.server", "psycopg"]
    )
    multiprocessing.get_context = lambda method=None: forking if method == "spawn" else of_method(method)  # type: ignore[assignment, misc]
