"""Files that declare servers: TOML with one table per server, or CSV with one row per server.

Both have the same names, those of `registry.Server`. What a file says is checked as a whole before anything is
registered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from capacity_assets.collection.engines.installed import engines
from capacity_assets.collection.servers import Server, complete
from capacity_assets.errors import ValidationError
from capacity_assets.foundation.csv_files import csv_rows
from capacity_assets.foundation.declarations import declaration, names_of, read_each
from capacity_assets.foundation.toml_files import toml_document
from capacity_assets.grouping.labels import Label, labels_of
from capacity_assets.runway.limits import Limit, megabytes_of

# What a server can hold, GiB or unlimited: a declared limit, and no part of how it is reached.
LIMIT = "limit_gb"
# Labels: a table of TOML, and in CSV one column per key.
LABELS, LABEL_COLUMN = "labels", "label_"
NOT_REGISTERED = "Nothing was registered."
# What people write for a password; refused, and never repeated.
SECRETS = {"password", "passwd", "pwd", "secret", "url", "dsn"}


def declared_servers(path: Path) -> list[Server]:
    """Read a file; raises ValidationError with all problems, of the file or of its declarations."""
    servers = read_each(_entries(path), _server)
    if not servers:
        raise ValidationError(f"{path} declares no server: each needs {', '.join(names_of(Server)[1])}.")
    return servers


def declared_limits(path: Path) -> list[Limit]:
    """Read limits of whole servers, `limit_gb`, in a file of servers; raises ValidationError with all problems."""
    entries = [(place, values) for place, values in _entries(path) if values.get(LIMIT) is not None]
    return read_each(entries, _limit, NOT_REGISTERED)


def _limit(values: Mapping[str, Any]) -> Limit:
    return Limit(str(values.get("name")), None, megabytes_of(str(values[LIMIT])))


def declared_labels(path: Path, keys: Sequence[str]) -> list[Label]:
    """Read the labels of whole servers that a file of servers declares beside them: `labels`, in CSV `label_KEY`.

    Raises:
        ValidationError: the file cannot be read, or one is no label; all problems are reported together.
    """

    def read(values: Mapping[str, Any]) -> list[Label]:
        return labels_of(str(values.get("name")), None, _label_values(values), keys, None)

    return [label for labels in read_each(_entries(path), read, NOT_REGISTERED) for label in labels]


def _label_values(values: Mapping[str, Any]) -> dict[str, str | None]:
    table = values.get(LABELS, {})
    if not isinstance(table, dict) or not all(isinstance(value, str) for value in table.values()):
        raise ValidationError('write labels as labels = { team = "payments" }.')
    columns = {key.removeprefix(LABEL_COLUMN): value for key, value in values.items() if key.startswith(LABEL_COLUMN)}
    return {**table, **columns}


def _entries(path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    if path.suffix.lower() == ".csv":
        _, rows = csv_rows(path)
        return [(f"line {line}", values) for line, values in rows]
    return _of_toml(toml_document(path))


def _of_toml(document: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    unknown = sorted({*document} - {"servers", "defaults"})
    if unknown:
        raise ValidationError(f"{unknown[0]!r} is none of the tables [defaults], [defaults.ENGINE] and [[servers]].")
    listed, defaults = document.get("servers", []), document.get("defaults", {})
    if not isinstance(listed, list) or not isinstance(defaults, dict) or not all(isinstance(s, dict) for s in listed):
        raise ValidationError("Write servers as [[servers]], each with its own lines, and defaults as [defaults].")
    strangers = sorted(name for name, value in defaults.items() if isinstance(value, dict) and name not in engines())
    if strangers:
        raise ValidationError(f"[defaults.{strangers[0]}]: there is no such engine; known are {', '.join(engines())}.")
    general = {name: value for name, value in defaults.items() if name not in engines()}
    return [
        (
            f"server {number}",
            {**general, **defaults.get(str(values.get("engine", general.get("engine"))), {}), **values},
        )
        for number, values in enumerate(listed, start=1)
    ]


def _server(declared: Mapping[str, Any]) -> Server:
    values = {
        key: value for key, value in declared.items() if key not in {LIMIT, LABELS} and not key.startswith(LABEL_COLUMN)
    }
    if SECRETS.intersection(map(str.lower, values)):
        raise ValidationError("a password does not belong in the file; write password_from.")
    return complete(declaration(Server, values))
