"""The views by which readers reach what figures are made of: servers, samples, attempts, volumes, declared steps.

Each shows a table with the names that people use, so that a reader needs no right on any table.
"""

from __future__ import annotations

from capacity_assets.storage.active_servers import active_condition
from capacity_assets.storage.label_expressions import labels_of
from capacity_assets.storage.limit_tables import USED_MB
from capacity_assets.storage.view import View, ViewColumn

_SERVER_ID = ViewColumn("server_id", "s.instance_id", "Number of the server")
_SERVER = ViewColumn("server", "coalesce(i.name, 'server ' || s.instance_id)", "Name of the server")
_DAY = ViewColumn("day", "s.collected_date", "Day of the sample")
_COLLECTED_AT = ViewColumn("collected_at", "s.collected_at", "When it was taken")
_WRITTEN = (
    ViewColumn("created_at", "s.created_at", "When it was first written"),
    ViewColumn("updated_at", "s.updated_at", "When it was last changed"),
)
_REGISTER = "LEFT JOIN instances i ON i.id = s.instance_id"

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
            _SERVER_ID,
            _SERVER,
            ViewColumn("database", "s.database_name", "Name of the database"),
            ViewColumn("size_mb", "s.size_mb", "Total size, MiB"),
            _COLLECTED_AT,
            *_WRITTEN,
        ),
        f"FROM database_size_stats s {_REGISTER}",
    ),
    View(
        "capacity_server_samples",
        "The samples of whole servers.",
        (
            _DAY,
            _SERVER_ID,
            _SERVER,
            ViewColumn("size_mb", "s.total_size_mb", "Total size of its databases, MiB"),
            ViewColumn("databases", "s.database_count", "Number of its databases"),
            _COLLECTED_AT,
            *_WRITTEN,
        ),
        f"FROM instance_size_stats s {_REGISTER}\nWHERE NOT s.is_deleted",
    ),
    View(
        "capacity_volumes",
        "The samples of volumes.",
        (
            _DAY,
            _SERVER_ID,
            _SERVER,
            ViewColumn("volume", "s.volume_name", "File system, disk group or pool"),
            ViewColumn("total_mb", "s.total_mb", "How much it holds, MiB"),
            ViewColumn("free_mb", "s.free_mb", "How much of that is free, MiB"),
            ViewColumn("used_mb", USED_MB.format("s"), "Used space, MiB"),
            ViewColumn("source", "s.source", "Where the figures come from: measured or imported"),
            _COLLECTED_AT,
        ),
        f"FROM volume_size_stats s {_REGISTER}",
    ),
    View(
        "capacity_attempts",
        "What became of each server on each day of the last months.",
        (
            ViewColumn("day", "s.collected_date", "Day that was measured"),
            _SERVER_ID,
            _SERVER,
            ViewColumn("status", "s.status", "collected or failed"),
            ViewColumn("failure", "s.failure", "Kind of the failure; null: none"),
            ViewColumn("reason", "s.reason", "Why it failed, and what to do; null: it did not"),
            ViewColumn("attempted_at", "s.attempted_at", "When the last attempt ended"),
        ),
        f"FROM capacity_collection_attempts s {_REGISTER}",
    ),
    View(
        "capacity_declared_steps",
        "Changes of size that people declared, which no forecast takes for a trend.",
        (
            _SERVER_ID,
            _SERVER,
            ViewColumn("database", "nullif(s.database_name, '')", "Database; null: all databases of the server"),
            ViewColumn("day", "s.step_date", "First day with the new size"),
            ViewColumn("note", "s.note", "What happened"),
        ),
        f"FROM capacity_steps s {_REGISTER}",
    ),
)
