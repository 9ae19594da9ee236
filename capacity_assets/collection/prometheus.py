"""Prometheus-compatible servers: their declaration in the file CAPACITY_VOLUME_SOURCES, and their HTTP API.

An instant query returns the values of now; a range query returns one value per day, the last one of the day.
https://prometheus.io/docs/prometheus/latest/querying/api. The text of an error is one sentence.
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

from capacity_assets.base.declarations import NO_OTHER_NAMES, declaration, named_tables
from capacity_assets.base.errors import CapacityError, ValidationError
from capacity_assets.base.network import LateError, UnansweredError, ask
from capacity_assets.collection.credentials import SecretFolders, checked_reference, password_of

VARIABLE = "CAPACITY_VOLUME_SOURCES"
KIND = "prometheus"
Labels = tuple[tuple[str, str], ...]
"""The labels of a series, in the order of their names, without the name of the metric."""


@dataclass(frozen=True)
class PrometheusSource:
    """A Prometheus-compatible server: its queries, and the labels for server, volume and database.

    `total` and `free` are bytes of volumes: `free` is the space that the server can still use; `used` is needed if part
    of the rest is a reserve. `sizes` are bytes of databases, which imports read and the collection does not.

    `servers` maps values of the label to names of registered servers; any other value is a name itself, with or without
    a port. `volume` is the name of the volume if no label has it.
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
        """The queries for total, free and possibly used; empty without volumes."""
        return [query for query in (self.total, self.free, self.used) if query is not None]

    def server_of(self, label: str, known: Collection[str]) -> str | None:
        """Return the registered server for a value of the label; None: there is none."""
        return next((name for name in self._names(label) if name in known), None)

    def server_or_name(self, label: str, known: Collection[str]) -> str:
        """Return the registered server, or the name that it would need."""
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
        raise ValidationError("url is not a web address, or contains a password; write https://host:9090.")
    if (source.total is None) != (source.free is None) or (source.used is not None and source.total is None):
        raise ValidationError("total and free must be given together; used needs both.")
    if source.total is None and source.sizes is None:
        raise ValidationError("it has no query; write total and free for volumes, sizes for databases, or both.")
    if source.password_from and source.token_from:
        raise ValidationError("password_from and token_from exclude each other; write one of them.")
    for reference in (source.password_from, source.token_from):
        if reference:
            checked_reference(reference)
    return source


TIMEOUT_SECONDS = 15.0
MOST_BYTES = 16 * 1024 * 1024
SHOWN = 200
DAY_SECONDS, EVERY_SECONDS = 86_400, 300
# A refused query has one of these states, and the reason as JSON.
ANSWERED = (200, 400, 422, 503)


class SourceError(CapacityError):
    """A source could not be read; the text contains no secret."""


class TooMuchError(SourceError):
    """A source refuses a query, or answers too much or too late; fewer days may succeed."""


def login(source: PrometheusSource, secrets: SecretFolders) -> Mapping[str, str]:
    """Return the headers that log in; raises CredentialError if the password cannot be read."""
    if source.token_from:
        return {"Authorization": f"Bearer {password_of(source.token_from, secrets)}"}
    if source.password_from:
        pair = f"{source.username or ''}:{password_of(source.password_from, secrets)}"
        return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
    return {}


def values_now(source: PrometheusSource, query: str, headers: Mapping[str, str]) -> dict[Labels, float]:
    """Return the values of an instant query by labels; raises SourceError."""
    answer = _answer(source, "query", {"query": query}, headers)
    try:
        return {_labels(series): float(series["value"][1]) for series in answer["data"]["result"]}
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise SourceError(
            "its answer is not an instant vector: write a query that gives one value per series"
        ) from None


def values_by_day(
    source: PrometheusSource, query: str, headers: Mapping[str, str], days: Sequence[date], zone: ZoneInfo
) -> dict[date, dict[Labels, str]]:
    """Return the last value of each day by labels, as text; days without a value are missing.

    The query may be any expression, and is evaluated every five minutes. `days` are consecutive and of equal length, as
    `pages_of_days` yields them. Raises TooMuchError and SourceError.
    """
    ends = {_midnight(day + timedelta(days=1), zone): day for day in days}
    length = next(iter(ends)) - _midnight(days[0], zone)
    # The first midnight is left out, because its value belongs to the previous day.
    parameters = {
        "query": f"last_over_time(({query})[{length - EVERY_SECONDS + 1}s:{EVERY_SECONDS}s])",
        **{"start": min(ends), "end": max(ends), "step": DAY_SECONDS},
    }
    answer = _answer(source, "query_range", parameters, headers)
    values: dict[date, dict[Labels, str]] = {}
    try:
        for series in answer["data"]["result"]:
            labels = _labels(series)
            for moment, value in series["values"]:
                values.setdefault(ends[int(moment)], {})[labels] = _plain(str(value))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise SourceError(
            "its answer is not a range of values: write a query that gives one value per series"
        ) from None
    return values


def pages_of_days(first: date, last: date, zone: ZoneInfo, most: int) -> Iterator[list[date]]:
    """Yield the days in pages of at most `most`; a day on which the clock changes is a page of its own."""
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
    """Return a whole number without an exponent: 8.5e+09 as 8500000000."""
    number = float(value)
    return str(int(number)) if math.isfinite(number) else value


def _labels(series: Mapping[str, Any]) -> Labels:
    return tuple(sorted((name, value) for name, value in series["metric"].items() if name != "__name__"))


def _answer(
    source: PrometheusSource, what: str, parameters: Mapping[str, object], headers: Mapping[str, str]
) -> Mapping[str, Any]:
    url = f"{source.url.rstrip('/')}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
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
        redirects = ", a redirect, which is not followed" if 300 <= answer.status < 400 else ""  # noqa: PLR2004 -- states of HTTP
        raise SourceError(f"it answers {answer.status}{redirects}")
    if len(answer.body) > MOST_BYTES:
        raise TooMuchError(f"its response is larger than {MOST_BYTES // 1024 // 1024} MiB: narrow the query")
    return answer.body
