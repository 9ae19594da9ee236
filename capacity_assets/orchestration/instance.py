"""What Dagster's processes need around them: databases that run, a home with the shipped configuration.

Shared by `capacity demo` and `capacity up`. The contents of `dagster.yaml` are not decided here.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import URL, create_engine
from sqlalchemy.exc import NoSuchTableError

from capacity_assets.base.errors import DATABASE_FAILURES, CapacityError, reason_of
from capacity_assets.base.periods import PERIODS
from capacity_assets.base.settings import CAPACITY_DRIVER, DAGSTER_DRIVER, Settings, env_file_values
from capacity_assets.database.embedded import FolderRefusedError, own_folder
from capacity_assets.database.engine import CONNECT_TIMEOUT_SECONDS, UnreachableError, disposed, ensure_reachable
from capacity_assets.runtime import open_dagster_database

if TYPE_CHECKING:
    from dagster import DagsterInstance
    from dagster_postgres import DagsterPostgresStorage

# Events, not SQL, dominate a long backfill: writing them in batches halves that share.
EVENT_BATCH_SIZE = "100"


@contextmanager
def dagster_environment(
    settings: Settings, *, home: Path | None = None, sql_port: int | None = None
) -> Iterator[dict[str, str]]:
    """Yield the environment for Dagster processes; the embedded server runs as long as the block, if needed.

    `home` is a temporary folder for Dagster's files, if they are not to be kept; `sql_port` as for `embedded_server`.

    Raises:
        CapacityError: others can write the folder of the data, or Dagster's.
        EmbeddedServerError: the embedded server did not start.
        UnreachableError: the server named in DAGSTER_POSTGRES_URL does not answer.
    """
    with ExitStack() as stack:
        capacity_url, dagster_url = settings.capacity_url, settings.dagster_url
        if dagster_url is not None:
            _ensure_dagster_storage(dagster_url)
        if capacity_url is None or dagster_url is None:
            from capacity_assets.database.embedded import CAPACITY_DATABASE, DAGSTER_DATABASE, embedded_server

            server = stack.enter_context(embedded_server(settings.postgres_data, sql_port))
            capacity_url = capacity_url or server.url(CAPACITY_DATABASE, CAPACITY_DRIVER)
            dagster_url = dagster_url or server.url(DAGSTER_DATABASE, DAGSTER_DRIVER)
        home = home or kept_home(settings)
        shutil.copyfile(shipped_file("dagster.yaml"), home / "dagster.yaml")
        yield {
            # Passwords of servers may be there under names of their own; the child is started in another folder.
            **env_file_values(),
            **os.environ,
            **settings.as_environment(),
            "CAPACITY_DATABASE_URL": _plain(capacity_url),
            "DAGSTER_POSTGRES_URL": _plain(dagster_url),
            "DAGSTER_HOME": str(home),
            # Processes import nothing from their working directory.
            "PYTHONSAFEPATH": "1",
            "DAGSTER_EVENT_BATCH_SIZE": os.environ.get("DAGSTER_EVENT_BATCH_SIZE", EVENT_BATCH_SIZE),
        }


@contextmanager
def dagster_instance(environment: dict[str, str]) -> Iterator[DagsterInstance]:
    """Yield Dagster's instance for an environment, its tables created and each pool's limit set.

    The instance reads its storage from the process's environment, which has these values for the length of the block.
    """
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        with _opened(environment["DAGSTER_HOME"]) as instance:
            yield instance
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def dagster_storage(settings: Settings) -> Iterator[DagsterPostgresStorage]:
    """Yield Dagster's storage for looking: it is opened without creating tables.

    Raises:
        EmbeddedServerError: the embedded server did not start.
        UnreachableError: the server named in DAGSTER_POSTGRES_URL does not answer, or Dagster has no tables there yet.
    """
    from capacity_assets.orchestration.private import PooledPostgresStorage

    with open_dagster_database(settings) as url:
        _ensure_dagster_storage(url)
        storage = PooledPostgresStorage(_plain(url), should_autocreate_tables=False)
        try:
            yield storage
        except NoSuchTableError:
            raise UnreachableError("Dagster has no tables here yet: `capacity up` makes them.") from None
        finally:
            storage.run_storage.dispose()


def _opened(home: str) -> DagsterInstance:
    from alembic.util import CommandError
    from dagster import DagsterInstance

    from capacity_assets.orchestration.graph import set_pool_limits

    try:
        instance = DagsterInstance.from_config(home)
        set_pool_limits(instance.event_log_storage, PERIODS.values(), len(Settings().collection_shares))
    except CommandError:
        raise CapacityError(
            "The database named in DAGSTER_POSTGRES_URL holds the alembic version of another application, which "
            "Dagster takes for its own. The capacity tables were not touched. Give Dagster a database of its own."
        ) from None
    except DATABASE_FAILURES as error:
        raise CapacityError(
            f"Dagster's tables cannot be made in the database named in DAGSTER_POSTGRES_URL: {reason_of(error)}. "
            "The capacity tables were not touched. Its role must own that database, or may create tables there."
        ) from None
    return instance


def _ensure_dagster_storage(url: URL) -> None:
    """Report an unreachable server before Dagster reports it with a traceback."""
    with disposed(create_engine(url, connect_args={"connect_timeout": CONNECT_TIMEOUT_SECONDS})) as engine:
        ensure_reachable(engine, "DAGSTER_POSTGRES_URL")


def kept_home(settings: Settings) -> Path:
    """Return Dagster's home, created if missing; raises CapacityError if others can write to it."""
    try:
        for folder in (settings.home.resolve(), settings.dagster_home):
            own_folder(folder)
    except FolderRefusedError as error:
        raise CapacityError(f"Nothing was started. {error}") from None
    return settings.dagster_home


def shipped_file(name: str) -> Path:
    """Return `dagster.yaml` or `workspace.yaml`, in a checkout or a wheel; raises CapacityError where it is missing."""
    package = Path(__file__).resolve().parents[1]
    for candidate in (package / "shipped" / name, package.parent / name):
        if candidate.is_file():
            return candidate
    raise CapacityError(f"This installation lacks its {name}. Install capacity_assets again.")


def _plain(url: URL) -> str:
    return url.render_as_string(hide_password=False)
