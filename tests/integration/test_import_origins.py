"""What measured imported samples is kept for each of them, and shown where a figure rests on it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import URL, Engine

from capacity_assets.collection.engines.base import DatabaseSize
from capacity_assets.collection.measuring import ProbeOutcome
from capacity_assets.collection.storing import store_outcomes
from tests.clocks import TODAY
from tests.command import capacity
from tests.databases import rows
from tests.importing import HEAD, samples, totals, write
from tests.pages import served_pages

pytestmark = pytest.mark.usefixtures("today", "alpha_and_beta")

YESTERDAY = TODAY - timedelta(days=1)
ORIGINS = """
SELECT server, database, origin, first_day::text, last_day::text FROM capacity_sample_origins ORDER BY 1, 2, 4
"""


def imported(folder: Path, *lines: str, options: tuple[str, ...] = ()) -> str:
    file = write(folder / "sizes.csv", HEAD + "\n".join(lines))
    return capacity("import", file, *options, columns=200).output


def test_each_imported_sample_has_its_origin_and_one_that_is_replaced_another(engine: Engine, tmp_path: Path) -> None:
    days = [f"alpha,orders,2025-07-0{day},{day}" for day in (1, 2, 3, 5)]
    imported(tmp_path, *days, "beta,shop,2025-07-01,1")
    imported(tmp_path, "alpha,orders,2025-07-02,2", "alpha,orders,2025-07-03,9", options=("--origin", "zabbix"))
    kept = rows(engine, ORIGINS)

    imported(
        tmp_path,
        "alpha,orders,2025-07-02,2",
        "alpha,orders,2025-07-03,9",
        options=("--origin", "zabbix", "--on-conflict", "replace"),
    )

    assert kept == [
        ("alpha", "orders", "file", "2025-07-01", "2025-07-03"),
        ("alpha", "orders", "file", "2025-07-05", "2025-07-05"),
        ("beta", "shop", "file", "2025-07-01", "2025-07-01"),
    ], "what was present or kept stays of the first import"
    assert rows(engine, ORIGINS) == [
        ("alpha", "orders", "file", "2025-07-01", "2025-07-02"),
        ("alpha", "orders", "zabbix", "2025-07-03", "2025-07-03"),
        ("alpha", "orders", "file", "2025-07-05", "2025-07-05"),
        ("beta", "shop", "file", "2025-07-01", "2025-07-01"),
    ]


def test_a_dry_run_claims_nothing(engine: Engine, tmp_path: Path) -> None:
    imported(tmp_path, "alpha,orders,2025-07-01,1", options=("--dry-run",))

    assert rows(engine, ORIGINS) == []


def test_a_sample_that_is_measured_later_on_its_day_is_imported_no_more(engine: Engine, tmp_path: Path) -> None:
    imported(tmp_path, f"alpha,orders,{YESTERDAY},1", f"alpha,orders,{TODAY},2", f"beta,shop,{TODAY},2")
    [(alpha,)] = rows(engine, "SELECT id FROM instances WHERE name = 'alpha'")

    store_outcomes(
        engine,
        TODAY,
        [
            ProbeOutcome(
                (DatabaseSize("orders", 2),), instance_id=int(str(alpha)), server="alpha", ended_at=datetime.now(tz=UTC)
            )
        ],
    )

    assert [row[:3] + row[4:] for row in rows(engine, ORIGINS)] == [
        ("alpha", "orders", "file", str(YESTERDAY)),
        ("beta", "shop", "file", str(TODAY)),
    ]


def test_explanations_and_pages_say_which_days_were_imported_and_from_where(
    engine: Engine, database: URL, tmp_path: Path
) -> None:
    imported(
        tmp_path, *(f"alpha,orders,2025-06-{day:02},{day}" for day in range(20, 31)), options=("--origin", "zabbix")
    )
    capacity("aggregate", "--period", "weekly", "--from", "2025-06-16", "--to", "2025-06-30")
    [(alpha,)] = rows(engine, "SELECT id FROM instances WHERE name = 'alpha'")
    asked = ("explain", "orders", "--period", "weekly", "--window", "2025-06-23")

    shown = capacity(*asked, columns=200).output
    document = json.loads(capacity(*asked, "--json").output)
    runway = capacity("explain", "orders", "--runway", columns=200).output
    with served_pages(database) as pages:
        page = pages.ask(f"/database?server={alpha}&name=orders&period=weekly").text
        server = pages.document(f"/server?server={alpha}&period=weekly")

    assert f"Imported: 7 days from trends of Zabbix, 23 Jun 2025 to 29 Jun 2025 ({tmp_path / 'sizes.csv'})" in shown
    assert "Imported: 11 days from trends of Zabbix, 20 Jun 2025 to 30 Jun 2025" in runway
    assert [(one["origin"], one["days"]) for one in document["imported"]] == [("zabbix", 7)]
    assert "Imported: 11 days from trends of Zabbix" in page
    assert [(one["origin"], one["first_day"], one["days"]) for one in server["origins"]] == [
        ("zabbix", "2025-06-20", 11)
    ]


def test_sizes_of_backups_are_those_of_a_server_of_their_own_which_no_sum_counts(
    engine: Engine, tmp_path: Path
) -> None:
    imported(tmp_path, "alpha,orders,2025-07-01,100")

    shown = imported(
        tmp_path,
        "alpha,orders,2025-07-01,40",
        "alpha,orders,2025-07-02,41",
        "alpha,orders,2025-07-05,42",
        "gamma,x,2025-07-02,1",
        options=("--origin", "sqlserver-backups"),
    )

    assert "unknown: gamma: 1 row" in shown
    assert [row[:4] for row in samples(engine)] == [
        ("alpha", "orders", "2025-07-01", 100),
        ("alpha backups", "orders", "2025-07-01", 40),
        ("alpha backups", "orders", "2025-07-02", 41),
        ("alpha backups", "orders", "2025-07-05", 42),
    ]
    gap = "2 days missing between 1 Jul 2025 and 5 Jul 2025; longest gap: 2 days from 3 Jul 2025"
    assert f"gap: alpha backups: {gap}" in shown, "other days of the server itself are no gaps"
    assert totals(engine)[0] == ("alpha", "2025-07-01", 100, 1)
    counted = rows(engine, "SELECT server, engine, counted_by FROM capacity_servers ORDER BY 1")
    assert counted == [("alpha", "mysql", None), ("alpha backups", "mysql", "alpha"), ("beta", "mysql", None)]
    assert ("alpha backups", "orders", "sqlserver-backups", "2025-07-01", "2025-07-02") in rows(engine, ORIGINS)


def test_numbers_of_servers_are_refused_for_sizes_of_backups_which_would_become_those_of_the_server(
    engine: Engine, tmp_path: Path
) -> None:
    [(alpha,)] = rows(engine, "SELECT id FROM instances WHERE name = 'alpha'")
    file = write(tmp_path / "backups.csv", f"id,database,day,size_mb\n{alpha},orders,2025-07-01,40\n")

    refused = capacity("import", file, "--origin", "sqlserver-backups", "--map", "instance_id=id", columns=200)

    assert refused.exit_code != 0
    assert "--origin sqlserver-backups finds servers by name, not by number" in refused.output
    assert samples(engine) == []


RECORDED = [
    # As sqlcmd and SQLcl save the results of the documented queries.
    (
        "sqlserver-backups",
        "server,database,day,size_bytes\nalpha,orders,2025-07-01,1073742848\nalpha,orders,2025-07-02,1074790400\n",
        ("alpha backups", "orders", "2025-07-02", 1025),
    ),
    (
        "oracle-awr",
        '"server","database","day","size_bytes"\n"alpha","USERS","2025-07-02",5368709120\n"alpha","SYSAUX","2025-07-02",1\n',
        ("alpha", "USERS", "2025-07-02", 5120),
    ),
    ("zabbix", "server,database,day,size_bytes\nbeta,shop,2025-07-02,2097152\n", ("beta", "shop", "2025-07-02", 2)),
]


@pytest.mark.parametrize(("origin", "content", "newest"), RECORDED)
def test_the_result_of_a_documented_query_is_imported_with_its_origin(
    engine: Engine, tmp_path: Path, origin: str, content: str, newest: tuple[str, str, str, int]
) -> None:
    file = write(tmp_path / "result.csv", content)

    done = capacity("import", file, "--origin", origin, "--map", "size_mb=size_bytes", "--unit", "bytes", columns=200)

    assert done.exit_code == 0, done.output
    assert samples(engine)[-1][:4] == newest
    assert {row[2] for row in rows(engine, ORIGINS)} == {origin}
