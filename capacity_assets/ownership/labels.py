"""Declared labels, and what groups contain. Which label applies to a database is in `label_rules.py`.

A label is a team, environment, service or any other key with a value. It has a first day, so that last year's figures
keep last year's owners.

To explain a group, its parts are added up from the samples, with the labels of each row, and compared with the stored
row. The size of a group on a day is in `aggregates.groups`, the figures of groups are in `reading.groups`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, Row, Text, cast, select, table, text
from sqlalchemy import column as sql_column

from capacity_assets.aggregates.groups import (
    GROUP_PARTS,
    ROWS_OF_SERVERS,
    SERVERS_LEFT_OUT,
    STORED_SERVERS_LEFT_OUT,
    day_parameters,
    left_out_parameters,
)
from capacity_assets.base.declarations import DeclaredItems, checked_label, day_of, declarations, refuse_lacking
from capacity_assets.base.errors import NotFoundError, ValidationError, database_errors
from capacity_assets.base.periods import Period, Window
from capacity_assets.base.units import first_of, human_day, suggestion
from capacity_assets.database.declared_rows import (
    WHOLE_SERVER,
    Stored,
    clear_history,
    columns_of,
    declaring,
    ids_of,
    keys_of,
    places_in_errors,
    refuse_repeated,
    replace_rows,
    rows_of,
    subject_text,
)
from capacity_assets.database.sql import with_queries
from capacity_assets.database.tables import ALWAYS, capacity_labels
from capacity_assets.label_rules import LABELS_OF_SUBJECTS, precedence, ranks

Subject = TypeVar("Subject", bound=tuple[str, str | None])

WILDCARDS = re.compile(r"[*?]")
AS_LIKE = str.maketrans({"\\": r"\\", "%": r"\%", "_": r"\_", "*": "%", "?": "_"})
SUBJECT_COLUMNS = ("server", "database", "from")


@dataclass(frozen=True)
class Label:
    """A label of a server or, with `database`, of its databases that match that name or pattern.

    `value` None removes the label. `valid_from` None: all of history if the key had no value before, not even from
    another pattern or the server; otherwise from today.
    """

    server: str
    database: str | None
    key: str
    value: str | None
    valid_from: date | None = None


@dataclass(frozen=True)
class LabelChange:
    """A declared label with its first day, the earlier value on that day, and those of later days.

    If the label applies to all of history, the later ones were removed. A value of None: removed on that day.
    """

    label: Label
    before: str | None
    later: Sequence[tuple[date, str | None]]


def declare_labels(
    engine: Engine, labels: Sequence[Label], today: date, *, by: str | None = None, dry_run: bool = False
) -> Sequence[LabelChange]:
    """Store labels, either all or none; return those that change something.

    `by` declares them. A dry run only checks them.

    Raises:
        NotFoundError: a server is not registered, or a database that is named without * and ? was never measured.
        ValidationError: a key is given twice for one subject.
        DatabaseError: the database failed; nothing was changed.
    """
    subjects = [(label.server, label.database, label.key, label.valid_from) for label in labels]
    refuse_repeated(subjects, lambda given: f"{given[2]} of {subject_text(*given[:2])}", "Given more than once:")
    with places_in_errors(labels), declaring(engine, "storing labels", dry_run=dry_run) as connection:
        rows = _rows(connection, labels)
        possible_changes = _changes(labels, _first_days_of(connection, rows, today))
        changes = [change for change in possible_changes if change is not None]
        removed = [subject_text(label.server, label.database) for label in labels if label.value is None]
        if removed and not changes:
            raise NotFoundError(f"{first_of(removed, 1)} has no such label on these days.")
        changed = [
            {**row, "valid_from": change.label.valid_from}
            for row, change in zip(rows, possible_changes, strict=True)
            if change
        ]
        clear_history(connection, capacity_labels, changed)
        rows_to_store = [row for row in changed if row["value"] is not None or row["valid_from"] != ALWAYS]
        replace_rows(connection, capacity_labels, rows_to_store, by)
    return changes


def _rows(connection: Connection, labels: Sequence[Label]) -> list[dict[str, object]]:
    # A pattern may name databases that are yet to come.
    exact = [(label.server, None if WILDCARDS.search(label.database or "") else label.database) for label in labels]
    return [
        {
            "instance_id": key["instance_id"],
            "database_pattern": label.database or WHOLE_SERVER,
            "key": label.key,
            "value": label.value,
            "valid_from": label.valid_from,
        }
        for key, label in zip(keys_of(connection, exact), labels, strict=True)
    ]


def _first_days_of(connection: Connection, rows: Sequence[Mapping[str, object]], today: date) -> Sequence[Row[Any]]:
    """Return the first day of each label, and the declarations for its subject."""
    if not rows:
        return []
    likes = [str(row["database_pattern"]).translate(AS_LIKE) for row in rows]
    parameters = {**columns_of(rows), "database_likes": likes, "today": today, "always": ALWAYS}
    ids = connection.execute(text(WITH_PATTERNS), parameters).scalars().all()
    names = connection.execute(text(NAMES), {"ids": ids}).all() if ids else []
    parameters |= {"named_ids": [row.instance_id for row in names], "names": [row.database_name for row in names]}
    return connection.execute(text(PLACED), parameters).all()


def _changes(labels: Sequence[Label], histories: Sequence[Row[Any]]) -> list[LabelChange | None]:
    """Return the change by each label; None: it already applies."""
    values_by_day: dict[tuple[object, ...], dict[date, str | None]] = {}
    for label, row in zip(labels, histories, strict=True):
        values_by_day.setdefault((label.server, label.database, label.key), {})[row.first_day] = label.value
    return [
        _change(label, row, values_by_day[label.server, label.database, label.key])
        for label, row in zip(labels, histories, strict=True)
    ]


def _change(label: Label, stored: Row[Any], values_by_day: Mapping[date, str | None]) -> LabelChange | None:
    """Return the change by a label, of all values of its subject and key by first day."""
    history: dict[date, str | None] = dict(zip(stored.days or (), stored.held or (), strict=True))
    if label.valid_from == ALWAYS:
        is_change = bool(history) if label.value is None else history != {ALWAYS: label.value}
    else:
        # One that applies to all of history removes what was stored.
        others = {day: value for day, value in values_by_day.items() if day != stored.first_day}
        history = others if ALWAYS in others else {**history, **others}
        is_change = _value_on(history, stored.first_day) != label.value
    later = tuple((day, history[day]) for day in sorted(history) if day > stored.first_day)
    before = _value_on(history, stored.first_day)
    return LabelChange(replace(label, valid_from=stored.first_day), before, later) if is_change else None


def _value_on(history: Mapping[date, str | None], day: date) -> str | None:
    return history[max(earlier)] if (earlier := [first for first in history if first <= day]) else None


@dataclass(frozen=True)
class LabelSpan(Stored[Label]):
    """A stored label with the days on which it applies; `valid_until` None: it still applies."""

    valid_until: date | None

    def holds_on(self, day: date) -> bool:
        """Whether it applies on a day."""
        assert self.declaration.valid_from is not None  # noqa: S101 -- stored labels are dated
        return self.declaration.valid_from <= day and (self.valid_until is None or day < self.valid_until)


def stored_labels(engine: Engine, server: str | None = None) -> list[LabelSpan]:
    """Return labels by server, database and key, servers' first, of all or one; raises NotFoundError, DatabaseError."""
    if server is not None:
        with declaring(engine, "reading labels", dry_run=True) as connection:
            ids_of(connection, {server})
    return [
        LabelSpan(Label(row.name, row.database or None, row.key, row.value, row.valid_from), *row[5:])
        for row in rows_of(engine, "labels", LIST, server=server)
    ]


