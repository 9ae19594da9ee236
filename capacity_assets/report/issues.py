"""The issues of a report: a published page stays, and a restatement gives the old figure, the new one and why.

A page carries its own figures in its head. When the page of a closed window is rendered again with other figures, the
old one is kept beside it under a name of its own, and the new one is the next issue. What is on a page is decided in
`data`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from html import escape, unescape
from pathlib import Path

from sqlalchemy import Engine

from capacity_assets.base.errors import database_errors
from capacity_assets.base.units import counted, first_of, human_pair_mb
from capacity_assets.reading.coverage import late_samples
from capacity_assets.report.data import Report

META = "capacity-report"
_HEAD_CHARACTERS = 8192
_FIGURES = re.compile(rf'<meta name="{META}" content="([^"]*)">')
SERVERS_NAMED = 5


@dataclass(frozen=True)
class Issue:
    """The metadata of a page: its number, when it was first issued, its figures in MiB, and its window.

    Pages of earlier versions do not contain their window.
    """

    number: int
    issued_at: datetime
    is_open: bool
    start_mb: int
    end_mb: int
    known_change_mb: int | None
    subject: str = ""

    def is_of(self, other: Issue) -> bool:
        """Whether both cover the same window of the fleet or of the same server."""
        return not (self.subject and other.subject) or self.subject == other.subject

    def as_meta(self) -> str:
        """Return it as an element for the head of a page."""
        content = escape(json.dumps({**asdict(self), "issued_at": self.issued_at.isoformat()}))
        return f'<meta name="{META}" content="{content}">'


@dataclass(frozen=True)
class Edition:
    """An issue, and the one before that it restates, if any: where that is kept, and what changed since."""

    issue: Issue
    before: Issue | None = None
    kept_as: str = ""
    reason: str = ""

    @property
    def sentence(self) -> str | None:
        """The old figure, the new one and why; None for a page that restates nothing."""
        before = self.before
        if before is None:
            return None
        was, now = human_pair_mb(before.end_mb, self.issue.end_mb)
        return (
            f"Issue {self.issue.number}. Issue {before.number}, of {before.issued_at:%Y-%m-%d %H:%M} UTC, said {was} "
            f"with a known change of {_change(before)} MiB; it is {now} with {_change(self.issue)} MiB. "
            f"{self.reason} The page as it was is kept as {self.kept_as}."
        )


def _change(issue: Issue) -> str:
    return "unknown" if issue.known_change_mb is None else f"{issue.known_change_mb:+,}"


def issue_of(path: Path) -> Issue | None:
    """Return the metadata of the page at `path`; None where there is no page of this project."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            figures = _FIGURES.search(file.read(_HEAD_CHARACTERS))
        content: Mapping[str, object] = json.loads(unescape(figures[1])) if figures else {}
        known = {name: content[name] for name in Issue.__dataclass_fields__ if name in content}
        return Issue(**{**known, "issued_at": datetime.fromisoformat(str(known["issued_at"]))})  # type: ignore[arg-type]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def next_edition(engine: Engine, report: Report, path: Path) -> Edition:
    """Decide which issue the page of `report` at `path` is; raises DatabaseError."""
    subject = " ".join(filter(None, (report.period.name, f"{report.window.start}", report.server)))
    figures = (report.start_mb, report.end_mb, report.known_change_mb)
    issue = Issue(1, report.facts.read_at, report.is_open, *figures, subject)
    before = issue_of(path)
    if before is None or before.is_open or not before.is_of(issue):
        return Edition(issue)
    if (before.start_mb, before.end_mb, before.known_change_mb) == figures:
        # Still the same issue: a restatement is shown until the next one.
        earlier = path_of_issue(path, replace(before, number=before.number - 1))
        issue, before = replace(before, subject=subject), issue_of(earlier)
        if before is None:
            return Edition(issue)
    else:
        issue, earlier = replace(issue, number=before.number + 1), path_of_issue(path, before)
    return Edition(issue, before, earlier.name, _reason(engine, report, before.issued_at))


def path_of_issue(path: Path, issue: Issue) -> Path:
    """The path for an earlier issue; it never replaces a kept issue of another window."""
    kept = path.with_name(f"{path.stem}-issue-{issue.number}{path.suffix}")
    there = issue_of(kept)
    if there is None or there.is_of(issue):
        return kept
    digest = hashlib.sha256(issue.subject.encode()).hexdigest()[:8]
    return path.with_name(f"{path.stem}-{digest}-issue-{issue.number}{path.suffix}")


def _reason(engine: Engine, report: Report, since: datetime) -> str:
    """Return the samples of the two windows that were added or corrected since a moment, as a sentence."""
    with (
        database_errors(doing="counting late samples", kept="No page was written."),
        engine.connect() as connection,
    ):
        late = late_samples(connection, report.before.start, report.window.end, since, report.server_id)
    if not late:
        return (
            "No sample of these two windows was added or corrected since: samples were deleted, rows were rebuilt, or "
            "servers were put into or out of service."
        )
    servers = first_of([one.server for one in late], SERVERS_NAMED)
    added, corrected = sum(one.added for one in late), sum(one.corrected for one in late)
    changed = f"{counted(added, 'sample')} of these two windows added and {corrected:,} corrected"
    return f"Since then: {changed}, of {servers}."
