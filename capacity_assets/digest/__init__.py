"""The weekly digest: what happened that people should know, sent to whom it concerns. No Dagster here."""
