"""Queries for history in other programs: they parse, and give the columns that imports read."""

from __future__ import annotations

import pytest
import sqlglot

from capacity_assets.history.sources import ORIGINS, ORIGINS_OF_FILES

EACH = {program: query for origin in ORIGINS.values() for program, query in origin.queries.items()}


@pytest.mark.parametrize("program", EACH)
def test_every_query_is_one_statement_of_its_dialect_with_the_columns_of_an_import(program: str) -> None:
    dialect, query = EACH[program]

    [parsed] = sqlglot.parse(query, dialect=dialect, error_level=sqlglot.ErrorLevel.RAISE)

    assert isinstance(parsed, sqlglot.exp.Select)
    assert parsed.named_selects == ["server", "database", "day", "size_bytes"]


def test_each_query_is_of_an_origin_that_files_may_have() -> None:
    assert {one.name for one in ORIGINS.values() if one.queries} | {"file"} == set(ORIGINS_OF_FILES)


def test_what_is_read_of_sql_server_and_oracle_are_their_documented_columns() -> None:
    read = {
        program: {
            column.name.lower() for column in sqlglot.parse_one(query, dialect=dialect).find_all(sqlglot.exp.Column)
        }
        for program, (dialect, query) in EACH.items()
    }
    own = {"server", "day", "turn", "size_bytes"}

    assert read["SQL Server"] - own == {
        *("server_name", "database_name", "backup_finish_date", "backup_size", "backup_set_id", "type"),
    }
    assert read["Oracle"] - own == {
        *("rtime", "snap_id", "dbid", "tablespace_id", "tablespace_size", "ts#", "name"),
        *("tablespace_name", "block_size", "contents"),
    }
