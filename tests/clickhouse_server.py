"""A real ClickHouse to be measured, from the folder that tests/fetch_server.sh filled."""

from __future__ import annotations

import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.certificates import Certificates
from tests.servers import BUILD, USER, certificates_in, free_port, give_away, own_folder, wait_for_server

PROGRAM = BUILD / "clickhouse" / "clickhouse-server"
CONFIGURATION = """<yandex>
<logger><level>warning</level><log>{folder}/log</log><errorlog>{folder}/errors</errorlog></logger>
<http_port>{port}</http_port><https_port>{tls_port}</https_port><listen_host>127.0.0.1</listen_host>
<openSSL><server>
<certificateFile>{files.certificate}</certificateFile><privateKeyFile>{files.key}</privateKeyFile>
<verificationMode>none</verificationMode>
</server></openSSL>
<path>{folder}/data/</path><tmp_path>{folder}/tmp/</tmp_path><mark_cache_size>5368709120</mark_cache_size>
<users_config>{folder}/users.xml</users_config>
<default_profile>default</default_profile><default_database>default</default_database>
</yandex>"""
# Logins of this version are in a file.
USERS = """<yandex>
<profiles><default/><readonly><readonly>1</readonly></readonly></profiles><quotas><default/></quotas>
<users>
<default><password/><networks><ip>127.0.0.1</ip></networks><profile>default</profile><quota>default</quota></default>
<capacity_probe><password>{password}</password><networks><ip>127.0.0.1</ip></networks><profile>readonly</profile>
<quota>default</quota></capacity_probe>
</users></yandex>"""


@dataclass
class ClickHouseServer:
    """A ClickHouse on loopback; its user `default` has no password, and `capacity_probe` can only read."""

    folder: Path
    port: int
    tls_port: int
    certificates: Certificates
    process: subprocess.Popen[bytes] | None = field(default=None)

    def start(self) -> None:
        command = [PROGRAM, f"--config-file={self.folder / 'config.xml'}"]
        self.process = subprocess.Popen(command, user=USER, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for_server(lambda: self.execute("SELECT 1"), OSError)

    def execute(self, *statements: str) -> str:
        """Run statements; return the answer to the last one."""
        answer = ""
        for statement in statements:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", statement.encode(), timeout=30) as response:
                answer = response.read().decode()
        return answer

    def file_sizes(self, database: str) -> dict[str, int]:
        """Return the bytes of the parts of each table, from their files on the disk."""
        return {
            table.name: sum(file.stat().st_size for part in table.glob("*_*_*_*") for file in part.iterdir())
            for table in (self.folder / "data" / "data" / database).iterdir()
        }

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(timeout=30)


@contextmanager
def clickhouse_server(password: str) -> Iterator[ClickHouseServer]:
    if not PROGRAM.exists():
        pytest.skip("no ClickHouse here; see tests/install_servers.sh")
    folder = own_folder("measured-clickhouse-")
    try:
        files = certificates_in(folder)
        server = ClickHouseServer(folder, free_port(), free_port(), files)
        names = {"folder": folder, "port": server.port, "tls_port": server.tls_port, "files": files}
        (folder / "config.xml").write_text(CONFIGURATION.format(**names))
        (folder / "users.xml").write_text(USERS.format(password=password))
        for name in ("data", "tmp"):
            (folder / name).mkdir()
            give_away(folder / name)
        server.start()
        try:
            yield server
        finally:
            server.kill()
    finally:
        shutil.rmtree(folder)
