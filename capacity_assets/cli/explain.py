"""`capacity explain`: the samples behind one row, and the arithmetic of each figure."""

from __future__ import annotations

from dataclasses import asdict
from datetime import date

from capacity_assets.aggregation.explanation import Explanation, Figure, Subject, explain, find_subjects
from capacity_assets.aggregation.reference import Sample
from capacity_assets.cli.database import refuse_an_absent_embedded_server
from capacity_assets.cli.errors import DONE
from capacity_assets.cli.output import print_json, print_table, say
from capacity_assets.clock import Clock
from capacity_assets.foundation.errors import ValidationError
from capacity_assets.runtime import open_task_runner
from capacity_assets.settings import Settings
from capacity_assets.units import first_of

DAYS_LISTED = 5
SERVERS_NAMED = 10


def show_explanation(  # noqa: PLR0913 -- one argument per documented option
    settings: Settings,
    database: str | None,
    server: str | None,
    period: str,
    day: date | None,
    *,
    every_day: bool,
    as_json: bool,
) -> int:
    """Print where the figures of a database, or of a server, come from in one window; return the exit code.

    Raises:
        ValidationError: neither is named, an unknown period, a day outside the partition range, or a name that
            several servers have.
        NotFoundError: nothing of that name was ever measured.
        DatabaseError: the database failed.
    """
    if database is None and server is None:
        raise ValidationError("Name a database, or a server with --server. Nothing was written.")
    refuse_an_absent_embedded_server(settings)
    with open_task_runner(settings) as runner:
        chosen = runner.service.period(period)
        today = Clock(settings.zone).today()
        day = day or chosen.scheduled(today).start
        [window] = runner.service.partitions.windows_between(chosen, day, day)
        subject = _only(find_subjects(runner.service.engine, database, server))
        explanation = explain(runner.service.engine, subject, chosen, window, today)
    if as_json:
        print_json(_as_dict(explanation))
    else:
        _print(explanation, every_day=every_day)
    return DONE


def _only(subjects: list[Subject]) -> Subject:
    """Return the one that was found.

    Raises:
        ValidationError: there are several.
    """
    if len(subjects) > 1:
        names = first_of((subject.server for subject in subjects), SERVERS_NAMED)
        raise ValidationError(
            f"{len(subjects)} servers have a database of the name {subjects[0].database!r}: {names}. Add --server."
        )
    return subjects[0]


def _print(explanation: Explanation, *, every_day: bool) -> None:
    period, window, samples = explanation.period, explanation.window, explanation.samples
    say(f"{explanation.subject}, {period.name} window {window.start} to {window.end}")
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
