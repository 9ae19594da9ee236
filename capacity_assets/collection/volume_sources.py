"""The file CAPACITY_VOLUME_SOURCES: monitoring systems that know the file systems of servers that do not report them.

Only what the file says is here; asking is the business of `prometheus`, storing of `imported_volumes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from capacity_assets.collection.credentials import checked_reference
from capacity_assets.errors import ValidationError
from capacity_assets.foundation.declarations import NO_OTHER_NAMES, declaration
from capacity_assets.foundation.toml_files import named_tables

KIND = "prometheus"


@dataclass(frozen=True)
class PrometheusSource:
    """One Prometheus-compatible server: its queries, and which label names the server and the volume.

    `free` is the space that the server can still use. `used` is needed if part of the remainder is a reserve.

    `servers` maps a label's value to the name of a registered server; what is not in it is taken as the name itself,
    with or without a port. `volume` is the name of the volume where no label has it.
    """

    __pydantic_config__ = NO_OTHER_NAMES

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


def _source(values: Mapping[str, object]) -> PrometheusSource:
    source = declaration(PrometheusSource, values)
    parts = urlsplit(source.url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc:
        raise ValidationError("url is not a web address, or holds a password; write https://host:9090.")
    if source.password_from and source.token_from:
        raise ValidationError("password_from and token_from are two ways to log in; write one of them.")
    for reference in (source.password_from, source.token_from):
        if reference:
            checked_reference(reference)
    return source
