"""The accuracy of issued forecasts, compared with measured sizes: errors, ranges, probabilities and fill dates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, TextualSelect

from capacity_assets.base.settings import DEFAULT_THRESHOLDS, HORIZONS_DAYS, Thresholds
from capacity_assets.base.units import counted, human_day
from capacity_assets.database.cluster import tables_are_distributed
from capacity_assets.database.sql import with_queries
from capacity_assets.database.tables import capacity_runways, instances
from capacity_assets.forecast.results import GROUP, display_name, is_due
from capacity_assets.reading.access import records, rows

LATELY_DAYS = 90
"""Errors, ranges and probabilities cover forecasts that came due within this many days."""
MONTHS_DAYS = 730
"""Months of issue cover forecasts that came due within this many days."""
LEAST_CASES = 20
"""Smallest number of forecasts for a percentage."""
MISSES_SHOWN = 20
MOST_ROWS = 50_000
"""About the largest number of stored forecasts that are read; of larger fleets, a sample of days and servers."""
STEPS = (1, 7, 28)
"""Possible steps between the days of issue that are read; the smallest one with few enough rows is taken."""
PROMISED_PERCENT = 80
"""Share of sizes that the range promises."""


@dataclass(frozen=True)
class Accuracy:
    """Forecasts of one horizon that came due; percentages are None for fewer than 20 of them."""

    horizon_days: int
    subject: str | None
    """server, database, volume or group; None: all except groups, which are sums of the others."""
    month: date | None
    """First day of the month of issue; None: forecasts that came due recently."""
    forecasts: int
    """Forecasts whose size was measured on the due day."""
    not_measured: int
    """Forecasts that came due on a day without a sample."""
    in_hindsight: int
    """Forecasts that were computed after their day, from the samples up to it."""
    median_error_percent: float | None
    """Median absolute error, in percent of the measured size."""
    unchanged_error_percent: float | None
    """Median error of the last size as a forecast."""
    error_percent: float | None
    """Mean absolute error, in percent of the measured size."""
    relative_error: float | None
    """Sum of absolute errors relative to that of the last size; None: no size changed."""
    covered_percent: float | None
    """Share of measured sizes within the 80 % range."""
    above_percent: float | None
    """Share of measured sizes above that range: full sooner than forecast."""

    @property
    def is_judged(self) -> bool:
        """Whether there are enough forecasts to judge."""
        return self.forecasts >= LEAST_CASES

    def to_dict(self) -> dict[str, object]:
        """Return the known figures as plain values with the horizon in their names, as metadata has them."""
        days = self.horizon_days
        values = {
            f"scored_{days}_days": self.forecasts,
            f"mean_error_{days}_days_percent": self.error_percent,
            f"relative_error_{days}_days": self.relative_error,
            f"covered_{days}_days_percent": self.covered_percent,
            f"above_{days}_days_percent": self.above_percent,
        }
        return {key: value for key, value in values.items() if value is not None}


def scores_of(connection: Connection, first: date, last: date, server: str | None = None) -> list[Accuracy]:
    """Return scores of the forecasts that came due from `first` to `last`, by horizon; raises DBAPIError.

    Of fewer than 20 forecasts, it returns only their number.
    """
    runways = capacity_runways.c
    measured = []
    for days in HORIZONS_DAYS:
        ends = (runways[f"{name}_{days}_mb"].label(f"{name}_mb") for name in ("actual", "forecast", "lower", "upper"))
        is_scored = sa.and_(is_due(days, first, last), runways[f"actual_{days}_mb"].is_not(None))
        own = (runways.subject, runways.as_of, runways.size_mb, runways.in_time)
        due = sa.select(sa.literal(days).label("horizon_days"), *own, *ends)
        due = due.where(is_scored, runways.subject != GROUP)
        if server is not None:
            number = sa.select(instances.c.id).where(instances.c.name == server).scalar_subquery()
            due = due.where(runways.instance_id == number)
        measured.append(due)
    statement = sa.text(_ACCURACY).columns().add_cte(sa.union_all(*measured).cte("due"))
    return [row for row in _judged(records(Accuracy, connection, statement, by_month=False)) if row.subject is None]


@dataclass(frozen=True)
class Calibration:
    """Forecasts by tenths of their probability of being full by the due day, and how many were full by then."""

    horizon_days: int
    from_percent: int
    to_percent: int
    forecasts: int
    filled: int
    mean_percent: float
    """Mean of the probabilities."""
    filled_percent: float | None
    """Share that was full; None for fewer than 20 forecasts."""


@dataclass(frozen=True)
class Alarms:
    """The accuracy of a threshold: forecasts that reached it, and forecasts after which the subject was full."""

    horizon_days: int
    word: str
    """watch or act."""
    from_percent: int
    filled: int
    """Forecasts after which the subject was full by the due day."""
    named: int
    """The number of these that reached the threshold: correct alarms."""
    alarms: int
    """Forecasts that reached the threshold."""
    days_of_warning: float | None
    """Median number of days from an alarm to the first full day."""
    named_percent: float | None
    """Share of fills with an alarm; None for fewer than 20."""
    right_percent: float | None
    """Share of right alarms; None for fewer than 20."""


@dataclass(frozen=True)
class FillDateErrors:
    """Errors of fill dates, of forecasts whose middle day has passed or whose subject was full by the due day."""

    horizon_days: int
    forecasts: int
    filled: int
    """The number with a middle day whose subject was full by the due day."""
    median_error_days: float | None
    """Median difference between middle day and first full day; None for fewer than 20."""
    sooner: int
    """Full before the middle day."""
    on_time: int
    """Full on the middle day."""
    later: int
    """Full after the middle day, by the due day."""
    day_unknown: int
    """Full by the due day, on an unknown day."""
    not_filled: int
    """Not full although the middle day has passed."""
    undated: int
    """Full without a forecast middle day."""

    @property
    def sentences(self) -> str:
        """Return the error of the dates and the outcome of all forecasts in sentences."""
        became = {
            "filled earlier than forecast": self.sooner,
            "filled on the day": self.on_time,
            "filled later": self.later,
            "had not filled by the due day": self.not_filled,
            "filled without a forecast date": self.undated,
            "filled on a day that is not known": self.day_unknown,
        }
        judged = f"Judged: {counted(self.forecasts, 'forecast')} whose fill date has passed or that filled."
        off = f" The date was off by {self.off}." if self.off else ""
        parts = ", ".join(f"{number:,} {text}" for text, number in became.items() if number)
        return f"{judged}{off} {parts}."

    @property
    def off(self) -> str:
        """The median error as people read it; empty if unknown."""
        days = self.median_error_days
        return "" if days is None else f"{counted(round(days), 'day')} (median)"


@dataclass(frozen=True)
class LargestError:
    """The forecast of a subject with the largest error."""

    horizon_days: int
    server_id: int
    server: str
    subject: str
    name: str
    issued_on: date
    due_day: date
    size_mb: int
    forecast_mb: int
    lower_mb: int
    upper_mb: int
    actual_mb: int
    error_mb: int
    """Measured size minus forecast size."""

    @property
    def display_name(self) -> str:
        """The name as people read it."""
        return display_name(self.subject, self.name)


@dataclass(frozen=True, kw_only=True)
class ForecastScores:
    """Figures of how good forecasts were."""

    horizons: Sequence[Accuracy]
    """Forecasts that came due within LATELY_DAYS, by horizon."""
    kinds: Sequence[Accuracy]
    """The same by horizon and subject."""
    calibration: Sequence[Calibration]
    alarms: Sequence[Alarms]
    """The same forecasts by threshold, watch and act."""
    fill_dates: Sequence[FillDateErrors]
    misses: Sequence[LargestError]
    """The largest errors by horizon, one of each subject, largest first."""
    months: Sequence[Accuracy]
    """Forecasts that came due within MONTHS_DAYS, by horizon and month of issue, newest first."""
    sampled: str
    """Which part of the forecasts within LATELY_DAYS was read; empty: all of them."""
    sampled_months: str
    """The same for those by month."""


@dataclass(frozen=True, kw_only=True)
class FleetAccuracy(ForecastScores):
    """Figures of the whole fleet."""

    last_measured: date | None
    """Day from which the horizons of the oldest stored forecast count; None: none was issued."""


def accuracy_of(connection: Connection, today: date, thresholds: Thresholds = DEFAULT_THRESHOLDS) -> FleetAccuracy:
    """Return how good the forecasts of the fleet were; raises DBAPIError."""
    oldest = rows(connection, _OLDEST)
    lately = _Sample.of(connection, today, LATELY_DAYS)
    issued = _Sample.of(connection, today, MONTHS_DAYS)
    by_kind = _accuracy_of(connection, lately, by_month=False)
    of_outcomes = {**lately.parameters, "first_issued": min(lately.days, default=today), "least": LEAST_CASES}
    return FleetAccuracy(
        last_measured=oldest[0].last_measured if oldest else None,
        horizons=[accuracy for accuracy in by_kind if accuracy.subject is None],
        kinds=[accuracy for accuracy in by_kind if accuracy.subject is not None],
        calibration=records(Calibration, connection, _of_outcomes(_CALIBRATION), **of_outcomes),
        alarms=records(
            Alarms,
            connection,
            _of_outcomes(_ALARMS),
            **of_outcomes,
            words=["watch", "act"],
            percents=[thresholds.watch_percent, thresholds.act_percent],
        ),
        fill_dates=records(FillDateErrors, connection, _of_outcomes(_FILL_DATES), **of_outcomes),
        misses=records(LargestError, connection, _of_due(_MISSES), **lately.parameters, shown=MISSES_SHOWN),
        months=_accuracy_of(connection, issued, by_month=True),
        sampled=lately.text,
        sampled_months=issued.text,
    )


@dataclass(frozen=True)
class _Sample:
    """A sample of stored forecasts: days of issue, due days and servers."""

    days: Sequence[date]
    first_due: date
    last_due: date
    step: int
    one_server_in: int
    server_ids: Sequence[int] | None

    @classmethod
    def of(cls, connection: Connection, today: date, due_days: int) -> _Sample:
        """Choose days and servers with about MOST_ROWS rows."""
        subjects: int = rows(connection, "SELECT count(*) AS number FROM capacity_runway")[0].number
        first_due = today - timedelta(days=due_days - 1)
        issued = _issued_on(
            connection,
            sorted({today - timedelta(days=horizon + back) for horizon in HORIZONS_DAYS for back in range(due_days)}),
        )
        for step in STEPS:
            days = issued[::-1][::step]
            one_in = -(-subjects * len(days) // MOST_ROWS)
            if one_in <= 1:
                return cls(days, first_due, today, step, 1, None)
        chosen = "SELECT server_id FROM capacity_servers WHERE server_id % CAST(:one_in AS integer) = 0"
        server_ids = [row.server_id for row in rows(connection, chosen, one_in=one_in)]
        return cls(days, first_due, today, step, one_in, server_ids)

    @property
    def text(self) -> str:
        """The sample as people read it; empty: everything."""
        days = f"one day of issue in {self.step}" if self.step > 1 else ""
        servers = f"one server in {self.one_server_in:,}" if self.one_server_in > 1 else ""
        return " and ".join(filter(None, (days, servers)))

    @property
    def parameters(self) -> dict[str, object]:
        """The parameters of the statements."""
        return {
            "days": self.days,
            "first_due": self.first_due,
            "last_due": self.last_due,
            "server_ids": self.server_ids,
        }


def _issued_on(connection: Connection, days: Sequence[date]) -> Sequence[date]:
    # On distributed rows, a subquery must not depend on the row of the outer query.
    on_nodes = """
        SELECT DISTINCT as_of AS day FROM capacity_forecasts WHERE as_of = ANY (CAST(:days AS date[])) ORDER BY day"""
    by_index = """
        SELECT day FROM unnest(CAST(:days AS date[])) AS day
        CROSS JOIN LATERAL (SELECT FROM capacity_forecasts f WHERE f.as_of = day LIMIT 1) AS issued ORDER BY day"""
    statement = on_nodes if tables_are_distributed(connection) else by_index
    return [row.day for row in rows(connection, statement, days=days)]


def _of_due(statement: str) -> TextualSelect:
    return with_queries(statement, materialized=["due"], due=_DUE)


def _of_outcomes(statement: str) -> TextualSelect:
    return with_queries(
        statement, materialized=["due", "reached", "outcomes"], due=_DUE, reached=_REACHED, outcomes=_OUTCOMES
    )


def _accuracy_of(connection: Connection, sample: _Sample, *, by_month: bool) -> list[Accuracy]:
    """Return how good the forecasts of a sample were; of fewer than 20 only their number."""
    return _judged(records(Accuracy, connection, _of_due(_ACCURACY), **sample.parameters, by_month=by_month))


def _judged(scores: Sequence[Accuracy]) -> list[Accuracy]:
    unknown: dict[str, Any] = dict.fromkeys(
        name for name in Accuracy.__dataclass_fields__ if name.endswith(("_percent", "_error"))
    )
    return [score if score.is_judged else replace(score, **unknown) for score in scores]


def headline(accuracy: FleetAccuracy, horizon_days: int, today: date) -> str:
    """Return how good the forecasts of a horizon were, for readers without knowledge of statistics."""
    if accuracy.last_measured is None:
        return "No forecast was issued yet, so there is nothing to judge."
    first_due = accuracy.last_measured + timedelta(days=horizon_days)
    lately = next((horizon for horizon in accuracy.horizons if horizon.horizon_days == horizon_days), None)
    if lately is None or not lately.is_judged or lately.median_error_percent is None:
        if first_due > today:
            return f"Too few forecasts have come due to judge: the first comes due on {human_day(first_due)}."
        number = lately.forecasts if lately else 0
        return (
            f"Too few forecasts have come due to judge: only {number} of the {LEAST_CASES} needed {horizon_days}-day "
            f"forecasts in the last {LATELY_DAYS} days."
        )
    sentence = (
        f"Over the last {LATELY_DAYS} days, {horizon_days}-day forecasts were off by "
        f"{lately.median_error_percent:.1f} % (median); {lately.covered_percent:.0f} % of sizes fell within the "
        f"range (promised: {PROMISED_PERCENT} %)."
    )
    if lately.unchanged_error_percent is not None:
        sentence += f" Forecasting no change would have been off by {lately.unchanged_error_percent:.1f} %."
    dates = next((errors for errors in accuracy.fill_dates if errors.horizon_days == horizon_days), None)
    if dates is not None and dates.off:
        due = counted(dates.forecasts - dates.undated, "fill date")
        sentence += f" {due} came due; where something filled, the date was off by {dates.off}."
    elif dates is None or dates.forecasts == dates.undated:
        sentence += " No fill date has come due yet, so dates cannot be judged."
    if lately.in_hindsight == lately.forecasts:
        return f"{sentence} All these forecasts were computed afterwards, using only earlier samples."
    return sentence


_OLDEST = """
SELECT due_day - horizon_days AS last_measured FROM capacity_forecasts ORDER BY as_of LIMIT 1
"""
# A separate query, so that distributed rows are found on the nodes and the rest is computed once.
_DUE = """
SELECT f.as_of, f.horizon_days, f.due_day, f.issued_in_time AS in_time, f.server_id, f.server, f.subject, f.name,
       f.state, f.size_mb, f.forecast_mb, f.lower_mb, f.upper_mb, f.actual_mb, f.probability, f.was_full, f.limit_mb,
       f.full_middle
