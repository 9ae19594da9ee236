"""The file CAPACITY_VOLUME_SOURCES: monitoring systems that know the file systems of servers that do not report them.

Only what the file says is here; asking is the business of `prometheus`, storing of `imported_volumes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from capacity_assets.collection.credentials import checked_reference
from capacity_assets.errors import ValidationError
from capacity_assets.foundation.toml_files import named_tables

NEEDED = ("name", "url", "total", "free", "server_label")
KIND = "prometheus"


@dataclass(frozen=True)
class PrometheusSource:
    """One Prometheus-compatible server: its queries, and which label names the server and the volume.

    `free` is the space that the server can still use. `used` is needed if part of the remainder is a reserve.

    `servers` maps a label's value to the name of a registered server; what is not in it is taken as the name itself,
    with or without a port. `volume` is the name of the volume where no label has it.
    """

    name: str
    url: str
    total: str
    free: str
    server_label: str
    used: str | None = None
    volume_label: str | None = None
    volume: str = "disk"
    servers: Mapping[str, str] = field(default_factory=dict)
    username: str | None = None
    password_from: str | None = None
    token_from: str | None = None


def volume_sources(path: Path) -> list[PrometheusSource]:
    """Read the file, one table `[[prometheus]]` per source; raises ValidationError with all problems."""
    return named_tables(path, KIND, "source", _source)


def _source(values: Mapping[str, Any]) -> PrometheusSource:
    known = {one.name for one in fields(PrometheusSource)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValidationError(f"{unknown[0]!r} is none of {', '.join(sorted(known))}.")
    missing = [name for name in NEEDED if not values.get(name)]
    if missing:
        raise ValidationError(f"{' and '.join(missing)} missing.")
    wrong = [name for name, value in values.items() if name != "servers" and not isinstance(value, str)]
    servers = values.get("servers", {})
    if wrong or not (isinstance(servers, dict) and all(isinstance(name, str) for name in servers.values())):
        raise ValidationError(f"{(wrong or ['servers'])[0]} is not text; servers is a table of texts.")
    parts = urlsplit(values["url"])
    if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc:
        raise ValidationError("url is not a web address, or holds a password; write https://host:9090.")
    if values.get("password_from") and values.get("token_from"):
        raise ValidationError("password_from and token_from are two ways to log in; write one of them.")
    for reference in (values.get("password_from"), values.get("token_from")):
        if reference:
            checked_reference(reference)
    return PrometheusSource(**values)
