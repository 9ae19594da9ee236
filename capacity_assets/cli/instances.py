"""`capacity instances`: which servers are measured and how each is reached, and a test of one server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
from sqlalchemy import Row

from capacity_assets.base.errors import NotFoundError, ValidationError
from capacity_assets.base.settings import Settings
from capacity_assets.base.units import BYTES_PER_MB, counted, first_of, human_mb, natural_key
from capacity_assets.cli.declaring import (
    DECLARED,
    NAMES_SHOWN,
    DeclarationReport,
    Registry,
    changing,
    declared_cells,
    declared_json,
    declaring,
    file_argument,
    opened_registry,
)
from capacity_assets.cli.lazy import OrderedGroup
from capacity_assets.cli.options import DONE, FAILED, Line, Report, Table, json_command, options
from capacity_assets.collection.credentials import OWN, CredentialError, SecretFolders, readable_by_others
from capacity_assets.collection.engines.base import FailureKind, engine_named, engine_names
from capacity_assets.collection.measuring import FleetMeasurement, ProbeOutcome, Task
from capacity_assets.collection.servers import (
    Changes,
    Registered,
    Server,
    declared_servers,
    last_attempts,
    register,
    registered,
    set_active,
)
from capacity_assets.collection.servers import remove as remove_servers
from capacity_assets.database.measures import PART_KINDS
from capacity_assets.demo.sample_fleet import refuse_the_sample_fleet
from capacity_assets.forecast.limits import declare
from capacity_assets.ownership.labels import declare_labels
from capacity_assets.runtime import collection_service


@click.group(cls=OrderedGroup)
def instances() -> None:
    """Register the servers to be measured, and test them."""


connection_options = options(
    click.option("--engine", help=f"One of {', '.join(engine_names())}."),
    click.option("--host", help="Name, address, or path of a socket."),
    click.option("--port", type=click.IntRange(1, 65535), help="Default: the engine's usual port."),
    click.option("--username", help="Login of the collection."),
    click.option(
        "--password-from",
        metavar="WHERE",
        help="env:NAME, file:/PATH or secret:NAME (a file in CAPACITY_SECRETS_FOLDER). Never the password itself.",
    ),
    click.option("--database", help="Database to connect to; for Oracle the service name. Default: the engine's own."),
    click.option("--tls", help="off, require, verify-ca or verify-full (the default; on this machine off)."),
    click.option("--tls-ca", metavar="FILE", help="Certificate authority; for Oracle the folder of the wallet."),
    click.option("--tls-certificate", metavar="FILE", help="Client certificate."),
    click.option("--tls-key", metavar="FILE", help="Client key."),
    click.option(
        "--server-public-key",
        metavar="FILE",
        help="RSA public key of a MySQL server without TLS; the password is encrypted with it.",
    ),
    click.option("--sizing", help="files (exact, the default) or statistics (cheaper on huge servers)."),
    click.option(
        "--counted-by",
        metavar="SERVER",
        help="Primary of this replica, or owner of its storage. Fleet totals count only that server.",
    ),
)
names_argument = click.argument("names", nargs=-1, required=True)
UNKNOWN_HOST = "unknown"


@instances.command()
@click.argument("name")
@connection_options
@click.option("--replace", is_flag=True, help='Change the given values of a registered server; "" clears a value.')
@declaring
def add(registry: Registry, /, *, name: str, replace: bool, **values: Any) -> DeclarationReport:
    """Register the server NAME for collection.

    \b
    Examples:
      capacity instances add db-7 --engine postgresql --host db-7.example \\
          --username capacity_probe --password-from env:DB_7_PASSWORD
      capacity instances add shop --engine mariadb --host 10.0.0.5 --tls verify-full --tls-ca /etc/ssl/ca.pem \\
          --username capacity_probe --password-from file:/etc/capacity/shop.password
    """
    refuse_the_sample_fleet(registry.engine)
    known = {one.server.name: one for one in registered(registry.engine)}.get(name)
    if known is not None and known.is_collected and not replace:
        raise ValidationError(f"A server named {name!r} is already registered. `--replace` changes it.")
    server = _server(name, values, known.server if known else None)
    changes = register(registry.engine, [server], by=registry.by, dry_run=registry.dry_run)
    return _report(registry, changes, [server], f"Next: capacity instances test {name}")


def _server(name: str, given: Mapping[str, Any], known: Server | None) -> Server:
    """Return the server with the given options; None keeps the known value, an empty text clears it."""
    values: dict[str, Any] = {
        key: getattr(known, key) if value is None and known else (value or None) for key, value in given.items()
    }
    if known is not None and given.get("engine") not in {None, known.engine} and given.get("port") is None:
        values["port"] = None
    if values.get("host") == UNKNOWN_HOST:
        values["host"] = None  # of a server that an import registered by its name only
    missing = [f"--{key}" for key in ("engine", "host") if not values.get(key)]
    if missing:
        raise ValidationError(f"Server {name!r} is new. Give {' and '.join(missing)}.")
    return Server(name=name, **values)


def _report(registry: Registry, changes: Changes, servers: Sequence[Server], *further: str) -> DeclarationReport:
    """Report which servers were registered, changed, or taken out of service, and which cannot be measured here."""
    lines = [
        f"{kind.replace('_', ' ')}: {len(names):,} ({first_of(names, NAMES_SHOWN)})"
        for kind, names in asdict(changes).items()
        if names
    ]
    if changes.out_of_service:
        lines.append("`capacity instances enable` puts them back into service.")
    return DeclarationReport(asdict(changes), [*lines, *_password_warnings(registry.settings, servers), *further])


def _password_warnings(settings: Settings, servers: Sequence[Server]) -> Iterator[str]:
    """Warn of passwords that this configuration does not look up; another machine may have another configuration."""
    folders = SecretFolders.of(settings)
    for server in servers:
        if server.password_from and server.password_from != OWN:
            try:
                folders.refuse_what_is_not_allowed(server.password_from)
            except CredentialError as error:
                yield f"Warning: {server.name} cannot be measured with this configuration. {error}"


@instances.command("import")
@click.option(
    "--disable-others",
    is_flag=True,
    help="Take servers that are measured here out of service if FILE does not declare them.",
)
@file_argument
@declaring
def import_(registry: Registry, /, *, file: Path, disable_others: bool) -> DeclarationReport:
    """Register the servers that FILE declares, TOML or CSV.

    Changes servers that are already registered. Either all servers are registered or none.

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
    servers, limits, labels = declared_servers(file, registry.settings.label_keys)
    # Labels have a first day, so the time zone matters.
    today = registry.today() if labels else None
    refuse_the_sample_fleet(engine)
    changes = register(engine, servers, disable_others=disable_others, by=registry.by, dry_run=dry_run)
    if not dry_run:
        declare(engine, limits, by=registry.by)
        if today is not None:
            declare_labels(engine, labels, today, by=registry.by)
    return replace(_report(registry, changes, servers), servers={limit.server for limit in limits})


