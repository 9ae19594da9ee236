"""The uses of the space of servers and volumes: databases, other parts, and the unexplained rest.

Databases that had one size for three months are *unchanged*; they are listed with their cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import ROUND_HALF_UP, Decimal

from sqlalchemy import Connection

from capacity_assets.base.periods import PERIODS, Window
from capacity_assets.base.units import BYTES_PER_MB, human_day, human_mb
from capacity_assets.database.measures import ARCHIVER, ARCHIVING_FAILS, DISCONNECTED, PART_KINDS, SLOT
from capacity_assets.ownership.bills import CENT
from capacity_assets.reading.access import WITHOUT_LOOPS, planned_with, rows
from capacity_assets.reading.subjects import ServerVolume

COMPARED_DAYS = 30
MOST_RETAINED_PERCENT = 10
"""Replication slots and archivers that retain a larger part of their volume are named."""
SMALLEST_RETAINED_MB = 1024
"""Without a known volume, they are compared with the databases of their server and named only if they retain more
than this: on a small server, a healthy slot may retain more than a tenth."""
RETAINED_DAYS = 7
"""They are listed if they were measured within this many days."""
DATABASES = "databases"
UNEXPLAINED_TITLE = "Unexplained"
HELD = [kind.name for kind in PART_KINDS.values() if kind.held_by]
RETAINING = [SLOT, ARCHIVER]


@dataclass(frozen=True)
class SpaceUse:
    """A use of space, MiB, and its size before; None: unknown, for the `reason` if there is one."""

    title: str
    size_mb: int | None
    before_mb: int | None
    reason: str | None = None

    @property
    def change_mb(self) -> int | None:
        """Its growth; None: unknown."""
        return None if self.size_mb is None or self.before_mb is None else self.size_mb - self.before_mb


@dataclass(frozen=True)
class WalUse:
    """WAL that a replication slot or the archiver retains, MiB, and the state of its consumer or of archiving."""

    kind: str
    part: str
    """Name of the slot; empty: the archiver."""
    retained_mb: int
    detail: str

    @property
    def holder(self) -> str:
        """What retains it, as the beginning of a sentence."""
        return f"Replication slot {self.part}" if self.kind == SLOT else "The WAL archiver"


@dataclass(frozen=True)
class SpaceUsage:
    """The uses of a server or volume on a day and on `before`; their known sizes add up to `used_mb`.

    The rest is one of `uses`, as unexplained. `used_mb` None: no volume was measured, so there is no rest.
    """

    day: date
    before: date
    uses: Sequence[SpaceUse]
    used_mb: int | None
    retained_wal: Sequence[WalUse]


@dataclass(frozen=True, kw_only=True)
class RetainedWal(WalUse):
    """WAL that a slot or the archiver retains: over a tenth of its volume or, if that is unknown, of the databases."""

    server_id: int
    server: str
    day: date
    of_mb: int
    volume: str | None

    @property
    def percent(self) -> int:
        """What it retains, in whole percent of the volume or of the databases."""
        return 100 * self.retained_mb // max(self.of_mb, 1)

    @property
    def advice(self) -> str:
        """What to do, with a statement in backquotes."""
        if self.kind == ARCHIVER:
            todo = _ARCHIVER_ADVICE[ARCHIVING_FAILS in self.detail]
            return f"The server deletes this WAL only once it is archived. {todo}"
        if DISCONNECTED not in self.detail:
            return "Its consumer is behind. The server deletes this WAL once the consumer has read it."
        return (
            "The server deletes this WAL only once the slot is read or dropped. Start its consumer, or drop the slot "
            f"if nothing needs it: `SELECT pg_drop_replication_slot('{self.part}')`."
        )

    @property
    def text(self) -> str:
        """A line of text about it."""
        place = f"the disk {self.volume}" if self.volume else "the size of its databases"
        return (
            f"{self.holder} of {self.server} retains {human_mb(self.retained_mb)} of WAL, "
            f"{self.percent} % of {place} ({human_day(self.day)}): {self.detail}"
        )


_ARCHIVER_ADVICE = {
    True: "The server log says why it fails: an archive that is full or out of reach, or a wrong `archive_command`. "
    "Do not delete files in `pg_wal`.",
    False: "It is slower than the server writes WAL, or neither `archive_command` nor `archive_library` is set.",
}


def space_usage(
    connection: Connection, server_id: int, volumes: Sequence[ServerVolume], volume: str | None, today: date
) -> SpaceUsage | None:
    """Return the uses of the space of a server (`volume` None) or of one of its `volumes`; None: not measured recently.

    On a server with one volume, everything without a known volume counts for it. With several volumes, a volume has the
    databases and parts that are known to be only on it; the rest is unexplained.
    """
    newest = "SELECT max(day) AS day FROM capacity_server_parts WHERE server_id = :server AND day <= :today"
    day = rows(connection, newest, server=server_id, today=today)[0].day
    if day is None or day <= today - timedelta(days=31):
        return None
    before = day - timedelta(days=COMPARED_DAYS)
    parameters = {"server": server_id, "days": [day, before], "volume": volume, "is_only": len(volumes) == 1}
    sizes, used = _sizes(connection, parameters)
    in_parts = _days_in_parts(connection, parameters)
    details = rows(connection, _DETAILS, **parameters, day=day, retaining=RETAINING)
    reasons = {row.kind: row.detail for row in details if row.size_bytes is None}
    kinds = [kind for kind in (DATABASES, *PART_KINDS) if {(day, kind), (before, kind)} & {*sizes} or kind in reasons]
    uses = [
        SpaceUse(
            _title(kind),
            sizes.get((day, kind), None if kind in reasons else 0),
            sizes.get((before, kind)),
            reasons.get(kind),
        )
        for kind in kinds
    ]
    named = {one: sum(size for (when, _), size in sizes.items() if when == one) for one in (day, before)}
    if day in used:
        used_before = used[before] - named[before] if before in used and before in in_parts else None
        uses.append(SpaceUse(UNEXPLAINED_TITLE, used[day] - named[day], used_before))
    retained_wal = [
        WalUse(row.kind, row.part, row.size_bytes // BYTES_PER_MB, row.detail or "")
        for row in details
        if row.kind in RETAINING and row.size_bytes is not None
    ]
    return SpaceUsage(day, before, uses, used.get(day), retained_wal)


@dataclass(frozen=True)
class SpaceDay:
    """The uses of a volume on a day by title, MiB; they add up to `used_mb`. Empty: parts were not measured."""

    day: date
    used_mb: int
    uses: Mapping[str, int]


def space_history(
    connection: Connection, server_id: int, volumes: Sequence[ServerVolume], volume: str, days: Sequence[date]
) -> list[SpaceDay]:
    """Return the uses of one of the `volumes` of a server, as `space_usage`, on the measured ones of `days`.

    Parts of unknown size are in the unexplained rest. Raises DBAPIError.
    """
    parameters = {"server": server_id, "days": days, "volume": volume, "is_only": len(volumes) == 1}
    in_parts = _days_in_parts(connection, parameters)
    if not in_parts:
        return []
    sizes, used = _sizes(connection, parameters)
    kinds = [kind for kind in (DATABASES, *PART_KINDS) if any(kind == measured for _, measured in sizes)]
    history = []
    for day, used_mb in sorted(used.items()):
        uses = {_title(kind): sizes.get((day, kind), 0) for kind in kinds} if day in in_parts else {}
        rest = {UNEXPLAINED_TITLE: used_mb - sum(uses.values())} if uses else {}
        history.append(SpaceDay(day, used_mb, uses | rest))
    return history


def _days_in_parts(connection: Connection, parameters: Mapping[str, object]) -> set[date]:
    """Return the days on which the parts of a server were measured; on others all of them would be unexplained."""
    return {row.day for row in rows(connection, _DAYS_WITH_PARTS, **parameters)}


def _sizes(
    connection: Connection, parameters: Mapping[str, object]
) -> tuple[dict[tuple[date, str], int], dict[date, int]]:
    """Return the sizes of databases and parts by day and kind, and the used space by day, MiB."""
    statements = (_DATABASES_OF_SERVER if parameters["volume"] is None else _DATABASES_OF_VOLUME, _PARTS)
    sizes = [row for statement in statements for row in rows(connection, statement, **parameters, held=HELD)]
    used = {row.day: int(row.used_mb) for row in rows(connection, _USED, **parameters)}
    return {(row.day, row.kind): int(row.size_mb) for row in sizes}, used


def _title(kind: str) -> str:
    return "Databases" if kind == DATABASES else PART_KINDS[kind].title


def excessive_wal(
    connection: Connection,
    first: date,
    last: date,
    label: tuple[str, str] | None = None,
    server_id: int | None = None,
) -> list[RetainedWal]:
    """Return where too much WAL is retained on the newest day of each server in a range of days, largest first.

    Only of servers in service; with `label` or `server_id`, only of these.
    """
    key, value = label or (None, None)
    # Not joined: if tables are distributed, readers have no rights on the tables behind the view of servers.
    wanted = [row.server_id for row in rows(connection, _SERVERS, key=key, value=value, last=last, server=server_id)]
    newest = rows(connection, _NEWEST, first=first, last=last, servers=wanted)
    if not newest:
        return []
    parameters: dict[str, object] = {"servers": [row.server_id for row in newest], "first": first, "last": last}
    days = {row.server_id: row.day for row in newest}
    found = rows(connection, _RETAINED, **parameters, retaining=RETAINING)
    found = [row for row in found if row.day == days[row.server_id]]
    parameters["servers"] = list({row.server_id for row in found})
    volumes: dict[int, dict[str, int]] = {}
    for row in rows(connection, _VOLUMES, **parameters) if found else ():
        if row.day == days[row.server_id]:
            volumes.setdefault(row.server_id, {})[row.volume] = row.total_mb
    sizes = {(row.server_id, row.day): row.size_mb for row in (rows(connection, _SIZES, **parameters) if found else ())}
    large = []
    for row in found:
        there = volumes.get(row.server_id, {})
        volume = (
            row.volume if row.volume in there else next(iter(there)) if len(there) == 1 and not row.volume else None
        )
        of_mb = there[volume] if volume else sizes.get((row.server_id, row.day), 0)
        retained_mb = row.size_bytes // BYTES_PER_MB
        if (
            of_mb
            and 100 * retained_mb > MOST_RETAINED_PERCENT * of_mb
            and (volume or retained_mb >= SMALLEST_RETAINED_MB)
        ):
            about = (row.kind, row.part, retained_mb, row.detail or "")
            server = {"server_id": row.server_id, "server": row.server, "day": row.day}
            large.append(RetainedWal(*about, **server, of_mb=int(of_mb), volume=volume))
    return sorted(large, key=lambda wal: -wal.retained_mb)


def retained_wal_on(connection: Connection, today: date, server_id: int | None = None) -> list[RetainedWal]:
    """Return the same by the newest measurements of the week that ends today, of all servers or one."""
    return excessive_wal(connection, today - timedelta(days=RETAINED_DAYS - 1), today, server_id=server_id)


_DATABASES_OF_SERVER = """
SELECT day, 'databases' AS kind, size_mb FROM capacity_server_samples
WHERE server_id = :server AND day = ANY (CAST(:days AS date[]))
"""
_DATABASES_OF_VOLUME = """
SELECT s.day, 'databases' AS kind, sum(s.size_mb) AS size_mb
FROM capacity_samples s
LEFT JOIN capacity_ceilings c ON c.day = s.day AND c.server_id = s.server_id AND c.database = s.database
WHERE s.server_id = :server AND s.day = ANY (CAST(:days AS date[]))
  AND CASE WHEN c.volumes IS NULL THEN CAST(:is_only AS boolean)
           ELSE c.volumes = CAST(ARRAY[:volume] AS varchar[]) END
