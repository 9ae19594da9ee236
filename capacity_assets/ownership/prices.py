"""Price lists: the price of a GiB per month, by engine and label, from a day on; and the bills that a change affects.

`bills` determines which price applies to which line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import date
from decimal import Decimal
from pathlib import Path

from sqlalchemy import Connection, Engine, text

from capacity_assets.base.declarations import (
    checked_label,
    day_of,
    declarations,
    key_and_value,
    number_of,
    refuse_lacking,
)
from capacity_assets.base.errors import NotFoundError, ValidationError
from capacity_assets.base.units import first_of
from capacity_assets.database.declared_rows import (
    Stored,
    clear_history,
    columns_of,
    declaring,
    refuse_repeated,
    remove_row,
    replace_rows,
    rows_of,
)
from capacity_assets.database.tables import ALWAYS, capacity_prices
from capacity_assets.ownership.bills import BillChange, bill_changes

COLUMNS = ("engine", "label", "price", "currency", "from")
NEEDED = ("price", "currency")
MOST = Decimal(10) ** 12
PLACES = 6
NO_PRICE = "none"
IN_ALL_OF_HISTORY = "always"
EVERYTHING = ""
CURRENCY = re.compile(r"[A-Z]{3}")


MONTHS_COMPUTED = 12


@dataclass(frozen=True)
class Price:
    """The price of a GiB per month from a day on."""

    price: Decimal | None
    """None ends the price."""
    currency: str
    engine: str = EVERYTHING
    """Empty: every engine. Likewise the key and value of a label."""
    key: str = EVERYTHING
    value: str = EVERYTHING
    valid_from: date | None = None
    """None: from the current month on or, if the same price already applies then, from its first day."""

    @property
    def display_name(self) -> str:
        """Its subject as text."""
        parts = [self.engine, f"{self.key}={self.value}" if self.key else ""]
        return " with ".join(filter(None, parts)) or "everything else"


@dataclass(frozen=True)
class PriceChanges:
    """Prices that are declared or removed, with their first days, and the final bills that change as a result."""

    prices: Sequence[Price]
    bills: Sequence[BillChange]
    """Of the newest MONTHS_COMPUTED months, the newest first."""
    older_months: Sequence[date]
    """Further months whose bills have lines with another price."""

    @property
    def months(self) -> list[date]:
        """All months whose bills change, newest first."""
        return [*(bill.month for bill in self.bills), *self.older_months]


def parse_price(written: str) -> Decimal | None:
    """Read a price per GiB and month, 0 or more to six decimals, or `none`; raises ValidationError otherwise."""
    if written.strip().lower() == NO_PRICE:
        return None
    price = number_of(written)
    if not price.is_finite() or not 0 <= price < MOST or price != round(price, PLACES):
        raise ValidationError(f"{written!r} is not a price; write 0.25, with at most {PLACES} decimals, or {NO_PRICE}.")
    return price


def label_of(written: str | None, keys: Sequence[str]) -> tuple[str, str]:
    """Read `key=value`; empty for None. Raises ValidationError if it is not a label."""
    if not written:
        return EVERYTHING, EVERYTHING
    key, value = key_and_value(written)
    key, checked_value = checked_label(key.strip(), value, keys)
    return key, str(checked_value)


def prices_of_file(path: Path, keys: Sequence[str]) -> list[Price]:
    """Read prices from a CSV file with the columns engine, label (key=value), price, currency and from.

    Raises ValidationError: it cannot be read, or a line cannot be a price; all problems are reported together.
    """
    return declarations(path, COLUMNS, NEEDED, lambda row: _price(row, keys))


def _price(row: Mapping[str, str], keys: Sequence[str]) -> Price:
    refuse_lacking(row, NEEDED)
    written = row.get("from", "")
    valid_from = ALWAYS if written == IN_ALL_OF_HISTORY else day_of(written) if written else None
    label = label_of(row.get("label"), keys)
    return Price(parse_price(row["price"]), row["currency"], row.get("engine", EVERYTHING), *label, valid_from)


def declare_prices(
    engine: Engine, prices: Sequence[Price], today: date, *, by: str | None = None, restate: bool = False
) -> Sequence[Price]:
    """Store all prices or none, as declared by `by`, and return them with their first days; computes no bills.

    Each replaces the price for the same engine, label and day. A price for all of history replaces every price for the
    same engine and label.

    Raises:
        ValidationError: a price is given twice, a currency is invalid or differs from that of the price list, or bills
        of closed months would change without `restate`.
        DatabaseError: the database failed; nothing was changed.
    """
    with declaring(engine, "storing prices") as connection:
        dated, months = _store(connection, prices, today, by)
        _refuse_restating(months, restate=restate)
    return dated


def price_changes(engine: Engine, prices: Sequence[Price], today: date, keys: Sequence[str]) -> PriceChanges:
    """Return what `declare_prices` would change; stores nothing. Raises as it does."""
    with _trial(engine, "storing prices") as connection:
        dated, months = _store(connection, prices, today)
        return _changes(connection, dated, months, keys)


@contextmanager
def _trial(engine: Engine, doing: str) -> Iterator[Connection]:
    """Yield a connection in which a copy hides the price list, so that bills are computed without locking it."""
    with declaring(engine, doing, dry_run=True) as connection:
        for statement in _COPY:
            connection.execute(text(statement))
        yield connection


def _store(
    connection: Connection, prices: Sequence[Price], today: date, by: str | None = None
) -> tuple[Sequence[Price], Sequence[date]]:
    """Store prices; return them with their first days, and the closed months whose bills have other prices."""
    if not prices:
        return [], []
    subjects = ((price.display_name, price.valid_from) for price in prices)
    refuse_repeated(subjects, lambda key: f"{key[0]}", "More than one price of")
    connection.execute(text("LOCK TABLE capacity_prices IN SHARE ROW EXCLUSIVE MODE"))
    known = connection.execute(text("SELECT DISTINCT currency FROM capacity_prices")).scalars()
    refuse_currencies({*known, *(price.currency for price in prices)})
    days = {"always": ALWAYS, "this_month": today.replace(day=1)}
    parameters = {**columns_of([asdict(price) for price in prices]), **days}
    first_days = connection.execute(text(_PLACED), parameters).scalars()
    dated = [replace(price, valid_from=day) for price, day in zip(prices, first_days, strict=True)]
    rows = [asdict(price) for price in dated]
    clear_history(connection, capacity_prices, rows)
    replace_rows(connection, capacity_prices, rows, by)
    months = {month for price in dated for month in _restated_months(connection, price)}
    return dated, sorted(months, reverse=True)


def _changes(
    connection: Connection, prices: Sequence[Price], months: Sequence[date], keys: Sequence[str]
) -> PriceChanges:
    bills = bill_changes(connection, months[:MONTHS_COMPUTED], keys)
    return PriceChanges(prices, bills, months[MONTHS_COMPUTED:])


def _refuse_restating(months: Sequence[date], *, restate: bool) -> None:
    if months and not restate:
        names = first_of((f"{month:%Y-%m}" for month in months), MONTHS_COMPUTED)
        raise ValidationError(f"Bills of closed months would change: {names}.")


def refuse_currencies(currencies: set[str]) -> None:
    """Raise ValidationError unless these are one currency."""
    wrong = sorted(currency for currency in currencies if not CURRENCY.fullmatch(currency))
    if wrong:
        raise ValidationError(f"{wrong[0]!r} is not a currency; write EUR, USD or another code of ISO 4217.")
    if len(currencies) > 1:
        raise ValidationError(f"All prices need the same currency; these have {' and '.join(sorted(currencies))}.")


def forget_price(engine: Engine, price: Price, *, restate: bool = False) -> None:
    """Delete the price for an engine, label and day; raises NotFoundError if there is none, and as `declare_prices`."""
    with declaring(engine, "removing a price") as connection:
        _refuse_restating(_forget(connection, price), restate=restate)


def removal_changes(engine: Engine, price: Price, keys: Sequence[str]) -> PriceChanges:
    """Return what `forget_price` would change; removes nothing. Raises as it does."""
    with _trial(engine, "removing a price") as connection:
        return _changes(connection, [price], _forget(connection, price), keys)


def _forget(connection: Connection, price: Price) -> Sequence[date]:
    """Delete a price; return the closed months whose bills have lines with it."""
    gone = remove_row(connection, capacity_prices, _subject(price))
    if gone is None:
        raise NotFoundError(f"There is no price for {price.display_name} from that day on.")
    return _restated_months(connection, price, removed=gone.price)


def _subject(price: Price) -> dict[str, object]:
    return {"engine": price.engine, "key": price.key, "value": price.value, "valid_from": price.valid_from}


def _restated_months(connection: Connection, price: Price, removed: Decimal | None = None) -> Sequence[date]:
    """Return the closed months whose bills have lines with another price than this one, or with the removed price."""
    parameters = {**_subject(price), "price": price.price, "removed": removed}
    return connection.execute(text(_RESTATED), parameters).scalars().all()


def stored_prices(engine: Engine) -> list[Stored[Price]]:
    """Return all declared prices, the most general first; raises DatabaseError."""
    return [Stored(Price(*row[:6]), *row[6:]) for row in rows_of(engine, "prices", _LIST)]


# A temporary table hides the table of its name.
_COPY = (
    "CREATE TEMPORARY TABLE declared_prices ON COMMIT DROP AS SELECT * FROM capacity_prices",
    "CREATE TEMPORARY TABLE capacity_prices (LIKE capacity_prices INCLUDING ALL) ON COMMIT DROP",
    "INSERT INTO capacity_prices SELECT * FROM declared_prices",
)
# The first price of a history in one file applies to all of history; an existing price is kept.
_PLACED = """
WITH given AS (
    SELECT * FROM unnest(CAST(:engines AS varchar[]), CAST(:keys AS varchar[]), CAST(:values AS varchar[]),
                         CAST(:valid_froms AS date[]), CAST(:prices AS numeric[])) WITH ORDINALITY
        AS g (engine, key, value, valid_from, price, number)
)
SELECT coalesce(g.valid_from, CASE
    WHEN EXISTS (SELECT FROM given o WHERE (o.engine, o.key, o.value) = (g.engine, g.key, g.value)
                   AND o.valid_from IS NOT NULL)
        THEN CAST(:always AS date)
    WHEN held.price IS NOT DISTINCT FROM g.price THEN held.valid_from END, CAST(:this_month AS date))
