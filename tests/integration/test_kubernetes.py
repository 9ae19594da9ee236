"""Dagster's chart with our values, rendered and checked; and a run by its launcher, on a stand-in for the cluster."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from sqlalchemy import URL, Engine, text

from capacity_assets.aggregates.levels import DATABASE
from capacity_assets.base.settings import DAGSTER_DRIVER, Settings
from tests.daemon import Daemon, running_daemon
from tests.fleet import add_database_sizes, add_instances, sizes, stored
from tests.servers import ADMIN_PASSWORD, PostgresServer

kubernetes = pytest.importorskip("tests.kubernetes", reason="no kubernetes-validate here", exc_type=ImportError)
pytest.importorskip("dagster_k8s", reason="the extra kubernetes is not installed")
pytestmark = pytest.mark.skipif(
    kubernetes.VARIABLE not in os.environ or shutil.which("helm") is None,
    reason=f"no chart of Dagster in {kubernetes.VARIABLE}, or no helm",
)
IMAGE = "registry.example/capacity_assets:0.3.0"
STORAGE = "dagster_on_kubernetes"
OURS = {"capacity-assets", "daemon", "capacity-init", "capacity-webserver", "capacity-pages"}


@pytest.fixture(scope="module")
def documents() -> list[dict[str, Any]]:
    """Everything that Helm sends for our values."""
    return kubernetes.rendered()  # type: ignore[no-any-return]


def pods(documents: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Specifications of pods by the end of their workload's name, but for those of which none is wanted."""
    found = {
        document["metadata"]["name"]: document["spec"]["template"]["spec"]
        for document in documents
        if document["kind"] in {"Deployment", "Job"} and document["spec"].get("replicas", 1)
    }
    return {next(name for name in OURS if whole.endswith(name)): pod for whole, pod in found.items()}


def test_kubernetes_knows_every_field_that_is_sent(documents: list[dict[str, Any]]) -> None:
    for document in documents:
        kubernetes.check(document)
    kinds = [document["kind"] for document in documents]
    assert (kinds.count("Deployment"), kinds.count("Job"), kinds.count("PersistentVolumeClaim")) == (5, 1, 1)


def test_every_pod_runs_our_image_unprivileged_with_its_secret_and_says_when_it_is_well(
    documents: list[dict[str, Any]],
) -> None:
    found = pods(documents)
    assert set(found) == OURS, "the chart's own web server has no pod"
    for name, pod in found.items():
        [container] = pod["containers"]
        assert container["image"] == IMAGE
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert "memory" in container["resources"]["limits"]
        secrets = [source["secretRef"]["name"] for source in container.get("envFrom", []) if "secretRef" in source]
        assert ("capacity" in secrets) == (name != "capacity-pages"), "the pages know a reader's address only"
        assert name == "capacity-init" or "livenessProbe" in container


def test_no_secret_is_in_what_is_sent(documents: list[dict[str, Any]]) -> None:
    assert {document["kind"] for document in documents}.isdisjoint({"Secret"})


def test_instance_and_workspace_are_mounted_where_the_programs_look(documents: list[dict[str, Any]]) -> None:
    configured = {document["metadata"]["name"]: document for document in documents if document["kind"] == "ConfigMap"}
    server = pods(documents)["capacity-webserver"]
    named = {volume["configMap"]["name"] for volume in server["volumes"] if "configMap" in volume}
    assert named <= set(configured)
    workspace = yaml.safe_load(configured["capacity-dagster-workspace-yaml"]["data"]["workspace.yaml"])
    [location] = workspace["load_from"]
    [service] = [
        document
        for document in documents
        if document["kind"] == "Service" and document["metadata"]["name"] == location["grpc_server"]["host"]
    ]
    assert service["spec"]["ports"][0]["port"] == location["grpc_server"]["port"] == 4000


