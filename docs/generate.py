"""Writes what follows from the code: parts of docs/reference.md, and deploy/dbt. A test says when they are stale.

Run by `make docs`. A part of the reference stands between `<!-- begin NAME -->` and `<!-- end NAME -->`; the rest of
the page is written by hand.
"""

import re
from collections.abc import Callable
from pathlib import Path

import yaml
from sqlalchemy.dialects import postgresql

from capacity_assets.aggregates.checks import (
    CHECKS,
    PARTITIONS_COMPLETE,
    PARTITIONS_COMPLETE_DESCRIPTION,
    SERVERS_STORED,
    CheckSeverity,
    checks_of,
)
from capacity_assets.aggregates.levels import LEVELS
from capacity_assets.base.periods import PERIODS, Period
from capacity_assets.base.settings import Settings, variable_names
from capacity_assets.collection.engines.base import engines
from capacity_assets.database.locks import SAMPLES, redis_key
from capacity_assets.database.tables import metadata
from capacity_assets.database.views import READABLE, VIEWS
from capacity_assets.history.retention import DEFAULT_RETENTION
from capacity_assets.history.retention import VARIABLE as RETENTION
from capacity_assets.history.sources import ORIGINS
from capacity_assets.orchestration.graph import asset_name, job_name, pool_name, schedule_name
from capacity_assets.web.metrics import DESCRIPTIONS

REFERENCE = Path(__file__).with_name("reference.md")
DBT_SOURCES = Path(__file__).parents[1] / "deploy" / "dbt" / "sources.yml"


def table(columns: list[str], rows: list[list[str]]) -> str:
    """Render a Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def variables() -> str:
    """Every environment variable with its default."""
    defaults = {
        str(field.validation_alias): None if field.default_factory else field.default
        for field in Settings.model_fields.values()
    } | {RETENTION: DEFAULT_RETENTION}
    defaults = {
        name: ",".join(map(str, value)) if isinstance(value, tuple) else value for name, value in defaults.items()
    }
    rows = [
        [f"`{name}`", "" if defaults[name] is None else f"`{defaults[name]}`", text]
        for name, text in variable_names().items()
    ]
    return table(["variable", "default", "meaning"], rows)


def length(period: Period) -> str:
    """How long a window is, in words."""
    if period.days:
        return "one day" if period.days == 1 else "Monday to Sunday"
    begin = "" if period.first_month == 1 else f", counted from month {period.first_month}"
    return f"{period.months} calendar month{'' if period.months == 1 else 's'}{begin}"


def periods() -> str:
    """Every period, and all that is made from it."""
    rows = [
        [
            f"`{period.name}`",
            length(period),
            "the current window" if period.scheduled_current else "the window just closed",
            ", ".join(f"`{asset_name(period, level)}`" for level in LEVELS.values()),
            f"`{job_name(period)}`",
            f"`{schedule_name(period)}`",
            f"`{pool_name(period)}`",
        ]
        for period in PERIODS.values()
    ]
    return table(["period", "window", "schedule takes", "assets", "job", "schedule", "pool"], rows)


def checks() -> str:
    """Every check, and whether it calls a person or tells one."""
    severities = {check.name: (check.severity, check.levels) for check in CHECKS}
    severities |= dict.fromkeys((SERVERS_STORED, PARTITIONS_COMPLETE), (CheckSeverity.ERROR, tuple(LEVELS)))
    described = dict(pair for level in LEVELS.values() for pair in checks_of(level))
    described[PARTITIONS_COMPLETE] = PARTITIONS_COMPLETE_DESCRIPTION
    rows = [
        [f"`{name}`", ", ".join(severities[name][1]), severities[name][0].value, text]
        for name, text in described.items()
    ]
    return table(["check", "levels", "severity", "passes when"], rows)


def engine_table() -> str:
    """Every engine: what is measured of it."""
    rows = []
    for name, engine in engines().items():
        rows.append(
            [
                f"`{name}`",
                str(engine.default_port),
                engine.definition,
                engine.used_definition,
                engine.limits_definition,
                engine.parts_definition,
                engine.objects_definition,
                ", ".join(f"`{name}`" for name in engine.system_databases) or "nothing",
                "yes" if engine.verified else "no",
            ]
        )
    return table(
        [
            "engine",
            "port",
            "size of a database",
            "used space",
            "limits",
            "outside databases",
            "tables and indexes",
            "left out",
            "verified",
        ],
        rows,
    )


def grants() -> str:
    """The least rights, engine by engine."""
    needed: dict[str, list[str]] = {}
    for name, engine in engines().items():
        needed.setdefault(engine.grants, []).append(name)
    return "\n\n".join(f"{' and '.join(names)}:\n\n```sql\n{text}\n```" for text, names in needed.items())


def history_queries() -> str:
    """Each query for history, and how its result is imported."""
    return "\n\n".join(
        f"{program}, `--origin {origin.name}`:\n\n```sql\n{query.strip()}\n```"
        for origin in ORIGINS.values()
        for program, (_, query) in origin.queries.items()
    )


def locks() -> str:
    """The name of each lock and its key in Redis."""
    rows = [[f"`{name}`", f"`{redis_key(name)}`"] for name in (*PERIODS, SAMPLES)]
    return table(["lock, row in PostgreSQL", "key in Redis"], rows)


def metrics() -> str:
    """Every metric of the pages' port."""
    return table(["metric", "meaning"], [[f"`capacity_{name}`", text] for name, text in DESCRIPTIONS.items()])


