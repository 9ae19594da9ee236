"""Volumes that the login of a server cannot measure: from a file, or from monitoring systems.

CAPACITY_VOLUME_SOURCES names the monitoring systems (`prometheus`). The results of their queries are joined by labels.
If a source fails, the others are read. Volumes that the server itself reports take precedence. If exactly one volume of
a server is known, its databases are assumed to be on it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from sqlalchemy import Engine, Row, text

from capacity_assets.base.declarations import NO_OTHER_NAMES, Day, bytes_of_gb, declaration, declarations, names_of
from capacity_assets.base.errors import CapacityError, DatabaseError, ValidationError, database_errors
from capacity_assets.base.units import BYTES_PER_MB, LARGEST_BYTES, counted
from capacity_assets.collection.credentials import SecretFolders
from capacity_assets.collection.measuring import are_names
from capacity_assets.collection.prometheus import (
    VARIABLE,
    Labels,
    PrometheusSource,
    login,
    prometheus_sources,
    values_now,
)
from capacity_assets.collection.servers import registered_servers
from capacity_assets.database.declared_rows import columns_of, declaring, ids_of, places_in_errors, refuse_repeated
from capacity_assets.database.sql import with_queries

IMPORTED = "imported"
Size = Annotated[int, BeforeValidator(bytes_of_gb)]


@dataclass(frozen=True)
class VolumeDay:
    """A volume of a server on a day."""

    __pydantic_config__ = NO_OTHER_NAMES

    server: str
    volume: str
    day: Day
    total_bytes: Annotated[Size, Field(validation_alias="total_gb")]
    free_bytes: Annotated[Size, Field(validation_alias="free_gb")]
    used_bytes: Annotated[Size | None, Field(validation_alias="used_gb")] = None


def store_volumes(
    engine: Engine,
    volumes: Sequence[VolumeDay],
    *,
    by: str | None = None,
    replace: bool = True,
    dry_run: bool = False,
) -> int:
    """Store all volumes or none, in place of imported ones with the same server, name and day; return how many changed.

    `by` declares them; None: they were fetched. Without `replace`, stored volumes are kept. A dry run stores none.

    Raises:
        NotFoundError: a server is not registered.
        ValidationError: a volume is listed twice for one day.
        DatabaseError: the database failed; nothing was changed.
    """
    keys = ((volume.volume, volume.server, volume.day) for volume in volumes)
    refuse_repeated(keys, lambda key: f"{key[0]} of {key[1]}, {key[2]}", "Listed more than once:")
    with places_in_errors(volumes), declaring(engine, "storing volumes", dry_run=dry_run) as connection:
        ids = ids_of(connection, {volume.server for volume in volumes})
        rows = [
            {
                "instance_id": ids[volume.server],
                "volume_name": volume.volume,
                "day": volume.day,
                "total_mb": volume.total_bytes // BYTES_PER_MB,
                "free_mb": volume.free_bytes // BYTES_PER_MB,
                "used_mb": None if volume.used_bytes is None else volume.used_bytes // BYTES_PER_MB,
                "declared_by": by,
            }
            for volume in volumes
        ]
        if not rows:
            return 0
        store = text(_STORE + (_REPLACE if replace else _KEEP))
        written = len(connection.execute(store, {**columns_of(rows), "source": IMPORTED}).all())
        for statement in (_PLACE_NEW, _PLACE_KNOWN):
            connection.execute(
                with_queries(statement, alone=_ALONE), {"days": sorted({volume.day for volume in volumes})}
            )
        return written


def newest_volumes(engine: Engine) -> Sequence[Row[Any]]:
    """Return the last known size of each volume, in MiB; raises DatabaseError."""
    with database_errors(doing="reading volumes"), engine.connect() as connection:
        return connection.execute(text(_NEWEST)).all()


_NEWEST = """
SELECT DISTINCT ON (i.name, v.volume_name) i.name AS server, v.volume_name AS volume, v.total_mb, v.free_mb,
       v.collected_date AS day, v.source,
       CASE WHEN v.source = 'imported' THEN v.collected_at END AS declared_at, v.declared_by
FROM volume_size_stats v JOIN instances i ON i.id = v.instance_id
ORDER BY i.name, v.volume_name, v.collected_date DESC
"""


def volumes_of_file(path: Path, today: date) -> list[VolumeDay]:
    """Read volumes from a CSV file with the columns server, volume, day, total_gb, free_gb and optionally used_gb.

    Raises ValidationError with all problems: the file cannot be read, a line is wrong, or a day is after `today`.
    """
    return declarations(path, *names_of(VolumeDay), lambda row: _plausible(declaration(VolumeDay, row), today))


def _plausible(volume: VolumeDay, today: date) -> VolumeDay:
    if volume.day > today:
        raise ValidationError(f"day {volume.day} is in the future.")
    if not 0 <= volume.free_bytes <= volume.total_bytes <= LARGEST_BYTES or not are_names(volume.volume):
        raise ValidationError("free_gb must be between 0 and total_gb, and a name has at most 255 characters.")
    if not 0 <= (volume.used_bytes or 0) <= volume.total_bytes:
        raise ValidationError("used_gb must be between 0 and total_gb; leave it empty if the volume has no reserve.")
    return volume


_STORE = """
INSERT INTO volume_size_stats AS t
    (collected_date, instance_id, volume_name, total_mb, free_mb, used_mb, source, collected_at, declared_by)
