"""A message in each form: what the documentation of a receiver asks for, and nothing that names could break."""

from __future__ import annotations

import html
import json
import re
import runpy
from dataclasses import replace
from datetime import date, datetime, time
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from capacity_assets.base.errors import ValidationError
from capacity_assets.collection.credentials import SecretFolders
from capacity_assets.forecast.results import Runway
from capacity_assets.messages.alerts import AlertUpdate, SentAlert, dedup_key, is_worse, message_of
from capacity_assets.messages.channels import (
    Receiver,
    SendingSettings,
    receivers_of,
    receivers_of_alerts,
    unreachable,
)
from capacity_assets.messages.message import (
    NEW,
    RENDERERS,
    RESOLVED,
    Message,
    MessageLine,
    Section,
    pagerduty_events,
    plain_text,
)
from capacity_assets.reading.forecasts import SubjectKey
from capacity_assets.reading.risks import AlertRisk, OpenAlert
from tests.alerted_fleet import KEY, sending_settings
from tests.contracts import TEAMS_BYTES, PagerDutyEvent, SlackMessage, TeamsMessage

DAY = date(2025, 7, 20)
RUNWAY = Runway(
    server="db-1",
    database=None,
    volume="/data",
    last_day=DAY,
    size_mb=900,
    limit_mb=1000,
    binds="volume",
    source="measured",
    headroom_mb=100,
    change_mb_per_day=5.0,
    recent_mb_per_day=None,
    history_days=400,
    state="forecast",
    early_day=date(2025, 8, 1),
    middle_day=date(2025, 8, 9),
    late_day=None,
    probabilities={7: 0.1, 30: 0.74, 90: 0.9, 365: 0.99},
)
RISK = AlertRisk(SubjectKey(1, "volume", "/data"), RUNWAY, 0.74, {"team": "payments"}, [("orders", 300), ("crm", 20)])
HOSTILE = "<!channel> *a* [b](http://c) & `d`\r\n" + "x" * 220


def news(number: int = 1, name: str = "/data") -> list[AlertUpdate]:
    """So many risks, and one alert that is over."""
    risks = [
        replace(RISK, key=SubjectKey(one, "volume", name), runway=replace(RUNWAY, volume=name, server=f"db-{one}"))
        for one in range(1, number + 1)
    ]
    alert, reason = OpenAlert("db-1", {}, None), "it has no limit any more"
    over = AlertUpdate(RESOLVED, SubjectKey(1, "volume", name), DAY, alert=alert, reason=reason)
    return [*(AlertUpdate(NEW, risk.key, DAY, risk=risk) for risk in risks), over]


def message(number: int = 1, name: str = "/data") -> Message:
    return message_of(Receiver("dba"), news(number, name), sending_settings())


SIZES = pytest.mark.parametrize(("number", "name"), [(1, "/data"), (1, HOSTILE), (400, HOSTILE)])


@SIZES
def test_slack_gets_blocks_within_its_limits_in_which_no_name_is_markup(number: int, name: str) -> None:
    sent = SlackMessage.model_validate(RENDERERS["slack"](message(number, name)))

    texts = "\n".join(block.text.text for block in sent.blocks[1:])
    assert "<!channel>" not in texts
    assert texts.startswith("*<https://pages.example/volume?server=1&name=")
    assert "• *Probability:* 74 % within 30 days" in texts
    assert ("And 381 more." in texts) == (number == 400)


def test_a_long_section_of_slack_has_whole_lines_and_the_number_of_the_others() -> None:
    lines = [MessageLine("R&D " * 40, url=f"https://pages.example/{'x' * 100}") for _ in range(10)]
    told = Message("Growth", sections=[Section("Grew most", lines, more=3, command="capacity top")])
    sent = SlackMessage.model_validate(RENDERERS["slack"](told))

    heading, *listed, more, command = sent.blocks[1].text.text.split("\n")
    [line] = set(listed)
    assert (heading, command) == ("*Grew most*", "`capacity top`")
    assert line == f"• <https://pages.example/{'x' * 100}|{'R&amp;D ' * 40}>"
    assert more == f"• and {13 - len(listed)} more"
    assert len(listed) > 5


