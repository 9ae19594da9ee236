"""`capacity report`: the growth report of any window, or of one server, from a shell."""

from __future__ import annotations

from datetime import date
from pathlib import Path

from capacity_assets.aggregation.errors import ValidationError
from capacity_assets.cli.database import refuse_an_absent_embedded_server
from capacity_assets.cli.errors import DONE
from capacity_assets.cli.output import print_json, say, writing
from capacity_assets.clock import Clock
from capacity_assets.runtime import open_task_runner
from capacity_assets.settings import Settings
from capacity_assets.units import human_change_mb, human_mb


def write_growth_report(  # noqa: PLR0913 -- one argument per documented option
    settings: Settings, period: str, day: date | None, server: str | None, output: Path | None, *, as_json: bool
) -> int:
    """Write the growth report of a window and say where it is; return the exit code.

    Raises:
        ValidationError: unknown period, or a window without a stored row in it or before it.
        NotFoundError: no such server.
        CommandFailedError: the file cannot be written.
        DatabaseError: the database failed.
    """
    from capacity_assets.report.data import file_name, read_report
    from capacity_assets.report.page import write_report

    refuse_an_absent_embedded_server(settings)
    with open_task_runner(settings) as runner:
        chosen = runner.service.period(period)
        window = chosen.last(Clock(settings.zone).today()) if day is None else chosen.window_of(day)
        report = read_report(runner.engine, chosen, window, server)
    if not report.start_mb and not report.end_mb and report.computed_at is None:
        raise ValidationError(
            f"There is no stored row of the {period} window {window.start} to {window.end}, nor of the one before. "
            f"`capacity plan --period {period} --from {window.start} --to {window.start}` says what could be computed. "
            "No page was written."
        )
    path = (settings.reports / file_name(chosen, window, server) if output is None else output).resolve()
    with writing(path):
        write_report(report, path)
    if as_json:
        steps = {f"{kind.value}_mb": change for kind, change in report.steps}
        print_json({"path": str(path), "start_mb": report.start_mb, **steps, "end_mb": report.end_mb})
    else:
        change = report.end_mb - report.start_mb
        say(
            f"{report.period.name} window {window.start} to {window.end}: {human_mb(report.end_mb)}, "
            f"{human_change_mb(change)} against the window before"
        )
        say(f"Report: {path}")
    return DONE
