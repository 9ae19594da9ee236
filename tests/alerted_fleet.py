"""Issued forecasts and listening receivers, for tests of alerts."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from datetime import time as time_of_day

from sqlalchemy import Engine, text

from capacity_assets.base.periods import Clock
from capacity_assets.messages.channels import ALERTS, Receiver, SendingSettings
from capacity_assets.ownership.labels import Label, declare_labels
from tests.clocks import SHANGHAI, TODAY
from tests.fleet import add_database_sizes, add_instances, sizes

KEY = "0123456789abcdef0123456789abcdef"


def clock_at(day: date = TODAY, hour: int = 12) -> Clock:
    """Return a clock stopped at an hour of a day."""
    moment = datetime.combine(day, time_of_day(hour), tzinfo=SHANGHAI)
    return Clock(SHANGHAI, now=lambda: moment, database_now=lambda _connection: moment)


def fill_with_owners(engine: Engine) -> None:
    """Add two servers: on the first, `orders` belongs to payments and `crm` to sales; the second has no owner."""
    add_instances(engine, [1, 2])
    for name in ("orders", "crm"):
        add_database_sizes(engine, sizes(1, name, TODAY.isoformat(), [3014]))
    owners = [Label("server-1", "orders", "team", "payments"), Label("server-1", "crm", "team", "sales")]
    declare_labels(engine, owners, TODAY)


def issue(engine: Engine, day: date = TODAY, **days_left: float | tuple[float, float]) -> None:
    """Issue forecasts of a day: databases of server 1, `disk` of server 2, by the days left and their probability.

    0 days: it is full. Without a probability it is 0.9.
    """
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM capacity_runways WHERE as_of = :day"), {"day": day})
        for name, given in days_left.items():
            left, probability = given if isinstance(given, tuple) else (given, 0.9)
            is_volume = name == "disk"
            connection.execute(
                text(RUNWAY),
                {
                    "as_of": day,
                    "server": 2 if is_volume else 1,
                    "subject": "volume" if is_volume else "database",
                    "binds": "volume" if is_volume else "own limit",
                    "name": "/data" if is_volume else name,
                    "state": "full" if left == 0 else "forecast",
                    "early": day + timedelta(days=left / 2),
                    "middle": day + timedelta(days=left),
                    "late": day + timedelta(days=left * 2),
                    "probability": probability,
                },
            )


RUNWAY = """
INSERT INTO capacity_runways (as_of, instance_id, subject, name, state, last_day, size_mb, limit_mb, binds,
                              limit_source, change_mb_per_day, history_days, early_day, middle_day, late_day, in_time,
                              probability_7, probability_30, probability_90, probability_365)
VALUES (:as_of, :server, :subject, :name, :state, :as_of, 3014, 3214, :binds, 'declared', 10, 100,
        CAST(:early AS date), CAST(:middle AS date), CAST(:late AS date), true, 0, :probability, :probability, 1)
"""


def receiver(name: str, label: str | None = None, **given: object) -> Receiver:
    """Return a receiver of alerts, by default on the alert webhook."""
    named = {"webhook": True, "gets": (ALERTS,), **given}
    return Receiver(name, label=("team", label) if label else None, **named)  # type: ignore[arg-type]


def sending_settings(url: str | None = None, **given: object) -> SendingSettings:
    return SendingSettings(webhook_url=url, pages_url="https://pages.example", **given)  # type: ignore[arg-type]
