"""Tables and runs in the Dagster UI: column schemas, column lineage, summaries as metadata, check results.

Only this module turns a summary into typed metadata. Numbers stay numbers, flat, so that the UI plots them over
partitions. Metadata contains no address, user or password. A failed check does not fail the run.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import dagster as dg
from sqlalchemy import Table
from sqlalchemy.dialects import postgresql

from capacity_assets.aggregates.levels import LEVELS, Level
from capacity_assets.aggregates.runs import PeriodSummary, RunSummary
from capacity_assets.base.errors import MAXIMUM_LISTED_ERRORS
from capacity_assets.base.periods import PERIODS
from capacity_assets.base.units import counted, human_change_mb, human_mb, human_pair_mb, human_percent, percent_of
from capacity_assets.orchestration.graph import asset_name
from capacity_assets.reading.changes import SizeChange, WindowSizes
from capacity_assets.reading.subjects import address, page_url

MetadataMapping = Mapping[str, Any]
"""Plain numbers and texts, to which Dagster assigns types; Markdown and addresses as Dagster's values."""
markdown = dg.MetadataValue.md

# Dagster's own key for rows of a partition: the UI shows it in the asset's overview.
PARTITION_ROW_COUNT = "dagster/partition_row_count"
POSTGRESQL = postgresql.dialect()  # type: ignore[no-untyped-call]


def column_schema(table: Table, made_of: Mapping[str, Sequence[str]]) -> dg.TableSchema:
    """Describe the columns of a table, with their meaning and origin, as the UI shows them."""
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                name=column.name,
                type=column.type.compile(dialect=POSTGRESQL).lower(),
                description=_with_origin(column.comment, made_of.get(column.name, ())),
                constraints=dg.TableColumnConstraints(
                    nullable=bool(column.nullable), unique=[*table.primary_key] == [column]
                ),
            )
            for column in table.columns
        ]
    )


def _with_origin(comment: str | None, origins: Sequence[str]) -> str:
    """Add the origin as text: only the paid Dagster draws column lineage, and the free one shows this."""
    return f"{comment} (from {' and '.join(origins)})" if origins else str(comment)


def column_lineage(level: Level, source: dg.AssetKey) -> dg.TableColumnLineage:
    """Return the columns of the raw table `source` from which each aggregate column is computed."""
    return dg.TableColumnLineage(
        deps_by_column={
            target: [dg.TableColumnDep(asset_key=source, column_name=column) for column in columns]
            for target, columns in level.lineage().items()
        }
    )


def table_metadata(table: Table) -> dict[str, Any]:
    """Return the definition metadata of a table that is not aggregated from another one."""
    return {"dagster/table_name": table.name, "dagster/column_schema": column_schema(table, {})}


def aggregate_metadata(level: Level, source: dg.AssetKey) -> dict[str, object]:
    """Return the definition metadata of a level's aggregate table, with column lineage if it has one raw table."""
    return {
        "dagster/table_name": level.target.name,
        "dagster/column_schema": column_schema(level.target, level.lineage()),
        **({"dagster/column_lineage": column_lineage(level, source)} if level.has_servers else {}),
    }


def plain(values: Mapping[str, object]) -> dict[str, Any]:
    """Return the numbers and texts among values; the caller handles lists, and unknown values have no key."""
    return {key: value for key, value in values.items() if isinstance(value, int | float | str)}


def summary_metadata(summary: PeriodSummary, sizes: WindowSizes, pages_url: str | None = None) -> MetadataMapping:
    """Turn the summary of one window into materialisation metadata, with its figures and a link to the pages.

    The page of a partition shows the keys in this order, the most important ones first. Plots are sorted by name,
    capitals first, so the most important numbers begin with a capital. An unknown change has no key.
    """
    values: dict[str, object] = {
        "Size": human_mb(sizes.total_size_mb),
        "Change": change_text(sizes),
        "Coverage": summary.coverage.message if summary.coverage else "not counted",
        "summary": markdown(summary_text(summary, sizes)),
        "Size (MiB)": sizes.total_size_mb,
    }
    if pages_url is not None:
        place = {"period": summary.period_type, "window": summary.period_start, "order": "growth"}
        page = page_url(pages_url, address(LIST_OF_LEVEL[summary.level], **place))
        values["Open the pages"] = dg.MetadataValue.url(page)
    if sizes.total_change_mb is not None:
        share = percent_of(sizes.total_change_mb, sizes.known_before_mb)
        values |= {} if share is None else {"Size change (%)": float(share)}
        values |= {"Size change (MiB)": sizes.total_change_mb, "total_change_mb": sizes.total_change_mb}
    return {
        **values,
        "total_size_mb": sizes.total_size_mb,
        **plain(summary.to_dict()),
        "errors": markdown(errors_text(summary)),
        "unknown_changes": sizes.unknown_changes,
        PARTITION_ROW_COUNT: summary.total_records,
    }


