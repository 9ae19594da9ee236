"""The registered servers and how to reach them: rows of `instances` and `capacity_collection_targets`.

A server without a row in the second table is known, and aggregated, but not measured here. Passwords are never stored,
only where they are. Files that declare servers are read in `declarations`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from sqlalchemy import Connection, Engine, Row, bindparam, func, insert, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert

from capacity_assets.collection.servers import Server, complete
from capacity_assets.errors import (
    DATABASE_FAILURES,
    DatabaseError,
    NotFoundError,
    ValidationError,
    database_error,
    database_errors,
    reason_of,
    sqlstate_of,
)
from capacity_assets.runway.subjects import declaring
from capacity_assets.storage.active_servers import is_active
from capacity_assets.storage.tables import collection_targets, instances
from capacity_assets.units import meant

NOT_NULL_VIOLATION = "23502"


@dataclass(frozen=True)
class Registered:
    """A row of the registry: the server, and what is known of it beside how to reach it."""

    id: int
    server: Server
    active: bool
    """In service: measured, if it can be, and aggregated."""
    is_collected: bool

    @property
    def state(self) -> str:
        """In one word."""
        if not self.active:
            return "disabled"
        return "measured here" if self.is_collected else "filled elsewhere"


_COUNTING = instances.alias("counting")
_REGISTRY = (
    select(
        instances,
        collection_targets,
        is_active().label("active"),
        collection_targets.c.instance_id.is_not(None).label("is_collected"),
        _COUNTING.c.name.label("counted_by_name"),
    )
    .select_from(
        instances.outerjoin(collection_targets, collection_targets.c.instance_id == instances.c.id).outerjoin(
            _COUNTING, _COUNTING.c.id == instances.c.counted_by
        )
    )
    .order_by(instances.c.name)
)


def registered(engine: Engine, names: Sequence[str] | None = None) -> list[Registered]:
    """Return servers by name, all or the named ones; raises NotFoundError for an unknown name, and DatabaseError."""
    with database_errors(doing="reading the registry", kept="Nothing was changed."), engine.connect() as connection:
        rows = connection.execute(_REGISTRY).all()
    found = [_registered(row) for row in rows]
    if names is None:
        return found
    unknown = sorted({*names} - {one.server.name for one in found})
    if unknown:
        close = meant(unknown[0], (one.server.name for one in found))
        raise NotFoundError(
            f"No server is named {', '.join(map(repr, unknown))}.{close} `capacity instances list` has them."
        )
    return [one for one in found if one.server.name in names]


def _registered(row: Row[tuple[object, ...]]) -> Registered:
    known = row._mapping  # noqa: SLF001 -- SQLAlchemy's public name for it
    server = Server(
        name=known[instances.c.name],
        engine=known[instances.c.db_type],
        host=known[instances.c.host],
        port=known[instances.c.port],
        database=known[collection_targets.c.connect_database],
        counted_by=known["counted_by_name"],
        **{name: known[collection_targets.c[name]] for name in _STORED_AS_THEY_ARE},
    )
    return Registered(
        id=known[instances.c.id],
        server=server,
        active=known["active"],
        is_collected=known["is_collected"],
    )


_STORED_AS_THEY_ARE = (
    *("username", "password_from", "tls", "tls_ca", "tls_certificate", "tls_key", "server_public_key", "sizing"),
)


@dataclass(frozen=True)
class Changes:
    """What a registration did, or would do, by name of server."""

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()
    disabled: tuple[str, ...] = ()
    out_of_service: tuple[str, ...] = ()


def register(
    engine: Engine, servers: Iterable[Server], *, disable_others: bool = False, dry_run: bool = False
) -> Changes:
    """Add servers and change those that are there, in one transaction.

    `disable_others` takes the rest of those that are measured here out of service. A disabled server stays so.
    Nothing is written with `dry_run`.

    Raises:
        ValidationError: a value cannot work, or a name occurs twice; nothing was registered.
        DatabaseError: the database failed; nothing was registered.
    """
    wanted = [complete(server) for server in servers]
    names = [server.name for server in wanted]
    twice = sorted(name for name, times in Counter(names).items() if times > 1)
    if twice:
        raise ValidationError(f"Declared more than once: {', '.join(twice)}. Nothing was registered.")
    before = {one.server.name: one for one in registered(engine)}
    changes = _compared(wanted, before, disable_others=disable_others)
    try:
        with engine.connect() as connection, connection.begin() as transaction:
            _write(connection, wanted, [before[name].id for name in changes.disabled])
            if dry_run:
                transaction.rollback()
    except DATABASE_FAILURES as error:
        if sqlstate_of(error) == NOT_NULL_VIOLATION:
            raise DatabaseError(
                f"The table instances belongs to another application too, which fills more of it: {reason_of(error)}. "
                "Nothing was registered. Register the server there, then `capacity instances add NAME` adds how to "
                "reach it."
            ) from error
        raise database_error(error, doing="registering servers", kept="Nothing was registered.") from error
    return changes


def _compared(wanted: Sequence[Server], before: dict[str, Registered], *, disable_others: bool) -> Changes:
    known = {name: one.server for name, one in before.items() if one.is_collected}
    names = {server.name for server in wanted}
    return Changes(
        added=tuple(server.name for server in wanted if server.name not in before),
        changed=tuple(server.name for server in wanted if server.name in before and known.get(server.name) != server),
        unchanged=tuple(server.name for server in wanted if known.get(server.name) == server),
        out_of_service=tuple(
            server.name for server in wanted if server.name in before and not before[server.name].active
        ),
        disabled=tuple(
            name
            for name, one in before.items()
            if disable_others and one.active and one.is_collected and name not in names
        ),
    )


def _write(connection: Connection, wanted: Sequence[Server], disabled: Sequence[int]) -> None:
    ids: dict[str, int] = {}
    for server in wanted:
        values = {"db_type": server.engine, "host": server.host, "port": server.port}
        known = connection.execute(select(instances.c.id).where(instances.c.name == server.name)).scalar()
        if known is None:
            statement = insert(instances).values(name=server.name, is_active=True, **values).returning(instances.c.id)
            known = connection.execute(statement).scalar_one()
        else:
            connection.execute(update(instances).where(instances.c.id == known).values(**values))
        ids[server.name] = known
        _write_target(connection, known, server)
    # After all are there: a server may be counted by one that is declared below it.
    for server in wanted:
        counted_by = _id_of(connection, ids, server)
        connection.execute(update(instances).where(instances.c.id == ids[server.name]).values(counted_by=counted_by))
    if disabled:
        connection.execute(update(instances).where(instances.c.id.in_(disabled)).values(is_active=False))


def _write_target(connection: Connection, instance_id: int, server: Server) -> None:
    values = {name: value for name, value in asdict(server).items() if name in _STORED_AS_THEY_ARE}
    values |= {"instance_id": instance_id, "connect_database": server.database}
    statement = upsert(collection_targets).values(**values)
    changes = {name: statement.excluded[name] for name in values if name != "instance_id"}
    connection.execute(
        statement.on_conflict_do_update(index_elements=["instance_id"], set_={**changes, "updated_at": func.now()})
    )


def _id_of(connection: Connection, ids: dict[str, int], server: Server) -> int | None:
    """Return the id of the server that counts this one, which must count itself: chains would hide both."""
    if server.counted_by is None:
        return None
    query = select(instances.c.id, instances.c.counted_by).where(instances.c.name == server.counted_by)
    found = connection.execute(query).first()
    if found is None:
        raise ValidationError(
            f"Server {server.name!r}: counted_by names {server.counted_by!r}, which is not registered. "
            "Nothing was registered."
        )
    others = select(func.count()).where(instances.c.counted_by == ids[server.name])
    if found.counted_by is not None or connection.execute(others).scalar_one():
        raise ValidationError(
            f"Server {server.name!r}: counted_by must name a server that counts itself, and one that counts others "
            "cannot be counted by another. Nothing was registered."
        )
    return int(found.id)


def remove(engine: Engine, names: Sequence[str], *, dry_run: bool = False) -> tuple[str, ...]:
    """Delete the connection settings and the attempts of servers; return those whose history keeps them registered.

    A server without samples and aggregates goes altogether, unless another one is counted by it; the others are
    disabled.

    Raises:
        NotFoundError: one of the names is not registered; nothing was changed.
        DatabaseError: the database failed; nothing was changed.
    """
    ids = {one.id: one.server.name for one in registered(engine, names)}
    with declaring(engine, "removing servers", dry_run=dry_run) as connection:
        for statement in _FORGET:
            connection.execute(text(statement), {"ids": list(ids)})
        gone = set(connection.execute(text(_REMOVE), {"ids": list(ids)}).scalars())
        for table in ("capacity_limits", "capacity_steps", "capacity_labels"):
            connection.execute(text(f"DELETE FROM {table} WHERE instance_id = ANY (:gone)"), {"gone": list(gone)})  # noqa: S608 -- our own names
        connection.execute(update(instances).where(instances.c.id.in_(ids)).values(is_active=False))
    return tuple(name for number, name in ids.items() if number not in gone)


_FORGET = (
    "DELETE FROM capacity_collection_targets WHERE instance_id = ANY (:ids)",
    "DELETE FROM capacity_collection_attempts WHERE instance_id = ANY (:ids)",
)
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
    """Take servers out of service or put them back; history stays either way.

    Raises:
        NotFoundError: one of the names is not registered; nothing was changed.
        DatabaseError: the database failed; nothing was changed.
    """
    found = registered(engine, names)
    values: dict[str, object] = {"is_active": active} | ({"deleted_at": None} if active else {})
    statement = update(instances).where(instances.c.id == bindparam("server")).values(**values)
    with declaring(engine, "changing the registry", dry_run=dry_run) as connection:
        connection.execute(statement, [{"server": one.id} for one in found])
