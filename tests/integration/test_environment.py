"""Faults of the environment: files, folders, variables, limits, sockets and terminals, each reported in a sentence.

The faults that the commands refuse are the table of docs/faults.md; a test holds the two together.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from capacity_assets.base import declarations
from capacity_assets.database.embedded import _why_not_started, embedded_server
from tests.forked import run_forked
from tests.servers import free_port, silent_socket

ROOT = Path(__file__).resolve().parents[2]


# Enough for what starts a server and refuses.
PATIENCE_SECONDS = 60


@dataclass(frozen=True)
class Answer:
    """What a command printed, and its exit code."""

    code: int
    output: str
    error: str


def new_interpreter(
    folder: Path,
    *arguments: str,
    limit: tuple[int, int] | None = None,
    stdout: int = subprocess.PIPE,
    **variables: str,
) -> Answer:
    """Run a command by a new interpreter in a folder, with a data folder there and a limit of the operating system."""

    def limited() -> None:
        if limit:
            number, most = limit
            resource.setrlimit(number, (most, most))

    done = subprocess.run(
        [sys.executable, "-m", "capacity_assets.cli", *arguments],
        cwd=folder,
        env=environment(folder, variables),
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=PATIENCE_SECONDS,
        preexec_fn=limited,
        check=False,
    )
    return Answer(done.returncode, done.stdout or "", done.stderr)


def environment(folder: Path, variables: Mapping[str, str]) -> dict[str, str]:
    # Fixtures of a module begin before a test's own variables are set.
    return {
        "CAPACITY_TIMEZONE": "Asia/Shanghai",
        "CAPACITY_HOME": str(folder / "home"),
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        **variables,
    }


def capacity(folder: Path, *arguments: str, output: Path | None = None, umask: int = 0o022, **variables: str) -> Answer:
    """Run a command in a folder, with a data folder there."""
    done = run_forked(
        *arguments,
        environment=environment(folder, variables),
        timeout=PATIENCE_SECONDS,
        folder=folder,
        output=output,
        umask=umask,
    )
    return Answer(done.returncode, done.stdout, done.stderr)


Breaking = Callable[[Path, Path], Answer]


@dataclass(frozen=True)
class Fault:
    """A fault: how it comes about, what is said, and the exit code."""

    name: str
    says: str
    code: int
    breaking: Breaking


FAULTS: list[Fault] = []


def fault(name: str, *, says: str, code: int) -> Callable[[Breaking], Breaking]:
    """Enter a function that breaks something in a folder, given a data folder with a server, and returns the answer."""

    def entered(breaking: Breaking) -> Breaking:
        FAULTS.append(Fault(name, says, code, breaking))
        return breaking

    return entered


@contextmanager
def read_only(folder: Path) -> Iterator[Path]:
    """A folder in which nothing can be written while the block lasts."""
    if os.geteuid() != 0:
        folder.chmod(0o555)
        try:
            yield folder
        finally:
            folder.chmod(0o755)
        return
    _mount("--bind", str(folder), str(folder))
    try:
        _mount("-o", "remount,bind,ro", str(folder))
        yield folder
    finally:
        _unmount(folder)


@contextmanager
def small_device(size_mb: int) -> Iterator[Path]:
    """A folder on a device of its own, which is soon full; its path is short enough for a socket."""
    if os.geteuid() != 0:
        pytest.skip("mounting a device needs root")
    folder = Path(tempfile.mkdtemp(prefix="device-"))
    try:
        _mount("-t", "tmpfs", "-o", f"size={size_mb}m,mode=755", "tmpfs", str(folder))
        try:
            yield folder
        finally:
            _unmount(folder)
    finally:
        folder.rmdir()


def _mount(*arguments: str) -> None:
    done = subprocess.run(["/bin/mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")


def _unmount(folder: Path) -> None:
    subprocess.run(["/bin/umount", "--lazy", str(folder)], check=True)


@fault(
    "`CAPACITY_START_DATE` near the end of the calendar",
    says="'9999-12-31' is after 2999-12-31; write the first day with samples",
    code=2,
)
def _(folder: Path, _home: Path) -> Answer:
    return capacity(folder, "status", CAPACITY_START_DATE="9999-12-31")


@fault(
    "a data folder that others can write",
    says="can be written by every user of this machine. Files in it are trusted, and some are executed. Look for files",
    code=1,
)
def _(folder: Path, _home: Path) -> Answer:
    (folder / "home").mkdir()
    (folder / "home").chmod(0o777)
    return capacity(folder, "init")


@fault("Dagster's folder in it that a group can write", says="can be written by its group. Files", code=1)
def _(folder: Path, _home: Path) -> Answer:
    dagster = folder / "home" / "dagster"
    dagster.mkdir(parents=True)
    dagster.chmod(0o770)
    return capacity(folder, "up")


@fault("a link where `capacity up` keeps its lock", says="is a symbolic link.", code=1)
def _(folder: Path, _home: Path) -> Answer:
    (folder / "home" / "dagster").mkdir(parents=True)
    (folder / "home" / "dagster" / "up.lock").symlink_to(folder / "elsewhere")
    answer = capacity(folder, "up")
    assert not (folder / "elsewhere").exists()
    return answer


@fault("a variable that is misspelt", says="Did you mean CAPACITY_TIMEZONE?", code=2)
def _(folder: Path, _home: Path) -> Answer:
    (folder / ".env").write_text("CAPACITY_TIMEZOEN=UTC\n")
    return capacity(folder, "status")


@fault("`.env` in UTF-16", says="is in UTF-16, as some editors write it. Save it as UTF-8.", code=2)
def _(folder: Path, _home: Path) -> Answer:
    (folder / ".env").write_text("CAPACITY_TIMEZONE=UTC\n", encoding="utf-16")
    return capacity(folder, "status")


@fault("`.env` that is not text", says="is not UTF-8 text. Save it as UTF-8.", code=2)
def _(folder: Path, _home: Path) -> Answer:
    (folder / ".env").write_bytes(bytes(range(256)))
    return capacity(folder, "check")


@fault("`.env` that is a folder", says="is not a file. Rename it, or start capacity in another folder.", code=2)
def _(folder: Path, _home: Path) -> Answer:
    (folder / ".env").mkdir()
    return capacity(folder, "up")


@fault("`.env` with a line that is no variable", says="is not NAME=value.", code=2)
def _(folder: Path, _home: Path) -> Answer:
    (folder / ".env").write_text("CAPACITY_COLLECTION=off\nCAPACITY_TIMEZONE UTC\n")
    return capacity(folder, "status")


@fault("`CAPACITY_HOME` with a name too long for the file system", says="cannot be used: File name too long", code=2)
def _(folder: Path, _home: Path) -> Answer:
    return capacity(folder, "status", CAPACITY_HOME=str(folder / ("x" * 300)))


@fault("`CAPACITY_HOME` below a file", says="cannot be created (Not a directory)", code=1)
def _(folder: Path, _home: Path) -> Answer:
    (folder / "file").touch()
    return capacity(folder, "init", CAPACITY_HOME=str(folder / "file" / "home"))


@fault("a file where the data of the embedded server should be", says="did not start: [Errno 17] File exists", code=1)
def _(folder: Path, _home: Path) -> Answer:
    (folder / "home").mkdir()
    (folder / "home" / "postgres").touch()
    return capacity(folder, "init")


@fault(
    "`CAPACITY_HOME` that became read-only",
    says="and the embedded PostgreSQL does not work without that.",
    code=1,
)
def _(folder: Path, home: Path) -> Answer:
    with read_only(home):
        return capacity(folder, "status", CAPACITY_HOME=str(home))


@fault("`capacity up` on a read-only folder", says="dagster: ", code=1)
def _(folder: Path, home: Path) -> Answer:
    with read_only(home):
        return capacity(folder, "up", CAPACITY_HOME=str(home))


@fault(
    "a device that is full while the embedded server is made",
    says="did not start: no space left on device. A new one needs 100 MB, the demo 400 MB.",
    code=1,
)
def _(folder: Path, _home: Path) -> Answer:
    with small_device(10) as device:
        return capacity(folder, "init", CAPACITY_HOME=str(device / "home"))


@fault("a locale that the machine does not have", says="initdb: error: invalid locale settings", code=1)
def _(folder: Path, _home: Path) -> Answer:
    return new_interpreter(folder, "init", LC_ALL="xx_YY.UTF-8")


@fault(
    "too few open files for the embedded server",
    says="insufficient file descriptors available to start server process",
    code=1,
)
def _(folder: Path, home: Path) -> Answer:
    return new_interpreter(folder, "status", CAPACITY_HOME=str(home), limit=(resource.RLIMIT_NOFILE, 20))


@fault("too little memory for the embedded server", says="Cannot allocate memory", code=1)
def _(folder: Path, home: Path) -> Answer:
    return new_interpreter(folder, "status", CAPACITY_HOME=str(home), limit=(resource.RLIMIT_AS, 170_000_000))


@fault("output that cannot be written", says="No space left on device. Free some space.", code=1)
def _(folder: Path, home: Path) -> Answer:
    return capacity(folder, "status", CAPACITY_HOME=str(home), output=Path("/dev/full"))


@fault("an import of a file without line breaks", says="is not CSV: a line is longer than 131,072 characters", code=2)
def _(folder: Path, home: Path) -> Answer:
    (folder / "long.csv").write_text("x" * (declarations.LONGEST_LINE + 1))
    return capacity(folder, "import", "long.csv", CAPACITY_HOME=str(home))


@fault("an import of a file with one endless line", says="cannot be read past row 1: a line is longer", code=2)
def _(folder: Path, home: Path) -> Answer:
    row = "db-1,orders,2025-01-01,1\n"
    (folder / "long.csv").write_text(
        f"server,database,day,size_mb\n{row}{'x' * (declarations.LONGEST_LINE + 1)}\n{row}"
    )
    return capacity(folder, "import", "long.csv", CAPACITY_HOME=str(home))


@fault("an import of a damaged workbook", says="is not an .xlsx workbook that can be read", code=2)
def _(folder: Path, home: Path) -> Answer:
    (folder / "sizes.xlsx").write_bytes(b"PK\x03\x04" + bytes(60))
    return capacity(folder, "import", "sizes.xlsx", CAPACITY_HOME=str(home))


@fault("servers of a workbook", says="Save the sheet as CSV UTF-8.", code=2)
def _(folder: Path, home: Path) -> Answer:
    (folder / "servers.xlsx").write_bytes(b"PK\x03\x04" + bytes(60))
    return capacity(folder, "instances", "import", "servers.xlsx", CAPACITY_HOME=str(home))


@fault("an import of a file that is not text", says="is not CSV: it contains bytes that are not text", code=2)
def _(folder: Path, home: Path) -> Answer:
    (folder / "environ").write_bytes(b"PATH=/usr/bin\0TOKEN=hunter2-very-secret")
    return capacity(folder, "import", "environ", CAPACITY_HOME=str(home))


@fault("an import of a file of passwords", says="It has 'hunt...'.", code=2)
def _(folder: Path, home: Path) -> Answer:
    (folder / "passwords").write_text("hunter2-very-secret\nanother\n")
    return capacity(folder, "import", "passwords", CAPACITY_HOME=str(home))


@fault("an import of a folder", says="does not exist or is not a file.", code=2)
def _(folder: Path, home: Path) -> Answer:
    return capacity(folder, "import", str(folder), CAPACITY_HOME=str(home))


@fault("a file over 64 MiB in place of a TOML file", says="cannot be read: it is larger than 64 MiB.", code=2)
def _(folder: Path, home: Path) -> Answer:
    with (folder / "servers.toml").open("wb") as file:
        file.truncate(65 << 20)
    return capacity(folder, "instances", "import", "servers.toml", CAPACITY_HOME=str(home))


@fault("a database host that has no address", says="failed to resolve host", code=1)
def _(folder: Path, _home: Path) -> Answer:
    return capacity(folder, "status", CAPACITY_DATABASE_URL="postgresql://dba@no.such.host.invalid/capacity")


@fault("a database that refuses connections", says="Connection refused.", code=1)
def _(folder: Path, _home: Path) -> Answer:
    return capacity(folder, "status", CAPACITY_DATABASE_URL="postgresql://dba@127.0.0.1:1/capacity")


@fault(
    "a database that takes connections and never answers",
    says="connection timeout expired.",
    code=1,
)
def _(folder: Path, _home: Path) -> Answer:
    with silent_socket() as port:
        address = f"postgresql://dba@127.0.0.1:{port}/capacity?connect_timeout=2"
        return capacity(folder, "status", CAPACITY_DATABASE_URL=address)


@fault("a Redis that takes connections and never answers", says="Redis does not answer", code=1)
def _(folder: Path, home: Path) -> Answer:
    with silent_socket() as port:
        url = f"redis://127.0.0.1:{port}/0"
        return capacity(folder, "aggregate", "--period", "daily", CAPACITY_HOME=str(home), CAPACITY_REDIS_URL=url)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with an embedded server and the schema."""
    folder = tmp_path_factory.mktemp("environment")
    folder.chmod(0o711)
    made = folder / "home"
    with embedded_server(made / "postgres"):
        assert capacity(folder, "init").code == 0
    return made


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_gets_one_sentence_and_no_traceback(fault: Fault, home: Path, tmp_path: Path) -> None:
    answer = fault.breaking(tmp_path, home)

    said = answer.output + answer.error
    assert fault.says in " ".join(said.split())
    assert answer.code == fault.code
    assert "Traceback" not in said
    assert "hunter2" not in said


