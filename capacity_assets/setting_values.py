"""The kinds of values that variables hold, each with the sentence that refuses another. See `settings`."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from functools import cache
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote, urlsplit
from zoneinfo import ZoneInfoNotFoundError, available_timezones

from pydantic import AfterValidator, BeforeValidator, SecretStr
from pydantic_settings import NoDecode
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError
from tzlocal import get_localzone_name

from capacity_assets.forecast.horizons import HORIZONS_DAYS

HOURS_PER_DAY = 24
LEAST_TOKEN = 16
MOST_SHARES = 100
SHARE = re.compile(r"[a-z][a-z0-9_]*=.*")
LABEL_KEY = re.compile(r"[a-z][a-z0-9_]{0,62}")
# By these, groups are made without any label; a file of labels names its subjects by the others.
NOT_LABEL_KEYS = ("engine", "server", "database", "from")
# So far from the ends of the calendar that windows before and after exist.
EARLIEST_START, LATEST_START = date(1970, 1, 1), date(2999, 12, 31)
# Machines without a zone of their own have it under one or the other.
OTHER_NAMES_OF_UTC = ("Etc/UTC", "Etc/UCT", "Etc/Universal", "Etc/Zulu", "UCT", "Universal", "Zulu")


@cache  # Each time, all files of the machine's time zones are looked at.
def _zones() -> set[str]:
    return available_timezones()


def machine_zone() -> str:
    """Return the time zone of this machine, UTC where it has none that is known."""
    try:
        name = get_localzone_name()
    except ZoneInfoNotFoundError:
        name = None
    return name if name in _zones() and name not in OTHER_NAMES_OF_UTC else "UTC"


def _postgresql_url(value: SecretStr) -> SecretStr:
    try:
        url = make_url(value.get_secret_value())
    except (ArgumentError, ValueError):
        raise ValueError("is not a URL; write postgresql://user:password@host:5432/database") from None
    if url.get_backend_name() not in ("postgresql", "postgres"):
        msg = f"names {url.get_backend_name()!r}; only PostgreSQL works: postgresql://user:password@host:5432/database"
        raise ValueError(msg)
    if "@" in f"{url.host}{url.database}":
        # A password with an unescaped @ would be cut there, and its rest shown as a part of the host.
        raise ValueError("holds an @ too many; write an @ in the password as %40")
    if not url.database:
        raise ValueError("names no database; write postgresql://user:password@host:5432/database")
    return value


def _web_address(value: SecretStr) -> SecretStr:
    parts = urlsplit(value.get_secret_value())
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("is not a web address; write https://host/path")
    return value


def _mail_server(value: SecretStr) -> SecretStr:
    msg = "is not a mail server; write smtps://user:password@host:465 or smtp://host:587, special characters as %40"
    try:
        parts = urlsplit(value.get_secret_value())
        fits = parts.scheme in {"smtp", "smtps"} and bool(parts.hostname) and (parts.port is None or parts.port > 0)
        unquote(f"{parts.username}{parts.password}").encode("ascii")
    except ValueError:
        # Its own text repeats a part of the address, which may be one of the password.
        raise ValueError(msg) from None
    if not fits or parts.path not in {"", "/"}:
        raise ValueError(msg)
    return value


def _long_enough(value: SecretStr) -> SecretStr:
    if len(value.get_secret_value()) < LEAST_TOKEN:
        raise ValueError(f"is too short; write at least {LEAST_TOKEN} characters")
    return value


def _redis_url(value: SecretStr) -> SecretStr:
    from redis import ConnectionPool

    try:
        ConnectionPool.from_url(value.get_secret_value()).make_connection()
    except (TypeError, ValueError):
        # The client's own text may repeat a part of the URL.
        msg = "is not a Redis URL; write redis://:password@host:6379/0, rediss://... or unix:///path"
        raise ValueError(msg) from None
    return value


def _known_zone(value: str) -> str:
    if value not in _zones():
        msg = f"{value!r} is not a known time zone; write an IANA name such as Asia/Shanghai, Europe/Berlin or UTC"
        raise ValueError(msg)
    return value


def _first_day(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        day = datetime.strptime(value.strip(), "%Y-%m-%d").replace(tzinfo=UTC).date()
    except ValueError:
        raise ValueError(f"{value!r} is not a date; write YYYY-MM-DD, for example 2025-01-01") from None
    if day < EARLIEST_START:
        raise ValueError(f"{value!r} lies before {EARLIEST_START}; write the first day with samples")
    if day > LATEST_START:
        raise ValueError(f"{value!r} lies after {LATEST_START}; write the first day with samples")
    return day


def _listed(value: object) -> object:
    return tuple(filter(None, map(str.strip, value.split(",")))) if isinstance(value, str) else value


def _folder(value: Path) -> Path:
    try:
        fits = value.is_dir() or not value.exists()
    except OSError as error:
        # Such as a name that is longer than the file system takes.
        raise ValueError(f"cannot be used: {error.strerror}; write the path of a folder") from None
    if not fits:
        raise ValueError(f"{str(value)!r} is a file; write the path of a folder")
    return value


def _hour(value: object) -> object:
    if str(value).strip() not in map(str, range(HOURS_PER_DAY)):
        raise ValueError(f"{value!r} is not an hour of the day; write a whole number from 0 to 23")
    return value


def _horizon(value: object) -> object:
    if str(value).strip() not in map(str, HORIZONS_DAYS):
        raise ValueError(f"{value!r} is not a horizon of the forecasts; write {', '.join(map(str, HORIZONS_DAYS))}")
    return value


def _label_keys(value: tuple[str, ...]) -> tuple[str, ...]:
    wrong = [key for key in value if not LABEL_KEY.fullmatch(key) or key in NOT_LABEL_KEYS]
    if wrong:
        raise ValueError(
            f"{wrong[0]!r} is not a label key; write words of small letters, digits and _, and none of "
            f"{', '.join(NOT_LABEL_KEYS)}"
        )
    return tuple(dict.fromkeys(value))


def numbered_shares(number: int) -> tuple[str, ...]:
    """Name the shares of a number of them."""
    return tuple(f"{share}/{number}" for share in range(1, number + 1))


def _shares(value: tuple[str, ...]) -> tuple[str, ...]:
    """Write `4` as its four shares; what a share is, is read in `collection.shares`."""
    if len(value) == 1 and value[0].isdecimal():
        if not 1 <= int(value[0]) <= MOST_SHARES:
            raise ValueError(f"{value[0]!r} is not a possible number of shares; write one from 1 to {MOST_SHARES}")
        return numbered_shares(int(value[0]))
    if value and value == numbered_shares(len(value)):
        return value  # as they were written for a process that this one started
    wrong = [share for share in value if not SHARE.fullmatch(share)]
    if wrong:
        msg = (
            f"{wrong[0]!r} is not a label; write a number of shares, or labels of one key such as zone=eu,zone=us,zone="
        )
        raise ValueError(msg)
    keys = {share.partition("=")[0] for share in value}
    if value and (len(keys) > 1 or f"{next(iter(keys))}=" not in value):
        msg = f"{','.join(value)!r} leaves servers out; write labels of one key, and end with KEY= for all others"
        raise ValueError(msg)
    return tuple(dict.fromkeys(value))


def as_text(value: object) -> str:
    """Return what a variable holds so that it is read as `value` again, wherever the reader is started."""
    if isinstance(value, tuple):
        return ",".join(map(as_text, value))
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return "" if value is None else str(value.resolve() if isinstance(value, Path) else value)


def with_driver(secret: SecretStr | None, driver: str) -> URL | None:
    """Return the URL that a variable holds, for a driver; None where it is unset."""
    return None if secret is None else make_url(secret.get_secret_value()).set(drivername=driver)


PostgresUrl = Annotated[SecretStr, AfterValidator(_postgresql_url)]
WebAddress = Annotated[SecretStr, AfterValidator(_web_address)]
MailServer = Annotated[SecretStr, AfterValidator(_mail_server)]
Token = Annotated[SecretStr, AfterValidator(_long_enough)]
RedisUrl = Annotated[SecretStr, AfterValidator(_redis_url)]
ZoneName = Annotated[str, AfterValidator(_known_zone)]
FirstDay = Annotated[date, BeforeValidator(_first_day)]
Horizon = Annotated[int, BeforeValidator(_horizon)]
Hour = Annotated[int, BeforeValidator(_hour)]
Folder = Annotated[Path, AfterValidator(_folder)]
Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed)]
Shares = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed), AfterValidator(_shares)]
LabelKeys = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed), AfterValidator(_label_keys)]
Folders = Annotated[tuple[Path, ...], NoDecode, BeforeValidator(_listed)]
