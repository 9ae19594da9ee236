"""What fills soon reaches whom it concerns: once, again when it got worse, and once more when it is resolved."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import time, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from capacity_assets.collection.credentials import SecretFolders
from capacity_assets.forecast.decisions import Decision, decide
from capacity_assets.messages.alerts import AlertDeliveries, send_alerts
from capacity_assets.messages.channels import Receiver as AlertReceiver
from capacity_assets.ownership.labels import Label, declare_labels
from tests.alerted_fleet import KEY, clock_at, fill_with_owners, issue, receiver, sending_settings
from tests.clocks import TODAY
from tests.contracts import PagerDutyEvent
from tests.mail_server import Inbox
from tests.receiver import Receiver, receiving

PREPARED = {"engine": fill_with_owners}
NIGHT = (time(22), time(7))
TOMORROW = TODAY + timedelta(days=1)


@pytest.fixture
def chat() -> Iterator[Receiver]:
    with receiving() as running:
        yield running


def tell(engine: Engine, chat: Receiver, *receivers: AlertReceiver, day: int = 0, hour: int = 12) -> AlertDeliveries:
    """Send alerts so many days from today, to the receiver of everything where none is given."""
    when = clock_at(TODAY + timedelta(days=day), hour)
    return send_alerts(engine, when, receivers or [receiver("dba")], sending_settings(chat.url))


def told(chat: Receiver) -> list[str]:
    """The titles that arrived, oldest first, and what is told is forgotten."""
    titles = [message.partition("\n")[0] for message in chat.texts]
    chat.bodies.clear()
    return titles


def test_each_owner_gets_one_message_with_what_is_theirs_and_the_whole_fleet_goes_to_who_has_no_label(
    engine: Engine, chat: Receiver
) -> None:
    issue(engine, orders=20, crm=10, disk=5)
    everyone = [receiver("dba"), receiver("pay", "payments"), receiver("sales", "sales"), receiver("who", "nobody")]

    assert tell(engine, chat, *everyone) == AlertDeliveries(("dba", "pay", "sales"))
    assert tell(engine, chat, *everyone) == AlertDeliveries(), "nobody is told twice"

    assert sorted(told(chat)) == [
        "Disk /data on server-2 is likely full by 25 Jul 2025, and 2 more",
        "crm on server-1 is likely full by 30 Jul 2025",
        "orders on server-1 is likely full by 9 Aug 2025",
    ]


def test_a_message_has_what_a_responder_needs(engine: Engine, chat: Receiver) -> None:
    issue(engine, orders=20)

    tell(engine, chat)

    assert chat.texts == [
        "orders on server-1 is likely full by 9 Aug 2025\n"
        "- Used: 2.9 GiB of 3.1 GiB (own limit, declared)\n"
        "- 80 % range: 30 Jul to 29 Aug 2025\n"
        "- Probability: 90 % within 30 days\n"
        "- Forecast growth: +10 MiB per day\n"
        "- Act since: 20 Jul 2025\n"
        "- Labels: team=payments\n"
        "- To decide: capacity decide server-1 orders acknowledged --until DAY --note TEXT\n"
        "  https://pages.example/database?server=1&name=orders\n"
        "\n"
        "https://pages.example/filling"
    ]


def test_a_risk_is_told_again_when_half_of_the_time_is_lost_or_it_is_full_and_not_because_days_pass(
    engine: Engine, chat: Receiver
) -> None:
    issue(engine, orders=20)
    tell(engine, chat)
    issue(engine, TOMORROW, orders=10)
    tell(engine, chat, day=1)
    issue(engine, TODAY + timedelta(days=15), orders=5)
    tell(engine, chat, day=15)
    assert told(chat) == ["orders on server-1 is likely full by 9 Aug 2025"], (
        "its day has come nearer by less than half"
    )

    issue(engine, TODAY + timedelta(days=16), orders=0)
    tell(engine, chat, day=16)
    tell(engine, chat, day=17)
    assert told(chat) == ["orders on server-1 is full"]


def test_a_day_that_came_nearer_by_more_than_half_of_the_time_is_told_with_the_one_before(
    engine: Engine, chat: Receiver
) -> None:
    issue(engine, orders=20)
    tell(engine, chat)
    issue(engine, TOMORROW, orders=8)
    tell(engine, chat, day=1)

    assert "- Last message: 9 Aug 2025, sent on 20 Jul 2025\n" in chat.texts[1]
    assert "- Act since: 20 Jul 2025\n" in chat.texts[1]
    assert told(chat)[1] == "orders on server-1 is likely full by 29 Jul 2025"


def test_an_alert_is_resolved_below_the_lower_threshold_and_told_anew_after_that(
    engine: Engine, chat: Receiver
) -> None:
    issue(engine, orders=20)
    tell(engine, chat)
    for probability in (0.3, 0.19, 0.1):
        issue(engine, orders=(90, probability))
        tell(engine, chat)
    assert told(chat) == ["orders on server-1 is likely full by 9 Aug 2025", "Resolved: orders on server-1"]

    issue(engine, orders=20)
    tell(engine, chat)
    assert told(chat) == ["orders on server-1 is likely full by 9 Aug 2025"]


def test_a_resolved_message_says_why(engine: Engine, chat: Receiver) -> None:
    payments = receiver("pay", "payments")
    issue(engine, orders=20, crm=20, disk=20)
    tell(engine, chat, receiver("dba"), payments)
    told(chat)
    declare_labels(engine, [Label("server-1", "orders", "team", "sales", TODAY)], TODAY)
    tell(engine, chat, receiver("dba"), payments)
    [moved] = chat.texts
    assert "- Why: it no longer has the label team=payments\n" in moved
    told(chat)

    issue(engine, TOMORROW, crm=(90, 0.05))
    tell(engine, chat, day=1)
    [message] = chat.texts
    assert message.startswith("Resolved: crm on server-1, and 1 more\n")
    assert "- Why: it is no longer there\n" in message
    assert "- Why: full by 19 Oct 2025, within 30 days with a probability of 5 %\n" in message
    assert "server-2" not in message, "a server that was not measured is not over"
    told(chat)

    with engine.begin() as connection:
        connection.execute(text("UPDATE instances SET is_active = false WHERE id = 2"))
    tell(engine, chat, day=1)
    assert chat.texts[0].startswith("Resolved: disk /data on server-2\n- Why: its server is no longer in service\n")


def test_a_server_that_is_taken_out_of_service_is_no_risk_even_before_the_next_forecasts(
    engine: Engine, chat: Receiver
) -> None:
    issue(engine, orders=20)
    tell(engine, chat)
    told(chat)
    with engine.begin() as connection:
        connection.execute(text("UPDATE instances SET is_active = false WHERE id = 1"))

    tell(engine, chat, receiver("dba"), receiver("new"))

    [message] = chat.texts
    assert message.startswith("Resolved: orders on server-1\n- Why: its server is no longer in service\n")


def test_a_server_out_of_service_resolves_its_alert_although_no_forecast_is_issued_any_more(
    engine: Engine, chat: Receiver
) -> None:
    issue(engine, orders=20, disk=20)
    tell(engine, chat)
    told(chat)
    with engine.begin() as connection:
        connection.execute(text("UPDATE instances SET is_active = false WHERE id = 1"))

    tell(engine, chat, day=40)

    [message] = chat.texts
    assert message.startswith("Resolved: orders on server-1\n- Why: its server is no longer in service\n")
    assert "server-2" not in message, "nothing is known of a server in service without a recent forecast"
    assert tell(engine, chat, day=41) == AlertDeliveries()


def test_what_was_decided_resolves_an_alert_until_its_risk_grows_past_that(engine: Engine, chat: Receiver) -> None:
    issue(engine, orders=(20, 0.6))
    tell(engine, chat)
    told(chat)
    until = TODAY + timedelta(days=30)
    decide(engine, [Decision("server-1", "orders", None, "acknowledged", until, "purge on Friday")], by="anna")
    tell(engine, chat)

    said = "Acknowledged until 19 Aug 2025, by anna: purge on Friday."
    assert f"- Why: {said}\n" in chat.texts[0]
    assert told(chat) == ["Resolved: orders on server-1"]
    issue(engine, TOMORROW, orders=(20, 0.9))
    tell(engine, chat, day=1)
    assert f"- Decided: {said} The risk has grown:" in chat.texts[0]
    assert told(chat) == ["orders on server-1 is likely full by 10 Aug 2025"]


def test_in_quiet_hours_a_message_waits_until_they_end(engine: Engine, chat: Receiver) -> None:
    issue(engine, orders=20)
    sleeper = receiver("sleeper", quiet=NIGHT)

    waiting = tell(engine, chat, sleeper, receiver("dba"), hour=23)

    assert waiting.sent == ("dba",)
    assert waiting.quiet_until == clock_at(TOMORROW, 7).local_now()
    assert tell(engine, chat, sleeper, day=1, hour=6).quiet_until == waiting.quiet_until
    told(chat)
    assert tell(engine, chat, sleeper, day=1, hour=7) == AlertDeliveries(("sleeper",))
    assert "- Act since: 20 Jul 2025\n" in chat.texts[0]


def test_what_was_over_before_anybody_was_told_is_not_told(engine: Engine, chat: Receiver) -> None:
    sleeper = receiver("sleeper", quiet=NIGHT)
    issue(engine, orders=20)
    tell(engine, chat, sleeper, hour=23)
    issue(engine, orders=(90, 0.1))

    assert tell(engine, chat, sleeper, day=1, hour=8) == AlertDeliveries()
    assert chat.texts == []


def test_who_is_away_is_told_later_and_the_others_are_told_once(
    engine: Engine, chat: Receiver, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    issue(engine, orders=20)
    with receiving() as flaky:
        flaky.status = 503
        monkeypatch.setenv("PAYMENTS_CHANNEL", flaky.url)
        secrets = SecretFolders(Path("/run/secrets"), ("*",), (Path("/"),))
        configured = sending_settings(
            chat.url, secrets=secrets, smtp_url=f"smtp://127.0.0.1:{inbox.port}", sender="capacity@example.com"
        )
        both = receiver("pay", webhook="env:PAYMENTS_CHANNEL", to=("pay@example.com",))
        nowhere = receiver("lost", webhook="env:NOT_SET")
        every = [both, receiver("dba"), nowhere]

        first = send_alerts(engine, clock_at(), every, configured)
        flaky.status = 200
        second = send_alerts(engine, clock_at(), every, configured)

        assert len(flaky.texts) == len(chat.texts) == len(inbox.mails) == 1
    assert first.failed[0] == ("pay", "The webhook answered 503.")
    assert first.failed[1:] == second.failed
    assert "NOT_SET is missing or empty" in second.failed[0][1]
    assert (first.sent, second.sent) == (("pay", "dba"), ("pay",))
    [mail] = inbox.mails
    assert mail["Subject"] == "orders on server-1 is likely full by 9 Aug 2025"
    assert [part.get_content_type() for part in mail.walk()] == ["multipart/alternative", "text/plain", "text/html"]
    html = mail.get_body(("html",))
    assert html is not None
    assert '<a href="https://pages.example/database?server=1&amp;name=orders">orders on server-1 is likely full' in (
        html.get_content()
    )


def test_an_incident_of_pagerduty_is_resolved_by_the_key_that_opened_it(
    engine: Engine, chat: Receiver, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text(KEY)
    configured = sending_settings(secrets=SecretFolders(tmp_path))
    on_call = receiver("on call", webhook="secret:key", format="pagerduty", events_url=chat.url)
    issue(engine, orders=20, crm=0)
    send_alerts(engine, clock_at(), [on_call], configured)
    issue(engine, orders=(90, 0.1), crm=0)
    send_alerts(engine, clock_at(), [on_call], configured)

    full, soon, resolved = (PagerDutyEvent.validate_python(body) for body in chat.bodies)
    assert (full.event_action, full.payload.severity) == ("trigger", "critical")
    assert (soon.event_action, soon.payload.severity) == ("trigger", "error")
    assert (resolved.event_action, resolved.dedup_key) == ("resolve", soon.dedup_key)
    assert full.routing_key == KEY


def test_without_a_recent_forecast_nothing_is_said(engine: Engine, chat: Receiver) -> None:
    issue(engine, orders=20)
    tell(engine, chat)
    told(chat)

    assert tell(engine, chat, day=40) == AlertDeliveries()
