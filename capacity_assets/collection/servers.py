"""The registry of servers: their declaration, their connection, and their last measurement.

Servers are rows of `instances` and `capacity_collection_targets`. A server without a row in the second table is known
and aggregated, but not measured here. Passwords are never stored, only their place. A file that declares servers, TOML
with a table or CSV with a row per server, is checked as a whole before anything is registered.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import (
    Connection,
    Engine,
    Row,
    Text,
    bindparam,
    delete,
    func,
    insert,
    literal,
    select,
    text,
    true,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert

from capacity_assets.base.declarations import NO_OTHER_NAMES, csv_rows, declaration, names_of, read_each, toml_document
from capacity_assets.base.errors import (
    DATABASE_FAILURES,
    DatabaseError,
    NotFoundError,
    ValidationError,
    database_error,
    database_errors,
    reason_of,
    refuse,
    sqlstate_of,
)
from capacity_assets.base.units import counted, human_day, suggestion
from capacity_assets.collection.credentials import OWN, checked_reference
from capacity_assets.collection.engines.base import (
    FILES,
    TLS_MODES,
    TLS_OFF,
    TLS_VERIFY_FULL,
    engine_named,
    engine_names,
    engines,
    is_loopback,
)
from capacity_assets.database.declared_rows import declaring, rows_of_values
from capacity_assets.database.sql import with_queries
from capacity_assets.database.tables import (
    SERVERS_IN_SERVICE,
    capacity_decisions,
    capacity_labels,
    capacity_limits,
    capacity_steps,
    collection_attempts,
    collection_targets,
    instances,
    is_active,
)
from capacity_assets.forecast.limits import Limit, megabytes_of
from capacity_assets.ownership.labels import Label, labels_from_values

LARGEST_PORT = 65535
HOST_AND_PORT = re.compile(r"[^:/]+:\d+")
LONGEST_NAME = 255


@dataclass(frozen=True)
class Server:
    """A server registered for collection; None is the engine's default, or not needed."""

    __pydantic_config__ = NO_OTHER_NAMES

    name: str
    engine: str
    host: str
    port: int | None = None
    username: str | None = None
    password_from: str | None = None
    database: str | None = None
    tls: str | None = None
    tls_ca: str | None = None
    tls_certificate: str | None = None
    tls_key: str | None = None
    server_public_key: str | None = None
    sizing: str | None = None
    counted_by: str | None = None

    @property
    def place(self) -> str:
        """Host and port, or the socket."""
        return self.host if self.host.startswith("/") else f"{self.host}:{self.port}"


def with_engine_defaults(server: Server) -> Server:
    """Return the server with the defaults of its engine.

    Raises ValidationError: a value is invalid; the text never repeats a possible password.
    """
    engine = engine_named(server.engine)
    port = engine.default_port if server.port is None else server.port
    stays_here = server.host.startswith("/") or is_loopback(server.host)
    tls = server.tls or (TLS_OFF if stays_here else TLS_VERIFY_FULL)
    sizing = server.sizing or FILES
    if server.password_from is not None:
        checked_reference(server.password_from)
    refuse(
        (
            not server.name
            or server.name != server.name.strip()
            or len(server.name) > LONGEST_NAME
            or not server.name.isprintable(),
            "a name must have 1 to 255 printable characters, without spaces at its ends",
        ),
        (not server.host.strip() or len(server.host) > LONGEST_NAME, "host: give a name, an address or a socket"),
        (not 1 <= port <= LARGEST_PORT, f"port: {port} is not between 1 and {LARGEST_PORT}"),
        (tls not in TLS_MODES, f"tls: {tls!r} is not one of {', '.join(TLS_MODES)}"),
        (sizing not in engine.sizings, f"sizing: {server.engine} takes only {' and '.join(engine.sizings)}"),
        (server.counted_by == server.name, "counted_by: a server cannot be counted by itself"),
        (bool(server.tls_certificate) != bool(server.tls_key), "tls_certificate and tls_key are needed together"),
        (
            server.server_public_key and server.engine not in {"mysql", "mariadb"},
            "server_public_key: only for MySQL and MariaDB",
        ),
        (
            server.server_public_key and tls != TLS_OFF,
            "server_public_key: only without TLS; with TLS, use tls_ca to verify the server",
        ),
        (HOST_AND_PORT.fullmatch(server.host), "host: write the port separately, as port (--port)"),
        ("@" in server.host, "host: must not contain an @; write username and password_from"),
        (
            server.password_from == OWN and server.engine != "postgresql",
            "password_from: own is only for the PostgreSQL server that holds the capacity tables",
        ),
        error=lambda problem: ValidationError(f"Server {server.name!r}: {problem}."),
    )
    return replace(server, port=port, tls=tls, sizing=sizing)


