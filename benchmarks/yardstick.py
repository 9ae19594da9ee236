"""The best statements we can write by hand for one window: the same rows and columns, nothing else.

One scan with FILTER for the window, the one before and the one a year before, one upsert. No check for lost samples, no
counts by window, no slices, no lock, no ledger: what those cost is what the benchmark is to show. Exact like ours, or
the comparison would be with other figures.
"""

from __future__ import annotations

from sqlalchemy import Engine, text

from capacity_assets.aggregates.levels import SERVER_LEVELS, Level
from capacity_assets.base.periods import Period, Window
from capacity_assets.database.measures import Further, Measure


def _percent(above: str, below: str) -> str:
    return f"div(abs({above}) * 200 + abs({below}), nullif(abs({below}) * 2, 0)) * sign({above}) * sign({below}) * 0.01"


def _difference(measure: Measure, total: str, count: str) -> tuple[str, str]:
    """Absolute and in percent, to the window whose sum and count are named."""
    s, n, p, m = (f"{kind}_{measure.source}" for kind in ("s", "n", total, count))
    difference = f"({s} * nullif({m}, 0) - {p} * nullif({n}, 0))"
    absolute = f"div({difference}, nullif({n}, 0)::numeric * nullif({m}, 0))"
    return absolute, _percent(f"({difference} * 100)", f"({p} * nullif({n}, 0)::numeric)")


def _further(measure: Measure, further: Further, period: Period) -> dict[str, str]:
    s, n, p, m = (f"{kind}_{measure.source}" for kind in ("s", "n", "p", "m"))
    rate = "NULL::numeric"
    if period.windows_per_year:
        above, below = f"({s} * {m}) ^ {period.windows_per_year}", f"({p} * {n}) ^ {period.windows_per_year}"
        rate = f"CASE WHEN sign({s}) * sign({p}) >= 0 THEN {_percent(f'(({above} - {below}) * 100)', f'({below})')} END"
    change, percent = _difference(measure, "y", "z")
    return {
        further.last: f"last_{measure.source}",
        further.growth: f"CASE WHEN {n} > 1 THEN last_{measure.source} - first_{measure.source} END",
        further.year_change: change,
        further.year_change_percent: percent,
        further.yearly_rate_percent: rate,
    }


def _figures(measure: Measure, period: Period) -> dict[str, str]:
    s, n = f"s_{measure.source}", f"n_{measure.source}"
    change, percent = _difference(measure, "p", "m")
    figures = {
        measure.average: f"floor(div({s}, nullif({n}, 0))) - (mod({s}, nullif({n}, 0)) < 0)::int",
        measure.maximum: f"max_{measure.source}",
        measure.minimum: f"min_{measure.source}",
        measure.change: change,
        measure.change_percent: percent,
    }
    if measure.further:
        figures |= _further(measure, measure.further, period)
    if measure.average_two_decimals:
        figures[measure.average_two_decimals] = _percent(s, f"{n}::numeric")
    return figures


