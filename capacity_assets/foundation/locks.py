"""`CapacityLockManager`: one writer per period, also among writers that the run coordinator does not see.

The command line, a second deployment, the legacy scheduler during a migration: whoever writes a period's
aggregates holds its lock. With a Redis URL it is a Redis key with an owner token and a time to live, renewed
while the work lasts; if the process dies, renewals stop with it and the key expires within one time to live.
Without Redis it is a PostgreSQL advisory lock on a connection of its own, which the server drops when the
process dies. The work asks `ensure_held` before each commit, so that work stops when the lock was lost.

Queueing inside Dagster belongs to the pools; retrying to the callers.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Engine, Row, text
from sqlalchemy.exc import DBAPIError, PendingRollbackError, SQLAlchemyError

from capacity_assets.errors import database_errors
from capacity_assets.foundation.lock_errors import HeldLock, held_by, lost, nothing_written, owner_name
from capacity_assets.foundation.redis_locks import RedisLock

ADVISORY_CLASS = 0x63617061  # "capa": the first of the two integers of an advisory lock
TIME_TO_LIVE_SECONDS = 60.0


def advisory_key(period: str) -> tuple[int, int]:
    """Return the two integers of a period's PostgreSQL advisory lock."""
    return ADVISORY_CLASS, zlib.crc32(period.encode()) & 0x7FFFFFFF


@dataclass(frozen=True)
class CapacityLockManager:
    """Hands out the lock of a period, from Redis if `redis_url` is given, else from PostgreSQL."""

    engine: Engine
    redis_url: str | None = field(default=None, repr=False)
    time_to_live_seconds: float = TIME_TO_LIVE_SECONDS

    @contextmanager
    def job_lock(self, period: str) -> Iterator[HeldLock]:
        """Hold the lock of a period, or of `SAMPLES`, for the length of the block; never waits.

        Raises:
            LockHeldError: another session holds it; the text says who and since when.
            LockUnavailableError: Redis cannot be asked.
            DatabaseError: PostgreSQL cannot be asked.
        """
        lock: _AdvisoryLock | RedisLock
        with ExitStack() as held:
            if self.redis_url is None:
                lock = _AdvisoryLock(held.enter_context(self._own_connection(period)), period)
            else:
                lock = RedisLock(self.redis_url, period, self.time_to_live_seconds)
            lock.acquire()
            held.callback(lock.release)
            yield lock

    def _own_connection(self, period: str) -> Connection:
        """Connect outside the pool: a connection given back to it would keep the lock."""
        with database_errors(doing=f"taking the lock of {period}", kept=nothing_written(period)):
            connection = self.engine.execution_options(isolation_level="AUTOCOMMIT").connect()
        connection.detach()
        return connection


@dataclass
class _AdvisoryLock:
    """A session-level advisory lock on a connection of its own."""

    connection: Connection
    period: str

    @property
    def key(self) -> dict[str, int]:
        """The two integers as parameters."""
        return dict(zip(("first", "second"), advisory_key(self.period), strict=True))

    def acquire(self) -> None:
        parameters = {**self.key, "name": f"capacity_assets lock {owner_name()}"[:63]}
        with database_errors(doing=f"taking the lock of {self.period}", kept=nothing_written(self.period)):
            self.connection.execute(text("SELECT set_config('application_name', :name, false)"), parameters)
            # It is idle while the work goes on elsewhere.
            self.connection.execute(text("SELECT set_config('idle_session_timeout', '0', false)"))
            taken = self.connection.execute(text("SELECT pg_try_advisory_lock(:first, :second)"), parameters).scalar()
            holder = None if taken else self.connection.execute(text(_ADVISORY_HOLDER), parameters).first()
        if not taken:
            who = _readable_holder(holder) if holder else None
            raise held_by(self.period, who)

    def release(self) -> None:
        """Give the lock back at once: closing the connection does it too, but only when the server notices."""
        with suppress(SQLAlchemyError):
            self.connection.execute(text("SELECT pg_advisory_unlock(:first, :second)"), self.key)

    def ensure_held(self) -> None:
        try:
            held = self.connection.execute(text(_ADVISORY_OWN), self.key).scalar()
        except (DBAPIError, PendingRollbackError) as error:
            # Asked again after it was lost, by another slice, SQLAlchemy refuses before the server could.
            raise lost(self.period, "its connection was closed") from error
        if not held:
            raise lost(self.period, "it was released by another session")


_ADVISORY_HOLDER = """
SELECT a.application_name AS name, a.pid, a.backend_start AT TIME ZONE 'UTC' AS since
FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND l.locktype = 'advisory' AND l.granted AND l.classid = :first AND l.objid = :second AND l.objsubid = 2
"""
_ADVISORY_OWN = """
SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND granted AND pid = pg_backend_pid()
AND classid = :first AND objid = :second AND objsubid = 2
"""


def _readable_holder(holder: Row[Any]) -> str:
    """Say who and since when; without pg_read_all_stats the times of another role's session are hidden."""
    name = holder.name or "a session without a name"
    since = f" since {holder.since:%Y-%m-%d %H:%M:%S} UTC" if holder.since else ""
    return f"{name} (backend {holder.pid}){since}"
