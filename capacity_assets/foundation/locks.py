"""`CapacityLockManager`: one writer per period, also among writers that the run coordinator does not see.

The command line, a second deployment, the legacy scheduler during a migration: whoever writes a period's
aggregates holds its lock. With a Redis URL it is a Redis key with an owner token and a time to live, renewed
while the work lasts; if the process dies, renewals stop with it and the key expires within one time to live.
Without Redis it is a PostgreSQL advisory lock on a connection of its own, which the server drops when the
process dies. The work asks `ensure_held` before each commit, so that work stops when the lock was lost.

Queueing inside Dagster belongs to the pools; retrying to the callers.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy import Connection, Engine, Row, text
from sqlalchemy.exc import DBAPIError, PendingRollbackError, SQLAlchemyError

from capacity_assets.foundation.errors import CapacityError, database_errors

if TYPE_CHECKING:
    from redis import Redis
    from redis.lock import Lock

KEY_PREFIX = "capacity:aggregation"
ADVISORY_CLASS = 0x63617061  # "capa": the first of the two integers of an advisory lock
TIME_TO_LIVE_SECONDS = 60.0
RENEWALS_PER_TIME_TO_LIVE = 3
REDIS_TIMEOUT_SECONDS = 5.0


class LockHeldError(CapacityError):
    """Another writer holds the period's lock; nothing was written."""

    transient = True


class LockLostError(CapacityError):
    """The lock was lost during the work; the open transaction was rolled back."""

    transient = True


class LockUnavailableError(CapacityError):
    """The lock service cannot be reached; nothing is written without a lock."""

    def __init__(self, message: str, *, transient: bool = True) -> None:
        """Keep transience with the text: an unreachable server may come back, a wrong password stays wrong."""
        super().__init__(message)
        self.transient = transient


class HeldLock(Protocol):
    """What the holder of a lock can do with it."""

    def ensure_held(self) -> None:
        """Raise `LockLostError` unless the lock is still ours."""


def redis_key(period: str) -> str:
    """Return the Redis key of a period's lock, for example `capacity:aggregation:daily`."""
    return f"{KEY_PREFIX}:{period}"


def advisory_key(period: str) -> tuple[int, int]:
    """Return the two integers of a period's PostgreSQL advisory lock."""
    return ADVISORY_CLASS, zlib.crc32(period.encode()) & 0x7FFFFFFF


# Taken by whoever writes into the raw tables for many servers at once: the collection and the import.
SAMPLES = "samples"


def _subject(period: str) -> str:
    return "samples" if period == SAMPLES else f"{period} aggregates"


def _nothing(period: str) -> str:
    return f"Nothing of the {_subject(period)} was written."


def owner_name() -> str:
    """Return how this process is named to others that find the lock held."""
    return f"{socket.gethostname()}, process {os.getpid()}"


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
        if self.redis_url is None:
            with self._advisory_lock(period) as held:
                yield held
        else:
            with self._redis_lock(self.redis_url, period) as held:
                yield held

    @contextmanager
    def _advisory_lock(self, period: str) -> Iterator[HeldLock]:
        # Not from the pool: a connection given back to it would keep the lock.
        with database_errors(doing=f"taking the lock of {period}", kept=_nothing(period)):
            connection = self.engine.execution_options(isolation_level="AUTOCOMMIT").connect()
        with connection:
            connection.detach()
            lock = _AdvisoryLock(connection, period)
            lock.acquire()
            try:
                yield lock
            finally:
                lock.release()

    @contextmanager
    def _redis_lock(self, url: str, period: str) -> Iterator[HeldLock]:
        lock = _RedisLock(url, period, self.time_to_live_seconds)
        lock.acquire()
        try:
            yield lock
        finally:
            lock.release()


@dataclass
class _AdvisoryLock:
    """A session-level advisory lock on a connection of its own."""

    connection: Connection
    period: str

    def acquire(self) -> None:
        first, second = advisory_key(self.period)
        parameters = {"first": first, "second": second, "name": f"capacity_assets lock {owner_name()}"[:63]}
        with database_errors(doing=f"taking the lock of {self.period}", kept=_nothing(self.period)):
            self.connection.execute(text("SELECT set_config('application_name', :name, false)"), parameters)
            # It is idle while the work goes on elsewhere.
            self.connection.execute(text("SELECT set_config('idle_session_timeout', '0', false)"))
            taken = self.connection.execute(text("SELECT pg_try_advisory_lock(:first, :second)"), parameters).scalar()
            holder = None if taken else self.connection.execute(text(_ADVISORY_HOLDER), parameters).first()
        if not taken:
            who = _readable_holder(holder) if holder else None
            raise _held(self.period, who)

    def release(self) -> None:
        """Give the lock back at once: closing the connection does it too, but only when the server notices."""
        first, second = advisory_key(self.period)
        with suppress(SQLAlchemyError):
            self.connection.execute(
                text("SELECT pg_advisory_unlock(:first, :second)"), {"first": first, "second": second}
            )

    def ensure_held(self) -> None:
        first, second = advisory_key(self.period)
        try:
            held = self.connection.execute(text(_ADVISORY_OWN), {"first": first, "second": second}).scalar()
        except (DBAPIError, PendingRollbackError) as error:
            # Asked again after it was lost, by another slice, SQLAlchemy refuses before the server could.
            raise _lost(self.period, "its connection was closed") from error
        if not held:
            raise _lost(self.period, "it was released by another session")


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


