"""History from files: every row is accounted for, and what cannot be read is refused."""

from __future__ import annotations

import json
from pathlib import Path
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy import Engine

from capacity_assets.aggregates.levels import DATABASE
from capacity_assets.history.rows import RowReader, layout_of
from tests.clocks import fixed_clock
from tests.command import capacity
from tests.databases import rows
from tests.importing import HEAD, counts, samples, totals, write

pytestmark = pytest.mark.usefixtures("settings", "alpha_and_beta")


def test_a_file_of_samples_is_stored_and_the_totals_derived(engine: Engine, tmp_path: Path) -> None:
    file = write(
        tmp_path / "sizes.csv",
        "server,database,day,size_mb,data_size_mb,log_size_mb,collected_at\n"
        "alpha,a,2025-01-01,10,8,2,2025-01-01T03:00:00+08:00\n"
        'alpha,"b, ""quoted"" 日",2025-01-01,5,,,\n'
        "beta,a,2025-01-02,7,7,,\n",
    )

    done = capacity("import", file)

    assert done.exit_code == 0, done.output
    assert samples(engine) == [
        ("alpha", "a", "2025-01-01", 10, 8, 2),
        ("alpha", 'b, "quoted" 日', "2025-01-01", 5, None, None),
        ("beta", "a", "2025-01-02", 7, 7, None),
    ]
    assert totals(engine) == [("alpha", "2025-01-01", 15, 2), ("beta", "2025-01-02", 7, 1)]
    assert rows(engine, "SELECT collected_at AT TIME ZONE 'UTC' FROM database_size_stats WHERE log_size_mb = 2") != []
    assert "capacity aggregate --period all --from 2025-01-01, or backfill" in done.output


def test_columns_of_other_names_units_and_delimiters_are_taken(engine: Engine, tmp_path: Path) -> None:
    file = write(tmp_path / "x.csv", "\ufeffdb;Größe;WHEN\na;1048576000;2025-01-01 00:00:00\nb;1048575;2025-01-01\n")

    mapping = ["--map", "database=DB", "--map", "size_mb=Größe", "--map", "day=when"]
    done = capacity("import", file, "--server", "alpha", "--unit", "bytes", *mapping)

    assert done.exit_code == 0, done.output
    assert [row[:4] for row in samples(engine)] == [
        ("alpha", "a", "2025-01-01", 1000),
        ("alpha", "b", "2025-01-01", 0),
    ]


def test_every_row_is_accounted_for_and_the_first_of_each_kind_named(engine: Engine, tmp_path: Path) -> None:
    write(tmp_path / "first.csv", HEAD + "alpha,a,2025-01-01,10\nalpha,b,2025-01-01,20\n")
    capacity("import", str(tmp_path / "first.csv"))
    file = write(
        tmp_path / "second.csv",
        HEAD + "alpha,a,2025-01-01,10\n"  # present
        "alpha,b,2025-01-01,21\n"  # another value
        "alpha,c,2025-01-01,30\n"  # new
        "alpha,c,2025-01-01,30\n"  # repeated
        "alpha,c,2025-01-01,31\n"  # another value than an earlier row
        "gamma,a,2025-01-01,1\n"  # unknown server
        "alpha,d,2025-02-30,1\n"  # no such day
        "alpha,d,2025-01-01,-1\n"
        "alpha,,2025-01-01,1\n"
        "alpha,d,2025-01-01 03:00,1\n"
        "alpha,d,2025-01-01,much\n"
        "alpha,d,2025-01-01\n",
    )

    report = json.loads(capacity("import", file, "--json").output)
    shown = capacity("import", file)

    assert {name: count for name, count in report["counts"].items() if count} == {
        "read": 12,
        "written": 1,
        "present": 1,
        "repeated": 1,
        "conflicts": 2,
        "unknown": 1,
        "bad": 6,
        "totals_written": 1,
    }
    assert report["listed"]["conflicts"] == [
        "row 2 (line 3): alpha, b, 1 Jan 2025: 21 MiB, stored is 20 MiB",
        "row 5 (line 6): alpha, c, 1 Jan 2025: 31 MiB, another row has 30 MiB",
    ]
    assert report["listed"]["unknown"] == ["gamma: 1 row"]
    assert [line.partition(":")[0] for line in report["listed"]["bad"]] == [
        f"row {number} (line {number + 1})" for number in range(7, 13)
    ]
    assert totals(engine) == [("alpha", "2025-01-01", 60, 3)]
    assert shown.exit_code == 1
    assert "--on-conflict replace replaces them" in shown.output


def test_replacing_takes_the_files_values_and_the_totals_follow(engine: Engine, tmp_path: Path) -> None:
    write(tmp_path / "first.csv", HEAD + "alpha,a,2025-01-01,10\nalpha,b,2025-01-01,20\n")
    capacity("import", str(tmp_path / "first.csv"))
    file = write(tmp_path / "second.csv", HEAD + "alpha,b,2025-01-01,25\n")

    done = capacity("import", file, "--on-conflict", "replace", "--json")

    assert counts(done.output) == {"read": 1, "replaced": 1, "totals_written": 1}
    assert totals(engine) == [("alpha", "2025-01-01", 35, 2)]


