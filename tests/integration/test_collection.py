"""Measuring real PostgreSQL servers: what is stored is what they say, and what goes wrong has its reason."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from capacity_assets.clock import Clock
from capacity_assets.collection import fleet
from capacity_assets.collection.engines import postgresql
from capacity_assets.collection.engines.installed import engine_named
from capacity_assets.collection.registry import register, set_active
from capacity_assets.collection.results import ProbeOutcome
from capacity_assets.collection.servers import Server
from capacity_assets.foundation.errors import ValidationError
from capacity_assets.foundation.lock_errors import SAMPLES, LockHeldError
from tests.clocks import SHANGHAI, TODAY
from tests.collecting import PASSWORD, Collection, at, failures
from tests.servers import PostgresServer, postgres_offers_tls, postgres_server, silent_socket

pytestmark = pytest.mark.usefixtures("collection_login", "measured_databases")
YESTERDAY = TODAY - timedelta(days=1)
MIB = 1024**2


def test_what_is_stored_is_what_the_server_says_and_the_total_is_its_sum(
    measured_postgres: PostgresServer, collection: Collection
) -> None:
    measured_postgres.execute(
        "CREATE TABLE filler AS SELECT repeat('x', 100) FROM generate_series(1, 50000)", database="orders"
    )
    register(collection.engine, [at(measured_postgres, collection)])

    summary = collection.collect()

    said = measured_postgres.sizes()
    total_mb = sum(said.values()) // MIB
    assert collection.sizes("pg") == {name: size // MIB for name, size in said.items()}
    assert set(said) == {"orders", "Ünïcødé; --"}
    assert said["orders"] > said["Ünïcødé; --"] > 0
    assert collection.total("pg") == (total_mb, 2), "the sum of bytes, rounded down once"
    assert dict(collection.rows("SELECT database_name, size_bytes FROM database_size_stats")) == said
    assert collection.rows("SELECT total_size_bytes FROM instance_size_stats") == [(sum(said.values()),)]
    assert (summary.processed_instances, summary.failed_instances, summary.database_count) == (1, 0, 2)
    assert summary.total_size_mb == total_mb
    assert summary.left_out == {"postgres": 1, "template0": 1, "template1": 1}
    assert collection.rows("SELECT DISTINCT data_size_mb = size_mb, log_size_mb FROM database_size_stats") == [
        (True, None)
    ]


def test_databases_created_dropped_and_renamed_between_two_days_are_so_on_their_days(
    measured_postgres: PostgresServer, collection: Collection
) -> None:
    register(collection.engine, [at(measured_postgres, collection)])
    collection.collect(YESTERDAY)
    measured_postgres.execute(
        'ALTER DATABASE "orders" RENAME TO "orders_2"', 'DROP DATABASE "Ünïcødé; --"', 'CREATE DATABASE "new"'
    )

    collection.collect(TODAY)

    assert set(collection.sizes("pg", YESTERDAY)) == {"orders", "Ünïcødé; --"}
    assert set(collection.sizes("pg", TODAY)) == {"orders_2", "new"}
    assert collection.total("pg", TODAY) == (sum(measured_postgres.sizes().values()) // MIB, 2)


def test_many_small_databases_lose_nothing_by_rounding(
    measured_postgres: PostgresServer, collection: Collection
) -> None:
    """Rounded down one by one, twenty databases of 7.4 MiB would be 140 of 148."""
    measured_postgres.execute(*(f"CREATE DATABASE small_{number}" for number in range(20)))
    register(collection.engine, [at(measured_postgres, collection)])

    collection.collect()

    exact = sum(measured_postgres.sizes().values())
    assert collection.total("pg") == (exact // MIB, 22)
    assert exact // MIB - sum(collection.sizes("pg").values()) >= 3
    measured_postgres.execute(*(f"DROP DATABASE small_{number}" for number in range(20)))


def test_closed_databases_and_templates_count_and_system_databases_are_left_out_and_named(
    measured_postgres: PostgresServer, collection: Collection
) -> None:
    measured_postgres.execute(
        'CREATE DATABASE "closed" ALLOW_CONNECTIONS false', 'CREATE DATABASE "a_template" IS_TEMPLATE true'
    )
    register(collection.engine, [at(measured_postgres, collection)])

    collection.collect()
    assert set(collection.sizes("pg")) == {"orders", "Ünïcødé; --", "closed", "a_template"}

    service = collection.service(excluded="postgresql=ord*|template*")
    summary = service.collect(TODAY, again=True)
    assert set(collection.sizes("pg")) == {"postgres", "Ünïcødé; --", "closed", "a_template"}
    assert summary.left_out == {"orders": 1, "template0": 1, "template1": 1}
    register(collection.engine, [at(measured_postgres, collection, sizing="statistics")])
    assert failures(collection.collect(again=True)) == {}
    assert set(collection.sizes("pg")) == {"orders", "Ünïcødé; --", "closed", "a_template"}
    measured_postgres.execute('DROP DATABASE "closed"')
    measured_postgres.execute('ALTER DATABASE "a_template" IS_TEMPLATE false', 'DROP DATABASE "a_template"')


def test_statistics_are_a_cheaper_way_to_nearly_the_same_sizes(
    measured_postgres: PostgresServer, collection: Collection
) -> None:
    measured_postgres.execute(
        "CREATE TABLE filler AS SELECT g, repeat('x', 100) AS t FROM generate_series(1, 100000) g",
        "CREATE INDEX ON filler (g)",
        "VACUUM ANALYZE",
        database="orders",
    )
    register(collection.engine, [at(measured_postgres, collection, sizing="statistics")])

    summary = collection.collect()

    assert failures(summary) == {}
    told, exact = collection.sizes("pg"), measured_postgres.sizes()
    assert set(told) == set(exact)
    assert exact["orders"] // MIB - 3 <= told["orders"] <= exact["orders"] // MIB


def test_a_wrong_password_fails_its_server_alone_and_is_told_with_what_to_do(
    measured_postgres: PostgresServer, collection: Collection
) -> None:
    wrong = collection.password("wrong", "guess-W0rd")
    register(
        collection.engine,
        [at(measured_postgres, collection), at(measured_postgres, collection, "locked", password_from=wrong)],
    )

    summary = collection.collect()

    kind, reason = failures(summary)["locked"]
    assert kind == "login"
    assert "password authentication failed" in reason
    assert "Fix the login" in reason
    assert collection.total("locked") is None
    assert set(collection.sizes("pg")) == {"orders", "Ünïcødé; --"}
    assert summary.status == "failed"
    assert "1 failed and has no sample of this day; the others are stored" in summary.message


def test_no_password_is_in_a_log_a_table_or_a_summary(
    measured_postgres: PostgresServer, collection: Collection, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    wrong = collection.password("wrong", "guess-W0rd")
    register(
        collection.engine,
        [
            at(measured_postgres, collection),
            at(measured_postgres, collection, "locked", password_from=wrong),
            at(measured_postgres, collection, "elsewhere", port=1, password_from=wrong),
        ],
    )

    summary = collection.collect()

    tables = ("instances", "capacity_collection_targets", "capacity_collection_attempts", "database_size_stats")
    stored = [str(collection.rows(f"SELECT * FROM {table}")) for table in tables]
    everything = "\n".join([*stored, caplog.text, str(summary), str(summary.to_dict())])
    assert "secret:wrong" in everything
    assert PASSWORD not in everything
    assert "guess-W0rd" not in everything


def test_a_password_that_is_missing_is_a_failure_that_names_where_it_was_looked_for(
    measured_postgres: PostgresServer, collection: Collection
) -> None:
    register(collection.engine, [at(measured_postgres, collection, password_from="env:NO_PASSWORD")])  # noqa: S106

    kind, reason = failures(collection.collect())["pg"]

    assert kind == "credential"
    assert "the variable NO_PASSWORD is missing or empty" in reason


def test_a_server_that_accepts_and_never_answers_is_failed_and_holds_up_nobody(
    measured_postgres: PostgresServer, collection: Collection
) -> None:
    with silent_socket() as port:
        silent = [at(measured_postgres, collection, f"silent-{number}", port=port) for number in range(4)]
        register(collection.engine, [at(measured_postgres, collection), *silent])
        told: list[str] = []

        summary = collection.service(workers=1).collect(
            TODAY, progress=lambda outcome, _left: told.append(outcome.server)
        )

    assert told[0] == "pg"
    assert {kind for kind, _ in failures(summary).values()} == {"timeout"}
    assert len(summary.failures) == 4
    assert collection.total("pg") is not None


def test_a_refused_connection_and_an_unknown_host_are_unreachable(
    measured_postgres: PostgresServer, collection: Collection
) -> None:
    register(
        collection.engine,
        [
            at(measured_postgres, collection, "off", port=1),
            at(measured_postgres, collection, "nowhere", tls="off"),
        ],
    )
    register(
        collection.engine,
        [Server("nowhere", "postgresql", "no-such-host.invalid", username="x", tls="off")],
    )

    found = failures(collection.collect())

    assert {name: kind for name, (kind, _) in found.items()} == {"off": "unreachable", "nowhere": "unreachable"}
    assert "Is it up" in found["off"][1]


def test_a_revoked_right_fails_the_whole_server_and_names_the_database(
    measured_postgres: PostgresServer, collection: Collection
) -> None:
    register(collection.engine, [at(measured_postgres, collection)])
    collection.collect(YESTERDAY)
    measured_postgres.execute(
        "REVOKE pg_read_all_stats FROM capacity_probe", 'REVOKE CONNECT ON DATABASE "orders" FROM PUBLIC'
    )
    try:
        summary = collection.collect(TODAY)
    finally:
        measured_postgres.execute("GRANT pg_read_all_stats TO capacity_probe")

    kind, reason = failures(summary)["pg"]
    assert kind == "rights"
    assert "its login may not measure orders: pg_read_all_stats is missing" in reason
    assert collection.sizes("pg", TODAY) == {}
    assert collection.total("pg", TODAY) is None
    assert collection.total("pg", YESTERDAY) is not None


def test_a_second_run_of_the_day_measures_only_the_servers_that_failed(
    measured_postgres: PostgresServer, collection: Collection
) -> None:
    right = collection.password("late", "not yet")
    register(
        collection.engine,
        [at(measured_postgres, collection), at(measured_postgres, collection, "late", password_from=right)],
    )
    first = collection.collect()
    collection.password("late", PASSWORD)

    second = collection.collect()
    third = collection.collect()

    assert (first.processed_instances, first.failed_instances, first.skipped_instances) == (1, 1, 0)
    assert (second.processed_instances, second.failed_instances, second.skipped_instances) == (1, 0, 1)
    assert (third.processed_instances, third.failed_instances, third.skipped_instances) == (0, 0, 2)
    assert third.status == "skipped"
    attempts = collection.rows(
        "SELECT i.name, a.status, a.failure, a.attempts FROM capacity_collection_attempts a "
        "JOIN instances i ON i.id = a.instance_id ORDER BY 1"
    )
    assert attempts == [("late", "collected", None, 2), ("pg", "collected", None, 1)]


def test_measuring_again_on_the_same_day_forgets_what_was_dropped_meanwhile(
    measured_postgres: PostgresServer, collection: Collection
) -> None:
    register(collection.engine, [at(measured_postgres, collection)])
    collection.collect()
    measured_postgres.execute('DROP DATABASE "Ünïcødé; --"')

    collection.collect(again=True)

    assert set(collection.sizes("pg")) == {"orders"}
    assert collection.total("pg") == (measured_postgres.sizes()["orders"] // MIB, 1)


def test_a_failed_attempt_after_a_good_one_leaves_the_sample_and_says_so(
    measured_postgres: PostgresServer, collection: Collection
) -> None:
    register(collection.engine, [at(measured_postgres, collection)])
    collection.collect()
    before = collection.sizes("pg")
    register(collection.engine, [at(measured_postgres, collection, port=1)])

    summary = collection.collect(again=True)

    assert (summary.failed_instances, summary.kept_instances, summary.everything_failed) == (1, 1, False)
    assert "but for 1 with that of an earlier run" in summary.message
    assert (summary.database_count, summary.total_size_mb) == (2, sum(before.values()))
    assert collection.sizes("pg") == before
    assert collection.rows("SELECT status, failure, attempts FROM capacity_collection_attempts") == [
        ("collected", "unreachable", 2)
    ]
    assert collection.service().left(TODAY) == 0


def test_measuring_again_without_a_change_touches_no_row(
    measured_postgres: PostgresServer, collection: Collection
) -> None:
    register(collection.engine, [at(measured_postgres, collection)])
    collection.collect()
    query = "SELECT xmin::text FROM database_size_stats UNION ALL SELECT xmin::text FROM instance_size_stats ORDER BY 1"
    before = collection.rows(query)

    collection.collect(again=True)

    assert collection.rows(query) == before


def test_a_day_is_a_day_of_the_configured_zone_whatever_zone_server_and_machine_are_in(
    measured_postgres: PostgresServer, collection: Collection
) -> None:
    measured_postgres.execute("ALTER ROLE capacity_probe SET timezone = 'America/Los_Angeles'")
    register(collection.engine, [at(measured_postgres, collection)])
    # Half past midnight in Shanghai, still the day before everywhere west of it.
    moment = datetime(2025, 7, 19, 16, 30, tzinfo=UTC)

    collection.service(Clock(SHANGHAI, now=lambda: moment)).collect(TODAY)

    assert set(collection.sizes("pg", TODAY)) == {"orders", "Ünïcødé; --"}
    assert collection.sizes("pg", YESTERDAY) == {}
    with pytest.raises(ValidationError, match=r"2025-07-20 has not begun"):
        collection.service(Clock(ZoneInfo("UTC"), now=lambda: moment)).collect(TODAY)


def test_a_past_day_is_refused_before_anything_is_asked(
    measured_postgres: PostgresServer, collection: Collection
) -> None:
    register(collection.engine, [at(measured_postgres, collection)])

    with pytest.raises(ValidationError, match=r"2025-07-19 is over, and a server can only say how large .* now"):
        collection.service().collect(YESTERDAY)

    assert collection.rows("SELECT count(*) FROM capacity_collection_attempts") == [(0,)]


def test_servers_whose_turn_comes_after_midnight_fail_instead_of_lending_the_next_day_to_this_one(
    measured_postgres: PostgresServer, collection: Collection
) -> None:
    register(collection.engine, [at(measured_postgres, collection, f"pg-{number}") for number in range(3)])
    noon = datetime(2025, 7, 20, 4, 0, tzinfo=UTC)
    moments = iter([noon] * 5)

    def now() -> datetime:
        return next(moments, noon + timedelta(days=1))

    summary = collection.service(Clock(SHANGHAI, now=now), workers=1).collect(TODAY)

    assert summary.processed_instances + summary.failed_instances == 3
    assert summary.failed_instances > 0
    assert {kind for kind, _ in failures(summary).values()} == {"day over"}
    assert collection.rows("SELECT DISTINCT collected_date FROM capacity_collection_attempts") == [(TODAY,)]


@pytest.fixture
def doomed() -> Iterator[PostgresServer]:
    """A server of a test's own, to be killed."""
    with postgres_server() as running:
        running.execute(engine_named("postgresql").grants.replace("'...'", f"'{PASSWORD}'"))
        yield running


