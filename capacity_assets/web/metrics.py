"""`/metrics`: the figures of servers, volumes and chosen databases as gauges, in the text format of OpenMetrics.

Prometheus' own text format differs only in the last line, which it reads as a comment. A new metric is an entry of
`DESCRIPTIONS`, and its value.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime, time
from importlib.metadata import version
from zoneinfo import ZoneInfo

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from capacity_assets.base.declarations import label_or_key
from capacity_assets.base.errors import DATABASE_FAILURES
from capacity_assets.base.periods import PERIODS
from capacity_assets.base.settings import HORIZONS_DAYS
from capacity_assets.base.units import BYTES_PER_MB
from capacity_assets.database.engine import snapshot
from capacity_assets.forecast.decisions import is_left_out
from capacity_assets.forecast.results import DATABASE, SERVER, VOLUME
from capacity_assets.reading.access import limit_seconds
from capacity_assets.reading.coverage import unmeasured_servers
from capacity_assets.reading.forecasts import StoredRunway, forecast_day, needs_action, newest_runways
from capacity_assets.reading.runs import daemon_heartbeat, job_runs
from capacity_assets.reading.sizes import fleet_now, last_sizes
from capacity_assets.reading.subjects import active_servers
from capacity_assets.reading.windows import newest_window, stale_windows
from capacity_assets.web.forecasts import shared_accuracy
from capacity_assets.web.reader import OUTSTANDING_SECONDS, Reader, StillReadingError, shared_revision

METRICS_SECONDS = 30
MOST_DATABASES = 5_000
"""Databases with metrics at most, the largest ones."""
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
FASTEST = 1
PLAIN = "text/plain; version=0.0.4; charset=utf-8"

_ESCAPED = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})

DESCRIPTIONS = {
    "build_info": "Always 1; the label has the version of capacity_assets.",
    "fleet_size_bytes": "Last known sizes of all servers in service; replicas are not counted twice.",
    "forecast_timestamp_seconds": "Day for which the newest forecasts were issued.",
    "forecast_median_error_ratio": "Median absolute error of forecasts that came due in the last 90 days, by horizon.",
    "forecast_covered_ratio": "Share of sizes within the 80 % range of these forecasts, by horizon.",
    "window_timestamp_seconds": "First day of the newest computed window, by period.",
    "stale_windows": "Computed windows whose samples or labels changed since, by period and level.",
    "dagster_readable": "1 if the pages can read Dagster's tables, otherwise 0; none: their address is not configured.",
    "daemon_heartbeat_timestamp_seconds": "When the daemon of Dagster last reported, to the second.",
    "unfinished_runs": "Waiting and active runs, by dagster_job and state.",
    "ended_runs": "Runs that ended in the last 24 hours, by dagster_job and outcome.",
    "run_success_timestamp_seconds": "When the newest successful run ended, to the second, by dagster_job.",
    "run_failure_timestamp_seconds": "When the newest failed run ended, to the second, by dagster_job.",
    "server_info": "Always 1; the labels have the ID, the engine, and the declared labels as label_KEY.",
    "server_measured": "Whether the server was measured on the newest day with a sample or an attempt of any server.",
    "server_databases": "Databases in the newest sample.",
    "server_size_bytes": "Size in the newest sample.",
    "volume_size_bytes": "Used size in the newest sample.",
    "database_size_bytes": "Size in the newest sample; the used space inside the files if the limit applies to it.",
    **{
        f"{subject}_{name}": text
        for subject in (SERVER, VOLUME, DATABASE)
        for name, text in {
            "sample_timestamp_seconds": "Day of the newest sample.",
            "limit_bytes": "The binding limit; none: unlimited, or unknown.",
            "headroom_bytes": "Free space up to the limit.",
            "full_probability_ratio": "Calibrated probability of being full within a horizon.",
            "full_timestamp_seconds": "Day by which it is full with a probability; none: beyond a year, or unknown.",
            "needs_action": "1 if it is full or reaches CAPACITY_ACT_PERCENT and no decision excludes it, otherwise 0. "
            "Shared space counts once.",
        }.items()
    },
}
"""The description of each metric, by its name without the prefix.

