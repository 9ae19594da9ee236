"""Stores the sums of groups per window, so that pages read a few rows instead of adding up the whole fleet.

What the sums are, and when a stored one is out of date, is in `storage.group_views`: the view `capacity_groups` is
right without this module, only slower. Windows are stored newest first, some per transaction.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Engine, Row, text

from capacity_assets.errors import DATABASE_FAILURES, reason_of
from capacity_assets.storage.distribution import is_distributed
from capacity_assets.storage.group_tracking import forget_group_sums, lock_group_sums
from capacity_assets.storage.group_views import (
    GROUPS_OF_WINDOW,
    LABEL_KEYS,
    OUTDATED_ON_NODES,
    OUTDATED_WINDOWS,
    ROWS_OF_WINDOW,
    WINDOW_ENDS,
    touches,
)
from capacity_assets.storage.group_views_on_nodes import OF_WINDOWS_ON_NODES
from capacity_assets.storage.node_records import NodeError, gather_records
from capacity_assets.storage.snapshots import is_foreign, is_seen, is_to_come, transaction_of
from capacity_assets.storage.window_expressions import before

logger = logging.getLogger("capacity_assets")

SECONDS_PER_RUN = 120
"""What is left then is stored by the next run, and added up by readers until then."""
SECONDS_PER_COMMAND = 10
"""How long somebody who declares a label waits at most."""
# Some seconds of work, for 10,000 servers as for 100.
SERVER_WINDOWS_PER_TRANSACTION = 20_000
WINDOWS_PER_TRANSACTION = 200
LOCK_SECONDS = 5
"""How long to wait while another session stores sums; it may store the rest too."""


def store_group_sums(engine: Engine, seconds: float) -> int:
    """Store the groups of every window where they are out of date, for at most about `seconds`; return how many.

    A failure of the database is logged and harms nothing: what is not stored is added up when it is read.
    """
    deadline = time.monotonic() + seconds
    stored = 0
    try:
        on_nodes = is_distributed(engine)
        gather_records(engine, max(1, math.ceil(seconds)))
        is_left = True
        while is_left and time.monotonic() < deadline:
            with engine.begin() as connection:
                windows, is_left = _store_some(connection, on_nodes=on_nodes)
            stored += windows
    except (*DATABASE_FAILURES, NodeError) as error:
        reason = error if isinstance(error, NodeError) else reason_of(error)
        logger.warning("Sums of groups were not stored, and are added up when they are read: %s", reason)
    return stored


def _store_some(connection: Connection, *, on_nodes: bool) -> tuple[int, bool]:
    """Store some windows; return how many, and whether there may be more."""
    connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'"))
    lock_group_sums(connection)
    bounds = {"windows": WINDOWS_PER_TRANSACTION, "server_windows": SERVER_WINDOWS_PER_TRANSACTION}
    outdated = OUTDATED_ON_NODES if on_nodes else OUTDATED_WINDOWS
    found = connection.execute(text(_OUTDATED.format(outdated=outdated)), bounds).all()
    if found and found[0].is_foreign:
        forget_group_sums(connection)
        return 0, True
    if found:
        _store(connection, found, on_nodes=on_nodes)
    connection.execute(text(_FORGET_CHANGES_ON_NODES if on_nodes else _FORGET_CHANGES))
    return len(found), bool(found) and len(found) >= found[0].shown


def _store(connection: Connection, found: Sequence[Row[Any]], *, on_nodes: bool) -> None:
    windows = {**_named(found), "snapshot": found[0].snapshot, "label_keys": found[0].label_keys}
    for statement in _CLEAR:
        connection.execute(text(statement), windows)
    if on_nodes:
        _add_up_on_nodes(connection, windows)
    else:
        # First find the servers without a total: the sums depend on them.
        connection.execute(text(_ENTER), windows)
        connection.execute(text(_STORE), windows)


def _add_up_on_nodes(connection: Connection, windows: Mapping[str, Any]) -> None:
    """Store windows that have rows, one period after the other; forget the changes of those that have none."""
    known = connection.execute(text(_ENDS), windows).all()
    ended = [row for row in known if row.period_end is not None]
    days = {"ends": [row.period_end for row in ended], "befores": [row.before_start for row in ended]}
    connection.execute(text(_ENTER_ON_NODES), {**windows, **_named(ended), **days})
    for period in dict.fromkeys(row.period_type for row in ended):
        of_period = [row for row in ended if row.period_type == period]
        days = {
            "starts": [row.period_start for row in of_period],
            "befores": [row.before_start for row in of_period],
        }
        connection.execute(text(_STORE_ON_NODES), {"period_type": period, **days})
    gone = [row for row in known if row.period_end is None]
    connection.execute(text(_FORGET_WINDOWS), {**_named(gone), "snapshot": windows["snapshot"]})


def _named(windows: Sequence[Row[Any]]) -> dict[str, list[Any]]:
    """Return windows as parameters for `_ASKED`."""
    return {"periods": [row.period_type for row in windows], "starts": [row.period_start for row in windows]}


_ASKED = "unnest(CAST(:periods AS text[]), CAST(:starts AS date[])) AS k (period_type, period_start)"
_WINDOWS = f"(SELECT k.*, e.* FROM {_ASKED} CROSS JOIN LATERAL ({WINDOW_ENDS}) AS e) AS w"  # noqa: S608 -- constants
# Snapshot and keys are older than what the sums are read by: what is committed meanwhile counts as not seen, and is at
# worst stored again. Numbers of transactions of another server, from a dump, mean nothing here.
_OUTDATED = f"""
WITH bound AS (
    SELECT greatest(1, least(:windows, :server_windows / greatest(count(*), 1))) AS shown FROM instances
)
SELECT o.period_type, o.period_start, bound.shown, CAST(pg_current_snapshot() AS text) AS snapshot,
       {LABEL_KEYS} AS label_keys,
       EXISTS (SELECT FROM capacity_group_windows w WHERE {is_foreign("w")})
       OR EXISTS (SELECT FROM capacity_group_changes c WHERE {is_to_come("c")}) AS is_foreign
