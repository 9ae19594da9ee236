"""`/api/v1`: the JSON of the pages by a contract that validators, a generated client and every answer agree with."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from capacity_assets.web import reader
from capacity_assets.web.reader import OF_FILES, PageQuery
from capacity_assets.web.routes import PAGE_OF, PAGES, PARAMETERS
from tests.documents import ROOT
from tests.pages import Pages, header
from tests.pages_fleet import ADDRESSES, GROWING, filled

PREPARED = {"pages": filled}
NAMES = Path(__file__).parents[1] / "sample" / "api_v1.txt"
DOCUMENT = "/api/v1/openapi.json"


def in_api(address: str) -> str:
    """The address of a page's answer."""
    path, _, query = address.partition("?")
    return f"/api/v1/{PAGE_OF[path].name}" + (f"?{query}" if query else "")


def test_the_description_is_openapi_and_every_answer_is_as_described(pages: Pages) -> None:
    document = pages.ask(DOCUMENT).json
    assert document["openapi"] == "3.1.0"
    assert list(OpenAPIV31SpecValidator(document).iter_errors()) == []
    assert set(document["paths"]) == {f"/api/v1/{page.name}" for page in PAGES}

    for address in ADDRESSES:
        answer = pages.ask(in_api(address))
        assert (answer.status, header(answer, "content-type")) == (200, "application/json"), address
        described = document["paths"][in_api(address).partition("?")[0]]["get"]["responses"]["200"]
        schema = described["content"]["application/json"]["schema"]
        validator = Draft202012Validator({**schema, "components": document["components"]})
        assert [error.message for error in validator.iter_errors(answer.json)] == [], address
        assert answer.json == pages.document(address), "what the page shows"
        first = next(iter(answer.json))
        lacking = {name: value for name, value in answer.json.items() if name != first}
        assert [error.message for error in validator.iter_errors(lacking)] == [f"{first!r} is a required property"]


def test_fields_are_described_by_their_docstrings_and_none_is_left_out(pages: Pages) -> None:
    schemas = pages.ask(DOCUMENT).json["components"]["schemas"]

    runway = schemas["StoredRunway"]
    said = "Whether limits, steps or plans of its server were declared after the forecast."
    assert runway["properties"]["is_outdated"] == {"type": "boolean", "description": said}
    assert runway["properties"]["volumes"]["description"].startswith("Volumes on which it grows"), "also inherited ones"
    assert set(runway["required"]) == set(runway["properties"])
    assert runway["properties"]["name"] == {"type": "string"}
    step = schemas["DeclaredStep"]["properties"]
    assert step["declared_by"]["description"] == "Who declared it; None: not known."
    assert step["server"] == {"type": "string"}


def test_no_name_of_the_first_version_is_gone(pages: Pages) -> None:
    """Names that are added belong into the file; none may be taken out of it once there was a release with it."""
    document = pages.ask(DOCUMENT).json
    known = {
        **{name: set(one.get("properties", ())) for name, one in document["components"]["schemas"].items()},
        **{
            path: {one["name"] for one in operations["get"]["parameters"]}
            for path, operations in document["paths"].items()
        },
    }
    lines = [f"{name}: {' '.join(sorted(names))}".rstrip() for name, names in sorted(known.items())]

    assert NAMES.read_text().splitlines() == lines


def test_the_parameters_of_each_answer_are_those_that_it_reads(pages: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, set[str]] = {}
    read = PageQuery.text

    def noted(query: PageQuery, name: str) -> str | None:
        asked.setdefault(query.path, set()).add(name)
        return read(query, name)

    monkeypatch.setattr(PageQuery, "text", noted)
    for address in ADDRESSES:
        pages.ask(address)

    # The sizes of a volume and of a table are of days, whatever the period, and those of a table are not compared.
    found = {PAGE_OF[path].name: names - set(OF_FILES) for path, names in asked.items()}
    found["volume"].remove("period")
    found["table"] -= {"period", "compare"}
    # Read only where it is given.
    found["decisions"].add("server")
    assert found == {page.name: set(page.parameters) for page in PAGES}
    assert {name for page in PAGES for name in page.parameters} == set(PARAMETERS)


