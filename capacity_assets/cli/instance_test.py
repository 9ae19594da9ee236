"""`capacity instances test`: reach one server as the collection does, and say what works and what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial

import click

from capacity_assets.cli.errors import DONE, FAILED
from capacity_assets.cli.options import json_command
from capacity_assets.cli.output import print_json, print_table, say
from capacity_assets.cli.server_registry import NAMES_SHOWN, opened_registry
from capacity_assets.clock import Clock
from capacity_assets.collection.credentials import readable_by_others
from capacity_assets.collection.engines.base import Access, Measurement
from capacity_assets.collection.engines.failures import FailureKind, MeasureError
from capacity_assets.collection.engines.installed import engine_named
from capacity_assets.collection.engines.limits import Limits
from capacity_assets.collection.fleet import STATEMENT_SECONDS
from capacity_assets.collection.measuring import Stages, access_to, facts_of, given_up_in_time, measure
from capacity_assets.collection.plausibility import possible, refuse_impossible
from capacity_assets.collection.registry import registered
from capacity_assets.collection.servers import Server
from capacity_assets.collection.service import CollectionService
from capacity_assets.errors import NotFoundError
from capacity_assets.runtime import collection_service
from capacity_assets.settings import Settings
from capacity_assets.units import BYTES_PER_MB, counted, first_of, human_mb

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
