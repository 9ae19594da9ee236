"""`capacity instances`: which servers are measured and how each is reached, and a test of one server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
from sqlalchemy import Engine, Row, text

from capacity_assets.base.errors import NotFoundError, ValidationError
from capacity_assets.base.periods import Clock
from capacity_assets.base.settings import Settings
from capacity_assets.base.units import BYTES_PER_MB, counted, first_of, human_mb, natural_key
from capacity_assets.cli.declaring import (
    NAMES_SHOWN,
    Registry,
    Report,
    changes_text,
    declaring,
    file_argument,
    issue_forecasts_anew,
    opened_registry,
    warnings_of_passwords,
)
from capacity_assets.cli.options import (
    DONE,
    FAILED,
    LazyGroup,
    json_command,
    left,
    options,
    print_json,
    print_table,
    say,
)
from capacity_assets.collection.credentials import readable_by_others
from capacity_assets.collection.engines.base import Access, FailureKind, Limits, MeasureError, Measurement, engine_named
from capacity_assets.collection.measuring import (
    STATEMENT_SECONDS,
    Stages,
    access_to,
    facts_of,
    given_up_in_time,
    measure,
    possible,
    refuse_impossible,
)
from capacity_assets.collection.registry import (
    Registered,
    Server,
    declared_labels,
    declared_limits,
    declared_servers,
    register,
    registered,
    set_active,
)
from capacity_assets.collection.registry import remove as remove_servers
from capacity_assets.collection.service import CollectionService
from capacity_assets.demo.sample_fleet import refuse_the_sample_fleet
from capacity_assets.forecast.limits import declare
from capacity_assets.ownership.labels import declare_labels
from capacity_assets.runtime import collection_service

LIST_COLUMNS = left("Server", "Engine", "Place", "Password from", "TLS", "State", "Last collected")
FAILURE_COLUMNS = (("Server", "left"), ("Last failure", "text"))


@click.command("list")
@json_command
def list_(settings: Settings, /, *, as_json: bool) -> None:
    """Show the servers, and when each was last collected.

    Imported samples are no collection. Also shows how each is reached; of a password, only where it is kept.
    """
    with opened_registry(settings) as engine:
        found = registered(engine)
        attempts = _last_attempts(engine)
    if as_json:
        print_json([_as_dict(one, attempts.get(one.id)) for one in found])
        return
    if not found:
        say(
            "No server is registered. `capacity instances add` registers one, `capacity instances import` a whole file."
        )
        return
    found.sort(key=lambda one: natural_key(one.server.name))
    print_table("Servers", LIST_COLUMNS, [_cells(one, attempts.get(one.id)) for one in found])
    failing = [
        [one.server.name, attempts[one.id].last_failure]
        for one in found
        if one.active and one.id in attempts and attempts[one.id].last_failure
    ]
    if failing:
        print_table("Whose last attempt failed", FAILURE_COLUMNS, failing)


def _last_attempts(engine: Engine) -> dict[int, Row[Any]]:
    """Return the newest attempts to measure each server: `last_collected` and `last_failure`, each None without one."""
    query = text(
        "SELECT instance_id, max(collected_date) FILTER (WHERE status = 'collected') AS last_collected, "
        "(array_agg(CASE WHEN status = 'failed' THEN collected_date || ': ' || failure || ': ' || reason END "
        "ORDER BY collected_date DESC))[1] AS last_failure "
        "FROM capacity_collection_attempts GROUP BY instance_id"
    )
    with engine.connect() as connection:
        return {row.instance_id: row for row in connection.execute(query)}


def _cells(one: Registered, attempts: Row[Any] | None) -> list[object]:
    server = one.server
    counted = f", counted by {server.counted_by}" if server.counted_by else ""
    return [
        server.name,
        server.engine,
        server.place,
        server.password_from or "",
        server.tls or "",
        f"{one.state}{counted}",
        (attempts and attempts.last_collected) or "never",
    ]


def _as_dict(one: Registered, attempts: Row[Any] | None) -> dict[str, object]:
    return {
        "id": one.id,
        **asdict(one.server),
        "state": one.state,
        "last_collected": attempts and attempts.last_collected,
        "last_failure": attempts and attempts.last_failure,
    }


LARGEST_SHOWN = 10


@dataclass
class _Trial:
    """The result of testing one server."""

    server: str
    works: bool = False
    steps: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    failure: str | None = None
    grants: str | None = None
    databases: dict[str, int] = field(default_factory=dict)
    not_counted: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    volumes: dict[str, dict[str, int]] = field(default_factory=dict)
    ceilings_mb: dict[str, int] = field(default_factory=dict)
    unknown_limits: str | None = None


@click.command("test")
@click.argument("name")
@json_command
def test(settings: Settings, /, *, name: str, as_json: bool) -> int:
    """Reach the server NAME; say what works and what is missing.

    Does what the collection does, and stores nothing.
    """
    with opened_registry(settings) as engine:
        [one] = registered(engine, [name])
        if not one.is_collected:
            raise NotFoundError(f"How to reach {name!r} is not registered. `capacity instances add` registers it.")
        trial = _tried(one.server, collection_service(engine, settings))
    if as_json:
        print_json({**asdict(trial), "day": Clock(settings.zone).today()})
    else:
        _print_trial(trial)
    return DONE if trial.works else FAILED


def _tried(server: Server, service: CollectionService) -> _Trial:
    trial = _Trial(server.name)
    kind = engine_named(server.engine)
    context = service.context
    if readable_by_others(server.password_from, context.secrets):
        trial.warnings.append(f"Every user of this machine can read the file behind {server.password_from}.")
    if not kind.verified:
        trial.warnings.append(f"Measuring {server.engine} was never run against a real server by this project's tests.")
    try:
        access = access_to(
            server, context, connect_seconds=service.connect_seconds, statement_seconds=STATEMENT_SECONDS
        )
        trial.steps.append(
            f"password: {f'found by {server.password_from}' if server.password_from else 'none registered'}"
        )
        stages = Stages()
        facts = given_up_in_time(server, access, stages, partial(facts_of, server, access, stages))
        encrypted = {True: "encrypted", False: "not encrypted", None: "encryption unknown"}[facts.encrypted]
        trial.steps.append(f"connected in {stages.connect_seconds or 0:.2f} s: {facts.version}, {encrypted}")
        stages = Stages()
        excluded = context.excluded.get(server.engine, ())
        found = _measured(server, access, excluded, stages)
        refuse_impossible(found.sizes)
    except MeasureError as error:
        trial.failure = f"{error.kind}: {error.description}"
        trial.grants = kind.grants if error.kind in {FailureKind.RIGHTS, FailureKind.LOGIN} else None
        return trial
    total = sum(size.size_mb for size in found.sizes)
    trial.steps.append(
        f"{counted(len(found.sizes), 'database')}, {human_mb(total)}, in {stages.measure_seconds or 0:.2f} s"
    )
    trial.databases = {size.name: size.size_mb for size in sorted(found.sizes, key=lambda size: -size.size_mb)}
    trial.not_counted = list(found.not_counted)
    trial.left_out = list(found.left_out)
    trial.volumes = {
        volume.name: {
            "total_mb": volume.total_bytes // BYTES_PER_MB,
            "free_mb": volume.free_bytes // BYTES_PER_MB,
        }
        for volume in found.limits.volumes
    }
    trial.ceilings_mb = {
        one.database: one.limit_bytes // BYTES_PER_MB for one in found.limits.ceilings if one.limit_bytes is not None
    }
    trial.unknown_limits = found.limits.unknown
    trial.works = True
    return trial


def _measured(server: Server, access: Access, excluded: Sequence[str], stages: Stages) -> Measurement:
    """Measure; sizes that are known stay, however long the limits take."""
    try:
        found = given_up_in_time(server, access, stages, partial(measure, server, access, excluded, stages))
    except MeasureError as error:
        if stages.measurement is None:
            raise
        return replace(stages.measurement, limits=Limits(unknown=str(error)))
    return replace(found, limits=possible(found.limits))


def _print_trial(trial: _Trial) -> None:
    for step in trial.steps:
        say(f"works: {step}")
    for warning in trial.warnings:
        say(f"note: {warning}")
    if trial.failure:
        say(f"fails: {trial.failure}")
        if trial.grants:
            say("What its login needs, here with the name that the documents use:")
            for line in trial.grants.splitlines():
                say(f"  {line}")
        return
    shown = list(trial.databases.items())[:LARGEST_SHOWN]
    rows = [[name, human_mb(size_mb)] for name, size_mb in shown]
    more = len(trial.databases) - len(shown)
    print_table(
        f"Largest databases{f', {more:,} more' if more else ''}", (("Database", "left"), ("Size", "right")), rows
    )
    _print_limits(trial)
    if trial.not_counted:
        say(f"Not counted, because no size is reported: {first_of(trial.not_counted, NAMES_SHOWN)}.")
    if trial.left_out:
        say(f"Left out, see CAPACITY_SYSTEM_DATABASES: {first_of(trial.left_out, NAMES_SHOWN)}.")
    say("Nothing was stored. `capacity collect` measures and stores.")


def _print_limits(trial: _Trial) -> None:
    for name, sizes in trial.volumes.items():
        say(f"Volume {name}: {human_mb(sizes['free_mb'])} of {human_mb(sizes['total_mb'])} free.")
    if trial.ceilings_mb:
        named = (f"{name} {human_mb(most)}" for name, most in trial.ceilings_mb.items())
        say(f"Ceilings of databases: {first_of(named, NAMES_SHOWN)}.")
    if trial.unknown_limits:
        say(f"Limits not known: {trial.unknown_limits}. `capacity limits set {trial.server}` declares one.")


UNKNOWN_HOST = "unknown"
COMMANDS = {
    "add": "instances:add",
    "import": "instances:import_",
    "list": "instances:list_",
    "test": "instances:test",
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
        # An option that is not given keeps the known value; an empty one removes it.
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
