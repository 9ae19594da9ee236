"""`python -m benchmarks.collection`: thousands of simulated servers, with and without some that never answer.

The servers are sockets on loopback in a process of their own. Each takes a time of its own, always the same, to say how
large its databases are; those that hang accept the connection and stay silent. The database the sizes are stored in
is a real one.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import random
import socket
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import click
from sqlalchemy import Engine as Database
from sqlalchemy import text

from benchmarks.server import temporary_server
from capacity_assets.base.periods import Clock
from capacity_assets.base.settings import CAPACITY_DRIVER, DEFAULT_COLLECTION_CONCURRENCY
from capacity_assets.collection.credentials import SecretFolders
from capacity_assets.collection.engines.base import (
    Access,
    DatabaseSize,
    EngineAdapter,
    MeasureError,
    Measurement,
    ServerFacts,
    engines,
)
from capacity_assets.collection.measuring import ProbeContext
from capacity_assets.collection.servers import Server, register_servers
from capacity_assets.collection.service import CollectionService
from capacity_assets.database.embedded import CAPACITY_DATABASE
from capacity_assets.database.engine import capacity_engine
from capacity_assets.database.locks import CapacityLockManager
from capacity_assets.database.schema import initialise

SHORTEST_SECONDS, LONGEST_SECONDS = 0.2, 1.8
DATABASES = 20
ENGINE = "simulated"
SILENT = "silent"
DAY = datetime(2025, 7, 20, 4, tzinfo=UTC)


class Simulated(EngineAdapter):
    """Sends who it wants to measure, and reads a line of sizes."""

    name = ENGINE
    default_port = 1
    system_databases = ()
    verified = False
    grants = definition = "none"

    def connect(self, access: Access) -> Any:
        """Connect, and wait for the greeting."""
        connection = socket.create_connection((access.host, access.port), timeout=access.connect_seconds)
        try:
            connection.sendall(f"{access.username}\n".encode())
            connection.recv(1)
        except OSError:
            connection.close()
            raise
        return connection

    def sizes(self, connection: Any, access: Access, excluded: Sequence[str]) -> Measurement:  # noqa: ARG002
        """Read the sizes."""
        connection.settimeout(access.statement_seconds)
        connection.sendall(b"?\n")
        sizes = connection.recv(4096).split()
        return Measurement(tuple(DatabaseSize(f"db{number}", int(size)) for number, size in enumerate(sizes)))

    def facts(self, connection: Any) -> ServerFacts:  # noqa: ARG002
        """Say nothing."""
        return ServerFacts(ENGINE, encrypted=None)

    def explained(self, error: Exception) -> MeasureError | None:  # noqa: ARG002
        """Know nothing."""
        return None


def serve(port: int) -> None:
    """Play all servers on one port, until the process is ended."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            name = (await reader.readline()).decode().strip()
            if name.startswith(SILENT):
                await reader.read()  # until the other side has had enough
            else:
                writer.write(b"!")
                await reader.readline()
                await asyncio.sleep(random.Random(name).uniform(SHORTEST_SECONDS, LONGEST_SECONDS))  # noqa: S311
                writer.write(" ".join(str(1000 + number) for number in range(DATABASES)).encode())
            writer.close()

    async def run() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", port, backlog=4096)
        await server.serve_forever()

    asyncio.run(run())


def declared(count: int, silent: int, port: int) -> list[Server]:
    """Name the servers; those that hang lie anywhere among them."""
    workers = set(random.Random(7).sample(range(count), silent))  # noqa: S311
    return [
        Server(
            f"server-{number}",
            ENGINE,
            "127.0.0.1",
            port=port,
            username=f"{SILENT if number in workers else 'server'}-{number}",
        )
        for number in range(count)
    ]


def collected(database: Database, days: int, workers: int) -> tuple[float, int, int]:
    """Measure on a day of its own; return seconds, servers measured and servers failed."""
    moment = DAY + timedelta(days=days)
    clock = Clock(ZoneInfo("UTC"), now=lambda: moment)
    context = ProbeContext(SecretFolders(Path("/nowhere")), database.url, {})
    service = CollectionService(database, clock, CapacityLockManager(database), context, workers)
    began = time.perf_counter()
    summary = service.collect(clock.today())
    return time.perf_counter() - began, summary.processed_instances, summary.failed_instances


@click.command()
@click.option("--servers", default=2000, show_default=True)
@click.option("--hanging-percent", default=5, show_default=True)
@click.option("--workers", default=DEFAULT_COLLECTION_CONCURRENCY, show_default=True)
def main(*, servers: int, hanging_percent: int, workers: int) -> None:
    """Measure the fleet without those that hang, then with them: on the first day, and on the next one."""
    engines()[ENGINE] = Simulated()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    simulation = multiprocessing.Process(target=serve, args=(port,), daemon=True)
    simulation.start()
    silent = servers * hanging_percent // 100
    with temporary_server() as server:
        database = capacity_engine(server.url(CAPACITY_DATABASE, CAPACITY_DRIVER))
        initialise(database)
        click.echo("| run | seconds | against without | measured | failed |\n|---|---|---|---|---|")
        every = declared(servers, silent, port)
        healthy = [one for one in every if not str(one.username).startswith(SILENT)]
        register_servers(database, healthy)
        without: dict[int, float] = {}
        for day, label in enumerate(("first day", "next day")):
            without[day], measured, failed = collected(database, day, workers)
            click.echo(f"| without, {label} | {without[day]:.1f} | | {measured:,} | {failed:,} |")
        with database.begin() as connection:
            connection.execute(text("TRUNCATE capacity_collection_attempts"))
        register_servers(database, every)
        for day, label in enumerate(("first day", "next day")):
            seconds, measured, failed = collected(database, day + 2, workers)
            ratio = seconds / without[day]
            click.echo(f"| with {silent}, {label} | {seconds:.1f} | {ratio:.3f} | {measured:,} | {failed:,} |")
        database.dispose()
    simulation.terminate()


if __name__ == "__main__":
    main()
