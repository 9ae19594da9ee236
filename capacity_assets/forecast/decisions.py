"""Decisions about what may fill: acknowledged, planned or excluded, with a last day, a note and an author.

A decision changes no size. The check, alerts and digests leave out its subject until its last day, or until its risk
exceeds the risk at the time of the decision. A plan that raises a limit adds a second fill date to forecasts, computed
in `runway` with the raised limit. Decisions are never overwritten: a new one closes the previous one.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import sqlalchemy as sa
from pydantic import BeforeValidator, Field
from sqlalchemy import Connection, Engine, Row, text

from capacity_assets.base.declarations import (
    NO_OTHER_NAMES,
    DatabaseName,
    Day,
    declaration,
    declarations,
    is_web_address,
    mb_of_gb,
    names_of,
)
from capacity_assets.base.errors import NotFoundError, ValidationError, database_errors, refuse
from capacity_assets.base.periods import Window
from capacity_assets.base.settings import HORIZONS_DAYS
from capacity_assets.base.units import first_of, human_day, human_mb, human_probability, printable, suggestion
from capacity_assets.database.declared_rows import (
    UnknownSubjectError,
    declaring,
    ids_of,
    keys_of,
    places_in_errors,
    refuse_repeated,
    rows_of,
    subject_text,
)
from capacity_assets.database.locks import wait_for_lock
from capacity_assets.database.tables import capacity_decisions
from capacity_assets.forecast.results import (
    DATABASE,
    DAY_PROBABILITIES,
    FORECAST,
    FULL,
    SERVER,
    SERVER_LIMIT,
    STALE_DAYS,
    VOLUME,
    VOLUME_LIMIT,
    DatabaseOrVolume,
)

ACKNOWLEDGED, PLANNED, EXCLUDED = "acknowledged", "planned", "excluded"
DECISION_KINDS = (ACKNOWLEDGED, PLANNED, EXCLUDED)

_KEY = ("instance_id", "subject", "name")
Key: TypeAlias = tuple[int, str, str]

LONGEST_TEXT = 1_000
"""Longest note and longest address of a ticket, in characters."""
VOLUMES_NAMED = 8
PROBABILITY_PLACES = 3
GROWN_BY = 0.1
"""A risk has grown if its probability has risen by more than this since the decision, or if the subject is full now."""


def _kind(written: object) -> str:
    if written not in DECISION_KINDS:
        raise ValidationError(
            f"{written!r} is not one of {', '.join(DECISION_KINDS)}.{suggestion(str(written), DECISION_KINDS)}"
        )
    return str(written)


def _note(written: object) -> str:
    note = str(written).strip()
    refuse(
        (not note, "note is empty: say why."),
        (len(note) > LONGEST_TEXT, f"note has {len(note):,} characters; at most {LONGEST_TEXT:,} are stored."),
    )
    return note


def _ticket(written: object) -> str:
    ticket = str(written)
    if len(ticket) > LONGEST_TEXT or not is_web_address(ticket):
        raise ValidationError(f"{ticket[:LONGEST_TEXT]!r} is not the address of a ticket; write https://host/path.")
    return ticket


def _added_mb(written: object) -> int:
    added_mb = mb_of_gb(written)
    if not added_mb:
        raise ValidationError(f"{written!r} is less than 1 MiB; a plan without gb raises no limit.")
    return added_mb


@dataclass(frozen=True)
class DecisionSubject(DatabaseOrVolume):
    """A server as a whole, or a database or volume of it."""

    __pydantic_config__ = NO_OTHER_NAMES

    server: str
    database: DatabaseName
    volume: DatabaseName

    @property
    def display_name(self) -> str:
        """The name as people read it."""
        return subject_text(self.server, f"disk {self.volume}" if self.volume else self.database)


@dataclass(frozen=True)
class Decision(DecisionSubject):
    """A decision about a subject; `until` is the last day on which it applies."""

    kind: Annotated[str, BeforeValidator(_kind)]
    until: Day
    note: Annotated[str, BeforeValidator(_note)]
    ticket: Annotated[str | None, BeforeValidator(_ticket)] = None
    added_mb: Annotated[int | None, BeforeValidator(_added_mb), Field(validation_alias="gb")] = None
    """How much a plan raises the limit on its day; None: unknown, or not a plan."""

    @property
    def text(self) -> str:
        """The kind and the last day or, for a plan, its day."""
        return f"{self.kind} {'for' if self.kind == PLANNED else 'until'} {human_day(self.until)}"


def checked_decision(values: Mapping[str, object], today: date, sign: str = "") -> Decision:
    """Read a decision; raises ValidationError if values are missing, meaningless or contradictory.

    `sign` is what the user writes before the names of values: `--` for options, nothing in a file.
    """
    decision = declaration(Decision, values)
    refuse(
        (decision.database and decision.volume, "Name either a database or a volume."),
        (decision.added_mb is not None and decision.kind != PLANNED, f"{sign}gb is only for {PLANNED}."),
        (decision.until < today, f"{sign}until {decision.until} is in the past; give today or a later day."),
    )
    return decision


def decisions_of_file(path: Path, today: date) -> list[Decision]:
    """Read decisions from a CSV file with the columns server, database, volume, kind, until, note, ticket and gb.

    Raises ValidationError, with all problems of all lines.
    """
    return declarations(path, *names_of(Decision), lambda row: checked_decision(row, today))


@dataclass(frozen=True, kw_only=True)
class StoredDecision(Decision):
    """A decision with its author and time, and the risk at that time; None: not known.

    Probabilities are those of the subject being full by the last day of the decision, 0 to 1.
    """

    server_id: int
    probability: float | None
    declared_at: datetime
    declared_by: str | None
    closed_at: datetime | None
    closed_by: str | None
    probability_now: float | None = None
    """By the newest forecast."""

    @property
    def key(self) -> Key:
        """Server, kind and name of its subject, as forecasts have them."""
        return self.server_id, self.subject, self.name

    @property
    def has_grown(self) -> bool:
        """Whether the risk has grown since the decision; False for exclusions, which accept any risk."""
        before, now = self.probability, self.probability_now
        if self.kind == EXCLUDED or now is None:
            return False
        if now >= 1:
            return before is None or before < 1
        return before is not None and round(now - before, PROBABILITY_PLACES) > GROWN_BY

    def state(self, day: date) -> str:
        """Return whether it is in force on a day, and if not, why."""
        if self.closed_at is not None:
            return "closed"
        if self.until < day:
            return "past"
        return "risk has grown" if self.has_grown else "in force"

    @property
    def mark(self) -> str:
        """Return the decision in a few words."""
        added = "" if self.added_mb is None else f" (+{human_mb(self.added_mb)})"
        return f"{self.text}{added}{', risk has grown' if self.has_grown else ''}"

    @property
    def sentence(self) -> str:
        """Return the decision as a sentence: its kind, last day, author, reason, and whether the risk has grown."""
        added = "" if self.added_mb is None else f", {human_mb(self.added_mb)} more"
        by = f", by {printable(self.declared_by)}" if self.declared_by else ""
        sentence = f"{self.text[0].upper()}{self.text[1:]}{added}{by}: {_with_full_stop(self.note)}"
        return f"{sentence} {self.growth}" if self.has_grown else sentence

    @property
    def growth(self) -> str:
        """Return by how much the risk has grown, in sentences."""
        before = f"was {human_probability(self.probability)}" if self.probability is not None else "was not known"
        now = human_probability(self.probability_now or 0)
        return f"The risk has grown: the probability of being full by then is {now}. It {before} when this was decided."


def _with_full_stop(note: str) -> str:
    written = printable(note)
    return written if written.endswith((".", "!", "?")) else f"{written}."


@dataclass(frozen=True)
class DecisionChanges:
    """The result of storing decisions: the risk of each (None: not known), and the earlier ones that were closed."""

    probabilities: Sequence[float | None]
    closed: Sequence[StoredDecision]


def decide(
    engine: Engine, decisions: Sequence[Decision], *, by: str | None = None, dry_run: bool = False
) -> DecisionChanges:
    """Store decisions declared by `by`, with the current risk of their subjects. Stores all of them or none.

    Each one closes an earlier decision on its subject. A dry run only checks them.

    Raises:
        NotFoundError: a server is not registered, a database was never measured, or a volume not within a month.
        ValidationError: two decisions are about the same subject.
        DatabaseError: the database failed; nothing was changed.
    """
    subjects = (decision.display_name for decision in decisions)
    refuse_repeated(subjects, str, "More than one decision on")
    with places_in_errors(decisions), declaring(engine, "storing decisions", dry_run=dry_run) as connection:
        # Two concurrent calls would each leave an open decision on the same subject.
        wait_for_lock(connection, "decisions")
        keys = _keys(connection, decisions)
        risks = _runways(connection, keys)
        probabilities = [
            probability_by(risks[key], decision.until) if key in risks else None
            for key, decision in zip(keys, decisions, strict=True)
        ]
        closed = _close(connection, keys, by)
        rows = [
            {
                **dict(zip(_KEY, key, strict=True)),
                **{name: getattr(decision, name) for name in ("kind", "note", "ticket", "added_mb")},
                "until_day": decision.until,
                "probability": probability,
                "declared_by": by,
            }
            for key, decision, probability in zip(keys, decisions, probabilities, strict=True)
        ]
        if rows:
            connection.execute(sa.insert(capacity_decisions), rows)
    return DecisionChanges(probabilities, closed)


def withdraw(
    engine: Engine, subject: DecisionSubject, *, by: str | None = None, dry_run: bool = False
) -> StoredDecision:
    """Close the decision on a subject and return it. It stays stored, and its subject may no longer exist.

    Raises NotFoundError if there is none, and DatabaseError.
    """
    with declaring(engine, "removing a decision", dry_run=dry_run) as connection:
        key = (ids_of(connection, {subject.server})[subject.server], subject.subject, subject.name)
        for closed in _close(connection, [key], by):
            return closed
        message = f"There is no decision on {subject.display_name}. `capacity decisions list` shows all."
        raise NotFoundError(message)


def subject_named(engine: Engine, server: str, name: str | None, *, is_volume: bool = False) -> DecisionSubject:
    """Return the database or volume of this name; if both exist, the database unless `is_volume` is set.

    Raises NotFoundError if the server has neither, and DatabaseError.
    """
    if name is None:
        return DecisionSubject(server, None, None)
    with database_errors(doing="reading names"), engine.connect() as connection:
        ids = ids_of(connection, {server})
        volumes = {volume for _, volume in _volumes(connection, ids.values())}
        try:
            if not is_volume:
                keys_of(connection, [(server, name)])
                return DecisionSubject(server, name, None)
        except UnknownSubjectError as error:
            if name not in volumes:
                known = first_of(sorted(volumes), VOLUMES_NAMED) if volumes else "none"
                neither = f"{error} It is not a volume either (known volumes: {known})."
                raise NotFoundError(f"{neither}{_with_backslashes(name, volumes)}") from None
    return DecisionSubject(server, None, name)


def _with_backslashes(name: str, volumes: Iterable[str]) -> str:
    """Return the disk that may be meant if the shell removed the backslashes from its name."""
    close = next((volume for volume in volumes if volume.replace("\\", "") == name), None)
    return f" For the disk, write {shlex.quote(close)}, in quotes." if close else ""


def subject_decided_on(engine: Engine, server: str, name: str | None, *, is_volume: bool = False) -> DecisionSubject:
    """Return the subject of the open decision on this name, measured or not; prefers databases as `subject_named`.

    Without a decision it is the database. Raises DatabaseError.
    """
    if name is None:
        return DecisionSubject(server, None, None)
    subjects = {row.subject for row in rows_of(engine, "decisions", _DECIDED_ON, server=server, name=name)}
    if is_volume or subjects == {VOLUME}:
        return DecisionSubject(server, None, name)
    return DecisionSubject(server, name, None)


_DECIDED_ON = """
SELECT subject FROM capacity_declared_decisions WHERE server = :server AND name = :name AND closed_at IS NULL
"""


def _keys(connection: Connection, subjects: Sequence[DecisionSubject]) -> list[Key]:
    """Return the keys of subjects; raises NotFoundError if one is unknown."""
    ids = ids_of(connection, {subject.server for subject in subjects})
    keys_of(connection, [(subject.server, subject.database) for subject in subjects])
    wanted = {ids[subject.server] for subject in subjects if subject.volume is not None}
    volumes = _volumes(connection, wanted) if wanted else set()
    for subject in subjects:
        if subject.volume is not None and (ids[subject.server], subject.volume) not in volumes:
            names = (volume for server_id, volume in volumes if server_id == ids[subject.server])
            problem = f"No disk {subject.volume!r} on {subject.server} was measured within the last month."
            raise UnknownSubjectError(
                f"{problem}{suggestion(subject.volume, names)}", [(subject.server, subject.volume)]
            )
    return [(ids[subject.server], subject.subject, subject.name) for subject in subjects]


def _volumes(connection: Connection, server_ids: Iterable[int]) -> set[tuple[int, str]]:
    """Return the volumes of servers that were measured within a month of the newest day of any volume."""
    newest = connection.execute(text("SELECT max(collected_date) FROM volume_size_stats")).scalar()
    parameters = {"newest": newest, "stale_days": STALE_DAYS, "instance_ids": list(server_ids)}
    return {(row.instance_id, row.volume_name) for row in connection.execute(text(_VOLUMES), parameters)}


_VOLUMES = """
SELECT DISTINCT instance_id, volume_name FROM volume_size_stats
WHERE collected_date > CAST(:newest AS date) - CAST(:stale_days AS integer)
  AND instance_id = ANY (CAST(:instance_ids AS integer[]))
