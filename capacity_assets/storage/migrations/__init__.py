"""Schema revisions (alembic): a baseline, and later steps that comparing tables cannot do."""
