"""No role gains the owner's privileges through trigger functions, or through objects created before `init`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from capacity_assets.database.engine import capacity_engine
from capacity_assets.database.schema import SchemaProblemsError, initialise, schema_state
from tests.command import capacity
from tests.databases import execute, rows
from tests.roles import ROLES, documented

NOBODY = "capacity_nobody"
# The columns of a table for each function: of a type whose cast is the attacker's code, wherever ours expects a type.
FUNCTIONS = {
    "capacity_track_database_size_stats": "collected_date pg_temp.bait",
    "capacity_track_instance_size_stats": "collected_date pg_temp.bait",
    "capacity_track_instances": "id pg_temp.bait, is_active boolean DEFAULT true, deleted_at date",
    "capacity_track_writes": "id pg_temp.bait",
    "capacity_track_groups_capacity_labels": "valid_from pg_temp.bait",
    "capacity_track_groups_instances": "id pg_temp.bait",
}
ATTACK = """
CREATE TYPE pg_temp.bait AS (x text);
CREATE FUNCTION pg_temp.to_date(pg_temp.bait) RETURNS date LANGUAGE plpgsql
    AS $$ BEGIN RAISE EXCEPTION 'code of another role ran as %', current_user; END $$;
CREATE FUNCTION pg_temp.to_number(pg_temp.bait) RETURNS integer LANGUAGE plpgsql
    AS $$ BEGIN RAISE EXCEPTION 'code of another role ran as %', current_user; END $$;
