"""Files as other programs write them: dates, numbers, encodings, workbooks, days that are missing."""

from __future__ import annotations

import builtins
import gzip
import json
import re
from datetime import date, datetime
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pyarrow
import pytest
import xlsxwriter
from pyarrow import parquet
from sqlalchemy import Engine, text

from tests.command import capacity
from tests.databases import execute
from tests.importing import HEAD, counts, samples, totals, write

pytestmark = pytest.mark.usefixtures("settings", "alpha_and_beta")


def taken(engine: Engine) -> list[tuple[object, ...]]:
    return [row[:4] for row in samples(engine)]


def test_a_problem_names_the_line_of_the_file_also_behind_a_name_of_several_lines(tmp_path: Path) -> None:
    file = write(
        tmp_path / "x.csv",
        'server,database,day,size_mb\nalpha,"two\nlines",2025-01-01,1\n\nalpha,a,2025-01-01,much\n',
    )

    assert "bad: row 3 (line 5): size_mb 'much' is not a number" in capacity("import", file).output


def test_only_columns_with_a_decimal_comma_are_named(tmp_path: Path) -> None:
    file = write(tmp_path / "x.csv", "server;database;day;size_mb\nalpha;a;2025-01-01;1,5\n")

    shown = capacity("import", file, "--decimal", ",", "--dry-run").output
    assert "Decimal comma in: size_mb.\n" in shown


def test_a_german_export_is_read_without_an_option_and_a_dry_run_shows_how(engine: Engine, tmp_path: Path) -> None:
    file = write(
        tmp_path / "x.csv",
        "server;database;day;size_mb;data_size_mb\n"
        "alpha;a;03.04.2025;1.234,5;0,9\nalpha;b;31.03.2025;7;6,1\nbeta;a;01.04.2025;10,7;\nbeta;b;01.04.2025;1;1\n",
    )

    rehearsed = capacity("import", file, "--dry-run", columns=200)
    untouched = taken(engine)
    done = capacity("import", file)

    assert rehearsed.exit_code == done.exit_code == 0, rehearsed.output + done.output
    assert untouched == []
    assert "Date format: day-first.\nDecimal comma in: size_mb, data_size_mb." in rehearsed.output
    shown = [line.split() for line in rehearsed.output.splitlines()]
    assert ["1", "alpha", "a", "3", "Apr", "2025", "1,234", "MiB", "0", "MiB"] in shown
    assert ["2", "alpha", "b", "31", "Mar", "2025", "7", "MiB", "6", "MiB"] in shown
    assert ["3", "beta", "a", "1", "Apr", "2025", "10", "MiB"] in shown
    assert not any(line[:1] == ["4"] and "beta" in line for line in shown), "three rows are enough"
    assert "First rows, as read" not in done.output
    assert taken(engine) == [
        ("alpha", "a", "2025-04-03", 1234),
        ("alpha", "b", "2025-03-31", 7),
        ("beta", "a", "2025-04-01", 10),
        ("beta", "b", "2025-04-01", 1),
    ]


def test_what_a_file_does_not_tell_is_refused_until_it_is_said(engine: Engine, tmp_path: Path) -> None:
    days = write(tmp_path / "days.csv", HEAD + "alpha,a,03/04/2025,10\n")
    sizes = write(tmp_path / "sizes.csv", HEAD + 'alpha,a,2025-01-01,"1,234"\n')

    for file in (days, sizes):
        assert capacity("import", file).exit_code == 2
    assert "3 Apr 2025 (--date-format day-first) or 4 Mar 2025" in capacity("import", days, "--dry-run").output
    assert taken(engine) == []
    assert capacity("import", days, "--date-format", "month-first").exit_code == 0
    assert capacity("import", days, "--date-format", "%d/%m/%Y").exit_code == 0
    assert capacity("import", sizes, "--decimal", ".").exit_code == 0
    assert taken(engine) == [
        ("alpha", "a", "2025-01-01", 1234),
        ("alpha", "a", "2025-03-04", 10),
        ("alpha", "a", "2025-04-03", 10),
    ]
    assert capacity("import", days, "--date-format", "%d").exit_code == 2


