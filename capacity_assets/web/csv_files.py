"""The list of a page as a CSV file, with the names of its JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter
from starlette.responses import Response

from capacity_assets.foundation.spreadsheets import as_plain_text

if TYPE_CHECKING:
    from capacity_assets.web.app import Page


def csv_of(page: Page, found: Any) -> Response:
    """Write the page's list as CSV, with the names of its JSON."""
    # Not as JSON, in which amounts are text too.
    listed = TypeAdapter(page.shows).dump_python(found)[page.table]
    written = io.StringIO()
    if listed:
        columns = [name for name, value in listed[0].items() if not isinstance(value, list | tuple)]
        rows = csv.writer(written)
        rows.writerow(columns)
        rows.writerows([_cell(row[name]) for name in columns] for row in listed)
    headers = {"Content-Disposition": f'attachment; filename="{page.name}.csv"'}
    return Response(written.getvalue(), media_type="text/csv; charset=utf-8", headers=headers)


def _cell(value: object) -> object:
    if isinstance(value, Mapping):
        value = ";".join(f"{key}={one}" for key, one in value.items())
    return as_plain_text(value) if isinstance(value, str) else value
