"""The embedded server opened to BI tools: one role, one database, one address, read only, and closed again."""

from __future__ import annotations

import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from capacity_assets.base.errors import CapacityError
from capacity_assets.base.settings import Settings
from capacity_assets.cli.options import CommandFailedError
from capacity_assets.cli.up import _opened_to_sql, _refuse_impossible_ports
from capacity_assets.database.embedded import (
    EmbeddedServerError,
    embedded_server,
    sql_password,
    start_again,
)
from capacity_assets.runtime import open_engine, prepare_database
from tests.command import capacity
from tests.profiles import nightly_except
from tests.servers import free_port

pytestmark = pytest.mark.single_server("starts an embedded server of its own")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sql_port") / "home"
    folder.parent.chmod(0o711)
    return folder


@pytest.fixture
def own(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """Settings for it, with the umask that services have."""
    monkeypatch.setenv("CAPACITY_HOME", str(home))
    before = os.umask(0o077)
    yield Settings()
    os.umask(before)


@pytest.fixture
def port(own: Settings) -> Iterator[int]:
    """The embedded server with its schema, open on this port."""
    free = free_port()
    with embedded_server(own.postgres_data, free):
        with open_engine(own) as engine:
            prepare_database(engine, own)
        with _opened_to_sql(own, free):
            yield free


def login(port: int, password: str, user: str = "capacity_reader", database: str = "capacity") -> str:
    return f"host=127.0.0.1 port={port} user={user} dbname={database} password={password} connect_timeout=5"


def other_addresses() -> set[str]:
    """Addresses of this machine beside 127.0.0.1."""
    named = {str(one[4][0]) for one in socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)}
    return {address for address in named if address != "127.0.0.1"} | {"127.0.0.2"}


def refusal(conninfo: str) -> str:
    with pytest.raises(psycopg.OperationalError) as refused:
        psycopg.connect(conninfo)
    return str(refused.value)


def test_the_reader_reads_the_views_with_the_password_and_writes_nothing(own: Settings, port: int) -> None:
    file = own.home / "sql-password"
    password = file.read_text().strip()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert re.fullmatch(r"[\w-]{32}", password)

    with psycopg.connect(login(port, password), autocommit=True) as connection:
        assert connection.execute("SELECT count(*) FROM capacity_growth").fetchone() == (0,)
        assert connection.execute("SELECT inet_server_addr()::text").fetchone() == ("127.0.0.1/32",)
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            connection.execute("CREATE TABLE public.mine ()")
        # The default of the role is no lock; its rights are.
        connection.execute("SET default_transaction_read_only = off")
        for statement in (
            "CREATE TABLE public.mine ()",
            "CREATE TEMPORARY TABLE mine ()",
            "INSERT INTO capacity_prices DEFAULT VALUES",
            "DELETE FROM database_size_stats",
            "UPDATE capacity_bills SET issue = 1",
            "SELECT * FROM instances",
            "ALTER ROLE capacity_reader SUPERUSER",
            "SELECT pg_read_file('postgresql.conf')",
            "SET ROLE postgres",
            "SELECT lo_from_bytea(0, 'mine')",
            "SELECT lo_create(0)",
            "SELECT lo_creat(-1)",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)


def test_nobody_else_gets_in(own: Settings, port: int) -> None:
    password = (own.home / "sql-password").read_text().strip()

    assert "password authentication failed" in refusal(login(port, "wrong"))
    assert "no pg_hba.conf entry" in refusal(login(port, password, user="postgres"))
    assert "no pg_hba.conf entry" in refusal(login(port, password, database="dagster"))
    assert "no pg_hba.conf entry" in refusal(login(port, password, database="postgres"))
    assert "fe_sendauth: no password supplied" in refusal(login(port, "").replace("password=", ""))
    listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if " 0A " in line]
    assert [address for address in listening if address.endswith(f":{port:04X}")] == [f"0100007F:{port:04X}"]
    assert f":{port:04X} " not in Path("/proc/net/tcp6").read_text()
    for address in other_addresses():
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((address, port), timeout=5)


def test_without_the_option_the_port_is_closed_and_the_role_cannot_log_in(own: Settings, port: int) -> None:
    password = (own.home / "sql-password").read_text().strip()
    with embedded_server(own.postgres_data, port) as server:
        with _opened_to_sql(own, port):
            session = psycopg.connect(login(port, password), autocommit=True)
            with embedded_server(own.postgres_data):
                assert session.execute("SELECT 1").fetchone() == (1,), "others who join leave it open"
        with pytest.raises(psycopg.OperationalError):
            session.execute("SELECT 1")
        session.close()
        assert "authentication failed" in refusal(login(port, password))
        with psycopg.connect(host=server.socket_folder, user="postgres", dbname="capacity") as local:
            assert local.execute("SELECT count(*) FROM capacity_growth").fetchone() == (0,)


def test_what_a_reader_set_for_itself_is_gone_when_the_port_is_opened_again(own: Settings, port: int) -> None:
    password = (own.home / "sql-password").read_text().strip()
    with psycopg.connect(login(port, password), autocommit=True) as connection:
        connection.execute("SET default_transaction_read_only = off")
        connection.execute("ALTER ROLE capacity_reader PASSWORD 'of mine'")
        connection.execute("ALTER ROLE capacity_reader SET statement_timeout = 1")
        connection.execute("ALTER ROLE capacity_reader IN DATABASE capacity SET search_path = nowhere")

    with _opened_to_sql(own, port), psycopg.connect(login(port, password)) as connection:
        assert connection.execute("SHOW statement_timeout").fetchone() == ("0",)
        assert connection.execute("SHOW default_transaction_read_only").fetchone() == ("on",)
        assert connection.execute("SHOW idle_in_transaction_session_timeout").fetchone() == ("10min",)
        assert connection.execute("SELECT count(*) FROM capacity_growth").fetchone() == (0,)