FROM ({{outdated}}) AS o CROSS JOIN bound
ORDER BY o.period_start DESC, o.period_type LIMIT (SELECT shown FROM bound)
"""  # noqa: S608 -- built from the constants above
_CLEAR = tuple(
    f"DELETE FROM {table} s USING {_ASKED} WHERE s.period_type = k.period_type AND s.period_start = k.period_start"  # noqa: S608 -- as above
    for table in ("capacity_group_sums", "capacity_group_windows")
)
_STORE = f"""
INSERT INTO capacity_group_sums
    (period_type, period_start, grouped_by, group_name, servers, databases, size_mb, change_mb)
SELECT w.period_type, w.period_start, g.grouped_by, coalesce(g.group_name, ''), g.servers, g.databases, g.size_mb,
       g.change_mb
FROM {_WINDOWS} CROSS JOIN LATERAL ({GROUPS_OF_WINDOW}) AS g
"""  # noqa: S608 -- built from the constants above
_ENTER = f"""
INSERT INTO capacity_group_windows
    (period_type, period_start, period_end, before_start, label_keys, snapshot, derived_servers)
SELECT w.*, :label_keys, :snapshot, ARRAY(
    SELECT DISTINCT d.instance_id FROM database_size_aggregations d
    WHERE d.period_type = w.period_type AND d.period_start = w.period_start
      AND NOT EXISTS (SELECT FROM instance_size_aggregations t
                      WHERE t.period_type = w.period_type AND t.period_start = w.period_start
                        AND t.instance_id = d.instance_id))
FROM {_WINDOWS}
"""  # noqa: S608 -- built from the constants above
_SEEN_BY_ALL = "\n  AND ".join(
    f"NOT EXISTS (SELECT FROM capacity_group_windows v WHERE {touch} AND NOT {is_seen('c', 'v')})"
    for touch in touches("v")
)
# Those that every stored window holds. A window that is not stored is known by its change, as long as it has rows.
_FORGET_STORED = f"""
DELETE FROM capacity_group_changes c
WHERE {_SEEN_BY_ALL}
  AND (c.period_type = ''
       OR EXISTS (SELECT FROM capacity_group_windows v
                  WHERE v.period_type = c.period_type AND v.period_start = c.period_start)
"""  # noqa: S608 -- built from the constants above
_FORGET_CHANGES = f"""{_FORGET_STORED}
       OR NOT EXISTS ({ROWS_OF_WINDOW.format("c")}))"""
# What has no rows is known before: a look per change at distributed rows is refused there.
_FORGET_CHANGES_ON_NODES = f"{_FORGET_STORED})"
_FORGET_WINDOWS = f"""
DELETE FROM capacity_group_changes c USING {_ASKED}
WHERE c.period_type = k.period_type AND c.period_start = k.period_start
  AND pg_visible_in_snapshot({transaction_of("c")}, CAST(:snapshot AS pg_snapshot))
"""  # noqa: S608 -- built from the constants above
_ENDS = f"""
SELECT k.period_type, k.period_start, e.period_end, {before("e")} AS before_start FROM {_ASKED}
LEFT JOIN (SELECT period_type, period_start, min(period_end) AS period_end FROM instance_size_aggregations
           WHERE period_type = ANY (:periods) AND period_start = ANY (:starts) GROUP BY 1, 2) AS e
    ON e.period_type = k.period_type AND e.period_start = k.period_start
"""  # noqa: S608 -- built from the constants above
_ENTER_ON_NODES = """
INSERT INTO capacity_group_windows (period_type, period_start, period_end, before_start, label_keys, snapshot)
SELECT w.period_type, w.period_start, w.period_end, w.before_start, :label_keys, :snapshot
FROM unnest(CAST(:periods AS text[]), CAST(:starts AS date[]), CAST(:ends AS date[]), CAST(:befores AS date[]))
    AS w (period_type, period_start, period_end, before_start)
"""
_STORE_ON_NODES = f"""
INSERT INTO capacity_group_sums
    (period_type, period_start, grouped_by, group_name, servers, databases, size_mb, change_mb)
SELECT period_type, period_start, grouped_by, coalesce(group_name, ''), servers, databases, size_mb, change_mb
FROM ({OF_WINDOWS_ON_NODES}) AS g
"""  # noqa: S608 -- built from the constants above