def test_rows_that_contradict_each_other_are_named_also_where_stored_ones_are_replaced(
    engine: Engine, tmp_path: Path
) -> None:
    capacity("import", write(tmp_path / "first.csv", HEAD + "alpha,a,2025-01-01,10\n"))
    file = write(tmp_path / "second.csv", HEAD + "alpha,a,2025-01-01,77\nalpha,a,2025-01-01,78\n")

    done = capacity("import", file, "--on-conflict", "replace")

    assert "another row has 78 MiB" in done.output
    assert "These rows contradict other imported rows of the same day" in done.output
    assert "Stored samples were kept" not in done.output
    assert rows(engine, "SELECT size_mb FROM database_size_stats") == [(78,)]


def test_a_total_that_was_measured_otherwise_is_kept(engine: Engine, tmp_path: Path) -> None:
    level = write(tmp_path / "totals.csv", "server,day,total_size_mb,database_count\nalpha,2025-01-01,99,9\n")
    assert capacity("import", level, "--level", "instance").exit_code == 0

    capacity("import", write(tmp_path / "sizes.csv", HEAD + "alpha,a,2025-01-01,10\n"))

    assert totals(engine) == [("alpha", "2025-01-01", 99, 9)]


def test_a_dry_run_says_the_same_and_writes_nothing(engine: Engine, tmp_path: Path) -> None:
    file = write(tmp_path / "x.csv", HEAD + "alpha,a,2025-01-01,10\nalpha,a,2025-01-01,10\nnew,a,2025-01-01,1\n")

    rehearsed = capacity("import", file, "--register-as", "mysql", "--dry-run", "--json")
    untouched = (samples(engine), rows(engine, "SELECT count(*) FROM instances"))
    done = capacity("import", file, "--register-as", "mysql", "--json")

    assert untouched == ([], [(2,)])
    assert counts(rehearsed.output) == counts(done.output)
    assert counts(done.output) == {"read": 3, "written": 2, "repeated": 1, "totals_written": 2}
    assert rows(engine, "SELECT name, db_type FROM instances WHERE id > 2") == [("new", "mysql")]


def test_a_parquet_file_is_read_like_a_csv(engine: Engine, tmp_path: Path) -> None:
    import datetime

    days = [datetime.date(2025, 1, 1) + datetime.timedelta(days=number) for number in range(3)]
    table = pa.table(
        {"server": ["alpha"] * 3, "database_name": ["a", "b", "ü"], "collected_date": days, "size_mb": [1, 2, None]}
    )
    pq.write_table(table, tmp_path / "x.parquet")

    done = capacity("import", str(tmp_path / "x.parquet"), "--json")

    assert counts(done.output) == {"read": 3, "written": 2, "bad": 1, "totals_written": 2}
    assert [row[1:4] for row in samples(engine)] == [("a", "2025-01-01", 1), ("b", "2025-01-02", 2)]


UNREADABLE = [
    ("", [], "is empty"),
    (
        "server,database,day\n",
        [],
        "The source has no column size_mb. Name them with --map size_mb=NAME",
    ),
    (
        "database,day,size_mb\n",
        [],
        "The source has no column server. Name them with --map server=NAME",
    ),
    ("instance_id,database,day,size_mb\n", [], "--map instance_id=NAME"),
    ("server,databse,day,size_mb\n", [], "Name them with --map database=databse. It has 'server', 'databse'"),
    ("server,Größe (MB),day,Database-Name\n", [], "It has 'server', 'Größe (MB)', 'day', 'Database-Name'"),
    (HEAD, ["--map", "size_mb=nope"], "the source has no such column"),
    (HEAD, ["--map", "colour=size_mb"], "there is no such column; known are server"),
    (HEAD, ["--map", "size_mb"], "is not of the form OURS=THEIRS"),
    (HEAD, ["--level", "fleet"], "'fleet' is not a level"),
    (HEAD, ["--register-as", "db2"], "'db2' is not an engine"),
    ("server,day,day,database,size_mb\n", [], "'day' occurs more than once"),
]


def test_unreadable_files_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    for content, arguments, reason in UNREADABLE:
        refused = capacity("import", write(tmp_path / "x.csv", content), *arguments)

        assert refused.exit_code == 2, content
        assert reason in refused.output, content


def test_positions_and_times_without_a_zone_are_of_the_configured_zone() -> None:
    reader = RowReader(layout_of(DATABASE), "gb", ZoneInfo("Europe/Berlin"), fixed_clock().now(), server="s")

    row = reader.read(7, [None, None, " a ", "2025-07-01", "1.5", "", None, "0.5", "2025-07-01T03:00:00"])

    assert row[:5] == (7, "s", None, " a ", row[4])  # type: ignore[index]
    assert row[5:9] == (1536, None, None, 512)  # type: ignore[index]
    assert str(row[13]) == "2025-07-01 01:00:00+00:00"  # type: ignore[index]


def test_a_quote_that_is_never_closed_does_not_swallow_the_rest_in_silence(engine: Engine, tmp_path: Path) -> None:
    lines = [f"alpha,db{number},2025-01-01,1\n" for number in range(100)]
    lines[10] = 'alpha,"db10,2025-01-01,1\n'

    failed = capacity("import", write(tmp_path / "x.csv", HEAD + "".join(lines)))

    assert failed.exit_code == 2
    assert 'cannot be read past row 10: the next row opens a quotation mark (") that nothing closes' in failed.output
    assert samples(engine) == []
