"""`capacity plan`: it says what `capacity aggregate` then does, and writes nothing."""

from __future__ import annotations

import json
from datetime import date

import pytest
from sqlalchemy import URL, Engine, text

from capacity_assets.aggregates.levels import DATABASE, INSTANCE
from tests.command import capacity
from tests.fleet import add_instances, add_overflowing_instance, stored


@pytest.mark.usefixtures("sample")
def test_plan_says_what_aggregate_then_does_and_writes_nothing(engine: Engine) -> None:
    asked = ("--period", "monthly", "--from", "2025-01-01", "--to", "2025-07-20", "--json")
    plan = json.loads(capacity("plan", *asked).output)

    assert stored(engine, DATABASE) == stored(engine, INSTANCE) == []
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM capacity_computed_windows")).scalar_one() == 0
    done = json.loads(capacity("aggregate", *asked).output)
    counts = ("processed_instances", "skipped_instances", "written_records", "unchanged_records", "protected_records")
    assert [[window[name] for name in counts] for window in plan["windows"]] == [
        [window[name] for name in counts] for window in done["windows"]
    ]
    assert sum(window["written_records"] for window in plan["windows"]) == 181


@pytest.mark.usefixtures("sample")
@pytest.mark.parametrize("overwrite", [False, True])
def test_plan_tells_protected_rows_from_those_that_overwrite_would_replace_and_remove(
    engine: Engine, *, overwrite: bool
) -> None:
    asked = ("--period", "monthly", "--from", "2025-03-01", "--to", "2025-03-31", "--level", "database")
    capacity("aggregate", *asked)
    with engine.begin() as connection:
        connection.execute(
            text("DELETE FROM database_size_stats WHERE instance_id = 1 AND collected_date = '2025-03-05'")
        )
        gone = "SELECT min(database_name) FROM database_size_stats WHERE instance_id = 1"
        connection.execute(
            text(
                f"DELETE FROM database_size_stats WHERE instance_id = 1 AND database_name = ({gone}) "
                "AND collected_date BETWEEN '2025-03-01' AND '2025-03-31'"
            )
        )
    before = stored(engine, DATABASE)
    how = ("--overwrite",) if overwrite else ()

    [planned] = json.loads(capacity("plan", *asked, *how, "--json").output)["windows"]
    table = capacity("plan", *asked, *how).output

    assert stored(engine, DATABASE) == before
    [done] = json.loads(capacity("aggregate", *asked, *how, "--json").output)["windows"]
    counts = ("written_records", "unchanged_records", "protected_records", "removed_records")
    assert [planned[name] for name in counts] == [done[name] for name in counts]
    assert bool(planned["protected_records"]) is not overwrite
    assert planned["removed_records"] == int(overwrite)
    assert table.splitlines()[-1] == "Dry run: nothing was changed."
    assert ("and remove 1" in table) is overwrite


@pytest.mark.usefixtures("settings")
def test_plan_names_the_server_whose_rows_could_not_be_stored(engine: Engine) -> None:
    add_instances(engine, [9])
    add_overflowing_instance(engine, 9, date(2025, 3, 1))

    result = capacity("plan", "--period", "monthly", "--from", "2025-03-01", "--to", "2025-03-01")

    assert result.exit_code == 1
    assert "would fail: server 9 (server-9)" in result.output
    assert stored(engine, INSTANCE) == []


@pytest.mark.usefixtures("sample")
def test_plan_of_many_windows_lists_those_with_work_only() -> None:
    asked = ("--period", "daily", "--from", "2025-03-01", "--to", "2025-04-30", "--level", "instance")
    capacity("aggregate", *asked[:4], "--to", "2025-04-29", *asked[6:])

    result = capacity("plan", *asked)

    assert "Not listed, because nothing would be written: 60 windows and levels." in result.output
    assert "2025-04-30" in result.output
    assert "2025-03-01" not in result.output


@pytest.mark.usefixtures("sample")
def test_plan_needs_no_right_to_write(engine: Engine, database: URL) -> None:
    asked = ("--period", "monthly", "--from", "2025-01-01", "--to", "2025-07-20")
    capacity("aggregate", *asked)
    with engine.begin() as connection:
        connection.execute(text(f'ALTER DATABASE "{database.database}" SET default_transaction_read_only = on'))

    result = capacity("plan", *asked)

    assert result.exit_code == 0, result.output
    assert "Rows: would write 0; 181 are up to date" in " ".join(result.output.split())
