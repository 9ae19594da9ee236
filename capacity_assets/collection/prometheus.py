"""Prometheus-compatible servers: how the file of sources names them, and what their HTTP API answers.

CAPACITY_VOLUME_SOURCES names the file. An instant query says what is known now, a range query one value per day, the
last within the day (https://prometheus.io/docs/prometheus/latest/querying/api). An error is one sentence.
"""

from __future__ import annotations

import base64
import json
import math
import urllib.parse
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from capacity_assets.base.declarations import NO_OTHER_NAMES, declaration
from capacity_assets.base.errors import CapacityError, ValidationError
from capacity_assets.base.files import named_tables
from capacity_assets.base.network import LateError, UnansweredError, ask
from capacity_assets.collection.credentials import SecretFolders, checked_reference, password_of

VARIABLE = "CAPACITY_VOLUME_SOURCES"
KIND = "prometheus"
Labels = tuple[tuple[str, str], ...]
"""The labels of a series, in the order of their names, without the name of the metric."""


@dataclass(frozen=True)
class PrometheusSource:
    """One Prometheus-compatible server: its queries, and which labels name the server, the volume and the database.

    `total` and `free` are of volumes: `free` is the space that the server can still use, `used` is needed if part of
    the remainder is a reserve. `sizes` is of databases, in bytes; the collection does not ask it, imports do.

    `servers` maps a label's value to the name of a registered server; what is not in it is taken as the name itself,
    with or without a port. `volume` is the name of the volume where no label has it.
    """

    __pydantic_config__ = NO_OTHER_NAMES

    name: str
    url: str
    server_label: str
    total: str | None = None
    free: str | None = None
    used: str | None = None
    volume_label: str | None = None
    volume: str = "disk"
    sizes: str | None = None
    database_label: str = "datname"
    servers: Mapping[str, str] = field(default_factory=dict)
    username: str | None = None
    password_from: str | None = None
    token_from: str | None = None

    @property
    def volume_queries(self) -> list[str]:
        """Those of volumes: total, free and perhaps used; empty where it knows none."""
        return [query for query in (self.total, self.free, self.used) if query is not None]

    def server_of(self, label: str, known: Collection[str]) -> str | None:
        """Return the registered server that a label's value stands for."""
        return next((name for name in self._names(label) if name in known), None)

    def server_meant(self, label: str, known: Collection[str]) -> str:
        """Return it, or the name under which it would have to be registered."""
        return self.server_of(label, known) or self.servers.get(label) or label.rpartition(":")[0] or label

    def _names(self, label: str) -> tuple[str | None, ...]:
        return self.servers.get(label), label, label.rpartition(":")[0]


def prometheus_sources(path: Path) -> list[PrometheusSource]:
    """Read the file, one table `[[prometheus]]` per source; raises ValidationError with all problems."""
    return named_tables(path, KIND, "source", _source)