FROM capacity_forecasts f
WHERE f.as_of = ANY (CAST(:days AS date[])) AND f.as_of + f.horizon_days BETWEEN :first_due AND :last_due
  AND (CAST(:server_ids AS integer[]) IS NULL OR f.server_id = ANY (CAST(:server_ids AS integer[]))
       OR f.subject = 'group')
"""
# Overall without groups, which are sums of the others, and by kind with them, as `capacity_forecast_errors`.
_ACCURACY = """
SELECT horizon_days, kind AS subject, month, count(actual_mb) AS forecasts,
       count(*) FILTER (WHERE actual_mb IS NULL) AS not_measured,
       count(actual_mb) FILTER (WHERE NOT in_time) AS in_hindsight,
       CAST(percentile_cont(0.5) WITHIN GROUP (ORDER BY abs(actual_mb - forecast_mb) * 100.0 / nullif(actual_mb, 0))
            AS float8) AS median_error_percent,
       CAST(percentile_cont(0.5) WITHIN GROUP (ORDER BY abs(actual_mb - size_mb) * 100.0 / nullif(actual_mb, 0))
            AS float8) AS unchanged_error_percent,
       CAST(round(avg(abs(actual_mb - forecast_mb) * 100.0 / nullif(actual_mb, 0)), 2) AS float8) AS error_percent,
       CAST(round(sum(abs(actual_mb - forecast_mb)) / nullif(sum(abs(actual_mb - size_mb)), 0), 3) AS float8)
           AS relative_error,
       CAST(round(avg(100 * CAST(actual_mb BETWEEN lower_mb AND upper_mb AS integer)), 1) AS float8) AS covered_percent,
       CAST(round(avg(100 * CAST(actual_mb > upper_mb AS integer)), 1) AS float8) AS above_percent
