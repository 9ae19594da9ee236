"""A fleet of two months to bill, and functions that read its bills."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import Engine

from capacity_assets.database.tables import ALWAYS
from capacity_assets.ownership.labels import Label, declare_labels
from tests.clocks import TODAY
from tests.command import printed
from tests.fleet import add_database_sizes, add_instances, sizes

GIB = 1024


def billed(by: str = "team", *more: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(printed("bill", "--month", "2025-06", "--group-by", by, "--json", *more))
    return found


def amounts(found: dict[str, Any]) -> dict[str | None, str | None]:
    return {group["name"]: group["amount"] for group in found["groups"]}


def fill_to_bill(engine: Engine) -> None:
    add_instances(engine, [1], db_type="postgresql")
    add_instances(engine, [2], counted_by=1)
    for server in (1, 2):
        add_database_sizes(engine, sizes(server, "a", "2025-05-20", [10 * GIB] * 60))
        add_database_sizes(engine, sizes(server, "b", "2025-05-20", [20 * GIB] * 60))


def fill_two_months_to_bill(engine: Engine) -> None:
    """server-1 with a (10 GiB in May, 12 from June on), b (20) and c (4 in May only), server-2 with d (6 from June on).

    Everything belongs to search, except b, which belongs to payments.
    """
    add_instances(engine, [1, 2], db_type="postgresql")
    add_database_sizes(engine, sizes(1, "a", "2025-05-01", [10 * GIB] * 31 + [12 * GIB] * 50))
    add_database_sizes(engine, sizes(1, "b", "2025-05-01", [20 * GIB] * 81))
    add_database_sizes(engine, sizes(1, "c", "2025-05-01", [4 * GIB] * 31))
    add_database_sizes(engine, sizes(2, "d", "2025-06-01", [6 * GIB] * 50))
    of_servers = [Label(server, None, "team", "search") for server in ("server-1", "server-2")]
    declare_labels(engine, [*of_servers, Label("server-1", "b", "team", "payments", ALWAYS)], TODAY)