def test_the_picture_of_a_slack_message_shows_links_and_names_instead_of_their_markup() -> None:
    drawing = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "screenshots.py"))

    drawn = "".join(drawing["slack_html"](RENDERERS["slack"](message(1, "R&D <a> it's"))))

    text = html.unescape(re.sub(r"<[^>]*>", "", drawn))
    assert "Disk R&D <a> it's on db-1 is likely full by 9 Aug 2025" in text
    assert '<a href="https://pages.example/volume?server=1&name=R%26D+%3Ca%3E+it%27s">' in drawn
    assert "|" not in text
    assert "amp;" not in text


def test_growth_of_less_than_a_megabyte_per_day_is_not_shown_as_none() -> None:
    slow = {"size_mb": 500, "limit_mb": 512, "headroom_mb": 12, "middle_day": None}
    runway = replace(RUNWAY, **slow, change_mb_per_day=0.1, recent_mb_per_day=0.4)  # type: ignore[arg-type]
    told = message_of(
        Receiver("dba"), [AlertUpdate(NEW, RISK.key, DAY, risk=replace(RISK, runway=runway))], sending_settings()
    )

    for said in (runway.sentence(30), plain_text(told)):
        assert "Forecast growth: +0.1 MiB per day. In the last 30 days it grew by +0.4 MiB per day: at that" in said


@SIZES
def test_teams_gets_an_adaptive_card_of_a_size_that_a_workflow_takes(number: int, name: str) -> None:
    content = RENDERERS["teams"](message(number, name))
    sent = TeamsMessage.model_validate(content)

    card = sent.attachments[0].content
    assert len(json.dumps(content)) < TEAMS_BYTES
    assert [action.url for action in card.actions] == ["https://pages.example/filling"]
    texts = [block.text for block in card.body if block.type == "TextBlock"]
    assert not any("[b](" in text for text in texts)
    facts = {fact.title: fact.value for block in card.body if block.type == "FactSet" for fact in block.facts}
    assert facts["80 % range"] == "1 Aug 2025 to beyond Jul 2026"


@SIZES
def test_pagerduty_gets_an_event_for_each_thing(number: int, name: str) -> None:
    events = [PagerDutyEvent.validate_python(event) for event in pagerduty_events(message(number, name), KEY)]

    assert [event.event_action for event in events] == ["trigger"] * number + ["resolve"]
    assert len({event.dedup_key for event in events}) == number
    first = events[0]
    assert first.event_action == "trigger"
    assert first.payload.source == "db-1"
    assert first.payload.custom_details["Grew most in 30 days"] == "orders +300 MiB, crm +20 MiB"


def test_json_has_the_figures_that_a_ticket_needs() -> None:
    content = json.loads(json.dumps(RENDERERS["json"](message())))

    new, over = content["events"]
    assert content["text"].startswith("Disk /data on db-1 is likely full by 9 Aug 2025, and 1 more\n")
    assert new == {
        "event": "new",
        "key": new["key"],
        "severity": "error",
        "title": "Disk /data on db-1 is likely full by 9 Aug 2025",
        "url": "https://pages.example/volume?server=1&name=%2Fdata",
        "command": "capacity decide db-1 /data acknowledged --until DAY --note TEXT --volume",
        "server": "db-1",
        "server_id": 1,
        "subject": "volume",
        "name": "/data",
        "size_mb": 900,
        "limit_mb": 1000,
        "binds": "volume",
        "limit_source": "measured",
        "state": "forecast",
        "full_by": "2025-08-09",
        "early": "2025-08-01",
        "late": None,
        "probability": 0.74,
        "within_days": 30,
        "change_mb_per_day": 5.0,
        "grew": [{"database": "orders", "change_mb": 300}, {"database": "crm", "change_mb": 20}],
        "since": "2025-07-20",
        "labels": {"team": "payments"},
        "decision": None,
    }
    assert (over["event"], over["key"], over["reason"]) == ("resolved", new["key"], "it has no limit any more")


