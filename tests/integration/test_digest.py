"""The weekly digest: only what is out of the ordinary, to whom it concerns, once, and no mail server harms a run."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from sqlalchemy import Engine, text

from capacity_assets.aggregation.service import AggregationService
from capacity_assets.clock import Clock
from capacity_assets.digest import sending
from capacity_assets.digest.content import Digest, read_digest
from capacity_assets.digest.writing import as_html, as_text, subject_of
from capacity_assets.orchestration.build import build_definitions
from capacity_assets.orchestration.digests import DIGEST_JOB, DIGEST_SCHEDULE
from capacity_assets.periods import PERIODS
from capacity_assets.settings import Settings
from tests.certificates import make_certificates
from tests.clocks import TODAY, fixed_clock
from tests.command import capacity
from tests.fleet import add_database_sizes, add_instance_sizes, add_instances, sizes, totals
from tests.mail_server import Inbox, mail_server
from tests.receiver import Receiver
from tests.servers import silent_socket

WEEKLY = PERIODS["weekly"]
WEEK = WEEKLY.last(TODAY)
MONDAYS = [WEEK.start - timedelta(weeks=number) for number in range(14, -1, -1)]
FIRST = MONDAYS[0]
DAYS = 7 * 15
HOSTILE = "<b>x</b>\r\nBcc: all@example.com"


def weekly(values: list[int]) -> list[int]:
    return [value for value in values for _ in range(7)]


STEADY = [10_000 + 300 * number for number in range(15)]
JUMPED = [*STEADY[:-1], STEADY[-1] + 9_000]


def filled(engine: Engine) -> None:
    """server-1: `steady` grows as always, `jumped` ten times that, `new` came, `gone` went; server-2 fell silent."""
    add_instances(engine, [1, 2])
    add_database_sizes(engine, sizes(1, "steady", FIRST.isoformat(), weekly(STEADY)))
    add_database_sizes(engine, sizes(1, "jumped", FIRST.isoformat(), weekly(JUMPED)))
    add_database_sizes(engine, sizes(1, "gone", FIRST.isoformat(), weekly([70] * 14)))
    add_database_sizes(engine, sizes(1, HOSTILE, WEEK.start.isoformat(), [50] * 7))
    pairs = zip(weekly(STEADY), weekly(JUMPED), strict=True)
    add_instance_sizes(engine, totals(1, FIRST.isoformat(), [(one + other + 70, 3) for one, other in pairs]))
    add_database_sizes(engine, sizes(2, "crm", FIRST.isoformat(), [500] * (DAYS - 5)))
    add_instance_sizes(engine, totals(2, FIRST.isoformat(), [(500, 1)] * (DAYS - 5)))
    AggregationService(engine, fixed_clock()).calculate_period_aggregations("weekly", FIRST, WEEK.end)
    with engine.begin() as connection:
        for as_of, middle in ((WEEK.start - timedelta(days=1), 150), (WEEK.end, 40)):
            values = {"as_of": as_of, "middle": WEEK.end + timedelta(days=middle)}
            connection.execute(text(RUNWAY), values)


RUNWAY = """
INSERT INTO capacity_runways (as_of, instance_id, subject, name, state, last_day, size_mb, limit_mb, binds,
                              change_mb_per_day, history_days, middle_day, in_time, probability_7, probability_30,
                              probability_90, probability_365)
VALUES (:as_of, 1, 'database', 'jumped', 'forecast', :as_of, 1, 2, 'own limit', 1, 100, :middle, true, 0, 0, 0, 1)
"""
PREPARED = {"week": filled}


@pytest.fixture
def week(engine: Engine) -> Digest:
    return read_digest(engine, WEEK)


@pytest.fixture(autouse=True)
def today(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings
    monkeypatch.setattr(Clock, "today", lambda _self: TODAY)


@pytest.fixture
def inbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Inbox]:
    with mail_server() as running:
        monkeypatch.setenv("CAPACITY_SMTP_URL", f"smtp://127.0.0.1:{running.port}")
        monkeypatch.setenv("CAPACITY_MAIL_FROM", "capacity@example.com")
        yield running


@pytest.fixture
def receivers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write the file of receivers."""

    def write(content: str) -> None:
        file = tmp_path / "digest.toml"
        file.write_text(content)
        monkeypatch.setenv("CAPACITY_DIGEST_RECEIVERS", str(file))

    return write


