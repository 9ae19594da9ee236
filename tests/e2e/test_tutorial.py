"""The tutorial, command by command, in an empty folder: each does what the page says."""

from __future__ import annotations

import re
import shlex
import subprocess
from datetime import date, timedelta
from pathlib import Path

from capacity_assets.base.units import human_day
from tests.documents import ROOT
from tests.e2e.stack import PATIENCE_SECONDS, environment
from tests.forked import run_forked

TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text()
# Serves until it is stopped; other tests do that.
LAST = "capacity up"
CORRECTION = "capacity import correction.csv --on-conflict replace"


def steps() -> list[str]:
    """The shell's part of each step, and each command, in order."""
    found: list[str] = []
    for block in re.findall(r"```console\n(.*?)```", TUTORIAL, re.DOTALL):
        found += [part for part in re.split(r"^(capacity .*)$\n?", block, flags=re.MULTILINE) if part.strip()]
    return found


def test_the_tutorial_does_what_it_says(tmp_path: Path) -> None:
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
    days = [human_day(last_day + timedelta(days=after)) for after in (16, 41, 185)]
    assert re.findall(r"\d+ \w{3} 20\d\d", row) == days, "the middle day is where the line meets the limit"
    assert "Limit unknown: 1 database." in outputs["capacity runway"]
    assert "payments" in outputs["capacity groups"]
    lines = [line.split() for line in outputs["capacity bill"].splitlines()]
    [of_team], [total] = ([line for line in lines if line[:1] == [word]] for word in ("payments", "Total"))
    assert of_team[-2:] == total[-2:]
    assert LAST in steps()