def read_labels(
    connection: Connection,
    subjects: Sequence[Subject],
    day: date,
    *,
    label: tuple[str, str] | None = None,
    of_engine: str | None = None,
) -> dict[Subject, dict[str, str]]:
    """Return the labels of registered servers (database None) and databases on a day; raises DBAPIError.

    If `label` (key and value) or `of_engine` is given, only of matching ones. An empty value selects those without that
    key.
    """
    key, value = label or (None, None)
    parameters = {"servers": [server for server, _ in subjects], "databases": [database for _, database in subjects]}
    wanted = {"day": day, "engine": of_engine, "key": key, "value": value}
    query = with_queries(LABELLED, subjects=SUBJECTS, labels_held=LABELS_OF_SUBJECTS)
    return {subjects[row.number - 1]: dict(row.labels) for row in connection.execute(query, {**parameters, **wanted})}


def label_of_nothing(engine: Engine, key: str, value: str) -> str | None:
    """Return a sentence that nothing has a label, and similar ones; None: it existed. Raises DatabaseError."""
    with database_errors(doing="reading labels"), engine.connect() as connection:
        return read_label_of_nothing(connection, key, value)


def read_label_of_nothing(connection: Connection, key: str, value: str) -> str | None:
    """Return a sentence as `label_of_nothing`, None also for an empty value, which is no label; raises DBAPIError."""
    if not value:
        return None
    known = connection.execute(text(KNOWN)).all()
    if (key, value) in {(row.key, row.value) for row in known}:
        return None
    values = [row.value for row in known if row.key == key]
    if values:
        # The key is the same in all of them, and would make any two labels similar.
        similar = next(iter(get_close_matches(value, values, n=1)), None)
        close = f" Did you mean {f'{key}={similar}'!r}?" if similar else ""
    else:
        close = suggestion(key, sorted({row.key for row in known}))
    elsewhere = [f"{row.key}={row.value}" for row in known if row.value == value]
    if not close and elsewhere:
        close = f" Did you mean {elsewhere[0]!r}?"
    listed = f" {key} has {first_of(values, VALUES_NAMED)}." if values and not close else ""
    return f"Nothing has the label {key}={value}.{close}{listed}"


