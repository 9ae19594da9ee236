"""Every name of Dagster that is not in its public interface. Checked against Dagster 1.13.27.

`pyproject.toml` bounds Dagster to that minor release because of these. Before it is raised, go through the three
modules, of which `postgres` also sets attributes of the storage; a test says which other module imports a private name
(none may).
"""
