"""`dagster api grpc` whose run workers are forked from a process that has imported everything already.

Dagster starts an interpreter for each run, which imports for two seconds; here each run is still a process of its own.
"""

from __future__ import annotations

import multiprocessing
import sys

import dagster._grpc.server as grpc_server
from dagster._cli import main

MODULE = "capacity_assets.definitions"


def serve() -> None:
    """Serve on the port that is the first argument of this process."""
    forking = multiprocessing.get_context("forkserver")
    forking.set_forkserver_preload([MODULE, "dagster_postgres", "dagster._grpc.server", "psycopg"])
    grpc_server.multiprocessing.get_context = lambda _method=None: forking  # type: ignore[attr-defined, assignment]
    sys.argv = ["dagster", "api", "grpc", "-h", "127.0.0.1", "-p", sys.argv[1], "-m", MODULE]
    main()
