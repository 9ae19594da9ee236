"""The engines that are installed, found through the entry points `capacity_assets.engines`."""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points

from capacity_assets.collection.engines.base import EngineAdapter
from capacity_assets.errors import ValidationError

ENTRY_POINTS = "capacity_assets.engines"


@cache
def engines() -> dict[str, EngineAdapter]:
    """Return every installed engine by the name that servers are registered with."""
    found: dict[str, EngineAdapter] = {}
    for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda point: point.name):
        loaded: type[EngineAdapter] = point.load()
        found[point.name] = loaded()
    return found


def engine_named(name: str) -> EngineAdapter:
    """Return an engine; raises ValidationError where none of that name is installed."""
    try:
        return engines()[name]
    except KeyError:
        known = ", ".join(engines())
        raise ValidationError(f"{name!r} is not an engine that can be measured; known are {known}.") from None


def excluded_databases(setting: str) -> dict[str, tuple[str, ...]]:
    """Read CAPACITY_SYSTEM_DATABASES over the defaults, by engine; raises ValidationError where it is wrong."""
    excluded = {name: engine.system_databases for name, engine in engines().items()}
    for entry in filter(None, (part.strip() for part in setting.split(","))):
        engine, sign, names = entry.partition("=")
        if not sign or engine.strip() not in excluded:
            raise ValidationError(
                f"CAPACITY_SYSTEM_DATABASES: {entry!r} is not ENGINE=NAME|NAME with one of {', '.join(excluded)}."
            )
        excluded[engine.strip()] = tuple(filter(None, (name.strip() for name in names.split("|"))))
    return excluded
