"""The deployment on Kubernetes as far as a machine without one can show it.

`CAPACITY_TEST_DAGSTER_CHART` names the folder of Dagster's own chart, which `helm` renders with our values. A stand-in
for the interface of Kubernetes, which cannot run here, takes the jobs of Dagster's launcher, checks them against the
published schema, and executes each container's command as a process of this machine.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

VARIABLE = "CAPACITY_TEST_DAGSTER_CHART"
VALUES = Path(__file__).resolve().parents[1] / "deploy" / "kubernetes" / "values.yaml"
VERSIONS = ("1.30", "1.33", "1.37")
Document = dict[str, Any]


def rendered(*settings: str) -> list[Document]:
    """What Helm sends to Kubernetes for our values and further settings, each `path=value`."""
    helm = shutil.which("helm")
    assert helm, "no helm on the path"
    # The chart's schema of values is looked up at another site.
    command = [helm, "template", "capacity", os.environ[VARIABLE], "--skip-schema-validation", "--values", str(VALUES)]
    command += [word for setting in settings for word in ("--set", setting)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def check(document: Document) -> None:
    """Fail where a document says what Kubernetes does not know."""
    for version in VERSIONS:
        kubernetes_validate.validate(document, version, strict=True)


class Cluster(ThreadingHTTPServer):
    """The jobs of one namespace, each executed here; `variables` are those of the secret."""

    def __init__(self, variables: dict[str, str]) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.variables = variables
        self.jobs: dict[str, Document] = {}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, job: Document) -> None:
        """Execute a job's only container."""
        check(job)
        [container] = job["spec"]["template"]["spec"]["containers"]
        variables = {variable["name"]: variable.get("value", "") for variable in container["env"]}
        # Those that Kubernetes takes from a secret.
        variables = {name: value for name, value in variables.items() if name not in self.variables}
        name = job["metadata"]["name"]
        self.jobs[name] = job
        self.processes[name] = subprocess.Popen(
            [str(Path(sys.executable).parent / container["args"][0]), *container["args"][1:]],
            env={**os.environ, **variables, **self.variables},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def status(self, name: str) -> Document:
        """A job as Kubernetes describes it."""
        code = self.processes[name].poll()
        counts = {"active": code is None, "succeeded": code == 0, "failed": code not in (None, 0)}
        return {**self.jobs[name], "status": {state: int(is_so) for state, is_so in counts.items() if is_so}}


class _Answers(BaseHTTPRequestHandler):
    server: Cluster

    def do_POST(self) -> None:
        job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.start(job)
        self._answer(job)

    def do_GET(self) -> None:
        name = self.path.partition("/jobs/")[2].partition("/")[0].partition("?")[0]
        self._answer(self.server.status(name))

    def _answer(self, document: Document) -> None:
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None:
        """Stay silent."""


@contextmanager
def cluster(folder: Path, variables: dict[str, str]) -> Iterator[tuple[Cluster, Path]]:
    """A stand-in that listens, and the file by which clients find it."""
    with Cluster(variables) as serving:
        thread = threading.Thread(target=serving.serve_forever, daemon=True)
        thread.start()
        address = f"http://127.0.0.1:{serving.server_port}"
        file = folder / "kubeconfig.yaml"
        file.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "test",
                    "clusters": [{"name": "test", "cluster": {"server": address}}],
                    "users": [{"name": "test", "user": {}}],
                    "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
                }
            )
        )
        try:
            yield serving, file
        finally:
            for process in serving.processes.values():
                process.kill()
                process.wait()
            serving.shutdown()
            thread.join()
