"""Where data is stored: tables, engines, schema, change tracking, the embedded server."""
