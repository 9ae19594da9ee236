"""Columns that several tables share, and what each means. The tables themselves are in `tables`."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Date,
    DateTime,
    Double,
    Integer,
    Numeric,
    String,
    func,
)
from sqlalchemy.ext.compiler import compiles

from capacity_assets.periods import PERIODS

# Sizes are bigint and a previous mean may be as small as 1/366, so a percent can reach 3.4e23:
# 28 digits before the point hold every value that can occur.
PERCENT = Numeric(30, 2)
# The same to the power of twelve has no such bound.
COMPOUND_PERCENT = Numeric()
_THRESHOLDS = ", ".join(f"{name} {period.trend_percent} %" for name, period in PERIODS.items())


def timestamp(name: str, comment: str, *, nullable: bool = False) -> Column[object]:
    """Return a column with a moment, by default that of the insert."""
    default = None if nullable else func.now()
    return Column(name, DateTime(timezone=True), nullable=nullable, server_default=default, comment=comment)


def megabytes(name: str, comment: str, *, nullable: bool = False) -> Column[object]:
    """Return a column with a size in MiB."""
    note = "; null: not measured" if nullable else ""
    return Column(name, BigInteger, nullable=nullable, comment=f"{comment}, MiB{note}")


def exact_bytes(stem: str) -> Column[object]:
    """Return the column with the exact bytes of a size."""
    return Column(f"{stem}_bytes", BigInteger, comment=f"What {stem}_mb was made of, exact, bytes; null: not known")


def change_columns(
    stem: str, what: str, kind: type[BigInteger] | type[Integer], unit: str = "_mb"
) -> list[Column[object]]:
    """Change columns of one measure: absolute, truncated toward zero, and in percent of the previous mean."""
    of_means = f"difference of the exact mean {what} to the window before"
    absolute = f"{of_means.capitalize()}, cut toward zero{', MiB' if unit else ''}; null: unknown"
    percent = f"{of_means.capitalize()}, in percent of the latter; null: unknown, or from 0"
    return [
        Column(f"{stem}_change{unit}", kind, comment=absolute),
        Column(f"{stem}_change_percent", PERCENT, comment=percent),
    ]


def further_columns(stem: str, last: str, what: str) -> list[Column[object]]:
    """Columns of the measure that growth follows: its ends within the window, and a year as the yardstick."""
    of_means = f"the exact mean {what} to the same window a year before"
    return [
        Column(last, BigInteger, comment=f"{what.capitalize()} on the last measured day of the window, MiB"),
        Column(
            f"{stem}_growth_in_window_mb",
            BigInteger,
            comment=f"{what.capitalize()} on the last measured day less that on the first, MiB; "
            "null: fewer than two measured days",
        ),
        Column(
            f"{stem}_year_change_mb",
            BigInteger,
            comment=f"Difference of {of_means}, cut toward zero, MiB; null: unknown",
        ),
        Column(
            f"{stem}_year_change_percent",
            PERCENT,
            comment=f"Difference of {of_means}, in percent of the latter; null: unknown, or from 0",
        ),
        Column(
            f"{stem}_yearly_rate_percent",
            COMPOUND_PERCENT,
            comment=f"Growth of the exact mean {what} since the window before, compounded to a year, in percent; "
            "null: unknown, from 0, or the window is not a whole number of months",
        ),
    ]


def sum_columns(source: str, what: str, *, counted: bool = False) -> list[Column[object]]:
    """Return the exact state of a measure, of which longer windows are made without reading their days again."""
    daily = "; null: the window is one day, or an older version wrote the row"
    columns: list[Column[object]] = [
        Column(f"sum_{source}", Numeric, comment=f"Exact sum of the {what} over the samples of the window{daily}")
    ]
    if counted:
        columns.append(Column(f"count_{source}", Integer, comment=f"Samples of the window with a {what}{daily}"))
    return columns


def size_columns(infix: str, what: str, *, nullable: bool) -> list[Column[object]]:
    """Return mean and extremes of a size."""
    return [
        megabytes(f"avg_{infix}_mb", f"Mean {what}, rounded down", nullable=nullable),
        megabytes(f"max_{infix}_mb", f"Largest {what}", nullable=nullable),
        megabytes(f"min_{infix}_mb", f"Smallest {what}", nullable=nullable),
    ]


def count_columns(name: str, what: str) -> list[Column[object]]:
    """Return mean and extremes of a number per day."""
    return [
        Column(name, BigInteger, nullable=False, comment=f"Mean number of {what} per day, rounded down"),
        Column(f"max_{name}", BigInteger, nullable=False, comment=f"Largest number of {what} on a day"),
        Column(f"min_{name}", BigInteger, nullable=False, comment=f"Smallest number of {what} on a day"),
    ]


def window_columns() -> list[Column[object]]:
    """Return period and days of a window."""
    return [
        Column("period_type", String(20), nullable=False, comment="Name of the period, such as daily or monthly"),
        Column("period_start", Date, nullable=False, comment="First day of the window"),
        Column("period_end", Date, nullable=False, comment="Last day of the window, included"),
    ]


def verdict_columns() -> list[Column[object]]:
    """Return growth, trend and the times of a row."""
    return [
        Column("growth_rate", PERCENT, comment="Change of the exact mean total in percent; null: unknown, or from 0"),
        Column(
            "trend_direction",
            String(20),
            comment=f"growing or shrinking by more than the period's threshold ({_THRESHOLDS}; CAPACITY_TREND_PERCENT "
            "sets another), growing from 0, else stable; null: nothing to compare with",
        ),
        timestamp("calculated_at", "When the figures last changed"),
        timestamp("created_at", "When the row was first written"),
    ]


class _Numbered(BigInteger):
    """An integer that a sequence of the table's own fills in, also where it is no part of the primary key."""