# A declared limit of the server in GiB, or unlimited; not part of how it is reached.
LIMIT = "limit_gb"
# Labels are a table in TOML, and one column per key in CSV.
LABELS, LABEL_COLUMN = "labels", "label_"
# Names under which people write a password; refused, and never repeated.
SECRETS = {"password", "passwd", "pwd", "secret", "url", "dsn"}


class ServerDeclarations(NamedTuple):
    """The declarations of a file of servers: servers, and limits and labels of whole servers."""

    servers: list[Server]
    limits: list[Limit]
    labels: list[Label]


def declared_servers(path: Path, label_keys: Sequence[str]) -> ServerDeclarations:
    """Read a file; labels (`labels`, in CSV `label_KEY`) must have one of `label_keys`.

    Raises ValidationError with all problems: the file cannot be read, or declarations are wrong.
    """

    def read(values: Mapping[str, Any]) -> tuple[Server, list[Limit], list[Label]]:
        server, limit = _server(values), values.get(LIMIT)
        limits = [] if limit is None else [Limit(server.name, None, megabytes_of(str(limit)))]
        labels = labels_from_values(server.name, None, _label_values(values), label_keys, None)
        return server, limits, labels

    declared = read_each(_entries(path), read)
    if not declared:
        raise ValidationError(f"{path} declares no server: each needs {', '.join(names_of(Server)[1])}.")
    servers, limits, labels = zip(*declared, strict=True)
    return ServerDeclarations(list(servers), list(chain(*limits)), list(chain(*labels)))


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
        raise ValidationError(f"{unknown[0]!r} is not one of the tables [defaults], [defaults.ENGINE] and [[servers]].")
    listed, defaults = document.get("servers", []), document.get("defaults", {})
    if not isinstance(listed, list) or not isinstance(defaults, dict) or not all(isinstance(s, dict) for s in listed):
        raise ValidationError("Write each server as a table [[servers]], and defaults as [defaults].")
    strangers = sorted(name for name, value in defaults.items() if isinstance(value, dict) and name not in engines())
    if strangers:
        raise ValidationError(f"[defaults.{strangers[0]}] is not an engine; known are {', '.join(engines())}.")
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
        raise ValidationError("the file must not contain a password; write password_from.")
    return with_engine_defaults(declaration(Server, values))


NOT_NULL_VIOLATION = "23502"


@dataclass(frozen=True)
class RegisteredServer:
    """A row of the registry."""

    id: int
    server: Server
    active: bool
    """Whether it is in service: aggregated, and measured if it is collected."""
    is_collected: bool
    declared_at: datetime | None = None
    """When it was last registered for collection; None: it is filled elsewhere."""
    declared_by: str | None = None
    """Who registered it; None: unknown."""

    @property
    def name(self) -> str:
        """The name of the server."""
        return self.server.name

    @property
    def state(self) -> str:
        """The state in two words."""
        if not self.active:
            return "disabled"
        return "measured here" if self.is_collected else "filled elsewhere"


_STORED_AS_THEY_ARE = (
    "username", "password_from", "tls", "tls_ca", "tls_certificate", "tls_key", "server_public_key", "sizing",
)  # fmt: skip
_COUNTING = instances.alias("counting")
_OF_SERVER = {
    "name": instances.c.name,
    "engine": instances.c.db_type,
    "host": instances.c.host,
    "port": instances.c.port,
    "database": collection_targets.c.connect_database,
    "counted_by": _COUNTING.c.name,
    **{name: collection_targets.c[name] for name in _STORED_AS_THEY_ARE},
}
_REGISTRY = (
    select(
        instances.c.id,
        is_active().label("active"),
        collection_targets.c.instance_id.is_not(None).label("is_collected"),
        collection_targets.c.updated_at.label("declared_at"),
        collection_targets.c.declared_by,
        *(column.label(name) for name, column in _OF_SERVER.items()),
    )
    .select_from(
        instances.outerjoin(collection_targets, collection_targets.c.instance_id == instances.c.id).outerjoin(
            _COUNTING, _COUNTING.c.id == instances.c.counted_by
        )
    )
    .order_by(instances.c.name)
)


