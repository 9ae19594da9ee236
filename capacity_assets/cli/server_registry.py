"""What the commands under `capacity instances` share: the opened registry, and what a change says."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from zoneinfo import ZoneInfo

from sqlalchemy import Engine

from capacity_assets.cli.output import say
from capacity_assets.clock import Clock
from capacity_assets.collection.credentials import OWN, CredentialError, SecretFolders
from capacity_assets.collection.registry import Changes
from capacity_assets.collection.servers import Server
from capacity_assets.foundation.schema_guard import refuse_an_unfit_database
from capacity_assets.runtime import open_engine, refuse_an_absent_embedded_server
from capacity_assets.runway.issuing import issue_anew
from capacity_assets.settings import Settings
from capacity_assets.units import first_of

NAMES_SHOWN = 10


@contextmanager
def opened_registry(settings: Settings, zone: ZoneInfo | None = None) -> Iterator[Engine]:
    """Open the registry if it exists; with `zone`, refuse a database that uses another time zone."""
    refuse_an_absent_embedded_server(settings)
    with open_engine(settings) as engine:
        refuse_an_unfit_database(engine, zone, kept="Nothing was changed.")
        yield engine


def issue_forecasts_anew(engine: Engine, settings: Settings, servers: Collection[str], *, quiet: bool = False) -> None:
    """Reissue the newest forecasts of servers after a declaration, and report what the pages show."""
    done = issue_anew(engine, servers, Clock(settings.zone)) if servers else None
    named = first_of(sorted(servers), NAMES_SHOWN)
    if done is None or quiet:
        return
    if done:
        say(f"The newest forecasts of {named} were reissued.")
    else:
        say(f"The pages show the change for {named} after the next run of the asset `runway`.")


def warnings_of_passwords(settings: Settings, servers: Sequence[Server]) -> Iterator[str]:
    """Warn of passwords that this configuration does not look up; another machine may be configured differently."""
    folders = SecretFolders.of(settings)
    for server in servers:
        if server.password_from and server.password_from != OWN:
            try:
                folders.refuse_what_is_not_set_aside(server.password_from)
            except CredentialError as error:
                yield f"Warning: {server.name} cannot be measured with this configuration. {error}"


def changes_text(changes: Changes) -> Iterator[str]:
    """Say which servers were registered, changed, or taken out of service, or would be."""
    for what, names in asdict(changes).items():
        if names:
            yield f"{what.replace('_', ' ')}: {len(names):,} ({first_of(names, NAMES_SHOWN)})"
    if changes.out_of_service:
        yield "`capacity instances enable` puts them back into service."
