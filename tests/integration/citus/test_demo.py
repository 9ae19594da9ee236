"""The demo on distributed tables: samples, every period through Dagster, reports; the figures of a single server."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy import URL

from capacity_assets.aggregates.levels import SERVER_LEVELS
from capacity_assets.base.periods import PERIODS
from capacity_assets.base.settings import CAPACITY_DRIVER
from capacity_assets.database.distributing import distribute, placements
from capacity_assets.database.engine import capacity_engine
from capacity_assets.database.schema import initialise
from capacity_assets.demo import load_sample_fleet
from tests import citus
from tests.citus_fleet import SHARDS, service
from tests.clocks import SHANGHAI
from tests.computing import compute_windows
from tests.e2e.stack import DEMO_SECONDS, environment
from tests.fleet import figures
from tests.forked import run_forked

DAYS = 40


def test_the_demo_runs_through_dagster_and_its_figures_are_those_of_a_single_server(
    databases: citus.CitusDatabases, nodes: citus.CitusServer, dagster_databases: tuple[URL, URL], tmp_path: Path
) -> None:
    today = datetime.now(tz=SHANGHAI).date()
    first = today - timedelta(days=DAYS)
    with databases.copy("template1") as cluster_url, databases.copy("template1") as single_url:
        nodes.join(str(cluster_url.database))
        cluster, single = capacity_engine(cluster_url), capacity_engine(single_url)
        for engine in (cluster, single):
            initialise(engine)
        distribute(cluster, shards=SHARDS)
        variables = environment(
            tmp_path / "home",
            CAPACITY_DATABASE_URL=cluster_url.set(drivername=CAPACITY_DRIVER).render_as_string(hide_password=False),
            DAGSTER_POSTGRES_URL=dagster_databases[0].render_as_string(hide_password=False),
            CAPACITY_START_DATE=first.isoformat(),
        )

        demo = run_forked("demo", environment=variables, timeout=DEMO_SECONDS, folder=tmp_path)

        assert demo.returncode == 0, demo.stderr
        assert "Fastest growing databases" in demo.stdout
        assert all(one.is_distributed for one in placements(cluster))
        load_sample_fleet(single, first, today)
        for period in PERIODS:
            compute_windows(service(single), period, first, today)
        for level in SERVER_LEVELS.values():
            assert figures(cluster, level) == figures(single, level) != {}
        cluster.dispose()
        single.dispose()
