"""Messages outside the pages: alerts, receivers, formats and delivery. No Dagster here."""
