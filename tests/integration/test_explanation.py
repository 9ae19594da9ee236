"""`capacity explain`: figures traced to samples agree with the stored ones if these are fresh, and say why if not."""

from __future__ import annotations

import json
from datetime import date

import pytest
from click.testing import Result
from sqlalchemy import Engine, text

from capacity_assets.aggregates.explanation import ExplainedSubject, explanation_of
from capacity_assets.aggregates.levels import DATABASE, SERVER_LEVELS
from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.periods import PERIODS
from capacity_assets.base.settings import Settings
from tests.clocks import TODAY, fixed_clock
from tests.command import capacity
from tests.computing import compute_windows
from tests.fleet import add_database_sizes, add_instance_sizes, add_instances, load_sample, sizes, stored, totals


def explained(*arguments: str) -> Result:
    return capacity(*arguments, columns=160)


@pytest.mark.nightly("explains every row")
def test_the_explanation_of_every_row_of_the_sample_agrees_with_it(engine: Engine, service: AggregationService) -> None:
    load_sample(engine)
    for name, first in (("weekly", date(2025, 6, 1)), ("monthly", date(2025, 1, 1)), ("quarterly", date(2025, 1, 1))):
        compute_windows(service, name, first, date(2025, 7, 20))

    explained = 0
    for level in SERVER_LEVELS.values():
        for row in stored(engine, level):
            period = PERIODS[str(row["period_type"])]
            subject = ExplainedSubject(row["instance_id"], "server", row.get("database_name"))  # type: ignore[arg-type]
            explanation = explanation_of(engine, subject, period, period.window_of(row["period_start"]), TODAY)  # type: ignore[arg-type]
            assert explanation.verdict == "Every stored figure is what its samples give.", (row, explanation.figures)
            explained += 1
    assert explained > 300


def two_months_of_orders(engine: Engine) -> None:
    add_instances(engine, [1, 2])
    add_database_sizes(engine, sizes(1, "orders", "2025-01-01", [100] * 31 + [None] * 3 + [150] * 24 + [151]))
    add_instance_sizes(engine, totals(1, "2025-01-01", [(100, 1)] * 31 + [(150, 1)] * 28))
    service = AggregationService(engine, fixed_clock())
    compute_windows(service, "monthly", date(2025, 1, 1), date(2025, 2, 28))


PREPARED = {"orders": two_months_of_orders}


@pytest.fixture
def orders(settings: Settings) -> Settings:
    """100 MB in January; 150 MB in February, but for three days without a sample."""
    return settings


@pytest.mark.usefixtures("orders")
def test_the_arithmetic_is_shown_with_the_days_that_are_missing() -> None:
    output = " ".join(explained("explain", "orders", "--period", "monthly", "--window", "2025-02-10").output.split())

    assert "orders on server-1, monthly window 2025-02-01 to 2025-02-28" in output
    assert "Days without a sample: 2025-02-01, 2025-02-02, 2025-02-03" in output
    assert "avg_size_mb 3,751 / 25 = 150.04, rounded down 150 150" in output
    assert "3,751 / 25 - 3,100 / 31 = 50.04, cut toward zero 50 50" in output
    assert "size_change_percent 50.04 / 100 x 100, half away from zero 50.04 50.04" in output
    assert "Every stored figure is what its samples give." in output


@pytest.mark.usefixtures("orders")
def test_a_server_as_a_whole_is_explained_as_json() -> None:
    document = json.loads(
        capacity("explain", "--server", "server-1", "--period", "monthly", "--window", "2025-02-01", "--json").output
    )

    figures = {figure["name"]: figure for figure in document["figures"]}
    assert figures["total_size_change_mb"]["computed"] == figures["total_size_change_mb"]["stored"] == 50
    assert all(figure["agrees"] for figure in figures.values())
    assert len(document["samples"]) == 28
    assert document["missing_days"] == []


@pytest.mark.usefixtures("orders")
def test_a_corrected_sample_is_told_from_a_lost_one(engine: Engine) -> None:
    asked = ("explain", "orders", "--period", "monthly", "--window", "2025-02-01")
    with engine.begin() as connection:
        connection.execute(text("UPDATE database_size_stats SET size_mb = 500 WHERE collected_date = '2025-02-28'"))
    corrected = explained(*asked).output
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM database_size_stats WHERE collected_date = '2025-02-28'"))
    lost = explained(*asked).output

    assert "the stored values differ from the current samples" in " ".join(corrected.split())
    assert "avg_size_mb" in corrected
    assert "150 !" in corrected
    assert "largest of 25 values, on 2025-02-28" in corrected
    assert "15 days" in corrected
    assert "2025-02-15" in explained(*asked, "--all").output
    assert "built from 25 samples; 24 remain." in " ".join(lost.split())


