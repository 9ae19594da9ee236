"""`capacity scenario`: what named assumptions make of runways and budget, beside the base case."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path

import click

from capacity_assets.base.periods import Clock
from capacity_assets.base.settings import Settings
from capacity_assets.base.units import counted, human_change_mb, human_day, human_mb
from capacity_assets.cli.declaring import opened_registry
from capacity_assets.cli.options import GIGABYTES, Line, Report, Table, json_command, number_listed
from capacity_assets.collection.servers import registered
from capacity_assets.forecast.scenarios import compare, new_database_everywhere, no_label, scenario_of_file
from capacity_assets.ownership.bills import group_named, money, money_change
from capacity_assets.ownership.groups import default_grouping
from capacity_assets.ownership.scenario_results import (
    BudgetChange,
    Fit,
    RunwayFigures,
    ScenarioResult,
    fits,
    remove,
    result_of,
    store,
)

HEADINGS = ("Server", "What", ">Size", "Base (50 %)", ">Within a year", "Scenario (50 %)", "Range", ">Within a year")
BUDGET_HEADINGS = (">Size at the end", ">Scenario", ">Change", ">Amount", ">Scenario", ">Change")
FIT_HEADINGS = ("Server", "Full first", ">Left today", "Base (50 %)", "With it (50 %)", "Range", ">Within a year")


@click.command()
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("--fit", type=GIGABYTES, help="Instead of FILE: where does a new database of so many GiB fit?")
@click.option("--by", help="engine, or a label key, for the budget. Default: the first of CAPACITY_LABEL_KEYS.")
@number_listed("show", 20)
@click.option("--store", "stored_name", metavar="NAME", help="Store the result under a name, for the page /scenario.")
@click.option("--remove", "removed_name", metavar="NAME", help="Instead of FILE: remove a stored result.")
@json_command
def scenario(
    settings: Settings,
    /,
    *,
    file: Path | None,
    fit: Decimal | None,
    by: str | None,
    show: int,
    stored_name: str | None,
    removed_name: str | None,
) -> Report:
    """Show how assumptions change runways and budget.

    FILE is a TOML file with tables [[growth]], [[new_database]], [[purge]], [[limit]] and [[move]]. What differs from
    the base case is shown beside it, the greatest risk first. Stores nothing without --store.

    \b
    Examples:
      capacity scenario next-year.toml
      capacity scenario next-year.toml --store "next year"
      capacity scenario --fit 300
    """
    if sum(one is not None for one in (file, fit, removed_name)) != 1 or (stored_name and file is None):
        raise click.UsageError("Give a FILE, with or without --store, or --fit, or --remove.")
    with opened_registry(settings, settings.zone) as engine:
        today = Clock(settings.zone).today()
        if removed_name is not None:
            remove(engine, removed_name)
            return Report({"removed": removed_name}, [f"Removed the stored scenario {removed_name}."])
        if fit is not None:
            found = fits(compare(engine, today, new_database_everywhere(fit), no_label))
            return Report([asdict(one) for one in found], _fit_lines(found, fit, show))
        assert file is not None  # noqa: S101 -- one of the three was given
        assumed = scenario_of_file(file)
        registered(engine, sorted(assumed.servers))  # refuses unknown names
        result = result_of(engine, today, assumed, by or default_grouping(settings.label_keys), settings.label_keys)
        if stored_name is not None:
            store(engine, stored_name, result)
    return Report({**asdict(result), "stored": stored_name}, _lines(result, show, stored_name))


def _lines(result: ScenarioResult, show: int, stored_name: str | None) -> Iterator[Line]:
    yield "Assumed: " + ("; ".join(result.assumptions) or "nothing") + "."
    if result.runways:
        rows: list[list[object]] = [
            [
                one.server,
                one.display_name,
                human_mb(one.size_mb),
                one.before.text,
                _chance(one.before),
                one.after.text,
                one.after.range_text,
                _chance(one.after),
            ]
            for one in result.runways
        ]
        yield Table.of_first(f"Full when, as of {human_day(result.as_of)}", HEADINGS, rows, show)
    yield f"Unchanged: {counted(result.unchanged, 'runway')}."
    yield from result.notes
    if result.total is not None and result.last_day is not None and result.grouped_by is not None:
        by = result.grouped_by
        rows = [_budget_cells(group_named(one.name, by), one) for one in result.budget]
        title = f"Budget of the 12 months to {human_day(result.last_day)}, {result.currency or 'no currency'}"
        headings = (by.replace("_", " ").capitalize(), *BUDGET_HEADINGS)
        yield Table(title, headings, [*rows, _budget_cells("Total", result.total)])
    if result.without_budget:
        yield f"No budget: {result.without_budget}"
    if stored_name is not None:
        yield f"Stored as {stored_name}: the page /scenario shows it."


def _budget_cells(name: str, one: BudgetChange) -> list[object]:
    change = human_change_mb(one.end_size_after_mb - one.end_size_before_mb)
    sizes = [human_mb(one.end_size_before_mb), human_mb(one.end_size_after_mb), change]
    return [name, *sizes, money(one.amount_before), money(one.amount_after), money_change(one.difference)]


def _chance(figures: RunwayFigures) -> str:
    return "" if figures.within_365_days is None else f"{figures.within_365_days:.0%}"


def _fit_lines(found: list[Fit], gb: Decimal, show: int) -> Iterator[Line]:
    if not found:
        yield "No server has a known limit. `capacity limits set` declares one."
        return
    rows = [
        [
            one.server,
            one.display_name,
            human_mb(one.headroom_mb),
            one.before.text,
            one.after.text,
            one.after.range_text,
            _chance(one.after),
        ]
        for one in found
    ]
    yield Table.of_first(f"Where {gb:,} GiB fit, best first", FIT_HEADINGS, rows, show)
    yield "Servers without a known limit are not listed. Those with too little history come last."