def ask_redis(url: str) -> None:
    """Try out a lock with a key of its own, so that missing rights are noticed too.

    Raises:
        LockUnavailableError: Redis does not answer, refuses the login, or does not allow what locks need.
    """
    from redis.lock import Lock

    with _redis_errors("coming"), _client(url) as client:
        lock = Lock(client, redis_key(f"check:{os.urandom(4).hex()}"), timeout=REDIS_TIMEOUT_SECONDS, blocking=False)
        lock.acquire()
        lock.extend(REDIS_TIMEOUT_SECONDS, replace_ttl=True)
        lock.release()


def _client(url: str) -> Redis:
    from redis import Redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    return Redis.from_url(
        url,
        socket_timeout=REDIS_TIMEOUT_SECONDS,
        socket_connect_timeout=REDIS_TIMEOUT_SECONDS,
        # No retries inside the client: a server that is away must be told, not waited for.
        retry=Retry(NoBackoff(), 0),
    )


def _readable_holder(holder: Row[Any]) -> str:
    """Say who and since when; without pg_read_all_stats the times of another role's session are hidden."""
    name = holder.name or "a session without a name"
    since = f" since {holder.since:%Y-%m-%d %H:%M:%S} UTC" if holder.since else ""
    return f"{name} (backend {holder.pid}){since}"


class _RedisLock:
    """A Redis key with our token, renewed by a thread while the work lasts."""

    def __init__(self, url: str, period: str, time_to_live_seconds: float) -> None:
        from redis.lock import Lock

        self._period = period
        self._time_to_live = time_to_live_seconds
        self._redis = _client(url)
        self._lock: Lock = Lock(
            self._redis, redis_key(period), timeout=time_to_live_seconds, blocking=False, thread_local=False
        )
        self._stopped = threading.Event()
        self._renewer = threading.Thread(target=self._renew, name=f"lock-{period}", daemon=True)

    def acquire(self) -> None:
        since = datetime.now(tz=UTC).isoformat(timespec="seconds")
        token = json.dumps({"owner": owner_name(), "since": since, "nonce": os.urandom(8).hex()})
        with _redis_errors(self._period):
            taken = self._lock.acquire(token=token)
            holder = None if taken else self._redis.get(self._lock.name)
        if not taken:
            self._redis.close()
            raise _held(self._period, _readable_token(holder))
        self._renewer.start()

    def _renew(self) -> None:
        """Extend the time to live until stopped; a failure shows at the next `ensure_held`."""
        from redis.exceptions import RedisError

        while not self._stopped.wait(self._time_to_live / RENEWALS_PER_TIME_TO_LIVE):
            try:
                self._lock.extend(self._time_to_live, replace_ttl=True)
            except RedisError:
                # Away for a moment or lost for good: `ensure_held` asks again before anything is committed.
                continue

    def ensure_held(self) -> None:
        from redis.exceptions import RedisError

        try:
            owned = self._lock.owned()
        except RedisError as error:
            raise _lost(self._period, "Redis cannot be asked whether it is still held") from error
        if not owned:
            raise _lost(self._period, "its key expired, was flushed, or belongs to another holder")

    def release(self) -> None:
        """Give the lock back if it is still ours; a key that is not ours is left alone."""
        from redis.exceptions import RedisError

        self._stopped.set()
        self._renewer.join()
        # Away or not ours any more: the time to live ends it, and the work has asked `ensure_held` itself.
        with suppress(RedisError):
            self._lock.release()
        self._redis.close()


@contextmanager
def _redis_errors(period: str) -> Iterator[None]:
    from redis.exceptions import AuthenticationError, AuthorizationError, NoPermissionError, RedisError

    what = f"The lock of the {_subject(period)} cannot be taken"
    try:
        yield
    except (AuthenticationError, AuthorizationError) as error:
        raise LockUnavailableError(
            f"{what}: Redis refuses the login. {_nothing(period)} Fix the password in CAPACITY_REDIS_URL.",
            transient=False,
        ) from error
    except NoPermissionError as error:
        raise LockUnavailableError(
            f"{what}: the Redis user lacks rights ({error}). {_nothing(period)} It needs GET, SET and scripts on keys "
            f"that begin with {KEY_PREFIX}:.",
            transient=False,
        ) from error
    except (TypeError, ValueError) as error:
        raise LockUnavailableError(
            f"{what}: the address in CAPACITY_REDIS_URL cannot be used. {_nothing(period)} Fix it.", transient=False
        ) from error
    except RedisError as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LockUnavailableError(
            f"{what}: Redis does not answer ({reason}). {_nothing(period)} Nothing is computed unguarded: start "
            "Redis, or unset CAPACITY_REDIS_URL everywhere to use PostgreSQL's locks."
        ) from error


def _readable_token(value: object) -> str | None:
    """Read who and since when from a token of ours; a foreign writer may have put anything there."""
    if not isinstance(value, bytes):
        return None
    try:
        token = json.loads(value)
        return f"{token['owner']} since {token['since']}"
    except (ValueError, KeyError, TypeError):
        return f"a foreign writer ({value[:60].decode(errors='replace')!r})"


def _held(period: str, who: str | None) -> LockHeldError:
    return LockHeldError(
        f"The {_subject(period)} are being written by {who or 'another writer, which has just finished'}. "
        f"{_nothing(period)} Run this again when it is done."
    )


def _lost(period: str, why: str) -> LockLostError:
    return LockLostError(
        f"The lock of the {_subject(period)} was lost during the work: {why}. The transaction at work was rolled back, "
        "what was committed before was kept. Run this again."
    )
