"""`CapacityLockManager`: one writer per period, also among writers that the run coordinator does not see.

The command line, a second deployment, the legacy scheduler during a migration: every writer of a period's aggregates
holds its lock. With a Redis URL it is a Redis key with an owner token and a time to live, renewed by a thread while the
work lasts; if the process dies, the key expires. Without Redis it is a row of `capacity_locks`, locked in a transaction
of a connection of its own, which the server ends when the process dies; a role that may not write to it cannot hold it.
The work asks `ensure_held` before each commit, so that it stops when the lock was lost.

Queueing inside Dagster belongs to the pools, retrying to the callers.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from sqlalchemy import Connection, Engine, Row, text
from sqlalchemy.exc import DBAPIError, PendingRollbackError, SQLAlchemyError

from capacity_assets.base.errors import CapacityError, database_errors
from capacity_assets.base.network import within
from capacity_assets.database.tables import ENTER, TAKE

if TYPE_CHECKING:
    from redis import Redis
    from redis.lock import Lock


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


# Taken by the collection and the import, which write to the raw tables for many servers at once.
SAMPLES = "samples"


def samples_of(share: str) -> str:
    """Return the name of the lock of some servers' samples: shares are written side by side."""
    return f"{SAMPLES} of the share {share}"


def subject(period: str) -> str:
    """Return what a lock is of, in words."""
    return period if period.startswith(SAMPLES) else f"{period} aggregates"


def nothing_written(period: str) -> str:
    """Return the sentence that says so."""
    return f"Nothing of the {subject(period)} was written."


def owner_name() -> str:
    """Return how this process is named to others that find the lock held."""
    return f"{socket.gethostname()}, process {os.getpid()}"


def held_by(period: str, who: str | None) -> LockHeldError:
    """Return the error of a lock that `who` holds, as far as that is known."""
    return LockHeldError(
        f"The {subject(period)} {f'are being written by {who}' if who else 'were being written by another session'}. "
        f"{nothing_written(period)} Run this again {'when it is done' if who else 'now: that session has finished'}."
    )


def lost(period: str, why: str) -> LockLostError:
    """Return the error of a lock that was lost, and why."""
    return LockLostError(
        f"The lock of the {subject(period)} was lost during the work: {why}. The transaction at work was rolled back, "
        "what was committed before was kept. Run this again."
    )


KEY_PREFIX = "capacity:aggregation"
RENEWALS_PER_TIME_TO_LIVE = 3
# Between two bytes, and for a whole call.
REDIS_TIMEOUT_SECONDS, CALL_SECONDS = 5.0, 15.0

Result = TypeVar("Result")


def redis_key(period: str) -> str:
    """Return the Redis key of a period's lock, for example `capacity:aggregation:daily`."""
    return f"{KEY_PREFIX}:{period}"


def ask_redis(url: str) -> None:
    """Try out a lock with a key of its own, so that missing rights are noticed; raises LockUnavailableError."""
    from redis.lock import Lock

    with _redis_errors("coming"), _client(url) as client:
        name = redis_key(f"check:{os.urandom(4).hex()}")
        lock = Lock(client, name, timeout=REDIS_TIMEOUT_SECONDS, blocking=False, thread_local=False)
        _asked(client, lock.acquire)
        _asked(client, lambda: lock.extend(REDIS_TIMEOUT_SECONDS, replace_ttl=True))
        _asked(client, lock.release)


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


def _asked(client: Redis, call: Callable[[], Result]) -> Result:
    """Return the result of a call, with one deadline for the whole call; raises RedisError."""
    from redis.exceptions import TimeoutError as RedisTimeoutError

    try:
        return within(CALL_SECONDS, call, client.connection_pool.disconnect)
    except TimeoutError as error:
        raise RedisTimeoutError(str(error)) from error


