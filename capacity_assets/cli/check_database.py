"""What `capacity check` says of the capacity database; the screen itself is in `check`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sqlalchemy import Engine, func, select, text

from capacity_assets.cli.findings import ZONE, Finding, Verdict, server_version
from capacity_assets.clock import Clock
from capacity_assets.collection.credentials import OWN, SecretFolders, password_of
from capacity_assets.collection.observing import STOPPED_ADVICE, newest_samples
from capacity_assets.collection.registry import Registered, registered
from capacity_assets.collection.standing import standing
from capacity_assets.errors import DATABASE_FAILURES, CapacityError, DatabaseError, reason_of
from capacity_assets.foundation.clock_guard import judged_day
from capacity_assets.foundation.levels import SERVER_LEVELS
from capacity_assets.runtime import open_engine, retention_service
from capacity_assets.runway.history import HistoryScope, reading
from capacity_assets.settings import ConfigurationError, Settings
from capacity_assets.storage.distributing import distribution_text, placements
from capacity_assets.storage.embedded import EmbeddedServerError
from capacity_assets.storage.engine import UnreachableError
from capacity_assets.storage.node_records import lost_nodes
from capacity_assets.storage.schema import (
    SCHEMA_REVISION,
    schema_revision,
    schema_state,
)
from capacity_assets.storage.time_zone import another_zone
from capacity_assets.units import counted, first_of

OLDEST_SERVER = 14
NAMED = 5
AGGREGATES = tuple(level.target.name for level in SERVER_LEVELS.values())
# The last thirteen months, so that a long history is not read as a whole.
_CONTRADICTING = """
SELECT count(*) AS rows, min(period_start) AS first_day FROM {table}
WHERE period_start >= current_date - 400
  AND (growth_rate < 0 AND trend_direction = 'growing' OR growth_rate > 0 AND trend_direction = 'shrinking')
