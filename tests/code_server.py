"""`dagster api grpc` of the tests' daemon, whose run workers are forked (`tests/interpreter/run_workers.py`)."""

from __future__ import annotations

import sys

from dagster._cli import main

from tests.interpreter.run_workers import fork_run_workers


def serve() -> None:
    """Serve on the port that is the first argument of this process."""
    fork_run_workers()
    sys.argv = ["dagster", "api", "grpc", "-h", "127.0.0.1", "-p", sys.argv[1], "-m", "capacity_assets.definitions"]
    main()
