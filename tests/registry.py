"""What a registry holds, by name."""

from __future__ import annotations

from sqlalchemy import Engine

from capacity_assets.collection.servers import registered_servers


def names(engine: Engine) -> dict[str, str]:
    return {one.server.name: one.state for one in registered_servers(engine)}
