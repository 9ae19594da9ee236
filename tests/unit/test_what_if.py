"""The assumptions in the address of What if and in the file that it shows are the same, whatever the form contains."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st

from capacity_assets.base.errors import ValidationError
from capacity_assets.forecast.results import FORECAST, FULL
from capacity_assets.forecast.scenarios import Scenario, scenario_of_file, scenario_of_tables
from capacity_assets.ownership.scenario_results import (
    RunwayChange,
    ScenarioResult,
    ScenarioRunway,
    answer_of,
    in_order_of_dates,
)
from capacity_assets.web.forecasts import ASSUMPTION_NAMES, tables_of, toml_of
from capacity_assets.web.reader import PageQuery

TEXTS = st.one_of(
    st.decimals(0, 2000, allow_nan=False).map(str),
    st.sampled_from(["1.2", "007", "1e3", "0.12345678901234567890", " 5 ", "team=payments", "2027-02-01", ""]),
    st.dates(date(2000, 1, 1), date(2100, 1, 1)).map(str),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20),
)
ADDRESSES = st.dictionaries(
    st.sampled_from([name for names in ASSUMPTION_NAMES.values() for name in names]), TEXTS, max_size=8
)


def outcome(read: Callable[[], Scenario]) -> Scenario | str:
    try:
        return read()
    except ValidationError as error:
        return str(error)


@given(ADDRESSES)
@example({"growth_factor": "0.1", "growth_label": 'a="quoted"\\\x7f\n'})
@example({"purge_gb": "120", "purge_server": "db-7", "purge_database": "\U0001f600", "purge_day": "2027-01-15"})
def test_the_file_that_a_page_shows_reads_as_its_address(values: dict[str, str]) -> None:
    tables = tables_of(PageQuery("/scenario", values, ("team",), date(2025, 7, 20)))
    if not tables:
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "assumed.toml"
        file.write_text(toml_of(tables))
        from_file = outcome(lambda: scenario_of_file(file))

    from_address = outcome(lambda: scenario_of_tables(tables))
    if isinstance(from_address, Scenario):
        assert from_file == from_address
    else:
        # It may repeat a number, which TOML writes in another way.
        assert isinstance(from_file, str)


TODAY = date(2026, 11, 30)


def changed(name: str, before: int | None, after: int | None, state: str = FORECAST) -> RunwayChange:
    """A disk and in how many days it is full, without and with the assumptions; None: not within a year."""

    def runway(days: int | None, state: str) -> ScenarioRunway:
        day = None if days is None else TODAY + timedelta(days)
        return ScenarioRunway(state, 100, TODAY, day, None, 0.1, 0.9, "")

    return RunwayChange("db-7", "volume", name, name, TODAY, 90, runway(before, FORECAST), runway(after, state))


def test_what_is_full_first_with_the_assumptions_is_named_first_and_listed_first() -> None:
    late = changed("later, with an early day that is near", 200, 240)
    near, gone = changed("near", 20, 170), changed("no longer", 10, None)
    listed = in_order_of_dates([late, gone, changed("never", None, None), near, changed("full", 90, None, FULL)])

    assert [one.name for one in listed] == ["full", "near", late.name, "no longer", "never"]
    assert "First, near on db-7 is full by 19 May 2027 instead of 20 Dec 2026." in answer_of(
        ScenarioResult(TODAY, (), in_order_of_dates([late, near]), 0, ())
    )
