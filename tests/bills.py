"""A fleet of two months to bill, and how a test reads its bills."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import Engine

from tests.command import printed
from tests.fleet import add_database_sizes, add_instances, sizes

GIB = 1024


def billed(by: str = "team", *more: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(printed("bill", "--month", "2025-06", "--by", by, "--json", *more))
    return found


def amounts(found: dict[str, Any]) -> dict[str | None, str | None]:
    return {group["name"]: group["amount"] for group in found["groups"]}


def fill_to_bill(engine: Engine) -> None:
    add_instances(engine, [1], db_type="postgresql")
    add_instances(engine, [2], counted_by=1)
    for server in (1, 2):
        add_database_sizes(engine, sizes(server, "a", "2025-05-20", [10 * GIB] * 60))
        add_database_sizes(engine, sizes(server, "b", "2025-05-20", [20 * GIB] * 60))
