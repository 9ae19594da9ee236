"""`CapacityLockManager`: one writer per period, also among writers that the run coordinator does not see.

The command line, a second deployment, the legacy scheduler during a migration: whoever writes a period's
aggregates holds its lock. With a Redis URL it is a Redis key with an owner token and a time to live, renewed
while the work lasts; if the process dies, renewals stop with it and the key expires within one time to live.
Without Redis it is a row of `capacity_locks`, locked in a transaction of a connection that does nothing else, which the
server ends when the process dies; a role that may not write there cannot hold it. The work asks `ensure_held` before
each commit, so that work stops when the lock was lost.

Queueing inside Dagster belongs to the pools; retrying to the callers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Engine, Row, text
from sqlalchemy.exc import DBAPIError, PendingRollbackError, SQLAlchemyError

from capacity_assets.errors import database_errors
from capacity_assets.foundation.lock_errors import HeldLock, held_by, lost, nothing_written, owner_name
from capacity_assets.foundation.redis_locks import RedisLock
from capacity_assets.storage.row_locks import ENTER, TAKE

TIME_TO_LIVE_SECONDS = 60.0


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
        lock: _RowLock | RedisLock
        with ExitStack() as held:
            if self.redis_url is None:
                lock = _RowLock(held.enter_context(self._connected(period)), period)
            else:
                lock = RedisLock(self.redis_url, period, self.time_to_live_seconds)
            lock.acquire()
            held.callback(lock.release)
            yield lock

    def _connected(self, period: str) -> Connection:
        with database_errors(doing=f"taking the lock of {period}", kept=nothing_written(period)):
            return self.engine.connect()


@dataclass
class _RowLock:
    """A locked row, in a transaction that is open as long as the lock is held."""

    connection: Connection
    period: str

    def acquire(self) -> None:
        asked = {"name": self.period, "application": f"capacity_assets lock {owner_name()}"[:63]}
        with database_errors(doing=f"taking the lock of {self.period}", kept=nothing_written(self.period)):
            taken = self._take(asked)
            if not taken:
                # The first time, there is no row yet.
                self.connection.execute(text(ENTER), asked)
                self.connection.commit()
                taken = self._take(asked)
            holder = None if taken else self.connection.execute(text(_HOLDER), asked).first()
        if not taken:
            raise held_by(self.period, _readable_holder(holder) if holder else None)

    def _take(self, asked: dict[str, str]) -> bool:
        self.connection.execute(text(_SESSION), asked)
        return self.connection.execute(text(TAKE), asked).first() is not None

    def release(self) -> None:
        """Give the lock back, and with it what the session said of itself."""
        with suppress(SQLAlchemyError):
            self.connection.rollback()

    def ensure_held(self) -> None:
        try:
            self.connection.execute(text("SELECT 1"))
        except (DBAPIError, PendingRollbackError) as error:
            # Asked again after it was lost, by another slice, SQLAlchemy refuses before the server could.
            raise lost(self.period, "its connection was closed") from error


# The session is idle in this transaction while the work goes on elsewhere, and says what it is there for.
_SESSION = """
SELECT set_config(name, CASE name WHEN 'application_name' THEN CAST(:application AS text) ELSE '0' END, true)
FROM pg_settings
WHERE name IN ('application_name', 'idle_in_transaction_session_timeout', 'transaction_timeout')
"""
# The row contains the ID of the transaction that locked it.
_HOLDER = """
SELECT a.application_name AS name, a.pid, a.xact_start AT TIME ZONE 'UTC' AS since
FROM capacity_locks c
JOIN pg_locks l ON l.locktype = 'transactionid' AND l.transactionid = c.xmax AND l.granted
JOIN pg_stat_activity a ON a.pid = l.pid
WHERE c.name = :name
"""


def _readable_holder(holder: Row[Any]) -> str:
    """Say who and since when; without pg_read_all_stats the times of another role's session are hidden."""
    name = holder.name or "a session without a name"
    since = f" since {holder.since:%Y-%m-%d %H:%M:%S} UTC" if holder.since else ""
    return f"{name} (backend {holder.pid}){since}"
