"""Rows of history: which texts are samples, and what is said of those that are none."""

from __future__ import annotations

from datetime import UTC, date, datetime

import pytest

from capacity_assets.aggregates.levels import DATABASE, INSTANCE
from capacity_assets.history.rows import RowReader, ValueFormats, layout_of
from tests.clocks import SHANGHAI, fixed_clock


def database_row(**cells: str) -> tuple[object, ...] | str:
    layout = layout_of(DATABASE)
    known = {"server": "s", "database": "d", "day": "2025-01-31", "size_mb": "7", **cells}
    return RowReader(layout, "mb", SHANGHAI, fixed_clock().now()).read(3, [known.get(name) for name in layout.columns])


def test_a_row_becomes_values_and_noon_of_its_day_where_no_time_is_reported() -> None:
    noon = datetime(2025, 1, 31, 4, tzinfo=UTC)

    no_bytes = (None, None, None, None)
    assert database_row() == (3, "s", None, "d", date(2025, 1, 31), 7, None, None, None, *no_bytes, noon)
    assert database_row(day="2025-01-31 00:00:00", data_size_mb="6.9", log_size_mb="0") == (
        *(3, "s", None, "d", date(2025, 1, 31), 7, 6, 0, None, *no_bytes, noon),
    )
    assert database_row(server="", instance_id="12")[1:3] == (None, 12)  # type: ignore[index]


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({"day": "31.01.2025"}, "is not YYYY-MM-DD"),
        ({"day": "0001-01-01"}, "is before 1900"),
        ({"day": "2025-07-21"}, "is in the future"),
        ({"day": "2025-01-31T03:00"}, "has a time"),
        ({"size_mb": ""}, "is not a number"),
        ({"size_mb": "NaN"}, "is not a number"),
        ({"size_mb": "Infinity"}, "is not a number"),
        ({"size_mb": "1e999999999"}, "is not a valid size"),
        ({"size_mb": "1e99999999999999999999"}, "is not a valid size"),
        ({"size_mb": "1e-99999999999999999999"}, "is not a valid size"),
        ({"size_mb": "1e28"}, "is not a valid size"),
        ({"size_mb": "9" * 30}, "is not a valid size"),
        ({"size_mb": "9223372036854775808"}, "is not a valid size"),
        ({"size_mb": "8796093022208"}, "is not a valid size: the maximum is 8 EiB"),
        ({"size_mb": "-0.5"}, "is not a valid size"),
        ({"size_mb": "1_000"}, "is not a number"),
        ({"size_mb": "١٢"}, "is not a number"),
        ({"size_mb": "10,7"}, "is not a number"),
        ({"server": "", "instance_id": "١٢"}, "is not a whole number"),
        ({"log_size_mb": "x"}, "log_size_mb 'x' is not a number"),
        ({"server": ""}, "names no server"),
        ({"server": "a\0b"}, "contains a NUL character"),
        ({"server": "", "instance_id": "9" * 5000}, "is not a whole number"),
        ({"database": "d" * 256}, "is longer than 255 characters"),
        ({"collected_at": "yesterday"}, "is not a time"),
        ({"collected_at": "0001-01-01T00:00:00"}, "is not a time"),
    ],
)
def test_what_is_no_sample_is_a_problem_with_its_place_and_reason(cells: dict[str, str], reason: str) -> None:
    found = database_row(**cells)

    assert str(found).startswith("row 3: "), found
    assert reason in str(found)


@pytest.mark.parametrize(
    ("unit", "text", "size_mb"),
    [("bytes", "1048575", 0), ("bytes", "1048576", 1), ("kb", "2048", 2), ("mb", "2.9", 2), ("gb", "1.5", 1536)],
)
def test_units_become_whole_megabytes_rounded_down(unit: str, text: str, size_mb: int) -> None:
    layout = layout_of(INSTANCE)
    row = RowReader(layout, unit, SHANGHAI, fixed_clock().now(), server="s").read(
        1, [None, None, "2025-01-31", text, "3", None]
    )

    assert row[4:6] == (size_mb, 3)  # type: ignore[index]


def size_with(decimal: str, text: str) -> object:
    layout = layout_of(INSTANCE)
    written = ValueFormats(decimals={"total_size_mb": decimal})
    reader = RowReader(layout, "mb", SHANGHAI, fixed_clock().now(), server="s", conventions=written)
    found = reader.read(1, [None, None, "2025-01-31", text, "3", None])
    return found if isinstance(found, str) else found[4]


@pytest.mark.parametrize(
    ("decimal", "text", "size_mb"),
    [
        (".", "1.234", 1),
        (",", "1,234", 1),
        (",", "10", 10),
        (".", "1e3", 1000),
        (".", "7.", 7),
        (".", "1,234,567.9", 1234567),
        (",", "1.234.567,9", 1234567),
        (",", "1.234", 1234),
        (".", "1'234", 1234),
        (",", "1\u202f234,5", 1234),
        (".", "12 345", 12345),
    ],
)
def test_a_column_has_one_decimal_mark_and_what_else_stands_between_thousands_is_taken_away(
    decimal: str, text: str, size_mb: int
) -> None:
    assert size_with(decimal, text) == size_mb


@pytest.mark.parametrize(
    ("decimal", "text"),
    [(",", "10.7"), (".", "10,7"), (".", "1,23,456"), (",", "1.234'567"), (".", "0,123"), (".", "1234,567")],
)
def test_marks_that_separate_no_thousands_make_no_number(decimal: str, text: str) -> None:
    assert "is not a number" in str(size_with(decimal, text))


def test_bytes_are_kept_exactly_and_other_units_leave_them_unknown() -> None:
    layout = layout_of(INSTANCE)
    for unit, kept in (("bytes", 1048577), ("kb", None)):
        reader = RowReader(layout, unit, SHANGHAI, fixed_clock().now(), server="s")
        row = reader.read(1, [None, None, "2025-01-31", "1048577", "3", None])
        assert row[6] == kept  # type: ignore[index]
