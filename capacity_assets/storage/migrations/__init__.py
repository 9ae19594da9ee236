"""Schema migrations (alembic). Revisions hold their own frozen table definitions, never the live ones."""
