"""What the Dagster UI shows of tables and runs: column schemas, column lineage, summaries as metadata.

The one place where a summary becomes typed metadata. Numbers stay numbers, flat, so that the UI plots them
over partitions. Nothing here holds an address, a user or a password.
"""

from collections.abc import Mapping, Sequence

import dagster as dg
from sqlalchemy import Table
from sqlalchemy.dialects import postgresql

from capacity_assets.aggregation.levels import Level
from capacity_assets.aggregation.results import PeriodSummary, RunSummary

MetadataMapping = Mapping[str, dg.MetadataValue]

# Dagster's own key for rows of a partition: the UI shows it in the asset's overview.
PARTITION_ROW_COUNT = "dagster/partition_row_count"


def column_schema(table: Table, made_of: Mapping[str, Sequence[str]]) -> dg.TableSchema:
    """Describe the columns of a table, with their meaning and origin, as the UI shows them."""
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                name=column.name,
                type=column.type.compile(dialect=postgresql.dialect()).lower(),  # type: ignore[no-untyped-call]
                description=_described(column.comment, made_of.get(column.name, ())),
                constraints=dg.TableColumnConstraints(
                    nullable=bool(column.nullable), unique=[*table.primary_key] == [column]
                ),
            )
            for column in table.columns
        ]
    )


def _described(comment: str | None, origins: Sequence[str]) -> str:
    """Add the origin as text: only the paid Dagster draws column lineage, and the free one shows this."""
    return f"{comment} (from {' and '.join(origins)})" if origins else str(comment)


def column_lineage(level: Level) -> dg.TableColumnLineage:
    """Say which raw columns each aggregate column is made of."""
    source = dg.AssetKey(level.source.name)
    return dg.TableColumnLineage(
        deps_by_column={
            target: [dg.TableColumnDep(asset_key=source, column_name=column) for column in columns]
            for target, columns in level.lineage().items()
        }
    )


def raw_metadata(level: Level) -> dict[str, object]:
    """Return the definition metadata of a level's raw table."""
    return {"dagster/table_name": level.source.name, "dagster/column_schema": column_schema(level.source, {})}


def aggregate_metadata(level: Level) -> dict[str, object]:
    """Return the definition metadata of a level's aggregate table, column lineage included."""
    return {
        "dagster/table_name": level.target.name,
        "dagster/column_schema": column_schema(level.target, level.lineage()),
        "dagster/column_lineage": column_lineage(level),
    }


def summary_metadata(summary: PeriodSummary) -> MetadataMapping:
    """Turn the summary of one window into materialisation metadata (SEMANTICS, section 7)."""
    values: dict[str, dg.MetadataValue] = {}
    for key, value in summary.to_dict().items():
        if isinstance(value, int):
            values[key] = dg.MetadataValue.int(value)
        elif isinstance(value, float):
            values[key] = dg.MetadataValue.float(value)
        elif key == "errors":
            values[key] = dg.MetadataValue.md(errors_text(summary))
        else:
            values[key] = dg.MetadataValue.text(str(value))
    values[PARTITION_ROW_COUNT] = dg.MetadataValue.int(summary.total_records)
    return values


def errors_text(summary: PeriodSummary | RunSummary) -> str:
    """List the failed instances, the first twenty by name and the rest as a count."""
    if not summary.errors:
        return "none"
    lines = [f"- {escaped(str(error))}" for error in summary.errors]
    count = summary.failed_instances if isinstance(summary, PeriodSummary) else summary.total("failed_instances")
    hidden = count - len(lines)
    return "\n".join([*lines, f"- … and {hidden} more"] if hidden else lines)


def escaped(text: str) -> str:
    """Keep names from being read as Markdown or markup."""
    return "".join(f"\\{character}" if character in "\\`*_{}[]<>#|" else character for character in text)


def failure_metadata(summary: RunSummary) -> MetadataMapping:
    """Return what a failed run shows: its counts and the first failed instances."""
    counts = {key: dg.MetadataValue.int(value) for key, value in summary.metrics().items()}
    return {**counts, "errors": dg.MetadataValue.md(errors_text(summary))}
