"""The API takes whatever its description allows: a fuzzer that follows it finds no refusal and no error."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, assume, given, settings
from jsonschema import Draft202012Validator
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from capacity_assets.web.api import DOCUMENT, RULES
from capacity_assets.web.reader import DATE, PageQuery
from capacity_assets.web.routes import PAGE_OF, PAGES
from tests.clocks import TODAY
from tests.pages import KEYS, Pages
from tests.pages_fleet import ADDRESSES, filled
from tests.profiles import HISTORIES

PREPARED = {"pages": filled}
CHECKS = (not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance)
# What is well described may still not exist, or contradict what was measured.
ANSWERED = {200, 404, 422}


def asked(operation: Any, rules: Draft202012Validator, address: str) -> set[int]:
    """Ask for examples of an operation; return the statuses of the answers."""
    statuses = set()

    @given(case=operation.as_strategy())
    @settings(max_examples=HISTORIES, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    def ask(case: Any) -> None:
        assume(rules.is_valid(case.query or {}))
        answer = case.call_and_validate(base_url=address, checks=CHECKS)
        statuses.add(answer.status_code)
        assert answer.status_code in ANSWERED, (case.query, answer.text)

    ask()
    return statuses


def test_a_fuzzer_that_follows_the_description_is_never_refused(pages: Pages) -> None:
    document = pages.ask(DOCUMENT).json
    statuses = {}
    for found in schemathesis.openapi.from_dict(document).get_all_operations():
        operation = found.ok()
        rules = Draft202012Validator(document["paths"][operation.path]["get"].get(RULES, {}))
        statuses[operation.path] = asked(operation, rules, pages.address)

    assert statuses.keys() == {f"/api/v1/{page.name}" for page in PAGES}
    assert all(200 in statuses[f"/api/v1/{name}"] for name in ("fleet", "databases", "groups", "search", "budget"))


def test_days_are_described_as_they_are_taken() -> None:
    described = Draft202012Validator(DATE)
    edges = [
        date(year, month, 1) - timedelta(days=1) for year in (1900, 2000, 2024, 2100, 2999) for month in range(2, 13)
    ]
    edges += [date(1900, 1, 1), date(2999, 12, 31), date(2400, 2, 29)]
    assert [day for day in edges if not described.is_valid(str(day))] == []
    for written in (
        "1899-12-31",
        "3000-01-01",
        "1900-02-29",
        "2100-02-29",
        "2025-02-29",
        "2025-04-31",
        "2025-13-01",
        "x",
    ):
        query = PageQuery("/", {"window": written}, KEYS, TODAY)
        with pytest.raises(Exception, match="window must be"):
            query.day("window")
        assert not described.is_valid(written), written


def test_empty_parameters_are_ignored(pages: Pages) -> None:
    assert "Empty parameters are ignored." in pages.ask(DOCUMENT).json["info"]["description"]
    for address in ADDRESSES:
        path, _, query = address.partition("?")
        page = PAGE_OF[path]
        given = [word for word in query.split("&") if word]
        others = [name for name in page.parameters if name not in {word.partition("=")[0] for word in given}]
        missing = pages.ask(f"/api/v1/{page.name}?{query}")
        empty = pages.ask(f"/api/v1/{page.name}?{'&'.join([*given, *(f'{name}=' for name in others)])}")
        assert missing.status == 200, address
        assert (empty.status, empty.json) == (200, missing.json), address


def test_a_range_of_days_may_be_written_from_either_end(pages: Pages) -> None:
    one, other = (pages.document(f"/?first={first}&last={last}") for first, last in (
        (TODAY - timedelta(days=9), TODAY), (TODAY, TODAY - timedelta(days=9)),
    ))  # fmt: skip
    assert one == other
    assert len(one["sizes"]) == 10
