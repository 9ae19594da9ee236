"""Locks: `CapacityLockManager` prevents a second writer of a period, also one outside Dagster.

The command line, a second deployment, the legacy scheduler during a migration: every writer of a period's aggregates
holds its lock. With a Redis URL, it is a Redis key with an owner token and a time to live, renewed by a thread during
the work; if the process dies, the key expires. Without Redis, it is a row of `capacity_locks`, locked in a transaction
of a separate connection, which the server ends when the process dies; a role that may not write to the table cannot
hold the lock. The work calls `ensure_held` before each commit, so that it stops if the lock was lost. Work in a single
transaction, such as an upgrade, holds a row locked in that transaction (`wait_for_lock`, `try_lock`).

Dagster's pools queue runs, and callers retry.
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
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Connection, Engine, Row, text
from sqlalchemy.exc import DBAPIError, PendingRollbackError, SQLAlchemyError

from capacity_assets.base.errors import CapacityError, database_errors
from capacity_assets.base.network import run_within

if TYPE_CHECKING:
    from redis import Redis
    from redis.lock import Lock as RedisLock


class LockHeldError(CapacityError):
    """Another writer holds the period's lock; nothing was written."""

    transient = True


class LockLostError(CapacityError):
    """The lock was lost during the work; the open transaction was rolled back."""

    transient = True


class LockUnavailableError(CapacityError):
    """The lock service cannot be used; nothing is written without a lock."""

    transient = True


@dataclass(frozen=True)
class HeldLock:
    """A lock that this process holds."""

    ensure_held: Callable[[], None]
    """Raises `LockLostError` unless the lock is still held."""


# The lock of collection and import, which write to the raw tables for many servers at once.
SAMPLES = "samples"


def samples_lock(share: str) -> str:
    """Return the name of the lock for a share of the servers, because shares are collected side by side."""
    return f"{SAMPLES} of the share {share}"


def lock_subject(period: str) -> str:
    """Return a description of what a lock protects."""
    return period if period.startswith(SAMPLES) else f"{period} aggregates"


def owner_name() -> str:
    """Return the name of this process for messages of others that find the lock held."""
    return f"process {os.getpid()} on {socket.gethostname()}"


def lock_held_error(period: str, who: str | None) -> LockHeldError:
    """Return the error for a lock that another session holds; `who` is None if it is not known."""
    writer, when = f"are being written by {who}", "when it is done"
    if not who:
        writer, when = "were being written by another session", "now: that session has finished"
    return LockHeldError(f"The {lock_subject(period)} {writer}. Run this again {when}.")


def lock_lost_error(period: str, why: str) -> LockLostError:
    """Return the error for a lock that was lost, with the reason."""
    return LockLostError(
        f"The lock of the {lock_subject(period)} was lost during the work: {why}. The open transaction was rolled "
        "back; committed work was kept. Run this again."
    )


KEY_PREFIX = "capacity:aggregation"
LOCK_SESSION = "capacity_assets lock "
"""The beginning of the name of a session that holds a lock."""
RENEWALS_PER_TIME_TO_LIVE = 3
# Per network operation, and for a whole call.
REDIS_TIMEOUT_SECONDS, CALL_SECONDS = 5.0, 15.0

Result = TypeVar("Result")


def redis_key(period: str) -> str:
    """Return the Redis key of a period's lock, for example `capacity:aggregation:daily`."""
    return f"{KEY_PREFIX}:{period}"


def ask_redis(url: str) -> None:
    """Try a lock with a separate key, to find missing rights; raises LockUnavailableError."""
    from redis.lock import Lock

    with _redis_errors("Locks"), _client(url) as client:
        name = redis_key(f"check:{os.urandom(4).hex()}")
        lock = Lock(client, name, timeout=REDIS_TIMEOUT_SECONDS, blocking=False, thread_local=False)
        _call(client, lock.acquire)
        _call(client, lambda: lock.extend(REDIS_TIMEOUT_SECONDS, replace_ttl=True))
        _call(client, lock.release)


