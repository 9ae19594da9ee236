"""`capacity instances`: who is measured, and how each one is reached. Listing and testing have modules of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from capacity_assets.cli.declaring import Registry, Report, declaring, file_argument
from capacity_assets.cli.options import LazyGroup, options
from capacity_assets.cli.server_registry import NAMES_SHOWN, changes_text, issue_forecasts_anew, warnings_of_passwords
from capacity_assets.collection.declarations import declared_labels, declared_limits, declared_servers
from capacity_assets.collection.registry import register, registered, set_active
from capacity_assets.collection.registry import remove as remove_servers
from capacity_assets.collection.servers import Server
from capacity_assets.demo.sample_fleet import refuse_the_sample_fleet
from capacity_assets.errors import ValidationError
from capacity_assets.grouping.labels import declare_labels
from capacity_assets.runway.limits import declare
from capacity_assets.units import first_of

UNKNOWN_HOST = "unknown"
COMMANDS = {
    "add": "instances:add",
    "import": "instances:import_",
    "list": "instance_list:list_",
    "test": "instance_test:test",
    "disable": "instances:disable",
    "enable": "instances:enable",
    "remove": "instances:remove",
}


@click.group(cls=LazyGroup, locations=COMMANDS)
def instances() -> None:
    """Register the servers to be measured, and test them."""


reaching_options = options(
    click.option("--engine", help="mariadb, mysql, oracle, postgresql or sqlserver."),
    click.option("--host", help="Name, address, or the path of a socket."),
    click.option("--port", type=click.IntRange(1, 65535), help="Default: the engine's usual one."),
    click.option("--username", help="Login of the collection."),
    click.option(
        "--password-from",
        metavar="WHERE",
        help="env:NAME, file:/PATH or secret:NAME (a file in CAPACITY_SECRETS_FOLDER). Never the password itself.",
    ),
    click.option("--database", help="To connect to; for Oracle the service name. Default: the engine's usual one."),
    click.option("--tls", help="off, require, verify-ca or verify-full (the default; on this machine off)."),
    click.option("--tls-ca", metavar="FILE", help="Certificate authority; for Oracle the folder of the wallet."),
    click.option("--tls-certificate", metavar="FILE", help="The client's certificate."),
    click.option("--tls-key", metavar="FILE", help="The client's key."),
    click.option(
        "--server-public-key",
        metavar="FILE",
        help="RSA public key of a MySQL server without TLS; the password is encrypted with it.",
    ),
    click.option("--sizing", help="files (exact, the default) or statistics (cheaper on huge servers)."),
    click.option(
        "--counted-by",
        metavar="SERVER",
        help="Primary of this replica, or owner of its storage: fleet totals count that one only.",
    ),
)


@click.command()
@click.argument("name")
@reaching_options
@click.option("--replace", is_flag=True, help='Change a registered server: only what is given; "" clears a value.')
@declaring
def add(registry: Registry, /, *, name: str, replace: bool, **given: Any) -> Report:
    """Register the server NAME for collection.

    \b
    Examples:
      capacity instances add db-7 --engine postgresql --host db-7.example \\
          --username capacity_probe --password-from env:DB_7_PASSWORD
      capacity instances add shop --engine mariadb --host 10.0.0.5 --tls verify-full --tls-ca /etc/ssl/ca.pem \\
          --username capacity_probe --password-from file:/etc/capacity/shop.password
    """
    refuse_the_sample_fleet(registry.engine, kept="Nothing was registered.")
    known = {one.server.name: one for one in registered(registry.engine)}.get(name)
    if known is not None and known.is_collected and not replace:
        raise ValidationError(
            f"A server named {name!r} is registered already. Nothing was changed. `--replace` changes it."
        )
    server = _server(name, given, known.server if known else None)
    changes = register(registry.engine, [server], dry_run=registry.dry_run)
    warnings = warnings_of_passwords(registry.settings, [server])
    return Report(asdict(changes), [*changes_text(changes), *warnings, f"Next: capacity instances test {name}"])


def _server(name: str, given: Mapping[str, Any], known: Server | None) -> Server:
    values: dict[str, Any] = {
        # What is not given stays as it is known; what is given empty is taken away.
        key: getattr(known, key) if value is None and known else (value or None)
        for key, value in given.items()
    }
    if known is not None and given.get("engine") not in {None, known.engine} and given.get("port") is None:
        values["port"] = None
    if values.get("host") == UNKNOWN_HOST:
        values["host"] = None  # registered by an import, which knew its name only
    missing = [f"--{key}" for key in ("engine", "host") if not values.get(key)]
    if missing:
        needed = f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} needed"
        raise ValidationError(f"Server {name!r} is new, so {needed}. Nothing was registered.")
    return Server(name=name, **values)


@click.command("import")
@click.option(
    "--disable-others",
    is_flag=True,
    help="Take servers that are measured here out of service if FILE does not declare them.",
)
@file_argument
@declaring
def import_(registry: Registry, /, *, file: Path, disable_others: bool) -> Report:
    """Register the servers that FILE declares, TOML or CSV.

    Servers that are registered already are changed. Either all are registered or none.

    \b
    [defaults]
    username = "capacity_probe"
    tls = "verify-full"
    [[servers]]
    name = "db-7"
    engine = "postgresql"
    host = "db-7.example"
    password_from = "secret:db-7"
    limit_gb = 2000
    labels = { team = "payments", environment = "production" }
    """
    engine, dry_run = registry.engine, registry.dry_run
    servers, limits = declared_servers(file), declared_limits(file)
    labels = declared_labels(file, registry.settings.label_keys)
    # Labels have a first day, so the time zone matters.
    today = registry.today() if labels else None
    refuse_the_sample_fleet(engine, kept="Nothing was registered.")
    changes = register(engine, servers, disable_others=disable_others, dry_run=dry_run)
    if not dry_run:
        declare(engine, limits)
        if today is not None:
            declare_labels(engine, labels, today)
        issue_forecasts_anew(engine, registry.settings, {limit.server for limit in limits}, quiet=True)
    warnings = warnings_of_passwords(registry.settings, servers)
    return Report(asdict(changes), [*changes_text(changes), *warnings])


@click.command()
@click.argument("names", nargs=-1, required=True)
@declaring
def disable(registry: Registry, /, *, names: Sequence[str]) -> Report:
    """Take the servers NAMES out of service.

    They are neither measured nor aggregated any more. Their history is kept.
    """
    set_active(registry.engine, names, active=False, dry_run=registry.dry_run)
    counted = [one.server.name for one in registered(registry.engine) if one.active and one.server.counted_by in names]
    listed = first_of(names, NAMES_SHOWN)
    lines = [f"Out of service: {listed}. Neither measured nor aggregated any more; the history is kept."]
    if counted:
        lines.append(
            f"Fleet totals now leave out these servers, and {first_of(counted, NAMES_SHOWN)}, which they count. To "
            'have one of those count by itself, run `capacity instances add NAME --replace --counted-by ""`.'
        )
    return Report({"disabled": names}, lines)


@click.command()
@click.argument("names", nargs=-1, required=True)
@declaring
def enable(registry: Registry, /, *, names: Sequence[str]) -> Report:
    """Put the servers NAMES back into service."""
    set_active(registry.engine, names, active=True, dry_run=registry.dry_run)
    listed = first_of(names, NAMES_SHOWN)
    said = f"In service: {listed}. Measured and aggregated from now on; days without samples stay gaps."
    return Report({"enabled": names}, [said])


@click.command()
@click.argument("names", nargs=-1, required=True)
@declaring
def remove(registry: Registry, /, *, names: Sequence[str]) -> Report:
    """Remove the servers NAMES from the collection.

    A server without history is removed. The others are disabled, and keep their history.
    """
    kept = remove_servers(registry.engine, names, dry_run=registry.dry_run)
    gone = [name for name in names if name not in kept]
    lines = [f"Removed: {first_of(gone, NAMES_SHOWN)}."] if gone else []
    if kept:
        listed = first_of(kept, NAMES_SHOWN)
        lines.append(f"Out of service and not measured here any more: {listed}. Their history is kept.")
    return Report({"removed": gone, "disabled": kept}, lines)