FROM given g
LEFT JOIN LATERAL (
    SELECT p.price, p.valid_from FROM capacity_prices p
    WHERE (p.engine, p.key, p.value) = (g.engine, g.key, g.value) AND p.valid_from <= :this_month
    ORDER BY p.valid_from DESC LIMIT 1
) AS held ON true
ORDER BY g.number
"""
# Lines priced by a more specific declaration keep their price, and so do months in which a later declaration applies.
_RESTATED = """
SELECT b.month FROM capacity_bills b
WHERE b.is_final AND b.samples_dropped_at IS NULL AND b.month + interval '1 month' > :valid_from
  AND b.issue = (SELECT max(n.issue) FROM capacity_bills n WHERE n.month = b.month)
  AND NOT EXISTS (SELECT FROM capacity_prices p
                  WHERE p.engine = :engine AND p.key = :key AND p.value = :value
                    AND p.valid_from > :valid_from AND p.valid_from <= b.month)
  AND EXISTS (
    SELECT FROM capacity_bill_lines l
    WHERE l.month = b.month AND l.issue = b.issue
      AND :engine IN ('', l.engine) AND (:key = '' OR l.labels ->> CAST(:key AS text) = :value)
      AND CASE WHEN CAST(:removed AS numeric) IS NULL THEN l.price IS DISTINCT FROM CAST(:price AS numeric)
               ELSE l.price = CAST(:removed AS numeric) END
      AND NOT EXISTS (SELECT FROM capacity_prices p
                      WHERE p.price = l.price AND p.engine IN ('', l.engine)
                        AND (p.key = '' OR l.labels ->> CAST(p.key AS text) = p.value)
                        AND (:key = '' AND p.key <> ''
                             OR p.key = :key AND p.value = :value AND :engine = '' AND p.engine <> '')))
ORDER BY b.month DESC
"""
_LIST = """
SELECT price, currency, engine, key, value, valid_from, declared_at, declared_by FROM capacity_prices
ORDER BY key <> '', engine <> '', engine, key, value, valid_from
"""
