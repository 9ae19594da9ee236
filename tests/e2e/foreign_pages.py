"""Requests that a page of another site can make a browser send, and the shipped proxy in front of the UI."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import quote

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

ROOT = Path(__file__).resolve().parents[2]
MUTATION = "mutation { setNuxSeen }"
JSON = {"Content-Type": "application/json"}


def answer(
    url: str, headers: Mapping[str, str] | None = None, body: object | None = None, method: str | None = None
) -> int:
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers=dict(headers or {}), method=method)  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=30) as found:  # noqa: S310 -- our own address
            return int(found.status)
    except HTTPError as error:
        return error.code
    except URLError:
        return 0  # nobody listens yet


def questions(host: str, login: Mapping[str, str]) -> dict[str, int]:
    """The requests and the expected responses."""
    base, own = f"http://{host}", {"Origin": f"http://{host}"}
    foreign = {"Origin": "http://evil.example"}
    hidden = quote(MUTATION)
    query, change = {"query": "{ version }"}, {"query": MUTATION}

    def get(path: str, **headers: str) -> int:
        return answer(f"{base}{path}", {**login, **headers})

    def post(body: object, headers: Mapping[str, str], path: str = "/graphql") -> int:
        return answer(f"{base}{path}", {**login, **JSON, **headers}, body)

    return {
        "its page": get("/"),
        "a link from another page": get("/runs", Referer="http://evil.example/", Origin="http://evil.example"),
        "a query of its own page": post(query, own),
        "a query of a script": post(query, {}),
        "a change of its own page": post(change, own),
        "a picture with a change": get(f"/graphql?query={hidden}"),
        "a picture with a hidden change": get(f"/%67raphql?%71uery={hidden}"),
        "a form of another page": post(
            b"", {**foreign, "Content-Type": "text/plain"}, f"/graphql?query={quote(MUTATION)}"
        ),
        "a change of another page": post(change, foreign),
        "a change of a page without origin": post(change, {"Origin": "null"}),
        "a change of another port": post(change, {"Origin": "http://127.0.0.1:9"}),
        "a materialisation of another page": post({}, foreign, "/report_asset_materialization/x"),
        "another name": get("/", Host="evil.example:3000"),
        "a socket of its own page": socket(host, own, login),
        "a socket of another page": socket(host, foreign, login),
    }


def socket(host: str, origin: Mapping[str, str], login: Mapping[str, str]) -> int:
    try:
        with connect(
            f"ws://{host}/graphql",
            origin=origin["Origin"],  # type: ignore[arg-type]
            subprotocols=["graphql-ws"],  # type: ignore[list-item]
            additional_headers=dict(login),
            open_timeout=30,
        ):
            return 200
    except InvalidStatus as refused:
        return refused.response.status_code


TAKEN = {
    "its page", "a link from another page", "a query of its own page", "a query of a script",
    "a change of its own page", "a socket of its own page",
}  # fmt: skip


def nginx() -> str:
    found = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if found is None:
        pytest.skip("no nginx here; see tests/install_servers.sh")
    return found


@contextmanager
def proxy(folder: Path, ports: Mapping[str, int]) -> Iterator[None]:
    """The shipped configuration with other ports, in a separate folder."""
    shipped = (ROOT / "deploy" / "nginx" / "capacity.conf").read_text()
    for known, port in ports.items():
        shipped = shipped.replace(known, str(port))
    temporary = "".join(
        f"{name}_temp_path temporary; " for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;\n" if os.geteuid() == 0 else ""
    configuration = folder / "nginx.conf"
    configuration.write_text(
        f"{user}pid nginx.pid; error_log error.log; daemon off; events {{}}\n"
        f"http {{ access_log off; {temporary}{shipped} }}"
    )
    for who in ("operators", "readers"):
        password = subprocess.run(
            ["openssl", "passwd", "-apr1", f"{who}-Pa55"],  # noqa: S607
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        (folder / f"capacity-{who}").write_text(f"ann:{password}")
    arguments = [nginx(), "-p", f"{folder}/", "-c", str(configuration)]
    with subprocess.Popen(arguments, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()
            process.wait(30)


def login(who: str) -> dict[str, str]:
    from base64 import b64encode

    return {"Authorization": f"Basic {b64encode(f'ann:{who}-Pa55'.encode()).decode()}"}
