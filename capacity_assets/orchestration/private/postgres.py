"""Dagster's storage on PostgreSQL with connections that are kept, and its error when it gives up connecting.

Dagster connects anew for each statement outside its web server, which costs the server more than the statement. There,
it keeps connections, but the first statement on each fails once the server was restarted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from dagster_postgres import (
    DagsterPostgresStorage,
    PostgresEventLogStorage,
    PostgresRunStorage,
    PostgresScheduleStorage,
)
from dagster_postgres.utils import (
    DagsterPostgresException,
    create_pg_engine,
    get_token_provider_from_config,
    pg_url_from_config,
    set_pg_statement_timeout,
)
from sqlalchemy import event

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dagster._serdes import ConfigurableClassData
    from dagster_postgres.auth import PgTokenProvider

__all__ = ["DagsterPostgresException", "PooledPostgresStorage"]

# As many are kept per process as are used at once by most; beyond that there are as many as without a pool.
KEPT_CONNECTIONS = 2
# Firewalls forget connections that are not used for long.
LONGEST_SECONDS = 600


class PooledPostgresStorage(DagsterPostgresStorage):
    """Dagster's storage whose three parts share connections; named in dagster.yaml.

    A connection is tried before it is used, so that a restart of the server is not noticed.
    """

    def __init__(
        self,
        postgres_url: str,
        should_autocreate_tables: bool = True,
        inst_data: ConfigurableClassData | None = None,
        token_provider: PgTokenProvider | None = None,
    ) -> None:
        """Open the storage, and create its tables unless told otherwise."""
        super().__init__(postgres_url, should_autocreate_tables, inst_data, token_provider)
        engine = create_pg_engine(
            postgres_url,
            token_provider,
            isolation_level="AUTOCOMMIT",
            pool_size=KEPT_CONNECTIONS,
            max_overflow=-1,
            pool_recycle=LONGEST_SECONDS,
            pool_pre_ping=True,
        )
        # The tables are there now.
        self._run_storage = _Runs(postgres_url, should_autocreate_tables=False, token_provider=token_provider)
        self._event_log_storage = _Events(postgres_url, should_autocreate_tables=False, token_provider=token_provider)
        self._schedule_storage = _Schedules(postgres_url, should_autocreate_tables=False, token_provider=token_provider)
        for part in (self._run_storage, self._event_log_storage, self._schedule_storage):
            part._engine = engine  # noqa: SLF001

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]) -> Self:
        """Open the storage that dagster.yaml describes."""
        return cls(
            pg_url_from_config(config_value),
            config_value.get("should_autocreate_tables", True),
            inst_data,
            get_token_provider_from_config(config_value),
        )


class _Part:
    """What the parts share. Their connections are kept already, and the part of the runs limits statements for all."""

    def optimize_for_webserver(self, statement_timeout: int, pool_recycle: int, max_overflow: int) -> None:
        """Change nothing."""


class _Events(_Part, PostgresEventLogStorage):
    """The events and what follows from them."""


class _Schedules(_Part, PostgresScheduleStorage):
    """The ticks of schedules and sensors."""


class _Runs(PostgresRunStorage):
    """The runs; the one of the parts that is told when the instance is closed."""

    def optimize_for_webserver(self, statement_timeout: int, *_: int, **__: int) -> None:
        """Limit the statements of all parts, in milliseconds."""
        event.listen(self._engine, "connect", lambda opened, _: set_pg_statement_timeout(opened, statement_timeout))
        # Those that are open already have no limit.
        self._engine.dispose()

    def dispose(self) -> None:
        """Close the connections."""
        super().dispose()
        self._engine.dispose()