def _client(url: str) -> Redis:
    from redis import Redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    return Redis.from_url(
        url,
        socket_timeout=REDIS_TIMEOUT_SECONDS,
        socket_connect_timeout=REDIS_TIMEOUT_SECONDS,
        # No retries inside the client: an unreachable server is reported, not waited for.
        retry=Retry(NoBackoff(), 0),
    )


def _call(client: Redis, call: Callable[[], Result]) -> Result:
    """Return the result of a call, with one deadline for the whole call; raises RedisError."""
    from redis.exceptions import TimeoutError as RedisTimeoutError

    try:
        return run_within(CALL_SECONDS, call, client.connection_pool.disconnect)
    except TimeoutError as error:
        raise RedisTimeoutError(str(error)) from error


@contextmanager
def _redis_lock(url: str, period: str, time_to_live_seconds: float) -> Iterator[HeldLock]:
    """Hold a Redis key with our token, renewed by a thread during the work."""
    from redis.exceptions import RedisError
    from redis.lock import Lock

    client = _client(url)
    lock = Lock(client, redis_key(period), timeout=time_to_live_seconds, blocking=False, thread_local=False)
    since = datetime.now(tz=UTC).isoformat(timespec="seconds")
    token = json.dumps({"owner": owner_name(), "since": since, "nonce": os.urandom(8).hex()})
    with _redis_errors(f"The lock of the {lock_subject(period)}"):
        is_taken = _call(client, lambda: lock.acquire(token=token))
        holder = None if is_taken else _call(client, lambda: client.get(lock.name))
    if not is_taken:
        client.close()
        raise lock_held_error(period, _readable_token(holder))
    stopped = threading.Event()
    renewing = (client, lock, time_to_live_seconds, stopped)
    renewer = threading.Thread(target=_renew, args=renewing, name=f"lock-{period}", daemon=True)
    renewer.start()
    try:
        yield HeldLock(partial(_ensure_owned, client, lock, period))
    finally:
        stopped.set()
        renewer.join()
        # Otherwise its time to live ends it.
        with suppress(RedisError):
            _call(client, lock.release)
        client.close()


def _renew(client: Redis, lock: RedisLock, seconds: float, stopped: threading.Event) -> None:
    from redis.exceptions import RedisError

    while not stopped.wait(seconds / RENEWALS_PER_TIME_TO_LIVE):
        # Redis may be unreachable for a moment: `_ensure_owned` checks again before anything is committed.
        with suppress(RedisError):
            _call(client, lambda: lock.extend(seconds, replace_ttl=True))


def _ensure_owned(client: Redis, lock: RedisLock, period: str) -> None:
    from redis.exceptions import RedisError

    try:
        owned = _call(client, lock.owned)
    except RedisError as error:
        raise lock_lost_error(period, "Redis does not say whether it is still held") from error
    if not owned:
        raise lock_lost_error(period, "its key expired, was flushed, or belongs to another holder")


@contextmanager
def _redis_errors(what: str) -> Iterator[None]:
    """Turn errors of Redis into LockUnavailableError, which is transient unless rights or the address are wrong."""
    from redis.exceptions import AuthenticationError, AuthorizationError, NoPermissionError, RedisError

    try:
        yield
    except (RedisError, TypeError, ValueError) as error:
        transient = False
        match error:
            case AuthenticationError() | AuthorizationError():
                why, advice = "Redis refuses the login", "Fix the password in CAPACITY_REDIS_URL."
            case NoPermissionError():
                why = f"the Redis user lacks rights ({error})"
                advice = f"It needs GET, SET and scripts on keys that begin with {KEY_PREFIX}:."
            case RedisError():
                transient = True
                why = f"Redis does not answer ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
                advice = (
                    "Nothing is computed without a lock: start Redis, or unset CAPACITY_REDIS_URL everywhere to use "
                    "PostgreSQL's locks."
                )
            case _:
                why, advice = "the address in CAPACITY_REDIS_URL cannot be used", "Fix it."
        raise LockUnavailableError(
            f"{what} cannot be taken: {why}. {advice}",
            transient=transient,
        ) from error