"""


def capacity_database_findings(settings: Settings) -> Iterator[Finding]:
    """Look at the capacity database: server, schema, zone, trends, partitions, registered servers."""
    subject = "capacity database"
    if settings.capacity_url is None and not settings.embedded_server_exists:
        yield Finding(
            subject, Verdict.NOTE, "the embedded server does not exist yet: `capacity init` or `capacity demo`"
        )
        return
    try:
        with open_engine(settings) as engine:
            yield from _server(engine)
            yield from _schema(engine)
            if schema_revision(engine) == SCHEMA_REVISION:
                yield from _distribution(engine)
                yield from _zone(engine, settings)
                yield from _clock(engine, settings)
                yield from _days_ahead(engine, settings)
                yield from _newest_samples(engine, settings)
                yield from _trends(engine)
                yield from _partitions(engine, settings)
                yield from _collection(engine, settings)
                yield from _limits(engine, settings)
    except (UnreachableError, EmbeddedServerError, DatabaseError) as error:
        yield Finding(subject, Verdict.BAD, str(error))
    except DATABASE_FAILURES as error:
        yield Finding(subject, Verdict.BAD, reason_of(error))


def _server(engine: Engine) -> Iterator[Finding]:
    major, version = server_version(engine)
    old = major < OLDEST_SERVER
    advice = f"; {OLDEST_SERVER} or newer is needed" if old else ""
    yield Finding("capacity database", Verdict.BAD if old else Verdict.OK, f"PostgreSQL {version} answers{advice}")


def _schema(engine: Engine) -> Iterator[Finding]:
    state = schema_state(engine)
    if state.fit:
        yield Finding(
            "schema", Verdict.OK, f"revision {SCHEMA_REVISION}, all tables, keys, indexes and triggers are there"
        )
        return
    if state.revision != SCHEMA_REVISION:
        found = "none" if state.revision is None else state.revision
        text = f"revision {found}, {SCHEMA_REVISION} is needed: run `capacity init`"
        yield Finding("schema", Verdict.BAD, text)
    if state.missing_tables:
        yield Finding("schema", Verdict.BAD, f"missing tables: {', '.join(state.missing_tables)}")
    for shortcoming in state.shortcomings:
        yield Finding("schema", Verdict.BAD, f"{shortcoming}; run `capacity init`, which fixes it or says what to do")


def _distribution(engine: Engine) -> Iterator[Finding]:
    """Say where distributed tables lie; nothing where none is."""
    found = placements(engine, with_sizes=False)
    text = distribution_text(found)
    left = [one.table for one in found if not one.is_distributed]
    again = f"{', '.join(left)}: still on the coordinator; run `capacity distribute` again"
    if text is None:
        return
    if lost_nodes(engine):
        removed = "a node was removed, and nobody knows what it had recorded of changes; run `capacity distribute`"
        yield Finding("distribution", Verdict.BAD, removed)
    if not left:
        yield Finding("distribution", Verdict.OK, text)
    else:
        yield Finding("distribution", Verdict.BAD, f"{again}, nothing is computed before")


def _zone(engine: Engine, settings: Settings) -> Iterator[Finding]:
    if problem := another_zone(engine, settings.timezone):
        yield Finding(ZONE, Verdict.BAD, problem)


def _days_ahead(engine: Engine, settings: Settings) -> Iterator[Finding]:
    """Name samples of days that have not come: the clock of whoever measured them was wrong."""
    today = Clock(settings.zone).today()
    for level in SERVER_LEVELS.values():
        day = level.source.c.collected_date
        with engine.connect() as connection:
            first = connection.execute(select(func.min(day)).where(day > today)).scalar()
        if first is not None:
            yield Finding(
                level.source.name,
                Verdict.BAD,
                f"has samples of days that lie ahead, from {first} on, and today is {today}: a clock was wrong when "
                "they were measured, or is wrong now. Set it right; delete what is left of them",
            )


def _clock(engine: Engine, settings: Settings) -> Iterator[Finding]:
    with engine.connect() as connection:
        doubt = judged_day(connection, Clock(settings.zone)).why_nothing_is_deleted
    if doubt:
        yield Finding("clock", Verdict.BAD, f"{doubt} Set the clock that is wrong; until then nothing is dropped")


def _newest_samples(engine: Engine, settings: Settings) -> Iterator[Finding]:
    """Report samples that stopped arriving: if Dagster is not running, no alert is sent."""
    for newest in newest_samples(engine, Clock(settings.zone).today()):
        if newest.has_stopped:
            yield Finding(newest.table, Verdict.BAD, f"{newest.text} {STOPPED_ADVICE}")


def _trends(engine: Engine) -> Iterator[Finding]:
    """Look for rows of the last months that another application has written without their trend."""
    with engine.connect() as connection:
        rows = {name: connection.execute(text(_CONTRADICTING.format(table=name))).one() for name in AGGREGATES}
    for name, found in rows.items():
        if found.rows:
            yield Finding(
                name,
                Verdict.NOTE,
                f"a trend that contradicts the growth: {counted(found.rows, 'row')} since {found.first_day}. Another "
                "application wrote these rows without updating the trend. `capacity aggregate` for these days "
                "corrects it",
            )


def _partitions(engine: Engine, settings: Settings) -> Iterator[Finding]:
    try:
        lacks = retention_service(engine, settings).shortcomings()
    except ConfigurationError:
        return  # told already, with the variable
    for lack in lacks:
        yield Finding("partitions", Verdict.NOTE, lack)
    if not lacks:
        yield Finding("partitions", Verdict.OK, "there are some for the coming month; no row lies in a default one")


def _collection(engine: Engine, settings: Settings) -> Iterator[Finding]:
    """Say who is measured, and whose password cannot be looked up; no server is asked."""
    every = registered(engine)
    measured = [one for one in every if one.active and one.is_collected]
    for one in measured:
        reference = one.server.password_from
        if reference is None or reference == OWN:
            continue
        try:
            password_of(reference, SecretFolders.of(settings))
        except CapacityError as error:
            yield Finding(f"server {one.server.name}", Verdict.BAD, str(error))
    yield from _warnings(measured, every)
    if settings.collection == "off":
        text = "off: another application fills the raw tables, which are observed"
        yield Finding("collection", Verdict.NOTE if measured else Verdict.OK, text)
    else:
        failing = standing(engine).failing
        found = f"{counted(len(measured), 'server')} measured daily at {settings.collection_hour:02}:00"
        if failing:
            found += f"; {len(failing):,} of them failed last: {first_of((one.server for one in failing), NAMED)}"
        yield Finding("collection", Verdict.OK if measured and not failing else Verdict.NOTE, found)


def _limits(engine: Engine, settings: Settings) -> Iterator[Finding]:
    """Say of how many databases a limit is known: without one there is no day on which they are full."""
    today = Clock(settings.zone).today()
    with engine.connect() as connection, reading(connection, HistoryScope(today), kinds=()) as reader:
        unknown = sum(reader.without_limit().values())
    if unknown:
        text_of = f"{counted(unknown, 'database')} without a known limit: `capacity limits set` declares one"
        yield Finding("limits", Verdict.NOTE, text_of)
    else:
        yield Finding("limits", Verdict.OK, "of every database that was measured within the last month")


def _warnings(measured: Sequence[Registered], every: Sequence[Registered]) -> Iterator[Finding]:
    """Name what would make a fleet total wrong: one server registered twice, a replica that no other server counts."""
    places: dict[tuple[str, str | None], list[str]] = {}
    for one in measured:
        if one.server.counted_by is None:
            places.setdefault((one.server.place, one.server.database), []).append(one.server.name)
    for (place, _), names in places.items():
        if len(names) > 1:
            text = (
                f"{', '.join(names)} are all at {place}: fleet totals count it {len(names)} times, see `--counted-by`"
            )
            yield Finding("servers", Verdict.NOTE, text)
    active = {one.server.name for one in every if one.active}
    orphans = [
        one.server.name for one in every if one.active and (one.server.counted_by or one.server.name) not in active
    ]
    if orphans:
        text = f"counted by a server that is out of service, so not counted at all: {first_of(orphans, NAMED)}"
        yield Finding("servers", Verdict.NOTE, text)
    unreached = [one.server.name for one in every if one.active and not one.is_collected]
    if measured and unreached:
        text = f"active, but how to reach them is not registered: {first_of(unreached, NAMED)}"
        yield Finding("servers", Verdict.NOTE, text)