FROM (
    SELECT due.*, CAST(NULL AS varchar) AS kind,
           CASE WHEN CAST(:by_month AS boolean) THEN CAST(date_trunc('month', as_of) AS date) END AS month
    FROM due WHERE subject <> 'group'
    UNION ALL SELECT due.*, subject, CAST(NULL AS date) FROM due WHERE NOT CAST(:by_month AS boolean)
) AS each
GROUP BY horizon_days, kind, month ORDER BY horizon_days, kind, month DESC
"""
# The first day on which the limit of a forecast was reached, by the sizes of later forecasts.
_REACHED = """
SELECT d.as_of, d.horizon_days, d.server_id, d.subject, d.name, min(o.due_day - o.horizon_days) AS full_on
FROM due AS d
JOIN (
    SELECT server_id, subject, name, horizon_days, max(size_mb) AS size_mb FROM capacity_forecasts
    WHERE as_of > :first_issued AND as_of <= :last_due
      AND (CAST(:server_ids AS integer[]) IS NULL OR server_id = ANY (CAST(:server_ids AS integer[])))
    GROUP BY server_id, subject, name, horizon_days
) AS peak ON peak.server_id = d.server_id AND peak.subject = d.subject AND peak.name = d.name
         AND peak.horizon_days = d.horizon_days AND peak.size_mb >= d.limit_mb
