"""The views that reports, BI tools and Grafana read: names people use, units in them, stable.

They hide how the tables are keyed and partitioned, nothing else: every figure is a stored one. Columns are only ever
added, at the end, so that what is built on a view goes on working. `capacity init` creates and renews them.
"""

from __future__ import annotations

from collections.abc import Sequence

from capacity_assets.periods import PERIODS
from capacity_assets.storage.active_servers import active_condition
from capacity_assets.storage.changes import STALE_WINDOWS_VIEW
from capacity_assets.storage.group_days import DERIVED, TOTAL
from capacity_assets.storage.group_views import GROUP_VIEWS
from capacity_assets.storage.label_expressions import SPANS_BY_SERVER, labels_in, labels_of
from capacity_assets.storage.limit_tables import USED_MB
from capacity_assets.storage.runway_views import RUNWAY_VIEWS
from capacity_assets.storage.size_metrics import PART_SIZES, PartSize
from capacity_assets.storage.steps import DIALECT
from capacity_assets.storage.tables import instance_size_aggregations
from capacity_assets.storage.view import View, ViewColumn
from capacity_assets.storage.window_expressions import SERVER_SIZES, before, possible
from capacity_assets.units import LARGEST_MB

_DAYS = "(a.period_end - a.period_start + 1)"
_WINDOW = (
    ViewColumn("period", "a.period_type", "Name of the period, such as daily or monthly"),
    ViewColumn("window_start", "a.period_start", "First day of the window"),
    ViewColumn("window_end", "a.period_end", "Last day of the window, included"),
)
_SERVER = (
    # The history of a server outlives its registration.
    ViewColumn("server", "coalesce(i.name, 'server ' || a.instance_id)", "Name of the server"),
    ViewColumn("engine", "coalesce(i.db_type, 'unknown')", "Engine: mysql, postgresql, sqlserver, oracle, ..."),
)
_SAMPLED = (
    ViewColumn("measured_days", "a.data_count", "Days of the window with a sample"),
    ViewColumn("window_days", _DAYS, "Days of the window; those of a current window that are still to come included"),
    ViewColumn("coverage_percent", f"round(a.data_count * 100.0 / {_DAYS}, 1)", "Measured days in percent of them"),
)
_ELAPSED = (
    ViewColumn(
        "elapsed_days",
        "greatest(0, least(a.period_end, current_date) - a.period_start + 1)",
        "Days of the window up to today, the day of the session's time zone",
    ),
    ViewColumn("is_open", "(a.period_end > current_date)", "Whether days of the window are still to come"),
)
_IS_DERIVED = "Whether the server has no total in the window; its size and change are then those of its databases"
_SERVER_ID = ViewColumn(
    "server_id", "a.instance_id", "Number of the server; a filter by it is answered from an index, one by name is not"
)
_COUNTED = ViewColumn(
    "counted",
    "(i.counted_by IS NULL)",
    "Whether sums over the fleet count it; false: another server does, whose replica it is or whose storage it shares",
)


def _labels(database: str | None) -> ViewColumn:
    return ViewColumn(
        "labels",
        labels_of("a.instance_id", database, "a.period_end"),
        "Labels on the last day of the window, as JSON: labels ->> 'team'",
        labels_in("labelled", database, "a.period_end"),
    )


def _further(stem: str, last: str) -> tuple[ViewColumn, ...]:
    """Columns on the ends of a window and on a year, of the measure that growth follows."""
    return (
        ViewColumn("last_size_mb", f"a.{last}", "Size on the last measured day of the window, MiB"),
        ViewColumn(
            "growth_in_window_mb",
            f"a.{stem}_growth_in_window_mb",
            "That less the size on the first measured day, MiB; null: fewer than two measured days",
        ),
        ViewColumn(
            "year_change_mb",
            f"a.{stem}_year_change_mb",
            "Change of the mean against the same window a year before, MiB; null: unknown",
        ),
        ViewColumn(
            "year_change_percent", f"a.{stem}_year_change_percent", "The same in percent; null: unknown, or from 0"
        ),
        ViewColumn(
            "yearly_rate_percent",
            f"a.{stem}_yearly_rate_percent",
            "change_percent compounded to a year; null: unknown, from 0, or the window is not a whole number of months",
        ),
    )


