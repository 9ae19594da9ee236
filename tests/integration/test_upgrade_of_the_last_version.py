"""The code of the last version makes a database and its figures; `capacity init` of this tree takes it over.

The code comes from this repository's history, and runs with the packages of today. `tests/former_revisions.py` makes
smaller databases of that version and of each revision since, without the history.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest
from sqlalchemy import URL, Engine, text

from capacity_assets.aggregates.service import AggregationService
from capacity_assets.database.schema import schema_state
from tests.clocks import fixed_clock
from tests.documents import ROOT
from tests.fleet import SAMPLE, Row
from tests.forked import run_forked
from tests.ledger import compute_everything, redo, stale
from tests.pages import served_pages

# 0.3.0. Once the next version is out: its tag.
LAST_VERSION = "b1464c6dc788832aa185459630634f70cc7de01e"
TODAY = date(2025, 7, 20)
# What it kept of groups and changes has another form since, and is computed.
REPLACED = {
    *("capacity_activations", "capacity_invalidations", "capacity_sample_changes"),
    *("capacity_group_changes", "capacity_group_sums", "capacity_group_windows"),
}
# What says how windows were computed, and the revision.
RECORDS = {"capacity_alembic_version", "capacity_computed_windows"}
FILLED = ("database_size_aggregations", "instance_size_aggregations", "capacity_bill_lines", "capacity_runways")
PATHS = (
    "/",
    "/servers",
    "/databases?period=monthly",
    "/groups?by=team",
    "/filling",
    "/bill?month=2025-06",
    "/accuracy",
    "/group?by=team&name=core",
    "/server?server=1",
    "/search?q=crm",
)
DECLARED = (
    ("labels", "set", "mysql-核心-01", "team=core", "--always"),
    ("labels", "set", "pg-trend-14", "team=trends", "--always"),
    ("prices", "set", "0.12", "--currency", "EUR", "--always"),
    ("limits", "set", "mysql-核心-01", "--gb", "400", "--note", "disk"),
    ("steps", "add", "pg-trend-14", "--day", "2025-05-05", "--note", "archive purged"),
)
COMPUTED = (
    ("aggregate", "--period", "all", "--from", "2025-01-01", "--to", TODAY.isoformat()),
    ("bill", "--month", "2025-05", "--by", "team"),
    ("bill", "--month", "2025-06", "--by", "team"),
)
# In a process that sees the old code first: several commands, then forecasts, all on that day.
OLD = """
import json, sys
from datetime import date
from capacity_assets.cli.main import main
from capacity_assets.clock import Clock
from capacity_assets.runtime import open_engine
from capacity_assets.settings import Settings
day = date.fromisoformat(sys.argv[1])
Clock.today = lambda self: day
for arguments in json.loads(sys.argv[2]):
    if arguments[0] == "copy":
        statement, path = arguments[1:]
        with open_engine(Settings()) as engine, engine.begin() as connection, open(path, "rb") as rows:
            with connection.connection.driver_connection.cursor().copy(statement) as copy:
                copy.write(rows.read())
        continue
    try:
        main(arguments, standalone_mode=True)
    except SystemExit as end:
        if end.code:
            raise
if len(sys.argv) > 3:
    from capacity_assets.runway.service import RunwayService
    settings = Settings()
    with open_engine(settings) as engine:
        RunwayService(engine, Clock(settings.zone)).issue(date.fromisoformat(sys.argv[3]))
"""


@pytest.fixture(scope="module")
def last_version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the last version's package."""
    folder = tmp_path_factory.mktemp("last-version")
    archive = subprocess.run(
        ["git", "-C", ROOT, "archive", LAST_VERSION, "capacity_assets"],  # noqa: S607
        capture_output=True,
        check=False,
    )
    if archive.returncode:
        pytest.skip("the last version is not in this clone: git fetch --unshallow")
    subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)  # noqa: S607
    return folder


def everything(engine: Engine) -> dict[str, list[Row]]:
    """All rows of all tables, as JSON writes them, by table; partitions under their table."""
    tables = (
        "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND NOT relispartition "
        "AND relnamespace = 'public'::regnamespace ORDER BY 1"
    )
    with engine.connect() as connection:
        names = connection.execute(text(tables)).scalars().all()
        return {
            name: [
                json.loads(row, parse_float=Decimal)
                for row in connection.execute(text(f'SELECT CAST(to_jsonb(t) AS text) FROM "{name}" t')).scalars()
            ]
            for name in names
        }


def changed(before: Mapping[str, list[Row]], after: Mapping[str, list[Row]]) -> set[str]:
    """The tables that are not what they were, in the columns and rows that they had."""

    def known(rows: list[Row], columns: set[str]) -> list[str]:
        return sorted(json.dumps({name: row[name] for name in sorted(columns)}, default=str) for row in rows)

    found = set()
    for name in before.keys() & after.keys():
        columns = set(before[name][0]) if before[name] else set()
        if (after[name] and not columns <= set(after[name][0])) or known(before[name], columns) != known(
            after[name] if columns else [], columns
        ):
            found.add(name)
    return found


def copied() -> list[tuple[str, str, str]]:
    """What copies the sample: statement and file of each table."""
    files = [SAMPLE / f"{table}.csv" for table in ("instances", "database_size_stats", "instance_size_stats")]
    columns = [file.read_text().partition("\n")[0] for file in files]
    return [
        ("copy", f"COPY {file.stem} ({names}) FROM STDIN (FORMAT csv, HEADER)", str(file))
        for file, names in zip(files, columns, strict=True)
    ]


def run_old(folder: Path, environment: Mapping[str, str], *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", OLD, TODAY.isoformat(), *arguments],
        env={**environment, "PYTHONPATH": str(folder)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.single_server("has a database of before tables could be distributed")
def test_a_database_that_the_last_version_filled_is_taken_over_with_every_figure(
    last_version: Path, empty_database: URL, empty_engine: Engine, tmp_path: Path
) -> None:
    environment = {
        **os.environ,
        "CAPACITY_DATABASE_URL": empty_database.render_as_string(hide_password=False),
        "CAPACITY_HOME": str(tmp_path),
        "CAPACITY_TIMEZONE": "Asia/Shanghai",
        "CAPACITY_LABEL_KEYS": "team",
    }
    run_old(last_version, environment, json.dumps([["init"], *copied(), *DECLARED, *COMPUTED]), "2025-07-10")
    before = everything(empty_engine)

    done = run_forked("init", environment=environment, timeout=120)

    assert done.returncode == 0, done.stderr
    after, service = everything(empty_engine), AggregationService(empty_engine, fixed_clock())
    assert before.keys() - after.keys() == REPLACED
    assert all(len(before[name]) > 10 for name in FILLED)
    assert changed(before, after) == RECORDS
    assert {level for level, *_ in stale(service)} == {"group"}, "each is computed for the first time, nothing else"
    redo(service)
    assert stale(service) == set()
    assert compute_everything(service) == 0, "nothing is computed that need not be"
    assert changed(before, everything(empty_engine)) == RECORDS
    assert schema_state(empty_engine).fit
    with served_pages(empty_database) as pages:
        assert {path: pages.ask(path).status for path in PATHS} == dict.fromkeys(PATHS, 200)
        bill = pages.document("/bill?month=2025-06")
    lines = [row["amount"] for row in before["capacity_bill_lines"] if row["month"] == "2025-06-01"]
    assert Decimal(bill["amount"]) == sum(lines).quantize(Decimal("0.01"))