@pytest.fixture
def storage(measured_postgres: PostgresServer) -> Iterator[list[str]]:
    """Settings of the chart for a storage of Dagster on a PostgreSQL with a password."""
    measured_postgres.execute(f"CREATE DATABASE {STORAGE}")
    yield [
        "postgresql.postgresqlHost=127.0.0.1",
        f"postgresql.service.port={measured_postgres.port}",
        "postgresql.postgresqlUsername=postgres",
        f"postgresql.postgresqlDatabase={STORAGE}",
    ]
    measured_postgres.execute(f"DROP DATABASE {STORAGE} WITH (FORCE)")


@pytest.fixture
def daemon(
    settings: Settings,
    database: URL,
    storage: list[str],
    measured_postgres: PostgresServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[tuple[Daemon, Any]]:
    """Dagster's daemon with the chart's configuration; its launcher speaks to a stand-in."""
    home = tmp_path / "dagster_home"
    home.mkdir()
    url = URL.create(DAGSTER_DRIVER, "postgres", ADMIN_PASSWORD, "127.0.0.1", measured_postgres.port, STORAGE)
    secret = {
        "CAPACITY_DATABASE_URL": database.render_as_string(hide_password=False),
        "CAPACITY_TIMEZONE": "Asia/Shanghai",
        "DAGSTER_POSTGRES_URL": url.render_as_string(hide_password=False),
        "DAGSTER_PG_PASSWORD": ADMIN_PASSWORD,
        "DAGSTER_HOME": str(home),
        "CAPACITY_HOME": str(settings.home),
    }
    for name, value in {**secret, "DAGSTER_CURRENT_IMAGE": IMAGE}.items():
        monkeypatch.setenv(name, value)
    with kubernetes.cluster(tmp_path, secret) as (cluster, file):
        [configured] = [
            document
            for document in kubernetes.rendered(*storage)
            if document["kind"] == "ConfigMap" and document["metadata"]["name"] == "capacity-dagster-instance"
        ]
        configuration = yaml.safe_load(configured["data"]["dagster.yaml"])
        # Inside a cluster, the interface and its certificate are found by files of the pod.
        configuration["run_launcher"]["config"] |= {"load_incluster_config": False, "kubeconfig_file": str(file)}
        (home / "dagster.yaml").write_text(yaml.safe_dump(configuration))
        with dg.DagsterInstance.from_config(str(home)) as instance, running_daemon(instance) as running:
            yield running, cluster


@pytest.fixture
def fleet(engine: Engine) -> Engine:
    add_instances(engine, [1])
    add_database_sizes(engine, sizes(1, "orders", "2025-03-01", [100, 150]))
    return engine


def test_a_run_is_a_job_with_our_image_and_its_pod_writes_the_figures(
    daemon: tuple[Daemon, Any], fleet: Engine
) -> None:
    running, cluster = daemon
    run = running.request_daily()

    assert running.launch(run).status is dg.DagsterRunStatus.SUCCESS

    [job] = cluster.jobs.values()
    pod = job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert container["image"] == IMAGE
    assert pod["securityContext"]["runAsUser"] == 10001
    assert {"secretRef": {"name": "capacity"}} in container["envFrom"]
    assert {"name": "reports", "mountPath": "/var/lib/capacity/reports"} in container["volumeMounts"]
    assert job["spec"]["ttlSecondsAfterFinished"] == 86400
    assert [row["max_size_mb"] for row in stored(fleet, DATABASE, "daily")] == [150]


def test_a_run_whose_pod_died_is_noticed_and_ended(daemon: tuple[Daemon, Any], fleet: Engine) -> None:
    running, cluster = daemon
    run = running.request_daily()
    with fleet.connect() as blocker:
        # The run waits for this session when it writes.
        blocker.execute(text("LOCK TABLE database_size_aggregations IN ACCESS EXCLUSIVE MODE"))
        running.start(run)
        running.until(run, dg.DagsterRunStatus.STARTED)
        [process] = cluster.processes.values()
        process.kill()
        running.until(run, dg.DagsterRunStatus.FAILURE)

    assert stored(fleet, DATABASE, "daily") == []