def refuse_unknown_label(engine: Engine, key: str, value: str) -> None:
    """Refuse a label that nothing has or ever had; raises NotFoundError and DatabaseError."""
    refusal = label_of_nothing(engine, key, value)
    if refusal:
        raise NotFoundError(f"{refusal} `capacity labels list` shows all.")


def values_differing_in_case(engine: Engine, key: str, value: str) -> list[str]:
    """Return values of a key that differ from this one in capitals only; raises DatabaseError."""
    rows = rows_of(engine, "labels", ALIKE, key=key, value=value)
    return [row.value for row in rows if row.value != value]


def matching(engine: Engine, label: Label) -> int:
    """Count the databases of the newest samples of a server that a name or pattern matches; raises DatabaseError."""
    like = (label.database or "").translate(AS_LIKE)
    [row] = rows_of(engine, "names", MATCHING, server=label.server, like=like)
    return int(row.matched)


def labels_of_file(path: Path, keys: Sequence[str]) -> list[Label]:
    """Read labels from a CSV file with the columns server, database, from, and one per key; empty fields are left out.

    Raises ValidationError: it cannot be read, or a line is invalid; all problems are reported together.
    """

    def read(row: Mapping[str, str]) -> list[Label]:
        refuse_lacking(row, ("server",))
        valid_from = day_of(row["from"]) if "from" in row else None
        values = {name: value for name, value in row.items() if name not in SUBJECT_COLUMNS}
        return labels_from_values(row["server"], row.get("database"), values, keys, valid_from)

    rows = declarations(path, (*SUBJECT_COLUMNS, *keys), ("server",), read)
    items = [(label, place) for labels, place in zip(rows, rows.places, strict=True) for label in labels]
    return DeclaredItems((label for label, _ in items), (place for _, place in items))


def labels_from_values(
    server: str, database: str | None, values: Mapping[str, str | None], keys: Sequence[str], valid_from: date | None
) -> list[Label]:
    """Return the labels that `values` gives a subject by key; raises as `checked_label`."""
    empty = [key for key, value in values.items() if key in keys and value is not None and not value.strip()]
    if empty:
        raise ValidationError(f"The value of {empty[0]} is empty. `capacity labels remove` removes a label.")
    pairs = [checked_label(key, value, keys) for key, value in values.items()]
    return [Label(server, database, key, value, valid_from) for key, value in pairs]


