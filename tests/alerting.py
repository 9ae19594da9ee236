"""An instance with the sensor of alerts and the jobs that it watches."""

from __future__ import annotations

from datetime import date

import dagster as dg

from capacity_assets.orchestration.alerts import alert_sensors
from capacity_assets.orchestration.build import build_definitions
from capacity_assets.settings import Settings
from tests.clocks import fixed_clock
from tests.runs import QUICK_RETRIES, QUIET


class House:
    """An instance, its sensor and its jobs."""

    def __init__(self, settings: Settings, instance: dg.DagsterInstance, url: str) -> None:
        self.definitions = build_definitions(settings, clock=fixed_clock(date(2026, 7, 1)), retries=QUICK_RETRIES)
        self.instance = instance
        [self.sensor] = alert_sensors(url)
        self.cursor: str | None = None

    def tick(self) -> None:
        with dg.build_sensor_context(instance=self.instance, cursor=self.cursor) as context:
            try:
                self.sensor(context)
            finally:
                self.cursor = context.cursor

    def run(self, day: str, job: str = "daily_aggregation_job") -> None:
        self.definitions.resolve_job_def(job).execute_in_process(
            instance=self.instance, partition_key=day, run_config=QUIET, raise_on_error=False
        )