JOIN capacity_forecasts AS o ON o.server_id = d.server_id AND o.subject = d.subject AND o.name = d.name
                            AND o.horizon_days = d.horizon_days AND o.size_mb >= d.limit_mb
                            AND o.due_day > d.due_day AND o.due_day <= d.due_day + d.horizon_days
WHERE o.as_of > :first_issued AND o.as_of <= :last_due AND d.state = 'forecast'
GROUP BY d.as_of, d.horizon_days, d.server_id, d.subject, d.name
"""
# A subject that is full already has a probability of 1, which is not a forecast.
_OUTCOMES = """
SELECT d.horizon_days, d.probability, d.due_day, d.due_day - d.horizon_days AS last_day, d.full_middle, r.full_on,
       r.full_on IS NOT NULL OR d.was_full AS is_full
FROM due AS d
LEFT JOIN reached AS r ON r.as_of = d.as_of AND r.horizon_days = d.horizon_days AND r.server_id = d.server_id
                      AND r.subject = d.subject AND r.name = d.name
WHERE d.state = 'forecast' AND d.probability IS NOT NULL AND d.actual_mb IS NOT NULL AND d.was_full IS NOT NULL
"""
_ALARMS = """
SELECT *, CASE WHEN filled >= :least THEN CAST(round(100.0 * named / filled, 1) AS float8) END AS named_percent,
       CASE WHEN alarms >= :least THEN CAST(round(100.0 * named / alarms, 1) AS float8) END AS right_percent