TEAM = '[[receivers]]\nname = "dba"\nto = ["dba@example.com", "boss@example.com"]\n'


def test_a_digest_tells_what_is_out_of_the_ordinary_and_nothing_else(week: Digest) -> None:
    assert [(one.database, one.change_mb, one.usual_mb) for one in week.growers] == [("jumped", 9_300, 300)]
    moved = WEEK.end + timedelta(days=40)
    assert [(one.told, one.day, one.before) for one in week.runways] == [
        ("jumped", moved, WEEK.end + timedelta(days=150))
    ]
    assert [(one.server, one.last_day) for one in week.silent] == [("server-2", WEEK.end - timedelta(days=5))]
    assert [one.database for one in week.new] == [HOSTILE]
    assert [one.database for one in week.gone] == ["gone"]
    assert (week.size_mb, week.change_mb) == (STEADY[-1] + JUMPED[-1] + 70 + 500, 300 + 9_300)
    assert len(week.history) == 15


def test_a_server_that_falls_silent_on_any_day_is_told_once_and_not_before_its_days_are_over(engine: Engine) -> None:
    add_instances(engine, range(1, 9))
    for number in range(1, 9):
        # Server 1 is measured to the end, the others stop on the days of the week before.
        days = DAYS if number == 1 else DAYS - 14 + number - 1
        add_instance_sizes(engine, totals(number, FIRST.isoformat(), [(1, 1)] * days))
    before, after = WEEKLY.previous(WEEK), WEEKLY.window_of(WEEK.end + timedelta(days=1))

    told = [one.server for week in (before, WEEK, after) for one in read_digest(engine, week).silent]

    assert sorted(told) == [f"server-{number}" for number in range(2, 9)]
    assert read_digest(engine, after).silent == [], "of days still to come nothing is said"


def test_what_is_full_within_a_month_is_named_every_week(engine: Engine, week: Digest) -> None:
    assert week.soon == []
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE capacity_runways SET probability_30 = 0.7 WHERE as_of = :day"), {"day": WEEK.end}
        )

    soon = read_digest(engine, WEEK)

    assert [(one.told, one.probability) for one in soon.soon] == [("jumped", 0.7)]
    assert "Full within 30 days:\n- jumped on server-1:" in as_text(soon)


def test_what_was_not_there_a_week_ago_and_fills_is_told(engine: Engine, week: Digest) -> None:
    assert week
    with engine.begin() as connection:
        connection.execute(
            text(RUNWAY.replace("'database', 'jumped'", "'volume', '/new'")),
            {"as_of": WEEK.end, "middle": WEEK.end + timedelta(days=9)},
        )

    assert ("volume /new", None) in [(one.told, one.before) for one in read_digest(engine, WEEK).runways]