def _reading(level: Level, period: Period) -> tuple[str, dict[str, str]]:
    """Return the query that reads and sums, and what each figure is made of its columns."""
    keys = ", ".join(level.keys)
    own = "FILTER (WHERE collected_date >= :start)"
    previous = "FILTER (WHERE collected_date >= :before AND collected_date < :start)"
    year_before = "FILTER (WHERE collected_date BETWEEN :year_first AND :year_last)"
    reduced = [f"count(*) {own} AS data_count", f"count(*) {previous} AS previous_count"]
    figures: dict[str, str] = {"period_end": "CAST(:end AS date)", "data_count": "data_count"}
    for measure in level.measures:
        column = measure.source
        reduced += [
            f"sum({column}) {own} AS s_{column}",
            f"count({column}) {own} AS n_{column}",
            f"sum({column}) {previous} AS p_{column}",
            f"count({column}) {previous} AS m_{column}",
            f"max({column}) {own} AS max_{column}",
            f"min({column}) {own} AS min_{column}",
        ]
        if measure.further:
            reduced += [f"sum({column}) {year_before} AS y_{column}", f"count({column}) {year_before} AS z_{column}"]
        figures |= _figures(measure, period)
    for ratio in level.ratios:
        above, below = f"s_{ratio.numerator}", f"s_{ratio.denominator}"
        figures[ratio.target] = f"CASE WHEN {below} = 0 THEN 0 ELSE floor({above} / {below}) END"
    added = {measure.source for measure in level.measures if measure.since}
    for name in level.sums:
        kind, _, column = name.partition("_")
        kept = f"s_{column}" if kind == "sum" else f"nullif(n_{column}, 0)" if column in added else f"n_{column}"
        figures[name] = "NULL" if period.days == 1 else kept
    headline = level.headline
    percent = figures[headline.change_percent]
    figures["growth_rate"] = percent
    threshold = period.trend_percent
    figures["trend_direction"] = (
        f"CASE WHEN previous_count = 0 THEN NULL WHEN {percent} > {threshold} OR p_{headline.source} = 0 AND "
        f"s_{headline.source} > 0 THEN 'growing' WHEN {percent} < -{threshold} THEN 'shrinking' ELSE 'stable' END"
    )
    source = f"{level.source.name} r JOIN instances i ON i.id = r.instance_id AND i.is_active AND i.deleted_at IS NULL"
    live = f"AND NOT {level.void_flag}" if level.void_flag else ""
    # Of the first and last days only the dates are reduced; their values are joined from these days' rows.
    column = headline.source
    query = f"""
WITH sums AS (
    SELECT {keys}, {", ".join(reduced)}, min(collected_date) {own} AS first_day, max(collected_date) {own} AS last_day
    FROM {source}
    WHERE (collected_date BETWEEN :before AND :end OR collected_date BETWEEN :year_first AND :year_last) {live}
    GROUP BY {keys}
), ends AS (
    SELECT {keys}, collected_date, {column} FROM {source}
    WHERE collected_date = ANY (ARRAY(SELECT DISTINCT unnest(ARRAY[first_day, last_day]) FROM sums))
      AND collected_date BETWEEN :start AND :end {live}
)
SELECT sums.*, first.{column} AS first_{column}, last.{column} AS last_{column}
FROM sums
LEFT JOIN (SELECT {keys}, collected_date AS first_day, {column} FROM ends) AS first USING ({keys}, first_day)
LEFT JOIN (SELECT {keys}, collected_date AS last_day, {column} FROM ends) AS last USING ({keys}, last_day)
"""  # noqa: S608 -- names from our own table definitions
    return query, figures


def statement(level: Level, period: Period) -> str:
    """Return the statement for one window; its parameters are those of `parameters`."""
    query, figures = _reading(level, period)
    keys, names = ", ".join(level.keys), list(level.figures)
    excluded = ", ".join(f"excluded.{name}" for name in names)
    return f"""
INSERT INTO {level.target.name} AS t
    ({keys}, period_type, period_start, {", ".join(names)}, calculated_at, created_at)
SELECT {keys}, CAST(:period AS varchar), CAST(:start AS date), {", ".join(figures[name] for name in names)},
       now(), now()
FROM ({query}) AS reduced
WHERE data_count > 0
ON CONFLICT ({keys}, period_type, period_start) DO UPDATE
SET ({", ".join(names)}, calculated_at) = ROW({excluded}, now())
WHERE ({", ".join(f"t.{name}" for name in names)}) IS DISTINCT FROM ({excluded})
"""  # noqa: S608 -- names from our own table definitions


def compute(engine: Engine, period: Period, window: Window) -> None:
    """Compute one window at both levels, in one transaction."""
    with engine.begin() as connection:
        for level in SERVER_LEVELS.values():
            connection.execute(text(statement(level, period)), parameters(period, window))


def parameters(period: Period, window: Window) -> dict[str, object]:
    """Return the parameters of `statement`."""
    return {**_days(period, window), "period": period.name}


def figure(engine: Engine, period: Period, window: Window) -> None:
    """Read, sum and compute every figure, and count what comes out."""
    with engine.connect() as connection:
        for level in SERVER_LEVELS.values():
            query, figures = _reading(level, period)
            columns = ", ".join(f"{made} AS {name}" for name, made in figures.items())
            # OFFSET 0, or PostgreSQL would leave out the figures that nobody asks for.
            rows = f"SELECT {columns} FROM ({query}) AS reduced OFFSET 0"  # noqa: S608
            counted = f"SELECT count(figured) FROM ({rows}) AS figured"  # noqa: S608
            connection.execute(text(counted), _days(period, window)).all()


def read(engine: Engine, period: Period, window: Window) -> None:
    """Only read and sum, and count what comes out: what of `compute` is left when nothing is written."""
    with engine.connect() as connection:
        for level in SERVER_LEVELS.values():
            # The whole row, or PostgreSQL would leave out the sums that nobody asks for.
            query = f"SELECT count(reduced) FROM ({_reading(level, period)[0]}) AS reduced"  # noqa: S608
            connection.execute(text(query), _days(period, window)).all()


def _days(period: Period, window: Window) -> dict[str, object]:
    year_before = period.year_before(window)
    return {
        "before": period.previous(window).start,
        "start": window.start,
        "end": window.end,
        "year_first": year_before.start,
        "year_last": year_before.end,
    }
