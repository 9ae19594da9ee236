"""The commands that bring samples in: `collect`, `import`, `instances`. Options and help texts only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from capacity_assets.cli.options import Parameters, command, dry_run_option, json_option
from capacity_assets.settings import load_settings


@click.command()
@click.argument("servers", nargs=-1)
@click.option("--again", is_flag=True, help="Measure also servers that were measured before on this day.")
@click.option(
    "--own", is_flag=True, help="Measure also the server that holds the capacity tables, and draw its databases."
)
@json_option
@command
def collect(*, servers: tuple[str, ...], again: bool, own: bool, as_json: bool) -> int:
    """Measure the registered servers, or the named SERVERS, and store today's sizes.

    A server that does not answer or refuses is reported with its reason and gets no sample; the others are stored. The
    same command again measures those that failed.

    \b
    Examples:
      capacity collect
      capacity collect db-7 db-9
      capacity collect --own
    """
    from capacity_assets.cli.collect import collect as measure

    return measure(load_settings(), servers, again=again, own=own, as_json=as_json)


@click.group()
def instances() -> None:
    """Register the servers to be measured, and test whether they can be."""


def reaching_options(function: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """Say how a server is reached: the options of `instances add`."""
    options = (
        click.option("--engine", help="mariadb, mysql, oracle, postgresql or sqlserver."),
        click.option("--host", help="Name, address, or the path of a socket."),
        click.option("--port", type=click.IntRange(1, 65535), help="Default: the engine's usual one."),
        click.option("--username", help="Login of the collection."),
        click.option(
            "--password-from",
            metavar="WHERE",
            help="env:NAME, file:/PATH or secret:NAME (a file in CAPACITY_SECRETS_FOLDER). Never the password itself.",
        ),
        click.option("--database", help="To connect to; of Oracle the service name. Default: the engine's usual one."),
        click.option("--tls", help="off, require, verify-ca or verify-full (the default; on this machine off)."),
        click.option("--tls-ca", metavar="FILE", help="Certificate authority; of Oracle the folder of the wallet."),
        click.option("--tls-certificate", metavar="FILE", help="The client's certificate."),
        click.option("--tls-key", metavar="FILE", help="The client's key."),
        click.option("--sizing", help="files (exact, the default) or statistics (cheaper on huge servers)."),
        click.option(
            "--counted-by",
            metavar="SERVER",
            help="Primary of this replica, or owner of its storage: fleet totals count that one only.",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


@instances.command()
@click.argument("name")
@reaching_options
@click.option(
    "--replace", is_flag=True, help='Change a server that is registered already: what is given, "" taking it away.'
)
@json_option
@command
def add(*, name: str, replace: bool, as_json: bool, **given: Any) -> int:
    """Register the server NAME for collection.

    \b
    Examples:
      capacity instances add db-7 --engine postgresql --host db-7.example \\
          --username capacity_probe --password-from env:DB_7_PASSWORD
      capacity instances add shop --engine mariadb --host 10.0.0.5 --tls verify-full --tls-ca /etc/ssl/ca.pem \\
          --username capacity_probe --password-from file:/etc/capacity/shop.password
    """
    from capacity_assets.cli.instances import add_instance

    return add_instance(load_settings(), name, given, replace=replace, as_json=as_json)


@instances.command("list")
@json_option
@command
def list_(*, as_json: bool) -> int:
    """Show the servers, how each is reached, and its last measurement. Shows no password, only where it is."""
    from capacity_assets.cli.instances import list_instances

    return list_instances(load_settings(), as_json=as_json)


@instances.command()
@click.argument("names", nargs=-1, required=True)
@command
def disable(*, names: tuple[str, ...]) -> int:
    """Take the servers NAMES out of service: neither measured nor aggregated any more. Their history is kept."""
    from capacity_assets.cli.instances import switch_instances

    return switch_instances(load_settings(), names, active=False)


@instances.command()
@click.argument("names", nargs=-1, required=True)
@command
def enable(*, names: tuple[str, ...]) -> int:
    """Put the servers NAMES back into service."""
    from capacity_assets.cli.instances import switch_instances

    return switch_instances(load_settings(), names, active=True)


@instances.command()
@click.argument("names", nargs=-1, required=True)
@command
def remove(*, names: tuple[str, ...]) -> int:
    """Forget how the servers NAMES are reached. One without any history goes; the others are disabled and keep it."""
    from capacity_assets.cli.instances import remove_instances

    return remove_instances(load_settings(), names)


@instances.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--disable-others",
    is_flag=True,
    help="Take servers that are measured here out of service if FILE does not declare them.",
)
@dry_run_option
@json_option
@command
def import_instances(*, file: Path, disable_others: bool, dry_run: bool, as_json: bool) -> int:
    """Register the servers that FILE declares, TOML or CSV; those that are there are changed. All of them or none.

    \b
    [defaults]
    username = "capacity_probe"
    tls = "verify-full"
    [[servers]]
    name = "db-7"
    engine = "postgresql"
    host = "db-7.example"
    password_from = "secret:db-7"
    """
    from capacity_assets.cli.instances import import_instances as register_file

    return register_file(load_settings(), file, disable_others=disable_others, dry_run=dry_run, as_json=as_json)


@instances.command("test")
@click.argument("name")
@json_option
@command
def test_(*, name: str, as_json: bool) -> int:
    """Reach the server NAME as the collection does; say what works and what is missing. Stores nothing."""
    from capacity_assets.cli.instances import test_instance

    return test_instance(load_settings(), name, as_json=as_json)


@click.command("copy")
@click.argument("address")
@click.option(
    "--password-from", metavar="WHERE", help="Where the password of ADDRESS is: env:NAME, file:/PATH or secret:NAME."
)
@json_option
@command
def copy_(*, address: str, password_from: str | None, as_json: bool) -> None:
    """Copy everything in the capacity database to an empty one: samples, aggregates, servers and how they are reached.

    ADDRESS is postgresql://user@host/database without a password, or env:NAME of a variable that holds the whole
    address. The tables are made there; it must hold no rows. This database is only read. The two may be of different
    versions of PostgreSQL.

    \b
    Examples:
      capacity copy env:NEW_CAPACITY_URL
      capacity copy postgresql://capacity@db.example/capacity --password-from env:CAPACITY_OWNER_PASSWORD
    """
    from capacity_assets.cli.copying import copy

    copy(load_settings(), address, password_from, as_json=as_json)


@click.command("import")
@click.argument("source")
@click.option(
    "--level", default="database", show_default=True, help="What a row is: a database's size, or a server's total."
)
@click.option("--map", "mapping", multiple=True, metavar="OURS=THEIRS", help="Column THEIRS is OURS; may be repeated.")
@click.option("--server", help="All rows are of this server; the source needs no column for it.")
@click.option(
    "--unit", default="mb", show_default=True, type=click.Choice(["bytes", "kb", "mb", "gb"]), help="Of the sizes."
)
@click.option(
    "--decimal",
    type=click.Choice([".", ","]),
    help="The mark before decimals. Needed where the file separates by semicolons and has decimals; else a point.",
)
@click.option(
    "--on-conflict",
    default="keep",
    show_default=True,
    type=click.Choice(["keep", "replace"]),
    help="Where another size of that day is stored: keep it, or replace it.",
)
@click.option("--register-as", metavar="ENGINE", help="Register servers that are not known yet, with this engine.")
@click.option(
    "--password-from",
    metavar="WHERE",
    help="Where the password of a database SOURCE is: env:NAME, file:/PATH or secret:NAME.",
)
@dry_run_option
@json_option
@command
def import_(*, source: str, as_json: bool, **asked: Any) -> int:
    """Bring in history: samples from a CSV or Parquet file, or all tables of a legacy database.

    SOURCE is a file (.csv, .csv.gz, .parquet), or postgresql://user@host/database without a password, or env:NAME of a
    variable that holds the whole address. Columns are server (or instance_id), database, day, size_mb, and optionally
    data_size_mb, log_size_mb, collected_at; --map names others. Interrupt it when you like: the same command continues.

    \b
    Examples:
      capacity import sizes.csv --dry-run
      capacity import sizes.csv --map server=host --map database=db --map size_mb=bytes --unit bytes
      capacity import env:LEGACY_DATABASE_URL
    """
    from capacity_assets.cli.importing import ImportRequest, run_import

    return run_import(load_settings(), source, ImportRequest(**asked), as_json=as_json)