@pytest.mark.parametrize(
    ("encoding", "arguments"),
    [
        ("utf-8", []),
        ("utf-8-sig", []),
        ("utf-16", []),
        ("cp1252", ["--encoding", "cp1252"]),
        ("utf-16-le", ["--encoding", "utf-16-le"]),
    ],
)
def test_a_file_is_read_in_its_encoding(engine: Engine, tmp_path: Path, encoding: str, arguments: list[str]) -> None:
    content = (HEAD + "alpha,Größe,2025-01-01,10\n").encode(encoding)
    (tmp_path / "x.csv").write_bytes(content)
    with gzip.open(tmp_path / "x.csv.gz", "wb") as file:
        file.write(content)

    done = [capacity("import", str(tmp_path / name), *arguments, "--json") for name in ("x.csv", "x.csv.gz")]

    assert counts(done[0].output) == {"read": 1, "written": 1, "totals_written": 1}
    assert counts(done[1].output) == {"read": 1, "present": 1}
    assert taken(engine) == [("alpha", "Größe", "2025-01-01", 10)]


def test_an_encoding_that_does_not_fit_is_named_with_the_byte(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    file.write_bytes((HEAD + "alpha,Größe,2025-01-01,10\n").encode("cp1252"))
    for arguments, reason in (
        ([], "is not UTF-8: line 2 has the byte 0xf6; for files from Windows programs, try --encoding cp1252"),
        (["--encoding", "ascii"], "is not ascii: line 2 has the byte 0xf6"),
        (["--encoding", "klingon"], "--encoding 'klingon' is not an encoding"),
        (["--encoding", "hex"], "--encoding 'hex' is not an encoding"),
    ):
        refused = capacity("import", str(file), *arguments)
        assert refused.exit_code == 2, arguments
        assert reason in refused.output, refused.output
    file.write_bytes("server,database,day,größe\n".encode("cp1252"))
    assert "is not UTF-8: line 1 has the byte 0xf6" in capacity("import", str(file)).output
    file.write_bytes((HEAD + "alpha,a,2025-01-01,10\n").encode("utf-16-le"))
    assert "add --encoding utf-16-le" in capacity("import", str(file)).output


def workbook(path: Path, **sheets: list[list[Any]]) -> str:
    with xlsxwriter.Workbook(path) as book:
        as_day = book.add_format({"num_format": "dd.mm.yyyy"})
        for name, rows in sheets.items():
            sheet = book.add_worksheet(name)
            for number, row in enumerate(rows):
                for place, value in enumerate(row):
                    if isinstance(value, date):
                        sheet.write_datetime(number, place, value, as_day)
                    else:
                        sheet.write(number, place, value)
    return str(path)


HEADINGS = HEAD.strip().split(",")


def test_a_workbook_is_read_from_its_first_sheet_or_the_named_one(engine: Engine, tmp_path: Path) -> None:
    rows = [
        HEADINGS,
        ["alpha", "a", date(2025, 1, 31), 10],
        [None, None, None, None],
        ["alpha", "b", datetime(2025, 2, 1), 1234.9],  # noqa: DTZ001 -- cells have no zone
        ["beta", "2025", "2025-01-31", "7"],
    ]
    file = workbook(tmp_path / "x.xlsx", sizes=rows, older=[HEADINGS, ["beta", "old", date(2024, 12, 31), 3]])

    done = capacity("import", file, "--json")
    older = capacity("import", file, "--sheet", "older", "--json")

    assert counts(done.output) == {"read": 3, "written": 3, "totals_written": 3}
    assert counts(older.output) == {"read": 1, "written": 1, "totals_written": 1}
    assert json.loads(older.output)["source"] == f"{file}, sheet older"
    assert taken(engine) == [
        ("alpha", "a", "2025-01-31", 10),
        ("alpha", "b", "2025-02-01", 1234),
        ("beta", "2025", "2025-01-31", 7),
        ("beta", "old", "2024-12-31", 3),
    ]


def test_totals_of_a_workbook_keep_whole_numbers(engine: Engine, tmp_path: Path) -> None:
    headings = ["server", "day", "total_size_mb", "database_count"]
    file = workbook(tmp_path / "x.xlsx", sizes=[headings, ["alpha", date(2025, 1, 31), 8796093022206, 3]])

    assert capacity("import", file, "--level", "instance").exit_code == 0
    assert totals(engine) == [("alpha", "2025-01-31", 8796093022206, 3)]


def test_a_number_of_a_cell_has_no_decimal_mark_to_be_looked_for(engine: Engine, tmp_path: Path) -> None:
    rows = [HEADINGS, ["alpha", "a", "2025-01-31", 1.234], ["alpha", "b", "2025-01-31", "1,5"]]
    file = workbook(tmp_path / "x.xlsx", sizes=rows)
    columns = {name: [row[place] for row in rows[1:2]] for place, name in enumerate(HEADINGS)}
    parquet.write_table(pyarrow.table({**columns, "day": ["2025-02-01"]}), tmp_path / "x.parquet")

    for source in (file, str(tmp_path / "x.parquet")):
        assert capacity("import", source, "--unit", "gb", "--decimal", ",").exit_code == 0
    assert taken(engine) == [
        ("alpha", "a", "2025-01-31", 1263),
        ("alpha", "a", "2025-02-01", 1263),
        ("alpha", "b", "2025-01-31", 1536),
    ]


def test_a_workbook_with_a_cell_far_away_or_a_date_that_is_none_is_refused(engine: Engine, tmp_path: Path) -> None:
    far = str(tmp_path / "far.xlsx")
    with xlsxwriter.Workbook(far) as book:
        sheet = book.add_worksheet()
        sheet.write_row(0, 0, HEADINGS)
        sheet.write(1_048_575, 16_383, "x")
    with xlsxwriter.Workbook(tmp_path / "date.xlsx") as book:
        sheet = book.add_worksheet()
        sheet.write_row(0, 0, HEADINGS)
        sheet.write_row(1, 0, ["alpha", "a", "2025-01-31", 10])
        sheet.write_row(2, 0, ["alpha", "a", None, 10])
        sheet.write_number(2, 2, -1e300, book.add_format({"num_format": "dd.mm.yyyy"}))

    for file, reason in (
        (far, "reaches to the cell XFD1048576, which is too large to be read."),
        (str(tmp_path / "date.xlsx"), "cannot be read past row 1: the next one has an invalid date."),
    ):
        refused = capacity("import", file)
        assert refused.exit_code == 2, refused.output
        assert reason in " ".join(refused.output.split()), refused.output
    assert taken(engine) == []


def test_workbooks_that_cannot_be_read_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = workbook(tmp_path / "x.xlsx", sizes=[HEADINGS], empty=[])
    with ZipFile(file) as whole, ZipFile(tmp_path / "none.xlsx", "w") as without_sheets:
        for name in whole.namelist():
            without_sheets.writestr(name, re.sub(rb"<sheets>.*</sheets>", b"<sheets></sheets>", whole.read(name)))
    (tmp_path / "no.xlsx").write_text("server,database")
    (tmp_path / "x.csv").write_text(HEAD)
    for arguments, reason in (
        ([file, "--sheet", "none"], "has no sheet 'none'. It has sizes, empty."),
        ([file, "--sheet", "empty"], "is empty; its first row must name the columns"),
        ([file, "--encoding", "cp1252"], "--encoding is for CSV files"),
        ([str(tmp_path / "none.xlsx")], "none.xlsx has no sheet."),
        ([str(tmp_path / "no.xlsx")], "is not an .xlsx workbook that can be read"),
        ([str(tmp_path / "x.csv"), "--sheet", "a"], "--sheet is for .xlsx files"),
        (["postgresql://u@h/d", "--sheet", "a"], "--sheet is for files only"),
    ):
        refused = capacity("import", *arguments)
        assert refused.exit_code == 2, arguments
        assert reason in " ".join(refused.output.split()), refused.output

    imported = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name == "python_calamine":
            raise ImportError(name)
        return imported(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    assert "pip install 'capacity_assets[excel]'" in capacity("import", file).output


def test_days_without_samples_are_counted_and_the_longest_stretch_is_named(tmp_path: Path) -> None:
    capacity("import", write(tmp_path / "stored.csv", HEAD + "alpha,b,2025-01-02,1\n"))
    rows = "".join(
        f"{server},a,2025-01-{day:02},1\n"
        for server, days in (("alpha", (1, 3, 4, 8, 10)), ("beta", (5, 6)), ("gone", (1, 9)))
        for day in days
    )
    file = write(tmp_path / "x.csv", HEAD + rows)

    rehearsed = json.loads(capacity("import", file, "--dry-run", "--json").output)
    done = capacity("import", file, columns=200)

    assert rehearsed["gaps"] == {"servers": 1, "days": 4, "longest_days": 3}
    gap = "alpha: 4 days missing between 1 Jan 2025 and 10 Jan 2025; longest gap: 3 days from 5 Jan 2025"
    assert rehearsed["listed"]["gaps"] == [gap], "a day that was stored before is not a gap"
    assert "1 server has gaps: 4 days in total, the longest 3 days." in done.output
    assert f"  gap: {gap}" in done.output


def test_a_refused_row_ends_no_gap(tmp_path: Path) -> None:
    file = write(tmp_path / "x.csv", HEAD + "alpha,a,2025-01-01,1\nalpha,a,2025-01-09,-7\n")

    done = json.loads(capacity("import", file, "--json").output)

    assert (done["counts"]["bad"], done["gaps"]["days"]) == (1, 0)


def test_gaps_of_servers_that_are_named_by_number_are_theirs_and_impossible_numbers_are_refused(
    engine: Engine, tmp_path: Path
) -> None:
    execute(engine, "UPDATE instances SET name = '2' WHERE name = 'alpha'")
    with engine.connect() as connection:
        number = connection.execute(text("SELECT id FROM instances WHERE name = 'beta'")).scalar_one()
    assert number == 2
    rows = "".join(
        f"{server},{server_id},a,2025-01-{day:02},1\n"
        for server, server_id, days in (
            ("2", "", (1, 3)),
            ("", number, (1, 6)),
            ("", "99999999999", (1, 9)),
        )
        for day in days
    )
    file = write(tmp_path / "x.csv", "server,instance_id,database,day,size_mb\n" + rows)

    done = json.loads(capacity("import", file, "--map", "instance_id=instance_id", "--json").output)

    assert (done["counts"]["written"], done["counts"]["bad"]) == (4, 2)
    assert done["listed"]["gaps"] == [
        "beta: 4 days missing between 1 Jan 2025 and 6 Jan 2025; longest gap: 4 days from 2 Jan 2025",
        "2: 1 day missing between 1 Jan 2025 and 3 Jan 2025; longest gap: 1 day from 2 Jan 2025",
    ]


def test_history_before_the_first_partition_is_imported_and_said_how_to_aggregate(
    engine: Engine, tmp_path: Path
) -> None:
    file = write(tmp_path / "x.csv", HEAD + "alpha,a,2023-05-01,1\nalpha,a,2023-05-02,1\nalpha,a,2025-01-01,1\n")

    rehearsed = capacity("import", file, "--dry-run", columns=200)
    done = capacity("import", file, columns=200)

    advice = (
        "2 rows are older than CAPACITY_START_DATE (1 Jan 2025). To aggregate them, set CAPACITY_START_DATE=2023-05-01."
    )
    assert advice in rehearsed.output
    assert advice in done.output
    assert "Next: capacity aggregate --period all --from 2025-01-01" in done.output
    assert [row[2] for row in taken(engine)] == ["2023-05-01", "2023-05-02", "2025-01-01"]