HEADINGS = ("Server", "Engine", "Place", "Password from", "TLS", "State", "Last collected", *DECLARED)


@instances.command("list")
@json_command
def list_(settings: Settings, /) -> Report:
    """Show the servers, and when each was last collected.

    Also shows how each is reached; of a password, only its source. Imported samples do not count as collected.
    """
    with opened_registry(settings) as engine:
        servers = registered(engine)
        attempts = last_attempts(engine)
    document = [_as_dict(one, attempts.get(one.id)) for one in servers]
    if not servers:
        nothing = "No server is registered. `capacity instances add` registers one, `capacity instances import` a file."
        return Report(document, [nothing])
    servers.sort(key=lambda one: natural_key(one.server.name))
    lines = [Table("Servers", HEADINGS, [_cells(one, attempts.get(one.id)) for one in servers])]
    failures = [
        [one.server.name, attempts[one.id].last_failure]
        for one in servers
        if one.active and one.id in attempts and attempts[one.id].last_failure
    ]
    if failures:
        lines.append(Table("Servers whose last attempt failed", ("Server", "~Last failure"), failures))
    return Report(document, lines)


def _cells(one: Registered, attempts: Row[Any] | None) -> list[object]:
    server = one.server
    state = f"{one.state}, counted by {server.counted_by}" if server.counted_by else one.state
    last_collected = (attempts and attempts.last_collected) or "never"
    password_from, tls = server.password_from or "", server.tls or ""
    declared = declared_cells(one)
    return [server.name, server.engine, server.place, password_from, tls, state, last_collected, *declared]