def test_choices_are_what_the_answers_take(pages: Pages) -> None:
    document = pages.ask(DOCUMENT).json
    for address in ADDRESSES:
        place = urlsplit(in_api(address))
        parameters = document["paths"][place.path]["get"]["parameters"]
        for parameter in (one for one in parameters if one["name"] in PAGE_OF[urlsplit(address).path].choices):
            for value in parameter["schema"].get("enum", ()):
                given = {name: values[0] for name, values in parse_qs(place.query).items()}
                query = "&".join(f"{name}={one}" for name, one in {**given, parameter["name"]: value}.items())
                answer = pages.ask(f"{place.path}?{query}")
                assert answer.status in {200, 404}, (place.path, query, answer.text)


REFUSED = [
    ("servers?ordre=size", 400, "servers has no parameter 'ordre'; it has period, window, order, engine, page. Did you "
     "mean 'order'?"),
    ("servers?format=csv", 400, "servers has no parameter 'format'"),
    ("servers?order=volume", 400, "order must be one of size, growth, shrinkage, percent, name."),
    ("database?server=1", 400, "The address lacks the parameter name."),
    ("server?server=99", 404, "No server with ID 99."),
    ("nothing", 404, "There is no such answer; see /api/v1/openapi.json."),
]  # fmt: skip


def test_a_wrong_request_is_refused_as_described(pages: Pages) -> None:
    for place, status, message in REFUSED:
        answer = pages.ask(f"/api/v1/{place}")
        assert (answer.status, answer.json["error"].startswith(message)) == (status, True), answer.text


def test_a_long_list_is_read_page_by_page(pages: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pages.ask("/api/v1/databases?order=name").json["databases"]
    monkeypatch.setattr(reader, "ROWS_PER_PAGE", 2)

    def parts() -> Iterator[list[dict[str, Any]]]:
        number, has_more = 0, True
        while has_more:
            number += 1
            part = pages.ask(f"/api/v1/databases?order=name&page={number}").json
            has_more = part["has_more"]
            yield part["databases"]

    read = list(parts())
    assert [len(part) for part in read] == [2, 1]
    assert [one["database"] for part in read for one in part] == [one["database"] for one in whole]


CLIENT = """
import json, sys
from capacity_client import Client
from capacity_client.api.default import databases, server
from capacity_client.models import DatabasesOrder, DatabasesPeriod, Refusal

with Client(sys.argv[1]) as client:
    found = databases.sync(client=client, period=DatabasesPeriod.DAILY, order=DatabasesOrder.GROWTH)
    refused = server.sync(client=client, server=99)
assert isinstance(refused, Refusal)
rows = [[one.server, one.database, one.size_mb, one.change_mb] for one in found.databases]
print(json.dumps([found.window_start.isoformat(), rows, refused.error]))
"""


@pytest.mark.nightly("generates a client")
def test_a_generated_client_reads_answers_and_refusals(pages: Pages, tmp_path: Path) -> None:
    document, settings = tmp_path / "openapi.json", tmp_path / "client.yaml"
    document.write_text(pages.ask(DOCUMENT).text)
    # Formatting what nobody reads takes half of the time.
    settings.write_text("post_hooks: []\n")
    options = ["--output-path", tmp_path / "capacity_client", "--meta", "none", "--config", settings]
    made = subprocess.run(
        [sys.executable, "-m", "openapi_python_client", "generate", "--path", document, *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (made.returncode, "Warning" in made.stdout) == (0, False), made.stdout + made.stderr
    read = subprocess.run(
        [sys.executable, "-c", CLIENT, pages.address], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert read.returncode == 0, read.stderr

    day, rows, refused = json.loads(read.stdout)
    assert (day, refused) == ("2025-07-20", "No server with ID 99.")
    assert rows[0] == ["server-1", "orders", GROWING[-1], 50]


def test_the_documented_client_is_the_tested_one() -> None:
    text = (ROOT / "docs" / "integrations.md").read_text()
    for line in ("from capacity_client import Client", "from capacity_client.api.default import databases"):
        assert line in text
        assert line in CLIENT