def test_a_server_that_dies_while_it_is_measured_is_failed_and_its_history_kept(
    doomed: PostgresServer, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(collection.engine, [at(doomed, collection)])
    doomed.execute("CREATE DATABASE mine")
    collection.collect(YESTERDAY)
    monkeypatch.setattr(postgresql, "QUERY", f"SELECT q.* FROM pg_sleep(60), ({postgresql.QUERY}) q")
    killer = threading.Timer(1.0, doomed.kill)
    killer.start()

    summary = collection.collect(TODAY)
    killer.join()
    doomed.start()

    kind, reason = failures(summary)["pg"]
    assert kind == "broken off", reason
    assert collection.sizes("pg", TODAY) == {}
    assert set(collection.sizes("pg", YESTERDAY)) == {"mine"}


def test_a_server_that_freezes_while_it_is_measured_is_left_behind(
    doomed: PostgresServer, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "STATEMENT_SECONDS", 1.0)
    monkeypatch.setattr(fleet, "GRACE_SECONDS", 0.5)
    monkeypatch.setattr(postgresql, "QUERY", f"SELECT q.* FROM pg_sleep(60), ({postgresql.QUERY}) q")
    doomed.execute("CREATE DATABASE mine")
    register(collection.engine, [at(doomed, collection)])
    freezer = threading.Timer(0.7, doomed.freeze)
    freezer.start()
    began = time.monotonic()

    summary = collection.collect(TODAY)
    freezer.join()

    assert failures(summary)["pg"][0] == "timeout"
    assert time.monotonic() - began < 30


def test_a_statement_that_takes_too_long_is_a_timeout_that_names_the_cheaper_way(
    measured_postgres: PostgresServer, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "STATEMENT_SECONDS", 0.5)
    monkeypatch.setattr(postgresql, "QUERY", f"SELECT q.* FROM pg_sleep(60), ({postgresql.QUERY}) q")
    register(collection.engine, [at(measured_postgres, collection)])

    kind, reason = failures(collection.collect())["pg"]

    assert kind == "timeout"
    assert "sizing = statistics" in reason


def test_what_was_measured_before_an_interruption_is_kept_and_the_rest_comes_with_the_next_run(
    measured_postgres: PostgresServer, collection: Collection
) -> None:
    register(collection.engine, [at(measured_postgres, collection, f"pg-{number}") for number in range(4)])

    def interrupt(_outcome: ProbeOutcome, left: int) -> None:
        if left == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collection.service(workers=1).collect(TODAY, progress=interrupt)
    kept = collection.rows("SELECT count(*) FROM instance_size_stats")
    rest = collection.collect()

    assert kept == [(2,)]
    assert (rest.processed_instances, rest.skipped_instances) == (2, 2)


def test_two_collections_at_once_are_refused(measured_postgres: PostgresServer, collection: Collection) -> None:
    register(collection.engine, [at(measured_postgres, collection)])
    service = collection.service()

    with (
        service.locks.job_lock(SAMPLES),
        pytest.raises(LockHeldError, match=r"The samples are being written by .* Nothing of the samples was written"),
    ):
        service.collect(TODAY)


def test_disabled_servers_are_not_measured_and_cannot_be_asked_for(
    measured_postgres: PostgresServer, collection: Collection
) -> None:
    register(collection.engine, [at(measured_postgres, collection), at(measured_postgres, collection, "old")])
    set_active(collection.engine, ["old"], active=False)

    assert collection.collect().total_instances == 1
    with pytest.raises(ValidationError, match="'old' is disabled"):
        collection.service().collect(TODAY, ["old"])


def test_how_long_a_server_took_decides_how_long_it_may_take(
    measured_postgres: PostgresServer, collection: Collection
) -> None:
    register(collection.engine, [at(measured_postgres, collection)])
    collection.collect(YESTERDAY)
    collection.rows("SELECT 1")
    with collection.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE capacity_collection_attempts SET measure_seconds = 20, connect_seconds = 2")

    history, _ = collection.service()._history(TODAY)

    [one] = history.values()
    assert (one.usual_seconds, one.statement_seconds, one.patience_seconds) == (22, 110, 44)
    assert (one.connect_seconds(5), one.connect_seconds(15)) == (10, 15)
    assert not one.failed_last


def test_sizes_that_did_not_come_in_time_get_twice_as_long_the_next_time(collection: Collection) -> None:
    register(collection.engine, [Server("slow", "postgresql", "127.0.0.1"), Server("silent", "mysql", "127.0.0.1")])
    with collection.engine.begin() as connection:
        for day, status, connected in ((3, "collected", 1.0), (2, "failed", 1.0), (1, "failed", None)):
            connection.exec_driver_sql(
                "INSERT INTO capacity_collection_attempts (collected_date, instance_id, status, failure, attempts, "
                "connect_seconds, measure_seconds) SELECT date '2025-07-20' - %s, i.id, %s, 'timeout', 2, "
                "CASE WHEN i.name = 'slow' THEN CAST(%s AS double precision) END, 9 FROM instances i",
                (day, status, connected),
            )

    history, _ = collection.service()._history(TODAY)

    slow, silent = history[1], history[2]
    assert (slow.usual_seconds, slow.timeouts, slow.statement_seconds) == (10, 2, 50 * 2**2)
    assert (silent.timeouts, silent.connect_seconds(5)) == (0, 10)


def test_a_database_without_an_encoding_tells_its_names_as_text(
    measured_postgres: PostgresServer, collection: Collection
) -> None:
    measured_postgres.execute("CREATE DATABASE plain ENCODING 'SQL_ASCII' TEMPLATE template0")
    register(collection.engine, [at(measured_postgres, collection, database="plain")])

    assert failures(collection.collect()) == {}
    assert set(collection.sizes("pg")) == {"orders", "Ünïcødé; --", "plain"}


def test_a_reason_that_no_text_could_hold_spoils_nobody_elses_day(
    measured_postgres: PostgresServer, collection: Collection
) -> None:
    """A server's greeting is whatever is at the other end: here MySQL's refusal with a NUL in it."""
    refusal = b"\xff\x6a\x04Host\0 is not allowed\x07" + b"x" * 5000
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(len(refusal).to_bytes(3, "little") + b"\0" + refusal)

        threading.Thread(target=answer, daemon=True).start()
        odd = Server("odd", "mysql", "127.0.0.1", port=int(listener.getsockname()[1]), username="u")
        register(collection.engine, [at(measured_postgres, collection), odd])
        found = failures(collection.collect())

    assert list(found) == ["odd"]
    assert "Host  is not allowed" in found["odd"][1]
    assert len(found["odd"][1]) < 1200
    assert collection.total("pg") is not None


def test_a_server_whose_sizes_the_tables_refuse_fails_alone(
    measured_postgres: PostgresServer, collection: Collection
) -> None:
    register(collection.engine, [at(measured_postgres, collection, f"pg-{number}") for number in range(5)])
    with collection.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE database_size_stats ADD CONSTRAINT no_third CHECK (instance_id <> 3)")

    summary = collection.collect()

    [(server, (kind, reason))] = failures(summary).items()
    assert (server, kind, summary.processed_instances) == ("pg-2", "unexpected", 4)
    assert "cannot be stored" in reason
    assert "no_third" in reason
    assert collection.total("pg-2") is None


@pytest.mark.skipif(not postgres_offers_tls(), reason="this PostgreSQL was built without TLS")
def test_tls_is_used_verified_and_refused_as_registered(
    measured_postgres: PostgresServer, collection: Collection
) -> None:
    files = measured_postgres.certificates
    ways = {
        "require": {"tls": "require"},
        "verified": {"tls": "verify-full", "tls_ca": str(files.ca)},
        "another-ca": {"tls": "verify-full", "tls_ca": str(files.other_ca)},
        "missing-ca": {"tls": "verify-full", "tls_ca": "/nowhere/ca.pem"},
    }
    register(collection.engine, [at(measured_postgres, collection, name, **way) for name, way in ways.items()])

    summary = collection.collect()

    assert {name: kind for name, (kind, _) in failures(summary).items()} == {"another-ca": "tls", "missing-ca": "setup"}
    assert collection.total("verified") is not None


def test_a_server_without_tls_is_not_spoken_to_in_clear_when_tls_is_registered(collection: Collection) -> None:
    with postgres_server(tls=False) as plain:
        plain.execute(engine_named("postgresql").grants.replace("'...'", f"'{PASSWORD}'"))
        register(collection.engine, [at(plain, collection, tls="require")])

        kind, reason = failures(collection.collect())["pg"]

    assert kind == "tls"
    assert "SSL" in reason