GROUP BY s.day
"""
_PARTS = """
SELECT day, kind, div(sum(size_bytes), 1048576) AS size_mb FROM capacity_server_parts
WHERE server_id = :server AND day = ANY (CAST(:days AS date[])) AND kind <> ALL (CAST(:held AS text[]))
  AND size_bytes IS NOT NULL
  AND (CAST(:volume AS text) IS NULL OR volume = :volume OR (volume IS NULL AND CAST(:is_only AS boolean)))
GROUP BY day, kind
"""
_USED = """
SELECT day, sum(used_mb) AS used_mb FROM capacity_volumes
WHERE server_id = :server AND day = ANY (CAST(:days AS date[]))
  AND (CAST(:volume AS text) IS NULL OR volume = :volume)
GROUP BY day
"""
_DAYS_WITH_PARTS = """
SELECT DISTINCT day FROM capacity_server_parts WHERE server_id = :server AND day = ANY (CAST(:days AS date[]))
"""
_DETAILS = """
SELECT kind, part, size_bytes, detail FROM capacity_server_parts
WHERE server_id = :server AND day = :day AND (size_bytes IS NULL OR kind = ANY (CAST(:retaining AS text[])))
  AND (CAST(:volume AS text) IS NULL OR volume = :volume OR volume IS NULL)