"""


def _close(connection: Connection, keys: Collection[Key], by: str | None) -> list[StoredDecision]:
    stored = capacity_decisions.c
    is_open = sa.and_(sa.tuple_(*(stored[name] for name in _KEY)).in_(list(keys)), stored.closed_at.is_(None))
    now = connection.execute(sa.select(sa.func.now())).scalar_one()
    connection.execute(sa.update(capacity_decisions).where(is_open).values(closed_at=now, closed_by=by))
    return [decision for decision in _select_decisions(connection) if decision.closed_at == now]


def decide_command(server: str, subject: str, name: str) -> str:
    """Return the command that declares a decision; its user completes the day and the note.

    `name` is that of a database or volume; empty: the server as a whole.
    """
    subject_names = [server, name] if name else [server]
    volume = " --volume" if subject == VOLUME else ""
    return f"capacity decide {shlex.join(subject_names)} acknowledged --until DAY --note TEXT{volume}"


class OpenDecisions:
    """The open decisions of a day, by subject."""

    def __init__(self, decisions: Iterable[StoredDecision]) -> None:
        self._by_server: dict[str, dict[tuple[str, str], StoredDecision]] = {}
        for decision in decisions:
            self._by_server.setdefault(decision.server, {})[decision.subject, decision.name] = decision

    def on(self, forecast: Any) -> StoredDecision | None:
        """Return the decision on the subject of a forecast, or on the volume or server that limits it; None: none.

        `forecast` has server, subject, name, binds and volumes. A decision on a volume covers only subjects that are
        known to grow on it; one on a server covers its volumes.
        """
        decisions = self._by_server.get(forecast.server, {})
        subjects = [(forecast.subject, forecast.name)]
        if forecast.subject != VOLUME and forecast.binds == VOLUME_LIMIT:
            subjects += [(VOLUME, name) for name in forecast.volumes or ()]
        if forecast.binds in {VOLUME_LIMIT, SERVER_LIMIT}:
            subjects.append((SERVER, ""))
        return next((decisions[subject] for subject in subjects if subject in decisions), None)


def is_left_out(decision: StoredDecision | None) -> bool:
    """Whether the check, alerts and digests leave out a subject with this decision (None: without one)."""
    return decision is not None and not decision.has_grown


def open_decisions(connection: Connection, day: date, server_ids: Sequence[int] | None = None) -> OpenDecisions:
    """Return the decisions that are open on a day, of all servers or of some, with their risk; raises DBAPIError."""
    return OpenDecisions(_with_risks(connection, _select_decisions(connection, day, server_ids)))


def newest_decision(engine: Engine) -> datetime | None:
    """Return when a decision was last declared or closed; None: never. Raises DatabaseError."""
    query = text("SELECT max(greatest(declared_at, closed_at)) FROM capacity_decisions")
    with database_errors(doing="reading decisions"), engine.connect() as connection:
        return connection.execute(query).scalar()


def stored_decisions(engine: Engine, day: date, *, every: bool = False) -> list[StoredDecision]:
    """Return the decisions that are open on a day, or all of them, by server and subject; raises DatabaseError."""
    with database_errors(doing="reading decisions"), engine.connect() as connection:
        return read_decisions(connection, day, every=every)


def read_decisions(
    connection: Connection,
    day: date,
    *,
    every: bool = False,
    server_id: int | None = None,
    taken_in: Window | None = None,
) -> list[StoredDecision]:
    """Return the decisions as `stored_decisions`, of all servers or of one, or of a window; raises DBAPIError."""
    server_ids = None if server_id is None else [server_id]
    return _with_risks(connection, _select_decisions(connection, None if every else day, server_ids, taken_in))


def _select_decisions(
    connection: Connection,
    day: date | None = None,
    server_ids: Sequence[int] | None = None,
    taken_in: Window | None = None,
) -> list[StoredDecision]:
    """Return decisions: all, or only those open on a day, of some servers, or taken in a window."""
    span = {"first": taken_in and taken_in.start, "last": taken_in and taken_in.end}
    return [_decision(row) for row in connection.execute(text(_LIST), {"day": day, "server_ids": server_ids, **span})]


def _decision(row: Row[Any]) -> StoredDecision:
    names = {DATABASE: (row.name, None), VOLUME: (None, row.name), SERVER: (None, None)}
    database, volume = names[row.subject]
    values = row._asdict()
    del values["subject"], values["name"]
    return StoredDecision(database=database, volume=volume, **values)


_LIST = """
SELECT server_id, server, subject, name, kind, until_day AS until, note, ticket, added_mb, probability, declared_at,
       declared_by, closed_at, closed_by
