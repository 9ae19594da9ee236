"""Price lists: what a GiB costs per month, by engine and label, dated. Bills are made of them in `bills`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal, InvalidOperation
from pathlib import Path

from sqlalchemy import Engine, text

from capacity_assets.errors import NotFoundError, ValidationError, database_errors
from capacity_assets.foundation.csv_files import day_of, declarations, refuse_lacking
from capacity_assets.foundation.pairs import key_and_value
from capacity_assets.grouping.labels import checked
from capacity_assets.runway.subjects import refuse_repeated
from capacity_assets.storage.group_tables import ALWAYS

COLUMNS = ("engine", "label", "price", "currency", "from")
NEEDED = ("price", "currency")
MOST = Decimal(10) ** 12
PLACES = 6
NO_PRICE = "none"
EVERYTHING = ""
CURRENCY = re.compile(r"[A-Z]{3}")


@dataclass(frozen=True)
class Price:
    """What a GiB costs per month from a day on; `price` None: nothing is known from then on.

    `engine`, `key` and `value` are empty where it holds for every engine, whatever the labels.
    """

    price: Decimal | None
    currency: str
    engine: str = EVERYTHING
    key: str = EVERYTHING
    value: str = EVERYTHING
    valid_from: date = ALWAYS

    @property
    def display_name(self) -> str:
        """What it holds for, as people read it."""
        parts = [self.engine, f"{self.key}={self.value}" if self.key else ""]
        return " with ".join(filter(None, parts)) or "everything else"


def price_of(written: str) -> Decimal | None:
    """Read a price per GiB and month, 0 or more to six decimals, or `none`; raises ValidationError otherwise."""
    if written.strip().lower() == NO_PRICE:
        return None
    try:
        price = Decimal(written.strip())
    except InvalidOperation:
        price = Decimal("nan")
    if not price.is_finite() or not 0 <= price < MOST or price != round(price, PLACES):
        raise ValidationError(f"{written!r} is not a price; write 0.25, with at most {PLACES} decimals, or {NO_PRICE}.")
    return price


def label_of(written: str | None, keys: Sequence[str]) -> tuple[str, str]:
    """Read `key=value`; empty for None. Raises ValidationError where it is no label."""
    if not written:
        return EVERYTHING, EVERYTHING
    key, value = key_and_value(written)
    key, checked_value = checked(key.strip(), value, keys)
    return key, str(checked_value)


def prices_of_file(path: Path, keys: Sequence[str]) -> list[Price]:
    """Read prices from a CSV file with the columns engine, label (key=value), price, currency and from.

    Raises:
        ValidationError: it cannot be read, or a line cannot be a price; all problems are reported together.
    """
    return declarations(path, COLUMNS, NEEDED, lambda row: _price(row, keys))


def _price(row: Mapping[str, str], keys: Sequence[str]) -> Price:
    refuse_lacking(row, NEEDED)
    valid_from = day_of(row["from"]) if "from" in row else ALWAYS
    label = label_of(row.get("label"), keys)
    return Price(price_of(row["price"]), row["currency"], row.get("engine", EVERYTHING), *label, valid_from)


def declare_prices(engine: Engine, prices: Sequence[Price], *, dry_run: bool = False) -> None:
    """Store prices, each in the place of an earlier one of the same subject and day. All of them or none.

    Raises:
        ValidationError: two prices are of the same subject and day, a currency is none, or it is not the one that the
            price list has.
        DatabaseError: the database failed; nothing was changed.
    """
    refuse_repeated(
        ((price.display_name, price.valid_from) for price in prices), lambda key: f"{key[0]}", "More than one price of"
    )
    with database_errors(doing="storing prices", kept="Nothing was changed."), engine.begin() as connection:
        connection.execute(text("LOCK TABLE capacity_prices IN SHARE ROW EXCLUSIVE MODE"))
        known = connection.execute(text("SELECT DISTINCT currency FROM capacity_prices")).scalars()
        _refuse_currencies({*known, *(price.currency for price in prices)})
        parameters = {
            "engines": [price.engine for price in prices],
            "keys": [price.key for price in prices],
            "values": [price.value for price in prices],
            "days": [price.valid_from for price in prices],
            "prices": [price.price for price in prices],
            "currencies": [price.currency for price in prices],
        }
        if not dry_run:
            connection.execute(text(_STORE), parameters)


def _refuse_currencies(currencies: set[str]) -> None:
    wrong = sorted(currency for currency in currencies if not CURRENCY.fullmatch(currency))
    if wrong:
        raise ValidationError(f"{wrong[0]!r} is not a currency; write EUR, USD or another code of ISO 4217.")
    if len(currencies) > 1:
        raise ValidationError(
            f"A price list has one currency, these have {' and '.join(sorted(currencies))}: amounts of a bill could "
            "not be added. Nothing was changed."
        )


def forget_price(engine: Engine, price: Price) -> None:
    """Delete a declared price of a subject and day; raises NotFoundError or DatabaseError, nothing being changed."""
    key = {"engine": price.engine, "key": price.key, "value": price.value, "day": price.valid_from}
    with database_errors(doing="removing a price", kept="Nothing was changed."), engine.begin() as connection:
        gone = connection.execute(text(_FORGET), key).rowcount
    if not gone:
        raise NotFoundError(f"There is no price of {price.display_name} from that day on. Nothing was changed.")


def stored_prices(engine: Engine) -> list[Price]:
    """Return every declared price, the most general first; raises DatabaseError."""
    with database_errors(doing="reading prices", kept="Nothing was changed."), engine.connect() as connection:
        return [Price(*row) for row in connection.execute(text(_LIST))]


_STORE = """
INSERT INTO capacity_prices (engine, key, value, valid_from, price, currency)
SELECT * FROM unnest(CAST(:engines AS varchar[]), CAST(:keys AS varchar[]), CAST(:values AS varchar[]),
                     CAST(:days AS date[]), CAST(:prices AS numeric[]), CAST(:currencies AS varchar[]))
ON CONFLICT (engine, key, value, valid_from) DO UPDATE
SET price = excluded.price, currency = excluded.currency, declared_at = now()
"""
_FORGET = """
DELETE FROM capacity_prices WHERE engine = :engine AND key = :key AND value = :value AND valid_from = :day
"""
_LIST = """
SELECT price, currency, engine, key, value, valid_from FROM capacity_prices
ORDER BY key <> '', engine <> '', engine, key, value, valid_from
"""