ORDER BY size_bytes DESC NULLS LAST, kind, part
"""
_SERVERS = """
SELECT server_id FROM capacity_servers
WHERE is_active AND (CAST(:server AS integer) IS NULL OR server_id = :server)
  AND (CAST(:key AS text) IS NULL OR server_id IN (
      SELECT instance_id FROM capacity_label_spans
      WHERE key = :key AND value = :value AND database_pattern = '' AND valid_from <= :last AND :last < valid_until))
"""
_NEWEST = """
SELECT server_id, max(day) AS day FROM capacity_server_parts
WHERE day BETWEEN :first AND :last AND server_id = ANY (CAST(:servers AS integer[]))
GROUP BY server_id
"""
_RETAINED = """
SELECT server_id, server, kind, part, day, size_bytes, detail, volume FROM capacity_server_parts
WHERE day BETWEEN :first AND :last AND server_id = ANY (CAST(:servers AS integer[]))
  AND kind = ANY (CAST(:retaining AS text[])) AND size_bytes IS NOT NULL
"""
_VOLUMES = """
SELECT server_id, day, volume, total_mb FROM capacity_volumes
WHERE day BETWEEN :first AND :last AND server_id = ANY (CAST(:servers AS integer[]))
"""
_SIZES = """
SELECT server_id, day, size_mb FROM capacity_server_samples
WHERE day BETWEEN :first AND :last AND server_id = ANY (CAST(:servers AS integer[]))
"""


MONTHS = 3


@dataclass(frozen=True)
class UnchangedDatabase:
    """A database with its size in MiB and its cost in the month; `amount` None: it has no price."""

    server_id: int
    server: str
    database: str
    size_mb: int
    amount: Decimal | None


@dataclass(frozen=True)
class UnchangedDatabases:
    """The databases of a bill that had one size on every measured day of its month and the two before.

    They were measured in each of these. Amounts are in the currency of the bill; `amount` None: nothing has a price.
    """

    databases: int
    size_mb: int
    amount: Decimal | None
    costliest: Sequence[UnchangedDatabase]


def unchanged_databases(connection: Connection, month: Window, issue: int, *, shown: int) -> UnchangedDatabases:
    """Return the unchanged databases of an issue of a bill, the costliest by name; raises DBAPIError."""
    starts = [window.start for window in PERIODS["monthly"].back(month, MONTHS)]
    # Nested loops would be slow: the sets that are joined cover the whole fleet.
    with planned_with(connection, WITHOUT_LOOPS):
        unchanged = rows(
            connection, _UNCHANGED, starts=starts, months=MONTHS, month=month.start, issue=issue, shown=shown
        )
    if not unchanged:
        return UnchangedDatabases(0, 0, None, ())
    listed = [
        UnchangedDatabase(row.server_id, row.server, row.database, row.size_mb, in_cents(row.amount))
        for row in unchanged
    ]
    return UnchangedDatabases(
        unchanged[0].databases, int(unchanged[0].whole_mb), in_cents(unchanged[0].whole_amount), listed
    )


def in_cents(amount: Decimal | None) -> Decimal | None:
    """Return an amount in whole cents; None stays None."""
    return None if amount is None else amount.quantize(CENT, ROUND_HALF_UP)


_UNCHANGED = """
SELECT l.server_id, l.server, l.database, CAST(s.size_mb AS bigint) AS size_mb, l.amount,
       count(*) OVER () AS databases, sum(s.size_mb) OVER () AS whole_mb, sum(l.amount) OVER () AS whole_amount
FROM (
    SELECT server_id, database, max(largest_size_mb) AS size_mb FROM capacity_growth
    WHERE period = 'monthly' AND window_start = ANY (CAST(:starts AS date[])) AND smallest_size_mb = largest_size_mb
      AND largest_size_mb > 0
    GROUP BY server_id, database
    HAVING count(*) = :months AND min(largest_size_mb) = max(largest_size_mb)
       -- Files of a fixed size may fill inside; null: what is used is not measured.
       AND coalesce(min(used_size_mb) = max(used_size_mb), true)
) AS s JOIN (
    SELECT instance_id AS server_id, max(server) AS server, database_name AS database, sum(amount) AS amount
    FROM capacity_bill_lines WHERE month = :month AND issue = :issue GROUP BY instance_id, database_name
) AS l USING (server_id, database)
ORDER BY l.amount DESC NULLS LAST, s.size_mb DESC, l.server_id, l.database LIMIT :shown
"""