# Those of the first edition of the views; columns of later ones follow at the end.
FIRST_PARTS = 2


def _parts(parts: Sequence[PartSize]) -> tuple[ViewColumn, ...]:
    return tuple(
        ViewColumn(f"{part.stem}_mb", f"a.avg_{part.stem}_mb", f"Mean size of {part.files}, MiB; null: not measured")
        for part in parts
    )


_REGISTER = "LEFT JOIN instances i ON i.id = a.instance_id"
_REGISTER_WITH_LABELS = f"{_REGISTER}\nLEFT JOIN {SPANS_BY_SERVER} AS labelled ON labelled.instance_id = a.instance_id"
_NEWEST = " UNION ALL ".join(
    f"SELECT CAST('{name}' AS text) AS name, max(period_start) AS period_start "  # noqa: S608 -- names of periods, checked where they are registered
    f"FROM database_size_aggregations WHERE period_type = '{name}'"
    for name in PERIODS
)
# Found period by period, by the first columns of the key, whatever the size of the history.
_OF_NEWEST_WINDOWS = f"""FROM ({_NEWEST}) AS newest
JOIN database_size_aggregations a ON a.period_type = newest.name AND a.period_start = newest.period_start"""

# Windows with days on which a server has databases but no total, as the level of groups found.
_WITHOUT_TOTALS = f"""
        SELECT g.period_type, g.period_start, {before("g")} AS before_start FROM group_size_aggregations g
        WHERE g.label_key = '{TOTAL}' AND g.label_value = '{DERIVED}'"""  # noqa: S608 -- constants


def _of_databases(start: str) -> dict[str, str]:
    """Sums of databases `d` in a window, weighted by their days, so that renaming a database changes no sum."""
    of_window = f"FILTER (WHERE d.period_start = {start})"
    days = f"max(d.data_count) {of_window}"
    return {
        "days": days,
        "size_mb": f"div(sum(CAST(d.avg_size_mb AS numeric) * d.data_count) {of_window}, {days})",
        "databases": f"div(sum(d.data_count) {of_window}, {days})",
    }


_NOW, _BEFORE = _of_databases("w.period_start"), _of_databases("w.before_start")
_DERIVED = {
    "instance_id": "n.instance_id",
    "period_type": "w.period_type",
    "period_start": "w.period_start",
    "period_end": "n.period_end",
    "data_count": "n.days",
    "total_size_mb": "n.size_mb",
    "total_size_change_mb": "n.size_mb - n.before_mb",
    "total_size_change_percent": "round((n.size_mb - n.before_mb) * 100 / nullif(n.before_mb, 0), 2)",
    "database_count": "n.databases",
}
_TOTALS = (
    *_DERIVED, "max_size_mb", "min_size_mb", "trend_direction", "database_count_change", "last_total_size_mb",
    "total_size_growth_in_window_mb", "total_size_year_change_mb", "total_size_year_change_percent",
    "total_size_yearly_rate_percent",
)  # fmt: skip


def _derived(name: str) -> str:
    # Both parts have the same types; otherwise PostgreSQL pushes no condition down into them.
    return f"CAST({_DERIVED.get(name, 'NULL')} AS {instance_size_aggregations.c[name].type.compile(DIALECT)})"