def labels_of_column(engine: Engine, column: str, key: str) -> list[Label]:
    """Return labels that copy a column of the registry: its values, and None to remove a label that it lacks.

    Raises:
        NotFoundError: the table instances has no such column.
        ValidationError: a value cannot be one of a label.
        DatabaseError: the database failed.
    """
    columns = [row.column_name for row in rows_of(engine, "the registry", COLUMNS)]
    if column not in columns:
        raise NotFoundError(
            f"The table instances has no column {column!r}; it has {first_of(columns, 50)}."
            f"{suggestion(column, columns)}"
        )
    registry = table("instances", sql_column("name"), sql_column(column))
    query = select(registry.c.name, cast(registry.c[column], Text)).order_by(registry.c.name)
    with database_errors(doing="reading the registry"), engine.connect() as connection:
        values = {name: (value or "").strip() for name, value in connection.execute(query)}
    servers = {row.name for row in rows_of(engine, "labels", HELD, key=key)}
    return [
        Label(name, None, *checked_label(key, value or None, [key]))
        for name, value in values.items()
        if value or name in servers
    ]


# The first day of each label, and the declarations for its subject by day. If none is given, a label applies from today
# if it replaces another one, `l`: of the same subject or the server, or of a database `d` for which it has precedence.
PLACED = f"""
WITH given AS (
    SELECT * FROM unnest(
        CAST(:instance_ids AS integer[]), CAST(:database_patterns AS varchar[]), CAST(:database_likes AS varchar[]),
        CAST(:keys AS varchar[]), CAST(:values AS varchar[]), CAST(:valid_froms AS date[])
    ) WITH ORDINALITY AS g (instance_id, database_pattern, database_like, key, value, valid_from, number)
), named AS (
    SELECT * FROM unnest(CAST(:named_ids AS integer[]), CAST(:names AS varchar[])) AS n (instance_id, name)
)
SELECT coalesce(g.valid_from, CASE WHEN g.value IS NULL OR EXISTS (
           SELECT FROM capacity_label_spans l
           WHERE l.instance_id = g.instance_id AND l.key = g.key
             AND (l.database_pattern IN (g.database_pattern, '') OR g.database_pattern <> '' AND EXISTS (
                 SELECT FROM (
                     SELECT g.database_pattern AS name WHERE g.database_pattern !~ '[*?]'
                     UNION ALL
                     SELECT n.name FROM named n WHERE n.instance_id = g.instance_id AND n.name LIKE g.database_like
                 ) AS d
                 WHERE d.name LIKE l.database_like
                   AND ({", ".join(ranks("g", "d.name"))}, l.database_pattern)
                     > ({", ".join(ranks("l", "d.name"))}, g.database_pattern)))
       ) THEN CAST(:today AS date) ELSE CAST(:always AS date) END) AS first_day, history.*
FROM given g
CROSS JOIN LATERAL (
    SELECT array_agg(l.valid_from ORDER BY l.valid_from) AS days, array_agg(l.value ORDER BY l.valid_from) AS held
    FROM capacity_labels l
    WHERE l.instance_id = g.instance_id AND l.database_pattern = g.database_pattern AND l.key = g.key
) AS history
ORDER BY g.number
"""  # noqa: S608 -- the order is that of the rule
# Databases of servers that already have pattern labels.
NAMES = """
SELECT instance_id, database_name FROM database_size_stats WHERE instance_id = ANY (CAST(:ids AS integer[]))
UNION SELECT instance_id, database_name FROM database_size_aggregations
WHERE instance_id = ANY (CAST(:ids AS integer[]))
"""
WITH_PATTERNS = """
SELECT DISTINCT instance_id FROM capacity_labels
WHERE instance_id = ANY (CAST(:instance_ids AS integer[])) AND key = ANY (CAST(:keys AS varchar[]))
  AND database_pattern ~ '[*?]'
"""
LIST = """
SELECT i.name, s.database_pattern AS database, s.key, s.value, s.valid_from,
       s.declared_at, s.declared_by, CASE WHEN s.valid_until < 'infinity' THEN s.valid_until END AS valid_until
FROM capacity_label_spans s JOIN instances i ON i.id = s.instance_id
WHERE CAST(:server AS text) IS NULL OR i.name = :server
ORDER BY i.name, s.database_pattern, s.key, s.valid_from
"""
HELD = """
SELECT i.name FROM capacity_label_spans s JOIN instances i ON i.id = s.instance_id
WHERE s.key = :key AND s.database_pattern = '' AND s.value IS NOT NULL AND s.valid_until = 'infinity'
"""
MATCHING = """
SELECT count(*) AS matched FROM database_size_stats d
WHERE d.instance_id = (SELECT id FROM instances WHERE name = :server) AND d.database_name LIKE :like
  AND d.collected_date = (SELECT max(n.collected_date) FROM database_size_stats n
                          WHERE n.instance_id = (SELECT id FROM instances WHERE name = :server))
"""
SUBJECTS = """
SELECT g.number, i.id AS instance_id, g.database_name, CAST(:day AS date) AS day,
       coalesce(i.db_type, 'unknown') AS engine, i.counted_by
FROM unnest(CAST(:servers AS varchar[]), CAST(:databases AS varchar[])) WITH ORDINALITY
    AS g (server, database_name, number)
JOIN instances i ON i.name = g.server
"""
"""Registered servers (database null) and databases given by name, in the form that `LABELS_OF_SUBJECTS` reads."""
LABELLED = """
SELECT s.number, coalesce(l.labels, CAST('{}' AS jsonb)) AS labels
FROM subjects s LEFT JOIN labels_held l USING (number)
WHERE (CAST(:engine AS text) IS NULL OR s.engine = :engine)
  AND (CAST(:key AS text) IS NULL OR coalesce(l.labels ->> CAST(:key AS text), '') = :value)
"""
# By the view: readers have no right on the table.
KNOWN = "SELECT DISTINCT key, value FROM capacity_label_spans WHERE value IS NOT NULL ORDER BY key, value"
ALIKE = """
SELECT DISTINCT value FROM capacity_labels WHERE key = :key AND lower(value) = lower(:value) ORDER BY value
"""
COLUMNS = """
SELECT column_name FROM information_schema.columns
WHERE table_schema = current_schema() AND table_name = 'instances' ORDER BY ordinal_position
"""


