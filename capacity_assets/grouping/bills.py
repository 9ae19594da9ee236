"""Bills: what the databases of a month cost, by whom they belong to; issued once, and restated visibly.

Quantities are exact daily sizes, amounts are decimal, and groups add up to the total to the cent. Statements are in
`bill_statements`, prices in `prices`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from sqlalchemy import Connection, Engine, select, text

from capacity_assets.clock import Clock
from capacity_assets.errors import NotFoundError, database_errors
from capacity_assets.foundation.clock_guard import JudgedDay, judged_day
from capacity_assets.foundation.schema_guard import refuse_an_unfit_database
from capacity_assets.grouping import bill_statements as statements
from capacity_assets.grouping.groups import refuse_unknown_grouping
from capacity_assets.periods import PERIODS, Window
from capacity_assets.storage.distribution import make_temporary_tables
from capacity_assets.storage.group_tables import capacity_bills
from capacity_assets.storage.row_locks import wait_for_lock
from capacity_assets.units import counted, first_of

CENT = Decimal("0.01")
DECLARED_NAMED = 3


@dataclass(frozen=True)
class Bill:
    """One issue of a month's bill; `amount` is None where nothing had a price."""

    month: date
    issue: int
    issued_at: datetime
    is_final: bool
    currency: str | None
    exact_amount: Decimal
    gib_months: Decimal
    unpriced_gib_months: Decimal
    measured_days: int
    billed_days: int
    unbilled_servers: int
    label_keys: Sequence[str]
    reason: str | None
    samples_dropped_at: datetime | None = None
    """When the bill was frozen because retention had dropped its samples."""
    clock_doubt: str | None = None
    """Why the bill is not final although the month seems to be over."""

    @property
    def amount(self) -> Decimal | None:
        """Total, rounded to the cent, halves up."""
        return None if self.currency is None else self.exact_amount.quantize(CENT, ROUND_HALF_UP)

    @property
    def is_unpriced(self) -> bool:
        """Whether a part of what was measured is in no amount."""
        return self.unpriced_gib_months > 0


@dataclass(frozen=True)
class BillGroup:
    """What one group has to pay; `name` None: without such a label. `amount` None: nothing of it had a price."""

    name: str | None
    databases: int
    gib_months: Decimal
    unpriced_gib_months: Decimal
    amount: Decimal | None
    exact_amount: Decimal | None = None
    """Not rounded: two issues may differ by rounding alone."""


@dataclass(frozen=True)
class IssuedBill:
    """A bill with its groups, and what an issue before it said."""

    bill: Bill
    grouped_by: str
    groups: Sequence[BillGroup]
    databases: int = 0
    """Of all groups; one that changed hands is in two of them."""
    before: "IssuedBill | None" = None  # noqa: UP037 -- a dataclass field of its own type

    @property
    def difference(self) -> Decimal | None:
        """What it is more than the issue before; None: there is none, or one of the two has no amount."""
        if self.before is None or self.bill.amount is None or self.before.bill.amount is None:
            return None
        return self.bill.amount - self.before.bill.amount

    @property
    def restated(self) -> str:
        """The sentence that a restated bill carries; empty for a first issue."""
        if self.before is None:
            return ""
        was, now = self.before.bill, self.bill
        amounts = f"{amount_text(was)} became {amount_text(now)}"
        return f"Restated: issue {was.issue} of {was.issued_at:%Y-%m-%d %H:%M %Z}, {amounts}. {now.reason}"


def amount_text(bill: Bill) -> str:
    """Render a total with its currency."""
    return "no amount" if bill.amount is None else f"{bill.amount:,} {bill.currency}"


def issue_bill(engine: Engine, month: Window, clock: Clock, keys: Sequence[str]) -> Bill:
    """Compute the bill of a month and store it if it differs from the previous issue; return the newest issue.

    The bill of a month that is not over, or is over only by a clock that may be wrong, is replaced. The bill of a month
    that is over is kept, and restated by a new issue. Once retention has dropped samples of the month, its bill no
    longer changes.

    Raises:
        NotFoundError: nothing was measured in the month, or its samples are gone and no bill was issued.
        ValidationError: the days in the database are those of another time zone than the clock's.
        DatabaseError: the database failed; no bill was changed.
    """
    refuse_an_unfit_database(engine, clock.zone, kept="No bill was changed.")
    asked: dict[str, Any] = {"start": month.start, "end": month.end, "days": month.days, "keys": list(keys)}
    with database_errors(doing="computing a bill", kept="No bill was changed."), engine.begin() as connection:
        wait_for_lock(connection, "bills")
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        latest = next(iter(_issues(connection, month)), None)
        judged = judged_day(connection, clock)
        segments = connection.execute(text(statements.SEGMENTS), asked).scalars().all()
        make_temporary_tables(connection, statements.READ, {**asked, "segments": list(segments)})
        known = {
            "is_marked": latest is not None and latest.samples_dropped_at is not None,
            "billed_before": latest.measured_days if latest else 0,
        }
        if connection.execute(text(statements.DROPPED), {**asked, **known}).scalar():
            if latest is None:
                raise NotFoundError(
                    f"Samples of {_named(month)} were dropped by retention, so its bill cannot be recomputed. None was "
                    "issued in time. CAPACITY_RETENTION_DAYS says how long samples are kept."
                )
            issue, done = latest.issue, statements.MARK_DROPPED
        else:
            make_temporary_tables(connection, statements.COMPUTED, asked)
            issue = _store(connection, month, asked, latest, _finality(latest, month, judged, clock))
            done = statements.KEEP_DECLARED
        connection.execute(text(done), {**asked, "issue": issue})
        return _issues(connection, month)[0]