@compiles(_Numbered, "postgresql")
def _numbered(_type: _Numbered, _compiler: object, *, type_expression: object = None, **_options: object) -> str:
    """Name the type: that of a column being made, which makes the sequence, or that of its values."""
    return "BIGINT" if type_expression is None else "BIGSERIAL"


def row_number() -> Column[object]:
    """Return the number of a row."""
    return Column("id", _Numbered, autoincrement=True, nullable=False, comment="Row number; stays over recomputations")


def instance_id() -> Column[object]:
    """Return the number of a server."""
    return Column("instance_id", Integer, nullable=False, comment="Server, instances.id")


def instance_key() -> Column[object]:
    """Return the number of a server, where it identifies the row, alone or with other columns."""
    return Column("instance_id", Integer, primary_key=True, autoincrement=False, comment="Server, instances.id")


def collected_date() -> Column[object]:
    """Return the day of a sample."""
    return Column("collected_date", Date, nullable=False, comment="Day of the sample in the configured time zone")


def database_name() -> Column[object]:
    """Return the name of a database."""
    return Column("database_name", String(255), nullable=False, comment="Database, exactly as the server spells it")


def limit_source() -> Column[object]:
    """Return where a limit comes from."""
    return Column("source", String(20), nullable=False, comment="Where it comes from: measured or imported")


def forecast_columns(days: int) -> list[Column[object]]:
    """Return what is forecast over so many days, and the size that was measured then."""
    return [
        Column(f"forecast_{days}_mb", BigInteger, comment=f"Size that is forecast {days} days later, MiB; null: none"),
        Column(f"lower_{days}_mb", BigInteger, comment="Lower end of the band of 80 percent, MiB; null: no band"),
        Column(f"upper_{days}_mb", BigInteger, comment="Upper end of the band of 80 percent, MiB; null: no band"),
        Column(f"probability_{days}", Double, comment=f"Probability of being full within {days} days; null: unknown"),
        Column(
            f"actual_{days}_mb", BigInteger, comment=f"Size measured {days} days later, MiB; null: not measured yet"
        ),
    ]