SELECT g.day, g.instance_id, g.name, g.total_mb, g.free_mb, g.used_mb, :source, now(), g.declared_by
FROM unnest(CAST(:instance_ids AS integer[]), CAST(:volume_names AS varchar[]), CAST(:days AS date[]),
            CAST(:total_mbs AS bigint[]), CAST(:free_mbs AS bigint[]), CAST(:used_mbs AS bigint[]),
            CAST(:declared_bys AS varchar[]))
    AS g (instance_id, name, day, total_mb, free_mb, used_mb, declared_by)
ON CONFLICT (collected_date, instance_id, volume_name) DO """
_KEEP = "NOTHING RETURNING t.instance_id"
_REPLACE = """UPDATE
SET total_mb = excluded.total_mb, free_mb = excluded.free_mb, used_mb = excluded.used_mb,
    collected_at = excluded.collected_at, declared_by = excluded.declared_by
WHERE t.source = excluded.source
  AND (t.total_mb, t.free_mb, t.used_mb) IS DISTINCT FROM (excluded.total_mb, excluded.free_mb, excluded.used_mb)
RETURNING t.instance_id
"""
# The servers with a single volume.
_ALONE = """
SELECT collected_date, instance_id, min(volume_name) AS volume_name FROM volume_size_stats
WHERE collected_date = ANY (CAST(:days AS date[])) GROUP BY collected_date, instance_id HAVING count(*) = 1
"""
# Databases without reported limits may fill the volume.
_PLACE_NEW = """
INSERT INTO database_limit_stats (collected_date, instance_id, database_name, is_unlimited, volumes, source)
SELECT a.collected_date, a.instance_id, s.database_name, true, ARRAY[a.volume_name], 'imported'
FROM alone a JOIN database_size_stats s USING (collected_date, instance_id)
ON CONFLICT DO NOTHING
"""
# Databases with a ceiling, but without reported volumes.
_PLACE_KNOWN = """
UPDATE database_limit_stats l SET volumes = ARRAY[a.volume_name] FROM alone a
WHERE l.collected_date = a.collected_date AND l.instance_id = a.instance_id AND l.volumes IS NULL
"""


def volumes_of(
    source: PrometheusSource, known: Collection[str], secrets: SecretFolders, day: date
) -> tuple[list[VolumeDay], list[str]]:
    """Return the volumes of the `known` servers in a source, and what was left out and why.

    Raises:
        SourceError: it does not respond, refuses, or its response has another form.
        CredentialError: its password cannot be read.
    """
    headers = login(source, secrets)
    return volumes_from(source, [values_now(source, query, headers) for query in source.volume_queries], known, day)


def volumes_from(
    source: PrometheusSource, values: Sequence[Mapping[Labels, float]], known: Collection[str], day: date
) -> tuple[list[VolumeDay], list[str]]:
    """Return the volumes of a day in the values of `volume_queries`, and what was left out and why."""
    totals, free, *used = values
    by_place: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    strangers: set[str] = set()
    for labels in totals.keys() & free.keys():
        named = dict(labels)
        label = named.get(source.server_label, "")
        server = source.server_of(label, known)
        if server is None:
            strangers.add(label)
            continue
        volume = named.get(source.volume_label, "") if source.volume_label else source.volume
        sizes = (totals[labels], free[labels], *(by_labels[labels] for by_labels in used if labels in by_labels))
        by_place.setdefault((server, volume or source.volume), []).append(sizes)
    volumes, left_out = [], []
    for (server, volume), candidates in sorted(by_place.items()):
        if not are_names(volume):
            left_out.append(f"{volume!r:.80} of {server}: its name cannot be stored")
        elif reason := _reason_against(candidates):
            left_out.append(f"{volume} of {server}: {reason}")
        else:
            volumes.append(VolumeDay(server, volume, day, *map(int, candidates[0])))
    if strangers:
        first, count = min(strangers), counted(len(strangers), "value")
        left_out.append(f"{count} of {source.server_label} without a registered server, for example {first!r:.80}")
    return volumes, left_out


def _reason_against(candidates: list[tuple[float, ...]]) -> str | None:
    if len(candidates) > 1:
        return f"{len(candidates)} results instead of one: narrow the query"
    [(total, free, *used)] = candidates
    if not (math.isfinite(total) and math.isfinite(free) and 0 < total <= LARGEST_BYTES and 0 <= free <= total):
        return f"{total:g} bytes, {free:g} of them free, is impossible"
    if not all(0 <= used_bytes <= total for used_bytes in used):
        return f"{total:g} bytes, {used[0]:g} of them used, is impossible"
    return None


@dataclass
class FetchReport:
    """The volumes of today in all sources, and what went wrong, one sentence each."""

    volumes: list[VolumeDay] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)


def fetch_volumes(
    engine: Engine, day: date, path: Path, secrets: SecretFolders, *, dry_run: bool = False
) -> FetchReport:
    """Query every source, and store its volumes of `day`, which is today. If a source fails, the others are queried.

    Raises DatabaseError: the database failed; the volumes of earlier sources are stored.
    """
    fetched = FetchReport()
    try:
        sources = [source for source in prometheus_sources(path) if source.volume_queries]
    except CapacityError as error:
        fetched.troubles.append(f"{VARIABLE}: {' '.join(str(error).splitlines()).rstrip('.')}")
        return fetched
    known = {registered.name for registered in registered_servers(engine) if registered.active}
    for source in sources:
        try:
            volumes, left_out = volumes_of(source, known, secrets, day)
            store_volumes(engine, volumes, dry_run=dry_run)
        except DatabaseError:
            raise
        except CapacityError as error:
            fetched.troubles.append(f"{source.name}: {str(error).rstrip('.')}")
        else:
            fetched.volumes += volumes
            fetched.troubles += [f"{source.name}: {what}" for what in left_out]
            if not volumes:
                fetched.troubles.append(f"{source.name}: no volume of a registered server")
    return fetched
