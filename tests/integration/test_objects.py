"""Tables and indexes of real PostgreSQL databases: listed, bounded, and adding up to the database to the byte."""

from __future__ import annotations

from datetime import timedelta

import pytest

from capacity_assets.collection import storing
from capacity_assets.collection.engines import postgresql
from capacity_assets.collection.servers import register_servers
from capacity_assets.ownership.labels import Label, declare_labels
from capacity_assets.reading.table_growth import compared_samples, list_objects
from tests.clocks import TODAY
from tests.collecting import OBJECTS_THAT_ADD_UP, YESTERDAY, Collection, at
from tests.servers import PostgresServer

pytestmark = pytest.mark.usefixtures("collection_login", "measured_databases")

TABLES = (
    "CREATE TABLE audit (id int PRIMARY KEY, what text)",
    "INSERT INTO audit SELECT i, repeat('x', 200) FROM generate_series(1, 20000) i",
    "CREATE INDEX audit_what ON audit (what, id)",
    "CREATE TABLE documents (body text)",
    "ALTER TABLE documents ALTER body SET STORAGE EXTERNAL",
    "INSERT INTO documents SELECT repeat('y', 100000) FROM generate_series(1, 20)",
    "CREATE TABLE events (day date, what text, id int) PARTITION BY RANGE (day)",
    "CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM ('2025-01-01') TO ('2026-01-01')",
    "CREATE TABLE events_2 PARTITION OF events FOR VALUES FROM ('2026-01-01') TO ('2027-01-01')",
    "CREATE INDEX events_id ON events (id)",
    "INSERT INTO events SELECT date '2025-12-20' + i % 20, repeat('z', 100), i FROM generate_series(1, 10000) i",
    'CREATE SCHEMA "Lager; --"',
    "CREATE MATERIALIZED VIEW \"Lager; --\".stock AS SELECT repeat('s', 500) FROM generate_series(1, 5000)",
)

OURS = ("public", "Lager; --")
# Otherwise counters may be written after the session has ended.
FLUSH = "SELECT pg_stat_force_next_flush()"


def test_tables_and_indexes_are_listed_exactly_and_add_up_to_the_database(
    measured_postgres: PostgresServer, collection: Collection
) -> None:
    measured_postgres.execute(*TABLES, database="orders")
    register_servers(collection.engine, [at(measured_postgres, collection)])

    summary = collection.collect_objects()

    found = collection.objects("orders")
    with measured_postgres.admin(database="orders") as connection:
        said = dict(
            connection.execute(
                "SELECT c.oid::regclass::text, pg_table_size(c.oid) FROM pg_class c "
                "WHERE c.relname IN ('audit', 'audit_pkey', 'audit_what', 'documents', 'stock')"
            ).fetchall()
        )
        parts, index_parts = connection.execute(
            "SELECT sum(pg_table_size(oid)) FILTER (WHERE relkind = 'r'), sum(pg_table_size(oid)) FILTER "
            "(WHERE relkind = 'i') FROM pg_class WHERE relname LIKE 'events\\_%' AND relispartition"
        ).fetchone()
    assert (summary.object_databases, summary.unknown_objects) == (2, ())
    assert found["public.audit"] == ("table", said["audit"], True)
    assert found["public.audit_what"] == ("index", said["audit_what"], True)
    assert found["public.audit_pkey"] == ("index", said["audit_pkey"], True)
    assert found["public.documents"][1] == said["documents"] > 2_000_000, "with TOAST"
    assert found["public.events"] == ("table", parts, True), "partitions under their parent"
    assert found["public.events_id"] == ("index", index_parts, True)
    assert found["Lager; --.stock"] == ("table", said['"Lager; --".stock'], True)
    assert not {"public.events_1", "public.events_2"} & set(found)
    assert collection.rows(OBJECTS_THAT_ADD_UP) == [(2,)], "of each database, to the byte"
    assert collection.rows(
        "SELECT table_name, index_bytes FROM object_size_stats WHERE object_name IN ('audit', 'audit_what') ORDER BY 1"
    ) == [("", said["audit_pkey"] + said["audit_what"]), ("audit", None)]


def test_rows_that_were_written_are_counted_so_that_a_table_to_which_nobody_wrote_is_known(
    measured_postgres: PostgresServer, collection: Collection
) -> None:
    measured_postgres.execute(*TABLES, FLUSH, database="orders")
    register_servers(collection.engine, [at(measured_postgres, collection)])
    collection.collect_objects(YESTERDAY - timedelta(days=7))
    changes = ("DELETE FROM audit WHERE id <= 10", "UPDATE events SET what = 'w' WHERE id <= 5")
    measured_postgres.execute(*changes, "SELECT count(*) FROM documents", FLUSH, database="orders")
    collection.collect_objects(YESTERDAY)

    with collection.engine.connect() as connection:
        days = compared_samples(connection, YESTERDAY, YESTERDAY)
        found, every = (
            [one for one in list_objects(connection, days, order=order, shown=1000).objects if one.schema in OURS]
            for order in ("unwritten", "name")
        )
    sizes = {one.name: one.after_bytes for one in every}
    counted = {one.label: one.counted_bytes for one in found}
    assert counted == {"public.documents": sizes["documents"], "Lager; --.stock": sizes["stock"]}
    written = {one.name: one.written_rows for one in every}
    assert (written["audit"], written["events"], written["documents"], written["audit_what"]) == (10, 5, 0, None)


