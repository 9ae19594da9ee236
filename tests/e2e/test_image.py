"""The steps of the Dockerfile, run in a clean Debian instead of a container, and every role run in the result.

Needs root, debootstrap and some minutes, so `make test-image` runs it and `make test` does not.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.documents import ROOT
from tests.e2e.stack import wait_for
from tests.servers import ADMIN_PASSWORD, free_port, postgres_server

pytestmark = pytest.mark.skipif(
    "CAPACITY_TEST_IMAGE" not in os.environ or os.geteuid() != 0 or shutil.which("debootstrap") is None,
    reason="`make test-image`, as root and with debootstrap",
)
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "compose" / "compose.yaml").read_text())
DOCKERFILE = ROOT / "deploy" / "compose" / "Dockerfile"
STATE = "var/lib/capacity"


class Image:
    """A root file system, with folder, user and variables of the Dockerfile."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder, self.user = "/", "0"
        self.variables = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/var/lib/capacity",
        }

    def command(self, command: str, variables: dict[str, str], *, read_only: bool) -> list[str]:
        """Return the arguments that run a shell command inside, with separate mounts."""
        root = shlex.quote(str(self.root))
        mounts = [f"mount --bind {root} {root}"]
        if read_only:
            mounts += [
                f"mount --bind {root}/{STATE} {root}/{STATE}",
                f"mount -o remount,ro,bind {root}",
                f"mount -t tmpfs tmpfs {root}/tmp",  # noqa: S108 -- not of this machine
            ]
        mounts += [f"mount --rbind /dev {root}/dev", f"mount -t proc proc {root}/proc"]
        known = [f"{name}={value}" for name, value in {**self.variables, **variables}.items()]
        inside = shlex.join(["env", "-i", *known, "sh", "-c", f"cd {self.folder} && {command}"])
        chroot = f"exec chroot --userspec={self.user}:{self.user} {root} {inside}"
        return ["unshare", "--mount", "sh", "-c", " && ".join([*mounts, chroot])]

    def run(self, command: str, *, read_only: bool = False, **variables: str) -> str:
        done = subprocess.run(
            self.command(command, variables, read_only=read_only), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout

    def build(self) -> None:
        """Run the steps of the Dockerfile; its base image exists."""
        lines = re.sub(r"\\\n", " ", DOCKERFILE.read_text()).splitlines()
        # As this machine reaches a package registry.
        ways = ("PIP_INDEX", "PIP_EXTRA_INDEX", "PIP_CERT", "PIP_TRUSTED", "http", "HTTP")
        registry = {name: value for name, value in os.environ.items() if name.startswith(ways)}
        for instruction, _, rest in (line.partition(" ") for line in lines if line and not line.startswith("#")):
            match instruction:
                case "ARG" | "ENV":
                    self.variables |= dict(word.split("=", 1) for word in shlex.split(rest))
                case "WORKDIR":
                    self.folder = rest
                    (self.root / rest.lstrip("/")).mkdir(parents=True)
                case "COPY":
                    *sources, target = rest.split()
                    for source in sources:
                        destination = self.root / target.lstrip("/")
                        if (ROOT / source).is_dir():
                            shutil.copytree(ROOT / source, destination, ignore=shutil.ignore_patterns("__pycache__"))
                        else:
                            shutil.copy(ROOT / source, destination)
                case "USER":
                    self.user = rest
                case "RUN":
                    self.run(f"set -e; {rest}", **(registry if "pip " in rest else {}))
                case _:
                    assert instruction in {"FROM", "CMD"}, instruction


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    """The result of the Dockerfile on a Debian with Python, in place of the official image of Python."""
    assert re.search(r"^FROM python:3\.13-slim-trixie$", DOCKERFILE.read_text(), re.MULTILINE)
    base = Path(os.environ["CAPACITY_TEST_IMAGE"])
    if not base.exists():
        packages, unfinished = "--include=python3,python3-venv,ca-certificates", base.with_suffix(".unfinished")
        subprocess.run(["debootstrap", "--variant=minbase", packages, "trixie", unfinished], check=True)  # noqa: S607
        unfinished.rename(base)
    # Not in the folder of the tests, which may be memory.
    root = Path(tempfile.mkdtemp(prefix="image-", dir=base.parent))
    subprocess.run(["cp", "-a", f"{base}/.", str(root)], check=True)  # noqa: S607
    root.chmod(0o755)
    # Python and pip where the official image has them.
    subprocess.run(["chroot", str(root), "python3", "-m", "venv", "/usr/local"], check=True)  # noqa: S607
    for name in ("etc/resolv.conf", "etc/pip.conf", "etc/ssl/certs/ca-certificates.crt"):
        if Path("/", name).exists():
            shutil.copy(Path("/", name), root / name)
    (root / "etc/hosts").write_text("127.0.0.1 localhost code-location\n")
    try:
        built = Image(root)
        built.build()
        yield built
    finally:
        shutil.rmtree(root)


def test_the_image_has_every_driver_the_licence_and_no_sources_and_runs_as_nobody_else(image: Image) -> None:
    assert image.user == COMPOSE["x-capacity"]["user"] == "10001"
    here = image.run("ls -A").split()
    assert sorted(here) == ["LICENSE", "constraints.txt", "dagster.yaml", "workspace.yaml"]
    where = image.run("python -c 'import capacity_assets; print(capacity_assets.__file__)'")
    assert where.startswith("/usr/local/lib/python3")
    image.run("python -c 'import oracledb, pytds, pymysql, pyarrow, python_calamine, dagster_k8s'")
    assert image.run("id -u; id -g").split() == ["10001", "10001"]
    assert "Usage: capacity" in image.run("capacity --help")


@contextmanager
def started(image: Image, command: str, variables: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a role until the end of the block. The process is the program itself, not a wrapper."""
    with log.open("wb") as output:
        arguments = image.command(f"exec {command}", variables, read_only=True)
        process = subprocess.Popen(arguments, stdout=output, stderr=output)
        try:
            yield process
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def test_every_role_runs_from_the_one_image_read_only_and_says_that_it_is_well(image: Image, tmp_path: Path) -> None:
    ports = {"4000": str(free_port()), "3000": str(free_port()), "3001": str(free_port())}

    def with_ports(text: str) -> str:
        return re.sub(r"\b(4000|3000|3001)\b", lambda found: ports[found[0]], text)

    workspace = image.root / "opt/capacity/workspace.yaml"
    workspace.write_text(with_ports(workspace.read_text()))
    with postgres_server(tls=False) as server, ExitStack() as stack:
        # A superuser may become the role that can only read; on a server of one's own its owner makes it.
        server.execute("CREATE DATABASE capacity", "CREATE DATABASE dagster", "CREATE ROLE capacity_reader")
        address = f"postgres:{ADMIN_PASSWORD}@127.0.0.1:{server.port}"
        variables = {
            "CAPACITY_DATABASE_URL": f"postgresql://{address}/capacity",
            "CAPACITY_WEB_DATABASE_URL": f"postgresql://{address}/capacity",
            "DAGSTER_POSTGRES_URL": f"postgresql+psycopg2://{address}/dagster",
            "SERVER_PASSWORD": ADMIN_PASSWORD,
        }
        image.run("capacity init", read_only=True, **variables)
        add = "capacity instances add pg --engine postgresql --host 127.0.0.1 --username postgres --password-from"
        image.run(f"{add} env:SERVER_PASSWORD --port {server.port}", read_only=True, **variables)
        assert "1 of 1 server measured" in image.run("capacity collect", read_only=True, **variables)

        def is_well(test: list[str]) -> bool:
            command = with_ports(shlex.join(test))
            asked = subprocess.run(image.command(command, variables, read_only=True), capture_output=True, check=False)
            return asked.returncode == 0

        for name, service in COMPOSE["services"].items():
            process = stack.enter_context(
                started(image, with_ports(service["command"]), variables, tmp_path / f"{name}.log")
            )
            wait_for(
                lambda test=service["healthcheck"]["test"][1:], process=process: is_well(test) or process.poll(),
                f"{name} to be well",
            )
            assert process.poll() is None, (tmp_path / f"{name}.log").read_text()
