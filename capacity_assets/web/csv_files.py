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
    listed = TypeAdapter(page.shows).dump_python(found, mode="json")[page.table]
    plain = TypeAdapter(page.shows).dump_python(found)[page.table]
    written = io.StringIO()
    if listed:
        columns = [name for name, value in listed[0].items() if not isinstance(value, list)]
        rows = csv.writer(written)
        rows.writerow(columns)
        # Amounts are text in JSON and numbers before it.
        rows.writerows(
            [
                [_cell(row[name], is_text=isinstance(own[name], str)) for name in columns]
                for row, own in zip(listed, plain, strict=True)
            ]
        )
    headers = {"Content-Disposition": f'attachment; filename="{page.name}.csv"'}
    return Response(written.getvalue(), media_type="text/csv; charset=utf-8", headers=headers)


def _cell(value: object, *, is_text: bool) -> object:
    if isinstance(value, Mapping):
        value, is_text = ";".join(f"{key}={one}" for key, one in value.items()), True
    return as_plain_text(value) if is_text and isinstance(value, str) else value
