"""Another PostgreSQL than the embedded one, for running the tests on it: `CAPACITY_TEST_POSTGRES_BIN=/path/to/bin`."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from capacity_assets.database.embedded import EmbeddedServer

VARIABLE = "CAPACITY_TEST_POSTGRES_BIN"
# PostgreSQL refuses to run as root.
USER = "nobody" if os.geteuid() == 0 else None


@contextmanager
def other_postgres(programs: Path, *settings: str) -> Iterator[EmbeddedServer]:
    """Create a cluster with the `initdb` of a folder, and run its `postgres` on a socket until the block ends.

    Each of `settings` is `name=value`.
    """
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    if USER:
        shutil.chown(folder, USER)
    data = folder / "data"
    try:
        initdb = [programs / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C"]
        subprocess.run(initdb, check=True, capture_output=True, user=USER)
        pg_ctl = [programs / "pg_ctl", "-D", data, "-w"]
        # Each test copies a database, and nothing has to outlive a crash.
        options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
        options += "".join(f" -c {setting}" for setting in settings)
        subprocess.run([*pg_ctl, "-l", folder / "log", "-o", options, "start"], check=True, user=USER)
        try:
            # Every role may create there in 14 and older, and `capacity init` refuses that.
            with psycopg.connect(f"host={folder} user=postgres dbname=template1") as connection:
                connection.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
            yield EmbeddedServer(str(folder))
        finally:
            subprocess.run([*pg_ctl, "-m", "immediate", "stop"], check=True, user=USER)
    finally:
        shutil.rmtree(folder)