FROM (
    SELECT horizon_days, t.word, t.percent AS from_percent, count(*) FILTER (WHERE is_full) AS filled,
           count(*) FILTER (WHERE is_full AND 100 * probability >= t.percent) AS named,
           count(*) FILTER (WHERE 100 * probability >= t.percent) AS alarms,
           percentile_cont(0.5) WITHIN GROUP (ORDER BY full_on - last_day)
               FILTER (WHERE 100 * probability >= t.percent) AS days_of_warning
    FROM outcomes CROSS JOIN unnest(CAST(:words AS text[]), CAST(:percents AS integer[])) AS t (word, percent)
    GROUP BY horizon_days, t.word, t.percent
) AS counted ORDER BY horizon_days, from_percent
"""
_FILL_DATES = """
SELECT horizon_days, count(*) AS forecasts, count(error_days) AS filled,
       CASE WHEN count(error_days) >= :least THEN percentile_cont(0.5) WITHIN GROUP (ORDER BY abs(error_days)) END
           AS median_error_days,
       count(*) FILTER (WHERE error_days < 0) AS sooner, count(*) FILTER (WHERE error_days = 0) AS on_time,
       count(*) FILTER (WHERE error_days > 0) AS later, count(*) FILTER (WHERE NOT is_full) AS not_filled,
       count(*) FILTER (WHERE is_full AND full_middle IS NULL) AS undated,
       count(*) FILTER (WHERE is_full AND full_middle IS NOT NULL AND full_on IS NULL) AS day_unknown
