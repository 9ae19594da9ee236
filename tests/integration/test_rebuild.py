"""Generated edits of samples: redoing exactly the stale windows leaves what computing everything again would."""

from __future__ import annotations

from datetime import date, timedelta

from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from capacity_assets.aggregates.levels import LEVELS, SERVER_LEVELS
from capacity_assets.aggregates.service import AggregationService
from capacity_assets.database.tables import metadata
from tests.clocks import fixed_clock
from tests.databases import execute
from tests.fleet import add_database_sizes, add_instances, figures, sizes
from tests.ledger import LAST, compute_everything, redo
from tests.profiles import HISTORIES

# Edits reach as far as the last day that is computed.
FIRST = LAST - timedelta(days=60)
DAYS = st.integers(0, 40).map(lambda number: FIRST + timedelta(days=number))
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["add", "correct", "move", "delete", "import again", "nothing"]),
        st.integers(1, 2),
        st.sampled_from(["orders", "crm"]),
        DAYS,
        DAYS,
        st.integers(0, 10_000),
    ),
    min_size=1,
    max_size=6,
)


def _apply(engine: Engine, edit: tuple[str, int, str, date, date, int]) -> None:
    kind, instance_id, name, day, other, size = edit
    parameters = {"id": instance_id, "name": name, "day": day, "other": max(day, other), "size": size}
    upsert = (
        "INSERT INTO database_size_stats (instance_id, database_name, size_mb, collected_date) {values} "
        "ON CONFLICT (instance_id, database_name, collected_date) DO UPDATE SET size_mb = excluded.size_mb"
    )
    row = "instance_id = :id AND database_name = :name"
    statement = {
        "add": upsert.format(values="VALUES (:id, :name, :size, :day)"),
        "correct": f"UPDATE database_size_stats SET size_mb = :size WHERE {row} AND collected_date = :day",
        "move": f"UPDATE database_size_stats SET collected_date = :other WHERE {row} AND collected_date = :day "
        f"AND NOT EXISTS (SELECT FROM database_size_stats WHERE {row} AND collected_date = :other)",
        "delete": f"DELETE FROM database_size_stats WHERE {row} AND collected_date BETWEEN :day AND :other",
        "import again": upsert.format(
            values="SELECT :id, :name, :size + n, CAST(:day AS date) + n FROM generate_series(0, 20) n"
        ),
        "nothing": "SELECT 1",
    }[kind]
    with engine.begin() as connection:
        connection.execute(text(statement), {key: parameters[key] for key in parameters if f":{key}" in statement})


@hypothesis_settings(max_examples=max(2, HISTORIES // 12), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rounds=st.lists(EDITS, min_size=1, max_size=2))
def test_redoing_the_stale_windows_equals_computing_everything_again(
    engine: Engine, rounds: list[list[tuple[str, int, str, date, date, int]]]
) -> None:
    with engine.begin() as connection:
        names = ", ".join(table.name for table in metadata.sorted_tables)
        connection.execute(text(f"TRUNCATE {names} RESTART IDENTITY"))
    add_instances(engine, [1, 2])
    for instance_id in (1, 2):
        add_database_sizes(engine, sizes(instance_id, "orders", FIRST.isoformat(), range(100, 140)))
    service = AggregationService(engine, fixed_clock())
    compute_everything(service, first=FIRST)

    for edits in rounds:
        for edit in edits:
            _apply(engine, edit)
        redo(service)

    assert service.ledger.stale() == []
    kinds = {edit[0] for edits in rounds for edit in edits}
    after = {level.name: figures(engine, level) for level in LEVELS.values()}
    goes_away = bool(kinds & {"delete", "move"})
    # Deleted samples make no window stale. Groups follow the samples when they are computed, and protect no row.
    levels = SERVER_LEVELS if goes_away else LEVELS
    assert compute_everything(service, recompute=True, levels=levels, first=FIRST) == 0
    if not goes_away:
        # Where no sample went away nothing is protected, and a table built from nothing is the same.
        execute(engine, "TRUNCATE database_size_aggregations, instance_size_aggregations, group_size_aggregations")
        compute_everything(service, first=FIRST)
        assert {level.name: figures(engine, level) for level in LEVELS.values()} == after