_TOTALS_ALONE = f"FROM (SELECT {', '.join(_TOTALS)}, false AS is_derived FROM instance_size_aggregations) AS a"  # noqa: S608 -- our own names
_SERVER_SIZES = f"""FROM (
    SELECT {", ".join(_TOTALS)}, false AS is_derived FROM instance_size_aggregations
    WHERE {possible("total_size_mb", "total_size_change_mb")}
    UNION ALL
    SELECT {", ".join(map(_derived, _TOTALS))}, true
    FROM ({_WITHOUT_TOTALS}) AS w
    CROSS JOIN LATERAL (
        SELECT d.instance_id, max(d.period_end) AS period_end, {_NOW["days"]} AS days, {_NOW["size_mb"]} AS size_mb,
               {_NOW["databases"]} AS databases,
               CASE WHEN {_BEFORE["size_mb"]} <= {LARGEST_MB} THEN {_BEFORE["size_mb"]} END AS before_mb
        FROM database_size_aggregations d
        WHERE d.period_type = w.period_type AND d.period_start = ANY (ARRAY[w.period_start, w.before_start])
          AND NOT EXISTS (SELECT FROM instance_size_aggregations t
                          WHERE t.instance_id = d.instance_id AND t.period_type = d.period_type
                            AND t.period_start = d.period_start)
        GROUP BY d.instance_id
        HAVING {_NOW["size_mb"]} <= {LARGEST_MB}) AS n) AS a"""  # noqa: S608 -- as above

# The rows of a window, and those of the window before whose server has none in it.
_WITH_MISSING = f"""
    SELECT period_type, period_start, period_end, instance_id, total_size_mb, total_size_change_mb, database_count,
           CAST(NULL AS bigint) AS missing_size_mb, last_total_size_mb
    FROM {SERVER_SIZES}
    UNION ALL
    SELECT w.period_type, w.period_start, w.period_end, b.instance_id, NULL, NULL, NULL, b.total_size_mb, NULL
    FROM (SELECT DISTINCT period_type, period_start, period_end FROM {SERVER_SIZES}) AS w
    JOIN {SERVER_SIZES} b ON b.period_type = w.period_type AND b.period_end = w.period_start - 1
    WHERE NOT EXISTS (SELECT FROM {SERVER_SIZES} n
                      WHERE n.period_type = w.period_type AND n.period_start = w.period_start
                        AND n.instance_id = b.instance_id)"""  # noqa: S608 -- as above

_DATABASE_COLUMNS = (
    *_WINDOW,
    *_SERVER,
    ViewColumn("database", "a.database_name", "Name of the database"),
    ViewColumn("size_mb", "a.avg_size_mb", "Mean total size, rounded down, MiB"),
    ViewColumn("largest_size_mb", "a.max_size_mb", "Largest total size, MiB"),
    ViewColumn("smallest_size_mb", "a.min_size_mb", "Smallest total size, MiB"),
    *_parts(PART_SIZES[:FIRST_PARTS]),
    ViewColumn("change_mb", "a.size_change_mb", "Change of the mean against the window before, MiB; null: unknown"),
    ViewColumn("change_percent", "a.size_change_percent", "The same in percent; null: unknown, or from 0"),
    ViewColumn("trend", "a.trend_direction", "growing, shrinking or stable; null: nothing to compare with"),
    *_SAMPLED,
    _SERVER_ID,
    _COUNTED,
    *_ELAPSED,
    *_further("size", "last_size_mb"),
    *_parts(PART_SIZES[FIRST_PARTS:]),
    _labels("a.database_name"),
)

# By these, readers reach what figures are made of without a right on any table.
_OF_SERVER_ID = ViewColumn("server_id", "s.instance_id", "Number of the server")
_OF_SERVER = ViewColumn("server", "coalesce(i.name, 'server ' || s.instance_id)", "Name of the server")
_DAY = ViewColumn("day", "s.collected_date", "Day of the sample")
_COLLECTED_AT = ViewColumn("collected_at", "s.collected_at", "When it was taken")
_WRITTEN = (
    ViewColumn("created_at", "s.created_at", "When it was first written"),
    ViewColumn("updated_at", "s.updated_at", "When it was last changed"),
)
_REGISTER_OF_ROW = "LEFT JOIN instances i ON i.id = s.instance_id"