def _readable_token(value: object) -> str | None:
    """Return who holds a key and since when, from its token; other programs may store anything there."""
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
    """Provides the lock of a period, from Redis if `redis_url` is given, otherwise from PostgreSQL."""

    engine: Engine
    redis_url: str | None = field(default=None, repr=False)
    time_to_live_seconds: float = TIME_TO_LIVE_SECONDS

    @contextmanager
    def job_lock(self, period: str) -> Iterator[HeldLock]:
        """Hold the lock of a period, or of `SAMPLES`, during the block; never waits.

        Raises LockHeldError, whose text says who holds it and since when; LockUnavailableError or DatabaseError if
        Redis or PostgreSQL does not answer.
        """
        redis = self.redis_url
        held = (
            _redis_lock(redis, period, self.time_to_live_seconds)
            if redis is not None
            else _row_lock(self.engine, period)
        )
        with held as lock:
            yield lock


@contextmanager
def _row_lock(engine: Engine, period: str) -> Iterator[HeldLock]:
    """Hold a row locked, in a transaction that stays open while the lock is held."""
    parameters = {"name": period, "application": f"{LOCK_SESSION}{owner_name()}"[:63]}
    with ExitStack() as opened:
        with database_errors(doing=f"taking the lock of {period}"):
            connection = opened.enter_context(engine.connect())
            is_taken = _take_row(connection, parameters)
            if not is_taken:
                # The first lock of a period has no row yet.
                connection.execute(text(_ENTER), parameters)
                connection.commit()
                is_taken = _take_row(connection, parameters)
            holder = None if is_taken else connection.execute(text(_HOLDER), parameters).first()
        if not is_taken:
            raise lock_held_error(period, _readable_holder(holder) if holder else None)
        try:
            yield HeldLock(partial(_ensure_connected, connection, period))
        finally:
            # Releases the lock, and resets the name of the session.
            with suppress(SQLAlchemyError):
                connection.rollback()


def _ensure_connected(connection: Connection, period: str) -> None:
    try:
        connection.execute(text("SELECT 1"))
    except (DBAPIError, PendingRollbackError) as error:
        # After the loss, SQLAlchemy itself refuses further calls.
        raise lock_lost_error(period, "its connection was closed") from error


def _take_row(connection: Connection, parameters: dict[str, str]) -> bool:
    connection.execute(text(_SESSION), parameters)
    return connection.execute(text(_TAKE), parameters).first() is not None


# The session is idle in this transaction while others work, so its name gives the reason.
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
    """Return who holds a row and since when; without pg_read_all_stats, times of other roles are hidden."""
    name = holder.name.removeprefix(LOCK_SESSION) or "a session without a name"
    since = f" since {holder.since:%Y-%m-%d %H:%M:%S} UTC" if holder.since else ""
    return f"{name} (backend {holder.pid}){since}"


# The locks of single transactions: schema, maintenance, forecasts, bills.


def wait_for_lock(connection: Connection, name: str) -> None:
    """Hold a lock until the transaction of `connection` ends; waits as long as its `lock_timeout` allows."""
    connection.execute(text(_WAIT), {"name": name})


def try_lock(connection: Connection, name: str) -> bool:
    """Hold a lock until the transaction of `connection` ends; return False if another session holds it."""
    connection.execute(text(_ENTER), {"name": name})
    return connection.execute(text(_TAKE), {"name": name}).first() is not None


# Only if it is missing: inserting an existing row waits for the session that updated it.
_ENTER = """
INSERT INTO capacity_locks (name)
SELECT CAST(:name AS text) WHERE CAST(:name AS text) NOT IN (SELECT name FROM capacity_locks) ON CONFLICT DO NOTHING
"""
_TAKE = "SELECT name FROM capacity_locks WHERE name = :name FOR UPDATE SKIP LOCKED"
_WAIT = """
INSERT INTO capacity_locks (name) VALUES (:name) ON CONFLICT (name) DO UPDATE SET name = excluded.name
"""
# For a session that is idle in its transaction while the work is done in others.
NO_TIME_LIMIT = """
SELECT set_config(name, '0', false) FROM pg_settings
WHERE name IN ('idle_in_transaction_session_timeout', 'transaction_timeout')
"""