@pytest.mark.parametrize(
    ("full_by", "state", "worse"),
    [
        (date(2025, 8, 8), "forecast", False),
        (date(2025, 7, 30), "forecast", False),
        (date(2025, 7, 29), "forecast", True),
        (date(2025, 9, 9), "forecast", False),
        (None, "forecast", False),
        (None, "full", True),
    ],
)
def test_a_risk_is_worse_when_less_than_half_of_the_time_is_left_or_it_is_full(
    full_by: date | None, state: str, *, worse: bool
) -> None:
    """Told on 20 July to be full on 9 August: half of the time ends on 30 July."""
    now = replace(RISK, runway=replace(RUNWAY, state=state, middle_day=full_by))

    assert is_worse(SentAlert(DAY, DAY, date(2025, 8, 9)), now) is worse
    assert not is_worse(SentAlert(DAY, DAY, DAY), now), "what was told to be full cannot get worse"


@pytest.mark.parametrize(
    ("full_by", "state", "worse"),
    [(None, "forecast", False), (date(2026, 7, 1), "forecast", True), (None, "full", True)],
)
def test_a_risk_that_was_told_without_a_day_is_worse_when_it_has_one_or_is_full(
    full_by: date | None, state: str, *, worse: bool
) -> None:
    now = replace(RISK, runway=replace(RUNWAY, state=state, middle_day=full_by))

    assert is_worse(SentAlert(DAY, DAY, None), now) is worse


@pytest.mark.parametrize(
    ("key", "change", "title"),
    [
        (RISK.key, {}, "Disk /data on db-1 is likely full by 9 Aug 2025"),
        (SubjectKey(1, "database", "orders"), {"middle_day": None}, "orders on db-1: 74 % within 30 days"),
        (SubjectKey(1, "server", ""), {"state": "full"}, "Server db-1 is full"),
    ],
)
def test_the_title_says_what_is_full_and_when_or_how_likely_it_is(
    key: SubjectKey, change: dict[str, object], title: str
) -> None:
    risk = replace(RISK, key=key, runway=replace(RUNWAY, **change))  # type: ignore[arg-type]

    assert message_of(Receiver("dba"), [AlertUpdate(NEW, key, DAY, risk=risk)], sending_settings()).title == title


def test_two_installations_with_one_service_of_pagerduty_open_two_incidents() -> None:
    assert dedup_key(RISK.key, "7300/5") == dedup_key(RISK.key, "7300/5")
    assert dedup_key(RISK.key, "7300/5") != dedup_key(RISK.key, "7400/5")


@pytest.mark.parametrize(
    ("quiet", "now", "until"),
    [
        ((time(22), time(7)), "2025-07-20T21:59", None),
        ((time(22), time(7)), "2025-07-20T22:00", "2025-07-21T07:00"),
        ((time(22), time(7)), "2025-07-21T06:59", "2025-07-21T07:00"),
        ((time(22), time(7)), "2025-07-21T07:00", None),
        ((time(12), time(13, 30)), "2025-07-20T12:10", "2025-07-20T13:30"),
        ((time(12), time(13, 30)), "2025-07-20T11:59", None),
    ],
)
def test_quiet_hours_end_in_the_zone_of_the_clock(quiet: tuple[time, time], now: str, until: str | None) -> None:
    zone = ZoneInfo("Europe/Berlin")
    moment = datetime.fromisoformat(now).replace(tzinfo=zone)
    ends = Receiver("dba", quiet=quiet).quiet_until(moment)

    assert ends == (until and datetime.fromisoformat(until).replace(tzinfo=zone))


def receivers(folder: Path, content: str) -> list[Receiver]:
    (folder / "receivers.toml").write_text(content)
    return receivers_of(folder / "receivers.toml", ["team"])


