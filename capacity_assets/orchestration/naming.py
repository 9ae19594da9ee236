"""Public names, derived from the registries. The named objects are built elsewhere."""

from capacity_assets.foundation.levels import Level, aggregates_name
from capacity_assets.periods import Period

# Where the web server serves the growth reports, and the UI links to them.
REPORTS_PATH = "/capacity/reports"
OWNERS = ["team:dba"]


def asset_name(period: Period, level: Level) -> str:
    """Return the key of an aggregate asset, for example `daily_database_aggregations`."""
    return aggregates_name(period.name, level)


def job_name(period: Period) -> str:
    """Return the name of a period's job, for example `daily_aggregation_job`."""
    return f"{period.name}_aggregation_job"


def schedule_name(period: Period) -> str:
    """Return the name of a period's schedule, for example `daily_aggregation_schedule`."""
    return f"{period.name}_aggregation_schedule"


def pool_name(period: Period) -> str:
    """Return the pool of a period, for example `capacity_daily`; both its assets are in it."""
    return f"capacity_{period.name}"
