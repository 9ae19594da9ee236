"""What people are told outside the pages: alerts of what fills, to whom they go, and in which form. No Dagster here."""