def registered_servers(engine: Engine, names: Sequence[str] | None = None) -> list[RegisteredServer]:
    """Return all servers or the named ones, by name; raises NotFoundError for an unknown name, and DatabaseError."""
    with database_errors(doing="reading the registry"), engine.connect() as connection:
        servers = _registry(connection)
    if names is None:
        return servers
    refuse_unregistered(names, [registered.name for registered in servers])
    return [registered for registered in servers if registered.name in names]


def refuse_unregistered(names: Iterable[str], known: Collection[str]) -> None:
    """Refuse unknown names of servers; raises NotFoundError."""
    unknown = sorted({*names} - {*known})
    if unknown:
        close = suggestion(unknown[0], known)
        raise NotFoundError(
            f"No server is named {', '.join(map(repr, unknown))}.{close} `capacity instances list` shows all."
        )


def refuse_unknown_engine(engine: Engine, name: str) -> None:
    """Refuse an engine that is neither installed nor that of a server; raises NotFoundError and DatabaseError."""
    known = sorted({*engine_names(), *(registered.server.engine for registered in registered_servers(engine))})
    if name not in known:
        raise NotFoundError(f"{name!r} is not an engine; known are {', '.join(known)}.{suggestion(name, known)}")


def _registry(connection: Connection) -> list[RegisteredServer]:
    known = ("id", "active", "is_collected", "declared_at", "declared_by")
    return [
        RegisteredServer(
            server=Server(**{name: row[name] for name in _OF_SERVER}), **{name: row[name] for name in known}
        )
        for row in connection.execute(_REGISTRY).mappings()
    ]


@dataclass(frozen=True)
class RegistrationChanges:
    """The names of servers that a registration added, changed, and so on, or would in a dry run."""

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()
    disabled: tuple[str, ...] = ()
    out_of_service: tuple[str, ...] = ()


def register_servers(
    engine: Engine,
    servers: Iterable[Server],
    *,
    disable_others: bool = False,
    by: str | None = None,
    dry_run: bool = False,
) -> RegistrationChanges:
    """Add servers, or change those that exist, in one transaction; `by` declares them. A dry run writes nothing.

    `disable_others` takes other servers that are measured here out of service. A disabled server stays disabled, even
    if it is declared again.

    Raises:
        ValidationError: a value is invalid, or a name occurs twice; nothing was registered.
        DatabaseError: the database failed; nothing was registered.
    """
    wanted = [with_engine_defaults(server) for server in servers]
    names = [server.name for server in wanted]
    twice = sorted(name for name, times in Counter(names).items() if times > 1)
    if twice:
        raise ValidationError(f"Declared more than once: {', '.join(twice)}.")
    try:
        with engine.connect() as connection, connection.begin() as transaction:
            # Two registrations of one server would both add it.
            connection.execute(text("LOCK TABLE instances IN SHARE ROW EXCLUSIVE MODE"))
            before = {registered.name: registered for registered in _registry(connection)}
            _refuse_chains(wanted, before)
            changes = _changes_between(wanted, before, disable_others=disable_others)
            ids = {name: registered.id for name, registered in before.items()}
            _write(connection, wanted, ids, [ids[name] for name in changes.disabled], by)
            if dry_run:
                transaction.rollback()
    except DATABASE_FAILURES as error:
        if sqlstate_of(error) == NOT_NULL_VIOLATION:
            raise DatabaseError(
                f"The table instances also belongs to another application, with its own columns: {reason_of(error)}. "
                "Register the server there; `capacity instances add NAME` then adds its connection."
            ) from error
        raise database_error(error, doing="registering servers") from error
    return changes


def _changes_between(
    wanted: Sequence[Server], before: dict[str, RegisteredServer], *, disable_others: bool
) -> RegistrationChanges:
    known = {name: registered.server for name, registered in before.items() if registered.is_collected}
    names = [server.name for server in wanted]
    others = [
        name
        for name, registered in before.items()
        if registered.active and registered.is_collected and name not in names
    ]
    unchanged = [server.name for server in wanted if known.get(server.name) == server]
    return RegistrationChanges(
        added=tuple(name for name in names if name not in before),
        changed=tuple(name for name in names if name in before and name not in unchanged),
        unchanged=tuple(unchanged),
        out_of_service=tuple(name for name in names if name in before and not before[name].active),
        disabled=tuple(others if disable_others else ()),
    )