@pytest.mark.usefixtures("orders")
def test_a_retired_server_is_said_to_be_one(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE instances SET is_active = false WHERE id = 1"))

    output = explained("explain", "orders", "--period", "monthly", "--window", "2025-02-01").output

    assert "The server is not active: it is no longer aggregated, and its stored rows are kept." in output
    assert "Every stored figure is what its samples give." in output


@pytest.mark.usefixtures("orders")
def test_a_window_that_was_not_computed_and_one_without_samples_are_told_apart(engine: Engine) -> None:
    add_database_sizes(engine, sizes(1, "orders", "2025-03-01", [100]))

    assert "not computed yet" in explained("explain", "orders", "--period", "monthly", "--window", "2025-03-01").output
    assert (
        "There are no samples" in explained("explain", "orders", "--period", "monthly", "--window", "2025-05-01").output
    )


UNEXPLAINED = [
    (("Orders", "--period", "monthly"), "There is no database 'Orders' among the registered servers"),
    (("ordres", "--period", "monthly"), "match exactly. Did you mean 'orders'?"),
    (
        ("bothh", "--server", "server-2", "--period", "monthly"),
        "mean 'both'? `capacity runway server-2` lists its databases.",
    ),
    (("--server", "serwer-2", "--period", "monthly"), "Did you mean 'server-2'? `capacity instances list` shows all."),
    (("orders", "--server", "server-2", "--period", "monthly"), "database 'orders' on server 'server-2'"),
    (("--server", "nobody", "--period", "monthly"), "There is no server 'nobody' among the registered servers"),
    (("orders", "--period", "hourly"), "known: daily, weekly, monthly, quarterly, yearly.\n"),
    (("orders", "--period", "montly"), "Did you mean 'monthly'?"),
    (
        ("orders", "--period", "monthly", "--window", "2031-01-01"),
        "There is no month yet that contains 1 Jan 2031; the",
    ),
    (("orders", "--server", "server-9", "--period", "monthly"), "There is no server 'server-9'"),
    (("orders", "--period", "monthly", "--window", "2024-02-01"), "is outside the monthly partition range"),
    (("--period", "monthly"), "Name a database, a server with --server, or a group"),
    (("both", "--period", "monthly"), "2 servers have a database named 'both': server-1, server-2."),
    (("orders", "--period", "monthly", "--window", "2025-02-30"), "is not a day of the calendar"),
]


@pytest.mark.usefixtures("orders")
def test_rows_that_cannot_be_explained_are_refused_with_what_to_do(engine: Engine) -> None:
    for instance_id in (1, 2):
        add_database_sizes(engine, sizes(instance_id, "both", "2025-02-01", [1]))
    for arguments, said in UNEXPLAINED:
        result = explained("explain", *arguments)

        assert result.exit_code == 2, arguments
        assert said in result.output, arguments


def test_log_sizes_that_were_never_measured_are_unknown_and_not_zero(
    engine: Engine, service: AggregationService
) -> None:
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", "2025-01-01", [0] * 31 + [10] * 28))
    compute_windows(service, "monthly", date(2025, 1, 1), date(2025, 2, 28))

    monthly = PERIODS["monthly"]
    february = monthly.window_of(date(2025, 2, 1))
    figures = {
        figure.name: figure
        for figure in explanation_of(
            engine, ExplainedSubject(1, "server-1", "orders"), monthly, february, TODAY
        ).figures
    }

    assert (figures["avg_log_size_mb"].computed, figures["log_size_change_mb"].computed) == (None, None)
    assert figures["size_change_percent"].computed is None
    assert (figures["trend_direction"].computed, figures["trend_direction"].how) == ("growing", "from 0")
    assert all(figure.agrees for figure in figures.values())
    assert DATABASE.figures == tuple(figures)


@pytest.mark.usefixtures("orders")
def test_a_server_that_is_not_active_is_not_said_to_be_computed_some_day(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE instances SET is_active = false WHERE id = 1"))
    add_database_sizes(engine, sizes(1, "orders", "2025-03-01", [100]))

    output = explained("explain", "orders", "--period", "monthly", "--window", "2025-03-01").output

    assert "nothing will be: the server is not active" in output


@pytest.mark.usefixtures("orders")
def test_a_database_whose_samples_are_gone_is_known_by_its_aggregates(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM database_size_stats"))

    output = explained("explain", "orders", "--period", "monthly", "--window", "2025-02-01").output

    assert "There are no samples in this window; the stored row was kept." in output