def _finality(latest: Bill | None, month: Window, judged: JudgedDay, clock: Clock) -> dict[str, object]:
    """Return whether a bill is final (it then stays final), and why not if the month only seems to be over."""
    # Samples after a long pause may have been written by the wrong clock itself.
    is_over = judged.pause is None and month.end < judged.certain_day
    is_final = is_over or (latest is not None and latest.is_final)
    seems_over = month.end < clock.today()
    return {"is_final": is_final, "clock_doubt": judged.why_nothing_is_deleted if seems_over and not is_final else None}


def _issues(connection: Connection, month: Window) -> list[Bill]:
    """The issues of a month's bill, the newest first; columns of the table are those of a bill."""
    columns = [column for column in capacity_bills.c if column is not capacity_bills.c.declared_state]
    query = select(*columns).where(capacity_bills.c.month == month.start).order_by(capacity_bills.c.issue.desc())
    return [Bill(*row) for row in connection.execute(query)]


def _named(month: Window) -> str:
    return PERIODS["monthly"].name_of(month)


def _store(
    connection: Connection, month: Window, asked: dict[str, Any], latest: Bill | None, finality: dict[str, object]
) -> int:
    """Store the computed lines if they differ from the latest issue; return the number of the newest issue then."""
    issue, reason = 1, None
    if latest is None:
        if not connection.execute(text("SELECT EXISTS (SELECT FROM computed_lines)")).scalar():
            raise NotFoundError(f"Nothing was measured in {_named(month)}: there is nothing to bill.")
    else:
        issue, reason = latest.issue, latest.reason
        stored = {**asked, "issue": issue, "was_final": latest.is_final}
        differs = connection.execute(text(statements.DIFFERS), stored).scalar()
        if not differs and finality == {"is_final": latest.is_final, "clock_doubt": latest.clock_doubt}:
            return issue
        if latest.is_final and differs:
            issue, reason = issue + 1, _reason(connection, asked, latest)
    days = connection.execute(text(statements.DAYS), asked).one()
    values = {**asked, "issue": issue, **finality, "reason": reason, **days._asdict()}
    for statement in (*statements.DELETE, statements.STORE_LINES, statements.STORE_BILL):
        connection.execute(text(statement), {**values, "label_keys": json.dumps(asked["keys"])})
    return issue


def _reason(connection: Connection, asked: dict[str, Any], latest: Bill) -> str:
    """Say why a bill differs from the one that was issued."""
    since = {**asked, "since": latest.issued_at, "issue": latest.issue}
    samples = connection.execute(text(statements.SAMPLES_SINCE), since).one()
    declared = connection.execute(text(statements.SINCE), since).one()
    differences = [
        f"{counted(samples.added, 'sample')} came later" if samples.added else "",
        f"{counted(samples.corrected, 'sample')} corrected" if samples.corrected else "",
        f"{counted(declared.fewer, 'sample')} deleted" if declared.fewer else "",
        f"labels declared: {first_of(declared.labels, DECLARED_NAMED)}" if declared.labels else "",
        f"prices declared: {first_of(declared.prices, DECLARED_NAMED)}" if declared.prices else "",
    ]
    if declared.before is not None:
        numbers = ([int(number) for number in state.split()[:2]] for state in (declared.before, declared.now))
        kinds = zip(("labels", "prices"), *numbers, strict=True)
        differences += [f"{kind} removed" for kind, before, now in kinds if now < before]
    found = "; ".join(filter(None, differences))
    otherwise = (
        "samples were deleted, servers were measured on later days or are counted differently, or labels or prices "
        "were removed"
    )
    return f"Since then: {found or otherwise}."


def read_bill(engine: Engine, month: Window, by: str, issue: int | None = None) -> IssuedBill:
    """Read an issue of a bill, by default the newest, by groups, with the one before.

    Raises:
        NotFoundError: there is no such issue.
        ValidationError: the bill cannot be grouped so.
        DatabaseError: the database failed.
    """
    with database_errors(doing="reading a bill", kept="Nothing was changed."), engine.connect() as connection:
        return read_bill_of(connection, month, by, issue)


def read_bill_of(connection: Connection, month: Window, by: str, issue: int | None = None) -> IssuedBill:
    """Read a bill within the caller's transaction; raises as `read_bill`, but for errors of the database."""
    chosen = [bill for bill in _issues(connection, month) if issue is None or bill.issue <= issue]
    if not chosen or (issue is not None and chosen[0].issue != issue):
        if issue is not None:
            raise NotFoundError(f"There is no issue {issue} of a bill of {_named(month)}.")
        raise NotFoundError(
            f"There is no bill of {_named(month)}. `capacity bill` issues one where something was measured."
        )
    now, *older = chosen
    refuse_unknown_grouping(by, now.label_keys)
    before = _issued(connection, older[0], by, None) if older else None
    return _issued(connection, now, by, before)


def _issued(connection: Connection, bill: Bill, by: str, before: IssuedBill | None) -> IssuedBill:
    asked = {"start": bill.month, "issue": bill.issue, "by": by}
    databases = connection.execute(text(statements.DATABASES), asked).scalar_one()
    groups = [BillGroup(*row) for row in connection.execute(text(statements.GROUPS), asked)]
    return IssuedBill(bill, by, groups, databases, before)