READER_VIEWS = (
    View(
        "capacity_servers",
        "The registered servers.",
        (
            ViewColumn("server_id", "i.id", "Number of the server"),
            ViewColumn("server", "i.name", "Name of the server"),
            ViewColumn("engine", "i.db_type", "Engine: mysql, postgresql, sqlserver, oracle, ..."),
            ViewColumn("is_active", active_condition("i"), "Whether it is in service"),
            ViewColumn("counted_by", "c.name", "Server that counts in its place; null: it counts itself"),
            ViewColumn("labels", labels_of("i.id", None, "current_date"), "Its labels of today, as JSON"),
        ),
        "FROM instances i LEFT JOIN instances c ON c.id = i.counted_by",
    ),
    View(
        "capacity_samples",
        "The samples of databases.",
        (
            _DAY,
            _OF_SERVER_ID,
            _OF_SERVER,
            ViewColumn("database", "s.database_name", "Name of the database"),
            ViewColumn("size_mb", "s.size_mb", "Total size, MiB"),
            _COLLECTED_AT,
            *_WRITTEN,
        ),
        f"FROM database_size_stats s {_REGISTER_OF_ROW}",
    ),
    View(
        "capacity_server_samples",
        "The samples of whole servers.",
        (
            _DAY,
            _OF_SERVER_ID,
            _OF_SERVER,
            ViewColumn("size_mb", "s.total_size_mb", "Total size of its databases, MiB"),
            ViewColumn("databases", "s.database_count", "Number of its databases"),
            _COLLECTED_AT,
            *_WRITTEN,
        ),
        f"FROM instance_size_stats s {_REGISTER_OF_ROW}\nWHERE NOT s.is_deleted",
    ),
    View(
        "capacity_volumes",
        "The samples of volumes.",
        (
            _DAY,
            _OF_SERVER_ID,
            _OF_SERVER,
            ViewColumn("volume", "s.volume_name", "File system, disk group or pool"),
            ViewColumn("total_mb", "s.total_mb", "How much it holds, MiB"),
            ViewColumn("free_mb", "s.free_mb", "How much of that is free, MiB"),
            ViewColumn("used_mb", USED_MB.format("s"), "Used space, MiB"),
            ViewColumn("source", "s.source", "Where the figures come from: measured or imported"),
            _COLLECTED_AT,
        ),
        f"FROM volume_size_stats s {_REGISTER_OF_ROW}",
    ),
    View(
        "capacity_attempts",
        "What became of each server on each day of the last months.",
        (
            ViewColumn("day", "s.collected_date", "Day that was measured"),
            _OF_SERVER_ID,
            _OF_SERVER,
            ViewColumn("status", "s.status", "collected or failed"),
            ViewColumn("failure", "s.failure", "Kind of the failure; null: none"),
            ViewColumn("reason", "s.reason", "Why it failed, and what to do; null: it did not"),
            ViewColumn("attempted_at", "s.attempted_at", "When the last attempt ended"),
        ),
        f"FROM capacity_collection_attempts s {_REGISTER_OF_ROW}",
    ),
    View(
        "capacity_declared_steps",
        "Changes of size that people declared, which no forecast takes for a trend.",
        (
            _OF_SERVER_ID,
            _OF_SERVER,
            ViewColumn("database", "nullif(s.database_name, '')", "Database; null: all databases of the server"),
            ViewColumn("day", "s.step_date", "First day with the new size"),
            ViewColumn("note", "s.note", "What happened"),
        ),
        f"FROM capacity_steps s {_REGISTER_OF_ROW}",
    ),
)

