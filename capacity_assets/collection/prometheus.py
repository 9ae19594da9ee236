"""Asks a Prometheus-compatible server for the file systems of servers: two instant queries, joined by their labels.

https://prometheus.io/docs/prometheus/latest/querying/api/#instant-queries. It may hang, lie or be away: whatever it
does becomes one sentence, and harms nothing but what it was asked for.
"""

from __future__ import annotations

import base64
import json
import math
import urllib.parse
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from capacity_assets.collection.credentials import SecretFolders, password_of
from capacity_assets.collection.volume_sources import PrometheusSource
from capacity_assets.errors import CapacityError
from capacity_assets.foundation.outgoing import UnansweredError, ask
from capacity_assets.units import LARGEST_BYTES, counted

TIMEOUT_SECONDS = 15.0
MOST_BYTES = 16 * 1024 * 1024
SHOWN = 200


class SourceError(CapacityError):
    """A source could not be asked, or its answer makes no sense; the text holds no secret."""


@dataclass(frozen=True, order=True)
class FoundVolume:
    """A volume of a registered server, bytes."""

    server: str
    volume: str
    total_bytes: int
    free_bytes: int
    used_bytes: int | None = None

    @property
    def sizes(self) -> tuple[int, int, int | None]:
        """Total and free bytes, and used bytes if known."""
        return self.total_bytes, self.free_bytes, self.used_bytes


@dataclass(frozen=True)
class FoundVolumes:
    """What a source knows, and what of its answer was left out and why."""

    volumes: tuple[FoundVolume, ...]
    left_out: tuple[str, ...] = ()


def volumes_of(source: PrometheusSource, known: Collection[str], secrets: SecretFolders) -> FoundVolumes:
    """Ask a source for the volumes of the servers that are `known` by name.

    Raises:
        SourceError: it does not answer, refuses, or answers what is no result.
        CredentialError: its password cannot be looked up.
    """
    headers = _login(source, secrets)
    totals, free = (_result(source, query, headers) for query in (source.total, source.free))
    used = _result(source, source.used, headers) if source.used else {}
    by_place: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    strangers: set[str] = set()
    for labels, total in totals.items():
        if labels not in free:
            continue
        named = dict(labels)
        label = named.get(source.server_label, "")
        server = _server(source, label, known)
        if server is None:
            strangers.add(label)
            continue
        volume = named.get(source.volume_label, "") if source.volume_label else source.volume
        by_place.setdefault((server, volume or source.volume), []).append(
            (total, free[labels], *([used[labels]] if labels in used else []))
        )
    found, left_out = [], []
    for (server, volume), pairs in sorted(by_place.items()):
        reason = _reason_against(pairs)
        if reason:
            left_out.append(f"{volume} of {server}: {reason}")
        else:
            found.append(FoundVolume(server, volume, *map(int, pairs[0])))
    if strangers:
        first, values = min(strangers), counted(len(strangers), "value")
        left_out.append(f"{values} of {source.server_label} without a registered server, for example {first!r:.80}")
    return FoundVolumes(tuple(found), tuple(left_out))


def _server(source: PrometheusSource, label: str, known: Collection[str]) -> str | None:
    names = (source.servers.get(label), label, label.rpartition(":")[0])
    return next((name for name in names if name in known), None)


def _reason_against(pairs: list[tuple[float, ...]]) -> str | None:
    if len(pairs) > 1:
        return f"{len(pairs)} results instead of one: narrow the query"
    [(total, free, *used)] = pairs
    if not (math.isfinite(total) and math.isfinite(free) and 0 < total <= LARGEST_BYTES and 0 <= free <= total):
        return f"{total:g} bytes, {free:g} of them free, is impossible"
    if not all(0 <= one <= total for one in used):
        return f"{total:g} bytes, {used[0]:g} of them used, is impossible"
    return None


def _login(source: PrometheusSource, secrets: SecretFolders) -> Mapping[str, str]:
    if source.token_from:
        return {"Authorization": f"Bearer {password_of(source.token_from, secrets)}"}
    if source.password_from:
        pair = f"{source.username or ''}:{password_of(source.password_from, secrets)}"
        return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
    return {}


def _result(
    source: PrometheusSource, query: str, headers: Mapping[str, str]
) -> dict[tuple[tuple[str, str], ...], float]:
    """Return the values of an instant query by their labels, without the name of the metric."""
    url = f"{source.url.rstrip('/')}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    answer = _document(_body(url, headers))
    if answer.get("status") != "success":
        raise SourceError(f"it refuses the query: {str(answer.get('error', 'no reason given'))[:SHOWN]}")
    try:
        return {
            tuple(sorted((name, value) for name, value in one["metric"].items() if name != "__name__")): float(
                one["value"][1]
            )
            for one in answer["data"]["result"]
        }
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise SourceError(
            "its answer is not an instant vector: write a query that gives one value per series"
        ) from None


def _document(body: bytes) -> Mapping[str, Any]:
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise SourceError("its answer is not that of Prometheus' HTTP API")
    return answer


def _body(url: str, headers: Mapping[str, str]) -> bytes:
    """Read a complete response, with any status."""
    try:
        answer = ask(url, seconds=TIMEOUT_SECONDS, headers=headers, most_bytes=MOST_BYTES)
    except UnansweredError as error:
        raise SourceError(f"it does not answer ({str(error)[:SHOWN]})") from None
    # Prometheus refuses a query with status 400 or 422 and the reason as JSON.
    if answer.status not in {200, 400, 422, 503}:
        redirects = ", a redirect, which is not followed" if 300 <= answer.status < 400 else ""  # noqa: PLR2004 -- HTTP's
        raise SourceError(f"it answers {answer.status}{redirects}")
    if len(answer.body) > MOST_BYTES:
        raise SourceError(f"its response is larger than {MOST_BYTES // 1024 // 1024} MiB: narrow the query")
    return answer.body