All are gauges. A timestamp is the beginning of a day, unless the description says otherwise.
"""


@dataclass(frozen=True)
class MetricsScope:
    """The subjects of metrics: always servers and volumes, and databases with one of the labels (key, value)."""

    zone: ZoneInfo
    database_labels: tuple[tuple[str, str | None], ...] = ()

    @classmethod
    def of(cls, zone: ZoneInfo, words: Sequence[str]) -> MetricsScope:
        """Return the scope of the words of CAPACITY_METRICS_DATABASES: keys, and labels as key=value."""
        return cls(zone, tuple(map(label_or_key, words)))


def read_metrics(reader: Reader, today: date, scope: MetricsScope, dagster: Engine | None = None) -> bytes:
    """Return all metrics as text, compressed by gzip and cached. Raises sqlalchemy.exc.DBAPIError.

    `dagster` is an engine on Dagster's storage; without, there are no metrics of runs.
    """

    def read() -> bytes:
        lines_by_name: dict[str, list[str]] = {name: [] for name in DESCRIPTIONS}
        for name, value, labels in (*_samples(reader, today, scope), *_of_runs(dagster)):
            if value is not None:
                lines_by_name[name].append(
                    f"capacity_{name}{{{labels}}} {value}\n" if labels else f"capacity_{name} {value}\n"
                )
        text = "".join(
            f"# HELP capacity_{name} {DESCRIPTIONS[name]}\n# TYPE capacity_{name} gauge\n{''.join(lines)}"
            for name, lines in lines_by_name.items()
            if lines
        )
        # Of 5,000 servers it has 15 MB.
        return gzip.compress(f"{text}# EOF\n".encode(), FASTEST)

    return reader.cached(("metrics", today, scope, shared_revision(reader)), read, METRICS_SECONDS)


MetricSample = tuple[str, float | int | None, str]
"""Name without the prefix, value (None: unknown) and labels."""


def _labels(**values: object) -> str:
    return ",".join(f'{key}="{str(value).translate(_ESCAPED)}"' for key, value in values.items())


def _samples(reader: Reader, today: date, scope: MetricsScope) -> Iterator[MetricSample]:
    yield "build_info", 1, _labels(version=version("capacity_assets"))
    # Figures that take too long are left out, so that the others are available.
    with suppress(DBAPIError, StillReadingError):
        for accuracy in shared_accuracy(reader, today, OUTSTANDING_SECONDS).horizons:
            horizon = _labels(horizon_days=accuracy.horizon_days)
            yield "forecast_median_error_ratio", _ratio(accuracy.median_error_percent), horizon
            yield "forecast_covered_ratio", _ratio(accuracy.covered_percent), horizon
    with suppress(DBAPIError), reader.transaction() as connection:
        limit_seconds(connection, OUTSTANDING_SECONDS)
        for (name, level), windows in stale_windows(connection).items():
            yield "stale_windows", windows, _labels(period=name, level=level)
    with reader.transaction() as connection:
        yield "fleet_size_bytes", _bytes(fleet_now(connection, today).size_mb), ""
        yield "forecast_timestamp_seconds", _seconds(forecast_day(connection), scope.zone), ""
        for period in PERIODS.values():
            window = newest_window(connection, period)
            start = None if window is None else window.start
            yield "window_timestamp_seconds", _seconds(start, scope.zone), _labels(period=period.name)
        yield from _of_servers(connection, today, scope.zone)
        for runway in newest_runways(connection, today, scope.database_labels, most_databases=MOST_DATABASES):
            is_urgent = runway.stands_for_itself and needs_action(runway, reader.thresholds)
            yield from _of_runway(runway, scope.zone, needs_action=is_urgent and not is_left_out(runway.decision))


def _of_runs(dagster: Engine | None) -> Iterator[MetricSample]:
    if dagster is None:
        return
    try:
        with snapshot(dagster) as connection:
            limit_seconds(connection, OUTSTANDING_SECONDS)
            heartbeat, jobs = daemon_heartbeat(connection), job_runs(connection)
    except DATABASE_FAILURES:
        yield "dagster_readable", 0, ""
        return
    yield "dagster_readable", 1, ""
    yield "daemon_heartbeat_timestamp_seconds", heartbeat, ""
    for job in jobs:
        for state in ("waiting", "running"):
            yield "unfinished_runs", getattr(job, state), _labels(dagster_job=job.job, state=state)
        for outcome in ("succeeded", "failed", "canceled"):
            yield "ended_runs", getattr(job, outcome), _labels(dagster_job=job.job, outcome=outcome)
        yield "run_success_timestamp_seconds", job.last_success, _labels(dagster_job=job.job)
        yield "run_failure_timestamp_seconds", job.last_failure, _labels(dagster_job=job.job)


def _of_servers(connection: Connection, today: date, zone: ZoneInfo) -> Iterator[MetricSample]:
    servers = active_servers(connection)
    sizes = last_sizes(connection, [server_facts.server_id for server_facts in servers], today)
    unmeasured = {unmeasured_server.server_id for unmeasured_server in unmeasured_servers(connection, today).servers}
    for server_facts in servers:
        server = _labels(server=server_facts.server)
        declared = {f"label_{key}": value for key, value in server_facts.labels.items()}
        identity = {"server_id": server_facts.server_id, "engine": server_facts.engine}
        yield "server_info", 1, _labels(server=server_facts.server, **identity, **declared)
        yield "server_measured", int(server_facts.server_id not in unmeasured), server
        size = sizes.get(server_facts.server_id)
        if size is not None:
            yield "server_databases", size.databases, server
            yield "server_size_bytes", _bytes(size.size_mb), server
            yield "server_sample_timestamp_seconds", _seconds(size.day, zone), server


def _of_runway(runway: StoredRunway, zone: ZoneInfo, *, needs_action: bool) -> Iterator[MetricSample]:
    subject = runway.subject
    labels = _labels(server=runway.server)
    if subject != SERVER:
        labels = _labels(**{"server": runway.server, subject: runway.name})
        yield f"{subject}_size_bytes", _bytes(runway.size_mb), labels
        yield f"{subject}_sample_timestamp_seconds", _seconds(runway.last_day, zone), labels
    yield f"{subject}_limit_bytes", _bytes(runway.limit_mb), labels
    yield f"{subject}_headroom_bytes", _bytes(runway.headroom_mb), labels
    for days in HORIZONS_DAYS:
        horizon = f'{labels},horizon_days="{days}"'
        yield f"{subject}_full_probability_ratio", runway.probability_within(days), horizon
    for probability, day in {"0.1": runway.full_early, "0.5": runway.full_middle, "0.9": runway.full_late}.items():
        yield f"{subject}_full_timestamp_seconds", _seconds(day, zone), f'{labels},probability="{probability}"'
    yield f"{subject}_needs_action", int(needs_action), labels


def _ratio(percent: float | None) -> float | None:
    return None if percent is None else percent / 100


def _bytes(size_mb: int | None) -> int | None:
    return None if size_mb is None else size_mb * BYTES_PER_MB


def _seconds(day: date | None, zone: ZoneInfo) -> int | None:
    return None if day is None else int(datetime.combine(day, time(), zone).timestamp())
