"""A collection on a fresh database and a chosen day, and the registered servers that it measures."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path

from sqlalchemy import Engine, text

from capacity_assets.base.periods import Clock
from capacity_assets.collection.credentials import SecretFolders
from capacity_assets.collection.engines.base import engine_named, excluded_databases
from capacity_assets.collection.measuring import ProbeContext
from capacity_assets.collection.servers import Server
from capacity_assets.collection.service import CollectionService, CollectionSummary
from capacity_assets.database.locks import CapacityLockManager
from tests.clocks import TODAY, fixed_clock
from tests.mysql_servers import MariaDBServer
from tests.servers import PostgresServer

YESTERDAY = TODAY - timedelta(days=1)
PASSWORD = "reader-S3cret"  # noqa: S105 -- of a server that lives as long as the test


OBJECTS_THAT_ADD_UP = """
SELECT count(*) FROM (
    SELECT o.collected_date, o.instance_id, o.database_name, sum(o.size_bytes) AS objects_bytes
    FROM object_size_stats o GROUP BY 1, 2, 3
) o JOIN database_size_stats d USING (collected_date, instance_id, database_name)
WHERE o.objects_bytes = d.size_bytes
"""
"""How many samples of databases have objects that add up to them to the byte."""


def granting(engine: str, password: str = PASSWORD) -> list[str]:
    """Return the documented statements that create the login, without those for additional rights."""
    statements = engine_named(engine).grants.replace("'...'", f"'{password}'").split("\n")
    return [line for line in statements if not line.startswith("--")]


class Collection:
    """Registers servers and measures them, on a fresh database and a chosen day."""

    def __init__(self, engine: Engine, secrets: Path) -> None:
        self.engine = engine
        self.secrets = secrets
        secrets.mkdir()

    def password(self, name: str, password: str) -> str:
        """Store a password where the collection reads it; return its reference."""
        (self.secrets / name).write_text(f"{password}\n")
        return f"secret:{name}"

    def service(
        self, clock: Clock | None = None, excluded: str = "", workers: int = 8, objects: Sequence[str] = ()
    ) -> CollectionService:
        context = ProbeContext(SecretFolders(self.secrets), self.engine.url, excluded_databases(excluded))
        locks = CapacityLockManager(self.engine)
        the_clock = clock or fixed_clock()
        return CollectionService(self.engine, the_clock, locks, context, workers, connect_seconds=2.0, objects=objects)

    def collect(self, day: date = TODAY, **options: object) -> CollectionSummary:
        """Measure every registered server at noon of a day."""
        return self.service(fixed_clock(day)).collect(day, **options)  # type: ignore[arg-type]

    def collect_objects(
        self, day: date = TODAY, objects: Sequence[str] = ("all",), **options: object
    ) -> CollectionSummary:
        """As `collect`, with tables and indexes of some servers."""
        return self.service(fixed_clock(day), objects=objects).collect(day, **options)  # type: ignore[arg-type]

    def objects(self, database: str, day: date = TODAY) -> dict[str, tuple[str, int, bool]]:
        """Return stored kind, bytes and exactness by name, with the schema if there is one; sums by their kind."""
        query = text(
            "SELECT coalesce(nullif(concat_ws('.', nullif(schema_name, ''), nullif(object_name, '')), ''), kind), "
            "kind, size_bytes, is_exact FROM object_size_stats "
            "WHERE database_name = :database AND collected_date = :day"
        )
        with self.engine.connect() as connection:
            found = connection.execute(query, {"database": database, "day": day})
            return {row[0]: (row[1], row[2], row[3]) for row in found}

    def rows(self, query: str) -> list[tuple[object, ...]]:
        with self.engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(query))]

    def sizes(self, server: str, day: date = TODAY) -> dict[str, int]:
        """Stored MB by database."""
        query = text(
            "SELECT d.database_name, d.size_mb FROM database_size_stats d JOIN instances i ON i.id = d.instance_id "
            "WHERE i.name = :server AND d.collected_date = :day"
        )
        with self.engine.connect() as connection:
            return {row[0]: row[1] for row in connection.execute(query, {"server": server, "day": day})}

    def used(self, database: str, day: date = TODAY) -> tuple[int, int | None]:
        """Return the stored bytes of a database, and the used ones inside its files; None: unknown."""
        query = text(
            "SELECT size_bytes, used_size_bytes FROM database_size_stats "
            "WHERE database_name = :database AND collected_date = :day"
        )
        with self.engine.connect() as connection:
            [(size, used)] = connection.execute(query, {"database": database, "day": day})
        return size, used

    def total(self, server: str, day: date = TODAY) -> tuple[int, int] | None:
        """The stored total in MB and number of databases."""
        query = text(
            "SELECT t.total_size_mb, t.database_count FROM instance_size_stats t JOIN instances i "
            "ON i.id = t.instance_id WHERE i.name = :server AND t.collected_date = :day"
        )
        with self.engine.connect() as connection:
            found = connection.execute(query, {"server": server, "day": day}).first()
        return None if found is None else (found[0], found[1])


def at(
    server: PostgresServer | MariaDBServer,
    collection: Collection,
    name: str = "pg",
    engine: str = "postgresql",
    **values: object,
) -> Server:
    """Return a server as it is registered; by default with the right password."""
    known = {
        "port": server.port,
        "username": "capacity_probe",
        "password_from": collection.password(f"{name}-password", PASSWORD),
    }
    return Server(name, engine, "127.0.0.1", **{**known, **values})  # type: ignore[arg-type]


def failures(summary: object) -> dict[str, tuple[str, str]]:
    return {failure.server: (failure.kind.value, failure.reason) for failure in summary.failures}  # type: ignore[attr-defined]


def ceiling_mb(size_bytes: int) -> int:
    return -(-size_bytes // 1024**2)