def test_the_table_of_faults_is_the_one_that_is_tested() -> None:
    rows = [line.split(" | ") for line in (ROOT / "docs" / "faults.md").read_text().splitlines() if "| `" in line[:200]]
    table = [(row[0].removeprefix("| "), row[1].strip("`"), int(row[2])) for row in rows if row[2].strip().isdigit()]

    assert table == [(fault.name, fault.says, fault.code) for fault in FAULTS]


def test_after_the_faults_everything_is_as_it_was(home: Path, tmp_path: Path) -> None:
    answer = capacity(tmp_path, "status", CAPACITY_HOME=str(home))

    assert answer.code == 0
    assert "There are no samples yet." in answer.output


@pytest.mark.nightly("starts many interpreters")
def test_strange_terminals_and_environments_do_no_harm(home: Path, tmp_path: Path) -> None:
    strange = {"TMPDIR": "/nonexistent", "PATH": "", "HOME": "/nonexistent", "COLUMNS": "10", "TERM": "dumb"}
    ascii_only = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}

    answer = new_interpreter(tmp_path, "status", CAPACITY_HOME=str(home), **strange, **ascii_only)

    assert answer.code == 0
    assert "There are no samples yet." in " ".join(answer.output.split())
    assert not answer.error


@pytest.mark.nightly("starts many interpreters")
def test_a_reader_that_goes_away_is_no_failure(home: Path, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        answer = new_interpreter(tmp_path, "status", CAPACITY_HOME=str(home), stdout=writing)
    finally:
        os.close(writing)

    assert "Traceback" not in answer.error


@pytest.mark.nightly("starts further servers")
def test_whatever_the_umask_what_is_made_in_the_data_folder_is_for_its_owner_alone(tmp_path: Path) -> None:
    answer = capacity(tmp_path, "init", umask=0)
    with silent_socket() as port:
        refused = capacity(tmp_path, "up", "--port", str(port), umask=0)

    assert answer.code == 0
    assert "cannot be used" in refused.error
    home = tmp_path / "home"
    # As root, the server's user passes through.
    assert home.stat().st_mode & 0o777 == (0o711 if os.geteuid() == 0 else 0o700)
    assert (home / "postgres").resolve().stat().st_mode & 0o077 == 0
    made = [home / "dagster", home / "dagster" / "up.lock", home / "postgres.users.lock"]
    assert [path.stat().st_mode & 0o022 for path in made] == [0, 0, 0]
    assert made[1].stat().st_mode & 0o077 == 0


@pytest.mark.usefixtures("sample")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_a_file_that_somebody_names_has_the_rights_that_their_umask_leaves(
    tmp_path: Path, umask: int, mode: int
) -> None:
    file = tmp_path / "sizes.csv"

    exported = capacity(tmp_path, "export", "--period", "daily", "--output", str(file), umask=umask)

    assert exported.code == 0, exported.error
    assert file.stat().st_mode & 0o777 == mode


@pytest.mark.nightly("starts a stack")
def test_the_log_of_up_is_not_written_through_a_link(tmp_path: Path) -> None:
    letter = tmp_path / "letter"
    letter.write_text("for me alone")
    (tmp_path / "home" / "dagster").mkdir(mode=0o700, parents=True)
    (tmp_path / "home" / "dagster" / "up.log").symlink_to(letter)

    refused = capacity(tmp_path, "up", "--port", str(free_port()), "--pages-port", str(free_port()))

    assert refused.code == 1
    assert "up.log is a symbolic link. Remove the link." in refused.error
    assert letter.read_text() == "for me alone"


@pytest.mark.nightly("starts a further interpreter")
def test_a_virtual_environment_called_env_is_left_alone(home: Path, tmp_path: Path) -> None:
    (tmp_path / ".env").mkdir()
    (tmp_path / ".env" / "pyvenv.cfg").touch()

    assert capacity(tmp_path, "status", CAPACITY_HOME=str(home)).code == 0


def test_a_server_elsewhere_is_looked_at_from_a_folder_in_which_nothing_can_be_written(
    settings: object,  # noqa: ARG001 -- sets the address of a database
    tmp_path: Path,
) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    address = os.environ["CAPACITY_DATABASE_URL"]
    with read_only(folder):
        status, check = (
            capacity(folder, command, CAPACITY_HOME=str(folder / "home"), DAGSTER_POSTGRES_URL=address)
            for command in ("status", "check")
        )

    assert (status.code, "There are no samples yet." in status.output) == (0, True)
    assert "no partition" not in check.output
    assert not status.error + check.error


def test_the_reason_why_the_embedded_server_did_not_start_ends_with_one_full_stop(tmp_path: Path) -> None:
    failed = subprocess.CalledProcessError(1, ["pg_ctl", "start"])
    assert "returned non-zero exit status 1. Its data was kept." in _why_not_started(tmp_path, failed, [])


def test_a_full_device_is_told_although_the_log_of_the_server_cannot_be_written() -> None:
    with small_device(1) as device:
        with suppress(OSError), (device / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

        why = _why_not_started(device, RuntimeError("pg_ctl: could not start server"), [])

    assert "did not start: no space left on device" in why
    assert "pg_ctl" in _why_not_started(device, RuntimeError("pg_ctl: could not start server"), [])
