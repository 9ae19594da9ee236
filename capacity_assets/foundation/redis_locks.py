"""A period's lock as a Redis key: an owner token, a time to live, a thread that renews it while the work lasts."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

from capacity_assets.foundation.lock_errors import (
    LockUnavailableError,
    held_by,
    lost,
    nothing_written,
    owner_name,
    subject,
)
from capacity_assets.foundation.outgoing import within

if TYPE_CHECKING:
    from redis import Redis
    from redis.lock import Lock

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
