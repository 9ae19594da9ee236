"""The graph as a component of another project, with its servers in a file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg
import pytest
from dagster.components.testing import create_defs_folder_sandbox
from sqlalchemy import Engine, text

from capacity_assets.base.errors import ValidationError
from capacity_assets.orchestration.collection import REGISTERED_SERVERS
from capacity_assets.orchestration.component import CapacityFleet

pytestmark = [
    # Dagster 1.13 reads a component's YAML by a function that pydantic deprecates,
    pytest.mark.filterwarnings("ignore:`parse_obj_as` is deprecated"),
    # and the loader of components copies definitions by parameters of its own that are in beta.
    pytest.mark.filterwarnings("ignore::dagster_shared.utils.warnings.BetaWarning"),
]
FLEET = """
[defaults]
engine = "postgresql"
username = "capacity_probe"

[[servers]]
name = "db-1"
host = "db-1.example"
labels = { team = "payments" }

[[servers]]
name = "db-2"
host = "db-2.example"
"""


@contextmanager
def loaded(attributes: dict[str, object]) -> Iterator[dg.Definitions]:
    """The definitions of a project whose `defs.yaml` has these attributes, a fleet's file beside it."""
    kind = f"{CapacityFleet.__module__}.{CapacityFleet.__name__}"
    with create_defs_folder_sandbox() as sandbox:
        folder = sandbox.scaffold_component(
            component_cls=CapacityFleet, defs_yaml_contents={"type": kind, "attributes": attributes}
        )
        (folder / "fleet.toml").write_text(FLEET)
        with sandbox.load_component_and_build_defs(defs_path=folder) as (_, definitions):
            yield definitions


@pytest.mark.usefixtures("settings")
def test_a_component_brings_the_graph_and_registers_the_servers_of_its_file(engine: Engine) -> None:
    with loaded({"fleet": "fleet.toml"}) as definitions:
        job, registered = definitions.resolve_implicit_global_asset_job_def(), dg.AssetKey(REGISTERED_SERVERS)
        keys = {key.to_user_string() for key in definitions.resolve_asset_graph().get_all_asset_keys()}

        def register() -> dict[str, object]:
            [event] = job.execute_in_process(asset_selection=[registered]).get_asset_materialization_events()
            return {name: value.value for name, value in event.materialization.metadata.items()}

        first, second = register(), register()

    with engine.connect() as connection:
        names = connection.execute(text("SELECT name FROM instances ORDER BY name")).scalars().all()
        labels = connection.execute(
            text("SELECT name, key, value FROM capacity_labels JOIN instances ON id = instance_id")
        ).all()
    assert names == ["db-1", "db-2"]
    assert labels == [("db-1", "team", "payments")]
    assert (first["added_servers"], first["unchanged_servers"]) == (2, 0)
    assert (second["added_servers"], second["unchanged_servers"]) == (0, 2)
    assert {"monthly_database_aggregations", "database_size_stats", REGISTERED_SERVERS} <= keys


@pytest.mark.usefixtures("settings")
def test_a_file_that_is_missing_keeps_the_component_from_loading_as_dg_check_defs_does() -> None:
    with pytest.raises(Exception, match=r"defs\.yaml") as refused, loaded({"fleet": "servers.toml"}):
        pass

    said = [str(error) for error in causes(refused.value) if isinstance(error, ValidationError)]
    assert re.fullmatch(r"fleet: there is no file /\S+/servers\.toml\.", said[0])


def causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@pytest.mark.usefixtures("settings")
def test_without_a_file_the_component_is_the_graph_alone() -> None:
    with loaded({}) as definitions:
        assert dg.AssetKey(REGISTERED_SERVERS) not in definitions.resolve_asset_graph().get_all_asset_keys()


@pytest.mark.usefixtures("settings")
def test_a_component_takes_a_prefix_owners_and_an_executor() -> None:
    attributes = {"fleet": "fleet.toml", "key_prefix": ["dba", "fleet"], "owners": ["team:data"]}
    with loaded({**attributes, "executor": "multiprocess"}) as definitions:
        specs = definitions.resolve_all_asset_specs()
        executor = definitions.resolve_job_def("collection_job").executor_def.name

    assert {(*spec.key.path[:-1], *spec.owners) for spec in specs} == {("dba", "fleet", "team:data")}
    assert dg.AssetKey(["dba", "fleet", REGISTERED_SERVERS]) in {spec.key for spec in specs}
    assert executor == "multiprocess"
