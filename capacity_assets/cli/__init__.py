"""The `capacity` command. Each module is one command or what several share; the work lies elsewhere."""
