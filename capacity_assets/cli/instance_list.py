"""`capacity instances list`: the registry, with the last measurement of each server."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click
from sqlalchemy import Engine, Row, text

from capacity_assets.cli.options import json_command
from capacity_assets.cli.output import left, print_json, print_table, say
from capacity_assets.cli.server_registry import opened_registry
from capacity_assets.collection.registry import Registered, registered
from capacity_assets.settings import Settings
from capacity_assets.units import natural_key

LIST_COLUMNS = left("Server", "Engine", "Place", "Password from", "TLS", "State", "Last collected")
FAILURE_COLUMNS = (("Server", "left"), ("Last failure", "text"))


@click.command("list")
@json_command
def list_(settings: Settings, /, *, as_json: bool) -> None:
    """Show the servers, and when each was last collected.

    Imported samples are no collection. Also shows how each is reached; of a password, only where it is kept.
    """
    with opened_registry(settings) as engine:
        found = registered(engine)
        attempts = _last_attempts(engine)
    if as_json:
        print_json([_as_dict(one, attempts.get(one.id)) for one in found])
        return
    if not found:
        say(
            "No server is registered. `capacity instances add` registers one, `capacity instances import` a whole file."
        )
        return
    found.sort(key=lambda one: natural_key(one.server.name))
    print_table("Servers", LIST_COLUMNS, [_cells(one, attempts.get(one.id)) for one in found])
    failing = [
        [one.server.name, attempts[one.id].last_failure]
        for one in found
        if one.active and one.id in attempts and attempts[one.id].last_failure
    ]
    if failing:
        print_table("Whose last attempt failed", FAILURE_COLUMNS, failing)


def _last_attempts(engine: Engine) -> dict[int, Row[Any]]:
    """Return the newest attempts to measure each server: `last_collected` and `last_failure`, each None without one."""
    query = text(
        "SELECT instance_id, max(collected_date) FILTER (WHERE status = 'collected') AS last_collected, "
        "(array_agg(CASE WHEN status = 'failed' THEN collected_date || ': ' || failure || ': ' || reason END "
        "ORDER BY collected_date DESC))[1] AS last_failure "
        "FROM capacity_collection_attempts GROUP BY instance_id"
    )
    with engine.connect() as connection:
        return {row.instance_id: row for row in connection.execute(query)}


def _cells(one: Registered, attempts: Row[Any] | None) -> list[object]:
    server = one.server
    counted = f", counted by {server.counted_by}" if server.counted_by else ""
    return [
        server.name,
        server.engine,
        server.place,
        server.password_from or "",
        server.tls or "",
        f"{one.state}{counted}",
        (attempts and attempts.last_collected) or "never",
    ]


def _as_dict(one: Registered, attempts: Row[Any] | None) -> dict[str, object]:
    return {
        "id": one.id,
        **asdict(one.server),
        "state": one.state,
        "last_collected": attempts and attempts.last_collected,
        "last_failure": attempts and attempts.last_failure,
    }