FROM capacity_declared_decisions
WHERE (CAST(:day AS date) IS NULL OR closed_at IS NULL AND until_day >= :day)
  AND (CAST(:server_ids AS integer[]) IS NULL OR server_id = ANY (:server_ids))
  AND (CAST(:first AS date) IS NULL OR CAST(declared_at AS date) BETWEEN :first AND :last)
ORDER BY server, subject, name, declared_at
"""


def _with_risks(connection: Connection, decisions: Sequence[StoredDecision]) -> list[StoredDecision]:
    runways = _runways(connection, [decision.key for decision in decisions])
    return [
        replace(decision, probability_now=probability_by(runways[decision.key], decision.until))
        if decision.key in runways
        else decision
        for decision in decisions
    ]


_PROBABILITIES = [f"probability_{days}_days" for days in HORIZONS_DAYS]
_RUNWAY = sa.table(
    "capacity_runway",
    *map(sa.column, ("server_id", "subject", "name", "state", "last_day", "full_early", "full_middle", "full_late")),
    *map(sa.column, _PROBABILITIES),
)


def _runways(connection: Connection, keys: Sequence[Key]) -> dict[Key, Row[Any]]:
    """Return the newest forecasts of subjects, by key; subjects without one are left out."""
    if not keys:
        return {}
    # As arrays, because planning a list of a thousand subjects takes PostgreSQL a third of a second.
    servers, subjects, names = (list(values) for values in zip(*sorted({*keys}), strict=True))
    arrays = (
        sa.literal(servers, sa.ARRAY(sa.Integer)),
        sa.literal(subjects, sa.ARRAY(sa.Text)),
        sa.literal(names, sa.ARRAY(sa.Text)),
    )
    decided = sa.func.unnest(*arrays).table_valued("server_id", "subject", "name").render_derived("decided")
    is_decided = (_RUNWAY.c[name] == decided.c[name] for name in ("server_id", "subject", "name"))
    rows = connection.execute(sa.select(_RUNWAY).join(decided, sa.and_(*is_decided)))
    return {(row.server_id, row.subject, row.name): row for row in rows}


def probability_by(runway: Row[Any], day: date) -> float | None:
    """Return the probability that a subject is full by a day, interpolated between those of its forecast.

    After the last horizon it is that of the last horizon. None: the forecast has no probabilities.
    """
    if runway.state == FULL:
        return 1.0
    if runway.state != FORECAST:
        return None
    probabilities: list[tuple[int, float]] = [
        (0, 0.0),
        *zip(HORIZONS_DAYS, (getattr(runway, name) for name in _PROBABILITIES), strict=True),
    ]
    dated = zip((runway.full_early, runway.full_middle, runway.full_late), DAY_PROBABILITIES, strict=True)
    probabilities += [((full - runway.last_day).days, probability) for full, probability in dated if full is not None]
    probabilities.sort()
    ahead = (day - runway.last_day).days
    for (first, low), (last, high) in pairwise(probabilities):
        if first <= ahead < last:
            return float(round(low + (high - low) * (ahead - first) / (last - first), PROBABILITY_PLACES))
    return probabilities[-1][1] if ahead > 0 else 0.0
