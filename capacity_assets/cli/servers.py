"""`capacity instances` and `capacity collect`: which servers are measured, how each is reached, and measuring them."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
from sqlalchemy import Engine, Row

from capacity_assets.aggregates.runs import RunOptions
from capacity_assets.base.errors import MAXIMUM_LISTED_ERRORS, NotFoundError, ValidationError
from capacity_assets.base.periods import PERIODS
from capacity_assets.base.settings import DEFAULT_HOME, ConfigurationError, Settings
from capacity_assets.base.units import BYTES_PER_MB, counted, first_of, human_mb, natural_key
from capacity_assets.cli import declaring, options
from capacity_assets.cli.declaring import DECLARED, NAMES_SHOWN, DeclarationReport, DeclarationSession
from capacity_assets.cli.documents import write_growth_report
from capacity_assets.cli.main import OrderedGroup
from capacity_assets.cli.options import DONE, FAILED, Line, Report, Table, say
from capacity_assets.collection import servers as registry_of_servers
from capacity_assets.collection.credentials import OWN, CredentialError, SecretFolders, readable_by_others
from capacity_assets.collection.engines.base import FailureKind, ServerPart, engine_named, engine_names
from capacity_assets.collection.measuring import FleetMeasurement, ProbeOutcome, ServerToMeasure, host_of
from capacity_assets.collection.servers import (
    RegisteredServer,
    RegistrationChanges,
    Server,
    register_servers,
    registered_servers,
)
from capacity_assets.collection.service import CollectionSummary, parse_share
from capacity_assets.database.measures import PART_KINDS, USED_SIZE
from capacity_assets.database.schema import refuse_an_unfit_database
from capacity_assets.demo import refuse_the_sample_fleet
from capacity_assets.forecast.limits import declare_limits
from capacity_assets.ownership.labels import declare_labels
from capacity_assets.runtime import collection_service, open_engine, prepare_database, task_runner

HEADINGS = ("Server", "Engine", "Place", "Password from", "TLS", "State", "Last collected", *DECLARED)
UNKNOWN_HOST = "unknown"
DATABASES_SHOWN = 10
LIMITS_NAMED = 3
OWN_SERVER = "capacity-database"


@click.group(cls=OrderedGroup)
def instances() -> None:
    """Register the servers to be measured, and test them."""


connection_options = options.combined_options(
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
    click.option(
        "--sizing",
        help="files (the default), allocated (MySQL and MariaDB: compressed tables by their space on disk) or "
        "statistics (cheaper on huge servers).",
    ),
    click.option(
        "--counted-by",
        metavar="SERVER",
        help="Primary of this replica, or owner of its storage. Fleet totals count only that server.",
    ),
)
names_argument = click.argument("names", nargs=-1, required=True)


@instances.command()
@click.argument("name")
@connection_options
@click.option("--replace", is_flag=True, help='Change the given values of a registered server; "" clears a value.')
@declaring.command
def add(session: DeclarationSession, /, *, name: str, replace: bool, **values: Any) -> DeclarationReport:
    """Register the server NAME for collection.

    \b
    Examples:
      capacity instances add db-7 --engine postgresql --host db-7.example \\
          --username capacity_probe --password-from env:DB_7_PASSWORD
      capacity instances add shop --engine mariadb --host 10.0.0.5 --tls verify-full --tls-ca /etc/ssl/ca.pem \\
          --username capacity_probe --password-from file:/etc/capacity/shop.password
    """
    refuse_the_sample_fleet(session.engine)
    known = {registered.name: registered for registered in registered_servers(session.engine)}.get(name)
    if known is not None and known.is_collected and not replace:
        raise ValidationError(f"A server named {name!r} is already registered. `--replace` changes it.")
    server = _server(name, values, known.server if known else None)
    changes = register_servers(session.engine, [server], by=session.by, dry_run=session.dry_run)
    return _report(session, changes, [server], f"Next: capacity instances test {shlex.quote(name)}")


def _server(name: str, new_values: Mapping[str, Any], known: Server | None) -> Server:
    """Return the server with the given options; None keeps the present value, an empty text clears it."""
    values: dict[str, Any] = {
        key: getattr(known, key) if value is None and known else (value or None) for key, value in new_values.items()
    }
    if known is not None and new_values.get("engine") not in {None, known.engine} and new_values.get("port") is None:
        values["port"] = None
    if values.get("host") == UNKNOWN_HOST:
        values["host"] = None  # an import registered the server by its name only
    missing = [f"--{key}" for key in ("engine", "host") if not values.get(key)]
    if missing:
        raise ValidationError(f"Server {name!r} {'needs' if known else 'is new and needs'} {' and '.join(missing)}.")
    return Server(name=name, **values)


def _report(
    session: DeclarationSession, changes: RegistrationChanges, servers: Sequence[Server], *further: str
) -> DeclarationReport:
    """Report which servers were registered, changed, or taken out of service, and which cannot be measured here."""
    lines = [
        f"{kind.replace('_', ' ')}: {len(names):,} ({first_of(names, NAMES_SHOWN)})"
        for kind, names in asdict(changes).items()
        if names
    ]
    if changes.out_of_service:
        lines.append("`capacity instances enable` puts them back into service.")
    return DeclarationReport(asdict(changes), [*lines, *_password_warnings(session.settings, servers), *further])


def _password_warnings(settings: Settings, servers: Sequence[Server]) -> Iterator[str]:
    """Warn of passwords that this configuration cannot look up, although that of another machine may."""
    folders, refused = SecretFolders.of(settings), defaultdict[str, list[str]](list)
    for server in servers:
        if server.password_from and server.password_from != OWN:
            try:
                folders.refuse_what_is_not_allowed(server.password_from)
            except CredentialError as error:
                refused[str(error)].append(server.name)
    for reason, names in list(refused.items())[:NAMES_SHOWN]:
        yield f"Warning: {first_of(names, NAMES_SHOWN)} cannot be measured with this configuration. {reason}"
    if others := sum(map(len, list(refused.values())[NAMES_SHOWN:])):
        yield f"Warning: {counted(others, 'other server')} cannot be measured for similar reasons."


@instances.command("import")
@click.option(
    "--disable-others",
    is_flag=True,
    help="Take servers that are measured here out of service if FILE does not declare them.",
)
@declaring.file_argument
@declaring.command
def import_(session: DeclarationSession, /, *, file: Path, disable_others: bool) -> DeclarationReport:
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
    engine, dry_run = session.engine, session.dry_run
    servers, limits, labels = registry_of_servers.declared_servers(file, session.settings.label_keys)
    # Labels have a first day, so the time zone matters.
    today = session.today() if labels else None
    refuse_the_sample_fleet(engine)
    changes = register_servers(engine, servers, disable_others=disable_others, by=session.by, dry_run=dry_run)
    if not dry_run:
        declare_limits(engine, limits, by=session.by)
        if today is not None:
            declare_labels(engine, labels, today, by=session.by)
    return replace(_report(session, changes, servers), servers={*changes.disabled, *(limit.server for limit in limits)})


@instances.command("list")
@options.json_command
def list_(settings: Settings, /) -> Report:
    """Show the servers, and when each was last collected.

    Also shows the connection of each, with the source of its password. Imported samples do not count as collected.
    """
    with options.open_database(settings) as engine:
        servers = registered_servers(engine)
        attempts = registry_of_servers.last_attempts(engine)
    document = [_as_dict(registered, attempts.get(registered.id)) for registered in servers]
    if not servers:
        nothing = "No server is registered. `capacity instances add` registers one, `capacity instances import` a file."
        return Report(document, [nothing])
    servers.sort(key=lambda registered: natural_key(registered.name))
    lines = [Table("Servers", HEADINGS, [_cells(registered, attempts.get(registered.id)) for registered in servers])]
    failures = [
        [registered.name, attempts[registered.id].last_failure]
        for registered in servers
        if registered.active and registered.id in attempts and attempts[registered.id].last_failure
    ]
    if failures:
        lines.append(Table("Servers whose last attempt failed", ("Server", "~Last failure"), failures))
    return Report(document, lines)


def _cells(registered: RegisteredServer, attempts: Row[Any] | None) -> list[object]:
    server = registered.server
    state = f"{registered.state}, counted by {server.counted_by}" if server.counted_by else registered.state
    last_collected = (attempts and attempts.last_collected) or "never"
    password_from, tls = server.password_from or "", server.tls or ""
    declared = declaring.declared_cells(registered)
    return [server.name, server.engine, server.place, password_from, tls, state, last_collected, *declared]


def _as_dict(registered: RegisteredServer, attempts: Row[Any] | None) -> dict[str, object]:
    return {
        "id": registered.id,
        **asdict(registered.server),
        "state": registered.state,
        "last_collected": attempts and attempts.last_collected,
        "last_failure": attempts and attempts.last_failure,
        **declaring.declared_json(registered),
    }


@instances.command()
@click.argument("name")
@options.json_command
def test(settings: Settings, /, *, name: str) -> Report:
    """Measure the server NAME, and show what works and what is missing.

    Does the same as the collection, but stores nothing.
    """
    with options.open_database(settings) as engine:
        [registered] = registered_servers(engine, [name])
        if not registered.is_collected:
            raise NotFoundError(f"Server {name!r} has no registered connection. `capacity instances add` registers it.")
        service = collection_service(engine, settings)
        fleet = FleetMeasurement(service.context, service.clock, 1, service.connect_seconds, with_facts=True)
        [outcome] = filter(None, fleet.outcomes([ServerToMeasure(registered.id, registered.server)]))
    if outcome.kind is FailureKind.RIGHTS:
        # Elsewhere the advice is to run this command, which lists them.
        outcome = replace(outcome, advice="Grant its login the rights below.")
    server, kind, limits = registered.server, engine_named(registered.server.engine), outcome.limits
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
        "failure": None if outcome.collected else f"{outcome.kind}: {outcome.explanation}",
        "grants": kind.grants if outcome.kind in {FailureKind.RIGHTS, FailureKind.LOGIN} else None,
        "databases": {size.name: size.size_mb for size in sorted(outcome.sizes, key=lambda size: -size.size_mb)},
        "not_counted": outcome.not_counted,
        "left_out": outcome.left_out,
        "volumes": {
            volume.name: {"total_mb": volume.total_bytes // BYTES_PER_MB, "free_mb": volume.free_bytes // BYTES_PER_MB}
            for volume in limits.volumes
        },
        "ceilings_mb": {
            ceiling.database: ceiling.limit_bytes // BYTES_PER_MB
            for ceiling in limits.ceilings
            if ceiling.limit_bytes is not None
        },
        "used_mb": {size.name: size.parts_mb[USED_SIZE] for size in outcome.sizes if USED_SIZE in size.parts_mb},
        "unknown_used": outcome.unknown_used,
        "unknown_limits": limits.unknown,
        "parts": outcome.parts,
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


def _test_lines(document: Mapping[str, Any]) -> Iterator[Line]:
    yield from (f"works: {step}" for step in document["steps"])
    yield from (f"note: {warning}" for warning in document["warnings"])
    if not document["works"]:
        yield f"fails: {document['failure']}"
        if document["grants"]:
            yield "The login needs these rights; replace the name of the login with your own:"
            yield from (f"  {line}" for line in document["grants"].splitlines())
        return
    rows = [[name, human_mb(size_mb)] for name, size_mb in document["databases"].items()]
    yield Table.of_first("Largest databases", ("Database", ">Size"), rows, DATABASES_SHOWN)
    for name, sizes in document["volumes"].items():
        yield f"Volume {name}: {human_mb(sizes['free_mb'])} of {human_mb(sizes['total_mb'])} free."
    advice = f". `capacity limits set {document['server']}` declares one"
    yield from _named_lines(
        {
            "Ceilings of databases": [
                f"{name} {human_mb(limit_mb)}" for name, limit_mb in document["ceilings_mb"].items()
            ],
            "Used inside files": [f"{name} {human_mb(used_mb)}" for name, used_mb in document["used_mb"].items()],
            "Used space not known": document["unknown_used"],
            "Limits not known": [f"{document['unknown_limits']}{advice}"] if document["unknown_limits"] else [],
            "Outside databases": [_part_text(part) for part in document["parts"] if part.size_bytes],
            "Not known, outside databases": document["unknown_parts"],
            "Not counted, because no size is reported": document["not_counted"],
            "Left out, see CAPACITY_SYSTEM_DATABASES": document["left_out"],
        }
    )
    yield "Nothing was stored. `capacity collect` stores what it measures."


def _named_lines(databases_by_reason: Mapping[str, Collection[str]], shown: int = NAMES_SHOWN) -> Iterator[str]:
    yield from (f"{what}: {first_of(names, shown)}." for what, names in databases_by_reason.items() if names)


def _part_text(part: ServerPart) -> str:
    name = f"{PART_KINDS[part.kind].title} {part.name}".strip()
    return f"{name} {human_mb((part.size_bytes or 0) // BYTES_PER_MB)}"


@instances.command()
@names_argument
@declaring.change_command
def disable(session: DeclarationSession, /, *, names: Sequence[str]) -> DeclarationReport:
    """Take the servers NAMES out of service.

    They are no longer measured, aggregated or forecast. Their history is kept.
    """
    registry_of_servers.set_active(session.engine, names, active=False, dry_run=session.dry_run)
    lines = [f"Out of service: {first_of(names, NAMES_SHOWN)}. No longer measured or aggregated; the history is kept."]
    replicas = [
        registered.name
        for registered in registered_servers(session.engine)
        if registered.active and registered.server.counted_by in names
    ]
    if replicas:
        lines.append(
            f"Fleet totals now leave out these servers, and those counted by them: {first_of(replicas, NAMES_SHOWN)}. "
            'To count such a server separately, run `capacity instances add NAME --replace --counted-by ""`.'
        )
    return DeclarationReport({"disabled": names}, lines, servers=names)


@instances.command()
@names_argument
@declaring.change_command
def enable(session: DeclarationSession, /, *, names: Sequence[str]) -> DeclarationReport:
    """Put the servers NAMES back into service."""
    registry_of_servers.set_active(session.engine, names, active=True, dry_run=session.dry_run)
    line = f"In service: {first_of(names, NAMES_SHOWN)}. Measured and aggregated from now on; earlier gaps remain."
    return DeclarationReport({"enabled": names}, [line], servers=names)


@instances.command()
@names_argument
@declaring.change_command
def remove(session: DeclarationSession, /, *, names: Sequence[str]) -> DeclarationReport:
    """Remove the servers NAMES from the collection.

    A server without history is removed. The others are disabled, and keep their history.
    """
    disabled = registry_of_servers.remove_servers(session.engine, names, dry_run=session.dry_run)
    removed = [name for name in names if name not in disabled]
    out = f"Out of service and no longer measured here: {first_of(disabled, NAMES_SHOWN)}. Their history is kept."
    lines = [*([f"Removed: {first_of(removed, NAMES_SHOWN)}."] if removed else []), *([out] if disabled else [])]
    return DeclarationReport({"removed": removed, "disabled": disabled}, lines, servers=disabled)


@click.command()
@click.argument("servers", nargs=-1)
@click.option("--again", is_flag=True, help="Also measure servers that were already measured today.")
@click.option(
    "--share",
    metavar="SHARE",
    help="Only a share of the servers: 2/4 is the second of four, zone=eu those with a label, zone= those without it. "
    "Shares can be measured in parallel, on one machine or several.",
)
@click.option(
    "--own", is_flag=True, help="Also measure the server with the capacity tables, and write its growth report."
)
@options.json_command
def collect(settings: Settings, /, *, servers: Sequence[str], again: bool, share: str | None, own: bool) -> Report:
    """Measure the registered servers, and store today's sizes.

    With SERVERS or --share, measures only those. A server that fails is reported with its reason and gets no sample;
    the others are stored. Run the command again to measure those that failed.

    \b
    Examples:
      capacity collect
      capacity collect db-7 db-9
      capacity collect --share zone=eu
      capacity collect --own
    """
    if settings.collection == "off":
        raise ConfigurationError(
            "CAPACITY_COLLECTION is off: another application fills the raw tables. Set it to on to measure here."
        )
    chosen_share = None if share is None else parse_share(share)
    with open_engine(settings, existing=not own) as engine:
        if own:
            prepare_database(engine, settings)
            refuse_the_sample_fleet(engine)
            _register_own(engine)
        refuse_an_unfit_database(engine)
        service = collection_service(engine, settings)
        chosen = [*servers, *([OWN_SERVER] if own and servers else [])] or None
        with _progress() as on_outcome:
            summary = service.collect(
                service.clock.today(), chosen, again=again, share=chosen_share, progress=on_outcome
            )
        if own:
            window = PERIODS["daily"].window_of(summary.day)
            task_runner(engine, settings).run_period(PERIODS["daily"], [window], RunOptions())
    say(*_summary_lines(summary))
    lines: list[Line] = []
    if own and OWN_SERVER not in {failure.server for failure in summary.failures}:
        written = write_growth_report(settings, period="daily", day=summary.day, server=OWN_SERVER)
        home = "" if settings.home == DEFAULT_HOME else f"CAPACITY_HOME={settings.home} "
        next_step = f"Run this command again tomorrow to add a day, or `{home}capacity up` to measure every night."
        lines = [*(written.lines if written else ()), next_step]
    elif summary.processed_instances and not own:
        lines = [
            "`capacity up` computes the figures on its next run; `capacity aggregate --period daily` computes them now."
        ]
    return Report(summary.to_dict(), lines, FAILED if summary.failed_instances else DONE)


@contextmanager
def _progress() -> Iterator[Callable[[ProbeOutcome, int], None]]:
    """Show the number of measured servers; yields a function to be called after each."""
    with options.progress_bar("servers measured") as update:
        measured = 0

        def on_outcome(_outcome: ProbeOutcome, left: int) -> None:
            nonlocal measured
            measured += 1
            update(completed=measured, total=measured + left)

        yield on_outcome


def _register_own(engine: Engine) -> None:
    if any(registered.name == OWN_SERVER and registered.is_collected for registered in registered_servers(engine)):
        return
    url = engine.url
    register_servers(
        engine, [Server(OWN_SERVER, "postgresql", host_of(url), port=url.port, password_from=OWN, tls="off")]
    )


def _summary_lines(summary: CollectionSummary) -> Iterator[Line]:
    yield summary.message
    if summary.processed_instances:
        yield f"Measured now: {human_mb(summary.measured_size_mb)} in {summary.duration_seconds:.1f} s."
    yield from _named_lines({"Left out, see CAPACITY_SYSTEM_DATABASES": summary.left_out}, MAXIMUM_LISTED_ERRORS)
    if summary.unknown_limits:
        yield f"Limits not known: {first_of(summary.unknown_limits, LIMITS_NAMED)}. `capacity limits set` declares one."
    measured = [counted(summary.object_databases, "database")] if summary.object_databases else []
    yield from _named_lines(
        {
            "Used space not known": summary.unknown_used,
            "Not known, outside databases": summary.unknown_parts,
            "Tables and indexes measured": measured,
            "Tables and indexes not known": summary.unknown_objects,
        },
        LIMITS_NAMED,
    )
    if summary.failures:
        rows = [[failure.server, failure.kind.value, failure.reason] for failure in summary.failures]
        yield Table.of_first("Not measured", ("Server", "Kind", "~Reason"), rows, MAXIMUM_LISTED_ERRORS)
