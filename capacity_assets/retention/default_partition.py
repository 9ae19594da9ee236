"""Rows in a default partition: which of them move to a partition of their own, and which stay."""

from __future__ import annotations

from datetime import date, timedelta

from sqlalchemy import Connection, Table

from capacity_assets.storage.partitions import DefaultRows, PartitionLayout, has_rows, rows_in_default

AHEAD_DAYS = 62
"""Partitions exist this long before their first row: two months, or the next year from November on."""


def default_rows(connection: Connection, table: Table, layout: PartitionLayout, today: date) -> DefaultRows:
    """Return what lies in the default partition.

    Rows from far ahead stay there: their days are hardly meant.
    """
    if layout.default is None or not has_rows(connection, layout.default):
        return DefaultRows()
    found = rows_in_default(connection, table, layout)
    last = today + timedelta(days=AHEAD_DAYS)
    ahead = [span for span in found.spans if span.first > last]
    if not ahead:
        return found
    too_far = f"rows from {min(span.first for span in ahead)} on, more than {AHEAD_DAYS} days ahead,"
    return DefaultRows(tuple(span for span in found.spans if span.first <= last), (*found.staying, too_far))