WITHOUT_LABEL = ("engine", "server")
"""The grouping without any label."""


@dataclass(frozen=True)
class GroupFillDate:
    """A database, volume or server of a group, and the day by which it is full as likely as not."""

    server: str
    name: str
    """Database or volume; empty: the server as a whole."""
    day: date
    server_id: int
    subject: str


def refuse_unknown_grouping(by: str, keys: Sequence[str]) -> None:
    """Raise ValidationError if there are no groups by this."""
    known = (*WITHOUT_LABEL, *keys)
    if by not in known:
        raise ValidationError(f"There are no groups by {by!r}; known are {', '.join(known)}.{suggestion(by, known)}")


def default_grouping(keys: Sequence[str]) -> str:
    """Return the default grouping: the first key of labels, or engines."""
    return next(iter(keys), WITHOUT_LABEL[0])


def fill_dates_of_groups(connection: Connection, by: str, most: int) -> dict[str | None, list[GroupFillDate]]:
    """Return what fills first in each group, at most so many of each, by the newest forecasts; raises DBAPIError."""
    parts = {"filling": _FILLING, "issued": _ISSUED, "subjects": _SUBJECTS, "labels_held": LABELS_OF_SUBJECTS}
    query = with_queries(_FILL_DATES, **parts)
    groups: dict[str | None, list[GroupFillDate]] = {}
    for name, *of_group in connection.execute(query, {"by": by, "most": most}):
        groups.setdefault(name, []).append(GroupFillDate(*of_group))
    return groups


def first_fill_date_of_groups(connection: Connection, by: str) -> dict[str | None, GroupFillDate]:
    """Return what fills first in each group; raises DBAPIError."""
    return {name: dates[0] for name, dates in fill_dates_of_groups(connection, by, 1).items()}


def groups_changed_at(connection: Connection, period: Period, windows: Sequence[Window]) -> datetime | None:
    """Return the time of the newest change that groups of these windows do not show yet; raises DBAPIError."""
    parameters = {"period": period.name, "starts": [window.start for window in windows]}
    changed_at: datetime | None = connection.execute(text(_NEWEST_CHANGE), parameters).scalar()
    return changed_at