def _write(
    connection: Connection, wanted: Sequence[Server], ids: dict[str, int], disabled: Sequence[int], by: str | None
) -> None:
    """Store servers in few statements, because triggers fire once per statement and search for samples."""
    rows = [
        {"name": server.name, "db_type": server.engine, "host": server.host, "port": server.port} for server in wanted
    ]
    added = [row for row in rows if row["name"] not in ids]
    if added:
        new = rows_of_values(instances, list(added[0]), added).add_columns(true())
        insertion = insert(instances).from_select([*added[0], "is_active"], new)
        ids |= {row.name: row.id for row in connection.execute(insertion.returning(instances.c.name, instances.c.id))}
    if wanted:
        both = zip(wanted, rows, strict=True)
        _update_servers(
            connection,
            [
                {**row, "id": ids[server.name], "counted_by": server.counted_by and ids[server.counted_by]}
                for server, row in both
            ],
        )
        _write_targets(connection, [{"instance_id": ids[server.name], **_target(server)} for server in wanted], by)
    if disabled:
        connection.execute(update(instances).where(instances.c.id.in_(disabled)).values(is_active=False))


def _update_servers(connection: Connection, rows: Sequence[Mapping[str, object]]) -> None:
    declared = rows_of_values(instances, list(rows[0]), rows).subquery("declared")
    values = {name: declared.c[name] for name in rows[0] if name not in {"id", "name"}}
    differs = tuple_(*(instances.c[name] for name in values)).is_distinct_from(tuple_(*values.values()))
    connection.execute(update(instances).where(instances.c.id == declared.c.id, differs).values(**values))


def _target(server: Server) -> dict[str, object]:
    return {name: getattr(server, name) for name in _STORED_AS_THEY_ARE} | {"connect_database": server.database}


def _write_targets(connection: Connection, rows: Sequence[Mapping[str, object]], by: str | None) -> None:
    new = rows_of_values(collection_targets, list(rows[0]), rows).add_columns(literal(by, Text()))
    statement = upsert(collection_targets).from_select([*rows[0], "declared_by"], new)
    changes = {name: statement.excluded[name] for name in (*rows[0], "declared_by") if name != "instance_id"}
    connection.execute(
        statement.on_conflict_do_update(index_elements=["instance_id"], set_={**changes, "updated_at": func.now()})
    )


def _refuse_chains(wanted: Sequence[Server], before: Mapping[str, RegisteredServer]) -> None:
    """Refuse chains of counted_by: a server that counts others must count itself, or both would be hidden."""
    names = {server.name for server in wanted}
    counting = {name: registered.server.counted_by for name, registered in before.items() if name not in names}
    for server in wanted:
        if server.counted_by is None:
            continue
        if server.counted_by not in names | before.keys():
            raise ValidationError(
                f"Server {server.name!r}: counted_by names {server.counted_by!r}, which is not registered."
            )
        if counting.get(server.counted_by) or server.name in counting.values():
            raise ValidationError(
                f"Server {server.name!r}: counted_by must name a server that no other one counts, and a server that "
                "counts others cannot have a counted_by."
            )
        counting[server.name] = server.counted_by


def remove_servers(engine: Engine, names: Sequence[str], *, dry_run: bool = False) -> tuple[str, ...]:
    """Delete the connection settings and attempts of servers; return those that remain because of their history.

    A server without samples and aggregates is deleted, unless it counts another server; the others are disabled.

    Raises:
        NotFoundError: one of the names is not registered; nothing was changed.
        DatabaseError: the database failed; nothing was changed.
    """
    ids = {registered.id: registered.name for registered in registered_servers(engine, names)}
    with declaring(engine, "removing servers", dry_run=dry_run) as connection:
        for table in (collection_targets, collection_attempts):
            connection.execute(delete(table).where(table.c.instance_id.in_(ids)))
        gone = set(connection.execute(text(_REMOVE), {"ids": list(ids)}).scalars())
        for table in (capacity_limits, capacity_steps, capacity_labels, capacity_decisions):
            connection.execute(delete(table).where(table.c.instance_id.in_(gone)))
        connection.execute(update(instances).where(instances.c.id.in_(ids)).values(is_active=False))
    return tuple(name for number, name in ids.items() if number not in gone)