def tables() -> str:
    """Every table with its columns."""
    dialect = postgresql.dialect()
    parts = []
    for described in metadata.sorted_tables:
        rows = [
            [
                f"`{column.name}`",
                column.type.compile(dialect=dialect).lower() + ("" if column.nullable else ", not null"),
                str(column.comment),
            ]
            for column in described.columns
        ]
        heading = f"### {described.name}\n\n{described.comment}\n\n"
        parts.append(heading + table(["column", "type", "meaning"], rows))
    return "\n\n".join(parts)


def views() -> str:
    """Every view with its columns."""
    parts = []
    for view in VIEWS:
        rows = [[f"`{column.name}`", column.comment] for column in view.columns]
        parts.append(f"### {view.name}\n\n{view.comment}\n\n" + table(["column", "meaning"], rows))
    return "\n\n".join(parts)


def dbt_sources() -> str:
    """What readers may read, as a source of dbt."""
    views = {view.name: (view.comment, view.columns) for view in VIEWS}
    described = views | {
        table.name: (table.comment, [(column.name, column.comment) for column in table.columns])
        for table in metadata.sorted_tables
    }
    listed = [
        {
            "name": name,
            "description": described[name][0],
            "columns": [{"name": str(column), "description": comment} for column, comment in described[name][1]],
        }
        for name in READABLE
    ]
    source = {
        "name": "capacity",
        "description": "Views and tables of capacity_assets that the role capacity_reader may read.",
        "schema": "{{ var('capacity_schema', 'public') }}",
        "tables": listed,
    }
    return "# Written by docs/generate.py.\n" + yaml.safe_dump(
        {"version": 2, "sources": [source]}, sort_keys=False, width=120, allow_unicode=True
    )


PARTS: dict[str, Callable[[], str]] = {
    "variables": variables,
    "periods": periods,
    "checks": checks,
    "engines": engine_table,
    "grants": grants,
    "history queries": history_queries,
    "locks": locks,
    "metrics": metrics,
    "tables": tables,
    "views": views,
}


def generated(page: str) -> str:
    """Return the page with every part as the code has it now."""
    for name, part in PARTS.items():
        pattern = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        # A function, because a replacement text would have its backslashes read.
        text = part()
        page, found = pattern.subn(lambda match, text=text: f"{match[1]}{text}\n{match[2]}", page)
        if found != 1:
            message = f"docs/reference.md has {found} places for {name}"
            raise ValueError(message)
    return page


if __name__ == "__main__":
    REFERENCE.write_text(generated(REFERENCE.read_text()))
    DBT_SOURCES.write_text(dbt_sources())
