"""Measuring real PostgreSQL servers: what is stored is what they say, and what goes wrong has its reason."""

from __future__ import annotations

import logging

import pytest

from capacity_assets.collection.servers import Server, register_servers
from tests.clocks import TODAY
from tests.collecting import PASSWORD, YESTERDAY, Collection, at, failures
from tests.databases import execute
from tests.ledger import recorded
from tests.servers import PostgresServer, silent_socket

pytestmark = pytest.mark.usefixtures("collection_login", "measured_databases")


MIB = 1024**2


def test_what_is_stored_is_what_the_server_says_and_the_total_is_its_sum(
    measured_postgres: PostgresServer, collection: Collection
) -> None:
    measured_postgres.execute(
        "CREATE TABLE filler AS SELECT repeat('x', 100) FROM generate_series(1, 50000)", database="orders"
    )
    register_servers(collection.engine, [at(measured_postgres, collection)])

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


def test_a_collection_that_removes_no_sample_leaves_every_window_as_it_was_computed(
    measured_postgres: PostgresServer, collection: Collection
) -> None:
    """A trigger records a DELETE of no row, too, and the whole history then counted as stale."""
    register_servers(collection.engine, [at(measured_postgres, collection)])

    collection.collect()
    collection.collect(again=True)
    assert recorded(collection.engine, "deleted") == []

    measured_postgres.execute('DROP DATABASE "Ünïcødé; --"')
    collection.collect(again=True)
    assert recorded(collection.engine, "deleted") == [("database_size_stats", TODAY)]
    assert set(collection.sizes("pg")) == {"orders"}
    assert collection.total("pg") == (measured_postgres.sizes()["orders"] // MIB, 1)


def test_databases_created_dropped_and_renamed_between_two_days_are_so_on_their_days(
    measured_postgres: PostgresServer, collection: Collection
) -> None:
    register_servers(collection.engine, [at(measured_postgres, collection)])
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
    register_servers(collection.engine, [at(measured_postgres, collection)])

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
    register_servers(collection.engine, [at(measured_postgres, collection)])

    collection.collect()
    assert set(collection.sizes("pg")) == {"orders", "Ünïcødé; --", "closed", "a_template"}

    service = collection.service(excluded="postgresql=ord*|template*")
    summary = service.collect(TODAY, again=True)
    assert set(collection.sizes("pg")) == {"postgres", "Ünïcødé; --", "closed", "a_template"}
    assert summary.left_out == {"orders": 1, "template0": 1, "template1": 1}
    register_servers(collection.engine, [at(measured_postgres, collection, sizing="statistics")])
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
    register_servers(collection.engine, [at(measured_postgres, collection, sizing="statistics")])

    summary = collection.collect()

    assert failures(summary) == {}
    measured_sizes, exact = collection.sizes("pg"), measured_postgres.sizes()
    assert set(measured_sizes) == set(exact)
    assert exact["orders"] // MIB - 3 <= measured_sizes["orders"] <= exact["orders"] // MIB


def test_a_wrong_password_fails_its_server_alone_and_none_is_in_a_log_a_table_or_a_summary(
    measured_postgres: PostgresServer, collection: Collection, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    wrong = collection.password("wrong", "guess-W0rd")
    register_servers(
        collection.engine,
        [
            at(measured_postgres, collection),
            at(measured_postgres, collection, "locked", password_from=wrong),
            at(measured_postgres, collection, "elsewhere", port=1, password_from=wrong),
            at(measured_postgres, collection, "nowhere", password_from="env:NO_PASSWORD"),  # noqa: S106 -- where it is
        ],
    )

    summary = collection.collect()

    found = failures(summary)
    assert {name: kind for name, (kind, _) in found.items()} == {
        "locked": "login",
        "elsewhere": "unreachable",
        "nowhere": "credential",
    }
    assert "password authentication failed" in found["locked"][1]
    assert "Fix the login" in found["locked"][1]
    assert "the variable NO_PASSWORD is missing or empty" in found["nowhere"][1]
    assert collection.total("locked") is None
    assert set(collection.sizes("pg")) == {"orders", "Ünïcødé; --"}
    assert summary.status == "failed"
    assert "3 servers failed and have no sample of this day. The other server is stored. Run" in summary.message
    tables = ("instances", "capacity_collection_targets", "capacity_collection_attempts", "database_size_stats")
    stored = [str(collection.rows(f"SELECT * FROM {table}")) for table in tables]
    everything = "\n".join([*stored, caplog.text, str(summary), str(summary.to_dict())])
    assert "secret:wrong" in everything
    assert PASSWORD not in everything
    assert "guess-W0rd" not in everything


def test_a_server_that_accepts_and_never_answers_is_failed_and_holds_up_nobody(
    measured_postgres: PostgresServer, collection: Collection
) -> None:
    with silent_socket() as port:
        silent = [at(measured_postgres, collection, f"silent-{number}", port=port) for number in range(4)]
        register_servers(collection.engine, [at(measured_postgres, collection), *silent])
        servers: list[str] = []

        summary = collection.service(workers=1).collect(
            TODAY, progress=lambda outcome, _left: servers.append(outcome.server)
        )

    assert servers[0] == "pg"
    assert {kind for kind, _ in failures(summary).values()} == {"timeout"}
    assert len(summary.failures) == 4
    assert collection.total("pg") is not None


def test_a_refused_connection_and_an_unknown_host_are_unreachable(
    measured_postgres: PostgresServer, collection: Collection
) -> None:
    register_servers(
        collection.engine,
        [
            at(measured_postgres, collection, "off", port=1),
            at(measured_postgres, collection, "nowhere", tls="off"),
        ],
    )
    register_servers(
        collection.engine,
        [Server("nowhere", "postgresql", "no-such-host.invalid", username="x", tls="off")],
    )

    found = failures(collection.collect())

    assert {name: kind for name, (kind, _) in found.items()} == {"off": "unreachable", "nowhere": "unreachable"}
    assert "Check that it runs" in found["off"][1]


def test_a_revoked_right_fails_the_whole_server_and_names_the_database(
    measured_postgres: PostgresServer, collection: Collection
) -> None:
    register_servers(collection.engine, [at(measured_postgres, collection)])
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
    register_servers(
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


@pytest.mark.parametrize(("port", "refused", "failure"), [(1, "false", "unreachable"), (None, "true", "unexpected")])
def test_a_failed_attempt_after_a_good_one_leaves_the_sample_and_says_so(
    measured_postgres: PostgresServer, collection: Collection, port: int | None, refused: str, failure: str
) -> None:
    register_servers(collection.engine, [at(measured_postgres, collection)])
    collection.collect()
    before = collection.sizes("pg")
    register_servers(collection.engine, [at(measured_postgres, collection, port=port or measured_postgres.port)])
    execute(collection.engine, f"ALTER TABLE database_size_stats ADD CHECK (NOT {refused}) NOT VALID")

    summary = collection.collect(again=True)

    assert (summary.failed_instances, summary.kept_instances, summary.everything_failed) == (1, 1, False)
    assert "1 server failed; its sample from an earlier run today is kept. Run" in summary.message
    assert (summary.database_count, summary.total_size_mb) == (2, sum(before.values()))
    assert collection.sizes("pg") == before
    assert collection.rows("SELECT status, failure, attempts FROM capacity_collection_attempts") == [
        ("collected", failure, 2)
    ]
    assert collection.service().count_remaining(TODAY) == 0