@pytest.mark.nightly("starts further servers")
def test_a_server_that_was_left_open_is_closed_by_the_next_user(own: Settings) -> None:
    port = free_port()
    script = (
        "import os, pathlib, sys; from capacity_assets.database.embedded import embedded_server; "
        "used = embedded_server(pathlib.Path(sys.argv[1]), int(sys.argv[2])); used.__enter__(); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", script, str(own.postgres_data), str(port)], check=False)
    with socket.create_connection(("127.0.0.1", port), timeout=5):
        pass
    _refuse_impossible_ports(own, {"--sql-port": port})
    with pytest.raises(CommandFailedError, match=f"Port {port} on 127.0.0.1 cannot be used"):
        _refuse_impossible_ports(own, {"--sql-port": None, "--port": port})

    with embedded_server(own.postgres_data) as server:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)
        with psycopg.connect(host=server.socket_folder, user="postgres", dbname="capacity") as local:
            assert local.execute("SHOW listen_addresses").fetchone() == ("",)


def kill_server(settings: Settings, left: str | None = None) -> None:
    """Kill the server; then its file is as it was, with another number, or empty."""
    file = settings.postgres_data / "postmaster.pid"
    number = file.read_text().splitlines()[0]
    os.kill(int(number), 9)
    deadline = time.monotonic() + 20
    while Path(f"/proc/{number}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    if left is not None:
        file.write_text(left and file.read_text().replace(number, left, 1))


@pytest.mark.nightly("starts further servers")
@pytest.mark.parametrize("is_slow", [False, True], ids=["gone", "its process is there for another second"])
def test_a_server_that_ended_is_started_again_with_its_port(
    own: Settings, port: int, tmp_path: Path, *, is_slow: bool
) -> None:
    password = (own.home / "sql-password").read_text().strip()
    shutil.copy("/bin/sleep", tmp_path / "postgres")
    slow = subprocess.Popen([tmp_path / "postgres", "1"])
    kill_server(own, left=str(slow.pid) if is_slow else None)

    assert start_again(own.postgres_data, port)
    assert not is_slow or slow.poll() == 0
    slow.wait()
    with psycopg.connect(login(port, password)) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.parametrize(
    "is_cut", nightly_except([False, True], False), ids=["another program has its number", "its file is cut"]
)
def test_after_a_crash_the_server_starts_and_no_other_program_is_ended(own: Settings, *, is_cut: bool) -> None:
    other = subprocess.Popen(["/bin/sleep", "30"])
    for _ in range(2):
        with embedded_server(own.postgres_data) as server:
            with psycopg.connect(host=server.socket_folder, user="postgres", dbname="capacity") as local:
                assert local.execute("SELECT 1").fetchone() == (1,)
            kill_server(own, left="" if is_cut else str(other.pid))

    assert other.poll() is None
    other.kill()
    other.wait()


def test_a_server_in_use_is_not_restarted_for_the_port(own: Settings) -> None:
    with (
        embedded_server(own.postgres_data) as server,
        pytest.raises(EmbeddedServerError, match="in use by another program"),
        embedded_server(own.postgres_data, free_port()),
    ):
        pass
    assert server


def test_the_password_is_that_of_the_variable_or_of_a_file_of_ones_own(tmp_path: Path) -> None:
    first = sql_password(tmp_path, None)
    assert sql_password(tmp_path, None) == first
    assert sql_password(tmp_path, "from the variable").value == "from the variable"
    assert first.value not in repr(first)
    (tmp_path / "sql-password").chmod(0o644)
    with pytest.raises(CapacityError, match="can be read by others"):
        sql_password(tmp_path, None)
    (tmp_path / "sql-password").chmod(0o600)
    if os.geteuid() == 0:
        os.chown(tmp_path / "sql-password", 1234, 1234)
        with pytest.raises(CapacityError, match="belongs to another user"):
            sql_password(tmp_path, None)
        os.chown(tmp_path / "sql-password", 0, 0)
    (tmp_path / "sql-password").write_text("\n")
    with pytest.raises(CapacityError, match="is empty"):
        sql_password(tmp_path, None)


def test_ports_that_cannot_be_opened_are_refused(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = free_port()
    with socket.create_server(("127.0.0.1", taken)):
        one, other = str(free_port()), str(free_port())
        refused = capacity("up", "--port", one, "--pages-port", other, "--sql-port", str(taken))
        assert "but CAPACITY_DATABASE_URL is set" in refused.output
        monkeypatch.delenv("CAPACITY_DATABASE_URL")
        monkeypatch.setenv("CAPACITY_HOME", str(settings.home))
        refused = capacity("up", "--port", one, "--pages-port", other, "--sql-port", str(taken))
        assert (refused.exit_code, str(taken) in refused.output) == (1, True), refused.output
        refused = capacity("up", "--port", one, "--pages-port", other, "--sql-port", other)
        assert f"--pages-port and --sql-port are both {other}." in refused.output
