"""The role that may read the views and bills and nothing else: what the pages, dashboards and people connect with."""

from __future__ import annotations

from sqlalchemy import Connection

from capacity_assets.storage.limit_tables import database_limit_stats
from capacity_assets.storage.partitions import PARTITIONED
from capacity_assets.storage.tables import group_size_aggregations
from capacity_assets.storage.views import VIEWS

READER_ROLE = "capacity_reader"
READ_ON_NODES = tuple(
    table.name for table in PARTITIONED if table not in {database_limit_stats, group_size_aggregations}
)
"""What a reader must be able to read beside the views where tables are distributed: views do not shield shards."""
READABLE = (*(view.name for view in VIEWS), "capacity_bills", "capacity_bill_lines", "capacity_prices")


def ensure_reader_role(connection: Connection) -> None:
    """Create the role, without a login, and grant it what it reads; for a server that is ours alone."""
    connection.exec_driver_sql(
        f"DO $$ BEGIN CREATE ROLE {READER_ROLE} NOLOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$"
    )
    connection.exec_driver_sql(f"GRANT SELECT ON {', '.join(READABLE)} TO {READER_ROLE}")
