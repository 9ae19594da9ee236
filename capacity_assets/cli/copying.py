"""`capacity copy`: everything in the capacity database, into another PostgreSQL."""

from __future__ import annotations

import click

from capacity_assets.base.errors import DATABASE_FAILURES, CapacityError, database_errors, reason_of
from capacity_assets.base.settings import Settings
from capacity_assets.base.units import counted
from capacity_assets.cli.options import CommandFailedError, Report, json_command, password_option, say
from capacity_assets.database.engine import capacity_engine, disposed, ensure_reachable, safe_url
from capacity_assets.database.schema import refuse_an_unfit_database
from capacity_assets.history.copying import KEPT, copy_database
from capacity_assets.history.legacy import address_of
from capacity_assets.runtime import open_engine, prepare_database


@click.command()
@click.argument("address")
@password_option
@json_command
def copy(settings: Settings, /, *, address: str, password_from: str | None) -> Report:
    """Copy everything in the capacity database to an empty one.

    Copies samples, aggregates, servers and how they are reached. ADDRESS is postgresql://user@host/database without a
    password, or env:NAME of a variable that holds the whole address. The command creates the tables there; they must
    not hold rows. It only reads this database. The two may be of different versions of PostgreSQL.

    \b
    Examples:
      capacity copy env:NEW_CAPACITY_URL
      capacity copy postgresql://capacity@db.example/capacity --password-from env:CAPACITY_OWNER_PASSWORD
    """
    with disposed(capacity_engine(address_of(address, password_from, settings))) as target:
        with open_engine(settings, existing=True) as source:
            refuse_an_unfit_database(source, kept="Nothing was copied.")
            ensure_reachable(target, "ADDRESS")
            with database_errors(doing="preparing the target", kept=KEPT):
                prepare_database(target, settings)
            copied = copy_database(source, target, lambda table, rows: say(f"  {table}: {counted(rows, 'row')}"))
        try:
            # Moves rows of months that had no partition from the default one.
            prepare_database(target, settings)
        except (CapacityError, *DATABASE_FAILURES) as error:
            reason = reason_of(error).rstrip(".")
            raise CommandFailedError(
                f"Everything was copied. Moving rows into partitions of the target failed: {reason}. To complete it, "
                "set CAPACITY_DATABASE_URL to the target and run `capacity init`."
            ) from None
    lines = [
        f"Copied {counted(sum(copied.values()), 'row')} to {safe_url(target.url)}.",
        "Next: set CAPACITY_DATABASE_URL to that address, then run `capacity check` and `capacity up`.",
        "Dagster's runs and history were not copied; its sensors mark the existing partitions.",
    ]
    return Report({"copied": copied, "database": safe_url(target.url)}, lines)
