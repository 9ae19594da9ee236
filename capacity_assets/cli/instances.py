"""`capacity instances`: who is measured, how each one is reached, and whether that works."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, text

from capacity_assets.cli.database import refuse_an_absent_embedded_server
from capacity_assets.cli.errors import DONE, FAILED
from capacity_assets.cli.output import print_json, print_table, say
from capacity_assets.clock import Clock
from capacity_assets.collection.credentials import OWN, CredentialError, SecretFolders, readable_by_others
from capacity_assets.collection.declarations import declared_servers
from capacity_assets.collection.engines.base import FailureKind, MeasureError, engine_named
from capacity_assets.collection.fleet import STATEMENT_SECONDS, refuse_impossible
from capacity_assets.collection.measuring import Stages, access_to, facts_of, given_up_in_time, measure
from capacity_assets.collection.registry import Changes, Registered, register, registered, remove, set_active
from capacity_assets.collection.servers import Server
from capacity_assets.collection.service import CollectionService
from capacity_assets.demo.sample_fleet import refuse_the_sample_fleet
from capacity_assets.foundation.errors import NotFoundError, ValidationError
from capacity_assets.foundation.schema_guard import refuse_an_unfit_database
from capacity_assets.runtime import collection_service, open_engine
from capacity_assets.settings import Settings
from capacity_assets.units import first_of, human_mb, natural_key

NAMES_SHOWN = 10
UNKNOWN_HOST = "unknown"
LARGEST_SHOWN = 10


@contextmanager
def _opened(settings: Settings) -> Iterator[Engine]:
    """Open the registry, where there is one."""
    refuse_an_absent_embedded_server(settings)
    with open_engine(settings) as engine:
        refuse_an_unfit_database(engine, kept="Nothing was changed.")
        yield engine


def add_instance(settings: Settings, name: str, given: Mapping[str, Any], *, replace: bool, as_json: bool) -> int:
    """Register one server; one that is there is changed only with `replace`, or when it is not measured yet.

    What is not given is taken from the registry where the server is known.
    """
    with _opened(settings) as engine:
        refuse_the_sample_fleet(engine, kept="Nothing was registered.")
        known = {one.server.name: one for one in registered(engine)}.get(name)
        if known is not None and known.is_collected and not replace:
            raise ValidationError(
                f"A server named {name!r} is registered already. Nothing was changed. `--replace` changes it."
            )
        server = _server(name, given, known.server if known else None)
        changes = register(engine, [server])
    if as_json:
        print_json(asdict(changes))
    else:
        _say_changes(changes, dry_run=False)
        _warn_of_passwords_that_will_be_refused(settings, [server])
        say(f"Next: capacity instances test {name}")
    return DONE


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


def import_instances(settings: Settings, path: Path, *, disable_others: bool, dry_run: bool, as_json: bool) -> int:
    """Register what a file declares."""
    servers = declared_servers(path)
    with _opened(settings) as engine:
        refuse_the_sample_fleet(engine, kept="Nothing was registered.")
        changes = register(engine, servers, disable_others=disable_others, dry_run=dry_run)
    if as_json:
        print_json({"dry_run": dry_run, **asdict(changes)})
    else:
        _say_changes(changes, dry_run=dry_run)
        _warn_of_passwords_that_will_be_refused(settings, servers)
    return DONE


def _warn_of_passwords_that_will_be_refused(settings: Settings, servers: Sequence[Server]) -> None:
    """Warn of passwords that this configuration does not look up; another machine may be configured differently."""
    folders = SecretFolders.of(settings)
    for server in servers:
        if server.password_from and server.password_from != OWN:
            try:
                folders.refuse_what_is_not_set_aside(server.password_from)
            except CredentialError as error:
                say(f"Warning: {server.name} cannot be measured with this configuration. {error}")


def _say_changes(changes: Changes, *, dry_run: bool) -> None:
    for what, names in asdict(changes).items():
        if names:
            say(f"{what.replace('_', ' ')}: {len(names):,} ({first_of(names, NAMES_SHOWN)})")
    if changes.out_of_service:
        say("`capacity instances enable` puts them back into service.")
    if dry_run:
        say("Nothing was written.")


def switch_instances(settings: Settings, names: Sequence[str], *, active: bool) -> int:
    """Take servers out of service, or put them back."""
    with _opened(settings) as engine:
        set_active(engine, names, active=active)
        counted = [one.server.name for one in registered(engine) if one.active and one.server.counted_by in names]
    listed = first_of(names, NAMES_SHOWN)
    if active:
        say(f"In service: {listed}. Measured and aggregated from now on; days without samples stay gaps.")
    else:
        say(f"Out of service: {listed}. Neither measured nor aggregated any more; the history is kept.")
        if counted:
            say(
                f"Fleet totals now count neither these nor {first_of(counted, NAMES_SHOWN)}, counted by them: "
                '`capacity instances add NAME --replace --counted-by ""` has one count itself.'
            )
    return DONE


def remove_instances(settings: Settings, names: Sequence[str]) -> int:
    """Forget how servers are reached; those without any history are forgotten altogether."""
    with _opened(settings) as engine:
        kept = remove(engine, names)
    gone = [name for name in names if name not in kept]
    if gone:
        say(f"Removed: {first_of(gone, NAMES_SHOWN)}.")
    if kept:
        say(f"Out of service and not measured here any more: {first_of(kept, NAMES_SHOWN)}. Their history is kept.")
    return DONE


LIST_COLUMNS = (
    ("Server", "left"),
    ("Engine", "left"),
    ("Place", "left"),
    ("Password from", "left"),
    ("TLS", "left"),
    ("State", "left"),
    ("Last measured", "left"),
)
FAILURE_COLUMNS = (("Server", "left"), ("Last failure", "text"))


def list_instances(settings: Settings, *, as_json: bool) -> int:
    """Print the registry, with the last measurement of each server; no password, only where it is."""
    with _opened(settings) as engine:
        found = registered(engine)
        attempts = _last_attempts(engine)
    if as_json:
        print_json([_as_dict(one, attempts.get(one.id)) for one in found])
        return DONE
    if not found:
        say(
            "No server is registered. `capacity instances add` registers one, `capacity instances import` a whole file."
        )
        return DONE
    found.sort(key=lambda one: natural_key(one.server.name))
    print_table("Servers", LIST_COLUMNS, [_cells(one, attempts.get(one.id)) for one in found])
    failing = [
        [one.server.name, attempts[one.id].last_failure] for one in found if one.active and _fails(attempts.get(one.id))
    ]
    if failing:
        print_table("Whose last attempt failed", FAILURE_COLUMNS, failing)
    return DONE


@dataclass(frozen=True)
class _Attempts:
    """The newest attempts to measure a server."""

    last_collected: date | None
    last_failure: str | None


def _last_attempts(engine: Engine) -> dict[int, _Attempts]:
    query = text(
        "SELECT instance_id, max(collected_date) FILTER (WHERE status = 'collected') AS last_collected, "
        "(array_agg(CASE WHEN status = 'failed' THEN collected_date || ': ' || failure || ': ' || reason END "
        "ORDER BY collected_date DESC))[1] AS last_failure "
        "FROM capacity_collection_attempts GROUP BY instance_id"
    )
    with engine.connect() as connection:
        return {row.instance_id: _Attempts(row.last_collected, row.last_failure) for row in connection.execute(query)}


def _fails(attempts: _Attempts | None) -> bool:
    return attempts is not None and attempts.last_failure is not None


def _cells(one: Registered, attempts: _Attempts | None) -> list[object]:
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


def _as_dict(one: Registered, attempts: _Attempts | None) -> dict[str, object]:
    return {
        "id": one.id,
        **asdict(one.server),
        "state": one.state,
        "last_collected": attempts and attempts.last_collected,
        "last_failure": attempts and attempts.last_failure,
    }


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


def test_instance(settings: Settings, name: str, *, as_json: bool) -> int:
    """Reach a server as the collection does, and say what works and what is missing. Stores nothing."""
    with _opened(settings) as engine:
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
        found = given_up_in_time(server, access, stages, partial(measure, server, access, excluded, stages))
        refuse_impossible(found.sizes)
    except MeasureError as error:
        trial.failure = f"{error.kind}: {error.told}"
        trial.grants = kind.grants if error.kind in {FailureKind.RIGHTS, FailureKind.LOGIN} else None
        return trial
    total = sum(size.size_mb for size in found.sizes)
    trial.steps.append(f"{len(found.sizes):,} databases, {human_mb(total)}, in {stages.measure_seconds or 0:.2f} s")
    trial.databases = {size.name: size.size_mb for size in sorted(found.sizes, key=lambda size: -size.size_mb)}
    trial.not_counted = list(found.not_counted)
    trial.left_out = list(found.left_out)
    trial.works = True
    return trial


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
    if trial.not_counted:
        say(f"Not counted, because no size is reported: {first_of(trial.not_counted, NAMES_SHOWN)}.")
    if trial.left_out:
        say(f"Left out, see CAPACITY_SYSTEM_DATABASES: {first_of(trial.left_out, NAMES_SHOWN)}.")
    say("Nothing was stored. `capacity collect` measures and stores.")