_REMOVE = """
DELETE FROM instances i WHERE i.id = ANY (:ids)
  AND i.id NOT IN (SELECT s.instance_id FROM database_size_stats s WHERE s.instance_id = ANY (:ids))
  AND i.id NOT IN (SELECT s.instance_id FROM instance_size_stats s WHERE s.instance_id = ANY (:ids))
  AND i.id NOT IN (SELECT a.instance_id FROM database_size_aggregations a WHERE a.instance_id = ANY (:ids))
  AND i.id NOT IN (SELECT a.instance_id FROM instance_size_aggregations a WHERE a.instance_id = ANY (:ids))
  AND NOT EXISTS (SELECT FROM instances c WHERE c.counted_by = i.id)
RETURNING i.id
"""


def set_active(engine: Engine, names: Sequence[str], *, active: bool, dry_run: bool = False) -> None:
    """Take servers out of service or put them back. Their history is kept.

    Raises:
        NotFoundError: one of the names is not registered; nothing was changed.
        DatabaseError: the database failed; nothing was changed.
    """
    servers = registered_servers(engine, names)
    values: dict[str, object] = {"is_active": active} | ({"deleted_at": None} if active else {})
    statement = update(instances).where(instances.c.id == bindparam("server")).values(**values)
    with declaring(engine, "changing the registry", dry_run=dry_run) as connection:
        connection.execute(statement, [{"server": registered.id} for registered in servers])


@dataclass(frozen=True)
class FailingServer:
    """A server in service whose newest attempt failed."""

    server: str
    kind: str
    last_collected: date | None
    reason: str


@dataclass(frozen=True)
class CollectionState:
    """The servers in service that are registered for collection, by outcome on the newest day of attempts."""

    registered: int
    day: date | None
    collected: int
    failed: int
    failing: tuple[FailingServer, ...]

    @property
    def text(self) -> str:
        """The state in a sentence."""
        if not self.registered:
            return (
                "Collection: no server is measured from here; samples are imported, or another application writes them."
            )
        if self.day is None:
            return f"Collection: {counted(self.registered, 'server')} registered, none measured yet."
        left = self.registered - self.collected - self.failed
        return (
            f"Collection, {human_day(self.day)}: {self.collected:,} of {counted(self.registered, 'server')} measured, "
            f"{self.failed:,} failed{f', {left:,} not tried' if left else ''}."
        )


def collection_state(engine: Engine) -> CollectionState:
    """Return the state of the collection; raises DatabaseError."""
    with database_errors(doing="reading the collection"), engine.connect() as connection:
        parts = {"in_service": SERVERS_IN_SERVICE, "servers": _MEASURED_FROM_HERE}
        counts = connection.execute(with_queries(_COUNTS, **parts)).one()
        failing = [FailingServer(*row) for row in connection.execute(with_queries(_FAILING, **parts))]
    return CollectionState(counts.registered, counts.day, counts.collected, counts.failed, tuple(failing))


def last_attempts(engine: Engine) -> dict[int, Row[Any]]:
    """Return the day of the last collection and the last failure of each server; raises DatabaseError."""
    with database_errors(doing="reading the collection"), engine.connect() as connection:
        return {row.instance_id: row for row in connection.execute(text(_LAST_ATTEMPTS))}


_LAST_ATTEMPTS = """
SELECT instance_id, max(collected_date) FILTER (WHERE status = 'collected') AS last_collected,
       (array_agg(CASE WHEN status = 'failed' THEN collected_date || ': ' || failure || ': ' || reason END
        ORDER BY collected_date DESC))[1] AS last_failure
FROM capacity_collection_attempts GROUP BY instance_id
"""
_MEASURED_FROM_HERE = "SELECT i.* FROM in_service i JOIN capacity_collection_targets t ON t.instance_id = i.id"
_COUNTS = """
SELECT (SELECT count(*) FROM servers) AS registered,
       (SELECT max(collected_date) FROM capacity_collection_attempts) AS day,
       count(*) FILTER (WHERE a.status = 'collected') AS collected,
       count(*) FILTER (WHERE a.status = 'failed') AS failed
FROM servers s JOIN capacity_collection_attempts a ON a.instance_id = s.id
    AND a.collected_date = (SELECT max(collected_date) FROM capacity_collection_attempts)
"""
_FAILING = """
SELECT s.name, a.failure, (SELECT max(c.collected_date) FROM capacity_collection_attempts c
                           WHERE c.instance_id = s.id AND c.status = 'collected') AS last_collected, a.reason
FROM servers s
CROSS JOIN LATERAL (SELECT * FROM capacity_collection_attempts n WHERE n.instance_id = s.id
                    ORDER BY n.collected_date DESC LIMIT 1) AS a
WHERE a.status = 'failed' ORDER BY last_collected NULLS FIRST, s.name
"""
