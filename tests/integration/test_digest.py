"""The weekly digest: only what is out of the ordinary, per receiver, as text, page, and asset."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from sqlalchemy import Engine, text

from capacity_assets.aggregates.service import AggregationService
from capacity_assets.base.settings import Settings
from capacity_assets.base.units import human_day, human_days, human_mb
from capacity_assets.digest import Digest, as_html, as_text, headline, mail_subject, read_digest, sections
from capacity_assets.orchestration.alerts import alert_definitions
from capacity_assets.orchestration.build import build_definitions
from capacity_assets.orchestration.documents import DIGEST_JOB, DIGEST_SCHEDULE, digest_text
from capacity_assets.orchestration.graph import Graph
from tests.alerted_fleet import clock_at
from tests.clocks import fixed_clock
from tests.command import capacity, printed
from tests.computing import compute_windows
from tests.databases import rows
from tests.digests import DAYS, FIRST, HOSTILE, JUMPED, RUNWAY, STEADY, TEAM, WEEK, WEEKLY, filled, weekly
from tests.fleet import add_database_sizes, add_instance_sizes, add_instances, add_objects, sizes, totals
from tests.mail_server import Inbox

pytestmark = pytest.mark.usefixtures("today")

PREPARED = {"week": filled}
NEWS_OF_THE_WEEK = {"growers": 1, "runways": 1, "silent": 1, "new": 1, "gone": 1}


def test_a_digest_tells_what_is_out_of_the_ordinary_and_nothing_else(week: Digest) -> None:
    assert [(one.database, one.change_mb, one.usual_mb) for one in week.growers] == [("jumped", 9_300, 300)]
    moved = WEEK.end + timedelta(days=40)
    assert [(one.display_name, one.day, one.before) for one in week.runways] == [
        ("jumped", moved, WEEK.end + timedelta(days=150))
    ]
    assert [(one.server, one.last_day) for one in week.silent] == [("server-2", WEEK.end - timedelta(days=5))]
    assert [one.database for one in week.new] == [HOSTILE]
    assert [one.database for one in week.gone] == ["gone"]
    assert (week.size_mb, week.change_mb) == (STEADY[-1] + JUMPED[-1] + 70 + 500, 300 + 9_300)
    assert len(week.history) == 15


def test_a_digest_names_the_table_behind_each_of_its_movers(engine: Engine, week: Digest) -> None:
    assert [one.behind for one in week.growers] == [None], "no table was measured"
    before, last = WEEK.start - timedelta(days=2), WEEK.start + timedelta(days=5)
    days = {before: {"audit": 2_000, "items": 900}, last: {"audit": 10_000, "items": 100, "new": 50}}
    add_objects(engine, 1, "jumped", days)
    add_objects(engine, 1, "steady", {before: {"a": 1}, last: {"a": 9_999}})

    digest = read_digest(engine, WEEK)

    [behind] = [one.behind for one in digest.growers]
    assert behind is not None
    assert (behind.name, behind.change_bytes >> 20, behind.first_day, behind.last_day) == ("audit", 8_000, before, last)
    days_compared = human_days(before, last)
    for shown in (as_text(digest), as_html(digest), digest_text(digest).replace("\\", "")):
        assert f"Most by table audit: +7.8 GiB, {days_compared}" in shown


def test_a_server_that_falls_silent_on_any_day_is_told_once_and_not_before_its_days_are_over(engine: Engine) -> None:
    add_instances(engine, range(1, 9))
    for number in range(1, 9):
        # Server 1 is measured to the end, the others stop on the days of the week before.
        days = DAYS if number == 1 else DAYS - 14 + number - 1
        add_instance_sizes(engine, totals(number, FIRST.isoformat(), [(1, 1)] * days))
    before, after = WEEKLY.previous(WEEK), WEEKLY.window_of(WEEK.end + timedelta(days=1))

    silent_servers = [one.server for week in (before, WEEK, after) for one in read_digest(engine, week).silent]

    assert sorted(silent_servers) == [f"server-{number}" for number in range(2, 9)]
    assert read_digest(engine, after).silent == [], "of days still to come nothing is said"


def test_a_week_without_a_forecast_does_not_say_that_nothing_fills(engine: Engine, week: Digest) -> None:
    assert week.has_forecast
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM capacity_runways"))

    found = read_digest(engine, WEEK)

    assert not found.has_forecast
    quiet = replace(found, counts=dict.fromkeys(found.counts, 0))
    for each in (found, quiet):
        for shown in (as_text(each), as_html(each), digest_text(each)):
            assert "No forecast was issued in that week, so there are no fill dates" in shown.replace("\\", "")
            assert "Nothing is full" not in shown
        assert ("capacity runway --issue" in as_text(each), "`" in as_text(each)) == (True, False)
        assert ("<code>capacity runway --issue</code>" in as_html(each), "`" in as_html(each)) == (True, False)
        assert "`capacity runway --issue`" in digest_text(each)


def test_forecasts_of_the_day_after_a_week_are_forecasts_for_its_digest(engine: Engine, week: Digest) -> None:
    assert week.has_forecast
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM capacity_runways"))
        issued = {"as_of": WEEK.end + timedelta(days=1), "middle": WEEK.end + timedelta(days=20)}
        connection.execute(text(RUNWAY), issued)

    digest = read_digest(engine, WEEK)

    assert (digest.has_forecast, digest.soon, digest.runways) == (True, [], []), "nothing to compare a date with"


def test_a_week_in_which_a_database_shrank_is_no_week_as_usual(engine: Engine) -> None:
    add_instances(engine, [1])
    shrunk = [*STEADY[:-1], STEADY[-2] - 9_000]
    add_database_sizes(engine, sizes(1, "emptied", FIRST.isoformat(), weekly(shrunk)))
    add_instance_sizes(engine, totals(1, FIRST.isoformat(), [(size, 1) for size in weekly(shrunk)]))
    compute_windows(AggregationService(engine, fixed_clock()), "weekly", FIRST, WEEK.end)

    digest = read_digest(engine, WEEK)

    assert [(one.database, one.change_mb, one.usual_mb) for one in digest.shrinkers] == [("emptied", -9_000, 300)]
    assert "Shrank more than usual:\n- emptied on server-1: -8.8 GiB; in the twelve weeks before" in as_text(digest)
    assert not mail_subject(digest).endswith("unusual")
    assert digest.declines == [], "it is named once"
    before = read_digest(engine, WEEKLY.previous(WEEK))
    assert (
        "No database changed more than usual, none was created or removed, and no server came, went or stopped being "
        "measured." in as_text(before)
    )
    assert mail_subject(before).endswith(", nothing unusual")


def test_where_the_size_shrank_the_databases_that_shrank_are_named(engine: Engine) -> None:
    add_instances(engine, [1])
    shrunk, grown = [*STEADY[:-1], STEADY[-2] - 800], [*STEADY[:-1], STEADY[-1] + 100]
    for name, values in (("trimmed", shrunk), ("steady", grown)):
        add_database_sizes(engine, sizes(1, name, FIRST.isoformat(), weekly(values)))
    both = [one + other for one, other in zip(weekly(shrunk), weekly(grown), strict=True)]
    add_instance_sizes(engine, totals(1, FIRST.isoformat(), [(size, 2) for size in both]))
    compute_windows(AggregationService(engine, fixed_clock()), "weekly", FIRST, WEEK.end)

    digest = read_digest(engine, WEEK)

    assert (digest.change_mb, digest.shrinkers) == (-400, []), "less than a GiB is not unusual"
    assert "Shrank most:\n- trimmed on server-1: -800 MiB, now 12.8 GiB\n" in as_text(digest)
    assert "steady" not in as_text(digest)


def test_a_week_in_which_a_server_was_not_measured_is_partly_measured_and_no_drop(engine: Engine, week: Digest) -> None:
    assert not week.is_change_partial
    with engine.begin() as connection:
        for table in ("database_size_aggregations", "instance_size_aggregations"):
            connection.execute(
                text(f"DELETE FROM {table} WHERE instance_id = 2 AND period_start = :week"), {"week": WEEK.start}
            )
        connection.execute(text("UPDATE instance_size_aggregations SET total_size_change_mb = -900"))

    digest = read_digest(engine, WEEK)

    assert (digest.is_partial, digest.is_change_partial, digest.partial_weeks) == (True, True, [WEEK.start])
    assert digest.declines == []
    size = human_mb(STEADY[-1] + JUMPED[-1] + 70)
    assert as_text(digest).splitlines()[0] == (
        f"The fleet: {size} in the week of {human_days(WEEK.start, WEEK.end)}. Not everything was measured "
        "in that week, so no change is shown."
    )
    assert mail_subject(digest).endswith(": partly measured")
    html = as_html(digest)
    assert (html.count('bgcolor="#9cc4e0"'), html.count('bgcolor="#0066a8"')) == (1, 14)
    assert "Lighter bars: partly measured." in html
    assert mail_subject(replace(digest, is_partial=False)).endswith(": change unknown"), "only the week before was"


@pytest.mark.usefixtures("week")
def test_each_item_links_to_the_page_of_its_subject(engine: Engine) -> None:
    pages = "https://capacity.example/pages/"
    moved = human_day(WEEK.end + timedelta(days=40))
    digest = read_digest(engine, WEEK)

    shown = as_text(digest, pages)
    assert f"- jumped on server-1: {moved}; previously {human_day(WEEK.end + timedelta(days=150))}\n" in shown
    addresses = [line.strip() for line in shown.splitlines() if pages in line]
    assert addresses == [
        "https://capacity.example/pages/database?server=1&name=jumped",
        "https://capacity.example/pages/database?server=1&name=jumped",
        "https://capacity.example/pages/server?server=2",
        "https://capacity.example/pages/database?server=1&name=%3Cb%3Ex%3C%2Fb%3E%0D%0ABcc%3A+all%40example.com",
        "https://capacity.example/pages/database?server=1&name=gone",
        "https://capacity.example/pages/changes?period=weekly&window=2025-07-07",
    ]
    html = as_html(digest, pages)
    assert [html.count(one.replace("&", "&amp;")) > 0 for one in addresses] == [True] * 6
    assert f"[server-2: last on {human_day(WEEK.end - timedelta(days=5))}]({addresses[2]})" in digest_text(
        digest, pages
    )
    assert "http" not in as_text(digest) + digest_text(digest)
    assert as_html(digest).count("<a ") == 0
    team = replace(digest, label=("team", "payments & more"))
    assert as_text(team, pages).endswith("\nhttps://capacity.example/pages/group?by=team&name=payments+%26+more\n")


@pytest.mark.parametrize(
    ("middle", "state", "told"),
    [
        (200, "forecast", ["Full later than forecast before"]),
        (None, "forecast", ["Full later than forecast before"]),
        (None, "unlimited", ["Full later than forecast before"]),
        (163, "forecast", []),
        (None, "limit unknown", []),
    ],
)
@pytest.mark.usefixtures("week")
def test_what_fills_later_than_forecast_a_week_ago_is_named(
    engine: Engine, middle: int | None, state: str, told: list[str]
) -> None:
    """A week ago it was to be full 150 days after the end of this week."""
    day = None if middle is None else WEEK.end + timedelta(days=middle)
    with engine.begin() as connection:
        values = {"as_of": WEEK.end, "middle": day, "state": state}
        connection.execute(
            text("UPDATE capacity_runways SET middle_day = :middle, state = :state WHERE as_of = :as_of"), values
        )

    digest = read_digest(engine, WEEK)

    assert digest.runways == []
    headings = [section.heading for section in sections(digest) if section.heading.startswith("Full")]
    assert headings == told
    if told:
        then = human_day(WEEK.end + timedelta(days=150))
        now = "not within a year" if day is None else human_day(day)
        assert f"- jumped on server-1: {now}; previously {then}\n" in as_text(digest)


def test_names_are_escaped_once_in_markdown(week: Digest) -> None:
    renamed = replace(week, growers=[replace(week.growers[0], database="a_b")])

    assert "a\\_b on server-1" in digest_text(renamed).replace("server\\-1", "server-1")


def test_what_is_full_within_a_month_is_named_every_week(engine: Engine, week: Digest) -> None:
    assert week.soon == []
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE capacity_runways SET probability_30 = 0.7 WHERE as_of = :day"), {"day": WEEK.end}
        )

    soon = read_digest(engine, WEEK)

    assert [(one.display_name, one.probability) for one in soon.soon] == [("jumped", 0.7)]
    assert "May fill soon:\n- jumped on server-1: act, probability 70 %, " in as_text(soon)


def test_what_was_not_there_a_week_ago_and_fills_is_reported(engine: Engine, week: Digest) -> None:
    assert week
    with engine.begin() as connection:
        connection.execute(
            text(RUNWAY.replace("'database', 'jumped'", "'volume', '/new'")),
            {"as_of": WEEK.end, "middle": WEEK.end + timedelta(days=9)},
        )

    assert ("disk /new", None) in [(one.display_name, one.before) for one in read_digest(engine, WEEK).runways]


def test_a_quiet_week_is_one_line_and_one_of_another_team_too(week: Digest, engine: Engine) -> None:
    assert week.has_news
    before = read_digest(engine, WEEKLY.previous(WEEK))
    nobodys = read_digest(engine, WEEK, ("team", "payments"))
    assert as_text(before, "https://pages.example").endswith(
        "or more.\n\nhttps://pages.example/changes?period=weekly&window=2025-06-30\n"
    )

    assert len(as_text(before).splitlines()) == 1
    assert as_text(before).endswith(
        "By the forecasts of that week, there is nothing to watch or act on, and no fill date moved by two weeks or "
        "more.\n"
    )
    assert (
        as_text(nobodys)
        == f"Nothing was measured of payments (team) in the week of {human_days(WEEK.start, WEEK.end)}.\n"
    )


def test_a_label_has_its_own_digest(engine: Engine, week: Digest) -> None:
    assert week
    assert capacity("labels", "set", "server-1", "team=payments", "--database", "jumped").exit_code == 0

    own = read_digest(engine, WEEK, ("team", "payments"))

    assert [one.database for one in own.growers] == ["jumped"]
    assert [one.display_name for one in own.runways] == ["jumped"]
    assert (own.silent, own.new, own.gone) == ([], [], [])
    assert (own.size_mb, own.change_mb) == (JUMPED[-1], 9_300)


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


@pytest.mark.usefixtures("week")
def test_a_digest_that_falls_into_quiet_hours_is_sent_when_they_end(inbox: Inbox, receivers: Any) -> None:
    """The asset runs at noon."""
    receivers(TEAM + 'quiet = "11:00-13:00"\n')
    job = build_definitions(Settings(), clock=fixed_clock()).resolve_job_def(DIGEST_JOB)
    with dg.DagsterInstance.ephemeral() as instance:
        cursor = None

        def tick(hour: int) -> None:
            nonlocal cursor
            [sensor] = alert_definitions(Graph(Settings(), clock_at(hour=hour))).sensors or ()
            with dg.build_sensor_context(instance=instance, cursor=cursor) as context:
                sensor(context)
                cursor = context.cursor

        tick(12)
        ran = job.execute_in_process(instance=instance, partition_key=WEEK.key)
        [evaluation] = ran.get_asset_check_evaluations()
        assert (evaluation.passed, evaluation.metadata["waiting"].value) == (True, "dba")
        tick(12)
        assert inbox.mails == []
        tick(13)
        tick(13)

    [mail] = inbox.mails
    assert mail["Subject"].startswith("Capacity of the fleet, week of ")


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


NO_RECEIVERS = [
    ("", "must contain only tables [[receivers]]"),
    ('[[receivers]]\nto = ["a@b"]\n', "name missing"),
    ('[[receivers]]\nname = "x"\n', "it has no address"),
    ('[[receivers]]\nname = "x"\nto = ["a@b, c@d"]\n', "a list of mail addresses"),
    ('[[receivers]]\nname = "x"\nto = ["a@b\\nBcc: c@d"]\n', "a list of mail addresses"),
    ('[[receivers]]\nname = "x"\nto = ["a@b"]\nlabel = "taem=x"\n', "Did you mean 'team'?"),
    ('[[receivers]]\nname = "x"\nto = ["a@b"]\npassword = "x"\n', "'password' is not one of"),
    (TEAM + TEAM, "two receivers have the name 'dba'"),
]


def test_a_file_of_receivers_that_cannot_work_is_refused(receivers: Any) -> None:
    for content, problem in NO_RECEIVERS:
        receivers(content)

        refused = capacity("digest", "--send")

        assert refused.exit_code == 2, content
        assert problem in refused.output, content


def test_check_says_who_gets_it_and_what_is_missing_to_reach_them(
    receivers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    receivers(TEAM + '[[receivers]]\nname = "chat"\nwebhook = true\n')

    def said() -> dict[str, list[tuple[str, str]]]:
        found: dict[str, list[tuple[str, str]]] = {}
        for finding in json.loads(capacity("check", "--json").output):
            found.setdefault(finding["subject"], []).append((finding["verdict"], finding["text"]))
        return found

    assert said()["CAPACITY_RECEIVERS"] == [
        ("bad", "mail needs CAPACITY_SMTP_URL and CAPACITY_MAIL_FROM too"),
        ("bad", "webhook = true needs CAPACITY_ALERT_WEBHOOK_URL too"),
    ]
    assert said()["pages"][0][0] == "note", "the tests' role can write"
    monkeypatch.setenv("CAPACITY_SMTP_URL", "smtp://mail.example")
    monkeypatch.setenv("CAPACITY_MAIL_FROM", "capacity@example.com")
    monkeypatch.setenv("CAPACITY_ALERT_WEBHOOK_URL", "https://chat.example/hook")
    assert said()["CAPACITY_RECEIVERS"] == [("ok", "dba, chat")]
    receivers('[[receivers]]\nname = "chat"\nlabel = "team=nosuch"\nwebhook = true\n')
    assert said()["CAPACITY_RECEIVERS"] == [("note", "chat gets nothing: nothing has the label team=nosuch.")]
    receivers("nonsense")
    assert said()["CAPACITY_RECEIVERS"][0][0] == "bad"


@pytest.mark.usefixtures("week")
def test_the_digest_of_a_label_that_nothing_has_is_refused() -> None:
    refused = capacity("digest", "--label", "team=nobody")

    assert refused.exit_code == 2
    assert "Nothing has the label team=nobody. `capacity labels list` shows all." in refused.output


@pytest.mark.usefixtures("week")
def test_the_digest_of_an_empty_label_value_is_that_of_what_has_no_such_label(engine: Engine) -> None:
    without = json.loads(printed("digest", "--label", "team=", "--json"))

    stored = f"window_start = '{WEEK.start}' AND period = 'weekly' AND grouped_by = 'engine'"
    everything = rows(engine, f"SELECT CAST(sum(size_mb) AS bigint) FROM capacity_groups WHERE {stored}")
    assert everything == [(without["size_mb"],)], "no label was computed"
    assert printed("digest", "--label", "team=").startswith("no team: 36.7 GiB in the week of ")


@pytest.mark.usefixtures("week")
def test_the_command_shows_a_week_as_text_json_and_a_file(tmp_path: Path, engine: Engine) -> None:
    shown = capacity("digest").output
    (tmp_path / "latest.html").symlink_to(tmp_path / "digest.html")
    found = json.loads(capacity("digest", "--output", str(tmp_path / "latest.html"), "--json").output)

    digest = read_digest(engine, WEEK)
    assert shown.split() == as_text(digest).split()
    assert found["counts"] == {
        **dict.fromkeys(("soon", "shrinkers", "declines", "later", "retained_wal", "came", "went"), 0),
        **NEWS_OF_THE_WEEK,
    }
    assert (tmp_path / "digest.html").read_text() == as_html(digest)
    assert "\n" not in mail_subject(digest)
    assert "The whole week" not in shown
    so_far = read_digest(engine, WEEK, today=WEEK.end)
    assert headline(so_far) == headline(digest).replace(" 2025.", " 2025 so far.")
    assert " so far." in headline(so_far)
    assert date.fromisoformat(found["week"]["start"]) == WEEK.start
