"""Whose the databases of the sample fleet are, and what they cost: labels and a price list."""

from __future__ import annotations

from datetime import date
from decimal import Decimal

from sqlalchemy import Engine

from capacity_assets.database.tables import ALWAYS
from capacity_assets.demo.sample_fleet import FLEET
from capacity_assets.ownership.labels import Label, declare_labels, stored_labels
from capacity_assets.ownership.prices import Price, declare_prices, stored_prices

# oracle-archive-01 belongs to nobody that is known, as something does everywhere.
TEAMS = {
    "mysql-orders-01": "commerce",
    "mysql-orders-02": "commerce",
    "mysql-web-01": "web",
    "mysql-legacy-01": "web",
    "postgresql-core-01": "platform",
    "postgresql-core-02": "platform",
    "postgresql-events-01": "data",
    "sqlserver-erp-01": "finance",
    "sqlserver-erp-02": "finance",
    "sqlserver-bi-01": "data",
    "oracle-ledger-01": "finance",
}
OF_DATABASES = (
    ("postgresql-core-01", "billing", "finance"),
    ("postgresql-core-02", "billing", "finance"),
    ("postgresql-core-01", "s*", "web"),
    ("sqlserver-bi-01", "crm", "sales"),
)
MOVED = ("mysql-orders-02", "crm", "sales")
"""A database whose owner changed half a year ago, and the new one."""
MONTHS_AGO = 6
PRICES = (
    Price(Decimal("0.12"), "EUR", valid_from=ALWAYS),
    Price(Decimal("0.40"), "EUR", engine="oracle", valid_from=ALWAYS),
    Price(Decimal("0.25"), "EUR", engine="sqlserver", valid_from=ALWAYS),
)


def declare_sample_groups(engine: Engine, today: date) -> None:
    """Declare teams, environments and prices; once, so that what users change stays. Raises DatabaseError."""
    if not stored_labels(engine):
        environments = [Label(server.name, None, "environment", "production", ALWAYS) for server in FLEET]
        teams = [Label(server, None, "team", team, ALWAYS) for server, team in TEAMS.items()]
        overriding = [Label(server, database, "team", team, ALWAYS) for server, database, team in OF_DATABASES]
        server, database, team = MOVED
        months = today.year * 12 + today.month - 1 - MONTHS_AGO
        moved = Label(server, database, "team", team, date(months // 12, months % 12 + 1, 1))
        declare_labels(engine, [*environments, *teams, *overriding, moved], today)
    if not stored_prices(engine):
        declare_prices(engine, PRICES, today, restate=True)
