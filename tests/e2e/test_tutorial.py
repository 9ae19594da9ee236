"""The commands of the tutorial in an empty folder do what the page says."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import date, timedelta
from pathlib import Path

import dagster as dg
import pytest

from capacity_assets.base.periods import Clock
from capacity_assets.base.settings import Settings
from capacity_assets.base.units import human_day
from capacity_assets.database.embedded import embedded_server
from capacity_assets.messages.alerts import send_alerts
from capacity_assets.orchestration.build import build_definitions
from capacity_assets.orchestration.runways import RUNWAY_JOB
from capacity_assets.reading.subjects import server_id_of
from capacity_assets.runtime import open_engine
from tests.alerted_fleet import receiver, sending_settings
from tests.documents import ROOT
from tests.e2e.conftest import FIRST_DAY, Demo
from tests.e2e.stack import DEMO_SECONDS, PATIENCE_SECONDS, environment
from tests.forked import run_forked
from tests.pages import served_pages
from tests.receiver import receiving
from tests.runs import QUIET

TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text()
# Serves until it is stopped; other tests do that.
LAST = "capacity up"
CORRECTION = "capacity import correction.csv --on-conflict replace"


def steps() -> list[str]:
    """Return the shell commands of each step, in order."""
    found: list[str] = []
    for block in re.findall(r"```console\n(.*?)```", TUTORIAL, re.DOTALL):
        found += [part for part in re.split(r"^(capacity .*)$\n?", block, flags=re.MULTILINE) if part.strip()]
    return found


@pytest.fixture
def running() -> Iterator[ExitStack]:
    """Processes that run until the end of a test."""
    with ExitStack() as entered:
        yield entered


@pytest.mark.nightly("computes a demo of its own")
def test_the_tutorial_does_what_it_says(tmp_path: Path, running: ExitStack) -> None:
    # By its user's time zone: `date` and Python's `date.today()` mean the machine's.
    variables = environment(tmp_path / ".capacity", CAPACITY_TIMEZONE="UTC", TZ="UTC")
    outputs: dict[str, str] = {}

    def again(*arguments: str) -> str:
        return run_forked(*arguments, environment=variables, timeout=PATIENCE_SECONDS, folder=tmp_path).stdout

    for step in steps():
        if step == LAST:
            break
        if step == CORRECTION:
            # As the page says of the second time. Later, labels may have groups still to be computed.
            assert " 0 rows written" in again("aggregate", "--period", "all", "--from", variables["first"])
        if step.startswith("capacity "):
            arguments = [one.replace("$first", variables["first"]) for one in shlex.split(step)[1:]]
            done = run_forked(*arguments, environment=variables, timeout=PATIENCE_SECONDS, folder=tmp_path)
            assert done.returncode == 0, (step, done.stderr)
            if not outputs:
                # Each further command would start and stop it.
                running.enter_context(embedded_server(tmp_path / ".capacity" / "postgres"))
            # `aggregate` comes twice.
            outputs[step] = outputs.get(step, "") + done.stdout
        else:
            script = f'{step}\necho "first=$first" > variables'
            subprocess.run(["/bin/bash", "-ec", script], cwd=tmp_path, env=variables, check=True)
            first = (tmp_path / "variables").read_text().strip().partition("=")[2]
            variables |= {"first": first or variables.get("first", "")}

    imported = outputs["capacity import samples.csv --register-as postgresql"]
    assert re.search(r"180 new samples\s+90 totals of servers", imported)
    assert "db-1   postgresql orders" in outputs["capacity top"]
    assert "Every stored figure is what its samples give." in outputs["capacity explain orders --period monthly"]
    assert "1 samples replaced by another value" in outputs[CORRECTION]
    first, corrected = re.findall(r"([\d,]+) rows written", outputs["capacity aggregate --period all --from $first"])
    planned = re.search(r"would write (\d+)", outputs["capacity plan --period all --from $first"])
    assert planned is not None
    assert int(first.replace(",", "")) > int(corrected) == int(planned.group(1)) > 0
    for period in ("daily", "weekly", "monthly", "quarterly", "yearly"):
        assert re.search(rf"{period} +database", outputs["capacity plan --period all --from $first"]), period
    assert "differ from the stored sample" in again("import", "samples.csv")
    [row] = [line for line in outputs["capacity runway"].splitlines() if line.startswith("db-1   orders")]
    last_day = date.fromisoformat(variables["first"]) + timedelta(days=89)
    days = [human_day(last_day + timedelta(days=after)) for after in (15, 41, 185)]
    assert re.findall(r"\d+ \w{3} 20\d\d", row) == days, "the middle day is where the line meets the limit"
    assert "Limit unknown: 1 database." in outputs["capacity runway"]
    assert "payments" in outputs["capacity groups"]
    lines = [line.split() for line in outputs["capacity bill"].splitlines()]
    [of_team], [total] = ([line for line in lines if line[:1] == [word]] for word in ("payments", "Total"))
    assert of_team[-2:] == total[-2:]
    assert LAST in steps()


def steps_of_the_week(server: str, database: str, day: date) -> list[list[str]]:
    """The commands of the week with the sample fleet, completed with a subject and a day."""
    completed = {"SERVER": server, "DATABASE": database, "DAY": day.isoformat()}
    commands = [step for step in steps()[steps().index(LAST) + 1 :] if step.startswith("capacity ")]
    return [[completed.get(word, word) for word in shlex.split(command)[1:]] for command in commands]


@pytest.mark.nightly("computes a demo of its own, three times")
def test_the_week_of_the_sample_fleet_goes_as_it_says(
    demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = demo.copy_to(tmp_path / "home")
    own = {"CAPACITY_HOME": str(home), "CAPACITY_START_DATE": FIRST_DAY, "CAPACITY_DECLARED_BY": "anna"}
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    clock = Clock(settings.zone)
    day = clock.today() + timedelta(days=10)

    def done(*arguments: str) -> str:
        run = run_forked(*arguments, environment=environment(home), timeout=DEMO_SECONDS)
        assert run.returncode == 0, (arguments, run.stderr)
        return run.stdout

    def check() -> dg.AssetCheckEvaluation:
        job = build_definitions(settings).resolve_job_def(RUNWAY_JOB)
        [found] = job.execute_in_process(QUIET, partition_key=str(clock.today())).get_asset_check_evaluations()
        return found

    with open_engine(settings) as engine, receiving() as chat:
        fleet, planned, every, one = (done(*words) for words in steps_of_the_week("", "", day)[:4])
        first = json.loads(done("runway", "--json"))["rows"][0]
        with engine.connect() as connection:
            number = server_id_of(connection, first["server"])
        page, digest = f"/database?server={number}&name={first['database']}", ("digest", "--week", str(clock.today()))

        def seen() -> tuple[dg.AssetCheckEvaluation, list[str], str, str]:
            chat.bodies.clear()
            send_alerts(engine, clock, [receiver("dba")], sending_settings(chat.url))
            with served_pages(engine.url, clock=clock) as pages:
                return check(), list(chat.texts), done(*digest), pages.ask(page).text

        failed, [alert], named, with_command = seen()
        done(*steps_of_the_week(first["server"], first["database"], day)[4])
        passed, [resolved], left_out, marked = seen()
        done("decisions", "remove", first["server"], first["database"])
        listed, every_one = done("decisions", "list"), done("decisions", "list", "--all")

    what = f"{first['database']} on {first['server']}"
    assert "The demo is complete already" in fleet
    assert len(json.loads(done("instances", "list", "--json"))) == 12
    assert first["early_day"] <= first["middle_day"] <= str(clock.today() + timedelta(days=35)), "full within weeks"
    assert every.splitlines()[2].split()[:2] == [first["server"], first["database"]], "in the first line"
    assert re.search(r"sqlserver-bi-01 disk E:\\ planned .* 64\.0 GiB", planned)
    assert re.search(r"disk E:\\ on sqlserver-bi-01\. Planned for .* With .* from .* on: ", one)
    assert (failed.passed, what in str(failed.description)) == (False, True)
    assert what in alert
    assert "E:" not in alert, "it fills later"
    assert f"- {what}: act" in named
    assert f"capacity decide {first['server']} {first['database']} acknowledged --until DAY" in with_command
    assert passed.passed
    assert resolved.startswith(f"Resolved: {what}\n- Why: Acknowledged until {human_day(day)}, by anna: ")
    assert what not in left_out
    assert "Decisions leave out 1 fill date: " in left_out, "the other one would not be named"
    assert ", by anna: purge runs on Friday week." in marked
    assert first["database"] not in listed
    assert first["database"] in every_one
