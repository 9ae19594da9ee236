"""The work of `statements` in the form that Citus hands to its nodes whole: statements of their own instead of steps.

Each server's rows lie on one node, samples beside aggregates. What keeps a statement from being handed over: a step
that is read twice (CTE), OFFSET, a default that is volatile, a subquery that looks at each row of another one, and a
table that is not distributed. So the figures are computed twice, once to count and once to write, on the nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from functools import cache

from sqlalchemy import BigInteger, DateTime, Delete, Select, String, Subquery, bindparam, cast, delete, func, select
from sqlalchemy.dialects.postgresql import Insert

from capacity_assets.aggregation.decisions import (
    UNCHANGED,
    Rows,
    classified,
    is_unsupported,
    of_slice,
    rows_per_window,
    upsert,
    with_stored,
    would_be_written,
)
from capacity_assets.aggregation.figures import window_figures
from capacity_assets.aggregation.protection import computed_here
from capacity_assets.aggregation.reduction import Form
from capacity_assets.foundation.levels import Level
from capacity_assets.storage.distribution import ROW_NUMBER_FUNCTION


@dataclass(frozen=True)
class DistributedStatements:
    """What one slice takes, in this order; parameters as those of `aggregation_statement`, where windows are read.

    - `computed_here` names the windows that the ledger knows, which is the parameter `computed_starts` of the others.
    - `stored` counts the rows that there are.
    - `counts` reads, computes and decides.
    - `row_numbers` names the sequence of their numbers, as the parameter of that name.
    - `write` computes again and writes; its parameter `written_at` marks the rows, which `written` counts by.
    - `unsupported` counts and `remove` deletes rows without samples, where history may be replaced.

    Each counts per `period_start`; no row: none.
    """

    computed_here: Select[date]
    stored: Rows
    counts: Rows
    row_numbers: Select[str]
    write: Insert
    written: Rows
    unsupported: Rows
    remove: Delete


@cache
def distributed_statements(
    level: Level, *, overwrite: bool, form: Form, windows_per_year: int | None
) -> DistributedStatements:
    """Build the statements for tables that are distributed by `instance_id`."""

    def computed(name: str) -> Subquery:
        return window_figures(level, form, windows_per_year).subquery(name)

    figures = computed("figures")
    joined = with_stored(level, figures, keeps=not overwrite, beside=True).subquery("joined")
    rows = classified(level, joined).subquery("classified")
    target = level.target
    written_at = bindparam("written_at", type_=DateTime(timezone=True))
    own = {
        # The default of the column is volatile, which would bring all rows to the coordinator.
        "id": getattr(func, ROW_NUMBER_FUNCTION)(bindparam("row_numbers", type_=String), rows.c.instance_id),
        "calculated_at": written_at,
        "created_at": written_at,
    }
    unsupported = is_unsupported(level, computed("computed"))
    stored = select(target.c.period_start).where(*of_slice(target))
    return DistributedStatements(
        computed_here=computed_here(level),
        stored=rows_per_window(stored),
        counts=_counts(level, rows),
        row_numbers=select(func.pg_get_serial_sequence(target.name, "id")),
        write=upsert(level, rows, overwrite=overwrite, own=own),
        written=rows_per_window(stored.where(target.c.calculated_at == written_at)),
        unsupported=rows_per_window(select(target.c.period_start).where(unsupported)),
        remove=delete(target).where(unsupported),
    )


def _counts(level: Level, rows: Subquery) -> Rows:
    """Count what there is to do: per server on its node, then per window."""
    by_server = (
        select(
            rows.c.instance_id,
            rows.c.period_start,
            func.count().label("records"),
            func.count().filter(rows.c.action == UNCHANGED).label("unchanged"),
            func.count().filter(rows.c.was_stored).label("was_stored"),
            func.count().filter(would_be_written(level, rows)).label("written"),
        )
        .group_by(rows.c.instance_id, rows.c.period_start)
        .subquery("by_server")
    )
    names = ("records", "unchanged", "was_stored", "written")
    return select(
        by_server.c.period_start,
        func.count().label("instances"),
        *(cast(func.sum(by_server.c[name]), BigInteger).label(name) for name in names),
    ).group_by(by_server.c.period_start)
