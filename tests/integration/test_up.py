"""`capacity up` asked to stop at the worst moment."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, text

from capacity_assets.cli.up import StopRequestedError


def test_a_request_to_stop_in_mid_statement_is_no_failure_of_the_database(engine: Engine) -> None:
    def asked_to_stop(*_arguments: object, **_options: object) -> None:
        raise StopRequestedError

    with engine.connect() as connection:
        connection.connection.driver_connection.cursor_factory = asked_to_stop  # type: ignore[union-attr]
        with pytest.raises(StopRequestedError):
            connection.execute(text("SELECT 1"))
        connection.invalidate()
