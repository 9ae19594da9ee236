"""What `workspace.yaml` loads. The only module that reads the environment when imported."""

from capacity_assets.base.process import collect_garbage_rarely
from capacity_assets.base.settings import load_settings
from capacity_assets.orchestration.build import build_definitions

# By now Dagster is loaded; workers of runs end sooner.
collect_garbage_rarely()
defs = build_definitions(load_settings())
