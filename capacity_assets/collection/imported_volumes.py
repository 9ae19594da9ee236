"""Stores volumes that were not measured by the server's own login: from a file, or a monitoring system.

What a server reports of itself goes before. Where exactly one volume of a server is known, its databases are taken to
lie on it; which of several a database lies on, only the server knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field
from sqlalchemy import Engine, text

from capacity_assets.collection.plausibility import LONGEST_NAME
from capacity_assets.errors import ValidationError
from capacity_assets.foundation.csv_files import declarations
from capacity_assets.foundation.declarations import NO_OTHER_NAMES, Day, bytes_of_gb, declaration, names_of
from capacity_assets.runway.subjects import columns_of, declaring, ids_of, naming_places, refuse_repeated
from capacity_assets.units import BYTES_PER_MB, LARGEST_BYTES

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


def store_volumes(engine: Engine, volumes: Sequence[VolumeDay], *, dry_run: bool = False) -> int:
    """Store volumes, each in the place of an imported one of the same server, name and day; return how many changed.

    All of them or none. A dry run stores none.

    Raises:
        NotFoundError: a server is not registered.
        ValidationError: a volume is listed twice for one day.
        DatabaseError: the database failed; nothing was changed.
    """
    keys = ((one.volume, one.server, one.day) for one in volumes)
    refuse_repeated(keys, lambda key: f"{key[0]} of {key[1]}, {key[2]}", "Listed more than once:")
    with naming_places(volumes), declaring(engine, "storing volumes", dry_run=dry_run) as connection:
        ids = ids_of(connection, {one.server for one in volumes})
        rows = [
            {
                "instance_id": ids[one.server],
                "volume_name": one.volume,
                "day": one.day,
                "total_mb": one.total_bytes // BYTES_PER_MB,
                "free_mb": one.free_bytes // BYTES_PER_MB,
                "used_mb": None if one.used_bytes is None else one.used_bytes // BYTES_PER_MB,
            }
            for one in volumes
        ]
        if not rows:
            return 0
        written = len(connection.execute(text(_STORE), {**columns_of(rows), "source": IMPORTED}).all())
        for statement in (_PLACE_NEW, _PLACE_KNOWN):
            connection.execute(text(statement), {"days": sorted({one.day for one in volumes})})
        return written


def volumes_of_file(path: Path, today: date) -> list[VolumeDay]:
    """Read volumes from a CSV file with the columns server, volume, day, total_gb, free_gb and optionally used_gb.

    Raises:
        ValidationError: the file cannot be read, or a line is not a valid volume or has a day after `today`; all
        problems are reported together.
    """
    return declarations(path, *names_of(VolumeDay), lambda row: _plausible(declaration(VolumeDay, row), today))


def _plausible(one: VolumeDay, today: date) -> VolumeDay:
    if one.day > today:
        raise ValidationError(f"day {one.day} is in the future.")
    if not 0 <= one.free_bytes <= one.total_bytes <= LARGEST_BYTES or len(one.volume) > LONGEST_NAME:
        raise ValidationError("free_gb lies between 0 and total_gb, and a volume's name has at most 255 letters.")
    if not 0 <= (one.used_bytes or 0) <= one.total_bytes:
        raise ValidationError("used_gb must be between 0 and total_gb; leave it empty if the volume has no reserve.")
    return one


_STORE = """
INSERT INTO volume_size_stats AS t
    (collected_date, instance_id, volume_name, total_mb, free_mb, used_mb, source, collected_at)
SELECT g.day, g.instance_id, g.name, g.total_mb, g.free_mb, g.used_mb, :source, now()
FROM unnest(CAST(:instance_ids AS integer[]), CAST(:volume_names AS varchar[]), CAST(:days AS date[]),
            CAST(:total_mbs AS bigint[]), CAST(:free_mbs AS bigint[]), CAST(:used_mbs AS bigint[]))
    AS g (instance_id, name, day, total_mb, free_mb, used_mb)
ON CONFLICT (collected_date, instance_id, volume_name) DO UPDATE
SET total_mb = excluded.total_mb, free_mb = excluded.free_mb, used_mb = excluded.used_mb,
    collected_at = excluded.collected_at
WHERE t.source = excluded.source
  AND (t.total_mb, t.free_mb, t.used_mb) IS DISTINCT FROM (excluded.total_mb, excluded.free_mb, excluded.used_mb)
RETURNING t.instance_id
"""
_ALONE = """
alone AS (
    SELECT collected_date, instance_id, min(volume_name) AS volume_name FROM volume_size_stats
    WHERE collected_date = ANY (CAST(:days AS date[])) GROUP BY collected_date, instance_id HAVING count(*) = 1
)"""
# Databases of whose limits the server says nothing: they may fill the volume.
_PLACE_NEW = f"""
WITH {_ALONE}
INSERT INTO database_limit_stats (collected_date, instance_id, database_name, is_unlimited, volumes, source)
SELECT a.collected_date, a.instance_id, s.database_name, true, ARRAY[a.volume_name], '{IMPORTED}'
FROM alone a JOIN database_size_stats s USING (collected_date, instance_id)
ON CONFLICT DO NOTHING
"""  # noqa: S608 -- constants
# Those that have a ceiling, and lie the server does not say where.
_PLACE_KNOWN = f"""
WITH {_ALONE}
UPDATE database_limit_stats l SET volumes = ARRAY[a.volume_name] FROM alone a
WHERE l.collected_date = a.collected_date AND l.instance_id = a.instance_id AND l.volumes IS NULL
"""  # noqa: S608 -- constants
