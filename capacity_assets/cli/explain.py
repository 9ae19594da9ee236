"""`capacity explain`: the samples behind one row and the arithmetic of each figure, the parts of a group, or a runway.

A runway is shown beside a forecast that was computed a second way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from decimal import Decimal

import click
import numpy as np
from sqlalchemy import Engine, text

from capacity_assets.aggregates.explanation import Explanation, Figure, Sample, Subject, explanation_of, find_subjects
from capacity_assets.base.errors import NotFoundError, ValidationError, database_errors
from capacity_assets.base.files import key_and_value
from capacity_assets.base.periods import PERIODS, Clock, Period, Window
from capacity_assets.base.settings import HORIZONS_DAYS, Settings
from capacity_assets.base.units import counted, first_of, human_mb, printable
from capacity_assets.cli.declaring import since
from capacity_assets.cli.limits import limit_text
from capacity_assets.cli.options import (
    DAY,
    completing,
    json_command,
    left,
    once_option,
    print_json,
    print_table,
    right,
    say,
)
from capacity_assets.cli.runway import LEAST_HISTORY_DAYS
from capacity_assets.collection.registry import registered
from capacity_assets.database.guards import refuse_an_unfit_database
from capacity_assets.forecast.history_statements import DATABASE_ROWS, SERVER_ROWS, VOLUME_ROWS
from capacity_assets.forecast.issued import EarlierForecast, earlier_forecasts
from capacity_assets.forecast.limits import SizeStep, stored_steps
from capacity_assets.forecast.model import Forecasts, forecast, without_steps
from capacity_assets.forecast.outlook import FORECAST, FULL, TOO_LITTLE_HISTORY, Outlook, day_text
from capacity_assets.forecast.reference import Reference, reference
from capacity_assets.forecast.runway import MIDDLE, SeriesOutlook, error_with, outlook_with_sizes
from capacity_assets.ownership.groups import ExplainedGroup, GroupPart, being_computed, explain_group, groups_changed_at
from capacity_assets.ownership.labels import checked, labels_on
from capacity_assets.runtime import open_task_runner, refuse_an_absent_embedded_server

PARTS_LISTED = 20
GROUP_COLUMNS = (
    ("Server", "left"), ("Database", "left"), ("Days", "right"), ("Size per measured day", "right"), ("Label", "left"),
)  # fmt: skip


def explain_label(  # noqa: PLR0913 -- the window of a label, and how it is printed
    engine: Engine, settings: Settings, label: str, period: Period, window: Window, *, every_part: bool, as_json: bool
) -> None:
    """Print a group's parts, their sum, and whether its row has the same.

    Raises ValidationError, NotFoundError, DatabaseError.
    """
    key, value = key_and_value(label)
    key, _ = checked(key, value, settings.label_keys)
    with database_errors(doing="reading a group", kept="Nothing was changed."), engine.connect() as connection:
        # One state of the tables: a row that is written meanwhile would look wrong.
        connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
        found = explain_group(connection, period, window, key, value)
        changed_at = groups_changed_at(connection, period, [window])
    if as_json:
        more = {"sum_mb": found.sum_mb, "size_mb": found.size_mb, "agrees": found.agrees}
        window_of = {"period_type": period.name, "period_start": window.start, "period_end": window.end}
        print_json({**asdict(found), **window_of, **more})
        return
    shown = found.parts if every_part else found.parts[:PARTS_LISTED]
    title = f"{key}={value}, {period.name_of(window)}, by the labels of each day"
    print_table(title, GROUP_COLUMNS, [_group_cells(part, found.days) for part in shown])
    hidden = len(found.parts) - len(shown)
    if hidden:
        say(f"and {counted(hidden, 'smaller part')}, which --all lists.")
    say(_verdict(found))
    if changed_at:
        say(being_computed(changed_at))


def _group_cells(part: GroupPart, days: int) -> list[object]:
    of = "the server" if part.label_of is None else part.label_of
    named = part.database or "all that has no other value"
    return [part.server, named, part.days, human_mb(part.sum_mb // days), f"of {of}, {since(part.valid_from)}"]


def _verdict(found: ExplainedGroup) -> str:
    added_up = f"In all {found.sum_mb:,} MiB added up over {counted(found.days, 'measured day')}"
    if found.agrees:
        return f"{added_up}, {human_mb(found.size_mb)} per day. The stored row has the same."
    if not found.is_whole:
        return f"{added_up}. The row rests on {found.row_days} days; samples of the others are gone."
    there = "is none" if found.row_sum_mb is None else f"has {found.row_sum_mb:,} MiB"
    return f"{added_up}. The stored row {there}: `capacity aggregate` for this window computes it again."


TOLERANCE = 1e-6
RUNWAY_COLUMNS = (
    *left("Horizon"),
    *right("Past errors", "Lower", "Forecast", "Upper", "Usual error", "Full by then"),
    *left("A second way"),
)


EARLIER_COLUMNS = (*left("As of", "Full (50 %)"), *right("Horizon", "Forecast", "Measured", "Error"))


@dataclass(frozen=True)
class RunwayExplanation:
    """A runway, what it was made of, and the same once more."""

    outlook: Outlook
    measured_days: int
    steps: Sequence[SizeStep]
    made: Forecasts
    again: Reference
    earlier: Sequence[EarlierForecast]

    @property
    def agrees(self) -> bool:
        """Whether both ways come to the same, up to the last digits of a sum."""
        bands = [(self.made.lower[0, n], self.made.upper[0, n]) for n in range(len(HORIZONS_DAYS))]
        other = [self.again.band.get(days, (np.nan, np.nan)) for days in HORIZONS_DAYS]
        close = np.allclose(bands, other, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
        return bool(close and np.isclose(self.made.drift[0], self.again.drift, rtol=TOLERANCE, atol=TOLERANCE))


def explain_runway(  # noqa: PLR0913 -- what is explained, and how it is printed
    engine: Engine, settings: Settings, kind: str, name: str | None, server: str | None, *, as_json: bool
) -> None:
    """Print where the runway of a database or volume, or without a `name` that of a server, comes from.

    Raises:
        NotFoundError: no such server, or nothing of that name was measured within the last month.
        ValidationError: a name is empty, or several servers have one of that name.
        DatabaseError: the database failed.
    """
    if "" in {name, server}:
        raise ValidationError("A name is empty.")
    if server is not None:
        registered(engine, [server])
    found = outlook_with_sizes(engine, Clock(settings.zone).today(), kind, name, server)
    if found is None:
        named = server if name is None else f"{kind} {printable(name)}"
        raise NotFoundError(
            f"{named} was not measured within the last month, or does not exist: names are compared letter by letter."
        )
    measured, smooth = (
        [None if np.isnan(size) else float(size) for size in sizes] for sizes in (found.sizes, found.smooth)
    )
    # A step of one database is one of its server's total, too.
    database = name if kind == DATABASE_ROWS else None
    left_out = [step for step in stored_steps(engine, found.outlook.server, database) if _is_left_out(step, found)]
    made = forecast(found.smooth[None, :], found.sizes[None, :])
    days = sum(value is not None for value in measured)
    with (
        database_errors(doing="reading earlier forecasts", kept="Nothing was changed."),
        engine.connect() as connection,
    ):
        earlier = earlier_forecasts(connection, found.outlook)
    explanation = RunwayExplanation(found.outlook, days, left_out, made, reference(smooth, measured), earlier)
    if as_json:
        print_json(_runway_as_dict(explanation))
    else:
        _print_runway(explanation)


def _is_left_out(step: SizeStep, found: SeriesOutlook) -> bool:
    """Whether a declared step changes what is forecast: sizes before and after it are known, and differ."""
    column = len(found.sizes) - 1 - (found.outlook.last_day - step.day).days
    if step.day > found.outlook.last_day or np.array_equal(found.smooth, found.sizes, equal_nan=True):
        return False
    alone = without_steps(found.sizes[None, :], [[column]])
    return not np.array_equal(alone[0], found.sizes, equal_nan=True)


def _print_runway(explanation: RunwayExplanation) -> None:
    outlook, again = explanation.outlook, explanation.again
    say(f"{outlook.display_name} on {outlook.server}, as of {outlook.last_day}: {human_mb(outlook.size_mb)}")
    say(f"Measured days that were looked at: {explanation.measured_days:,}")
    for step in explanation.steps:
        what = f"{step.database}: {step.note}" if step.database else step.note
        say(f"Left out: {step.day}, {printable(what)}.")
    if outlook.history_days >= LEAST_HISTORY_DAYS:
        say(
            f"Daily changes from {again.lowest_change:,.3f} to {again.highest_change:,.3f} MiB count as they are, "
            f"{again.cut_changes:,} beyond were cut to these."
        )
        say(
            f"Drift: {explanation.made.drift[0]:,.3f} MiB per day; a second way: {again.drift:,.3f}. "
            + (
                "It was the better forecast."
                if again.follows_drift
                else "The last size was the better forecast, so it stays."
            )
        )
        print_table(
            "Bands in MiB", RUNWAY_COLUMNS, [_runway_cells(explanation, place) for place in range(len(HORIZONS_DAYS))]
        )
        say(
            "Errors are what was measured less what was forecast. Days on which it is full come from the forecast with "
            "these errors."
        )
    if outlook.binds is None:
        say("Limit: unknown. `capacity limits set` declares one.")
    else:
        say(f"Limit: {limit_text(outlook.limit_mb)}, {outlook.binds}, {outlook.source}.")
    if outlook.state == FULL:
        say("It is full.")
    elif outlook.state == FORECAST:
        early, middle, late = outlook.days_text
        say(f"Full: early {early}, middle {middle}, late {late}.")
    elif outlook.state == TOO_LITTLE_HISTORY:
        say(f"No date: {counted(outlook.history_days, 'day')} of history; at least {LEAST_HISTORY_DAYS} are needed.")
    else:
        say(f"No date: {outlook.state}.")
    if outlook.sooner_day is not None:
        say(outlook.remark)
    if explanation.earlier:
        print_table("What was said before", EARLIER_COLUMNS, list(map(_earlier_cells, explanation.earlier)))
    say("Both ways come to the same." if explanation.agrees else "The two ways DIFFER: please report this.")


def _earlier_cells(earlier: EarlierForecast) -> list[object]:
    middle = earlier.state if earlier.state != FORECAST else day_text(earlier.middle_day)
    sizes = ["none" if size is None else human_mb(size) for size in (earlier.forecast_mb, earlier.actual_mb)]
    error = ""
    if earlier.forecast_mb is not None and earlier.actual_mb:
        error = f"{(earlier.actual_mb - earlier.forecast_mb) / earlier.actual_mb:+.1%}"
    return [earlier.as_of, middle, f"{earlier.horizon_days} days", *sizes, error]


def _runway_cells(explanation: RunwayExplanation, place: int) -> list[object]:
    made, days = explanation.made, HORIZONS_DAYS[place]
    other = explanation.again.band.get(days)
    figures = [f"{each[0, place]:,.1f}" for each in (made.lower, made.middle, made.upper)]
    again = "none" if other is None else f"{other[0]:,.1f} to {other[1]:,.1f}"
    own = len(explanation.again.errors[days])
    errors = own if made.counts[0, place] else f"{own}, borrowed"
    probability = explanation.outlook.probabilities.get(days)
    shown = "" if probability is None else f"{probability:.0%}"
    return [f"{days} days", errors, *figures, f"{error_with(made, MIDDLE)[0, place]:+,.1f}", shown, again]


def _runway_as_dict(explanation: RunwayExplanation) -> dict[str, object]:
    again = explanation.again
    return {
        "outlook": asdict(explanation.outlook),
        "measured_days": explanation.measured_days,
        "steps": [asdict(step) for step in explanation.steps],
        "drift_mb_per_day": float(explanation.made.drift[0]),
        "lowest_change_mb": again.lowest_change,
        "highest_change_mb": again.highest_change,
        "cut_changes": again.cut_changes,
        "follows_drift": again.follows_drift,
        "errors_mb": again.errors,
        "band_mb": again.band,
        "said_before": [asdict(one) for one in explanation.earlier],
        "agrees": explanation.agrees,
    }


DAYS_LISTED = 5
SERVERS_NAMED = 10


@click.command()
@click.argument("database", required=False)
@click.option("--period", help=f"One of {', '.join(PERIODS)}.", shell_complete=completing(PERIODS))
@click.option("--window", "day", type=DAY, help="Any day of the window. Default: the window that is due.")
@click.option("--server", help="Name of the server; needed where several have a database of that name.")
@click.option("--runway", is_flag=True, help="Explain when it is full, instead of a period's figures.")
@click.option("--volume", help="With --runway: a volume of the server instead of a database.")
@once_option("--label", metavar="KEY=VALUE", description="The sum of a group, such as team=payments.")
@click.option("--all", "every_day", is_flag=True, help="Print the samples of every day, or every part of a group.")
@json_command
def explain(  # noqa: PLR0913 -- one argument per documented option
    settings: Settings,
    /,
    *,
    database: str | None,
    period: str | None,
    day: date | None,
    server: str | None,
    runway: bool,
    volume: str | None,
    label: str | None,
    every_day: bool,
    as_json: bool,
) -> None:
    """Trace figures to their samples, or a group's sum to its parts.

    Every figure of a database or server is computed once more from the samples, by fractions and without the
    database's help, and compared with the stored one. Changes nothing.

    \b
    Examples:
      capacity explain orders --period monthly --window 2025-03-01
      capacity explain orders --server db-7 --period weekly
      capacity explain --server db-7 --period quarterly
      capacity explain --label team=payments --period monthly
      capacity explain orders --runway
      capacity explain --server db-7 --volume /data --runway
    """
    if label is not None and (database, server, volume, runway) != (None, None, None, False):
        raise ValidationError("--label explains a group as a whole: name no database, server, volume or --runway.")
    if database is None and server is None and volume is None and label is None:
        raise ValidationError("Name a database, a server with --server, or a group with --label.")
    if runway and (period is not None or day is not None or every_day):
        raise ValidationError(
            "--runway says when something is full as of today: it cannot be combined with --period, --window or --all."
        )
    if volume is not None and (database is not None or not runway):
        raise ValidationError("--volume goes with --runway, and in the place of a database.")
    if period is None and not runway:
        raise ValidationError(f"Say which figures: --period, one of {', '.join(PERIODS)}, or --runway.")
    refuse_an_absent_embedded_server(settings)
    with open_task_runner(settings) as runner:
        if period is None:
            refuse_an_unfit_database(runner.service.engine, settings.zone, kept="Nothing was changed.")
            kind = VOLUME_ROWS if volume else DATABASE_ROWS if database is not None else SERVER_ROWS
            explain_runway(runner.service.engine, settings, kind, volume or database, server, as_json=as_json)
            return
        chosen = runner.service.period(period)
        today = Clock(settings.zone).today()
        window = runner.service.partitions.window_holding(chosen, day or chosen.scheduled(today).start)
        if label is not None:
            refuse_an_unfit_database(runner.service.engine, settings.zone, kept="Nothing was changed.")
            engine = runner.service.engine
            explain_label(engine, settings, label, chosen, window, every_part=every_day, as_json=as_json)
            return
        subject = _only(find_subjects(runner.service.engine, database, server))
        explanation = explanation_of(runner.service.engine, subject, chosen, window, today)
        labels = labels_on(runner.service.engine, subject.server, subject.database, window.end)
    if as_json:
        print_json({**_as_dict(explanation), "labels": labels})
    else:
        _print(explanation, labels, every_day=every_day)


def _only(subjects: list[Subject]) -> Subject:
    """Return the one that was found; raises ValidationError where there are several."""
    if len(subjects) > 1:
        names = first_of((subject.server for subject in subjects), SERVERS_NAMED)
        raise ValidationError(
            f"{len(subjects)} servers have a database of the name {subjects[0].database!r}: {names}. Add --server."
        )
    return subjects[0]


def _print(explanation: Explanation, labels: Mapping[str, str], *, every_day: bool) -> None:
    period, window, samples = explanation.period, explanation.window, explanation.samples
    say(f"{explanation.subject}, {period.name} window {window.start} to {window.end}")
    if labels:
        say(f"Labels: {', '.join(f'{key}={value}' for key, value in sorted(labels.items()))}")
    _print_samples(f"Samples of the window: {len(samples.own)}", samples.own, every_day=every_day)
    if not explanation.subject.active:
        say(RETIRED)
    missing = explanation.missing_days
    if missing and samples.own:
        say(f"Days without a sample: {first_of(missing, DAYS_LISTED)}")
    for what, other, found in (
        ("of the window before", period.previous(window), samples.before),
        ("of the same window a year before", period.year_before(window), samples.year_before),
    ):
        heading = f"Samples {what}, {other.start} to {other.end}: {len(found)}"
        _print_samples(heading, found, every_day=every_day)
    if explanation.figures:
        print_table("Figures", FIGURE_COLUMNS, [_cells(explanation, figure) for figure in explanation.figures])
    say(explanation.verdict)


RETIRED = "The server is not active: it is aggregated no more, and what is stored of it stays."
FIGURE_COLUMNS = (("Figure", "left"), ("How", "text"), ("Result", "right"), ("Stored", "right"))


def _cells(explanation: Explanation, figure: Figure) -> list[object]:
    stored = "" if explanation.stored is None else _shown(figure.stored)
    differs = explanation.stored is not None and not figure.agrees
    marked = f"{stored:,} !" if isinstance(stored, int) else f"{stored} !"
    return [figure.name, figure.how, _shown(figure.computed), marked if differs else stored]


def _shown(value: object) -> object:
    """Return what a table shows: whole numbers, which get separators, also where they are stored as decimals."""
    if isinstance(value, Decimal) and value.as_tuple().exponent == 0:
        return int(value)
    return "unknown" if value is None else value


def _print_samples(heading: str, samples: tuple[Sample, ...], *, every_day: bool) -> None:
    """Print the first and the last days, or all: the days of the extremes are named beside these."""
    if not samples:
        say(heading)
        return
    columns = (("Day", "left"), *((name, "right") for name in samples[0].values))
    shown: list[list[object]] = [[sample.day, *map(_shown, sample.values.values())] for sample in samples]
    if not every_day and len(shown) > 2 * DAYS_LISTED + 1:
        between: list[object] = [f"{len(shown) - 2 * DAYS_LISTED} days", *("..." for _ in samples[0].values)]
        shown = [*shown[:DAYS_LISTED], between, *shown[-DAYS_LISTED:]]
    print_table(heading, columns, shown)


def _days(samples: tuple[Sample, ...]) -> list[dict[str, object]]:
    return [{"day": sample.day, **sample.values} for sample in samples]


def _as_dict(explanation: Explanation) -> dict[str, object]:
    return {
        "subject": asdict(explanation.subject),
        "period_type": explanation.period.name,
        "period_start": explanation.window.start,
        "period_end": explanation.window.end,
        "samples": _days(explanation.samples.own),
        "samples_before": _days(explanation.samples.before),
        "samples_year_before": _days(explanation.samples.year_before),
        "missing_days": list(explanation.missing_days),
        "figures": [{**asdict(figure), "agrees": figure.agrees} for figure in explanation.figures],
        "verdict": explanation.verdict,
    }