LIST_OF_LEVEL = {"database": "/databases", "instance": "/servers", "group": "/groups"}


def page_of_asset(asset: str) -> str:
    """Return the page with the contents of an asset: the list of an aggregate's level, otherwise the first page."""
    lists = {
        asset_name(period, level): address(LIST_OF_LEVEL[level.name], period=period.name)
        for period in PERIODS.values()
        for level in LEVELS.values()
    }
    return lists.get(asset, "/")


def change_text(sizes: WindowSizes) -> str:
    """Return the change of the fleet as text: '+12.0 GiB (+3.4 %)', or that it is unknown."""
    if sizes.total_change_mb is None:
        return "unknown: nothing to compare with"
    return f"{human_change_mb(sizes.total_change_mb)} ({human_percent(sizes.total_change_mb, sizes.known_before_mb)})"


def summary_text(summary: PeriodSummary, sizes: WindowSizes) -> str:
    """Return Markdown: the change of the fleet, the largest changes, the result of the run, and failed servers."""
    unknown = f" (not known for {counted(sizes.unknown_changes, 'row')})" if sizes.unknown_changes else ""
    change = f"{change_text(sizes)} since the previous window"
    return "\n\n".join(
        [
            f"All servers: **{human_mb(sizes.total_size_mb)}**, {change}{unknown}",
            _movers_text("growers", sizes.growers),
            _movers_text("shrinkers", sizes.shrinkers),
            escaped(summary.message),
            *([f"**Failed servers**\n\n{errors_text(summary)}"] if summary.errors else []),
            _counts_table(summary, "Servers", "instances", ("processed", "failed", "skipped")),
            _counts_table(summary, "Rows", "records", ("written", "unchanged", "protected", "removed", "unsampled")),
        ]
    )


def _counts_table(summary: PeriodSummary, what: str, unit: str, names: Sequence[str]) -> str:
    return markdown_table([what, *names], [["", *(f"{getattr(summary, f'{name}_{unit}'):,}" for name in names)]])


def _movers_text(kind: str, movers: Sequence[SizeChange]) -> str:
    if not movers:
        return f"**Largest {kind}**: none"
    names = ["Server", "Database"] if movers[0].database is not None else ["Server"]
    rows = [
        [
            *(escaped(name) for name in (mover.server, mover.database) if name is not None),
            *human_pair_mb(mover.before_mb, mover.size_mb),
            human_change_mb(mover.change_mb),
        ]
        for mover in movers
    ]
    return f"**Largest {kind}**\n\n{markdown_table([*names, 'Before', 'Now', 'Change'], rows)}"


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Render rows as Markdown; the caller has escaped the cells."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def errors_text(summary: PeriodSummary | RunSummary) -> str:
    """List the failed instances, the first twenty by name and the rest as a count."""
    if not summary.errors:
        return "none"
    count = summary.failed_instances if isinstance(summary, PeriodSummary) else summary.total("failed_instances")
    return bullets(map(str, summary.errors), hidden=count - len(summary.errors))


def bullets(lines: Iterable[str], *, hidden: int) -> str:
    """List lines as Markdown, with names escaped, and count those that are not shown."""
    return linked_bullets(((line, None) for line in lines), hidden=hidden)


def linked_bullets(lines: Iterable[tuple[str, str | None]], *, hidden: int) -> str:
    """List lines with the addresses they link to, if any, in the same way."""
    more = [f"- … and {hidden} more"] if hidden > 0 else []
    listed = (escaped(line) if url is None else f"[{escaped(line)}]({url})" for line, url in lines)
    return "\n".join([*(f"- {line}" for line in listed), *more])


def first_bullets(lines: Sequence[str], shown: int = MAXIMUM_LISTED_ERRORS) -> str:
    """List the first lines as Markdown, and count the rest."""
    return bullets(lines[:shown], hidden=len(lines) - shown)


PAGES, PAGES_LISTED = "pages", 5


def pages_metadata(pages: Mapping[str, str], pages_url: str | None) -> MetadataMapping:
    """Return the full addresses of the pages of a check's findings, by name; empty without `pages_url`."""
    if pages_url is None or not pages:
        return {}
    return {PAGES: {name: page_url(pages_url, page) for name, page in islice(pages.items(), PAGES_LISTED)}}


MARKS = "\\`*_{}[]<>#|"


def escaped(text: str) -> str:
    """Keep names from being read as Markdown or markup, and in one line."""
    line = re.sub(r"[\s\x00-\x1f\x7f]+", " ", text)
    return "".join(f"\\{character}" if character in MARKS else character for character in line)


def unescaped(text: str) -> str:
    """Undo `escaped`, for plain text."""
    return re.sub(rf"\\([{re.escape(MARKS)}])", r"\1", text)


def failure_metadata(summary: RunSummary) -> MetadataMapping:
    """Return the metadata of a failed run: its counts and the first failed instances."""
    return {**summary.metrics(), "errors": markdown(errors_text(summary))}
