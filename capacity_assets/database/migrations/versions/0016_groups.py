"""Takes away what stored sums of groups, and enters every computed window as one whose groups are still to be computed.

Groups are rows of `group_size_aggregations` now, which `capacity init` creates. History is not computed here: the next
evaluation of the sensor of late data requests the runs, and `capacity groups --now` computes what is left at once.
"""

from sqlalchemy import Connection

from capacity_assets.database.sql import execute

GONE = (
    "DROP VIEW IF EXISTS capacity_stored_groups, capacity_outdated_groups",
    "DROP FUNCTION IF EXISTS capacity_track_groups_database_size_aggregations() CASCADE",
    "DROP FUNCTION IF EXISTS capacity_track_groups_instance_size_aggregations() CASCADE",
    "DROP TABLE IF EXISTS capacity_group_sums, capacity_group_changes, capacity_group_windows",
)
# Touched once and computed before that: so it is stale, and a run is requested.
STILL_TO_COMPUTE = """
INSERT INTO capacity_computed_windows
    (period_type, level, period_start, period_end, reads_from, year_before_start, year_before_end, wanted, computed,
     changed, oldest_change, newest_change, processed_instances, total_records, protected_records, unsampled_records)
SELECT DISTINCT ON (period_type, period_start)
       period_type, 'group', period_start, period_end, reads_from, year_before_start, year_before_end, 1, 0, 1, now(),
       now(), 0, 0, 0, 0
FROM capacity_computed_windows WHERE computed IS NOT NULL AND level <> 'group'
ORDER BY period_type, period_start, level
ON CONFLICT DO NOTHING
"""


def upgrade(connection: Connection) -> None:
    """Drop the former tables, views and functions, and enter the windows."""
    execute(connection, [*GONE, STILL_TO_COMPUTE])
