"""The shipped code location, and its assets of sizes."""

from __future__ import annotations

import dagster as dg

CRONS = {
    "daily": "0 0 * * *",
    "weekly": "0 0 * * 1",
    "monthly": "0 0 1 * *",
    "quarterly": "0 0 1 1,4,7,10 *",
    "yearly": "0 0 1 1 *",
}


def specs(definitions: dg.Definitions) -> dict[str, dg.AssetSpec]:
    """The tables of sizes: samples and aggregates."""
    every = {spec.key.to_user_string(): spec for spec in definitions.resolve_all_asset_specs()}
    return {key: spec for key, spec in every.items() if "level" in spec.tags}


def aggregate_keys(definitions: dg.Definitions) -> set[dg.AssetKey]:
    return {dg.AssetKey(key) for key, spec in specs(definitions).items() if spec.group_name != "raw"}