def test_a_locked_table_keeps_its_estimate_and_a_database_that_is_closed_is_named(
    measured_postgres: PostgresServer, collection: Collection
) -> None:
    measured_postgres.execute(*TABLES, "ANALYZE", database="orders")
    measured_postgres.execute('ALTER DATABASE "Ünïcødé; --" ALLOW_CONNECTIONS false')
    register_servers(collection.engine, [at(measured_postgres, collection)])

    with measured_postgres.admin(database="orders") as connection, connection.transaction():
        connection.execute("LOCK TABLE audit")
        summary = collection.collect_objects()
        [(pages,)] = connection.execute("SELECT sum(relpages) FROM pg_class WHERE relname = 'audit'").fetchall()

    found = collection.objects("orders")
    kind, size_bytes, is_exact = found["public.audit"]
    assert (kind, is_exact) == ("table", False)
    assert pages * 8192 <= size_bytes < pages * 8192 + 100_000
    assert found["public.documents"][2] is True
    [reason] = summary.unknown_objects
    assert reason.startswith("pg: Ünïcødé; --: ")
    assert reason.endswith("is not currently accepting connections")
    assert collection.rows(OBJECTS_THAT_ADD_UP) == [(1,)]
    assert len(collection.sizes("pg")) == 2, "its size is known all the same"


def test_only_the_largest_and_the_fastest_growing_are_listed_and_the_others_are_one_row(
    measured_postgres: PostgresServer, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storing, "LARGEST_LISTED", 2)
    monkeypatch.setattr(storing, "FASTEST_LISTED", 1)
    measured_postgres.execute(*TABLES, "CREATE TABLE small (what text)", "CREATE TABLE idle ()", database="orders")
    register_servers(collection.engine, [at(measured_postgres, collection)])

    collection.collect_objects(YESTERDAY - timedelta(days=7))
    first = collection.objects("orders", YESTERDAY - timedelta(days=7))
    measured_postgres.execute("INSERT INTO small SELECT 'x' FROM generate_series(1, 1000)", database="orders")
    collection.collect_objects(YESTERDAY)
    not_due = collection.collect_objects(TODAY)
    again = collection.collect_objects(YESTERDAY, again=True)

    assert {name for name, (kind, *_) in first.items() if kind in ("table", "index")} == {
        "public.audit",
        "public.audit_what",
    }
    assert set(collection.objects("orders", YESTERDAY)) == {*first, "public.small"}, "grew most, however small"
    others = (
        "SELECT object_count, size_bytes > 0 FROM object_size_stats WHERE kind = 'others' AND database_name = 'orders'"
    )
    [(count, _), (after, is_positive)] = collection.rows(f"{others} ORDER BY collected_date")
    assert (after, is_positive) == (count - 1, True)
    assert (not_due.object_databases, collection.objects("orders", TODAY)) == (0, {}), "a week has not passed"
    assert again.object_databases == 2
    assert collection.rows(OBJECTS_THAT_ADD_UP) == [(4,)]


def test_objects_are_measured_of_the_servers_that_are_named_alone(
    measured_postgres: PostgresServer, collection: Collection
) -> None:
    register_servers(
        collection.engine,
        [at(measured_postgres, collection, name) for name in ("named", "labelled", "other")],
    )
    declare_labels(collection.engine, [Label("labelled", None, "environment", "production")], TODAY)

    assert collection.collect().object_databases == 0
    collection.collect_objects(TODAY + timedelta(days=1), ("named", "environment=production"))

    measured = "SELECT DISTINCT i.name FROM object_size_stats o JOIN instances i ON i.id = o.instance_id ORDER BY 1"
    assert collection.rows(measured) == [("labelled",), ("named",)]


def test_many_tables_are_read_in_one_statement_and_stored_in_a_bounded_number_of_rows(
    measured_postgres: PostgresServer, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql, "MOST_EXACT", 5)
    many = "DO $$ BEGIN FOR n IN 1..1500 LOOP EXECUTE format('CREATE TABLE t%s AS SELECT 1 AS a', n); END LOOP; END $$"
    measured_postgres.execute(many, database="orders")
    register_servers(collection.engine, [at(measured_postgres, collection)])

    collection.collect_objects()

    found = collection.objects("orders")
    assert len(found) == 52, "the 50 largest, which nothing grew beside, the others and the unexplained"
    assert sum(is_exact for *_, is_exact in found.values()) == 5
    [(count,)] = collection.rows(
        "SELECT object_count FROM object_size_stats WHERE kind = 'others' AND database_name = 'orders'"
    )
    assert count > 1500
    assert collection.rows(OBJECTS_THAT_ADD_UP) == [(2,)]