VIEWS = (
    View(
        SERVER_SIZES,
        "Size of each server in each window: its total or, without a total, the sum of its databases.",
        (
            *(ViewColumn(name, f"a.{name}", str(instance_size_aggregations.c[name].comment)) for name in _TOTALS),
            ViewColumn("is_derived", "a.is_derived", _IS_DERIVED),
        ),
        _SERVER_SIZES,
        source_on_nodes=_TOTALS_ALONE,
    ),
    *GROUP_VIEWS,
    View(
        "capacity_growth",
        "Size, change and trend of each database in each window.",
        _DATABASE_COLUMNS,
        f"FROM database_size_aggregations a {_REGISTER}",
        source_on_nodes=f"FROM database_size_aggregations a {_REGISTER_WITH_LABELS}",
    ),
    View(
        "capacity_latest",
        "Size, change and trend of each database in the newest stored window of each period.",
        _DATABASE_COLUMNS,
        f"{_OF_NEWEST_WINDOWS}\n{_REGISTER}",
        source_on_nodes=f"{_OF_NEWEST_WINDOWS}\n{_REGISTER_WITH_LABELS}",
    ),
    View(
        "capacity_server_growth",
        "Size, change, trend and number of databases of each server in each window.",
        (
            *_WINDOW,
            *_SERVER,
            ViewColumn("size_mb", "a.total_size_mb", "Mean daily total, rounded down, MiB"),
            ViewColumn("largest_size_mb", "a.max_size_mb", "Largest daily total, MiB"),
            ViewColumn("smallest_size_mb", "a.min_size_mb", "Smallest daily total, MiB"),
            ViewColumn(
                "change_mb",
                "a.total_size_change_mb",
                "Change of the mean against the window before, MiB; null: unknown",
            ),
            ViewColumn(
                "change_percent", "a.total_size_change_percent", "The same in percent; null: unknown, or from 0"
            ),
            ViewColumn("trend", "a.trend_direction", "growing, shrinking or stable; null: nothing to compare with"),
            ViewColumn("databases", "a.database_count", "Mean number of databases, rounded down"),
            ViewColumn(
                "databases_change",
                "a.database_count_change",
                "Change of their mean number, cut to whole; null: unknown",
            ),
            *_SAMPLED,
            _SERVER_ID,
            _COUNTED,
            *_ELAPSED,
            *_further("total_size", "last_total_size_mb"),
            _labels(None),
            ViewColumn("is_derived", "a.is_derived", _IS_DERIVED),
        ),
        f"FROM {SERVER_SIZES} a {_REGISTER}",
        source_on_nodes=f"FROM {SERVER_SIZES} a {_REGISTER_WITH_LABELS}",
    ),
    View(
        "capacity_fleet",
        "Size of the fleet by engine in each window. Servers that are counted by another one are left out.",
        (
            *_WINDOW,
            _SERVER[1],
            ViewColumn("servers", "count(a.total_size_mb)", "Servers with samples in the window"),
            ViewColumn("databases", "sum(a.database_count)", "Mean number of their databases"),
            ViewColumn("size_mb", "sum(a.total_size_mb)", "Sum of their mean sizes, MiB"),
            ViewColumn(
                "change_mb",
                "sum(a.total_size_change_mb)",
                "Sum of their changes, of those that are known, MiB; null: none is known",
            ),
            ViewColumn(
                "servers_without_change",
                "count(a.total_size_mb) - count(a.total_size_change_mb)",
                "Servers that were not measured in the window before, whose size does not count as growth",
            ),
            ViewColumn(
                "servers_missing",
                "count(a.missing_size_mb)",
                "Servers measured in the window before and not in this one, whose absence does not count as shrinkage",
            ),
            ViewColumn("missing_size_mb", "sum(a.missing_size_mb)", "Their size in the window before, MiB; null: none"),
            ViewColumn(
                "last_size_mb",
                "CASE WHEN count(a.last_total_size_mb) = count(a.total_size_mb) THEN sum(a.last_total_size_mb) END",
                "Sum of the sizes of its servers, each on its last measured day of the window, MiB; null: not of all",
            ),
        ),
        f"FROM ({_WITH_MISSING}) AS a {_REGISTER}\nWHERE i.counted_by IS NULL\nGROUP BY 1, 2, 3, 4",
    ),
    View(
        "capacity_coverage",
        "Servers and databases measured on each day. A day without a row was not measured at all.",
        (
            ViewColumn("day", "s.collected_date", "Day of the samples"),
            ViewColumn("servers", "count(DISTINCT s.instance_id)", "Servers measured on it"),
            ViewColumn("databases", "sum(s.database_count)", "Databases on them"),
            ViewColumn(
                "size_mb",
                "sum(s.total_size_mb) FILTER (WHERE i.counted_by IS NULL)",
                "Sum of the sizes measured of servers that are not counted by another one, MiB",
            ),
        ),
        "FROM instance_size_stats s LEFT JOIN instances i ON i.id = s.instance_id\nWHERE NOT s.is_deleted\nGROUP BY 1",
    ),
    *RUNWAY_VIEWS,
    *READER_VIEWS,
    STALE_WINDOWS_VIEW,
)