def _source(values: Mapping[str, object]) -> PrometheusSource:
    source = declaration(PrometheusSource, values)
    parts = urlsplit(source.url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc:
        raise ValidationError("url is not a web address, or holds a password; write https://host:9090.")
    if (source.total is None) != (source.free is None) or (source.used is not None and source.total is None):
        raise ValidationError("total and free go together, and used goes with them.")
    if source.total is None and source.sizes is None:
        raise ValidationError("it has no query; write total and free for volumes, sizes for databases, or all three.")
    if source.password_from and source.token_from:
        raise ValidationError("password_from and token_from are two ways to log in; write one of them.")
    for reference in (source.password_from, source.token_from):
        if reference:
            checked_reference(reference)
    return source


TIMEOUT_SECONDS = 15.0
MOST_BYTES = 16 * 1024 * 1024
SHOWN = 200
DAY_SECONDS, EVERY_SECONDS = 86_400, 300
# A refused query has one of these, and the reason as JSON.
ANSWERED = (200, 400, 422, 503)


class SourceError(CapacityError):
    """A source could not be asked, or its answer makes no sense; the text holds no secret."""


class TooMuchError(SourceError):
    """A source refuses a query, answers too much, or too late; for fewer days it may not."""


def login(source: PrometheusSource, secrets: SecretFolders) -> Mapping[str, str]:
    """Return the headers that log in; raises CredentialError if its password cannot be looked up."""
    if source.token_from:
        return {"Authorization": f"Bearer {password_of(source.token_from, secrets)}"}
    if source.password_from:
        pair = f"{source.username or ''}:{password_of(source.password_from, secrets)}"
        return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
    return {}


def values_now(source: PrometheusSource, query: str, headers: Mapping[str, str]) -> dict[Labels, float]:
    """Return the values of an instant query by their labels; raises SourceError."""
    answer = _answer(source, "query", {"query": query}, headers)
    try:
        return {_labels(one): float(one["value"][1]) for one in answer["data"]["result"]}
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise SourceError(
            "its answer is not an instant vector: write a query that gives one value per series"
        ) from None


def values_by_day(
    source: PrometheusSource, query: str, headers: Mapping[str, str], days: Sequence[date], zone: ZoneInfo
) -> dict[date, dict[Labels, str]]:
    """Return the last value of each day by labels, as text; days without one are left out.

    The query is evaluated every five minutes, and may be any expression. `days` follow one another, and are of equal
    length, as those of `pages_of_days`. Raises TooMuchError and SourceError.
    """
    ends = {_midnight(day + timedelta(days=1), zone): day for day in days}
    length = next(iter(ends)) - _midnight(days[0], zone)
    # Without the midnight before, which looks back into the day before.
    asked = {
        "query": f"last_over_time(({query})[{length - EVERY_SECONDS + 1}s:{EVERY_SECONDS}s])",
        **{"start": min(ends), "end": max(ends), "step": DAY_SECONDS},
    }
    answer = _answer(source, "query_range", asked, headers)
    found: dict[date, dict[Labels, str]] = {}
    try:
        for series in answer["data"]["result"]:
            labels = _labels(series)
            for moment, value in series["values"]:
                found.setdefault(ends[int(moment)], {})[labels] = _plain(str(value))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise SourceError(
            "its answer is not a range of values: write a query that gives one value per series"
        ) from None
    return found


def pages_of_days(first: date, last: date, zone: ZoneInfo, most: int) -> Iterator[list[date]]:
    """Yield the days in pages of at most so many, each of days of equal length: a change of the clock is alone."""
    page: list[date] = []
    for number in range((last - first).days + 1):
        day = first + timedelta(days=number)
        is_usual = _midnight(day + timedelta(days=1), zone) - _midnight(day, zone) == DAY_SECONDS
        if page and (len(page) == most or not is_usual):
            yield page
            page = []
        page.append(day)
        if not is_usual:
            yield page
            page = []
    if page:
        yield page


def _midnight(day: date, zone: ZoneInfo) -> int:
    return int(datetime.combine(day, time(), zone).timestamp())


def _plain(value: str) -> str:
    """Write whole numbers as such: 8.5e+09 as 8500000000."""
    number = float(value)
    return str(int(number)) if math.isfinite(number) else value


def _labels(series: Mapping[str, Any]) -> Labels:
    return tuple(sorted((name, value) for name, value in series["metric"].items() if name != "__name__"))


def _answer(
    source: PrometheusSource, what: str, asked: Mapping[str, object], headers: Mapping[str, str]
) -> Mapping[str, Any]:
    url = f"{source.url.rstrip('/')}/api/v1/{what}?{urllib.parse.urlencode(asked)}"
    answer = _document(_body(url, headers))
    if answer.get("status") != "success":
        raise TooMuchError(f"it refuses the query: {str(answer.get('error', 'no reason given'))[:SHOWN]}")
    return answer


def _document(body: bytes) -> Mapping[str, Any]:
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise SourceError("its answer is not that of Prometheus' HTTP API")
    return answer


def _body(url: str, headers: Mapping[str, str]) -> bytes:
    try:
        answer = ask(url, seconds=TIMEOUT_SECONDS, headers=headers, most_bytes=MOST_BYTES)
    except UnansweredError as error:
        kind = TooMuchError if isinstance(error, LateError) else SourceError
        raise kind(f"it does not answer ({str(error)[:SHOWN]})") from None
    if answer.status not in ANSWERED:
        redirects = ", a redirect, which is not followed" if 300 <= answer.status < 400 else ""  # noqa: PLR2004 -- HTTP's
        raise SourceError(f"it answers {answer.status}{redirects}")
    if len(answer.body) > MOST_BYTES:
        raise TooMuchError(f"its response is larger than {MOST_BYTES // 1024 // 1024} MiB: narrow the query")
    return answer.body