FROM (SELECT *, full_on - full_middle AS error_days FROM outcomes WHERE is_full OR full_middle <= due_day) AS dated
GROUP BY horizon_days ORDER BY horizon_days
"""
_CALIBRATION = """
SELECT horizon_days, 10 * tenth AS from_percent, 10 * tenth + 10 AS to_percent, forecasts, filled, mean_percent,
       CASE WHEN forecasts >= :least THEN CAST(round(100.0 * filled / forecasts, 1) AS float8) END AS filled_percent
FROM (
    SELECT horizon_days, CAST(least(floor(probability * 10), 9) AS integer) AS tenth, count(*) AS forecasts,
           count(*) FILTER (WHERE is_full) AS filled, 100 * avg(probability) AS mean_percent
    FROM outcomes GROUP BY 1, 2
) AS tenths ORDER BY horizon_days, tenth
"""
_MISSES = """
SELECT horizon_days, server_id, server, subject, name, as_of AS issued_on, due_day, size_mb, forecast_mb, lower_mb,
       upper_mb, actual_mb, actual_mb - forecast_mb AS error_mb
FROM (
    SELECT *, row_number() OVER (PARTITION BY horizon_days ORDER BY abs(actual_mb - forecast_mb) DESC, server, name)
                  AS place
    FROM (
        SELECT DISTINCT ON (horizon_days, server_id, subject, name) * FROM due
        WHERE actual_mb <> forecast_mb AND subject <> 'group'
        ORDER BY horizon_days, server_id, subject, name, abs(actual_mb - forecast_mb) DESC, as_of DESC
    ) AS worst
) AS placed WHERE place <= :shown ORDER BY horizon_days, place
"""