def stale_groups_notice(changed_at: datetime) -> str:
    """Return a sentence that groups do not show the newest changes yet."""
    moment = changed_at.astimezone(UTC)
    return (
        f"Labels or samples changed at {moment:%H:%M} UTC on {human_day(moment.date())}; these groups do not include "
        "this yet. The late data sensor recomputes them; `capacity groups --now` does it at once."
    )


_NEWEST_CHANGE = """
SELECT max(newest_change) FROM capacity_stale_windows
WHERE level = 'group' AND period_type = :period AND period_start = ANY (CAST(:starts AS date[]))
"""
_FILLING = """
SELECT server_id, server, engine, subject, name, full_middle FROM capacity_runway
WHERE full_middle IS NOT NULL AND stands_for_itself
"""
# A group fills with the volume, or the server, that binds one of its databases.
_ISSUED = """
SELECT server_id, server, engine, subject, name, full_middle,
       CASE subject WHEN 'database' THEN name END AS database_name
FROM filling
UNION ALL
SELECT f.server_id, f.server, f.engine, f.subject, f.name, f.full_middle, d.name
FROM filling f JOIN capacity_runway d ON d.server_id = f.server_id AND d.subject = 'database'
    AND d.binds = CASE f.subject WHEN 'volume' THEN 'volume' ELSE 'server limit' END
WHERE f.subject <> 'database'
"""
_SUBJECTS = """
SELECT row_number() OVER () AS number, i.*, i.server_id AS instance_id, newest.as_of AS day
FROM issued i CROSS JOIN (SELECT as_of FROM capacity_runway ORDER BY as_of DESC LIMIT 1) AS newest
"""
_FILL_DATES = """
SELECT group_name, server, name, full_middle, server_id, subject
FROM (
    SELECT *, row_number() OVER (PARTITION BY group_name ORDER BY full_middle, server, name, subject) AS place
    FROM (
        SELECT DISTINCT CASE CAST(:by AS text) WHEN 'engine' THEN s.engine WHEN 'server' THEN s.server
                        ELSE l.labels ->> CAST(:by AS text) END AS group_name,
               s.server_id, s.server, s.subject, s.name, s.full_middle
        FROM subjects s LEFT JOIN labels_held l USING (number)
    ) AS each
) AS ranked
WHERE place <= :most ORDER BY group_name, place
"""


VALUES_NAMED = 8


@dataclass(frozen=True)
class GroupPart:
    """A part of a group; `database` None: a server without the databases that belong to other groups."""

    server: str
    database: str | None
    days: int
    """Days on which it belonged to the group."""
    sum_mb: int
    """Its sizes on these days, added up."""
    label_of: str | None
    """The subject of its label on the last of these days: a database or a pattern; None: the server."""
    valid_from: date | None
    """First day of that label; None: always."""


@dataclass(frozen=True)
class GroupExplanation:
    """A group in a window: its parts, the largest first, and its stored row."""

    key: str
    value: str
    parts: Sequence[GroupPart]
    days: int
    """Days on which anything was measured."""
    row_sum_mb: int | None
    """None: there is no row."""
    row_days: int | None
    """Days of the row of the fleet; None: there is no row."""

    @property
    def sum_mb(self) -> int:
        """The sum of the parts, over all days."""
        return sum(part.sum_mb for part in self.parts)

    @property
    def size_mb(self) -> int:
        """The mean of that, rounded down."""
        return self.sum_mb // max(1, self.days)

    @property
    def is_whole(self) -> bool:
        """Whether samples of all days of the row still exist."""
        return self.row_days is None or self.days >= self.row_days

    @property
    def agrees(self) -> bool:
        """Whether the row has the same sum."""
        return self.sum_mb == (self.row_sum_mb or 0)


