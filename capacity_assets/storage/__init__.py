"""Where data lies: tables, engines, schema migrations, the embedded server."""
