"""The sentence that a page begins with, in each state."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta
from typing import Any

import pytest

from capacity_assets.base.settings import DEFAULT_THRESHOLDS, Thresholds
from capacity_assets.forecast.results import LEAST_HISTORY_DAYS
from capacity_assets.reading.forecasts import FreeCapacity, Severity, StoredRunway, severity_of
from capacity_assets.reading.risks import PageSubject, headline_of, next_to_fill
from capacity_assets.web.rendering import headline as rendered

DAY = date(2026, 11, 29)
GIB = 1024


def runway(subject: str = "database", name: str = "billing", **values: Any) -> StoredRunway:
    """A forecast without a date."""
    given: dict[str, Any] = {
        "server_id": 7,
        "server": "db-7",
        "subject": subject,
        "name": name,
        "state": "forecast",
        "last_day": DAY,
        "size_mb": 90 * GIB,
        "limit_mb": 100 * GIB,
        "headroom_mb": 10 * GIB,
        "binds": "own limit",
        "limit_source": "declared",
        "full_early": None,
        "full_middle": None,
        "full_late": None,
        "probability_7_days": 0.0,
        "probability_30_days": 0.0,
        "probability_90_days": 0.0,
        "probability_365_days": 0.0,
        "change_mb_per_day": 1.0,
        "recent_mb_per_day": None,
        "history_days": 400,
        "is_outdated": False,
        "stands_for_itself": True,
        "volumes": None,
        "allocated_mb": None,
    }
    return StoredRunway(**{**given, **values})


FILLING = {"full_early": date(2027, 2, 17), "full_middle": date(2027, 3, 7), "full_late": date(2027, 3, 17)}
DISK = runway("volume", "E:\\", **FILLING)
BILLING = PageSubject("db-7", "database", "billing", last_measured=DAY)
SERVER = PageSubject("db-7", "server", last_measured=DAY)
VOLUME = PageSubject("db-7", "volume", "E:\\", last_measured=DAY)


def test_a_database_begins_with_the_disk_that_fills_before_it() -> None:
    found = headline_of(BILLING, runway(), DISK, DEFAULT_THRESHOLDS)

    assert found.text == (
        "Disk E:\\ full by 7 Mar 2027 (17 Feb to 17 Mar 2027). On its own it would not fill within a year."
    )
    assert (found.day, found.subject, found.name, found.linked) == (date(2027, 3, 7), "volume", "E:\\", "Disk E:\\")
    assert str(rendered(found)) == (
        '<a href="/volume?server=7&amp;name=E%3A%5C">Disk E:\\</a> full by 7 Mar 2027 (17 Feb to 17 Mar 2027). '
        "On its own it would not fill within a year."
    )


def test_a_database_has_its_own_later_date_beside_that_of_the_disk() -> None:
    own = runway(full_early=date(2027, 4, 1), full_middle=date(2027, 5, 1))

    assert headline_of(BILLING, own, DISK, DEFAULT_THRESHOLDS).text.endswith(
        "On its own it would be full by 1 May 2027."
    )


def test_a_disk_and_a_server_have_their_own_date_without_their_name() -> None:
    assert headline_of(VOLUME, DISK, None, DEFAULT_THRESHOLDS).text == "Full by 7 Mar 2027 (17 Feb to 17 Mar 2027)."
    whole = runway("server", "", **{**FILLING, "full_late": None})
    assert (
        headline_of(SERVER, whole, whole, DEFAULT_THRESHOLDS).text
        == "Full by 7 Mar 2027 (17 Feb 2027 to beyond Nov 2027)."
    )


def test_a_server_names_the_database_that_fills_first_and_its_disk() -> None:
    days = {"full_early": date(2026, 12, 17), "full_middle": date(2026, 12, 19), "full_late": date(2027, 1, 2)}
    found = headline_of(SERVER, None, runway(**days, probability_30_days=0.6), DEFAULT_THRESHOLDS, also=DISK)

    assert found.text == (
        "Database billing full by 19 Dec 2026 (17 Dec 2026 to 2 Jan 2027). "
        "Disk E:\\ full by 7 Mar 2027 (17 Feb to 17 Mar 2027)."
    )
    assert found.severity is Severity.ACT


@pytest.mark.parametrize(
    ("about", "own", "said"),
    [
        (BILLING, runway(), "Not expected to fill within a year."),
        (
            BILLING,
            runway(full_early=date(2027, 10, 3)),
            "Not expected to fill within a year. 10 % probability by 3 Oct 2027.",
        ),
        (
            BILLING,
            runway(state="full", size_mb=100 * GIB, full_middle=DAY, full_early=DAY),
            "Full: 100.0 GiB of 100.0 GiB.",
        ),
        (
            BILLING,
            runway(state="limit unknown", limit_mb=None),
            "No limit known, so no fill date. Declare one: `capacity limits set db-7 billing --gb GIB`.",
        ),
        (
            SERVER,
            runway("server", "", state="limit unknown", limit_mb=None),
            "No limit known, so no fill date. Declare one: `capacity limits set db-7 --gb GIB`.",
        ),
        (BILLING, runway(state="unlimited", limit_mb=None), "Declared as unlimited, so there is no fill date."),
        (
            BILLING,
            runway(state="too little history", history_days=45),
            "Too little history for a fill date: 45 of 57 days measured, 12 more needed.",
        ),
        (BILLING, None, "No forecast yet. `capacity runway --issue` issues one now; `capacity up` does it daily."),
        (PageSubject("db-7", "server"), None, "Never measured, so there is no forecast."),
        (PageSubject("db-7", "server", is_active=False), DISK, "Out of service, so there is no forecast."),
        (
            PageSubject("db-7", "server", is_active=False, last_measured=DAY),
            None,
            "Out of service, so there is no forecast; last measured on 29 Nov 2026.",
        ),
        (PageSubject("db-7", "server", is_active=None), None, "No longer registered, so there is no forecast."),
        (
            PageSubject("db-7", "server", last_measured=DAY - timedelta(days=57)),
            None,
            "Not measured since 3 Oct 2026, so there is no forecast.",
        ),
    ],
)
def test_every_state_has_its_words(about: PageSubject, own: StoredRunway | None, said: str) -> None:
    assert headline_of(about, own, own, DEFAULT_THRESHOLDS, issued=DAY).text == said


def test_without_any_forecast_the_command_that_brings_them_is_named() -> None:
    assert headline_of(BILLING, None, None, DEFAULT_THRESHOLDS, issued=None).text == (
        "No forecast yet. `capacity runway --issue` issues one now; `capacity up` does it daily."
    )
    assert "<code>capacity up</code>" in rendered(next_to_fill(None, DEFAULT_THRESHOLDS, issued=None))


def test_a_name_with_blanks_is_quoted_in_the_command() -> None:
    about = PageSubject("db-7", "database", "two words")

    found = headline_of(about, runway(state="limit unknown"), None, DEFAULT_THRESHOLDS)

    assert "`capacity limits set db-7 'two words' --gb GIB`" in found.text


def test_the_fleet_names_what_fills_next_on_which_server() -> None:
    found = next_to_fill(DISK, DEFAULT_THRESHOLDS, issued=DAY)

    assert found.text == "Next to fill: disk E:\\ on db-7, full by 7 Mar 2027 (17 Feb to 17 Mar 2027)."

    def without_date(*, judged: int, young: int, unlimited: int) -> str:
        free = FreeCapacity(None, unlimited, 0, judged, young, 9 if young else None, DAY)
        return next_to_fill(None, DEFAULT_THRESHOLDS, issued=DAY, free=free).text

    assert without_date(judged=1, young=0, unlimited=1) == (
        "Nothing with a known limit is expected to fill within a year. 1 database has no known limit."
    )
    assert without_date(judged=1, young=2, unlimited=0) == (
        "Nothing with a known limit is expected to fill within a year. "
        "2 databases have too little history: at most 9 of 57 days measured."
    )
    assert without_date(judged=0, young=1, unlimited=0) == (
        "No fill date is known yet. 1 database has too little history: 9 of 57 days measured."
    )


@pytest.mark.parametrize(
    ("probability", "severity"), [(None, None), (0.199, None), (0.2, "watch"), (0.499, "watch"), (0.5, "act")]
)
def test_severity_follows_the_probability_by_the_thresholds(probability: float | None, severity: str | None) -> None:
    one = runway(probability_30_days=probability, probability_90_days=0.3)

    assert severity_of(one, DEFAULT_THRESHOLDS) == severity
    assert severity_of(one, Thresholds(days=90, watch_percent=10, act_percent=30)) == "act"
    assert severity_of(replace(one, state="full"), DEFAULT_THRESHOLDS) == "full"


def test_a_threshold_is_reached_by_a_probability_that_is_equal_to_it() -> None:
    for percent in range(1, 101):
        thresholds = Thresholds(watch_percent=1, act_percent=percent)

        assert severity_of(runway(probability_30_days=round(percent / 100, 3)), thresholds) == "act", percent


def test_the_least_history_is_what_the_documents_say() -> None:
    assert LEAST_HISTORY_DAYS == 57


def test_names_in_a_headline_are_text() -> None:
    hostile = runway("volume", "<b>`x`", **FILLING)

    html = str(rendered(headline_of(BILLING, runway(), hostile, DEFAULT_THRESHOLDS)))

    assert "<b>" not in html
    assert "&lt;b&gt;" in html