def test_a_receiver_is_read_with_all_that_it_may_have(tmp_path: Path) -> None:
    content = """
        [[receivers]]
        name = "payments"
        label = "team=payments"
        to = ["payments@example.com"]
        webhook = "env:PAYMENTS_CHANNEL"
        format = "slack"
        gets = ["digest", "alerts"]
        quiet = "22:00-07:30"
    """

    assert receivers(tmp_path, content) == [
        Receiver(
            "payments",
            ("payments@example.com",),
            webhook="env:PAYMENTS_CHANNEL",
            format="slack",
            label=("team", "payments"),
            gets=("digest", "alerts"),
            quiet=(time(22), time(7, 30)),
        )
    ]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ('webhook = "https://hooks.example/secret-path"', "webhook is true or a reference to the address"),
        ('webhook = "own"', "webhook is true or a reference to the address"),
        ('webhook = true\nformat = "slak"', "write one of text, json, slack, teams, pagerduty. Did you mean 'slack'?"),
        ('webhook = true\ngets = ["alert"]', 'gets is a list of "digest" and "alerts".'),
        ("webhook = true\ngets = []", 'gets is a list of "digest" and "alerts".'),
        ('webhook = true\nquiet = "10pm-7am"', "write the hours without messages as 22:00-07:00."),
        ('webhook = "env:KEY"\nformat = "pagerduty"', "PagerDuty takes alerts only"),
        ('webhook = true\nformat = "pagerduty"\ngets = ["alerts"]', "webhook refers to its routing key"),
        ('webhook = "env:KEY"\nevents_url = "file:///etc"', "events_url is not a web address"),
        ('webhook = "env:KEY"\nevents_url = "http://[::1"', "events_url is not a web address"),
        ("webhook = 5", "receiver 1: webhook must be true or false or text, in quotes."),
        ('webhook = true\nlabel = "team=pay\\u0000ments"', "label must not contain a NUL character."),
    ],
)
def test_what_makes_no_sense_is_refused_without_repeating_an_address(tmp_path: Path, given: str, says: str) -> None:
    with pytest.raises(ValidationError) as caught:
        receivers(tmp_path, f'[[receivers]]\nname = "x"\n{given}\n')

    assert says in str(caught.value)
    assert "secret-path" not in str(caught.value)


@pytest.mark.parametrize("name", ["x" * 256, "d\\u0000ba"])
def test_a_name_that_the_database_could_not_store_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValidationError, match=r"receiver 1: name must .*"):
        receivers(tmp_path, f'[[receivers]]\nname = "{name}"\nwebhook = true\n')


@pytest.mark.parametrize("address", ["http://host:99999999/x", "http://[::1", "http://a b/c", "https://", "mailto:x"])
def test_the_secret_of_a_webhook_must_be_an_address_that_can_be_asked(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHANNEL", address)
    settings = SendingSettings(secrets=SecretFolders(tmp_path, ("*",)))

    found = list(unreachable([Receiver("dba", webhook="env:CHANNEL")], settings))

    assert found == ["dba: No webhook: the value of env:CHANNEL is not a web address."]


def test_the_alert_webhook_is_the_default_receiver_unless_the_file_has_one(tmp_path: Path) -> None:
    path = tmp_path / "receivers.toml"
    chat = '[[receivers]]\nname = "{}"\nwebhook = true\nformat = "slack"\ngets = ["alerts"]\n'
    path.write_text(chat.format("chat") + '[[receivers]]\nname = "news"\nwebhook = true\n')

    def alerted(*, has_alert_webhook: bool = True) -> list[tuple[str, str]]:
        found = receivers_of_alerts(path, ["team"], has_alert_webhook=has_alert_webhook)
        return [(one.name, one.format) for one in found]

    assert alerted() == [("default", "text"), ("chat", "slack")]
    assert alerted(has_alert_webhook=False) == [("chat", "slack")]
    path.write_text(chat.format("default"))
    assert alerted() == [("default", "slack")]
    path.write_text('[[receivers]]\nname = "default"\nwebhook = true\n')
    with pytest.raises(ValidationError, match="gets failed runs and checks"):
        alerted()


def test_the_page_on_alerts_shows_what_is_sent() -> None:
    """Its example is the risk above alone."""
    told = message_of(Receiver("dba"), news()[:1], sending_settings())
    sent = [RENDERERS["slack"](told), RENDERERS["teams"](told), *pagerduty_events(told, KEY), RENDERERS["json"](told)]
    page = (Path(__file__).parents[2] / "docs" / "alerts.md").read_text()

    shown = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    assert [json.loads(example) for example in shown] == sent
    assert f"```text\n{told.title}\n\n{plain_text(told)}\n```" in page
