"""One slice where tables are distributed: count what there is to do on the nodes, then write it there if there is any.

The statements are those of `distributed_statements`; which slices there are is decided in `runners`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from sqlalchemy import Connection, Row, func, select

from capacity_assets.aggregation.decisions import Rows
from capacity_assets.aggregation.distributed_statements import DistributedStatements
from capacity_assets.aggregation.options import RunOptions

Parameters = dict[str, object]


@dataclass(frozen=True)
class SliceCounts:
    """What became of one window in a slice, as the columns of `aggregation_statement` say it."""

    instances: int
    records: int
    written: int
    removed: int
    unchanged: int
    unsampled: int


def write_slice(
    connection: Connection,
    statements: DistributedStatements,
    parameters: Parameters,
    windows: Sequence[date],
    options: RunOptions,
) -> list[SliceCounts]:
    """Write one slice in the transaction of a connection; return what became of each window, by its first day."""
    known = connection.execute(statements.computed_here, parameters).scalars().all()
    parameters |= {"computed_starts": list(known)}

    def per_window(query: Rows) -> dict[date, int]:
        return _rows_per_window(connection, query, parameters)

    stored = per_window(statements.stored)
    counts = {row.period_start: row for row in connection.execute(statements.counts, parameters)}
    removed = per_window(statements.unsupported) if options.overwrite else {}
    written = {start: row.written for start, row in counts.items()}
    if not options.dry_run:
        if any(removed.values()):
            connection.execute(statements.remove, parameters)
        written = _write(connection, statements, parameters, written)
    return [_of_window(counts.get(start), stored, written, removed, start) for start in windows]


def _write(
    connection: Connection, statements: DistributedStatements, parameters: Parameters, wanted: dict[date, int]
) -> dict[date, int]:
    """Write what was counted; where another session came in between, count what was really written."""
    if not any(wanted.values()):
        return wanted
    parameters |= {
        "row_numbers": connection.execute(statements.row_numbers).scalar_one(),
        "written_at": connection.execute(select(func.now())).scalar_one(),
    }
    done = connection.execute(statements.write, parameters, execution_options={"preserve_rowcount": True})
    if done.rowcount == sum(wanted.values()):
        return wanted
    return _rows_per_window(connection, statements.written, parameters)


def _rows_per_window(connection: Connection, query: Rows, parameters: Parameters) -> dict[date, int]:
    return {row.period_start: row.rows for row in connection.execute(query, parameters)}


def _of_window(
    row: Row[Any] | None, stored: dict[date, int], written: dict[date, int], removed: dict[date, int], start: date
) -> SliceCounts:
    gone = removed.get(start, 0)
    if row is None:
        return SliceCounts(0, 0, 0, gone, 0, stored.get(start, 0) - gone)
    return SliceCounts(
        instances=row.instances,
        records=row.records,
        written=written.get(start, 0),
        removed=gone,
        unchanged=row.unchanged,
        unsampled=stored.get(start, 0) - row.was_stored - gone,
    )