class RedisLock:
    """A Redis key with our token, renewed by a thread while the work lasts."""

    def __init__(self, url: str, period: str, time_to_live_seconds: float) -> None:
        """Prepare the lock of a period; nothing is sent before `acquire`."""
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
        """Take the lock and begin to renew it; raises LockHeldError or LockUnavailableError."""
        since = datetime.now(tz=UTC).isoformat(timespec="seconds")
        token = json.dumps({"owner": owner_name(), "since": since, "nonce": os.urandom(8).hex()})
        with _redis_errors(self._period):
            taken = _asked(self._redis, lambda: self._lock.acquire(token=token))
            holder = None if taken else _asked(self._redis, lambda: self._redis.get(self._lock.name))
        if not taken:
            self._redis.close()
            raise held_by(self._period, _readable_token(holder))
        self._renewer.start()

    def _renew(self) -> None:
        """Extend the time to live until stopped; a failure shows at the next `ensure_held`."""
        from redis.exceptions import RedisError

        while not self._stopped.wait(self._time_to_live / RENEWALS_PER_TIME_TO_LIVE):
            try:
                _asked(self._redis, lambda: self._lock.extend(self._time_to_live, replace_ttl=True))
            except RedisError:
                # Away for a moment or lost for good: `ensure_held` asks again before anything is committed.
                continue

    def ensure_held(self) -> None:
        """Raise `LockLostError` unless the lock is still ours."""
        from redis.exceptions import RedisError

        try:
            owned = _asked(self._redis, self._lock.owned)
        except RedisError as error:
            raise lost(self._period, "Redis cannot be asked whether it is still held") from error
        if not owned:
            raise lost(self._period, "its key expired, was flushed, or belongs to another holder")

    def release(self) -> None:
        """Give the lock back if it is still ours; a key that is not ours is left alone."""
        from redis.exceptions import RedisError

        self._stopped.set()
        self._renewer.join()
        # Away or not ours any more: the time to live ends it, and the work has asked `ensure_held` itself.
        with suppress(RedisError):
            _asked(self._redis, self._lock.release)
        self._redis.close()


@contextmanager
def _redis_errors(period: str) -> Iterator[None]:
    from redis.exceptions import AuthenticationError, AuthorizationError, NoPermissionError, RedisError

    what = f"The lock of the {subject(period)} cannot be taken"
    try:
        yield
    except (AuthenticationError, AuthorizationError) as error:
        raise LockUnavailableError(
            f"{what}: Redis refuses the login. {nothing_written(period)} Fix the password in CAPACITY_REDIS_URL.",
            transient=False,
        ) from error
    except NoPermissionError as error:
        raise LockUnavailableError(
            f"{what}: the Redis user lacks rights ({error}). {nothing_written(period)} It needs GET, SET and scripts "
            f"on keys that begin with {KEY_PREFIX}:.",
            transient=False,
        ) from error
    except (TypeError, ValueError) as error:
        raise LockUnavailableError(
            f"{what}: the address in CAPACITY_REDIS_URL cannot be used. {nothing_written(period)} Fix it.",
            transient=False,
        ) from error
    except RedisError as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LockUnavailableError(
            f"{what}: Redis does not answer ({reason}). {nothing_written(period)} Nothing is computed unguarded: start "
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
        parameters = {"name": self.period, "application": f"capacity_assets lock {owner_name()}"[:63]}
        with database_errors(doing=f"taking the lock of {self.period}", kept=nothing_written(self.period)):
            taken = self._take(parameters)
            if not taken:
                # The first lock of a period has no row yet.
                self.connection.execute(text(ENTER), parameters)
                self.connection.commit()
                taken = self._take(parameters)
            holder = None if taken else self.connection.execute(text(_HOLDER), parameters).first()
        if not taken:
            raise held_by(self.period, _readable_holder(holder) if holder else None)

    def _take(self, parameters: dict[str, str]) -> bool:
        self.connection.execute(text(_SESSION), parameters)
        return self.connection.execute(text(TAKE), parameters).first() is not None

    def release(self) -> None:
        """Release the lock and reset the name of the session."""
        with suppress(SQLAlchemyError):
            self.connection.rollback()

    def ensure_held(self) -> None:
        try:
            self.connection.execute(text("SELECT 1"))
        except (DBAPIError, PendingRollbackError) as error:
            # When another slice asks again after the loss, SQLAlchemy itself refuses.
            raise lost(self.period, "its connection was closed") from error


# The session is idle in this transaction while the work goes on in others, so its name says why.
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
