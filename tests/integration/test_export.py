"""`capacity export`: files equal the tables, are written whole or not at all, and go where they are sent."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import sql
from pyarrow import parquet
from python_calamine import CalamineWorkbook
from sqlalchemy import Engine, text

from capacity_assets.aggregates.levels import DATABASE, INSTANCE
from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.settings import Settings
from capacity_assets.base.units import as_plain_text
from capacity_assets.database.tables import ALWAYS
from capacity_assets.history import exporting
from capacity_assets.ownership.labels import Label, declare_labels
from tests.clocks import TODAY, fixed_clock
from tests.command import capacity
from tests.computing import compute_windows
from tests.fleet import add_database_sizes, add_instances, load_sample, sizes, stored


def months_of_the_sample(engine: Engine) -> None:
    load_sample(engine)
    service = AggregationService(engine, fixed_clock())
    compute_windows(service, "monthly", date(2025, 1, 1), date(2025, 7, 20))


PREPARED = {"sample": months_of_the_sample}


@pytest.fixture
def sample(settings: Settings) -> Settings:
    return settings


def exported(output: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(output, newline="")))


@pytest.mark.usefixtures("sample")
def test_csv_on_standard_output_equals_the_table_hostile_names_included(engine: Engine) -> None:
    rows = exported(capacity("export", "--period", "monthly", "--raw").output)

    names = {
        "database": "database_name",
        "window_start": "period_start",
        "size_mb": "avg_size_mb",
        "change_mb": "size_change_mb",
        "change_percent": "size_change_percent",
        "trend": "trend_direction",
        "measured_days": "data_count",
    }
    wanted = [
        ["" if row[name] is None else str(row[name]) for name in names.values()]
        for row in stored(engine, DATABASE, "monthly")
    ]
    assert sorted([row[name] for name in names] for row in rows) == sorted(wanted)


@pytest.mark.usefixtures("sample")
def test_an_empty_label_value_selects_what_has_no_such_label(engine: Engine) -> None:
    everything = exported(capacity("export", "--period", "monthly").output)
    declare_labels(engine, [Label("mysql-核心-01", None, "team", "core", ALWAYS)], TODAY)

    without = exported(capacity("export", "--period", "monthly", "--label", "team=").output)

    assert without == [row for row in everything if row["server"] != "mysql-核心-01"] != []


@pytest.mark.usefixtures("sample")
def test_parquet_has_the_types_and_the_values_of_the_view(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "ROWS_AT_ONCE", 7)
    path = tmp_path / "servers.parquet"

    result = capacity(
        "export", "--period", "monthly", "--level", "instance", "--format", "parquet", "--output", str(path)
    )

    assert result.exit_code == 0, result.output
    table = parquet.read_table(path)
    rows = stored(engine, INSTANCE, "monthly")
    assert table.num_rows == len(rows)
    assert str(table.schema.field("window_start").type) == "date32[day]"
    assert str(table.schema.field("size_mb").type) == "int64"
    found = sorted(zip(table["window_start"].to_pylist(), table["size_mb"].to_pylist(), strict=True))
    assert found == sorted((row["period_start"], row["total_size_mb"]) for row in rows)
    percents = {value for value in table["change_percent"].to_pylist() if value is not None}
    assert percents == {row["total_size_change_percent"] for row in rows} - {None}


@pytest.mark.usefixtures("sample")
def test_a_workbook_has_the_types_and_the_values_of_the_view_and_runs_no_name(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "ROWS_AT_ONCE", 7)
    monkeypatch.setattr(exporting, "SHEET_ROWS", 20)
    path = tmp_path / "growth.xlsx"
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE database_size_aggregations SET database_name = '=1+1' WHERE database_name = 'orders'")
        )

    result = capacity("export", "--period", "monthly", "--output", str(path))

    assert result.exit_code == 0, result.output
    book = CalamineWorkbook.from_path(path)
    sheets = [book.get_sheet_by_name(name).to_python() for name in book.sheet_names]
    rows = stored(engine, DATABASE, "monthly")
    assert [len(sheet) - 1 for sheet in sheets[:-1]] == [20] * (len(sheets) - 1)
    assert sum(len(sheet) - 1 for sheet in sheets) == len(rows) > 20
    found = [dict(zip(sheet[0], row, strict=True)) for sheet in sheets for row in sheet[1:]]
    names = {"database": "database_name", "window_start": "period_start", "size_mb": "avg_size_mb"}
    assert sorted([row[name] for name in names] for row in found) == sorted(
        [row[name] for name in names.values()] for row in rows
    )
    assert {type(row["window_start"]) for row in found} == {date}
    assert any(row["database"] == "=1+1" for row in found)
    percents = {round(float(str(row["change_percent"])), 2) for row in found if row["change_percent"] != ""}
    assert percents == {float(row["size_change_percent"]) for row in rows if row["size_change_percent"] is not None}
    assert {type(row["counted"]) for row in found} == {bool}


@pytest.mark.usefixtures("sample")
def test_a_workbook_without_rows_has_its_headings(tmp_path: Path) -> None:
    done = capacity("export", "--runway", "--output", str(tmp_path / "x.xlsx"), "--json")

    assert json.loads(done.output)["rows"] == 0
    [name] = (book := CalamineWorkbook.from_path(tmp_path / "x.xlsx")).sheet_names
    assert "full_middle" in book.get_sheet_by_name(name).to_python()[0]


@pytest.mark.usefixtures("sample")
def test_the_window_that_holds_the_first_day_counts_as_a_whole() -> None:
    rows = exported(capacity("export", "--period", "monthly", "--from", "2025-03-14", "--to", "2025-05-01").output)

    assert {row["window_start"] for row in rows} == {"2025-03-01", "2025-04-01", "2025-05-01"}


@pytest.mark.usefixtures("sample")
def test_a_file_is_replaced_whole_and_kept_when_the_database_fails(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "growth.csv"
    assert capacity("export", "--period", "monthly", "--output", str(path)).exit_code == 0
    before = path.read_bytes()
    with engine.begin() as connection:
        connection.execute(text("DROP VIEW capacity_growth"))

    result = capacity("export", "--period", "monthly", "--output", str(path))

    assert result.exit_code == 1
    assert 'relation "capacity_growth" does not exist' in result.output
    assert path.read_bytes() == before
    assert "run `capacity init`" in result.output
    assert list(tmp_path.iterdir()) == [path]


NO_EXPORTS = [
    (("--period", "hourly"), 2, "Unknown period 'hourly'"),
    (("--period", "monthly", "--level", "table"), 2, "Unknown level 'table'"),
    (("--period", "monthly", "--format", "parquet"), 2, "need a file"),
    (("--period", "monthly", "--from", "2025-05-01", "--to", "2025-01-01"), 2, "is after"),
    (("--period", "monthly", "--output", "/proc/none/x.csv"), 1, "cannot be written"),
    (("--period", "monthly", "--output", "/"), 2, "is not an ordinary file"),
    (("--period", "monthly", "--output", "/dev/null"), 2, "is not an ordinary file"),
    (("--period", "monthly", "--output", "x.ods"), 2, ".ods is not a known format: use .csv, .xlsx or .parquet"),
    (("--period", "monthly", "--output", "x.csv", "--format", "parquet"), 2, "x.csv would not be a parquet file"),
    (("--runway", "--from", "2026-01-01"), 2, "--runway writes the newest forecasts: omit --from and --to."),
    (("--runway", "--to", "2026-01-01"), 2, "--runway writes the newest forecasts: omit --from and --to."),
    (("--runway", "--level", "instance"), 2, "--level needs --period."),
    (("--objects", "--level", "instance"), 2, "--level needs --period."),
]


@pytest.mark.usefixtures("sample")
def test_impossible_exports_are_refused_with_what_to_do() -> None:
    for arguments, code, said in NO_EXPORTS:
        result = capacity("export", *arguments)

        assert result.exit_code == code, arguments
        assert said in result.output, arguments


@pytest.mark.usefixtures("sample")
def test_a_full_disk_behind_standard_output_is_told_without_a_traceback() -> None:
    command = f"{sys.executable} -m capacity_assets.cli export --period monthly > /dev/full"

    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)  # noqa: S607

    assert ended.returncode == 1
    assert "Standard output cannot be written: No space left on device" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.usefixtures("sample")
def test_a_reader_that_goes_away_ends_the_export_quietly() -> None:
    command = f"{sys.executable} -m capacity_assets.cli export --period monthly | head -1"

    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True)  # noqa: S607

    assert ended.stdout.startswith("period,window_start")
    assert "Traceback" not in ended.stderr


def test_a_name_that_a_spreadsheet_would_run_as_a_formula_is_text_unless_it_is_wanted_raw(
    settings: Settings, engine: Engine, service: AggregationService
) -> None:
    assert settings
    name = "=cmd|' /C calc'!A0"
    add_instances(engine, [1], name="-1+1")
    add_instances(engine, [2], name="a\n=1")
    add_database_sizes(engine, sizes(1, name, "2025-02-01", [200] * 31 + [100] * 28))
    add_database_sizes(engine, sizes(2, "b;=1", "2025-02-01", [100] * 59))
    declare_labels(engine, [Label("a\n=1", None, "team", "c;@x", ALWAYS)], TODAY)
    compute_windows(service, "monthly", date(2025, 2, 1), date(2025, 3, 31))

    guarded = exported(capacity("export", "--period", "monthly").output)
    raw = exported(capacity("export", "--period", "monthly", "--raw").output)

    assert {(row["server"], row["database"], row["labels"]) for row in guarded} == {
        ("'-1+1", f"'{name}", "{}"),
        ("a\n'=1", "b;'=1", '{"team": "c;\'@x"}'),
    }
    assert {(row["server"], row["database"], row["labels"]) for row in raw} == {
        ("-1+1", name, "{}"),
        ("a\n=1", "b;=1", '{"team": "c;@x"}'),
    }
    [change] = {row["change_mb"] for row in guarded if row["server"] == "'-1+1" and row["change_mb"]}
    assert int(change) < 0, "numbers are as they are"


@given(st.text("=+-@;\t\r\n'a, \\", max_size=8))
def test_no_cell_that_a_spreadsheet_may_see_begins_like_a_formula(of_others: str) -> None:
    guarded = as_plain_text(of_others)

    assert not any(cell[:1] in set("=+-@") for cell in re.split(r"[;\t\r\n]", guarded) if cell), guarded
    assert guarded[:1] not in set("\t\r\n") or not guarded
    assert guarded.replace("'", "") == of_others.replace("'", "")


def test_postgresql_guards_as_python_does(engine: Engine) -> None:
    signs = "=+-@;\t\r\n'a\\"
    texts = ["".join(some) for length in range(4) for some in itertools.product(signs, repeat=length)]
    with engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        guard = exporting._GUARDED.format(name=sql.Identifier("t"))
        query = sql.SQL("SELECT {} FROM unnest(%s::text[]) WITH ORDINALITY AS u (t, n) ORDER BY n").format(guard)
        guarded = [row[0] for row in driver.execute(query, [texts])]
    assert guarded == [as_plain_text(one) for one in texts]


def test_a_rate_of_hundreds_of_digits_is_exact_in_parquet_as_in_csv(
    settings: Settings, engine: Engine, service: AggregationService, tmp_path: Path
) -> None:
    assert settings.capacity_url is not None
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "new", "2025-02-01", [1] * 28 + [1_000_000] * 31))
    add_database_sizes(engine, sizes(1, "calm", "2025-02-01", [100] * 28 + [110] * 31))
    compute_windows(service, "monthly", date(2025, 3, 1), date(2025, 3, 1))
    path = tmp_path / "databases.parquet"

    done = capacity("export", "--period", "monthly", "--level", "database", "--output", str(path))

    assert done.exit_code == 0, done.output
    rates = {row["database"]: row["yearly_rate_percent"] for row in parquet.read_table(path).to_pylist()}
    # (1,000,000 / 1) to the power of twelve, less 1, in percent: a double holds seventeen digits of it.
    assert rates == {"new": f"{10**74 - 100}.00", "calm": "213.84"}
    monthly = exported(capacity("export", "--period", "monthly", "--level", "database").output)
    assert {row["database"]: row["yearly_rate_percent"] for row in monthly} == rates
