"""Limits as people declare them, one by one and from files, and what is refused."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from capacity_assets.base.units import human_day
from capacity_assets.forecast import history
from capacity_assets.forecast.runway import compute_runways
from tests.clocks import TODAY
from tests.command import capacity
from tests.fleet import add_database_sizes, add_instances, sizes
from tests.runways import FIRST, add_ceiling, add_volume, declared, found

pytestmark = pytest.mark.usefixtures("growing_servers")
STEP_REMOVAL = ["steps", "remove", "server-1", "--day", "2025-01-01"]


def test_limits_are_listed_replaced_and_forgotten() -> None:
    declared("server-1", "orders", "--gb", "3.5", "--note", "contract")
    declared("server-1", "orders", "--gb", "5")
    declared("server-1", "--gb", "2000")

    listed = json.loads(capacity("limits", "list", "--json").output)
    removed = capacity("limits", "remove", "server-1", "orders")
    again = capacity("limits", "remove", "server-1", "orders")

    assert [(one["database"], one["limit_mb"], one["note"], one["source"]) for one in listed] == [
        (None, 2_048_000, None, "declared"),
        ("orders", 5120, None, "declared"),
    ]
    assert removed.exit_code == 0
    empty = capacity("limits", "remove", "server-1", "")
    assert (empty.exit_code, len(json.loads(capacity("limits", "list", "--json").output))) == (2, 1)
    assert (again.exit_code, "orders on server-1 has no limit." in again.output) == (2, True)


NO_LIMITS = [
    (
        ["server-1", "ordres", "--gb", "1"],
        "No database 'ordres' on server-1 was ever measured. Did you mean 'orders'?",
    ),
    (
        ["sever-2", "--gb", "1"],
        "No server 'sever-2' is registered. Did you mean 'server-2'? `capacity instances list` shows all.",
    ),
    (
        ["server-1", "--gb", "much"],
        "write 500 or 1.5. If it has no limit, write --unlimited, or unlimited in a file.",
    ),
    (["server-1", "--gb", "0"], "'0' is not a limit; it must be above zero"),
    (["server-1", "--gb", "nan"], "'nan' is not a number of GiB"),
    (["server-1", "--gb", "9e15"], "'9e15' is not a number of GiB from 0 to 8,589,934,591."),
    (["server-1"], "Give either --gb or --unlimited."),
    (["server-1", "--gb", "1", "--unlimited"], "Give either --gb or --unlimited."),
]


def test_invalid_limits_are_refused() -> None:
    for arguments, message in NO_LIMITS:
        refused = capacity("limits", "set", *arguments)

        assert refused.exit_code == 2, arguments
        assert message in refused.output, arguments
        assert json.loads(capacity("limits", "list", "--json").output) == [], arguments


def test_a_file_declares_all_its_limits_or_none(tmp_path: Path) -> None:
    good, bad, unknown = (tmp_path / f"{name}.csv" for name in ("limits", "bad", "unknown"))
    good.write_text(
        "server,database,limit_gb,note\nserver-1,,2000,disk\nserver-1,orders,1.5,\nserver-2,young,unlimited,\n"
    )
    bad.write_text("server,database,limit_gb\nserver-1,,2000\n,orders,1\nserver-1,still,few\n")

    rehearsed = capacity("limits", "import", str(good), "--dry-run")
    none_yet = json.loads(capacity("limits", "list", "--json").output)
    done = capacity("limits", "import", str(good))
    refused = capacity("limits", "import", str(bad))
    unknown.write_text("server,database,limit_gb\nserver-1,ordres,1\nserver-1,still,1\nserver-1,still,2\n")
    twice = capacity("limits", "import", str(unknown), "--dry-run")
    unknown.write_text("server,database,limit_gb\nserver-1,ordres,1\n")
    mistyped = capacity("limits", "import", str(unknown), "--dry-run")

    assert "More than one limit of still on server-1." in twice.output
    assert (mistyped.exit_code, "line 2: No database 'ordres' on server-1 was ever measured." in mistyped.output) == (
        2,
        True,
    )
    assert rehearsed.output.splitlines()[-1] == "Dry run: nothing was changed."
    assert none_yet == []
    assert f"3 limits declared from {good}." in done.output
    listed = json.loads(capacity("limits", "list", "--json").output)
    assert [(one["server"], one["database"], one["limit_mb"], one["note"]) for one in listed] == [
        ("server-1", None, 2_048_000, "disk"),
        ("server-1", "orders", 1536, None),
        ("server-2", "young", None, None),
    ]
    assert refused.exit_code == 2
    assert "line 3: server missing." in refused.output
    assert "line 4: 'few' is not a number of GiB" in refused.output


@pytest.mark.parametrize(
    ("declared_first", "tried", "listed_by"),
    [
        ([], ["limits", "set", "server-1", "--gb", "1"], "limits"),
        (["limits", "set", "server-1", "--gb", "1"], ["limits", "remove", "server-1"], "limits"),
        ([], ["steps", "add", "server-1", "--day", "2025-01-01", "--note", "purged"], "steps"),
        (["steps", "add", "server-1", "--day", "2025-01-01", "--note", "p"], STEP_REMOVAL, "steps"),
        ([], ["labels", "set", "server-1", "team=payments"], "labels"),
        (["labels", "set", "server-1", "team=payments"], ["labels", "remove", "server-1", "team"], "labels"),
        ([], ["prices", "set", "1", "--currency", "EUR"], "prices"),
        (["prices", "set", "1", "--currency", "EUR"], ["prices", "remove"], "prices"),
        ([], ["instances", "disable", "server-1"], "instances"),
        ([], ["instances", "remove", "server-1"], "instances"),
    ],
)
def test_a_dry_run_says_what_would_be_done_and_changes_nothing(
    declared_first: list[str], tried: list[str], listed_by: str
) -> None:
    if declared_first:
        assert capacity(*declared_first).exit_code == 0
    before = capacity(listed_by, "list", "--json").output

    said = capacity(*tried, "--dry-run")
    for_scripts = json.loads(capacity(*tried, "--dry-run", "--json").output)

    assert (said.exit_code, said.output.splitlines()[-1]) == (0, "Dry run: nothing was changed.")
    assert for_scripts["dry_run"] is True
    assert capacity(listed_by, "list", "--json").output == before


def test_a_misspelt_column_is_refused_with_the_nearest_one(tmp_path: Path) -> None:
    file = tmp_path / "limits.csv"
    file.write_text("server,databse,limit_gb\nserver-1,orders,1\n")

    refused = capacity("limits", "import", str(file))

    assert (refused.exit_code, "unknown column 'databse'. Did you mean 'database'?" in refused.output) == (2, True)


def test_texts_that_are_no_number_of_gib_are_refused() -> None:
    for wrong in ["abc", "nan", "Infinity", "-1"]:
        refused = capacity("runway", "--add-gb", wrong)

        assert refused.exit_code == 2, wrong
        assert f"'{wrong}' is not a number of GiB" in refused.output, wrong


def test_a_server_that_is_not_there_is_said_so() -> None:
    refused = capacity("runway", "server-9")

    assert refused.exit_code == 2
    assert "No server 'server-9' is registered." in refused.output


def test_a_server_without_history_takes_its_limit_along_when_it_is_removed(engine: Engine) -> None:
    add_instances(engine, [3])
    declared("server-3", "--gb", "10")

    removed = capacity("instances", "remove", "server-3")

    assert removed.exit_code == 0
    assert json.loads(capacity("limits", "list", "--json").output) == []


def test_a_limit_below_the_size_is_stored_and_said_to_be(tmp_path: Path) -> None:
    file = tmp_path / "limits.csv"
    file.write_text("server,database,limit_gb\nserver-1,,1\nserver-1,still,0.1\nserver-1,orders,9\n")

    said = capacity("limits", "set", "server-1", "orders", "--gb", "2").output.splitlines()
    imported = capacity("limits", "import", str(file)).output.splitlines()

    assert said[-2] == "note: orders on server-1 holds 2.9 GiB, more than its limit."
    assert imported[1:-1] == [
        "note: orders on server-1 was 2.0 GiB.",
        "note: server-1 holds 3.4 GiB, more than its limit.",
        "note: still on server-1 holds 500 MiB, more than its limit.",
    ]
    shown = capacity("runway", columns=200).output.splitlines()
    assert shown[2].split()[-7:-4] == ["full"] * 3


def test_one_database_of_a_server_is_asked_for_by_its_name() -> None:
    declared("server-1", "--gb", "4")

    shown = json.loads(capacity("runway", "server-1", "still", "--json").output)
    unknown = json.loads(capacity("runway", "server-2", "young", "--json").output)
    mistyped = capacity("runway", "server-1", "stil")
    said = (
        "No database 'stil' on server-1 was ever measured. Did you mean 'still'? `capacity runway server-1` lists its "
    )

    assert [(row["database"], row["limit_mb"]) for row in shown["rows"]] == [("still", 1082)]
    assert [(row["state"], row["history_days"]) for row in unknown["rows"]] == [("limit unknown", 10)]
    assert unknown["unknown_limits"] == 1
    assert (mistyped.exit_code, said in mistyped.output) == (2, True)


def test_what_holds_as_much_as_its_limit_is_full_whatever_its_history(engine: Engine) -> None:
    declared("server-2", "young", "--gb", "0.05")

    young = found(engine)["server-2", "young"]
    shown = capacity("runway", columns=200).output.splitlines()
    message = capacity("explain", "young", "--runway").output.splitlines()

    assert (young.state, young.early_day, young.probabilities) == ("full", TODAY, {7: 1, 30: 1, 90: 1, 365: 1})
    assert shown[2].split()[-7:] == ["full", "full", "full", "100", "%", "100", "%"]
    assert message[-2] == "It is full."


def test_too_little_history_says_how_much_there_is_and_is_needed() -> None:
    declared("server-2", "young", "--gb", "5")

    assert "10 of 57 days" in capacity("runway", columns=200).output
    assert "No date: 10 days of history; at least 57 are needed." in capacity("explain", "young", "--runway").output


def test_a_pace_that_is_much_faster_of_late_is_remarked(engine: Engine) -> None:
    add_database_sizes(
        engine, sizes(2, "fast", FIRST.isoformat(), [1000] * 140 + [1000 + 100 * day for day in range(60)])
    )
    declared("server-2", "fast", "--gb", "7")

    fast = found(engine)["server-2", "fast"]
    shown = capacity("runway", columns=200).output

    assert (fast.recent_mb_per_day, fast.sooner_day) == (100, TODAY + timedelta(days=3))
    assert fast.change_mb_per_day < 50
    assert (
        "note: fast on server-2. In the last 30 days it grew by +100 MiB per day: at that pace it is full on "
        f"{human_day(TODAY + timedelta(days=3))}." in shown
    )


NO_FILES = [
    (
        b"PK\x03\x04\x14\x00\x06",
        "is the workbook of a spreadsheet program, or another archive. Save",
    ),
    (b"server,db,limit_gb,day,note,volume,total_gb,free_gb\na,b,1,2025-01-01,x,y,2,1\n", "has an unknown column '"),
    ("server,database\nä,b\n".encode("latin-1"), "is not UTF-8 text. Save it as UTF-8."),
    (b"", "is empty, or begins with an empty line."),
    (b"server,database,limit_gb\n", "has no line below its headings."),
]


def test_a_file_with_a_misspelt_heading_another_encoding_or_nothing_in_it_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file.csv"
    for command in ["limits", "steps", "volumes"]:
        for content, message in NO_FILES:
            file.write_bytes(content)

            refused = capacity(command, "import", str(file), columns=250)

            assert (refused.exit_code, message in refused.output) == (2, True), refused.output


def test_files_that_cannot_extend_any_more_are_no_limit(engine: Engine) -> None:
    """Their size is what is allocated: full or not is not measured."""
    add_ceiling(engine, "orders", None, limit_mb=3014)

    every = compute_runways(engine, TODAY)

    assert [row.state for row in every.rows] == []
    assert every.unknown_limits == 3


def test_a_volume_with_too_little_history_hides_no_database_that_fills_it(engine: Engine) -> None:
    add_volume(engine, 1, "/fast", TODAY, 9000, 60)
    add_volume(engine, 1, "/other", TODAY, 9000, 8000)
    add_ceiling(engine, "orders", ["/fast"])
    declared("server-1", "--gb", "1000")

    lines = capacity("runway", columns=200).output.splitlines()

    assert ["server-1", "orders"] in [line.split()[:2] for line in lines[2:4]]


def test_a_volume_that_fills_stands_for_the_databases_on_it(engine: Engine) -> None:
    for ago in range(200):
        add_volume(engine, 1, "/data", TODAY - timedelta(days=ago), 9000, 60 + 30 * ago)
    for name in ("orders", "still"):
        add_ceiling(engine, name, ["/data"], limit_mb=100_000)

    shown = capacity("runway", columns=200).output

    assert "disk /data" in shown
    assert "orders" not in shown


def test_several_live_totals_of_a_day_are_added_up(engine: Engine) -> None:
    declared("server-1", "--gb", "100")
    with engine.begin() as connection:
        connection.execute(text("DROP INDEX uq_instance_size_stats_instance_date"))
        connection.execute(
            text(
                "INSERT INTO instance_size_stats (instance_id, total_size_mb, database_count, collected_date) "
                "VALUES (1, 1000, 1, :day)"
            ),
            {"day": TODAY},
        )

    rows = found(engine)

    assert rows["server-1", None].size_mb == 4514
    assert rows["server-1", "orders"].headroom_mb == 102_400 - 4514


def test_a_large_fleet_is_read_in_batches(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "BATCH", 1)
    scope = history.HistoryScope(TODAY, every=True)
    with engine.connect() as connection, history.open_history_reader(connection, scope) as reader:
        batches = list(reader.series("database"))

    assert [[row.name for row in batch.subjects] for batch in batches] == [["orders"], ["still"], ["young"]]
