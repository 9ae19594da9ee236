"""What imports left in the tables, and what they said of it."""

from __future__ import annotations

import json
from pathlib import Path

from sqlalchemy import Engine

from tests.databases import rows

HEAD = "server,database,day,size_mb\n"


def write(path: Path, content: str) -> str:
    path.write_text(content, encoding="utf-8")
    return str(path)


def samples(engine: Engine) -> list[tuple[object, ...]]:
    return rows(
        engine,
        "SELECT i.name, d.database_name, d.collected_date::text, d.size_mb, d.data_size_mb, d.log_size_mb "
        "FROM database_size_stats d JOIN instances i ON i.id = d.instance_id ORDER BY 1, 2, 3",
    )


def totals(engine: Engine) -> list[tuple[object, ...]]:
    return rows(
        engine,
        "SELECT i.name, t.collected_date::text, t.total_size_mb, t.database_count FROM instance_size_stats t "
        "JOIN instances i ON i.id = t.instance_id WHERE NOT t.is_deleted ORDER BY 1, 2",
    )


def counts(output: str) -> dict[str, int]:
    return {name: count for name, count in json.loads(output)["counts"].items() if count}
