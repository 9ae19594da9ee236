"""Permanent against transient, decided by SQLSTATE in one table; texts without statements or passwords."""

from __future__ import annotations

import psycopg
import pytest
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from capacity_assets.base.errors import database_error, is_data_error, is_transient


def raised(sqlstate: str | None, text: str = "it broke") -> DBAPIError:
    kind = psycopg.errors.lookup(sqlstate) if sqlstate else psycopg.OperationalError
    return DBAPIError.instance("SELECT secret", {"password": "hunter2"}, kind(text), psycopg.Error)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("sqlstate", "transient"),
    [
        ("08006", True),
        ("40001", True),
        ("40P01", True),
        ("53300", True),
        ("55P03", True),
        ("57014", True),
        ("57P01", True),
        ("57P03", True),
        ("53100", False),  # disk full
        ("25006", False),  # read-only transaction
        ("42P01", False),
        ("42501", False),
        ("22003", False),
        ("23505", False),
        ("XX000", False),
    ],
)
def test_only_what_can_pass_by_itself_is_transient(sqlstate: str, transient: bool) -> None:
    assert is_transient(raised(sqlstate)) is transient


def test_a_lost_connection_without_a_code_is_transient() -> None:
    error = raised(None, "server closed the connection unexpectedly")

    assert isinstance(error, OperationalError)
    assert is_transient(error)


@pytest.mark.parametrize(
    "message",
    [
        'FATAL: password authentication failed for user "dba"',
        'FATAL: database "capacity" does not exist',
        'FATAL: no pg_hba.conf entry for host "192.0.2.1"',
    ],
)
def test_a_refused_login_is_permanent(message: str) -> None:
    assert not is_transient(raised(None, message))


@pytest.mark.parametrize(
    ("sqlstate", "data"), [("22003", True), ("23502", False), ("23514", False), ("42P01", False), ("08006", False)]
)
def test_data_errors_are_those_of_the_rows(sqlstate: str, data: bool) -> None:
    assert is_data_error(raised(sqlstate)) is data


def test_the_text_says_what_failed_what_was_kept_and_what_to_do_and_no_more() -> None:
    error = database_error(raised("40P01", "deadlock detected"), doing="writing", kept="One slice was kept.")

    assert str(error) == (
        "The database failed while writing: deadlock detected. One slice was kept. This may be temporary: run it again."
    )
    assert error.transient


def test_a_pool_without_a_free_connection_is_transient() -> None:
    assert database_error(PoolTimeoutError(), doing="writing", kept="One slice was kept.").transient


def test_a_missing_table_says_capacity_init() -> None:
    error = database_error(raised("42P01"), doing="writing", kept="One slice was kept.")

    assert "run `capacity init`" in str(error)
    assert not error.transient


@pytest.mark.parametrize(
    ("sqlstate", "advice"),
    [
        ("42501", "The role lacks a right: docs/operations.md, Roles, has the statements that grant it."),
        ("25006", "Connect to the primary, as a role that may write."),
        ("53100", "Free some space where the server keeps its data, then run this again."),
        ("23505", "Repeating it will not help: fix the cause first."),
    ],
)
def test_what_a_person_can_repair_is_said(sqlstate: str, advice: str) -> None:
    error = database_error(raised(sqlstate), doing="writing", kept="One slice was kept.")

    assert str(error).endswith(f"One slice was kept. {advice}")
    assert not error.transient
