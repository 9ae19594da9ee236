"""The module that `workspace.yaml` loads, and the only one that reads the environment when imported."""

import dagster as dg

from capacity_assets.base.process import collect_garbage_rarely
from capacity_assets.base.settings import load_settings
from capacity_assets.orchestration.build import build_definitions

# By now Dagster is loaded; workers of runs end sooner.
collect_garbage_rarely()
# Runs without a job, such as backfills, have the executor of the code location.
defs = dg.Definitions.merge(build_definitions(load_settings()), dg.Definitions(executor=dg.in_process_executor))
