"""Shares of the servers, so that several runs or several places measure a fleet: by number, or by label.

A share is written `2/4`, the second of four, or `zone=eu`, the servers with that label, and `zone=` those without one.
Which shares there are is said by CAPACITY_COLLECTION_SHARES; measuring one is the business of `service`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date

from sqlalchemy import Engine, text

from capacity_assets.errors import ValidationError, database_errors
from capacity_assets.setting_values import MOST_SHARES
from capacity_assets.storage.label_expressions import SPANS, holds_on

_NUMBERED = re.compile(r"([0-9]{1,3})/([0-9]{1,3})")
_LABELLED = re.compile(r"([a-z][a-z0-9_]*)=(.*)", re.DOTALL)
HOW_TO_WRITE = "write 2/4 for the second of four shares, zone=eu for servers with a label, or zone= for those without"


@dataclass(frozen=True)
class Share:
    """Some of the servers: those whose number leaves a remainder, or those with a label."""

    name: str
    number: int = 0
    of: int = 1
    key: str | None = None
    value: str | None = None

    def holds(self, server_id: int, labels: Mapping[int, str]) -> bool:
        """Whether a server belongs to it; `labels` has the values of its key, by server."""
        if self.key is None:
            return server_id % self.of == self.number
        return labels.get(server_id) == self.value


def share_named(name: str) -> Share:
    """Read a share; raises ValidationError that says how one is written."""
    numbered, labelled = _NUMBERED.fullmatch(name), _LABELLED.fullmatch(name)
    if labelled:
        return Share(name, key=labelled[1], value=labelled[2] or None)
    number, of = (int(part) for part in numbered.groups()) if numbered else (0, 0)
    if not 1 <= number <= of <= MOST_SHARES:
        raise ValidationError(f"{name!r} is not a share of the servers: {HOW_TO_WRITE}. Nothing was measured.")
    # Named alike however it was written: a share has one lock.
    return Share(f"{number}/{of}", number=number - 1, of=of)


def chosen_by(engine: Engine, share: Share, server_ids: Sequence[int], day: date) -> set[int]:
    """Return those of the servers that belong to a share, by the labels that hold on a day; raises DatabaseError."""
    labels: dict[int, str] = {}
    if share.key is not None:
        with (
            database_errors(doing="reading labels of servers", kept="Nothing was measured."),
            engine.connect() as connection,
        ):
            rows = connection.execute(text(_LABELS), {"key": share.key, "day": day})
            labels = {row.instance_id: row.value for row in rows}
    return {server for server in server_ids if share.holds(server, labels)}


_LABELS = f"""
SELECT l.instance_id, l.value FROM {SPANS} l
WHERE l.key = :key AND l.database_pattern = '' AND {holds_on("l", "CAST(:day AS date)")}
"""  # noqa: S608 -- expressions of our own views