CREATE CAST (pg_temp.bait AS date) WITH FUNCTION pg_temp.to_date AS IMPLICIT;
CREATE CAST (pg_temp.bait AS integer) WITH FUNCTION pg_temp.to_number AS IMPLICIT;
CREATE TEMPORARY TABLE planted ({columns});
CREATE TRIGGER planted AFTER INSERT ON planted REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION public.{function}('database_size_stats');
INSERT INTO planted ({column}) VALUES (ROW('x')::pg_temp.bait)
"""


@pytest.fixture
def roles(engine: Engine) -> Iterator[Engine]:
    """The documented roles, and a role that may only log in."""
    execute(engine, documented(), f"CREATE ROLE {NOBODY} LOGIN")
    yield engine
    for role in (*ROLES, NOBODY):
        execute(engine, f"DROP OWNED BY {role} CASCADE", f"DROP ROLE {role}")


@contextmanager
def as_role(engine: Engine, role: str) -> Iterator[Connection]:
    with engine.connect() as connection:
        connection.execute(text(f"SET LOCAL SESSION AUTHORIZATION {role}"))
        yield connection


def attack(connection: Connection, function: str) -> None:
    columns = FUNCTIONS[function]
    connection.execute(text(ATTACK.format(function=function, columns=columns, column=columns.split()[0])))


def test_the_functions_of_triggers_are_those_that_are_attacked_here(engine: Engine) -> None:
    found = rows(engine, "SELECT proname FROM pg_proc WHERE prosecdef AND pronamespace = 'public'::regnamespace")

    assert {name for (name,) in found} == set(FUNCTIONS)


@pytest.mark.parametrize("role", [NOBODY, *ROLES])
def test_no_role_can_have_the_functions_of_triggers_run_its_code(roles: Engine, role: str) -> None:
    for function in FUNCTIONS:
        with as_role(roles, role) as connection, pytest.raises(DBAPIError, match="permission denied for function"):
            attack(connection, function)


def test_a_trigger_that_was_made_while_everybody_could_call_the_functions_is_refused(roles: Engine) -> None:
    for function in FUNCTIONS:
        execute(roles, f"GRANT EXECUTE ON FUNCTION {function}() TO PUBLIC")
        with as_role(roles, NOBODY) as connection, pytest.raises(DBAPIError, match=f"{function} is not for planted"):
            attack(connection, function)


def test_init_takes_the_right_away_where_others_have_it_and_check_tells_before(engine: Engine) -> None:
    execute(engine, *(f"GRANT EXECUTE ON FUNCTION {function}() TO PUBLIC" for function in FUNCTIONS))
    told = tuple(
        f"the function {function} could be called by other roles and run their code as its owner"
        for function in sorted(FUNCTIONS)
    )
    assert tuple(sorted(schema_state(engine).shortcomings)) == told

    assert sorted(initialise(engine)) == [f"fixed: {line}" for line in told]

    assert schema_state(engine).fit
    assert rows(engine, "SELECT kind FROM capacity_changes") == []


def test_default_privileges_give_nobody_the_functions(empty_engine: Engine) -> None:
    role = f"other_{empty_engine.url.database}"
    execute(empty_engine, f"CREATE ROLE {role}", f"ALTER DEFAULT PRIVILEGES GRANT EXECUTE ON FUNCTIONS TO {role}")

    initialise(empty_engine)

    assert schema_state(empty_engine).fit
    assert initialise(empty_engine) == ()
    execute(empty_engine, f"DROP OWNED BY {role}", f"DROP ROLE {role}")


PLANTED = {
    "table capacity_labels": "CREATE TABLE capacity_labels (instance_id integer)",
    "table capacity_alembic_version": "CREATE TABLE capacity_alembic_version (version_num varchar(32) NOT NULL)",
    "view capacity_growth": "CREATE VIEW capacity_growth AS SELECT 1 AS one",
    "function capacity_track_instances()": "CREATE FUNCTION capacity_track_instances() RETURNS trigger "
    "LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
}


def test_init_refuses_objects_that_another_role_made_before(empty_engine: Engine) -> None:
    role = f"planter_{empty_engine.url.database}"
    execute(empty_engine, f"CREATE ROLE {role}", f"GRANT CREATE ON SCHEMA public TO {role}")
    for planted, statement in PLANTED.items():
        execute(empty_engine, f"SET LOCAL ROLE {role}", statement)

        with pytest.raises(SchemaProblemsError, match="which could make every user of it run") as caught:
            initialise(empty_engine)

        kind, name = planted.split()
        [problem] = caught.value.problems
        assert problem.startswith(f"the {planted} belongs to the role {role}")
        assert f"ALTER {kind.upper()} {name} OWNER TO postgres" in problem
        execute(empty_engine, f"DROP {planted}")
    execute(empty_engine, f"DROP OWNED BY {role}", f"DROP ROLE {role}")
    initialise(empty_engine)


def test_a_table_that_another_role_owns_is_found_whoever_looks(roles: Engine) -> None:
    execute(roles, f"ALTER TABLE instance_size_stats_default OWNER TO {NOBODY}")
    runner = capacity_engine(roles.url.update_query_dict({"options": "-c role=capacity_runner"}))

    found = [schema_state(engine).shortcomings for engine in (roles, runner)]

    runner.dispose()
    execute(roles, "ALTER TABLE instance_size_stats_default OWNER TO postgres")
    for [problem] in found:
        assert problem.startswith(f"the table instance_size_stats_default belongs to the role {NOBODY}")
    assert schema_state(roles).fit


def test_the_owner_of_the_database_may_own_the_tables_whoever_runs_init(empty_engine: Engine) -> None:
    role = f"owner_{empty_engine.url.database}"
    execute(empty_engine, f"CREATE ROLE {role}", f"ALTER DATABASE {empty_engine.url.database} OWNER TO {role}")
    execute(
        empty_engine,
        f"SET LOCAL ROLE {role}",
        "CREATE TABLE capacity_settings (name varchar(63) PRIMARY KEY, "
        "value text NOT NULL, set_at timestamptz NOT NULL DEFAULT now())",
    )

    initialise(empty_engine)

    assert schema_state(empty_engine).fit
    execute(empty_engine, f"REASSIGN OWNED BY {role} TO postgres", f"DROP ROLE {role}")


def test_init_refuses_while_every_role_may_create_in_the_schema_and_check_fails(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(engine, "GRANT CREATE ON SCHEMA public TO PUBLIC")
    monkeypatch.setenv("CAPACITY_DATABASE_URL", engine.url.render_as_string(hide_password=False))

    found, done = capacity("check"), capacity("init")

    assert (found.exit_code, done.exit_code) == (1, 1)
    advice = "REVOKE CREATE ON SCHEMA public FROM PUBLIC; GRANT CREATE ON SCHEMA public TO postgres"
    for result in (found, done):
        assert "every role may create objects in the schema public" in " ".join(result.output.split())
    execute(engine, *advice.split("; "))
    assert initialise(engine) == ()
