"""`CapacityFleet`: the whole graph as a component of another project, with its servers declared in a file.

A component's `defs.yaml` names the file; everything else comes from the environment, as in the code location of this
project. Nothing is registered when definitions load, only when `registered_servers` is materialised.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import dagster as dg

from capacity_assets.base.errors import ValidationError
from capacity_assets.base.settings import load_settings
from capacity_assets.orchestration.build import build_definitions

EXECUTORS = {"in_process": dg.in_process_executor, "multiprocess": dg.multiprocess_executor}


class CapacityFleet(dg.Component, dg.Model, dg.Resolvable):
    """The capacity graph, and the servers of a TOML or CSV file as `capacity instances import` takes them."""

    fleet: str | None = None
    """The file, in the folder of `defs.yaml`; without it, servers are registered only by the command."""
    key_prefix: str | Sequence[str] | None = None
    """Prefix of the keys of all assets."""
    owners: Sequence[str] | None = None
    """Owners of the assets and jobs, such as team:data or the address of a mailbox."""
    executor: Literal["in_process", "multiprocess"] | None = None
    """Executor of the jobs."""

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Build the definitions from the settings of the environment; raises ValidationError without the file."""
        fleet = None if self.fleet is None else Path(context.path) / self.fleet
        # Checked here, `dg check defs` finds it. The run that registers checks the contents, so that no other run
        # fails.
        if fleet is not None and not fleet.is_file():
            raise ValidationError(f"fleet: there is no file {fleet}.")
        return build_definitions(
            load_settings(),
            fleet=fleet,
            key_prefix=self.key_prefix,
            owners=self.owners,
            executor=EXECUTORS[self.executor] if self.executor else None,
        )
