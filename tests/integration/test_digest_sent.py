"""A digest goes out once to whom it concerns, and no mail server harms a run."""

from __future__ import annotations

import ssl
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from capacity_assets.base.units import human_day
from capacity_assets.database.engine import capacity_engine
from capacity_assets.digest import DigestDeliveries, send_digests
from capacity_assets.messages import channels
from capacity_assets.messages.channels import Receiver as WantsDigest
from capacity_assets.messages.channels import SendingError, SendingSettings, send
from capacity_assets.messages.message import Message
from tests.certificates import make_certificates
from tests.command import capacity
from tests.digests import TEAM, WEEK, filled
from tests.mail_server import Inbox, mail_server
from tests.receiver import Receiver
from tests.servers import silent_socket

pytestmark = pytest.mark.usefixtures("today")
PREPARED = {"week": filled}


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
        assert "has already received it" in capacity("digest", "--send").output
    finally:
        webhook.stop()

    assert "The webhook answered 500. 127.0.0.1 refuses gone@example.com; the other addresses got it." in first.output
    assert len(inbox.mails) == len(webhook.texts) == 1


@pytest.mark.usefixtures("week")
def test_a_server_that_ends_idle_sessions_does_not_end_the_lock_while_a_receiver_is_slow(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"options": "-c idle_in_transaction_session_timeout=200"}
    limited = capacity_engine(engine.url.update_query_dict(options))
    monkeypatch.setattr(channels, "post_json", lambda *_: time.sleep(1))

    sent = send_digests(
        limited, WEEK, [WantsDigest("dba", webhook=True)], SendingSettings(webhook_url="http://127.0.0.1:1")
    )

    limited.dispose()
    assert sent.sent == ["dba"]


@pytest.mark.usefixtures("week")
def test_who_could_not_be_reached_in_the_time_there_is_waits_for_the_next_attempt(engine: Engine) -> None:
    """Nothing listens at that port."""
    over = SendingSettings(webhook_url="http://127.0.0.1:1", ends_at=time.monotonic())
    receiver = WantsDigest("dba", webhook=True)

    assert send_digests(engine, WEEK, [receiver], over) == DigestDeliveries([], [], waiting=("dba",))
    with pytest.raises(SendingError, match="No time was left"):
        send(Message("title"), receiver, "webhook", over)


NO_MAIL_SERVERS = ["smtps://u:pa/ss@mail:465", "smtp://h:99999", "smtps://u:pässwort@mail", "imap://mail"]


def test_an_address_of_a_mail_server_that_cannot_work_is_refused_without_showing_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for url in NO_MAIL_SERVERS:
        monkeypatch.setenv("CAPACITY_SMTP_URL", url)

        refused = capacity("digest", "--send")

        assert refused.exit_code == 2, url
        assert "CAPACITY_SMTP_URL: is not a mail server" in refused.output, url
        assert "pa" not in refused.output.replace("password", "").replace("capacity", "").replace("special", ""), url


@pytest.mark.usefixtures("week")
def test_a_mail_has_text_and_html_with_a_chart_and_goes_out_once(inbox: Inbox, receivers: Any, engine: Engine) -> None:
    receivers(TEAM)
    first = capacity("digest", "--send")
    second = capacity("digest", "--send")

    assert first.exit_code == second.exit_code == 0, first.output
    assert "Sent to dba." in first.output
    assert "dba has already received it" in second.output
    [mail] = inbox.mails
    assert mail["To"] == "dba@example.com, boss@example.com"
    assert mail["Subject"] == f"Capacity of the fleet, week of {human_day(WEEK.start)}: +9.4 GiB"
    assert mail["Bcc"] is None
    plain, html = mail.get_body(("plain",)), mail.get_body(("html",))
    assert plain is not None
    assert html is not None
    assert "- jumped on server-1: +9.1 GiB; in the twelve weeks before, at most 300 MiB in a week" in (
        plain.get_content()
    )
    assert "&lt;b&gt;x&lt;/b&gt;" in html.get_content()
    assert [part.get_content_type() for part in mail.walk()] == ["multipart/alternative", "text/plain", "text/html"]
    assert html.get_content().count('bgcolor="#0066a8"') == 15, "a mark for each week"
    assert "<svg" not in html.get_content(), "mail programs draw none"
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
    monkeypatch.setattr(channels, "TIMEOUT_SECONDS", 1)
    monkeypatch.setenv("CAPACITY_MAIL_FROM", "capacity@example.com")
    with silent_socket() as port:
        address = port if state == "silent" else 9
        monkeypatch.setenv("CAPACITY_SMTP_URL", f"smtp://capacity:hunter2@127.0.0.1:{address}")
        failed = capacity("digest", "--send")

    assert failed.exit_code == 1
    assert "did not accept the mail" in failed.output
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
    assert message.startswith(f"Capacity of the fleet, week of {human_day(WEEK.start)}")
    assert "No longer measured:\n- server-2: last on" in message