@pytest.mark.usefixtures("week")
def test_who_got_it_by_one_way_does_not_get_it_twice_because_of_another(
    inbox: Inbox, receivers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    receivers('[[receivers]]\nname = "both"\nto = ["a@example.com", "gone@example.com"]\nwebhook = true\n')
    inbox.refused.add("gone@example.com")
    webhook = Receiver()
    webhook.status = 500
    try:
        monkeypatch.setenv("CAPACITY_ALERT_WEBHOOK_URL", webhook.url)
        first = capacity("digest", "--send")
        webhook.status = 200
        assert capacity("digest", "--send").exit_code == 0
        assert "got it before" in capacity("digest", "--send").output
    finally:
        webhook.stop()

    assert "The webhook answered 500. 127.0.0.1 refuses gone@example.com; the others got it." in first.output
    assert len(inbox.mails) == len(webhook.texts) == 1


@pytest.mark.parametrize(
    "url", ["smtps://u:pa/ss@mail:465", "smtp://h:99999", "smtps://u:pässwort@mail", "imap://mail"]
)
def test_an_address_of_a_mail_server_that_cannot_work_is_refused_without_showing_it(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("CAPACITY_SMTP_URL", url)

    refused = capacity("digest", "--send")

    assert refused.exit_code == 2
    assert "CAPACITY_SMTP_URL: is no mail server" in refused.output
    assert "pa" not in refused.output.replace("password", "").replace("capacity", "").replace("special", "")


def test_a_quiet_week_is_one_line_and_one_of_another_team_too(week: Digest, engine: Engine) -> None:
    assert week.has_news
    before = read_digest(engine, WEEKLY.previous(WEEK))
    nobodys = read_digest(engine, WEEK, ("team", "payments"))

    assert len(as_text(before).splitlines()) == 1
    assert as_text(before).endswith("Nothing to report.\n")
    assert as_text(nobodys) == f"Nothing was measured of team=payments in the week of {WEEK.start} to {WEEK.end}. " + (
        "Nothing to report.\n"
    )


def test_a_label_has_its_own_digest(engine: Engine, week: Digest) -> None:
    assert week
    assert capacity("labels", "set", "server-1", "team=payments", "--database", "jumped").exit_code == 0

    own = read_digest(engine, WEEK, ("team", "payments"))

    assert [one.database for one in own.growers] == ["jumped"]
    assert [one.told for one in own.runways] == ["jumped"]
    assert (own.silent, own.new, own.gone) == ([], [], [])
    assert (own.size_mb, own.change_mb) == (JUMPED[-1], 9_300)


@pytest.mark.usefixtures("week")
def test_a_mail_has_text_html_and_a_picture_and_goes_out_once(inbox: Inbox, receivers: Any, engine: Engine) -> None:
    receivers(TEAM)
    first = capacity("digest", "--send")
    second = capacity("digest", "--send")

    assert first.exit_code == second.exit_code == 0, first.output
    assert "Sent to dba." in first.output
    assert "dba got it before" in second.output
    [mail] = inbox.mails
    assert mail["To"] == "dba@example.com, boss@example.com"
    assert mail["Subject"] == f"Capacity of the fleet, week of {WEEK.start}: +9.4 GiB"
    assert mail["Bcc"] is None
    plain, html = mail.get_body(("plain",)), mail.get_body(("html",))
    assert plain is not None
    assert html is not None
    assert "- jumped on server-1: +9.1 GiB; no week of the last twelve changed it by more than 300 MiB" in (
        plain.get_content()
    )
    assert "&lt;b&gt;x&lt;/b&gt;" in html.get_content()
    [picture] = [part for part in mail.walk() if part.get_content_type() == "image/png"]
    assert picture.get_content().startswith(b"\x89PNG")
    assert "cid:size-over-time" in html.get_content()
    assert capacity("digest", "--send", "--again").exit_code == 0
    assert len(inbox.mails) == 2
    with engine.connect() as connection:
        assert connection.execute(text("SELECT receiver || channel FROM capacity_digests")).scalars().all() == [
            "dbamail"
        ]


@pytest.mark.usefixtures("week")
def test_a_receiver_that_is_refused_is_tried_again_and_the_others_are_not(inbox: Inbox, receivers: Any) -> None:
    receivers(TEAM + '[[receivers]]\nname = "gone"\nto = ["gone@example.com"]\n')
    inbox.refused.add("gone@example.com")

    refused = capacity("digest", "--send")
    inbox.refused.clear()
    again = capacity("digest", "--send")

    assert refused.exit_code == 1
    assert "gone: 127.0.0.1 refuses gone@example.com." in refused.output
    assert again.exit_code == 0
    assert "Sent to gone." in again.output
    assert [mail["To"] for mail in inbox.mails] == ["dba@example.com, boss@example.com", "gone@example.com"]


@pytest.mark.usefixtures("week")
@pytest.mark.parametrize("state", ["closed", "silent"])
def test_a_mail_server_that_is_away_or_hangs_is_named_in_bounded_time(
    receivers: Any, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    receivers(TEAM)
    monkeypatch.setattr(sending, "TIMEOUT_SECONDS", 1)
    monkeypatch.setenv("CAPACITY_MAIL_FROM", "capacity@example.com")
    with silent_socket() as port:
        address = port if state == "silent" else 9
        monkeypatch.setenv("CAPACITY_SMTP_URL", f"smtp://capacity:hunter2@127.0.0.1:{address}")
        failed = capacity("digest", "--send")

    assert failed.exit_code == 1
    assert "does not take the mail" in failed.output
    assert "hunter2" not in failed.output


# The test's server does not see that a connection that was encrypted from the start is encrypted.
@pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")
@pytest.mark.usefixtures("week")
def test_a_password_is_sent_over_an_encrypted_connection_and_never_in_clear(
    receivers: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    receivers(TEAM)
    monkeypatch.setenv("CAPACITY_MAIL_FROM", "capacity@example.com")
    files = make_certificates(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    with mail_server(login=("capacity", "hunter2"), tls=context) as inbox:
        monkeypatch.setenv("CAPACITY_SMTP_URL", f"smtps://capacity:hunter2@127.0.0.1:{inbox.port}")
        untrusted = capacity("digest", "--send")
        monkeypatch.setenv("SSL_CERT_FILE", str(files.ca))
        monkeypatch.setenv("CAPACITY_SMTP_URL", f"smtps://capacity:wrong@127.0.0.1:{inbox.port}")
        refused = capacity("digest", "--send")
        monkeypatch.setenv("CAPACITY_SMTP_URL", f"smtps://capacity:hunter2@127.0.0.1:{inbox.port}")
        sent = capacity("digest", "--send")
        assert len(inbox.mails) == 1, untrusted.output + refused.output + sent.output
    with mail_server() as inbox:
        monkeypatch.setenv("CAPACITY_SMTP_URL", f"smtp://capacity:hunter2@127.0.0.1:{inbox.port}")
        in_clear = capacity("digest", "--send", "--again")
        assert inbox.mails == []

    assert "certificate verify failed" in untrusted.output
    assert "refuses the login" in refused.output
    assert sent.exit_code == 0, sent.output
    assert "offers no encryption: the password was not sent" in in_clear.output
    assert "hunter2" not in untrusted.output + refused.output + in_clear.output


@pytest.mark.usefixtures("week")
def test_a_digest_goes_to_the_webhook_as_text(receivers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    receivers('[[receivers]]\nname = "chat"\nwebhook = true\n')
    webhook = Receiver()
    try:
        monkeypatch.setenv("CAPACITY_ALERT_WEBHOOK_URL", webhook.url)
        assert capacity("digest", "--send").exit_code == 0
    finally:
        webhook.stop()

    [message] = webhook.texts
    assert message.startswith(f"Capacity of the fleet, week of {WEEK.start}")
    assert "Not measured any more:\n- server-2: last on" in message


@pytest.mark.usefixtures("week")
def test_the_asset_sends_the_newest_week_only_and_a_refusal_fails_no_run(inbox: Inbox, receivers: Any) -> None:
    receivers(TEAM + '[[receivers]]\nname = "gone"\nto = ["gone@example.com"]\n')
    inbox.refused.add("gone@example.com")
    settings = Settings()
    job = build_definitions(settings, clock=fixed_clock()).resolve_job_def(DIGEST_JOB)
    with dg.DagsterInstance.ephemeral() as instance:
        older = job.execute_in_process(instance=instance, partition_key=WEEKLY.previous(WEEK).key)
        newest = job.execute_in_process(instance=instance, partition_key=WEEK.key)

    assert (older.success, newest.success) == (True, True)
    assert [mail["To"] for mail in inbox.mails] == ["dba@example.com, boss@example.com"]
    [evaluation] = newest.get_asset_check_evaluations()
    assert not evaluation.passed
    assert "gone: 127.0.0.1 refuses gone@example.com" in str(evaluation.description).replace("\\", "")
    [event] = newest.asset_materializations_for_node("digest")
    counts = {key: value.value for key, value in event.metadata.items() if isinstance(value, dg.IntMetadataValue)}
    assert {"sent": 1, "not_sent": 1, "growers": 1, "silent": 1}.items() <= counts.items()


def test_the_schedule_asks_for_the_last_week_on_three_days() -> None:
    definitions = build_definitions(Settings())
    repository = definitions.get_repository_def()
    schedule = repository.get_schedule_def(DIGEST_SCHEDULE)
    with dg.DagsterInstance.ephemeral() as instance:
        context = dg.build_schedule_context(
            instance,
            scheduled_execution_time=fixed_clock(WEEK.end + timedelta(days=1)).local_now(),
            repository_def=repository,
        )
        [request] = schedule.evaluate_tick(context).run_requests or ()

    assert schedule.cron_schedule == "50 4 * * 1-3"
    assert request.partition_key == WEEK.key


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "holds tables [[receivers]]"),
        ('[[receivers]]\nto = ["a@b"]\n', "name is missing"),
        ('[[receivers]]\nname = "x"\n', "nobody would get it"),
        ('[[receivers]]\nname = "x"\nto = ["a@b, c@d"]\n', "a list of mail addresses"),
        ('[[receivers]]\nname = "x"\nto = ["a@b\\nBcc: c@d"]\n', "a list of mail addresses"),
        ('[[receivers]]\nname = "x"\nto = ["a@b"]\nlabel = "taem=x"\n', "Did you mean 'team'?"),
        ('[[receivers]]\nname = "x"\nto = ["a@b"]\npassword = "x"\n', "'password' is none of"),
        (TEAM + TEAM, "two receivers are called 'dba'"),
    ],
)
def test_a_file_of_receivers_that_cannot_work_is_refused(receivers: Any, content: str, problem: str) -> None:
    receivers(content)

    refused = capacity("digest", "--send")

    assert refused.exit_code == 2
    assert problem in refused.output


def test_check_says_who_gets_it_and_what_is_missing_to_reach_them(
    receivers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    receivers(TEAM + '[[receivers]]\nname = "chat"\nwebhook = true\n')

    def said() -> dict[str, list[tuple[str, str]]]:
        found: dict[str, list[tuple[str, str]]] = {}
        for finding in json.loads(capacity("check", "--json").output):
            found.setdefault(finding["subject"], []).append((finding["verdict"], finding["text"]))
        return found

    assert said()["CAPACITY_DIGEST_RECEIVERS"] == [
        ("ok", "dba, chat"),
        ("bad", "mail needs CAPACITY_SMTP_URL and CAPACITY_MAIL_FROM too"),
        ("bad", "webhook = true needs CAPACITY_ALERT_WEBHOOK_URL too"),
    ]
    assert said()["pages"][0][0] == "note", "the tests' role can write"
    monkeypatch.setenv("CAPACITY_SMTP_URL", "smtp://mail.example")
    monkeypatch.setenv("CAPACITY_MAIL_FROM", "capacity@example.com")
    monkeypatch.setenv("CAPACITY_ALERT_WEBHOOK_URL", "https://chat.example/hook")
    assert said()["CAPACITY_DIGEST_RECEIVERS"] == [("ok", "dba, chat")]
    receivers("nonsense")
    assert said()["CAPACITY_DIGEST_RECEIVERS"][0][0] == "bad"


@pytest.mark.usefixtures("week")
def test_the_command_shows_a_week_as_text_json_and_a_file(tmp_path: Path, engine: Engine) -> None:
    shown = capacity("digest").output
    found = json.loads(capacity("digest", "--json").output)
    capacity("digest", "--output", str(tmp_path / "digest.html"))

    digest = read_digest(engine, WEEK)
    assert shown.split() == as_text(digest).split()
    assert found["counts"] == {"soon": 0, "growers": 1, "runways": 1, "silent": 1, "new": 1, "gone": 1}
    assert (tmp_path / "digest.html").read_text() == as_html(digest)
    assert "\n" not in subject_of(digest)
    assert "The whole week" not in shown
    assert date.fromisoformat(found["week"]["start"]) == WEEK.start
