"""The values for Dagster's chart say what dagster.yaml says, and name what this version is."""

from __future__ import annotations

import inspect
import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

from capacity_assets.base.settings import Settings
from capacity_assets.cli.serve import serve
from capacity_assets.runtime import open_reading_engine, open_runs_engine

ROOT = Path(__file__).resolve().parents[2]
VALUES: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "kubernetes" / "values.yaml").read_text())


def snake(value: Any) -> Any:
    """The keys of a setting as Dagster writes them."""
    if not isinstance(value, dict):
        return value
    return {"".join(f"_{c.lower()}" if c.isupper() else c for c in key): snake(one) for key, one in value.items()}


def test_the_instance_on_kubernetes_is_configured_as_elsewhere() -> None:
    daemon = VALUES["dagsterDaemon"]
    retention = snake(VALUES["retention"])
    assert retention.pop("enabled") is True
    concurrency = snake(VALUES["concurrency"])
    assert concurrency.pop("enabled") is True
    retries = snake(daemon["runRetries"])
    said = {
        "run_coordinator": daemon["runCoordinator"]["config"]["customRunCoordinator"],
        "run_monitoring": snake(daemon["runMonitoring"]),
        "run_retries": retries,
        "retention": retention,
        "concurrency": concurrency,
        "python_logs": {
            "managed_python_loggers": VALUES["pythonLogs"]["managedPythonLoggers"],
            "python_log_level": VALUES["pythonLogs"]["pythonLogLevel"],
        },
        "telemetry": VALUES["telemetry"],
        **VALUES["additionalInstanceConfig"],
    }

    shipped = yaml.safe_load((ROOT / "dagster.yaml").read_text())
    assert shipped.pop("storage")
    assert said == shipped


def test_image_and_chart_are_of_this_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines())

    assert VALUES["dagsterDaemon"]["image"]["tag"] == project["version"]
    assert f"--version {pinned['dagster']} " in (ROOT / "deploy" / "kubernetes" / "values.yaml").read_text()
    assert pinned["dagster-k8s"] == pinned["dagster-postgres"]


def settings_of(function: Any) -> set[str]:
    """The fields of the settings that a function reads, also through their properties."""
    read: set[str] = set()
    for name in re.findall(r"\b(?:settings|self)\.(\w+)", inspect.getsource(function)):
        found = getattr(Settings, name, None)
        read |= settings_of(found.fget) if isinstance(found, property) else {name}
    return read & Settings.model_fields.keys()


def test_the_pages_are_given_every_setting_that_they_read_and_no_address_of_another_role() -> None:
    [pod] = [one["spec"]["template"]["spec"] for one in VALUES["extraManifests"] if of_the_pages(one)]
    given = {one["name"] for one in pod["containers"][0]["env"]}

    read = settings_of(serve.callback) | settings_of(open_runs_engine) | settings_of(open_reading_engine)
    variables = {Settings.model_fields[name].validation_alias for name in read}
    assert given == variables - {"CAPACITY_DATABASE_URL", "DAGSTER_POSTGRES_URL", "CAPACITY_HOME"}


def of_the_pages(manifest: dict[str, Any]) -> bool:
    return bool(manifest["kind"] == "Deployment" and manifest["metadata"]["name"] == "capacity-pages")


def test_only_the_web_server_of_ours_may_ask_kubernetes_and_no_probe_needs_a_login() -> None:
    pods = {
        one["metadata"]["name"]: one["spec"]["template"]["spec"]
        for one in VALUES["extraManifests"]
        if one["kind"] in {"Deployment", "Job"}
    }
    asking = {name for name, pod in pods.items() if pod["automountServiceAccountToken"]}
    assert asking == {"capacity-webserver"}
    assert "tcpSocket" in pods["capacity-pages"]["containers"][0]["livenessProbe"]
    assert all(pod["imagePullSecrets"] == VALUES["imagePullSecrets"] for pod in pods.values())