def explain_group(connection: Connection, period: Period, window: Window, key: str, value: str) -> GroupExplanation:
    """Return the parts of a group in a window; raises NotFoundError if nothing has this label in it, and DBAPIError."""
    days = day_parameters(connection, window.dates)
    days |= _left_out(connection, period, window, days)
    of_group = {"period": period.name, "start": window.start, "key": key, "value": value}
    servers = connection.execute(text(_LABELLED), of_group).scalars().all()
    query = with_queries(_PARTS, **ROWS_OF_SERVERS, parts=GROUP_PARTS)
    of_servers = {**of_group, **days, "servers": servers}
    parts = [GroupPart(*row) for row in connection.execute(query, of_servers)]
    stored = connection.execute(text(_STORED), of_group).one()
    if not parts and stored.sum_mb is None:
        values = connection.execute(text(_VALUES), of_group).scalars().all()
        there = f" {key} has {first_of(values, VALUES_NAMED)} there." if values else ""
        left_out = " Servers with impossible sizes are in no group." if days["left_out_servers"] else ""
        raise NotFoundError(f"Nothing has {key}={value} in {period.name_of(window)}.{there}{left_out}")
    sum_mb = None if stored.sum_mb is None else int(stored.sum_mb)
    measured = with_queries(_DAYS, capacity_label_spans=_NO_LABELS, parts=GROUP_PARTS)
    measured_days = connection.execute(measured, days).scalar_one()
    return GroupExplanation(key, value, parts, measured_days, sum_mb, stored.days)


def _left_out(
    connection: Connection, period: Period, window: Window, days: Mapping[str, object]
) -> dict[str, list[Any]]:
    """Return the parameters of the servers that are left out: as stored by day or, without stored days, by size."""
    stored = left_out_parameters(connection.execute(text(STORED_SERVERS_LEFT_OUT), days))
    of_window = {"period": period.name, "start": window.start}
    if stored["left_out_servers"] or not connection.execute(text(_ANY_LEFT_OUT), of_window).scalar():
        return stored
    return left_out_parameters(connection.execute(text(SERVERS_LEFT_OUT), days))


_ANY_LEFT_OUT = """
SELECT EXISTS (SELECT FROM capacity_left_out_servers WHERE period = :period AND window_start = :start)
"""
_LABELLED = "SELECT DISTINCT instance_id FROM capacity_labels WHERE key = :key AND value = :value"
_PARTS = f"""
SELECT i.name, f.database_name, f.days, CAST(f.sum_mb AS bigint), nullif(held.database_pattern, ''),
       nullif(held.valid_from, DATE '0001-01-01')
FROM (
    SELECT instance_id, database_name, count(DISTINCT collected_date) AS days, sum(size_mb) AS sum_mb,
           max(collected_date) AS last_day
    FROM parts WHERE label_key = :key AND label_value = :value GROUP BY 1, 2
) AS f JOIN instances i ON i.id = f.instance_id
LEFT JOIN LATERAL (
    SELECT l.database_pattern, l.valid_from FROM capacity_label_spans l
    WHERE l.instance_id = f.instance_id AND l.key = :key AND l.value IS NOT NULL
      AND l.valid_from <= f.last_day AND f.last_day < l.valid_until
      AND CASE WHEN f.database_name IS NULL THEN l.database_pattern = ''
               ELSE l.database_pattern <> ''
                    AND (f.database_name = l.database_pattern OR f.database_name LIKE l.database_like) END
    ORDER BY {precedence("l", "f.database_name")}
    LIMIT 1
) AS held ON true
ORDER BY f.sum_mb DESC, i.name, f.database_name NULLS FIRST
"""  # noqa: S608 -- the order is that of the rule
# Labels do not change which days were measured.
_NO_LABELS = "SELECT * FROM capacity_label_spans WHERE false"
_DAYS = "SELECT count(DISTINCT collected_date) FROM parts WHERE label_key = '(fleet)'"
_STORED = """
SELECT max(coalesce(sum_size_mb, avg_size_mb)) FILTER (WHERE label_key = :key AND label_value = :value) AS sum_mb,
       max(data_count) FILTER (WHERE label_key = '(fleet)') AS days
FROM group_size_aggregations WHERE period_type = :period AND period_start = :start
"""
_VALUES = """
SELECT label_value FROM group_size_aggregations
WHERE period_type = :period AND period_start = :start AND label_key = :key AND label_value <> ''
ORDER BY 1
"""
