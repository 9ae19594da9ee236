"""What alembic runs: our revisions, on the connection and in the transaction of `storage.schema`."""

from alembic import context

from capacity_assets.storage.schema import VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"],
    version_table=VERSION_TABLE,
    # One transaction around everything, opened by the caller: a failed upgrade changes nothing.
    transaction_per_migration=False,
)
context.run_migrations()
