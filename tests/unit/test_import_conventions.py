"""How a file writes days and sizes: found in all of it, and never guessed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

import pytest

from capacity_assets.base.errors import ValidationError
from capacity_assets.history.rows import (
    FileSurvey,
    FileSurveyor,
    ImportColumns,
    ServerDays,
    ValueFormats,
    checked_date_format,
)

LAYOUT = ImportColumns(("day",), ("size_mb",), ("log_size_mb",))


def survey(
    *rows: tuple[str, ...], decimal: str | None = None, date_format: str | None = None, point_is_usual: bool = True
) -> FileSurvey:
    """Rows hold a day, and perhaps a size, a size of logs and a server."""

    def texts(day: str, size: str = "1", log: str = "", server: str = "a") -> Sequence[str | None]:
        return [server, None, day, size, log, None]

    how = FileSurveyor(
        LAYOUT,
        date_format=date_format,
        decimal=decimal,
        point_is_usual=point_is_usual,
        last_day=date(2025, 3, 1),
    )
    return how.survey((number, texts(*row)) for number, row in enumerate(rows, start=1))


@pytest.mark.parametrize(
    ("days", "order"),
    [
        (["2025-01-31"], "iso"),
        (["03/04/2025", "31/01/2025"], "day-first"),
        (["03/04/2025", "01/31/2025"], "month-first"),
        (["3.4.2025", "31.1.2025 0:00"], "day-first"),
        (["1-31-2025 12:00:00 AM"], "month-first"),
        (["03/03/2025"], "day-first"),
        (["never", "31/31/2025"], "iso"),
    ],
)
def test_the_order_of_day_and_month_follows_from_any_day_that_tells(days: list[str], order: str) -> None:
    assert survey(*((day,) for day in days)).conventions.dates == order


def test_days_that_tell_nothing_are_refused_with_both_readings_unless_somebody_says_which() -> None:
    with pytest.raises(ValidationError) as refused:
        survey(("03/03/2025",), ("03/04/2025",))
    assert str(refused.value) == (
        "day '03/04/2025' in row 2 is 3 Apr 2025 (--date-format day-first) or 4 Mar 2025 (--date-format month-first), "
        "and the file contains no date that decides it."
    )
    assert survey(("03/04/2025",), date_format="month-first").conventions.dates == "month-first"


def test_days_of_both_orders_are_refused() -> None:
    with pytest.raises(
        ValidationError, match="'31/01/2025' in row 1 can only be day-first, '01/31/2025' in row 2 only"
    ):
        survey(("31/01/2025",), ("01/31/2025",))


@pytest.mark.parametrize(
    ("order", "text", "day"),
    [
        ("day-first", "3/4/2025", "2025-04-03T00:00:00"),
        ("day-first", "2025-04-03", "2025-04-03T00:00:00"),
        ("month-first", "1/31/2025 12:00:00 AM", "2025-01-31T00:00:00"),
        ("month-first", "1/31/2025 1:05 pm", "2025-01-31T13:05:00"),
        ("%d.%m.%y", "31.01.25", "2025-01-31T00:00:00"),
        ("%d-%b-%Y", "31-Jan-2025", "2025-01-31T00:00:00"),
    ],
)
def test_a_day_is_read_in_its_format(order: str, text: str, day: str) -> None:
    assert ValueFormats(checked_date_format(order)).moment(text).isoformat() == day


@pytest.mark.parametrize("written", ["european", "%d.%m", "%Y", "%Q", "%", ""])
def test_a_format_without_day_month_and_year_is_refused(written: str) -> None:
    with pytest.raises(ValidationError, match="or a format with day, month and year such as"):
        checked_date_format(written)


@pytest.mark.parametrize(
    ("sizes", "mark"),
    [
        (["12", "1234"], "."),
        (["1,234", "1,5"], ","),
        (["1,234", "1.5"], "."),
        (["1.234,5"], ","),
        (["1,234,567"], "."),
        (["1.234.567"], ","),
        (["0,123"], ","),
        (["1234,567"], ","),
        (["1 234,567"], ","),
        (["1.234"], "."),
    ],
)
def test_the_decimal_mark_of_a_column_follows_from_any_number_that_tells(sizes: list[str], mark: str) -> None:
    assert survey(*(("2025-01-31", size) for size in sizes)).conventions.decimals["size_mb"] == mark


def test_a_number_that_tells_nothing_is_read_as_those_of_another_column() -> None:
    found = survey(("2025-01-31", "1,234", "0,5")).conventions.decimals

    assert found == {"size_mb": ",", "log_size_mb": ","}


def test_numbers_that_tell_nothing_are_refused_with_both_readings_unless_somebody_says_which() -> None:
    with pytest.raises(ValidationError) as refused:
        survey(("2025-01-31", "1,234"))
    assert str(refused.value) == (
        "size_mb '1,234' in row 1 is 1234 (--decimal .) or 1.234 (--decimal ,), and the file does not show which."
    )
    with pytest.raises(ValidationError, match=r"'1\.234' in row 1 is 1\.234 \(--decimal \.\) or 1234 \(--decimal ,\)"):
        survey(("2025-01-31", "1.234"), point_is_usual=False)
    assert survey(("2025-01-31", "1,234"), decimal=".").conventions.decimals["size_mb"] == "."


def test_numbers_with_either_mark_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"'1\.5' in row 1 has a decimal point, '1,5' in row 2 a decimal comma"):
        survey(("2025-01-31", "1.5"), ("2025-01-31", "1,5"))


def test_servers_with_days_between_the_first_and_the_last_missing_are_found() -> None:
    found = survey(
        ("31/01/2025", "1", "", "whole"),
        ("01/02/2025", "1", "", "whole"),
        ("05/02/2025", "1", "", "torn"),
        ("31/01/2025", "1", "", "torn"),
        ("never", "1", "", "torn"),
        ("01/01/0001", "1", "", "torn"),
        ("02/03/2025", "1", "", "torn"),
    )

    assert found.with_gaps == [ServerDays("torn", "", date(2025, 1, 31), date(2025, 2, 5))]
