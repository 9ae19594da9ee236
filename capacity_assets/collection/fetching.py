"""Fetches volumes from the sources of CAPACITY_VOLUME_SOURCES and stores them for today; each source on its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from sqlalchemy import Engine

from capacity_assets.collection.credentials import SecretFolders
from capacity_assets.collection.imported_volumes import VolumeDay, store_volumes
from capacity_assets.collection.prometheus import FoundVolume, volumes_of
from capacity_assets.collection.registry import registered
from capacity_assets.collection.volume_sources import volume_sources
from capacity_assets.errors import CapacityError, DatabaseError

VARIABLE = "CAPACITY_VOLUME_SOURCES"


@dataclass
class Fetched:
    """What the sources know of today, and what went wrong, one sentence each."""

    volumes: list[FoundVolume] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)


def fetch_volumes(engine: Engine, day: date, path: Path, secrets: SecretFolders, *, dry_run: bool = False) -> Fetched:
    """Ask every source, and store what it knows of `day`, which is today.

    A source that fails, or two that know the same volume, cost that source only.

    Raises:
        DatabaseError: the database failed; volumes of sources before it were stored.
    """
    fetched = Fetched()
    try:
        sources = volume_sources(path)
    except CapacityError as error:
        fetched.troubles.append(f"{VARIABLE}: {' '.join(str(error).splitlines())}")
        return fetched
    known = {one.server.name for one in registered(engine) if one.active}
    for source in sources:
        try:
            found = volumes_of(source, known, secrets)
            days = [VolumeDay(one.server, one.volume, day, *one.sizes) for one in found.volumes]
            store_volumes(engine, days, dry_run=dry_run)
        except DatabaseError:
            raise
        except CapacityError as error:
            fetched.troubles.append(f"{source.name}: {str(error).rstrip('.')}")
        else:
            fetched.volumes += found.volumes
            fetched.troubles += [f"{source.name}: {what}" for what in found.left_out]
            if not found.volumes:
                fetched.troubles.append(f"{source.name}: it knows no volume of a registered server")
    return fetched