def _as_dict(one: Registered, attempts: Row[Any] | None) -> dict[str, object]:
    return {
        "id": one.id,
        **asdict(one.server),
        "state": one.state,
        "last_collected": attempts and attempts.last_collected,
        "last_failure": attempts and attempts.last_failure,
        **declared_json(one),
    }


DATABASES_SHOWN = 10


@instances.command("test")
@click.argument("name")
@json_command
def test(settings: Settings, /, *, name: str) -> Report:
    """Measure the server NAME, and show what works and what is missing.

    Does the same as the collection, but stores nothing.
    """
    with opened_registry(settings) as engine:
        [one] = registered(engine, [name])
        if not one.is_collected:
            raise NotFoundError(f"How to reach {name!r} is not registered. `capacity instances add` registers it.")
        service = collection_service(engine, settings)
        fleet = FleetMeasurement(service.context, service.clock, 1, service.connect_seconds, with_facts=True)
        [outcome] = filter(None, fleet.outcomes([Task(one.id, one.server)]))
    server, kind, limits = one.server, engine_named(one.server.engine), outcome.limits
    warnings = []
    if readable_by_others(server.password_from, service.context.secrets):
        warnings.append(f"Every user of this machine can read the file of {server.password_from}.")
    if not kind.verified:
        warnings.append(f"Measuring {server.engine} has not been tested against a real server.")
    document = {
        "server": name,
        "works": outcome.collected,
        "steps": list(_steps(server, outcome)),
        "warnings": warnings,
        "failure": None if outcome.collected else f"{outcome.kind}: {outcome.reason}",
        "grants": kind.grants if outcome.kind in {FailureKind.RIGHTS, FailureKind.LOGIN} else None,
        "databases": {size.name: size.size_mb for size in sorted(outcome.sizes, key=lambda size: -size.size_mb)},
        "not_counted": outcome.not_counted,
        "left_out": outcome.left_out,
        "volumes": {
            one.name: {"total_mb": one.total_bytes // BYTES_PER_MB, "free_mb": one.free_bytes // BYTES_PER_MB}
            for one in limits.volumes
        },
        "ceilings_mb": {
            one.database: one.limit_bytes // BYTES_PER_MB for one in limits.ceilings if one.limit_bytes is not None
        },
        "unknown_limits": limits.unknown,
        "parts": [asdict(part) for part in outcome.parts],
        "unknown_parts": outcome.unknown_parts,
        "day": service.clock.today(),
    }
    return Report(document, _test_lines(document), DONE if outcome.collected else FAILED)


def _steps(server: Server, outcome: ProbeOutcome) -> Iterator[str]:
    if outcome.kind not in {FailureKind.CREDENTIAL, FailureKind.SETUP}:
        yield f"password: {f'read from {server.password_from}' if server.password_from else 'none'}"
    if outcome.facts is not None:
        encrypted = {True: "encrypted", False: "not encrypted", None: "encryption unknown"}[outcome.facts.encrypted]
        yield f"connected in {outcome.connect_seconds or 0:.2f} s: {outcome.facts.version}, {encrypted}"
    if outcome.collected:
        sizes = f"{counted(len(outcome.sizes), 'database')}, {human_mb(outcome.total_size_mb)}"
        yield f"{sizes}, in {outcome.measure_seconds or 0:.2f} s"


def _test_lines(found: Mapping[str, Any]) -> Iterator[Line]:
    yield from (f"works: {step}" for step in found["steps"])
    yield from (f"note: {warning}" for warning in found["warnings"])
    if not found["works"]:
        yield f"fails: {found['failure']}"
        if found["grants"]:
            yield "The login needs these rights; replace the name of the login with your own:"
            yield from (f"  {line}" for line in found["grants"].splitlines())
        return
    rows = [[name, human_mb(size_mb)] for name, size_mb in found["databases"].items()]
    yield Table.of_first("Largest databases", ("Database", ">Size"), rows, DATABASES_SHOWN)
    for name, sizes in found["volumes"].items():
        yield f"Volume {name}: {human_mb(sizes['free_mb'])} of {human_mb(sizes['total_mb'])} free."
    if found["ceilings_mb"]:
        ceilings = (f"{name} {human_mb(limit_mb)}" for name, limit_mb in found["ceilings_mb"].items())
        yield f"Ceilings of databases: {first_of(ceilings, NAMES_SHOWN)}."
    if found["unknown_limits"]:
        unknown = found["unknown_limits"]
        yield f"Limits not known: {unknown}. `capacity limits set {found['server']}` declares one."
    parts = [one for one in found["parts"] if one["size_bytes"]]
    if parts:
        named = (f"{PART_KINDS[one['kind']].title} {one['name']}".strip() for one in parts)
        sized = [
            f"{name} {human_mb(one['size_bytes'] // BYTES_PER_MB)}" for name, one in zip(named, parts, strict=True)
        ]
        yield f"Beside databases: {first_of(sized, NAMES_SHOWN)}."
    if found["unknown_parts"]:
        yield f"Not known, beside databases: {first_of(found['unknown_parts'], NAMES_SHOWN)}."
    if found["not_counted"]:
        yield f"Not counted, because no size is reported: {first_of(found['not_counted'], NAMES_SHOWN)}."
    if found["left_out"]:
        yield f"Left out, see CAPACITY_SYSTEM_DATABASES: {first_of(found['left_out'], NAMES_SHOWN)}."
    yield "Nothing was stored. `capacity collect` measures and stores."


@instances.command()
@names_argument
@changing
def disable(registry: Registry, /, *, names: Sequence[str]) -> DeclarationReport:
    """Take the servers NAMES out of service.

    They are no longer measured or aggregated. Their history is kept.
    """
    set_active(registry.engine, names, active=False, dry_run=registry.dry_run)
    lines = [f"Out of service: {first_of(names, NAMES_SHOWN)}. No longer measured or aggregated; the history is kept."]
    replicas = [one.server.name for one in registered(registry.engine) if one.active and one.server.counted_by in names]
    if replicas:
        lines.append(
            f"Fleet totals now leave out these servers, and {first_of(replicas, NAMES_SHOWN)}, which they count. To "
            'count one of those by itself, run `capacity instances add NAME --replace --counted-by ""`.'
        )
    return DeclarationReport({"disabled": names}, lines)


@instances.command()
@names_argument
@changing
def enable(registry: Registry, /, *, names: Sequence[str]) -> DeclarationReport:
    """Put the servers NAMES back into service."""
    set_active(registry.engine, names, active=True, dry_run=registry.dry_run)
    line = f"In service: {first_of(names, NAMES_SHOWN)}. Measured and aggregated from now on; earlier gaps remain."
    return DeclarationReport({"enabled": names}, [line])


@instances.command()
@names_argument
@changing
def remove(registry: Registry, /, *, names: Sequence[str]) -> DeclarationReport:
    """Remove the servers NAMES from the collection.

    A server without history is removed. The others are disabled, and keep their history.
    """
    disabled = remove_servers(registry.engine, names, dry_run=registry.dry_run)
    removed = [name for name in names if name not in disabled]
    lines = [f"Removed: {first_of(removed, NAMES_SHOWN)}."] if removed else []
    if disabled:
        lines.append(
            f"Out of service and no longer measured here: {first_of(disabled, NAMES_SHOWN)}. Their history is kept."
        )
    return DeclarationReport({"removed": removed, "disabled": disabled}, lines)
