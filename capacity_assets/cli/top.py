"""`capacity top`: the databases of a window that grew or shrank most, or the largest. Reads the views."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from typing import Any

import click
from sqlalchemy import Engine, Row, text

from capacity_assets.base.errors import ValidationError
from capacity_assets.base.periods import Period, Window
from capacity_assets.base.settings import Settings
from capacity_assets.base.units import human_change_mb, human_mb
from capacity_assets.cli.options import (
    filter_options,
    json_command,
    label_filter,
    left,
    number_listed,
    print_json,
    print_table,
    right,
    window_options,
)
from capacity_assets.database.sql import TIES
from capacity_assets.ownership.labels import refuse_unknown_label
from capacity_assets.runtime import open_task_runner, refuse_an_absent_embedded_server

# What comes first, and which rows take part: an unknown change is neither growth nor shrinkage.
# Title, which rows, and their order.
ORDERS = {
    "growth": ("Databases that grew most", "change_mb > 0", "change_mb DESC"),
    "shrinkage": ("Databases that shrank most", "change_mb < 0", "change_mb"),
    "size": ("Largest databases", "true", "size_mb DESC"),
    "percent": ("Fastest growing databases", "change_percent > 0", "change_percent DESC"),
}
COLUMNS = (
    *left("Server", "Engine", "Database"),
    *right("Mean size", "Change", "Change in %"),
    *left("Trend"),
    *right("Days"),
)
_QUERY = """
SELECT server, engine, database, size_mb, change_mb, change_percent, trend, measured_days, window_days
FROM capacity_growth
WHERE period = :period AND window_start = :start AND counted AND {condition}
  AND (CAST(:server AS text) IS NULL OR server = :server)
  AND (CAST(:engine AS text) IS NULL OR engine = :engine)
  AND (CAST(:key AS text) IS NULL OR labels ->> CAST(:key AS text) = :value)
ORDER BY {order}, {ties} LIMIT :limit
"""


@dataclass(frozen=True)
class Top:
    """The options of the command line."""

    period: str
    day: date | None
    by: str
    server: str | None
    engine: str | None
    label: str | None
    limit: int
    as_json: bool


@click.command()
@window_options
@click.option(
    "--by",
    default="growth",
    show_default=True,
    type=click.Choice(list(ORDERS)),
    help="What to sort by.",
)
@click.option("--server", help="Databases of this server alone.")
@filter_options
@number_listed("limit", 10)
@json_command
def top(settings: Settings, /, **given: Any) -> None:
    """List the databases that grew or shrank most, or the largest.

    \b
    Examples:
      capacity top
      capacity top --by size --period daily
      capacity top --by shrinkage --server db-7 --limit 50
      capacity top --label team=payments
    """
    asked = Top(**given)
    refuse_an_absent_embedded_server(settings)
    with open_task_runner(settings) as runner:
        period = runner.service.period(asked.period)
        window = runner.service.partitions.window_holding(period, asked.day)
        if asked.server is not None:
            runner.service.ids_of([asked.server])
        rows = top_rows(runner.service.engine, asked, window.start)
        key, value = label_filter(asked.label)
        if key is not None and not rows:
            refuse_unknown_label(runner.service.engine, key, str(value))
            raise ValidationError(
                f"Nothing with {asked.label} to list in {period.name_of(window)}: no database of it has such a change, "
                "or it holds on other days. `capacity labels list` has them."
            )
    if not rows:
        raise ValidationError(
            f"Nothing to list in {period.name_of(window)}: no row is stored, or none with such a change. "
            f"`capacity plan --period {period.name} --from {window.start} --to {window.start}` says what could be."
        )
    if asked.as_json:
        print_json([row._asdict() for row in rows])
    else:
        print_top(period, window, asked.by, rows)


def top_rows(engine: Engine, asked: Top, start: date) -> list[Row[Any]]:
    """Read the rows, as the view names them."""
    _, condition, order = ORDERS[asked.by]
    key, value = label_filter(asked.label)
    parameters = {
        "period": asked.period,
        "start": start,
        "server": asked.server,
        "engine": asked.engine,
        "key": key,
        "value": value,
        "limit": asked.limit,
    }
    with engine.connect() as connection:
        return list(connection.execute(text(_QUERY.format(condition=condition, order=order, ties=TIES)), parameters))


def print_top(period: Period, window: Window, by: str, rows: Iterable[Row[Any]]) -> None:
    """Print the rows under what they are."""
    title = f"{ORDERS[by][0]}, {period.name_of(window)} against the window before"
    print_table(title, COLUMNS, [_cells(row) for row in rows])


def _cells(row: Row[Any]) -> list[object]:
    change = "unknown" if row.change_mb is None else human_change_mb(row.change_mb)
    percent = "unknown" if row.change_percent is None else f"{row.change_percent:+} %"
    days = f"{row.measured_days} of {row.window_days}"
    return [row.server, row.engine, row.database, human_mb(row.size_mb), change, percent, row.trend or "unknown", days]
